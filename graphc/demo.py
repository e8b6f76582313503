"""`graphc demo`: declares a network, compiles it, trains it on handwritten digits and tells what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import graphc as gx
from graphc import data
from graphc.errors import UsageError

if TYPE_CHECKING:
    from graphc.executable import Executable

Array = np.ndarray[Any, Any]

SMALL_HELD_BACK = 360
"""Of scikit-learn's 1,797 digits."""
MNIST_SHARE_HELD_BACK = 0.15
"""Of MNIST's images: 1,500 of 10,000."""
SMALL_EPOCHS = 100
MNIST_EPOCHS = 20
LINES = 20
"""Epochs that are reported, at most."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of the demo. `data`: a directory of MNIST files, None for small digits;
    `epochs`: None for as many as that data needs."""

    data: Path | None = None
    epochs: int | None = None
    batch_size: int = 64
    hidden: int = 256
    learning_rate: float = 3e-3
    shifts: bool = False
    threads: int | None = None
    seed: int = 1
    dumps: Path = Path("dumps")
    progress: bool | None = None

    @property
    def epoch_count(self) -> int:
        """The epochs to train for."""
        if self.epochs is not None:
            return self.epochs
        return SMALL_EPOCHS if self.data is None else MNIST_EPOCHS


@dataclass(frozen=True)
class Outcome:
    """What the demo found: accuracy on the digits held back, the last loss, median seconds per epoch."""

    accuracy: float
    loss: float
    seconds_per_epoch: float


class Batches:
    """Shuffled feeds, anew on each iteration, with every image moved by up to a pixel if `shifts`."""

    def __init__(self, images: Array, labels: Array, options: Options) -> None:
        self.images, self.labels, self.options = images, labels, options
        self.rng = np.random.default_rng(options.seed)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.options.batch_size)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        images = data.shifted(self.images, self.rng) if self.options.shifts else self.images
        order = self.rng.permutation(len(self.labels))
        for first in range(0, len(order), self.options.batch_size):
            chosen = order[first : first + self.options.batch_size]
            yield {"x": images[chosen], "t": self.labels[chosen]}


def declare(pixels: int, hidden: int) -> tuple[gx.Tensor, gx.Tensor]:
    """(logits, loss) of a classifier with one hidden layer: inputs x (B, pixels) and t (B,)."""
    batch = gx.dim("B")
    x = gx.input("x", (batch, pixels))
    t = gx.input("t", (batch,), dtype="int32")
    h = gx.nn.Linear(pixels, hidden, name="fc1")(x).relu()
    logits = gx.nn.Linear(hidden, 10, name="fc2")(h)
    return logits, gx.softmax_cross_entropy(logits, t)


def split_of(options: Options) -> data.Split:
    """The digits asked for, split into those to train on and those held back."""
    images, labels = data.load(options.data)
    held_back = SMALL_HELD_BACK if options.data is None else round(MNIST_SHARE_HELD_BACK * len(labels))
    return data.split(images, labels, held_back, options.seed)


def compile_network(pixels: int, options: Options, batch_count: int) -> tuple[Executable, Executable]:
    """(training step, inference) of the demo's network, with a learning rate that falls to 0."""
    gx.seed(options.seed)
    logits, loss = declare(pixels, options.hidden)
    steps = batch_count * options.epoch_count
    optimizer = gx.optim.Adam(lr=lambda step: options.learning_rate * max(1 - step / steps, 0.0))
    step = gx.compile({"loss": loss}, loss=loss, optimizer=optimizer, threads=options.threads)
    return step, gx.compile(logits)


def accuracy(infer: Executable, images: Array, labels: Array) -> float:
    """The share of images whose largest logit is that of their label."""
    return float(np.mean(infer.run(x=images).argmax(-1) == labels))


def run(options: Options) -> Outcome:
    """Runs the demo and prints what it does. Same options, same figures (but the seconds)."""
    digits = split_of(options)
    pixels = digits.images.shape[1]
    batches = Batches(digits.images, digits.labels, options)
    start = time.perf_counter()
    step, infer = compile_network(pixels, options, len(batches))
    compiled_in = time.perf_counter() - start
    source = "scikit-learn's digits" if options.data is None else f"MNIST from {options.data}"
    print(f"data       {source}: {len(digits.labels)} to train on, {len(digits.held_back_labels)} held back")
    print(f"network    {pixels} -> {options.hidden} relu -> 10, softmax cross entropy, Adam")
    print(f"compiled   training step and inference in {compiled_in:.2f} s")
    print("epoch      loss   accuracy  seconds")

    every = -(-options.epoch_count // LINES)

    def report(epoch: int, logs: dict[str, float]) -> None:
        if (epoch + 1) % every and epoch + 1 != options.epoch_count:
            return
        found = accuracy(infer, digits.held_back_images, digits.held_back_labels)
        print(f"{epoch + 1:5d}  {logs['loss']:8.4f}   {100 * found:6.2f} %  {logs['seconds']:.4f}")

    history = step.fit(batches, epochs=options.epoch_count, callbacks=report, progress=options.progress)
    if not history:
        raise UsageError("training was interrupted before the first epoch ended")
    found = accuracy(infer, digits.held_back_images, digits.held_back_labels)
    outcome = Outcome(found, history["loss"][-1], float(np.median(history["seconds"])))
    print(f"accuracy   {100 * found:.2f} % of the {len(digits.held_back_labels)} digits held back")
    print(f"time       {outcome.seconds_per_epoch:.4f} seconds per epoch (median)")
    print("the training step, stage by stage:")
    for path in step.dump_all(options.dumps):
        if Path(path).parent == options.dumps:
            print(f"  {path}")
    return outcome
