"""Rebuilding a graph bottom up: what every pass over nodes is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand

Rule = Callable[[GraphBuilder, Node, tuple[Operand, ...]], "Sequence[Operand] | None"]


def rebuild(graph: Graph, rule: Rule, name: str = "") -> Graph:
    """Rebuilds a graph bottom up, offering every node to a rule; the graph itself where nothing changes.

    `rule(builder, old_node, new_inputs)` returns the replacement's outputs, or None to keep the node.
    What it builds carries the old node's origin and, when it changed something, the rule's name. Equal
    nodes of the result are one.
    """
    builder = GraphBuilder(graph)
    is_interned = graph.interned is not None
    mapped: dict[Node, Sequence[Operand]] = {}  # those nodes that have become others
    for node in graph.nodes():
        inputs = node.inputs
        if mapped and any(operand[0] in mapped for operand in inputs):
            inputs = tuple([mapped[o[0]][o[1]] if o[0] in mapped else o for o in inputs])
        builder.origin, builder.rule = graph.origin(node), ""
        if not is_interned:
            builder.keep(node, inputs)
        builder.rule = name
        replaced = rule(builder, node, inputs)
        if replaced is None:
            if is_interned and inputs is node.inputs:
                continue
            builder.rule = ""
            replaced = builder.keep(node, inputs).outputs
        if replaced[0][0] is not node or tuple(replaced) != node.outputs:
            mapped[node] = replaced
    if is_interned and not mapped:
        return graph
    return builder.graph(
        {label: mapped[o.node][o.index] if o.node in mapped else o for label, o in graph.outputs.items()},
        {v: mapped[o.node][o.index] if o.node in mapped else o for v, o in graph.updates.items()},
    )


def intern(graph: Graph) -> Graph:
    """The same graph with equal nodes merged, their origins united."""
    return rebuild(graph, lambda builder, node, inputs: None)
