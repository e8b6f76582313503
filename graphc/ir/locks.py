"""Locks of state: words that whoever holds the GIL may read and write, in Python or in native code.

    owner, depth                      the thread that holds the lock, 0: nobody; how often it took it
    sleepers, get, put                threads that sleep until they get a token from a queue, those apart for
                                      whom one has been put there
    favoured                          the thread that the lock is kept for, 0: none
    favoured_sleeper, favoured_get,   the same for that thread
    favoured_put

`graphc/codegen/locks_ir.py` takes and frees them, several at once.
"""

from __future__ import annotations

import os
import threading
from array import array as machine_array
from queue import SimpleQueue
from weakref import WeakSet

LOCK_FIELDS = (
    "owner", "depth", "sleepers", "get", "put",
    "favoured", "favoured_sleeper", "favoured_get", "favoured_put",
)  # fmt: skip

_alive: WeakSet[SlabLock] = WeakSet()


class SlabLock:
    """The lock of one slab. Its words lie at `address` as long as it lives."""

    def __init__(self) -> None:
        self._words = machine_array("q", [0] * len(LOCK_FIELDS))
        self.address = self._words.buffer_info()[0]
        self._fill(0, 0)
        _alive.add(self)

    def _fill(self, owner: int, depth: int) -> None:
        """Writes the words of a lock that nobody waits for."""
        queues: tuple[SimpleQueue[None], ...] = (SimpleQueue(), SimpleQueue())
        functions = [function for queue in queues for function in (queue.get, queue.put)]
        values = dict.fromkeys(LOCK_FIELDS, 0) | {"owner": owner, "depth": depth}
        names = ("get", "put", "favoured_get", "favoured_put")
        values |= zip(names, map(id, functions), strict=True)
        self._words[:] = machine_array("q", [values[field] for field in LOCK_FIELDS])
        self._functions = functions  # the words do not keep them alive

    def renew(self) -> None:
        """In a forked child: only the thread that forked came along, with what it holds."""
        owner, depth = self._words[:2]
        self._fill(*((owner, depth) if owner == threading.get_ident() else (0, 0)))


def _after_fork_in_child() -> None:
    for lock in _alive:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
