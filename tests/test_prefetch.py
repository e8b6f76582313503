"""Which prefetches are scheduled, and what becomes of them."""

import re

import numpy as np
import pytest

import graphc as gx
from graphc.codegen.builder import Module
from graphc.codegen.kernels import emit_kernel
from graphc.ir.machine import Machine
from graphc.ir.parse_kernels import parse_kernel
from graphc.ir.schedule import schedule_kernel
from graphc.ir.text_kernels import print_kernel

SOFTMAX = """
kernel k rows i<B>
  in x: f32[B, WIDTH]
  out y: f32[B, WIDTH]
  for i<B> chunked:
    var most: f32 = -inf
    for j<WIDTH>:
      most max= x[i, j]
    var total: f32 = 0.0
    for j<WIDTH>:
      total += exp(x[i, j] - most)
    for j<WIDTH>:
      y[i, j] = exp(x[i, j] - most) / total
"""


def scheduled(text):
    return print_kernel(schedule_kernel(parse_kernel(text), Machine(32, 6, 2)))


def prefetches(text):
    """What is asked for, with the number of the sweep in which it stands."""
    parts = re.split(r"\n +for j<", scheduled(text))
    return [(n, at) for n, part in enumerate(parts) for at in re.findall(r"prefetch (.*)", part)]


def test_the_next_row_is_asked_for_where_most_is_computed_and_this_rows_results_before_they_are_stored():
    found = prefetches(SOFTMAX.replace("WIDTH", "1000"))
    assert found == [(2, "y[i, j]"), (3, "far x[i + 2, j]")]


@pytest.mark.parametrize(("width", "rows"), [(128, 12), (256, 6), (600, 3), (768, 2), (4000, 2), ("N", 2)])
def test_short_rows_are_asked_for_further_ahead(width, rows):
    (found,) = [at for _, at in prefetches(SOFTMAX.replace("WIDTH", str(width))) if "x[" in at]
    assert found == f"far x[i + {rows}, j]"


def test_rows_of_several_operands_are_asked_for_in_different_sweeps():
    text = """
kernel k rows i<B>
  in x: f32[B, 1000]
  in d: f32[B, 1000]
  out s: f32[B]
  for i<B> chunked:
    var most: f32 = -inf
    for j<1000>:
      most max= x[i, j] + d[i, j]
    var a: f32 = 0.0
    for j<1000>:
      a += (x[i, j] - most) * (x[i, j] - most) * x[i, j]
    var b: f32 = 0.0
    for j<1000>:
      b += d[i, j] * d[i, j] * a
    s[i] = b
"""
    assert prefetches(text) == [(2, "far x[i + 2, j]"), (3, "far d[i + 2, j]")]


def test_what_the_first_sweep_stores_is_asked_for_a_row_ahead():
    text = SOFTMAX.replace("WIDTH", "1000").replace(
        "most max= x[i, j]", "most max= x[i, j]\n      z[i, j] = x[i, j]"
    )
    text = text.replace("  out y", "  out z: f32[B, 1000]\n  out y")
    assert [at for _, at in prefetches(text)].count("z[i + 1, j]") == 1


def test_rows_too_short_too_long_or_near_are_left_alone():
    assert prefetches(SOFTMAX.replace("WIDTH", "10")) == []
    assert prefetches(SOFTMAX.replace("WIDTH", "100000")) == []
    assert prefetches(SOFTMAX.replace("WIDTH", "1000").replace("B", "64")) == []
    assert prefetches(SOFTMAX.replace("WIDTH", "1000").replace("B", "640")) != []


def test_local_arrays_and_rows_of_other_axes_are_not_asked_for():
    text = """
kernel k rows i<B>
  in x: f32[B, 1000]
  in w: f32[4096, 1000]
  in at: i64[B]
  out y: f32[B]
  for i<B> chunked:
    temp row: f32[1000]
    let n = at[i]
    for j<1000>:
      row[j] = x[i, j] * w[n, j] + w[3, j]
    var total: f32 = 0.0
    for j<1000>:
      total += row[j]
    y[i] = total
"""
    assert [at for _, at in prefetches(text)] == ["far x[i + 2, j]"]


def test_a_single_sweep_is_left_to_the_hardware():
    text = """
kernel k rows i<B>
  in x: f32[B, 1000]
  out y: f32[B]
  for i<B> chunked:
    var total: f32 = 0.0
    for j<1000>:
      total += x[i, j]
    y[i] = total
"""
    assert prefetches(text) == []


def test_every_cache_line_is_asked_for_once():
    kernel = parse_kernel(
        "kernel k map\n  in x: f32[64]\n  out y: f32[64]\n"
        "  for j<64> vector 8:\n    prefetch x[j + 64]\n    y[j] = x[j]\n"
    )
    for bits, expected in ((128, 2), (256, 4), (512, 4)):
        module = Module()
        emit_kernel(module, kernel, bits)
        assert module.render().count("call void @llvm.prefetch") == expected


def test_results_are_the_same_with_and_without():
    rng = np.random.default_rng(0)
    z, t = rng.standard_normal((2049, 300), dtype=np.float32), rng.integers(0, 300, 2049)
    logits, labels = gx.input("z", (gx.dim("B"), 300)), gx.input("t", (gx.dim("B"),), dtype="int64")
    loss = gx.softmax_cross_entropy(logits, labels)
    exe = gx.compile({"loss": loss, "dz": gx.grad(loss, logits)})
    text = exe.dump("kernels")
    assert "prefetch far z[" in text and "prefetch out.dz[" in text
    without = gx.compile(gx.parse(re.sub(r"\n +prefetch .*", "", text)))
    expected = without.run(z=z, t=t)
    for name, value in exe.run(z=z, t=t).items():
        assert np.asarray(value).tobytes() == np.asarray(expected[name]).tobytes()


PRODUCT = """
kernel k contract i<ROWS>
  in a: f32[B, ROWS]
  in b: f32[B, 16]
  out c: f32[ROWS, 16]
  for i<ROWS> chunked:
    for j<16>:
      var total: f32 = 0.0
      for k<B>:
        total += a[k, i] * b[k, j]
      c[i, j] = total
"""


def test_a_product_asks_for_rows_that_it_reads_down():
    text = scheduled(PRODUCT.replace("ROWS", "784"))
    assert "for k<B>:\n        prefetch a[k + 24, i]\n        total +=" in text


def test_a_product_asks_less_far_ahead_in_a_sum_that_is_cut_into_chunks():
    chunked = PRODUCT.replace("contract i<", "contract k<").replace("k<ROWS>", "k<B>", 1)
    chunked = chunked.replace("i<ROWS> chunked:", "i<ROWS>:").replace("for k<B>:", "for k<B> chunked:")
    assert "prefetch a[k + 8, " in scheduled(chunked.replace("ROWS", "784"))


def test_a_product_asks_for_no_rows_that_are_near_or_lie_side_by_side():
    assert "prefetch" not in scheduled(PRODUCT.replace("ROWS", "16"))
    assert "prefetch" not in scheduled(PRODUCT.replace("ROWS", "784").replace("B", "9"))
    assert "prefetch" not in scheduled(PRODUCT.replace("ROWS", "8192").replace("B", "31"))
    assert "prefetch" in scheduled(PRODUCT.replace("ROWS", "8192").replace("B", "32"))
    assert "prefetch" not in scheduled(PRODUCT.replace("ROWS", "1024").replace("B", "128"))
    along = PRODUCT.replace("a: f32[B, ROWS]", "a: f32[ROWS, B]").replace("a[k, i]", "a[i, k]")
    assert "prefetch a" not in scheduled(along.replace("ROWS", "784"))


def test_rows_of_a_product_share_requests_by_the_line():
    text = scheduled(PRODUCT.replace("ROWS", "784"))
    module = Module("x86_64-unknown-linux-gnu", "nounwind")
    emit_kernel(module, parse_kernel(text), 256)
    # One in the loop of tiles, which reads 6 neighbours in each row of a, and one in the loop of single rows.
    assert module.render().count("call void @llvm.prefetch") == 2


ROWS_BY_FEW = """
kernel k contract i<B>
  in a: f32[B, 784]
  in b: f32[784, COLUMNS]
  out c: f32[B, COLUMNS]
  for i<B> chunked:
    for j<COLUMNS>:
      var total: f32 = 0.0
      for k<784>:
        total += a[i, k] * b[k, j]
      c[i, j] = total
"""


def test_a_product_of_few_columns_asks_for_the_next_rows_step_by_step():
    text = scheduled(ROWS_BY_FEW.replace("COLUMNS", "16"))
    asked = "        prefetch b[k + 8, j]\n        prefetch far once a[i + 6, 6*k]\n"
    assert f"for k<784>:\n{asked}        total +=" in text
    assert print_kernel(parse_kernel(text)) == text
    module = Module("x86_64-unknown-linux-gnu", "nounwind")
    emit_kernel(module, parse_kernel(text), 256)
    # The panel's next lines go to the nearest cache, at each step of six rows, of two, and of one left over.
    assert module.render().count("i32 0, i32 3, i32 1)") == 3
    # The rows of the next tile go to the second level; behind what is left of a tile there may be none.
    assert module.render().count("i32 0, i32 2, i32 1)") == 1


def test_a_tile_whose_step_takes_more_than_a_line_asks_for_as_many():
    kernel = parse_kernel(ROWS_BY_FEW.replace("COLUMNS", "16"))
    text = print_kernel(schedule_kernel(kernel, Machine(64, 14, 2, registers=32)))
    assert "tile 28" in text  # rows of which a step passes over 112 bytes
    assert "prefetch far once a[i + 28, 28*k]\n        prefetch far once a[i + 28, 28*k + 16]\n" in text
    assert text.count("prefetch far once") == 2


def test_rows_that_are_near_or_meet_many_columns_are_not_asked_for():
    assert "prefetch far once" not in scheduled(ROWS_BY_FEW.replace("COLUMNS", "512"))
    assert "prefetch far once" not in scheduled(ROWS_BY_FEW.replace("COLUMNS", "16").replace("B", "100"))
    assert "prefetch far once" in scheduled(ROWS_BY_FEW.replace("COLUMNS", "16").replace("B", "1000"))


def test_rows_that_every_panel_meets_again_are_not_asked_for():
    panels = """
kernel k contract i<B>
  in a: f32[B, 784]
  in b: f32[PANELS, 784, 16]
  out c: f32[B, WIDTH]
  for jp<PANELS>:
    for i<B> chunked:
      for j<16>:
        var total: f32 = 0.0
        for k<784>:
          total += a[i, k] * b[jp, k, j]
        c[i, j + 16*jp] = total
"""
    assert "prefetch far once a" not in scheduled(panels.replace("PANELS", "32").replace("WIDTH", "512"))
    assert "prefetch far once a" in scheduled(panels.replace("PANELS", "1").replace("WIDTH", "16"))


def test_a_buffer_may_be_called_as_a_prefetch_is():
    text = scheduled(ROWS_BY_FEW.replace("COLUMNS", "16").replace(" a", " once").replace("a[", "once["))
    assert "prefetch far once once[i + 6, 6*k]" in text
    for words in ("far once once", "far once", "once once", "once"):
        other = text.replace("prefetch far once once", f"prefetch {words}")
        assert print_kernel(parse_kernel(other)) == other
    assert parse_kernel(text.replace("far once once", "far once")) != parse_kernel(text)


PANELS_BY_FEW = """
kernel k contract p<49>
  in a: f32[ROWS, B]
  in b: f32[49, B, 16]
  out c: f32[ROWS, 784]
  for p<49> chunked:
    for j<16>:
      for i<ROWS>:
        var total: f32 = 0.0
        for k<B>:
          total += a[i, k] * b[p, k, j]
        c[i, j + 16*p] = total
"""


def test_few_rows_that_pass_by_a_panel_ask_for_the_next_one():
    text = scheduled(PANELS_BY_FEW.replace("ROWS", "64"))
    # 16 tiles of 4 rows by B steps: one element at each of them is the whole panel, B rows of 16.
    assert (
        "for k<B>:\n          prefetch far once b[p + 1, 0, (floordiv(B, 4))*i + k]\n          total +="
        in text
    )
    assert text.count("prefetch") == 1
    assert print_kernel(parse_kernel(text)) == text
    fewer = scheduled(PANELS_BY_FEW.replace("ROWS", "16"))
    assert "prefetch far once b[p + 1, 0, (B)*i + 4*k]" in fewer


def test_panels_that_many_rows_pass_by_or_that_are_near_are_not_asked_for():
    assert "prefetch far once b" not in scheduled(PANELS_BY_FEW.replace("ROWS", "784"))
    assert "prefetch far once b" not in scheduled(PANELS_BY_FEW.replace("ROWS", "64").replace("B", "100"))
    assert "prefetch far once b" in scheduled(PANELS_BY_FEW.replace("ROWS", "64").replace("B", "1000"))


UPDATE = """
kernel k contract i<784>
  in a: f32[4, B, 16]
  in b: f32[B, 784]
  inout w: f32[784, COLUMNS]
  for jp<4>:
    for i<784> chunked:
      for j<16>:
        var total: f32 = 0.0
        for k<B>:
          total += a[jp, k, j] * b[k, i]
        w[i, j + 16*jp] = w[i, j + 16*jp] - total
"""


def test_what_an_epilogue_updates_is_asked_for_before_the_sum():
    text = scheduled(UPDATE.replace("COLUMNS", "64"))
    assert "prefetch w[i, j + 16*jp]\n        for k<B>:\n" in text
    assert print_kernel(parse_kernel(text)) == text
    module = Module("x86_64-unknown-linux-gnu", "nounwind")
    emit_kernel(module, parse_kernel(text), 256)
    # A line of each row of w, of a and of b: of w six rows in the loop of tiles, four in what is left.
    assert module.render().count("call void @llvm.prefetch") == (6 + 1 + 1) + (4 + 1 + 1)
    assert "prefetch w" not in scheduled(UPDATE.replace("COLUMNS", "64").replace("B", "31"))


def test_panels_of_many_rows_are_asked_for_line_by_line():
    text = scheduled(UPDATE.replace("COLUMNS", "64"))
    assert "prefetch a[jp, k + 8, j]\n          prefetch b[k + 24, i]\n" in text
    assert "prefetch a" not in scheduled(UPDATE.replace("COLUMNS", "64").replace("B", "100"))
