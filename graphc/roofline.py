"""`exe.roofline(feeds)`: for every kernel of a step what it computes, what it moves, and how close it comes
to what the machine can do (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009).

The bound of a kernel is the largest of three times: its FLOPs at the FMA peak, its transcendental elements at
the rate of each function, and its compulsory bytes at the bandwidth measured for memory of that size. Times
are measured launch by launch in the order of the step, so what a kernel finds in the caches is what the one
before left; regions are taken apart, with a barrier after every launch, so their sum may exceed the step's
time. Bandwidth counts the bytes that kernels name; what a store fetches before it overwrites a line
(write-allocate) is part of the measured rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.errors import UsageError
from graphc.ir.work import Work, work_of
from graphc.peaks import Peaks, machine_peaks

if TYPE_CHECKING:
    from graphc.codegen.launch import ProgramBlock
    from graphc.executable import Executable

MEASURE_SECONDS = 0.2
MIN_ROUNDS, MAX_ROUNDS = 5, 1000
DISTURBED = 2.0
"""Where a step is faster than its bound by less than this, the peaks were measured while another program was
in the way. Where it is by more, the step reads a part of what counts as read: a few rows of a large table."""
_doubted: list[Peaks] = []  # measured again already
LIMITS = ("compute", "transcendental", "memory")
TITLES = (
    "kernel", "form", "time us", "share", "MFLOP", "Mspecial", "MB", "FLOP/B", "GFLOP/s", "GB/s", "bound",
    "fraction", "chunks",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KernelRoofline:
    """One kernel. `seconds` is the least time measured; `compute`, `transcendental` and `memory` are the
    times that each limit alone would allow."""

    name: str
    form: str
    origin: str
    chunks: int
    work: Work
    seconds: float
    compute: float
    transcendental: float
    memory: float

    @property
    def bound_seconds(self) -> float:
        """The largest of the three limits."""
        return max(self.compute, self.transcendental, self.memory)

    @property
    def bound(self) -> str:
        """Which limit that is: "compute", "transcendental" or "memory"."""
        return _largest((self.compute, self.transcendental, self.memory))

    @property
    def fraction(self) -> float:
        """The share of the bound that is reached: 1 is as fast as the machine allows."""
        return self.bound_seconds / self.seconds if self.seconds > 0 else 1.0


@dataclass(frozen=True)
class RooflineReport:
    """All kernels of a step in launch order, and the step as a whole. `str()` is a table.

    `step_seconds` is the least time of a native call of the whole step; `step_work` is the work of all
    kernels, but of memory only what enters or leaves the step: inputs, constants, state and outputs.
    """

    kernels: tuple[KernelRoofline, ...]
    peaks: Peaks
    step_seconds: float
    step_work: Work

    @property
    def bound_seconds(self) -> float:
        """The least time of the step: the largest of its three limits, taken over all kernels together."""
        return max(_limits(self.step_work, self.peaks))

    @property
    def bound(self) -> str:
        """Which limit that is: "compute", "transcendental" or "memory"."""
        return _largest(_limits(self.step_work, self.peaks))

    @property
    def fraction(self) -> float:
        """The share of the step's bound that is reached."""
        return self.bound_seconds / self.step_seconds if self.step_seconds > 0 else 1.0

    def against(self, peaks: Peaks) -> RooflineReport:
        """The same measured times, held against other peaks."""
        kernels = []
        for kernel in self.kernels:
            compute, transcendental, memory = _limits(kernel.work, peaks)
            kernels.append(replace(kernel, compute=compute, transcendental=transcendental, memory=memory))
        return replace(self, kernels=tuple(kernels), peaks=peaks)

    def __str__(self) -> str:
        total = sum(kernel.seconds for kernel in self.kernels) or 1.0
        rows = [TITLES, *(_row(kernel, total) for kernel in self.kernels)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
        left = [title in ("kernel", "form", "bound") for title in TITLES]
        lines = [
            "  ".join(
                text.ljust(width) if to_left else text.rjust(width)
                for text, width, to_left in zip(row, widths, left, strict=True)
            ).rstrip()
            for row in rows
        ]
        origins = ["", *(f"    ; {kernel.origin}" if kernel.origin else "" for kernel in self.kernels)]
        lines = [line + origin for line, origin in zip(lines, origins, strict=True)]
        lines.append(
            f"step {1e6 * self.step_seconds:.1f} us on {self.peaks.threads} threads; "
            f"bound {1e6 * self.bound_seconds:.1f} us ({self.bound}); "
            f"{100 * self.fraction:.0f} % of it reached; launches one by one {1e6 * total:.1f} us"
        )
        return "\n".join(lines)


def _row(kernel: KernelRoofline, total: float) -> tuple[str, ...]:
    work, seconds = kernel.work, max(kernel.seconds, 1e-12)
    return (
        kernel.name,
        kernel.form,
        f"{1e6 * kernel.seconds:.2f}",
        f"{100 * kernel.seconds / total:.1f}%",
        f"{work.total_flops / 1e6:.3f}",
        f"{work.total_transcendentals / 1e6:.3f}",
        f"{work.nbytes / 1e6:.3f}",
        f"{work.intensity:.2f}",
        f"{work.total_flops / seconds / 1e9:.1f}",
        f"{work.nbytes / seconds / 1e9:.1f}",
        kernel.bound,
        f"{100 * kernel.fraction:.0f}%",
        str(kernel.chunks),
    )


def _largest(limits: tuple[float, float, float]) -> str:
    return max(zip(limits, LIMITS, strict=True))[1]


def _limits(work: Work, peaks: Peaks) -> tuple[float, float, float]:
    """Seconds that compute, transcendental functions and memory each take at least."""
    compute = sum(count / peaks.flops[bits] for bits, count in work.flops.items())
    elements = sum(count / peaks.transcendentals[key] for key, count in work.transcendentals.items())
    return compute, elements, peaks.memory_seconds(work.read, work.written, work.updated)


def roofline(executable: Executable, feeds: Mapping[str, Any], peaks: Peaks | None = None) -> RooflineReport:
    """Runs steps on some feeds, launch by launch, and reports every kernel against its bound.

    State is put back afterwards. `peaks` default to this machine's, which are measured once (some seconds)
    and kept; should the step be faster than they allow, they were disturbed, and are measured again, once.
    UsageError for an executable that does not run native code; errors of `run` for the feeds.
    """
    from graphc.engine import NativeEngine

    engine = executable.engine
    if not isinstance(engine, NativeEngine):
        raise UsageError("a roofline is measured on native code: compile with backend='native'")
    given, peaks = peaks, peaks or machine_peaks()
    arrays, bindings = executable.feed_plan.prepare(feeds)
    state = [view for slab in executable.slabs.values() for view in slab.runs()]
    with executable._lock:
        kept = [run.copy() for run in state]
        try:
            executable.run_labelled(feeds)  # sets what a run sets, such as learning rates
            results = engine.run(arrays, bindings)
            block = engine.block(bindings)
            seconds = _launch_seconds(block, len(engine.program.kernels))
            step_seconds = _best(block, MEASURE_SECONDS / 2)
            del results  # the block holds their addresses
        finally:
            for run, values in zip(state, kept, strict=True):
                np.copyto(run, values)
        bound = engine.bound(bindings)
    chunkings = [bound.chunkings[region].count for region in engine.program.launches["region"].tolist()]
    kernels = []
    for kernel, least, chunks in zip(engine.program.kernels, seconds, chunkings, strict=True):
        work = work_of(kernel, bound.bindings)
        kernels.append(
            KernelRoofline(
                kernel.name, kernel.form, kernel.origin, chunks, work, least, *_limits(work, peaks)
            )
        )
    step_work = _step_work(executable, kernels, bound.bindings)
    report = RooflineReport(tuple(kernels), peaks, step_seconds, step_work)
    if given is None and 1 < report.fraction < DISTURBED and peaks not in _doubted:
        _doubted.append(peaks := machine_peaks(refresh=True))
        return report.against(peaks)
    return report


def _launch_seconds(block: ProgramBlock, count: int) -> list[float]:
    """The least time of every launch, the launches run one by one in order, over and over."""
    return _least_seconds(block, [block.part(launch) for launch in range(count)], MEASURE_SECONDS)


def _best(block: ProgramBlock, budget: float) -> float:
    """The least seconds of the whole step, without the call itself."""
    return _least_seconds(block, [block], budget)[0]


def _least_seconds(block: ProgramBlock, parts: list[ProgramBlock], budget: float) -> list[float]:
    """The least time of each part in rounds over all of them, less that of a call that launches nothing,
    which is timed in the same rounds."""
    timed = [*parts, block.part(0, 0)]
    least = [math.inf] * len(timed)
    clock = time.perf_counter_ns
    deadline = clock() + int(budget * 1e9)
    rounds = 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and clock() < deadline):
        for number, part in enumerate(timed):
            start = clock()
            part.run()
            least[number] = min(least[number], clock() - start)
        rounds += 1
    return [max(nanoseconds - least[-1], 1.0) * 1e-9 for nanoseconds in least[:-1]]


def _step_work(executable: Executable, kernels: list[KernelRoofline], bindings: Mapping[str, int]) -> Work:
    """The work of a step: that of its kernels, with the memory of its inputs, state and results alone."""
    from graphc.engine import NativeEngine
    from graphc.ir.types import evaluate

    assert isinstance(executable.engine, NativeEngine)
    program = executable.engine.program
    total = Work()
    for kernel in kernels:
        for bits, count in kernel.work.flops.items():
            total.flops[bits] = total.flops.get(bits, 0) + count
        for key, count in kernel.work.transcendentals.items():
            total.transcendentals[key] = total.transcendentals.get(key, 0) + count
    read = {b.storage for k in program.kernels for b in k.buffers if b.access != "out"}
    written = {b.storage for k in program.kernels for b in k.buffers if b.access != "in"}
    for name, storage in program.memory.items():
        nbytes = evaluate(storage.type.nbytes, bindings)
        if storage.kind == "temporary":
            continue
        if name in written and storage.kind == "state":
            total.updated += nbytes
        elif name in written:
            total.written += nbytes
        elif name in read:
            total.read += nbytes
    return total
