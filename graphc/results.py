"""Result arrays whose memory is used again once nobody holds them.

The first touch of fresh pages costs more than most kernels, so a dropped result's memory goes back to its
pool and the next result of that size gets it. A view of a result keeps the memory too. Small results come
from numpy: the C library's heap recycles them just so, for a tenth of the price.

Large arrays begin near the start of a page, wherever they come from. A CPU tells a load from an earlier store
by the address within the page at first, so that reading row i of one array waits for row i of another that
has just been stored. Large results therefore begin elsewhere in their page, each kind of place in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import cycle
from math import prod
from typing import Any, NamedTuple
from weakref import ref

import numpy as np

from graphc.ir.addresses import address_of, aligned_bytes

Array = np.ndarray[Any, Any]
SMALL_BYTES = 4096
"""Results up to this size are not pooled."""
KEPT_PER_SIZE = 4
KEPT_SIZES = 32
PAGE_BYTES = 4096
LARGE_BYTES = 2**20
_places = cycle((1024, 2048, 3072))


class Memory(NamedTuple):
    """Aligned bytes, and what asking numpy for them again would cost time for."""

    array: Array
    address: int
    nbytes: int


def _fresh(nbytes: int) -> Memory:
    if nbytes < LARGE_BYTES:
        array = aligned_bytes(nbytes)
        return Memory(array, address_of(array), nbytes)
    pages = aligned_bytes(nbytes + 2 * PAGE_BYTES)
    shift = -address_of(pages) % PAGE_BYTES + next(_places)
    return Memory(pages, address_of(pages) + shift, nbytes)


class ResultPool:
    """Free memory by size. Safe to use from several threads, finalizers and signal handlers: what is free is
    popped and appended by single calls, and given back without any Python code."""

    def __init__(self) -> None:
        self._free: dict[int, deque[_Return]] = {}

    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An uninitialised C-contiguous array; one that is not small starts on a 64-byte line."""
        nbytes = dtype.itemsize
        for extent in shape:
            nbytes *= extent
        if nbytes <= SMALL_BYTES:
            return np.empty(shape, dtype)
        free = self._free.get(nbytes)
        if free is None:
            if len(self._free) >= KEPT_SIZES:
                self._free.clear()
            free = self._free.setdefault(nbytes, deque(maxlen=KEPT_PER_SIZE))
        try:
            memory = free.pop().memory
        except IndexError:
            memory = _fresh(nbytes)
        lease = _Lease(memory, dtype, shape)
        # What no longer fits into the deque is freed.
        lease.on_death = _Return(lease, free.append)
        lease.on_death.memory = memory
        return np.asarray(lease)

    def recipe(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[Callable[..., Array], Any]:
        """A function and its arguments that do what `take` does, by the shortest way."""
        if dtype.itemsize * prod(shape) <= SMALL_BYTES:
            return np.empty, (shape, dtype)
        return self.take, (dtype, shape)


class _Lease:
    """Memory lent to one result: the base of its array and of every view of that. `on_death` stands in for a
    `__del__`, in which Python would drop a Ctrl-C."""

    __slots__ = ("__array_interface__", "__weakref__", "on_death")

    on_death: _Return

    def __init__(self, memory: Memory, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.__array_interface__ = {
            "version": 3, "data": (memory.address, False), "typestr": dtype.str, "shape": shape,
        }  # fmt: skip


class _Return(ref[_Lease]):
    """A reference to a lease whose callback, called with this, keeps `memory` for the next one."""

    __slots__ = ("memory",)

    memory: Memory
