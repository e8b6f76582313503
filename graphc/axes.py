"""Axis arguments: negative ones counted from the end, None for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.errors import ShapeError

Axis = int | Sequence[int] | None


def normalise_axis(axis: Any, rank: int) -> int:
    """One axis as 0 <= axis < rank. Raises ShapeError."""
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise ShapeError(f"an axis is an int, not {axis!r}")
    value = axis.__index__()
    if not -rank <= value < rank:
        raise ShapeError(f"axis {value} is out of range for rank {rank}")
    return int(value % rank)


def normalise_axes(axis: Axis, rank: int) -> tuple[int, ...]:
    """Distinct axes in ascending order; all of them for None. Raises ShapeError."""
    if axis is None:
        return tuple(range(rank))
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = sorted(normalise_axis(a, rank) for a in given)
    if len(set(axes)) != len(axes):
        raise ShapeError(f"an axis is repeated in {tuple(given)}")
    return tuple(axes)
