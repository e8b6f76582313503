"""Losses against their definitions in PyTorch's documentation, written out in numpy (float64)."""

from __future__ import annotations

import numpy as np
import pytest
from frontend import run

import graphc as gx

RNG = np.random.default_rng(5)
Z = RNG.normal(size=(6, 4)) * 3
LABELS = np.array([0, 3, 1, 1, 2, 0])
ONE_HOT = np.eye(4)[LABELS]
SOFT = RNG.dirichlet(np.ones(4), 6)
WEIGHT = np.array([0.5, 2.0, 1.0, 0.25])
P = RNG.uniform(0.05, 0.95, (6, 4))
BITS = RNG.integers(0, 2, (6, 4)).astype(np.float64)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def leaves():
    B = gx.dim("B")
    z = gx.input("z", (B, 4), dtype="float64")
    y = gx.input("y", (B,), dtype="int64")
    t = gx.input("t", (B, 4), dtype="float64")
    return z, y, t


def finish(rows, reduction, divisor=None):
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / (rows.size if divisor is None else divisor)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_elementwise_losses(reduction):
    p, _, t = leaves()
    d = Z - SOFT
    cases = [
        (gx.mse(p, t, reduction=reduction), Z, SOFT, d**2),
        (gx.l1(p, t, reduction=reduction), Z, SOFT, np.abs(d)),
        (
            gx.huber(p, t, delta=1.5, reduction=reduction),
            Z, SOFT, np.where(np.abs(d) <= 1.5, d**2 / 2, 1.5 * (np.abs(d) - 0.75)),
        ),
        (
            gx.bce(p, t, reduction=reduction),
            P, BITS, -(BITS * np.log(P) + (1 - BITS) * np.log(1 - P)),
        ),
        (
            gx.bce(p, t, eps=0.1, weight=WEIGHT, reduction=reduction),
            P, BITS, -WEIGHT * np.log(np.where(BITS == 1, np.clip(P, 0.1, 0.9), 1 - np.clip(P, 0.1, 0.9))),
        ),
        (
            gx.bce_with_logits(p, t, reduction=reduction),
            Z, SOFT, -(SOFT * -np.log1p(np.exp(-Z)) + (1 - SOFT) * -np.log1p(np.exp(Z))),
        ),
        (
            gx.bce_with_logits(p, t, pos_weight=WEIGHT, reduction=reduction),
            Z, SOFT, WEIGHT * SOFT * np.log1p(np.exp(-Z)) + (1 - SOFT) * np.log1p(np.exp(Z)),
        ),
    ]  # fmt: skip
    for loss, prediction, target, rows in cases:
        np.testing.assert_allclose(run(loss, z=prediction, t=target), finish(rows, reduction), rtol=1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("ignore", [None, 1, -100])
def test_index_targets(reduction, weight, ignore):
    z, y, _ = leaves()
    labels = np.where(LABELS == 1, ignore, LABELS) if ignore == -100 else LABELS
    options = {"weight": weight, "ignore_index": ignore, "reduction": reduction}
    w = np.ones(4) if weight is None else weight
    keep = labels != ignore if ignore is not None else np.ones(6, bool)
    row_weights = np.where(keep, w[LABELS], 0)
    rows = -row_weights * log_softmax(Z)[np.arange(6), LABELS]
    expected = finish(rows, reduction, row_weights.sum())
    probabilities = np.exp(log_softmax(Z))
    for loss, fed in (
        (gx.softmax_cross_entropy(z, y, **options), Z),
        (gx.nll_loss(z, y, **options), log_softmax(Z)),
        (gx.cross_entropy(z, y, **options), probabilities),
    ):
        np.testing.assert_allclose(run(loss, z=fed, y=labels), expected, rtol=1e-10)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("target", [ONE_HOT, SOFT])
def test_dense_targets(weight, target):
    z, _, t = leaves()
    w = 1 if weight is None else weight
    rows = -(w * target * log_softmax(Z)).sum(-1)
    for loss, fed in (
        (gx.softmax_cross_entropy(z, t, weight=weight), Z),
        (gx.nll_loss(z, t, weight=weight), log_softmax(Z)),
        (gx.cross_entropy(z, t, weight=weight), np.exp(log_softmax(Z))),
    ):
        np.testing.assert_allclose(run(loss, z=fed, t=target), rows.mean(), rtol=1e-10)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("ignore", [None, 1])
def test_label_smoothing(weight, ignore):
    z, y, t = leaves()
    w = np.ones(4) if weight is None else weight
    logp = log_softmax(Z)
    keep = ignore != LABELS
    row_weights = np.where(keep, w[LABELS], 0)
    nll = -row_weights * logp[np.arange(6), LABELS]
    smooth = np.where(keep, -(w * logp).sum(1), 0)
    expected = (0.8 * nll.sum() + 0.2 / 4 * smooth.sum()) / row_weights.sum()
    loss = gx.softmax_cross_entropy(z, y, weight=weight, ignore_index=ignore, label_smoothing=0.2)
    np.testing.assert_allclose(run(loss, z=Z, y=LABELS), expected, rtol=1e-10)
    if ignore is None:
        dense = gx.softmax_cross_entropy(z, t, weight=weight, label_smoothing=0.2)
        rows = -(w * (0.8 * ONE_HOT + 0.05) * logp).sum(-1)
        np.testing.assert_allclose(run(dense, z=Z, t=ONE_HOT), rows.mean(), rtol=1e-10)


def test_all_ignored_is_nan_and_ignored_rows_do_not_count():
    z, y, _ = leaves()
    loss = gx.softmax_cross_entropy(z, y, ignore_index=-1)
    assert np.isnan(run(loss, z=Z, y=np.full(6, -1)))
    spoilt = Z.copy()
    spoilt[0] = np.nan
    labels = LABELS.copy()
    labels[0] = -1
    np.testing.assert_allclose(
        run(loss, z=spoilt, y=labels), -log_softmax(Z)[np.arange(1, 6), LABELS[1:]].mean(), rtol=1e-10
    )


def test_gradient_is_y_minus_t():
    z, y, _ = leaves()
    found = run(gx.grad(gx.softmax_cross_entropy(z, y), z), z=Z, y=LABELS)
    np.testing.assert_allclose(found, (np.exp(log_softmax(Z)) - ONE_HOT) / 6, rtol=1e-9, atol=1e-15)


def test_more_axes():
    z = gx.input("z", (2, 3, 4), dtype="float64")
    y = gx.input("y", (2, 3), dtype="int32")
    found = run(gx.softmax_cross_entropy(z, y), z=Z.reshape(2, 3, 4), y=LABELS.reshape(2, 3).astype(np.int32))
    np.testing.assert_allclose(found, -log_softmax(Z)[np.arange(6), LABELS].mean(), rtol=1e-10)


@pytest.mark.parametrize("label", [-1, 4, 2**40])
def test_labels_are_checked(label):
    z, y, _ = leaves()
    bad = LABELS.copy()
    bad[2] = label
    for loss in (gx.softmax_cross_entropy, gx.nll_loss, gx.cross_entropy):
        with pytest.raises(gx.IndexRangeError, match="y"):
            run(loss(z, y), z=Z, y=bad)


def test_refused():
    z, y, t = leaves()
    column = gx.input("c", (gx.dim("B"), 1))
    row = gx.input("r", (gx.dim("B"),))
    for bad, error in (
        (lambda: gx.mse(column, row), gx.ShapeError),
        (lambda: gx.mse(z, t[:, :2]), gx.ShapeError),
        (lambda: gx.mse(z, t, reduction="average"), gx.DeclarationError),
        (lambda: gx.softmax_cross_entropy(z, row), gx.DTypeError),
        (lambda: gx.softmax_cross_entropy(z, column), gx.ShapeError),
        (lambda: gx.softmax_cross_entropy(z, y, weight=np.ones(3)), gx.ShapeError),
        (lambda: gx.softmax_cross_entropy(z, t, ignore_index=1), gx.DeclarationError),
        (lambda: gx.softmax_cross_entropy(z, y, label_smoothing=2), gx.DeclarationError),
        (lambda: gx.huber(z, t, delta=0), gx.DeclarationError),
        (lambda: gx.bce(z, t, eps=0.7), gx.DeclarationError),
    ):
        with pytest.raises(error, match=r"declared at .*test_losses\.py"):
            bad()


def test_published_digits_of_backpropagation_on_xand():
    """Worked case B: a 2-2-1 sigmoid network, binary cross entropy, float64."""
    w0 = gx.param("W0", init=np.array([[-5.12, 3.38], [-5.1, 3.37]]))
    b0 = gx.param("B0", init=np.array([1.72, -5.25]))
    w1 = gx.param("W1", init=np.array([[6.6], [6.5]]))
    b1 = gx.param("B1", init=np.array([-3.2]))
    x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = np.array([[1.0], [0.0], [0.0], [1.0]])
    a2 = gx.sigmoid(gx.sigmoid(x @ w0 + b0) @ w1 + b1)
    loss = gx.bce(a2, y)
    value, outputs, *found = run([loss, a2, *gx.grad(loss, [w1, b1, w0, b0])])
    np.testing.assert_allclose(value, 0.1061718585994833, rtol=1e-13)
    np.testing.assert_allclose(outputs[:, 0], [0.91920404, 0.10696175, 0.10728019, 0.89240796], atol=5e-9)
    expected = [
        [[-0.01539019], [-0.01497484]],
        [0.00646349],
        [[0.00549597, -0.00590486], [0.00558363, -0.00611183]],
        [-0.00605589, 0.01337785],
    ]
    for gradient, digits in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, digits, atol=5.1e-9)
