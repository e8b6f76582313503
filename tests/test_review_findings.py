"""Miscompilations that reviews found, each in the smallest program that showed it."""

import numpy as np
import pytest

import graphc as gx
from graphc.codegen.builder import Function, Module
from graphc.codegen.kernels import KernelEmitter
from graphc.engine import NativeEngine
from graphc.errors import LoweringError
from graphc.ir.graph import Graph
from graphc.ir.kernels import Affine, Assign, Const, For, Kernel, Ref, Store, Temp, Var, prim
from graphc.ir.schedule import Machine
from graphc.ir.types import float32
from graphc.pipeline import Request, run_passes
from graphc.sites import origins_of


def logistic(x):
    return 1 / (1 + np.exp(-x))


def test_a_sweep_over_the_same_tensor_does_not_swallow_a_flipped_read():
    # x and y are read by both sweeps; the one that ends first (o0) reads `a` of the other back to front.
    n = 130
    x, y = gx.input("x", (n, n)), gx.input("y", (n, n))
    a = gx.tanh(gx.sigmoid(x - x.mean(axis=1, keepdims=True)) * y)
    executable = gx.compile((gx.sigmoid(gx.flip(a, 0)) * y, gx.tanh(y - x.mean(axis=0))))
    rng = np.random.default_rng(0)
    xs, ys = rng.normal(size=(2, n, n)).astype(np.float32)
    flipped, centred = executable.run(x=xs, y=ys)
    expected = np.tanh(logistic(xs - xs.mean(1, keepdims=True)) * ys)
    np.testing.assert_allclose(flipped, logistic(expected[::-1]) * ys, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(centred, np.tanh(ys - xs.mean(0)), rtol=1e-5, atol=1e-5)


def emitted(body):
    function = Function(Module(), "kernel", [])
    kernel = Kernel("k", "map", (), tuple(body))
    KernelEmitter(function, kernel, 256).body(kernel.body)


@pytest.mark.parametrize(("tile", "vector"), [(4, False), (1, True)])
def test_an_assignment_is_not_unrolled_into_one(tile, vector):
    double = Assign("v", prim("add", Ref("v", float32), Ref("v", float32)))
    body = [
        Var("v", float32, Const(1.0, float32)),
        For("i", 8, (double,), tile=tile, vector=vector),
    ]
    with pytest.raises(LoweringError, match="v"):
        emitted(body)


def test_a_local_array_is_not_shared_by_lanes():
    stored = Store("row", (Affine(),), Const(1.0, float32))
    lanes = For("i", 8, (Temp("row", float32, (3,)), stored), vector=True)
    emitted([lanes])  # one for each lane
    with pytest.raises(LoweringError, match="row"):
        emitted([For("r", 8, (lanes,), tile=4)])


def test_state_is_read_before_the_same_kernel_overwrites_it():
    # `decayed` reads p, but is inlined into a value that comes after the kernel's store to p.
    p = gx.param("p", (9,), init=np.arange(9.0), dtype="float64")
    q = gx.param("q", (9,), init=np.ones(9), dtype="float64")
    x = gx.input("x", (9,), dtype="float64")
    decayed = p + 0.5
    p_new, q_new = x * 3.0, gx.sigmoid(decayed) * (x * 3.0)
    operands = {"out": x.operand}
    updates = {p.operand.node.variable: p_new.operand, q.operand.node.variable: q_new.operand}
    graph = Graph(operands, updates, origins_of([*operands.values(), *updates.values()]))
    stages, _ = run_passes(graph, Request(None, None, None, Machine(32, 6, 2)))
    xs = np.linspace(-1.0, 1.0, 9)
    NativeEngine(stages.kernels).run({"x": xs}, {})
    np.testing.assert_allclose(p.operand.node.variable.array, xs * 3.0)
    np.testing.assert_allclose(q.operand.node.variable.array, logistic(np.arange(9.0) + 0.5) * xs * 3.0)


def test_what_a_sweep_reads_is_not_named_where_the_sweep_has_ended():
    # w / (v * v + 1) reads w, is summed over v's axis, and the sum updates w: named beside that store, the
    # quotient would be out of its loop.
    w = gx.param("w", (17, 1), init=np.arange(1.0, 18.0).reshape(17, 1), dtype="float64")
    v = gx.param("v", (17,), init=np.linspace(-1.0, 1.0, 17), dtype="float64")
    quotient = w / (gx.square(v) + 1.0)
    executable = gx.compile(
        v, loss=(quotient * quotient).mean() + (v * v).mean(), optimizer=gx.optim.Adagrad(lr=0.01, eps=0.01)
    )
    before = executable.params["w"].copy()
    divisor = executable.params["v"] ** 2 + 1.0
    gradient = (2.0 * before / divisor**2).sum(1, keepdims=True) / 17**2
    executable.run()
    np.testing.assert_allclose(
        executable.params["w"], before - 0.01 * gradient / (np.abs(gradient) + 0.01), rtol=1e-12
    )


def test_a_value_laid_out_in_panels_is_not_swept_over_by_rows():
    # A product of the gradient wants `scaled` in panels of its columns, the loss a sum over its rows.
    b = gx.dim("B")
    x = gx.input("x", (b, 16), dtype="float64")
    w = gx.param("w", (16,), init=np.linspace(-3.0, 3.0, 16), dtype="float64")
    scaled = gx.clip(w, -2.0, 2.0) * x
    product = gx.clip(scaled, -2.0, 2.0) @ gx.swapaxes(scaled, -1, -2)
    executable = gx.compile(product, loss=product.sum() + scaled.sum())
    xs = np.random.default_rng(3).normal(size=(13, 16))
    factor = np.clip(np.linspace(-3.0, 3.0, 16), -2.0, 2.0)
    right = factor * xs
    left = np.clip(right, -2.0, 2.0)
    np.testing.assert_allclose(executable.run(x=xs), left @ right.T, rtol=1e-12)
    by_scaled = (abs(right) <= 2.0) * right.sum(0) + left.sum(0) + 1.0
    inside = abs(np.linspace(-3.0, 3.0, 16)) <= 2.0
    gradient = (by_scaled * xs).sum(0) * inside
    np.testing.assert_allclose(executable.grads["w"], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("is_view", [False, True])
def test_data_stay_where_they_are_while_fit_uses_them(shuffle, is_view):
    # A schedule is asked between two spans of steps, whose native code has the addresses of the data.
    b = gx.dim("B")
    x = gx.input("x", (b, 8))
    y = x @ gx.param("w", (8, 4), init="normal")
    whole = np.ones((40000, 8), np.float32)
    refused = []

    def schedule(step):
        try:
            whole.resize((10, 8), refcheck=False)
        except ValueError as error:
            refused.append(error)
        return 0.01

    executable = gx.compile(y, loss=(y * y).mean(), optimizer=gx.optim.SGD(lr=schedule))
    data = whole[:] if is_view else whole
    executable.fit({"x": data}, batch_size=1000, shuffle=shuffle)
    assert len(refused) >= 40
    assert whole.shape == (40000, 8)
