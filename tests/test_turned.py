"""Copies of a product with their axes exchanged, and squares that are turned on the way to memory."""

import re

import numpy as np
import pytest
from native_support import TOLERANCE, Compiled, compare, compiled

import graphc as gx
from graphc.codegen.builder import Module
from graphc.codegen.kernels import emit_kernel
from graphc.ir.parse_kernels import parse_kernel
from graphc.ir.rewrite.layout import lies_turned
from graphc.ir.text_kernels import print_kernels
from graphc.ir.types import DTYPES, TensorType


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 784), True),
        ((32, 128), True),
        ((32, 127), False),  # not longer by far
        ((10, 784), False),  # vectors of ten columns would be masked
        ((48, 784), False),  # no tile spans the shorter axis
        ((784, 16), False),
        ((16, 4, 64), False),
        ((0, 64), False),
    ],
)
def test_which_results_lie_turned(shape: tuple[int, ...], expected: bool) -> None:
    assert lies_turned(TensorType(DTYPES["float32"], shape)) is expected


def training(columns: int, optimizer: object, *, gradient: bool = False) -> Compiled:
    """A layer of 16 on a batch, whose weight gradient is a product of a batch by a batch."""
    gx.seed(5)
    x, t = gx.input("x", (gx.dim("B"), columns)), gx.input("t", (gx.dim("B"), 16))
    weight = gx.param("w", (16, columns))
    loss = gx.mse((x @ weight.T).tanh(), t)
    outputs = {"loss": loss}
    if gradient:
        outputs["dw"] = gx.grad(loss, weight)
    return compiled(outputs, loss, optimizer)


def slots_of(program: Compiled) -> list[str]:
    """The shapes of the copies that chunks keep of two-dimensional results."""
    types = (str(storage.type) for storage in program.stages.kernels.storages.values())
    return [m[1] for text in types if (m := re.search(r"\[k\d+\.chunks, (\d+, \d+)\]", text))]


# Whole squares; a last square with lanes and rows to spare; rows of a tile to spare.
@pytest.mark.parametrize("columns", [64, 80, 77, 101])
@pytest.mark.parametrize("batch", [1, 7, 250])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_updates_from_turned_copies(columns: int, batch: int, optimizer: str) -> None:
    rules = {"momentum": gx.optim.SGD(lr=0.1, momentum=0.9), "adam": gx.optim.Adam(lr=1e-2)}
    program = training(columns, rules[optimizer])
    assert slots_of(program) == [f"{columns}, 16"]
    rng = np.random.default_rng(batch)
    feeds = {
        "x": rng.normal(size=(batch, columns)).astype("f"),
        "t": rng.normal(size=(batch, 16)).astype("f"),
    }
    assert compare(program, feeds, TOLERANCE, python=batch < 10) == []


def test_a_gradient_that_is_stored_lies_as_it_is_seen() -> None:
    program = training(77, gx.optim.SGD(lr=0.1), gradient=True)
    assert slots_of(program) == ["16, 77"]
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(9, 77)).astype("f"), "t": rng.normal(size=(9, 16)).astype("f")}
    assert compare(program, feeds, TOLERANCE) == []


def test_squares_are_stored_in_whole_vectors() -> None:
    """Lanes across memory, with a tile of as many rows beside them: nothing is gathered or scattered."""
    text = """kernel k0 map j<80> granule 8
  in s: f32[C, 80, 16]
  inout w: f32[16, 80]
  for j<80> chunked tile 8:
    for i<16> vector 1:
      var acc1: f32 = 0.0
      for c<C>:
        acc1 += s[c, j, i]
      w[i, j] = w[i, j] - acc1
"""
    module = Module("x86_64-unknown-linux-gnu", "nounwind")
    emit_kernel(module, parse_kernel(text), 256)
    rendered = module.render()
    assert "scatter" not in rendered and "gather" not in rendered
    assert rendered.count("store <8 x float>") == 8
    module = Module("x86_64-unknown-linux-gnu", "nounwind")
    emit_kernel(module, parse_kernel(text.replace("tile 8", "tile 4").replace("granule 8", "granule 4")), 256)
    assert "scatter" in module.render()


def autoencoder(columns: int, *, gradient: bool) -> Compiled:
    """Whose first weight gradient is a product of the fed batch by one that is computed."""
    gx.seed(6)
    x = gx.input("x", (gx.dim("B"), columns))
    first, second = gx.param("v", (96, columns)), gx.param("w", (columns, 96))
    loss = gx.mse((x @ first.T).tanh() @ second.T, x)
    outputs = {"loss": loss}
    if gradient:
        outputs["dv"] = gx.grad(loss, first)
    return compiled(outputs, loss, gx.optim.SGD(lr=0.1, momentum=0.9))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("batch", [1, 250])
@pytest.mark.parametrize("columns", [576, 520])  # whole panels for every target, and for none
def test_what_is_fed_is_not_copied_for_a_weight_gradient(columns: int, batch: int, gradient: bool) -> None:
    program = autoencoder(columns, gradient=gradient)
    text = print_kernels(program.stages.kernels)
    assert re.search(r"acc1 \+= x\[k, i\] \* tmp", text)
    assert not re.search(r"tmp\.t\d+\[.*\] = x\[", text)
    rng = np.random.default_rng(batch)
    feeds = {"x": rng.normal(size=(batch, columns)).astype("f")}
    assert compare(program, feeds, TOLERANCE, python=batch < 2) == []
