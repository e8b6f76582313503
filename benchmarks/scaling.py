"""Thread scaling beyond this machine: a model from the launch table, checked where it can be measured.

    python benchmarks/scaling.py [WORKLOAD ...] [--memory-scale X] [--plot FILE]

What goes in: every region's chunks and bytes from the bound program, every launch's time on one thread, what
a region costs beside its chunks, and the machine's bandwidth on one thread and on all. What a region takes on
T threads is the longest of

    ceil(chunks / T) chunks of work        chunks are handed out whole (Amdahl's law, by chunks)
    its memory time / g(T)                 g: how much bandwidth grows with threads, see `growth`
    the takes of all chunks, one by one    the ticket is one cache line

and then the barrier: T - 1 threads report, each to one cache line. Regions add up; a region of one chunk is
serial. What the model leaves out: sockets, clock rates that fall as more cores work, and caches that hold
more of the data when there are more of them.

Bandwidth beyond the last-level cache is what this machine has on all its threads, however many the model
gives it; `--memory-scale X` is for a machine whose memory serves X threads of this one's at full rate.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from regions import run_regions
from settle import settle
from workloads import BY_NAME, WORKLOADS

import graphc as gx
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.threads import get_num_threads
from graphc.engine import NativeEngine
from graphc.ir.work import Work, work_of
from graphc.peaks import Peaks, best_seconds, machine_peaks

THREADS = (1, 2, 4, 8, 16, 32, 64)
SHARED_FROM = 1 << 25
"""Footprints above these bytes are served by memory that all cores share, smaller ones by caches that grow
with the cores."""
ROUNDS, MOST_ROUNDS = 7, 1000
MEASURE_SECONDS = 0.3
SAMPLE_SECONDS = 0.04
"""Of each sample: a worker that was just started may take milliseconds to get a CPU of its own."""
REGIONS = 20_000
FEW, MANY = 2, 64  # chunks of the two regions that are timed


@dataclass(frozen=True, slots=True)
class Region:
    """One region of a step: its chunks, its seconds on one thread, and what its kernels move."""

    chunks: int
    seconds: float
    works: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class RegionCosts:
    """Seconds that a region of several chunks costs several threads beyond one: for each chunk taken from a
    ticket that others take from too, and for each further thread that reports at the end."""

    take: float
    report: float

    def barrier(self, chunks: int, threads: int) -> float:
        """The seconds beside the chunks; one thread alone has no barrier."""
        workers = min(chunks, threads)
        return self.report * (workers - 1) + self.take * math.ceil(chunks / workers) if workers > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """Bandwidth on one thread and on all, and what regions cost. `memory_scale` is how many threads shared
    memory serves at the rate of one; 0: as many as measured."""

    one: Peaks
    all: Peaks
    costs: RegionCosts
    memory_scale: float = 0.0

    def growth(self, work: Work, threads: int) -> float:
        """How much faster `threads` move what a kernel moves than one does: as measured up to the threads of
        this machine; beyond, in proportion where caches serve it, and no faster where memory does."""
        if threads == 1 or not work.footprint:
            return float(threads)
        moved = (work.read, work.written, work.updated)
        measured = max(self.one.memory_seconds(*moved) / self.all.memory_seconds(*moved), 1.0)
        shared = work.footprint > SHARED_FROM
        if shared and self.memory_scale:
            return min(float(threads), self.memory_scale)
        share = (threads - 1) / (self.all.threads - 1) if self.all.threads > 1 else 0.0
        if shared:
            share = min(share, 1.0)
        return 1.0 + (measured - 1.0) * share

    def seconds(self, region: Region, threads: int) -> float:
        """What a region takes."""
        chunks = region.chunks
        if threads == 1 or chunks == 1:
            return region.seconds
        work = math.ceil(chunks / threads) / chunks * region.seconds
        moving = [(self.one.memory_seconds(w.read, w.written, w.updated), w) for w in region.works]
        # What was measured is faster than memory where a kernel finds its data in a cache.
        found = min(region.seconds / (sum(seconds for seconds, _ in moving) or 1.0), 1.0)
        memory = found * sum(seconds / self.growth(w, threads) for seconds, w in moving)
        takes = chunks * self.costs.take
        return max(work, memory, takes) + self.costs.barrier(chunks, threads)


# ------------------------------------------------------------------------------------------- measuring


def region_costs() -> RegionCosts:
    """Timed on one thread and on two; nothing where this machine has only one."""
    seconds: dict[tuple[int, int], float] = {}
    before = get_num_threads()
    threads = min(before, 2)
    for count in (1, threads):
        gx.set_num_threads(count)
        for chunks in (FEW, MANY):
            times = [run_regions(REGIONS, chunks) / REGIONS for _ in range(5)]
            seconds[count, chunks] = min(times)
    gx.set_num_threads(before)
    take = (seconds[threads, MANY] - seconds[threads, FEW]) / (MANY - FEW)
    alone = (seconds[1, MANY] - seconds[1, FEW]) / (MANY - FEW)
    take = max(take - alone, 0.0)
    report = seconds[threads, FEW] - seconds[1, FEW] - FEW / 2 * take
    return RegionCosts(take, max(report, 0.0))


def regions_of(executable: Any, feeds: Any) -> tuple[list[Region], ProgramBlock, object]:
    """The regions of a step on these feeds, timed on one thread launch by launch, the step's block, and the
    arrays whose addresses the block holds: they have to live as long as it runs."""
    engine = executable.engine
    assert isinstance(engine, NativeEngine)
    arrays, bindings = executable.feed_plan.prepare(feeds)
    executable.run_labelled(feeds)
    results = engine.run(arrays, bindings)
    block, bound = engine.block(bindings), engine.bound(bindings)
    parts = [block.part(launch) for launch in range(len(engine.program.kernels))]
    call = best_seconds(block.part(0, 0).run, 100)
    least = [math.inf] * len(parts)
    end, rounds = time.perf_counter() + MEASURE_SECONDS, 0
    while rounds < ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() < end):
        rounds += 1
        for number, part in enumerate(parts):
            least[number] = min(least[number], _seconds(part.run))
    firsts, counts = (engine.program.regions[name].tolist() for name in ("first_launch", "launch_count"))
    found = []
    for first, count, chunking in zip(firsts, counts, bound.chunkings, strict=True):
        kernels = engine.program.kernels[first : first + count]
        works = tuple(work_of(kernel, bound.bindings) for kernel in kernels)
        seconds = sum(max(least[number] - call, 1e-9) for number in range(first, first + count))
        found.append(Region(chunking.count, seconds, works))
    return found, block, (arrays, results)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measured(block: ProgramBlock, counts: Sequence[int]) -> dict[int, float]:
    """The least seconds of a step by number of threads, taken in turns."""
    least = dict.fromkeys(counts, math.inf)
    runs = max(3, min(round(SAMPLE_SECONDS / best_seconds(block.run)), 1000))
    for _ in range(ROUNDS):
        for count in counts:
            gx.set_num_threads(count)
            settle()
            least[count] = min(least[count], best_seconds(block.run, runs))
    return least


# -------------------------------------------------------------------------------------------- the model


def predicted(regions: Sequence[Region], machine: Machine, threads: int) -> float:
    """Seconds of a step."""
    return sum(machine.seconds(region, threads) for region in regions)


def serial_share(regions: Sequence[Region]) -> float:
    """The share of one thread's time that lies in regions of one chunk: Amdahl's limit."""
    total = sum(region.seconds for region in regions)
    return sum(region.seconds for region in regions if region.chunks == 1) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A workload: what the model says for every number of threads, and what was measured."""

    name: str
    regions: int
    serial: float
    predicted: dict[int, float]
    measured: dict[int, float]

    def ratio(self, threads: int) -> float:
        """Predicted over measured."""
        return self.predicted[threads] / self.measured[threads]


def curve(name: str, machine: Machine, tiny: bool = False) -> Curve:
    """Measures and predicts one workload."""
    workload = BY_NAME[name]
    contender = workload.graphc(workload.data(tiny))
    counts = sorted({1, machine.all.threads})
    gx.set_num_threads(1)
    regions, block, arrays = regions_of(contender.executable, contender.feeds)
    times = measured(block, counts)
    del arrays  # no sooner
    points = sorted({*THREADS, *counts})
    return Curve(
        name,
        len(regions),
        serial_share(regions),
        {threads: predicted(regions, machine, threads) for threads in points},
        times,
    )


# ---------------------------------------------------------------------------------------------- report


def table(curves: Sequence[Curve]) -> str:
    """Predicted speedup over one thread, and how far the prediction is from what was measured."""
    counts = list(curves[0].measured)
    head = ["workload", "regions", "serial", "1 thread ms", *(f"x{n}" for n in THREADS[1:])]
    head += [f"predicted/measured at {n}" for n in counts]
    rows = [head]
    for c in curves:
        speedups = [f"{c.predicted[1] / c.predicted[n]:.1f}" for n in THREADS[1:]]
        start = [c.name, str(c.regions), f"{100 * c.serial:.1f}%", f"{1e3 * c.predicted[1]:.3f}"]
        rows.append([*start, *speedups, *(f"{c.ratio(n):.2f}" for n in counts)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def plot(curves: Sequence[Curve], path: str) -> None:
    """Speedup by threads, both on scales of log 2; dots are measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6))
    axes.plot(THREADS, THREADS, color="lightgray", label="as many times as threads")
    for c in curves:
        (line,) = axes.plot(THREADS, [c.predicted[1] / c.predicted[n] for n in THREADS], label=c.name)
        points = list(c.measured)
        axes.plot(points, [c.measured[1] / c.measured[n] for n in points], "o", color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("threads")
    axes.set_ylabel("speedup: lines predicted, dots measured")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def peaks_at(threads: int) -> Peaks:
    """The machine's peaks at a number of threads."""
    gx.set_num_threads(threads)
    return machine_peaks()


def main(arguments: Sequence[str] | None = None, show: Callable[[str], object] = print) -> None:
    """Prints the curves."""
    parser = argparse.ArgumentParser(description="Predicts how steps scale with threads.")
    parser.add_argument("workloads", nargs="*", help="names of workloads (default: all)")
    parser.add_argument("--memory-scale", type=float, default=0.0, metavar="X")
    parser.add_argument("--tiny", action="store_true", help="the sizes that tests use")
    parser.add_argument("--plot", metavar="FILE")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.workloads if name not in BY_NAME]
    if unknown:
        parser.error(f"no workload {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    before = get_num_threads()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        machine = Machine(peaks_at(1), peaks_at(threads), region_costs(), options.memory_scale)
        names = options.workloads or [workload.name for workload in WORKLOADS]
        curves = [curve(name, machine, options.tiny) for name in names]
    finally:
        gx.set_num_threads(before)
    costs = machine.costs
    show(f"a chunk's take {1e9 * costs.take:.0f} ns, a thread's report {1e9 * costs.report:.0f} ns")
    show(table(curves))
    if options.plot:
        plot(curves, options.plot)


if __name__ == "__main__":
    main()
