"""Register tiles of products: how many rows a tile reads side by side."""

import re

import numpy as np
import pytest

import graphc as gx
from graphc.codegen.target import host_target
from graphc.ir.kernels import For, walk_stmts
from graphc.ir.machine import Machine
from graphc.ir.parse_kernels import parse_kernel
from graphc.ir.schedule import schedule_kernel

AVX2, AVX512 = Machine(32, 6, 2), Machine(64, 14, 2, registers=32)


def rows_of_tile(depth, machine, dtype="f32", left="[i, k]", columns=64, epilogue="s"):
    """The rows of the tile of a product of (840, depth) by (depth, columns)."""
    shape = f"[840, {depth}]" if left == "[i, k]" else f"[{depth}, 840]"
    kernel = parse_kernel(
        f"kernel k contract i<840>\n  in a: {dtype}{shape}\n  in b: {dtype}[{depth}, {columns}]\n"
        f"  in d: f32[840, 1024]\n  out c: {dtype}[840, {columns}]\n  for i<840> chunked:\n"
        f"    for j<{columns}>:\n      var s: {dtype} = 0.0{'f64' if dtype == 'f64' else ''}\n"
        f"      for k<{depth}>:\n"
        f"        s += a{left} * b[k, j]\n      c[i, j] = {epilogue}\n"
    )
    body = schedule_kernel(kernel, machine).body
    (tile,) = (s.tile for s in walk_stmts(body) if isinstance(s, For) and s.axis == "i")
    return tile


@pytest.mark.parametrize(
    ("depth", "rows"),
    [
        (1000, 14),
        (1024, 7),  # rows 4 KB apart map to one set of eight lines; seven make a tile of fourteen
        (3072, 7),
        (512, 14),  # two sets
        (1040, 14),  # a gap after each row
    ],
)
def test_rows_that_collide_in_cache_make_shorter_tiles(depth, rows):
    assert rows_of_tile(depth, AVX512) == rows
    assert rows_of_tile(depth, AVX2) == 6  # eight lines have room for them in any case


def test_what_collides_are_bytes():
    assert rows_of_tile(512, AVX512, "f64") == 7
    assert rows_of_tile(256, AVX512, "f64") == 14


def test_columns_lie_side_by_side():
    assert rows_of_tile(1024, AVX512, left="[k, i]") == 14


def test_what_the_epilogue_reads_once_may_collide():
    assert rows_of_tile(1000, AVX512, epilogue="s + d[i, j]") == 14


def test_a_tile_of_one_vector_has_more_rows_to_collide():
    assert rows_of_tile(1000, AVX512, columns=16) == 28
    assert rows_of_tile(256, AVX512, columns=16) == 28  # four sets
    assert rows_of_tile(512, AVX512, columns=16) == 14  # two sets
    assert rows_of_tile(1024, AVX512, columns=16) == 7


@pytest.mark.parametrize("columns", [16, 64])
@pytest.mark.parametrize("depth", [512, 1024])
def test_products_of_colliding_rows(depth, columns):
    rng = np.random.default_rng(depth)
    a, b = rng.normal(size=(37, depth)).astype("f"), rng.normal(size=(depth, columns)).astype("f")
    exe = gx.compile(gx.input("a", (gx.dim("B"), depth)) @ gx.input("b", (depth, columns)))
    np.testing.assert_allclose(exe.run(a=a, b=b), a @ b, rtol=1e-4, atol=1e-3)


def test_chunks_do_not_grow_where_rows_collide(monkeypatch):
    """A region's chunks are multiples of all its tiles, so these have to be parts of each other."""
    monkeypatch.setattr("graphc.compiling._machine", lambda backend: (host_target(), AVX512))
    x, t = gx.input("x", (gx.dim("B"), 1024)), gx.input("t", (gx.dim("B"), 10))
    loss = gx.mse(gx.nn.MLP([1024, 64, 32, 10], "tanh", name="net")(x), t)
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1), backend="python")
    assert {7, 14} <= {
        s.tile for k in exe.ir.kernels.kernels for s in walk_stmts(k.body) if isinstance(s, For)
    }
    granules = [int(n) for n in re.findall(r"over B.*granule (\d+)", exe.dump("program"))]
    assert max(granules) == 28
