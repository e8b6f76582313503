"""The arena: packing, live ranges, in-place reuse; and slabs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_support import CHAIN, chain_feeds, chain_results, read, weights

from graphc.engine import NativeEngine
from graphc.errors import StateError
from graphc.ir.addresses import address_of
from graphc.ir.graph import Variable
from graphc.ir.interpret_program import run_program
from graphc.ir.packing import Block, format_blocks, pack
from graphc.ir.program import build_program
from graphc.ir.slabs import group_variables, place_variables
from graphc.ir.types import TensorType, float32, float64

# a -> b -> c elementwise, each in a region of its own (the sums between them are barriers).
LADDER = """
storage x: f32[B, 8] input
storage a: f32[B, 8] temporary
storage b: f32[B, 8] temporary
storage y: f32[B, 8] output
output y: f32[B, 8] = y

kernel k0 map i<B> cost 4000
  in x: f32[B, 8]
  out a: f32[B, 8]
  for i<B> chunked:
    for j<8> vector 1:
      a[i, j] = x[i, j] * 2.0

kernel k1 map j<8> cost 4000
  in a: f32[B, 8]
  out b: f32[B, 8]
  for j<8> chunked:
    for i<B>:
      b[i, j] = a[i, j] + 1.0

kernel k2 map i<B> cost 4000
  in b: f32[B, 8]
  out y: f32[B, 8]
  for i<B> chunked:
    for j<8> vector 1:
      y[i, j] = b[i, j] * 3.0
"""

blocks_strategy = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 500)), max_size=25)


@given(blocks_strategy)
def test_blocks_that_live_together_never_overlap(drawn):
    blocks = [Block((f"t{n}",), min(a, b), max(a, b), size) for n, (a, b, size) in enumerate(drawn)]
    sizes = [size for _, _, size in drawn]
    layout = pack(blocks, sizes)
    for n, left in enumerate(blocks):
        assert layout.offsets[n] % 64 == 0
        assert layout.offsets[n] + sizes[n] <= layout.nbytes or sizes[n] == 0
        for m in range(n):
            right = blocks[m]
            if left.first <= right.last and right.first <= left.last and sizes[n] and sizes[m]:
                ends = layout.offsets[n] + sizes[n], layout.offsets[m] + sizes[m]
                assert ends[0] <= layout.offsets[m] or ends[1] <= layout.offsets[n]
    rounded = [-(-size // 64) * 64 for size in sizes]
    live = [sum(r for b, r in zip(blocks, rounded, strict=True) if b.first <= t <= b.last) for t in range(10)]
    assert max(live, default=0) <= layout.nbytes <= sum(rounded) == layout.unshared


def packed_simply(blocks, sizes):
    """What `pack` promises, by looking at every pair of blocks."""
    rounded = [-(-size // 64) * 64 for size in sizes]
    offsets = [0] * len(blocks)
    placed = []
    for n in sorted(range(len(blocks)), key=lambda n: (-rounded[n], blocks[n].first, n)):
        if rounded[n] == 0:
            continue
        together = [
            m for m in placed if blocks[m].first <= blocks[n].last and blocks[n].first <= blocks[m].last
        ]
        ends = sorted((offsets[m], offsets[m] + rounded[m]) for m in together)
        gaps, end = [], 0
        for start, stop in ends:
            gaps += [(start - end, end)] if start - end >= rounded[n] else []
            end = max(end, stop)
        offsets[n] = min(gaps)[1] if gaps else end
        placed.append(n)
    return tuple(offsets)


@given(blocks_strategy, st.sampled_from([1, 7, 1000]))
def test_blocks_go_into_the_tightest_gap_largest_first(drawn, times):
    blocks = [
        Block((f"t{n}",), min(a, b) * times, max(a, b) * times, size) for n, (a, b, size) in enumerate(drawn)
    ]
    sizes = [size for _, _, size in drawn]
    assert pack(blocks, sizes).offsets == packed_simply(blocks, sizes)


def test_blocks_of_a_deep_network_go_there_too():
    # Those of a deep network that is trained: results wait for the way back, which has others of its own.
    depth = 150
    blocks, sizes = [], []
    for n in range(depth):
        blocks += [
            Block((f"forward{n}",), 2 * n, 4 * depth - 2 * n, 0),
            Block((f"between{n}",), 2 * n, 2 * n + 1, 0),
            Block((f"backward{n}",), 4 * depth - 2 * n - 1, 4 * depth - 2 * n, 0),
        ]
        sizes += [64 * (1 + n % 5), 64 * (3 + n % 9), 64 * (2 + n % 6)]
    assert pack(blocks, sizes).offsets == packed_simply(blocks, sizes)


def test_memory_is_used_again():
    blocks = [Block(("a",), 0, 1, 100), Block(("b",), 1, 2, 100), Block(("c",), 2, 3, 100)]
    layout = pack(blocks, [100] * 3)
    assert layout.nbytes == 256 and layout.unshared == 384
    assert layout.offsets[0] == layout.offsets[2]
    table = format_blocks(blocks, 4, [100] * 3, layout)
    assert "arena 256 bytes; 384 without reuse" in table
    assert "r1..r2  .##.  b" in table


def test_elementwise_kernels_work_in_place():
    program = build_program(read(LADDER))
    assert [block.storages for block in program.blocks] == [("a", "b")]
    bound = program.bind({"B": 10})
    assert bound.offset_of("a") == bound.offset_of("b") and bound.layout.nbytes == 320
    check_ladder(read(LADDER))


def check_ladder(program, transform=lambda a: a + 1):
    x = np.arange(80, dtype=np.float32).reshape(10, 8)
    expected = transform(x * 2) * 3
    built = build_program(program)
    for seed in range(5):
        assert np.array_equal(run_program(built.bind({"B": 10}), {"x": x}, seed=seed)["y"], expected)
    assert np.array_equal(NativeEngine(built).run({"x": x}, {"B": 10})["y"], expected)


@pytest.mark.parametrize(
    ("old", "new", "transform"),
    [
        # Another element is read.
        ("b[i, j] = a[i, j] + 1.0", "b[i, j] = a[(B - 1) - i, j] + 1.0", lambda a: a[::-1] + 1),
        # It is read again after the store.
        (
            "b[i, j] = a[i, j] + 1.0",
            "b[i, j] = a[i, j] + 1.0\n      b[i, j] += a[i, j]",
            lambda a: a + 1 + a,
        ),
        # Each element is computed several times over.
        (
            "    for i<B>:\n      b[i, j] = a[i, j] + 1.0",
            "    for i<B>:\n      for r<2>:\n        b[i, j] = a[i, j] + 1.0",
            lambda a: a + 1,
        ),
        # It is read in another loop.
        (
            "    for i<B>:\n      b[i, j] = a[i, j] + 1.0",
            "    for i<B>:\n      b[i, j] = a[i, j] + 1.0\n    for i<B>:\n      b[i, j] += a[i, j]",
            lambda a: a + 1 + a,
        ),
    ],
)
def test_no_reuse_in_place_where_values_are_needed_again(old, new, transform):
    assert old in LADDER
    text = LADDER.replace(old, new)
    text = text.replace("out b: f32", "inout b: f32") if "b[i, j] +=" in text else text
    program = read(text)
    assert [block.storages for block in build_program(program).blocks] == [("a",), ("b",)]
    check_ladder(program, transform)


def test_no_reuse_within_the_region_that_makes_a_value():
    """In one region another chunk may be behind: CHAIN's temporaries are all apart."""
    program = build_program(read(CHAIN))
    assert [block.storages for block in program.blocks] == [("a",), ("b",), ("part",)]
    feeds = chain_feeds(30)
    assert np.array_equal(run_program(program.bind({"B": 30}), feeds, seed=1)["y"], chain_results(feeds)[0])


def test_a_temporary_that_is_an_output_lives_to_the_end():
    text = LADDER.replace("output y: f32[B, 8] = y", "output y: f32[B, 8] = y\noutput a: f32[B, 8] = a")
    program = build_program(read(text))
    assert [(b.storages, b.last) for b in program.blocks] == [(("a",), 2), (("b",), 2)]
    x = np.ones((3, 8), np.float32)
    results = NativeEngine(program).run({"x": x}, {"B": 3})
    assert np.array_equal(results["a"], x * 2) and np.array_equal(results["y"], x * 9)


# ---------------------------------------------------------------------------------------------- slabs


def variable(name, shape=(3, 5), dtype=float32):
    return Variable(name, TensorType(dtype, shape), lambda: np.full(shape, len(name), dtype.numpy))


def test_variables_lie_in_one_slab():
    members = [variable("a"), variable("bb", (7,), float64), variable("ccc", ()), variable("d", (0,))]
    view = place_variables(members, "parameters")
    assert view.is_contiguous and len(view) == 4
    assert all(address_of(v.array) % 64 == 0 for v in members)
    assert [v.array.flat[0] for v in members[:3]] == [1, 2, 3]
    assert view.nbytes == 60 + 56 + 4 and view.array.nbytes == 64 + 64 + 4
    members[0].array[...] = 0
    assert not view.array[:60].any()
    assert "a: f32[3, 5]" in str(view)


def test_variables_never_move():
    first, second, third = variable("a"), variable("b"), variable("c")
    place_variables([second])
    kept = second.array
    view = place_variables([first, second, third, first])
    assert second.array is kept and len(view) == 3
    assert not view.is_contiguous and len(list(view.runs())) == 3
    with pytest.raises(StateError, match="runs"):
        _ = view.array
    assert sum(run.nbytes for run in view.runs()) == view.nbytes


def test_a_failing_initializer_places_nothing():
    def fails():
        raise ValueError("no")

    good, bad = variable("a"), Variable("b", TensorType(float32, (2,)), fails)
    with pytest.raises(ValueError, match="no"):
        place_variables([good, bad])
    assert not good.is_placed and not bad.is_placed


def test_groups():
    a, b = variable("fc.weight"), variable("fc.bias")
    moments = [variable(f"optim.{n}.{m}") for n in ("fc.bias", "fc.weight") for m in ("m", "v")]
    step, grads = variable("optim.step", ()), [variable("grad.fc.weight")]
    groups = group_variables([a, b], grads, [*moments, step, weights()])
    assert [v.name for v in groups["m"]] == ["optim.fc.weight.m", "optim.fc.bias.m"]
    assert list(groups) == ["parameters", "gradients", "m", "v", "state"]
    assert [v.name for v in groups["state"]] == ["optim.step", "w"]
