"""The benchmark: every workload in graphc and numpy at tiny sizes, and the report. No peers needed."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import graphc as gx
from graphc.codegen.threads import get_num_threads, set_num_threads
from graphc.ir.work import Work
from graphc.peaks import Bandwidth

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import bench
import bench_report
import call_overhead
import race
import same_bits
import scaling
import workloads
from test_roofline import PEAKS


@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda workload: workload.name)
def test_graphc_and_numpy_make_the_same(workload):
    data = workload.data(tiny=True)
    expected = workload.numpy(data, "float64").checked()
    for contender in (workload.graphc(data), workload.numpy(data)):
        error, where = workloads.worst_error(contender.checked(), expected)
        assert error < 1e-5, where


@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda workload: workload.name)
def test_every_workload_has_the_same_bits_at_any_number_of_threads(workload):
    assert same_bits.differing(workload, tiny=True) == []


def test_different_bits_are_named(monkeypatch, capsys):
    monkeypatch.setattr(same_bits, "differing", lambda workload, tiny: [(3, "loss")])
    assert same_bits.main(["xand", "--tiny"])
    assert "DIFFERS: loss at 3 threads" in capsys.readouterr().out


def test_every_workload_has_its_sizes_from_the_table():
    """Those of the issue: full-size data is made only when it is timed."""
    sizes = {workload.name: workload.sizes for workload in workloads.WORKLOADS}
    assert sizes["classifier"]["widths"] == (784, 16, 16, 10) and sizes["classifier"]["batch"] == 1000
    assert sizes["softmax_ce"] == {"rows": 8192, "classes": 1000}
    assert sizes["matmul_1000x784x16_tn"] == {"m": 1000, "k": 784, "n": 16, "form": "tn"}
    assert len(sizes) == len(workloads.WORKLOADS) == 20


def test_worst_error_finds_what_differs():
    expected = {"a": np.array([1.0, 2.0]), "b": np.array(4.0)}
    assert workloads.worst_error({"a": np.array([1.0, 2.5]), "b": np.array(4.0)}, expected) == (0.25, "a")
    assert workloads.worst_error({"a": np.array([1.0, np.nan]), "b": np.array(4.0)}, expected)[0] == np.inf
    assert workloads.worst_error({"a": np.array([1.0]), "b": np.array(4.0)}, expected)[0] == np.inf
    assert workloads.worst_error({"a": np.array([1.0, 2.0])}, expected)[0] == np.inf


def test_a_race_takes_turns():
    order = []

    def timer(name, seconds):
        def timed(calls):
            order.append(name)
            return seconds

        return timed

    found = bench.race({"a": timer("a", 0.5), "b": timer("b", 0.25)}, rounds=3)
    assert order[4:] == ["a", "b", "b", "a", "a", "b"]
    assert found["a"].as_data() == {"min": 0.5, "median": 0.5, "samples": [0.5] * 3}


def test_the_race(monkeypatch):
    """graphc's own rows on a small epoch; fit and run take the same steps."""
    monkeypatch.setattr(race, "EPOCH", 40)
    monkeypatch.setattr(race, "BATCH", 10)
    monkeypatch.setattr(race, "PYTHON_ROWS", (1, 2))
    monkeypatch.setattr(race, "find_spec", lambda name: None)
    before = get_num_threads()
    images, targets = race.dataset(None, 50)
    try:
        rows = race.race(images, targets, rounds=2, threads=2)
    finally:
        set_num_threads(before)
    assert [row.name for row in rows[2:]] == [
        "graphc fit, 1 thread", "graphc fit, 2 threads",
        "graphc fit, shuffling, 1 thread", "graphc fit, shuffling, 2 threads",
    ]  # fmt: skip
    assert all(len(row.seconds) == 2 for row in rows[1:])
    in_order, shuffled = [{row.first_loss for row in part} for part in (rows[2:4], rows[4:])]
    assert len(in_order) == len(shuffled) == 1 and in_order != shuffled
    assert rows[1].first_loss == pytest.approx(*in_order, rel=1e-5)
    assert "| graphc fit, 1 thread " in race.table(rows)


def machine_of(threads=2, bandwidth=1.5, **options):
    """Peaks of one thread, and of so many that move bytes `bandwidth` times as fast."""
    one = replace(PEAKS, threads=1)
    rows = tuple(
        Bandwidth(b.footprint, *(bandwidth * rate for rate in (b.read, b.triad, b.update)))
        for b in one.bandwidths
    )
    costs = scaling.RegionCosts(take=1e-8, report=1e-7)
    return scaling.Machine(one, replace(one, threads=threads, bandwidths=rows), costs, **options)


def test_the_scaling_model():
    machine = machine_of()
    serial, free = scaling.Region(1, 1e-3, (Work(),)), scaling.Region(10, 1e-3, (Work(),))
    assert machine.seconds(serial, 64) == 1e-3 and scaling.serial_share([serial, free]) == 0.5
    assert machine.seconds(free, 1) == 1e-3
    # Chunks are whole: 10 on 4 threads are 3 turns, and 9 more threads than chunks are of no use.
    assert machine.seconds(free, 4) == pytest.approx(3e-4 + 3e-7 + 3e-8)
    assert machine.seconds(free, 64) == machine.seconds(free, 10) == pytest.approx(1e-4 + 9e-7 + 1e-8)
    assert scaling.predicted([serial, free], machine, 4) == pytest.approx(1.3e-3 + 3.3e-7)
    many = scaling.Region(64, 64e-9, (Work(),))
    assert machine.seconds(many, 64) > 64e-8  # a chunk's take costs more than the chunk


def test_bandwidth_in_the_scaling_model():
    machine = machine_of()
    large, small = Work(read=1 << 28), Work(read=1 << 20)
    assert [machine.growth(large, n) for n in (1, 2, 64)] == [1.0, 1.5, 1.5]
    assert [machine.growth(small, n) for n in (1, 2, 4)] == [1.0, 1.5, 2.5]
    assert machine_of(memory_scale=8.0).growth(large, 64) == 8.0
    seconds = machine.one.memory_seconds(large.read, 0)
    bound = scaling.Region(64, seconds, (large,))
    assert machine.seconds(bound, 64) == pytest.approx(seconds / 1.5, rel=1e-3)
    # Faster than memory allows on one thread: part of it was found in a cache.
    cached = scaling.Region(64, seconds / 2, (large,))
    assert machine.seconds(cached, 64) == pytest.approx(seconds / 3, rel=1e-3)


def test_scaling_curves(monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "peaks_at", lambda threads: replace(PEAKS, threads=threads))
    monkeypatch.setattr(scaling, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(scaling, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(scaling, "REGIONS", 10)
    before, shown = get_num_threads(), []
    scaling.main(["classifier", "adam", "--tiny"], shown.append)
    assert get_num_threads() == before
    lines = shown[1].splitlines()
    assert len(lines) == 4 and lines[2].startswith("| classifier") and "predicted/measured at 1" in lines[0]
    with pytest.raises(SystemExit):
        scaling.main(["nothing"])


def test_right_core():
    assert bench.right_core("vendor_id : GenuineIntel flags : avx2 avx512f") == "SKYLAKEX"
    assert bench.right_core("vendor_id : AuthenticAMD flags : avx2") == "ZEN"
    assert bench.right_core("vendor_id : GenuineIntel flags : avx2") == "HASWELL"
    assert bench.right_core("sse2") is None


def test_the_environment_of_a_child(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "ATOM")
    one = bench.child_environment(1, "ZEN")
    assert one["OMP_NUM_THREADS"] == one["GRAPHC_NUM_THREADS"] == "1" and one["OPENBLAS_CORETYPE"] == "ZEN"
    assert "intra_op_parallelism_threads=1" in one["XLA_FLAGS"]
    two = bench.child_environment(2, None)
    assert two["OPENBLAS_NUM_THREADS"] == "2" and "OPENBLAS_CORETYPE" not in two


@pytest.fixture
def results():
    """A run as it comes from the children, of a network too small to be worth timing."""
    gx.seed(0)
    x = gx.input("x", (64, 32))
    exe = gx.compile(gx.tanh(gx.nn.Linear(32, 16)(x)))
    feeds = {"x": np.ones((64, 32), np.float32)}
    contender = workloads.Contender(lambda: exe.run(feeds), dict, exe, feeds)
    measured = {
        "graphc": {"min": 2e-3, "median": 3e-3, "samples": [2e-3, 3e-3, 4e-3]},
        "torch": {"min": 3e-3, "median": 3.3e-3, "samples": [3e-3, 3.3e-3, 4e-3]},
        "jax": {"error": "RuntimeError: no"},
        "numpy": {"min": 5e-5, "median": 6e-3, "samples": [5e-5, 6e-3, 6e-3]},
    }
    result = {
        "name": "net", "title": "a net", "threads": 1, "load": 0.5, "clock": "wall", "contenders": measured,
        "roofline": bench.roofline_data(contender),
    }  # fmt: skip
    return {"machine": bench.machine(), "rounds": 3, "results": [result]}


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    """Peaks that need no measuring."""
    monkeypatch.setattr("graphc.roofline.machine_peaks", lambda refresh=False: PEAKS)


def test_ratios(results):
    (result,) = results["results"]
    assert bench_report.best_peer(result) == (5e-5, "numpy")
    assert bench_report.ratio(result) == pytest.approx(0.025)
    assert bench_report.ratio(result, "median") == pytest.approx(1.1)
    assert bench_report.fraction(result) == result["roofline"]["bound_seconds"] / 2e-3
    assert bench_report.ratio({"contenders": {}}) is None
    assert bench_report.fraction({"contenders": {}}) is None


def test_the_table_and_the_markdown(results):
    text = bench_report.table(results)
    row = next(line for line in text.splitlines() if line.startswith("net "))
    assert row.split()[1:8] == ["1", "2", "ms", "3", "ms", "-", "-"] and "50 us" in row and " 0.03 " in row
    assert "net, 1 threads, jax: RuntimeError: no" in text
    page = bench_report.markdown(results)
    assert "| net | 1 | 2 ms | 3 ms |" in page
    assert "GFLOP/s" in page and "contract" in page and "### a net, 1 threads" in page


def test_the_plot(results, tmp_path):
    pytest.importorskip("matplotlib")
    bench_report.plot(results, str(tmp_path / "bench.png"))
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_overhead_of_calls_is_measured_and_nothing_grows(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["call_overhead.py", "xand", "--rounds", "2", "--steps", "300"])
    call_overhead.main()
    shown = capsys.readouterr().out
    growth = shown.partition("growth")[2]
    for name in ("run(feeds)", "run(name=...)", "run(feeds, out=)", "bind()"):
        held = next(line.split()[-2] for line in growth.splitlines() if line.startswith(name))
        assert int(held.replace(",", "")) < 1000
        assert shown.count(f"\n{name} ") == 2
