"""Machine peaks: what this machine can do at most, measured with code that graphc itself generates.

    flops            FMA chains in registers, as many as a matrix product's tile holds
    transcendentals  each function over numbers that stay in the L1 cache
    bandwidth        for several footprints: reading, triad (two read, one written), and updating in place

Everything runs through the thread pool at its present number of threads. Bytes of a triad are those that the
program names: the line that a store fetches before it is overwritten (write-allocate) is not counted, and
makes the measured bandwidth lower; where stores past the caches, which fetch nothing, are faster, the triad's
rate is theirs. Measured once and kept in a per-user file, an entry for each kind of machine and number of
threads, until the sources of the emitter change. Whatever else the machine does makes a measured peak lower:
measuring again keeps the larger of each rate. Removing the file starts anew.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc import settings
from graphc.ir.graph import Variable
from graphc.ir.types import TensorType, float32
from graphc.ir.work import TRANSCENDENTALS

if TYPE_CHECKING:
    from graphc.codegen.launch import ProgramBlock
    from graphc.engine import NativeEngine

FILE_VERSION = 3
FILE_NAME = "peaks.json"
FOOTPRINTS = tuple(1 << shift for shift in (15, 18, 20, 22, 24, 26, 28))
"""Bytes: 32 KB, 256 KB, 1, 4, 16, 64 and 256 MB."""
MEMORY_SHARE = 8
"""The largest footprint is at most 1/8 of the machine's memory."""
SAMPLES = 9
SAMPLE_SECONDS = 2e-3
ROW = 1024  # float32 elements in a row of the bandwidth probes
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second at a footprint: reading, triad, and updating in place (bytes read plus written)."""

    footprint: int
    read: float
    triad: float
    update: float


@dataclass(frozen=True)
class Peaks:
    """Rates per second of `threads` threads. `flops` by bits of the float; `transcendentals` in elements by
    (primitive, bits); `bandwidths` by rising footprint."""

    machine: str
    threads: int
    flops: Mapping[int, float]
    transcendentals: Mapping[tuple[str, int], float]
    bandwidths: tuple[Bandwidth, ...]

    def raised(self, other: Peaks) -> Peaks:
        """The larger of each rate of two measurements of the same machine and number of threads."""
        theirs = {row.footprint: row for row in other.bandwidths}
        rows = [
            Bandwidth(a.footprint, max(a.read, b.read), max(a.triad, b.triad), max(a.update, b.update))
            for a, b in ((row, theirs.get(row.footprint, row)) for row in self.bandwidths)
        ]
        return replace(
            self,
            flops={bits: max(rate, other.flops[bits]) for bits, rate in self.flops.items()},
            transcendentals={k: max(r, other.transcendentals[k]) for k, r in self.transcendentals.items()},
            bandwidths=tuple(rows),
        )

    def memory_seconds(self, read: int, written: int, updated: int = 0) -> float:
        """The least time to read, write and update (once read, once written) so many bytes in all.

        The cost of a byte is taken between the measured footprints, on a scale of log(footprint). A written
        byte costs what the triad took beyond its two reads, but no less than half a read.
        """
        footprint = read + written + updated
        if footprint == 0:
            return 0.0
        reading, writing, updating = self._costs(footprint)
        return read * reading + written * writing + updated * updating

    def _costs(self, footprint: int) -> tuple[float, float, float]:
        table = self.bandwidths
        above = bisect_left([row.footprint for row in table], footprint)
        if above in (0, len(table)):
            return _byte_costs(table[min(above, len(table) - 1)])
        low, high = table[above - 1], table[above]
        share = math.log(footprint / low.footprint) / math.log(high.footprint / low.footprint)
        pairs = list(zip(_byte_costs(low), _byte_costs(high), strict=True))
        reading, writing, updating = ((1 - share) * a + share * b for a, b in pairs)
        return reading, writing, updating

    def __str__(self) -> str:
        lines = [f"{self.machine}, {self.threads} threads"]
        lines += [f"  {rate / 1e9:9.1f} GFLOP/s  float{bits} FMA" for bits, rate in self.flops.items()]
        lines += [
            f"  {rate / 1e9:9.3f} G/s      {name} of float{bits}"
            for (name, bits), rate in self.transcendentals.items()
        ]
        lines.append("  GB/s at       read    triad   update")
        lines += [
            f"  {_size(b.footprint):>8} {b.read / 1e9:8.1f} {b.triad / 1e9:8.1f} {b.update / 1e9:8.1f}"
            for b in self.bandwidths
        ]
        return "\n".join(lines)


def _byte_costs(row: Bandwidth) -> tuple[float, float, float]:
    """Seconds to read a byte, to write one, and to update one."""
    reading = 1 / row.read
    return reading, max(3 / row.triad - 2 * reading, reading / 2), 2 / row.update


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KB"


# ------------------------------------------------------------------------------------------ the file


def machine_peaks(refresh: bool = False) -> Peaks:
    """The peaks of this machine at the present number of threads: from the per-user file, or measured (some
    seconds) and kept there. `refresh` measures in any case and keeps the larger of each rate, for when
    another program was in the way."""
    from graphc.codegen.threads import get_num_threads

    threads = get_num_threads()
    machine = machine_name()
    directory = settings.cache_directory()
    usable = _usable(directory)
    known = read_peaks(directory / FILE_NAME) if usable else []
    before = next((p for p in known if (p.machine, p.threads) == (machine, threads)), None)
    if before is not None and not refresh:
        return before
    peaks = measure(machine, threads)
    if before is not None:
        peaks = peaks.raised(before)
    if usable:
        others = [other for other in known if (other.machine, other.threads) != (machine, threads)]
        write_peaks(directory / FILE_NAME, [*others, peaks])
    return peaks


def machine_name() -> str:
    """What tells machines apart that peaks are kept for: CPU model, vector level and number of CPUs."""
    from graphc.codegen.cpu_count import available_cpus
    from graphc.codegen.target import host_cpu_name, host_target

    return f"{host_cpu_name()} {host_target().name} {available_cpus()} CPUs"


def _usable(directory: Path) -> bool:
    """Makes the directory; false, with a log line, where others could write to it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        _log.warning("peaks are not kept: %s", error)
        return False
    if hasattr(os, "getuid") and (
        found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        _log.warning("peaks are not kept: %s belongs to, or can be written by, other users", directory)
        return False
    return True


def read_peaks(path: Path) -> list[Peaks]:
    """The entries of a file; none where it is missing, damaged (with a log line) or of another version, or
    was measured with other code: the rate of a function is that of the code we have for it."""
    from graphc.codegen.cache import emitter_digest

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != FILE_VERSION or content["code"] != emitter_digest():
            return []
        return [_parsed(entry) for entry in content["entries"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("peaks are measured anew: %s is damaged (%s)", path, error)
        return []


def write_peaks(path: Path, entries: Sequence[Peaks]) -> None:
    """Replaces the file atomically; a log line where that fails."""
    from graphc.codegen.cache import emitter_digest

    entries_data = [_as_data(peaks) for peaks in entries]
    content = {"version": FILE_VERSION, "code": emitter_digest(), "entries": entries_data}
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=FILE_NAME)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("peaks are not kept: %s", error)
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _as_data(peaks: Peaks) -> dict[str, Any]:
    return {
        "machine": peaks.machine,
        "threads": peaks.threads,
        "flops": {str(bits): rate for bits, rate in peaks.flops.items()},
        "transcendentals": {f"{name} {bits}": rate for (name, bits), rate in peaks.transcendentals.items()},
        "bandwidths": [[b.footprint, b.read, b.triad, b.update] for b in peaks.bandwidths],
    }


def _parsed(entry: Mapping[str, Any]) -> Peaks:
    """ValueError, KeyError or TypeError for what `_as_data` would not write."""
    transcendentals = {}
    for key, rate in entry["transcendentals"].items():
        name, bits = key.split()
        transcendentals[name, int(bits)] = _rate(rate)
    bandwidths = tuple(
        Bandwidth(int(footprint), _rate(read), _rate(triad), _rate(update))
        for footprint, read, triad, update in entry["bandwidths"]
    )
    footprints = [row.footprint for row in bandwidths]
    if not footprints or footprints != sorted(set(footprints)) or footprints[0] <= 0:
        raise ValueError("footprints are not rising")
    flops = {int(bits): _rate(rate) for bits, rate in entry["flops"].items()}
    if set(flops) != {32, 64} or set(transcendentals) != {(n, b) for n in TRANSCENDENTALS for b in (32, 64)}:
        raise ValueError("rates are missing")
    return Peaks(str(entry["machine"]), int(entry["threads"]), flops, transcendentals, bandwidths)


def _rate(value: Any) -> float:
    rate = float(value)
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{value!r} is not a rate")
    return rate


# ------------------------------------------------------------------------------------- measurement


def measure(machine: str, threads: int) -> Peaks:
    """Measures all peaks at the pool's present number of threads."""
    from graphc.codegen.target import host_target

    rows, vectors = host_target().contract_tile

    def flops() -> dict[int, float]:
        return {bits: _fma_rate(bits, rows, vectors) for bits in (32, 64)}

    # Threads that have slept may share a CPU for some time, though another is idle: twice, a second apart.
    first = flops()
    peaks = Peaks(machine, threads, first, _function_rates(), _bandwidths())
    return peaks.raised(replace(peaks, flops=flops()))


def best_seconds(run: Callable[[], object], samples: int = SAMPLES) -> float:
    """The least time of some calls, after one that does not count."""
    run()
    best = math.inf
    for _ in range(samples):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _launch_seconds(block: ProgramBlock, launch: int) -> float:
    """Seconds of one launch, repeated natively for long enough to be timed."""
    once = best_seconds(block.part(launch).run, 2)
    times = max(1, min(round(SAMPLE_SECONDS / once), 1 << 14))
    return best_seconds(block.part(launch, times).run) / times


def _engine(text: str, bindings: Mapping[str, Any] | None = None) -> NativeEngine:
    from graphc.engine import NativeEngine
    from graphc.ir.parse_kernels import parse_kernels
    from graphc.ir.verify_kernels import verify_kernels

    return NativeEngine(verify_kernels(parse_kernels("graphc kernels 1\n" + text, bindings)))


_FMA = """
storage x: F[ROWS] input
storage v: F[COLUMNS] input
storage y: F[ROWS, COLUMNS] output
output y: F[ROWS, COLUMNS] = y

kernel fma contract i<ROWS> cost 10000 granule TILE
  in x: F[ROWS]
  in v: F[COLUMNS]
  out y: F[ROWS, COLUMNS]
  for i<ROWS> chunked tile TILE:
    for j<COLUMNS> vector VECTORS:
      var acc: F = x[i]
      let factor = v[j]
      for k<4096>:
        acc += factor * factor
      y[i, j] = acc
"""


def _fma_rate(bits: int, rows: int, vectors: int) -> float:
    from graphc.codegen.target import host_target

    columns = vectors * host_target().vector_bits // bits
    words = {"ROWS": 32 * rows, "COLUMNS": columns, "TILE": rows, "VECTORS": vectors, "F": f"f{bits}"}
    engine = _engine(_expanded(_FMA, words))
    dtype = np.dtype(f"float{bits}")
    feeds = {"x": np.arange(32 * rows, dtype=dtype), "v": np.full(columns, 1e-3, dtype)}
    results = engine.run(feeds, {})
    seconds = _launch_seconds(engine.block({}), 0)
    del results  # the block holds its address
    return 2 * 32 * rows * columns * 4096 / seconds


def _expanded(text: str, words: Mapping[str, object]) -> str:
    """The text with words in capitals replaced."""
    for word, value in words.items():
        text = text.replace(word, str(value))
    return text


_FUNCTION_ROWS = 512
_FUNCTION_VECTORS = (2, 4)  # which is faster depends on registers and latencies


def _function_rates() -> dict[tuple[str, int], float]:
    """Elements per second of every transcendental primitive, the better of two unrollings."""
    keys = [(n, bits, v) for n in TRANSCENDENTALS for bits in (32, 64) for v in _FUNCTION_VECTORS]
    storages, kernels = ["storage x32: f32[1024] input", "storage x64: f64[1024] input"], []
    for name, bits, vectors in keys:
        label = f"{name}.{bits}.{vectors}"
        type = f"f{bits}[{_FUNCTION_ROWS}]"
        arguments = "x[j], x[j]" if name == "pow" else "x[j]"
        storages += [f"storage {label}: {type} output", f"output {label}: {type} = {label}"]
        kernels.append(
            f"kernel k.{label} map i<{_FUNCTION_ROWS}> cost 1000\n"
            f"  in x: f{bits}[1024] = x{bits}\n  out y: {type} = {label}\n"
            f"  for i<{_FUNCTION_ROWS}> chunked:\n    var s: f{bits} = 0.0{'' if bits == 32 else 'f64'}\n"
            f"    for j<1024> vector {vectors}:\n      s += {name}({arguments})\n    y[i] = s\n"
        )
    engine = _engine("\n".join([*sorted(storages, key=lambda s: s.startswith("output")), "", *kernels]))
    x = np.linspace(0.1, 4.0, 1024)
    results = engine.run({"x32": x.astype(np.float32), "x64": x}, {})
    block = engine.block({})
    numbers = {kernel.name: number for number, kernel in enumerate(engine.program.kernels)}
    rates: dict[tuple[str, int], float] = {}
    for name, bits, vectors in keys:
        seconds = _launch_seconds(block, numbers[f"k.{name}.{bits}.{vectors}"])
        rates[name, bits] = max(rates.get((name, bits), 0.0), _FUNCTION_ROWS * 1024 / seconds)
    del results
    return rates


_READ = """
storage x: f32[R, 1024] input
storage y: f32[R] output
output y: f32[R] = y

kernel read rows i<R> cost 1000
  in x: f32[R, 1024]
  out y: f32[R]
  for i<R> chunked:
    var s: f32 = 0.0
    for j<1024> vector 8:
      s += x[i, j]
    y[i] = s
"""

_TRIAD = """
storage a: f32[R, 1024] input
storage b: f32[R, 1024] input
storage y: f32[R, 1024] output
output y: f32[R, 1024] = y

kernel triad map i<R> cost 1000
  in a: f32[R, 1024]
  in b: f32[R, 1024]
  out y: f32[R, 1024]
  for i<R> chunked:
    for j<1024> vector 4:
      y[i, j] = a[i, j] + b[i, j] * 0.5
"""
# Past the caches, where the footprint exceeds them.
_STREAMED_TRIAD = _TRIAD.replace("      y[i, j]", "      stream y[i, j]")

_UPDATE = """
storage w: f32[MOST, 1024] state #0

kernel update map i<R> cost 1000
  inout w: f32[MOST, 1024]
  for i<R> chunked:
    for j<1024> vector 4:
      w[i, j] = w[i, j] * 0.5 + 1.0
"""


def _bandwidths() -> tuple[Bandwidth, ...]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 32
    footprints = [f for f in FOOTPRINTS if f <= memory // MEMORY_SHARE] or [FOOTPRINTS[0]]
    most = footprints[-1] // (4 * ROW)
    # Written to before it is read, or every page would be the same page of zeros.
    state = Variable("w", TensorType(float32, (most, ROW)), lambda: np.ones((most, ROW), np.float32))
    update = _engine(_UPDATE.replace("MOST", str(most)), {"w": state})
    read, triads = _engine(_READ), [_engine(_TRIAD), _engine(_STREAMED_TRIAD)]
    array = state.array
    found = []
    for footprint in footprints:
        rows = footprint // (4 * ROW)
        third = max(rows // 3, 1)
        a, b, y = (array[k * third : (k + 1) * third] for k in range(3))
        found.append(
            Bandwidth(
                footprint,
                _bytes_per_second(read, {"x": array[:rows]}, rows, rows * 4 * ROW),
                max(
                    _bytes_per_second(triad, {"a": a, "b": b}, third, 3 * third * 4 * ROW, {"y": y})
                    for triad in triads
                ),
                _bytes_per_second(update, {}, rows, 2 * rows * 4 * ROW),
            )
        )
    return tuple(found)


def _bytes_per_second(
    engine: NativeEngine,
    feeds: Mapping[str, Any],
    rows: int,
    nbytes: int,
    outputs: Mapping[str, Any] | None = None,
) -> float:
    bindings = {"R": rows}
    results = engine.run(feeds, bindings, outputs)
    seconds = _launch_seconds(engine.block(bindings), 0)
    del results
    return nbytes / seconds
