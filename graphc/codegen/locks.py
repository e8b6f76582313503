"""The right to run on state, for one thread at a time, as a context manager."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

import numpy as np

from graphc.codegen.cpython import (
    FASTCALL,
    NO_ARGUMENTS,
    NativeMethods,
    api_address,
    native_calls,
    table_of,
)
from graphc.codegen.jit import once
from graphc.codegen.locks_ir import SET_FIELDS, locks_ir
from graphc.ir.addresses import address_of
from graphc.ir.locks import SlabLock


class StateLock:
    """All of some locks at once. Whoever has them may take them again.

        with lock: ...

    Entering waits, and raises what a signal handler raises; then nothing is held. That is so too where the
    signal comes as the lock is taken: the two methods are CPython functions, which are not interrupted.
    Where there are no native calls one lock stands for all.
    """

    # Slots, so that `with` finds functions of an instance's own.
    __slots__ = ("__enter__", "__exit__", "_locks", "address", "count")

    def __init__(self, locks: Iterable[SlabLock]) -> None:
        ordered = tuple(dict.fromkeys(locks))
        table = np.array([lock.address for lock in ordered], dtype=np.int64)
        self.count = len(ordered)
        """How many there are."""
        self.address = address_of(table)
        """Where their addresses lie."""
        self._locks = (ordered, table)
        if native_calls():
            values = {"api": api_address(), "lock_count": self.count, "locks": self.address}
            owner = table_of(SET_FIELDS, values)
            self.__enter__: Callable[[], None] = _methods().function("gx_enter", owner, self._locks)
            self.__exit__: Callable[..., None] = _methods().function("gx_exit", owner, self._locks)
        else:
            self.__enter__, self.__exit__ = _enter_all, _exit_all


@once
def _methods() -> NativeMethods:
    return NativeMethods(locks_ir(), {"gx_enter": NO_ARGUMENTS, "gx_exit": FASTCALL})


_all = threading.RLock()


def _enter_all() -> None:
    _all.acquire()


def _exit_all(*exception: object) -> None:
    _all.release()


def _after_fork_in_child() -> None:
    global _all
    if _all.acquire(blocking=False):  # nobody's, or held by the thread that forked
        _all.release()
    else:
        _all = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
