"""What tiles and vectors leave of a loop: rows with sums run together, masked stores are whole ones."""

import re

import numpy as np
import pytest
from native_support import TOLERANCE, compare, compiled

import graphc as gx
from graphc.codegen.builder import Module
from graphc.codegen.kernels import emit_kernel
from graphc.ir.parse_kernels import parse_kernel

PRODUCT = """kernel k contract i<B> granule 6
  in x: f32[B, 40]
  in w: f32[40, 10]
  out y: f32[B, 10]
  for i<B> chunked tile 6:
    for j<10> vector 2:
      var acc1: f32 = 0.0
      for k<40>:
        acc1 += x[i, k] * w[k, j]
      y[i, j] = acc1
"""


def emitted(text: str, bits: int = 256) -> str:
    module = Module("x86_64-unknown-linux-gnu", "nounwind")
    emit_kernel(module, parse_kernel(text), bits)
    return module.render()


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7, 11, 12, 16, 35])
@pytest.mark.parametrize("columns", [10, 13, 15, 22])
def test_all_rests_of_rows_and_columns(batch: int, columns: int) -> None:
    """A layer with its gradients: chunked rows of any number, static rows of a number that leaves a rest."""
    gx.seed(3)
    x, t = gx.input("x", (gx.dim("B"), columns)), gx.input("t", (gx.dim("B"), columns - 3))
    loss = gx.mse(gx.nn.Linear(columns, columns - 3)(x).sigmoid(), t)
    program = compiled({"loss": loss}, loss, gx.optim.SGD(lr=0.5, momentum=0.5))
    rng = np.random.default_rng(batch)
    feeds = {"x": rng.normal(size=(batch, columns)).astype("f")}
    feeds["t"] = rng.normal(size=(batch, columns - 3)).astype("f")
    assert compare(program, feeds, TOLERANCE) == []


def test_rows_that_a_tile_leaves_run_by_twos_and_known_ones_at_once() -> None:
    loops = emitted(PRODUCT).split("define")[1]
    assert loops.count("@llvm.fmuladd") == (6 + 2 + 1) * 2
    static = PRODUCT.replace("i<B> granule 6", "m<2> granule 1").replace("B, ", "2, 16, ")
    static = static.replace("  for i<B> chunked tile 6:", "  for m<2> chunked:\n   for i<16> tile 6:")
    static = static.replace("x[i", "x[m, i").replace("y[i", "y[m, i")
    assert emitted(static).count("@llvm.fmuladd.v8f32(<8 x float> %") == (6 + 4) * 2


@pytest.mark.parametrize(("columns", "parts"), [(9, [1]), (10, [2]), (11, [2, 1]), (15, [4, 2, 1])])
def test_the_first_lanes_of_a_vector_are_stored_in_parts(columns: int, parts: list[int]) -> None:
    text = PRODUCT.replace("10", str(columns))
    stores = re.findall(r"store (?:<(\d) x float>|float) ", emitted(text).split("define")[1])
    assert [int(lanes or 1) for lanes in stores[-1 - len(parts) :]] == [8, *parts]
    assert "masked.store" not in emitted(text)
    assert "masked.store" in emitted(text, 512)
