"""Worked case C's networks in graphc, PyTorch and JAX, from the same weights.

A classifier (784-16-16-10) and an autoencoder (784-64-784) with sigmoids, mean squared error, and gradient
descent with learning rate 10 and momentum 0.5. Each `*_step` returns f(images, targets) -> loss, which
trains on one batch; a loss is whatever the framework makes of it and is read with `float`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import graphc as gx
from graphc import data

Array = np.ndarray[Any, Any]
Step = Callable[[Any, Any], Any]

SIZES = {"classifier": (784, 16, 16, 10), "autoencoder": (784, 64, 784)}
LEARNING_RATE = 10.0
MOMENTUM = 0.5


def dataset(directory: str | None, count: int = 10_000) -> tuple[Array, Array]:
    """MNIST's images (N, 784) and one-hot labels (N, 10); random ones where no directory is given."""
    if directory is not None:
        images, labels = data.load_mnist(directory)
    else:
        rng = np.random.default_rng(0)
        images = rng.random((count, 784), dtype=np.float32)
        labels = rng.integers(0, 10, count)
    return images, data.one_hot(labels, 10)


def declare(kind: str, seed: int = 0) -> gx.Tensor:
    """The loss of one of the networks; inputs are x and t (for the autoencoder t is x again)."""
    gx.seed(seed)
    batch = gx.dim("B")
    sizes = SIZES[kind]
    x, t = gx.input("x", (batch, sizes[0])), gx.input("t", (batch, sizes[-1]))
    return gx.mse(gx.nn.MLP(sizes, "sigmoid", "sigmoid", name=kind)(x), t)


def compiled(kind: str, backend: str = "native", seed: int = 0) -> gx.Executable:
    """A training step of graphc."""
    loss = declare(kind, seed)
    optimizer = gx.optim.SGD(lr=LEARNING_RATE, momentum=MOMENTUM)
    return gx.compile(loss, loss=loss, optimizer=optimizer, backend=backend)


def initial_weights(kind: str, seed: int = 0) -> list[tuple[Array, Array]]:
    """(weight (out, in), bias (out,)) of every layer before training."""
    params = list(gx.compile(declare(kind, seed), backend="numpy").params.values())
    return [(w.copy(), b.copy()) for w, b in zip(params[::2], params[1::2], strict=True)]


def graphc_step(kind: str, backend: str = "native", seed: int = 0) -> Step:
    """graphc, on one of its backends."""
    exe = compiled(kind, backend, seed)
    return lambda x, t: exe.run(x=x, t=t)


def torch_step(kind: str, seed: int = 0) -> Step:
    """PyTorch, eager, with its own optimizer."""
    import torch

    layers: list[Any] = []
    for weight, bias in initial_weights(kind, seed):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, torch.nn.Sigmoid()]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    criterion = torch.nn.MSELoss()

    def step(x: Any, t: Any) -> Any:
        optimizer.zero_grad()
        loss = criterion(model(x), t)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def jax_step(kind: str, seed: int = 0) -> Step:
    """JAX: the whole step, update included, under one jit that may reuse the old weights' memory."""
    import jax
    from jax import numpy as jnp

    params: Any = [(jnp.asarray(w), jnp.asarray(b)) for w, b in initial_weights(kind, seed)]
    moments: Any = jax.tree.map(jnp.zeros_like, params)

    def loss_of(params: Any, x: Any, t: Any) -> Any:
        for weight, bias in params:
            x = jax.nn.sigmoid(x @ weight.T + bias)
        return jnp.mean((x - t) ** 2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, moments: Any, x: Any, t: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, x, t)
        moments = jax.tree.map(lambda m, g: MOMENTUM * m + g, moments, gradients)
        params = jax.tree.map(lambda p, m: p - LEARNING_RATE * m, params, moments)
        return loss, params, moments

    def step(x: Any, t: Any) -> Any:
        nonlocal params, moments
        loss, params, moments = update(params, moments, x, t)
        return loss

    return step
