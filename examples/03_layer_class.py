"""Lesson 3: a layer class with an activation and an error function.

By hand, a layer Y = f(X W + B) needs a backward of its own: with d = grad * f',

    dW = X^T d        dB = sum of d over the batch        dX = d W^T

and, where the output activation is softmax and the error is cross entropy, the two fuse to d = Y - T.
Here the class only says what is computed; gx.grad derives all of that, and the lesson checks it.

    python examples/03_layer_class.py
"""

from __future__ import annotations

import numpy as np

import graphc as gx


class Layer(gx.nn.Module):
    """Y = f(X W + B), X: N x L, W: L x M. `wb_width` scales the weights' initial range."""

    def __init__(
        self, name: str, length: int, width: int, activation: str = "sigmoid", wb_width: float = 1.0
    ) -> None:
        super().__init__(name)
        initial = gx.init.uniform(-wb_width, wb_width)
        self.W = self.param("W", (length, width), init=initial, dtype="float64")
        self.B = self.param("B", (width,), init=initial, dtype="float64")
        self.activation = gx.nn.activation(activation)

    def forward(self, x: gx.Tensor) -> gx.Tensor:
        return self.activation(x @ self.W + self.B)


ERRORS = {"squares": gx.mse, "cross_entropy": gx.cross_entropy}


def scalar_case() -> dict[str, float]:
    """y = f(w x + b) for single numbers: the derivatives, and the chain rule's."""
    x = gx.input("x", (), dtype="float64")
    w = gx.param("w", init=np.array(0.7))
    b = gx.param("b", init=np.array(-0.2))
    y = (w * x + b).sigmoid()
    dw, db, dx = gx.grad(y, [w, b, x])
    found = gx.compile({"y": y, "dw": dw, "db": db, "dx": dx}).run(x=np.array(1.5))
    value = float(found["y"])
    slope = value * (1 - value)
    return {
        "dw": float(found["dw"]) - slope * 1.5,
        "db": float(found["db"]) - slope,
        "dx": float(found["dx"]) - slope * 0.7,
    }


def layer_case(activation: str = "tanh", error: str = "squares", width: int = 3) -> dict[str, float]:
    """Largest differences between derived gradients of one layer and those worked out by hand."""
    gx.seed(1)
    layer = Layer("layer", 4, width, activation, wb_width=0.5)
    batch = gx.dim("N")
    x = gx.input("x", (batch, 4), dtype="float64")
    t = gx.input("t", (batch, width), dtype="float64")
    y = layer(x)
    loss = ERRORS[error](y, t)
    d_w, d_b, d_x, d_y = gx.grad(loss, [layer.W, layer.B, x, y])
    exe = gx.compile({"y": y, "dW": d_w, "dB": d_b, "dX": d_x, "grad": d_y})

    rng = np.random.default_rng(0)
    xs = rng.normal(size=(6, 4))
    ts = np.eye(width)[rng.integers(0, width, 6)]
    found = exe.run(x=xs, t=ts)
    if activation == "softmax":
        # The Jacobian of softmax is not diagonal. With cross entropy all of it cancels to Y - T.
        d = (found["y"] - ts) / 6
    else:
        slopes = {"tanh": lambda v: 1 - v**2, "sigmoid": lambda v: v * (1 - v), "identity": np.ones_like}
        d = found["grad"] * slopes[activation](found["y"])
    by_hand = {"dW": xs.T @ d, "dB": d.sum(axis=0), "dX": d @ layer.W.value.T}
    return {name: float(np.abs(found[name] - value).max()) for name, value in by_hand.items()}


def fused_backward() -> str:
    """The compiler's own words for softmax with cross entropy: one op, and `softmax - t` as its backward.

    (For targets that may not sum to 1 the softmax is weighted by their sum.) Origins are cut off here.
    """
    layer = Layer("layer", 4, 3, "softmax")
    x, t = gx.input("x", (8, 4), dtype="float64"), gx.input("t", (8, 3), dtype="float64")
    loss = gx.cross_entropy(layer(x), t)
    text = gx.compile(loss, loss=loss).dump("joint")
    return "\n".join(line.partition("  ;")[0] for line in text.splitlines())


def train(activation: str = "sigmoid", width: int = 8, epochs: int = 2000) -> float:
    """Fits exclusive or with two such layers; returns the last loss."""
    gx.seed(3)
    hidden, out = Layer("hidden", 2, width, activation), Layer("out", width, 1, "sigmoid")
    x, t = gx.input("x", (4, 2), dtype="float64"), gx.input("t", (4, 1), dtype="float64")
    loss = gx.mse(out(hidden(x)), t)
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=2.0, momentum=0.9))
    for _ in range(epochs):
        last = step.run(x=[[0, 0], [0, 1], [1, 0], [1, 1]], t=[[0], [1], [1], [0]])
    return float(last)


def main() -> None:
    print("scalar case, derived minus by hand:", scalar_case())
    for activation, error in (("sigmoid", "squares"), ("tanh", "squares"), ("softmax", "cross_entropy")):
        print(f"layer with {activation} and {error}:", layer_case(activation, error))
    print(fused_backward())
    print(f"exclusive or: loss {train():.2e}")


if __name__ == "__main__":
    main()
