"""`fit` and `evaluate`: running over a dataset in batches, many of them in one native call where that can be.

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
from graphc.figures import Means, figure_labels
from graphc.sites import names_options
from graphc.steps import step_loop

if TYPE_CHECKING:
    from graphc.executable import Executable

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Any]
Metric = Callable[[Mapping[str, Array], Feeds], Any]
Callback = Callable[[int, dict[str, float]], Any]
Order = Callable[[int], Array | None]
"""The order of so many samples in an epoch, None: as they are."""


class History(dict[str, list[float]]):
    """What `fit` returns: for every figure a list with one value per finished epoch.

    `interrupted` says that Ctrl-C ended training.
    """

    interrupted: bool = False

    def append(self, logs: Mapping[str, float]) -> None:
        """Adds one epoch's figures."""
        for name, value in logs.items():
            self.setdefault(name, []).append(value)


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


def slices(arrays: Mapping[str, Array], batch_size: int, order: Array | None) -> Iterator[tuple[Feeds, int]]:
    """(feeds, size) for each batch of arrays in an order of rows; the last one may be smaller."""
    length = common_length(arrays)
    for first in range(0, length, batch_size):
        last = min(first + batch_size, length)
        part: Any = slice(first, last) if order is None else order[first:last]
        yield {name: array[part] for name, array in arrays.items()}, last - first


def given_batches(executable: Executable, data: Any) -> Iterator[tuple[Feeds, int]]:
    """(feeds, size) for each batch of an iterable, or of what a function returns. Raises FeedError."""
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
    labels = figure_labels(label for label, array in results.items() if array.ndim == 0)
    figures = {name: float(results[label]) for name, label in labels.items()}
    for name, metric in (metrics or {}).items():
        figures[name] = float(np.mean(metric(results, feeds)))
    return figures


class Runner:
    """Runs an executable over datasets: over dicts of arrays many steps a call where that can be
    (`graphc.steps`), over anything else, and where metrics look at each batch, step by step."""

    def __init__(self, executable: Executable, metrics: Mapping[str, Metric] | None) -> None:
        self._executable = executable
        self._metrics = metrics
        self._loop = None if metrics else step_loop(executable)

    def epoch(self, data: Any, batch_size: int, order: Order, means: Means) -> Iterator[int]:
        """Runs all batches once and adds their figures to `means`; gives how many steps were done, each time
        that some are."""
        if isinstance(data, Mapping):
            arrays = {name: np.asarray(value) for name, value in data.items()}
            permutation = order(common_length(arrays))
            rows = self._loop.epoch_of(arrays, batch_size, permutation) if self._loop else None
            if self._loop and rows:
                for series, size, steps in self._loop.run(rows, batch_size):
                    means.add_series(series, size)
                    yield steps
                return
            batches = slices(arrays, batch_size, permutation)
        else:
            batches = given_batches(self._executable, data)
        for feeds, size in batches:
            means.add(figures_of(self._executable.run_labelled(feeds), feeds, self._metrics), size)
            yield 1

    def evaluate(
        self, data: Any, batch_size: int, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Means over all batches, in order, or over those that are done when `stop` says so."""
        means = Means()
        for _ in self.epoch(data, batch_size, lambda length: None, means):
            if stop():
                break
        return means.result()


def evaluate(
    executable: Executable, data: Any, batch_size: int = 256, metrics: Mapping[str, Metric] | None = None
) -> dict[str, float]:
    """Means over a dataset, weighted by batch size; see `Executable.evaluate`."""
    check_data(executable, data, "data")
    return Runner(executable, metrics).evaluate(data, positive("batch_size", batch_size))


@names_options
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
    if not executable.is_training:
        raise UsageError(
            "fit trains, and this executable updates nothing: compile it with a loss and an optimizer"
        )
    epochs, batch_size = positive("epochs", epochs), positive("batch_size", batch_size)
    listed = [callbacks] if callable(callbacks) else list(callbacks)
    check_data(executable, data, "data")
    runner, validator = Runner(executable, metrics), None
    if validation is not None:
        check_data(executable.evaluator, validation, "validation")
        validator = Runner(executable.evaluator, metrics)
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
            for steps in runner.epoch(data, batch_size, order, means):
                advance(epoch, means, steps)
                if interrupted():
                    break
            logs = {**means.result(), "seconds": time.perf_counter() - start}
            if validator is not None and not interrupted():
                found = validator.evaluate(validation, max(batch_size, 256), interrupted)
                logs |= {f"val_{name}": value for name, value in found.items()}
            if interrupted():
                history.interrupted = True
                break
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
def _bar(epochs: int, total: int | None, wanted: bool | None) -> Iterator[Callable[[int, Means, int], None]]:
    """A progress bar on stderr where that is a terminal (or if wanted); otherwise nothing."""
    shown = sys.stderr.isatty() if wanted is None else wanted
    if not shown:
        yield lambda epoch, means, steps: None
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

        def advance(epoch: int, means: Means, steps: int) -> None:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in means.result().items())
            progress.update(task, advance=steps, epoch=f"{epoch + 1}/{epochs}", figures=figures)

        yield advance
