"""Digests of graphc's own sources, for keys of what they make: any edit of them makes other keys."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
_IMPORTED = time.time()


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
                if os.fstat(file.fileno()).st_mtime > _IMPORTED:
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
def compiler_digest() -> str:
    """Of all sources: what a declared network becomes depends on most of them."""
    return digest_of(sources_in())
