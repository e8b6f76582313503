"""Calls from Python without Python's price: CPython functions over native code (`call_ir`), and their tables.

A CPython function costs some 25 ns where ctypes costs 150, and native code checks an array in 5 ns where
Python needs a microsecond. It reads arrays by the layout that compiled extensions rely on; `native_calls`
says whether that is how things lie in this process (not under a free-threaded or debug interpreter, or
another than CPython). Where it is not, every call goes the general way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphc.codegen.cache import cached_object
from graphc.codegen.call_ir import (
    API_FIELDS,
    ARRAY_FIELDS,
    CALL_FIELDS,
    RANGE_FIELDS,
    RATE_FIELDS,
    STEP_FIELDS,
    call_ir,
)
from graphc.codegen.jit import LoadedCode
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.target import host_target
from graphc.ir.addresses import address_of, reads_arrays

Array = np.ndarray[Any, Any]
Table = NDArray[np.int64]
MAX_ARRAYS = 512
"""Calls of more arrays go the general way: native code keeps 24 bytes of stack for each."""

_FASTCALL, _NOARGS = 0x80, 0x04
_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400
_API = {
    "incref": "Py_IncRef",
    "decref": "Py_DecRef",
    "dict_get": "PyDict_GetItemWithError",
    "dict_size": "PyDict_Size",
    "error_occurred": "PyErr_Occurred",
    "call": "PyObject_Call",
    "tuple_new": "PyTuple_New",
    "tuple_set": "PyTuple_SetItem",
    "save_thread": "PyEval_SaveThread",
    "restore_thread": "PyEval_RestoreThread",
}


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

    `lock_addresses` are of int64 words that are 0 while nobody holds a lock; `written` and `state` (first,
    end) addresses of what a run writes, and of everything that results must not be written to.
    """

    def __init__(
        self,
        lock_addresses: Sequence[int],
        written: Sequence[tuple[int, int]],
        state: Sequence[tuple[int, int]],
        rate_count: int,
    ) -> None:
        self._locks = _rows(lock_addresses, 1)
        self._written = _rows(written, len(RANGE_FIELDS))
        self._state = _rows(state, len(RANGE_FIELDS))
        self._rates = np.zeros((rate_count, len(RATE_FIELDS)), dtype=np.int64)
        values = {
            "scheduled": 0,
            "rate_count": 0,
            "rates": address_of(self._rates),
            "lock_count": len(self._locks),
            "locks": address_of(self._locks),
            "written_count": len(self._written),
            "written": address_of(self._written),
            "state_count": len(self._state),
            "state": address_of(self._state),
        }
        self._table = np.array([values[field] for field in STEP_FIELDS], dtype=np.int64)

    @property
    def address(self) -> int:
        """Where the table lies."""
        return address_of(self._table)

    def set_rates(self, rates: Sequence[tuple[Array, float]]) -> None:
        """Scalars (float32 or float64) and the values they get before every run."""
        rows = []
        for scalar, value in rates:
            bits = np.array(value, dtype=scalar.dtype).tobytes()
            rows.append([address_of(scalar), int.from_bytes(bits, "little"), len(bits)])
        self._rates[...] = np.array(rows, dtype=np.uint64).astype(np.int64).reshape(self._rates.shape)
        self._set(scheduled=0, rate_count=len(rows))

    def leave_rates_to_enter(self) -> None:
        """Makes every call run `enter`, which sees to the learning rates."""
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

    `long` steps run without the GIL, between `acquire()` and `release()` of the right to run; where learning
    rates have schedules, `enter()` sets them too. `bindings` are the dims of this size.
    """

    __slots__ = ("__weakref__", "_keep_alive", "bindings", "function", "labels")

    def __init__(
        self,
        block: ProgramBlock,
        step: StepTable,
        inputs: Sequence[Argument],
        outputs: Sequence[Argument],
        bindings: dict[str, int],
        *,
        long: bool,
        acquire: Callable[[], object],
        enter: Callable[[], object],
        release: Callable[[], object],
        bound: Sequence[Array] | None = None,
        result: object = None,
    ) -> None:
        arguments = (*inputs, *outputs)
        shapes = [np.array(argument.shape or (0,), dtype=np.int64) for argument in arguments]
        objects = np.array([id(array) for array in bound or ()] or [0], dtype=np.int64)
        rows = [_row(argument, shape) for argument, shape in zip(arguments, shapes, strict=True)]
        table = _rows(rows, len(ARRAY_FIELDS))
        values = {
            "api": address_of(_api()),
            "step": step.address,
            "header": block.address,
            "run": block.run_address,
            "feeds": address_of(block.feeds),
            "long": int(long),
            "acquire": id(acquire),
            "enter": id(enter),
            "release": id(release),
            "input_count": len(inputs),
            "array_count": len(arguments),
            "arrays": address_of(table),
            "objects": address_of(objects),
            "result": id(result),
        }
        call = np.array([values[field] for field in CALL_FIELDS], dtype=np.int64)
        self.bindings = bindings
        self.labels = tuple(argument.key for argument in outputs)
        """The keys of the results, in the order in which `function` returns them."""
        functions = (acquire, enter, release)
        self._keep_alive = (block, step, arguments, shapes, objects, table, functions, bound, result)
        self.function: Callable[..., Any] = _function("gx_call" if bound is None else "gx_step", call)


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


# ------------------------------------------------------------------------------------- CPython functions


class _MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


@cache
def native_calls() -> bool:
    """Whether calls can go through native code in this process."""
    return reads_arrays() and all(hasattr(ctypes.pythonapi, name) for name in _API.values())


@cache
def _api() -> Table:
    """What native code calls and compares with; all of it lives as long as the process."""
    addresses = {
        field: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        for field, name in _API.items()
    }
    objects = {"none": None, "empty_tuple": (), "array_type": np.ndarray, "dict_type": dict}
    addresses |= {field: id(thing) for field, thing in objects.items()}
    return np.array([addresses[field] for field in API_FIELDS], dtype=np.int64)


@cache
def _method(symbol: str) -> _MethodDef:
    """The description of one of the functions; CPython reads it as long as a function made of it lives."""
    flags = {"gx_call": _FASTCALL, "gx_step": _NOARGS}[symbol]
    return _MethodDef(symbol.encode(), _code().address(symbol), flags, None)


@cache
def _code() -> LoadedCode:
    target = host_target()
    text = f'target triple = "{target.triple}"\n{call_ir()}'
    return LoadedCode(cached_object(text, target), ("gx_call", "gx_step"))


def _function(symbol: str, owner: Table) -> Callable[..., Any]:
    """A CPython function whose `self` is an array: it holds a reference."""
    prototype = ctypes.PYFUNCTYPE(
        ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.c_void_p
    )
    make = prototype(("PyCFunction_NewEx", ctypes.pythonapi))
    function: Callable[..., Any] = make(ctypes.byref(_method(symbol)), owner, None)
    return function
