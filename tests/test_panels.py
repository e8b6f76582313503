"""Panels of a product's own: which products copy for themselves, and that results stay the same."""

import numpy as np
import pytest
from product_support import feeds_of, product, require_native_product, require_same_bits

import graphc as gx
from graphc.ir.machine import Machine
from graphc.ir.panels import own_panels
from graphc.ir.parse_kernels import parse_kernels
from graphc.ir.text_kernels import print_kernels
from graphc.ir.verify_kernels import verify_kernels

MACHINE = Machine(32, 6, 2)

SHARED = """graphc kernels 1
storage a: f32[60, 200] input
storage b: f32[200, 512] input
storage out.c: f32[60, 512] output
storage tmp.t1: f32[32, 200, 16] temporary
output c: f32[60, 512] = out.c

kernel k0 map i<200> cost 98  ; copy
  in b: f32[200, 512]
  out tmp.t1: f32[32, 200, 16]
  for jp<32>:
    for i<200> chunked:
      for j<16> vector 2:
        tmp.t1[jp, i, j] = b[i, j + 16*jp]

kernel k1 contract i<60> cost 2000 granule 6  ; contract
  in a: f32[60, 200]
  in tmp.t1: f32[32, 200, 16]
  out out.c: f32[60, 512]
  for jp<32>:
    for i<60> chunked tile 6:
      for j<16> vector 2:
        var acc1: f32 = 0.0
        for k<200>:
          prefetch tmp.t1[jp, k + 8, j]
          prefetch far once tmp.t1[jp + 1, 0, 196*i + k]
          acc1 += a[i, k] * tmp.t1[jp, k, j]
        out.c[i, j + 16*jp] = acc1
"""

OWN = """graphc kernels 1
storage a: f32[60, 200] input
storage b: f32[200, 512] input
storage out.c: f32[60, 512] output
output c: f32[60, 512] = out.c

kernel k1 contract jp<16> cost 8725  ; contract
  in a: f32[60, 200]
  in b: f32[200, 512]
  out out.c: f32[60, 512]
  for jp<16> chunked:
    temp panel1: f32[2, 200, 16]
    for k<200>:
      for jq<2>:
        for j<16> vector 2:
          panel1[jq, k, j] = b[k, j + 32*jp + 16*jq]
    for i<60> tile 6:
      for jq<2>:
        for j<16> vector 2:
          var acc1: f32 = 0.0
          for k<200>:
            prefetch panel1[jq, k + 8, j]
            acc1 += a[i, k] * panel1[jq, k, j]
          out.c[i, j + 32*jp + 16*jq] = acc1
"""


def own(text: str, machine: Machine = MACHINE) -> str:
    program = own_panels(verify_kernels(parse_kernels(text)), machine)
    return print_kernels(verify_kernels(program))


def test_a_chunk_copies_its_own_panels():
    assert own(SHARED) == OWN


def test_fewer_panels_are_copied_one_by_one():
    text = SHARED.replace("512", "256").replace("32", "16").replace("f16", "f32")
    assert "temp panel1: f32[200, 16]" in own(text)
    assert "panel1[k, j] = b[k, j + 16*jp]" in own(text)


def test_panels_that_are_turned_are_copied_along_their_depth():
    text = SHARED.replace("b: f32[200, 512]", "b: f32[512, 200]").replace(
        "b[i, j + 16*jp]", "b[j + 16*jp, i]"
    )
    text = text.replace("for i<200> chunked:", "for i<200> chunked tile 8:")
    text = text.replace("vector 2:\n        tmp", "vector 1:\n        tmp")
    assert "    for jq<2>:\n      for k<200> tile 8:\n        for j<16> vector 1:\n" in own(text)


def test_an_epilogue_comes_along():
    text = SHARED.replace("storage b:", "storage h: f32[512] input\nstorage b:")
    text = text.replace("  out out.c", "  in h: f32[512]\n  out out.c").replace(
        "= acc1", "= acc1 + h[j + 16*jp]"
    )
    assert "out.c[i, j + 32*jp + 16*jq] = acc1 + h[j + 32*jp + 16*jq]" in own(text)


def test_tiles_ask_for_the_rows_behind():
    text = SHARED.replace("60", "1000")
    assert "prefetch far once a" not in own(text.replace("200", "120"))  # all rows stay near
    assert "prefetch far once a[i + 6, 600*jq + 3*k]" in own(text)
    assert "prefetch far once a" in own(text.replace("200", "1024"))


@pytest.mark.parametrize(
    "old, new",
    [
        pytest.param("60", "1030", id="rows that make up for any copy"),
        pytest.param("60", "B", id="rows of unknown number"),
        pytest.param("200", "5000", id="panels that the second-level cache does not hold"),
        pytest.param("[i, j + 16*jp] = acc1", "[i, j + 16*jp] += acc1", id="sums in memory"),
        pytest.param("[i, j + 16*jp] = acc1", "[i, j] = acc1", id="columns of all panels"),
        pytest.param("= acc1", "= acc1 + out.c[0, j + 16*jp]", id="what others store"),
        pytest.param("] temporary", "] output", id="panels that are a result"),
        pytest.param("tmp.t1[jp, i, j] = ", "tmp.t1[jp, i, j] += ", id="panels that are added to"),
    ],
)
def test_other_products_read_the_same_panels(old, new):
    assert old in SHARED
    program = parse_kernels(SHARED.replace(old, new))
    assert own_panels(program, MACHINE) is program


def test_few_panels_are_shared():
    text = SHARED.replace("512", "112").replace("32, ", "7, ").replace("<32>", "<7>")
    program = parse_kernels(text)
    assert own_panels(program, MACHINE) is program


def test_panels_with_another_reader_stay():
    reader = SHARED[SHARED.index("kernel k1") :].replace("k1", "k2").replace("out.c", "out.d")
    text = SHARED.replace("output c:", "storage out.d: f32[60, 512] output\noutput c:") + "\n" + reader
    program = parse_kernels(text)
    assert own_panels(program, MACHINE) is program


def test_what_is_overwritten_before_the_product_is_copied_before():
    change = "kernel k3 map i<200>\n  inout b: f32[200, 512]\n  for i<200> chunked:\n    b[i, 0] = 0.0\n\n"
    text = SHARED.replace("storage b: f32[200, 512] input", "storage b: f32[200, 512] temporary")
    at = text.index("kernel k1")
    program = parse_kernels(text[:at] + change + text[at:])
    assert own_panels(program, MACHINE) is program
    assert [kernel.name for kernel in own_panels(parse_kernels(text), MACHINE).kernels] == ["k1"]


def test_few_rows_are_cut_into_panels_already():
    text = SHARED.replace("<32>:\n    for i<60> chunked", "<32> chunked:\n    for i<60>")
    text = text.replace("contract i<60> cost 2000 granule 6", "contract jp<32> cost 3750")
    assert own(text) == OWN
    rows, columns = "    for i<60> tile 6:\n", "      for j<16> vector 2:\n"
    at = text.index(rows)
    turned = text[:at] + text[at:].replace(rows + columns, columns[2:] + "  " + rows)
    assert own(turned) == OWN


def test_names_of_the_kernels_are_not_taken_again():
    text = SHARED.replace(" a:", " panel1:").replace("a[i", "panel1[i").replace("jp", "jq")
    assert "temp panel1_: f32[2, 200, 16]" in own(text)
    assert "for jq_<2>:" in own(text)


# ------------------------------------------------------------------------------------- through the pipe


@pytest.mark.parametrize("form", ["nn", "nt", "tn"])
@pytest.mark.parametrize(
    "m, k, n, dtype", [(16, 129, 256, "float32"), (23, 70, 512, "float32"), (17, 80, 128, "float64")]
)
def test_native_products_match_the_interpreter(form, m, k, n, dtype):
    feeds = feeds_of(form, m, k, n, dtype)
    require_native_product(product(form, m, k, n, dtype), feeds, "temp panel1")


@pytest.mark.parametrize("form", ["nn", "nt", "tn"])
def test_bits_do_not_depend_on_threads(form):
    require_same_bits(product(form, 131, 140, 512), feeds_of(form, 131, 140, 512), "temp panel1")


def test_a_chain_of_products():
    shapes = {"x": (32, 96), "w": (96, 256), "v": (256, 256)}
    x, w, v = (gx.input(name, shape) for name, shape in shapes.items())
    exe = gx.compile((x @ w) @ v)
    assert exe.dump("kernels").count("temp panel1") == 2
    rng = np.random.default_rng(1)
    feeds = {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}
    expected = feeds["x"].astype("d") @ feeds["w"] @ feeds["v"]
    np.testing.assert_allclose(exe.run(feeds), expected, rtol=1e-3, atol=1e-2)
