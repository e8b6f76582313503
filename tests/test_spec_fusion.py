"""Fusion in the classifier of case C, in softmax cross entropy and in layer norm: kernels, regions, bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pytest
from spec_support import case_c_step, classifier, classifier_feeds, random, threads

import graphc as gx

BATCH = 1000
FLOAT = 4


@dataclass
class Launch:
    """One row of the printed launch table, with the storages that it touches."""

    kernel: str
    form: str
    region: int
    storages: list[tuple[str, str]] = field(default_factory=list)  # (access, storage)


@dataclass
class Table:
    """What the program stage prints: launches in order, bytes and names of storages."""

    launches: list[Launch]
    sizes: dict[str, int]
    names: dict[str, str]
    types: dict[str, str]

    def moved(self) -> int:
        """Bytes through memory if every launch reads its inputs and writes its outputs once."""
        return sum(self.launch_bytes(launch) for launch in self.launches)

    def launch_bytes(self, launch: Launch) -> int:
        return sum(self.sizes[s] * (2 if access == "inout" else 1) for access, s in launch.storages)

    def touching(self, pattern: str) -> list[Launch]:
        """The launches that touch a storage whose name and type, as printed, match."""
        found = {s for s in self.names if re.search(pattern, f"{self.names[s]}: {self.types[s]}")}
        return [launch for launch in self.launches if any(s in found for _, s in launch.storages)]


def table(exe: gx.Executable) -> Table:
    """Reads the printed program."""
    result, region = Table([], {}, {}, {}), -1
    for line in exe.dump("program").splitlines():
        if found := re.match(r"region r(\d+):", line):
            region = int(found[1])
        elif found := re.match(r"\s+launch \d+: (\w+) (\w+) \(([^)]*)\)", line):
            storages = [tuple(part.split()) for part in found[3].split(", ") if part]
            result.launches.append(Launch(found[1], found[2], region, storages))  # type: ignore[arg-type]
        elif found := re.match(r"\s+(s\d+) \w+ +(\d+) bytes  (\S+): (\S+\[[^\]]*\])", line):
            result.sizes[found[1]], result.names[found[1]] = int(found[2]), found[3]
            result.types[found[1]] = found[4]
    assert result.launches and set(result.sizes) >= {s for row in result.launches for _, s in row.storages}
    return result


@pytest.fixture(scope="module")
def step() -> Table:
    """The bound program of a training step of case C, loss alone returned, on two threads."""
    gx.seed(0)
    _, loss = classifier()
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=10.0, momentum=0.5))
    with threads(2):
        exe.run(classifier_feeds(BATCH))
    return table(exe)


def compulsory() -> int:
    """Bytes that a training step has to move, kernel by kernel, each tensor once per kernel that needs it.

    A kernel cannot hold a whole layer's activation, so activations and deltas are written once and read by
    each product that needs them; bias, activation, derivative, bias gradient, loss and update ride along.
    """
    widths = (784, 16, 16, 10)
    layers = [(widths[n], widths[n + 1]) for n in range(3)]
    count = 0
    for fan_in, fan_out in layers:  # forward product: reads its input, weight and bias ...
        count += BATCH * fan_in + fan_in * fan_out + fan_out
    count += BATCH * 16 + BATCH * 16  # ... and writes the hidden activations; the output need not exist
    count += BATCH * 10 + BATCH * 10 + 1  # the last one reads the targets, writes its delta and the loss
    for fan_in, fan_out in layers[
        1:
    ]:  # backward product: delta and weight, input for the derivative -> delta
        count += BATCH * fan_out + fan_in * fan_out + BATCH * fan_in + BATCH * fan_in
    for (
        fan_in,
        fan_out,
    ) in layers:  # weight gradient: input and delta; weight, bias and moments read and written
        count += BATCH * fan_in + BATCH * fan_out + 4 * (fan_in * fan_out + fan_out)
    return FLOAT * count


def test_bytes_moved(step: Table) -> None:
    assert compulsory() == pytest.approx(7.5e6, rel=0.02)  # twice x, 3.1 MB each, is most of it
    ratio = step.moved() / compulsory()
    assert 1.0 <= ratio <= 1.3, ratio


def test_what_the_program_prints_is_what_its_launches_move(step: Table) -> None:
    _, loss = classifier()
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=10.0, momentum=0.5))
    exe.run(classifier_feeds(BATCH))
    printed = re.search(r"all launches move (\d+) bytes", exe.dump("program"))
    assert printed is not None and int(printed[1]) == table(exe).moved()


def test_nothing_passes_over_the_batch_but_products(step: Table) -> None:
    """Bias, activation, derivative, bias gradient and loss have no kernel of their own: of the launches that
    touch a tensor of the batch, each is one of the eight products."""
    batch = step.touching(r"\[B(, \d+)*\]$")
    assert [launch.form for launch in batch] == ["contract"] * 8
    for name, kernels in {r"^x:": 2, r"^t:": 1}.items():
        assert len(step.touching(name)) == kernels, name
    temporaries = [s for s, name in step.names.items() if name.startswith("tmp") and "[B" in step.types[s]]
    assert sorted(step.types[s] for s in temporaries) == ["f32[B, 10]"] + ["f32[B, 16]"] * 4


def test_forward_and_backward_share_one_region(step: Table) -> None:
    """Between the products no thread waits, but for the first layer's weight gradient, whose partial result
    is as large as the weight: it has a region, and chunks, of its own. Adding the partial sums up and the
    updates follow; they touch nothing of the batch."""
    batch = step.touching(r"\[B(, \d+)*\]$")
    regions = sorted({launch.region for launch in batch})
    members = [[launch for launch in step.launches if launch.region == region] for region in regions]
    assert all(launch in batch for region in members for launch in region)
    large = step.touching(r"\[k\d+\.chunks, 784, 16\]$")[:1]
    assert [len(region) for region in members] in ([8], [7, 1])
    assert len(regions) == 1 or members[1] == large


def test_updates_ride_on_the_sums_of_the_gradients(step: Table) -> None:
    """A parameter is written by one kernel, which reads the gradient's partial sums and the moment: the
    gradient itself is never in memory."""
    for layer in (0, 2, 4):
        for kind in ("weight", "bias"):
            name = rf"^net\.{layer}\.{kind}:"
            writers = [
                launch
                for launch in step.touching(name)
                for access, s in launch.storages
                if access != "in" and re.match(name, f"{step.names[s]}:")
            ]
            assert len(writers) == 1, name
            held = {step.names[s] for _, s in writers[0].storages}
            assert f"optim.net.{layer}.{kind}.momentum" in held


def test_softmax_cross_entropy_and_its_backward_are_one_kernel() -> None:
    B = gx.dim("B")
    z, t = gx.input("z", (B, 100)), gx.input("t", (B,), dtype="int32")
    written = -(z - z.logsumexp(-1, keepdims=True))
    spellings = {
        "library": gx.softmax_cross_entropy(z, t),
        "nll of log softmax": gx.nll_loss(z.log_softmax(), t),
        "written out": (written * t.one_hot(100)).sum(1).mean(),
    }
    data, labels = random(0, 512, 100), (np.arange(512) % 100).astype(np.int32)
    for name, loss in spellings.items():
        exe = gx.compile([loss, gx.grad(loss, z)])
        value, gradient = exe.run(z=data, t=labels)
        p = np.exp(data.astype(np.float64))
        p /= p.sum(1, keepdims=True)
        assert value == pytest.approx(-np.log(p[np.arange(512), labels]).mean(), rel=1e-5)
        np.testing.assert_allclose(gradient, (p - np.eye(100)[labels]) / 512, rtol=1e-4, atol=1e-8)
        rows = table(exe)
        wide = rows.touching(r"\[B, 100\]$")
        assert [launch.form for launch in wide] == ["rows"], name
        logits = [access for access, s in wide[0].storages if rows.names[s] == "z"]
        assert logits == ["in"], name
        # the logits in, the gradient out, the labels twice (their check), and little else
        assert rows.moved() <= FLOAT * (2 * 512 * 100 + 3 * 512 + 500), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_norm_written_out_is_one_rows_kernel(dtype: str) -> None:
    B = gx.dim("B")
    x = gx.input("x", (B, 96), dtype)
    scale, shift = (
        gx.param("scale", (96,), init="ones", dtype=dtype),
        gx.param("shift", (96,), dtype=dtype, init="zeros"),
    )
    mean = x.mean(-1, keepdims=True)
    var = x.var(-1, keepdims=True)
    exe = gx.compile((x - mean) / (var + 1e-5).sqrt() * scale + shift)
    exe.params["scale"], exe.params["shift"] = random(1, 96), random(2, 96)
    data = random(0, 300, 96, dtype=dtype)
    got = exe.run(x=data)
    normal = (data - data.mean(1, keepdims=True)) / np.sqrt(data.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, normal * exe.params["scale"] + exe.params["shift"], rtol=1e-4, atol=1e-5)
    found = table(exe)
    assert [launch.form for launch in found.launches] == ["rows"]
    item = np.dtype(dtype).itemsize
    assert found.moved() == item * (2 * 300 * 96 + 2 * 96)


def test_elementwise_graph_is_one_map() -> None:
    x, y = gx.input("x", (gx.dim("B"), 30)), gx.input("y", (30,))
    a = (x + y).tanh()
    exe = gx.compile([a * 2 + x.exp(), a - y, gx.where(a > 0, x, -x)])
    exe.run(x=random(0, 100, 30), y=random(1, 30))
    assert [launch.form for launch in table(exe).launches] == ["map"]


def test_a_value_with_many_consumers_costs_no_extra_pass() -> None:
    """The three contributions to the trunk's cotangent are summed where they are made."""
    B = gx.dim("B")
    x = gx.input("x", (B, 32))
    trunk = gx.param("w", (32, 32), init="xavier_normal")
    h = (x @ trunk).tanh()
    loss = (h * h).sum() + h.exp().sum() + (h + 1).square().sum()
    exe = gx.compile(loss, loss=loss)
    exe.run(x=random(0, 200, 32))
    batch = table(exe).touching(r"\[B, 32\]$")
    assert len(batch) == 2, [
        launch.form for launch in batch
    ]  # forward with all of it, and the weight gradient


def test_case_c_step_is_the_network_of_the_other_tests() -> None:
    exe = case_c_step()
    exe.run(classifier_feeds(BATCH))
    assert len(table(exe).touching(r"^out\.out:")) == 1  # asking for the output costs one store, not a kernel
