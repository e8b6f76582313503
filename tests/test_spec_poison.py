"""A native run computes nothing in numpy: its functions may all be broken while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from spec_support import case_c_step, classifier_feeds, random, xand

import graphc as gx

# What a run needs of numpy is memory and its description; these compute.
COMPUTING = frozenset(
    """
    add subtract multiply divide true_divide floor_divide mod remainder fmod negative positive power
    float_power exp exp2 expm1 log log2 log10 log1p sqrt square reciprocal cbrt sin cos tan tanh
    sinh cosh arctan sign abs absolute fabs maximum minimum fmax fmin matmul dot vdot inner outer
    tensordot einsum sum mean prod max min amax amin std var argmax argmin cumsum cumprod where clip
    take take_along_axis put concatenate stack vstack hstack transpose swapaxes sort argsort equal
    not_equal less less_equal greater greater_equal logical_and logical_or logical_not isnan isinf
    isfinite allclose floor ceil trunc rint round eye arange linspace tile repeat pad
    """.split()  # noqa: SIM905
)


class Poisoned(Exception):
    """Raised by a function that computes."""


@contextmanager
def poisoned_numpy() -> Iterator[list[str]]:
    """Replaces numpy's computing functions by ones that raise; yields the names that were called."""
    called: list[str] = []

    def poison(name: str) -> Any:
        def raises(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            raise Poisoned(name)

        return raises

    saved = {name: getattr(np, name) for name in COMPUTING if hasattr(np, name)}
    linear = {name: getattr(np.linalg, name) for name in ("norm", "inv", "solve")}
    core = np._core.umath if hasattr(np, "_core") else np.core.umath
    inner = {name: getattr(core, name) for name in COMPUTING if hasattr(core, name)}
    patched = [(np, saved), (np.linalg, linear), (core, inner)]
    for module, names in patched:
        for name in names:
            setattr(module, name, poison(name))
    try:
        yield called
    finally:
        for module, names in patched:
            for name, value in names.items():
                setattr(module, name, value)


def test_the_poison_works() -> None:
    data = np.ones(3)
    with poisoned_numpy() as called:
        for act in (lambda: np.add(data, data), lambda: np.matmul(data, data), lambda: np.sum(data)):
            with pytest.raises(Poisoned):
                act()
    assert len(called) == 3
    assert data.sum() == 3


class Watched(np.ndarray):
    """An array that notices when numpy computes with it, by whatever route."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        raise Poisoned(ufunc.__name__)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func.__name__ in (
            "may_share_memory",
            "shares_memory",
            "empty_like",
            "copyto",
            "can_cast",
            "result_type",
        ):
            return super().__array_function__(func, types, args, kwargs)
        raise Poisoned(func.__name__)


def watched(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.view(Watched) for name, value in feeds.items()}


def test_training_steps_run_with_numpy_poisoned() -> None:
    results = []
    for poison in (False, True):
        gx.seed(0)
        exe = case_c_step()
        batches = [classifier_feeds(size) for size in (64, 1000, 64)]
        losses = []
        if poison:
            with poisoned_numpy() as called:
                losses = [exe.run(feeds)["loss"] for feeds in batches]
            assert called == []
        else:
            losses = [exe.run(feeds)["loss"] for feeds in batches]
        results.append([np.asarray(loss).tobytes() for loss in losses])
        results[-1] += [value.tobytes() for value in exe.state_dict().values()]
    assert results[0] == results[1]


def test_feeds_are_only_read_natively() -> None:
    exe = case_c_step()
    feeds = watched(classifier_feeds(100))
    with pytest.raises(Poisoned):
        feeds["x"] + 1
    assert np.isfinite(float(exe.run(feeds)["loss"]))


@pytest.mark.parametrize(
    "optimizer", [gx.optim.Adam(lr=0.1), gx.optim.RMSProp(lr=lambda step: 0.1 / (1 + step))]
)
def test_other_optimizers_and_errors_run_with_numpy_poisoned(optimizer: Any) -> None:
    _, _, loss = xand()
    exe = gx.compile(loss, loss=loss, optimizer=optimizer)
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64)
    y = np.array([[1], [0], [0], [1]], np.float64)
    with poisoned_numpy() as called:
        for _ in range(3):
            exe.run(x=x, y=y)
        with pytest.raises(gx.GraphcError):
            exe.run(x=x)
    assert called == []


def test_many_ops_run_with_numpy_poisoned() -> None:
    x, i = gx.input("x", (gx.dim("B"), 12)), gx.input("i", (5,), dtype="int64")
    outputs = [
        x.softmax(),
        x.cumsum(1),
        x.max(0),
        x.argmax(1),
        gx.take(x, i, axis=1),
        gx.concat([x, x], 1),
        x.T @ x,
        x.reshape(-1),
        x.std(),
        gx.where(x > 0, x, 0.0),
        x.gelu(),
        gx.pad(x, ((1, 1), (0, 0))),
        x.flip(1),
        x.norm(),
    ]
    exe = gx.compile(outputs)
    data, index = random(0, 40, 12), np.array([0, 11, 3, 3, 7])
    expected = gx.compile(outputs, backend="numpy").run(x=data, i=index)
    with poisoned_numpy() as called:
        got = exe.run(x=data, i=index)
    assert called == []
    for position, (one, two) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5, err_msg=str(position))
