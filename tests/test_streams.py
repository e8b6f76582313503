"""Stores past the caches: which stores stream, and that they store the same."""

import numpy as np
import pytest

import graphc as gx
from graphc.codegen.builder import Module
from graphc.codegen.kernels import emit_kernel
from graphc.engine import NativeEngine
from graphc.ir.kernels import STREAM_BYTES
from graphc.ir.machine import Machine
from graphc.ir.parse_kernels import parse_kernel
from graphc.ir.schedule import schedule_kernel
from graphc.ir.text_kernels import print_kernel

ROWS = """
kernel k rows i<B>
  in x: f32[B, 1000]
  out y: f32[B, 1000]
  for i<B> chunked:
    var most: f32 = -inf
    for j<1000>:
      most max= x[i, j]
    for j<1000>:
      y[i, j] = exp(x[i, j] - most)
"""


def scheduled(text, unread=("y",), vector_bytes=32):
    kernel = schedule_kernel(parse_kernel(text), Machine(vector_bytes, 6, 2), frozenset(unread))
    return print_kernel(kernel)


def test_results_that_no_kernel_reads_stream_and_are_not_asked_for():
    text = scheduled(ROWS)
    assert "stream y[i, j] = " in text
    assert "prefetch far x[i + 2, j]" in text and "prefetch y" not in text


def test_what_other_kernels_read_does_not_stream():
    text = scheduled(ROWS, unread=())
    assert "stream" not in text and "prefetch y[i, j]" in text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("B", "1024"),  # fits in the last-level cache
        ("1000", "1001"),  # rows begin within a vector
        ("y[i, j] = exp", "y[i, j] += exp"),
        ("= exp(x[i, j] - most)", "= exp(x[i, j] - most)\n      most2 += y[i, j]"),  # read back
    ],
)
def test_stores_that_do_not_stream(old, new):
    text = ROWS.replace(old, new)
    if "+=" in new:
        text = text.replace("  out y", "  inout y").replace(
            "    var most:", "    var most2: f32 = 0.0\n    var most:"
        )
    assert "stream" not in scheduled(text)


def test_vectors_of_a_wider_machine_must_fit_the_rows_too():
    assert "stream" in scheduled(ROWS, vector_bytes=32)
    assert "stream" not in scheduled(ROWS, vector_bytes=64)  # 4000 bytes are not whole vectors


def test_a_store_that_may_be_unaligned_is_emitted_as_any_other():
    head = "kernel k map i<N>\n  in x: f32[N, 32]\n  out y: f32[N, 40]\n  for i<N> chunked:\n"
    for index, count in (("j", 1), ("j + 8", 1), ("j + 1", 0), ("2*j", 0)):
        text = f"{head}    for j<8> vector 1:\n      stream y[i, {index}] = x[i, j]\n"
        module = Module()
        emit_kernel(module, parse_kernel(text), 256)
        assert module.render().count("!nontemporal") == count


def test_streamed_results_are_the_same_at_any_address():
    rows, width = STREAM_BYTES // (2 * 4 * 512) + 3, 512
    z, y = gx.input("z", (gx.dim("B"), width)), gx.input("y", (gx.dim("B"),), dtype="int64")
    text = gx.compile({"dz": gx.grad(gx.softmax_cross_entropy(z, y), z)}).dump("kernels")
    assert "stream out.dz[i, j]" in text
    rng = np.random.default_rng(0)
    feeds = {"z": rng.standard_normal((rows, width), dtype=np.float32), "y": rng.integers(0, width, rows)}
    expected = NativeEngine(gx.parse(text.replace("stream ", ""))).run(feeds, {"B": rows})["dz"].tobytes()
    engine = NativeEngine(gx.parse(text))
    assert engine.run(feeds, {"B": rows})["dz"].tobytes() == expected
    memory = np.full(rows * width + 64, 7, np.float32)
    for first in (1, 4, 8, 32):
        memory[:] = 7
        out = memory[first : first + rows * width].reshape(rows, width)
        engine.run(feeds, {"B": rows}, {"dz": out})
        assert out.tobytes() == expected
        assert (memory[:first] == 7).all() and (memory[first + rows * width :] == 7).all()
