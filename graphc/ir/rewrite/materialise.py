"""Gives memory to what is only a way of looking: results that are views, and what a reshape looks at."""

from __future__ import annotations

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.rebuild import rebuild


def _is_computed(node: Node) -> bool:
    """Whether a node is computed into memory anyway (constant expressions are not)."""
    if node.op.family in ("view", "leaf", "effect"):
        return False
    return (
        node.op.family != "elementwise"
        or node.name == "copy"
        or any(_depends_on_memory(operand.node) for operand in node.inputs)
    )


def _depends_on_memory(node: Node) -> bool:
    """Whether a node is made of an input, of state or of a computed value. Iterative: graphs are deep."""
    seen: set[Node] = set()
    pending = [node]
    while pending:
        node = pending.pop()
        if node in seen or node.name in ("full", "iota", "extent"):
            continue
        seen.add(node)
        if node.op.family in ("view", "effect"):
            pending.append(node.inputs[0].node)
        elif node.op.family != "elementwise" or node.name == "copy":
            return True
        else:
            pending += [operand.node for operand in node.inputs]
    return False


def materialise(graph: Graph) -> Graph:
    """Inserts a `copy` where a value has to lie in memory and does not.

    Guarantees: every output is a computed node of its own (no input, parameter, constant, view, nor
    another output's node), and every reshape looks at a computed node, a stored leaf or another reshape.
    """

    def rule(builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]) -> list[Operand] | None:
        if node.name != "reshape":
            return None
        source = inputs[0]
        if _is_computed(source.node) or source.node.name in ("input", "parameter", "constant", "reshape"):
            return None
        return [builder("reshape", builder("copy", source), **node.attrs)]

    rebuilt = rebuild(graph, rule, "materialise")
    builder = GraphBuilder(rebuilt)
    taken = {operand.node for operand in rebuilt.updates.values()}
    outputs: dict[str, Operand] = {}
    for label, operand in rebuilt.outputs.items():
        if operand.node in taken or not _is_computed(operand.node):
            # The label keeps the copies apart: two outputs of one value are two copies of it.
            with builder.attributed_to(rebuilt.origin(operand.node), "materialise"):
                operand = builder("copy", operand, label=f"output {label}")
        taken.add(operand.node)
        outputs[label] = operand
    if outputs == rebuilt.outputs:
        return rebuilt
    return builder.graph(outputs, rebuilt.updates)
