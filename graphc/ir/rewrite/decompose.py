"""Composite ops, and contractions that sum over nothing, become the primitive ops that they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, rebuild
from graphc.ir.ops.contract import split_spec
from graphc.ir.ops.reduce import spread
from graphc.ir.types import Shape, bool_, int64

_NOWHERE = int(np.iinfo(np.int64).max)


def decompose(graph: Graph) -> Graph:
    """Replaces every op that has a `decompose`, argmax, argmin and outer products, until none is left.

    Needs: a valid graph, after differentiation (composites have better gradients than their parts).
    Guarantees: no op of family "composite", no argmax or argmin, no contraction without an axis to sum over
    (a product of two elements for each of the result is a map, which fuses like one); parts that forward and backward passes
    have in common are one node, since they are interned.
    """
    while any(_is_composite(node) for node in graph.nodes()):
        graph = rebuild(graph, _decompose_node, "decompose")
    return graph


def _is_composite(node: Node) -> bool:
    return node.op.decompose is not None or node.name in ("argmax", "argmin") or _is_outer_product(node)


def _is_outer_product(node: Node) -> bool:
    if node.name != "contract":
        return False
    left, right, result = split_spec(node.attrs["spec"])
    return set(left) | set(right) == set(result)


def _decompose_node(
    builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]
) -> Sequence[Operand] | None:
    if not _is_composite(node):
        return None
    if node.name == "contract":
        left, right, result = split_spec(node.attrs["spec"])
        factors = [
            _spread_to(builder, operand, letters, result, node.types[0].shape)
            for operand, letters in zip(inputs, (left, right), strict=True)
        ]
        return [builder("mul", *factors)]
    if node.op.decompose is None:
        return [_position(builder, inputs[0], node.attrs["axis"], node.name)]
    # What is never read is unreachable from the rebuilt graph: this node serves as its own description.
    return node.op.decompose(builder, builder.node(node.op, inputs, node.attrs))


def _spread_to(b: GraphBuilder, operand: Operand, letters: str, result: str, shape: Shape) -> Operand:
    """An operand of a contraction with its axes in the order of the result's, and repeated along the rest."""
    order = [letters.index(letter) for letter in result if letter in letters]
    missing = tuple(position for position, letter in enumerate(result) if letter not in letters)
    return spread(b, b.transpose(operand, order), missing, shape)


def _position(b: GraphBuilder, x: Operand, axis: int, name: str) -> Operand:
    """The least index of an element that equals the extreme one; of a NaN, if there is one.

    The extreme of a row with a NaN is NaN, to which nothing is equal: then only the NaNs are candidates.
    """
    extreme = b("reduce_max" if name == "argmax" else "reduce_min", x, axes=(axis,))
    chosen = b("eq", x, spread(b, extreme, (axis,), x.shape))
    if x.dtype.is_float:
        chosen = b("logical_or", chosen, b("ne", x, x))
    index = b("iota", axis=axis, dtype=int64, shape=x.shape)
    found = b("reduce_min", b("select", chosen, index, b.full_like(_NOWHERE, index)), axes=(axis,))
    if isinstance(x.shape[axis], int):
        return found
    # The position in an axis that turns out to be empty is 0.
    is_empty = b("eq", found, b.full_like(_NOWHERE, found))
    assert is_empty.dtype == bool_
    return b("select", is_empty, b.full_like(0, found), found)
