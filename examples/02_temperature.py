"""Lesson 2: one weight, one bias, and a tree of elementary operations.

Fahrenheit to Celsius is c = 5/9 f - 160/9. From 1,000 points in [-1, 1] a network with one weight and one
bias learns both to ten decimals. Then a classifier of the points above the line y = x, and the exercises
that usually follow: what is computed once, formulas, macros, softmax, and nodes with several parents.

    python examples/02_temperature.py
"""

from __future__ import annotations

import numpy as np

import graphc as gx


def temperature(steps: int = 150, backend: str = "native") -> dict[str, float]:
    """The weight and bias learned from 1,000 points by gradient descent, and the prediction for 32 F."""
    batch = gx.dim("B")
    f = gx.input("fahrenheit", (batch,), dtype="float64")
    c = gx.input("celsius", (batch,), dtype="float64")
    weight = gx.param("weight", init=np.array(0.0))
    bias = gx.param("bias", init=np.array(0.0))
    prediction = weight * f + bias
    loss = gx.mse(prediction, c)
    print("predict:", gx.formula(prediction))
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.4), backend=backend)
    predict = gx.compile(prediction, backend=backend)  # shares the parameters: they belong to the network

    points = np.random.default_rng(0).uniform(-1, 1, 1000)
    for _ in range(steps):
        step.run(fahrenheit=points, celsius=(points - 32) * 5 / 9)
    at_freezing = predict.run(fahrenheit=[32.0])[0]
    return {
        "weight": float(step.params["weight"]),
        "bias": float(step.params["bias"]),
        "predict(32)": float(at_freezing),
    }


def above_the_line(steps: int = 300, backend: str = "native") -> np.ndarray:
    """P(above y = x) for the points (1, 0), (0, 1) and (-5, 3), learned from 1,000 others."""
    batch = gx.dim("B")
    point = gx.input("point", (batch, 2), dtype="float64")
    above = gx.input("above", (batch, 1), dtype="float64")
    probability = gx.nn.Linear(2, 1, name="line", dtype="float64")(point).sigmoid()
    # Clamped by eps, as the exercise has it: such a loss has another gradient, and is left as it is written.
    loss = gx.bce(probability, above, eps=1e-12)
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.Adam(lr=0.3), backend=backend)

    points = np.random.default_rng(1).uniform(-1, 1, (1000, 2))
    labels = (points[:, 1:] > points[:, :1]).astype(float)
    for _ in range(steps):
        step.run(point=points, above=labels)
    return gx.compile(probability, backend=backend).run(point=[[1.0, 0.0], [0.0, 1.0], [-5.0, 3.0]])[:, 0]


def exercises() -> dict[str, str | int | np.ndarray]:
    """What such a tree is asked to grow next."""
    found: dict[str, str | int | np.ndarray] = {}

    # 1. Formulas that people can read, inputs by name.
    found["formula"] = gx.formula(gx.add(0.1, 0.2))
    x = gx.input("x", (2,))
    shared = (x * 2 + 1).sigmoid()

    # 2. A node with several parents is one node: its value is computed once, its gradients are summed.
    y = shared * shared + shared
    exe = gx.compile(y.sum())
    found["sigmoids"] = exe.dump("optimized").count("sigmoid(")
    found["shared"] = gx.formula(y)

    # 3. Forward values of what does not change are cached: constants fold when the network is compiled.
    folded = gx.compile(x * (gx.constant([1.0, 2.0]) + 3).exp())
    found["exponentials"] = folded.dump("optimized").count("exp(")

    # 4. Macros: a Linear layer is elementary operations, which is what the compiler sees.
    found["macro"] = gx.formula(gx.nn.Linear(2, 3, name="fc")(x))

    # 5. Vectors: softmax, and categorical cross entropy against one-hot rows.
    scores = gx.input("scores", (3,))
    target = gx.input("target", (3,))
    both = gx.compile((gx.softmax(scores), gx.softmax_cross_entropy(scores, target)))
    probabilities, loss = both.run(scores=[1.0, 2.0, 3.0], target=[0.0, 0.0, 1.0])
    found["softmax"] = probabilities
    found["cross entropy"] = loss
    return found


def main() -> None:
    for name, value in temperature().items():
        print(f"  {name:<12} {value:+.12f}")
    print(f"  (5/9 is {5 / 9:.12f}, -160/9 is {-160 / 9:.12f})")
    print("above y = x: (1, 0), (0, 1), (-5, 3):", np.round(above_the_line(), 4))
    for name, value in exercises().items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
