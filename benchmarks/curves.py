"""Training curves of worked case C, native against PyTorch from the same weights, batch by batch.

    python benchmarks/curves.py [--data DIR] [--plot FILE]

Prints the largest relative difference of the loss over three epochs for the classifier and the autoencoder;
the bar is 1e-3 in float32.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from case_c import SIZES, Array, dataset, graphc_step, torch_step

BATCH = 1000
BAR = 1e-3


@dataclass(frozen=True)
class Curves:
    """The loss of every batch in order."""

    native: Array
    torch: Array

    @property
    def worst(self) -> float:
        """The largest difference relative to PyTorch's loss."""
        return float(np.max(np.abs(self.native - self.torch) / self.torch))


def curves(kind: str, images: Array, targets: Array, epochs: int = 3, seed: int = 0) -> Curves:
    """Trains both on the same batches in the same order. The autoencoder's targets are its images."""
    import torch

    native, peer = graphc_step(kind, seed=seed), torch_step(kind, seed)
    rng = np.random.default_rng(seed)
    losses: list[tuple[float, float]] = []
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            x = images[chosen]
            t = targets[chosen] if kind == "classifier" else x
            losses.append((float(native(x, t)), float(peer(torch.from_numpy(x), torch.from_numpy(t)))))
    columns = np.array(losses)
    return Curves(columns[:, 0], columns[:, 1])


def plot(found: dict[str, Curves], path: str) -> None:
    """Draws both pairs of curves."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(10, 4))
    for axis, (kind, pair) in zip(axes, found.items(), strict=True):
        axis.plot(pair.torch, label="PyTorch", linewidth=3, alpha=0.5)
        axis.plot(pair.native, label="graphc", linewidth=1)
        axis.set(title=kind, xlabel="batch", ylabel="loss")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Prints the figures; exits with 1 if one is above the bar."""
    parser = argparse.ArgumentParser(description="Training curves against PyTorch's.")
    parser.add_argument("--data", metavar="DIR", help="MNIST's files (default: random images of that size)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--plot", metavar="FILE")
    options = parser.parse_args()
    images, targets = dataset(options.data)
    found = {kind: curves(kind, images, targets, options.epochs) for kind in SIZES}
    for kind, pair in found.items():
        print(
            f"{kind:<11} loss {pair.native[0]:.5f} -> {pair.native[-1]:.5f} (PyTorch {pair.torch[-1]:.5f}), "
            f"largest relative difference over {len(pair.native)} batches {pair.worst:.1e}"
        )
    if options.plot:
        plot(found, options.plot)
    raise SystemExit(any(pair.worst >= BAR for pair in found.values()))


if __name__ == "__main__":
    main()
