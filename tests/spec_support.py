"""Networks of the worked cases, declared through the public API alone, for the tests of the specification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import graphc as gx

XAND = {
    "x": np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64),
    "y": np.array([[1], [0], [0], [1]], np.float64),
}


def random(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Normal numbers, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def state_bytes(exe: gx.Executable) -> dict[str, bytes]:
    """Everything that a run may change, as bytes, and the learning rates, which a state dict leaves out."""
    state = {name: value.tobytes() for name, value in exe.state_dict().items()}
    if "optim.step" in state:
        state["lr"] = repr(exe.learning_rates).encode()
    return state


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs the body with this many threads in the pool."""
    from graphc.codegen.threads import pool

    before = pool().threads
    gx.set_num_threads(count)
    try:
        yield
    finally:
        gx.set_num_threads(before)


def network_a() -> tuple[gx.nn.Network, dict[str, np.ndarray]]:
    """Case A: a node with three consumers, a node with two predecessors, two weighted losses."""
    B = gx.dim("B")
    net = gx.nn.Network("a")
    net.input("x", (B, 12))
    net.input("y", (B, 5))
    net.input("z", (B, 7))
    net.node("trunk", gx.nn.Linear(12, 16), after="x")
    net.node("act", "tanh", after="trunk")
    net.node("left", gx.nn.Linear(16, 5), after="act")
    net.node("right", gx.nn.Linear(16, 7), after="act")
    net.node("side", gx.nn.Linear(16, 5), after="act")
    net.node("join", lambda a, b: a + b, after=("left", "side"))
    net.loss("l1", half_squared, after=("join", "y"), weight=0.25)
    net.loss("l2", half_squared, after=("right", "z"), weight=2.0)
    feeds = {"x": random(1, 333, 12), "y": random(2, 333, 5), "z": random(3, 333, 7)}
    return net, feeds


def half_squared(value: gx.Tensor, target: gx.Tensor) -> gx.Tensor:
    """1/2 sum |value - target|^2, the loss of case A."""
    return 0.5 * ((value - target) ** 2).sum()


def xand(dtype: str = "float64") -> tuple[gx.Tensor, gx.Tensor, gx.Tensor]:
    """Case B: hidden activation, output and loss of the network 2-2-1 with the published weights."""
    B = gx.dim("B")
    x, y = gx.input("x", (B, 2), dtype), gx.input("y", (B, 1), dtype)
    w0 = gx.param("W0", (2, 2), init=np.array([[-5.12, 3.38], [-5.1, 3.37]]), dtype=dtype)
    b0 = gx.param("B0", (2,), init=np.array([1.72, -5.25]), dtype=dtype)
    w1 = gx.param("W1", (2, 1), init=np.array([[6.6], [6.5]]), dtype=dtype)
    b1 = gx.param("B1", (1,), init=np.array([-3.2]), dtype=dtype)
    a1 = (x @ w0 + b0).sigmoid()
    a2 = (a1 @ w1 + b1).sigmoid()
    return a1, a2, gx.bce(a2, y)


def classifier(sizes: tuple[int, ...] = (784, 16, 16, 10)) -> tuple[gx.Tensor, gx.Tensor]:
    """Case C: output and loss of the sigmoid network with mean squared error."""
    B = gx.dim("B")
    x, t = gx.input("x", (B, sizes[0])), gx.input("t", (B, sizes[-1]))
    out = gx.nn.MLP(sizes, "sigmoid", "sigmoid", name="net")(x)
    return out, gx.mse(out, t)


def classifier_feeds(batch: int, sizes: tuple[int, ...] = (784, 16, 16, 10)) -> dict[str, np.ndarray]:
    """Pixels in [0, 1) and one-hot targets."""
    rng = np.random.default_rng(batch)
    pixels = rng.random((batch, sizes[0]), dtype=np.float32)
    return {"x": pixels, "t": np.eye(sizes[-1], dtype=np.float32)[rng.integers(0, sizes[-1], batch)]}


def case_c_step() -> gx.Executable:
    """The training step of case C: SGD, learning rate 10, momentum 0.5."""
    out, loss = classifier()
    return gx.compile({"loss": loss, "out": out}, loss=loss, optimizer=gx.optim.SGD(lr=10.0, momentum=0.5))


def case_d() -> tuple[gx.Tensor, gx.Tensor]:
    """Case D: Y = f(X W + B) by hand, softmax and cross entropy at the end."""
    B = gx.dim("B")
    x, t = gx.input("x", (B, 9)), gx.input("t", (B, 4))
    w0, b0 = gx.param("w0", (9, 8), init="xavier_uniform"), gx.param("b0", (8,), init="zeros")
    w1, b1 = gx.param("w1", (8, 4), init="xavier_uniform"), gx.param("b1", (4,), init="zeros")
    y = ((x @ w0 + b0).tanh() @ w1 + b1).softmax()
    return y, gx.cross_entropy(y, t)


def case_e() -> tuple[gx.Tensor, gx.Tensor]:
    """Case E: Fahrenheit to Celsius from scalars: prediction and mean squared error."""
    B = gx.dim("B")
    x, t = gx.input("x", (B,), "float64"), gx.input("t", (B,), "float64")
    w, b = gx.param("w", (), init=0.1, dtype="float64"), gx.param("b", (), init=0.2, dtype="float64")
    y = x * w + b
    return y, gx.mse(y, t)
