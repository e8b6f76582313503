"""Reductions, cumsum and composites: values against loops and definitions, edge values, dtypes.

The tables below list every op of these families; one that is missing from them fails a test.
"""

import math

import mpmath
import numpy as np
import pytest
from ops_support import apply, decomposed, feeds_of, inputs_of, names_in, wrap

from graphc.errors import DTypeError, ShapeError
from graphc.ir.autodiff import vjp
from graphc.ir.graph import Graph, GraphBuilder
from graphc.ir.interpret import interpret
from graphc.ir.ops import OPS
from graphc.ir.types import DTYPES, TensorType, bool_, dim, float32, float64, int32, int64

NAN, INF = math.nan, math.inf


# --------------------------------------------------------------------------------------------- reductions

REDUCE = {
    "reduce_sum": math.fsum,
    "reduce_prod": math.prod,
    "reduce_max": lambda v: NAN if any(e != e for e in v) else max(v),
    "reduce_min": lambda v: NAN if any(e != e for e in v) else min(v),
}
POSITION = {"argmax": lambda e: -e, "argmin": lambda e: e}
SHAPES = [((3, 5, 2), (1,)), ((3, 5, 2), (0, 2)), ((3, 5, 2), ()), ((1, 1), (0,)), ((7,), (0,)),
          ((4, 0), (0,)), ((2, 3, 1), (0, 1, 2))]  # fmt: skip


def slices_over(x, axes):
    """Position in the result -> the elements that it reduces, in plain Python."""
    groups = {}
    for index in np.ndindex(*x.shape):
        key = tuple(i for axis, i in enumerate(index) if axis not in axes)
        groups.setdefault(key, []).append(x[index].item())
    return groups


@pytest.mark.parametrize("name", REDUCE)
@pytest.mark.parametrize(("shape", "axes"), SHAPES)
def test_reductions_match_loops(name, shape, axes):
    x = np.random.default_rng(2).normal(size=shape)
    got = apply(name, x, axes=axes)
    assert got.shape == tuple(e for axis, e in enumerate(shape) if axis not in axes)
    for key, group in slices_over(x, axes).items():
        assert got[key] == pytest.approx(REDUCE[name](group), rel=1e-14)


@pytest.mark.parametrize("name", REDUCE)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_integer_reductions_keep_the_dtype_and_wrap(name, dtype):
    top = int(np.iinfo(dtype).max)
    x = np.array([[top, top, 3], [0, 1, 2]], dtype)
    got = apply(name, x, axes=(1,))
    function = {"reduce_sum": sum, "reduce_prod": math.prod, "reduce_max": max, "reduce_min": min}[name]
    assert got.dtype == dtype
    assert got.tolist() == [wrap(function(row), dtype) for row in x.tolist()]


def test_reductions_of_special_values():
    x = np.array([[1.0, NAN, INF], [1.0, -INF, INF], [-0.0, 0.0, 5e-324]])
    np.testing.assert_array_equal(apply("reduce_max", x, axes=(1,)), [NAN, INF, 5e-324])
    np.testing.assert_array_equal(apply("reduce_min", x, axes=(1,)), [NAN, -INF, 0])
    np.testing.assert_array_equal(apply("reduce_sum", x, axes=(1,)), [NAN, NAN, 5e-324])
    np.testing.assert_array_equal(apply("reduce_prod", x, axes=(1,)), [NAN, -INF, 0])
    bools = np.array([[True, False], [False, False]])
    assert apply("reduce_max", bools, axes=(1,)).tolist() == [True, False]
    assert apply("reduce_min", bools, axes=(0,)).tolist() == [False, False]


@pytest.mark.parametrize(
    ("name", "empty"), [("reduce_sum", 0), ("reduce_prod", 1), ("reduce_max", False), ("reduce_min", True)]
)
def test_reducing_an_empty_batch(name, empty):
    builder = GraphBuilder()
    x = builder("input", name="x0", dtype=float64, shape=(dim("N"), 2))
    graph = Graph({"out": builder(name, x, axes=(0,))})
    if name in ("reduce_max", "reduce_min"):
        with pytest.raises(ShapeError, match="empty axis"):
            interpret(graph, {"x0": np.zeros((0, 2))})
        with pytest.raises(ShapeError, match="empty axis"):
            apply(name, np.zeros((0, 2)), axes=(0,))
        assert apply(name, np.zeros((0, 2), bool), axes=(0,)).tolist() == [empty, empty]
    else:
        assert interpret(graph, {"x0": np.zeros((0, 2))})[0]["out"].tolist() == [empty, empty]
        assert apply(name, np.zeros((0, 2)), axes=(0,)).tolist() == [empty, empty]


@pytest.mark.parametrize("name", POSITION)
@pytest.mark.parametrize("dtype", DTYPES)
def test_positions_are_the_first_of_ties(name, dtype):
    x = np.random.default_rng(3).integers(0, 2 if dtype == "bool" else 4, (6, 5, 3)).astype(dtype)
    for axis in range(3):
        got = apply(name, x, axis=axis)
        assert got.dtype == np.int64
        for key, group in slices_over(x, (axis,)).items():
            assert got[key] == min(range(len(group)), key=lambda i: (POSITION[name](group[i]), i))


def test_position_of_nan_and_of_nothing():
    assert apply("argmax", np.array([1.0, NAN, INF, NAN]), axis=0) == 1
    assert apply("argmin", np.array([1.0, -INF, NAN]), axis=0) == 2
    with pytest.raises(ShapeError, match="empty axis"):
        apply("argmax", np.zeros((2, 0)), axis=1)
    builder = GraphBuilder()
    x = builder("input", name="x0", dtype=float64, shape=(2, dim("N")))
    graph = Graph({"out": builder("argmin", x, axis=1)})
    with pytest.raises(ShapeError, match="empty axis"):
        interpret(graph, {"x0": np.zeros((2, 0))})


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (0, 2), (2, 0)])
def test_cumsum_matches_a_loop(shape, reverse):
    x = np.random.default_rng(4).integers(0, 200, shape).astype(np.uint8)
    for axis in range(len(shape)):
        got = apply("cumsum", x, axis=axis, reverse=reverse)
        assert got.dtype == np.uint8 and got.shape == shape
        for index in np.ndindex(*shape):
            group = slices_over(x, (axis,))[tuple(i for at, i in enumerate(index) if at != axis)]
            part = group[index[axis] :] if reverse else group[: index[axis] + 1]
            assert got[index] == sum(part) % 256


@pytest.mark.parametrize("name", [*REDUCE, "cumsum", *POSITION])
def test_reductions_refuse_bad_axes_and_bools(name):
    x = np.zeros((2, 3))
    for axes in ((2,), (-1,), (1, 0), (0, 0)):
        attrs = {"axes": axes} if name in REDUCE else {"axis": axes[0], "reverse": False}
        if name in REDUCE or axes[0] in (2, -1):
            with pytest.raises(ShapeError, match=name):
                apply(name, x, **attrs)
    if name in ("reduce_sum", "reduce_prod", "cumsum"):
        with pytest.raises(DTypeError, match="cast it"):
            apply(name, x > 0, axes=(0,), axis=0, reverse=False)


# --------------------------------------------------------------------------------------------- composites

ROWS = {
    "plain": [[0.5, -1.0, 2.0], [3.0, 3.0, 3.0]],
    "large": [[1e4, 1e4 + 1, -1e4], [-3e38, -3e38, -3e38]],
    "spread": [[1e38, -1e38, 0.0], [700.0, -700.0, 0.0]],
}


def log_sum_exp(row):
    with mpmath.workdps(40):
        return mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(float(v))) for v in row))


def exact_composite(name, z, extra):
    """Values of one row by definition, in 40 digits."""
    with mpmath.workdps(40):
        lse = log_sum_exp(z) if max(z) < 1e5 and max(z) > -1e5 else mpmath.mpf(float(max(z)))
        if name == "logsumexp":
            return float(lse + (mpmath.log(sum(v == max(z) for v in z)) if abs(max(z)) > 1e5 else 0))
        ties = mpmath.log(sum(v == max(z) for v in z)) if abs(max(z)) > 1e5 else 0
        logs = [mpmath.mpf(float(v)) - lse - ties for v in z]
        if name == "softmax":
            return [float(mpmath.exp(v)) for v in logs]
        if name == "log_softmax":
            return [float(v) for v in logs]
        if name == "softmax_cross_entropy":
            return float(-logs[extra])
        return float(mpmath.fsum(-mpmath.mpf(float(t)) * v for t, v in zip(extra, logs, strict=True)))


COMPOSITES = {
    "softmax": {"axis": 1},
    "log_softmax": {"axis": 1},
    "logsumexp": {"axes": (1,)},
    "softmax_cross_entropy": {},
    "softmax_cross_entropy_dense": {},
}


def extra_operand(name, dtype):
    if name == "softmax_cross_entropy":
        return [np.array([2, 0], np.int32)]
    if name == "softmax_cross_entropy_dense":
        return [np.array([[0.2, 0.3, 0.5], [0.0, 2.0, 0.5]], dtype)]
    return []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_are_stable_whole_and_decomposed(name, rows, dtype):
    z, extra = np.array(ROWS[rows], dtype), extra_operand(name, dtype)
    expected = [
        exact_composite(name, row, *(operand[i] for operand in extra) if extra else [None])
        for i, row in enumerate(z)
    ]
    builder = GraphBuilder()
    graph = Graph({"out": builder(name, *inputs_of(builder, [z, *extra]), **COMPOSITES[name])})
    eps = np.finfo(dtype).eps
    for form in (graph, decomposed(graph)):
        got = interpret(form, feeds_of([z, *extra]))[0]["out"]
        assert got.dtype == dtype and np.isfinite(got).all()
        np.testing.assert_allclose(got, expected, rtol=8 * eps, atol=4 * eps)


def test_cross_entropy_of_large_logits_keeps_its_digits():
    z = np.array([[1e6, 1e6 - 1.0, 1e6 - 2.0]], np.float32)
    expected = math.log(1 + math.exp(-1) + math.exp(-2)) + 1
    got = apply("softmax_cross_entropy", z, np.array([1]))
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_rows_with_infinities_and_nan():
    z = np.array([[-INF, -INF], [INF, 0.0], [NAN, 0.0], [-INF, 1.0]])
    builder = GraphBuilder()
    (x,) = inputs_of(builder, [z])
    graph = Graph({"lse": builder("logsumexp", x, axes=(1,)), "p": builder("softmax", x, axis=1)})
    for form in (graph, decomposed(graph)):
        out = interpret(form, feeds_of([z]))[0]
        np.testing.assert_array_equal(out["lse"], [-INF, INF, NAN, 1.0])
        assert np.isnan(out["p"][2]).all()
        np.testing.assert_array_equal(out["p"][3], [0.0, 1.0])


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "softmax_cross_entropy_dense", "log_softmax"])
def test_forward_and_backward_share_one_exponential(name):
    z, extra = np.array(ROWS["plain"]), extra_operand(name, "float64")
    builder = GraphBuilder()
    operands = inputs_of(builder, [z, *extra])
    out = builder(name, *operands, **COMPOSITES[name])
    (gradient,) = vjp(builder, [out], [builder.full_like(1.0, out)], operands[:1], {})
    names = [node.name for node in decomposed(Graph({"out": out, "gradient": gradient})).nodes()]
    assert names.count("exp") == names.count("reduce_max") == 1


def test_labels_of_uint8_reach_past_255_classes():
    z = np.zeros((1, 300))
    builder = GraphBuilder()
    operands = inputs_of(builder, [z, np.array([7], np.uint8)])
    out = builder("softmax_cross_entropy", *operands)
    (gradient,) = vjp(builder, [out], [builder.full_like(1.0, out)], operands[:1], {})
    got = interpret(Graph({"g": gradient}), feeds_of([z, np.array([7], np.uint8)]))[0]["g"]
    assert np.flatnonzero(got < 0).tolist() == [7]


def test_product_of_others_matches_a_loop():
    for x in (
        np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 5.0], [1.5, -2.0, 4.0]]),
        np.zeros((2, 1)),
        np.zeros((2, 0)),
    ):
        builder = GraphBuilder()
        graph = Graph({"out": builder("product_of_others", *inputs_of(builder, [x]), axis=1)})
        for form in (graph, decomposed(graph)):
            got = interpret(form, feeds_of([x]))[0]["out"]
            for index in np.ndindex(*x.shape):
                row = [v for at, v in enumerate(x[index[0]].tolist()) if at != index[1]]
                assert got[index] == pytest.approx(math.prod(row))


@pytest.mark.parametrize("name", [*COMPOSITES, "product_of_others"])
def test_composites_refuse_what_does_not_fit(name):
    infer = OPS[name].infer
    z, attrs = TensorType(float32, (dim("N"), 3)), COMPOSITES.get(name, {"axis": 1})
    extra = {"softmax_cross_entropy": [TensorType(int64, (dim("N"),))], "softmax_cross_entropy_dense": [z]}
    others = extra.get(name, [])
    (result,) = infer([z, *others], attrs)
    assert result == TensorType(float32, (dim("N"), 3)[: result.rank])
    with pytest.raises(DTypeError, match=name):
        infer([TensorType(int32, z.shape), *others], attrs)
    if "cross_entropy" in name:
        for shape in ((dim("N") + 1,), (dim("N"), 3, 1)):
            with pytest.raises(ShapeError, match=name):
                infer([z, TensorType(others[0].dtype, shape)], attrs)
        with pytest.raises(ShapeError, match=name):
            infer([TensorType(float32, ()), *others], attrs)
        with pytest.raises(DTypeError, match=name):
            infer([z, TensorType(bool_, others[0].shape)], attrs)
    else:
        bad = {"axes": (2,)} if name == "logsumexp" else {"axis": 2}
        with pytest.raises(ShapeError, match=name):
            infer([z], bad)
    if name != "product_of_others":
        with pytest.raises(ShapeError, match="empty axis"):
            infer([TensorType(float32, (2, 0)), *([TensorType(others[0].dtype, (2, 0)[: others[0].rank])]
                                                   if others else [])], attrs)  # fmt: skip


def test_every_reduction_and_composite_is_covered():
    assert {*REDUCE, *POSITION} == names_in("reduce")
    assert names_in("scan") == {"cumsum"}
    assert {*COMPOSITES, "product_of_others"} == names_in("composite")
    for name in (*REDUCE, *POSITION, "cumsum", *COMPOSITES):
        assert OPS[name].doc and (OPS[name].decompose is not None) == (name in COMPOSITES)
