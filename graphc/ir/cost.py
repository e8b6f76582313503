"""How dear computations are, in rough picoseconds on one core: what schedules weigh by."""

from __future__ import annotations

from graphc.ir.clusters import EXPENSIVE
from graphc.ir.kernels import Body, Combine, Expr, For, Kernel, Load, Prim, Stmt, exprs_of, walk_expr
from graphc.ir.types import Extent

MULTIPLY_ADD = 160
"""Of a sum of products: in a register tile, operands are loaded once for many of them."""
PER_BYTE = 20
"""Of memory that streams through a core: 50 GB/s."""
_PICOSECONDS = {"exp": 800, "log": 900, "tanh": 1100, "sigmoid": 1100, "pow": 8000, "sin": 2500, "cos": 2500}


def kernel_cost(kernel: Kernel, lanes: int) -> Extent:
    """Picoseconds of one iteration of the chunk axis: what it computes, and the memory that is its own."""
    cost = body_cost(kernel.body, lanes, counted=not kernel.chunk_axis)
    if not kernel.chunk_axis:
        return cost
    for buffer in kernel.buffers:
        shape = list(buffer.type.shape)
        if kernel.chunk_extent in shape:
            shape.remove(kernel.chunk_extent)
            moved: Extent = buffer.type.dtype.itemsize * (2 if buffer.access == "inout" else 1)
            for extent in shape:
                moved = moved * extent
            cost = cost + moved * PER_BYTE
    return cost


def body_cost(body: Body, lanes: int, counted: bool) -> Extent:
    """Picoseconds of one iteration of the chunk axis; what lies outside the chunked loop is not counted
    (`counted`: whether the body lies inside, or there is no such loop)."""
    total: Extent = 0
    for stmt in body:
        if isinstance(stmt, For):
            one = body_cost(stmt.body, lanes, counted or stmt.chunked)
            total = total + (one if stmt.chunked else one * stmt.extent)
        elif counted:
            work = MULTIPLY_ADD if _multiplies_and_adds(stmt) else _statement_cost(stmt)
            total = total + max(work // lanes, 1)
    return total


def expression_cost(expr: Expr) -> int:
    """Picoseconds of one evaluation, scalar."""
    cost = 0
    for part in walk_expr(expr):
        if isinstance(part, Prim):
            cost += _PICOSECONDS.get(part.name, 2000 if part.name in EXPENSIVE else 100) * (
                8 if part.name in _PICOSECONDS else 1
            )
        elif isinstance(part, Load):
            cost += 150
    return cost


def statements_cost(body: Body) -> int:
    """Picoseconds of the statements that stand directly in a body, once, scalar."""
    return sum(_statement_cost(stmt) for stmt in body if not isinstance(stmt, For))


def _statement_cost(stmt: Stmt) -> int:
    return sum(expression_cost(e) for e in exprs_of(stmt)) + 100


def _multiplies_and_adds(stmt: Stmt) -> bool:
    """Whether a statement adds up products of two elements, as contractions do."""
    if not isinstance(stmt, Combine) or stmt.combine != "sum" or not isinstance(stmt.expr, Prim):
        return False
    return stmt.expr.name == "mul" and all(isinstance(factor, Load) for factor in stmt.expr.operands)
