"""The scalar primitives: the only arithmetic that a backend has to know.

An elementwise op is written once, as a function of a `ScalarBuilder` and its operands, and is then
evaluated with numpy (`NumpyScalars`: folding, the graph interpreter, the kernel interpreter), or
traced into a kernel expression, from which code is emitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from graphc.ir.types import DType, bool_


@dataclass(frozen=True, slots=True)
class Primitive:
    """One scalar operation. `result` is "same" (as the last operand) or "bool"."""

    name: str
    arity: int
    result: str
    numpy: Callable[..., Any]
    symbol: str = ""  # infix spelling in printed kernels, if any


def _floor_divide(a: Any, b: Any) -> Any:
    """numpy's floor division; an integer divided by zero is 0, and INT_MIN // -1 wraps."""
    with np.errstate(all="ignore"):
        return np.floor_divide(a, b)


def _mod(a: Any, b: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.mod(a, b)


def _pow(a: Any, b: Any) -> Any:
    """Powers; an integer raised to a negative power is 0 unless the base is 1 or -1 (as PyTorch)."""
    with np.errstate(all="ignore"):
        if np.issubdtype(np.result_type(a), np.floating):
            return np.power(a, b)
        negative = np.less(b, 0)
        powers = np.power(a, np.where(negative, 0, b).astype(np.result_type(b)))
        odd = np.where(np.mod(b, 2) == 0, 1, -1)
        inverse = np.where(np.equal(a, 1), 1, np.where(np.equal(a, -1), odd, 0))
        return np.where(negative, inverse, powers).astype(np.result_type(a))


def _sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) without overflow on either side."""
    with np.errstate(all="ignore"):
        e = np.exp(-np.abs(x))
        return np.where(np.greater_equal(x, 0), 1 / (1 + e), e / (1 + e)).astype(np.result_type(x))


def _erf(x: Any) -> Any:
    from math import erf

    return np.vectorize(erf, otypes=[np.result_type(x)])(x)


_PRIMITIVES = (
    Primitive("add", 2, "same", np.add, "+"),
    Primitive("sub", 2, "same", np.subtract, "-"),
    Primitive("mul", 2, "same", np.multiply, "*"),
    Primitive("div", 2, "same", np.divide, "/"),
    Primitive("floordiv", 2, "same", _floor_divide),
    Primitive("mod", 2, "same", _mod),
    Primitive("pow", 2, "same", _pow),
    Primitive("maximum", 2, "same", np.maximum),
    Primitive("minimum", 2, "same", np.minimum),
    Primitive("neg", 1, "same", np.negative),
    Primitive("abs", 1, "same", np.abs),
    Primitive("floor", 1, "same", np.floor),
    Primitive("ceil", 1, "same", np.ceil),
    Primitive("round", 1, "same", np.rint),
    Primitive("trunc", 1, "same", np.trunc),
    Primitive("sqrt", 1, "same", np.sqrt),
    Primitive("exp", 1, "same", np.exp),
    Primitive("expm1", 1, "same", np.expm1),
    Primitive("log", 1, "same", np.log),
    Primitive("log1p", 1, "same", np.log1p),
    Primitive("sin", 1, "same", np.sin),
    Primitive("cos", 1, "same", np.cos),
    Primitive("tanh", 1, "same", np.tanh),
    Primitive("sigmoid", 1, "same", _sigmoid),
    Primitive("erf", 1, "same", _erf),
    Primitive("eq", 2, "bool", np.equal, "=="),
    Primitive("ne", 2, "bool", np.not_equal, "!="),
    Primitive("lt", 2, "bool", np.less, "<"),
    Primitive("le", 2, "bool", np.less_equal, "<="),
    Primitive("gt", 2, "bool", np.greater, ">"),
    Primitive("ge", 2, "bool", np.greater_equal, ">="),
    Primitive("and", 2, "bool", np.logical_and, "&"),
    Primitive("or", 2, "bool", np.logical_or, "|"),
    Primitive("not", 1, "bool", np.logical_not),
    Primitive("select", 3, "same", np.where),
)
PRIMITIVES: Mapping[str, Primitive] = {p.name: p for p in _PRIMITIVES}

# What a reduction or an accumulation starts from, and the primitive that combines.
COMBINES: Mapping[str, str] = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}


def combine_identity(combine: str, dtype: DType) -> float | int | bool:
    """The neutral element of sum, prod, max or min for a dtype."""
    if combine in ("sum", "prod"):
        one: float | int | bool = dtype.numpy.type(combine == "prod").item()
        return one
    if dtype.is_float:
        return float("-inf") if combine == "max" else float("inf")
    if dtype.is_bool:
        return combine == "min"
    bounds = np.iinfo(dtype.numpy)
    return int(bounds.min if combine == "max" else bounds.max)


def result_dtype(primitive: str, operands: tuple[DType, ...]) -> DType:
    """The dtype of a primitive applied to operands of these dtypes."""
    return bool_ if PRIMITIVES[primitive].result == "bool" else operands[-1]


class ScalarBuilder(Protocol):
    """What an elementwise op is written against. Values are opaque to the op."""

    def prim(self, name: str, *operands: Any) -> Any:
        """Applies a primitive."""

    def const(self, value: float | int | bool, like: Any) -> Any:
        """A constant of the dtype of another value."""

    def cast(self, value: Any, dtype: DType) -> Any:
        """Converts to a dtype (float to integer saturates, NaN becomes 0)."""


class NumpyScalars:
    """Evaluates scalar expressions on whole numpy arrays."""

    def prim(self, name: str, *operands: Any) -> Any:
        with np.errstate(all="ignore"):
            return PRIMITIVES[name].numpy(*operands)

    def const(self, value: float | int | bool, like: Any) -> Any:
        return np.asarray(value).astype(np.result_type(like))

    def cast(self, value: Any, dtype: DType) -> Any:
        return cast_array(np.asarray(value), dtype.numpy)


def cast_array(value: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """numpy's astype with its undefined cases defined: float to int saturates, NaN becomes 0."""
    if value.dtype.kind == "f" and dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        with np.errstate(all="ignore"):
            result = np.where(np.isnan(value), 0, value).astype(np.float64)
            # The bounds of int64 are not representable; compare in float and then set exactly.
            low, high = result <= float(bounds.min), result >= float(bounds.max)
            clipped = np.where(low | high, 0, result).astype(dtype)
        return np.where(low, bounds.min, np.where(high, bounds.max, clipped)).astype(dtype)
    with np.errstate(all="ignore"):
        return value.astype(dtype)
