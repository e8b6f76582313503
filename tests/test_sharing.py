"""Kernels that differ in extents alone: which share a function, and that sharing changes no result."""

from itertools import pairwise

import numpy as np
import pytest

import graphc as gx
from graphc.codegen.sharing import shared_forms
from graphc.codegen.target import target_by_name
from graphc.emission import code_text, emit_program
from graphc.ir.kernels import For, Temp, walk_stmts
from graphc.ir.parse_kernels import parse_kernels
from graphc.ir.types import dims_of, divides, evaluate, substitute


def forms_of(text):
    kernels = parse_kernels(text).kernels
    return kernels, shared_forms(kernels, [code_text(k) for k in kernels], code_text, 256)


def copies(first, second, extra=""):
    """Two kernels that turn a matrix, with their extents."""
    lines = ["graphc kernels 1"]
    for number, (rows, columns) in enumerate((first, second)):
        lines += [f"storage a{number}: f32[{rows}, {columns}] input"]
    for number, (rows, columns) in enumerate((first, second)):
        lines += [f"storage b{number}: f32[{columns}, {rows}] output"]
    for number, (rows, columns) in enumerate((first, second)):
        lines += [f"output y{number}: f32[{columns}, {rows}] = b{number}"]
    for number, (rows, columns) in enumerate((first, second)):
        lines += [
            "",
            f"kernel k{number} map i<{columns}> granule 8",
            f"  in a{number}: f32[{rows}, {columns}]",
            f"  out b{number}: f32[{columns}, {rows}]",
            f"  for i<{columns}> chunked tile 8:",
            f"    for j<{rows}>{extra}:",
            f"      b{number}[i, j] = a{number}[j, i]",
        ]
    return "\n".join(lines) + "\n"


def test_what_divides_all_extents_stays_visible():
    kernels, forms = forms_of(copies((40, 784), (48, 512)))
    (form, first), (other, second) = forms
    assert form is other
    loop = next(s for s in form.body if isinstance(s, For))
    assert divides(16, loop.extent) and not divides(32, loop.extent)
    assert evaluate(substitute(loop.extent, first), {}) == 784
    assert evaluate(substitute(loop.extent, second), {}) == 512
    for kernel, (shared, bindings) in zip(kernels, forms, strict=True):
        shapes = [tuple(substitute(e, bindings) for e in b.type.shape) for b in shared.buffers]
        assert shapes == [buffer.type.shape for buffer in kernel.buffers]


def test_short_extents_and_those_that_vectors_do_not_divide_stay_literals():
    kernels, forms = forms_of(copies((5, 784), (7, 784)))
    assert [form for form, _ in forms] == list(kernels)
    kernels, forms = forms_of(copies((42, 784), (48, 784), " vector 1"))
    assert [form for form, _ in forms] == list(kernels)
    _, ((form, _), (other, _)) = forms_of(copies((40, 784), (48, 784), " vector 1"))
    assert form is other


def test_a_local_array_has_room_for_the_longest_row():
    text = copies((40, 784), (48, 512)).splitlines()
    for number, rows in ((0, 40), (1, 48)):
        at = next(
            k for k, line in enumerate(text) if line == f"    for j<{rows}>:" and f"b{number}" in text[k + 1]
        )
        text[at : at + 2] = [
            f"    temp row: f32[{rows}]",
            f"    for j<{rows}> vector 1:",
            f"      row[j] = a{number}[j, i]",
            f"    for j<{rows}> vector 1:",
            f"      b{number}[i, j] = row[j]",
        ]
    _, ((form, _), (other, _)) = forms_of("\n".join(text) + "\n")
    assert form is other
    assert [s.shape for s in walk_stmts(form.body) if isinstance(s, Temp)] == [(48,)]


def test_a_dim_of_the_user_is_not_taken_for_a_shared_one():
    text = copies((40, 784), (48, 512)).replace("40", "shared.0")
    kernels, forms = forms_of(text)
    assert [form for form, _ in forms] == list(kernels)  # a number and a dim are not alike
    text = copies((40, 784), (48, 512)).replace("784", "shared.0").replace("512", "other")
    _, ((form, first), (other, _)) = forms_of(text)
    assert form is other
    dims = {name for buffer in form.buffers for extent in buffer.type.shape for name in dims_of(extent)}
    assert "shared.0" not in dims and "shared.0" in {str(value) for value in first.values()}


def network(widths, batch="B"):
    gx.seed(0)
    x = gx.input("x", (gx.dim(batch), widths[0]))
    h = x
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        h = gx.nn.Linear(fan_in, fan_out, name=f"layer{number}")(h).relu()
    return gx.mean(h * h)


@pytest.mark.parametrize("target", ["sse2", "avx2", "avx512", "neon"])
def test_layers_of_other_widths_share_functions(target):
    loss = network((40, 56, 72, 88, 104))
    exe = gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.Adam(lr=0.01))
    emitted, text = emit_program(exe.ir.program, target_by_name(target))
    functions = {kernel.symbol for kernel in emitted}
    assert text.count("\ndefine i64 @gx_") == len(functions)
    assert len(functions) < len({code_text(kernel) for kernel in exe.ir.program.kernels})
    used = {dims_of(extent) for kernel in emitted for extent in kernel.extents}
    assert not any("shared" in name for names in used for name in names)


@pytest.mark.parametrize("batch", [1, 3, 8, 13, 32])
def test_shared_functions_compute_what_the_graph_says(batch):
    feeds = {"x": np.random.default_rng(0).standard_normal((batch, 40)).astype(np.float32)}
    states = []
    for backend in ("native", "numpy"):
        loss = network((40, 56, 72, 88, 17))
        exe = gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.5), backend=backend)
        losses = [exe.run(feeds)["loss"] for _ in range(3)]
        states.append({"loss": np.array(losses), **exe.state_dict()})
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool"])
def test_turning_a_matrix_in_registers_reads_nothing_beyond_it(columns, dtype):
    """A last square has fewer columns than lanes: the rows that do not exist are not read."""
    rows = gx.dim("R")
    x = gx.input("x", (rows, 64), dtype=dtype)
    exe = gx.compile(gx.transpose(x) if dtype == "bool" else gx.transpose(x) * gx.constant(1, dtype))
    data = (np.arange(columns * 64) % 251).reshape(columns, 64).astype(dtype)
    np.testing.assert_array_equal(exe.run({"x": data}), data.T)


@pytest.mark.parametrize(("extent", "loops"), [(3, 1), (10, 1), (31, 1), (32, 1), (33, 2)])
@pytest.mark.skipif(not target_by_name("avx2").runs_here, reason="needs AVX2")
def test_a_loop_shorter_than_its_step_has_no_main_part(extent, loops, monkeypatch):
    monkeypatch.setenv("GRAPHC_TARGET", "avx2")  # a step of four vectors of eight
    exe = gx.compile(gx.input("v", (extent,)).exp())
    _, text = emit_program(exe.ir.program, target_by_name("avx2"))
    assert text.count("= phi i64") == loops
    v = np.linspace(-3, 3, extent, dtype=np.float32)
    np.testing.assert_allclose(exe.run(v=v), np.exp(v), rtol=1e-6)
