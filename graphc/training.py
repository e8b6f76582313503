"""`fit` and `evaluate`: running over a dataset in batches.

A dataset is a dict of arrays with a common first axis, one for each input, or an iterable of feeds (dicts
as `run` takes them), or a function that returns such an iterable, called once for each epoch.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.errors import FeedError, StopTraining, UsageError

if TYPE_CHECKING:
    from graphc.executable import Executable

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Any]
Metric = Callable[[Mapping[str, Array], Feeds], Any]
Callback = Callable[[int, dict[str, float]], Any]
LOSS_LABEL = "__loss__"
"""The label under which a training step keeps a loss that the user did not ask for as an output."""


class History(dict[str, list[float]]):
    """What `fit` returns: for every figure a list with one value per finished epoch.

    `interrupted` says that Ctrl-C ended training.
    """

    interrupted: bool = False

    def append(self, logs: Mapping[str, float]) -> None:
        """Adds one epoch's figures."""
        for name, value in logs.items():
            self.setdefault(name, []).append(value)


class Means:
    """Means of figures over batches, weighted by batch size."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, figures: Mapping[str, float], weight: float) -> None:
        for name, value in figures.items():
            self._totals[name] = self._totals.get(name, 0.0) + weight * value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def result(self) -> dict[str, float]:
        """The means; NaN where all weights are 0."""
        return {
            n: t / self._weights[n] if self._weights[n] else float("nan") for n, t in self._totals.items()
        }


# ------------------------------------------------------------------------------------------------ batches


def common_length(data: Feeds) -> int:
    """The extent of the first axis that all arrays share. Raises FeedError."""
    lengths: dict[str, int] = {}
    for name, value in data.items():
        shape = np.shape(value)
        if not shape:
            raise FeedError(f"data {name!r} is a scalar; every array needs a first axis to take batches from")
        lengths[name] = shape[0]
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise FeedError(f"the arrays of the data differ in length: {shown}")
    return next(iter(lengths.values()), 0)


def batches(
    executable: Executable, data: Any, batch_size: int, order: Callable[[int], Array | None]
) -> Iterator[tuple[Feeds, int]]:
    """(feeds, size) for each batch of one epoch; the last one may be smaller. `order` gives the order of
    the samples (None: as they are)."""
    if isinstance(data, Mapping):
        arrays = {name: np.asarray(value) for name, value in data.items()}
        length = common_length(arrays)
        permutation = order(length)
        for first in range(0, length, batch_size):
            last = min(first + batch_size, length)
            part: Any = slice(first, last) if permutation is None else permutation[first:last]
            yield {name: array[part] for name, array in arrays.items()}, last - first
        return
    iterable = data() if callable(data) else data
    if not isinstance(iterable, Iterable):
        raise FeedError(f"data is a dict of arrays or an iterable of feeds, not {type(data).__name__}")
    for feeds in iterable:
        if not isinstance(feeds, Mapping):
            raise FeedError(f"each item of the data is a dict of feeds, not {type(feeds).__name__}")
        yield feeds, batch_extent(executable, feeds)


def batch_count(data: Any, batch_size: int) -> int | None:
    """The batches in an epoch, None where that is not known: an iterable or a function without a length."""
    if isinstance(data, Mapping):
        return -(-common_length(data) // batch_size)
    return len(data) if isinstance(data, Sized) else None


def batch_extent(executable: Executable, feeds: Feeds) -> int:
    """The samples in a feed: the first extent of the first input whose first extent is symbolic, else 1."""
    for name, node in executable.inputs.items():
        shape = node.types[0].shape
        if shape and not isinstance(shape[0], int) and name in feeds:
            given = np.shape(feeds[name])
            return given[0] if given else 1
    return 1


def check_data(executable: Executable, data: Any, what: str) -> None:
    """Raises FeedError for a dict of arrays that does not fit the inputs, before anything runs."""
    if isinstance(data, Mapping):
        executable.feed_plan.check_names(list(data))
        common_length(data)


def positive(name: str, value: Any) -> int:
    """The value as an int >= 1. Raises UsageError."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise UsageError(f"{name} is a positive integer, not {value!r}")
    return int(value.__index__())


# ------------------------------------------------------------------------------------- evaluate and fit


def figures_of(
    results: Mapping[str, Array], feeds: Feeds, metrics: Mapping[str, Metric] | None
) -> dict[str, float]:
    """The scalar outputs of one batch by label, and each metric (the mean, if it gives an array)."""
    figures = {
        label: float(array) for label, array in results.items() if array.ndim == 0 and label != LOSS_LABEL
    }
    if LOSS_LABEL in results:
        figures.setdefault("loss", float(results[LOSS_LABEL]))
    for name, metric in (metrics or {}).items():
        figures[name] = float(np.mean(metric(results, feeds)))
    return figures


def evaluate(
    executable: Executable, data: Any, batch_size: int = 256, metrics: Mapping[str, Metric] | None = None
) -> dict[str, float]:
    """Means over a dataset, weighted by batch size; see `Executable.evaluate`."""
    check_data(executable, data, "data")
    means = Means()
    for feeds, size in batches(executable, data, positive("batch_size", batch_size), lambda length: None):
        means.add(figures_of(executable.run_labelled(feeds), feeds, metrics), size)
    return means.result()


def fit(
    executable: Executable,
    data: Any,
    *,
    epochs: int = 1,
    batch_size: int = 32,
    shuffle: bool = True,
    validation: Any = None,
    callbacks: Sequence[Callback] | Callback = (),
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> History:
    """Trains; see `Executable.fit`."""
    if not executable.ir.optimized.updates:
        raise UsageError(
            "fit trains, and this executable updates nothing: compile it with a loss and an optimizer"
        )
    epochs, batch_size = positive("epochs", epochs), positive("batch_size", batch_size)
    listed = [callbacks] if callable(callbacks) else list(callbacks)
    check_data(executable, data, "data")
    if validation is not None:
        check_data(executable.evaluator, validation, "validation")
    if isinstance(data, Iterator) and epochs > 1:
        raise UsageError("an iterator serves one epoch; give fit a list, or a function that makes one")
    history = History()
    random = np.random.default_rng(seed)
    total = batch_count(data, batch_size)
    with _interruptible() as interrupted, _bar(epochs, total, progress) as advance:
        for epoch in range(epochs):
            start = time.perf_counter()
            means = Means()
            order = random.permutation if shuffle else lambda length: None
            for feeds, size in batches(executable, data, batch_size, order):
                means.add(figures_of(executable.run_labelled(feeds), feeds, metrics), size)
                advance(epoch, means)
                if interrupted():
                    break
            if interrupted():
                history.interrupted = True
                break
            logs = {**means.result(), "seconds": time.perf_counter() - start}
            if validation is not None:
                found = evaluate(executable.evaluator, validation, max(batch_size, 256), metrics)
                logs |= {f"val_{name}": value for name, value in found.items()}
            history.append(logs)
            try:
                for callback in listed:
                    callback(epoch, logs)
            except StopTraining:
                break
    return history


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag that is looked at between steps; a second one interrupts at once.

    Only where Python's own handler is in place, and in the main thread: elsewhere no signal arrives.
    """
    seen = False

    def interrupted() -> bool:
        return seen

    def note(number: int, frame: Any) -> None:
        nonlocal seen
        seen = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _bar(epochs: int, total: int | None, wanted: bool | None) -> Iterator[Callable[[int, Means], None]]:
    """A progress bar on stderr where that is a terminal (or if wanted); otherwise nothing."""
    shown = sys.stderr.isatty() if wanted is None else wanted
    if not shown:
        yield lambda epoch, means: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )  # fmt: skip
    # What callbacks print is moved above the bar, unless standard output leads elsewhere than the bar.
    together = sys.stdout.isatty()
    with Progress(
        *columns, console=Console(stderr=True), refresh_per_second=5, redirect_stdout=together
    ) as progress:
        task = progress.add_task(
            "fit",
            total=None if total is None else total * epochs,
            epoch=f"1/{epochs}",
            figures="",
        )

        def advance(epoch: int, means: Means) -> None:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in means.result().items())
            progress.update(task, advance=1, epoch=f"{epoch + 1}/{epochs}", figures=figures)

        yield advance
