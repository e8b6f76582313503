"""Extents and their values: which dims the shapes of feeds bind, and what has to hold of them then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphc.errors import DeclarationError, FeedError, ShapeError
from graphc.ir.graph import Graph, Node
from graphc.ir.ops.base import Array
from graphc.ir.types import Extent, Guard, SymbolicExtent, TensorType, collect_guards, dims_of, evaluate

DECLARED_AT = " (declared at "
"""What stands between an error and the lines that it names."""


def bind_dims(graph_inputs: Mapping[str, Node], feeds: Mapping[str, Any]) -> dict[str, int]:
    """The values of dims that feeds of these shapes imply.

    A shape entry that is a bare dim binds it; every other extent is then checked. Raises FeedError for a
    missing feed, a wrong rank or extent (naming the input, what was expected and what was given), two
    inputs that bind one dim differently, or a dim that no shape entry binds.
    """
    bound: dict[str, tuple[int, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, node in graph_inputs.items():
        if name not in feeds:
            raise FeedError(f"input {name} ({node.types[0]}) was not fed")
        shapes[name] = given = as_array(name, feeds[name]).shape
        declared = node.types[0].shape
        if len(given) != len(declared):
            raise _misfit(name, node.types[0], given)
        for extent, value in zip(declared, given, strict=True):
            if isinstance(extent, SymbolicExtent) and {str(extent)} == dims_of(extent):
                known, binder = bound.setdefault(str(extent), (value, name))
                if known != value:
                    raise FeedError(f"dim {extent} is {known} in input {binder} but {value} in input {name}")
    bindings = {name: value for name, (value, _) in bound.items()}
    for name, node in graph_inputs.items():
        for extent, value in zip(node.types[0].shape, shapes[name], strict=True):
            unbound = dims_of(extent) - bindings.keys()
            if unbound:
                raise FeedError(f"input {name}: dim {min(unbound)} of {extent} is bound by no input")
            if evaluate(extent, bindings) != value:
                raise _misfit(name, node.types[0], shapes[name], bindings)
    return bindings


def as_array(name: str, feed: Any) -> Array:
    """A feed as numpy takes it. FeedError for a ragged list."""
    try:
        return np.asarray(feed)
    except ValueError as error:
        raise FeedError(f"input {name}: {error}") from None


def _misfit(
    name: str, declared: TensorType, given: tuple[int, ...], bindings: Mapping[str, int] | None = None
) -> FeedError:
    where = ", ".join(f"{k} = {v}" for k, v in sorted((bindings or {}).items()))
    expected = f"[{', '.join(map(str, declared.shape))}]" + (f" with {where}" if where else "")
    return FeedError(f"input {name}: expected shape {expected}, got {list(given)}")


def declared_at(graph: Graph, node: Node) -> str:
    """ " (declared at file.py:12)", as errors end, where the user's line is known; else ""."""
    sites = " and ".join(sorted(graph.origin(node).sites))
    return f"{DECLARED_AT}{sites})" if sites else ""


def require_bound_dims(graph: Graph) -> None:
    """Raises DeclarationError for a dim that no feed can bind: no input has an axis of just that extent."""
    bound: set[str] = set()
    nodes = graph.nodes()
    for node in nodes:
        names = [(str(e), dims_of(e)) for e in node.types[0].shape] if node.name == "input" else []
        bound |= {name for name, dims in names if dims == {name}}
    for node in nodes:
        extents = [extent for type in node.types for extent in type.shape]
        extents += [node.attrs["extent"]] if node.name == "extent" else []
        for extent in extents:
            if not isinstance(extent, int) and not dims_of(extent) <= bound:
                name = min(dims_of(extent) - bound)
                what = f"{node.name} {node.types[0]}{declared_at(graph, node)}"
                raise DeclarationError(f"no input has an axis of just {name}, so no feed binds it for {what}")


def guards_of(graph: Graph) -> tuple[Guard, ...]:
    """The equalities of extents that the graph's type inference assumed, with the lines that ask for them."""
    result: dict[Guard, None] = {}
    with collect_guards() as found:
        for node in graph.nodes():
            node.op.infer([operand.type for operand in node.inputs], node.attrs)
            for left, right, context in found:
                result[left, right, context + declared_at(graph, node)] = None
            found.clear()
    return tuple(result)


def check_guards(guards: Iterable[Guard], bindings: Mapping[str, int]) -> None:
    """Raises ShapeError for the first assumed equality of extents that the bindings refute."""
    for left, right, context in guards:
        a, b = evaluate(left, bindings), evaluate(right, bindings)
        if a != b:
            raise ShapeError(f"{context}: extents {left} and {right} differ, they are {a} and {b}")


def symbolic_extents(graph: Graph) -> tuple[Extent, ...]:
    """Every extent of the graph's shapes that depends on a dim; none may be negative."""
    found: dict[Extent, None] = {}
    for node in graph.nodes():
        for type in node.types:
            found.update((extent, None) for extent in type.shape if dims_of(extent))
    return tuple(found)
