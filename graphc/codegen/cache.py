"""Object code on disk: what was compiled once is read back, if the whole key is the same.

    entry  = MAGIC, u32 bytes of the header, header, SHA-256 of (header, object), object
    header = JSON {"parts": {name: [digest, shown]}, "content": ..., "object_bytes": n}
    key    = SHA-256 over the named parts; the entry's file name

A part is something the object depends on: the code, the CPU, options, versions. The header keeps a digest
of each (and short ones as text), so that `explain` can tell why an entry was not found. `content` is JSON
that goes with the object (symbols of kernels).

Loading an object is running code. So the directory and every file in it must belong to this user and be
writable by nobody else, and the digest is checked before the bytes are handed out. A file that does not
pass is deleted and compiled again. Trouble with the disk is never an error: it costs one log line and a
compile. Several processes may share a directory: entries appear by an atomic rename, never change after,
and an unlinked one stays readable for who has it open.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graphc import settings
from graphc.codegen.jit import CODEGEN_OPTIONS, compile_object, llvm_version
from graphc.codegen.target import Target
from graphc.sources import digest_of, sources_in

MAGIC = b"graphc\r\x01"
"""The last byte is the version of the format; text-mode transfers damage the byte before it."""
FORMAT = 1
SUFFIX = ".gxo"
_TEMPORARY = ".tmp-"
_STALE_SECONDS = 3600
"""Temporary files older than this belong to a process that died."""
_ACCOUNT = ".stored"
"""A file with one byte for each block of what was stored since the directory was last looked through."""
_BLOCK_BYTES = 4096
_LOOK_AFTER = 1 / 16
"""Of the limit: when so much was stored, by all processes together, the directory is looked through."""
_EVICT_TO = 0.8
"""Of the limit: what a look leaves if it finds more than the limit less `_LOOK_AFTER`. So the entries stay
within the limit; what processes are storing at one moment may come on top."""
_SHOWN_CHARACTERS = 160
_DIGEST_BYTES = 32
_HEADER_FIELDS = {"parts", "content", "object_bytes"}
_PRIVATE = 0o700

_storing = True
_KERNEL_SOURCES = ("ir/types.py", "ir/scalar.py", "ir/kernels.py", "ir/text_kernels.py", "ir/literals.py")
"""What emission reads of graphc/ir, and the text form that stands for a kernel in keys."""

Parts = Mapping[str, str]
Make = Callable[[], tuple[bytes, Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the cache. `size` in bytes, `used` the time of the last hit (seconds since the epoch)."""

    path: Path
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class Cached:
    """An object with the JSON stored beside it, whether it came from disk, and the key's parts."""

    object_bytes: bytes
    content: Any
    hit: bool
    parts: Parts


class Refused(Exception):
    """A directory or file that the cache does not trust or cannot read; the message says why."""


# ------------------------------------------------------------------------------------------ what is cached


def cached_object(ir_text: str, target: Target) -> bytes:
    """The object of an LLVM text, as `jit.compile_object`: from disk if it lies there. Errors as there."""
    parts = {"kind": "LLVM text", **machine_parts(target), "text": ir_text}
    return cached(parts, lambda: (compile_object(ir_text, target), None)).object_bytes


def cached(parts: Parts, make: Make) -> Cached:
    """The object and content stored under a key, or what `make` returns, which is then stored.

    `parts` must name everything that `make` depends on; content is JSON. Raises only what `make` raises.
    """
    found = look_up(parts)
    if found is None:
        found = Cached(*make(), False, parts)
        keep(found)
    return found


def look_up(parts: Parts) -> Cached | None:
    """What is stored under a key, if anything is."""
    directory = usable_directory()
    if directory is None:
        return None
    path = directory / (key_of(parts) + SUFFIX)
    try:
        content, object_bytes = _read(path, parts)
        return Cached(object_bytes, content, True, parts)
    except FileNotFoundError:
        pass
    except Refused as refusal:
        _delete(path, refusal)
    except OSError as error:
        _warn(f"cache file {path} is not used: {error}")
    return None


def keep(made: Cached) -> None:
    """Stores what was made under its key, if it can be."""
    directory = usable_directory()
    if directory is not None and _storing:
        _store(directory / (key_of(made.parts) + SUFFIX), made.parts, made.content, made.object_bytes)


def refuse(parts: Parts, why: object) -> None:
    """Deletes an entry that was whole, and yet not what its reader can use."""
    directory = usable_directory()
    if directory is not None:
        _delete(directory / (key_of(parts) + SUFFIX), why)


def _delete(path: Path, why: object) -> None:
    _warn(f"cache file {path} is deleted and compiled again: {why}")
    with suppress(OSError):
        path.unlink()


def machine_parts(target: Target) -> dict[str, str]:
    """The parts of every key: format, versions, options and the CPU that code is made for."""
    return {
        "format": str(FORMAT),
        "LLVM": llvm_version(),
        "options": " ".join(f"{name}={value}" for name, value in CODEGEN_OPTIONS.items()),
        "triple": target.triple,
        "cpu": target.cpu,
        "features": target.feature_text,
        "vectors": f"{target.name}: {target.registers} registers of {target.vector_bits} bits",
    }


@cache
def emitter_digest() -> str:
    """SHA-256 over the sources that turn kernels into LLVM text: any edit of them makes other keys."""
    return digest_of(["__init__.py", *sources_in("codegen/"), *_KERNEL_SOURCES])


def key_of(parts: Parts) -> str:
    """SHA-256 over named parts, in hex. Names and values are length-prefixed, so no two lists agree."""
    digest = hashlib.sha256()
    for name, value in parts.items():
        for text in (name, value):
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@contextmanager
def without_storing() -> Iterator[None]:
    """Within the block misses are compiled and not stored: looking leaves no trace."""
    global _storing
    previous, _storing = _storing, False
    try:
        yield
    finally:
        _storing = previous


# ---------------------------------------------------------------------------------------------- directory


def usable_directory() -> Path | None:
    """The directory of entries, made if it is not there; None if caching is off or it cannot be trusted."""
    if not settings.cache_enabled():
        return None
    root = settings.cache_directory()
    directory = root / "objects"
    try:
        directory.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        directory.mkdir(mode=_PRIVATE, exist_ok=True)
        for place in (root, directory):
            _require_private(os.stat(place), stat.S_ISDIR)
    except (OSError, Refused) as error:
        _warn_once(f"no object cache in {directory}: {error}")
        return None
    return directory


def _require_private(status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raises Refused unless it is of the right kind, ours, and writable by us alone."""
    if not is_kind(status.st_mode):
        raise Refused("it is not a directory" if is_kind is stat.S_ISDIR else "it is not a regular file")
    if os.name != "posix":
        return  # elsewhere a user's cache directory is protected by inherited access lists
    if status.st_uid != os.geteuid():
        raise Refused(f"it belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & 0o022:
        raise Refused(f"others can write to it (mode {status.st_mode & 0o777:o})")


@cache
def _warn_once(message: str) -> None:
    _warn(message)


def _warn(message: str) -> None:
    import logging  # it takes 4 ms to load, and there is hardly ever something to say

    logging.getLogger(__name__).warning("%s", message)


# ------------------------------------------------------------------------------------------------- entries


def _read(path: Path, parts: Parts) -> tuple[Any, bytes]:
    """Content and object of an entry. FileNotFoundError if there is none; Refused if it is not sound."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)  # a FIFO under that name must not block
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Refused(error.strerror or str(error)) from error
    with open(descriptor, "rb") as file:
        _require_private(os.fstat(descriptor), stat.S_ISREG)
        data = file.read()
    header, object_bytes = _decoded(data)
    if header["parts"] != _described(parts):
        raise Refused("it holds the object of another key")
    with suppress(OSError):  # on a read-only disk the order of use is not kept
        os.utime(path)
    return header["content"], object_bytes


def _decoded(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and object of an entry's bytes; Refused for anything but what `_encoded` made."""
    start = len(MAGIC) + 4
    if data[: len(MAGIC)] != MAGIC or len(data) < start:
        raise Refused("it does not start like a cache file")
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    header_text, digest, object_bytes = (
        data[start:end],
        data[end : end + _DIGEST_BYTES],
        data[end + _DIGEST_BYTES :],
    )
    if hashlib.sha256(header_text + object_bytes).digest() != digest:
        raise Refused("its digest is wrong")
    try:
        header = json.loads(header_text)
    except ValueError as error:
        raise Refused(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict) or header.keys() != _HEADER_FIELDS:
        raise Refused("its header has other fields")
    if header["object_bytes"] != len(object_bytes):
        raise Refused("its length is wrong")
    return header, object_bytes


def _encoded(parts: Parts, content: Any, object_bytes: bytes) -> bytes:
    header = {"parts": _described(parts), "content": content, "object_bytes": len(object_bytes)}
    header_text = json.dumps(header, separators=(",", ":")).encode()
    digest = hashlib.sha256(header_text + object_bytes).digest()
    return MAGIC + len(header_text).to_bytes(4, "little") + header_text + digest + object_bytes


def _described(parts: Parts) -> dict[str, list[str]]:
    """For each part its digest and, if it is a short line, the part itself."""
    return {
        name: [
            hashlib.sha256(value.encode()).hexdigest(),
            value if len(value) <= _SHOWN_CHARACTERS and "\n" not in value else "",
        ]
        for name, value in parts.items()
    }


def _store(path: Path, parts: Parts, content: Any, object_bytes: bytes) -> None:
    """Writes an entry next to its place and renames it into it; then makes room. Never raises OSError."""
    limit = settings.cache_bytes()
    data = _encoded(parts, content, object_bytes)
    if len(data) > limit:
        return
    try:
        descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)  # mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        if _must_look(path.parent, len(data), limit):
            _evict(path.parent, limit)
    except OSError as error:
        _warn_once(f"the object cache in {path.parent} cannot be written: {error.strerror or error}")


def _must_look(directory: Path, nbytes: int, limit: int) -> bool:
    """Adds so many bytes to the account; whether it is time to look through the directory.

    Looking costs some microseconds for every entry, which each compile would pay. True also where there is
    no account yet, or none that can be kept.
    """
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)
    path = directory / _ACCOUNT
    try:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            os.close(os.open(path, flags | os.O_CREAT, 0o600))
            return True
        try:
            os.write(descriptor, bytes(-(-nbytes // _BLOCK_BYTES)))  # appended whole, whoever else appends
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_size * _BLOCK_BYTES <= limit * _LOOK_AFTER:
                return False
            os.ftruncate(descriptor, 0)  # before looking: what others store meanwhile counts for the next
        finally:
            os.close(descriptor)
    except OSError:
        pass
    return True


def _evict(directory: Path, limit: int) -> None:
    """Deletes the entries whose last use is longest ago where all together are too large, and temporary files
    that were left behind."""
    found = _files(directory, lambda name: name.endswith(SUFFIX) or name.startswith(_TEMPORARY))
    kept = [entry for entry in found if entry.path.name.endswith(SUFFIX)]
    total = sum(entry.size for entry in kept)
    if total > limit * (1 - _LOOK_AFTER):
        for entry in kept:
            if total <= limit * _EVICT_TO:
                break
            with suppress(OSError):
                entry.path.unlink()
            total -= entry.size
    horizon = time.time() - _STALE_SECONDS
    for entry in found:
        if entry.path.name.startswith(_TEMPORARY) and entry.used < horizon:
            with suppress(OSError):
                entry.path.unlink()


def entries(directory: Path | None = None) -> list[Entry]:
    """The entries of a directory (default: the user's), least recently used first."""
    directory = directory or usable_directory()
    return [] if directory is None else _files(directory, lambda name: name.endswith(SUFFIX))


def _files(directory: Path, wanted: Callable[[str], bool]) -> list[Entry]:
    found = []
    with os.scandir(directory) as items:
        for item in items:
            if wanted(item.name):
                with suppress(FileNotFoundError):  # another process may have evicted it meanwhile
                    status = item.stat(follow_symlinks=False)
                    found.append(Entry(Path(item.path), status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def clear() -> tuple[int, int]:
    """Deletes every entry of the user's directory; returns how many, and how many bytes they held."""
    removed, nbytes = 0, 0
    for entry in entries():
        with suppress(FileNotFoundError):
            entry.path.unlink()
            removed, nbytes = removed + 1, nbytes + entry.size
    return removed, nbytes


def header_of(path: Path) -> dict[str, Any] | None:
    """The header of an entry, or None if it is not sound."""
    try:
        return _decoded(path.read_bytes())[0]
    except (OSError, Refused):
        return None


# ------------------------------------------------------------------------------------------------- asking


def explain(parts: Parts) -> list[str]:
    """Why a key is or is not in the cache, one line each: which parts the nearest entry has otherwise."""
    directory = usable_directory()
    if directory is None:
        return ["the cache is switched off or its directory is not usable"]
    path = directory / (key_of(parts) + SUFFIX)
    try:
        _read(path, parts)
        return [f"hit: {path}"]
    except FileNotFoundError:
        pass
    except (OSError, Refused) as error:
        return [f"miss: {path} is not sound: {error}"]
    own = _described(parts)
    nearest: tuple[int, dict[str, Any], Path] | None = None
    found = entries(directory)
    for entry in reversed(found):  # of equally near ones the one used last
        header = header_of(entry.path)
        if header is not None and header["parts"].get("kind") == own.get("kind"):
            distance = len(_differences(own, header["parts"]))
            if nearest is None or distance < nearest[0]:
                nearest = distance, header["parts"], entry.path
    if nearest is None:
        return ["miss: the cache is empty" if not found else "miss: no entry is of this kind"]
    _, other, path = nearest
    return [f"miss: the nearest entry is {path.name}, and differs in", *_differences(own, other)]


def _differences(own: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]) -> list[str]:
    """One line for each part that two keys do not share: added, removed, changed, or in another order."""
    lines = []
    for name in dict.fromkeys([*own, *other]):
        if name not in other:
            lines.append(f"  {name}: only in this program")
        elif name not in own:
            lines.append(f"  {name}: only in the entry")
        elif own[name] != other[name]:
            shown = [value[1] or f"sha256 {value[0][:12]}" for value in (other[name], own[name])]
            lines.append(f"  {name}: {shown[0]} -> {shown[1]}")
    if not lines and list(own) != list(other):
        lines.append("  the order of the kernels")
    return lines
