"""Elementwise ops: arithmetic, comparisons, logic and mathematical functions.

All operands and the result have one shape (the DSL broadcasts first). Each op is one row: what it means,
the dtypes that it accepts, its scalar meaning over primitives, and its gradient.

    elementwise(name, doc, accepts, scalar, gradient)
    scalar(s, *operands, **attrs)                               `s` is a ScalarBuilder
    gradient(b, cotangent, output, *operands, **attrs)          one cotangent, or one for each operand

Every reference is the scalar meaning, evaluated with numpy. No gradient flows through an operand or a
result that is not a float. `activations.py` holds the ops that networks add to these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.ir.ops.base import Array, ArraySpec, Cotangents, Decompose, Infer, OpDef, Reference, Vjp, define
from graphc.ir.scalar import NumpyScalars
from graphc.ir.types import DType, Extent, TensorType, as_dtype, bool_, require_equal

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs, GraphBuilder, Node, Operand

Scalar = Callable[..., Any]
Gradient = Callable[..., Any]
Accepts = Callable[[DType], bool]


# ------------------------------------------------------------------------------- dtypes that ops accept


def any_dtype(dtype: DType) -> bool:
    """Every dtype."""
    return True


def numeric(dtype: DType) -> bool:
    """Floats and integers; arithmetic on bools is refused, since its meaning differs between libraries."""
    return not dtype.is_bool


def only_float(dtype: DType) -> bool:
    """float32 and float64."""
    return dtype.is_float


def only_bool(dtype: DType) -> bool:
    """bool."""
    return dtype.is_bool


# ------------------------------------------------------------------------------------------ making rows


def same_shape(types: Sequence[TensorType], context: str) -> tuple[Extent, ...]:
    """The common shape of operands; raises ShapeError where they provably differ."""
    if any(t.rank != types[0].rank for t in types):
        raise ShapeError(f"{context}: the operands {_listed(types)} have different ranks")
    shape = list(types[0].shape)
    for other in types[1:]:
        shape = [
            a if a == b else require_equal(a, b, f"{context} of {_listed(types)}")
            for a, b in zip(shape, other.shape, strict=True)
        ]
    return tuple(shape)


def same_dtype(types: Sequence[TensorType], accepts: Accepts, context: str) -> DType:
    """The common dtype of operands; raises DTypeError if they differ or it is not accepted."""
    dtype = types[0].dtype
    if any(t.dtype != dtype for t in types):
        raise DTypeError(f"{context}: the operands {_listed(types)} have different dtypes")
    if not accepts(dtype):
        raise DTypeError(f"{context} does not accept {dtype} (the operands are {_listed(types)})")
    return dtype


def require_arity(types: Sequence[TensorType], arity: int, context: str) -> None:
    """Raises ShapeError unless there are `arity` operands."""
    if len(types) != arity:
        raise ShapeError(f"{context} takes {arity} operands, not {len(types)}")


def elementwise(
    name: str,
    doc: str,
    accepts: Accepts,
    scalar: Scalar,
    gradient: Gradient | None = None,
    arity: int = 1,
    result: DType | None = None,
    infer: Infer | None = None,
    decompose: Decompose | None = None,
) -> OpDef:
    """Enters one row. `result` is the result's dtype where it is not that of the operands; `decompose` says
    what the op is made of where its gradient has parts in common with it."""

    def infer_same(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
        require_arity(types, arity, name)
        dtype = same_dtype(types, accepts, name)
        return [TensorType(result or dtype, same_shape(types, name))]

    return define(
        OpDef(
            name=name,
            family="elementwise",
            doc=doc,
            infer=infer or infer_same,
            reference=_reference(scalar),
            vjp=_vjp(gradient) if gradient else None,
            scalar=scalar,
            decompose=decompose,
        )
    )


def _reference(scalar: Scalar) -> Reference:
    def reference(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
        if "dtype" in attrs:
            # Floats that are declared narrower may be evaluated in float64.
            attrs = {**attrs, "dtype": as_dtype(results[0].dtype)}
        return [np.asarray(scalar(NumpyScalars(), *arrays, **attrs))]

    return reference


def _vjp(gradient: Gradient) -> Vjp:
    def vjp(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
        (cotangent,) = cotangents
        if cotangent is None or not node.types[0].dtype.is_float:
            return [None] * len(node.inputs)
        made = gradient(builder, cotangent, node.outputs[0], *node.inputs, **node.attrs)
        found: Sequence[Operand | None] = made if isinstance(made, list) else [made]
        return [c if x.dtype.is_float else None for c, x in zip(found, node.inputs, strict=True)]

    return vjp


def primitive(name: str) -> Scalar:
    """The scalar meaning that is one primitive."""
    return lambda s, *operands: s.prim(name, *operands)


def zero_like(b: GraphBuilder, x: Operand) -> Operand:
    """A tensor of zeros of the type of another."""
    return b.full_like(0, x)


def scaled(b: GraphBuilder, factor: float, x: Operand) -> Operand:
    """factor * x, elementwise."""
    return b("mul", x, b.full_like(factor, x))


def plus(b: GraphBuilder, x: Operand, constant: float) -> Operand:
    """x + constant, elementwise."""
    return b("add", x, b.full_like(constant, x))


def _listed(types: Sequence[TensorType]) -> str:
    return ", ".join(map(str, types))


# ------------------------------------------------------------------------------------------- arithmetic


def _pow_gradient(b: GraphBuilder, ct: Operand, out: Operand, x: Operand, y: Operand) -> list[Operand]:
    """d/dx = y * x^(y-1), d/dy = x^y * log(x). Both are 0, not NaN, in their removable cases at x = 0.

    The cases are kept out of `pow` and `log` rather than masked after: so second derivatives are finite.
    """
    zero = zero_like(b, x)
    x_is_zero = b("eq", x, zero)
    both_zero = b("logical_and", x_is_zero, b("eq", y, zero))
    exponent = b("select", both_zero, b.full_like(1, y), plus(b, y, -1))
    no_logarithm = b("logical_and", x_is_zero, b("ge", y, zero))
    logarithm = b("log", b("select", no_logarithm, b.full_like(1, x), x))
    return [b("mul", ct, b("mul", y, b("pow", x, exponent))), b("mul", ct, b("mul", out, logarithm))]


def _chosen(comparison: str) -> Gradient:
    """Gradient of maximum and minimum: to the chosen operand, half to each of two equal ones."""

    def gradient(b: GraphBuilder, ct: Operand, out: Operand, x: Operand, y: Operand) -> list[Operand]:
        tie, half, zero = b("eq", x, y), scaled(b, 0.5, ct), zero_like(b, ct)
        # Compared so that NaN counts as chosen.
        to_x = b("select", b(comparison, x, y), zero, b("select", tie, half, ct))
        to_y = b("select", b(comparison, y, x), zero, b("select", tie, half, ct))
        return [to_x, to_y]

    return gradient


elementwise("add", "x + y; integers wrap.", numeric, primitive("add"), lambda b, ct, out, x, y: [ct, ct], 2)
elementwise(
    "sub", "x - y; integers wrap.", numeric, primitive("sub"), lambda b, ct, out, x, y: [ct, b("neg", ct)], 2
)
elementwise(
    "mul", "x * y; integers wrap.", numeric, primitive("mul"),
    lambda b, ct, out, x, y: [b("mul", ct, y), b("mul", ct, x)], 2,
)  # fmt: skip
elementwise(
    "div", "x / y of floats, as IEEE: x / 0 is inf or NaN.", only_float, primitive("div"),
    lambda b, ct, out, x, y: [b("div", ct, y), b("neg", b("mul", ct, b("div", out, y)))], 2,
)  # fmt: skip
elementwise(
    "floordiv", "floor(x / y); an integer divided by 0 is 0, INT_MIN // -1 wraps. Gradient 0.",
    numeric, primitive("floordiv"), None, 2,
)  # fmt: skip
elementwise(
    "mod", "x - y * floor(x / y), with the sign of y; an integer modulo 0 is 0.", numeric, primitive("mod"),
    lambda b, ct, out, x, y: [ct, b("neg", b("mul", ct, b("floordiv", x, y)))], 2,
)  # fmt: skip
elementwise(
    "pow", "x ** y; an integer to a negative power is 0, unless x is 1 or -1.", numeric, primitive("pow"),
    _pow_gradient, 2,
)  # fmt: skip
elementwise(
    "maximum", "The larger of x and y; NaN if either is. Equal operands share the gradient.",
    any_dtype, primitive("maximum"), _chosen("lt"), 2,
)  # fmt: skip
elementwise(
    "minimum", "The smaller of x and y; NaN if either is. Equal operands share the gradient.",
    any_dtype, primitive("minimum"), _chosen("gt"), 2,
)  # fmt: skip
elementwise(
    "neg", "-x; unsigned integers wrap.", numeric, primitive("neg"), lambda b, ct, out, x: b("neg", ct)
)
elementwise(
    "abs", "|x|; the smallest integer stays. d/dx = sign(x), 0 at 0.", numeric, primitive("abs"),
    lambda b, ct, out, x: b("mul", ct, b("sign", x)),
)  # fmt: skip
elementwise(
    "square", "x * x.", numeric, lambda s, x: s.prim("mul", x, x),
    lambda b, ct, out, x: b("mul", ct, scaled(b, 2, x)),
)  # fmt: skip


def _infer_add_n(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    if not types:
        raise ShapeError("add_n needs at least one operand")
    return [TensorType(same_dtype(types, numeric, "add_n"), same_shape(types, "add_n"))]


def _add_n_scalar(s: Any, first: Any, *others: Any) -> Any:
    total = first
    for other in others:
        total = s.prim("add", total, other)
    return total


elementwise(
    "add_n", "The sum of n >= 1 operands, added from left to right.", numeric, _add_n_scalar,
    lambda b, ct, out, *operands: [ct] * len(operands), infer=_infer_add_n,
)  # fmt: skip


# ----------------------------------------------------------------------------------- sign and rounding


def _sign_scalar(s: Any, x: Any) -> Any:
    """x itself is left in the last case, so that NaN passes; -0.0 gives 0.0, as numpy's sign does."""
    zero = s.const(0, x)
    below = s.prim("select", s.prim("lt", x, zero), s.const(-1, x), x)
    above = s.prim("select", s.prim("gt", x, zero), s.const(1, x), below)
    return s.prim("select", s.prim("eq", x, zero), zero, above)


elementwise("sign", "-1, 0 or 1 (NaN for NaN). Gradient 0.", numeric, _sign_scalar)
elementwise("floor", "The largest integer <= x. Gradient 0.", only_float, primitive("floor"))
elementwise("ceil", "The smallest integer >= x. Gradient 0.", only_float, primitive("ceil"))
elementwise("round", "The nearest integer, halves to even. Gradient 0.", only_float, primitive("round"))
elementwise("trunc", "x without its fraction. Gradient 0.", only_float, primitive("trunc"))


# --------------------------------------------------------------------------------- comparisons and logic

for _name, _doc in {"eq": "x == y.", "ne": "x != y; true for NaN.", "lt": "x < y.", "le": "x <= y.",
                    "gt": "x > y.", "ge": "x >= y."}.items():  # fmt: skip
    elementwise(_name, f"{_doc} Gradient 0.", any_dtype, primitive(_name), None, 2, result=bool_)

elementwise("logical_and", "x and y, of bools.", only_bool, primitive("and"), None, 2)
elementwise("logical_or", "x or y, of bools.", only_bool, primitive("or"), None, 2)
elementwise("logical_xor", "Whether the bools x and y differ.", only_bool, primitive("ne"), None, 2)
elementwise("logical_not", "not x, of a bool.", only_bool, primitive("not"))


def _infer_select(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    require_arity(types, 3, "select")
    if not types[0].dtype.is_bool:
        raise DTypeError(f"select: the condition is {types[0]}, not bool")
    return [TensorType(same_dtype(types[1:], any_dtype, "select"), same_shape(types, "select"))]


elementwise(
    "select", "x where the condition holds, else y.", any_dtype, primitive("select"),
    lambda b, ct, out, condition, x, y: [
        None,
        b("select", condition, ct, zero_like(b, ct)),
        b("select", condition, zero_like(b, ct), ct),
    ],
    infer=_infer_select,
)  # fmt: skip


# ------------------------------------------------------------------------------- powers and exponentials

elementwise(
    "sqrt", "The square root; NaN below 0. d/dx = 1 / (2 sqrt(x)).", only_float, primitive("sqrt"),
    lambda b, ct, out, x: b("div", scaled(b, 0.5, ct), out),
)  # fmt: skip
elementwise(
    "rsqrt", "1 / sqrt(x). d/dx = -1/2 x^(-3/2).", only_float,
    lambda s, x: s.prim("div", s.const(1, x), s.prim("sqrt", x)),
    lambda b, ct, out, x: b("mul", ct, scaled(b, -0.5, b("mul", out, b("square", out)))),
)  # fmt: skip
elementwise(
    "reciprocal", "1 / x. d/dx = -1 / x^2.", only_float, lambda s, x: s.prim("div", s.const(1, x), x),
    lambda b, ct, out, x: b("neg", b("mul", ct, b("square", out))),
)  # fmt: skip
elementwise("exp", "e^x.", only_float, primitive("exp"), lambda b, ct, out, x: b("mul", ct, out))
elementwise(
    "expm1", "e^x - 1, accurate near 0.", only_float, primitive("expm1"),
    lambda b, ct, out, x: b("mul", ct, plus(b, out, 1)),
)  # fmt: skip
elementwise(
    "log", "The natural logarithm; -inf at 0, NaN below.", only_float, primitive("log"),
    lambda b, ct, out, x: b("div", ct, x),
)  # fmt: skip
elementwise(
    "log1p", "log(1 + x), accurate near 0.", only_float, primitive("log1p"),
    lambda b, ct, out, x: b("div", ct, plus(b, x, 1)),
)  # fmt: skip
elementwise(
    "sin", "The sine of x radians.", only_float, primitive("sin"),
    lambda b, ct, out, x: b("mul", ct, b("cos", x)),
)  # fmt: skip
elementwise(
    "cos", "The cosine of x radians.", only_float, primitive("cos"),
    lambda b, ct, out, x: b("neg", b("mul", ct, b("sin", x))),
)  # fmt: skip
elementwise(
    "erf", "2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.", only_float, primitive("erf"),
    lambda b, ct, out, x: b("mul", ct, scaled(b, 2 / math.sqrt(math.pi), b("exp", b("neg", b("square", x))))),
)  # fmt: skip


# --------------------------------------------------------------------------------- casts and identities


def _infer_cast(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    require_arity(types, 1, "cast")
    return [TensorType(attrs["dtype"], types[0].shape)]


elementwise(
    "cast", "x converted to `dtype`; float to integer truncates and saturates, NaN becomes 0.",
    any_dtype, lambda s, x, dtype: s.cast(x, dtype),
    lambda b, ct, out, x, dtype: b.cast(ct, x.dtype), infer=_infer_cast,
)  # fmt: skip
elementwise("stop_gradient", "x, through which no gradient flows.", any_dtype, lambda s, x: x)
elementwise(
    "copy", "x, in storage of its own. attrs: label, optional (copies with different labels stay apart); "
    "spacing, optional (elements left unused after each row, so that rows do not collide in cache); panel, "
    "optional (stored as panels of so many columns, each with all its rows in one stretch of memory).",
    any_dtype, lambda s, x, label="", spacing=0, panel=0: x,
    lambda b, ct, out, x, label="", spacing=0, panel=0: ct,
)  # fmt: skip
