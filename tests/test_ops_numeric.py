"""Elementwise ops: values against independent formulas, edge values, dtypes. Derivatives are in
test_ops_gradients.py.

The tables below list every elementwise op; one that is missing from them fails a test.
"""

import itertools
import math
import operator

import mpmath
import numpy as np
import pytest
from ops_support import apply, names_in, wrap

from graphc.errors import DeclarationError, DTypeError, ShapeError
from graphc.ir.graph import Graph, GraphBuilder
from graphc.ir.interpret import interpret
from graphc.ir.ops import OPS
from graphc.ir.types import DTYPES, TensorType, bool_, dim, float32, float64, int32, int64, uint8

NAN, INF = math.nan, math.inf
FLOAT64_EDGES = [0.0, -0.0, INF, -INF, NAN, 5e-324, -1e-310, 1.0, -1.0, 0.5, -2.5, 3.0, 30.0, -30.0, 1e300]
FLOAT32_EDGES = [0.0, -0.0, INF, -INF, NAN, 1e-45, -1e-40, 1.0, -1.0, 0.5, -2.5, 3.0, 30.0, -30.0, 3e38]


# ------------------------------------------------------------- elementwise: values by independent formulas


def high_precision(function):
    """A real function in 40 digits; NaN outside its domain."""

    def rounded(*xs):
        if any(math.isnan(x) for x in xs):
            return NAN
        with mpmath.workdps(40):
            value = function(*map(mpmath.mpf, xs))
            return NAN if isinstance(value, mpmath.mpc) else float(value)

    return rounded


def ieee_divide(x, y):
    if y != 0:
        return x / y
    return NAN if x == 0 or math.isnan(x) else math.copysign(INF, x) * math.copysign(1, y)


def ieee_power(x, y):
    try:
        return math.pow(x, y)
    except OverflowError:
        return -INF if x < 0 and y % 2 == 1 else INF
    except ValueError:  # a pole, or a negative number to a fractional power
        if x != 0:
            return NAN
        return math.copysign(INF, x) if y % 2 == 1 else INF


def nan_or(function):
    return lambda *xs: NAN if any(math.isnan(x) for x in xs) else function(*xs)


def rounding(function):
    return lambda x: x if math.isnan(x) or math.isinf(x) else math.copysign(float(function(x)), x)


def gelu_none(x):
    return NAN if x == -INF else INF if x == INF else x * high_precision(mpmath.ncdf)(x)


def gelu_tanh(x):
    inner = mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)
    return mpmath.nan if x == -INF else x / 2 * (1 + mpmath.tanh(inner))


def bce(x, t):
    if math.isinf(x) or math.isinf(t) or abs(x * t) > 1e300:
        return None  # left to the explicit cases below
    exact = max(mpmath.mpf(x), 0) - mpmath.mpf(x) * mpmath.mpf(t)
    return float(exact + mpmath.log1p(mpmath.exp(-abs(mpmath.mpf(x)))))


SELU = (1.6732632423543772, 1.0507009873554805)


def elu(alpha, scale):
    return lambda x: scale * (x if x > 0 else alpha * math.expm1(x))


# name -> (operands, formula, attrs). Formulas take and return Python floats; None leaves a point out.
FLOAT_FORMULAS = [
    ("add", 2, operator.add, {}),
    ("sub", 2, operator.sub, {}),
    ("mul", 2, operator.mul, {}),
    ("div", 2, ieee_divide, {}),
    ("floordiv", 2, lambda x, y: x // y if y else ieee_divide(x, y), {}),
    ("mod", 2, lambda x, y: x % y if y else NAN, {}),
    ("pow", 2, ieee_power, {}),
    ("maximum", 2, nan_or(lambda x, y: x if x >= y else y), {}),
    ("minimum", 2, nan_or(lambda x, y: x if x <= y else y), {}),
    ("add_n", 3, lambda x, y, z: (x + y) + z, {}),
    ("neg", 1, operator.neg, {}),
    ("abs", 1, abs, {}),
    ("sign", 1, nan_or(lambda x: float((x > 0) - (x < 0))), {}),
    ("floor", 1, lambda x: x if math.isinf(x) or math.isnan(x) or x == 0 else float(math.floor(x)), {}),
    ("ceil", 1, rounding(math.ceil), {}),
    ("round", 1, rounding(round), {}),
    ("trunc", 1, rounding(math.trunc), {}),
    ("square", 1, lambda x: x * x, {}),
    ("sqrt", 1, lambda x: math.sqrt(x) if x >= 0 else NAN, {}),
    ("rsqrt", 1, lambda x: ieee_divide(1.0, math.sqrt(x)) if x >= 0 else NAN, {}),
    ("reciprocal", 1, lambda x: ieee_divide(1.0, x), {}),
    ("exp", 1, high_precision(mpmath.exp), {}),
    ("expm1", 1, high_precision(mpmath.expm1), {}),
    ("log", 1, high_precision(mpmath.log), {}),
    ("log1p", 1, lambda x: -INF if x == -1 else high_precision(mpmath.log1p)(x), {}),
    ("sin", 1, high_precision(mpmath.sin), {}),
    ("cos", 1, high_precision(mpmath.cos), {}),
    ("tanh", 1, high_precision(mpmath.tanh), {}),
    ("sigmoid", 1, high_precision(lambda x: 1 / (1 + mpmath.exp(-x))), {}),
    ("erf", 1, high_precision(mpmath.erf), {}),
    ("relu", 1, lambda x: 0.0 if x <= 0 else x, {}),
    ("leaky_relu", 1, lambda x: x if x > 0 else 0.1 * x, {"slope": 0.1}),
    ("elu", 1, elu(0.7, 1.0), {"alpha": 0.7}),
    ("selu", 1, elu(*SELU), {}),
    ("gelu", 1, nan_or(gelu_none), {"approximate": "none"}),
    ("gelu", 1, high_precision(gelu_tanh), {"approximate": "tanh"}),
    ("silu", 1, nan_or(lambda x: ieee_divide(x, 1 + (math.exp(-x) if x > -700 else INF))), {}),
    ("softplus", 1, high_precision(lambda x: x if x > 800 else mpmath.log1p(mpmath.exp(x))), {}),
    ("clip", 1, nan_or(lambda x: min(max(x, -1.5), 2.0)), {"low": -1.5, "high": 2.0}),
    ("clip", 1, lambda x: 0.25 if x < 0.25 else x, {"low": 0.25, "high": None}),
    ("clip", 1, lambda x: x, {"low": None, "high": None}),
    ("bce_with_logits", 2, nan_or(bce), {}),
    ("stop_gradient", 1, lambda x: x, {}),
    ("copy", 1, lambda x: x, {"label": "update:w"}),
]
COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
LOGIC = {
    "logical_and": lambda x, y: x and y,
    "logical_or": lambda x, y: x or y,
    "logical_xor": lambda x, y: x is not y,
    "logical_not": lambda x: not x,
}
# Tested one by one below.
SPECIAL = {"select", "cast"}
# Signs of zero are compared for these; in the others a zero may have either sign.
SIGNED_ZERO = {"mul", "div", "neg", "abs", "sign", "floor", "ceil", "round", "trunc", "sqrt", "relu"}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "arity", "formula", "attrs"), FLOAT_FORMULAS)
def test_float_values_match_independent_formulas(name, arity, formula, attrs, dtype):
    rng = np.random.default_rng(1)
    edges = np.array(FLOAT64_EDGES if dtype == "float64" else FLOAT32_EDGES, dtype)
    if arity == 3:
        edges = edges[:8]
    points = np.array(list(itertools.product(edges, repeat=arity)), dtype).T
    points = np.concatenate([points, rng.normal(0, 3, (arity, 50)).astype(dtype)], axis=1)
    kept, expected = [], []
    for column in points.T:
        value = formula(*(float(v) for v in column))
        if value is not None:
            kept.append(column)
            expected.append(value)
    with np.errstate(over="ignore"):
        expected = np.array(expected, np.float64).astype(dtype)
    got = apply(name, *np.array(kept, dtype).T, **attrs)
    assert got.dtype == dtype
    limits = np.finfo(dtype)
    # Results rest on a few roundings; gelu and bce also on a difference of terms near 1 or near x.
    cancels = name in ("gelu", "bce_with_logits")
    np.testing.assert_allclose(
        got, expected, rtol=64 * limits.eps if name == "pow" or cancels else 8 * limits.eps,
        atol=(32 * limits.eps if cancels else 2 * limits.smallest_subnormal), equal_nan=True,
    )  # fmt: skip
    if name in SIGNED_ZERO:
        zero = expected == 0
        np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(expected[zero]))


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons_of_every_dtype(name, dtype):
    values = FLOAT32_EDGES if dtype.startswith("float") else [0, 1] if dtype == "bool" else [0, 1, 2, 100]
    points = np.array(list(itertools.product(np.array(values, dtype), repeat=2)), dtype).T
    got = apply(name, *points)
    assert got.dtype == bool
    assert got.tolist() == [COMPARISONS[name](*column) for column in points.T.tolist()]


@pytest.mark.parametrize("name", LOGIC)
def test_logic_truth_tables(name):
    rows = list(itertools.product([False, True], repeat=1 if name == "logical_not" else 2))
    got = apply(name, *np.array(rows).T)
    assert got.dtype == bool
    assert got.tolist() == [LOGIC[name](*row) for row in rows]


def integer_power(x, y):
    if y >= 0:
        return x**y
    return 1 if x == 1 else (1 if y % 2 == 0 else -1) if x == -1 else 0


INTEGER_FORMULAS = {
    "add": (2, operator.add, {}),
    "sub": (2, operator.sub, {}),
    "mul": (2, operator.mul, {}),
    "floordiv": (2, lambda x, y: x // y if y else 0, {}),
    "mod": (2, lambda x, y: x % y if y else 0, {}),
    "pow": (2, lambda x, y: integer_power(x, y) if abs(y) < 300 else None, {}),
    "maximum": (2, max, {}),
    "minimum": (2, min, {}),
    "neg": (1, operator.neg, {}),
    "abs": (1, abs, {}),
    "sign": (1, lambda x: (x > 0) - (x < 0), {}),
    "square": (1, lambda x: x * x, {}),
    "add_n": (3, lambda x, y, z: x + y + z, {}),
    "relu": (1, lambda x: max(x, 0), {}),
    "clip": (1, lambda x: min(max(x, 1), 6), {"low": 1, "high": 6}),
    "stop_gradient": (1, lambda x: x, {}),
    "copy": (1, lambda x: x, {"label": "update:w"}),
}


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
@pytest.mark.parametrize("name", INTEGER_FORMULAS)
def test_integers_wrap_and_division_by_zero_is_zero(name, dtype):
    arity, formula, attrs = INTEGER_FORMULAS[name]
    bounds = np.iinfo(dtype)
    values = [v for v in (0, 1, 2, 3, 7, -1, -2, -7, int(bounds.min), int(bounds.max)) if v >= bounds.min]
    rows = [row for row in itertools.product(sorted(set(values)), repeat=arity) if formula(*row) is not None]
    got = apply(name, *np.array(rows, dtype).T, **attrs)
    assert got.dtype == dtype
    assert got.tolist() == [wrap(formula(*row), dtype) for row in rows]


@pytest.mark.parametrize("dtype", DTYPES)
def test_select_chooses_and_keeps_nan_out_of_the_other_branch(dtype):
    x, y = np.array([1, 0, 1], dtype), np.array([0, 1, 1], dtype)
    got = apply("select", np.array([True, False, True]), x, y)
    assert got.dtype == dtype and got.tolist() == [x[0], y[1], x[2]]
    if dtype.startswith("float"):
        assert apply("select", np.array([True]), x[:1], np.full(1, NAN, dtype))[0] == 1


def test_cast_defines_what_numpy_leaves_undefined():
    values = np.array([NAN, INF, -INF, 1e30, -1e30, 2.9, -2.9, -0.0])
    top, bottom = 2**31 - 1, -(2**31)
    assert apply("cast", values, dtype=int32).tolist() == [0, top, bottom, top, bottom, 2, -2, 0]
    assert apply("cast", values, dtype=uint8).tolist() == [0, 255, 0, 255, 0, 2, 0, 0]
    assert apply("cast", values, dtype=int64).tolist()[:3] == [0, 2**63 - 1, -(2**63)]
    assert apply("cast", np.array([2**33 + 5]), dtype=int32).tolist() == [5]  # narrowing wraps
    assert apply("cast", np.array([0, 3]), dtype=bool_).tolist() == [False, True]
    assert apply("cast", values, dtype=bool_).tolist() == [True] * 7 + [False]
    assert apply("cast", np.array([True, False]), dtype=float32).dtype == np.float32
    assert apply("cast", np.array([1 / 3]), dtype=float32)[0] == np.float32(1 / 3)


def test_a_cast_to_float32_rounds_nothing_when_the_graph_is_run_in_float64():
    builder = GraphBuilder()
    out = builder("cast", builder("input", name="x", dtype=float64, shape=(1,)), dtype=float32)
    got = interpret(Graph({"out": out}), {"x": np.array([1 / 3])}, precision="float64")[0]["out"]
    assert got.dtype == np.float64 and got[0] == 1 / 3


def test_bce_with_logits_at_large_logits():
    x = np.array([1000.0, -1000.0, 1000.0, -1000.0, INF, -INF])
    t = np.array([1.0, 0.0, 0.0, 1.0, 0.5, 0.5])
    np.testing.assert_array_equal(apply("bce_with_logits", x, t)[:5], [0, 0, 1000, 1000, NAN])


@pytest.mark.parametrize("name", ["sin", "tanh", "erf", "expm1", "log1p"])
def test_odd_functions_keep_the_sign_of_zero(name):
    assert np.signbit(apply(name, np.array([-0.0, 0.0]))).tolist() == [True, False]


def test_nan_is_the_value_that_differs_from_itself():
    x = np.array([NAN, 1.0, INF])
    assert apply("ne", x, x).tolist() == [True, False, False]


# ------------------------------------------------------------------------------------ dtypes and shapes

NUMERIC = {"add", "sub", "mul", "floordiv", "mod", "pow", "neg", "abs", "square", "add_n", "sign", "relu",
           "clip"}  # fmt: skip
ANY = {"maximum", "minimum", "stop_gradient", "copy", "cast", "select", *COMPARISONS}


def accepted(name):
    if name in ANY:
        return set(DTYPES)
    if name in LOGIC:
        return {"bool"}
    return set(DTYPES) - {"bool"} if name in NUMERIC else {"float32", "float64"}


ATTRS = {name: attrs for name, _, _, attrs in FLOAT_FORMULAS} | {
    "cast": {"dtype": float32},
    "clip": {"low": 0, "high": 1},
}
ARITY = {name: arity for name, arity, _, _ in FLOAT_FORMULAS} | dict.fromkeys([*COMPARISONS, *LOGIC], 2)
ARITY |= {"logical_not": 1, "cast": 1, "select": 3}
ELEMENTWISE = sorted(name for name, op in OPS.items() if op.family == "elementwise")


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_dtype_rules(name):
    infer, attrs = OPS[name].infer, ATTRS.get(name, {})

    shape = (dim("N"), 3)

    def operands(dtype):
        types = [TensorType(DTYPES[dtype], shape)] * ARITY[name]
        return [TensorType(bool_, shape), *types[1:]] if name == "select" else types

    for dtype in DTYPES:
        if dtype in accepted(name):
            (result,) = infer(operands(dtype), attrs)
            expected = "bool" if name in COMPARISONS else "float32" if name == "cast" else dtype
            assert result == TensorType(DTYPES[expected], (dim("N"), 3))
        else:
            with pytest.raises(DTypeError, match=name):
                infer(operands(dtype), attrs)
    good = "bool" if name in LOGIC else "float32"
    if name != "add_n":
        with pytest.raises(ShapeError, match=f"{name} takes {ARITY[name]} operands"):
            infer([*operands(good), *operands(good)[:1]], attrs)
    if ARITY[name] > 1:
        for other in ((4, 3), (dim("N") + 1, 3), (3,)):
            with pytest.raises(ShapeError, match=name):
                infer([*operands(good)[:-1], TensorType(DTYPES[good], (5, 4) if other == (4, 3) else other)],
                      attrs)  # fmt: skip
        if name not in LOGIC:
            with pytest.raises(DTypeError, match=name):
                infer([*operands("float32")[:-1], TensorType(float64, (dim("N"), 3))], attrs)


def test_attributes_that_are_refused():
    x, n = np.zeros(2), np.zeros(2, np.uint8)
    with pytest.raises(DeclarationError, match="approximate"):
        apply("gelu", x, approximate="fast")
    for bound in (-1, 256, 0.5, NAN, INF):
        with pytest.raises((DTypeError, DeclarationError), match="clip"):
            apply("clip", n, low=bound, high=None)
    with pytest.raises(DTypeError, match="condition"):
        apply("select", n, n, n)
    with pytest.raises(ShapeError, match="at least one"):
        apply("add_n")


def test_every_elementwise_op_is_covered():
    covered = {name for name, *_ in FLOAT_FORMULAS} | set(COMPARISONS) | set(LOGIC) | SPECIAL
    assert covered == names_in("elementwise")
    assert NUMERIC | {"maximum", "minimum", "stop_gradient", "copy"} == set(INTEGER_FORMULAS)
    for name in covered:
        assert OPS[name].doc and OPS[name].scalar is not None
