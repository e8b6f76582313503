"""What tests of calls share: a small step, and the way of calling that skips native code."""

import numpy as np
import pytest

import graphc as gx
from graphc.codegen.cpython import native_calls
from graphc.executable import Executable

needs_native = pytest.mark.skipif(not native_calls(), reason="arrays lie otherwise in this interpreter")
X = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
T = np.array([1, 3, 0, 2], np.int32)


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
