"""Formulas that a person can read."""

from __future__ import annotations

import pytest

import graphc as gx

A, B, C = (gx.input(name) for name in "abc")
X = gx.input("x", (gx.dim("N"), 4))
W = gx.param("w", (3, 4), init="zeros")
BIAS = gx.param("b", (3,), init="zeros")


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (lambda: gx.add(0.1, 0.2), "0.1 + 0.2"),
        (lambda: gx.sigmoid(A * B + C), "sigmoid(a * b + c)"),
        (lambda: A - (B - C), "a - (b - c)"),
        (lambda: A - B - C, "a - b - c"),
        (lambda: A / (B * C), "a / (b * c)"),
        (lambda: A * (B % C), "a * (b % c)"),
        (lambda: (A + B) * -C, "(a + b) * -c"),
        (lambda: -(A + B), "-(a + b)"),
        (lambda: (-A) ** 2, "(-a)**2"),
        (lambda: A**B**C, "a ** b ** c"),
        (lambda: (A**B) ** C, "(a ** b) ** c"),
        (lambda: A * -2.5, "a * -2.5"),
        (lambda: 1 / (A + 1), "1 / (a + 1)"),
        (lambda: gx.where(A > 0, A, B), "where(a > 0, a, b)"),
        (lambda: (A > 0) & ~(B < C), "(a > 0) & ~(b < c)"),
        (lambda: X @ W.T + BIAS, "x @ w.T + b"),
        (lambda: gx.softmax(X @ W.T, 1), "softmax(x @ w.T, axis=1)"),
        (lambda: gx.einsum("ij,kj->ik", X, W), "einsum('ij,kj->ik', x, w)"),
        (lambda: X.sum(), "sum(x)"),
        (lambda: X.mean(0), "mean(x, axis=0)"),
        (lambda: X.mean(), "mean(x)"),
        (lambda: X[1:, ::2], "x[1:, ::2]"),
        (lambda: X[0], "x[0]"),
        (lambda: X[:, -1], "x[:, 3]"),
        (lambda: X[:, ::-1], "x[:, ::-1]"),
        (lambda: X.reshape(2, -1), "x.reshape(2, 2*N)"),
        (lambda: X[:, None] * 2, "x[:, None, :] * 2"),
        (lambda: gx.concat([X, X]), "concat(x, x, axis=0)"),
        (lambda: X.clip(0.0, None), "clip(x, low=0)"),
        (lambda: X.gelu("tanh"), "gelu(x, approximate=tanh)"),
        (lambda: A * gx.constant([1.5, 2.0]), "a * [1.5, 2.0]"),
    ],
)
def test_spelling(tensor, expected):
    assert gx.formula(tensor()) == expected


def test_long_shared_parts_are_named():
    h = gx.sigmoid(A * B + C)
    assert gx.formula(h + h * (A + B)) == "h1 = sigmoid(a * b + c)\nh1 + h1 * (a + b)"
    short = A + B
    assert gx.formula(short * short) == "(a + b) * (a + b)"


def test_a_minimal_formula_evaluates_to_the_same():
    import numpy as np
    from frontend import run

    value = (A - (B - C)) / (A * -B) ** 3 - A * (B / C) + (A + B) % C
    feeds = {"a": 1.7, "b": -0.6, "c": 2.3}
    found = run(value, **{k: np.float32(v) for k, v in feeds.items()})
    text = gx.formula(value)
    scope = dict(feeds)
    *lines, last = text.split("\n")
    for line in lines:
        name, _, expression = line.partition(" = ")
        scope[name] = eval(expression, {}, scope)
    np.testing.assert_allclose(found, eval(last, {}, scope), rtol=1e-5)


def test_refused():
    with pytest.raises(gx.DeclarationError, match="not float"):
        gx.formula(1.0)
