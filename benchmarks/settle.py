"""Waiting, between two contenders of one process, until the threads of the first are at rest."""

from __future__ import annotations

import time

WATCHED_SECONDS = 0.005
MOST_SECONDS = 2.0
IDLE_SHARE = 0.1
"""Of a CPU: a process that uses less has no thread that spins."""


def settle() -> None:
    """Waits until no thread of this process spins any more: OpenBLAS's workers look for work for over 100 ms
    after a product, OpenMP's for some 10 ms, on CPUs that the next contender's threads need."""
    end = time.perf_counter() + MOST_SECONDS
    while time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(WATCHED_SECONDS)
        if time.process_time() - used < IDLE_SHARE * (time.perf_counter() - start):
            return
