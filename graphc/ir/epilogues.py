"""Row epilogues: a product's results gather in a local array, and what is made of them runs over whole rows.

    for jp<49>:                               for i<512> chunked tile 6:
      for i<512> chunked tile 6:                temp row1: f32[784]
        for j<16> vector 2:                     for jp<49>:
          var acc1: f32 = 0.0                     for j<16> vector 2:
          for k<B>:                                 var acc1: f32 = 0.0
            acc1 += a[jp, k, j] * b[i, k]           for k<B>:
          w[i, j + 16*jp] = ... acc1                  acc1 += a[jp, k, j] * b[i, k]
                                                    row1[j + 16*jp] = acc1
                                                for je<784> vector 4 apart:
                                                  let acc1 = row1[je]
                                                  w[i, je] = ... acc1

In the tile's own epilogue (left) memory is touched one cache line of every row at a time, which no hardware
prefetch follows; elementary functions work on as many vectors at once as the tile has accumulators, more than
registers hold; and a sum over all columns folds its lanes once for every tile. Over whole rows (right), one
after the other, memory is read as streams, and the unrolling is the epilogue's own. The order of the tiles
costs next to nothing: panels of the right operand then come from further caches, ahead of their use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from graphc.ir.kernels import (
    Affine,
    Body,
    Combine,
    Expr,
    For,
    Index,
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
    map_stmts,
    names_used,
    walk_expr,
    walk_stmts,
)
from graphc.ir.machine import Machine
from graphc.ir.work import TRANSCENDENTALS

STREAMED_BYTES = 24
"""Bytes moved for each element of a product from which on an epilogue's time is that of memory."""


VECTORS = 4
"""Vectors of an epilogue's loop: what hides the latency of its operations, and stays in registers."""


@dataclass(frozen=True, slots=True)
class _Product:
    """The loops of a scheduled product: `outer` (outermost first), rows of the register tile, its vectors.

    `panel` is the one of the outer loops that runs over the panels of the columns, where there are any;
    `width` counts all columns.
    """

    outer: tuple[For, ...]
    rows: For
    columns: For
    panel: For | None
    width: int

    @property
    def sums(self) -> tuple[Var, ...]:
        """The accumulators of the tile."""
        return tuple(stmt for stmt in self.multiplication if isinstance(stmt, Var))

    @property
    def multiplication(self) -> Body:
        """What of a tile computes the sums: everything up to its loop."""
        last = max(number for number, stmt in enumerate(self.columns.body) if isinstance(stmt, For))
        return self.columns.body[: last + 1]

    @property
    def epilogue(self) -> Body:
        """What of a tile uses the sums."""
        return self.columns.body[len(self.multiplication) :]


def with_row_epilogue(kernel: Kernel, machine: Machine) -> Kernel:
    """A scheduled product with its epilogue apart, if that pays (see `_pays`); other kernels as they are."""
    if kernel.form != "contract":
        return kernel
    body: list[Stmt] = []
    for stmt in kernel.body:
        product = _product(stmt) if isinstance(stmt, For) else None
        if product is not None and _fits(product, machine) and _pays(product, kernel, machine):
            stmt = _apart(product, kernel)
        body.append(stmt)
    return replace(kernel, body=tuple(body))


# ------------------------------------------------------------------------------------------- matching


def _product(stmt: For) -> _Product | None:
    """The loops of a product, if rows run right around the vectors of its register tile."""
    chain = [stmt]
    while not chain[-1].vector:
        loops = [inner for inner in chain[-1].body if isinstance(inner, For)]
        if len(loops) != 1 or not all(isinstance(s, (For, Let)) for s in chain[-1].body):
            return None
        chain.append(loops[0])
    if len(chain) < 2:
        return None
    *outer, rows, columns = chain
    if rows.tile < 2 or columns.chunked or not isinstance(columns.extent, int):
        return None
    declared = {inner.name for inner in columns.body if isinstance(inner, Var)}
    loops = [inner for inner in columns.body if isinstance(inner, For)]
    summed = {s.name for loop in loops for s in walk_stmts(loop.body) if isinstance(s, Combine)}
    if len(loops) != 1 or loops[0].chunked or not declared or not declared <= summed:
        return None
    panel = next((loop for loop in outer if _is_panel(loop, columns)), None)
    hoisted = [let for loop in (*outer, rows) for let in loop.body if isinstance(let, Let)]
    if panel is not None and any(panel.axis in affine.names for affine in _affines(tuple(hoisted))):
        return None
    panels = panel.extent if panel is not None else 1
    assert isinstance(panels, int)
    product = _Product(tuple(outer), rows, columns, panel, panels * columns.extent)
    plain = all(isinstance(s, (Var, Let, For)) for s in product.multiplication)
    return product if plain and product.epilogue else None


def _is_panel(loop: For, columns: For) -> bool:
    """Whether a loop runs over panels: a column's number is its panel times their width plus its place."""
    if loop.chunked or not isinstance(loop.extent, int):
        return False
    return any(
        affine.coefficient(columns.axis) == 1 and affine.coefficient(loop.axis) == columns.extent
        for affine in _affines(columns.body)
    )


def _affines(body: Body) -> Iterator[Affine]:
    """All indices in a body, those that are computed with included."""
    for stmt in walk_stmts(body):
        if isinstance(stmt, Store):
            yield from stmt.index
        for expr in exprs_of(stmt):
            for part in walk_expr(expr):
                if isinstance(part, Load):
                    yield from part.index
                elif isinstance(part, IndexValue):
                    yield part.affine


# ------------------------------------------------------------------------------------------- the rule


def _fits(product: _Product, machine: Machine) -> bool:
    """Whether the results of a tile's rows stay in a core's own caches until the epilogue takes them: in the
    first level, or in the second one beside the panels that the tile passes by."""
    row = sum(product.width * var.dtype.itemsize for var in product.sums)
    first, second = machine.cache_bytes
    return product.rows.tile * row <= max(first, second // 8)


def _pays(product: _Product, kernel: Kernel, machine: Machine) -> bool:
    """Whether the epilogue is longer than a tile and dear: it streams memory, or has elementary functions.

    What it streams are buffers that vary with rows and columns. They count from `STREAMED_BYTES` for each
    element on (an update by Adam moves 24, one with momentum 16), if together they are larger than the
    second-level cache or of unknown size.
    """
    lanes = machine.vector_bytes // min(var.dtype.itemsize for var in product.sums)
    if product.width <= product.columns.tile * lanes:
        return False
    if is_transcendental(product.epilogue):
        return True
    buffers = {buffer.name: buffer for buffer in kernel.buffers}
    axes = {product.rows.axis, product.columns.axis}
    streamed = [
        (name, access)
        for name, access in _accesses(product.epilogue)
        if axes <= {axis for affine in access[0] for axis in affine.names}
    ]
    sizes = [buffers[name].type.nbytes for name in dict.fromkeys(name for name, _ in streamed)]
    known = sum(size for size in sizes if isinstance(size, int))
    large = known > machine.cache_bytes[1] or not all(isinstance(size, int) for size in sizes)
    moved = sum(buffers[name].type.dtype.itemsize for name, _ in set(streamed))
    return large and moved >= STREAMED_BYTES


def is_transcendental(body: Body) -> bool:
    """Whether a body computes an elementary function of floats."""
    return any(
        isinstance(part, Prim) and part.name in TRANSCENDENTALS and part.dtype.is_float
        for stmt in walk_stmts(body)
        for expr in exprs_of(stmt)
        for part in walk_expr(expr)
    )


def _accesses(body: Body) -> Iterator[tuple[str, tuple[Index, str]]]:
    """What a body reads and writes: (buffer, (index, how))."""
    for stmt in walk_stmts(body):
        if isinstance(stmt, Store):
            yield stmt.target, (stmt.index, "write")
            if stmt.combine:
                yield stmt.target, (stmt.index, "read")
        for expr in exprs_of(stmt):
            for part in walk_expr(expr):
                if isinstance(part, Load):
                    yield part.source, (part.index, "read")


# ---------------------------------------------------------------------------------------- the rewrite


def _apart(product: _Product, kernel: Kernel) -> For:
    """The loops with the product first and then the epilogue, for each tile of rows."""
    columns, panel = product.columns, product.panel
    place = Affine.of(columns.axis)
    if panel is not None:
        place = place + Affine.of(panel.axis).scale(columns.extent)
    names = _fresh_names("row", kernel)
    arrays = [(var, next(names)) for var in product.sums]
    gathered = tuple(Store(name, (place,), Ref(var.name, var.dtype)) for var, name in arrays)
    taken = tuple(Let(var.name, Load(name, (place,), var.dtype)) for var, name in arrays)
    tile: Stmt = replace(columns, body=(*product.multiplication, *gathered))
    if panel is not None:
        tile = replace(panel, body=(tile,))
    nest = replace(
        product.rows,
        body=(
            *(stmt for stmt in product.rows.body if isinstance(stmt, Let)),
            *(Temp(name, var.dtype, (product.width,)) for var, name in arrays),
            tile,
            _over_columns(product, kernel, (*taken, *product.epilogue)),
        ),
    )
    for loop in reversed(product.outer):
        if loop is not panel:
            lets = (stmt for stmt in loop.body if isinstance(stmt, Let))
            nest = replace(loop, body=(*lets, nest))
    return nest


def _fresh_names(prefix: str, kernel: Kernel) -> Iterator[str]:
    """row1, row2, ... as far as the kernel has no such name."""
    taken = {buffer.name for buffer in kernel.buffers}
    for stmt in walk_stmts(kernel.body):
        taken.add(stmt.axis if isinstance(stmt, For) else getattr(stmt, "name", ""))
    number = 0
    while True:
        number += 1
        if f"{prefix}{number}" not in taken:
            yield f"{prefix}{number}"


def _over_columns(product: _Product, kernel: Kernel, epilogue: Body) -> For:
    """The epilogue's loop over all columns; over panels and columns, if something is stored in panels."""
    columns, panel = product.columns, product.panel
    shared = {stmt.name for stmt in product.rows.body if isinstance(stmt, Let)}
    apart = not shared & names_used(epilogue)
    tile = VECTORS if apart else 1 if is_transcendental(epilogue) else columns.tile
    if panel is None:
        return replace(columns, body=epilogue, tile=tile, apart=apart)
    width = columns.extent
    if any(a.coefficient(panel.axis) != a.coefficient(columns.axis) * width for a in _affines(epilogue)):
        return replace(panel, body=(replace(columns, body=epilogue),), apart=apart)
    axis = next(_fresh_names(f"{columns.axis}e", kernel))
    whole = {panel.axis: Affine(), columns.axis: Affine.of(axis)}

    def along(index: Index) -> Index:
        return tuple(affine.substitute(whole) for affine in index)

    def expr_rule(expr: Expr) -> Expr | None:
        if isinstance(expr, Load):
            return replace(expr, index=along(expr.index))
        return replace(expr, affine=expr.affine.substitute(whole)) if isinstance(expr, IndexValue) else None

    def stmt_rule(stmt: Stmt) -> Body | None:
        return (replace(stmt, index=along(stmt.index)),) if isinstance(stmt, Store) else None

    body = map_stmts(epilogue, expr_rule, stmt_rule)
    return For(axis, product.width, body, tile=tile, vector=True, apart=apart)
