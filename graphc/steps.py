"""Many steps in one native call: how `fit` and `evaluate` run a dict of arrays on machine code.

    dataset ──> rows ──> spans of steps ──> figures of every step
             converted    one native call each, about SPAN_SECONDS long:
             where needed gather rows, set rates, run, note figures

What a loop over `run` would do is done to the last bit: the same batches, learning rates, figures and errors.
Between spans Python draws the progress bar and looks for Ctrl-C.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from graphc.codegen.steps import Span
from graphc.engine import NativeEngine
from graphc.errors import FeedError
from graphc.feeds import convert
from graphc.figures import figure_labels
from graphc.ir.addresses import address_of, aligned_bytes, pins
from graphc.ir.types import evaluate
from graphc.updates import LearningRate, OptimizerPlan, checked_rate

if TYPE_CHECKING:
    from graphc.executable import Executable

Array = np.ndarray[Any, Any]
SPAN_SECONDS = 0.05
"""What one native call should take: little enough to look for Ctrl-C and to draw in between."""
GROWTH = 8
"""A span has at most so many times the steps of the one before: one fast step may be a mistake."""
CONVERTED_BYTES = 1 << 30
"""A dataset of other dtypes, or with scattered rows, is converted whole up to this size, else by batches."""
CONVERTED_AT_ONCE = 1 << 22
FEW_BATCHES = 2
"""Up to so many batches of little data cost less step by step than a span costs to lay out."""
GATHER_BYTES = 1 << 16
"""Copying so much takes about 10 us, the least work that a chunk is worth."""
AHEAD_BYTES = 1 << 12
"""While a row is copied, the row so many bytes later in the batch is prefetched."""


_SPANS: WeakKeyDictionary[NativeEngine, dict[int, int]] = WeakKeyDictionary()
"""By the size of batches: steps of the next span. The next training goes on where the last one was."""


class Rows(NamedTuple):
    """One input's data: an array of the input's dtype whose rows are contiguous. `is_fed` says that a batch
    of consecutive rows may be fed where it lies. `pins` keep the memory where it is."""

    array: Array
    is_fed: bool
    pins: tuple[object, ...]

    @property
    def row_bytes(self) -> int:
        nbytes: int = math.prod(self.array.shape[1:]) * self.array.itemsize
        return nbytes


@dataclass(frozen=True, slots=True)
class Epoch:
    """The data of one epoch, by input. `order` is that of the rows; None: as they are, all to be fed."""

    rows: Mapping[str, Rows]
    order: Array | None

    @property
    def length(self) -> int:
        return len(next(iter(self.rows.values())).array) if self.rows else 0

    def moves(self, name: str) -> bool:
        """Whether an input's feed moves along its array; otherwise rows are gathered."""
        return self.order is None and self.rows[name].is_fed


class Figure(NamedTuple):
    """A scalar output that is kept of every step. `feed` is its number among the program's feeds; where it is
    None, `address` is where the value lies after a step."""

    name: str
    dtype: np.dtype[Any]
    feed: int | None
    address: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What batches of one size run on. `feeds` are addresses, 0 for those that move; `gathered` are the rows
    of `gx_steps`'s table of arrays; `buffers` what they are gathered into, by input."""

    size: int
    bindings: dict[str, int]
    feeds: list[int]
    gathered: tuple[tuple[int, int, int, int, int], ...]
    buffers: dict[str, Array]


def step_loop(executable: Executable) -> StepLoop | None:
    """The loop for an executable, None where steps cannot be run in spans: on the interpreters, and where a
    scalar output is no more than an input, which is read from the feed after each run."""
    engine = executable.engine
    if not isinstance(engine, NativeEngine):
        return None
    outputs = {
        label: output
        for label, output in engine.program.outputs.items()
        if label not in executable.gradient_outputs
    }
    scalars = [label for label, (_, type) in outputs.items() if not type.shape]
    figures = []
    for name, label in figure_labels(scalars).items():
        storage, type = outputs[label]
        address = engine.addresses.get(storage, 0)
        feed = engine.feed_numbers[storage] if storage in engine.label_of else None
        if feed is None and not address:
            return None
        figures.append(Figure(name, type.dtype.numpy, feed, address))
    return StepLoop(executable, engine, figures)


class StepLoop:
    """Runs an executable over dicts of arrays, many steps a call; see `step_loop`."""

    def __init__(self, executable: Executable, engine: NativeEngine, figures: Sequence[Figure]) -> None:
        self._executable = executable
        self._engine = engine
        self._figures = figures
        self._plan = executable.feed_plan
        self._memory: dict[tuple[str, int], Array] = {}
        self._converted: dict[str, Array] = {}
        self._spans = _SPANS.setdefault(engine, {})
        self._raised: Raised | None = None

    # ------------------------------------------------------------------------------------------- data

    def epoch_of(self, arrays: Mapping[str, Array], batch_size: int, order: Array | None) -> Epoch | None:
        """The arrays as rows that native code can feed or gather, converted where they must be.

        None where only a loop over `run` will do: a value that cannot be converted (which must raise at its
        batch), a dataset too large to convert, or one to convert in memory that training writes to. Also
        where there is so little to do that the loop is faster.
        """
        if sum(array.nbytes for array in arrays.values()) <= GATHER_BYTES and all(
            len(array) <= FEW_BATCHES * batch_size for array in arrays.values()
        ):
            return None
        found: dict[str, Rows] = {}
        budget = CONVERTED_BYTES
        for name, array in arrays.items():
            dtype = self._plan.inputs[name].types[0].dtype
            written = self._plan.is_written(array)
            if array.dtype != dtype.numpy or not array[:1].flags.c_contiguous:
                budget -= array.size * dtype.itemsize
                if written or budget < 0:
                    return None
                try:
                    array = self._convert(name, array)
                except FeedError:
                    return None
            flags = array.flags
            found[name] = Rows(array, flags.c_contiguous and flags.aligned and not written, pins(array))
        if order is None and not all(rows.is_fed for rows in found.values()):
            order = np.arange(len(next(iter(found.values())).array))
        return Epoch(found, order)

    def _convert(self, name: str, array: Array) -> Array:
        """A C-contiguous copy of the input's dtype, in memory that the next epoch uses again."""
        dtype = self._plan.inputs[name].types[0].dtype
        kept = self._converted.get(name)
        if kept is None or kept.shape != array.shape:
            kept = self._converted[name] = np.empty(array.shape, dtype.numpy)
        rows = max(CONVERTED_AT_ONCE // max(array[:1].nbytes, 1), 1)
        for first in range(0, len(array), rows):
            part = array[first : first + rows]
            if part.dtype != dtype.numpy:
                part = convert(f"input {name}", part, dtype)
            kept[first : first + rows] = part
        return kept

    # ------------------------------------------------------------------------------------------- steps

    def run(self, epoch: Epoch, batch_size: int) -> Iterator[tuple[dict[str, Array], int, int]]:
        """(figures by name, size of the batches, steps) for each span; a figure has one float64 a step.

        The last, smaller batch is a span of its own. Raises what `run` would raise for the failing batch;
        then the batches before it are done.
        """
        whole, rest = divmod(epoch.length, batch_size)
        done = 0
        if whole:
            layout = self._layout(epoch, batch_size)
        while done < whole:
            span = self._spans.get(batch_size, 1)
            steps = min(span, whole - done)
            start = time.perf_counter()
            figures, ran = self._run(layout, epoch, done * batch_size, steps)
            per_step = (time.perf_counter() - start) / ran
            self._spans[batch_size] = max(min(int(SPAN_SECONDS / per_step), max(span, steps * GROWTH)), 1)
            done += ran
            yield figures, batch_size, ran
        if rest:
            figures, ran = self._run(self._layout(epoch, rest), epoch, epoch.length - rest, 1)
            yield figures, rest, ran

    def _layout(self, epoch: Epoch, size: int) -> Layout:
        """Checks batches of this size, and lays out what their steps need. Raises as `run` does."""
        engine = self._engine
        _, bindings = self._plan.prepare({name: rows.array[:size] for name, rows in epoch.rows.items()})
        feeds = [0] * len(engine.feed_numbers)
        for storage, label in engine.label_of.items():
            given = self._executable.gradient_outputs.get(label)
            if given is None:
                nbytes = evaluate(engine.program.memory[storage].type.nbytes, bindings)
                given = self._room(f"output {storage}", size, nbytes)
            feeds[engine.feed_numbers[storage]] = address_of(given)
        gathered = []
        buffers: dict[str, Array] = {}
        for name, (array, _, _) in epoch.rows.items():
            if name not in engine.feed_numbers or epoch.moves(name):
                continue
            row_bytes = epoch.rows[name].row_bytes
            buffer = self._room(f"input {name}", size, size * row_bytes)
            feeds[engine.feed_numbers[name]] = address_of(buffer)
            buffers[name] = buffer.view(array.dtype).reshape(size, *array.shape[1:])
            # A prefetch comes too late for the next of many short rows, and too early for many long ones.
            ahead = -(-AHEAD_BYTES // max(row_bytes, 256))
            gathered.append((address_of(array), array.strides[0], row_bytes, address_of(buffer), ahead))
        return Layout(size, bindings, feeds, tuple(gathered), buffers)

    def _room(self, what: str, size: int, nbytes: int) -> Array:
        """Aligned memory for batches of a size, the same in every epoch: fresh pages cost more than steps."""
        found = self._memory.get((what, size))
        if found is None or found.nbytes != nbytes:
            found = self._memory[what, size] = aligned_bytes(nbytes)
        return found

    def _run(self, layout: Layout, epoch: Epoch, first: int, steps: int) -> tuple[dict[str, Array], int]:
        """Runs so many batches, from a row on: figures by name, and how many were done."""
        engine, size = self._engine, layout.size
        histories = {figure.name: np.empty(steps, figure.dtype) for figure in self._figures}
        moving, notes = [], []
        for name, dtype, feed, address in self._figures:
            if feed is None:
                notes.append((address, address_of(histories[name]), dtype.itemsize))
            else:
                moving.append((feed, address_of(histories[name]), dtype.itemsize))
        for name, rows in epoch.rows.items():
            if name in engine.feed_numbers and epoch.moves(name):
                start = address_of(rows.array) + first * rows.row_bytes
                moving.append((engine.feed_numbers[name], start, size * rows.row_bytes))
        batch_bytes = sum(row_bytes for _, _, row_bytes, _, _ in layout.gathered)
        with self._executable._lock:
            plan, rules = self._executable.rates_at(layout.bindings)
            rates = self._set_rates(plan, rules, steps)
            span = Span(
                steps=steps,
                moving=tuple(moving),
                notes=tuple(notes),
                arrays=layout.gathered,
                indices=None if epoch.order is None else epoch.order[first : first + steps * size],
                batch=size,
                chunk_rows=max(GATHER_BYTES // max(batch_bytes, 1), 1),
                rates=tuple((slot, address_of(values), values.itemsize) for slot, values in rates.values),
                step=rates.step,
                first_step=rates.first_step,
                rate_limit=rates.limit,
            )
            # Feeds of its own: a signal handler may call `run` before the native code does.
            block = engine.block(layout.bindings).twin()
            block.feeds[:] = layout.feeds
            code, done = span.run(block)
            if code:
                engine.fail(layout.bindings, block, self._feeds(layout, epoch, first + done * size))
        return {name: values[:done].astype(np.float64) for name, values in histories.items()}, done

    def _set_rates(self, plan: OptimizerPlan | None, rules: Sequence[LearningRate], steps: int) -> Rates:
        """Sets the rates where they are numbers, or asks the schedules for all steps ahead. What one raises
        is kept while the steps before run, and raised at its own."""
        if plan is None:
            return Rates([])
        arrays = [variable.array for variable in plan.lr_variables]
        if not any(callable(rule) for rule in rules):
            for array, rule in zip(arrays, rules, strict=True):
                array[...] = checked_rate(rule)
            return Rates([])
        if self._raised is not None and self._raised.rules is not rules:
            self._raised = None
        first = int(plan.step_variable.array)
        tables = [np.empty(steps, array.dtype) for array in arrays]
        limit = 0
        while limit < steps and (self._raised is None or self._raised.step != first + limit):
            try:
                now = [checked_rate(rule(first + limit) if callable(rule) else rule) for rule in rules]
            except Exception as error:
                self._raised = Raised(rules, first + limit, error)
                break
            for table, rate in zip(tables, now, strict=True):
                table[limit] = rate
            limit += 1
        if limit == 0 and self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised.error
        slots = [address_of(array) for array in arrays]
        values = list(zip(slots, tables, strict=True))
        return Rates(values, address_of(plan.step_variable.array), first, limit)

    def _feeds(self, layout: Layout, epoch: Epoch, first: int) -> dict[str, Array]:
        """What the last step was fed, a batch that begins at a row."""
        return {
            name: layout.buffers.get(name, rows.array[first : first + layout.size])
            for name, rows in epoch.rows.items()
        }


class Raised(NamedTuple):
    """What the schedules of some rules raised when they were asked for a step ahead."""

    rules: Sequence[LearningRate]
    step: int
    error: Exception


class Rates(NamedTuple):
    """Learning rates of the steps to come: (address of the variable, values), the first for the step count
    `first_step`, `limit` of them; `step` is the address of that count. Empty where rates are constant."""

    values: list[tuple[int, Array]]
    step: int = 0
    first_step: int = 0
    limit: int = 0
