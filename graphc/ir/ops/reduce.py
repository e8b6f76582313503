"""Reductions over axes, argmax and argmin, and cumsum.

A reduction drops its axes. Sums keep the operand's dtype (integers wrap); the DSL widens first where a
wider sum is wanted. Over an empty axis a sum is 0 and a product 1; a maximum or minimum of nothing is
refused: at once where the extent is known, else when it is bound. (Of bools they are `any` and `all`, which
are False and True of nothing.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.ir.ops.base import Array, ArraySpec, Cotangents, Infer, OpDef, Reference, define
from graphc.ir.ops.elementwise import require_arity
from graphc.ir.scalar import combine_identity
from graphc.ir.types import Shape, TensorType, as_dtype, extent_max, int64, require_equal

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs, GraphBuilder, Node, Operand


# --------------------------------------------------------------------------------------- shared helpers


def spread(b: GraphBuilder, reduced: Operand, axes: Sequence[int], shape: Shape) -> Operand:
    """Repeats a reduced value along the axes that were reduced away."""
    return b.broadcast_to(b.expand_dims(reduced, axes), shape)


def product_of_others(b: GraphBuilder, x: Operand, axes: Sequence[int]) -> Operand:
    """For each element the product, over the axes, of all the others."""
    if not axes:
        return b.full_like(1, x)
    # prod over two axes is a prod of prods: the others in my row, times the other rows.
    *outer, inner = axes
    others = b("product_of_others", x, axis=inner)
    if not outer:
        return others
    rows = product_of_others(b, b("reduce_prod", x, axes=(inner,)), outer)
    return b("mul", others, spread(b, rows, (inner,), x.shape))


def _without(shape: Shape, axes: Sequence[int]) -> Shape:
    return tuple(extent for axis, extent in enumerate(shape) if axis not in axes)


def require_axes(axes: Sequence[int], x: TensorType, context: str) -> None:
    """Raises ShapeError unless the axes are distinct, ascending axes of x."""
    if list(axes) != sorted(set(axes)) or any(not 0 <= axis < x.rank for axis in axes):
        raise ShapeError(f"{context}: {tuple(axes)} are not distinct, ascending axes of {x}")


def require_not_empty(axes: Sequence[int], x: TensorType, context: str) -> None:
    """Raises ShapeError if one of the axes is known to be empty; where it may be, a run-time guard does."""
    for axis in axes:
        extent = x.shape[axis]
        if extent == 0:
            raise ShapeError(f"{context} over an empty axis of {x} has no value")
        if not isinstance(extent, int):
            require_equal(extent_max(extent, 1), extent, f"{context} over an empty axis of {x} has no value")


def _is_smooth(node: Node, cotangents: Cotangents) -> bool:
    return cotangents[0] is not None and node.inputs[0].dtype.is_float


# ----------------------------------------------------------------------------------- sum, prod, max, min


def _infer_reduction(name: str, accepts_bool: bool, accepts_empty: bool) -> Infer:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
        require_arity(types, 1, name)
        (x,) = types
        if x.dtype.is_bool and not accepts_bool:
            raise DTypeError(f"{name} does not accept {x}; cast it to an integer first")
        require_axes(attrs["axes"], x, name)
        if not accepts_empty and not x.dtype.is_bool:
            require_not_empty(attrs["axes"], x, name)
        return [TensorType(x.dtype, _without(x.shape, attrs["axes"]))]

    return infer


def _reference_reduction(combine: str) -> Reference:
    functions: dict[str, Any] = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}
    function = functions[combine]

    def reference(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
        (x,) = arrays
        with np.errstate(all="ignore"):
            if combine in ("sum", "prod"):
                return [np.asarray(function(x, axis=tuple(attrs["axes"]), dtype=x.dtype))]
            identity = combine_identity(combine, as_dtype(x.dtype))
            return [np.asarray(function(x, axis=tuple(attrs["axes"]), initial=identity))]

    return reference


def _vjp_sum(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (ct,) = cotangents
    if ct is None or not _is_smooth(node, cotangents):
        return [None]
    return [spread(b, ct, node.attrs["axes"], node.inputs[0].shape)]


def _vjp_prod(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (ct,) = cotangents
    if ct is None or not _is_smooth(node, cotangents):
        return [None]
    (x,), axes = node.inputs, node.attrs["axes"]
    return [b("mul", spread(b, ct, axes, x.shape), product_of_others(b, x, axes))]


def _jvp_prod(b: GraphBuilder, node: Node, tangents: Cotangents) -> Cotangents:
    (tangent,) = tangents
    if tangent is None or not _is_smooth(node, tangents):
        return [None]
    (x,), axes = node.inputs, node.attrs["axes"]
    return [b.sum(b("mul", tangent, product_of_others(b, x, axes)), axes)]


def _extremes(b: GraphBuilder, node: Node) -> tuple[Operand, Operand]:
    """1 where x is the extreme value (several on a tie) and 0 elsewhere; and how many there are."""
    (x,), axes = node.inputs, node.attrs["axes"]
    chosen = b.cast(b("eq", x, spread(b, node.outputs[0], axes, x.shape)), x.dtype)
    return chosen, b.sum(chosen, axes)


def _vjp_extreme(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """Ties share equally. An extreme of NaN gives NaN: no element equals it, so the count is 0."""
    (ct,) = cotangents
    if ct is None or not _is_smooth(node, cotangents):
        return [None]
    chosen, count = _extremes(b, node)
    return [b("mul", chosen, spread(b, b("div", ct, count), node.attrs["axes"], chosen.shape))]


def _jvp_extreme(b: GraphBuilder, node: Node, tangents: Cotangents) -> Cotangents:
    (tangent,) = tangents
    if tangent is None or not _is_smooth(node, tangents):
        return [None]
    chosen, count = _extremes(b, node)
    return [b("div", b.sum(b("mul", chosen, tangent), node.attrs["axes"]), count)]


define(
    OpDef(
        name="reduce_sum",
        family="reduce",
        doc="The sum over `axes`, which are dropped; 0 over an empty axis.",
        infer=_infer_reduction("reduce_sum", accepts_bool=False, accepts_empty=True),
        reference=_reference_reduction("sum"),
        vjp=_vjp_sum,
        linearity="linear",
    )
)
define(
    OpDef(
        name="reduce_prod",
        family="reduce",
        doc="The product over `axes`; 1 over an empty axis. d/dx_i is the product of the others.",
        infer=_infer_reduction("reduce_prod", accepts_bool=False, accepts_empty=True),
        reference=_reference_reduction("prod"),
        vjp=_vjp_prod,
        jvp=_jvp_prod,
    )
)
for _name, _word, _combine in (("reduce_max", "largest", "max"), ("reduce_min", "smallest", "min")):
    define(
        OpDef(
            name=_name,
            family="reduce",
            doc=f"The {_word} element over `axes`, NaN if there is one. Ties share the gradient equally.",
            infer=_infer_reduction(_name, accepts_bool=True, accepts_empty=False),
            reference=_reference_reduction(_combine),
            vjp=_vjp_extreme,
            jvp=_jvp_extreme,
        )
    )


# ---------------------------------------------------------------------------------------- argmax, argmin


def _infer_position(name: str) -> Infer:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
        require_arity(types, 1, name)
        axes = (attrs["axis"],)
        require_axes(axes, types[0], name)
        require_not_empty(axes, types[0], name)
        return [TensorType(int64, _without(types[0].shape, axes))]

    return infer


def _reference_position(find_largest: bool) -> Reference:
    function = np.argmax if find_largest else np.argmin

    def reference(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
        (x,) = arrays
        if x.shape[attrs["axis"]] == 0:  # a symbolic extent that turned out to be 0; numpy raises
            return [np.zeros(results[0].shape, np.int64)]
        return [np.asarray(function(x, axis=attrs["axis"]), np.int64)]

    return reference


for _name, _word in (("argmax", "largest"), ("argmin", "smallest")):
    define(
        OpDef(
            name=_name,
            family="reduce",
            doc=f"The position along `axis` of the {_word} element: the first of equals; NaN wins.",
            infer=_infer_position(_name),
            reference=_reference_position(_name == "argmax"),
        )
    )


# ------------------------------------------------------------------------------------------------ cumsum


def _infer_cumsum(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    require_arity(types, 1, "cumsum")
    (x,) = types
    if x.dtype.is_bool:
        raise DTypeError(f"cumsum does not accept {x}; cast it to an integer first")
    require_axes((attrs["axis"],), x, "cumsum")
    return [x]


def _reference_cumsum(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
    (x,), axis = arrays, attrs["axis"]
    with np.errstate(all="ignore"):
        if attrs["reverse"]:
            return [np.flip(np.cumsum(np.flip(x, axis), axis=axis, dtype=x.dtype), axis).copy()]
        return [np.cumsum(x, axis=axis, dtype=x.dtype)]


def _vjp_cumsum(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (ct,) = cotangents
    if ct is None or not _is_smooth(node, cotangents):
        return [None]
    return [b("cumsum", ct, axis=node.attrs["axis"], reverse=not node.attrs["reverse"])]


define(
    OpDef(
        name="cumsum",
        family="scan",
        doc="out_i = x_0 + ... + x_i along `axis`; with `reverse`, x_i + ... + x_last.",
        infer=_infer_cumsum,
        reference=_reference_cumsum,
        vjp=_vjp_cumsum,
        linearity="linear",
    )
)
