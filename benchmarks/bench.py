"""graphc against its peers: `python benchmarks/bench.py [--only NAME ...] [--rounds N] [--json FILE]
[--markdown FILE] [--plot FILE.png]`, or `make bench`.

One child process for each number of threads (1, pinned to one CPU, and all) holds every contender of a
workload: graphc, PyTorch eager and compiled, JAX, and numpy with OpenBLAS told the right kind of core. A
process beside it runs numpy as OpenBLAS guesses. Results are checked against a float64 computation first;
then contenders take turns, round by round, each round in another order. Peers that are not installed are
left out. A contender starts once the threads of the one before have stopped spinning. Compare figures of
one run alone: machines drift, and whatever else runs is in them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench_report import markdown, plot, table
from settle import settle

SAMPLE_SECONDS = 0.004
"""A sample is short, so that some of the least are undisturbed: the system's ticks and other programs come
every few milliseconds. A workload of long steps has one step a sample; short steps are not to fare worse."""
MAX_CALLS = 10_000
PEER_FAILURES = (RuntimeError, ImportError, OSError)  # what PyTorch's and JAX's own errors derive from
Timer = Callable[[int], float]  # calls -> seconds a call


def right_core(cpuinfo: str) -> str | None:
    """OPENBLAS_CORETYPE for this CPU by its features, or None where OpenBLAS is left to guess."""
    words = set(cpuinfo.split())
    if "avx512f" in words:
        return "SKYLAKEX"
    if "avx2" in words:
        return "ZEN" if "AuthenticAMD" in words else "HASWELL"
    return None


def child_environment(threads: int, core: str | None) -> dict[str, str]:
    """The environment of a child that uses so many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GRAPHC_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "TORCH_LOGS": "-all"}
    environment.pop("OPENBLAS_CORETYPE", None)
    if core is not None:
        environment["OPENBLAS_CORETYPE"] = core
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return environment


# -------------------------------------------------------------------------------------------- one child


@dataclass
class Measured:
    """A contender's samples in seconds a step; `error` says why there are none."""

    samples: list[float] = field(default_factory=list)
    error: str = ""

    def as_data(self) -> dict[str, Any]:
        """Least and median seconds, and all samples."""
        if not self.samples:
            return {"error": self.error}
        return {"min": min(self.samples), "median": median(self.samples), "samples": self.samples}


def timer_of(step: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Times a number of calls of a step, after as many that do not count: they wake threads and warm caches,
    which the contender before has had to itself."""

    def timed(calls: int) -> float:
        for _ in range(calls):
            step()
        start = clock()
        for _ in range(calls):
            step()
        return (clock() - start) / calls

    return timed


def clock_of(cpu_time: bool) -> Callable[[], float]:
    """The clock for samples: the wall's, or the time that this process was given."""
    return time.process_time if cpu_time else time.perf_counter


class NumpyWorker:
    """numpy in a process of its own, where OpenBLAS guesses the core."""

    def __init__(self, cpu_time: bool) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        command = [sys.executable, __file__, "--numpy-worker", *(["--cpu-time"] if cpu_time else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, message: Mapping[str, Any]) -> float:
        """Sends {"name": workload} to choose one, or {"calls": n} to time it; returns the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def numpy_worker(cpu_time: bool) -> None:
    """The other end of `NumpyWorker`: answers until its input ends."""
    from workloads import BY_NAME

    timed: Timer = lambda calls: 0.0  # noqa: E731
    for line in sys.stdin:
        message = json.loads(line)
        if "name" in message:
            workload = BY_NAME[message["name"]]
            timed = timer_of(workload.numpy(workload.data(message["tiny"])).step, clock_of(cpu_time))
            answer = 0.0
        else:
            answer = timed(message["calls"])
            settle()
        print(json.dumps(answer), flush=True)


def race(timers: Mapping[str, Timer], rounds: int) -> dict[str, Measured]:
    """Samples of all contenders, taken in turns; every round starts with another one."""
    calls: dict[str, int] = {}
    for name, timed in timers.items():
        once = min(timed(1), timed(1))
        calls[name] = max(1, min(round(SAMPLE_SECONDS / once), MAX_CALLS))
    found = {name: Measured() for name in timers}
    names = list(timers)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            settle()
            found[name].samples.append(timers[name](calls[name]))
    return found


def run_workload(workload: Any, arguments: argparse.Namespace, worker: NumpyWorker | None) -> Any:
    """Checks and times one workload, and takes graphc's roofline."""
    from peers import peers_of
    from workloads import worst_error

    tiny = arguments.tiny
    clock = clock_of(arguments.cpu_time)
    data = workload.data(tiny)
    expected = workload.numpy(data, "float64").checked()
    makers: dict[str, Callable[[Any], Any]] = {"graphc": workload.graphc, **peers_of(workload)}
    makers["numpy"] = workload.numpy
    timers: dict[str, Timer] = {}
    failed: dict[str, Measured] = {}
    contenders = {}
    for name, make in makers.items():
        try:
            contender = make(data)
            error, where = worst_error(contender.checked(), expected)
        except PEER_FAILURES as failure:
            if name == "graphc":
                raise
            failed[name] = Measured(error=f"{type(failure).__name__}: {failure}"[:300])
            continue
        if error > workload.tolerance:
            failed[name] = Measured(error=f"wrong by {error:.2g} in {where}")
            continue
        contenders[name] = contender
        timers[name] = timer_of(contender.step, clock)
    if worker is not None and workload.kind in ("network", "matmul"):
        worker.ask({"name": workload.name, "tiny": tiny})
        timers["numpy, default core"] = lambda calls: worker.ask({"calls": calls})
    measured = {**race(timers, arguments.rounds), **failed}
    result = {
        "name": workload.name,
        "title": workload.title,
        "threads": arguments.child,
        "clock": "CPU time" if arguments.cpu_time else "wall",
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "contenders": {name: value.as_data() for name, value in measured.items()},
    }
    if "graphc" in contenders:
        result["roofline"] = roofline_data(contenders["graphc"])
    return result


def roofline_data(contender: Any) -> dict[str, Any]:
    """graphc's roofline as data: the step's bound, and every kernel."""
    report = contender.executable.roofline(contender.feeds)
    kernels = [
        {
            "name": k.name, "form": k.form, "seconds": k.seconds, "bound": k.bound, "fraction": k.fraction,
            "flops": k.work.total_flops, "bytes": k.work.nbytes, "intensity": k.work.intensity,
        }
        for k in report.kernels
    ]  # fmt: skip
    return {
        "bound_seconds": report.bound_seconds, "bound": report.bound, "step_seconds": report.step_seconds,
        "kernels": kernels, "text": str(report),
        "peak_flops": report.peaks.flops[32],
        "bandwidths": [[row.footprint, row.read] for row in report.peaks.bandwidths],
    }  # fmt: skip


def child(arguments: argparse.Namespace) -> None:
    """Runs the workloads at one number of threads; appends a line of JSON for each to a file."""
    from peers import set_threads
    from workloads import BY_NAME

    from graphc.peaks import machine_peaks

    set_threads(arguments.child)
    machine_peaks()  # of a machine at rest: before the contenders have threads
    worker = None if arguments.tiny else NumpyWorker(arguments.cpu_time)
    with open(arguments.json, "a", encoding="utf-8") as file:
        for name in arguments.only:
            result = run_workload(BY_NAME[name], arguments, worker)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{name}, {arguments.child} threads: done", file=sys.stderr, flush=True)
    if worker is not None:
        worker.close()


# ------------------------------------------------------------------------------------------- the parent


def run_children(
    names: Sequence[str], arguments: argparse.Namespace, thread_counts: Sequence[int]
) -> list[Any]:
    """One child after another; results in the order of the workloads. SystemExit if one fails."""
    cpuinfo = Path("/proc/cpuinfo")
    core = right_core(cpuinfo.read_text()) if cpuinfo.exists() else None
    results = []
    for threads in thread_counts:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "results.json")
            command = [sys.executable, __file__, "--child", str(threads), "--json", path]
            command += ["--rounds", str(arguments.rounds), "--only", *names]
            command += ["--tiny"] if arguments.tiny else []
            # Of several threads the CPU time says nothing.
            command += ["--cpu-time"] if arguments.cpu_time and threads == 1 else []
            with pinned(threads):
                process = subprocess.Popen(command, env=child_environment(threads, core))
            code = process.wait()
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    results += [json.loads(line) for line in file]
            if code:
                raise SystemExit(f"the child with {threads} threads ended with {code}")
    order = {name: number for number, name in enumerate(names)}
    return sorted(results, key=lambda result: (order[result["name"]], result["threads"]))


class pinned:
    """While a child of one thread is started: this process on one CPU, which the child inherits."""

    def __init__(self, threads: int) -> None:
        self._pins = threads == 1 and hasattr(os, "sched_setaffinity")

    def __enter__(self) -> None:
        if self._pins:
            self._cpus = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {max(self._cpus)})

    def __exit__(self, *_: object) -> None:
        if self._pins:
            os.sched_setaffinity(0, self._cpus)


def machine() -> dict[str, Any]:
    """What the figures were taken on and with."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("graphc", "torch", "jax", "numpy", "llvmlite"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    return {"cpu": model, "cpus": cpu_count(), "versions": versions}


def cpu_count() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="workloads, or how they begin")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread: CPU time, for a machine that others use as well"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--json", help="write all samples there")
    parser.add_argument("--markdown", help="write tables there")
    parser.add_argument("--plot", help="write a PNG there (needs matplotlib)")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--numpy-worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """See the module."""
    arguments = arguments_of(argv)
    if arguments.numpy_worker:
        return numpy_worker(arguments.cpu_time)
    if arguments.child is not None:
        return child(arguments)
    from workloads import WORKLOADS

    names = [w.name for w in WORKLOADS if not arguments.only or any(map(w.name.startswith, arguments.only))]
    if not names:
        raise SystemExit(f"there is no such workload; there are {', '.join(w.name for w in WORKLOADS)}")
    thread_counts = arguments.threads or sorted({1, cpu_count()})
    results = run_children(names, arguments, thread_counts)
    run = {"machine": machine(), "rounds": arguments.rounds, "results": results}
    print(table(run))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(run), encoding="utf-8")
    if arguments.markdown:
        Path(arguments.markdown).write_text(markdown(run), encoding="utf-8")
    if arguments.plot:
        plot(run, arguments.plot)


if __name__ == "__main__":
    main()
