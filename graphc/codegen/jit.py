"""From IR text to running code: compile to an object, print its assembly, load it.

No IR optimisation pass runs: the text is already explicit SIMD, and instruction selection, register
allocation and scheduling (LLVM's codegen at level 2) are what is wanted of it.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, wraps
from typing import Any, TypeVar

from graphc.codegen.target import Target, widest_target
from graphc.errors import LoweringError, UsageError

# With the small code model constants are reached from the program counter, where the JIT's default
# spends a 10-byte move on each.
CODEGEN_OPTIONS = {"opt": 2, "reloc": "pic", "codemodel": "small", "jit": True}
"""How code is generated, whatever the target."""

Made = TypeVar("Made")
_BUNDLE = b"graphc objects\0\0"
_library_numbers = itertools.count()
_llvm_lock = threading.RLock()


def _bindings_lock() -> Any:
    """llvmlite's own lock: every call takes it, also those that free what was made."""
    ffi = sys.modules.get("llvmlite.binding.ffi")
    return getattr(getattr(ffi, "lib", None), "_lock", None) or nullcontext()


def _before_fork() -> None:
    """A fork waits: a child in which another thread of the parent's was inside LLVM could never enter it."""
    _llvm_lock.acquire()
    _bindings_lock().__enter__()


def _after_fork() -> None:
    _bindings_lock().__exit__(None, None, None)
    _llvm_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def once(make: Callable[[], Made]) -> Callable[[], Made]:
    """A function that makes its result when it is first called. No other thread makes a second one meanwhile,
    whose code would be unloaded, perhaps as the process forks."""
    made: list[Made] = []

    @wraps(make)
    def get() -> Made:
        if not made:
            with _llvm_lock:
                if not made:
                    made.append(make())
        return made[0]

    return get


def compile_object(ir_text: str, target: Target) -> bytes:
    """The bytes of a relocatable object (ELF, Mach-O or COFF by the target's triple).

    The text is parsed and verified; LoweringError carries LLVM's message where it is not valid IR.
    """
    with _llvm_lock:
        return bytes(_machine(target).emit_object(_parsed(ir_text)))


def llvm_version() -> str:
    """The versions of what generates code: llvmlite and the LLVM in it."""
    import llvmlite

    return f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, _initialized().llvm_version_info))}"


def assembly(ir_text: str, target: Target) -> str:
    """The assembly text that `compile_object` would encode. Errors as there."""
    with _llvm_lock:
        return str(_machine(target).emit_assembly(_parsed(ir_text)))


def undefined_symbols(object_bytes: bytes) -> list[str]:
    """The names that a 64-bit little-endian ELF object leaves to the linker; empty for our own code.

    Reads the symbol table by the ELF-64 layout (System V ABI, chapter 4): an entry whose section index is
    0 and whose name is not empty is undefined. LoweringError for anything that is not such an object.
    """
    if object_bytes[:6] != b"\x7fELF\x02\x01":
        raise LoweringError("undefined_symbols reads 64-bit little-endian ELF objects only")

    def field(offset: int, size: int) -> int:
        return int.from_bytes(object_bytes[offset : offset + size], "little")

    sections, entry_size, count = field(0x28, 8), field(0x3A, 2), field(0x3C, 2)
    headers = [sections + entry_size * i for i in range(count)]
    names = []
    for header in headers:
        if field(header + 4, 4) != 2:  # SHT_SYMTAB
            continue
        start, size, link = field(header + 0x18, 8), field(header + 0x20, 8), field(header + 0x28, 4)
        strings = field(headers[link] + 0x18, 8)
        for symbol in range(start, start + size, 24):
            name, section = field(symbol, 4), field(symbol + 6, 2)
            if name and section == 0:
                first = strings + name
                names.append(object_bytes[first : object_bytes.index(b"\0", first)].decode())
    return sorted(names)


def bundled(objects: Sequence[bytes]) -> bytes:
    """Several objects as one run of bytes for `LoadedCode`; a single one is itself."""
    if len(objects) == 1:
        return objects[0]
    sizes = b"".join(len(image).to_bytes(8, "little") for image in objects)
    return _BUNDLE + len(objects).to_bytes(8, "little") + sizes + b"".join(objects)


def _unbundled(object_bytes: bytes) -> list[bytes]:
    """The objects that `bundled` was given."""
    if not object_bytes.startswith(_BUNDLE):
        return [object_bytes]
    header = len(_BUNDLE) + 8
    count = int.from_bytes(object_bytes[len(_BUNDLE) : header], "little")
    start, images = header + 8 * count, []
    for field in range(header, start, 8):
        size = int.from_bytes(object_bytes[field : field + 8], "little")
        images.append(object_bytes[start : start + size])
        start += size
    return images


class LoadedCode:
    """An object, or several that are `bundled`, linked into this process. Its code lives exactly as long as
    this does.

    `symbols` are the functions and globals whose addresses are wanted. The caller vouches for the bytes:
    loading an object is running code, and a damaged one aborts the process inside LLVM. Where `target`
    is given, UsageError says that this machine cannot run its code. A missing symbol is a LoweringError.
    """

    def __init__(self, object_bytes: bytes, symbols: Sequence[str], target: Target | None = None) -> None:
        if target is not None and not target.runs_here:
            raise UsageError(f"this machine cannot run code for {target.name}; it can only be emitted")
        with _llvm_lock:
            jit = _jit()
            builder = _initialized().JITLibraryBuilder()
            for image in _unbundled(object_bytes):
                builder.add_object_img(image)
            for symbol in symbols:
                builder.export_symbol(symbol)
            # LLVM refuses a library name that was used before, even after that library is gone.
            name = f"graphc.{next(_library_numbers)}"
            try:
                self._tracker: Any = builder.link(jit, name)
            except RuntimeError as error:
                raise LoweringError(f"the compiled object does not link: {error}") from error
            self._addresses = {symbol: int(self._tracker[symbol]) for symbol in symbols}

    def address(self, symbol: str) -> int:
        """The address of one of the symbols asked for; LoweringError for another."""
        if symbol not in self._addresses:
            raise LoweringError(f"{symbol!r} is not among the symbols that were loaded")
        return self._addresses[symbol]


@cache
def _initialized() -> Any:
    """llvmlite's binding, imported on first use (40 ms) and with every CPU family it holds ready."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


def _parsed(ir_text: str) -> Any:
    llvm = _initialized()
    try:
        module = llvm.parse_assembly(ir_text)
        module.verify()
    except RuntimeError as error:
        raise LoweringError(f"the generated LLVM IR is not valid: {error}") from error
    return module


@cache
def _machine(target: Target) -> Any:
    llvm = _initialized()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu,
        features=target.feature_text,
        **CODEGEN_OPTIONS,
    )


@cache
def _jit() -> Any:
    """The process's one linker. Objects of every level that this machine runs share it."""
    return _initialized().create_lljit_compiler(_machine(widest_target()))
