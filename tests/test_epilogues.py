"""Row epilogues: when a product's epilogue runs over whole rows, and that results stay the same."""

from dataclasses import replace

import numpy as np
import pytest
from native_support import Compiled, differences, execute
from native_support import compiled as compile_stages

import graphc as gx
from graphc.ir import epilogues
from graphc.ir.epilogues import with_row_epilogue
from graphc.ir.kernels import Temp, walk_stmts
from graphc.ir.machine import Machine
from graphc.ir.parse_kernels import parse_kernel
from graphc.ir.rewrite import layout
from graphc.ir.text_kernels import print_kernel
from graphc.ir.verify_kernels import verify_kernel

SMALL = Machine(32, 6, 2, cache_bytes=(2**15, 64))
"""A machine whose second-level cache holds next to nothing: every buffer streams."""

UPDATE = """kernel k0 contract i<70> granule 6
  in a: f32[2, B, 16]
  in b: f32[70, B]
  inout p: f32[70, 32]
  inout m: f32[70, 32]
  inout v: f32[70, 32]
  for jp<2>:
    for i<70> chunked tile 6:
      for j<16> vector 2:
        var acc1: f32 = 0.0
        for k<B>:
          acc1 += a[jp, k, j] * b[i, k]
        m[i, j + 16*jp] = m[i, j + 16*jp] + acc1
        v[i, j + 16*jp] = v[i, j + 16*jp] + acc1 * acc1
        p[i, j + 16*jp] = p[i, j + 16*jp] - acc1
"""

APART = """\
  for i<70> chunked tile 6:
    temp row1: f32[32]
    for jp<2>:
      for j<16> vector 2:
        var acc1: f32 = 0.0
        for k<B>:
          acc1 += a[jp, k, j] * b[i, k]
        row1[j + 16*jp] = acc1
    for je1<32> vector 4 apart:
      let acc1 = row1[je1]
      m[i, je1] = m[i, je1] + acc1
      v[i, je1] = v[i, je1] + acc1 * acc1
      p[i, je1] = p[i, je1] - acc1
"""


def apart(text: str, machine: Machine = SMALL) -> str:
    return print_kernel(verify_kernel(with_row_epilogue(parse_kernel(text), machine)))


def test_an_update_runs_over_whole_rows():
    assert apart(UPDATE).endswith(APART)


def test_an_update_whose_state_stays_in_cache_stays_in_the_tile():
    assert "temp" not in apart(UPDATE, Machine(32, 6, 2))


def test_an_update_of_unknown_size_streams():
    assert "temp" in apart(UPDATE.replace("[70, 32]", "[N, 32]"), Machine(32, 6, 2))


def test_an_update_that_moves_little_stays_in_the_tile():
    kept = [line for line in UPDATE.splitlines(True) if "v[" not in line and " v:" not in line]
    assert "temp" not in apart("".join(kept))


def test_rows_that_do_not_fit_in_cache_stay_in_the_tile():
    assert "temp" not in apart(UPDATE, replace(SMALL, cache_bytes=(6 * 32 * 4 - 1, 64)))
    assert "temp" in apart(UPDATE, replace(SMALL, cache_bytes=(6 * 32 * 4, 64)))


def test_rows_may_fill_a_part_of_the_second_level():
    dear = UPDATE.replace("p[i, j + 16*jp] - acc1", "exp(acc1)")
    assert "temp" not in apart(dear, replace(SMALL, cache_bytes=(64, 8 * 6 * 32 * 4 - 1)))
    assert "temp" in apart(dear, replace(SMALL, cache_bytes=(64, 8 * 6 * 32 * 4)))


def test_a_single_tile_of_columns_stays():
    one = UPDATE.replace("for jp<2>", "for jp<1>").replace("f32[70, 32]", "f32[70, 16]")
    assert "temp" not in apart(one)


def test_elementary_functions_run_over_rows():
    text = UPDATE.replace("p[i, j + 16*jp] - acc1", "exp(acc1)")
    assert "for je1<32> vector 4 apart:" in apart(text, Machine(32, 6, 2))


def test_a_value_of_each_row_keeps_the_rows_jammed():
    text = UPDATE.replace("      for j<16>", "      let h = p[i, 0]\n      for j<16>")
    text = text.replace("- acc1", "- h")
    assert "    let h = p[i, 0]\n    temp row1" in apart(text)
    assert "for je1<32> vector 2:" in apart(text)
    assert "for je1<32> vector 1:" in apart(text.replace("acc1 * acc1", "exp(acc1)"))


def test_what_is_stored_in_panels_keeps_its_loops():
    text = UPDATE.replace("inout p: f32[70, 32]", "out p: f32[2, 70, 16]")
    text = text.replace("p[i, j + 16*jp] = p[i, j + 16*jp] - acc1", "p[jp, i, j] = exp(acc1)")
    assert apart(text).endswith("        p[jp, i, j] = exp(acc1)\n")
    assert "    for jp<2> apart:\n      for j<16> vector 2:\n        let acc1 = row1" in apart(text)


def test_what_a_panel_shares_keeps_the_epilogue_in_the_tile():
    text = UPDATE.replace("      for j<16>", "      let h = p[i, 16*jp]\n      for j<16>").replace(
        "- acc1", "- h"
    )
    assert "temp" not in apart(text)


def test_names_of_the_kernel_are_not_taken_again():
    text = UPDATE.replace(" b:", " row1:").replace("b[i, k]", "row1[i, k]").replace(" m:", " je1:")
    text = text.replace("m[i,", "je1[i,")
    assert "temp row2: f32[32]" in apart(text)
    assert "for je2<32>" in apart(text)


def test_only_products_change():
    kernel = parse_kernel(UPDATE.replace("contract", "rows"))
    assert with_row_epilogue(kernel, SMALL) is kernel


# ------------------------------------------------------------------------------------- whole networks


@pytest.fixture
def rows_everywhere(monkeypatch):
    """Row epilogues and panels at any size, so that small networks exercise them."""
    monkeypatch.setattr(epilogues, "_pays", lambda product, kernel, machine: True)
    monkeypatch.setattr(layout, "PANEL_BYTES", 0)
    monkeypatch.setattr(layout, "PANEL_ROWS", 0)


def training(widths: tuple[int, ...], activation: str) -> Compiled:
    gx.seed(3)
    x, t = gx.input("x", (gx.dim("B"), widths[0])), gx.input("t", (gx.dim("B"), widths[-1]))
    loss = gx.mse(gx.nn.MLP(widths, activation, "sigmoid", name="net")(x), t)
    return compile_stages({"loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.5, momentum=0.9))


@pytest.mark.parametrize("widths", [(48, 64, 32), (20, 37, 11), (7, 3, 50)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("batch", [1, 8, 50])
def test_native_training_steps_match_the_interpreter(rows_everywhere, widths, activation, batch):
    step = training(widths, activation)
    bodies = [kernel.body for kernel in step.stages.kernels.kernels if kernel.form == "contract"]
    assert any(isinstance(stmt, Temp) for body in bodies for stmt in walk_stmts(body))
    rng = np.random.default_rng(batch)
    feeds = {
        "x": rng.normal(size=(batch, widths[0])).astype("f"),
        "t": rng.random((batch, widths[-1])).astype("f"),
    }
    outputs, state = execute(step, feeds)
    expected, wanted = execute(step, feeds, "python")
    for name, value in {**outputs, **state}.items():
        reference = {**expected, **wanted}[name]
        assert not differences(value, reference, 2e-5), name


def test_an_epilogue_runs_apart_in_a_compiled_step():
    """At the sizes where the rule takes effect by itself, through the whole pipe."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(17, 40)).astype("f"), "t": rng.random((17, 96)).astype("f")}
    x, t = gx.input("x", (gx.dim("B"), 40)), gx.input("t", (gx.dim("B"), 96))
    results = []
    for backend in ("native", "python"):
        gx.seed(5)
        loss = gx.mse(gx.nn.Linear(40, 96, name="a")(x).tanh(), t)
        step = gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.5), backend=backend)
        assert backend == "python" or " apart:" in step.dump("kernels")
        step.run(feeds)
        results.append(step.state_dict())
    for name, value in results[0].items():
        np.testing.assert_allclose(value, results[1][name], rtol=2e-5, atol=2e-6, err_msg=name)
