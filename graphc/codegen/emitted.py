"""What emission says of a kernel; apart from the emitter, which a hit in the cache does not load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.ir.types import Extent


@dataclass(frozen=True, slots=True)
class EmittedKernel:
    """The symbol of a kernel's code, and the extents that its operand block holds after the buffers."""

    symbol: str
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """The object of a program (or several, `jit.bundled`) and what each kernel became. `parts` are its key in
    the cache; `hit` says that it was found there."""

    object_bytes: bytes
    emitted: tuple[EmittedKernel, ...]
    parts: Mapping[str, str]
    hit: bool
