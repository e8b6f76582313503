"""Symbolic extents are run-time values: one compile serves every size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from spec_support import case_c_step, classifier_feeds, random, state_bytes

import graphc as gx

SIZES = (1, 7, 1000, 0, 3, 1000, 64, 1)


def test_one_compile_serves_every_batch() -> None:
    B = gx.dim("B")
    x, t = gx.input("x", (B, 20)), gx.input("t", (B,), dtype="int32")
    out = gx.nn.MLP((20, 16, 5), "gelu", name="m")(x)
    losses = gx.softmax_cross_entropy(out, t, reduction="none")
    loss = losses.sum()
    exe = gx.compile({"out": out, "p": out.softmax(), "losses": losses}, loss=loss)
    code, identity = exe.dump("asm"), exe.engine
    oracle = gx.compile({"out": out, "p": out.softmax(), "losses": losses}, loss=loss, backend="numpy")
    for size in SIZES:
        feeds = {"x": random(size, size, 20), "t": (np.arange(size) % 5).astype(np.int32)}
        got, expected = exe.run(feeds), oracle.run(feeds)
        for name in got:
            assert got[name].shape == expected[name].shape
            np.testing.assert_allclose(
                got[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=f"{name} {size}"
            )
        for name in exe.grads:
            scale = 1e-5 * (1 + np.abs(oracle.grads[name]).max())
            np.testing.assert_allclose(
                exe.grads[name], oracle.grads[name], atol=scale, err_msg=f"{name} {size}"
            )
            assert size or not exe.grads[name].any()
    assert exe.engine is identity and exe.dump("asm") == code


def test_training_step_at_every_batch() -> None:
    exe = case_c_step()
    identity = exe.engine
    for size in (1, 7, 1000, 13, 1000):
        out = exe.run(classifier_feeds(size))
        assert out["out"].shape == (size, 10) and np.isfinite(out["loss"])
    assert exe.engine is identity
    assert all(np.isfinite(v).all() for v in exe.state_dict().values())


def test_same_rows_whatever_the_batch() -> None:
    """A row's result does not depend on the rows beside it."""
    B = gx.dim("B")
    x = gx.input("x", (B, 33))
    exe = gx.compile(gx.nn.MLP((33, 17, 9), "tanh", name="m")(x).softmax())
    data = random(5, 100, 33)
    whole = exe.run(x=data)
    for start, stop in [(0, 1), (3, 10), (50, 100), (99, 100)]:
        assert exe.run(x=data[start:stop]).tobytes() == whole[start:stop].tobytes()


def test_empty_batch_where_it_is_legal() -> None:
    B = gx.dim("B")
    x = gx.input("x", (B, 4))
    exe = gx.compile(
        [x.sum(), x.sum(0), x.prod(), x.mean(1), x.sum(1), (x > 0).all(), (x > 0).any(), x.cumsum(0), x.T]
    )
    total, columns, product, means, rows, every, some, running, turned = exe.run(
        x=np.zeros((0, 4), np.float32)
    )
    assert total == 0 and columns.tolist() == [0] * 4 and product == 1 and means.shape == rows.shape == (0,)
    assert every and not some and running.shape == (0, 4) and turned.shape == (4, 0)


@pytest.mark.parametrize("backend", ["native", "numpy", "python"])
def test_extremes_of_nothing(backend: Any) -> None:
    """The mean of nothing is NaN, and an extreme of nothing an error that names the line, as numpy has it;
    before a run where the extent is known, else before the run does anything."""
    x = gx.input("x", (gx.dim("B"), 4))
    assert np.isnan(gx.compile(x.mean(), backend=backend).run(x=np.zeros((0, 4), np.float32)))
    count = gx.param("count", (), init=0.0, trainable=False)
    for extreme in (
        lambda: x.max(),
        lambda: x.min(0),
        lambda: x.cast("int32").max(0),
        lambda: x.argmax(0),
        lambda: x.logsumexp(0),
        lambda: x.softmax(0),
    ):
        exe = gx.compile(extreme() + count, backend=backend)
        where = f"test_spec_symbolic.py:{extreme.__code__.co_firstlineno}"
        with pytest.raises(gx.ShapeError, match=f"over an empty axis of .* has no value .*{where}"):
            exe.run(x=np.zeros((0, 4), np.float32))
        assert np.all(exe.run(x=np.ones((1, 4), np.float32)) <= 1)
    known = gx.input("y", (0, 4))
    every, some = gx.compile([(known > 0).all(), (known > 0).any(0)], backend=backend).run(y=np.zeros((0, 4)))
    assert every and some.tolist() == [False] * 4
    for refused in (known.max, known.min, lambda: known.argmax(0), lambda: known.logsumexp(0)):
        with pytest.raises(gx.ShapeError, match="empty"):
            refused()


def test_empty_training_step() -> None:
    B = gx.dim("B")
    x = gx.input("x", (B, 3))
    w = gx.param("w", (3,), init="ones")
    loss = (x * w).sum()
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    assert exe.run(x=np.zeros((0, 3), np.float32)) == 0
    assert exe.params["w"].tolist() == [1, 1, 1]


def test_derived_extents_and_two_dims() -> None:
    B, S = gx.dim("B"), gx.dim("S")
    x, y = gx.input("x", (B, S, 4)), gx.input("y", (B,))
    flat = x.reshape(B * S, 4)
    both = gx.concat([x, x], axis=0)
    tail = x[1:]
    pairs = flat.reshape(B, S, 2, 2).sum(-1)
    scores = x @ x.swapaxes(1, 2)
    shifted = gx.pad(y, ((1, 2),))
    exe = gx.compile([flat, both, tail, pairs, scores, shifted, x.mean((0, 1)), gx.arange(B) + y, x[:, ::2]])
    assert [t.shape for t in (flat, both, tail)] == [(B * S, 4), (2 * B, S, 4), (B - 1, S, 4)]
    identity = exe.engine
    for b, s in [(2, 3), (1, 1), (5, 2), (2, 3), (17, 9), (1, 8)]:
        data, line = random(b * 10 + s, b, s, 4), random(b, b)
        got = exe.run(x=data, y=line)
        expected = [
            data.reshape(b * s, 4),
            np.concatenate([data, data]),
            data[1:],
            data.reshape(b, s, 2, 2).sum(-1),
            data @ data.swapaxes(1, 2),
            np.pad(line, (1, 2)),
            data.mean((0, 1)),
            np.arange(b) + line,
            data[:, ::2],
        ]
        for index, (one, two) in enumerate(zip(got, expected, strict=True)):
            assert one.shape == two.shape, index
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5, err_msg=str(index))
    assert exe.engine is identity


@pytest.mark.parametrize("backend", ["native", "numpy", "python"])
def test_guards_are_checked_at_run_time(backend: Any) -> None:
    B, C = gx.dim("B"), gx.dim("C")
    w = gx.param("w", (), init=1.0)
    x, y = gx.input("x", (B, 3)), gx.input("y", (C, 3))
    loss = ((x + y) * w).sum()  # B and C must be equal, which only a run can tell
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0), backend=backend)
    before = state_bytes(exe)
    for wrong in (1, 2, 6):
        with pytest.raises(gx.GraphcError, match=r"(?s)B.*C|C.*B"):
            exe.run(x=np.ones((wrong, 3), np.float32), y=np.ones((5, 3), np.float32))
        assert state_bytes(exe) == before
    assert exe.run(x=np.ones((5, 3), np.float32), y=np.ones((5, 3), np.float32)) == 30
    halves = gx.compile(x.reshape(-1, 6), backend=backend) if _declares(lambda: x.reshape(-1, 6)) else None
    if halves is not None:
        assert halves.run(x=np.ones((4, 3), np.float32)).shape == (2, 6)
        with pytest.raises(gx.GraphcError):
            halves.run(x=np.ones((3, 3), np.float32))


def _declares(make: Any) -> bool:
    """Whether a declaration is accepted; a refusal is an error of the package."""
    try:
        make()
    except gx.GraphcError:
        return False
    return True


def test_a_dim_that_binds_twice() -> None:
    B = gx.dim("B")
    exe = gx.compile(gx.input("x", (B, 2)).sum() + gx.input("y", (B,)).sum())
    with pytest.raises(gx.GraphcError, match=r"(?s)B.*\b[35]\b.*\b[35]\b"):
        exe.run(x=np.ones((3, 2), np.float32), y=np.ones(5, np.float32))
    assert exe.run(x=np.ones((3, 2), np.float32), y=np.ones(3, np.float32)) == 9


def test_a_dim_of_one_does_not_broadcast() -> None:
    B, C = gx.dim("B"), gx.dim("C")
    exe = gx.compile(gx.input("x", (B,)) + gx.input("y", (C,)))
    with pytest.raises(gx.GraphcError):
        exe.run(x=np.ones(1, np.float32), y=np.ones(5, np.float32))
    literal = gx.compile(gx.input("x", (1,)) + gx.input("y", (C,)))
    assert literal.run(x=np.ones(1, np.float32), y=np.ones(5, np.float32)).shape == (5,)


def test_negative_derived_extent() -> None:
    B = gx.dim("B")
    exe = gx.compile(gx.input("x", (B,))[3:])
    assert exe.run(x=np.arange(5, dtype=np.float32)).tolist() == [3, 4]
    with pytest.raises(gx.GraphcError):
        exe.run(x=np.arange(2, dtype=np.float32))
    assert exe.run(x=np.arange(3, dtype=np.float32)).shape == (0,)
