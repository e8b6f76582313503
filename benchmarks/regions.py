"""Runs many tiny parallel regions and prints what one costs: `python benchmarks/regions.py [COUNT]`.

The default of 10^8 regions is the soak test of the thread pool. Every chunk adds 1 to its own counter, so a
chunk that was lost or ran twice shows in the sums.
"""

from __future__ import annotations

import argparse
import ctypes
import time

import numpy as np

from graphc.codegen.jit import LoadedCode, compile_object
from graphc.codegen.target import host_target
from graphc.codegen.threads import get_num_threads, pool, set_num_threads

_TEXT = """
define private i64 @count(ptr %counters, i64 %chunk, i64 %worker) nounwind {
  %offset = mul i64 %chunk, 8
  %counter = getelementptr i64, ptr %counters, i64 %offset
  %old = load i64, ptr %counter, align 8
  %new = add i64 %old, 1
  store i64 %new, ptr %counter, align 8
  ret i64 0
}
define i64 @regions(ptr %pool, ptr %parallel, ptr %counters, i64 %chunks, i64 %count) nounwind {
entry:
  br label %each
each:
  %i = phi i64 [ 0, %entry ], [ %j, %each ]
  %code = call i64 %parallel(ptr %pool, ptr @count, ptr %counters, i64 %chunks)
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %count
  br i1 %more, label %each, label %done
done:
  ret i64 0
}
"""


def run_regions(count: int, chunks: int) -> float:
    """Seconds for `count` regions of `chunks` chunks. AssertionError when a chunk was lost or repeated."""
    code = LoadedCode(compile_object(_TEXT, host_target()), ["regions"])
    signature = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int64)
    function = signature(code.address("regions"))
    counters = np.zeros(8 * chunks, dtype=np.int64)
    threads = pool()
    start = time.perf_counter()
    function(threads.address, threads.parallel_address, counters.ctypes.data, chunks, count)
    seconds = time.perf_counter() - start
    assert (counters[::8] == count).all(), f"chunks ran {counters[::8].tolist()} times, not {count}"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10**8, help="regions to run")
    parser.add_argument("--chunks", type=int, default=2, help="chunks of a region")
    parser.add_argument("--threads", type=int, default=None, help="threads (default: as graphc would)")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    pool().reset_counters()
    seconds = run_regions(arguments.count, arguments.chunks)
    print(
        f"{arguments.count} regions of {arguments.chunks} chunks on {get_num_threads()} threads: "
        f"{seconds:.1f} s, {seconds / arguments.count * 1e9:.0f} ns a region; "
        f"chunks by thread {pool().chunks_taken()}"
    )


if __name__ == "__main__":
    main()
