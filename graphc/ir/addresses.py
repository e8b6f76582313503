"""Where arrays lie in memory."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache
from typing import Any
from weakref import ref

import numpy as np

Array = np.ndarray[Any, Any]
ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""

_DATA_OFFSET = 16
_word_at = ctypes.c_int64.from_address


def aligned_bytes(nbytes: int) -> Array:
    """A zeroed uint8 array of so many bytes that starts on a 64-byte line."""
    raw = np.zeros(nbytes + ALIGNMENT, dtype=np.uint8)
    shift = -address_of(raw) % ALIGNMENT
    return raw[shift : shift + nbytes]


def address_of(array: Array) -> int:
    """The address of an array's first element."""
    if type(array) is np.ndarray and reads_arrays():
        return _word_at(id(array) + _DATA_OFFSET).value
    return int(array.ctypes.data)


@cache
def reads_arrays() -> bool:
    """Whether arrays lie in memory as compiled extensions for CPython and numpy have them: object header,
    data, ndim, dims, strides, base, dtype, flags (numpy's PyArrayObject_fields). Other interpreters, and
    free-threaded and debug builds, have other headers."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    cube = np.zeros((3, 5, 7), dtype=np.float64)
    part: Array = np.zeros((4, 6), dtype=np.int32)[1:, ::2]
    part.setflags(write=False)
    return all(_lies_as_expected(sample) for sample in (cube, part, np.array(1.5, dtype=np.float32)))


def _lies_as_expected(array: Array) -> bool:
    """Whether the words of an array object are its type, address, shape, dtype and flags."""
    words = [_word_at(id(array) + offset).value for offset in range(0, 72, 8)]
    return (
        words[1] == id(type(array))
        and words[2] == array.ctypes.data
        and words[3] & 0xFFFFFFFF == array.ndim
        and words[7] == id(array.dtype)
        and words[8] & 0xFFFFFFFF == array.flags.num
        and all(_word_at(words[4] + 8 * axis).value == extent for axis, extent in enumerate(array.shape))
    )


def pins(array: Array) -> tuple[object, ...]:
    """References that keep an array's memory where it is: weak ones to the array and to those whose memory
    it views, as numpy's `resize` refuses to move what has one, also with `refcheck=False`; and a view of what
    lends its buffer to them (a file map, a bytearray), which cannot be freed or moved then."""
    found: list[object] = [ref(array)]
    owner = array.base
    while isinstance(owner, np.ndarray):
        found.append(ref(owner))
        owner = owner.base
    if owner is not None:
        with suppress(TypeError, ValueError):  # no buffer, or one that has been released
            found.append(memoryview(owner))
    return tuple(found)


def round_up(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """The least multiple of `alignment` that is not below `nbytes`."""
    return -(-nbytes // alignment) * alignment
