"""How dear computations are, in rough picoseconds on one core: what schedules weigh by."""

from __future__ import annotations

from graphc.ir.clusters import EXPENSIVE
from graphc.ir.kernels import Body, Expr, For, Load, Prim, exprs_of, walk_expr
from graphc.ir.types import Extent

_PICOSECONDS = {"exp": 800, "log": 900, "tanh": 1100, "sigmoid": 1100, "pow": 8000, "sin": 2500, "cos": 2500}


def body_cost(body: Body, lanes: int, counted: bool) -> Extent:
    """Picoseconds of one iteration of the chunk axis; what lies outside the chunked loop is not counted
    (`counted`: whether the body lies inside, or there is no such loop)."""
    total: Extent = 0
    for stmt in body:
        if isinstance(stmt, For):
            one = body_cost(stmt.body, lanes, counted or stmt.chunked)
            total = total + (one if stmt.chunked else one * stmt.extent)
        elif counted:
            work = sum(expression_cost(e) for e in exprs_of(stmt)) + 100
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
    return sum(
        sum(expression_cost(e) for e in exprs_of(stmt)) + 100 for stmt in body if not isinstance(stmt, For)
    )
