"""Turns picks from computed values into masked sums, which fuse, and counts positions in 32 bits."""

from __future__ import annotations

from graphc.ir.access import is_view
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.rebuild import rebuild
from graphc.ir.types import int32, int64

_STORED = frozenset({"input", "parameter", "constant"})
_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
_LARGEST = 2**31 - 1


def mask_picks(graph: Graph) -> Graph:
    """`x[i, index[i]]` becomes `sum_j select(j == index[i], x[i, j], 0)` where x is computed.

    A pick reads its operand out of order, so the operand would have to lie in memory; the masked sum
    runs along with whatever else sweeps over it (the softmax, for a cross entropy). Exactly the same
    value: the other terms are zeros. Picks from inputs, parameters and constants stay.

    Where positions in 64 bits are compared with an index that a `check_index` has let through (the one-hot
    form of labels), both are compared in 32 bits: as many lanes to a vector as float32 has.
    """

    def rule(builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]) -> list[Operand] | None:
        if node.name in _COMPARISONS:
            return _narrowed(builder, node, inputs)
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


def _narrowed(builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]) -> list[Operand] | None:
    if inputs[0].dtype != int64 or not any(_is_short_iota(operand) for operand in inputs):
        return None
    if not all(_is_short_iota(operand) or _is_checked(operand) for operand in inputs):
        return None
    return [builder(node.name, *(_in_32_bits(builder, operand) for operand in inputs))]


def _is_short_iota(operand: Operand) -> bool:
    if operand.node.name != "iota":
        return False
    extent = operand.shape[operand.node.attrs["axis"]]
    return not isinstance(extent, int) or extent <= _LARGEST


def _is_checked(operand: Operand) -> bool:
    """Whether an integer is read, through views alone, from a `check_index` that keeps it short."""
    node = operand.node
    while is_view(node) and node.name != "check_index":
        if not node.inputs:
            return False
        node = node.inputs[0].node
    if node.name != "check_index":
        return False
    extent = node.attrs["extent"]
    return not isinstance(extent, int) or extent <= _LARGEST


def _in_32_bits(builder: GraphBuilder, operand: Operand) -> Operand:
    if operand.node.name == "iota":
        axis = operand.node.attrs["axis"]
        return builder("iota", axis=axis, dtype=int32, shape=operand.shape)
    return builder.cast(operand, int32)
