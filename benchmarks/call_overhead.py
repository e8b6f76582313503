"""What a call from Python costs beyond its step: `python benchmarks/call_overhead.py [WORKLOAD]`.

The step itself is timed as one native call of many steps. `run`, `run(out=)` and `bind` are timed in turns
with it, each turn some hundred calls; the overhead is the difference of the minima, and of the medians. Then
100,000 calls of each are looked at for growth: bytes that Python holds (tracemalloc) and resident memory.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workloads import BY_NAME

import graphc as gx
from graphc import calls
from graphc.codegen.steps import Span

WARM_UP = 200


def ways(executable: gx.Executable, feeds: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The ways to run one step from Python, by name."""
    bound = executable.bind(feeds)
    out = executable.bind(feeds).outputs
    return {
        "run(feeds)": lambda: executable.run(feeds),
        "run(name=...)": lambda: executable.run(**feeds),
        "run(feeds, out=)": lambda: executable.run(feeds, out=out),
        "bind()": bound,
    }


def native_steps(executable: gx.Executable, feeds: dict[str, Any]) -> Callable[[int], None]:
    """A function that runs so many steps in one native call, on the arrays of the last `run`."""
    arrays, bindings = executable.feed_plan.prepare(feeds)
    results = executable.engine.run(arrays, bindings)  # sets the addresses in the block
    block = executable.engine.block(bindings)

    def steps(count: int) -> None:
        code, done = Span(steps=count, moving=()).run(block)
        assert results is not None and (code, done) == (0, count)

    return steps


def microseconds(function: Callable[[], Any], count: int) -> float:
    """Per call, of so many."""
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count * 1e6


def timings(executable: gx.Executable, feeds: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Microseconds a step by each way, and natively, one figure a round."""
    called = ways(executable, feeds)
    native = native_steps(executable, feeds)
    for function in called.values():
        microseconds(function, WARM_UP)
    count = max(5, min(500, int(2e4 / microseconds(called["bind()"], 5))))
    found: dict[str, list[float]] = {"native": [], **{name: [] for name in called}}
    for _ in range(rounds):
        found["native"].append(microseconds(lambda: native(count), 1) / count)
        for name, function in called.items():
            found[name].append(microseconds(function, count))
    return found


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def growth(function: Callable[[], Any], steps: int) -> tuple[int, int]:
    """Bytes that Python holds more, and that are resident more, after so many calls than before."""
    tracemalloc.start()
    gc.collect()
    for _ in range(WARM_UP):
        function()
    resident, held = resident_bytes(), tracemalloc.get_traced_memory()[0]
    for _ in range(steps):
        function()
    held = tracemalloc.get_traced_memory()[0] - held
    resident = resident_bytes() - resident
    tracemalloc.stop()
    return held, resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", nargs="?", default="xand", choices=sorted(BY_NAME))
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--steps", type=int, default=100_000, help="calls that are looked at for growth")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--long", action="store_true", help="as a step of over 10 us: locks, no GIL")
    arguments = parser.parse_args()
    if arguments.threads:
        gx.set_num_threads(arguments.threads)
    if arguments.long:
        calls.LONG_NANOSECONDS = -1
    workload = BY_NAME[arguments.workload]
    contender = workload.graphc(workload.data())
    executable, feeds = contender.executable, dict(contender.feeds)
    found = timings(executable, feeds, arguments.rounds)
    least, middle = min(found["native"]), statistics.median(found["native"])
    print(f"{workload.title}; us a call: minimum and median of {arguments.rounds} rounds taken in turns")
    print(f"{'':18}{'minimum':>9}{'median':>9}   beyond the step")
    for name, values in found.items():
        low, mid = min(values), statistics.median(values)
        beyond = "" if name == "native" else f"   {low - least:6.2f}{mid - middle:9.2f}"
        print(f"{name:18}{low:9.3f}{mid:9.3f}{beyond}")
    print(f"\ngrowth over {arguments.steps:,} calls, bytes: held by Python, resident")
    for name, function in ways(executable, feeds).items():
        held, resident = growth(function, arguments.steps)
        print(f"{name:18}{held:9,}{resident:12,}")


if __name__ == "__main__":
    main()
