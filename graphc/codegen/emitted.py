"""What emission says of a kernel; apart from the emitter, which a hit in the cache does not load."""

from __future__ import annotations

from dataclasses import dataclass

from graphc.ir.types import Extent


@dataclass(frozen=True, slots=True)
class EmittedKernel:
    """The symbol of a kernel's code, and the extents that its operand block holds after the buffers."""

    symbol: str
    extents: tuple[Extent, ...]
