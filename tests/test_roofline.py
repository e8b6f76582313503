"""Counts of work, measured peaks and their file, and the roofline of a step."""

import json
import logging
import math
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
from program_support import CHAIN, STEP, read, weights

import graphc as gx
from graphc import peaks as peaks_module
from graphc import roofline as roofline_module
from graphc.errors import UsageError
from graphc.ir.program import build_program
from graphc.ir.work import TRANSCENDENTALS, Work, work_of
from graphc.peaks import Bandwidth, Peaks, machine_peaks, read_peaks, write_peaks

PEAKS = Peaks(
    machine="paper",
    threads=1,
    flops={32: 100e9, 64: 50e9},
    transcendentals={(name, bits): 1e9 * 32 / bits for name in TRANSCENDENTALS for bits in (32, 64)},
    bandwidths=(Bandwidth(1 << 20, 100e9, 60e9, 80e9), Bandwidth(1 << 26, 10e9, 6e9, 8e9)),
)

# --------------------------------------------------------------------------------------------- counting

PRODUCT = """
storage a: F[M, K] input
storage b: F[K, 24] input
storage c: F[24] input
storage y: F[M, 24] output
storage s: F[k.chunks] output
output y: F[M, 24] = y
output s: F[k.chunks] = s

kernel k contract i<M> cost 5000
  in a: F[M, K]
  in b: F[K, 24]
  in c: F[24]
  out y: F[M, 24]
  out s: F[k.chunks]
  var total: F = 0.0F
  for i<M> chunked tile 2:
    for j<24> vector 1:
      var acc: F = c[j]
      for k<K>:
        acc += a[i, k] * b[k, j]
      let z = tanh(acc) + exp(neg(acc))
      y[i, j] = maximum(z, 0.0F)
      total += z
  s[chunk] = total * 0.5F
"""


@pytest.mark.parametrize(("short", "bits"), [("f32", 32), ("f64", 64)])
def test_work_of_a_product_with_an_epilogue(short, bits):
    text = PRODUCT.replace(" F[", f" {short}[").replace(": F =", f": {short} =")
    text = text.replace("0F", "0" if bits == 32 else "0f64").replace("5F", "5" if bits == 32 else "5f64")
    program = build_program(read(text))
    bound = program.bind({"M": 10, "K": 7})
    chunks = bound.bindings["k.chunks"]
    assert chunks > 1
    work = work_of(program.kernels[0], bound.bindings)
    elements = 10 * 24
    # The product 2 K; + of z, maximum, and the sum of z; one product at the end of each chunk.
    assert work.flops == {bits: elements * 2 * 7 + 3 * elements + chunks}
    assert work.transcendentals == {("tanh", bits): elements, ("exp", bits): elements}
    size = bits // 8
    assert work.read == size * (10 * 7 + 7 * 24 + 24)
    assert (work.written, work.updated) == (size * (elements + chunks), 0)
    assert work.nbytes == work.footprint == work.read + work.written
    assert work.intensity == work.total_flops / work.nbytes


def test_what_is_read_and_written_counts_twice():
    program = build_program(read(STEP, {"w": weights()}))
    by_name = {kernel.name: kernel for kernel in program.kernels}
    bindings = program.bind({"B": 6}).bindings
    update = work_of(by_name["k2"], bindings)
    assert (update.read, update.written, update.updated) == (16, 0, 16)
    assert (update.nbytes, update.footprint) == (48, 32)
    assert update.flops == {32: 8}
    check = work_of(by_name["k3"], bindings)  # integers are not FLOPs
    assert check.flops == {} and check.transcendentals == {} and check.intensity == 0
    assert check.nbytes == 4 * 6


def test_statements_outside_the_chunked_loop_run_once_a_chunk():
    program = build_program(read(CHAIN))
    bound = program.bind({"B": 100})
    by_name = {kernel.name: kernel for kernel in program.kernels}
    assert bound.bindings["k1.chunks"] > 1
    assert work_of(by_name["k1"], bound.bindings).flops == {32: 2 * 800}
    assert work_of(by_name["k3"], bound.bindings).flops == {32: bound.bindings["k1.chunks"]}
    assert work_of(by_name["k0"], program.bind({"B": 0}).bindings).total_flops == 0


# ------------------------------------------------------------------------------------------------ peaks


def test_memory_seconds_at_and_between_footprints():
    small, large = 1 << 20, 1 << 26
    assert PEAKS.memory_seconds(small, 0) == pytest.approx(small / 100e9)
    assert PEAKS.memory_seconds(large, 0) == pytest.approx(large / 10e9)
    assert PEAKS.memory_seconds(16, 0) == pytest.approx(16 / 100e9)
    assert PEAKS.memory_seconds(1 << 30, 0) == pytest.approx((1 << 30) / 10e9)
    middle = 1 << 23  # half way on the scale of logarithms
    assert PEAKS.memory_seconds(middle, 0) == pytest.approx(middle * (1 / 100e9 + 1 / 10e9) / 2)
    third = small // 3  # the mix that was measured takes what was measured
    assert PEAKS.memory_seconds(2 * third, third) == pytest.approx(3 * third / 60e9)
    assert PEAKS.memory_seconds(0, 0, small) == pytest.approx(2 * small / 80e9)
    assert PEAKS.memory_seconds(0, 0) == 0


def test_peaks_are_measured_once(tmp_path, monkeypatch):
    calls = []

    def measure(machine, threads):
        calls.append(machine)
        return Peaks(machine, threads, PEAKS.flops, PEAKS.transcendentals, PEAKS.bandwidths)

    monkeypatch.setattr(peaks_module, "measure", measure)
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "cache"))
    first = machine_peaks()
    assert machine_peaks() == first and len(calls) == 1
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert os.listdir(tmp_path / "cache") == ["peaks.json"]
    machine_peaks(refresh=True)
    assert len(calls) == 2
    disturbed = replace(PEAKS, flops={32: 1e9, 64: 2e12})
    monkeypatch.setattr(peaks_module, "measure", lambda machine, threads: replace(disturbed, machine=machine))
    assert machine_peaks(refresh=True).flops == {32: PEAKS.flops[32], 64: 2e12}
    monkeypatch.setattr(peaks_module, "measure", measure)
    monkeypatch.setattr(peaks_module, "machine_name", lambda: "another")
    assert machine_peaks().machine == "another" and len(calls) == 3
    assert len(read_peaks(tmp_path / "cache" / "peaks.json")) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("100000000000.0", "NaN"),
        lambda text: text.replace("100000000000.0", "-1"),
        lambda text: text.replace("tanh", "tan"),
        lambda text: text.replace('"bandwidths"', '"widths"'),
        lambda text: text.replace("1048576", "0"),
        lambda text: text.replace("1048576", "99999999999"),
        lambda text: json.dumps({**json.loads(text), "entries": [3]}),
        lambda text: json.dumps({"version": json.loads(text)["version"], "entries": []}),
    ],
)
def test_a_damaged_file_is_measured_anew(damage, tmp_path, caplog):
    path = tmp_path / "peaks.json"
    write_peaks(path, [PEAKS])
    assert read_peaks(path) == [PEAKS]
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with caplog.at_level(logging.WARNING):
        assert read_peaks(path) == []
    assert len(caplog.records) == 1 and "damaged" in caplog.text


def test_a_missing_or_older_file_is_no_damage(tmp_path, caplog):
    path = tmp_path / "peaks.json"
    assert read_peaks(path) == []
    path.write_text(json.dumps({"version": 0, "entries": ["what it was"]}))
    assert read_peaks(path) == []
    assert not caplog.records


def test_peaks_of_other_code_are_measured_anew(tmp_path, monkeypatch, caplog):
    path = tmp_path / "peaks.json"
    write_peaks(path, [PEAKS])
    monkeypatch.setattr("graphc.codegen.cache.emitter_digest", lambda: "of another emitter")
    assert read_peaks(path) == []
    assert not caplog.records


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions are POSIX's")
def test_a_directory_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(peaks_module, "measure", lambda machine, threads: PEAKS)
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    assert machine_peaks() is PEAKS
    assert "other users" in caplog.text and not list(tmp_path.iterdir())
    tmp_path.chmod(0o700)


def test_a_file_that_cannot_be_written_is_only_logged(tmp_path, caplog):
    write_peaks(tmp_path / "nowhere" / "peaks.json", [PEAKS])
    assert "not kept" in caplog.text


def test_measured_peaks_are_sane(monkeypatch):
    """A real measurement, at two footprints and with short samples."""
    monkeypatch.setattr(peaks_module, "FOOTPRINTS", (1 << 18, 1 << 22))
    monkeypatch.setattr(peaks_module, "SAMPLE_SECONDS", 2e-4)
    monkeypatch.setattr(peaks_module, "SAMPLES", 2)
    found = peaks_module.measure("this", 1)
    assert all(math.isfinite(rate) and rate > 1e6 for rate in found.transcendentals.values())
    assert set(found.transcendentals) == {(name, bits) for name in TRANSCENDENTALS for bits in (32, 64)}
    assert 1e9 < found.flops[64] < found.flops[32] < 1e14
    assert [row.footprint for row in found.bandwidths] == [1 << 18, 1 << 22]
    assert all(1e8 < rate < 1e13 for row in found.bandwidths for rate in (row.read, row.triad, row.update))
    assert "GFLOP/s" in str(found) and "256 KB" in str(found)


# ----------------------------------------------------------------------------------------------- report


def network():
    gx.seed(3)
    batch = gx.dim("B")
    x, t = gx.input("x", (batch, 64)), gx.input("t", (batch, 8))
    loss = gx.mse(gx.sigmoid(gx.nn.Linear(64, 8, name="fc")(x)), t)
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=lambda step: 0.5 / (step + 1), momentum=0.9))
    rng = np.random.default_rng(0)
    return exe, {"x": rng.random((96, 64), np.float32), "t": rng.random((96, 8), np.float32)}


def test_the_report_of_a_training_step(monkeypatch):
    monkeypatch.setattr(roofline_module, "machine_peaks", lambda refresh=False: PEAKS)
    monkeypatch.setattr(roofline_module, "MEASURE_SECONDS", 0.01)
    exe, feeds = network()
    exe.run(feeds)
    before = exe.state_dict()
    report = exe.roofline(feeds)
    after = exe.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)

    program = exe.engine.program
    assert [k.name for k in report.kernels] == [k.name for k in program.kernels]
    assert all(k.seconds > 0 and k.chunks >= 1 for k in report.kernels)
    products = 2 * 2 * 96 * 64 * 8  # forward, and the weight's gradient
    assert products < report.step_work.total_flops < 1.2 * products
    assert report.step_work.transcendentals == {("sigmoid", 32): 96 * 8}
    # Read: x, t and the learning rate; updated: weight, bias, their momenta and the step; written: the loss.
    parameters = 4 * (64 * 8 + 8)
    assert report.step_work.read >= feeds["x"].nbytes + feeds["t"].nbytes
    assert 2 * parameters <= report.step_work.updated <= 2 * parameters + 16
    assert report.step_work.written == 4
    assert report.bound_seconds <= sum(k.bound_seconds for k in report.kernels) + 1e-6
    lines = str(report).splitlines()
    assert len(lines) == len(report.kernels) + 2
    assert lines[0].split()[:2] == ["kernel", "form"] and lines[-1].startswith("step ")
    for line, kernel in zip(lines[1:], report.kernels, strict=False):
        assert line.split()[0] == kernel.name and kernel.bound in line


def test_a_step_faster_than_its_peaks_has_them_measured_again(monkeypatch):
    asked = []
    high = replace(
        PEAKS, flops={32: 1e18, 64: 1e18}, transcendentals=dict.fromkeys(PEAKS.transcendentals, 1e18)
    )
    high = replace(high, bandwidths=(Bandwidth(1 << 20, 1e18, 1e18, 1e18),))
    low = replace(PEAKS, flops={32: 1e3, 64: 1e3})

    def peaks(refresh=False):
        asked.append(refresh)
        return high if refresh else low

    monkeypatch.setattr(roofline_module, "machine_peaks", peaks)
    monkeypatch.setattr(roofline_module, "MEASURE_SECONDS", 0.001)
    monkeypatch.setattr(roofline_module, "_doubted", [])
    exe, feeds = network()
    assert exe.roofline(feeds).fraction > 2 and asked == [False]  # not what a disturbance makes of a peak
    monkeypatch.setattr(roofline_module, "DISTURBED", math.inf)
    asked.clear()
    report = exe.roofline(feeds)
    assert asked == [False, True] and report.peaks is high and 0 < report.fraction < 1
    assert all(kernel.fraction < 1 for kernel in report.kernels)
    assert roofline_module.roofline(exe, feeds, low).fraction > 1  # what was given is taken
    assert asked == [False, True]
    roofline_module._doubted.append(low)  # as after a measurement that brought nothing
    assert exe.roofline(feeds).fraction > 1 and asked == [False, True, False]


def test_the_larger_of_each_rate_is_kept():
    rows = (Bandwidth(1 << 20, 1.0, 1e12, 1.0), Bandwidth(1 << 30, 1.0, 1.0, 1.0))
    other = replace(PEAKS, flops={32: 1.0, 64: 1e15}, bandwidths=rows)
    raised = PEAKS.raised(other)
    assert raised.flops == {32: PEAKS.flops[32], 64: 1e15}
    assert raised.transcendentals == PEAKS.transcendentals
    first = PEAKS.bandwidths[0]
    assert raised.bandwidths[0] == Bandwidth(first.footprint, first.read, 1e12, first.update)
    assert raised.bandwidths[1:] == PEAKS.bandwidths[1:]


def test_keywords_are_feeds_too(monkeypatch):
    monkeypatch.setattr(roofline_module, "machine_peaks", lambda refresh=False: PEAKS)
    monkeypatch.setattr(roofline_module, "MEASURE_SECONDS", 0.001)
    exe, feeds = network()
    assert len(exe.roofline(**feeds).kernels) == len(exe.engine.program.kernels)


def test_bounds_and_fractions():
    work = Work({32: 1000, 64: 500}, {("exp", 32): 30}, read=100, written=50)
    limits = roofline_module._limits(work, PEAKS)
    assert limits == pytest.approx((20e-9, 30e-9, PEAKS.memory_seconds(100, 50)))
    kernel = roofline_module.KernelRoofline("k", "map", "", 1, work, 60e-9, *limits)
    assert kernel.bound == "transcendental" and kernel.bound_seconds == pytest.approx(30e-9)
    assert kernel.fraction == pytest.approx(0.5)


def test_state_is_put_back_when_a_step_fails(monkeypatch):
    monkeypatch.setattr(roofline_module, "machine_peaks", lambda refresh=False: PEAKS)
    z, y = gx.input("z", (4, 3)), gx.input("y", (4,), dtype="int64")
    w = gx.param("w", init=np.ones(3, np.float32))
    loss = gx.softmax_cross_entropy(z * w, y)
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1))
    with pytest.raises(gx.IndexRangeError):
        exe.roofline(z=np.ones((4, 3), np.float32), y=np.array([0, 1, 2, 3]))
    assert np.array_equal(exe.params["w"], np.ones(3))


def test_interpreters_have_no_roofline():
    x = gx.input("x", (3,))
    exe = gx.compile(x * 2.0, backend="numpy")
    with pytest.raises(UsageError, match="native"):
        exe.roofline(x=np.ones(3, np.float32))
