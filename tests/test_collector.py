"""The collector of cycles is paused while a network is compiled, and only then."""

import gc

import numpy as np
import pytest

import graphc as gx
from graphc.collector import paused_collector
from graphc.errors import ShapeError, UsageError


@pytest.fixture(autouse=True)
def as_before():
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("was_on", [True, False])
def test_it_is_on_afterwards_if_it_was_before(was_on):
    (gc.enable if was_on else gc.disable)()
    with paused_collector():
        assert not gc.isenabled()
    assert gc.isenabled() == was_on
    with pytest.raises(KeyError), paused_collector():
        raise KeyError
    assert gc.isenabled() == was_on


def test_lines_and_options_are_told_as_without_it():
    x = gx.input("x", (2, 4))
    w = gx.param("w", (4, 3))
    step = gx.compile(x, loss=(x @ w).sum(), optimizer=gx.optim.SGD())
    assert "test_collector.py:" in step.site
    assert "contextlib" not in step.dump("joint") + repr(step)
    with pytest.raises(UsageError, match="did you mean 'loss'"):
        gx.compile(x, los=x)


def test_compiling_pauses_it():
    seen = []

    def initial(rng, shape):
        seen.append(gc.isenabled())
        return np.zeros(shape)

    gc.enable()
    gx.compile(gx.input("x", (2, 4)) @ gx.param("w", (4, 3), init=initial))
    assert seen == [False] and gc.isenabled()
    wrong = gx.param("v", (4, 3), init=lambda rng, shape: np.zeros((2, 2)))
    with pytest.raises(ShapeError):
        gx.compile(gx.input("x", (2, 4)) @ wrong)
    assert gc.isenabled()
