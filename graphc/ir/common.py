"""Common subexpressions of kernels: what several statements of one iteration compute is computed once, and
what none of them uses is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

from graphc.ir.clusters import EXPENSIVE
from graphc.ir.kernels import (
    Body,
    Expr,
    For,
    Kernel,
    KernelProgram,
    Let,
    Load,
    Prim,
    Ref,
    Stmt,
    Var,
    children,
    exprs_of,
    map_stmts,
    names_used,
    walk_expr,
    walk_stmts,
)


def share_expressions(program: KernelProgram) -> KernelProgram:
    """Names loads and dear operations that occur more than once among the statements of one loop body, and
    drops Lets that nothing uses.

    Needs nothing; guarantees the same values. Only what cannot change in between is shared: loads of
    buffers that the kernel does not write, and operations on them and on Lets.
    """
    return replace(program, kernels=tuple(_shared(_without_unused(kernel)) for kernel in program.kernels))


def _without_unused(kernel: Kernel) -> Kernel:
    """Lowering names what reads state before it is overwritten, also where its only user came before that."""
    body = kernel.body
    while True:
        used = names_used(body)
        unused = {stmt.name for stmt in walk_stmts(body) if isinstance(stmt, Let) and stmt.name not in used}
        if not unused:
            return kernel if body is kernel.body else replace(kernel, body=body)
        body = map_stmts(body, stmt_rule=partial(_unless_in, unused))


def _unless_in(unused: set[str], stmt: Stmt) -> Body | None:
    return () if isinstance(stmt, Let) and stmt.name in unused else None


def _shared(kernel: Kernel) -> Kernel:
    constant = {buffer.name for buffer in kernel.buffers if buffer.access == "in"}
    mutable = {stmt.name for stmt in walk_stmts(kernel.body) if isinstance(stmt, Var)}
    names = _Names(kernel)

    def visit(body: Body) -> Body:
        inner = tuple(replace(s, body=visit(s.body)) if isinstance(s, For) else s for s in body)
        return _share_body(inner, constant, mutable, names)

    return replace(kernel, body=visit(kernel.body))


class _Names:
    """Fresh names for a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._taken = {getattr(stmt, "name", "") for stmt in walk_stmts(kernel.body)}
        self._taken |= {buffer.name for buffer in kernel.buffers}
        self._number = 0

    def fresh(self) -> str:
        while True:
            self._number += 1
            name = f"s{self._number}"
            if name not in self._taken:
                self._taken.add(name)
                return name


def _share_body(body: Body, constant: set[str], mutable: set[str], names: _Names) -> Body:
    while True:
        repeated = _repeated(body, constant, mutable)
        if repeated is None:
            return body
        body = _named(body, repeated, names.fresh())


def _is_fixed(expr: Expr, constant: set[str], mutable: set[str]) -> bool:
    """Whether an expression has one value throughout an iteration."""
    if isinstance(expr, Load):
        gathers = any(name in mutable for affine in expr.index for name in affine.names)
        if expr.source not in constant or gathers:
            return False
    if isinstance(expr, Ref) and expr.name in mutable:
        return False
    return all(_is_fixed(child, constant, mutable) for child in children(expr))


def _repeated(body: Body, constant: set[str], mutable: set[str]) -> Expr | None:
    """The largest expression worth sharing that occurs more than once."""
    counts: Counter[Expr] = Counter()
    for stmt in body:
        for expr in exprs_of(stmt):
            for part in walk_expr(expr):
                if isinstance(part, Load) or (isinstance(part, Prim) and part.name in EXPENSIVE):
                    counts[part] += 1
    found = [e for e, count in counts.items() if count > 1 and _is_fixed(e, constant, mutable)]
    return max(found, key=_size) if found else None


def _size(expr: Expr) -> int:
    return sum(1 for _ in walk_expr(expr))


def _named(body: Body, expr: Expr, name: str) -> Body:
    """Puts a Let before the first statement that uses the expression, and its name in place of all uses."""
    result: list[Stmt] = []
    placed = False
    for stmt in body:
        uses = any(part == expr for own in exprs_of(stmt) for part in walk_expr(own))
        if uses and not placed:
            result.append(Let(name, expr))
            placed = True
        if uses:
            (stmt,) = map_stmts((stmt,), lambda part: Ref(name, expr.dtype) if part == expr else None)
        result.append(stmt)
    return tuple(result)
