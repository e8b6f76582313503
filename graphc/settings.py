"""The only reader of `GRAPHC_*` environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from graphc.errors import UsageError


def num_threads() -> int | None:
    """`GRAPHC_NUM_THREADS`: worker threads to use, or None to detect them."""
    text = os.environ.get("GRAPHC_NUM_THREADS")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"GRAPHC_NUM_THREADS must be a positive integer, not {text!r}")
    return int(text)


def dump_directory() -> str | None:
    """`GRAPHC_DUMP`: a directory into which every compile writes all its stages."""
    return os.environ.get("GRAPHC_DUMP") or None


def target_name() -> str | None:
    """`GRAPHC_TARGET`: sse2, avx2, avx512 or neon, to override the detected vector level."""
    return os.environ.get("GRAPHC_TARGET") or None


def cache_directory() -> Path:
    """`GRAPHC_CACHE_DIR`: where object code and what was measured are kept.

    Else `graphc` in XDG_CACHE_HOME (an absolute path, by the XDG specification) or in `~/.cache`.
    """
    named = os.environ.get("GRAPHC_CACHE_DIR")
    if named:
        return Path(named).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (base if base.is_absolute() else Path(os.path.expanduser("~/.cache")).absolute()) / "graphc"


def cache_enabled() -> bool:
    """`GRAPHC_CACHE`: 0 keeps object code off the disk; 1 is the default."""
    text = os.environ.get("GRAPHC_CACHE") or "1"
    if text not in ("0", "1"):
        raise UsageError(f"GRAPHC_CACHE must be 0 or 1, not {text!r}")
    return text == "1"


def cache_bytes() -> int:
    """`GRAPHC_CACHE_MIB`: how much object code is kept on disk, in bytes; 256 MiB by default."""
    text = os.environ.get("GRAPHC_CACHE_MIB") or "256"
    if not text.isdecimal():
        raise UsageError(f"GRAPHC_CACHE_MIB must be a whole number of MiB, not {text!r}")
    return int(text) << 20
