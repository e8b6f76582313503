"""What a step writes gets storage of its own, and what it still has to read is copied in time.

State is written in place, so a kernel that writes a variable must come after every kernel that reads it:
an anti-dependency. Here each update becomes one node that does nothing else, and cycles among
dependencies and anti-dependencies are broken by copies of what the variable held at the start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, Variable
from graphc.ir.rebuild import rebuild
from graphc.ir.types import evaluate

_UNSTORED = ("leaf", "view", "effect")


def insert_copies(graph: Graph) -> Graph:
    """Makes every update a dedicated computed node, and the order of reads and writes possible.

        update p = operand        -> update p = copy(operand), where the operand is a leaf or a view, is an
                                     output or another update, too, or has other readers
        output o = view of p      -> output o = copy(view of p), where p is updated
        p <- q, q <- p            -> the reads of one of them go through a copy

    Needs: a valid graph; run it last before fusion, since no later rewrite may merge its copies.
    Guarantees: each updated variable is written by one node that has no reader, and the graph stays acyclic
    when an edge is added from every node that reads a variable (through views, too) to the node that
    writes it. A node that writes a variable reads it, if at all, elementwise at the same index.
    """
    return _break_cycles(_dedicate_outputs(_dedicate_updates(graph)))


def through_views(operand: Operand) -> Operand:
    """What a chain of views (and index checks, which pass a value on) shows."""
    while operand.node.op.family in ("view", "effect"):
        operand = operand.node.inputs[0]
    return operand


def _dedicate_updates(graph: Graph) -> Graph:
    uses = Counter(operand.node for node in graph.nodes() for operand in node.inputs)
    uses.update(operand.node for operand in graph.roots)
    shared = {
        variable: operand
        for variable, operand in graph.updates.items()
        if operand.node.op.family in _UNSTORED or uses[operand.node] > 1 or len(operand.node.types) > 1
    }
    return _with_roots(graph, {}, {v: f"update:{v.name}" for v in shared})


def _dedicate_outputs(graph: Graph) -> Graph:
    """Outputs are the values before the updates."""
    copied = {}
    for label, operand in graph.outputs.items():
        source = through_views(operand).node
        if source.name == "parameter" and source.variable in graph.updates:
            copied[label] = f"output:{label}"
    return _with_roots(graph, copied, {})


def _with_roots(graph: Graph, outputs: Mapping[str, str], updates: Mapping[Variable, str]) -> Graph:
    """The graph with copies, so labelled, of some outputs and updates."""
    if not outputs and not updates:
        return graph
    builder = GraphBuilder(graph)

    def copy(operand: Operand, label: str) -> Operand:
        with builder.attributed_to(graph.origin(operand.node), "insert_copies"):
            return builder("copy", operand, label=label)

    return builder.graph(
        {k: copy(o, outputs[k]) if k in outputs else o for k, o in graph.outputs.items()},
        {v: copy(o, updates[v]) if v in updates else o for v, o in graph.updates.items()},
    )


# ----------------------------------------------------------------------------------- reads before writes


def reads_of_state(node: Node) -> Iterator[tuple[Variable, bool]]:
    """The variables that a computed node reads, and whether element i of its result reads element i only."""
    if node.op.family in _UNSTORED:
        return
    for operand in node.inputs:
        source = through_views(operand).node
        if source.name == "parameter":
            yield source.variable, source is operand.node and node.op.family == "elementwise"


def _break_cycles(graph: Graph) -> Graph:
    while True:
        writers = {variable: operand.node for variable, operand in graph.updates.items()}
        anti = [
            (node, variable)
            for node in graph.nodes()
            for variable, aligned in reads_of_state(node)
            if variable in writers and not (aligned and writers[variable] is node)
        ]
        edges = [(operand.node, node) for node in graph.nodes() for operand in node.inputs]
        edges += [(node, writers[variable]) for node, variable in anti]
        if _is_acyclic(edges):
            return graph
        component = _components(edges)
        closing = [(node, v) for node, v in anti if component[node] == component[writers[v]]]
        # The copy reads a leaf only, so it lies on no cycle itself; one variable at a time is enough.
        chosen = min((v for _, v in closing), key=_cost)
        graph = _copy_reads(graph, chosen, [node for node, v in closing if v is chosen])


def _is_acyclic(edges: Sequence[tuple[Node, Node]]) -> bool:
    """Whether all nodes can be ordered. Most graphs can, and then importing networkx would cost most."""
    following: dict[Node, list[Node]] = {}
    waiting = Counter(after for _, after in edges)
    for before, after in edges:
        following.setdefault(before, []).append(after)
    ready = [node for node in following if not waiting[node]]
    while ready:
        for after in following.get(ready.pop(), ()):
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)
    return not any(waiting.values())


def _components(edges: Sequence[tuple[Node, Node]]) -> dict[Node, int]:
    """The number of each node's strongly connected component."""
    import networkx

    found = networkx.strongly_connected_components(networkx.DiGraph(edges))
    return {node: index for index, nodes in enumerate(found) for node in nodes}


def _cost(variable: Variable) -> tuple[int, str]:
    return evaluate(variable.type.nbytes, {}), variable.name


def _copy_reads(graph: Graph, variable: Variable, readers: Iterable[Node]) -> Graph:
    """Lets these nodes read a copy of the variable, through the same views."""
    redirected = frozenset(readers)

    def rule(builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]) -> Sequence[Operand] | None:
        if node not in redirected:
            return None
        return builder.node(node.op, [_redirect(builder, o, variable) for o in inputs], node.attrs).outputs

    return rebuild(graph, rule, "insert_copies")


def _redirect(builder: GraphBuilder, operand: Operand, variable: Variable) -> Operand:
    if through_views(operand).node.attrs.get("variable") is not variable:
        return operand
    if operand.node.name == "parameter":
        return builder("copy", operand, label=f"read:{variable.name}")
    # A view or a check has one operand.
    under = _redirect(builder, operand.node.inputs[0], variable)
    return builder.node(operand.node.op, [under], operand.node.attrs).outputs[operand.index]
