"""Graphs of thousands of nodes: no pass recurses along a path, and rebuilding keeps what does not change."""

from __future__ import annotations

import pytest

import graphc as gx
from graphc.errors import VerifyError
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.rebuild import intern, rebuild
from graphc.ir.rewrite.fold import fold
from graphc.ir.rewrite.identities import identities
from graphc.ir.rewrite.layout import lay_out
from graphc.ir.rewrite.materialise import materialise
from graphc.ir.rewrite.shapes import canonical_views
from graphc.ir.rewrite.transposes import fold_transposes
from graphc.ir.verify import verify_graph

DEPTH = 5000


def chain(depth: int = DEPTH) -> Graph:
    """tanh of tanh of ... of an input, reshaped at the end."""
    y = gx.input("x", (gx.dim("B"), 8))
    for _ in range(depth):
        y = y.tanh()
    return intern(Graph({"y": y.reshape(gx.dim("B") * 8).operand}))


@pytest.mark.parametrize(
    "rewrite", [fold, identities, canonical_views, fold_transposes, lay_out, materialise, verify_graph]
)
def test_a_path_of_5000_nodes_is_no_depth_of_calls(rewrite):
    assert len(verify_graph(rewrite(chain())).nodes()) >= DEPTH


def test_values_made_of_constants_alone_are_copied_at_any_depth():
    builder = GraphBuilder()
    value = builder.full(0.5, gx.input("x", (3,)).operand.type)
    for _ in range(DEPTH):
        value = builder("tanh", value)
    rewritten = materialise(Graph({"y": value}))
    assert rewritten.outputs["y"].node.name == "copy"


def test_what_no_rule_changes_stays_the_same_object():
    graph = chain(20)
    assert rebuild(graph, lambda builder, node, inputs: None).nodes() == graph.nodes()


def test_what_lies_behind_a_change_is_made_anew_with_the_types_of_its_inputs():
    x, wide = gx.input("x", (4,)).operand, gx.input("w", (9,)).operand
    builder = GraphBuilder()
    y = builder("tanh", builder("relu", x))
    other = Graph({"y": y, "z": builder("exp", wide)})

    def replace_input(builder, node, inputs):
        return [wide] if node is x.node else None

    rebuilt = rebuild(other, replace_input)
    assert rebuilt.outputs["y"].shape == (9,)
    relu = rebuilt.outputs["y"].node.inputs[0].node
    assert relu.inputs == (Operand(rebuilt.outputs["z"].node.inputs[0].node),)
    assert rebuilt.outputs["z"].node is other.outputs["z"].node


def test_rebuilding_merges_what_became_equal():
    builder = GraphBuilder()
    a, b = (builder("input", name=name, dtype=gx.float32, shape=(4,)) for name in "ab")
    graph = Graph({"y": builder("tanh", a), "z": builder("tanh", b)})
    merged = rebuild(graph, lambda _, node, inputs: [a] if node is b.node else None)
    assert merged.outputs["y"] == merged.outputs["z"]


def test_a_bad_node_behind_verified_ones_is_found():
    graph = verify_graph(chain(10))
    last = graph.outputs["y"]
    bad = Node(last.node.op, (last,), {"shape": (gx.dim("B"), 7)}, last.node.types)
    with pytest.raises(VerifyError):
        verify_graph(Graph({"y": Operand(bad)}))
    with pytest.raises(VerifyError):  # and it is not remembered as good
        verify_graph(Graph({"y": Operand(bad)}))
