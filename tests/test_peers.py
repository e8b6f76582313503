"""PyTorch and JAX as oracles, where they are installed; they are never dependencies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphc as gx
from graphc import data

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed; it is compared with where it is")


@pytest.fixture
def case_c(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import case_c

    return case_c


def digits(case_c, count=2500):
    """Images that are as sparse as digits, and labels that depend on them."""
    rng = np.random.default_rng(5)
    images = np.maximum(rng.normal(-0.5, 0.6, (count, 784)), 0).astype(np.float32).clip(0, 1)
    return images, data.one_hot((images[:, :10]).argmax(1), 10)


@pytest.mark.parametrize("kind", ["classifier", "autoencoder"])
def test_training_curves_match_pytorchs(torch, case_c, kind):
    from curves import curves

    pair = curves(kind, *digits(case_c), epochs=3)
    assert len(pair.native) == 9  # two full batches and a ragged one, three times
    assert pair.native[-1] < pair.native[0]
    assert pair.worst < 1e-3


@pytest.mark.parametrize("kind", ["classifier", "autoencoder"])
def test_training_matches_jax(case_c, kind):
    pytest.importorskip("jax", reason="JAX is not installed; it is compared with where it is")
    native, peer = case_c.graphc_step(kind), case_c.jax_step(kind)
    images, targets = digits(case_c, 600)
    targets = targets if kind == "classifier" else images
    for first in range(0, 600, 200):
        x, t = images[first : first + 200], targets[first : first + 200]
        np.testing.assert_allclose(float(native(x, t)), float(peer(x, t)), rtol=1e-4)


# name, our loss, PyTorch's, whether the target holds labels.
LOSSES = [
    ("softmax_cross_entropy", gx.softmax_cross_entropy, "cross_entropy", {}, "labels"),
    ("smoothed", gx.softmax_cross_entropy, "cross_entropy", {"label_smoothing": 0.1}, "labels"),
    ("ignoring", gx.softmax_cross_entropy, "cross_entropy", {"ignore_index": 2}, "labels"),
    ("probabilities", gx.softmax_cross_entropy, "cross_entropy", {}, "rows"),
    ("nll_loss", lambda z, t, **o: gx.nll_loss(gx.log_softmax(z), t, **o), "nll", {}, "labels"),
    ("mse", gx.mse, "mse_loss", {}, "rows"),
    ("l1", gx.l1, "l1_loss", {}, "rows"),
    ("huber", gx.huber, "huber_loss", {"delta": 0.7}, "rows"),
    ("bce_with_logits", gx.bce_with_logits, "binary_cross_entropy_with_logits", {}, "rows"),
]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("name", "ours", "theirs", "options", "target"), LOSSES, ids=[row[0] for row in LOSSES]
)
def test_losses_and_their_gradients_match_pytorchs(torch, name, ours, theirs, options, target, reduction):
    functional = torch.nn.functional
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(9, 4))
    labels = rng.integers(0, 4, 9)
    rows = rng.dirichlet(np.ones(4), 9)
    fed = labels if target == "labels" else rows
    z = gx.param("z", init=scores)
    t = gx.input("t", fed.shape, str(fed.dtype))
    loss = ours(z, t, reduction=reduction, **options)
    exe = gx.compile(loss, loss=loss)
    value = exe.run(t=fed)

    peer = torch.tensor(scores, requires_grad=True)
    if theirs == "nll":
        expected = functional.nll_loss(peer.log_softmax(-1), torch.tensor(fed), reduction=reduction)
    else:
        expected = getattr(functional, theirs)(peer, torch.tensor(fed), reduction=reduction, **options)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(exe.grads["z"], peer.grad.numpy(), rtol=1e-11, atol=1e-14)


OPTIMIZERS = [
    ("SGD", gx.optim.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
     "SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", gx.optim.Adam(lr=0.01), "Adam", {"lr": 0.01}),
    ("AdamW", gx.optim.AdamW(lr=0.01, weight_decay=0.1), "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("RMSProp", gx.optim.RMSProp(lr=0.01, centered=True, momentum=0.5),
     "RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.5}),
    ("Adagrad", gx.optim.Adagrad(lr=0.05, lr_decay=0.1), "Adagrad", {"lr": 0.05, "lr_decay": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "options"), OPTIMIZERS, ids=[row[0] for row in OPTIMIZERS]
)
def test_native_training_with_each_optimizer_matches_pytorchs(torch, name, ours, theirs, options):
    rng = np.random.default_rng(2)
    weight, bias = rng.normal(size=(3, 5)), rng.normal(size=3)
    x, t = gx.input("x", (gx.dim("B"), 5), "float64"), gx.input("t", (gx.dim("B"), 3), "float64")
    w, b = gx.param("w", init=weight), gx.param("b", init=bias)
    loss = gx.mse((x @ w.T + b).tanh(), t)
    step = gx.compile(loss, loss=loss, optimizer=ours)

    w_peer = torch.tensor(weight, requires_grad=True)
    b_peer = torch.tensor(bias, requires_grad=True)
    peer = getattr(torch.optim, theirs)([w_peer, b_peer], **options)
    for _ in range(20):
        xs, ts = rng.normal(size=(11, 5)), rng.normal(size=(11, 3))
        value = step.run(x=xs, t=ts)
        peer.zero_grad()
        expected = ((torch.tensor(xs) @ w_peer.T + b_peer).tanh() - torch.tensor(ts)).square().mean()
        expected.backward()
        peer.step()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    # Hyperparameters are float32 in a step: 0.05 is off by 1e-9 or so there.
    np.testing.assert_allclose(step.params["w"], w_peer.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(step.params["b"], b_peer.detach().numpy(), rtol=1e-5, atol=1e-6)
