"""Calls of a step: arrays given for results, the native way past Python, and steps bound to their arrays.

    StepGuard    what runs need of a step: the locks of its state, learning rates, memory
    BoundCall    what `Executable.bind` returns
    native_call  the native function for `run`, or for a bound call

A call has two ways. The general one, in Python, serves every case and explains every error. The native one
(`graphc/codegen/call_ir.py`) serves arrays that fit as they are, and gives up where one does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NoReturn

import numpy as np

from graphc.codegen.call import MAX_ARRAYS, Argument, NativeCall, StepTable
from graphc.codegen.cpython import native_calls
from graphc.engine import Bound, NativeEngine
from graphc.errors import DTypeError, FeedError, ShapeError, UsageError
from graphc.ir.addresses import address_of, aligned_bytes
from graphc.sites import meant
from graphc.state import StepState
from graphc.updates import LearningRate, OptimizerPlan, checked_rate

Array = np.ndarray[Any, Any]
Range = tuple[int, int]
Spec = tuple[np.dtype[Any], tuple[int, ...]]
LONG_NANOSECONDS = 10_000
"""Steps that are estimated to take longer give other Python threads a chance meanwhile."""


class StepGuard:
    """Knows what runs of a step need: the locks of its state, learning rates, memory.

    `written` and `state` are (first, end) addresses: what a run writes to, and all state that there is.
    """

    def __init__(self, state: StepState, plan: OptimizerPlan | None) -> None:
        self._state = state
        self.written = tuple(state.memory(written=True))
        self.state = tuple(state.memory())
        self._plan = plan
        self.rates: tuple[LearningRate, ...] = tuple(plan.lr) if plan is not None else ()
        self._table: StepTable | None = None

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates at the next step, one for each parameter group."""
        if self._plan is None:
            return []
        steps = int(self._plan.step_variable.array)
        return [checked_rate(rate(steps) if callable(rate) else rate) for rate in self.rates]

    def change_rates(self, rates: Sequence[LearningRate]) -> None:
        """Sets what the learning rates are from the next step on. They have been checked."""
        self.rates = tuple(rates)
        if self._table is not None:
            self._fill(self._table)

    @property
    def table(self) -> StepTable:
        """The same for native code."""
        if self._table is None:
            table = StepTable(self._state.lock, self.set_rates, self.written, self.state, len(self.rates))
            self._fill(table)
            self._table = table
        return self._table

    def _fill(self, table: StepTable) -> None:
        if self._plan is None:
            return
        # A schedule is a Python function; an object that only turns into a number may turn into another one.
        if all(type(rate) in (float, int) or isinstance(rate, np.generic) for rate in self.rates):
            scalars = [variable.array for variable in self._plan.lr_variables]
            table.keep_rates(list(zip(scalars, self.learning_rates, strict=True)))
        else:
            table.ask_schedules()

    def set_rates(self) -> None:
        """Sets the learning rates for the next step; whoever runs it holds the lock. A schedule may raise."""
        if self._plan is None:
            return
        for variable, rate in zip(self._plan.lr_variables, self.learning_rates, strict=True):
            variable.array[...] = rate


# ------------------------------------------------------------------------- results, fresh or given arrays


def rebuilt(structure: Any, results: Mapping[str, Array]) -> Any:
    """The outputs in the structure that labels stand in."""
    if isinstance(structure, str):
        return results[structure]
    if isinstance(structure, Mapping):
        return {key: results[label] for key, label in structure.items()}
    return type(structure)(results[label] for label in structure)


def by_label(structure: Any, out: Any) -> dict[str, Array]:
    """Arrays for results by label, from what the user gave in the structure that was given to `compile`;
    None, and what a dict lacks, is left out. Raises UsageError where it is not of that structure."""
    if isinstance(structure, str):
        return {structure: out}
    if isinstance(structure, Mapping):
        if not isinstance(out, Mapping):
            raise UsageError(f"out is a dict of arrays by output, not {type(out).__name__}")
        for key in out:
            if key not in structure:
                hint = meant(str(key), map(str, structure))
                known = ", ".join(map(str, structure))
                raise UsageError(f"out: there is no output {key!r} (outputs: {known}){hint}")
        return {structure[key]: array for key, array in out.items() if array is not None}
    if not isinstance(out, (tuple, list)) or len(out) != len(structure):
        raise UsageError(f"out is a {type(structure).__name__} of {len(structure)} arrays or None")
    return {label: array for label, array in zip(structure, out, strict=True) if array is not None}


def check_given(
    given: Mapping[str, Any], specs: Mapping[str, Spec], feeds: Mapping[str, Array], state: Sequence[Range]
) -> None:
    """Raises DTypeError, ShapeError or UsageError for an array that results cannot be written into."""
    taken: list[tuple[str, int, int]] = [("the parameters or other state", *pair) for pair in state]
    taken += [(f"the feed {name}", *_range(array)) for name, array in feeds.items() if array.nbytes]
    for label, array in given.items():
        dtype, shape = specs[label]
        what = "out" if label == "output" else f"out: {label}"
        if type(array) is not np.ndarray:
            raise UsageError(f"{what} is a numpy array, not {type(array).__name__}")
        if array.dtype != dtype:
            raise DTypeError(f"{what} has dtype {array.dtype}, and the result {dtype}")
        if array.shape != shape:
            raise ShapeError(f"{what} has shape {list(array.shape)}, and the result {list(shape)}")
        flags = array.flags
        if not flags.writeable:
            raise UsageError(f"{what} is read-only")
        if not (flags.c_contiguous and flags.aligned):
            raise UsageError(f"{what} is not C-contiguous and aligned; numpy.empty makes such an array")
        if array.nbytes:
            first, end = _range(array)
            for owner, start, stop in taken:
                if first < stop and start < end:
                    raise UsageError(f"{what} shares memory with {owner}")
            taken.append((f"the array for {label}", first, end))


def _range(array: Array) -> Range:
    first = address_of(array)
    return first, first + array.nbytes


# ---------------------------------------------------------------------------------------- the native way


def native_call(
    engine: NativeEngine,
    ready: Bound,
    guard: StepGuard,
    feeds: Mapping[str, Array],
    bindings: dict[str, int],
    fixed: Mapping[str, Array],
    outputs: Mapping[str, Array] | None = None,
    result: object = None,
) -> NativeCall | None:
    """The native function for steps at one size, or None where there cannot be one.

    `feeds` are arrays of that size for all inputs, `bindings` its dims; `fixed` are arrays by label that
    those results always go into. With `outputs`, arrays for all other labels, the call is bound to them and
    to the feeds, and returns `result`.
    """
    if not native_calls() or any(part.source is not None for part in ready.results):
        return None  # a result that is copied from elsewhere after the run is not native code's
    # An output may be called like an input.
    numbers = {label: engine.feed_numbers[name] for name, label in engine.label_of.items()}
    read = {name: engine.feed_numbers[name] for name in engine.inputs}
    unread = [name for name in feeds if name not in read]
    read |= {name: len(ready.block.feeds) + k for k, name in enumerate(unread)}
    block = ready.block.twin(len(unread))
    for label, array in fixed.items():
        block.feeds[numbers[label]] = address_of(array)
    inputs = [Argument(n, array.dtype, array.shape, read[n]) for n, array in feeds.items()]
    made = [
        Argument(part.label, part.dtype, part.shape, numbers[part.label], *recipe)
        for part in ready.results
        if part.label not in fixed
        for recipe in (engine.results.recipe(part.dtype, part.shape),)
    ]
    if len(inputs) + len(made) > MAX_ARRAYS:
        return None
    bound = None
    if outputs is not None:
        bound = [*feeds.values(), *(outputs[argument.key] for argument in made)]
    return NativeCall(
        block,
        guard.table,
        inputs,
        made,
        bindings,
        long=ready.nanoseconds > LONG_NANOSECONDS,
        bound=bound,
        result=result,
    )


class BoundCall:
    """A step bound to its arrays: calling it runs one step.

        step = exe.bind(x=x, t=t)
        for batch in batches:
            x[...], t[...] = batch
            loss = step()                  the same array each time: copy what must stay

    `feeds` are the arrays of the inputs, used in place: what is written into them is what the next call
    reads. `outputs` are the arrays that every call writes its results into, in the structure given to
    `compile`, and that it returns. Nothing is allocated per call. In all else a call is a `run`: learning
    rates, errors, what other threads see.
    """

    __slots__ = ("_call", "_general", "_step", "feeds", "outputs")

    def __init__(
        self,
        feeds: Mapping[str, Array],
        outputs: Any,
        call: NativeCall | None,
        general: Callable[[], object],
    ) -> None:
        """Made by `Executable.bind`. `call` runs a step or returns None; then `general` runs it."""
        self.feeds = feeds
        self.outputs = outputs
        self._call = call
        self._step: Callable[[], Any] = call.function if call is not None else _never
        self._general = general

    def __call__(self) -> Any:
        """Runs one step; returns `outputs`, which now hold its results. Raises what `run` raises, and
        FeedError if a bound array has another shape or dtype by now; then no state has changed."""
        if self._step() is None:
            self._general()
        return self.outputs

    def __copy__(self) -> NoReturn:
        raise UsageError("a bound step cannot be copied; bind again")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise UsageError("a bound step cannot be pickled; bind again")


def _never() -> None:
    """In place of a native function where there is none."""


def require_in_place(name: str, feed: Any, array: Array, written: Sequence[Range]) -> None:
    """Raises FeedError unless a feed is an array that a step can read again and again where it lies. `array`
    is what a run would read."""
    if array is feed:
        return
    if not isinstance(feed, np.ndarray):
        why = f"it is {type(feed).__name__}, not a numpy array"
    elif feed.dtype != array.dtype:
        why = f"it has dtype {feed.dtype}, not {array.dtype}"
    elif not (feed.flags.c_contiguous and feed.flags.aligned):
        why = "it is not C-contiguous and aligned"
    elif any(first < _range(feed)[1] and _range(feed)[0] < end for first, end in written):
        why = "it lies in memory that the step writes to"
    else:
        return  # another view of the same memory: the feed is of a subclass of ndarray
    raise FeedError(
        f"input {name} cannot be bound: {why}, so a copy would be read, and later changes would not be seen"
    )


def empty_outputs(specs: Mapping[str, Spec]) -> dict[str, Array]:
    """Zeroed arrays for results, each on a 64-byte line."""
    return {
        label: aligned_bytes(dtype.itemsize * prod(shape)).view(dtype).reshape(shape)
        for label, (dtype, shape) in specs.items()
    }
