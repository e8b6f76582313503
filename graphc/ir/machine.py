"""What the passes have to know of a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """What scheduling has to know of a target: vector width in bytes, its register tile, the sizes of the
    caches of one core (first and second level; those of common server cores, not measured), and the number
    of vector registers."""

    vector_bytes: int = 32
    tile_rows: int = 6
    tile_vectors: int = 2
    cache_bytes: tuple[int, int] = (2**15, 2**19)
    registers: int = 16


DEFAULT = Machine()
