"""Worked case C's race: seconds per epoch of 60,000 digits for the classifier, batches of 1,000.

    python benchmarks/race.py [--data DIR] [--rounds N] [--threads N]

The 10,000 digits are tiled six times and put into one order, which everyone trains on; each framework holds
its batches in memory in its own kind of array. graphc runs `fit` on them; "shuffling" rows are what fit does
by default: it draws an order of its own for every epoch and gathers each batch. Contenders take turns, epoch
by epoch, and the median counts. The plain Python backend is timed on a few rows and extrapolated, as its row
says. All start from the same weights, and their mean losses over the first epoch are compared. Peers that are
not installed are left out.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from case_c import Array, Step, compiled, dataset, graphc_step, jax_step, torch_step
from settle import settle

import graphc as gx

EPOCH = 60_000
BATCH = 1000
PYTHON_ROWS = (10, 50)
PUBLISHED = {
    "pure Python": "405-467",
    "NumPy": "6.3-7.1",
    "Cython, 1 thread": "4.0-4.2",
    "Cython, 4 threads": "1.7",
    "Cython, 24 threads": "0.63",
    "PyTorch": "0.08-0.10",
}
"""Seconds per epoch that this network's authors measured on their machines."""


@dataclass
class Contender:
    """One row of the table. `batches` are in the framework's own arrays; `same_order` is False for a row that
    trains on them in an order of its own."""

    name: str
    step: Step
    batches: list[tuple[Any, Any]]
    prepare: Callable[[], None] = lambda: None
    wait: Callable[[Any], Any] = lambda loss: loss
    seconds: list[float] = field(default_factory=list)
    first_loss: float | None = None
    same_order: bool = True

    def run_epoch(self) -> None:
        """Trains for one epoch and notes the seconds; the first one, which only warms up, notes the loss."""
        self.prepare()
        if self.first_loss is None:
            self.first_loss = self.train_noting_losses()
            return
        start = time.perf_counter()
        self.train()
        self.seconds.append(time.perf_counter() - start)

    def train(self) -> None:
        """One epoch."""
        for x, t in self.batches:
            loss = self.step(x, t)
        self.wait(loss)

    def train_noting_losses(self) -> float:
        """One epoch; the mean of its losses."""
        return float(np.mean([float(self.step(x, t)) for x, t in self.batches]))


class Fit(Contender):
    """graphc's own loop, on the batches as one dataset."""

    def __init__(self, threads: int, arrays: dict[str, Array], shuffle: bool) -> None:
        name = f"graphc fit{', shuffling' * shuffle}, {threads} thread{'s' * (threads > 1)}"
        exe = compiled("classifier")
        super().__init__(name, lambda x, t: exe.run(x=x, t=t), [], lambda: gx.set_num_threads(threads))
        self.same_order = not shuffle
        self.fit = lambda: exe.fit(arrays, batch_size=BATCH, shuffle=shuffle, progress=False)

    def train(self) -> None:
        self.fit()

    def train_noting_losses(self) -> float:
        (loss,) = self.fit()["output"]
        return float(loss)


def batches_of(images: Array, targets: Array) -> list[tuple[Array, Array]]:
    """One epoch of batches, in an order drawn once."""
    order = np.random.default_rng(0).permutation(np.arange(EPOCH) % len(images))
    rows = order.reshape(-1, BATCH)
    return [(images[chosen], targets[chosen]) for chosen in rows]


def contenders(batches: list[tuple[Array, Array]], threads: int) -> list[Contender]:
    """Everyone who runs whole epochs, with all that is installed."""
    rows = [Contender("graphc, numpy backend", graphc_step("classifier", "numpy"), batches)]
    counts = [1] if threads == 1 else [1, threads]
    arrays = {name: np.concatenate([batch[k] for batch in batches]) for k, name in enumerate("xt")}
    for shuffle in (False, True):
        rows += [Fit(count, arrays, shuffle) for count in counts]
    if find_spec("torch"):
        import torch

        own = [(torch.from_numpy(x), torch.from_numpy(t)) for x, t in batches]
        for count in counts:
            name = f"PyTorch {torch.__version__} eager, {count} thread{'s' * (count > 1)}"
            rows.append(
                Contender(
                    name, torch_step("classifier"), own, lambda count=count: torch.set_num_threads(count)
                )
            )
    if find_spec("jax"):
        import jax

        own = [(jax.numpy.asarray(x), jax.numpy.asarray(t)) for x, t in batches]
        rows.append(
            Contender(
                f"JAX {jax.__version__} jit, {os.cpu_count()} threads", jax_step("classifier"), own,
                wait=lambda loss: loss.block_until_ready(),
            )
        )  # fmt: skip
    return rows


def python_row(batches: list[tuple[Array, Array]]) -> Contender:
    """The kernels loop by loop in plain Python: a step is timed at two small batches, and an epoch's seconds
    follow from what a step costs at all and what each row adds."""
    x, t = batches[0]
    step = graphc_step("classifier", "python")
    seconds = []
    for rows in PYTHON_ROWS:
        start = time.perf_counter()
        step(x[:rows], t[:rows])
        seconds.append(time.perf_counter() - start)
    per_row = (seconds[1] - seconds[0]) / (PYTHON_ROWS[1] - PYTHON_ROWS[0])
    per_step = seconds[0] - per_row * PYTHON_ROWS[0]
    epoch = EPOCH / BATCH * (per_step + per_row * BATCH)
    name = f"graphc, python backend (extrapolated from {PYTHON_ROWS[0]} and {PYTHON_ROWS[1]} rows)"
    return Contender(name, step, [], seconds=[epoch])


def race(images: Array, targets: Array, rounds: int, threads: int) -> list[Contender]:
    """Runs all contenders in turns; the first epoch of each only warms it up."""
    batches = batches_of(images, targets)
    rows = contenders(batches, threads)
    for _ in range(rounds + 1):
        for row in rows:
            row.run_epoch()
            settle()
    return [python_row(batches), *rows]


def table(rows: list[Contender]) -> str:
    """The race as a table in Markdown."""
    width = max(len(row.name) for row in rows)
    best_peer = min(
        (float(np.median(r.seconds)) for r in rows if not r.name.startswith("graphc")), default=None
    )
    lines = [
        f"| {'':<{width}} | s per epoch | fastest | x best peer |",
        f"|{'-' * (width + 2)}|---:|---:|---:|",
    ]
    for row in rows:
        median, fastest = float(np.median(row.seconds)), min(row.seconds)
        ratio = f"{best_peer / median:.2f}" if best_peer is not None else "-"
        lines.append(f"| {row.name:<{width}} | {median:.4f} | {fastest:.4f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, the spread of the first losses, and the published figures."""
    parser = argparse.ArgumentParser(description="Seconds per epoch of 60,000 digits.")
    parser.add_argument("--data", metavar="DIR", help="MNIST's files (default: random images of that size)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    images, targets = dataset(options.data)
    rows = race(images, targets, options.rounds, options.threads)
    print(table(rows))
    losses = [row.first_loss for row in rows if row.first_loss is not None and row.same_order]
    print(f"\nmean loss over the first epoch: {min(losses):.7f} to {max(losses):.7f}")
    print("published for this network (other machines):", ", ".join(f"{k} {v}" for k, v in PUBLISHED.items()))


if __name__ == "__main__":
    main()
