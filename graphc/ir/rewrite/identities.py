"""Identities that hold for every value: signed zeros, infinities and NaN included.

Deliberately absent, since some float refutes them:

    x + 0.0 = x         -0.0 + 0.0 is 0.0           x * 0 = 0      inf * 0 is NaN, and so is NaN * 0
    0.0 - x = -x        0.0 - 0.0 is 0.0            x - x = 0      inf - inf is NaN
    x - (-0.0) = x      -0.0 + 0.0 is 0.0           x / x = 1      0 / 0 and inf / inf are NaN
    -(x - y) = y - x    -(1 - 1) is -0.0            x == x         NaN differs from itself
    not(x < y) = x >= y NaN                         x ** 0.5 = sqrt(x)   at -inf and -0.0
    (x * a) * b, (x + a) + b with constants a, b    one rounding is not two
    x / 3 = x * (1/3)                               1/3 is rounded (x / 4 = x * 0.25 is taken)

`ROUNDING` marks what is equal to the last few bits only: a sum of n equal terms is one product, a power
is a few products, and dividing a row by a square root is multiplying it by the root's reciprocal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.ops.base import Array
from graphc.ir.rewrite.rules import LocalRule, apply_rules, full_value
from graphc.ir.types import DType, Extent, TensorType

# A float result may differ by rounding, and be finite where adding up one by one was not.
IMPROVES_NUMERICS = True
ROUNDING = frozenset({"sum_of_broadcast", "sum_of_full", "small_powers", "div_by_broadcast_root"})


def identities(graph: Graph) -> Graph:
    """Applies `IDENTITIES` until nothing changes.

    Needs: a valid graph, after differentiation (stop_gradient goes). Guarantees: bitwise the same results,
    NaN payloads aside, but for the names in `ROUNDING`; no index check is lost.
    """
    return apply_rules(graph, IDENTITIES, "identities")


# ------------------------------------------------------------------------------------------- arithmetic


def _is(operand: Operand, value: float) -> bool:
    """Whether an operand repeats this value. Floats have two zeros, which differ; integers have one."""
    found = full_value(operand)
    if found is None or isinstance(found, bool):
        return False
    signs_agree = not operand.dtype.is_float or math.copysign(1, found) == math.copysign(1, value)
    return found == value and signs_agree


def _other(node: Node, value: float) -> Operand | None:
    """The operand beside a constant, on either side."""
    left, right = node.inputs
    if _is(right, value):
        return left
    return right if _is(left, value) else None


def _add_zero(b: GraphBuilder, node: Node) -> Operand | None:
    return _other(node, -0.0)


def _sub_zero(b: GraphBuilder, node: Node) -> Operand | None:
    return node.inputs[0] if _is(node.inputs[1], 0.0) else None


def _sub_from_zero(b: GraphBuilder, node: Node) -> Operand | None:
    return b("neg", node.inputs[1]) if _is(node.inputs[0], -0.0) else None


def _mul_one(b: GraphBuilder, node: Node) -> Operand | None:
    return _other(node, 1)


def _mul_minus_one(b: GraphBuilder, node: Node) -> Operand | None:
    x = _other(node, -1)
    return None if x is None else b("neg", x)


def _div_one(b: GraphBuilder, node: Node) -> Operand | None:
    return node.inputs[0] if _is(node.inputs[1], 1) else None


def _div_minus_one(b: GraphBuilder, node: Node) -> Operand | None:
    return b("neg", node.inputs[0]) if _is(node.inputs[1], -1) else None


def _div_by_power_of_two(b: GraphBuilder, node: Node) -> Operand | None:
    """x / 2^k = x * 2^-k: both round the same number, if 2^-k is one."""
    x, divisor = node.inputs
    value = full_value(divisor)
    if not value or abs(value) == 1 or abs(math.frexp(value)[0]) != 0.5:
        return None
    with np.errstate(over="ignore"):
        inverse = x.dtype.numpy.type(1 / value)
    return b("mul", x, b.full(inverse.item(), x.type)) if math.isfinite(inverse) and inverse else None


def _neg_of_neg(b: GraphBuilder, node: Node) -> Operand | None:
    return _under(node.inputs[0], "neg")


def _add_of_neg(b: GraphBuilder, node: Node) -> Operand | None:
    x, y = node.inputs
    under_x, under_y = _under(x, "neg"), _under(y, "neg")
    if under_y is not None:
        return b("sub", x, under_y)
    return None if under_x is None else b("sub", y, under_x)


def _sub_of_neg(b: GraphBuilder, node: Node) -> Operand | None:
    under = _under(node.inputs[1], "neg")
    return None if under is None else b("add", node.inputs[0], under)


def _mul_itself(b: GraphBuilder, node: Node) -> Operand | None:
    return b("square", node.inputs[0]) if node.inputs[0] == node.inputs[1] else None


def _even_of_neg(b: GraphBuilder, node: Node) -> Operand | None:
    """abs and square of -x and of |x|; but an unsigned -x is not as far from 0 as x."""
    inner = node.inputs[0].node
    if inner.name not in ("neg", "abs"):
        return None
    if inner.name == "neg" and node.name == "abs" and node.inputs[0].dtype.kind == "uint":
        return None
    return b(node.name, inner.inputs[0])


def _of_itself(b: GraphBuilder, node: Node) -> Operand | None:
    """maximum, minimum, and, or of one value twice."""
    return node.inputs[0] if node.inputs[0] == node.inputs[1] else None


def _idempotent(b: GraphBuilder, node: Node) -> Operand | None:
    """relu(relu(x)), floor(floor(x)), ..."""
    return node.inputs[0] if node.inputs[0].node.name == node.name else None


def _small_powers(b: GraphBuilder, node: Node) -> Operand | None:
    """x ** 0 is 1 (of NaN, too); 1 is x; 2, 3, 4 are products; -1 of a float is 1 / x."""
    x, exponent = node.inputs
    value = full_value(exponent)
    if value is None or value not in (0, 1, 2, 3, 4, -1) or (value == -1 and not x.dtype.is_float):
        return None
    if value == 0:
        return b.full_like(1, x)
    if value == -1:
        return b("reciprocal", x)
    if value == 1:
        return x
    squared = b("square", x)
    if value == 2:
        return squared
    return b("mul", squared, x) if value == 3 else b("square", squared)


def _add_n_of_one(b: GraphBuilder, node: Node) -> Operand | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


# ---------------------------------------------------------------------------------------- integers, bools


def _exact(rule: LocalRule) -> LocalRule:
    """The rule, for integers and bools alone."""

    def restricted(b: GraphBuilder, node: Node) -> Operand | None:
        return None if node.inputs[0].dtype.is_float else rule(b, node)

    return restricted


def _integer_mul_zero(b: GraphBuilder, node: Node) -> Operand | None:
    return None if _other(node, 0) is None else b.full(0, node.types[0])


def _integer_sub_itself(b: GraphBuilder, node: Node) -> Operand | None:
    return b.full(0, node.types[0]) if node.inputs[0] == node.inputs[1] else None


def _integer_by_one(b: GraphBuilder, node: Node) -> Operand | None:
    if not _is(node.inputs[1], 1):
        return None
    return node.inputs[0] if node.name == "floordiv" else b.full(0, node.types[0])


def _compared_with_itself(b: GraphBuilder, node: Node) -> Operand | None:
    if node.inputs[0] != node.inputs[1]:
        return None
    return b.full(node.name in ("eq", "le", "ge"), node.types[0])


def _logic_with_constant(b: GraphBuilder, node: Node) -> Operand | None:
    """and, or, xor with true or false."""
    for x, constant in (node.inputs, node.inputs[::-1]):
        value = full_value(constant)
        if value is None:
            continue
        if node.name == "logical_xor":
            return b("logical_not", x) if value else x
        return x if value == (node.name == "logical_and") else constant
    return None


def _nonzero_of_bool(b: GraphBuilder, node: Node) -> Operand | None:
    """A bool, cast to a number and compared with 0."""
    number, zero = node.inputs
    under = _under(number, "cast")
    return under if under is not None and under.dtype.is_bool and full_value(zero) == 0 else None


_NEGATED = {"eq": "ne", "ne": "eq"}
_NEGATED_IN_ORDER = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}  # not where NaN may be


def _not_of_comparison(b: GraphBuilder, node: Node) -> Operand | None:
    inner = node.inputs[0].node
    if inner.name == "logical_not":
        return inner.inputs[0]
    table = _NEGATED
    if inner.inputs and not inner.inputs[0].dtype.is_float:
        table = {**_NEGATED, **_NEGATED_IN_ORDER}
    return b(table[inner.name], *inner.inputs) if inner.name in table else None


def _div_by_broadcast_root(b: GraphBuilder, node: Node) -> Operand | None:
    """One division a row instead of one per element. The reciprocal of a square root is always a normal
    number (or 0 or inf, where the quotient is too), so nothing overflows that did not before."""
    x, divisor = node.inputs
    views: list[Node] = []
    while divisor.node.name in ("broadcast_to", "expand_dims"):
        views.append(divisor.node)
        divisor = divisor.node.inputs[0]
    if divisor.node.name != "sqrt" or not any(view.name == "broadcast_to" for view in views):
        return None
    factor = b("reciprocal", divisor)
    for view in reversed(views):
        factor = b(view.name, factor, **view.attrs)
    return b("mul", x, factor)


# ------------------------------------------------------------------------------------- selection and casts


def _select_known(b: GraphBuilder, node: Node) -> Operand | None:
    condition, x, y = node.inputs
    if x == y:
        return x
    value = full_value(condition)
    return None if value is None else (x if value else y)


def _select_of_not(b: GraphBuilder, node: Node) -> Operand | None:
    condition, x, y = node.inputs
    under = _under(condition, "logical_not")
    return None if under is None else b("select", under, y, x)


def _stop_gradient(b: GraphBuilder, node: Node) -> Operand | None:
    return node.inputs[0]


def _cast_to_same(b: GraphBuilder, node: Node) -> Operand | None:
    return node.inputs[0] if node.attrs["dtype"] == node.inputs[0].dtype else None


_EXACT_CASTS = {
    "bool": {"uint8", "int32", "int64", "float32", "float64"},
    "uint8": {"int32", "int64", "float32", "float64"},
    "int32": {"int64", "float64"},
    "float32": {"float64"},
}


def _loses_nothing(source: DType, target: DType) -> bool:
    return source == target or target.name in _EXACT_CASTS.get(source.name, ())


def _cast_of_cast(b: GraphBuilder, node: Node) -> Operand | None:
    """A cast that loses nothing on the way does not show: but float to integer saturates where integers
    wrap, and nothing but 0 is false."""
    inner = node.inputs[0].node
    if inner.name != "cast":
        return None
    source, middle, target = inner.inputs[0].dtype, inner.types[0].dtype, node.types[0].dtype
    if not _loses_nothing(source, middle):
        return None
    saturates = middle.is_float and source.is_integer and target.is_integer
    if saturates and not _loses_nothing(source, target):
        return None
    return b.cast(inner.inputs[0], target)


def _under(operand: Operand, op: str) -> Operand | None:
    return operand.node.inputs[0] if operand.node.name == op else None


# -------------------------------------------------------------------------------------------- reductions


def _reduce_of_ones(b: GraphBuilder, node: Node) -> Operand | None:
    """Axes of extent 1 are squeezed, not reduced."""
    (x,), axes = node.inputs, node.attrs["axes"]
    single = tuple(axis for axis in axes if x.shape[axis] == 1)
    if not single:
        return None
    others = [axis for axis in axes if axis not in single]
    squeezed = b("squeeze", x, axes=single)
    return _reduce(b, node, squeezed, [axis - sum(s < axis for s in single) for axis in others])


def _reduce(b: GraphBuilder, node: Node, x: Operand, axes: list[int]) -> Operand:
    return b(node.name, x, axes=tuple(axes)) if axes else x


def _repeated_axes(node: Node) -> list[int]:
    """The reduced axes along which a broadcast repeats its operand (a named dim never broadcasts)."""
    x = node.inputs[0]
    if x.node.name != "broadcast_to":
        return []
    source = x.node.inputs[0]
    new = len(x.shape) - len(source.shape)
    return [
        axis
        for axis in node.attrs["axes"]
        if axis < new or (source.shape[axis - new] == 1 and x.shape[axis] != 1)
    ]


def _without_repeats(b: GraphBuilder, node: Node, repeated: list[int]) -> Operand:
    """The same reduction of an operand that is not repeated along these axes."""
    x = node.inputs[0]
    kept = [axis for axis in range(len(x.shape)) if axis not in repeated]
    source = x.node.inputs[0]
    new = len(x.shape) - len(source.shape)
    single = tuple(axis - new for axis in repeated if axis >= new)
    if single:
        source = b("squeeze", source, axes=single)
    shown = b.broadcast_to(source, [x.shape[axis] for axis in kept])
    return _reduce(b, node, shown, [kept.index(a) for a in node.attrs["axes"] if a not in repeated])


def _times_extent(b: GraphBuilder, x: Operand, count: Extent) -> Operand:
    """x added up `count` times. Nothing added up is 0, whatever x is."""
    if isinstance(count, int):
        return b("mul", x, b.full(_wrapped(count, x.dtype), x.type)) if count else b.full(0, x.type)
    number = b("extent", extent=count)
    factor = b.broadcast_to(b.cast(number, x.dtype), x.shape)
    product = b("mul", x, factor)
    known = full_value(x)
    if x.dtype.is_integer or (known is not None and math.isfinite(known)):
        return product
    is_empty = b.broadcast_to(b("eq", number, b.full_like(0, number)), x.shape)
    return b("select", is_empty, b.full_like(0, x), product)


def _wrapped(count: int, dtype: DType) -> float | int:
    wide: Array = np.asarray(count, np.int64)
    value: float | int = wide.astype(dtype.numpy).item()
    return value


def _count(node: Node, axes: list[int]) -> Extent:
    total: Extent = 1
    for axis in axes:
        total = total * node.inputs[0].shape[axis]
    return total


def _sum_of_broadcast(b: GraphBuilder, node: Node) -> Operand | None:
    repeated = _repeated_axes(node)
    if not repeated:
        return None
    return _times_extent(b, _without_repeats(b, node, repeated), _count(node, repeated))


def _sum_of_full(b: GraphBuilder, node: Node) -> Operand | None:
    (x,), axes = node.inputs, node.attrs["axes"]
    if x.node.name != "full" or not axes:
        return None
    one = b.full(x.node.attrs["value"], TensorType(x.dtype, node.types[0].shape))
    return _times_extent(b, one, _count(node, list(axes)))


def _extreme_of_broadcast(b: GraphBuilder, node: Node) -> Operand | None:
    """Only over extents that are known, and hence not 0."""
    repeated = [axis for axis in _repeated_axes(node) if isinstance(node.inputs[0].shape[axis], int)]
    return _without_repeats(b, node, repeated) if repeated else None


def _reduce_over_nothing(b: GraphBuilder, node: Node) -> Operand | None:
    return None if node.attrs["axes"] else node.inputs[0]


_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_REDUCTIONS = ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")

IDENTITIES: Mapping[str, tuple[tuple[str, ...], LocalRule]] = {
    # name: (ops, rule)                                            # floats and integers:
    "add_zero": (("add",), _add_zero),                             # x + -0.0 = x
    "sub_zero": (("sub",), _sub_zero),                             # x - 0.0 = x
    "sub_from_zero": (("sub",), _sub_from_zero),                   # -0.0 - x = -x
    "mul_one": (("mul",), _mul_one),                               # x * 1 = x
    "mul_minus_one": (("mul",), _mul_minus_one),                   # x * -1 = -x
    "mul_itself": (("mul",), _mul_itself),                         # x * x = square(x)
    "div_one": (("div",), _div_one),                               # x / 1 = x
    "div_minus_one": (("div",), _div_minus_one),                   # x / -1 = -x
    "div_by_power_of_two": (("div",), _div_by_power_of_two),       # x / 4 = x * 0.25
    "div_by_broadcast_root": (("div",), _div_by_broadcast_root),   # x / sqrt(v) for a row x
    "neg_of_neg": (("neg",), _neg_of_neg),                         # --x = x
    "add_of_neg": (("add",), _add_of_neg),                         # x + -y = x - y
    "sub_of_neg": (("sub",), _sub_of_neg),                         # x - -y = x + y
    "even_of_neg": (("abs", "square"), _even_of_neg),              # |-x| = |x|, square(-x) = square(x)
    "of_itself": (("maximum", "minimum", "logical_and", "logical_or"), _of_itself),
    "idempotent": (("relu", "floor", "ceil", "round", "trunc"), _idempotent),
    "small_powers": (("pow",), _small_powers),                     # x ** 2 = square(x)
    "add_n_of_one": (("add_n",), _add_n_of_one),                   # add_n(x) = x
    # integers and bools:
    "integer_mul_zero": (("mul",), _exact(_integer_mul_zero)),     # x * 0 = 0
    "integer_sub_itself": (("sub",), _exact(_integer_sub_itself)),  # x - x = 0
    "integer_by_one": (("floordiv", "mod"), _exact(_integer_by_one)),  # x // 1 = x, x % 1 = 0
    "compared_with_itself": (_COMPARISONS, _exact(_compared_with_itself)),  # x == x
    "logic_with_constant": (("logical_and", "logical_or", "logical_xor"), _logic_with_constant),
    "nonzero_of_bool": (("ne",), _nonzero_of_bool),               # cast(bool) != 0
    "not_of_comparison": (("logical_not",), _not_of_comparison),   # not not x = x, not x == y = x != y
    # selection and casts:
    "select_known": (("select",), _select_known),                  # select(true, x, y) = x
    "select_of_not": (("select",), _select_of_not),                # select(not c, x, y) = select(c, y, x)
    "stop_gradient": (("stop_gradient",), _stop_gradient),         # the walk is over
    "cast_to_same": (("cast",), _cast_to_same),                    # cast(x, dtype of x) = x
    "cast_of_cast": (("cast",), _cast_of_cast),                    # f32 -> f64 -> f32
    # reductions:
    "reduce_over_nothing": (_REDUCTIONS, _reduce_over_nothing),    # sum over no axis
    "reduce_of_ones": (_REDUCTIONS, _reduce_of_ones),              # axes of extent 1
    "sum_of_broadcast": (("reduce_sum",), _sum_of_broadcast),      # x + x + ... = x * n
    "sum_of_full": (("reduce_sum",), _sum_of_full),                # c + c + ... = c * n
    "extreme_of_broadcast": (("reduce_max", "reduce_min"), _extreme_of_broadcast),
}  # fmt: skip
