"""Lesson 6: a training loop as one writes it for real.

`fit` runs epochs in batches, uses the last ragged one, shows a progress bar on a terminal, evaluates on
held-back data, and returns a history. A callback changes the learning rate (never a recompile) and ends
training early. A checkpoint holds parameters and optimizer state: what goes on from it goes on exactly.

    python examples/06_training_loop.py [--data DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import graphc as gx
from graphc import data

Array = np.ndarray


def accuracy(outputs: dict[str, Array], feeds: dict[str, Array]) -> Array:
    """A metric: one value per sample, averaged by `fit` and `evaluate`."""
    return outputs["logits"].argmax(axis=1) == feeds["t"]


def build(pixels: int) -> gx.Executable:
    """A training step for a classifier; the same seed gives the same weights in every process."""
    gx.seed(0)
    batch = gx.dim("B")
    x, t = gx.input("x", (batch, pixels)), gx.input("t", (batch,), "int32")
    logits = gx.nn.MLP([pixels, 128, 64, 10], "relu", name="net")(x)
    loss = gx.softmax_cross_entropy(logits, t)
    optimizer = gx.optim.AdamW(lr=2e-3, weight_decay=0.01, clip_norm=1.0)
    return gx.compile({"loss": loss, "logits": logits}, loss=loss, optimizer=optimizer)


class HalveOnPlateau:
    """A callback: halves the learning rate when the validation loss has not improved for some epochs,
    and stops once it is small."""

    def __init__(self, step: gx.Executable, patience: int = 2, smallest: float = 1e-4) -> None:
        self.step, self.patience, self.smallest = step, patience, smallest
        self.best, self.waited = float("inf"), 0

    def __call__(self, epoch: int, logs: dict[str, float]) -> None:
        if logs["val_loss"] < self.best:
            self.best, self.waited = logs["val_loss"], 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.step.lr, self.waited = self.step.lr / 2, 0
            if self.step.lr < self.smallest:
                raise gx.StopTraining


def train(
    digits: data.Split, epochs: int, checkpoint: Path
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(history, figures of the held-back digits). Writes a checkpoint."""
    training, held_back = feeds_of(digits)
    step = build(digits.images.shape[1])
    history = step.fit(
        training,
        epochs=epochs,
        batch_size=64,
        validation=held_back,
        metrics={"accuracy": accuracy},
        callbacks=[HalveOnPlateau(step)],
    )
    step.save(checkpoint)
    return history, step.evaluate(held_back, metrics={"accuracy": accuracy})


def goes_on_exactly(digits: data.Split, checkpoint: Path) -> bool:
    """Whether two networks that load the checkpoint and train on are equal to the last bit."""
    training, _ = feeds_of(digits)
    states = []
    for _ in range(2):
        step = build(digits.images.shape[1])
        step.load(checkpoint)
        step.fit(training, epochs=1, batch_size=64)
        states.append(step.state_dict())
    return all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def feeds_of(digits: data.Split) -> tuple[dict[str, Array], dict[str, Array]]:
    """Datasets as `fit` and `evaluate` take them: arrays by input name, with a common first axis."""
    return (
        {"x": digits.images, "t": digits.labels},
        {"x": digits.held_back_images, "t": digits.held_back_labels},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A training loop as one writes it for real.")
    parser.add_argument("--data", metavar="DIR", help="a directory with MNIST's files")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args(arguments)
    images, labels = data.load(options.data)
    digits = data.split(images, labels, round(0.15 * len(labels)), seed=1)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "digits.safetensors"
        history, found = train(digits, options.epochs, checkpoint)
        print(f"{len(history['loss'])} epochs, {np.median(history['seconds']):.4f} s each")
        print(f"loss {history['loss'][0]:.4f} -> {history['loss'][-1]:.4f}")
        print(f"held back: loss {found['loss']:.4f}, accuracy {100 * found['accuracy']:.1f} %")
        exactly = goes_on_exactly(digits, checkpoint)
        print(f"checkpoint: {checkpoint.stat().st_size} bytes; goes on exactly: {exactly}")


if __name__ == "__main__":
    main()
