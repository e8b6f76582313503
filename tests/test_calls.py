"""Calls of a step: the native way against the general one, learning rates, and no growth."""

import gc
import threading
import tracemalloc
from collections import UserDict
from types import MappingProxyType

import numpy as np
import pytest
from call_support import T, X, classifier, flat, forbid_the_general_way, general, needs_native

import graphc as gx
from graphc import calls
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.steps import Span
from graphc.errors import FeedError, IndexRangeError
from graphc.ir.addresses import address_of
from graphc.results import SMALL_BYTES, ResultPool

# --------------------------------------------------------------------------------------------------- run


@pytest.mark.parametrize("structure", ["dict", "one", "other", "tuple", "list"])
def test_the_native_way_does_what_the_general_one_does(structure, length):
    one, other = classifier(structure=structure), classifier(structure=structure)
    for batch in (4, 4, 4, 2, 4, 2, 2, 2, 4):
        feeds = {"x": X[:batch], "t": T[:batch]}
        found, expected = one.run(feeds), general(other, feeds)
        assert type(found) is type(expected)
        if isinstance(found, dict):
            assert list(found) == list(expected)
        pairs = zip(flat(found), flat(expected), strict=True)
        assert all(a.tobytes() == b.tobytes() and a.shape == b.shape for a, b in pairs)
    mine, its = one.state_dict(), other.state_dict()
    assert all(mine[name].tobytes() == its[name].tobytes() for name in mine)


@needs_native
def test_prepared_arrays_take_the_native_way(monkeypatch, length):
    step = classifier()
    for _ in range(2):
        step.run(x=X, t=T)
    forbid_the_general_way(monkeypatch)
    kept = [step.run(x=X, t=T) for _ in range(5)]
    kept += [step.run({"x": X, "t": T}), step.run({"x": X}, t=T), step(x=X, t=T)]
    kept += [step.run(MappingProxyType({"x": X}), t=T)]
    losses = [float(found["loss"]) for found in kept]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == len(losses)
    assert set(step.run_labelled(x=X, t=T)) == {"loss", "logits"}
    with pytest.raises(AssertionError, match="general way"):
        step.run(x=X.tolist(), t=T)


@needs_native
def test_sizes_take_turns(monkeypatch):
    step = classifier()
    for batch in (1, 2, 3, 4) * 3:
        step.run(x=X[:batch], t=T[:batch])
    forbid_the_general_way(monkeypatch)
    for batch in (3, 1, 4, 4, 2):
        assert step.run(x=X[:batch], t=T[:batch])["logits"].shape == (batch, 4)
        assert f"{16 * batch} bytes" in step.dump("program") or batch == 1


class Awkward(str):
    """A key with the hash of another one, whose comparison raises."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        raise KeyboardInterrupt


def test_feeds_that_do_not_fit_as_they_are(length):
    one, other = classifier(), classifier()
    for _ in range(3):
        one.run(x=X, t=T)
        general(other, x=X, t=T)
    unlike = [
        {"x": X.astype(np.float64), "t": T},
        {"x": X.tolist(), "t": T.tolist()},
        {"x": np.asfortranarray(X), "t": T},
        {"x": np.repeat(X, 2, axis=0)[::2], "t": T.astype(np.int64)},
        {"x": X.view(np.memmap), "t": T},
        {"x": X[:3], "t": T[:3]},
        UserDict({"x": X, "t": T}),
    ]
    for feeds in unlike:
        found, expected = one.run(feeds), general(other, feeds)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(flat(found), flat(expected), strict=True))


@pytest.mark.parametrize(
    ("feeds", "error"),
    [
        ({}, FeedError), ({"x": X}, FeedError), ({"x": X, "t": T, "u": T}, FeedError),
        ({"x": X, 3: T}, FeedError), ({"x": X, "t": None}, FeedError), ({"x": X.T, "t": T}, FeedError),
        ({"x": X, "t": T[:2]}, FeedError), ({"x": X, "t": T.astype(np.float32)}, FeedError),
        ({"x": X, "t": T + 4}, IndexRangeError), ({"x": X, Awkward("t"): T}, KeyboardInterrupt),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_general_way(feeds, error, length):
    step = classifier()
    with pytest.raises(error) as expected:
        step.run(feeds)
    for _ in range(3):
        step.run(x=X, t=T)
    before = step.state_dict()
    for _ in range(2):
        with pytest.raises(error) as found:
            step.run(feeds)
        assert str(found.value) == str(expected.value)
    after = step.state_dict()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    step.run(x=X, t=T)


def test_results_of_a_native_run_are_fresh():
    step = classifier()
    kept = [step.run(x=X, t=T)["logits"] for _ in range(8)]
    assert len({address_of(array) for array in kept}) == 8
    assert len({array.tobytes() for array in kept}) == 8
    assert all(type(array) is np.ndarray and array.flags.writeable for array in kept)


def test_references_are_neither_lost_nor_kept():
    from sys import getrefcount

    step = classifier()
    x, t = X.copy(), T.copy()
    feeds = {"x": x, "t": t}
    logits = np.empty((4, 4), np.float32)
    out = {"logits": logits}
    things = [x, t, feeds, logits, out, x.dtype, np.ndarray]
    for _ in range(3):
        step.run(feeds, out=out)
    bad = {"x": x, "t": t + 9}
    before = [getrefcount(thing) for thing in things]
    for _ in range(200):
        step.run(feeds, out=out)
        step.run(feeds)
        with pytest.raises(IndexRangeError):
            step.run(bad)
        with pytest.raises(FeedError):
            step.run({"x": x})
    after = [getrefcount(thing) for thing in things]
    assert all(abs(a - b) <= 5 for a, b in zip(after, before, strict=True)), (before, after)


@needs_native
@pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array:DeprecationWarning")
def test_what_python_code_does_in_the_middle_of_a_call_is_seen(monkeypatch):
    """Memory for a large result comes from Python, which may do anything: reshape a feed, run steps."""
    x = gx.input("x", (gx.dim("B"), gx.dim("C")))
    double = gx.compile(x * 2.0)
    side = SMALL_BYTES
    fed = np.ones((2, side), np.float32)
    take, pending = ResultPool.take, []

    def meddle(self, dtype, shape):
        while pending:
            pending.pop()()
        return take(self, dtype, shape)

    monkeypatch.setattr(ResultPool, "take", meddle)
    for _ in range(3):
        assert double.run(x=fed).shape == (2, side)

    def reshape():
        fed.shape = (side, 2)

    pending.append(reshape)
    assert double.run(x=fed).shape == (side, 2)
    fed.shape = (2, side)
    pending.append(lambda: double.run(x=3 * fed))
    assert (double.run(x=fed) == 2).all()


def test_unused_inputs_are_checked():
    x, unused = gx.input("x", (3,)), gx.input("unused", (gx.dim("N"),))
    step = gx.compile({"y": x * 2.0, "n": gx.sum(unused * 0.0)})
    feeds = {"x": X[0], "unused": np.ones(7, np.float32)}
    for _ in range(4):
        assert step.run(feeds)["y"].tolist() == (X[0] * 2).tolist()
    with pytest.raises(FeedError, match="unused"):
        step.run(x=X[0], unused=np.ones((7, 1), np.float32))
    with pytest.raises(FeedError, match="unused"):
        step.run(x=X[0])


def test_gradients_go_where_they_always_go(length):
    w = gx.param("w", (3,), init=np.ones(3, np.float32))
    x = gx.input("x", (gx.dim("B"), 3))
    loss = gx.sum(x * w)
    step = gx.compile(loss, loss=loss)
    bound = step.bind(x=X)
    view = step.grads["w"]
    for k in range(1, 6):
        assert step.run(x=X * k) == pytest.approx(float((X * k).sum()))
        assert np.allclose(view, (X * k).sum(0))
        bound()
        assert np.allclose(view, X.sum(0))


def test_results_that_are_inputs_or_the_same(length):
    x = gx.input("x", (gx.dim("B"), 3))
    y = x + 1.0
    step = gx.compile({"y": y, "again": y, "x": x})
    bound = step.bind(x=X)
    for found in (*(step.run(x=X) for _ in range(4)), bound(), bound()):
        assert np.array_equal(found["y"], X + 1) and np.array_equal(found["again"], X + 1)
        assert np.array_equal(found["x"], X) and not np.shares_memory(found["x"], X)
        assert not np.shares_memory(found["y"], found["again"])


# -------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("way", ["run", "bind"])
def test_learning_rates_and_schedules(way, length):
    w = gx.param("w", (), init=np.array(0.0, np.float32))
    x = gx.input("x", ())
    loss = w * x
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.5))
    one = np.array(1.0, np.float32)
    call = step.bind(x=one) if way == "bind" else lambda: step.run(x=one)
    expected, seen = 0.0, []

    def schedule(number):
        seen.append(number)
        return 0.25 * (number % 2)

    for rate in (None, 2, np.float64(0.125), schedule, 1.0, np.array(0.5), schedule):
        if rate is not None:
            step.lr = rate
        for _ in range(4):
            expected -= step.lr
            call()
            assert float(step.params["w"]) == expected
    assert seen[1::2] == [*range(12, 16), *range(24, 28)]  # and once more each for `step.lr`
    step.slabs["state"].array[:4] = 0  # the learning rate's own memory is nobody's to set
    step.lr = 1.0
    call()
    assert float(step.params["w"]) == expected - 1


def test_a_schedule_that_raises_leaves_nothing_held():
    def schedule(number):
        if number == 5:
            raise RuntimeError("no rate")
        return 0.1

    step = classifier(gx.optim.SGD(lr=schedule))
    bound = step.bind(x=X, t=T)
    for _ in range(5):
        bound()
    before = step.state_dict()
    for call in (bound, lambda: step.run(x=X, t=T), bound):
        with pytest.raises(RuntimeError, match="no rate"):
            call()
    after = step.state_dict()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    step.lr = 0.1
    done = []
    other = threading.Thread(target=lambda: done.append(bound()))
    other.start()
    other.join(30)
    assert done


# ------------------------------------------------------------------------------------ no growth, no native


def grown(function, steps=1000):
    """Bytes that Python holds more after `steps` calls than before."""
    tracemalloc.start()
    try:
        gc.collect()  # empties CPython's lists of freed dicts, which the warm-up fills again
        for _ in range(200):
            function()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(steps):
            function()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_steps_allocate_nothing_that_stays(length):
    step = classifier()
    out = {"loss": np.empty((), np.float32), "logits": np.empty((4, 4), np.float32)}
    feeds = {"x": X, "t": T}
    bound = step.bind(feeds)
    for function in (bound, lambda: step.run(feeds, out=out), lambda: step.run(feeds)):
        assert grown(function) < 1000


def test_without_native_calls_everything_goes_the_general_way(monkeypatch):
    monkeypatch.setattr(calls, "native_calls", lambda: False)
    one = classifier()
    monkeypatch.undo()
    other = classifier()
    monkeypatch.setattr(calls, "native_calls", lambda: False)
    bound = one.bind(x=X, t=T)
    out = {"logits": np.empty((4, 4), np.float32)}
    for _ in range(4):
        for found in (one.run(x=X, t=T), bound(), one.run(x=X, t=T, out=out)):
            assert found["loss"].tobytes() == general(other, x=X, t=T)["loss"].tobytes()
    assert one._calls == () and bound._call is None


@pytest.mark.parametrize("in_fit", [False, True])
def test_a_run_in_the_middle_of_a_call_leaves_its_feeds_alone(monkeypatch, in_fit):
    """A signal handler or a finalizer may run the same executable after the addresses have been written."""
    executable, alone = classifier(gx.optim.SGD(lr=0.0)), classifier(gx.optim.SGD(lr=0.0))
    data = {"x": np.tile(X, (20, 1)), "t": np.tile(T, 20)}
    expected = alone.fit(data, batch_size=4) if in_fit else general(alone, x=X, t=T)
    others = []

    def interrupt():
        if not others:
            others.append(None)
            others[0] = general(executable, x=-X, t=T)["logits"]

    run, span = ProgramBlock.run, Span.run
    monkeypatch.setattr(ProgramBlock, "run", lambda block: (interrupt(), run(block))[1])
    monkeypatch.setattr(Span, "run", lambda steps, block: (interrupt(), span(steps, block))[1])
    found = executable.fit(data, batch_size=4) if in_fit else general(executable, x=X, t=T)
    assert others
    if in_fit:
        assert found["loss"] == expected["loss"]
    else:
        np.testing.assert_array_equal(found["logits"], expected["logits"])
    np.testing.assert_array_equal(others[0], general(alone, x=-X, t=T)["logits"])
