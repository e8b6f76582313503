"""Ops made of other ops, kept whole until lowering because they have a stable gradient of their own.

All but the last rest on three nodes of a row z that forward and backward share once interned:

    m = max(z), or 0 where that is not finite        e = exp(z - m)        s = sum(e)

so every finite z gives finite results: e <= 1 and s >= 1. The guard makes the log-sum-exp of a row of -inf
-inf, and of a row with +inf +inf; NaN propagates through s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.ir.ops.base import Array, ArraySpec, Cotangents, Infer, OpDef, define
from graphc.ir.ops.elementwise import only_float, require_arity, same_dtype, same_shape
from graphc.ir.ops.reduce import require_axes, require_not_empty, spread
from graphc.ir.types import TensorType, int32, require_equal

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs, GraphBuilder, Node, Operand

Axes = tuple[int, ...]


# ------------------------------------------------------------------------------------------ shared parts


class _Parts(NamedTuple):
    maximum: Operand  # m, reduced
    shifted: Operand  # z - m
    exponentials: Operand  # e
    total: Operand  # s, reduced


def _parts(b: GraphBuilder, z: Operand, axes: Axes) -> _Parts:
    largest = b("reduce_max", z, axes=axes)
    is_finite = b("lt", b("abs", largest), b.full_like(float("inf"), largest))
    # The shift cancels in exact arithmetic, so it carries no derivative.
    maximum = b("stop_gradient", b("select", is_finite, largest, b.full_like(0, largest)))
    shifted = b("sub", z, spread(b, maximum, axes, z.shape))
    exponentials = b("exp", shifted)
    return _Parts(maximum, shifted, exponentials, b.sum(exponentials, axes))


class _Arrays(NamedTuple):
    maximum: Array
    shifted: Array
    exponentials: Array
    total: Array


def _array_parts(z: Array, axes: Axes) -> _Arrays:
    """The same in numpy; maximum and total keep their axes."""
    largest = np.max(z, axis=axes, keepdims=True, initial=-np.inf)
    maximum = np.where(np.isfinite(largest), largest, 0).astype(z.dtype)
    shifted = z - maximum
    exponentials = np.exp(shifted)
    return _Arrays(maximum, shifted, exponentials, np.sum(exponentials, axis=axes, keepdims=True))


def _softmax(b: GraphBuilder, z: Operand, axes: Axes) -> Operand:
    if len(axes) == 1:
        return b("softmax", z, axis=axes[0])
    parts = _parts(b, z, axes)
    return b("div", parts.exponentials, spread(b, parts.total, axes, z.shape))


def _weighted_sum(b: GraphBuilder, x: Operand, y: Operand, axes: Axes) -> Operand:
    return b.sum(b("mul", x, y), axes)


# ---------------------------------------------------------------------------------- softmax, log_softmax


def _infer_along_axis(name: str) -> Infer:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
        require_arity(types, 1, name)
        same_dtype(types, only_float, name)
        require_axes((attrs["axis"],), types[0], name)
        require_not_empty((attrs["axis"],), types[0], name)
        return [types[0]]

    return infer


def _decompose_softmax(b: GraphBuilder, node: Node) -> Sequence[Operand]:
    (z,), axes = node.inputs, (node.attrs["axis"],)
    parts = _parts(b, z, axes)
    # One division a row: the total lies between 1 and the number of classes, so its reciprocal is exact
    # to a rounding.
    return [b("mul", parts.exponentials, spread(b, b("reciprocal", parts.total), axes, z.shape))]


def _reference_softmax(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    with np.errstate(all="ignore"):
        parts = _array_parts(arrays[0], (attrs["axis"],))
        return [parts.exponentials / parts.total]


def _vjp_softmax(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """p (ct - sum(ct p)). The Jacobian is symmetric, so this is also the jvp."""
    (ct,) = cotangents
    if ct is None:
        return [None]
    p, axes = node.outputs[0], (node.attrs["axis"],)
    mean = spread(b, _weighted_sum(b, ct, p, axes), axes, p.shape)
    return [b("mul", p, b("sub", ct, mean))]


def _decompose_log_softmax(b: GraphBuilder, node: Node) -> Sequence[Operand]:
    (z,), axes = node.inputs, (node.attrs["axis"],)
    parts = _parts(b, z, axes)
    return [b("sub", parts.shifted, spread(b, b("log", parts.total), axes, z.shape))]


def _reference_log_softmax(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    with np.errstate(all="ignore"):
        parts = _array_parts(arrays[0], (attrs["axis"],))
        return [parts.shifted - np.log(parts.total)]


def _vjp_log_softmax(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """ct - softmax(z) sum(ct)."""
    (ct,) = cotangents
    if ct is None:
        return [None]
    (z,), axes = node.inputs, (node.attrs["axis"],)
    total = spread(b, b.sum(ct, axes), axes, z.shape)
    return [b("sub", ct, b("mul", _softmax(b, z, axes), total))]


def _jvp_log_softmax(b: GraphBuilder, node: Node, tangents: Cotangents) -> Cotangents:
    (tangent,) = tangents
    if tangent is None:
        return [None]
    (z,), axes = node.inputs, (node.attrs["axis"],)
    mean = spread(b, _weighted_sum(b, _softmax(b, z, axes), tangent, axes), axes, z.shape)
    return [b("sub", tangent, mean)]


define(
    OpDef(
        name="softmax",
        family="composite",
        doc="exp(z_i) / sum_j exp(z_j) along `axis`.",
        infer=_infer_along_axis("softmax"),
        reference=_reference_softmax,
        vjp=_vjp_softmax,
        jvp=_vjp_softmax,
        decompose=_decompose_softmax,
    )
)
define(
    OpDef(
        name="log_softmax",
        family="composite",
        doc="z_i - log(sum_j exp(z_j)) along `axis`.",
        infer=_infer_along_axis("log_softmax"),
        reference=_reference_log_softmax,
        vjp=_vjp_log_softmax,
        jvp=_jvp_log_softmax,
        decompose=_decompose_log_softmax,
    )
)


# -------------------------------------------------------------------------------------------- logsumexp


def _infer_logsumexp(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    require_arity(types, 1, "logsumexp")
    (z,), axes = types, attrs["axes"]
    same_dtype(types, only_float, "logsumexp")
    require_axes(axes, z, "logsumexp")
    require_not_empty(axes, z, "logsumexp")
    return [TensorType(z.dtype, tuple(extent for axis, extent in enumerate(z.shape) if axis not in axes))]


def _decompose_logsumexp(b: GraphBuilder, node: Node) -> Sequence[Operand]:
    parts = _parts(b, node.inputs[0], node.attrs["axes"])
    return [b("add", b("log", parts.total), parts.maximum)]


def _reference_logsumexp(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    axes = tuple(attrs["axes"])
    with np.errstate(all="ignore"):
        parts = _array_parts(arrays[0], axes)
        return [np.asarray(np.squeeze(np.log(parts.total) + parts.maximum, axes))]


def _vjp_logsumexp(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """softmax(z) ct."""
    (ct,) = cotangents
    if ct is None:
        return [None]
    (z,), axes = node.inputs, node.attrs["axes"]
    return [b("mul", _softmax(b, z, axes), spread(b, ct, axes, z.shape))]


def _jvp_logsumexp(b: GraphBuilder, node: Node, tangents: Cotangents) -> Cotangents:
    (tangent,) = tangents
    if tangent is None:
        return [None]
    (z,), axes = node.inputs, node.attrs["axes"]
    return [_weighted_sum(b, _softmax(b, z, axes), tangent, axes)]


define(
    OpDef(
        name="logsumexp",
        family="composite",
        doc="log(sum(exp(z))) over `axes`, which are dropped.",
        infer=_infer_logsumexp,
        reference=_reference_logsumexp,
        vjp=_vjp_logsumexp,
        jvp=_jvp_logsumexp,
        decompose=_decompose_logsumexp,
    )
)


# ------------------------------------------------------------------------------- softmax and cross entropy


def _require_rows(z: TensorType, context: str) -> None:
    if z.rank == 0:
        raise ShapeError(f"{context}: the logits {z} have no axis of classes")
    same_dtype([z], only_float, context)
    require_not_empty((z.rank - 1,), z, context)


def _classes(z: Operand) -> Axes:
    return (len(z.shape) - 1,)


def _infer_cross_entropy(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    context = "softmax_cross_entropy"
    require_arity(types, 2, context)
    z, labels = types
    _require_rows(z, context)
    if not labels.dtype.is_integer:
        raise DTypeError(f"{context}: the labels {labels} are not integers")
    if labels.rank != z.rank - 1:
        raise ShapeError(f"{context}: labels {labels} do not fit logits {z}")
    where = f"{context} of logits {z} and labels {labels}"
    shape = tuple(require_equal(a, e, where) for a, e in zip(z.shape[:-1], labels.shape, strict=True))
    return [TensorType(z.dtype, shape)]


def _decompose_cross_entropy(b: GraphBuilder, node: Node) -> Sequence[Operand]:
    """log(s) + (m - z_y): the difference is exact for large logits, where m + log(s) would round."""
    z, labels = node.inputs
    parts = _parts(b, z, _classes(z))
    picked = b("pick", z, labels, axis=_classes(z)[0])
    return [b("add", b("log", parts.total), b("sub", parts.maximum, picked))]


def _reference_cross_entropy(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    z, labels = arrays
    with np.errstate(all="ignore"):
        parts = _array_parts(z, (-1,))
        picked = np.take_along_axis(z, labels[..., None].astype(np.int64), axis=-1)
        return [(np.log(parts.total) + (parts.maximum - picked))[..., 0]]


def _residual(b: GraphBuilder, z: Operand, labels: Operand) -> Operand:
    """softmax(z) - (class == label): the derivative of the loss of each row."""
    axes = _classes(z)
    # uint8 cannot count 256 classes or more.
    labels = b.cast(labels, int32) if labels.dtype.itemsize < 4 else labels
    classes = b("iota", axis=axes[0], dtype=labels.dtype, shape=z.shape)
    one_hot = b("eq", classes, spread(b, labels, axes, z.shape))
    return b("sub", _softmax(b, z, axes), b.cast(one_hot, z.dtype))


def _vjp_cross_entropy(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (ct,) = cotangents
    if ct is None:
        return [None, None]
    z, labels = node.inputs
    return [b("mul", _residual(b, z, labels), spread(b, ct, _classes(z), z.shape)), None]


def _jvp_cross_entropy(b: GraphBuilder, node: Node, tangents: Cotangents) -> Cotangents:
    (tangent, _) = tangents
    if tangent is None:
        return [None]
    z, labels = node.inputs
    return [_weighted_sum(b, _residual(b, z, labels), tangent, _classes(z))]


def _infer_cross_entropy_dense(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    context = "softmax_cross_entropy_dense"
    require_arity(types, 2, context)
    dtype = same_dtype(types, only_float, context)
    _require_rows(types[0], context)
    return [TensorType(dtype, same_shape(types, context)[:-1])]


def _decompose_cross_entropy_dense(b: GraphBuilder, node: Node) -> Sequence[Operand]:
    z, target = node.inputs
    axes = _classes(z)
    parts = _parts(b, z, axes)
    surprise = b("sub", spread(b, b("log", parts.total), axes, z.shape), parts.shifted)
    return [_weighted_sum(b, target, surprise, axes)]


def _reference_cross_entropy_dense(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    z, target = arrays
    with np.errstate(all="ignore"):
        parts = _array_parts(z, (-1,))
        return [np.asarray(np.sum(target * (np.log(parts.total) - parts.shifted), axis=-1))]


def _dense_derivatives(b: GraphBuilder, z: Operand, target: Operand) -> tuple[Operand, Operand]:
    """Of the loss of each row: softmax(z) sum(t) - t by z, and -log_softmax(z) by t."""
    axes = _classes(z)
    total = spread(b, b.sum(target, axes), axes, z.shape)
    by_logits = b("sub", b("mul", _softmax(b, z, axes), total), target)
    return by_logits, b("neg", b("log_softmax", z, axis=axes[0]))


def _vjp_cross_entropy_dense(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (ct,) = cotangents
    if ct is None:
        return [None, None]
    z, target = node.inputs
    rows = spread(b, ct, _classes(z), z.shape)
    return [b("mul", derivative, rows) for derivative in _dense_derivatives(b, z, target)]


def _jvp_cross_entropy_dense(b: GraphBuilder, node: Node, tangents: Cotangents) -> Cotangents:
    z, target = node.inputs
    parts = [
        _weighted_sum(b, derivative, tangent, _classes(z))
        for derivative, tangent in zip(_dense_derivatives(b, z, target), tangents, strict=True)
        if tangent is not None
    ]
    return [b.add_n(parts) if parts else None]


define(
    OpDef(
        name="softmax_cross_entropy",
        family="composite",
        doc="logsumexp(z) - z[label] for each row of logits z[..., C] and integer labels[...], which must "
        "lie in [0, C). d/dz = softmax(z) - (class == label).",
        infer=_infer_cross_entropy,
        reference=_reference_cross_entropy,
        vjp=_vjp_cross_entropy,
        jvp=_jvp_cross_entropy,
        decompose=_decompose_cross_entropy,
    )
)
define(
    OpDef(
        name="softmax_cross_entropy_dense",
        family="composite",
        doc="sum_j t_j (logsumexp(z) - z_j) for each row of logits z[..., C] and targets t[..., C]. "
        "d/dz = softmax(z) sum(t) - t, d/dt = -log_softmax(z).",
        infer=_infer_cross_entropy_dense,
        reference=_reference_cross_entropy_dense,
        vjp=_vjp_cross_entropy_dense,
        jvp=_jvp_cross_entropy_dense,
        decompose=_decompose_cross_entropy_dense,
    )
)


# ------------------------------------------------------------------------------------ product of the others


def _infer_product_of_others(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    require_arity(types, 1, "product_of_others")
    same_dtype(types, only_float, "product_of_others")
    require_axes((attrs["axis"],), types[0], "product_of_others")
    return [types[0]]


def _decompose_product_of_others(b: GraphBuilder, node: Node) -> Sequence[Operand]:
    """prod / x_i where nothing is 0; with one 0 only its own place has a product of others that is not."""
    (x,), axes = node.inputs, (node.attrs["axis"],)
    one, zero = b.full_like(1, x), b.full_like(0, x)
    is_zero = b("eq", x, zero)
    here = b.cast(is_zero, x.dtype)
    elsewhere = b("sub", spread(b, b.sum(here, axes), axes, x.shape), here)
    without_zeros = b("select", is_zero, one, x)
    product = spread(b, b("reduce_prod", without_zeros, axes=axes), axes, x.shape)
    return [b("select", b("gt", elsewhere, zero), zero, b("div", product, without_zeros))]


def _reference_product_of_others(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    x = np.moveaxis(arrays[0], attrs["axis"], -1)
    with np.errstate(all="ignore"):
        before = np.cumprod(np.concatenate([np.ones_like(x[..., :1]), x[..., :-1]], -1), axis=-1)
        after = np.cumprod(np.concatenate([np.ones_like(x[..., :1]), x[..., :0:-1]], -1), axis=-1)
        return [np.moveaxis(before * after[..., ::-1], -1, attrs["axis"]).copy()]


def _vjp_product_of_others(b: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """d out_i / d x_j is the product without i and j, and 0 for i = j: symmetric, so also the jvp.

    All pairs are formed: second derivatives of products take quadratic work, and are right at zeros.
    """
    (ct,) = cotangents
    if ct is None:
        return [None]
    (x,), axis = node.inputs, node.attrs["axis"]
    extent = x.shape[axis]
    # A new axis i before j, which is the old axis.
    shape = (*x.shape[:axis], extent, *x.shape[axis:])
    i, j = (b("iota", axis=at, dtype=int32, shape=shape) for at in (axis, axis + 1))
    is_own = b("eq", i, j)
    others = b("select", is_own, b.full(1, TensorType(x.dtype, shape)), spread(b, x, (axis,), shape))
    pairs = b("product_of_others", others, axis=axis + 1)
    pairs = b("select", is_own, b.full_like(0, pairs), pairs)
    return [_weighted_sum(b, spread(b, ct, (axis + 1,), shape), pairs, (axis,))]


define(
    OpDef(
        name="product_of_others",
        family="composite",
        doc="out_i = the product of x_j over j != i along `axis`: the derivative of reduce_prod.",
        infer=_infer_product_of_others,
        reference=_reference_product_of_others,
        vjp=_vjp_product_of_others,
        jvp=_vjp_product_of_others,
        decompose=_decompose_product_of_others,
    )
)
