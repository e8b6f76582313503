"""Collapses nested loops that run over memory as one."""

from __future__ import annotations

from dataclasses import replace

from graphc.ir.kernels import (
    Affine,
    Buffer,
    Check,
    Expr,
    For,
    Index,
    IndexValue,
    Kernel,
    Load,
    Stmt,
    Store,
    exprs_of,
    map_stmts,
    walk_expr,
    walk_stmts,
)
from graphc.ir.types import TensorType


def collapse(kernel: Kernel) -> Kernel:
    """`for i: for j: a[i, j]` becomes `for i: a[i]` over a view of a with fewer axes, wherever it can.

    Needs nothing; guarantees the same stores in the same order. Two loops collapse if one holds nothing
    but the other and every access uses their axes next to each other, in order and whole, or not at all.
    """
    while True:
        pair = _collapsible(kernel)
        if pair is None:
            return kernel
        kernel = _collapsed(kernel, *pair)


def _nested_pairs(kernel: Kernel) -> list[tuple[For, For]]:
    pairs = []
    for stmt in walk_stmts(kernel.body):
        if isinstance(stmt, For) and len(stmt.body) == 1 and isinstance(stmt.body[0], For):
            pairs.append((stmt, stmt.body[0]))
    return pairs


def _collapsible(kernel: Kernel) -> tuple[For, For] | None:
    for outer, inner in _nested_pairs(kernel):
        if inner.chunked or not _loops_agree(kernel, outer, inner):
            continue
        if _axes_as_values(kernel) & {outer.axis, inner.axis}:
            continue
        if all(_access_agrees(kernel, name, index, outer, inner) for name, index in _accesses(kernel)):
            return outer, inner
    return None


def _loops_agree(kernel: Kernel, outer: For, inner: For) -> bool:
    """Whether both axes occur in this kernel only as this very pair of loops."""
    loops = [s for s in walk_stmts(kernel.body) if isinstance(s, For)]
    outers = [s for s in loops if s.axis == outer.axis]
    inners = [s for s in loops if s.axis == inner.axis]
    whole = all(len(s.body) == 1 and isinstance(s.body[0], For) for s in outers)
    paired = whole and all(isinstance(s.body[0], For) and s.body[0].axis == inner.axis for s in outers)
    return paired and len(inners) == len(outers)


def _accesses(kernel: Kernel) -> list[tuple[str, Index]]:
    result: list[tuple[str, Index]] = []
    for stmt in walk_stmts(kernel.body):
        if isinstance(stmt, Store):
            result.append((stmt.target, stmt.index))
        for expr in exprs_of(stmt):
            result += [(part.source, part.index) for part in walk_expr(expr) if isinstance(part, Load)]
    return result


def _axes_as_values(kernel: Kernel) -> set[str]:
    """Axes whose value is computed with, not only indexed with."""
    names: set[str] = set()
    for stmt in walk_stmts(kernel.body):
        if isinstance(stmt, Check):
            names |= stmt.position.names
        for expr in exprs_of(stmt):
            for part in walk_expr(expr):
                if isinstance(part, IndexValue):
                    names |= part.affine.names
    return names


def _position(index: Index, outer: For, inner: For) -> int | None:
    """Where an index is exactly [..., outer, inner, ...]; -1 if it uses neither; None otherwise."""
    used = {name for affine in index for name in affine.names}
    if not used & {outer.axis, inner.axis}:
        return -1
    for position in range(len(index) - 1):
        if index[position] == Affine.of(outer.axis) and index[position + 1] == Affine.of(inner.axis):
            rest = {n for p, a in enumerate(index) if p not in (position, position + 1) for n in a.names}
            return None if rest & {outer.axis, inner.axis} else position
    return None


def _access_agrees(kernel: Kernel, name: str, index: Index, outer: For, inner: For) -> bool:
    position = _position(index, outer, inner)
    if position is None:
        return False
    if position == -1:
        return True
    buffer = next((b for b in kernel.buffers if b.name == name), None)
    if buffer is None:  # a local array
        return False
    if not _always(kernel, buffer, position, outer, inner):
        return False
    return buffer.type.shape[position] == outer.extent and buffer.type.shape[position + 1] == inner.extent


def _always(kernel: Kernel, buffer: Buffer, position: int, outer: For, inner: For) -> bool:
    """Whether every access of a buffer has the pair at the same position, so that one view serves all."""
    return all(
        _position(index, outer, inner) == position for name, index in _accesses(kernel) if name == buffer.name
    )


def _collapsed(kernel: Kernel, outer: For, inner: For) -> Kernel:
    axis = outer.axis
    extent = outer.extent * inner.extent
    views: dict[str, Buffer] = {}
    for buffer in kernel.buffers:
        for name, index in _accesses(kernel):
            position = _position(index, outer, inner)
            if name == buffer.name and position is not None and position >= 0:
                shape = buffer.type.shape
                merged = (*shape[:position], shape[position] * shape[position + 1], *shape[position + 2 :])
                views[buffer.name] = replace(buffer, type=TensorType(buffer.type.dtype, merged))

    def merged_index(index: Index) -> Index:
        position = _position(index, outer, inner)
        if position is None or position < 0:
            return index
        return (*index[:position], Affine.of(axis), *index[position + 2 :])

    def expr_rule(expr: Expr) -> Expr | None:
        return replace(expr, index=merged_index(expr.index)) if isinstance(expr, Load) else None

    def stmt_rule(stmt: Stmt) -> tuple[Stmt, ...] | None:
        if isinstance(stmt, Store):
            return (replace(stmt, index=merged_index(stmt.index)),)
        if isinstance(stmt, For) and stmt.axis == outer.axis:
            (only,) = stmt.body
            assert isinstance(only, For)
            return (replace(stmt, extent=extent, body=only.body),)
        return None

    is_chunk = kernel.chunk_axis == outer.axis
    return replace(
        kernel,
        buffers=tuple(views.get(b.name, b) for b in kernel.buffers),
        body=map_stmts(kernel.body, expr_rule, stmt_rule),
        chunk_extent=extent if is_chunk else kernel.chunk_extent,
    )
