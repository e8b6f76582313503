"""Parameters, state dicts and files: live views, atomic writes, loads that fit or change nothing."""

import copy
import os
import pickle

import numpy as np
import pytest

import graphc as gx
from graphc import checkpoint
from graphc.errors import GraphcError, StateError, UsageError

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
T = np.array([0, 1, 1, 0], np.int32)


def network(optimizer=None, backend="native", seed=0):
    gx.seed(seed)
    batch = gx.dim("B")
    x, t = gx.input("x", (batch, 3)), gx.input("t", (batch,), dtype="int32")
    logits = gx.nn.Linear(3, 2, name="fc")(x)
    loss = gx.softmax_cross_entropy(logits, t)
    step = gx.compile(
        {"loss": loss}, loss=loss, optimizer=optimizer or gx.optim.Adam(lr=0.1), backend=backend
    )
    return step, gx.compile(logits, backend=backend)


def same(left, right):
    return left.keys() == right.keys() and all(left[n].tobytes() == right[n].tobytes() for n in left)


def test_parameters_are_live_and_shared():
    step, infer = network()
    view = step.params["fc.weight"]
    assert view is infer.params["fc.weight"]
    address = view.ctypes.data
    step.run(x=X, t=T)
    assert step.params["fc.weight"].ctypes.data == address
    step.params["fc.weight"] = np.ones((2, 3))
    assert view.tolist() == [[1.0] * 3] * 2
    step.params["fc.bias"][...] = 5
    assert np.allclose(infer.run(x=X), X.sum(1, keepdims=True) + 5, atol=1e-6)
    assert list(step.params) == ["fc.weight", "fc.bias"] and "fc.bias" in step.params


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("fc.weight", np.ones((3, 2)), StateError, r"fc.weight has shape \[2, 3\]"),
        ("fc.weight", 1.0, StateError, "has shape"),
        ("fc.nothing", np.ones(2), StateError, "no parameter 'fc.nothing'"),
        ("fc.bias", np.ones(2, complex), StateError, "complex128 cannot be used"),
        ("fc.bias", np.array([1, None]), StateError, "object cannot be used"),
    ],
)
def test_bad_assignments(name, value, error, message):
    step, _ = network()
    before = step.state_dict()
    with pytest.raises(error, match=message):
        step.params[name] = value
    assert same(before, step.state_dict())


def test_parameters_cannot_be_deleted():
    step, _ = network()
    with pytest.raises(UsageError, match="cannot be deleted"):
        del step.params["fc.bias"]


def test_training_goes_on_just_where_it_was(tmp_path):
    step, _ = network()
    for _ in range(3):
        step.run(x=X, t=T)
    step.save(tmp_path / "a.safetensors")
    losses = [step.run(x=X, t=T)["loss"].tobytes() for _ in range(3)]
    other, infer = network(seed=7)
    assert other.params["fc.weight"].tobytes() != step.params["fc.weight"].tobytes()
    other.load(tmp_path / "a.safetensors")
    assert [other.run(x=X, t=T)["loss"].tobytes() for _ in range(3)] == losses
    assert same(other.state_dict(), step.state_dict())
    # The network without an optimizer passes over its state.
    infer.load(tmp_path / "a.safetensors")
    names = list(step.state_dict())
    assert "optim.fc.weight.m" in names and "optim.step" in names and "optim.lr.0" not in names


def test_state_dict_is_a_copy():
    step, _ = network()
    state = step.state_dict()
    state["fc.weight"][...] = 9
    assert not (step.params["fc.weight"] == 9).any()
    step.load_state_dict(state)
    assert (step.params["fc.weight"] == 9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.bias"), "missing: fc.bias"),
        (lambda s: s.update({"fc2.bias": np.zeros(2)}), "unknown: fc2.bias"),
        (
            lambda s: s.update({"fc.bias": np.zeros(3, np.float32)}),
            r"fc.bias is float32\[3\], not float32\[2\]",
        ),
        (lambda s: s.update({"fc.bias": np.zeros(2)}), r"fc.bias is float64\[2\], not float32\[2\]"),
        (lambda s: s.pop("optim.step"), "missing: optim.step"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(tmp_path, change, message):
    step, _ = network()
    step.run(x=X, t=T)
    state = {name: array + 1 for name, array in step.state_dict().items()}
    change(state)
    before = step.state_dict()
    with pytest.raises(StateError, match=message):
        step.load_state_dict(state)
    checkpoint.write_file(tmp_path / "f", {n: np.asarray(a) for n, a in state.items()})
    with pytest.raises(StateError, match=message):
        step.load(tmp_path / "f")
    assert same(before, step.state_dict())


def test_loading_what_both_have():
    step, _ = network()
    step.load_state_dict({"fc.bias": np.full(2, 3, np.float32), "other": np.zeros(1)}, strict=False)
    assert step.params["fc.bias"].tolist() == [3, 3]
    with pytest.raises(StateError, match=r"fc\.bias"):
        step.load_state_dict({"fc.bias": np.zeros(9, np.float32)}, strict=False)


def test_a_state_may_be_made_of_the_parameters_themselves():
    step, _ = network()
    weight = step.params["fc.weight"].copy()
    state = {**step.state_dict(), "fc.weight": step.params["fc.weight"][::-1]}
    step.load_state_dict(state)
    assert np.array_equal(step.params["fc.weight"], weight[::-1])


def test_bad_files(tmp_path):
    step, _ = network()
    before = step.state_dict()
    (tmp_path / "junk").write_bytes(b"this is no safetensors file, and it is long enough")
    step.save(tmp_path / "good")
    (tmp_path / "cut").write_bytes((tmp_path / "good").read_bytes()[:-9])
    for name, message in [
        ("absent", "cannot read"),
        ("junk", "not a safetensors"),
        ("cut", "not a safetensors"),
    ]:
        with pytest.raises(StateError, match=message) as caught:
            step.load(tmp_path / name)
        assert isinstance(caught.value, GraphcError)
    with pytest.raises(StateError, match="cannot write"):
        step.save(tmp_path / "no" / "such" / "directory")
    assert same(before, step.state_dict())


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    step, _ = network()
    path = tmp_path / "model"
    step.save(path)
    old = path.read_bytes()
    step.run(x=X, t=T)

    def fails(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StateError, match="the disk is full"):
        step.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model"], "no temporary file is left"


def test_the_file_can_be_read_by_others(tmp_path):
    from safetensors.numpy import load_file

    step, _ = network()
    step.save(tmp_path / "model")
    assert same(load_file(tmp_path / "model"), step.state_dict())
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o666 & ~mask


def test_copies_are_refused():
    step, _ = network()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match="executable cannot be"):
            attempt(step)


def test_slabs():
    step, infer = network()
    assert list(step.slabs) == ["parameters", "m", "v", "state"]
    assert step.slabs["parameters"].is_contiguous and step.slabs["m"].is_contiguous
    layouts = {n: [s.offset for s in step.slabs[n].segments] for n in ("parameters", "m", "v")}
    assert layouts["m"] == layouts["v"] == layouts["parameters"]
    step.run(x=X, t=T)
    assert step.slabs["m"].array.view(np.float32).any()
    assert infer.slabs["parameters"].segments[0].slab is step.slabs["parameters"].segments[0].slab


def test_gradients_lie_in_a_slab():
    x = gx.input("x", (gx.dim("B"), 3))
    w = gx.param("w", (3,), init=np.ones(3, np.float32))
    b = gx.param("b", (), init=np.float32(0))
    loss = gx.sum(x @ w + b)
    exe = gx.compile(loss, loss=loss)
    view = exe.grads["w"]
    assert exe.run(x=X) == pytest.approx(X.sum() + 0, abs=1e-6)
    assert np.allclose(view, X.sum(0), atol=1e-6) and exe.grads["b"] == 4
    assert exe.slabs["gradients"].is_contiguous
    exe.run(x=2 * X)
    assert np.allclose(view, 2 * X.sum(0), atol=1e-6), "the view is live"
    with pytest.raises(UsageError, match="no gradients"):
        _ = network()[0].grads
