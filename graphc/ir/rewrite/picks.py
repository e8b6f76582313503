"""Turns picks from computed values into masked sums, which fuse."""

from __future__ import annotations

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, rebuild
from graphc.ir.types import int32

_STORED = frozenset({"input", "parameter", "constant"})


def mask_picks(graph: Graph) -> Graph:
    """`x[i, index[i]]` becomes `sum_j select(j == index[i], x[i, j], 0)` where x is computed.

    A pick reads its operand out of order, so the operand would have to lie in memory; the masked sum
    runs along with whatever else sweeps over it (the softmax, for a cross entropy). Exactly the same
    value: the other terms are zeros. Picks from inputs, parameters and constants stay.
    """

    def rule(builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]) -> list[Operand] | None:
        if node.name != "pick" or inputs[0].node.name in _STORED:
            return None
        x, index = inputs
        axis = node.attrs["axis"]
        positions = builder("iota", axis=axis, dtype=int32, shape=x.shape)
        wanted = builder.cast(index, int32)
        spread = builder.broadcast_to(builder.expand_dims(wanted, (axis,)), x.shape)
        kept = builder("select", builder("eq", positions, spread), x, builder.full_like(0, x))
        return [builder.sum(kept, (axis,))]

    return rebuild(graph, rule, "mask_picks")
