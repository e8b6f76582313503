"""Calls from Python without Python's price: CPython functions over native code (`call_ir`), and their tables.

Native code checks an array in 5 ns where Python needs a microsecond. Where there are no native calls
(`cpython.native_calls`), every call goes the general way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from graphc.codegen.call_ir import (
    ARRAY_FIELDS,
    CALL_FIELDS,
    RANGE_FIELDS,
    RATE_FIELDS,
    STEP_FIELDS,
    call_ir,
)
from graphc.codegen.cpython import FASTCALL, NO_ARGUMENTS, NativeMethods, api_address, table_of
from graphc.codegen.jit import once
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.locks import StateLock
from graphc.ir.addresses import address_of, pins

Array = np.ndarray[Any, Any]
Table = np.ndarray[Any, np.dtype[np.int64]]
MAX_ARRAYS = 512
"""Calls of more arrays go the general way: native code keeps 24 bytes of stack for each."""

_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400


class Argument(NamedTuple):
    """An array of a call. `feed` is its place in the block's feeds; `key` its key in the dict it comes in.
    An output that is not given is made by `make(*make_arguments)`, which must return just such an array."""

    key: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    feed: int
    make: Callable[..., Array] | None = None
    make_arguments: tuple[Any, ...] = ()


class StepTable:
    """What native calls need to know of a step, whatever its sizes: locks, learning rates, memory.

    `set_rates()` sets the learning rates that have schedules; `written` and `state` are (first, end)
    addresses of what a run writes, and of everything that results must not be written to.
    """

    def __init__(
        self,
        lock: StateLock,
        set_rates: Callable[[], object],
        written: Sequence[tuple[int, int]],
        state: Sequence[tuple[int, int]],
        rate_count: int,
    ) -> None:
        self._written = _rows(written, len(RANGE_FIELDS))
        self._state = _rows(state, len(RANGE_FIELDS))
        self._rates = np.zeros((rate_count, len(RATE_FIELDS)), dtype=np.int64)
        self._keep_alive = (lock, set_rates)
        values = {
            "scheduled": 0,
            "set_rates": id(set_rates),
            "rate_count": 0,
            "rates": address_of(self._rates),
            "lock_count": lock.count,
            "locks": lock.address,
            "written_count": len(self._written),
            "written": address_of(self._written),
            "state_count": len(self._state),
            "state": address_of(self._state),
        }
        self._table = table_of(STEP_FIELDS, values)

    @property
    def address(self) -> int:
        """Where the table lies."""
        return address_of(self._table)

    def keep_rates(self, rates: Sequence[tuple[Array, float]]) -> None:
        """Scalars (float32 or float64) and the values they get before every run."""
        rows = []
        for scalar, value in rates:
            bits = np.array(value, dtype=scalar.dtype).tobytes()
            rows.append([address_of(scalar), int.from_bytes(bits, "little"), len(bits)])
        self._rates[...] = np.array(rows, dtype=np.uint64).astype(np.int64).reshape(self._rates.shape)
        self._set(scheduled=0, rate_count=len(rows))

    def ask_schedules(self) -> None:
        """Makes every call run `set_rates` in place of that."""
        self._set(scheduled=1, rate_count=0)

    def _set(self, **values: int) -> None:
        table = self._table.copy()
        for field, value in values.items():
            table[STEP_FIELDS.index(field)] = value
        self._table[...] = table  # at once: another thread may call at any time


class NativeCall:
    """A step at one size as a CPython function.

    `function(feeds, out)` takes the arrays of the inputs in a dict by name, and None or a dict of arrays by
    label to write results into; it returns a tuple of the results. With `bound`, the arrays of all arguments,
    `function()` runs on those and returns `result`. Either returns None, and has changed no state, where
    anything is not as declared; then the general way must be gone.

    `long` steps run without the GIL, and take the step's locks; meanwhile the memory of their arrays cannot
    be moved. Bound arrays cannot be resized as long as this lives. `bindings` are the dims of this size.
    """

    __slots__ = ("__weakref__", "bindings", "function", "labels")

    def __init__(
        self,
        block: ProgramBlock,
        step: StepTable,
        inputs: Sequence[Argument],
        outputs: Sequence[Argument],
        bindings: dict[str, int],
        *,
        long: bool,
        bound: Sequence[Array] | None = None,
        result: object = None,
    ) -> None:
        arguments = (*inputs, *outputs)
        shapes = [np.array(argument.shape or (0,), dtype=np.int64) for argument in arguments]
        objects = np.array([id(array) for array in bound or ()] or [0], dtype=np.int64)
        rows = [_row(argument, shape) for argument, shape in zip(arguments, shapes, strict=True)]
        table = _rows(rows, len(ARRAY_FIELDS))
        values = {
            "api": api_address(),
            "step": step.address,
            "header": block.address,
            "run": block.run_address,
            "feeds": address_of(block.feeds),
            "long": int(long),
            "input_count": len(inputs),
            "array_count": len(arguments),
            "arrays": address_of(table),
            "objects": address_of(objects),
            "result": id(result),
        }
        call = table_of(CALL_FIELDS, values)
        self.bindings = bindings
        self.labels = tuple(argument.key for argument in outputs)
        """The keys of the results, in the order in which `function` returns them."""
        pinned = [pins(array) for array in bound or ()]
        keep_alive = (block, step, arguments, shapes, objects, table, bound, pinned, result)
        symbol = "gx_call" if bound is None else "gx_step"
        self.function: Callable[..., Any] = _methods().function(symbol, call, keep_alive)


def _row(argument: Argument, shape: Table) -> list[int]:
    flags = _CONTIGUOUS | _ALIGNED | (_WRITEABLE if argument.make is not None else 0)
    nbytes = argument.dtype.itemsize * prod(argument.shape)
    values = {
        "descr": id(argument.dtype),
        "ndim": len(argument.shape),
        "dims": address_of(shape),
        "nbytes": nbytes,
        "flags": flags,
        "key": id(argument.key),
        "feed": argument.feed,
        "make": id(argument.make) if argument.make is not None else 0,
        "make_arguments": id(argument.make_arguments),
    }
    return [values[field] for field in ARRAY_FIELDS]


def _rows(rows: Sequence[Any], columns: int) -> Table:
    return np.array(rows, dtype=np.int64).reshape(len(rows), columns)


@once
def _methods() -> NativeMethods:
    return NativeMethods(call_ir(), {"gx_call": FASTCALL, "gx_step": NO_ARGUMENTS})
