"""Calls of a step: the native way against the general one, `out=`, `bind`, threads, forks, and no growth."""

import gc
import multiprocessing
import threading
import tracemalloc
from collections import UserDict
from types import MappingProxyType

import numpy as np
import pytest
from thread_support import in_threads

import graphc as gx
from graphc import calls, steps
from graphc.codegen.cpython import native_calls
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.steps import Span
from graphc.codegen.threads import get_num_threads, set_num_threads
from graphc.errors import DTypeError, FeedError, IndexRangeError, ShapeError, UsageError
from graphc.executable import Executable
from graphc.ir.addresses import address_of
from graphc.results import SMALL_BYTES, ResultPool

needs_native = pytest.mark.skipif(not native_calls(), reason="arrays lie otherwise in this interpreter")
X = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
T = np.array([1, 3, 0, 2], np.int32)


@pytest.fixture(params=["short", "long"])
def length(request, monkeypatch):
    """Steps run with the GIL, or all without it."""
    if request.param == "long":
        monkeypatch.setattr(calls, "LONG_NANOSECONDS", -1)
    return request.param


def classifier(optimizer=None, structure="dict", backend="native", seed=0):
    gx.seed(seed)
    batch = gx.dim("B")
    x, t = gx.input("x", (batch, 3)), gx.input("t", (batch,), dtype="int32")
    logits = gx.nn.MLP([3, 5, 4], "tanh", name="net")(x)
    loss = gx.softmax_cross_entropy(logits, t)
    outputs = {
        "dict": {"loss": loss, "logits": logits}, "one": loss, "other": logits,
        "tuple": (logits, loss), "list": [loss, logits],
    }[structure]  # fmt: skip
    return gx.compile(outputs, loss=loss, optimizer=optimizer or gx.optim.Adam(lr=0.1), backend=backend)


def flat(results):
    values = results.values() if isinstance(results, dict) else results
    return [np.array(v) for v in (values if isinstance(results, (dict, tuple, list)) else [results])]


def general(executable, *arguments, **options):
    """`run` by the general way."""
    executable._calls = ()
    return executable.run(*arguments, **options)


def forbid_the_general_way(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the general way was gone")

    monkeypatch.setattr(Executable, "_general_results", refuse)
    monkeypatch.setattr(Executable, "_run_in_place", refuse)


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


# --------------------------------------------------------------------------------------------------- out=


@pytest.mark.parametrize("backend", ["native", "numpy", "python"])
def test_results_go_into_given_arrays(backend, length):
    one, other = classifier(backend=backend), classifier(backend=backend)
    logits, loss = np.empty((4, 4), np.float32), np.empty((), np.float32)
    for out in ({"logits": logits, "loss": loss}, {"logits": logits}, {}, {"logits": None, "loss": loss}) * 2:
        found, expected = one.run(x=X, t=T, out=out), other.run(x=X, t=T)
        assert list(found) == ["loss", "logits"]
        assert all(found[name] is array for name, array in out.items() if array is not None)
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_given_arrays_in_every_structure():
    logits, loss = np.empty((4, 4), np.float32), np.empty((), np.float32)
    for _ in range(3):
        step = classifier(structure="one")
        assert step.run(x=X, t=T, out=loss) is loss
        assert classifier(structure="other").run(x=X, t=T, out=logits) is logits
        found = classifier(structure="tuple").run(x=X, t=T, out=(None, loss))
        assert found[1] is loss and found[0].shape == (4, 4)
        found = classifier(structure="list").run(x=X, t=T, out=[loss, logits])
        assert found[0] is loss and found[1] is logits


def test_given_arrays_at_any_address():
    step = classifier()
    raw = np.zeros(16 + 8, np.float32)
    for shift in (0, 1, 3, 0, 5):
        given = raw[shift : shift + 16].reshape(4, 4)
        expected = step.evaluator.run(x=X, t=T)["logits"]
        step.run(x=X, t=T, out={"logits": given})
        assert given.tobytes() == expected.tobytes()
        assert not raw[:shift].any() and not raw[shift + 16 :].any()
        raw[:] = 0


def read_only(array):
    array.setflags(write=False)
    return array


def bad_outs():
    good = np.empty((4, 4), np.float32)
    return {
        "list": ([[0.0] * 4] * 4, UsageError, r"out: logits is a numpy array, not list"),
        "dtype": (
            good.astype(np.float64),
            DTypeError,
            r"out: logits has dtype float64, and the result float32",
        ),
        "shape": (good[:2], ShapeError, r"out: logits has shape \[2, 4\], and the result \[4, 4\]"),
        "order": (np.asfortranarray(good), UsageError, r"out: logits is not C-contiguous"),
        "strided": (np.empty((4, 8), np.float32)[:, ::2], UsageError, r"not C-contiguous"),
        "read-only": (read_only(good.copy()), UsageError, r"out: logits is read-only"),
        "subclass": (good.view(np.memmap), UsageError, r"out: logits is a numpy array, not memmap"),
    }


@pytest.mark.parametrize("case", bad_outs())
@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_arrays_that_results_cannot_go_into(case, backend):
    array, error, message = bad_outs()[case]
    step = classifier(backend=backend)
    for _ in range(4):
        before = step.state_dict()
        with pytest.raises(error, match=message):
            step.run(x=X, t=T, out={"logits": array})
        with pytest.raises(error, match=message):
            step.bind(x=X, t=T, out={"logits": array})
        after = step.state_dict()
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)
        step.run(x=X, t=T)


def test_given_arrays_share_no_memory():
    gx.seed(0)
    x = gx.input("x", (gx.dim("B"), 4))
    y = gx.nn.Linear(4, 4, name="fc")(x)
    step = gx.compile({"y": y, "z": y * 2.0})
    fed = np.ones((4, 4), np.float32)
    two = np.zeros((8, 4), np.float32)
    expected = step.run(x=fed)["y"]
    for _ in range(3):
        with pytest.raises(UsageError, match="out: y shares memory with the feed x"):
            step.run(x=fed, out={"y": fed})
        with pytest.raises(UsageError, match="out: y shares memory with the parameters"):
            step.run(x=fed, out={"y": step.params["fc.weight"]})
        with pytest.raises(UsageError, match="out: z shares memory with the array for y"):
            step.run(x=fed, out={"y": two[:4], "z": two[1:5]})
        found = step.run(x=fed, out={"y": two[:4], "z": two[4:]})
        assert np.array_equal(found["y"], expected) and np.array_equal(two[4:], 2 * expected)
        assert np.array_equal(step.run(x=fed)["y"], expected)


def test_out_of_another_structure():
    step = classifier()
    with pytest.raises(UsageError, match=r"no output 'logit' .*did you mean 'logits'\?"):
        step.run(x=X, t=T, out={"logit": np.empty((4, 4), np.float32)})
    with pytest.raises(UsageError, match="out is a dict of arrays by output, not ndarray"):
        step.run(x=X, t=T, out=np.empty((4, 4), np.float32))
    with pytest.raises(UsageError, match="out is a tuple of 2 arrays or None"):
        classifier(structure="tuple").run(x=X, t=T, out=(None,))


def test_an_input_called_out():
    y = gx.input("out", (3,)) * 2.0
    step = gx.compile(y)
    into = np.empty(3, np.float32)
    for _ in range(3):
        assert step.run({"out": X[0]}, out=into) is into
        assert step.run({"out": X[0]}).tolist() == into.tolist() == (X[0] * 2).tolist()
        with pytest.raises(FeedError, match="input out was not fed: out= is for results"):
            step.run(out=X[0])
    assert step.bind({"out": X[0]}, out=into)() is into


# --------------------------------------------------------------------------------------------------- bind


@pytest.mark.parametrize("backend", ["native", "numpy", "python"])
@pytest.mark.parametrize("structure", ["dict", "one", "tuple", "list"])
def test_a_bound_step_is_a_run(backend, structure, length):
    one, other = (classifier(structure=structure, backend=backend) for _ in range(2))
    x, t = X.copy(), T.copy()
    bound = one.bind(x=x, t=t)
    assert bound.feeds["x"] is x and bound.feeds["t"] is t
    for k in range(5):
        x[...] = X * k
        t[...] = (T + k) % 4
        found, expected = bound(), other.run(x=x, t=t)
        assert found is bound.outputs and type(found) is type(expected)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(flat(found), flat(expected), strict=True))
    mine, its = one.state_dict(), other.state_dict()
    assert all(mine[name].tobytes() == its[name].tobytes() for name in mine)


@needs_native
def test_a_bound_step_takes_the_native_way(monkeypatch, length):
    step = classifier()
    bound = step.bind(x=X, t=T)
    forbid_the_general_way(monkeypatch)
    losses = [float(bound()["loss"]) for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 5


def test_a_bound_step_writes_into_given_arrays():
    step = classifier()
    logits = np.empty((4, 4), np.float32)
    bound = step.bind({"x": X}, t=T, out={"logits": logits})
    assert bound()["logits"] is logits
    assert np.array_equal(classifier().run(x=X, t=T)["logits"], logits)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": X.astype(np.float64), "t": T}, "input x cannot be bound: it has dtype float64, not float32"),
        ({"x": X.tolist(), "t": T}, "input x cannot be bound: it is list, not a numpy array"),
        ({"x": np.asfortranarray(X), "t": T}, "input x cannot be bound: it is not C-contiguous"),
        ({"x": X, "t": np.repeat(T, 2)[::2]}, "input t cannot be bound: it is not C-contiguous"),
        ({"x": X, "t": T[:2]}, "dim B"),
        ({"x": X}, "input t .* was not fed"),
        ({"x": X, "t": T, "u": T}, "no input named 'u'"),
    ],
)
def test_feeds_that_cannot_be_bound(feeds, message):
    with pytest.raises(FeedError, match=message):
        classifier().bind(feeds)


def test_state_cannot_be_bound_where_it_is_written():
    w = gx.param("w", (4, 4), init=np.eye(4, dtype=np.float32))
    x = gx.input("x", (gx.dim("B"), 4))
    loss = gx.sum(x @ w)
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    with pytest.raises(FeedError, match="it lies in memory that the step writes to"):
        step.bind(x=step.params["w"])
    reads = gx.compile(gx.sum(x @ w))
    assert reads.bind(x=step.params["w"])() == 4


def test_a_subclass_of_ndarray_is_bound_in_place():
    x = X.copy()
    step = classifier(structure="other")
    bound = step.evaluator.bind(x=x.view(np.memmap), t=T)
    first = flat(bound())
    x[...] = 0
    assert not np.array_equal(first[0], flat(bound())[0])


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_a_bad_index_in_a_bound_step(bad, length):
    step = classifier()
    t = T.copy()
    bound = step.bind(x=X, t=t)
    bound()
    before = step.state_dict()
    t[2] = bad
    with pytest.raises(IndexRangeError) as expected:
        step.run(x=X, t=t)
    for _ in range(3):
        with pytest.raises(IndexRangeError, match=rf"t: index {bad} at position \(2,\)") as found:
            bound()
        assert str(found.value) == str(expected.value)
    after = step.state_dict()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    t[2] = 0
    bound()


@pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array:DeprecationWarning")
def test_arrays_that_change_after_binding():
    step = classifier()
    x, t, logits = X.copy(), T.copy(), np.empty((4, 4), np.float32)
    bound = step.bind(x=x, t=t, out={"logits": logits})
    bound()
    x.shape = (3, 4)
    with pytest.raises(FeedError):
        bound()
    x.shape = (4, 3)
    bound()
    x.dtype = np.int32
    with pytest.raises(FeedError, match="input x cannot be bound: it has dtype int32"):
        bound()
    x.dtype = np.float32
    logits.setflags(write=False)
    with pytest.raises(UsageError, match="out: logits is read-only"):
        bound()
    logits.setflags(write=True)
    with pytest.raises(ValueError, match="cannot resize"):
        x.resize((1000, 3), refcheck=False)  # other memory
    x[...] = X
    before = float(step.evaluator.run(x=X, t=T)["loss"])
    assert float(bound()["loss"]) == before


def test_a_bound_step_outlives_what_it_was_bound_with():
    bound = classifier().bind(x=X.copy(), t=T.copy())
    gc.collect()
    losses = [float(bound()["loss"]) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


def test_other_sizes_come_and_go_around_a_bound_step():
    """A larger size replaces the memory for temporaries; what was bound keeps its own."""
    one, other = classifier(), classifier()
    bound = one.bind(x=X, t=T)
    for batch in (4, 300, 4, 1, 9000, 4):
        x = np.resize(X, (batch, 3)).astype(np.float32)
        t = np.resize(T, batch)
        for _ in range(3):
            assert bound()["loss"].tobytes() == other.run(x=X, t=T)["loss"].tobytes()
            assert one.run(x=x, t=t)["loss"].tobytes() == other.run(x=x, t=t)["loss"].tobytes()


def test_bound_steps_cannot_be_copied():
    import copy
    import pickle

    bound = classifier().bind(x=X, t=T)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match="bound step cannot be"):
            attempt(bound)


# ------------------------------------------------------------------- memory that may not move during a run


def attempts(x, owner, raw):
    """What moving memory that a run uses raises."""
    for move in (
        lambda: x.resize((400, 3), refcheck=False),
        lambda: owner.resize(4000, refcheck=False),
        lambda: raw.extend(bytes(10_000)),
    ):
        with pytest.raises((ValueError, BufferError)):
            move()


def lent():
    """Arrays that own their memory, view that of another, and lie in a bytearray that numpy does not hold."""
    owner = np.zeros(12, np.float32)
    raw = bytearray(48)
    return X.copy(), owner, owner[:].reshape(4, 3), raw, np.ndarray((4, 3), np.float32, raw)


@pytest.mark.parametrize("way", ["run", "general", "bind"])
def test_memory_stays_where_it_is_while_a_step_runs(monkeypatch, way):
    """A learning-rate schedule stands for another thread: it runs when the arrays have been pinned."""
    monkeypatch.setattr(calls, "LONG_NANOSECONDS", -1)
    x, owner, view, raw, foreign = lent()
    tried = []

    def move(*_):
        tried.append(attempts(x, owner, raw))
        return 0.1

    batch = gx.dim("B")
    names = ("x", "view", "foreign")
    loss = gx.sum(sum(gx.input(name, (batch, 3)) for name in names) * gx.param("w", (3,), init="ones"))
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1))
    feeds = dict(zip(names, (x, view, foreign), strict=True))
    for _ in range(3):
        step.run(feeds)
    if way == "general":
        run = ProgramBlock.run
        monkeypatch.setattr(ProgramBlock, "run", lambda block: (move(), run(block))[1])
        general(step, feeds)
    else:
        call = step.bind(feeds) if way == "bind" else lambda: step.run(feeds)
        step.lr = move
        call()
        del call
        step.lr = 0.1
    assert len(tried) == 1
    step._calls = ()
    gc.collect()
    raw.extend(b"x")
    x.resize((400, 3), refcheck=False)


def test_pins_are_given_back(length):
    import weakref

    step = classifier()
    x, logits = X.copy(), np.empty((4, 4), np.float32)
    for _ in range(5):
        step.run(x=x, t=T, out={"logits": logits})
        assert weakref.getweakrefcount(x) == weakref.getweakrefcount(logits) == 0
    with pytest.raises(IndexRangeError):
        step.run(x=x, t=T + 9)
    assert weakref.getweakrefcount(x) == 0
    bound = step.bind(x=x, t=T, out={"logits": logits})
    assert weakref.getweakrefcount(x) == weakref.getweakrefcount(logits) == 1
    bound()
    del bound
    assert weakref.getweakrefcount(x) == weakref.getweakrefcount(logits) == 0


# ------------------------------------------------------------------------------------- threads and forks


def counter(length=1):
    """A step that adds 1 to every element of w, a bound call of it, and a reader of w."""
    w = gx.param("w", (length,), init=np.zeros(length, np.float32))
    x = gx.input("x", (length,))
    loss = gx.sum(w * x)
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    return step, np.full(length, -1, np.float32), gx.compile(w * 1.0)


def test_everything_at_once(length, monkeypatch):
    """Executables that share a parameter, all ways to run, finalizers that run, changing thread counts."""
    monkeypatch.setattr(steps, "FEW_BATCHES", 0)
    elements = 3000
    w = gx.param("w", (elements,), init=np.zeros(elements, np.float32))
    x = gx.input("x", (gx.dim("B"), elements))
    loss = gx.mean(gx.sum(w * x, axis=1))
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    scheduled = gx.compile({"now": w * 1.0}, loss=loss, optimizer=gx.optim.SGD(lr=lambda count: 1.0))
    reader = gx.compile(w * 1.0)
    feed, data = np.full((4, elements), -1, np.float32), {"x": np.full((19, elements), -1, np.float32)}
    finished = threading.Event()

    def look(values=None):
        values = reader.run() if values is None else values
        assert (values == values[0]).all(), "a read between two halves of a step"

    class Looks:
        def __init__(self):
            self.me = self  # for the collector

        def __del__(self):
            look()

    def read():
        for _ in range(60):
            look()
            Looks()

    def change():
        count = get_num_threads()
        while not finished.is_set():
            set_num_threads(1 + gc.collect() % 3)
            look(step.state_dict()["w"])
        set_num_threads(count)

    bound = [step.bind(x=feed.copy()) for _ in range(2)]
    work = [lambda: step.run(x=feed), lambda: look(scheduled.run(x=feed[:2])["now"]), *bound]
    others = threading.Thread(target=change)
    others.start()
    try:
        in_threads(
            [
                *(lambda one=one: [one() for _ in range(60)] for one in work),
                lambda: [step.fit(data, batch_size=8, progress=False) for _ in range(5)],
                lambda: [step.evaluate(data, batch_size=8) for _ in range(5)],
                read,
            ]
        )
    finally:
        finished.set()
        others.join(60)
    assert (step.params["w"] == 60 * len(work) + 5 * 3).all()


@pytest.mark.parametrize("elements", [1, 5000])
def test_no_step_is_lost_between_threads(elements, length):
    step, x, reader = counter(elements)
    bound, read = step.bind(x=x), reader.bind()

    def run():
        for _ in range(300):
            step.run(x=x)

    def call():
        for _ in range(300):
            bound()

    def look():
        for _ in range(300):
            now = reader.run()
            assert (now == now[0]).all(), "a read between two halves of a step"

    def look_bound():
        for _ in range(300):
            read()

    in_threads([run, call, run, call, look, look_bound], seconds=120)
    assert (step.params["w"] == 1200).all()


def test_a_held_lock_is_waited_for(length):
    step, x, reader = counter()
    bound, read = step.bind(x=x), reader.bind()
    for _ in range(3):
        step.run(x=x)
    for call in (bound, lambda: step.run(x=x), read, reader.run):
        done = threading.Event()

        def work(call=call, done=done):
            call()
            done.set()

        thread = threading.Thread(target=work)
        with step._lock:
            call()  # whoever holds it may
            before = step.params["w"].copy()
            thread.start()
            assert not done.wait(0.05)
            assert np.array_equal(step.params["w"], before)
        assert done.wait(30)
        thread.join()


def _in_child(queue, bound, step, x):
    for _ in range(3):
        bound()
        step.run(x=x)
    queue.put(float(step.params["w"][0]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_calls_in_a_forked_child(length):
    """Also of a child that was forked while another thread held the lock."""
    step, x, _ = counter()
    bound = step.bind(x=x)
    for _ in range(3):
        step.run(x=x)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    holding, release = threading.Event(), threading.Event()

    def hold():
        with step._lock:
            holding.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(30)
    child = context.Process(target=_in_child, args=(queue, bound, step, x))
    child.start()
    release.set()
    thread.join()
    child.join(60)
    assert child.exitcode == 0 and queue.get() == 9
    bound()
    assert float(step.params["w"][0]) == 4


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
