"""Recognised losses: each spelling on the list becomes one op with the same values and gradients, and
spellings with another meaning stay as they are."""

import numpy as np
import pytest

import graphc as gx
from graphc.ir.autodiff import vjp
from graphc.ir.graph import Graph, GraphBuilder, Origin
from graphc.ir.interpret import interpret
from graphc.ir.rebuild import rebuild
from graphc.ir.rewrite.recognise_losses import IMPROVES_NUMERICS, LOSSES, recognise_losses
from graphc.ir.types import float32, int32

B, C = gx.dim("B"), 5
RNG = np.random.default_rng(3)
FEEDS = {
    "z": RNG.normal(size=(4, C)),
    "y": np.array([0, 4, 2, 2], np.int32),
    "t": RNG.dirichlet(np.ones(C), 4),
    "x": RNG.normal(size=(4, C)),
    "w": RNG.uniform(size=(4,)),
}


class Inputs:
    def __init__(self, dtype="float64"):
        self.z = gx.input("z", (B, C), dtype)
        self.y = gx.input("y", (B,), "int32")
        self.t = gx.input("t", (B, C), dtype)
        self.x = gx.input("x", (B, C), dtype)
        self.w = gx.input("w", (B,), dtype)

    @property
    def p(self):
        return gx.softmax(self.z, -1)

    @property
    def written(self):
        e = gx.exp(self.z)
        return e / gx.sum(e, -1, keepdims=True)

    @property
    def shifted(self):
        e = gx.exp(self.z - gx.max(self.z, -1, keepdims=True))
        return e / gx.sum(e, -1, keepdims=True)

    @property
    def hot(self):
        return gx.one_hot(self.y, C, self.z.dtype)

    @property
    def s(self):
        return gx.sigmoid(self.x)


def pick(log_probabilities, y):
    return gx.nll_loss(log_probabilities, y, reduction="none")


def by_hand_lse(z, keepdims=True):
    m = gx.stop_gradient(gx.max(z, -1, keepdims=keepdims))
    wide = m if keepdims else gx.expand_dims(m, -1)
    return m + gx.log(gx.sum(gx.exp(z - wide), -1, keepdims=keepdims))


INDEX = {
    "cross_entropy of probabilities": lambda i: gx.cross_entropy(i.p, i.y),
    "cross_entropy, sum": lambda i: gx.cross_entropy(i.p, i.y, reduction="sum"),
    "cross_entropy with weights": lambda i: gx.cross_entropy(i.p, i.y, weight=np.arange(1.0, 6.0)),
    "cross_entropy, ignored rows": lambda i: gx.cross_entropy(i.p, i.y, ignore_index=2),
    "nll of log_softmax": lambda i: gx.nll_loss(gx.log_softmax(i.z, -1), i.y),
    "nll of log(softmax)": lambda i: gx.nll_loss(gx.log(i.p), i.y),
    "written-out softmax": lambda i: gx.cross_entropy(i.written, i.y),
    "shifted softmax": lambda i: gx.cross_entropy(i.shifted, i.y),
    "log of written-out softmax": lambda i: gx.nll_loss(gx.log(i.written), i.y),
    "z - logsumexp(z)": lambda i: gx.nll_loss(i.z - gx.logsumexp(i.z, -1, keepdims=True), i.y),
    "z - log(sum(exp(z)))": lambda i: gx.nll_loss(i.z - gx.log(gx.sum(gx.exp(i.z), -1, keepdims=True)), i.y),
    "z - lse by hand": lambda i: gx.nll_loss(i.z - by_hand_lse(i.z), i.y),
    "z - lse by hand, put back": lambda i: gx.nll_loss(
        i.z - gx.expand_dims(by_hand_lse(i.z, keepdims=False), -1), i.y),
    "shifted log softmax": lambda i: gx.nll_loss(
        (i.z - gx.max(i.z, -1, keepdims=True))
        - gx.log(gx.sum(gx.exp(i.z - gx.max(i.z, -1, keepdims=True)), -1, keepdims=True)), i.y),
    "lse - picked": lambda i: gx.mean(gx.logsumexp(i.z, -1) + pick(i.z, i.y)),
    "one-hot times log": lambda i: -gx.mean(gx.sum(i.hot * gx.log(i.p), -1)),
    "one-hot, minus within": lambda i: gx.mean(gx.sum(-i.hot * gx.log(i.p), -1)),
    "one-hot, times -1": lambda i: gx.sum(gx.log(i.p) * i.hot) * -1.0,
    "one-hot, 0 - log": lambda i: gx.sum(i.hot * (0.0 - gx.log(i.p)), -1).mean(),
    "where one-hot": lambda i: -gx.mean(gx.sum(gx.where(i.hot, gx.log_softmax(i.z, -1), 0.0), -1)),
    "temperature": lambda i: gx.cross_entropy(gx.softmax(i.z / 0.5, -1), i.y),
    "all summed at once": lambda i: -gx.sum(i.hot * gx.log_softmax(i.z, -1)),
}  # fmt: skip
DENSE = {
    "cross_entropy": lambda i: gx.cross_entropy(i.p, i.t),
    "nll": lambda i: gx.nll_loss(gx.log_softmax(i.z, -1), i.t),
    "written out": lambda i: -gx.mean(gx.sum(i.t * gx.log(i.written), -1)),
    "shifted": lambda i: gx.sum(-gx.log(i.shifted) * i.t, -1).mean(),
    "summed over everything": lambda i: -gx.sum(gx.log(i.p) * i.t) / 4.0,
    "unchecked one-hot": lambda i: -gx.sum(
        gx.cast(gx.equal(gx.expand_dims(i.y, -1), gx.arange(C)), "float64") * gx.log(i.p)),
    "smoothed": lambda i: -gx.mean(gx.sum((i.hot * 0.9 + 0.02) * gx.log(i.p), -1)),
    "classes on the first axis": lambda i: -gx.mean(gx.sum(
        gx.transpose(i.hot) * gx.log(gx.softmax(gx.transpose(i.z), 0)), 0)),
    "target of the same logits": lambda i: -gx.sum(i.p * gx.log(i.p)),
}  # fmt: skip
BINARY = {
    "bce": lambda i: gx.bce(i.s, i.t),
    "bce, sum and weight": lambda i: gx.bce(i.s, i.t, weight=2.0, reduction="sum"),
    "two negatives": lambda i: gx.mean(-i.t * gx.log(i.s) - (1 - i.t) * gx.log(1 - i.s)),
    "other order": lambda i: -gx.mean(gx.log(1 - i.s) * (1 - i.t) + gx.log(i.s) * i.t),
    "log1p": lambda i: -gx.mean(i.t * gx.log(i.s) + (1 - i.t) * gx.log1p(-i.s)),
    "sigmoid(-x)": lambda i: -gx.mean(i.t * gx.log(i.s) + (1 - i.t) * gx.log(gx.sigmoid(-i.x))),
    "softplus": lambda i: gx.mean(i.t * gx.softplus(-i.x) + (1 - i.t) * gx.softplus(i.x)),
    "written-out sigmoid": lambda i: gx.bce(1 / (1 + gx.exp(-i.x)), i.t),
    "reciprocal": lambda i: gx.bce(gx.reciprocal(gx.exp(-i.x) + 1), i.t),
    "targets the other way round": lambda i: -gx.mean((1 - i.t) * gx.log(i.s) + i.t * gx.log(1 - i.s)),
    "likelihood": lambda i: gx.mean(i.t * gx.log(i.s) + (1 - i.t) * gx.log(1 - i.s)),
}
LISTED = {
    **{("softmax_cross_entropy", name): make for name, make in INDEX.items()},
    **{("softmax_cross_entropy_dense", name): make for name, make in DENSE.items()},
    **{("bce_with_logits", name): make for name, make in BINARY.items()},
}

LEFT_ALONE = {
    "eps added": lambda i: -gx.mean(gx.sum(i.hot * gx.log(i.p + 1e-7), -1)),
    "clipped probabilities": lambda i: gx.cross_entropy(i.p, i.y, eps=1e-7),
    "clipped dense": lambda i: gx.cross_entropy(i.p, i.t, eps=1e-7),
    "maximum with eps": lambda i: -gx.sum(i.t * gx.log(gx.maximum(i.p, 1e-7))),
    "clipped logarithm": lambda i: gx.nll_loss(gx.clip(gx.log(i.p), -100.0), i.y),
    "clipped bce": lambda i: gx.bce(i.s, i.t, eps=1e-6),
    "softmax over another axis": lambda i: gx.cross_entropy(gx.softmax(i.z, 0), i.y),
    "sum over another axis": lambda i: gx.sum(i.t * gx.log(i.p), 0).sum(),
    "sum of exp over another axis": lambda i: gx.cross_entropy(
        gx.exp(i.z) / gx.sum(gx.exp(i.z), 0, keepdims=True), i.y),
    "another denominator": lambda i: gx.cross_entropy(
        gx.exp(i.z) / gx.sum(gx.exp(i.x), -1, keepdims=True), i.y),
    "eps in the denominator": lambda i: gx.cross_entropy(
        gx.exp(i.z) / (gx.sum(gx.exp(i.z), -1, keepdims=True) + 1e-9), i.y),
    "another shift": lambda i: gx.cross_entropy(
        gx.exp(i.z - 1.0) / gx.sum(gx.exp(i.z), -1, keepdims=True), i.y),
    "lse of other logits": lambda i: gx.mean(gx.logsumexp(i.x, -1) + pick(i.z, i.y)),
    "lse minus dense": lambda i: gx.mean(gx.logsumexp(i.z, -1) - gx.sum(i.t * i.z, -1)),
    "no gradient through it": lambda i: gx.nll_loss(gx.stop_gradient(gx.log_softmax(i.z, -1)), i.y),
    "cast in between": lambda i: gx.nll_loss(gx.log(gx.cast(i.p, "float32")), i.y),
    "where of some mask": lambda i: gx.sum(gx.where(i.t > 0.1, gx.log_softmax(i.z, -1), 0.0), -1).mean(),
    "where, else 1": lambda i: gx.sum(gx.where(i.hot, gx.log_softmax(i.z, -1), 1.0), -1).mean(),
    "log probabilities alone": lambda i: gx.sum(gx.log_softmax(i.z, -1), 0).sum(),
    "one binary term": lambda i: -gx.mean(i.t * gx.log(i.s)),
    "two targets": lambda i: -gx.mean(i.t * gx.log(i.s) + (1 - i.z) * gx.log(1 - i.s)),
    "two logits": lambda i: -gx.mean(i.t * gx.log(i.s) + (1 - i.t) * gx.log(1 - gx.sigmoid(i.z))),
    "both the same logarithm": lambda i: -gx.mean(i.t * gx.log(i.s) + (1 - i.t) * gx.log(i.s)),
    "difference of the terms": lambda i: -gx.mean(i.t * gx.log(i.s) - (1 - i.t) * gx.log(1 - i.s)),
    "2 - t": lambda i: -gx.mean(i.t * gx.log(i.s) + (2 - i.t) * gx.log(1 - i.s)),
    "another sigmoid": lambda i: gx.bce(1 / (2 + gx.exp(-i.x)), i.t),
}  # fmt: skip


def graph_of(loss) -> Graph:
    return Graph({"loss": loss.operand})


def with_gradients(graph: Graph) -> Graph:
    """The graph with the gradients by its float inputs as further outputs."""
    builder = GraphBuilder()
    found = {}

    def keep(b, node, inputs):
        found[node] = builder.node(node.op, inputs, node.attrs)
        return found[node].outputs

    copied = rebuild(graph, keep)
    inputs = {k: n.outputs[0] for k, n in copied.inputs().items() if n.types[0].dtype.is_float}
    loss = copied.outputs["loss"]
    gradients = vjp(builder, [loss], [builder.full(1.0, loss.type)], list(inputs.values()), {})
    return Graph({"loss": loss, **dict(zip(inputs, gradients, strict=True))})


def names(graph):
    return [node.name for node in graph.nodes()]


FUSED = ("softmax_cross_entropy", "softmax_cross_entropy_dense", "bce_with_logits")


@pytest.mark.parametrize(("op", "name"), LISTED)
def test_a_listed_spelling_becomes_one_op_with_the_same_value_and_gradients(op, name):
    before = graph_of(LISTED[op, name](Inputs()))
    after = recognise_losses(before)
    assert [n for n in names(after) if n in FUSED] == [op]
    assert not {"exp", "log", "log_softmax", "logsumexp", "sigmoid", "log1p"} & set(names(after))
    assert any(rule.startswith("recognise_losses:") for n in after.nodes() for rule in after.origin(n).rules)
    expected, found = (interpret(with_gradients(g), FEEDS)[0] for g in (before, after))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-10, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_another_meaning_is_left_alone(name):
    graph = graph_of(LEFT_ALONE[name](Inputs()))
    assert not set(FUSED) & set(names(recognise_losses(graph)))


def test_checks_of_labels_are_kept():
    for name in ("cross_entropy of probabilities", "one-hot times log", "where one-hot", "lse - picked"):
        after = recognise_losses(graph_of(INDEX[name](Inputs())))
        assert names(after).count("check_index") == 1, name
        with pytest.raises(gx.GraphcError):
            interpret(after, {**FEEDS, "y": np.array([0, 1, C, 2])})


def test_overflow_becomes_finite_and_the_pass_says_so():
    assert IMPROVES_NUMERICS
    feeds = {**FEEDS, "z": FEEDS["z"] * 1e4, "x": FEEDS["x"] * 1e4}
    for make in (INDEX["written-out softmax"], BINARY["bce"], DENSE["cross_entropy"]):
        before = graph_of(make(Inputs()))
        expected, found = (interpret(with_gradients(g), feeds)[0] for g in (before, recognise_losses(before)))
        assert not all(np.isfinite(v).all() for v in expected.values())
        assert all(np.isfinite(v).all() for v in found.values())


def test_probabilities_that_something_else_reads_stay():
    i = Inputs()
    p = i.p
    graph = Graph({"loss": gx.cross_entropy(p, i.y).operand, "p": p.operand})
    after = recognise_losses(graph)
    assert "softmax" in names(after) and "softmax_cross_entropy" in names(after)


def test_the_fused_op_belongs_to_the_lines_of_softmax_and_loss():
    b = GraphBuilder()
    z = b("input", name="z", dtype=float32, shape=(3, 4))
    y = b("input", name="y", dtype=int32, shape=(3,))
    with b.attributed_to(Origin(frozenset({"net.py:7"}))):
        p = b("softmax", z, axis=1)
    with b.attributed_to(Origin(frozenset({"net.py:9"}))):
        loss = b("log", b("pick", p, y, axis=1))
    after = recognise_losses(Graph({"loss": loss}, origins=b.origins))
    (fused,) = [node for node in after.nodes() if node.name == "softmax_cross_entropy"]
    assert after.origin(fused).sites == {"net.py:7", "net.py:9"}
    assert not any(after.origin(operand.node).sites for operand in fused.inputs)


def test_every_rule_is_used():
    used = {
        rule.partition(":")[2]
        for make in LISTED.values()
        for after in [recognise_losses(graph_of(make(Inputs())))]
        for node in after.nodes()
        for rule in after.origin(node).rules
        if rule.startswith("recognise_losses:")
    }
    assert used == set(LOSSES)
