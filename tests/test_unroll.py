"""How many vectors of a loop run together."""

import re

import numpy as np
import pytest

import graphc as gx
from graphc.ir.kernels import For, walk_stmts
from graphc.ir.machine import Machine
from graphc.ir.parse_kernels import parse_kernel
from graphc.ir.schedule import schedule_kernel
from graphc.ir.unroll import loop_vectors


def sweep(statements, extent="1000", registers=16, outside=""):
    """The vectors of one loop over j, of 8 lanes."""
    head = (
        "kernel k rows i<B>\n  in x: f32[B, 4096]\n  in w: f32[4096]\n  out y: f32[B, 4096]\n"
        f"  for i<B> chunked:\n    var a: f32 = 0.0\n    var b: f32 = 0.0\n{outside}    for j<{extent}>:\n"
    )
    kernel = parse_kernel(head + "".join(f"      {line}\n" for line in statements.split("; ")))
    (loop,) = (s for s in walk_stmts(kernel.body) if isinstance(s, For) and s.axis == "j")
    return loop_vectors(loop, 8, registers)


@pytest.mark.parametrize(
    ("statements", "vectors"),
    [
        ("a max= x[i, j]", 8),  # a chain of maxima
        ("a += x[i, j]; b += x[i, j] * w[j]", 4),
        ("y[i, j] = x[i, j] * 2.0", 4),
        ("y[i, j] = exp(x[i, j])", 4),
    ],
)
def test_sums_run_on_many_vectors_and_other_loops_on_a_few(statements, vectors):
    assert sweep(statements, "4096") == vectors


def test_what_is_live_at_once_must_fit_in_registers():
    outside = "".join(f"    let c{n} = w[{n}]\n" for n in range(4))
    values = "; ".join(f"let v{n} = x[i, j] * c{n % 4}" for n in range(6))
    total = " + ".join(f"v{n}" for n in range(6))
    statements = f"{values}; y[i, j] = {total}"
    assert sweep(statements, "4096", 16, outside) == 2
    assert sweep(statements, "4096", 32, outside) == 4


def test_few_vectors_are_left_over():
    assert sweep("a += x[i, j]", "1000") == 5  # 125 vectors
    assert sweep("a += x[i, j]", "1024") == 8
    assert sweep("a += x[i, j]", "20") == 3  # no more than there are
    assert sweep("a += x[i, j]", "3") == 1
    assert sweep("a += x[i, j]", "N") == 8


def test_chunks_are_cut_in_powers_of_two_of_vectors():
    text = "kernel k map i<N>\n  in x: f32[N]\n  out y: f32[N]\n  for i<N> chunked:\n    y[i] = x[i] * 3.0\n"
    kernel = schedule_kernel(parse_kernel(text), Machine(32, 6, 2))
    assert kernel.granule == 32
    (loop,) = kernel.body
    assert loop.tile == 4 and loop.vector


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_checked_labels_are_compared_with_positions_in_32_bits(dtype):
    z, y = gx.input("z", (gx.dim("B"), 10)), gx.input("y", (gx.dim("B"),), dtype=dtype)
    exe = gx.compile({"dz": gx.grad(gx.softmax_cross_entropy(z, y), z)})
    assert "i64(j)" not in exe.dump("kernels") and re.search(r"i32\(j\) == ", exe.dump("kernels"))
    rng = np.random.default_rng(0)
    values, labels = rng.standard_normal((7, 10), dtype=np.float32), rng.integers(0, 10, 7).astype(dtype)
    e = np.exp(values - values.max(1, keepdims=True))
    expected = (e / e.sum(1, keepdims=True) - np.eye(10)[labels]) / 7
    assert np.allclose(exe.run(z=values, y=labels)["dz"], expected, atol=1e-6)


def test_unchecked_integers_are_compared_as_they_are():
    """2^32 + 3 is no position, though its low half is one."""
    y = gx.input("y", (4,), dtype="int64")
    hits = (gx.arange(10) == y.reshape(4, 1)).cast("float32")
    exe = gx.compile(gx.sum(hits, -1))
    assert exe.run(y=np.array([3, 2**32 + 3, -1, 10])).tolist() == [1, 0, 0, 0]
