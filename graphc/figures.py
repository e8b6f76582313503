"""Figures: the scalar outputs of steps, and their means over batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LOSS_LABEL = "__loss__"
"""The label under which a training step keeps a loss that the user did not ask for as an output."""


def figure_labels(scalars: Iterable[str]) -> dict[str, str]:
    """What scalar outputs are called as figures: name -> label. A kept loss is "loss", unless another is."""
    found = {label: label for label in scalars}
    kept = found.pop(LOSS_LABEL, None)
    if kept is not None:
        found.setdefault("loss", kept)
    return found


class Means:
    """Means of figures over batches, weighted by batch size."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, figures: Mapping[str, float], weight: float) -> None:
        for name, value in figures.items():
            self._totals[name] = self._totals.get(name, 0.0) + weight * value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def add_series(self, figures: Mapping[str, Array], weight: float) -> None:
        """Adds batches of one weight in order, a float64 each: to the same bits as one by one."""
        with np.errstate(all="ignore"):
            for name, values in figures.items():
                # A running sum goes from left to right, where np.sum would pair its terms.
                terms = np.concatenate(([self._totals.get(name, 0.0)], weight * values))
                self._totals[name] = float(np.add.accumulate(terms)[-1])
                self._weights[name] = self._weights.get(name, 0.0) + weight * len(values)

    def result(self) -> dict[str, float]:
        """The means; NaN where all weights are 0."""
        return {
            n: t / self._weights[n] if self._weights[n] else float("nan") for n, t in self._totals.items()
        }
