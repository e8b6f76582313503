"""Lesson 4: a DAG of layers with several losses.

Named nodes own layers and know their predecessors. A node runs when its last unmet dependency is met; in
the backward sweep its successors take that part, and the derivatives that they send are summed. Losses may
hang at several points: their weighted sum is minimised.

        x ──> stem ──┬──> left ───┬──> joined ──> out ──> fit      (weight 1)
                     ├──> right ──┘                 t ──┘
                     └──> head ───────────────────────> steer      (weight 0.25), against u

    python examples/04_dag_of_layers.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import graphc as gx

WEIGHTS = {"fit": 1.0, "steer": 0.25}


def half_squares(out: gx.Tensor, target: gx.Tensor) -> gx.Tensor:
    """1/2 * sum_i ||out_i - y_i||^2, whose derivative is out - y."""
    return 0.5 * ((out - target) ** 2).sum()


CONSUMERS = ("left", "right", "head")


def declare(weights: dict[str, float] = WEIGHTS, listening: tuple[str, ...] = CONSUMERS) -> gx.nn.Network:
    """The network above; nodes and edges may stand in any order. Of the stem's consumers only those that are
    `listening` send a derivative back to it."""
    batch = gx.dim("B")
    gx.seed(4)

    def after_stem(name: str, width: int) -> Callable[[gx.Tensor], gx.Tensor]:
        layer = gx.nn.Linear(5, width, name=name, dtype="float64")
        return layer if name in listening else lambda stem: layer(gx.stop_gradient(stem))

    net = gx.nn.Network()
    net.input("x", (batch, 4), dtype="float64")
    net.input("t", (batch, 2), dtype="float64")
    net.input("u", (batch, 1), dtype="float64")
    net.loss("fit", half_squares, after=["out", "t"], weight=weights["fit"])
    net.loss("steer", half_squares, after=["head", "u"], weight=weights["steer"])
    net.node("out", gx.nn.Linear(5, 2, dtype="float64"), after="joined")
    net.node("joined", lambda left, right: gx.tanh(left * right + left), after=["left", "right"])
    net.node("left", after_stem("left", 5), after="stem")
    net.node("right", after_stem("right", 5), after="stem")
    net.node("head", after_stem("head", 1), after="stem")
    net.node("stem", gx.nn.Sequential(gx.nn.Linear(4, 5, dtype="float64"), "tanh"), after="x")
    return net


def batch_of(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs, and targets that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    return {"x": x, "t": np.tanh(x[:, :2] - x[:, 2:]), "u": x.sum(axis=1, keepdims=True)}


def gradients(weights: dict[str, float], backend: str = "native") -> dict[str, np.ndarray]:
    """The gradient of every parameter for these weights of the losses."""
    net = declare(weights)
    exe = gx.compile(net.outputs("fit", "steer"), loss=net.total_loss(), backend=backend)
    exe.run(batch_of(16))
    return {name: gradient.copy() for name, gradient in exe.grads.items()}


def stem_derivative(listening: tuple[str, ...] = CONSUMERS, backend: str = "native") -> np.ndarray:
    """The derivative of the weighted losses for the stem's output."""
    net = declare(listening=listening)
    outputs = {"derivative": gx.grad(net.total_loss(), net["stem"]), **net.outputs("fit", "steer")}
    return gx.compile(outputs, backend=backend).run(batch_of(16))["derivative"]


def train(steps: int = 300, backend: str = "native") -> tuple[dict[str, float], dict[str, float]]:
    """Both losses per row before and after training."""
    net = declare()
    outputs, loss = net.outputs("fit", "steer"), net.total_loss()
    step = gx.compile(outputs, loss=loss / 64, optimizer=gx.optim.Adam(lr=0.02), backend=backend)
    feeds = batch_of(64)
    before = {name: float(value) / 64 for name, value in step.evaluate([feeds]).items() if name in WEIGHTS}
    for _ in range(steps):
        step.run(feeds)
    after = {name: float(value) / 64 for name, value in step.evaluate([feeds]).items() if name in WEIGHTS}
    return before, after


def main() -> None:
    print(declare())
    both = gradients(WEIGHTS)
    fit, steer = gradients({"fit": 1.0, "steer": 0.0}), gradients({"fit": 0.0, "steer": 1.0})
    worst = max(np.abs(both[n] - (fit[n] + 0.25 * steer[n])).max() for n in both)
    print(f"gradient of the weighted sum against the weighted sum of gradients: {worst:.1e}")
    parts = sum(stem_derivative((name,)) for name in CONSUMERS)
    worst = np.abs(stem_derivative() - parts).max()
    print(f"the stem's derivative against the sum of what its consumers send: {worst:.1e}")
    before, after = train()
    for name in WEIGHTS:
        print(f"{name:<6} {before[name]:.4f} -> {after[name]:.4f}")


if __name__ == "__main__":
    main()
