"""Strips of a product's own: where columns come in no whole panels, each vector of them keeps a copy.

    for i<128> chunked tile 4:                 for j<500> chunked vector 2:
      for j<500> vector 2:                       temp strip1: f32[784]
        var acc1: f32 = 0.0                      for k<784>:
        for k<784>:                                strip1[k] = b[k, j]
          acc1 += a[i, k] * b[k, j]              for i<128> tile 4:
        out[i, j] = acc1                           var acc1: f32 = 0.0
                                                   for k<784>:
                                                     acc1 += a[i, k] * strip1[k]
                                                   out[i, j] = acc1

On the left each step down the columns of `b` is on another page and rarely begins with a cache line, and all
of it comes again for every chunk of rows. A local array that is declared in a vectorised loop is each lane's
own, and lies lane by lane: a strip is what a panel is (`graphc/ir/panels.py`), and the last one is
as wide as there are columns left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Body,
    Buffer,
    Combine,
    Expr,
    For,
    Index,
    IndexValue,
    Kernel,
    KernelProgram,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    Temp,
    exprs_of,
    loads_of,
    map_expr,
    map_stmts,
    walk_expr,
    walk_stmts,
)
from graphc.ir.machine import Machine
from graphc.ir.panels import FEWEST_CHUNKS, MOST_ROWS, chunks_are_independent
from graphc.ir.prefetch import ROWS_AHEAD, rows_behind

SMALLEST_BYTES = 2**16
"""Operands smaller than this stay in cache as they are."""
FEWEST_ROWS = 16
"""Rows below which a strip is not read often enough to pay for its copy."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A kernel that stores a matrix in another order and does nothing else."""

    kernel: Kernel
    rows: For
    columns: For
    store: Store

    @staticmethod
    def of(kernel: Kernel) -> _Copy | None:
        """The parts of a kernel with two loops, in any order, around `t[rows, columns] = ...`."""
        loops: list[For] = []
        body = kernel.body
        while kernel.form == "map" and len(body) == 1 and isinstance(body[0], For):
            loops.append(body[0])
            body = body[0].body
        if len(loops) != 2 or len(body) != 1 or not isinstance(body[0], Store):
            return None
        store = body[0]
        by_place = {Affine.of(loop.axis): loop for loop in loops}
        if len(store.index) != 2 or not set(store.index) <= by_place.keys():
            return None
        rows, columns = (by_place[affine] for affine in store.index)
        uses_chunk = any(CHUNK in affine.names for load in loads_of(body) for affine in load.index)
        plain = not store.combine and store.guard is None and columns.vector and not uses_chunk
        return _Copy(kernel, rows, columns, store) if plain and rows is not columns else None


@dataclass(frozen=True, slots=True)
class _Product:
    """A product of rows with the columns of a matrix, its loops, and the matrix."""

    kernel: Kernel
    rows: For
    columns: For
    sum: For
    tile: Body
    matrix: Buffer

    @staticmethod
    def of(kernel: Kernel) -> _Product | None:
        """The parts of a kernel with two loops, in any order, around `... for sum: ...`; None where chunks of
        columns would not be independent."""
        loops: list[For] = []
        body = kernel.body
        while kernel.form == "contract" and len(inner := [s for s in body if isinstance(s, For)]) == 1:
            if loops and len(loops) < 2 and len(body) != 1:
                return None
            loops.append(inner[0])
            body = inner[0].body
        if len(loops) != 3 or not all(isinstance(s, (Let, For)) for s in kernel.body):
            return None
        rows, columns = loops[:2] if loops[1].vector else loops[1::-1]
        total = loops[2]
        place = (Affine.of(total.axis), Affine.of(columns.axis))
        if not columns.vector or rows.vector or total.vector or total.chunked:
            return None
        sums = [s for s in total.body if isinstance(s, Combine)]
        loads = [p for s in sums for e in exprs_of(s) for p in walk_expr(e) if isinstance(p, Load)]
        read = {p.source for p in loads if p.index == place and p.guard is None}
        matrix = next((b for b in kernel.buffers if b.name in read and b.access == "in"), None)
        if matrix is None or len(read) != 1 or not _own_columns(kernel, columns, matrix, place):
            return None
        return _Product(kernel, rows, columns, total, loops[1].body, matrix)


def _own_columns(kernel: Kernel, columns: For, matrix: Buffer, place: Index) -> bool:
    """Whether chunks of columns would be independent, and the matrix is read in one place alone."""
    elsewhere = any(load.source == matrix.name and load.index != place for load in loads_of(kernel.body))
    return not elsewhere and chunks_are_independent(kernel, {Affine.of(columns.axis)})


def own_strips(program: KernelProgram, machine: Machine) -> KernelProgram:
    """Scheduled kernels, with products that copy the columns of a matrix for themselves where that pays."""
    uses = Counter(b.storage for kernel in program.kernels for b in kernel.buffers)
    kernels = list(program.kernels)
    copies: dict[str, tuple[int, _Copy]] = {}
    dropped: dict[int, str] = {}
    for number, kernel in enumerate(kernels):
        copy = _Copy.of(kernel)
        if copy is not None:
            storage = kernel.buffer(copy.store.target).storage
            if program.storages[storage].kind == "temporary" and uses[storage] == 2:
                copies[storage] = number, copy
            continue
        product = _Product.of(kernel)
        if product is None or not _pays(product, machine):
            continue
        source = None
        if product.matrix.storage in copies:
            first, copy = copies[product.matrix.storage]
            if _can_wait(copy.kernel, kernels[first + 1 : number + 1]):
                source = copy
                dropped[first] = product.matrix.storage
        kernels[number] = _with_strip(product, source, machine)
    return replace(
        program,
        storages={n: s for n, s in program.storages.items() if n not in dropped.values()},
        kernels=tuple(kernel for number, kernel in enumerate(kernels) if number not in dropped),
    )


def _can_wait(copy: Kernel, later: list[Kernel]) -> bool:
    """Whether what a copy reads is still there after some kernels, and goes by the same name in the last."""
    overwritten = {b.storage for kernel in later for b in kernel.buffers if b.access != "in"}
    own = {b.name: b for b in later[-1].buffers}
    read = [b for b in copy.buffers if b.access == "in"]
    return all(b.storage not in overwritten and own.get(b.name, b) == b for b in read)


def _pays(product: _Product, machine: Machine) -> bool:
    """Whether the copies cost less than they save, and leave chunks enough to share among threads."""
    rows, columns, depth = product.rows.extent, product.columns.extent, product.sum.extent
    chunked = product.rows if product.rows.chunked else product.columns
    size, cost = product.matrix.type.nbytes, product.kernel.cost * chunked.extent
    if not isinstance(rows, int) or not isinstance(columns, int) or not isinstance(depth, int):
        return False
    if not isinstance(size, int) or not isinstance(cost, int) or not product.matrix.type.dtype.is_float:
        return False
    width = product.columns.tile * machine.vector_bytes
    fits = depth * width <= machine.cache_bytes[1] // 2
    several = columns * product.matrix.type.dtype.itemsize >= FEWEST_CHUNKS * width
    return fits and several and size >= SMALLEST_BYTES and FEWEST_ROWS <= rows <= MOST_ROWS


def _with_strip(product: _Product, copy: _Copy | None, machine: Machine) -> Kernel:
    """The product with a strip of the matrix for every vector of columns, or of what the copy reads."""
    kernel, columns, total, matrix = product.kernel, product.columns, product.sum, product.matrix
    names = {s.axis for s in walk_stmts(kernel.body) if isinstance(s, For)} | {b.name for b in kernel.buffers}
    names |= {s.name for s in walk_stmts(kernel.body) if isinstance(s, Let)}
    strip = "strip1"
    while strip in names:
        strip += "_"
    chunked = product.rows if product.rows.chunked else columns
    cost, width = kernel.cost * chunked.extent, columns.extent
    assert isinstance(cost, int) and isinstance(width, int)
    element: Expr = Load(matrix.name, (Affine.of(total.axis), Affine.of(columns.axis)), matrix.type.dtype)
    steps, read = 1, [matrix]
    if copy is not None:
        axes = {copy.rows.axis: Affine.of(total.axis), copy.columns.axis: Affine.of(columns.axis)}
        element, steps = _over(copy.store.expr, axes), copy.rows.tile
        read = [b for b in copy.kernel.buffers if b.access == "in"]
    asked = rows_behind(kernel, total, product.rows)
    ahead = Prefetch(strip, (Affine.of(total.axis) + ROWS_AHEAD,))

    def expr(e: Expr) -> Expr | None:
        if isinstance(e, Load) and e.source == matrix.name:
            return replace(e, source=strip, index=e.index[:1])
        return None

    def stmt(s: Stmt) -> Body | None:
        if isinstance(s, Prefetch) and s.source == matrix.name:
            return ()
        if isinstance(s, For) and s.axis == total.axis:
            return (replace(s, body=(ahead, *asked, *s.body)),)
        return None

    tiles = replace(product.rows, body=map_stmts(product.tile, expr, stmt), chunked=False)
    copying = For(total.axis, total.extent, (Store(strip, (Affine.of(total.axis),), element),), tile=steps)
    room = Temp(strip, matrix.type.dtype, (total.extent,))
    strips = replace(columns, body=(room, copying, tiles), chunked=True)
    kept = [b for b in kernel.buffers if b is not matrix]
    read = [b for b in read if b not in kept]
    return replace(
        kernel,
        buffers=(*(b for b in kept if b.access == "in"), *read, *(b for b in kept if b.access != "in")),
        body=tuple(strips if isinstance(s, For) else s for s in kernel.body),
        chunk_axis=columns.axis,
        chunk_extent=columns.extent,
        cost=max(cost // width, 1),
        granule=columns.tile * machine.vector_bytes // matrix.type.dtype.itemsize,
    )


def _over(expr: Expr, axes: dict[str, Affine]) -> Expr:
    """An expression over other axes."""

    def moved(e: Expr) -> Expr | None:
        if isinstance(e, Load):
            return replace(e, index=tuple([affine.substitute(axes) for affine in e.index]))
        return IndexValue(e.affine.substitute(axes)) if isinstance(e, IndexValue) else None

    return map_expr(expr, moved)
