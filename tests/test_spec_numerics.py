"""dtypes, promotion, integers at their edges, NaN and infinity: native results against numpy's."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from spec_support import random

import graphc as gx

DTYPES = ("float32", "float64", "int32", "int64", "uint8", "bool")
BACKENDS = ("native", "numpy")

# PyTorch's torch.promote_types, written out: rows and columns in the order of DTYPES.
PROMOTED = {
    "float32": ("float32", "float64", "float32", "float32", "float32", "float32"),
    "float64": ("float64", "float64", "float64", "float64", "float64", "float64"),
    "int32": ("float32", "float64", "int32", "int64", "int32", "int32"),
    "int64": ("float32", "float64", "int64", "int64", "int64", "int64"),
    "uint8": ("float32", "float64", "int32", "int64", "uint8", "uint8"),
    "bool": ("float32", "float64", "int32", "int64", "uint8", "bool"),
}


def run(function: Any, *arrays: np.ndarray, backend: Any = "native") -> Any:
    """The results of a function of tensors on arrays."""
    tensors = [gx.input(f"i{n}", a.shape, a.dtype.name) for n, a in enumerate(arrays)]
    with np.errstate(all="ignore"):
        return gx.compile(function(*tensors), backend=backend).run({f"i{n}": a for n, a in enumerate(arrays)})


def same(got: np.ndarray, expected: Any) -> None:
    """Equal in dtype, shape and every value, NaN being equal to NaN and -0 differing from 0."""
    expected = np.asarray(expected)
    assert got.dtype == expected.dtype and got.shape == expected.shape, (got.dtype, expected.dtype)
    np.testing.assert_array_equal(got, expected)
    if got.dtype.kind == "f":
        number = ~np.isnan(expected)
        assert (np.signbit(got) == np.signbit(expected))[number].all(), (got, expected)


# ----------------------------------------------------------------------------------------- promotion


def test_promotion_of_every_pair() -> None:
    tensors = {name: gx.input(name, (3,), name) for name in DTYPES}
    outputs, expected = {}, {}
    for left in DTYPES:
        for right, promoted in zip(DTYPES, PROMOTED[left], strict=True):
            if left == right == "bool":
                continue
            for name, act in (("mul", operator.mul), ("max", gx.maximum)):
                key = f"{name}_{left}_{right}"
                outputs[key] = act(tensors[left], tensors[right])
                expected[key] = promoted
            quotient = tensors[left] / tensors[right]
            outputs[f"div_{left}_{right}"] = quotient
            expected[f"div_{left}_{right}"] = promoted if promoted.startswith("float") else "float32"
    assert {k: str(v.dtype) for k, v in outputs.items()} == expected
    feeds = {name: np.array([1, 0, 1]).astype(name) for name in DTYPES}
    with np.errstate(all="ignore"):
        results = gx.compile(outputs).run(feeds)
        for key, value in results.items():
            assert value.dtype.name == expected[key], key
            act, left, right = key.split("_")
            a, b = feeds[left].astype(expected[key]), feeds[right].astype(expected[key])
            np.testing.assert_array_equal(
                value, {"mul": a * b, "max": np.maximum(a, b), "div": a / b}[act], key
            )


@pytest.mark.parametrize("name", DTYPES)
def test_python_scalars_are_weak(name: str) -> None:
    x = gx.input("x", (2,), name)
    is_float = name.startswith("float")
    assert str((x + 1).dtype) == ("int64" if name == "bool" else name)
    assert str((x * 2.5).dtype) == (name if is_float else "float32")
    assert str((1 - x).dtype if name != "bool" else (1 * x).dtype) == ("int64" if name == "bool" else name)
    assert str((x > 0.5).dtype) == "bool"
    assert str(x.sum().dtype) == (name if is_float else "int64")
    assert str(x.mean().dtype) == (name if is_float else "float32")


def test_numpy_scalars_and_arrays_are_not_weak() -> None:
    x = gx.input("x", (2,), "int32")
    assert str((x * np.ones(2, np.float32)).dtype) == "float32"  # numpy would say float64
    assert str((gx.input("y", (2,)) * np.ones(2)).dtype) == "float64"


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_of_every_dtype(name: str, backend: Any) -> None:
    data = (np.arange(24).reshape(2, 3, 4) % 5).astype(name)
    x = gx.input("x", (2, 3, 4), name)
    out = gx.compile(
        [x, x.transpose(2, 0, 1), x[:, 1], x.reshape(6, 4), gx.where(x == 1, x, x)], backend=backend
    )
    for got, expected in zip(
        out.run(x=data), [data, data.transpose(2, 0, 1), data[:, 1], data.reshape(6, 4), data], strict=True
    ):
        same(got, expected)
        assert got.flags.c_contiguous and got.flags.writeable and got.flags.aligned


@pytest.mark.parametrize("source", DTYPES)
def test_casts_between_all_pairs(source: str) -> None:
    values = {"bool": [True, False], "uint8": [0, 1, 255]}.get(source, [0, 1, 2, 100, 3])
    data = np.array(values).astype(source)
    x = gx.input("x", data.shape, source)
    for target, got in zip(DTYPES, gx.compile([x.cast(t) for t in DTYPES]).run(x=data), strict=True):
        same(got, data.astype(target))


# ------------------------------------------------------------------------------------------ integers


@pytest.mark.parametrize("name", ["int32", "int64", "uint8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_wrap(name: str, backend: Any) -> None:
    info = np.iinfo(name)
    a = np.array([info.max, info.min, info.max, info.min, 3, 0, info.max // 2 + 1], name)
    b = np.array([1, 1, info.max, info.max, 200, 1, 2], name)
    with np.errstate(all="ignore"):
        expected = [a + b, a - b, a * b, -a, np.abs(a), a * a * a]
    got = run(lambda x, y: [x + y, x - y, x * y, -x, x.abs(), x * x * x], a, b, backend=backend)
    for one, two in zip(got, expected, strict=True):
        same(one, two)
    total = run(lambda x: x.sum(), np.full(3, np.iinfo(np.int64).max), backend=backend)
    assert total == np.iinfo(np.int64).max - 2


@pytest.mark.parametrize("name", ["int32", "int64", "uint8"])
def test_division_by_zero_and_of_the_least(name: str) -> None:
    info = np.iinfo(name)
    a = np.array([7, info.min, info.max, 0, info.min, 5, 9, 10], name)
    b = np.array([0, 0, 0, 0, info.max if info.min == 0 else -1, 3, 2, 4], name)
    results = {}
    for backend in ("native", "numpy", "python"):
        results[backend] = run(lambda x, y: [x // y, x % y, x / y], a, b, backend=backend)
    for quotient, remainder, ratio in results.values():
        assert quotient.dtype == remainder.dtype == a.dtype and ratio.dtype == np.float32
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(ratio, a.astype(np.float32) / b.astype(np.float32))
            np.testing.assert_array_equal(quotient[5:], (a // np.where(b == 0, 1, b))[5:])
            np.testing.assert_array_equal(quotient[:4], (a // b)[:4])  # numpy: division by zero is 0
            np.testing.assert_array_equal(remainder[:4], (a % b)[:4])
            np.testing.assert_array_equal(quotient[4], (a // b)[4])  # INT_MIN // -1 wraps
            np.testing.assert_array_equal(remainder[4], (a % b)[4])


@pytest.mark.parametrize("name", ["int32", "int64", "float32", "float64"])
def test_signs_of_floor_division_and_remainder(name: str) -> None:
    a = np.array([7, -7, 7, -7, 6, -6, 0, -1, 1], name)
    b = np.array([3, 3, -3, -3, 3, 3, -3, 5, -5], name)
    quotient, remainder = run(lambda x, y: [x // y, x % y], a, b)
    np.testing.assert_array_equal(quotient, a // b)
    np.testing.assert_array_equal(remainder, a % b)


@pytest.mark.parametrize("source", ["float32", "float64"])
def test_float_to_integer_saturates_everywhere_alike(source: str) -> None:
    data = np.array(
        [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 300.0, -1.0, -2.7, 2.7, 2**31, 2**63], source
    )
    expected = {}
    for target in ("int32", "int64", "uint8"):
        info = np.iinfo(target)
        wide = [
            0 if np.isnan(v) else info.max if v >= info.max else info.min if v <= info.min else int(v)
            for v in data
        ]
        expected[target] = np.array(wide, target)
    for backend in ("native", "numpy", "python"):
        for target, values in expected.items():
            same(run(lambda x, t=target: x.cast(t), data, backend=backend), values)
    same(run(lambda x: x.cast("bool"), data), data.astype(bool))


def test_narrowing_of_integers_wraps() -> None:
    data = np.array([2**31, -(2**31) - 1, 2**40 + 7, -1, 256, 511], np.int64)
    for target in ("int32", "uint8"):
        same(run(lambda x, t=target: x.cast(t), data), data.astype(target))


def test_int64_feed_for_an_int32_input() -> None:
    exe = gx.compile(gx.input("x", (2,), "int32") + 0)
    assert exe.run(x=np.array([1, -5], np.int64)).tolist() == [1, -5]
    with pytest.raises(gx.FeedError, match="x"):
        exe.run(x=np.array([1, 2**31], np.int64))


# ------------------------------------------------------------------------------------- NaN, infinity

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-42, -1e-42, 3.4e38]


def grid(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of special values."""
    values = np.array(SPECIAL, name)
    return np.repeat(values, len(values)), np.tile(values, len(values))


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_special_values_through_comparisons_and_arithmetic(name: str) -> None:
    a, b = grid(name)
    functions: list[Any] = [
        operator.eq,
        operator.ne,
        operator.lt,
        operator.le,
        operator.gt,
        operator.ge,
        operator.add,
        operator.sub,
        operator.mul,
        operator.truediv,
    ]
    got = run(lambda x, y: [f(x, y) for f in functions], a, b)
    with np.errstate(all="ignore"):
        for function, result in zip(functions, got, strict=True):
            same(result, function(a, b))
        greater, less = run(lambda x, y: [gx.maximum(x, y), gx.minimum(x, y)], a, b)
        np.testing.assert_array_equal(greater, np.maximum(a, b))
        np.testing.assert_array_equal(less, np.minimum(a, b))
        clipped, sign, isnan = run(lambda x: [x.clip(-0.5, 0.5), x.sign(), x.isnan()], a)
        same(clipped, np.clip(a, -0.5, 0.5).astype(name))
        np.testing.assert_array_equal(sign, np.sign(a))
        same(isnan, np.isnan(a))


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("place", [None, 0, 5, 17, 18])
def test_special_values_through_reductions(name: str, place: int | None) -> None:
    for value in (np.nan, np.inf, -np.inf):
        data = random(3, 6, 19, dtype=name)
        if place is not None:
            data[:, place] = value
            data[3, 0] = -value
        got = run(
            lambda x: [
                x.max(1),
                x.min(1),
                x.sum(1),
                x.prod(1),
                x.mean(1),
                x.argmax(1),
                x.argmin(1),
                x.max(),
                x.min(),
                x.max(0),
                x.sum(0),
                x.cumsum(1),
                (x > 0).any(1),
                (x > 0).all(0),
                (x > 0).sum(1),
            ],
            data,
        )
        with np.errstate(all="ignore"):
            exact = {
                0: data.max(1),
                1: data.min(1),
                5: data.argmax(1),
                6: data.argmin(1),
                7: data.max(),
                8: data.min(),
                9: data.max(0),
                12: (data > 0).any(1),
                13: (data > 0).all(0),
                14: (data > 0).sum(1),
            }
            close = {2: data.sum(1), 3: data.prod(1), 4: data.mean(1), 10: data.sum(0), 11: data.cumsum(1)}
        for index, expected in exact.items():
            np.testing.assert_array_equal(got[index], expected, err_msg=str((index, value)))
        for index, expected in close.items():
            np.testing.assert_allclose(
                got[index], expected, rtol=1e-4, atol=1e-5, err_msg=str((index, value))
            )


def test_special_values_through_functions() -> None:
    for name in ("float32", "float64"):
        x = np.array(SPECIAL, name)
        with np.errstate(all="ignore"):
            expected = {
                "exp": np.exp(x),
                "log": np.log(x),
                "tanh": np.tanh(x),
                "sqrt": np.sqrt(x),
                "expm1": np.expm1(x),
                "log1p": np.log1p(x),
                "sin": np.sin(x),
                "cos": np.cos(x),
                "floor": np.floor(x),
                "abs": np.abs(x),
                "sigmoid": 1 / (1 + np.exp(-x)),
                "relu": np.maximum(x, 0),
                "square": x * x,
                "reciprocal": 1 / x,
            }
        skip = np.abs(x) < 1e37 if name == "float32" else np.ones(len(x), bool)  # the range of sin and cos
        for key, want in expected.items():
            got = run(lambda v, k=key: getattr(v, k)(), x)
            where = skip | ~np.isfinite(x) if key in ("sin", "cos") else np.ones(len(x), bool)
            np.testing.assert_allclose(
                got[where], want[where], rtol=1e-5, atol=1e-45, err_msg=f"{key} {name}"
            )


def test_softmax_and_its_loss_on_large_values() -> None:
    data = np.array([[1e4, 0, -1e4], [-np.inf, 0, 0], [88, 89, 90], [1e30, 1e30, -1e30]], np.float32)
    probability, logs = run(lambda x: [x.softmax(), x.logsumexp(1)], data)
    np.testing.assert_allclose(probability, [[1, 0, 0], [0, 0.5, 0.5], probability[2], [0.5, 0.5, 0]])
    assert np.isfinite(logs).all() and probability[2].sum() == pytest.approx(1)


# -------------------------------------------------------------------------------------------- ties


def gradient(function: Any, value: Any) -> np.ndarray:
    """The gradient of a scalar function at a point."""
    w = gx.param("w", np.shape(value), init=np.array(value, np.float64), dtype="float64")
    loss = function(w)
    exe = gx.compile(loss, loss=loss)
    exe.run()
    return exe.grads["w"].copy()


def test_ties_share_the_gradient() -> None:
    third = 1 / 3
    assert gradient(lambda w: w.max(), [2.0, 1, 2, 2]).tolist() == [third, 0, third, third]
    assert gradient(lambda w: w.min(), [1.0, 1, 2, 2]).tolist() == [0.5, 0.5, 0, 0]
    assert gradient(
        lambda w: (w.max(1) * gx.constant(np.array([1.0, 2.0]))).sum(), [[1.0, 1], [0, 3]]
    ).tolist() == [
        [0.5, 0.5],
        [0, 2],
    ]
    fixed = gx.constant(np.array([1.0, 2.0, 3.0]))
    assert gradient(lambda w: gx.maximum(w, fixed).sum(), [1.0, 5, 0]).tolist() == [0.5, 1, 0]
    assert gradient(lambda w: gx.minimum(w, fixed).sum(), [1.0, 5, 0]).tolist() == [0.5, 0, 1]
    assert gradient(lambda w: gx.maximum(w, w).sum(), [1.0, 5]).tolist() == [1, 1]
    assert gradient(lambda w: w.relu().sum(), [0.0, -1, 1]).tolist() == [0, 0, 1]
    assert gradient(lambda w: w.abs().sum(), [0.0, -1, 1]).tolist() == [0, -1, 1]
    assert gradient(lambda w: w.clip(0.0, 1.0).sum(), [0.0, 1, 0.5, 2]).tolist() == [1, 1, 1, 0]
    assert gradient(lambda w: w.prod(), [0.0, 2, 3]).tolist() == [6, 0, 0]
    assert gradient(lambda w: w.prod(), [0.0, 0, 3]).tolist() == [0, 0, 0]


# -------------------------------------------------------------------------------------------- feeds


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("backend", ["native", "numpy", "python"])
def test_layouts_of_feeds(name: str, backend: Any) -> None:
    data = (np.arange(30).reshape(5, 6) % 7).astype(name)
    x = gx.input("x", (5, 6), name)
    exe = gx.compile([x, x.cast("int64").sum(0)], backend=backend)
    wide = np.zeros((10, 18), name)
    wide[::2, ::3] = data
    read_only = data.copy()
    read_only.flags.writeable = False
    row = data[:1]
    swapped = data.astype(data.dtype.newbyteorder())
    record = np.zeros((5, 6), [("pad", "u1"), ("v", name)])
    record["v"] = data
    layouts = {
        "strided": wide[::2, ::3],
        "Fortran": np.asfortranarray(data),
        "transposed": data.T.copy().T,
        "reversed": data[::-1, ::-1][::-1, ::-1],
        "read-only": read_only,
        "byte-swapped": swapped,
        "unaligned field": record["v"],
    }
    for what, value in layouts.items():
        kept = value.copy()
        first, sums = exe.run(x=value)
        same(first, data)
        assert sums.tolist() == data.astype(np.int64).sum(0).tolist(), what
        assert np.array_equal(kept, value)
    first, sums = exe.run(x=np.broadcast_to(row, (5, 6)))  # strides of zero
    assert (
        np.array_equal(first, np.repeat(row, 5, 0))
        and sums.tolist() == (5 * row[0].astype(np.int64)).tolist()
    )


# ---------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 300, 5), (64, 64, 64), (129, 17, 33), (3, 2000, 2)])
def test_products_within_the_bound_of_their_length(name: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = random(1, m, k, dtype=name), random(2, k, n, dtype=name)
    got = run(lambda x, y: x @ y, a, b)
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    bound = k * np.finfo(name).eps * (np.abs(a).astype(np.longdouble) @ np.abs(b).astype(np.longdouble))
    assert (np.abs(got - exact) <= bound).all()


def test_integer_products_are_exact() -> None:
    rng = np.random.default_rng(0)
    for name in ("int32", "int64"):
        a, b = (
            rng.integers(-1000, 1000, (13, 40)).astype(name),
            rng.integers(-1000, 1000, (40, 9)).astype(name),
        )
        same(run(lambda x, y: x @ y, a, b), a @ b)


def test_subnormals_are_kept() -> None:
    tiny = np.array([1e-40, -1e-42, 1.4e-45], np.float32)
    same(run(lambda x: x * 1.0 + 0.0, tiny), tiny)
    same(run(lambda x: x * 0.5, tiny), tiny * np.float32(0.5))
