"""What the passes have to know of a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """What scheduling has to know of a target: vector width in bytes, and its register tile."""

    vector_bytes: int = 32
    tile_rows: int = 6
    tile_vectors: int = 2


DEFAULT = Machine()
