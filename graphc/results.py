"""Result arrays whose memory is used again once nobody holds them.

The first touch of fresh pages costs more than most kernels, so a dropped result's memory goes back to its
pool and the next result of that size gets it. A view of a result keeps the memory too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.ir.slabs import address_of, aligned_bytes

Array = np.ndarray[Any, Any]
KEPT_PER_SIZE = 4
KEPT_SIZES = 32


class ResultPool:
    """Free memory by size. Safe to use from several threads: lists are popped and appended atomically."""

    def __init__(self) -> None:
        self._free: dict[int, list[Array]] = {}

    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An uninitialised, 64-byte-aligned, C-contiguous array."""
        nbytes = dtype.itemsize
        for extent in shape:
            nbytes *= extent
        free = self._free.get(nbytes)
        try:
            raw = free.pop() if free else aligned_bytes(nbytes)
        except IndexError:  # another thread took the last one
            raw = aligned_bytes(nbytes)
        return np.asarray(_Lease(self, raw, dtype, shape))

    def give_back(self, raw: Array) -> None:
        """Keeps memory for the next result of its size, unless there is plenty."""
        free = self._free.get(raw.nbytes)
        if free is None:
            if len(self._free) >= KEPT_SIZES:
                self._free.clear()
            free = self._free.setdefault(raw.nbytes, [])
        if len(free) < KEPT_PER_SIZE:
            free.append(raw)


class _Lease:
    """Memory lent to one result: the base of its array and of every view of that."""

    __slots__ = ("__array_interface__", "_pool", "_raw")

    def __init__(self, pool: ResultPool, raw: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._pool = pool
        self._raw = raw
        self.__array_interface__ = {
            "version": 3, "data": (address_of(raw), False), "typestr": dtype.str, "shape": shape,
        }  # fmt: skip

    def __del__(self) -> None:
        self._pool.give_back(self._raw)
