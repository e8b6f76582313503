"""Small pieces of kernel expressions: indices through views, guards, shared parts."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping

from graphc.errors import LoweringError
from graphc.ir.access import through_view
from graphc.ir.graph import Node
from graphc.ir.kernels import (
    Affine,
    Cast,
    Const,
    Expr,
    ExtentValue,
    Index,
    IndexValue,
    Let,
    Load,
    Prim,
    Ref,
    Stmt,
    children,
    map_expr,
    prim,
)
from graphc.ir.types import Extent, bool_, int64


def known_extent(extent: Extent) -> int:
    """An extent's value, or a large one where it is symbolic."""
    return extent if isinstance(extent, int) else 2**30


def view_index(node: Node, index: Index) -> Index:
    """The index of a view's operand, from that of its result."""
    if node.name == "slice":
        starts, steps = node.attrs["starts"], node.attrs["steps"]
        return tuple(a.scale(step) + start for a, start, step in zip(index, starts, steps, strict=True))
    found = through_view(node, index, Affine())
    if found is None:
        raise LoweringError(f"{node!r} is not an affine view")
    return found


def guarded(value: Expr, inside: Expr, fill: Const) -> Expr:
    """`value` where a condition holds, else a constant; loads are guarded, so that memory is not touched."""

    def guard(part: Expr) -> Expr | None:
        if not isinstance(part, Load):
            return None
        both = inside if part.guard is None else prim("and", inside, part.guard)
        return Load(part.source, part.index, part.dtype, both, part.fill or Const(0, part.dtype))

    if isinstance(value, Load) and value.guard is None:
        return Load(value.source, value.index, value.dtype, inside, fill)
    return prim("select", inside, map_expr(value, guard), fill)


def within(affine: Affine, low: Extent, high: Extent) -> Expr:
    """low <= index < high."""
    position = IndexValue(affine)
    above = prim("ge", position, _integer(low))
    return prim("and", above, prim("lt", position, _integer(high)))


def _integer(extent: Extent) -> Expr:
    return Const(extent, int64) if isinstance(extent, int) else ExtentValue(extent)


def conjunction(conditions: list[Expr]) -> Expr:
    result: Expr = Const(True, bool_)
    for number, condition in enumerate(conditions):
        result = condition if number == 0 else prim("and", result, condition)
    return result


def name_shared(expr: Expr, fresh: Callable[[], str], where: list[Stmt], settled: dict[int, Expr]) -> Expr:
    """Names every part of an expression that occurs in it more than once (by identity).

    `settled` are the results so far, by their ids: within them nothing is repeated.
    """
    if id(expr) in settled:
        return expr
    counts: dict[int, int] = {}
    for part in _distinct(expr, settled):
        for child in children(part):
            counts[id(child)] = counts.get(id(child), 0) + 1
    if any(count > 1 for count in counts.values()):
        expr = _with_names(expr, counts, fresh, where, settled)
    settled[id(expr)] = expr
    return expr


def _with_names(
    expr: Expr,
    counts: Mapping[int, int],
    fresh: Callable[[], str],
    where: list[Stmt],
    settled: Container[int],
) -> Expr:
    """The expression with a name in place of every part, not within settled ones, that is counted twice."""
    done: dict[int, Expr] = {}

    def rebuild(part: Expr) -> Expr:
        if id(part) in done:
            return done[id(part)]
        replaced = part
        if id(part) not in settled:
            mapping = {id(child): rebuild(child) for child in children(part)}
            if isinstance(part, Prim):
                replaced = Prim(part.name, tuple(mapping[id(o)] for o in part.operands), part.dtype)
            elif isinstance(part, Cast):
                replaced = Cast(mapping[id(part.operand)], part.dtype)
            elif isinstance(part, Load) and part.guard is not None:
                replaced = Load(part.source, part.index, part.dtype, mapping[id(part.guard)], part.fill)
        if counts.get(id(part), 0) > 1 and isinstance(replaced, (Prim, Cast, Load, IndexValue)):
            name = fresh()
            where.append(Let(name, replaced))
            replaced = Ref(name, replaced.dtype)
        done[id(part)] = replaced
        return replaced

    return rebuild(expr)


def _distinct(expr: Expr, settled: Container[int]) -> Iterator[Expr]:
    """The parts of an expression, each once, without those of settled parts."""
    seen: set[int] = set()
    stack = [expr]
    while stack:
        part = stack.pop()
        if id(part) not in seen and id(part) not in settled:
            seen.add(id(part))
            yield part
            stack.extend(children(part))
