"""Emits kernels: walks the loop nest of a `Kernel` and writes text IR with explicit SIMD.

    i64 kernel(ptr operands, i64 begin, i64 end, i64 chunk)

`operands` is a block of 8-byte slots: the addresses of the kernel's buffers in order, then the values of
the extents listed in `EmittedKernel.extents`. begin..end is the chunk's part of the chunk axis. The result
is 0, or 1 + the position of the first failed `Check`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

from graphc.codegen.addressing import Place, linearise, pointer_operand
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
from graphc.codegen.emitted import EmittedKernel
from graphc.codegen.loops import Loops
from graphc.codegen.repeated import call_repeated, repeated_functions
from graphc.codegen.scalars import emit_cast, emit_combine, emit_expression, emit_prim
from graphc.codegen.tiles import Key, Tile, build, keys
from graphc.errors import LoweringError
from graphc.ir.kernels import (
    STREAM_BYTES,
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
    Prefetch,
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
from graphc.ir.types import DType, Extent, float32, int32, int64

ABREAST = 4
"""Items of a tile that run through an operation in step: enough chains to hide the latency of a polynomial,
few enough to stay in 16 registers."""


def emit_kernel(
    module: Module, kernel: Kernel, vector_bits: int, known: set[str] | None = None
) -> EmittedKernel:
    """Adds a kernel's code to a module; kernels with the same code share one function. `known` are the
    symbols of kernels in other modules of the same program; this one's is added."""
    parameters = [("operands", PTR), ("begin", I64), ("end", I64), ("chunk", I64)]
    f = Function(module, "kernel", parameters, I64)
    emitter = KernelEmitter(f, kernel, vector_bits)
    emitter.emit()
    digest = hashlib.sha256(f.render("kernel").encode()).hexdigest()[:16]
    symbol = f"gx_{kernel.form}_{digest}"
    known = set() if known is None else known
    if symbol not in known and not module.has_function(symbol):
        module.add_function(symbol, f.render(symbol))
    known.add(symbol)
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


class KernelEmitter(Loops):
    """Emits one kernel. See `graphc.codegen.tiles` for what an expression's value is."""

    def __init__(self, f: Function, kernel: Kernel, vector_bits: int) -> None:
        super().__init__(f, lanes_for(kernel, vector_bits), kernel.name, kernel.granule)
        self.kernel = kernel
        self.first_extent_slot = len(kernel.buffers)
        self.vector_bytes = vector_bits // 8
        self.repeated = repeated_functions(kernel)
        self._splats: dict[tuple[str, str, int], Value] = {}

    def emit(self) -> None:
        with self.f.writing_to(self.scopes[0].region):
            for slot, buffer in enumerate(self.kernel.buffers):
                pointer = pointer_operand(self.f, slot)
                self.places[buffer.name] = Place(buffer.name, buffer.type.dtype, buffer.type.shape, pointer)
        streamed = {s.target for s in walk_stmts(self.kernel.body) if isinstance(s, Store) and s.stream}
        if streamed:
            self.streaming_form(streamed)
        self.body(self.kernel.body)
        self.f.ret(constant(0, I64))

    def streaming_form(self, streamed: set[str]) -> None:
        """The whole kernel with stores past the caches, if its buffers are large and the stores aligned.

        Streamed stores are not ordered as others are: a fence stands between them and the kernel's end.
        """
        f = self.f
        total: Extent = 0
        for buffer in self.kernel.buffers:
            total = total + buffer.type.nbytes
        low_bits = constant(0, I64)
        for name in sorted(streamed):
            low_bits = f.binary("or", low_bits, f.convert("ptrtoint", self.places[name].pointer, I64))
        if any(isinstance(s, For) and s.chunked and s.vector for s in walk_stmts(self.kernel.body)):
            low_bits = f.binary("or", low_bits, self.scaled(f.parameters[1], self.vector_bytes // self.lanes))
        low_bits = f.binary("and", low_bits, constant(self.vector_bytes - 1, I64))
        is_aligned = f.compare("eq", low_bits, constant(0, I64))
        is_large = f.compare("sgt", self.extent(total), constant(STREAM_BYTES, I64))
        past, through = f.label("past"), f.label("through")
        f.branch_if(f.binary("and", is_large, is_aligned), past, through)
        f.block(past)
        kept = dict(self.places)
        self.streams = True
        self.body(self.kernel.body)
        self.streams = False
        f.line("fence seq_cst")
        f.ret(constant(0, I64))
        f.block(through)
        self.places, self.scalars = kept, {}

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
            case Prefetch():
                self.prefetch(stmt)

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
        if not {axis.name for axis in self.axes.values() if axis.is_tiled} <= set(old.axes):
            # An assignment happens once per iteration, in order, even where its value is the same.
            raise LoweringError(f"{self.kernel.name}: {name} changes within iterations that run together")
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

        # The axis with more items outermost: only the factors along the shorter one then stay in registers.
        # Items that share an accumulator keep their order.
        own = sorted((axis for axis in axes if axis.name in old.axes), key=lambda axis: -axis.count)
        build(old.dtype, [*own, *(axis for axis in axes if axis.name not in old.axes)], fold)
        self.scalars[stmt.name] = folded

    def aligned(self, values: list[Value]) -> list[Value]:
        """Operands brought to one lane count."""
        lanes = max(v.type.lanes for v in values)
        return [self.wide(v, lanes) for v in values]

    def store(self, stmt: Store) -> None:
        place = self.places[stmt.target]
        value = self.evaluate(stmt.expr)
        guard = self.evaluate(stmt.guard) if stmt.guard is not None else None
        linear = linearise(stmt.index, place)
        own = self.axes_of(frozenset(name for name, _ in linear.terms)) | set(place.axes)
        names = own | set(value.axes) | (set(guard.axes) if guard else set())
        if not stmt.combine and not names <= own | ({a.name for a in self.axes.values() if not a.is_tiled}):
            raise LoweringError(
                f"{self.kernel.name}: iterations sharing an address of {stmt.target} store different values"
            )
        if stmt.combine:
            # An accumulation happens once per iteration, also of a tiled axis it does not depend on.
            names |= {axis.name for axis in self.axes.values() if axis.is_tiled}
        turned = self.transposing_axis(place, linear) if not stmt.combine and guard is None else None
        if turned is not None:
            self.store_transposed(place, linear, value, turned)
            return
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
            self.store_item(place, linear, key, merged, own_guard, stmt.combine, stmt.stream)
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

    def mapped(
        self,
        dtype: DType,
        tiles: list[Tile],
        emit: Callable[[list[Value]], Value],
        emit_all: Callable[[list[list[Value]]], list[Value]] | None = None,
    ) -> Tile:
        """Applies an operation item by item over all axes that its operands vary with, or (`emit_all`) to
        the items that run in step at once."""
        axes = self.tiled({axis for tile in tiles for axis in tile.axes})
        combinations = list(keys(axes))
        operands = [(tuple(k.values()), self.aligned([tile.at(k) for tile in tiles])) for k in combinations]
        items: dict[Key, Value] = {}
        groups = max(-(-len(operands) // ABREAST), 1)
        for number in range(groups):
            group = operands[len(operands) * number // groups : len(operands) * (number + 1) // groups]
            if emit_all is not None:
                values = emit_all([values for _, values in group])
            else:
                values = self.f.in_step([partial(emit, values) for _, values in group])
            items.update(zip((key for key, _ in group), values, strict=True))
        return Tile(dtype, tuple(axis.name for axis in axes), items)

    def primitive(self, expr: Prim) -> Tile:
        if expr.name == "add" and expr.dtype.is_float:
            for product, other in (expr.operands, expr.operands[::-1]):
                if isinstance(product, Prim) and product.name == "mul":
                    tiles = [self.evaluate(e) for e in (*product.operands, other)]
                    return self.mapped(expr.dtype, tiles, lambda v: self.f.fmuladd(*v))
        tiles = [self.evaluate(operand) for operand in expr.operands]
        dtype = tiles[-1].dtype
        is_called = expr.name in self.repeated and dtype == float32
        emit_all = partial(call_repeated, self.f, expr) if is_called else None
        return self.mapped(expr.dtype, tiles, lambda v: emit_expression(self.f, expr, v, dtype), emit_all)

    def index_value(self, affine: Affine, element: str) -> Tile:
        """An affine function of the loop axes as an integer, lane by lane."""
        axis = self.vector_axis()
        coefficient = affine.coefficient(axis.name) if axis is not None else 0

        def item(key: dict[str, int]) -> Value:
            total = self.extent(affine.offset)
            for name, factor in affine.terms:
                if name in self.scalars:
                    base = self.as_i64(self.scalars[name], key)
                else:
                    base, _ = self.base_of(name)
                    # The vector axis is unrolled with the lanes: all items then add to one splatted base.
                    step = 0 if axis is not None and name == axis.name else key.get(name, 0)
                    base = self.f.binary("add", base, constant(step, I64)) if step else base
                part = self.scaled(base, factor)
                total, part = self.aligned([total, part])
                total = self.f.binary("add", total, part)
            if element == "i32":
                total = self.f.convert("trunc", total, total.type.with_element("i32"))
            if axis is None or coefficient == 0:
                return total
            first = key[axis.name] * axis.lanes
            if isinstance(coefficient, int):
                ids = self.f.lane_ids(element, axis.lanes, first * coefficient, coefficient)
            else:
                factor_value = self.extent(coefficient)
                if element == "i32":
                    factor_value = self.f.convert("trunc", factor_value, LLType("i32"))
                ids = self.f.lane_ids(element, axis.lanes, first)
                ids = self.f.binary("mul", ids, self.f.splat(factor_value, axis.lanes))
            return self.f.binary("add", self.wide(total, axis.lanes), ids)

        names = self.axes_of(affine.names)
        return build(int32 if element == "i32" else int64, self.tiled(names), item)
