"""What the passes have to know of a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """What scheduling has to know of a target: vector width in bytes, its register tile, the sizes of the
    caches of one core (first and second level), the number of vector registers, and how many lines a set of
    the first-level cache holds. Of caches these are the figures of common server cores, not measured."""

    vector_bytes: int = 32
    tile_rows: int = 6
    tile_vectors: int = 2
    cache_bytes: tuple[int, int] = (2**15, 2**19)
    registers: int = 16
    cache_ways: int = 8


DEFAULT = Machine()
