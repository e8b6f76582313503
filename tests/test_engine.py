"""Engines on hand-written programs: results, sizes, failures, result memory, threads."""

import gc

import numpy as np
import pytest
from program_support import CHAIN, chain_feeds, chain_results, read, step_program, weights

from graphc.codegen.target import TARGETS
from graphc.codegen.threads import pool, set_num_threads
from graphc.emission import emit_program
from graphc.engine import CACHED_SIZES, NativeEngine
from graphc.errors import IndexRangeError
from graphc.interpreters import NumpyEngine, PythonEngine
from graphc.ir.addresses import address_of
from graphc.ir.graph import Graph, GraphBuilder
from graphc.ir.program import build_program
from graphc.ir.types import dim, float32
from graphc.results import KEPT_PER_SIZE, SMALL_BYTES, ResultPool

ENGINES = pytest.mark.parametrize("engine_type", [NativeEngine, PythonEngine])


@ENGINES
@pytest.mark.parametrize("batch", [0, 1, 7, 200])
def test_one_engine_serves_every_batch(engine_type, batch):
    engine = engine_type(read(CHAIN))
    for size in (batch, 3, batch):
        feeds = chain_feeds(size)
        results = engine.run(feeds, {"B": size})
        y, s = chain_results(feeds)
        assert np.array_equal(results["y"], y)
        assert results["s"] == pytest.approx(s, rel=1e-5, abs=1e-4)


def test_all_targets_that_run_here_agree_with_the_interpreter():
    feeds = chain_feeds(50)
    expected = PythonEngine(read(CHAIN)).run(feeds, {"B": 50})
    tested = 0
    for target in TARGETS.values():
        if target.runs_here:
            results = NativeEngine(read(CHAIN), target).run(feeds, {"B": 50})
            assert np.array_equal(results["y"], expected["y"])
            assert results["s"] == pytest.approx(expected["s"], rel=1e-5)
            tested += 1
        else:
            assert "define" in emit_program(build_program(read(CHAIN)), target)[1]
    assert tested >= 1


def test_the_same_bytes_at_any_number_of_threads():
    engine = NativeEngine(read(CHAIN))
    feeds = chain_feeds(1000)
    before = pool().threads
    try:
        found = set()
        for threads in (1, 2, 3, 8):
            set_num_threads(threads)
            for _ in range(5):
                results = engine.run(feeds, {"B": 1000})
                found.add(results["s"].tobytes() + results["y"].tobytes())
        assert len(found) == 1
    finally:
        set_num_threads(before)
    assert engine.bound({"B": 1000}).chunkings[0].count > 8


@ENGINES
def test_state_is_updated_in_place(engine_type):
    variable = weights(1.0)
    engine = engine_type(step_program(variable))
    view = variable.array
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    t = np.zeros(3, np.int32)
    results = engine.run({"x": x, "t": t}, {"B": 3})
    assert np.array_equal(results["y"], x.sum(1))  # from the weights as they were
    assert np.array_equal(view, 1 - x.sum(0) / 2) and variable.array is view


@ENGINES
@pytest.mark.parametrize("bad", [-1, 10, 2**31 - 1])
def test_an_index_out_of_range_names_input_position_and_value(engine_type, bad):
    variable = weights(1.0)
    engine = engine_type(step_program(variable))
    t = np.zeros(40, np.int32)
    t[[17, 30]] = bad
    x = np.ones((40, 4), np.float32)
    with pytest.raises(IndexRangeError, match=rf"^t: index {bad} at position \(17,\) is out of range"):
        engine.run({"x": x, "t": t}, {"B": 40})
    assert variable.array.tolist() == [1.0] * 4
    t[:] = 0
    engine.run({"x": x, "t": t}, {"B": 40})
    assert variable.array.tolist() == [-19.0] * 4


@ENGINES
def test_results_can_be_written_into_given_arrays(engine_type):
    engine = engine_type(read(CHAIN))
    feeds = chain_feeds(6)
    mine = np.full((6, 8), 7, np.float32)
    results = engine.run(feeds, {"B": 6}, {"y": mine})
    assert results["y"] is mine
    assert np.array_equal(mine, chain_results(feeds)[0])


def test_outputs_that_are_inputs_state_or_shared():
    text = CHAIN + ""
    text = text.replace(
        "output s: f32[] = s", "output s: f32[] = s\noutput again: f32[8, B] = y\noutput x: f32[B, 8] = x"
    )
    feeds = chain_feeds(4)
    results = NativeEngine(read(text)).run(feeds, {"B": 4})
    assert np.array_equal(results["again"].reshape(4, 8), results["y"])
    assert not np.shares_memory(results["again"], results["y"])
    assert np.array_equal(results["x"], feeds["x"]) and not np.shares_memory(results["x"], feeds["x"])


def test_layouts_are_kept_for_some_sizes_only():
    engine = NativeEngine(read(CHAIN))
    for batch in range(1, 3 * CACHED_SIZES):
        feeds = chain_feeds(batch)
        assert np.array_equal(engine.run(feeds, {"B": batch})["y"], chain_results(feeds)[0])
    first = engine.run(chain_feeds(1), {"B": 1})
    assert np.array_equal(first["y"], chain_results(chain_feeds(1))[0])


def test_numpy_is_not_used_for_computing(monkeypatch):
    engine = NativeEngine(read(CHAIN))
    feeds = chain_feeds(9)
    expected = engine.run(feeds, {"B": 9})["y"].copy()

    def poisoned(*_, **__):
        raise AssertionError("numpy was called")

    for name in ("add", "multiply", "matmul", "dot", "sum", "exp", "maximum", "einsum", "where", "prod"):
        monkeypatch.setattr(np, name, poisoned)
    assert engine.run(feeds, {"B": 9})["y"].tobytes() == expected.tobytes()


def test_numpy_engine():
    b = GraphBuilder()
    variable = weights(2.0)
    x = b("input", name="x", dtype=float32, shape=(dim("B"), 4))
    w = b("parameter", variable=variable)
    graph = Graph({"y": b("mul", x, b.broadcast_to(w, (dim("B"), 4)))}, {variable: b("mul", w, w)}, {})
    engine = NumpyEngine(graph)
    fed = np.ones((3, 4), np.float32)
    mine = np.empty((3, 4), np.float32)
    assert engine.run({"x": fed}, {"B": 3}, {"y": mine})["y"] is mine
    assert mine.tolist() == [[2.0] * 4] * 3
    assert variable.array.tolist() == [4.0] * 4


# ---------------------------------------------------------------------------------------- result memory


def test_dropped_results_give_their_memory_back():
    results = ResultPool()
    first = results.take(np.dtype("f4"), (100, 100))
    address = address_of(first)
    assert address % 64 == 0 and first.flags.c_contiguous
    view = first[3:, ::2]
    del first
    gc.collect()
    second = results.take(np.dtype("f4"), (10_000,))
    assert address_of(second) != address, "a view still holds the memory"
    del view
    third = results.take(np.dtype("i4"), (40, 250))
    assert address_of(third) == address and third.dtype == np.int32
    assert not np.shares_memory(second, third)


def test_the_pool_keeps_little():
    results = ResultPool()
    held = [results.take(np.dtype("f8"), (1000,)) for _ in range(3 * KEPT_PER_SIZE)]
    del held
    assert len(results._free[8000]) == KEPT_PER_SIZE


@pytest.mark.parametrize("shape", [(), (0, 3), (SMALL_BYTES // 4,), (SMALL_BYTES // 4 + 1,)])
def test_a_recipe_makes_what_take_makes(shape):
    results = ResultPool()
    function, arguments = results.recipe(np.dtype("f4"), shape)
    for array in (function(*arguments), results.take(np.dtype("f4"), shape)):
        assert type(array) is np.ndarray and array.dtype == np.float32 and array.shape == shape
        assert array.flags.c_contiguous and array.flags.writeable


def test_results_stay_as_they_were():
    engine = NativeEngine(read(CHAIN))
    kept = []
    for seed in range(10):
        feeds = chain_feeds(5, seed)
        kept.append((engine.run(feeds, {"B": 5})["y"], chain_results(feeds)[0]))
    assert all(np.array_equal(result, expected) for result, expected in kept)


def test_feeds_at_any_address():
    """A feed is used in place, aligned to its elements only."""
    engine = NativeEngine(read(CHAIN))
    raw = np.zeros(4 * 8 + 3, np.float32)
    for shift in range(3):
        feed = raw[shift : shift + 32].reshape(4, 8)
        feed[...] = chain_feeds(4, shift)["x"]
        assert np.array_equal(engine.run({"x": feed}, {"B": 4})["y"], chain_results({"x": feed})[0])
