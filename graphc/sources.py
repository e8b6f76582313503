"""Digests of graphc's own sources, for keys of what they make: any edit of them makes other keys."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
_IMPORTED = time.time()
_YOUNG_SECONDS = 2.0


def digest_of(names: Iterable[str]) -> str:
    """SHA-256 over files of this package, in any order, and over their names: "ir/types.py".

    Sources that changed since graphc was imported are not those that run (and some installations have none to
    read): then it is a random number, and keys are good for this process only.
    """
    digest = hashlib.sha256()
    start = f"{PACKAGE}{os.sep}"
    try:
        for name in sorted(names):
            with open(start + name, "rb", buffering=0) as file:
                content = file.read()
                status = os.fstat(file.fileno())
                if max(status.st_mtime, status.st_ctime) > _IMPORTED:  # installers set the former back
                    return os.urandom(32).hex()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    except OSError:
        return os.urandom(32).hex()
    return digest.hexdigest()


def sources_in(folder: str = "") -> Iterator[str]:
    """The names of all sources in a folder of this package ("codegen/"), and in those below."""
    with os.scandir(PACKAGE / folder) as items:
        for item in items:
            if item.name.endswith(".py"):
                yield folder + item.name
            elif item.is_dir() and item.name != "__pycache__":
                yield from sources_in(f"{folder}{item.name}/")


@cache
def compiler_digest(memo: Path | None = None) -> str:
    """Of all sources: what a declared network becomes depends on most of them.

    `memo` is a file that remembers the digest for as long as no source is touched: to look at all of them
    takes a fifth of the time of reading them. Nobody else may be able to write there.
    """
    seen = _signature() if memo is not None else None
    if memo is None or seen is None:
        return digest_of(sources_in())
    with suppress(OSError, ValueError):
        known, digest = memo.read_text(encoding="ascii").split()
        if known == seen and len(digest) == len(known):
            return digest
    digest = digest_of(sources_in())
    if _signature() == seen:
        with suppress(OSError):
            beside = memo.with_name(f".tmp-{memo.name}-{os.getpid()}")
            beside.write_text(f"{seen} {digest}\n", encoding="ascii")
            beside.replace(memo)
    return digest


def _signature() -> str | None:
    """SHA-256 over what the file system says of all sources, which any edit changes; None where that is not
    sure: there are none, or one is so young that a second edit might leave the same times."""
    digest = hashlib.sha256(f"{PACKAGE}".encode())
    newest = 0.0
    try:
        for name in sorted(sources_in()):
            status = os.stat(f"{PACKAGE}{os.sep}{name}")
            newest = max(newest, status.st_mtime, status.st_ctime)
            times = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {status.st_size}"
            digest.update(f"{name} {times}\n".encode())
    except OSError:
        return None
    return digest.hexdigest() if 0 < newest < min(_IMPORTED, time.time() - _YOUNG_SECONDS) else None
