"""Emits kernels: walks the loop nest of a `Kernel` and writes text IR with explicit SIMD.

    i64 kernel(ptr operands, i64 begin, i64 end, i64 chunk)

`operands` is a block of 8-byte slots: the addresses of the kernel's buffers in order, then the values of
the extents listed in `EmittedKernel.extents`. begin..end is the chunk's part of the chunk axis. The result
is 0, or 1 + the position of the first failed `Check`.

The skeleton of a loop that is unrolled `count` times over vectors of `lanes` (step = count * lanes):

    for base in begin .. main_end step step:     body with `count` items                (main)
    for base in main_end .. end step lanes:      body with one item; lanes masked       (vector tail)
    for base in main_end .. end step 1:          body with one item                     (row tail)

With a static extent the vector tail is one straight-line body whose last vector alone is masked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from graphc.codegen.builder import (
    I64,
    PTR,
    Function,
    LLType,
    Module,
    Value,
    constant,
    register_type,
)
from graphc.codegen.memory import Memory, Place, linearise, pointer_operand
from graphc.codegen.scalars import emit_cast, emit_combine, emit_prim, reduce_lanes
from graphc.codegen.tiles import Axis, Scope, Tile, build
from graphc.errors import LoweringError
from graphc.ir.kernels import (
    Affine,
    Assign,
    Body,
    Cast,
    Check,
    Combine,
    Const,
    Expr,
    ExtentValue,
    For,
    IndexValue,
    Kernel,
    Let,
    Load,
    Prim,
    Ref,
    Stmt,
    Store,
    Temp,
    Var,
    exprs_of,
    walk_expr,
    walk_stmts,
)
from graphc.ir.scalar import combine_identity
from graphc.ir.types import DType, Extent, int32, int64


@dataclass(frozen=True, slots=True)
class EmittedKernel:
    """The symbol of a kernel's code, and the extents that its operand block holds after the buffers."""

    symbol: str
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of a loop: count items of `lanes` iterations each, `trips` times (None: at run time)."""

    begin: Value
    end: Value
    count: int
    lanes: int
    trips: int | None
    # Lanes that exist: "" all; "dynamic" those below the end; or a static number within the whole step.
    valid: int | None = None
    masked: bool = False


def emit_kernel(module: Module, kernel: Kernel, vector_bits: int) -> EmittedKernel:
    """Adds a kernel's code to a module; kernels with the same code share one function."""
    parameters = [("operands", PTR), ("begin", I64), ("end", I64), ("chunk", I64)]
    f = Function(module, "kernel", parameters, I64)
    emitter = KernelEmitter(f, kernel, vector_bits)
    emitter.emit()
    digest = hashlib.sha256(f.render("kernel").encode()).hexdigest()[:16]
    symbol = f"gx_{kernel.form}_{digest}"
    if not module.has_function(symbol):
        module.add_function(symbol, f.render(symbol))
    return EmittedKernel(symbol, tuple(emitter.extent_slots))


def lanes_for(kernel: Kernel, vector_bits: int) -> int:
    """Lanes of the kernel's vectors: set by its widest floating-point (or else widest) element."""
    dtypes = {buffer.type.dtype for buffer in kernel.buffers}
    for stmt in walk_stmts(kernel.body):
        for expr in exprs_of(stmt):
            dtypes |= {part.dtype for part in walk_expr(expr) if isinstance(part, (Prim, Cast))}
    floats = [d.bits for d in dtypes if d.is_float]
    widest = max(floats or [d.bits for d in dtypes] or [32])
    return max(vector_bits // max(widest, 32), 2)


class KernelEmitter(Memory):
    """Emits one kernel. See `graphc.codegen.tiles` for what an expression's value is."""

    def __init__(self, f: Function, kernel: Kernel, vector_bits: int) -> None:
        super().__init__(f, lanes_for(kernel, vector_bits))
        self.kernel = kernel
        self.first_extent_slot = len(kernel.buffers)
        # Vars that are being accumulated lane by lane in an open vector loop.
        self.deferred: set[str] = set()
        # The axes (tiled or not) that were active when a Var was declared.
        self._splats: dict[tuple[str, str, int], Value] = {}

    def emit(self) -> None:
        with self.f.writing_to(self.scopes[0].region):
            for slot, buffer in enumerate(self.kernel.buffers):
                pointer = pointer_operand(self.f, slot)
                self.places[buffer.name] = Place(buffer.name, buffer.type.dtype, buffer.type.shape, pointer)
        self.body(self.kernel.body)
        self.f.ret(constant(0, I64))

    # ---------------------------------------------------------------------------------- statements

    def body(self, body: Body) -> None:
        for stmt in body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case For():
                self.loop(stmt)
            case Let(name, expr):
                self.scalars[name] = self.evaluate(expr)
            case Var(name, dtype, init):
                value = self.evaluate(init)
                # An item for every unrolled iteration, so that the value can differ between them.
                self.scalars[name] = build(
                    dtype, [a for a in self.axes.values() if a.is_tiled], self.full(value)
                )
            case Combine():
                self.combine(stmt)
            case Assign(name, expr):
                self.assign(name, self.evaluate(expr))
            case Temp(name, dtype, shape):
                self.places[name] = self.local_place(name, dtype, shape)
            case Store():
                self.store(stmt)
            case Check():
                self.check(stmt)

    def full(self, tile: Tile) -> Callable[[dict[str, int]], Value]:
        """Items of a tile as wide as the vector axis, where one is active."""

        def item(key: dict[str, int]) -> Value:
            axis = self.vector_axis()
            return self.wide(tile.at(key), axis.lanes if axis else 1)

        return item

    def wide(self, value: Value, lanes: int) -> Value:
        """A scalar splatted to lanes, once per block."""
        if value.type.lanes == lanes:
            return value
        key = (self.f.current_block, value.ref, lanes)
        if not value.ref.startswith("%"):
            return self.f.splat(value, lanes)
        if key not in self._splats:
            self._splats[key] = self.f.splat(value, lanes)
        return self._splats[key]

    def assign(self, name: str, value: Tile) -> None:
        old = self.scalars[name]
        if name in self.deferred:
            raise LoweringError(f"{self.kernel.name}: {name} is carried through a vectorised loop")
        if not set(value.axes) <= set(old.axes):
            raise LoweringError(f"{self.kernel.name}: {name} differs between iterations that run together")
        axes = [self.axes[axis] for axis in old.axes]
        self.scalars[name] = build(old.dtype, axes, lambda key: self._like(value.at(key), old.at(key)))

    def _like(self, value: Value, model: Value) -> Value:
        return self.wide(value, model.type.lanes)

    def combine(self, stmt: Combine) -> None:
        """name = name (op) expr, item by item; items that `name` does not tell apart are folded in order."""
        old = self.scalars[stmt.name]
        expr, factors = stmt.expr, None
        if stmt.combine == "sum" and isinstance(expr, Prim) and expr.name == "mul" and expr.dtype.is_float:
            factors = tuple(self.evaluate(o) for o in expr.operands)
            value = None
        else:
            value = self.evaluate(expr)
        items = dict(old.items)
        vector = self.vector_axis()
        masked = vector is not None and stmt.name in self.deferred and any(vector.masks)
        # Once per iteration, also of a tiled axis that the expression does not depend on.
        axes = [axis for axis in self.axes.values() if axis.is_tiled]
        folded = Tile(old.dtype, old.axes, items)

        def fold(key: dict[str, int]) -> Value:
            slot = tuple(key[axis] for axis in old.axes)
            accumulator = items[slot]
            lanes = accumulator.type.lanes
            mask = vector.masks[key[vector.name]] if masked and vector is not None else None
            if factors is not None and mask is None:
                a, b = (self.wide(t.at(key), lanes) for t in factors)
                result = self.f.fmuladd(a, b, accumulator)
            else:
                item = (
                    value.at(key)
                    if value is not None
                    else emit_prim(self.f, "mul", self.aligned([t.at(key) for t in factors or ()]), old.dtype)
                )
                item = self.wide(item, lanes)
                if mask is not None:
                    identity = constant(combine_identity(stmt.combine, old.dtype), item.type)
                    item = self.f.select(mask, item, identity)
                result = emit_combine(self.f, stmt.combine, accumulator, item, old.dtype)
            items[slot] = result
            return result

        build(old.dtype, axes, fold)
        self.scalars[stmt.name] = folded

    def aligned(self, values: list[Value]) -> list[Value]:
        """Operands brought to one lane count."""
        lanes = max(v.type.lanes for v in values)
        return [self.wide(v, lanes) for v in values]

    def store(self, stmt: Store) -> None:
        place = self.places[stmt.target]
        value = self.evaluate(stmt.expr)
        guard = self.evaluate(stmt.guard) if stmt.guard is not None else None
        linear = linearise(stmt.index, place.shape)
        own = self.axes_of(frozenset(name for name, _ in linear.terms)) | set(place.axes)
        names = own | set(value.axes) | (set(guard.axes) if guard else set())
        if not stmt.combine and not names <= own | ({a.name for a in self.axes.values() if not a.is_tiled}):
            raise LoweringError(
                f"{self.kernel.name}: iterations sharing an address of {stmt.target} store different values"
            )
        if stmt.combine:
            # An accumulation happens once per iteration, also of a tiled axis it does not depend on.
            names |= {axis.name for axis in self.axes.values() if axis.is_tiled}
        shared = [a for a in self.tiled(names - own) if not a.vector] if stmt.combine else []
        kept = [a for a in self.tiled(names) if a not in shared]

        def item(key: dict[str, int]) -> Value:
            merged: Value | None = None
            for rest in build(place.dtype, shared, lambda k: constant(0, I64)).items:
                full = {**key, **dict(zip((a.name for a in shared), rest, strict=True))}
                part = value.at(full)
                if guard is not None and shared:
                    mask, part = self.aligned([guard.at(full), part])
                    part = self.f.select(
                        mask, part, constant(combine_identity(stmt.combine, place.dtype), part.type)
                    )
                if merged is None:
                    merged = part
                else:
                    before, part = self.aligned([merged, part])
                    merged = emit_combine(self.f, stmt.combine, before, part, place.dtype)
            assert merged is not None
            own_guard = guard.at(key) if guard is not None and not shared else None
            self.store_item(place, linear, key, merged, own_guard, stmt.combine)
            return merged

        build(place.dtype, kept, item)

    def check(self, stmt: Check) -> None:
        """Leaves the kernel at the first false condition. Checked kernels are not vectorised."""
        condition = self.evaluate(stmt.condition)
        position = self.index_value(stmt.position, "i64")

        def item(key: dict[str, int]) -> Value:
            if condition.at(key).type.lanes != 1:
                raise LoweringError(f"{self.kernel.name}: a check in a vectorised loop")
            good, bad = self.f.label("good"), self.f.label("bad")
            self.f.branch_if(condition.at(key), good, bad)
            self.f.block(bad)
            self.f.ret(self.f.binary("add", position.at(key), constant(1, I64)))
            self.f.block(good)
            return condition.at(key)

        build(condition.dtype, self.tiled(set(condition.axes) | set(position.axes)), item)

    # ---------------------------------------------------------------------------------- expressions

    def evaluate(self, expr: Expr) -> Tile:
        match expr:
            case Const(value, dtype):
                return Tile(dtype, (), {(): constant(value, register_type(dtype))})
            case Ref(name, _):
                return self.scalars[name]
            case IndexValue(affine):
                return self.index_value(affine, "i64")
            case ExtentValue(extent):
                return Tile(int64, (), {(): self.extent(extent)})
            case Load():
                guard = self.evaluate(expr.guard) if expr.guard is not None else None
                fill = expr.fill.value if expr.fill is not None else 0
                return self.load_tile(self.places[expr.source], expr.index, guard, fill)
            case Cast(IndexValue(affine), dtype) if dtype == int32:
                return self.index_value(affine, "i32")
            case Cast(operand, dtype):
                source = self.evaluate(operand)
                return self.mapped(dtype, [source], lambda v: emit_cast(self.f, v[0], source.dtype, dtype))
            case Prim():
                return self.primitive(expr)

    def mapped(self, dtype: DType, tiles: list[Tile], emit: Callable[[list[Value]], Value]) -> Tile:
        """Applies an operation item by item over all axes that its operands vary with."""
        names = {axis for tile in tiles for axis in tile.axes}
        return build(
            dtype, self.tiled(names), lambda key: emit(self.aligned([tile.at(key) for tile in tiles]))
        )

    def primitive(self, expr: Prim) -> Tile:
        if expr.name == "add" and expr.dtype.is_float:
            for product, other in (expr.operands, expr.operands[::-1]):
                if isinstance(product, Prim) and product.name == "mul":
                    tiles = [self.evaluate(e) for e in (*product.operands, other)]
                    return self.mapped(expr.dtype, tiles, lambda v: self.f.fmuladd(*v))
        tiles = [self.evaluate(operand) for operand in expr.operands]
        dtype = tiles[-1].dtype
        return self.mapped(expr.dtype, tiles, lambda v: emit_prim(self.f, expr.name, v, dtype))

    def index_value(self, affine: Affine, element: str) -> Tile:
        """An affine function of the loop axes as an integer, lane by lane."""

        def item(key: dict[str, int]) -> Value:
            total = self.extent(affine.offset)
            for name, coefficient in affine.terms:
                if name in self.scalars:
                    base = self.as_i64(self.scalars[name], key)
                else:
                    base, _ = self.base_of(name)
                    step = key.get(name, 0) * (self.axes[name].lanes if name in self.axes else 1)
                    base = self.f.binary("add", base, constant(step, I64)) if step else base
                part = self.scaled(base, coefficient)
                total, part = self.aligned([total, part])
                total = self.f.binary("add", total, part)
            if element == "i32":
                total = self.f.convert("trunc", total, total.type.with_element("i32"))
            axis = self.vector_axis()
            coefficient = affine.coefficient(axis.name) if axis is not None else 0
            if axis is not None and coefficient != 0:
                ids: Value | None = self.f.lane_ids(element, axis.lanes)
                if coefficient != 1:
                    assert ids is not None
                    factor = self.extent(coefficient)
                    if element == "i32":
                        factor = self.f.convert("trunc", factor, LLType("i32"))
                    ids = self.f.binary("mul", ids, self.f.splat(factor, axis.lanes))
                assert ids is not None
                total = self.f.binary("add", self.wide(total, axis.lanes), ids)
            return total

        names = self.axes_of(affine.names)
        return build(int32 if element == "i32" else int64, self.tiled(names), item)

    # ---------------------------------------------------------------------------------------- loops

    def loop(self, stmt: For) -> None:
        carried = self.carried_through(stmt.body)
        if not stmt.vector:
            for segment in self.segments(stmt):
                self.run_segment(stmt, segment, carried)
            return
        outer = {name: self.scalars[name] for name in carried}
        combines = {
            s.name: s.combine for s in walk_stmts(stmt.body) if isinstance(s, Combine) and s.name in outer
        }
        if set(combines) != set(carried):
            raise LoweringError(f"{self.kernel.name}: a value is carried through the vectorised {stmt.axis}")
        self.deferred |= set(carried)
        partials: dict[str, Tile] = {}
        for segment in self.segments(stmt):
            for name in carried:
                self.scalars[name] = self.partial(
                    stmt.axis, segment, outer[name], combines[name], partials.get(name)
                )
            self.run_segment(stmt, segment, carried)
            partials.update({name: self.scalars[name] for name in carried})
        self.deferred -= set(carried)
        for name in carried:
            self.scalars[name] = self.finished(stmt.axis, outer[name], combines[name], partials.get(name))

    def carried_through(self, body: Body) -> list[str]:
        """Vars declared outside a body that it changes, in the order of their declaration."""
        changed = {s.name for s in walk_stmts(body) if isinstance(s, (Combine, Assign))}
        return [name for name in self.scalars if name in changed]

    def partial(self, axis: str, segment: Segment, outer: Tile, combine: str, previous: Tile | None) -> Tile:
        """Lane-wise accumulators for a segment: what the last segment left, else the neutral element."""
        type = register_type(outer.dtype, segment.lanes)
        identity = constant(combine_identity(combine, outer.dtype), type)
        items: dict[tuple[int, ...], Value] = {}
        for key in outer.items:
            for copy in range(segment.count):
                items[(*key, copy)] = identity
            if previous is not None:
                items[(*key, 0)] = self.folded_copies(previous, key, combine)
        return Tile(outer.dtype, (*outer.axes, axis), items)

    def folded_copies(self, partial: Tile, key: tuple[int, ...], combine: str) -> Value:
        copies = [value for slot, value in partial.items.items() if slot[:-1] == key]
        while len(copies) > 1:  # by pairs: short dependency chains, a fixed order
            pairs = [
                emit_combine(self.f, combine, a, b, partial.dtype)
                for a, b in zip(copies[::2], copies[1::2], strict=False)
            ]
            copies = pairs + ([copies[-1]] if len(copies) % 2 else [])
        return copies[0]

    def finished(self, axis: str, outer: Tile, combine: str, partial: Tile | None) -> Tile:
        """The accumulated value after a vectorised loop: copies, then lanes, then the value before."""
        if partial is None:
            return outer
        items = {}
        for key, before in outer.items.items():
            vector = self.folded_copies(partial, key, combine)
            total = reduce_lanes(self.f, combine, vector, outer.dtype)
            items[key] = emit_combine(self.f, combine, before, total, outer.dtype)
        return Tile(outer.dtype, outer.axes, items)

    def segments(self, stmt: For) -> list[Segment]:
        """How a loop is cut into a main part and a tail."""
        lanes = self.lanes if stmt.vector else 1
        step = stmt.tile * lanes
        if isinstance(stmt.extent, int) and not stmt.chunked:
            return self._static_segments(stmt.extent, step, lanes, stmt)
        begin, end = (self.f.parameters[1], self.f.parameters[2]) if stmt.chunked else (
            constant(0, I64), self.extent(stmt.extent),
        )  # fmt: skip
        if step == 1:
            return [Segment(begin, end, 1, 1, None)]
        span = self.f.binary("sub", end, begin) if begin.ref != "0" else end
        rest = self.f.binary("srem", span, constant(step, I64))
        main_end = self.f.binary("sub", end, rest)
        return [
            Segment(begin, main_end, stmt.tile, lanes, None),
            Segment(main_end, end, 1, lanes, None, masked=stmt.vector),
        ]

    def _static_segments(self, extent: int, step: int, lanes: int, stmt: For) -> list[Segment]:
        result = []
        main, rest = divmod(extent, step)
        split = constant(main * step, I64)
        if main:
            result.append(Segment(constant(0, I64), split, stmt.tile, lanes, main))
        if rest and stmt.vector:
            count = -(-rest // lanes)
            result.append(Segment(split, constant(extent, I64), count, lanes, 1, valid=rest, masked=True))
        elif rest:
            result.append(Segment(split, constant(extent, I64), 1, 1, rest))
        return result

    def run_segment(self, stmt: For, segment: Segment, carried: list[str]) -> None:
        """Emits the control flow of one segment around the loop's body."""
        f = self.f
        step = constant(segment.count * segment.lanes, I64)
        if segment.trips == 1:
            self.iteration(stmt, segment, segment.begin)
            return
        before, entry = f.current_block, {name: self.scalars[name] for name in carried}
        top, done = f.label("loop"), f.label("done")
        if segment.trips is None:
            f.branch_if(f.compare("slt", segment.begin, segment.end), top, done)
        else:
            f.branch(top)
        f.block(top)
        # The phis name values of the latch, which is written after them: patch the text afterwards.
        phis = f.region()
        index = Value(I64, f.fresh("i"))
        heads = {name: _renamed(f, entry[name]) for name in carried}
        self.scalars.update(heads)
        self.iteration(stmt, segment, index)
        following = f.binary("add", index, step)
        latch = f.current_block
        f.branch_if(f.compare("slt", following, segment.end), top, done)
        f.block(done)
        with f.writing_to(phis):
            _phi(f, index, segment.begin, before, following, latch)
            for name in carried:
                for key, head in heads[name].items.items():
                    _phi(f, head, entry[name].items[key], before, self.scalars[name].items[key], latch)
        if segment.trips is None:
            for name in carried:
                last = self.scalars[name]
                merged = {
                    key: f.phi(value.type, [(entry[name].items[key], before), (value, latch)])
                    for key, value in last.items.items()
                }
                self.scalars[name] = Tile(last.dtype, last.axes, merged)

    def iteration(self, stmt: For, segment: Segment, base: Value) -> None:
        """The body of a loop for `count` items from `base` on."""
        depth = len(self.scopes)
        axis = Axis(stmt.axis, base, depth, segment.count, segment.lanes, stmt.vector)
        self.scopes.append(Scope(depth, self.f.region()))
        if segment.masked:
            axis.masks = self.masks(segment, base)
        self.axes[stmt.axis] = axis
        outer = set(self.scalars)
        self.body(stmt.body)
        del self.axes[stmt.axis]
        self.scopes.pop()
        self.scalars = {name: tile for name, tile in self.scalars.items() if name in outer}

    def masks(self, segment: Segment, base: Value) -> list[Value | None]:
        """Which lanes of each vector exist."""
        f, lanes = self.f, segment.lanes
        if segment.valid is not None:
            result: list[Value | None] = []
            for copy in range(segment.count):
                exists = min(max(segment.valid - copy * lanes, 0), lanes)
                bits = ", ".join(f"i1 {'true' if lane < exists else 'false'}" for lane in range(lanes))
                result.append(None if exists == lanes else Value(LLType("i1", lanes), f"<{bits}>"))
            return result
        left = f.convert("trunc", f.binary("sub", segment.end, base), LLType("i32"))
        return [f.compare("ult", f.lane_ids("i32", lanes), f.splat(left, lanes))]


def _renamed(f: Function, tile: Tile) -> Tile:
    return Tile(tile.dtype, tile.axes, {k: Value(v.type, f.fresh("p")) for k, v in tile.items.items()})


def _phi(f: Function, name: Value, first: Value, before: str, following: Value, latch: str) -> None:
    f.line(f"{name.ref} = phi {name.type} [ {first.ref}, %{before} ], [ {following.ref}, %{latch} ]")
