"""Feeds: what is refused and with what message, what is converted, and that nothing changes on failure."""

import numpy as np
import pytest

import graphc as gx
from graphc.errors import FeedError, IndexRangeError, ShapeError
from graphc.executable import Executable


@pytest.fixture(scope="module")
def step() -> Executable:
    batch = gx.dim("B")
    x = gx.input("x", (batch, 3))
    t = gx.input("t", (batch,), dtype="int32")
    logits = gx.nn.Linear(3, 4, name="fc")(x)
    loss = gx.softmax_cross_entropy(logits, t)
    return gx.compile(
        {"loss": loss, "logits": logits}, loss=loss, optimizer=gx.optim.SGD(lr=0.1), backend="numpy"
    )


X = np.arange(6, dtype=np.float32).reshape(2, 3) / 6
T = np.array([1, 3], np.int32)


@pytest.fixture
def native() -> Executable:
    batch = gx.dim("B")
    x = gx.input("x", (batch, 3))
    t = gx.input("t", (batch,), dtype="int32")
    logits = gx.nn.Linear(3, 4, name="fc")(x)
    loss = gx.softmax_cross_entropy(logits, t)
    return gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.1))


def frozen(array):
    array = array.copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("feeds", "error", "message"),
    [
        ({"x": X}, FeedError, r"input t \(i32\[B\]\) was not fed"),
        ({"x": X, "t": T, "y": T}, FeedError, r"no input named 'y' \(inputs: .*\)"),
        ({"xx": X, "t": T}, FeedError, r"no input named 'xx' .*did you mean 'x'\?"),
        ({"x": X[0], "t": T}, FeedError, r"input x: expected shape \[B, 3\].*got \[3\]"),
        ({"x": X[:, :2], "t": T}, FeedError, r"input x: expected shape \[B, 3\] with B = 2, got \[2, 2\]"),
        ({"x": X, "t": T[:1]}, FeedError, r"dim B is .* in input . but . in input ."),
        ({"x": X, "t": T.astype(np.float32)}, FeedError, r"input t: float32 cannot be used as int32"),
        ({"x": X.astype(object), "t": T}, FeedError, r"input x: object cannot be used as float32"),
        ({"x": X.astype(complex), "t": T}, FeedError, r"input x: complex128 cannot be used as float32"),
        ({"x": X.astype(str), "t": T}, FeedError, r"input x: <U\d+ cannot be used as float32"),
        ({"x": [[1, 2, 3], [4, 5]], "t": T}, FeedError, r"input x: .*inhomogeneous"),
        (
            {"x": X, "t": np.array([0, 2**40])},
            FeedError,
            r"input t: the value 1099511627776 at position 1 does not fit int32",
        ),
        ({"x": X, "t": np.array([0, -1])}, IndexRangeError, r"t: index -1 at position"),
        ({"x": X, "t": np.array([10, 0])}, IndexRangeError, r"t: index 10 at position"),
        ([X, T], FeedError, "by name, as a dict or keywords, not as list"),
    ],
)
def test_bad_feeds(step, native, feeds, error, message):
    for executable in (step, native):
        before = executable.state_dict()
        with pytest.raises(error, match=message):
            executable.run(feeds)
        after = executable.state_dict()
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    executable.run(x=X, t=T)  # and it still runs


def test_fed_twice(step):
    with pytest.raises(FeedError, match="input x was fed twice"):
        step.run({"x": X, "t": T}, x=X)


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": X.astype(np.float64), "t": T.astype(np.int64)},
        {"x": X.tolist(), "t": T.tolist()},
        {"x": X.astype(">f4"), "t": T.astype(">i8")},
        {"x": np.asfortranarray(X), "t": np.array([1, 9, 3, 9], np.int32)[::2]},
        {"x": frozen(X), "t": frozen(T)},
        {"x": X, "t": T.astype(np.uint8)},
        {"x": X, "t": T.astype(np.uint64)},
        {"x": np.repeat(X, 2, axis=1)[:, ::2], "t": T},
    ],
)
def test_what_is_converted_gives_the_same_result(native, feeds):
    state = native.state_dict()
    expected = native.run(x=X, t=T)["loss"]
    native.load_state_dict(state)
    assert native.run(feeds)["loss"].tobytes() == expected.tobytes()


def test_misaligned_memory_is_copied(native):
    raw = np.zeros(X.nbytes + 1, np.uint8)
    odd = raw[1:].view(np.float32).reshape(X.shape)
    odd[...] = X
    assert not odd.flags.aligned
    state = native.state_dict()
    expected = native.run(x=X, t=T)["loss"]
    native.load_state_dict(state)
    assert native.run(x=odd, t=T)["loss"].tobytes() == expected.tobytes()


def test_ints_and_bools_become_floats():
    x = gx.input("x", (3,))
    double = gx.compile(x * 2.0)
    assert double.run(x=np.array([1, 2, 3])).tolist() == [2, 4, 6]
    assert double.run(x=np.array([True, False, True])).tolist() == [2, 0, 2]
    assert double.run(x=np.array([1e300, 0, 0])).tolist() == [np.inf, 0, 0]


def test_nan_propagates(native):
    x = X.copy()
    x[0, 0] = np.nan
    assert np.isnan(native.run(x=x, t=T)["loss"])


def test_feeds_are_used_in_place_unless_they_lie_in_state(native):
    arrays, _ = native.feed_plan.prepare({"x": X, "t": T})
    assert arrays["x"] is X and arrays["t"] is T
    weight = native.params["fc.weight"]
    assert weight.shape == (4, 3)
    arrays, bindings = native.feed_plan.prepare({"x": weight, "t": np.zeros(4, np.int32)})
    assert not np.shares_memory(arrays["x"], weight) and bindings == {"B": 4}
    assert np.array_equal(arrays["x"], weight)


def test_a_weight_fed_to_its_own_step():
    w = gx.param("w", (4, 4), init=np.eye(4, dtype=np.float32) * 2)
    x = gx.input("x", (gx.dim("B"), 4))
    loss = gx.sum(x @ w)
    step = gx.compile({"y": x @ w}, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    held = step.params["w"]
    start = held.copy()
    result = step.run(x=held)["y"]
    assert np.array_equal(result, start @ start)
    assert np.allclose(held, start - start.sum(0)[:, None])


def test_extents_that_only_a_run_can_compare():
    x, y = gx.input("x", (gx.dim("N"),)), gx.input("y", (gx.dim("M"),))
    both = gx.compile(x + y)
    assert both.run(x=[1, 2], y=[3, 4]).tolist() == [4, 6]
    for _ in range(2):
        with pytest.raises(ShapeError, match=r"differ.*2 and 1|N.*M"):
            both.run(x=[1, 2], y=[3])


def test_scalars_and_empty_batches():
    x, s = gx.input("x", (gx.dim("B"), 2)), gx.input("s")
    scaled = gx.compile({"y": x * s, "sum": gx.sum(x)})
    out = scaled.run(x=np.zeros((0, 2)), s=3)
    assert out["y"].shape == (0, 2) and out["sum"] == 0
    assert scaled.run(x=[[1, 2]], s=3.0)["y"].tolist() == [[3, 6]]
