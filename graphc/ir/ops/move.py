"""Ops that place or fetch whole slices: pad, concat, and access through an index tensor.

Index tensors are integers that `check_index` has let through; negative indices were resolved by the
DSL. Gather, scatter_add and pick are linear in their float operand; their indices have no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphc.errors import DTypeError, IndexRangeError, ShapeError
from graphc.ir.ops.base import Array, ArraySpec, Cotangents, OpDef, define
from graphc.ir.types import Extent, SymbolicExtent, TensorType, int64, require_equal, uint8

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs, GraphBuilder, Node


def _require_axis(x: TensorType, axis: int, what: str) -> None:
    if not 0 <= axis < x.rank:
        raise ShapeError(f"{what}: axis {axis} is not an axis of {x}")


def _require_integer(indices: TensorType, what: str) -> None:
    if not indices.dtype.is_integer:
        raise DTypeError(f"{what}: indices must be integers, not {indices}")


# ------------------------------------------------------------------------------------------------- pad


def _infer_pad(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    (x,) = types
    low, high = attrs["low"], attrs["high"]
    if not len(low) == len(high) == x.rank:
        raise ShapeError(f"pad: low {low} and high {high} do not fit {x}")
    shape = tuple(before + e + after for before, e, after in zip(low, x.shape, high, strict=True))
    if any(isinstance(e, int) and e < 0 for e in shape):
        raise ShapeError(f"pad: low {low} and high {high} crop more than {x} has")
    return [TensorType(x.dtype, shape)]


def _pad_reference(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
    (value,) = arrays
    result = np.full(results[0].shape, attrs["value"], dtype=results[0].dtype)
    source, target = [], []
    for low, extent, padded in zip(attrs["low"], value.shape, result.shape, strict=True):
        first, last = max(0, -low), min(extent, padded - low)
        if last <= first:
            return [result]
        source.append(slice(first, last))
        target.append(slice(first + low, last + low))
    result[tuple(target)] = value[tuple(source)]
    return [result]


def _is_never_negative(extent: Extent) -> bool:
    """Whether that is plain to see; dims are never negative."""
    if isinstance(extent, SymbolicExtent):
        return all(c >= 0 and all(atom.kind == "dim" for atom in m) for m, c in extent.terms)
    return extent >= 0


def _vjp_pad(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    low, high, shape = node.attrs["low"], node.attrs["high"], node.inputs[0].shape
    if all(map(_is_never_negative, (*low, *high))):
        return [builder("slice", cotangent, starts=tuple(low), steps=(1,) * len(low), shape=shape)]
    negated = {"low": tuple(-e for e in low), "high": tuple(-e for e in high)}
    return [builder("pad", cotangent, **negated, value=0.0)]


def _jvp_pad(builder: GraphBuilder, node: Node, tangents: Cotangents) -> Cotangents:
    (tangent,) = tangents
    assert tangent is not None
    return [builder("pad", tangent, low=node.attrs["low"], high=node.attrs["high"], value=0.0)]


define(
    OpDef(
        name="pad",
        family="move",
        doc="out[i] = x[i - low] where that lies inside x, else value. A negative low or high crops."
        " attrs: low, high (one extent per axis), value.",
        infer=_infer_pad,
        reference=_pad_reference,
        vjp=_vjp_pad,
        jvp=_jvp_pad,  # affine where value is not zero
    )
)


# ---------------------------------------------------------------------------------------------- concat


def _infer_concat(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    axis = attrs["axis"]
    if not types:
        raise ShapeError("concat needs at least one operand")
    first = types[0]
    _require_axis(first, axis, "concat")
    shape = list(first.shape)
    for other in types[1:]:
        if other.dtype != first.dtype:
            raise DTypeError(f"concat: dtypes of {first} and {other} differ")
        if other.rank != first.rank:
            raise ShapeError(f"concat: ranks of {first} and {other} differ")
        for k, extent in enumerate(other.shape):
            shape[k] = shape[k] + extent if k == axis else require_equal(shape[k], extent, f"concat axis {k}")
    return [TensorType(first.dtype, tuple(shape))]


def _vjp_concat(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    axis = node.attrs["axis"]
    rank = len(node.types[0].shape)
    result = []
    start: Extent = 0
    for operand in node.inputs:
        starts = tuple(start if k == axis else 0 for k in range(rank))
        result.append(builder("slice", cotangent, starts=starts, steps=(1,) * rank, shape=operand.shape))
        start = start + operand.shape[axis]
    return result


define(
    OpDef(
        name="concat",
        family="move",
        doc="Operands one after the other along an axis. attrs: axis.",
        infer=_infer_concat,
        reference=lambda arrays, attrs, results: [np.concatenate(arrays, axis=attrs["axis"])],
        vjp=_vjp_concat,
        linearity="linear",
    )
)


# ------------------------------------------------------------------------------------ gather, scatter_add


def _infer_gather(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    x, indices = types
    axis = attrs["axis"]
    _require_axis(x, axis, "gather")
    _require_integer(indices, "gather")
    return [TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))]


def _vjp_gather(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    x, indices = node.inputs
    axis = node.attrs["axis"]
    return [builder("scatter_add", indices, cotangent, axis=axis, extent=x.shape[axis]), None]


define(
    OpDef(
        name="gather",
        family="move",
        doc="out[a..., i..., b...] = x[a..., indices[i...], b...]: np.take along an axis. attrs: axis.",
        infer=_infer_gather,
        reference=lambda arrays, attrs, results: [np.take(arrays[0], arrays[1], axis=attrs["axis"])],
        vjp=_vjp_gather,
        linearity="linear",
    )
)


def _infer_scatter_add(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    indices, updates = types
    axis, rank = attrs["axis"], indices.rank
    _require_integer(indices, "scatter_add")
    if not 0 <= axis <= updates.rank - rank:
        raise ShapeError(f"scatter_add: {updates} has no axes for {indices} from axis {axis} on")
    for k, extent in enumerate(indices.shape):
        require_equal(extent, updates.shape[axis + k], f"scatter_add of {updates} at {indices}, axis {k}")
    shape = (*updates.shape[:axis], attrs["extent"], *updates.shape[axis + rank :])
    return [TensorType(updates.dtype, shape)]


def _scatter_add_reference(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    indices, updates = arrays
    result = np.zeros(results[0].shape, dtype=results[0].dtype)
    # Indices are flattened so that the indexed axis leads, in the view and in the updates alike.
    axis = attrs["axis"]
    before, after = updates.shape[:axis], updates.shape[axis + indices.ndim :]
    flat = updates.reshape((*before, indices.size, *after))
    np.add.at(np.moveaxis(result, axis, 0), indices.reshape(-1), np.moveaxis(flat, axis, 0))
    return [result]


def _vjp_scatter_add(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    return [None, builder("gather", cotangent, node.inputs[0], axis=node.attrs["axis"])]


define(
    OpDef(
        name="scatter_add",
        family="move",
        doc="Zeros, to which out[a..., indices[i...], b...] += updates[a..., i..., b...] is done for every"
        " i; repeated indices add up. attrs: axis, extent (of that axis of the result).",
        infer=_infer_scatter_add,
        reference=_scatter_add_reference,
        vjp=_vjp_scatter_add,
        linearity="linear",
    )
)


# ------------------------------------------------------------------------------------------------ pick


def _infer_pick(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    x, index = types
    axis = attrs["axis"]
    _require_axis(x, axis, "pick")
    _require_integer(index, "pick")
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    if len(shape) != index.rank:
        raise ShapeError(f"pick: {index} is not {x} without axis {axis}")
    equal = (
        require_equal(a, b, f"pick from {x} at {index}") for a, b in zip(shape, index.shape, strict=True)
    )
    return [TensorType(x.dtype, tuple(equal))]


def _pick_reference(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
    x, index = arrays
    axis = attrs["axis"]
    column = np.expand_dims(index.astype(np.int64), axis)
    return [np.take_along_axis(x, column, axis=axis).squeeze(axis)]


def _vjp_pick(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """Dense: select(iota == index, cotangent, 0), which fuses into whatever reads it."""
    (cotangent,) = cotangents
    assert cotangent is not None
    x, index = node.inputs
    axis = node.attrs["axis"]
    if index.dtype == uint8:  # the iota of a long axis does not fit
        index = builder.cast(index, int64)
    iota = builder("iota", axis=axis, dtype=index.dtype, shape=x.shape)
    wide = builder.broadcast_to(builder.expand_dims(index, (axis,)), x.shape)
    spread = builder.broadcast_to(builder.expand_dims(cotangent, (axis,)), x.shape)
    return [builder("select", builder("eq", iota, wide), spread, builder.full_like(0.0, spread)), None]


define(
    OpDef(
        name="pick",
        family="move",
        doc="out[a..., b...] = x[a..., index[a..., b...], b...]: one element along an axis. attrs: axis.",
        infer=_infer_pick,
        reference=_pick_reference,
        vjp=_vjp_pick,
        linearity="linear",
    )
)


# ----------------------------------------------------------------------------------------- check_index


def _infer_check_index(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    _require_integer(types[0], "check_index")
    return [types[0]]


def _check_index_reference(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    (indices,) = arrays
    bad = np.argwhere((indices < 0) | (indices >= attrs["extent"]))
    if len(bad):
        position = tuple(map(int, bad[0]))
        raise IndexRangeError(
            f"{attrs['what']}: index {indices[position]} at position {position}"
            f" is out of range (0 <= index < {attrs['extent']})"
        )
    return [indices]


define(
    OpDef(
        name="check_index",
        family="effect",
        doc="Passes indices on; the step fails, changing nothing, if one is outside [0, extent)."
        " attrs: extent, what (named in the error).",
        infer=_infer_check_index,
        reference=_check_index_reference,
    )
)
