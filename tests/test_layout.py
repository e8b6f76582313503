"""How operands of products are laid out: copies with gaps, panels, and the kernels that read them."""

import re

import numpy as np
import pytest

import graphc as gx
from graphc.ir.rewrite import layout

SHAPES = [(70, 160, 128), (17, 256, 144), (128, 130, 512), (33, 257, 160)]


def operands(m: int, k: int, n: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m + k + n)
    return tuple(rng.integers(-4, 5, shape).astype(dtype) for shape in ((m, k), (k, n)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["native", "python"])
def test_products_of_integers_are_exact(shape, form, dtype, backend):
    if backend == "python":
        shape = (3, shape[1] // 16, shape[2] // 4)
    a, b = operands(*shape, dtype)
    left = a.T.copy() if form[0] == "t" else a
    right = b.T.copy() if form[1] == "t" else b
    x = gx.input("x", (gx.dim("M"), a.shape[1]) if form[0] == "n" else left.shape, dtype=dtype)
    w = gx.param("w", right.shape, init=right, dtype=dtype)
    product = (x.T if form[0] == "t" else x) @ (w.T if form[1] == "t" else w)
    exe = gx.compile({"y": gx.relu(product + 1), "columns": product.sum(axis=0)}, backend=backend)
    found = exe.run(x=left)
    np.testing.assert_array_equal(found["y"], np.maximum(a @ b + 1, 0))
    np.testing.assert_array_equal(found["columns"], (a @ b).sum(axis=0))


@pytest.fixture
def panels_everywhere(monkeypatch):
    """Panels for operands of any size, so that small networks exercise them."""
    monkeypatch.setattr(layout, "PANEL_BYTES", 0)
    monkeypatch.setattr(layout, "PANEL_ROWS", 0)
    monkeypatch.setattr(layout, "TURNED_COLUMNS", 0)


@pytest.mark.parametrize("batch", [0, 1, 7, 50])
def test_a_network_whose_every_weight_lies_in_panels(panels_everywhere, batch):
    rng = np.random.default_rng(batch)
    feeds = {"x": rng.normal(size=(batch, 48)).astype("f"), "t": rng.integers(0, 10, batch)}
    results = []
    for backend in ("native", "python", "numpy"):
        gx.seed(3)
        x, t = gx.input("x", (gx.dim("B"), 48)), gx.input("t", (gx.dim("B"),), dtype="int64")
        hidden = gx.nn.Linear(64, 32, name="b")(gx.nn.Linear(48, 64, name="a")(x).relu()).tanh()
        loss = gx.softmax_cross_entropy(gx.nn.Linear(32, 10, name="c")(hidden), t, reduction="sum")
        step = gx.compile(
            {"loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.01, momentum=0.9), backend=backend
        )
        if backend == "native":
            assert "panel=" in step.dump("optimized")
        losses = [float(step.run(feeds)["loss"]) for _ in range(3)]
        results.append((losses, step.state_dict()))
    (losses, state), *others = results
    for other_losses, other_state in others:
        np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
        for name, value in state.items():
            np.testing.assert_allclose(value, other_state[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_small_operands_stay_as_they_are():
    x = gx.input("x", (gx.dim("B"), 16))
    exe = gx.compile(x @ gx.param("w", (16, 32), init="ones"))
    assert "copy" not in exe.dump("optimized")


def chunked_axes(exe):
    """The axis of the chunked loop of every product."""
    kernels = [text for text in exe.dump("kernels").split("\nkernel ")[1:] if " contract " in text[:40]]
    return [axis for text in kernels for axis in re.findall(r"for (\w+)<\w+> chunked", text)]


def test_a_product_of_few_rows_is_cut_into_panels_and_others_into_rows():
    w = gx.input("w", (1024, 1536))
    assert chunked_axes(gx.compile(gx.input("x", (64, 1024)) @ w)) == ["jp"]
    assert chunked_axes(gx.compile(gx.input("x", (2048, 1024)) @ w)) == ["i"]
    assert chunked_axes(gx.compile(gx.input("x", (gx.dim("B"), 1024)) @ w)) == ["i"]


def test_copies_of_large_operands_are_cut_into_chunks():
    text = gx.compile(gx.input("x", (2048, 512)) @ gx.input("w", (512, 512))).dump("program")
    counts = [int(count) for count in re.findall(r"region r\d: (\d+) chunks", text)]
    assert len(counts) == 2 and min(counts) > 1


@pytest.mark.parametrize(("rows", "along_lines"), [(256, False), (1030, True), (gx.dim("B"), True)])
def test_a_long_transposing_copy_runs_along_the_lines_that_it_reads(rows, along_lines):
    height = rows if isinstance(rows, int) else 300
    values = np.random.default_rng(5).standard_normal((height, 45)).astype("f")
    x = gx.input("x", (rows, 45))
    exe = gx.compile(gx.transpose(x) + 1)
    loops = re.findall(r"for (\w+)<.*?>.* (tile|vector) ", exe.dump("kernels"))
    assert [kind for _, kind in loops] == (["vector", "tile"] if along_lines else ["tile", "vector"])
    np.testing.assert_array_equal(exe.run(x=values), values.T + np.float32(1))
