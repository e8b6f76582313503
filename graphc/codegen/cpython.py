"""CPython functions over native code: what such code may call and read, and how a function is made of it.

A CPython function costs some 25 ns where ctypes costs 150. Native code reads objects by the layout that
compiled extensions rely on; `native_calls` says whether that is how things lie in this process (not under a
free-threaded or debug interpreter, or another than CPython).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from graphc.codegen.cache import cached_object
from graphc.codegen.jit import LoadedCode
from graphc.codegen.target import host_target
from graphc.ir.addresses import address_of, reads_arrays

Table = np.ndarray[Any, np.dtype[np.int64]]

FASTCALL, NO_ARGUMENTS = 0x80, 0x04
"""How CPython hands arguments over: (self, pointer to them, their count), or (self, null)."""
OBJECT_OFFSETS = {"type": 8, "data": 16, "ndim": 24, "dims": 32, "base": 48, "descr": 56, "flags": 64}
"""Where CPython (without a debug or free-threaded header) and numpy keep the fields of an array."""

_FUNCTIONS = {
    "incref": "Py_IncRef",
    "decref": "Py_DecRef",
    "dict_get": "PyDict_GetItemWithError",
    "dict_size": "PyDict_Size",
    "error_occurred": "PyErr_Occurred",
    "error_fetch": "PyErr_Fetch",
    "error_restore": "PyErr_Restore",
    "call": "PyObject_Call",
    "tuple_new": "PyTuple_New",
    "tuple_set": "PyTuple_SetItem",
    "save_thread": "PyEval_SaveThread",
    "restore_thread": "PyEval_RestoreThread",
    "error_clear": "PyErr_Clear",
    "is_subtype": "PyType_IsSubtype",
    "new_weak_reference": "PyWeakref_NewRef",
    "exports": "PyObject_CheckBuffer",
    "new_view": "PyMemoryView_FromObject",
    "thread_ident": "PyThread_get_thread_ident",
}
_OBJECTS: dict[str, object] = {
    "none": None,
    "none_tuple": (None,),
    "empty_tuple": (),
    "array_type": np.ndarray,
    "dict_type": dict,
}
API_FIELDS = (*_FUNCTIONS, *_OBJECTS)
"""The fields of the table that native code is given: addresses of functions and of objects."""


@cache
def native_calls() -> bool:
    """Whether calls can go through native code in this process."""
    return reads_arrays() and all(hasattr(ctypes.pythonapi, name) for name in _FUNCTIONS.values())


@cache
def api_address() -> int:
    """Where the table lies. All that it points at lives as long as the process."""
    return address_of(_api())


@cache
def _api() -> Table:
    functions = [
        ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in _FUNCTIONS.values()
    ]
    return np.array([*functions, *map(id, _OBJECTS.values())], dtype=np.int64)


class _MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class NativeMethods:
    """Functions of one native text that CPython can call, by symbol, with how each takes its arguments."""

    def __init__(self, text: str, symbols: dict[str, int]) -> None:
        target = host_target()
        module = f'target triple = "{target.triple}"\n{text}'
        self._code = LoadedCode(cached_object(module, target), [*symbols])
        self._methods = {
            symbol: _MethodDef(symbol.encode(), self._code.address(symbol), flags, None)
            for symbol, flags in symbols.items()
        }

    def function(self, symbol: str, owner: Table, keep_alive: object) -> Callable[..., Any]:
        """A CPython function whose `self` is an array. It holds references to that and, in the place of its
        module, to its code and to what keeps the addresses in the array valid."""
        prototype = ctypes.PYFUNCTYPE(
            ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.py_object
        )
        make = prototype(("PyCFunction_NewEx", ctypes.pythonapi))
        function: Callable[..., Any] = make(ctypes.byref(self._methods[symbol]), owner, (self, keep_alive))
        return function


def table_of(fields: Sequence[str], values: dict[str, int]) -> Table:
    """A row of int64 in the order of the fields."""
    return np.array([values[field] for field in fields], dtype=np.int64)
