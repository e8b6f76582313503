"""Lesson 5: handwritten digits by three routes.

A classifier (pixels-16-16-10) and an autoencoder (pixels-64-pixels) with sigmoids everywhere, mean squared
error, and gradient descent with momentum 0.5, learning rate 10 and batches of 1,000.

Route 1 sweeps backwards: one sweep gives the derivative of the loss for every weight.
Route 2 sweeps forwards ("front propagation"): one sweep gives the derivatives of every activation for one
        weight. It gives the same numbers, at one sweep per weight. Numeric derivatives agree with both.
Route 3 has no derivatives: weights are evolved. It learns a few patterns, and stays below 25 % on digits
        for the 20 generations of 40 networks here (a third after 60): selection alone says too little.

    python examples/05_mnist_three_routes.py [--data DIR]     (DIR: MNIST's files; otherwise small digits)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

import graphc as gx
from graphc import data

Array = np.ndarray


def classifier(pixels: int, dtype: str = "float32") -> tuple[gx.Tensor, gx.Tensor, list[gx.Tensor]]:
    """(outputs, loss, parameters); inputs are x (B, pixels) and t (B, 10), one-hot."""
    batch = gx.dim("B")
    x, t = gx.input("x", (batch, pixels), dtype), gx.input("t", (batch, 10), dtype)
    # Linear layers start Kaiming-uniform, as PyTorch's do.
    layers = gx.nn.MLP([pixels, 16, 16, 10], "sigmoid", "sigmoid", name="classifier", dtype=dtype)
    y = layers(x)
    return y, gx.mse(y, t), layers.parameters()


def autoencoder(pixels: int) -> tuple[gx.Tensor, gx.Tensor]:
    """(reconstruction, loss); the input is x (B, pixels), which is its own target."""
    x = gx.input("x", (gx.dim("B"), pixels))
    y = gx.nn.MLP([pixels, 64, pixels], "sigmoid", "sigmoid", name="autoencoder")(x)
    return y, gx.mse(y, x)


def descent() -> gx.optim.SGD:
    """The optimizer of both networks."""
    return gx.optim.SGD(lr=10.0, momentum=0.5)


# ------------------------------------------------------------------------------------- route 1: backwards


def train_classifier(digits: data.Split, epochs: int) -> tuple[list[float], float]:
    """(loss of each epoch, accuracy on the digits held back)."""
    gx.seed(0)
    y, loss, _ = classifier(digits.images.shape[1])
    step = gx.compile({"loss": loss}, loss=loss, optimizer=descent())
    feeds = {"x": digits.images, "t": data.one_hot(digits.labels, 10)}
    history = step.fit(feeds, epochs=epochs, batch_size=1000)
    return history["loss"], accuracy(gx.compile(y), digits.held_back_images, digits.held_back_labels)


def train_autoencoder(digits: data.Split, epochs: int) -> list[float]:
    """The loss of each epoch."""
    gx.seed(0)
    _, loss = autoencoder(digits.images.shape[1])
    step = gx.compile({"loss": loss}, loss=loss, optimizer=descent())
    return step.fit({"x": digits.images}, epochs=epochs, batch_size=1000)["loss"]


def accuracy(infer: gx.Executable, images: Array, labels: Array) -> float:
    """The share of images whose largest output is that of their label."""
    return float(np.mean(infer.run(x=images).argmax(axis=1) == labels))


# -------------------------------------------------------------------------- route 2: forwards, and by numbers


def compare_derivatives(
    images: Array, labels: Array, per_parameter: int = 12, backend: str = "native"
) -> dict[str, float]:
    """Derivatives of the loss for some weights of every parameter, backwards, forwards and numerically.

    Returns the largest differences relative to the largest derivative. In float64, so that numeric ones tell.
    """
    gx.seed(0)
    y, loss, weights = classifier(images.shape[1], "float64")
    backward = gx.compile({"y": y, "loss": loss}, loss=loss, backend=backend)
    feeds = {"x": images.astype(np.float64), "t": data.one_hot(labels, 10, np.float64)}
    backward.run(feeds)
    gradients = {name: array.copy() for name, array in backward.grads.items()}

    # One forward sweep carries the tangent of a single weight (a one-hot direction) through all activations.
    directions = [gx.input(f"direction{k}", w.shape, "float64") for k, w in enumerate(weights)]
    forward = gx.compile(gx.jvp({"y": y, "loss": loss}, weights, directions), backend=backend)

    rng = np.random.default_rng(0)
    size = max(np.abs(array).max() for array in gradients.values())
    worst = {"forwards": 0.0, "numerically": 0.0}
    blank = {d.name: np.zeros(d.shape) for d in directions}
    for weight, direction in zip(weights, directions, strict=True):
        values = backward.params[weight.name]
        for flat in rng.permutation(values.size)[:per_parameter]:
            place = np.unravel_index(flat, values.shape)
            one = np.zeros(values.shape)
            one[place] = 1
            tangent = forward.run({**feeds, **blank, direction.name: one})["loss"]
            exact = gradients[weight.name][place]
            numeric = central_difference(backward, feeds, values, place)
            worst["forwards"] = max(worst["forwards"], abs(tangent - exact) / size)
            worst["numerically"] = max(worst["numerically"], abs(numeric - exact) / size)
    return {name: float(value) for name, value in worst.items()}


def central_difference(
    exe: gx.Executable, feeds: dict, values: Array, place: tuple, eps: float = 1e-4
) -> float:
    """The loss's slope along one weight, from two runs; the weight is put back."""
    kept = values[place]
    losses = []
    for shifted in (kept + eps, kept - eps):
        values[place] = shifted
        losses.append(float(exe.run(feeds)["loss"]))
    values[place] = kept
    return (losses[0] - losses[1]) / (2 * eps)


# ------------------------------------------------------------------------------------- route 3: evolution


def evolve(
    images: Array, labels: Array, generations: int, population: int = 40, seed: int = 0
) -> tuple[gx.Executable, float]:
    """(network with the fittest weights, its accuracy on these images). Fitness is the loss.

    The fittest fifth lives on; the others are children of two of them, weight by weight from either, with
    some weights moved at random.
    """
    rng = np.random.default_rng(seed)
    y, loss, _ = classifier(images.shape[1])
    exe = gx.compile(loss)
    slab = np.concatenate([array.ravel() for array in exe.params.values()])
    genes = rng.normal(0, 0.5, (population, slab.size)).astype(np.float32)
    feeds = {"x": images, "t": data.one_hot(labels, 10)}
    survivors = population // 5
    for _ in range(generations):
        losses = []
        for individual in genes:
            express(exe, individual)
            losses.append(float(exe.run(feeds)))
        genes = genes[np.argsort(losses)]
        parents = rng.integers(0, survivors, (2, population - survivors))
        choice = rng.random((population - survivors, slab.size)) < 0.5
        children = np.where(choice, genes[parents[0]], genes[parents[1]])
        mutations = rng.random(children.shape) < 0.02
        genes[survivors:] = children + mutations * rng.normal(0, 0.5, children.shape)
    express(exe, genes[0])
    infer = gx.compile(y)
    return infer, accuracy(infer, images, labels)


def express(exe: gx.Executable, individual: Array) -> None:
    """Writes one individual's weights into the network: parameters are live numpy views."""
    start = 0
    for view in exe.params.values():
        view[...] = individual[start : start + view.size].reshape(view.shape)
        start += view.size


def patterns() -> tuple[Array, Array]:
    """Four patterns of 3 x 3 pixels (two bars, two diagonals), and their labels."""
    shapes = ["000111000", "010010010", "100010001", "001010100"]
    return np.array([[float(c) for c in shape] for shape in shapes], np.float32), np.arange(4, dtype=np.int32)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Handwritten digits by three routes.")
    parser.add_argument("--data", metavar="DIR", help="a directory with MNIST's files")
    parser.add_argument("--epochs", type=int, help="default: 100 for MNIST, 600 for the small digits")
    parser.add_argument("--generations", type=int, default=20)
    options = parser.parse_args(arguments)
    images, labels = data.load(options.data)
    digits = data.split(images, labels, round(0.15 * len(labels)))
    epochs = options.epochs or (100 if options.data else 600)

    losses, found = train_classifier(digits, epochs)
    print(f"classifier: loss {losses[0]:.4f} -> {losses[-1]:.4f}, {100 * found:.1f} % of the held back")
    losses = train_autoencoder(digits, epochs)
    print(f"autoencoder: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    for name, worst in compare_derivatives(digits.images[:100], digits.labels[:100]).items():
        print(f"derivatives backwards and {name} differ by {worst:.1e} of the largest")
    _, found = evolve(*patterns(), 3 * options.generations)
    print(f"evolved weights: {100 * found:.0f} % of four patterns,", end=" ")
    infer, _ = evolve(digits.images[:500], digits.labels[:500], options.generations)
    found = accuracy(infer, digits.held_back_images, digits.held_back_labels)
    print(f"{100 * found:.1f} % of the digits held back")


if __name__ == "__main__":
    main()
