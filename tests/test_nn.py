"""Layers, names of parameters, and the declarative Network of worked case A."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from frontend import run

import graphc as gx
from graphc.nn import MLP, Activation, Linear, Module, Network, Sequential

RNG = np.random.default_rng(3)
X = RNG.normal(size=(5, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def numbering():
    gx.seed(0)


def names(module):
    return [p.variable.name for p in module.parameters()]


def test_linear():
    layer = Linear(4, 3, name="fc")
    y = layer(gx.input("x", (gx.dim("B"), 4)))
    assert y.shape == (gx.dim("B"), 3)
    assert layer.weight.shape == (3, 4) and layer.bias.shape == (3,)
    found = run(y, x=X)
    np.testing.assert_allclose(found, X @ layer.weight.value.T + layer.bias.value, rtol=1e-5, atol=1e-6)
    for value in (layer.weight.value, layer.bias.value):
        assert np.abs(value).max() <= 0.5 and np.abs(value).max() > 0
    assert Linear(4, 3, bias=False, name="nb").bias is None
    with pytest.raises(gx.ShapeError, match="must have 4 elements"):
        layer(gx.input("x", (2, 3)))


def test_calling_twice_shares_the_weights():
    layer = Linear(4, 4, name="tied")
    x = gx.input("x", (5, 4))
    y = layer(layer(x).tanh())
    g = gx.grad(y.sum(), layer.weight)
    a, _ = run([g, y], x=X)
    w, b = layer.weight.value.astype(np.float64), layer.bias.value.astype(np.float64)
    h = np.tanh(X @ w.T + b)
    outer = np.ones((5, 4))
    expected = outer.T @ h + ((outer @ w) * (1 - h * h)).T @ X
    np.testing.assert_allclose(a, expected, rtol=1e-4, atol=1e-5)


def test_names():
    class Block(Module):
        def __init__(self, name=None):
            super().__init__(name)
            self.first = Linear(4, 4)
            self.rest = [Linear(4, 4), Linear(4, 4, name="last")]
            self.scale = self.param("scale", (4,), init="ones")
            self.again = self.first

        def forward(self, x):
            x = self.first(x) * self.scale
            for layer in self.rest:
                x = layer(x)
            return x

    assert sorted(names(Block())) == [
        "first.bias", "first.weight", "last.bias", "last.weight", "rest.0.bias", "rest.0.weight", "scale",
    ]  # fmt: skip
    assert "enc.first.weight" in names(Block("enc"))
    nested = Sequential(Block(), "relu", Linear(4, 2))
    assert {"0.first.weight", "0.scale", "last.weight", "2.bias"} <= set(names(nested))
    assert names(Sequential(Linear(2, 2), name="net")) == ["net.0.weight", "net.0.bias"]
    alone = [Linear(2, 2), Linear(2, 2)]
    assert [n for layer in alone for n in names(layer)] == [
        "linear.weight", "linear.bias", "linear_1.weight", "linear_1.bias",
    ]  # fmt: skip
    block = Block("b")
    assert run(block(gx.input("x", (5, 4))), x=X).shape == (5, 4)
    assert list(block.named_parameters()) == names(block)


def test_values_follow_the_name_and_the_seed():
    def weights(seed, **options):
        gx.seed(seed)
        model = Sequential(Linear(4, 3), "relu", Linear(3, 2), **options)
        run(model(gx.input("x", (5, 4))), x=X)
        return [p.value.copy() for p in model.parameters()]

    first, same, other, renamed = weights(1), weights(1), weights(2), weights(1, name="m")
    for a, b, c, d in zip(first, same, other, renamed, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c) and not np.array_equal(a, d)


def test_sequential_and_mlp():
    x = gx.input("x", (gx.dim("B"), 4))
    model = MLP([4, 8, 3], "tanh", output_activation="softmax")
    assert names(model) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    w0, b0, w2, b2 = (p for p in model.parameters())
    found = run(model(x), x=X)
    z = np.tanh(X @ w0.value.T + b0.value) @ w2.value.T + b2.value
    np.testing.assert_allclose(found, np.exp(z) / np.exp(z).sum(1, keepdims=True), rtol=1e-5)
    assert len(model) == 4 and isinstance(model[1], Activation)
    assert (
        repr(Sequential(Linear(2, 3), "relu"))
        == "Sequential(0=Linear(2, 3, bias=True), 1=Activation('relu'))"
    )
    np.testing.assert_array_equal(run(Sequential("relu", lambda v: v * 2)(x), x=X), np.maximum(X, 0) * 2)


def test_every_activation_by_name():
    x = gx.input("x", (5, 4))
    for name in gx.nn.ACTIVATIONS:
        assert run(gx.nn.activation(name)(x), x=X).shape == (5, 4)
    np.testing.assert_array_equal(run(gx.nn.activation(None)(x), x=X), X)


def test_refused():
    class Forgetful(Module):
        def __init__(self):
            self.layer = Linear(2, 2)

    for bad in (
        Forgetful,
        lambda: gx.nn.activation("rleu"),
        lambda: MLP([3]),
        lambda: Linear(2, 2, name="a b"),
    ):
        with pytest.raises(gx.DeclarationError):
            bad()
    outer = Sequential(Sequential("relu"))
    with pytest.raises(gx.DeclarationError, match="contain itself"):
        outer[0].adopt("x", outer)
    with pytest.raises(gx.UsageError, match="forward"):
        Module()(1)


# -------------------------------------------------------------------------------------------- Network


def branching():
    """x -> h -> (left, right) -> sum; two losses of different weight. Declared out of order."""
    net = Network()
    net.node("sum", lambda a, b: a + b, after=["left", "right"])
    net.node("left", Linear(3, 2), after="h").node("right", Linear(3, 2), after="h")
    net.node("h", Linear(4, 3))
    net.input("x", (gx.dim("B"), 4)).input("t", (gx.dim("B"), 2))
    net.edge("x", "h")
    net.loss("fit", gx.mse, after=["sum", "t"], weight=0.5)
    net.loss("small", lambda h: gx.mean(gx.square(h)), after="h", weight=2.0)
    return net


def test_network_sums_the_gradients_of_branches():
    net = branching()
    h = net["h"]
    w = {v.name: v for v in (p for name in ("h", "left", "right") for p in _variables(net, name))}
    total = net.total_loss()
    T = RNG.normal(size=(5, 2)).astype(np.float32)
    g, loss, hv = run([gx.grad(total, h), total, h], x=X, t=T)
    out = sum(hv @ w[f"{k}.weight"].array.T + w[f"{k}.bias"].array for k in ("left", "right"))
    np.testing.assert_allclose(loss, 0.5 * ((out - T) ** 2).mean() + 2 * (hv**2).mean(), rtol=1e-5)
    d = 0.5 * 2 * (out - T) / out.size
    expected = d @ (w["left.weight"].array + w["right.weight"].array) + 2 * 2 * hv / hv.size
    np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-6)
    assert set(net.outputs("sum", "h")) == {"sum", "h"}
    assert "sum <- left, right" in repr(net)


def _variables(net, name):
    layer = net._nodes[name].layer
    return [p.variable for p in layer.parameters()]


def test_a_layer_used_by_two_nodes_is_tied():
    net = Network()
    layer = Linear(4, 4)
    net.input("x", (5, 4)).node("a", layer, after="x").node("b", layer, after="a")
    w = layer.weight.variable.name
    assert w == "a.weight"
    value = run(net["b"], x=X)
    h = X @ layer.weight.value.T + layer.bias.value
    np.testing.assert_allclose(value, h @ layer.weight.value.T + layer.bias.value, rtol=1e-4, atol=1e-5)


def test_network_errors():
    net = Network()
    net.input("x", (2,))
    net.node("a", "relu", after=["x"]).node("b", lambda u: u, after="a").node(
        "c", lambda u, v: u + v, after="b"
    )
    net.node("d", lambda u, v: u + v, after=["c", "x"]).edge("d", "b")
    with pytest.raises(gx.DeclarationError, match=r"a cycle: .* -> .*test_nn\.py") as caught:
        net.build()
    cycle = str(caught.value).split("cycle: ")[1].split(" (")[0].split(" -> ")
    assert cycle[0] == cycle[-1] and set(cycle) == {"b", "c", "d"}
    edges = {("b", "c"), ("c", "d"), ("d", "b")}
    assert all(edge in edges for edge in pairwise(cycle))
    with pytest.raises(gx.DeclarationError, match="'a' is declared twice"):
        net.node("a", "relu")
    with pytest.raises(gx.DeclarationError, match="which is an input"):
        net.edge("a", "x")
    with pytest.raises(gx.DeclarationError, match="not declared"):
        net.edge("a", "nowhere")
    with pytest.raises(gx.DeclarationError, match="there is no loss"):
        net.total_loss()
    with pytest.raises(gx.DeclarationError, match="no node 'q'"):
        net["q"]
    with pytest.raises(gx.DeclarationError, match="after 'y', which is not declared"):
        Network().node("a", "relu", after="y").build()
    with pytest.raises(gx.DeclarationError, match="no predecessor"):
        Network().node("a", "relu").build()
    built = Network().input("x", (2,))
    built.build()
    with pytest.raises(gx.DeclarationError, match="built already"):
        built.node("a", "relu", after="x")


@pytest.mark.parametrize("backend", ["native", "python"])
def test_names_that_are_not_identifiers_compile(backend):
    # an unnamed container's parameters are "0.weight", ...; feeds may be "x-y": both are legal names
    x, t = gx.input("x-y", (gx.dim("B"), 4)), gx.input("x_y", (gx.dim("B"),))
    loss = gx.mse(MLP([4, 8, 1])(x).squeeze(1), t)
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1), backend=backend)
    feeds = {"x-y": np.ones((5, 4), np.float32), "x_y": np.full(5, 2, np.float32)}
    assert step.run(feeds) > step.run(feeds)
    text = step.dump("kernels")
    assert '= "0.weight"' in text
    gx.parse(text, {**step.state_dict(), "optim.lr.0": np.float32(0.1)})


@pytest.mark.parametrize("backend", ["native", "python", "numpy"])
def test_words_of_the_kernels_grammar_and_other_alphabets_are_legal_names(backend):
    words = ("inf", "nan", "true", "false", "inf_f64", "for", "chunk", "größe", "ß", "_inf")
    inputs = [gx.input(word, (gx.dim("B"), 4)) for word in words]
    weight = gx.param("out", (4,), init=[1.0, 2.0, 3.0, 4.0])
    total = gx.sum(inputs[0] * float("inf") + sum(inputs[1:]) * weight, axis=1)
    exe = gx.compile({"in": total, "nan": inputs[1] * 2.0}, backend=backend)
    feeds = {word: np.full((3, 4), n, np.float32) for n, word in enumerate(words)}
    feeds["inf"] += 1
    got = exe.run(feeds)
    assert np.array_equal(got["in"], np.full(3, np.inf)) and np.array_equal(got["nan"], np.full((3, 4), 2.0))
    for stage in ("graph", "kernels"):
        parsed = gx.parse(exe.dump(stage), {"out": weight.variable})
        again = gx.compile(parsed, backend="native" if stage == "kernels" else backend)
        assert np.array_equal(again.run(feeds)["nan"], got["nan"])


def test_a_wrong_width_names_the_layer():
    x = gx.input("x", (gx.dim("B"), 3))

    class Net(gx.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Sequential(Linear(3, 4), "relu", Linear(5, 4, bias=False))

        def forward(self, x):
            return self.body(x)

    with pytest.raises(gx.ShapeError, match=r"fc1 is Linear\(4, 2, bias=True\): the last axis must have"):
        Linear(4, 2, name="fc1")(x)
    with pytest.raises(gx.ShapeError, match=r"body\.2 is Linear\(5, 4, bias=False\): .* is \(B, 4\)"):
        Net()(x)
