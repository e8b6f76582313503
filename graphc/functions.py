"""`gx.*`: elementwise functions, comparisons, logic and selection, in numpy's spelling.

Every function takes tensors, arrays, lists and scalars (see `graphc.dsl` for promotion) and returns a
tensor. Functions defined on floats alone take integers and bools as float32 (numpy: float64).
Reductions and softmax are in `reductions.py`, products in `products.py`, what moves elements in
`shaping.py` and `indexing.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphc import dsl
from graphc.errors import DeclarationError, DTypeError
from graphc.ir.types import as_dtype, bool_, float32, promote
from graphc.sites import declares, located

if TYPE_CHECKING:
    from graphc.dsl import DTypeLike, Tensor, TensorLike


def as_float(x: TensorLike) -> Tensor:
    """The value as a float tensor: integers and bools become float32."""
    tensor = dsl.as_tensor(x)
    return tensor if tensor.dtype.is_float else dsl.fit(tensor, float32, tensor.shape)


def as_bool(x: TensorLike) -> Tensor:
    """The value as a bool tensor: whether it differs from zero, as numpy's logic reads it."""
    tensor = dsl.as_tensor(x)
    return tensor if tensor.dtype.is_bool else dsl.apply("ne", *dsl.unify(tensor, 0))


def _binary(op: str, x: TensorLike, y: TensorLike) -> Tensor:
    return dsl.apply(op, *dsl.unify(x, y))


# -------------------------------------------------------------------------------------------- arithmetic


@declares
def add(x: TensorLike, y: TensorLike) -> Tensor:
    """x + y."""
    return _binary("add", x, y)


@declares
def subtract(x: TensorLike, y: TensorLike) -> Tensor:
    """x - y."""
    return _binary("sub", x, y)


@declares
def multiply(x: TensorLike, y: TensorLike) -> Tensor:
    """x * y."""
    return _binary("mul", x, y)


@declares
def divide(x: TensorLike, y: TensorLike) -> Tensor:
    """x / y in floats; integers are divided as float32 (numpy: float64)."""
    a, b = dsl.unify(x, y)
    return dsl.apply("div", as_float(a), as_float(b))


@declares
def floor_divide(x: TensorLike, y: TensorLike) -> Tensor:
    """floor(x / y); an integer divided by zero is 0. Its gradient is zero."""
    return _binary("floordiv", x, y)


@declares
def mod(x: TensorLike, y: TensorLike) -> Tensor:
    """The remainder of floor division, with the sign of y, as numpy's `%`."""
    return _binary("mod", x, y)


@declares
def power(x: TensorLike, y: TensorLike) -> Tensor:
    """x ** y. Small constant exponents become products, 0.5 a sqrt; others pow (NaN for x < 0, y no integer).

    An integer to a negative power is 0 unless the base is 1 or -1 (PyTorch; numpy refuses).
    """
    if not dsl.is_weak(x) and dsl.is_weak(y):
        base = dsl.as_tensor(x)
        special = _constant_power(base if not isinstance(y, float) else as_float(base), float(y))  # type: ignore[arg-type]
        if special is not None:
            return special
    return _binary("pow", x, y)


def _constant_power(x: Tensor, exponent: float) -> Tensor | None:
    if x.dtype.is_bool:
        return None
    if exponent == 1:
        return x
    if exponent == 2:
        return square(x)
    if exponent == 3:
        return multiply(square(x), x)
    if exponent == 4:
        return square(square(x))
    if not x.dtype.is_float:
        return None
    if exponent == 0.5:
        return sqrt(x)
    if exponent == -1:
        return reciprocal(x)
    if exponent == -2:
        return reciprocal(square(x))
    return rsqrt(x) if exponent == -0.5 else None


@declares
def maximum(x: TensorLike, y: TensorLike) -> Tensor:
    """The larger of two; NaN if either is. Equal operands share the gradient half and half."""
    return _binary("maximum", x, y)


@declares
def minimum(x: TensorLike, y: TensorLike) -> Tensor:
    """The smaller of two; NaN if either is. Equal operands share the gradient half and half."""
    return _binary("minimum", x, y)


@declares
def negative(x: TensorLike) -> Tensor:
    """-x."""
    return dsl.apply("neg", dsl.as_tensor(x))


@declares
def absolute(x: TensorLike) -> Tensor:
    """|x|; its derivative at 0 is 0."""
    return dsl.apply("abs", dsl.as_tensor(x))


@declares
def sign(x: TensorLike) -> Tensor:
    """-1, 0 or 1; NaN for NaN. Its gradient is zero."""
    return dsl.apply("sign", dsl.as_tensor(x))


@declares
def square(x: TensorLike) -> Tensor:
    """x * x."""
    return dsl.apply("square", dsl.as_tensor(x))


def _rounding(op: str, x: TensorLike) -> Tensor:
    tensor = dsl.as_tensor(x)
    return dsl.apply(op, tensor) if tensor.dtype.is_float else tensor


@declares
def floor(x: TensorLike) -> Tensor:
    """The largest integer <= x, in the dtype of x. Its gradient is zero."""
    return _rounding("floor", x)


@declares
def ceil(x: TensorLike) -> Tensor:
    """The smallest integer >= x, in the dtype of x. Its gradient is zero."""
    return _rounding("ceil", x)


@declares
def round(x: TensorLike) -> Tensor:
    """The nearest integer, ties to even, in the dtype of x. Its gradient is zero."""
    return _rounding("round", x)


@declares
def trunc(x: TensorLike) -> Tensor:
    """The integer part of x, in the dtype of x. Its gradient is zero."""
    return _rounding("trunc", x)


# ------------------------------------------------------------------------------------ functions of floats


@declares
def exp(x: TensorLike) -> Tensor:
    """e ** x."""
    return dsl.apply("exp", as_float(x))


@declares
def expm1(x: TensorLike) -> Tensor:
    """exp(x) - 1, accurate near 0."""
    return dsl.apply("expm1", as_float(x))


@declares
def log(x: TensorLike) -> Tensor:
    """The natural logarithm; -inf at 0, NaN below."""
    return dsl.apply("log", as_float(x))


@declares
def log1p(x: TensorLike) -> Tensor:
    """log(1 + x), accurate near 0."""
    return dsl.apply("log1p", as_float(x))


@declares
def sqrt(x: TensorLike) -> Tensor:
    """The square root; NaN below 0."""
    return dsl.apply("sqrt", as_float(x))


@declares
def rsqrt(x: TensorLike) -> Tensor:
    """1 / sqrt(x)."""
    return dsl.apply("rsqrt", as_float(x))


@declares
def reciprocal(x: TensorLike) -> Tensor:
    """1 / x."""
    return dsl.apply("reciprocal", as_float(x))


@declares
def sin(x: TensorLike) -> Tensor:
    """The sine of x in radians."""
    return dsl.apply("sin", as_float(x))


@declares
def cos(x: TensorLike) -> Tensor:
    """The cosine of x in radians."""
    return dsl.apply("cos", as_float(x))


@declares
def tanh(x: TensorLike) -> Tensor:
    """The hyperbolic tangent."""
    return dsl.apply("tanh", as_float(x))


@declares
def sigmoid(x: TensorLike) -> Tensor:
    """1 / (1 + exp(-x)), without overflow."""
    return dsl.apply("sigmoid", as_float(x))


@declares
def erf(x: TensorLike) -> Tensor:
    """The error function 2/sqrt(pi) * integral of exp(-t^2) from 0 to x."""
    return dsl.apply("erf", as_float(x))


@declares
def relu(x: TensorLike) -> Tensor:
    """max(x, 0); the derivative at 0 is 0, NaN propagates. Integers stay integers."""
    tensor = dsl.as_tensor(x)
    return dsl.apply("relu", tensor) if tensor.dtype.is_float else maximum(tensor, 0)


@declares
def leaky_relu(x: TensorLike, slope: float = 0.01) -> Tensor:
    """x where x > 0, else slope * x."""
    return dsl.apply("leaky_relu", as_float(x), slope=float(slope))


@declares
def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    return dsl.apply("elu", as_float(x), alpha=float(alpha))


@declares
def selu(x: TensorLike) -> Tensor:
    """The scaled elu of self-normalising networks (Klambauer et al. 2017)."""
    return dsl.apply("selu", as_float(x))


@declares
def gelu(x: TensorLike, approximate: str = "none") -> Tensor:
    """x * Phi(x) with the normal distribution Phi, exactly or by its "tanh" approximation."""
    return dsl.apply("gelu", as_float(x), approximate=approximate)


@declares
def silu(x: TensorLike) -> Tensor:
    """x * sigmoid(x)."""
    return dsl.apply("silu", as_float(x))


@declares
def softplus(x: TensorLike) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return dsl.apply("softplus", as_float(x))


@declares
def stop_gradient(x: TensorLike) -> Tensor:
    """The value as it is, through which no gradient flows."""
    return dsl.apply("stop_gradient", dsl.as_tensor(x))


@declares
def clip(x: TensorLike, low: TensorLike | None = None, high: TensorLike | None = None) -> Tensor:
    """The values limited to [low, high]; either bound may be left out. The gradient is 1 on the closed
    interval for scalar bounds; array bounds are `minimum(maximum(x, low), high)`, with its ties."""
    tensor = dsl.as_tensor(x)
    if low is None and high is None:
        raise DeclarationError("clip needs low, high or both")
    bounds = [b for b in (low, high) if b is not None]
    if all(dsl.is_weak(b) for b in bounds):
        dtype = tensor.dtype
        for bound in bounds:
            dtype = promote(dtype, dsl.scalar_dtype(bound, dtype))
        tensor = dsl.fit(tensor, dtype, tensor.shape)
        number: Any = float if dtype.is_float else int
        lower, upper = (None if b is None else number(b) for b in (low, high))
        if lower is not None and upper is not None and lower > upper:
            raise DeclarationError(f"the bounds {low} and {high} are the wrong way round")
        return dsl.apply("clip", tensor, low=lower, high=upper)
    result = tensor if low is None else maximum(tensor, low)
    return result if high is None else minimum(result, high)


@declares
def cast(x: TensorLike, dtype: DTypeLike) -> Tensor:
    """The values converted to a dtype. Float to integer truncates and saturates, NaN becomes 0."""
    tensor = dsl.as_tensor(x)
    return dsl.fit(tensor, as_dtype(dtype), tensor.shape)


# --------------------------------------------------------------------------- comparisons, logic, selection


@declares
def equal(x: TensorLike, y: TensorLike) -> Tensor:
    """x == y, a bool tensor. Comparisons have a zero gradient."""
    return _binary("eq", x, y)


@declares
def not_equal(x: TensorLike, y: TensorLike) -> Tensor:
    """x != y; true for NaN."""
    return _binary("ne", x, y)


@declares
def less(x: TensorLike, y: TensorLike) -> Tensor:
    """x < y."""
    return _binary("lt", x, y)


@declares
def less_equal(x: TensorLike, y: TensorLike) -> Tensor:
    """x <= y."""
    return _binary("le", x, y)


@declares
def greater(x: TensorLike, y: TensorLike) -> Tensor:
    """x > y."""
    return _binary("gt", x, y)


@declares
def greater_equal(x: TensorLike, y: TensorLike) -> Tensor:
    """x >= y."""
    return _binary("ge", x, y)


@declares
def logical_and(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether both differ from zero."""
    return dsl.apply("logical_and", *dsl.unify(as_bool(x), as_bool(y)))


@declares
def logical_or(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether either differs from zero."""
    return dsl.apply("logical_or", *dsl.unify(as_bool(x), as_bool(y)))


@declares
def logical_xor(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether exactly one differs from zero."""
    return dsl.apply("logical_xor", *dsl.unify(as_bool(x), as_bool(y)))


@declares
def logical_not(x: TensorLike) -> Tensor:
    """Whether the value is zero."""
    return dsl.apply("logical_not", as_bool(x))


_BOOLEAN = {"&": "logical_and", "|": "logical_or", "^": "logical_xor", "~": "logical_not"}


def boolean(symbol: str, *values: TensorLike) -> Tensor:
    """`&`, `|`, `^`, `~` of bools. Raises DTypeError for anything else: bitwise operators do not exist."""
    tensors = dsl.unify(*values)
    if any(tensor.dtype != bool_ for tensor in tensors):
        raise located(DTypeError("needs bool operands; compare first"), f"operator {symbol}", values)
    return dsl.apply(_BOOLEAN[symbol], *tensors)


@declares
def isnan(x: TensorLike) -> Tensor:
    """Whether the value is NaN."""
    tensor = dsl.as_tensor(x)
    return dsl.apply("ne", tensor, tensor)


@declares
def where(condition: TensorLike, x: TensorLike, y: TensorLike) -> Tensor:
    """x where the condition holds (differs from zero), else y. The side not taken gets a zero gradient."""
    chosen = as_bool(condition)
    a, b = dsl.unify(x, y)
    shape = dsl.broadcast_shapes(chosen, a, b)
    return dsl.apply("select", *(dsl.fit(t, t.dtype, shape) for t in (chosen, a, b)))
