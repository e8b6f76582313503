"""Arrays given for results (`out=`), and steps bound to their arrays (`bind`)."""

import gc

import numpy as np
import pytest
from call_support import T, X, classifier, flat, forbid_the_general_way, needs_native

import graphc as gx
from graphc.errors import DTypeError, FeedError, IndexRangeError, ShapeError, UsageError

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
