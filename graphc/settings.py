"""The only reader of `GRAPHC_*` environment variables."""

from __future__ import annotations

import os

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
