"""Derivatives of elementwise, reduce, scan and composite ops, against finite differences in float64.

Both modes and second derivatives. An op that is in none of the tables below fails a test.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from ops_support import decomposed, feeds_of, inputs_of, names_in

from graphc.ir.autodiff import jvp, vjp
from graphc.ir.graph import Graph, GraphBuilder
from graphc.ir.interpret import interpret
from graphc.ir.ops import OPS
from graphc.ir.types import float64, int32

NAN, INF = math.nan, math.inf


# -------------------------------------------------------------------------------------------- derivatives


def away_from(*points):
    """Normal values that keep clear of points where a derivative jumps."""

    def draw(rng, shape):
        x = rng.normal(0, 1.5, shape)
        for point in points:
            x = np.where(abs(x - point) < 0.05, point + 0.1, x)
        return x

    return draw


def positive(rng, shape):
    return rng.uniform(0.3, 3.0, shape)


def distinct(rng, shape):
    """Values at least 0.1 apart, in random order."""
    return (rng.permutation(math.prod(shape)) * 0.1 - 0.7).reshape(shape)


def truth(rng, shape):
    return rng.integers(0, 2, shape).astype(bool)


def labels(rng, shape):
    return rng.integers(0, shape[-1], shape[:-1])


def with_zeros(rng, shape):
    return np.where(rng.uniform(size=shape) < 0.3, 0.0, rng.normal(size=shape))


@dataclass(frozen=True)
class Smooth:
    """How to draw operands at which an op is differentiable."""

    name: str
    operands: tuple = (away_from(),)
    attrs: dict = field(default_factory=dict)
    shapes: tuple = ((), (1,), (3, 5), (0, 2))


MATRIX = ((1, 1), (3, 5), (0, 3), (2, 7))
ANYWHERE, NOT_ZERO = away_from(), away_from(0)
SMOOTH = [
    *(Smooth(name, (ANYWHERE, ANYWHERE)) for name in ("add", "sub", "mul", "bce_with_logits")),
    *(Smooth(name) for name in ("neg", "square", "exp", "expm1", "sin", "cos", "erf", "tanh", "sigmoid",
                                "silu", "softplus")),
    *(Smooth(name, (positive,)) for name in ("sqrt", "rsqrt", "log", "log1p")),
    *(Smooth(name, (NOT_ZERO,)) for name in ("abs", "relu", "selu", "reciprocal")),
    Smooth("div", (ANYWHERE, positive)),
    Smooth("mod", (lambda rng, shape: rng.integers(-3, 3, shape) * 2.0 + 0.9, lambda rng, shape:
                   np.full(shape, 2.0))),
    Smooth("pow", (positive, ANYWHERE)),
    Smooth("maximum", (distinct, lambda rng, shape: distinct(rng, shape) + 0.05)),
    Smooth("minimum", (distinct, lambda rng, shape: distinct(rng, shape) + 0.05)),
    Smooth("add_n", (ANYWHERE,) * 4),
    Smooth("select", (truth, ANYWHERE, ANYWHERE)),
    Smooth("cast", attrs={"dtype": float64}),
    Smooth("copy", attrs={"label": "update:w"}),
    Smooth("leaky_relu", (NOT_ZERO,), {"slope": 0.1}),
    Smooth("elu", (NOT_ZERO,), {"alpha": 0.7}),
    Smooth("gelu", attrs={"approximate": "none"}),
    Smooth("gelu", attrs={"approximate": "tanh"}),
    Smooth("clip", (away_from(-1, 0.5),), {"low": -1.0, "high": 0.5}),
    Smooth("clip", (away_from(0.5),), {"low": None, "high": 0.5}),
    Smooth("clip", (ANYWHERE,), {"low": None, "high": None}),
    *(Smooth(name, (draw,), {"axes": axes}, shapes)
      for name, draw in (("reduce_sum", ANYWHERE), ("reduce_prod", ANYWHERE), ("reduce_prod", with_zeros),
                         ("reduce_max", distinct), ("reduce_min", distinct), ("logsumexp", ANYWHERE))
      for axes, shapes in (((1,), MATRIX), ((0, 2), ((3, 2, 4), (1, 0, 1))), ((), ((2,), (0,))))),
    *(Smooth("cumsum", attrs={"axis": axis, "reverse": axis == 1}, shapes=MATRIX) for axis in (0, 1)),
    *(Smooth(name, attrs={"axis": 1}, shapes=MATRIX) for name in ("softmax", "log_softmax")),
    Smooth("softmax", attrs={"axis": 0}, shapes=((3, 5), (4,))),
    Smooth("product_of_others", (with_zeros,), {"axis": 1}, MATRIX),
    Smooth("softmax_cross_entropy", (ANYWHERE, labels), shapes=MATRIX),
    Smooth("softmax_cross_entropy_dense", (ANYWHERE, positive), shapes=MATRIX),
]  # fmt: skip
WITHOUT_GRADIENT = {"floordiv", "sign", "floor", "ceil", "round", "trunc", "stop_gradient", "argmax",
                    "argmin", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor",
                    "logical_not"}  # fmt: skip


def moved(arrays, directions, step):
    return [a if d is None else a + step * d for a, d in zip(arrays, directions, strict=True)]


def projection(results, weights):
    return sum(float(np.sum(r * w)) for r, w in zip(results, weights, strict=True))


# Whole, and with every composite in op and derivatives taken apart.
FORMS = [
    *((case, "whole") for case in SMOOTH),
    *((case, "decomposed") for case in SMOOTH if case.name in names_in("composite") | {"reduce_prod"}),
]


@pytest.mark.parametrize(("case", "form"), FORMS, ids=lambda p: p if isinstance(p, str) else p.name)
def test_derivatives_match_finite_differences(case, form):
    """First derivatives by both modes, and the derivative of the reverse-mode gradient."""
    for seed, shape in enumerate(case.shapes):
        rng = np.random.default_rng([5, seed])
        arrays = [np.asarray(draw(rng, shape)) for draw in case.operands]
        smooth = [i for i, a in enumerate(arrays) if a.dtype == np.float64]
        directions = [rng.normal(size=a.shape) if i in smooth else None for i, a in enumerate(arrays)]
        builder = GraphBuilder()
        operands = inputs_of(builder, arrays)
        out = builder(case.name, *operands, **case.attrs)
        wrt = [operands[i] for i in smooth]
        extents = out.shape
        weight, weights = rng.normal(size=extents), [rng.normal(size=arrays[i].shape) for i in smooth]

        def constant(name, like, b=builder):
            return b("input", name=name, dtype=float64, shape=like.shape)

        gradients = vjp(builder, [out], [constant("w", out)], wrt, {})
        assert [g.type for g in gradients] == [x.type for x in wrt]
        tangents = [constant(f"d{i}", x) for i, x in enumerate(wrt)]
        (pushed,) = jvp(builder, [out], wrt, tangents, {})
        second = vjp(builder, gradients, [constant(f"v{i}", x) for i, x in enumerate(wrt)], wrt, {})
        named = {"out": out, "pushed": pushed}
        named |= {f"g{i}": g for i, g in enumerate(gradients)}
        named |= {f"h{i}": h for i, h in enumerate(second) if h is not None}
        graph = Graph(named) if form == "whole" else decomposed(Graph(named))
        steps = [directions[i] for i in smooth]
        fixed = {"w": weight} | {f"d{i}": d for i, d in enumerate(steps)}
        fixed |= {f"v{i}": v for i, v in enumerate(weights)}

        def evaluate(at, graph=graph, fixed=fixed):
            return interpret(graph, feeds_of(at) | fixed)[0]

        step = 1e-5
        here = evaluate(arrays)
        above, below = (evaluate(moved(arrays, directions, s)) for s in (step, -step))
        count = len(smooth)
        first = projection([(above["out"] - below["out"]) / (2 * step)], [weight])
        by_reverse = projection([here[f"g{i}"] for i in range(count)], steps)
        by_forward = projection([here["pushed"]], [weight])
        assert by_reverse == pytest.approx(first, rel=1e-6, abs=1e-6)
        assert by_forward == pytest.approx(by_reverse, rel=1e-10, abs=1e-10)
        change = [(above[f"g{i}"] - below[f"g{i}"]) / (2 * step) for i in range(count)]
        again = [here.get(f"h{i}", np.zeros(arrays[j].shape)) for i, j in enumerate(smooth)]
        assert projection(again, steps) == pytest.approx(projection(change, weights), rel=1e-5, abs=1e-5)


def gradients_of(name, *arrays, **attrs):
    """First derivatives with respect to the float operands (None for others), at a cotangent of ones."""
    builder = GraphBuilder()
    arrays = [np.asarray(a) for a in arrays]
    operands = inputs_of(builder, arrays)
    out = builder(name, *operands, **attrs)
    found = vjp(builder, [out], [builder.full_like(1.0, out)], operands, {})
    graph = Graph({str(i): g for i, g in enumerate(found) if g is not None})
    values = interpret(graph, feeds_of(arrays))[0]
    return [values.get(str(i)) for i in range(len(arrays))]


@pytest.mark.parametrize(
    ("name", "x", "expected", "attrs"),
    [
        ("abs", [-0.0, 0.0, -3.0, NAN], [0, 0, -1, NAN], {}),
        ("relu", [-1.0, -0.0, 0.0, 2.0, NAN], [0, 0, 0, 1, 1], {}),
        ("leaky_relu", [-1.0, 0.0, 2.0], [0.25, 0.25, 1], {"slope": 0.25}),
        ("elu", [0.0, 1e4, -1e4], [0.5, 1, 0], {"alpha": 0.5}),
        ("clip", [-2.0, -1.0, 0.0, 1.0, 2.0, NAN], [0, 1, 1, 1, 0, 0], {"low": -1.0, "high": 1.0}),
        ("gelu", [-INF, -1e200, 1e200, INF], [0, 0, 1, 1], {"approximate": "none"}),
        ("gelu", [-INF, -1e200, 1e200, INF], [0, 0, 1, 1], {"approximate": "tanh"}),
        ("softplus", [-1e4, 1e4], [0, 1], {}),
        ("sigmoid", [-1e4, 1e4], [0, 0], {}),
        ("tanh", [-1e4, 1e4, NAN], [0, 0, NAN], {}),
        ("reduce_max", [2.0, 1.0, 2.0], [0.5, 0, 0.5], {"axes": (0,)}),
        ("reduce_min", [1.0, 1.0, 1.0, 1.0], [0.25] * 4, {"axes": (0,)}),
        ("reduce_max", [1.0, NAN], [NAN, NAN], {"axes": (0,)}),
        ("reduce_prod", [0.0, 2.0, 3.0], [6, 0, 0], {"axes": (0,)}),
        ("reduce_prod", [0.0, 2.0, 0.0], [0, 0, 0], {"axes": (0,)}),
        ("softmax", [1.0, NAN], [NAN, NAN], {"axis": 0}),
    ],
)
def test_gradients_at_ties_kinks_and_limits(name, x, expected, attrs):
    (got,) = gradients_of(name, np.array(x), **attrs)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("name", "attrs"),
    [
        ("elu", {"alpha": 0.5}),
        ("selu", {}),
        ("gelu", {"approximate": "none"}),
        ("gelu", {"approximate": "tanh"}),
        ("softplus", {}),
        ("sigmoid", {}),
        ("tanh", {}),
    ],
)
def test_second_derivatives_vanish_far_from_zero(name, attrs):
    points = np.array([-1e4, 1e4])
    builder = GraphBuilder()
    (x,) = inputs_of(builder, [points])
    out = builder(name, x, **attrs)
    one = builder.full_like(1.0, x)
    (second,) = vjp(builder, vjp(builder, [out], [one], [x], {}), [one], [x], {})
    assert second is not None
    assert interpret(Graph({"h": second}), feeds_of([points]))[0]["h"].tolist() == [0, 0]


def test_equal_operands_share_and_nan_reaches_both():
    x, y = np.array([1.0, 2.0, NAN]), np.array([1.0, 3.0, 0.0])
    for name, expected in (("maximum", [[0.5, 0, 1], [0.5, 1, 1]]), ("minimum", [[0.5, 1, 1], [0.5, 0, 1]])):
        np.testing.assert_array_equal(gradients_of(name, x, y), expected)


def test_powers_have_finite_gradients_at_zero():
    x, y = np.array([0.0, 0.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0, 0.0])
    by_x, by_y = gradients_of("pow", x, y)
    np.testing.assert_array_equal(by_x, [0, 1, 0, 0])
    np.testing.assert_allclose(by_y, [0, 0, 0, math.log(2)])


def test_no_gradient_flows_through_integers():
    n, x, c = np.array([1, 2]), np.array([1.0, 2.0]), np.array([True, False])
    assert gradients_of("select", c, x, x)[0] is None
    builder = GraphBuilder()
    floats, integers = inputs_of(builder, [x, n])
    for node in (builder("add", integers, integers), builder("cast", floats, dtype=int32)):
        assert all(g is None for g in node.node.op.vjp(builder, node.node, [node]))
    widened = builder("cast", integers, dtype=float64)
    assert vjp(builder, [widened], [floats], [integers], {}) == [None]


@pytest.mark.parametrize("name", sorted(WITHOUT_GRADIENT))
def test_ops_without_a_gradient_give_none(name):
    op = OPS[name]
    assert op.vjp is None and op.jvp is None and not op.linearity and op.without_gradient == "zero"


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.name)
def test_derivatives_keep_float32(case):
    rng = np.random.default_rng(6)
    drawn = [np.asarray(draw(rng, case.shapes[-1])) for draw in case.operands]
    arrays = [a.astype(np.float32) if a.dtype == np.float64 else a for a in drawn]
    attrs = case.attrs
    for got, array in zip(gradients_of(case.name, *arrays, **attrs), arrays, strict=True):
        assert got is None if array.dtype != np.float32 else got.dtype == np.float32


def test_every_op_is_covered():
    ops = set().union(*map(names_in, ("elementwise", "reduce", "scan", "composite")))
    smooth = {case.name for case in SMOOTH}
    assert smooth == {name for name in ops if OPS[name].vjp is not None}
    assert ops - smooth == WITHOUT_GRADIENT
