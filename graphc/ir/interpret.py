"""The graph interpreter: runs every node by its op's numpy reference, in topological order.

It is the `numpy` backend and, in float64, the oracle that every other way to run a network is measured
against. Equalities of extents that the compiler could only assume are checked here node by node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, Literal

import numpy as np

from graphc.errors import FeedError, IndexRangeError, ShapeError, VerifyError
from graphc.ir.binding import as_array, bind_dims, check_guards, declared_at
from graphc.ir.graph import Graph, Node, Operand, Variable, topological
from graphc.ir.ops.base import Array, ArraySpec
from graphc.ir.types import (
    DTYPES,
    DType,
    SymbolicExtent,
    TensorType,
    collect_guards,
    evaluate,
)

Precision = Literal["declared", "float64"]


def interpret(
    graph: Graph,
    feeds: Mapping[str, Any],
    *,
    state: Mapping[Variable, Array] | None = None,
    bindings: Mapping[str, int] | None = None,
    precision: Precision = "declared",
) -> tuple[dict[str, Array], dict[Variable, Array]]:
    """Runs one step; returns the outputs by name and the new values of the updated state.

    Nothing is changed: outputs and new values are fresh arrays. `state` gives the values that variables
    have at the start (default: what they hold), `bindings` those of dims (default: bound by the feeds).
    With precision "float64" every float value is computed in float64, from feeds and state as given
    (pass them rounded to the declared dtypes to see what a native run sees).
    Feeds of unknown names are ignored. Raises FeedError for feeds that are missing or do not fit, ShapeError
    where extents that must be equal are not, IndexRangeError for an index out of range.
    """
    roots = frozenset(graph.roots)
    values: dict[Operand, Array] = {}
    declared = partial(declared_at, graph)
    for operand, value in _run(graph.nodes(), feeds, state, bindings, precision, roots, declared):
        if operand in roots:
            values[operand] = value
    outputs = {name: values[operand].copy() for name, operand in graph.outputs.items()}
    return outputs, {variable: values[operand].copy() for variable, operand in graph.updates.items()}


def evaluate_nodes(
    roots: Sequence[Operand],
    feeds: Mapping[str, Any],
    *,
    state: Mapping[Variable, Array] | None = None,
    bindings: Mapping[str, int] | None = None,
    precision: Precision = "declared",
) -> dict[Operand, Array]:
    """The values of every output of every node that the roots depend on. As `interpret`, but the arrays
    may share memory with each other, with feeds and with state: read them only."""
    order = topological(roots)
    everything = frozenset(Operand(node, index) for node in order for index in range(len(node.types)))
    return dict(_run(order, feeds, state, bindings, precision, everything))


# ------------------------------------------------------------------------------------------- evaluation


def _run(
    order: Sequence[Node],
    feeds: Mapping[str, Any],
    state: Mapping[Variable, Array] | None,
    bindings: Mapping[str, int] | None,
    precision: Precision,
    keep: AbstractSet[Operand],
    declared: Callable[[Node], str] = lambda node: "",
) -> Iterator[tuple[Operand, Array]]:
    """Yields each value as it is computed; those not in `keep` are dropped after their last use.
    `declared` says of a node where it was declared."""
    if bindings is None:
        bindings = bind_dims({n.attrs["name"]: n for n in order if n.name == "input"}, feeds)
    widen = _to_float64 if precision == "float64" else _as_declared
    uses = Counter(operand for node in order for operand in node.inputs)
    values: dict[Operand, Array] = {}
    for node in order:
        arrays = [values[operand] for operand in node.inputs]
        try:
            results = _evaluate(node, arrays, feeds, state or {}, bindings, widen)
        except IndexRangeError as error:
            raise IndexRangeError(f"{error}{declared(node)}") from None
        for index, value in enumerate(results):
            operand = Operand(node, index)
            values[operand] = value
            yield operand, value
        for operand in node.inputs:
            uses[operand] -= 1
            if not uses[operand] and operand not in keep:
                values.pop(operand, None)


def _to_float64(dtype: DType) -> np.dtype[Any]:
    return np.dtype(np.float64) if dtype.is_float else dtype.numpy


def _as_declared(dtype: DType) -> np.dtype[Any]:
    return dtype.numpy


def _evaluate(
    node: Node,
    arrays: Sequence[Array],
    feeds: Mapping[str, Any],
    state: Mapping[Variable, Array],
    bindings: Mapping[str, int],
    widen: Callable[[DType], np.dtype[Any]],
) -> Sequence[Array]:
    specs = [ArraySpec(widen(t.dtype), tuple(evaluate(e, bindings) for e in t.shape)) for t in node.types]
    _check_extents(node, specs, bindings)
    results: Sequence[Array]
    if node.name == "input":
        results = [_feed(node, feeds, specs[0])]
    elif node.name == "parameter":
        stored = state.get(node.variable)
        array = node.variable.array if stored is None else np.asarray(stored)
        results = [array.astype(specs[0].dtype, copy=False)]
    elif node.name == "extent":
        results = [np.asarray(evaluate(node.attrs["extent"], bindings), dtype=specs[0].dtype)]
    else:
        attrs = {name: bind_attribute(value, bindings) for name, value in node.attrs.items()}
        if "dtype" in attrs:  # a cast to float32 widens like everything else
            attrs["dtype"] = DTYPES[widen(attrs["dtype"]).name]
        with np.errstate(all="ignore"):
            results = [np.asarray(result) for result in node.op.reference(arrays, attrs, specs)]
    for result, spec in zip(results, specs, strict=True):
        if result.dtype != spec.dtype or result.shape != spec.shape:
            raise VerifyError(
                f"{node!r} should be {spec.dtype}{list(spec.shape)}, is {result.dtype}{list(result.shape)}"
            )
    return results


def _check_extents(node: Node, specs: Sequence[ArraySpec], bindings: Mapping[str, int]) -> None:
    """Checks the equalities that the node's type inference assumed. They are not inferred anew from the
    shapes at hand: there a dim that happens to be 1 would broadcast."""
    if any(extent < 0 for spec in specs for extent in spec.shape):
        raise ShapeError(f"{node!r}: an extent is negative, {[list(spec.shape) for spec in specs]}")
    with collect_guards() as guards:
        node.op.infer([operand.type for operand in node.inputs], node.attrs)
    check_guards(guards, bindings)


def bind_attribute(value: Any, bindings: Mapping[str, int]) -> Any:
    """An attribute with every symbolic extent in it replaced by its value."""
    if isinstance(value, SymbolicExtent):
        return evaluate(value, bindings)
    if isinstance(value, tuple):
        return tuple(bind_attribute(item, bindings) for item in value)
    if isinstance(value, TensorType):
        return TensorType(value.dtype, bind_attribute(value.shape, bindings))
    return value


def _feed(node: Node, feeds: Mapping[str, Any], spec: ArraySpec) -> Array:
    """The array fed for an input, converted as numpy would where that loses no kind of value."""
    name = node.attrs["name"]
    if name not in feeds:
        raise FeedError(f"input {name} ({node.types[0]}) was not fed")
    given = as_array(name, feeds[name])
    declared = node.types[0].dtype
    if given.shape != spec.shape:
        raise FeedError(f"input {name}: expected shape {list(spec.shape)}, got {list(given.shape)}")
    if given.dtype == object or not np.can_cast(given.dtype, declared.numpy, casting="same_kind"):
        raise FeedError(f"input {name}: {given.dtype} cannot be used as {declared}")
    if declared.is_integer and not np.array_equal(given.astype(declared.numpy), given):
        raise FeedError(f"input {name}: values do not fit {declared}")
    return given.astype(spec.dtype, copy=False)
