"""Copies before fusion: every write of state has its own node, and every read can come before it."""

import networkx
import numpy as np
import pytest

from graphc.ir.graph import Graph, GraphBuilder, Variable
from graphc.ir.interpret import interpret
from graphc.ir.ops.base import ArraySpec
from graphc.ir.rewrite.copies import insert_copies, reads_of_state
from graphc.ir.types import TensorType, float32, int32


def variable(name: str, *shape: int) -> Variable:
    values = np.random.default_rng(len(name) + ord(name[0])).normal(size=shape).astype(np.float32)
    return Variable(name, TensorType(float32, shape), lambda: values)


def execute_in_place(graph: Graph, feeds=()) -> tuple[dict, dict]:
    """Runs node by node with ONE array for each variable, written when its writer runs, in an order that
    respects the anti-dependencies but reads as late as it may."""
    writers = {operand.node: v for v, operand in graph.updates.items()}
    order = networkx.DiGraph()
    order.add_nodes_from(graph.nodes())
    for node in graph.nodes():
        order.add_edges_from((o.node, node) for o in node.inputs)
        for v, aligned in reads_of_state(node):
            if v in graph.updates and not (graph.updates[v].node is node and aligned):
                order.add_edge(node, graph.updates[v].node)
    # Writers as early as possible: whatever must be read before has to be an edge.
    names = {node: (node not in writers, i) for i, node in enumerate(graph.nodes())}
    state = {v: v.snapshot().copy() for v in graph.variables().values()}
    values = {}
    for node in networkx.lexicographical_topological_sort(order, key=lambda n: names[n]):
        if node.name == "parameter":
            values[node] = state[node.variable]
        elif node.name == "input":
            values[node] = dict(feeds)[node.attrs["name"]]
        else:
            arrays = [values[o.node] for o in node.inputs]
            specs = [ArraySpec(t.dtype.numpy, t.shape) for t in node.types]
            (result,) = node.op.reference(arrays, node.attrs, specs)
            values[node] = result if node.op.family == "view" else np.array(result)
        if node in writers:
            storage = state[writers[node]]
            aligned = node.op.family == "elementwise"
            if any(np.shares_memory(a, storage) and not (aligned and a is storage) for a in arrays):
                # Element by element, as a kernel would: a read at another index sees what was written.
                pytest.fail("a writer reads what it writes at another index")
            storage[...] = values[node]
    return {k: values[o.node] for k, o in graph.outputs.items()}, state


def check(graph: Graph, feeds=()) -> Graph:
    """Both ways to run it agree, and each update has a node of its own."""
    state = {v: v.snapshot() for v in graph.variables().values()}
    expected_outputs, expected_state = interpret(graph, dict(feeds), state=state)
    rewritten = insert_copies(graph)
    roots = [o.node for o in rewritten.roots]
    consumers = rewritten.consumers()
    for operand in rewritten.updates.values():
        assert operand.node.op.family not in ("leaf", "view", "effect")
        assert not consumers[operand.node] and roots.count(operand.node) == 1
    assert insert_copies(rewritten).nodes() == rewritten.nodes()
    outputs, state = execute_in_place(rewritten, feeds)
    for name, value in expected_outputs.items():
        np.testing.assert_array_equal(outputs[name], value)
    for v, value in expected_state.items():
        np.testing.assert_array_equal(state[v], value)
    return rewritten


def count(graph: Graph, label: str) -> int:
    return sum(node.name == "copy" and node.attrs["label"].startswith(label) for node in graph.nodes())


def test_a_plain_step_needs_no_copy():
    b = GraphBuilder()
    p = b("parameter", variable=variable("p", 4))
    new = b("sub", p, b("mul", p, p))
    graph = Graph({}, {p.node.variable: new})
    assert insert_copies(graph) is graph
    check(graph)


def test_swap_of_two_parameters():
    b = GraphBuilder()
    p, q = (b("parameter", variable=variable(n, 3)) for n in "pq")
    rewritten = check(Graph({}, {p.node.variable: q, q.node.variable: p}))
    assert count(rewritten, "update:") == 2 and count(rewritten, "read:") == 1


def test_a_rotation_of_three():
    b = GraphBuilder()
    p, q, r = (b("parameter", variable=variable(n, 3)) for n in "pqr")
    rewritten = check(Graph({}, {p.node.variable: q, q.node.variable: r, r.node.variable: p}))
    assert count(rewritten, "read:") == 1


def test_a_parameter_becomes_its_transpose():
    b = GraphBuilder()
    p = b("parameter", variable=variable("p", 3, 3))
    rewritten = check(Graph({}, {p.node.variable: b("transpose", p, permutation=(1, 0))}))
    assert count(rewritten, "read:") == 1 and count(rewritten, "update:") == 1


def test_an_elementwise_update_that_reads_its_variable_transposed():
    b = GraphBuilder()
    p = b("parameter", variable=variable("p", 3, 3))
    check(Graph({}, {p.node.variable: b("add", p, b("transpose", p, permutation=(1, 0)))}))


def test_a_product_of_a_parameter_with_itself():
    b = GraphBuilder()
    p = b("parameter", variable=variable("p", 3, 3))
    check(Graph({}, {p.node.variable: b("contract", p, p, spec="ik,kj->ij")}))


def test_a_swap_that_also_adds():
    b = GraphBuilder()
    p, q = (b("parameter", variable=variable(n, 3)) for n in "pq")
    rewritten = check(Graph({}, {p.node.variable: q, q.node.variable: b("add", p, q)}))
    assert count(rewritten, "read:") == 1


def test_two_parameters_that_become_the_same_value():
    b = GraphBuilder()
    p, q = (b("parameter", variable=variable(n, 3)) for n in "pq")
    total = b("add", p, q)
    rewritten = check(Graph({"total": total}, {p.node.variable: total, q.node.variable: total}))
    assert count(rewritten, "update:") == 2


def test_a_moment_that_its_own_step_reads():
    b = GraphBuilder()
    p, m = (b("parameter", variable=variable(n, 3)) for n in "pm")
    x = b("input", name="x", dtype=float32, shape=(3,))
    moment = b("add", m, x)
    graph = Graph({}, {m.node.variable: moment, p.node.variable: b("sub", p, moment)})
    rewritten = check(graph, {"x": np.ones(3, np.float32)}.items())
    assert count(rewritten, "") == 1


def test_outputs_are_values_before_the_update():
    b = GraphBuilder()
    p, q = (b("parameter", variable=variable(n, 2, 3)) for n in "pq")
    outputs = {"p": p, "t": b("transpose", p, permutation=(1, 0)), "q": q}
    rewritten = check(Graph(outputs, {p.node.variable: b("neg", p)}))
    assert count(rewritten, "output:") == 2  # q is not updated


def test_an_input_and_a_constant_are_copied_into_state():
    b = GraphBuilder()
    p, q = (b("parameter", variable=variable(n, 3)) for n in "pq")
    x = b("input", name="x", dtype=float32, shape=(3,))
    graph = Graph({}, {p.node.variable: x, q.node.variable: b.full(2.0, q.type)})
    assert count(check(graph, {"x": np.ones(3, np.float32)}.items()), "update:") == 2


def test_copies_of_one_value_for_two_purposes_stay_apart():
    b = GraphBuilder()
    x = b("input", name="x", dtype=int32, shape=())
    assert b("copy", x, label="a").node is not b("copy", x, label="b").node
