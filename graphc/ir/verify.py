"""What a graph must satisfy between passes. `verify_kernels.py` holds the rules of the kernel stage.

Verifying is the pass contract: valid before, valid after. A failure is a VerifyError whose message shows
the surrounding IR text with the bad line marked.
"""

from __future__ import annotations

from collections.abc import Container
from weakref import WeakSet

from graphc.errors import GraphcError, VerifyError
from graphc.ir.graph import Graph, Node, Operand, Variable, attr_key
from graphc.ir.ops import OPS
from graphc.ir.text import format_node, number_values
from graphc.ir.verify_kernels import verify_kernel, verify_kernels

CONTEXT_LINES = 4

# Nodes that passed, with all they depend on. They cannot change, so a pass is verified by what it made.
_verified: WeakSet[Node] = WeakSet()


def verify_graph(graph: Graph) -> Graph:
    """Returns the graph, or raises VerifyError.

    No cycle; every op is the one in the table; every operand exists; attributes can be keyed; types
    inferred again are the types stored; an update has its variable's type; names are unique.
    """
    unseen = _acyclic_order(graph, _verified)
    for node in unseen:
        problem = _node_problem(node)
        if problem:
            raise VerifyError(f"{problem}\n{surrounding_text(graph, _acyclic_order(graph), node)}")
    _verified.update(unseen)
    order = graph.nodes()
    for label, operand in graph.outputs.items():
        if not isinstance(label, str):
            raise VerifyError(f"the output label {label!r} is not a string")
        _check_root(graph, order, operand, f"output {label}")
    for variable, operand in graph.updates.items():
        if not isinstance(variable, Variable):
            raise VerifyError(f"an update of {variable!r}, which is not a Variable")
        _check_root(graph, order, operand, f"update of {variable.name}")
        if operand.type != variable.type:
            raise VerifyError(
                f"update of {variable.name}: {operand.type} into {variable.type}\n"
                + surrounding_text(graph, order, operand.node)
            )
    try:
        graph.inputs()
        graph.variables()
    except GraphcError as error:
        raise VerifyError(str(error)) from error
    return graph


def _acyclic_order(graph: Graph, known: Container[Node] = ()) -> list[Node]:
    """All nodes but those known (to lie on no cycle), producers first. Raises VerifyError for a cycle
    (`topological` would not end)."""
    order: list[Node] = []
    state: dict[Node, str] = {}
    for root in graph.roots:
        if not isinstance(root, Operand) or not isinstance(root.node, Node):
            raise VerifyError(f"{root!r} is not an operand")
        stack: list[tuple[Node, int]] = [(root.node, 0)]
        while stack:
            node, position = stack.pop()
            if position == 0:
                if node in state or node in known:
                    continue
                state[node] = "open"
            if position == len(node.inputs):
                state[node] = "done"
                order.append(node)
                continue
            stack.append((node, position + 1))
            child = node.inputs[position].node
            if state.get(child) == "open":
                names = [entry.name for entry, _ in stack]
                raise VerifyError(f"a cycle through {child.name}: {' <- '.join(names)}")
            if child not in state:
                stack.append((child, 0))
    return order


def _node_problem(node: Node) -> str:
    if OPS.get(node.op.name) is not node.op:
        return f"{node.op.name} is not an op of the table"
    for position, operand in enumerate(node.inputs):
        if not 0 <= operand.index < len(operand.node.types):
            return f"{node.name}: operand {position} is output {operand.index} of {operand.node.name}"
    try:
        for value in node.attrs.values():
            attr_key(value)
        inferred = tuple(node.op.infer([operand.type for operand in node.inputs], node.attrs))
    except (GraphcError, KeyError) as error:
        return f"{node.name}: {error if isinstance(error, GraphcError) else f'attribute {error} is missing'}"
    if inferred != node.types:
        shown = [", ".join(map(str, types)) for types in (inferred, node.types)]
        return f"{node.name}: the type is {shown[0]}, but {shown[1]} is stored"
    return ""


def _check_root(graph: Graph, order: list[Node], operand: Operand, what: str) -> None:
    if not 0 <= operand.index < len(operand.node.types):
        raise VerifyError(
            f"{what}: {operand.node.name} has no output {operand.index}\n"
            + surrounding_text(graph, order, operand.node)
        )


def surrounding_text(graph: Graph, order: list[Node], marked: Node) -> str:
    """The printed lines around a node, its own marked with `>`."""
    numbers = number_values(order)
    at = order.index(marked)
    first = max(0, at - CONTEXT_LINES)
    lines = []
    for node in order[first : at + CONTEXT_LINES + 1]:
        sign = ">" if node is marked else " "
        try:
            line = format_node(node, numbers, graph.origin(node))
        except GraphcError:
            line = f"%{numbers[Operand(node, 0)]} = {node!r}"  # an attribute without a text form
        lines.append(f"{sign} {line}")
    return "\n".join(lines)


__all__ = ["verify_graph", "verify_kernel", "verify_kernels"]
