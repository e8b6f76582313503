"""Tiles: the values of an expression for all iterations that a schedule unrolls and vectorises together.

Inside `for i tile 6` and `for j vector 2` an expression stands for 6 x 2 SIMD vectors. A `Tile` holds one
SSA value for each combination of the axes it varies over, and only those: `A[i, k]` is six scalars,
`B[k, j]` two vectors, their product twelve vectors. This is what makes a matrix product, a fused
epilogue and a row sweep one mechanism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from graphc.codegen.builder import Region, Value
from graphc.ir.types import DType, Extent

Key = tuple[int, ...]


@dataclass(slots=True)
class Axis:
    """A loop that is being emitted: its current first index and how many iterations run together."""

    name: str
    base: Value
    depth: int
    count: int = 1
    lanes: int = 1
    vector: bool = False
    extent: Extent = 0
    # Whether as many iterations run together as the schedule says; fewer do in what is left of a loop.
    whole: bool = True
    # For a vector axis in its tail: per item, which lanes exist (None: all), and how many iterations.
    masks: Sequence[Value | None] = ()
    left: Value | None = None
    # For an axis whose tile is run through one by one (a loop `apart`): the first index of the tile.
    origin: Value | None = None

    @property
    def is_tiled(self) -> bool:
        return self.vector or self.count > 1


@dataclass(slots=True)
class Scope:
    """One loop body, with a region at its start to which address arithmetic is hoisted."""

    depth: int
    region: Region
    memo: dict[object, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tile:
    """One SSA value per combination of unrolled iterations of `axes` (in the order of nesting)."""

    dtype: DType
    axes: tuple[str, ...]
    items: dict[Key, Value]

    def at(self, key: dict[str, int]) -> Value:
        """The value for these iterations (axes the tile does not vary over are ignored)."""
        return self.items[tuple([key[axis] for axis in self.axes])]


def keys(axes: Sequence[Axis]) -> Iterator[dict[str, int]]:
    """All combinations of unrolled iterations of some axes, the last axis fastest."""
    names = [axis.name for axis in axes]
    for combination in product(*(range(axis.count) for axis in axes)):
        yield dict(zip(names, combination, strict=True))


def build(dtype: DType, axes: Sequence[Axis], make: Callable[[dict[str, int]], Value]) -> Tile:
    """A tile over axes, each item made by a function of its iterations."""
    names = tuple([axis.name for axis in axes])
    numbers = product(*[range(axis.count) for axis in axes])
    return Tile(dtype, names, {key: make(dict(zip(names, key, strict=True))) for key in numbers})
