"""Ops that only rename indices: each output element is one element of the operand.

All are linear, with one operand; their gradient is the transposed map, built from views, `pad` and
`reduce_sum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.errors import ShapeError
from graphc.ir.ops.base import Array, ArraySpec, Cotangents, OpDef, define
from graphc.ir.types import Extent, TensorType, extent_max, extent_min, require_equal

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs, GraphBuilder, Node, Operand


def _require_axes(axes: Sequence[int], rank: int, what: str) -> None:
    if len(set(axes)) != len(axes) or any(not 0 <= axis < rank for axis in axes):
        raise ShapeError(f"{what}: axes {tuple(axes)} are not distinct axes of rank {rank}")


# ---------------------------------------------------------------------------------------- broadcast_to


def _infer_broadcast_to(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    (x,) = types
    shape = tuple(attrs["shape"])
    if x.rank > len(shape):
        raise ShapeError(f"broadcast_to: {x} has more axes than the shape {shape}")
    for given, wanted in zip(x.shape, shape[len(shape) - x.rank :], strict=True):
        if given != 1:
            require_equal(given, wanted, f"broadcast_to {x} to {shape}")
    return [TensorType(x.dtype, shape)]


def _vjp_broadcast_to(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    x = node.inputs[0]
    new = len(node.types[0].shape) - len(x.shape)
    # A named dim never broadcasts, so only a literal 1 can have been repeated.
    repeated = [i for i, extent in enumerate(x.shape) if extent == 1 and node.types[0].shape[new + i] != 1]
    summed = builder.sum(cotangent, [*range(new), *(new + i for i in repeated)])
    return [builder.expand_dims(summed, repeated)]


# ------------------------------------------------------------------- transpose, expand_dims, squeeze


def _infer_transpose(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    (x,) = types
    permutation = attrs["permutation"]
    if sorted(permutation) != list(range(x.rank)):
        raise ShapeError(f"transpose: {tuple(permutation)} does not permute the axes of {x}")
    return [TensorType(x.dtype, tuple(x.shape[axis] for axis in permutation))]


def _vjp_transpose(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    permutation = node.attrs["permutation"]
    inverse = sorted(range(len(permutation)), key=lambda axis: permutation[axis])
    return [builder.transpose(cotangent, inverse)]


def _infer_expand_dims(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    (x,) = types
    axes = attrs["axes"]
    rank = x.rank + len(axes)
    _require_axes(axes, rank, "expand_dims")
    remaining = iter(x.shape)
    return [TensorType(x.dtype, tuple(1 if axis in axes else next(remaining) for axis in range(rank)))]


def _vjp_expand_dims(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    return [builder("squeeze", cotangent, axes=tuple(node.attrs["axes"]))]


def _infer_squeeze(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    (x,) = types
    axes = attrs["axes"]
    _require_axes(axes, x.rank, "squeeze")
    for axis in axes:
        require_equal(x.shape[axis], 1, f"squeeze axis {axis} of {x}")
    return [TensorType(x.dtype, tuple(e for axis, e in enumerate(x.shape) if axis not in axes))]


def _vjp_squeeze(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    return [builder.expand_dims(cotangent, tuple(node.attrs["axes"]))]


# ----------------------------------------------------------------------------------------------- slice


def _require_at_most(left: Extent, right: Extent, count: Extent, context: str) -> None:
    """Requires left <= right where count > 0: now where it can be decided, else by a run-time guard."""
    if isinstance(count, int) and count <= 0:
        return
    slack = right - left
    if isinstance(slack, int) and slack >= 0:
        return
    excess = extent_max(left, right) - right
    if isinstance(slack, int) and isinstance(count, int):
        raise ShapeError(f"{context}: {left} exceeds {right}")
    require_equal(extent_min(count, 1) * excess, 0, context)


def _infer_slice(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    (x,) = types
    starts, steps, shape = attrs["starts"], attrs["steps"], tuple(attrs["shape"])
    if not len(starts) == len(steps) == len(shape) == x.rank:
        raise ShapeError(f"slice: starts {starts}, steps {steps} and shape {shape} do not fit {x}")
    for axis, (start, step, count) in enumerate(zip(starts, steps, shape, strict=True)):
        context = f"slice axis {axis} of {x} from {start} by {step}, {count} elements"
        if step == 0:
            raise ShapeError(f"{context}: the step is zero")
        if isinstance(count, int) and count < 0:
            raise ShapeError(f"{context}: the count is negative")
        last = start + step * (count - 1)
        lowest, highest = (start, last) if step > 0 else (last, start)
        _require_at_most(0, lowest, count, context)
        _require_at_most(highest + 1, x.shape[axis], count, context)
    return [TensorType(x.dtype, shape)]


def _slice_reference(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
    ranges = []
    for start, step, count in zip(attrs["starts"], attrs["steps"], results[0].shape, strict=True):
        stop = start + step * count
        # Python reads a negative stop as counted from the end; there None means "down to the first".
        ranges.append(slice(start, stop if stop >= 0 else None, step) if count else slice(0, 0))
    return [arrays[0][tuple(ranges)]]


def _vjp_slice(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """Puts the cotangent back between zeros: flipped where the step is negative, spread, then padded."""
    (cotangent,) = cotangents
    assert cotangent is not None
    x, shape = node.inputs[0], node.types[0].shape
    lows: list[Extent] = list(node.attrs["starts"])
    steps: list[int] = list(node.attrs["steps"])
    counts = list(shape)
    if any(step < 0 for step in steps):
        cotangent = builder(
            "slice",
            cotangent,
            starts=tuple(n - 1 if step < 0 else 0 for step, n in zip(steps, counts, strict=True)),
            steps=tuple(-1 if step < 0 else 1 for step in steps),
            shape=shape,
        )
        lows = [
            low + step * (n - 1) if step < 0 else low
            for low, step, n in zip(lows, steps, counts, strict=True)
        ]
        steps = [abs(step) for step in steps]
    if any(step > 1 for step in steps):
        cotangent = _spread(builder, cotangent, steps)
        counts = list(cotangent.shape)
    highs = [
        extent - low - count for extent, low, count in zip(x.shape, lows, counts, strict=True)
    ]  # negative where spreading left zeros beyond the end: pad crops them
    if all(edge == 0 for edge in (*lows, *highs)):
        return [cotangent]
    return [builder("pad", cotangent, low=tuple(lows), high=tuple(highs), value=0.0)]


def _spread(builder: GraphBuilder, value: Operand, steps: Sequence[int]) -> Operand:
    """Follows each element along axis k by steps[k] - 1 zeros: a column of zeros beside it, then merged."""
    stretched = [axis for axis, step in enumerate(steps) if step > 1]
    columns = [axis + position + 1 for position, axis in enumerate(stretched)]
    expanded = builder.expand_dims(value, columns)
    high = [0] * len(expanded.shape)
    for column, axis in zip(columns, stretched, strict=True):
        high[column] = steps[axis] - 1
    padded = builder("pad", expanded, low=(0,) * len(high), high=tuple(high), value=0.0)
    return builder.reshape(padded, tuple(e * step for e, step in zip(value.shape, steps, strict=True)))


# --------------------------------------------------------------------------------------------- reshape


def _infer_reshape(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    (x,) = types
    result = TensorType(x.dtype, tuple(attrs["shape"]))
    require_equal(x.size, result.size, f"reshape {x} to {result.shape}")
    return [result]


def _reshape_reference(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    return [arrays[0].reshape(results[0].shape)]


def _vjp_reshape(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    (cotangent,) = cotangents
    assert cotangent is not None
    return [builder.reshape(cotangent, node.inputs[0].shape)]


def _define_view(name: str, doc: str, **parts: Any) -> None:
    define(OpDef(name=name, family="view", doc=doc, linearity="linear", **parts))


_define_view(
    "broadcast_to",
    "numpy's broadcasting to a shape; a named dim never broadcasts. attrs: shape.",
    infer=_infer_broadcast_to,
    reference=lambda arrays, attrs, results: [np.broadcast_to(arrays[0], results[0].shape)],
    vjp=_vjp_broadcast_to,
)
_define_view(
    "transpose",
    "Axes reordered: result axis k is operand axis permutation[k]. attrs: permutation.",
    infer=_infer_transpose,
    reference=lambda arrays, attrs, results: [np.transpose(arrays[0], attrs["permutation"])],
    vjp=_vjp_transpose,
)
_define_view(
    "expand_dims",
    "Inserts axes of extent 1. attrs: axes, their positions in the result.",
    infer=_infer_expand_dims,
    reference=_reshape_reference,
    vjp=_vjp_expand_dims,
)
_define_view(
    "squeeze",
    "Drops axes of extent 1. attrs: axes.",
    infer=_infer_squeeze,
    reference=_reshape_reference,
    vjp=_vjp_squeeze,
)
_define_view(
    "slice",
    "out[i] = x[start + step * i] on every axis. attrs: starts, steps (non-zero ints), shape.",
    infer=_infer_slice,
    reference=_slice_reference,
    vjp=_vjp_slice,
)
_define_view(
    "reshape",
    "The same elements in row-major order under another shape. attrs: shape.",
    infer=_infer_reshape,
    reference=_reshape_reference,
    vjp=_vjp_reshape,
)
