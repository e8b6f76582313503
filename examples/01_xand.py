"""Lesson 1: a network of two layers, by its published digits.

The function to learn is XAND: 1 where both inputs are equal. Two sigmoid units, then one, and the binary
cross entropy averaged over the four rows of the truth table. The weights below were trained by hand-written
vectorised backpropagation; every activation and gradient that was published with them comes out of a
compiled network, on each of the three backends.

    python examples/01_xand.py
"""

from __future__ import annotations

import numpy as np

import graphc as gx

X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = np.array([[1.0], [0.0], [0.0], [1.0]])

PUBLISHED = {
    "A1": [[8.48128836e-01, 5.22012569e-03], [3.29263948e-02, 1.32388874e-01],
           [3.22954647e-02, 1.33541723e-01], [2.03426978e-04, 8.17574476e-01]],
    "A2": [[0.91920404], [0.10696175], [0.10728019], [0.89240796]],
    "loss": 0.1061718585994833,
    "dW0": [[0.00549597, -0.00590486], [0.00558363, -0.00611183]],
    "dB0": [-0.00605589, 0.01337785],
    "dW1": [[-0.01539019], [-0.01497484]],
    "dB1": [0.00646349],
}  # fmt: skip


def declare() -> tuple[dict[str, gx.Tensor], list[gx.Tensor]]:
    """The activations and the loss by name, and the four parameters."""
    batch = gx.dim("B")
    x = gx.input("x", (batch, 2), dtype="float64")
    y = gx.input("y", (batch, 1), dtype="float64")
    w0 = gx.param("W0", init=np.array([[-5.12, 3.38], [-5.1, 3.37]]))
    b0 = gx.param("B0", init=np.array([1.72, -5.25]))
    w1 = gx.param("W1", init=np.array([[6.6], [6.5]]))
    b1 = gx.param("B1", init=np.array([-3.2]))
    a1 = (x @ w0 + b0).sigmoid()
    a2 = (a1 @ w1 + b1).sigmoid()
    # Sigmoid followed by binary cross entropy is recognised: its backward is `a - y`, and it never overflows.
    return {"A1": a1, "A2": a2, "loss": gx.bce(a2, y)}, [w0, b0, w1, b1]


def digits(backend: str = "native") -> dict[str, np.ndarray]:
    """Activations, loss and gradients at the published weights, as float64."""
    outputs, parameters = declare()
    exe = gx.compile(outputs, loss=outputs["loss"], wrt=parameters, backend=backend)
    found = exe.run(x=X, y=Y)
    return {**found, **{f"d{name}": gradient.copy() for name, gradient in exe.grads.items()}}


def numeric_gradient(name: str, eps: float = 1e-4) -> np.ndarray:
    """The loss's gradient by central differences: the check that tells right from plausible."""
    outputs, _ = declare()
    exe = gx.compile(outputs)
    values = exe.params[name]
    gradient = np.zeros_like(values)
    for place in np.ndindex(values.shape):
        kept = values[place]
        losses = []
        for shifted in (kept + eps, kept - eps):
            values[place] = shifted
            losses.append(float(exe.run(x=X, y=Y)["loss"]))
        values[place] = kept
        gradient[place] = (losses[0] - losses[1]) / (2 * eps)
    return gradient


def main() -> None:
    for backend in ("native", "numpy", "python"):
        found = digits(backend)
        print(f"{backend} backend, largest difference from the published digits:")
        for name, published in PUBLISHED.items():
            print(f"  {name:<5} {np.abs(found[name] - np.array(published)).max():.1e}")
    print("backward against central differences:")
    exact = digits()
    for name in ("W0", "B0", "W1", "B1"):
        print(f"  d{name}   {np.abs(numeric_gradient(name) - exact[f'd{name}']).max():.1e}")
    print("the network as a formula:")
    print(gx.formula(declare()[0]["A2"]))


if __name__ == "__main__":
    main()
