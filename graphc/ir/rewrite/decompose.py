"""Composite ops become the primitive ops that they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.ops.reduce import spread
from graphc.ir.rebuild import rebuild
from graphc.ir.types import int64

_NOWHERE = int(np.iinfo(np.int64).max)


def decompose(graph: Graph) -> Graph:
    """Replaces every op that has a `decompose`, and argmax and argmin, until none is left.

    Needs: a valid graph, after differentiation (composites have better gradients than their parts).
    Guarantees: no op of family "composite", no argmax or argmin; parts that forward and backward passes
    have in common are one node, since they are interned.
    """
    while any(_is_composite(node) for node in graph.nodes()):
        graph = rebuild(graph, _decompose_node, "decompose")
    return graph


def _is_composite(node: Node) -> bool:
    return node.op.decompose is not None or node.name in ("argmax", "argmin")


def _decompose_node(
    builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]
) -> Sequence[Operand] | None:
    if not _is_composite(node):
        return None
    if node.op.decompose is None:
        return [_position(builder, inputs[0], node.attrs["axis"], node.name)]
    # What is never read is unreachable from the rebuilt graph: this node serves as its own description.
    return node.op.decompose(builder, builder.node(node.op, inputs, node.attrs))


def _position(b: GraphBuilder, x: Operand, axis: int, name: str) -> Operand:
    """The least index of an element that equals the extreme one; of a NaN, if there is one.

    The extreme of a row with a NaN is NaN, to which nothing is equal: then only the NaNs are candidates.
    """
    extreme = b("reduce_max" if name == "argmax" else "reduce_min", x, axes=(axis,))
    chosen = b("eq", x, spread(b, extreme, (axis,), x.shape))
    if x.dtype.is_float:
        chosen = b("logical_or", chosen, b("ne", x, x))
    index = b("iota", axis=axis, dtype=int64, shape=x.shape)
    return b("reduce_min", b("select", chosen, index, b.full_like(_NOWHERE, index)), axes=(axis,))
