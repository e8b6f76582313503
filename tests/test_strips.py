"""Strips of a product's own: which products copy columns for themselves, and that results stay the same."""

import pytest
from product_support import feeds_of, product, require_native_product, require_same_bits

from graphc.codegen.builder import Module
from graphc.codegen.kernels import emit_kernel
from graphc.errors import LoweringError
from graphc.ir.machine import Machine
from graphc.ir.parse_kernels import parse_kernel, parse_kernels
from graphc.ir.strips import own_strips
from graphc.ir.text_kernels import print_kernels
from graphc.ir.verify_kernels import verify_kernels

MACHINE = Machine(32, 6, 2)

SHARED = """graphc kernels 1
storage a: f32[60, 200] input
storage b: f32[200, 500] input
storage out.c: f32[60, 500] output
output c: f32[60, 500] = out.c

kernel k0 contract i<60> cost 2000 granule 6  ; contract
  in a: f32[60, 200]
  in b: f32[200, 500]
  out out.c: f32[60, 500]
  for i<60> chunked tile 6:
    for j<500> vector 2:
      var acc1: f32 = 0.0
      for k<200>:
        prefetch b[k + 24, j]
        acc1 += a[i, k] * b[k, j]
      out.c[i, j] = acc1
"""

OWN = """kernel k0 contract j<500> cost 240 granule 16  ; contract
  in a: f32[60, 200]
  in b: f32[200, 500]
  out out.c: f32[60, 500]
  for j<500> chunked vector 2:
    temp strip1: f32[200]
    for k<200>:
      strip1[k] = b[k, j]
    for i<60> tile 6:
      var acc1: f32 = 0.0
      for k<200>:
        prefetch strip1[k + 8]
        acc1 += a[i, k] * strip1[k]
      out.c[i, j] = acc1
"""

TURNED = SHARED.replace("b: f32[200, 500]", "t: f32[200, 500]").replace("b[k", "t[k")
TURNED = TURNED.replace("storage t: f32[200, 500] input", "storage t: f32[200, 500] temporary")
TURNED = TURNED.replace("storage out.c", "storage b: f32[500, 200] input\nstorage out.c").replace(
    "kernel k0",
    """kernel k1 map i<200> cost 98 granule 8
  in b: f32[500, 200]
  out t: f32[200, 500]
  for i<200> chunked tile 8:
    for j<500> vector 1:
      t[i, j] = b[j, i]

kernel k0""",
)


def own(text: str) -> str:
    return print_kernels(verify_kernels(own_strips(verify_kernels(parse_kernels(text)), MACHINE)))


def test_a_vector_of_columns_copies_its_own_strip():
    assert own(SHARED).endswith("\n\n" + OWN)


def test_columns_may_be_the_outer_loop():
    text = SHARED.replace("for i<60> chunked tile 6:", "for j<500> chunked vector 2:")
    text = text.replace("    for j<500> vector 2:", "    for i<60> tile 6:")
    text = text.replace("contract i<60> cost 2000 granule 6", "contract j<500> cost 240 granule 16")
    assert own(text).endswith("\n\n" + OWN)


def test_a_turned_copy_goes_into_the_strip():
    text = own(TURNED)
    assert "    for k<200> tile 8:\n      strip1[k] = b[j, k]\n" in text
    assert "temporary" not in text and "kernel k1" not in text


def test_a_copy_of_what_is_overwritten_stays():
    change = "kernel k3 map i<500>\n  inout b: f32[500, 200]\n  for i<500> chunked:\n    b[i, 0] = 0.0\n\n"
    text = TURNED.replace("storage b: f32[500, 200] input", "storage b: f32[500, 200] temporary")
    at = text.index("kernel k0")
    program = own_strips(parse_kernels(text[:at] + change + text[at:]), MACHINE)
    assert [kernel.name for kernel in program.kernels] == ["k1", "k3", "k0"]
    assert "strip1[k] = t[k, j]" in print_kernels(program)


def test_long_rows_are_asked_for():
    text = SHARED.replace("60", "1000")
    assert "prefetch far once a[i + 6, 6*k]" in own(text)


def test_names_of_the_kernel_are_not_taken_again():
    assert "temp strip1_: f32[200]" in own(SHARED.replace(" a:", " strip1:").replace("a[i", "strip1[i"))


@pytest.mark.parametrize(
    "old, new",
    [
        pytest.param("60", "1030", id="rows that make up for any copy"),
        pytest.param("60", "12", id="rows that do not"),
        pytest.param("60", "B", id="rows of unknown number"),
        pytest.param("200", "30", id="a matrix that stays near"),
        pytest.param("200", "5000", id="strips that the second-level cache does not hold"),
        pytest.param("500", "100", id="few columns"),
        pytest.param("] = acc1", "] += acc1", id="sums in memory"),
        pytest.param("c[i, j] = acc1", "c[i, 0] = acc1", id="columns of all"),
        pytest.param("= acc1", "= acc1 + out.c[0, j]", id="what others store"),
        pytest.param("= acc1", "= acc1 + b[0, j]", id="another place of the matrix"),
        pytest.param("f32", "i32", id="integers"),
    ],
)
def test_other_products_read_the_same_matrix(old, new):
    assert old in SHARED
    program = parse_kernels(SHARED.replace(old, new).replace("i32 = 0.0", "i32 = 0"))
    assert own_strips(program, MACHINE).kernels == program.kernels


# -------------------------------------------------------------------------------- arrays of lanes' own


def emitted(text: str) -> str:
    module = Module("x86_64-unknown-linux-gnu", "nounwind")
    emit_kernel(module, parse_kernel(text), 256)
    return module.render()


def test_an_array_of_each_lane_is_read_at_one_place():
    text = OWN.replace("cost 240 granule 16  ; contract", "granule 16")
    assert "alloca float, i64 3200" in emitted(text)  # two vectors of eight, and one vector in the tail
    assert "alloca float, i64 1600" in emitted(text)
    with pytest.raises(LoweringError, match="another place in each of its lanes"):
        emitted(text.replace("f32[200]\n    for", "f32[500]\n    for").replace("* strip1[k]", "* strip1[j]"))


def test_an_array_of_each_lane_of_each_row_is_refused():
    text = OWN.replace("cost 240 granule 16  ; contract", "granule 16")
    text = text.replace(
        "      out.c[i, j] = acc1", "      temp row: f32[3]\n      row[1] = acc1\n      out.c[i, j] = row[1]"
    )
    with pytest.raises(LoweringError, match="each lane of each row"):
        emitted(text)


# ------------------------------------------------------------------------------------- through the pipe

# Columns enough for eight chunks of the widest vectors, and some left over.
SIZES = [
    (16, 129, 278, "float32"),
    (23, 70, 501, "float32"),
    (67, 260, 258, "float32"),
    (33, 131, 1000, "float32"),
    (17, 90, 147, "float64"),
]


@pytest.mark.parametrize("form", ["nn", "nt", "tn"])
@pytest.mark.parametrize("m, k, n, dtype", SIZES)
def test_native_products_match_the_interpreter(form, m, k, n, dtype):
    feeds = feeds_of(form, m, k, n, dtype)
    require_native_product((product(form, m, k, n, dtype) * 2.0).relu(), feeds, "temp strip1")


@pytest.mark.parametrize("form", ["nn", "nt", "tn"])
def test_bits_do_not_depend_on_threads(form):
    require_same_bits(product(form, 131, 140, 507), feeds_of(form, 131, 140, 507), "temp strip1")
