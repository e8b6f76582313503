"""How many vectors of a loop run together, outside of contractions.

Several are needed where a loop waits for the latency of its own sums; too many spill registers. So:

- as many as registers allow, by an estimate of what is live at once, at most 4, or 8 for a loop that only
  reduces (a chain of additions or extrema is all that it waits for);
- four where a polynomial (exp, log, ...) is evaluated, whatever else is live: they run through it in step,
  and its long chain of latencies costs more than a few spills around it;
- of a loop with a static extent, the number near that which leaves the fewest vectors over.
"""

from __future__ import annotations

from graphc.ir.kernels import (
    Assign,
    Body,
    Combine,
    Const,
    Expr,
    For,
    Let,
    Load,
    Prim,
    Ref,
    Var,
    children,
    exprs_of,
    walk_expr,
    walk_stmts,
)
from graphc.ir.work import TRANSCENDENTALS

MOST = 4
MOST_REDUCING = 8


def loop_vectors(loop: For, lanes: int, registers: int) -> int:
    """The number of vectors of `lanes` iterations that a vectorised loop runs together."""
    exprs = [part for stmt in walk_stmts(loop.body) for expr in exprs_of(stmt) for part in walk_expr(expr)]
    if any(isinstance(part, Prim) and part.name in TRANSCENDENTALS for part in exprs):
        most = MOST
    else:
        only_reduces = all(isinstance(stmt, (Let, Combine)) for stmt in loop.body)
        free = registers - _shared_registers(loop.body)
        most = max(min(free // _own_registers(loop.body), MOST_REDUCING if only_reduces else MOST), 1)
    return _fitted(loop, lanes, most)


def _fitted(loop: For, lanes: int, most: int) -> int:
    """At most `most`; a power of two where extents are not known, as chunks are cut in multiples of it."""
    if loop.chunked or not isinstance(loop.extent, int):
        most = 1 << (most.bit_length() - 1)
    if not isinstance(loop.extent, int):
        return most
    whole = max(-(-loop.extent // lanes), 1)
    if loop.chunked or whole <= most:
        return min(most, whole)
    return min(range(most, most // 2, -1), key=lambda vectors: whole % vectors)


# ------------------------------------------------------------------------------------------ registers


def _shared_registers(body: Body) -> int:
    """Constants, and values from outside the loop: all vectors share them."""
    own = {stmt.name for stmt in walk_stmts(body) if isinstance(stmt, (Let, Var))}
    own |= {stmt.name for stmt in walk_stmts(body) if isinstance(stmt, (Combine, Assign))}
    found: set[Expr] = set()
    for stmt in walk_stmts(body):
        for expr in exprs_of(stmt):
            for part in walk_expr(expr):
                if isinstance(part, Const) or (isinstance(part, Ref) and part.name not in own):
                    found.add(part)
    return len(found)


def _own_registers(body: Body) -> int:
    """What each vector needs: its accumulators, and the most values that are live at once."""
    stmts = [stmt for stmt in walk_stmts(body) if not isinstance(stmt, For)]
    values = {stmt.name for stmt in stmts if isinstance(stmt, Let)}
    accumulators = {stmt.name for stmt in stmts if isinstance(stmt, (Combine, Assign))}
    last: dict[str, int] = {}
    for number, stmt in enumerate(stmts):
        for expr in exprs_of(stmt):
            last.update((p.name, number) for p in walk_expr(expr) if isinstance(p, Ref) and p.name in values)
    live: set[str] = set()
    peak = 1
    for number, stmt in enumerate(stmts):
        kept = {name for name in live if last.get(name, -1) > number}
        needed = max((_temporaries(expr) for expr in exprs_of(stmt)), default=0)
        peak = max(peak, len(kept) + max(needed, 1), len(live))
        live = kept | ({stmt.name} if isinstance(stmt, Let) else set())
    return peak + len(accumulators)


def _temporaries(expr: Expr) -> int:
    """Registers that evaluating an expression takes beside the values it refers to (Sethi and Ullman); an
    operand in memory takes none."""
    if isinstance(expr, (Ref, Const)):
        return 0
    needs = sorted(
        (_temporaries(child) for child in children(expr) if not isinstance(child, Load)), reverse=True
    )
    return max([1, *(need + held for held, need in enumerate(needs))])
