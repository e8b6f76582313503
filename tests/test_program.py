"""The program stage: order, regions, chunks, tables and their text; proofs by interpretation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_support import CHAIN, REVERSE, STEP, chain_feeds, chain_results, read, step_program, weights

from graphc.errors import ShapeError, VerifyError
from graphc.ir.graph import Variable
from graphc.ir.interpret_program import run_program
from graphc.ir.parse_kernels import parse_kernel
from graphc.ir.program import build_program, bytes_moved, compulsory_bytes
from graphc.ir.python_kernels import CheckFailure
from graphc.ir.regions import (
    TYPICAL_EXTENT,
    Region,
    accesses_of,
    checks_first,
    chunk_local_rows,
    form_regions,
    order_for_regions,
    read_by_every_chunk,
)
from graphc.ir.tables import MAX_CHUNKS, Columns, chunk_rule, chunk_sizes
from graphc.ir.text_program import print_program
from graphc.ir.types import TensorType, dim, evaluate, float32

BATCHES = (0, 1, 7, 23)


# -------------------------------------------------------------------------------------------- regions


def test_kernels_that_pass_rows_on_share_a_region():
    kernels = read(CHAIN).kernels
    regions = form_regions(kernels)
    assert [(r.first, r.count) for r in regions] == [(0, 3), (3, 1)]
    assert "chunked over" in regions[0].reason


def test_reading_other_chunks_rows_needs_a_barrier():
    regions = form_regions(read(REVERSE).kernels)
    assert [r.count for r in regions] == [1, 1]
    assert regions[0].reason == "k1 touches other chunks' part of a"


def test_a_barrier_is_needed_where_rows_have_other_lengths():
    text = REVERSE.replace("a[(B - 1) - i]", "a[i]")
    assert [r.count for r in form_regions(read(text).kernels)] == [2]
    other = text.replace("storage a: f32[B]", "storage a: f32[B, 1]").replace(
        "  in a: f32[B]\n", "  in a: f32[B, 1]\n"
    )
    other = other.replace("= a[i]", "= a[i, 0]")
    # The same bytes under another shape, still one row for each i.
    assert [r.count for r in form_regions(read(other).kernels)] == [2]
    wide = other.replace("a: f32[B, 1]", "a: f32[1, B]").replace("a[i, 0]", "a[0, i]")
    assert [r.count for r in form_regions(read(wide).kernels)] == [1, 1]


def test_write_after_read_needs_a_barrier_too():
    text = """
storage x: f32[B] input
storage w: f32[B] temporary
storage y: f32[B] output
output y: f32[B] = y

kernel k0 map i<B>
  in x: f32[B]
  out w: f32[B]
  for i<B> chunked:
    w[i] = x[i]

kernel k1 map i<B>
  in w: f32[B]
  out y: f32[B]
  for i<B> chunked:
    y[i] = w[(B - 1) - i]

kernel k2 map i<B>
  in x: f32[B]
  inout w: f32[B]
  for i<B> chunked:
    w[i] += x[i]
"""
    assert [r.count for r in form_regions(read(text).kernels)] == [1, 1, 1]


WEIGHTS = """kernel k0 contract i<B> cost 1
  in x: f32[B, 784]
  in v: f32[784, 64]
  out h: f32[B, 64]
  for i<B> chunked:
    for j<64>:
      var sum1: f32 = 0.0
      for k<784>:
        sum1 += x[i, k] * v[k, j]
      h[i, j] = sum1

kernel k1 contract i<B> cost 1
  in h: f32[B, 64]
  in w: f32[64, WIDTH]
  out y: f32[B, WIDTH]
  for i<B> chunked:
    for j<WIDTH>:
      var sum1: f32 = 0.0
      for k<64>:
        sum1 += h[i, k] * w[k, j]
      y[i, j] = sum1
"""


def regions_of_weights(width):
    first, second = WEIGHTS.replace("WIDTH", str(width)).split("\n\n")
    return form_regions([parse_kernel(part) for part in (first, second)])


def test_kernels_whose_weights_evict_each_other_are_apart():
    regions = regions_of_weights(784)
    assert [r.count for r in regions] == [1, 1]
    assert regions[0].reason == (
        "k1 reads what would not stay in cache beside what the others read each chunk"
    )
    assert [r.count for r in regions_of_weights(10)] == [2]  # weights of one hardly disturb the other's


def test_weights_that_kernels_share_do_not_keep_them_apart():
    same = (
        WEIGHTS.replace("WIDTH", "784")
        .replace("w[k, j]", "v[j, k]")
        .replace("w: f32[64, 784]", "v: f32[784, 64]")
    )
    assert [r.count for r in form_regions([parse_kernel(part) for part in same.split("\n\n")])] == [2]


def test_what_is_read_whole_is_told_from_what_a_chunk_owns():
    kernel = parse_kernel(WEIGHTS.replace("WIDTH", "B").split("\n\n")[1])
    assert read_by_every_chunk(kernel, accesses_of(kernel)) == {"w": 4 * 64 * TYPICAL_EXTENT}


def test_slots_are_local_to_their_chunk():
    text = CHAIN.replace(
        "kernel k2 map i<B> cost 2000\n  in b: f32[B, 8]\n",
        "kernel k2 map i<B> cost 2000\n  in b: f32[B, 8]\n  in part: f32[k1.chunks]\n",
    )
    same = text.replace("y[i, j] = b[i, j] * 3.0", "y[i, j] = b[i, j] * part[chunk]")
    assert [r.count for r in form_regions(read(same).kernels)] == [3, 1]
    kernel = read(same).kernels[2]
    rows = chunk_local_rows(kernel, accesses_of(kernel))
    assert rows["part"][0] == "slot" and rows["y"][0] == "axis"
    other = text.replace("y[i, j] = b[i, j] * 3.0", "y[i, j] = b[i, j] * part[0]")
    assert [r.count for r in form_regions(read(other).kernels)] == [2, 1, 1]


COPYING = """
storage x: f32[B, 64] input
storage a: f32[B, 32] output
storage copies: f32[k1.chunks, 64, 32] output
output a: f32[B, 32] = a
output copies: f32[k1.chunks, 64, 32] = copies

kernel k0 map i<B> cost 400 granule 6
  in x: f32[B, 64]
  out a: f32[B, 32]
  for i<B> chunked tile 6:
    for j<32>:
      a[i, j] = x[i, j] * 2.0

kernel k1 contract i<B> cost 300 granule 168
  in x: f32[B, 64]
  in a: f32[B, 32]
  out copies: f32[k1.chunks, 64, 32]
  for p<64>:
    for q<32>:
      var sum1: f32 = 0.0
      for i<B> chunked:
        sum1 += x[i, p] * a[i, q]
      copies[chunk, p, q] = sum1
"""


def test_copies_share_a_region_where_they_are_much_of_its_work_and_read_again_what_it_read():
    regions = form_regions(read(COPYING).kernels)
    assert [r.count for r in regions] == [2]
    for other in (
        COPYING.replace("cost 300", "cost 100"),
        COPYING.replace("cost 300", "cost (k1.chunks + 300)"),
        COPYING.replace("x[i, p] *", "2.0 *").replace("granule 168\n  in x: f32[B, 64]\n", "granule 168\n"),
    ):
        found = form_regions(read(other).kernels)
        assert [(r.count, r.reason) for r in found[:-1]] == [(1, "k1 keeps a copy of its result per chunk")]


def test_chunks_with_copies_are_long_and_small_batches_have_two():
    program = build_program(read(COPYING))
    assert program.regions["copied_rows"].tolist() == [168]
    assert program.regions["granule"].tolist() == [6]
    sizes = {batch: program.bind({"B": batch}).chunkings[0] for batch in (1000, 128, 20)}
    assert [(c.size, c.count) for c in sizes.values()] == [(168, 6), (66, 2), (12, 2)]
    assert "granule 6, copies of 168" in print_program(program)
    feeds = {"x": np.random.default_rng(0).normal(size=(128, 64)).astype(np.float32)}
    results = run_program(program.bind({"B": 128}), feeds)
    expected = feeds["x"].T @ (feeds["x"][:, :32] * 2)
    assert np.allclose(results["copies"].sum(axis=0), expected, rtol=1e-4, atol=1e-4)


def test_kernels_without_a_chunk_axis_share_a_region():
    text = """
storage x: f32[4] input
storage a: f32[4] temporary
storage y: f32[4] output
output y: f32[4] = y

kernel k0 map
  in x: f32[4]
  out a: f32[4]
  for i<4>:
    a[i] = x[i] + 1.0

kernel k1 map
  in a: f32[4]
  out y: f32[4]
  for i<4>:
    y[i] = a[3 - i]
"""
    program = build_program(read(text))
    assert len(program.regions) == 1
    x = np.arange(4, dtype=np.float32)
    assert run_program(program.bind({}), {"x": x}, seed=1)["y"].tolist() == [4, 3, 2, 1]


def test_the_interpreter_finds_a_region_that_is_wrong():
    """The proof is worth something: joined by force, REVERSE gives other results for some order."""
    program = build_program(read(REVERSE))
    forced = replace(program, regions=_joined(program))
    x = np.arange(24, dtype=np.float32)
    expected = x[::-1] * 2 + 1
    good = program.bind({"B": 24})
    assert good.chunkings[0].count > 3
    assert all(np.array_equal(run_program(good, {"x": x}, seed=s)["y"], expected) for s in range(5))
    bad = forced.bind({"B": 24})
    assert not all(np.array_equal(run_program(bad, {"x": x}, seed=s)["y"], expected) for s in range(5))


def _joined(program):
    columns = {name: [program.regions[name].tolist()[0]] for name in program.regions.names}
    columns["launch_count"] = [len(program.launches)]
    return Columns(**columns)


@pytest.mark.parametrize("batch", BATCHES)
def test_no_order_of_chunks_matters(batch):
    bound = build_program(read(CHAIN)).bind({"B": batch})
    feeds = chain_feeds(batch)
    y, s = chain_results(feeds)
    results = [run_program(bound, feeds, seed=seed) for seed in (None, 1, 2, 3)]
    for result in results:
        assert np.array_equal(result["y"], y)
        assert result["s"] == pytest.approx(s, rel=1e-5, abs=1e-5)
        assert result["s"].tobytes() == results[0]["s"].tobytes()


# ------------------------------------------------------------------------------------ order of kernels


def test_checks_come_before_anything_that_writes_state():
    program = step_program()
    assert [k.name for k in checks_first(program).kernels] == ["k3", "k0", "k1", "k2"]
    again = checks_first(program)
    assert checks_first(again) is again


def test_a_check_takes_what_it_depends_on_along():
    text = STEP.replace("storage g:", "storage u: i32[B] temporary\nstorage g:").replace(
        "  in t: i32[B]\n  for i<B> chunked:\n    let value = t[i]",
        "  in u: i32[B]\n  for i<B> chunked:\n    let value = u[i]",
    )
    text = text.replace(
        "kernel k3",
        "kernel k9 map i<B>\n  in t: i32[B]\n  out u: i32[B]\n"
        "  for i<B> chunked:\n    u[i] = t[i] + 1i32\n\nkernel k3",
    )
    program = checks_first(read(text, {"w": weights()}))
    assert [k.name for k in program.kernels] == ["k9", "k3", "k0", "k1", "k2"]


def test_a_check_that_depends_on_new_state_is_refused():
    text = STEP.replace(
        "kernel k3 check i<B>  ; t: check_index net.py:3\n  in t: i32[B]\n",
        "kernel k3 check i<B>\n  in t: i32[B]\n  in w: f32[4]\n",
    ).replace("(i64(value) >= 0)", "(w[0] >= 0.0)")
    with pytest.raises(VerifyError, match="k2 writes w before a check"):
        build_program(read(text, {"w": weights()}))


def test_a_failed_check_leaves_state_as_it_was():
    variable = weights(1.0)
    bound = build_program(step_program(variable)).bind({"B": 9})
    feeds = {"x": np.ones((9, 4), np.float32), "t": np.array([0, 1, 2, 3, 4, 5, 10, -1, 0], np.int32)}
    for seed in range(4):
        with pytest.raises(CheckFailure) as caught:
            run_program(bound, feeds, seed=seed)
        assert caught.value.position == 6
    assert variable.array.tolist() == [1.0] * 4
    feeds["t"] = np.zeros(9, np.int32)
    run_program(bound, feeds, seed=0)
    assert variable.array.tolist() == [1.0 - 4.5] * 4


LAYERS = """
storage x: f32[B, 8] input
storage w: f32[8] state #0 trainable
storage u: f32[8] temporary
storage a: f32[B, 8] temporary
storage y: f32[B, 8] output
output y: f32[B, 8] = y

kernel k0 map i<B> cost 3000
  in x: f32[B, 8]
  out a: f32[B, 8]
  for i<B> chunked:
    for j<8>:
      a[i, j] = x[i, j] * 2.0

kernel k1 map j<8>
  in w: f32[8]
  out u: f32[8]
  for j<8> chunked:
    u[j] = w[7 - j]

kernel k2 map i<B> cost 3000
  in a: f32[B, 8]
  in u: f32[8]
  out y: f32[B, 8]
  for i<B> chunked:
    for j<8>:
      y[i, j] = a[i, j] + u[j]

kernel k3 map j<8>
  inout w: f32[8]
  for j<8> chunked:
    w[j] = w[j] + 1.0
"""


def test_what_is_made_of_state_alone_stands_between_no_two_layers():
    variable = Variable("w", TensorType(float32, (8,)), lambda: np.arange(8, dtype=np.float32))
    program = build_program(read(LAYERS, {"w": variable}))
    assert [k.name for k in program.kernels] == ["k1", "k0", "k2", "k3"]
    assert program.regions["launch_count"].tolist() == [1, 2, 1]
    x = np.ones((5, 8), np.float32)
    for seed in range(3):
        variable.reset()
        results = run_program(program.bind({"B": 5}), {"x": x}, seed=seed)
        assert np.array_equal(results["y"], 2 + np.tile(np.arange(8)[::-1], (5, 1)))
        assert variable.array.tolist() == list(range(1, 9))


def test_kernels_that_are_ready_join_the_region_at_hand():
    """A kernel that only combines slots does not stand between two kernels over the batch."""
    text = CHAIN.replace("kernel k2", "kernel late").replace("kernel k3", "kernel k2")
    first, second = text.index("kernel late"), text.index("kernel k2")
    swapped = text[:first] + text[second:] + "\n" + text[first:second]
    program = build_program(read(swapped))
    assert [k.name for k in program.kernels] == ["k0", "k1", "late", "k2"]
    assert program.regions["launch_count"].tolist() == [3, 1]
    assert order_for_regions(program.source) is program.source


# --------------------------------------------------------------------------------------------- chunks


@given(st.integers(0, 5000), st.integers(0, 20000), st.integers(1, 16), st.integers(1, 300))
def test_chunk_rule(extent, cost, granule, copied):
    chunking = chunk_rule(extent, cost, granule, copied)
    assert chunking.size >= 1 and chunking.size % granule == 0
    assert 1 <= chunking.count <= MAX_CHUNKS
    assert chunking.count * chunking.size >= extent
    assert (chunking.count - 1) * chunking.size < extent or chunking.count == 1
    if chunking.count > 1:  # worth its while, up to rounding to an even count of even sizes
        assert chunking.size * max(cost, 1) >= 2_500


def test_chunks_of_an_empty_axis():
    assert chunk_rule(0, 100, 8).count == 1
    assert chunk_rule(1, 1, 1).count == 1


def test_chunk_sizes_are_common_to_a_region_and_whole_granules():
    text = CHAIN.replace("kernel k1 rows i<B> cost 2000", "kernel k1 rows i<B> cost 2000 granule 6").replace(
        "kernel k0 map i<B> cost 2000", "kernel k0 map i<B> cost 2000 granule 4"
    )
    sizes = chunk_sizes(build_program(read(text)), {"B": 1000})
    assert sizes["k0"] == sizes["k1"] == sizes["k2"]
    assert sizes["k0"] % 12 == 0


def test_tiles_of_rows_set_the_granule_of_a_region_and_vectors_take_what_that_leaves():
    text = CHAIN.replace("kernel k1 rows i<B> cost 2000", "kernel k1 rows i<B> cost 2000 granule 6").replace(
        "kernel k0 map i<B> cost 2000", "kernel k0 map i<B> cost 2000 granule 32"
    )
    first = text.index("chunked", text.index("kernel k1 "))
    tiled = text[:first] + "chunked tile 6" + text[first + len("chunked") :]
    for source, granule in ((text, 96), (tiled, 6)):
        program = build_program(read(source))
        assert program.regions["granule"].tolist()[0] == granule
        assert all(granule % kernel.granule == 0 for kernel in program.kernels[:3])
        feeds = chain_feeds(50)
        results = run_program(program.bind({"B": 50}), feeds)
        y, total = chain_results(feeds)
        assert np.array_equal(results["y"], y) and np.isclose(results["s"], total, rtol=1e-5)


def test_an_unbound_dim_is_named():
    with pytest.raises(ShapeError, match="B is not bound"):
        build_program(read(CHAIN)).bind({})


# --------------------------------------------------------------------------------------------- tables


def test_columns():
    program = build_program(read(CHAIN))
    assert program.launches["region"].tolist() == [0, 0, 0, 1]
    assert program.launches["first_operand"].tolist() == [0, 2, 5, 7]
    assert program.launches["operand_count"].tolist() == [2, 3, 2, 2]
    names = [program.storage_names[s] for s in program.operands["storage"].tolist()]
    assert names == ["x", "a", "a", "b", "part", "b", "y", "part", "s"]
    assert program.launches["kernel"].dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        program.launches["kernel"][0] = 1


def test_bytes_moved():
    program = build_program(read(CHAIN))
    B = dim("B")
    assert compulsory_bytes(program.kernels[0]) == 64 * B
    bound = program.bind({"B": 100})
    assert bytes_moved(bound)["k0"] == 6400
    assert bytes_moved(bound)["k3"] == 4 * bound.bindings["k1.chunks"] + 4
    inout = step_program().kernels[2]
    assert evaluate(compulsory_bytes(inout), {}) == 16 * 3


def test_text():
    program = build_program(read(CHAIN))
    open_text = print_program(program)
    assert "over B, 6000 ns each" in open_text and "moves 64*B bytes" in open_text
    text = print_program(program, {"B": 100})
    assert "bound to B = 100" in text
    assert "region r0: 50 chunks of 2 over 100" in text
    assert "arena " in text and "r0..r1" in text and "#" in text
    assert print_program(program, {"B": 100}) == text
    assert Region(0, 1).reason == ""
