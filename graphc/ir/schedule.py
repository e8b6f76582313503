"""Schedules kernels: which axis is vectorised, what is unrolled and jammed, how dear an iteration is.

The vector axis is the one along which most accesses run contiguously, weighted by how often they are
executed. A contraction whose lanes lie along its last parallel axis becomes a register tile of rows by
vectors; one whose lanes lie along the contracted axis (a dot product) a tile of several products. A dear
epilogue of a product then gets loops of its own (`graphc.ir.epilogues`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import gcd

from graphc.ir.collapse import collapse
from graphc.ir.cost import kernel_cost
from graphc.ir.epilogues import with_row_epilogue
from graphc.ir.kernels import (
    Affine,
    Assign,
    Body,
    Cast,
    Check,
    Combine,
    For,
    Index,
    Kernel,
    KernelProgram,
    Load,
    Prim,
    Stmt,
    Store,
    Temp,
    Var,
    exprs_of,
    loads_of,
    map_stmts,
    walk_expr,
    walk_stmts,
)
from graphc.ir.machine import Machine
from graphc.ir.prefetch import LINE_BYTES, prefetch_products, prefetch_rows
from graphc.ir.streams import stream_outputs, unread_outputs
from graphc.ir.types import Extent
from graphc.ir.unroll import loop_vectors

SPLIT_ROWS = 96
"""Least rows of a chunk that keeps its own copy of a product: writing and adding the copy is then cheap."""
SPANNED_ROWS = 168
"""The same where one tile spans the lanes' axis: a line of each operand a row, which the nearest cache holds
for more rows, and fewer copies to add."""


def schedule(program: KernelProgram, machine: Machine) -> KernelProgram:
    """Sets tiles, vectors, granules and costs of all kernels; their meaning stays the same."""
    unread = unread_outputs(program)
    kernels = tuple(schedule_kernel(collapse(kernel), machine, unread) for kernel in program.kernels)
    return replace(program, kernels=kernels)


def schedule_kernel(kernel: Kernel, machine: Machine, unread: frozenset[str] = frozenset()) -> Kernel:
    """One kernel with its schedule. `unread`: storages that no kernel reads and this one alone may write."""
    lanes = max(machine.vector_bytes // _widest(kernel), 2)
    axis = _vector_axis(kernel)
    tiles: dict[str, int] = {}
    partner = ""
    if axis:
        extents = {s.axis: s.extent for s in walk_stmts(kernel.body) if isinstance(s, For)}
        if kernel.form == "contract":
            tiles = _contract_tiles(kernel, axis, extents, lanes, machine)
        else:
            partner = _turning_axis(kernel, axis)
            # Squares of lanes by rows are turned in registers: one vector of each row.
            tiles = {partner: lanes, axis: 1} if partner else {axis: 0}

    def rule(stmt: Stmt) -> Body | None:
        if isinstance(stmt, For) and stmt.axis in tiles:
            tile = tiles[stmt.axis] or loop_vectors(stmt, lanes, machine.registers)
            return (replace(stmt, tile=tile, vector=stmt.axis == axis),)
        return None

    body = map_stmts(kernel.body, stmt_rule=rule)
    if partner and _turns_along_lines(kernel, partner, axis, machine):
        body = map_stmts(body, stmt_rule=lambda stmt: _interchanged(stmt, partner, axis))
    granule = 1
    if kernel.chunk_axis in tiles:
        granule = max(s.tile for s in walk_stmts(body) if isinstance(s, For) and s.chunked)
        granule *= lanes if kernel.chunk_axis == axis else 1
    elif kernel.form == "contract" and _is_split(body):
        spans = any(
            isinstance(s, For) and s.vector and isinstance(s.extent, int) and s.extent <= s.tile * lanes
            for s in walk_stmts(body)
        )
        granule = SPANNED_ROWS if spans else SPLIT_ROWS
    scheduled = replace(kernel, body=body, granule=granule)
    scheduled = replace(scheduled, cost=kernel_cost(scheduled, lanes if axis else 1) // 1000 + 1)
    scheduled = prefetch_products(with_row_epilogue(scheduled, machine), lanes)
    streamed = stream_outputs(prefetch_rows(scheduled), unread, machine.vector_bytes)
    past = frozenset(s.target for s in walk_stmts(streamed.body) if isinstance(s, Store) and s.stream)
    # What goes past the caches is not asked for, and makes room for other requests.
    return stream_outputs(prefetch_rows(scheduled, past), unread, machine.vector_bytes) if past else streamed


def _is_split(body: Body) -> bool:
    """Whether the chunked loop is the sum itself."""
    return any(
        isinstance(s, For) and s.chunked and any(isinstance(part, Combine) for part in s.body)
        for s in walk_stmts(body)
    )


def _widest(kernel: Kernel) -> int:
    dtypes = {buffer.type.dtype for buffer in kernel.buffers}
    for stmt in walk_stmts(kernel.body):
        for expr in exprs_of(stmt):
            dtypes |= {part.dtype for part in walk_expr(expr) if isinstance(part, (Prim, Cast))}
    floats = [dtype.itemsize for dtype in dtypes if dtype.is_float]
    return max([*(floats or [dtype.itemsize for dtype in dtypes]), 4])


# ------------------------------------------------------------------------------------- the vector axis


def _vector_axis(kernel: Kernel) -> str:
    """The axis whose lanes run contiguously through most accesses; '' if none may be vectorised."""
    if kernel.form == "check":
        return ""
    scores: dict[str, float] = {}
    _score(kernel, FlatIndices(kernel), kernel.body, {}, 1.0, scores)
    allowed = {a: s for a, s in scores.items() if s > 0 and _may_vectorise(kernel, kernel.body, a)}
    return max(allowed, key=lambda a: allowed[a]) if allowed else ""


class FlatIndices:
    """Where the accesses of a kernel lie in their buffers, in elements."""

    def __init__(self, kernel: Kernel) -> None:
        self._strides = {buffer.name: buffer.strides for buffer in kernel.buffers}

    def of(self, name: str, index: Index) -> Affine | None:
        """The distance from the start of a buffer; None for a local array."""
        strides = self._strides.get(name)
        if strides is None:
            return None
        flat = Affine()
        for affine, stride in zip(index, strides, strict=True):
            flat = flat + affine.scale(stride)
        return flat


def _score(
    kernel: Kernel,
    flats: FlatIndices,
    body: Body,
    open_axes: Mapping[str, Extent],
    weight: float,
    scores: dict[str, float],
) -> None:
    for stmt in body:
        if isinstance(stmt, For):
            scores.setdefault(stmt.axis, 0.0)
            trips = float(stmt.extent) if isinstance(stmt.extent, int) else 256.0
            if trips < 2:
                scores[stmt.axis] -= 1.0
            inner = {**open_axes, stmt.axis: stmt.extent}
            _score(kernel, flats, stmt.body, inner, weight * max(trips, 1.0), scores)
            continue
        if isinstance(stmt, Store):
            flat = flats.of(stmt.target, stmt.index)
            is_plain = not stmt.combine and stmt.guard is None
            for axis in open_axes:
                scores[axis] += 2 * weight * _contiguity(kernel, flat, stmt.index, axis, is_plain)
        for expr in exprs_of(stmt):
            for part in walk_expr(expr):
                if isinstance(part, Load):
                    flat = flats.of(part.source, part.index)
                    for axis in open_axes:
                        scores[axis] += weight * _contiguity(kernel, flat, part.index, axis, True)


def _contiguity(kernel: Kernel, flat: Affine | None, index: Index, axis: str, may_turn: bool) -> float:
    """1 for lanes that lie next to each other, -4 for lanes that need a gather, 0 for one element.

    A strided access is nearly as good if squares of it can be turned in registers."""
    if flat is None:
        return 1.0 if index and index[-1].coefficient(axis) == 1 else 0.0
    coefficient = flat.coefficient(axis)
    if coefficient == 0:
        return 0.0
    if coefficient != 1 and may_turn and _turns(kernel, flat, axis):
        return -0.25
    return 1.0 if coefficient == 1 else -4.0


def _turns(kernel: Kernel, flat: Affine, axis: str) -> str:
    """The other loop of a map along which an access is contiguous, if the two are parallel."""
    if kernel.form != "map":
        return ""
    chain = _chain(kernel.body)
    partners = (name for name, c in flat.terms if c == 1 and name in chain and name != axis)
    return next(partners, "") if axis in chain else ""


def _chain(body: Body) -> list[str]:
    """The axes of loops that are nested one in another with no loop beside them."""
    loops = [stmt for stmt in body if isinstance(stmt, For)]
    return [loops[0].axis, *_chain(loops[0].body)] if len(loops) == 1 else []


def _turning_axis(kernel: Kernel, axis: str) -> str:
    """The row axis to unroll so that strided accesses along the vector axis become squares."""
    flats = FlatIndices(kernel)
    places = [(load.source, load.index) for load in loads_of(kernel.body) if load.guard is None]
    stores = [stmt for stmt in walk_stmts(kernel.body) if isinstance(stmt, Store)]
    places += [(s.target, s.index) for s in stores if s.guard is None and not s.combine]
    for name, index in places:
        flat = flats.of(name, index)
        if flat is None or flat.coefficient(axis) in (0, 1):
            continue
        if partner := _turns(kernel, flat, axis):
            return partner
    return ""


def _turns_along_lines(kernel: Kernel, partner: str, axis: str, machine: Machine) -> bool:
    """Whether squares that are turned had better follow each other along the lines that they read.

    A square takes but a part of each line. Where a column of squares fills the cache, the rest is still at
    hand for the next one only if that lies along the lines, at the price of as many open lines as a chunk
    writes rows. Where vectors are as long as lines, little is left of one; if rows are read beside that (an
    update of parameters), they had better be few and long.
    """
    extent = next(s.extent for s in walk_stmts(kernel.body) if isinstance(s, For) and s.axis == axis)
    if isinstance(extent, int) and extent * LINE_BYTES < machine.cache_bytes[0]:
        return False
    if machine.vector_bytes < LINE_BYTES:
        return True
    flats = FlatIndices(kernel)
    found = [flats.of(load.source, load.index) for load in loads_of(kernel.body)]
    return not any(f is not None and f.coefficient(axis) == 1 and f.coefficient(partner) != 0 for f in found)


def _interchanged(stmt: Stmt, partner: str, axis: str) -> Body | None:
    """The loop of the partner with that of the axis, if it has just that in it, around it."""
    if not (isinstance(stmt, For) and stmt.axis == partner and len(stmt.body) == 1):
        return None
    inner = stmt.body[0]
    if not (isinstance(inner, For) and inner.axis == axis):
        return None
    return (replace(inner, body=(replace(stmt, body=inner.body),)),)


def _may_vectorise(kernel: Kernel, body: Body, axis: str) -> bool:
    """Whether lanes of an axis are independent but for reductions, and no local array lies inside."""
    for stmt in walk_stmts(body):
        if not (isinstance(stmt, For) and stmt.axis == axis):
            continue
        inside = list(walk_stmts(stmt.body))
        if any(isinstance(s, (Temp, Check)) for s in inside):
            return False
        if any(isinstance(s, For) and s.axis == axis for s in inside):
            return False
        declared = {s.name for s in inside if isinstance(s, Var)}
        if any(isinstance(s, Assign) and s.name not in declared for s in inside):
            return False
        for store in (s for s in inside if isinstance(s, Store)):
            lanes_differ = any(axis in affine.names for affine in store.index)
            if not lanes_differ and not store.combine:
                return False
            if store.combine and _gathers_lanes(store.index, inside, axis):
                return False
    return True


def _gathers_lanes(index: Index, inside: list[Stmt], axis: str) -> bool:
    """Whether an accumulation goes through an index that may be the same in two lanes."""
    axes = {s.axis for s in inside if isinstance(s, For)} | {axis}
    lets = {s.name for s in inside if hasattr(s, "expr") and hasattr(s, "name")}
    scalars = {n for affine in index for n in affine.names if n in lets and n not in axes}
    return bool(scalars) and not any(axis in affine.names for affine in index)


# ---------------------------------------------------------------------------------- contraction tiles


def _contract_tiles(
    kernel: Kernel, axis: str, extents: dict[str, Extent], lanes: int, machine: Machine
) -> dict[str, int]:
    """The register tile: vectors along `axis`, rows along the nearest other axis of the result."""
    parallel = _result_axes(kernel)
    budget = machine.tile_rows * machine.tile_vectors
    if axis not in parallel:
        # Dot products: one vector accumulator each for a tile of results.
        nearest = zip(reversed(parallel), (2, 4), strict=False)
        return {axis: 1, **{a: _divisor(extents[a], most) for a, most in nearest if extents[a] != 1}}
    extent = extents[axis]
    vectors = machine.tile_vectors
    if isinstance(extent, int):
        needed = max(-(-extent // lanes), 1)
        vectors = needed if needed <= machine.tile_vectors + 1 else machine.tile_vectors
    others = [a for a in parallel if a != axis]
    if not others:
        return {axis: min(4, max(vectors, 1))}
    rows, most = budget // vectors, _most_rows(kernel, others[-1], machine)
    if most < rows:
        # A part of the usual tile: chunks of a region are multiples of all its tiles.
        usual = machine.tile_rows
        rows = min(rows, usual if most >= usual else usual // -(-usual // most))
    return {axis: vectors, others[-1]: _row_tile(extents[others[-1]], rows, vectors)}


def _most_rows(kernel: Kernel, axis: str, machine: Machine) -> int:
    """How many rows a tile may read side by side: their lines have to stay in the nearest cache together.

    Rows whose distance is a multiple of one of its ways' size all map to the same set, which has room for
    `cache_ways` lines; each step of a longer tile would fetch all of its rows again.
    """
    flats, way = FlatIndices(kernel), machine.cache_bytes[0] // machine.cache_ways
    buffers = {buffer.name: buffer.type for buffer in kernel.buffers}
    most = machine.tile_rows * machine.tile_vectors
    sums = [s for s in walk_stmts(kernel.body) if isinstance(s, For) and not s.vector]
    sums = [loop for loop in sums if any(isinstance(s, Combine) for s in loop.body)]
    for load in (load for loop in sums for load in loads_of(loop.body)):
        flat = flats.of(load.source, load.index)
        distance = flat.coefficient(axis) if flat is not None else 0
        if isinstance(distance, int) and distance:
            apart = gcd(distance * buffers[load.source].dtype.itemsize, way)
            most = min(most, machine.cache_ways * (way // max(apart, LINE_BYTES)))
    return most


def _result_axes(kernel: Kernel) -> list[str]:
    """The axes around the accumulation of the product, outermost first, the chunk axis included."""
    found: list[list[str]] = [[]]

    def walk(body: Body, axes: list[str]) -> None:
        declared = {stmt.name for stmt in body if isinstance(stmt, Var)}
        for stmt in body:
            if isinstance(stmt, For):
                if any(isinstance(s, Combine) and s.name in declared for s in walk_stmts(stmt.body)):
                    found.append(axes)
                walk(stmt.body, [*axes, stmt.axis])

    walk(kernel.body, [])
    return max(found, key=len)


def _row_tile(extent: Extent, rows: int, vectors: int) -> int:
    """Rows of a tile: as many as registers allow, or a number that leaves a cheaper remainder.

    A tile step costs its multiply-adds or, for small tiles, their latency, and one more for the loop.
    """
    if not isinstance(extent, int):
        return rows

    def cost(tile: int) -> int:
        full, rest = divmod(extent, tile)
        return full * (max(tile * vectors, 8) + 1) + rest * (max(vectors, 8) + 1)

    return min(range(max(min(rows, extent), 1), 0, -1), key=cost)


def _divisor(extent: Extent, most: int) -> int:
    return min(most, extent) if isinstance(extent, int) else most
