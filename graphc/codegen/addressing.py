"""Addresses of a kernel's accesses: extents, axes, and what a tile adds to a pointer.

The address of `source[index]` is linear in the loop axes. Its parts are added in the order of nesting,
each in the region at the start of the loop body that fixes it, so that nothing is recomputed further in;
what a tile adds (row 3, vector 1) becomes a constant displacement where strides are known.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.builder import I64, PTR, Function, LLType, Value, constant, memory_type
from graphc.codegen.tiles import Axis, Scope, Tile
from graphc.ir.kernels import CHUNK, Affine, Index, contiguous_strides
from graphc.ir.types import DType, Extent, Shape


@dataclass(frozen=True, slots=True)
class Place:
    """Memory that a kernel can address: a buffer, or a local array (one per unrolled row)."""

    name: str
    dtype: DType
    shape: Shape
    pointer: Value
    # For a local array: the row axes it was declared under, and the elements from one row's to the next.
    axes: tuple[str, ...] = ()
    row_stride: int = 0
    # For a local array of its own for each lane: how many lanes run together. Its elements lie lane by lane.
    lanes: int = 1

    @property
    def is_local(self) -> bool:
        return self.row_stride > 0


@dataclass(frozen=True, slots=True)
class Linear:
    """A flattened index: offset + sum(coefficient * name), in elements."""

    terms: tuple[tuple[str, Extent], ...]
    offset: Extent


def linearise(index: Index, place: Place) -> Linear:
    """Where `index` lies in an array, counted in elements."""
    flat = Affine()
    for affine, stride in zip(index, contiguous_strides(place.shape), strict=True):
        flat = flat + affine.scale(stride)
    flat = flat.scale(place.lanes)
    return Linear(flat.terms, flat.offset)


def pointer_operand(f: Function, slot: int) -> Value:
    """Loads a buffer's address from the operand block."""
    return f.load(f.gep(f.parameters[0], constant(slot, I64), I64), PTR)


class Addressing:
    """The part of the kernel emitter that knows where things are. `Memory` adds loads and stores."""

    def __init__(self, f: Function, lanes: int) -> None:
        self.f = f
        self.lanes = lanes
        self.axes: dict[str, Axis] = {}  # active, outermost first
        self.scopes: list[Scope] = [Scope(0, f.region())]
        self.scalars: dict[str, Tile] = {}  # Lets and Vars in scope
        self.extent_slots: dict[Extent, int] = {}
        self.first_extent_slot = 0
        self._addresses: dict[object, Value] = {}

    # -------------------------------------------------------------------------------- extents, axes

    def extent(self, extent: Extent) -> Value:
        """An extent as an i64: a literal, or loaded once from the operand block."""
        if isinstance(extent, int):
            return constant(extent, I64)
        scope = self.scopes[0]
        if extent not in scope.memo:
            slot = self.extent_slots.setdefault(extent, self.first_extent_slot + len(self.extent_slots))
            with self.f.writing_to(scope.region):
                address = self.f.gep(self.f.parameters[0], constant(slot, I64), I64)
                scope.memo[extent] = self.f.load(address, I64)
        return scope.memo[extent]

    def tiled(self, names: set[str] | frozenset[str]) -> list[Axis]:
        """Those of the active axes that are unrolled or vectorised, in the order of nesting."""
        return [axis for axis in self.axes.values() if axis.is_tiled and axis.name in names]

    def axes_of(self, affine_names: frozenset[str]) -> set[str]:
        """The axes that an index over these names varies with (gathers through their scalar's axes)."""
        result: set[str] = set()
        for name in affine_names:
            result |= {name} if name in self.axes else set()
            if name in self.scalars:
                result |= set(self.scalars[name].axes)
        return result

    def vector_axis(self) -> Axis | None:
        return next((axis for axis in self.axes.values() if axis.vector), None)

    def base_of(self, name: str) -> tuple[Value, int]:
        """The current value of a loop axis (or the chunk number) and the depth that fixes it."""
        if name == CHUNK:
            return self.f.parameters[3], 0
        axis = self.axes[name]
        return axis.base, axis.depth

    # ------------------------------------------------------------------------------------ addresses

    def scaled(self, value: Value, factor: Extent) -> Value:
        """value * factor, without an instruction for a factor of 1."""
        if factor == 1:
            return value
        if not value.ref.startswith("%") and isinstance(factor, int):
            return constant(int(value.ref) * factor, I64)
        return self.f.binary("mul", value, self.f.splat(self.extent(factor), value.type.lanes))

    def hoisted_gep(self, depth: int, pointer: Value, index: Value, factor: Extent, element: LLType) -> Value:
        """pointer + index * factor, computed once at the start of the loop body at `depth`."""
        if index.ref == "0":
            return pointer
        scope = self.scopes[depth]
        key = (pointer.ref, index.ref, factor, element)
        if key not in scope.memo:
            self.extent(factor)
            with self.f.writing_to(scope.region):
                scope.memo[key] = self.f.gep(pointer, self.scaled(index, factor), element)
        return scope.memo[key]

    def address(self, place: Place, linear: Linear, key: dict[str, int]) -> Value:
        """The address of an access for one combination of unrolled iterations (first lane)."""
        if any(name in self.scalars for name, _ in linear.terms):
            return self._address(place, linear, key)
        # What is read and then overwritten is addressed once in a block.
        where = [(name, self.base_of(name)[0].ref, key.get(name)) for name, _ in linear.terms]
        rows = [(self.axes[name].base.ref, key.get(name, 0)) for name in place.axes]
        access = (self.f.current_block, place.pointer.ref, linear, *where, *rows)
        if access not in self._addresses:
            self._addresses[access] = self._address(place, linear, key)
        return self._addresses[access]

    def _address(self, place: Place, linear: Linear, key: dict[str, int]) -> Value:
        element = memory_type(place.dtype)
        pointer = place.pointer
        displacement = 0
        if isinstance(linear.offset, int):
            displacement += linear.offset
        else:
            pointer = self.hoisted_gep(0, pointer, self.extent(linear.offset), 1, element)
        if place.axes:
            row = 0
            for name in place.axes:
                axis = self.axes[name]
                row = row * axis.count + key.get(name, 0)
                if axis.origin is not None:
                    pointer = self._row_apart(place, pointer, axis)
            displacement += row * place.row_stride
        fixed = [(*self.base_of(name), name, c) for name, c in linear.terms if name not in self.scalars]
        for base, depth, name, coefficient in sorted(fixed, key=lambda term: term[1]):
            pointer = self.hoisted_gep(depth, pointer, base, coefficient, element)
            step = key.get(name, 0) * (self.axes[name].lanes if name in self.axes else 1)
            if isinstance(coefficient, int):
                displacement += step * coefficient
            elif step:
                pointer = self.hoisted_gep(depth, pointer, constant(step, I64), coefficient, element)
        for name, coefficient in linear.terms:
            if name in self.scalars and self.scalars[name].at(key).type.lanes == 1:
                index = self.as_i64(self.scalars[name], key)
                pointer = self.f.gep(pointer, self.scaled(index, coefficient), element)
        return self.f.gep(pointer, constant(displacement, I64), element) if displacement else pointer

    def _row_apart(self, place: Place, pointer: Value, axis: Axis) -> Value:
        """Where a local array of tiled rows keeps the one that a loop apart is at."""
        assert axis.origin is not None
        scope = self.scopes[axis.depth]
        key = ("row", axis.base.ref)
        if key not in scope.memo:
            with self.f.writing_to(scope.region):
                scope.memo[key] = self.f.binary("sub", axis.base, axis.origin)
        return self.hoisted_gep(
            axis.depth, pointer, scope.memo[key], place.row_stride, memory_type(place.dtype)
        )

    def as_i64(self, tile: Tile, key: dict[str, int]) -> Value:
        value = tile.at(key)
        if value.type.bits == 64:
            return value
        return self.f.convert(
            "zext" if tile.dtype.kind != "int" else "sext", value, value.type.with_element("i64")
        )

    def lane_offsets(self, linear: Linear, key: dict[str, int], axis: Axis) -> Value | None:
        """What the lanes of a vector access add to its address; None if they are contiguous."""
        coefficient = dict(linear.terms).get(axis.name, 0)
        gathers = [
            (name, c)
            for name, c in linear.terms
            if name in self.scalars and self.scalars[name].at(key).type.lanes > 1
        ]
        if coefficient == 1 and not gathers:
            return None
        total = self.scaled_lanes(coefficient, axis.lanes)
        for name, factor in gathers:
            part = self.scaled(self.as_i64(self.scalars[name], key), factor)
            total = part if total is None else self.f.binary("add", total, part)
        return total if total is not None else constant(0, I64.with_lanes(axis.lanes))

    def scaled_lanes(self, coefficient: Extent, lanes: int) -> Value | None:
        if coefficient == 0:
            return None
        ids = self.f.lane_ids("i64", lanes)
        if coefficient == 1:
            return ids
        return self.f.binary("mul", ids, self.f.splat(self.extent(coefficient), lanes))
