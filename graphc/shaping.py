"""Functions that make, move and join elements: reshape, transpose, concat, pad, take, arange, one_hot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc import dsl, functions
from graphc.axes import normalise_axes, normalise_axis
from graphc.errors import DeclarationError, DTypeError, IndexRangeError, ShapeError
from graphc.ir.types import (
    Extent,
    Shape,
    SymbolicExtent,
    as_dtype,
    floordiv,
    int64,
    promote,
)
from graphc.sites import declares

if TYPE_CHECKING:
    from graphc.dsl import DTypeLike, ShapeLike, Tensor, TensorLike

# ------------------------------------------------------------------------------------------------- views


@declares
def reshape(x: TensorLike, *shape: Any) -> Tensor:
    """The elements in row-major order under another shape; one extent may be -1. `reshape(x, 2, 3)` works.

    Raises ShapeError where the numbers of elements provably differ; what cannot be proved is checked at
    run time.
    """
    tensor = dsl.as_tensor(x)
    wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if sum(isinstance(e, int) and e == -1 for e in wanted) > 1:
        raise ShapeError(f"only one extent of {tuple(wanted)} may be -1")
    extents: list[Extent] = []
    inferred = -1
    for position, extent in enumerate(wanted):
        if isinstance(extent, int) and extent == -1:
            inferred = position
        extents.append(1 if position == inferred else dsl.as_extent(extent))
    if inferred >= 0:
        extents[inferred] = _remaining(tensor.size, extents)
    if tuple(extents) == tensor.shape:
        return tensor
    return dsl.apply("reshape", tensor, shape=tuple(extents))


def _remaining(size: Extent, extents: Sequence[Extent]) -> Extent:
    known: Extent = 1
    for extent in extents:
        known = known * extent
    if isinstance(known, int) and known == 0:
        raise ShapeError("-1 beside an extent of 0 is ambiguous")
    result = floordiv(size, known)
    if isinstance(size, int) and isinstance(known, int) and size % known:
        raise ShapeError(f"{size} elements do not divide into rows of {known}")
    return result


@declares
def transpose(x: TensorLike, *axes: Any) -> Tensor:
    """The axes in another order, reversed by default. `transpose(x, 0, 2, 1)` and a tuple both work."""
    tensor = dsl.as_tensor(x)
    if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))):
        axes = tuple(axes[0] or ()) if axes[0] is not None or not tensor.ndim else ()
        if not axes and tensor.ndim:
            axes = tuple(range(tensor.ndim))[::-1]
    elif not axes:
        axes = tuple(range(tensor.ndim))[::-1]
    permutation = tuple(normalise_axis(axis, tensor.ndim) for axis in axes)
    if sorted(permutation) != list(range(tensor.ndim)):
        raise ShapeError(f"axes {axes} are not a permutation of the {tensor.ndim} axes")
    if permutation == tuple(range(tensor.ndim)):
        return tensor
    return dsl.apply("transpose", tensor, permutation=permutation)


@declares
def swapaxes(x: TensorLike, axis1: int, axis2: int) -> Tensor:
    """Two axes exchanged."""
    tensor = dsl.as_tensor(x)
    first, second = (normalise_axis(axis, tensor.ndim) for axis in (axis1, axis2))
    permutation = list(range(tensor.ndim))
    permutation[first], permutation[second] = second, first
    return transpose(tensor, permutation) if permutation else tensor


@declares
def expand_dims(x: TensorLike, axis: int | Sequence[int]) -> Tensor:
    """New axes of extent 1 at these positions of the result."""
    tensor = dsl.as_tensor(x)
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    axes = normalise_axes(axis, tensor.ndim + count)
    return dsl.apply("expand_dims", tensor, axes=axes) if axes else tensor


@declares
def squeeze(x: TensorLike, axis: int | Sequence[int] | None = None) -> Tensor:
    """Axes of extent 1 removed: all that are 1 at declaration, or those given."""
    tensor = dsl.as_tensor(x)
    if axis is None:
        axes = tuple(k for k, extent in enumerate(tensor.shape) if extent == 1)
    else:
        axes = normalise_axes(axis, tensor.ndim)
    return dsl.apply("squeeze", tensor, axes=axes) if axes else tensor


@declares
def broadcast_to(x: TensorLike, shape: ShapeLike) -> Tensor:
    """The values repeated to a shape by numpy's rules."""
    tensor = dsl.as_tensor(x)
    return dsl.fit(tensor, tensor.dtype, dsl.as_shape(shape))


@declares
def flip(x: TensorLike, axis: int | Sequence[int] | None = None) -> Tensor:
    """The elements in reverse along axes (all by default)."""
    tensor = dsl.as_tensor(x)
    axes = normalise_axes(axis, tensor.ndim)
    if not axes:
        return tensor
    starts = tuple(e - 1 if k in axes else 0 for k, e in enumerate(tensor.shape))
    steps = tuple(-1 if k in axes else 1 for k in range(tensor.ndim))
    return dsl.apply("slice", tensor, starts=starts, steps=steps, shape=tensor.shape)


# --------------------------------------------------------------------------------------- joining, padding


@declares
def concat(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """The tensors one after the other along an axis, in their promoted dtype."""
    parts = [dsl.as_tensor(t) for t in tensors]
    if not parts:
        raise ShapeError("there is nothing to join")
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = promote(dtype, part.dtype)
    parts = [dsl.fit(part, dtype, part.shape) for part in parts]
    if parts[0].ndim == 0:
        raise ShapeError("scalars cannot be joined; use stack")
    return dsl.apply("concat", *parts, axis=normalise_axis(axis, parts[0].ndim))


@declares
def stack(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """The tensors, of one shape, along a new axis."""
    parts = [dsl.as_tensor(t) for t in tensors]
    if not parts:
        raise ShapeError("there is nothing to stack")
    position = normalise_axis(axis, parts[0].ndim + 1)
    if any(part.ndim != parts[0].ndim for part in parts):
        raise ShapeError("the ranks differ")
    for part in parts:
        if any(
            isinstance(a, int) and isinstance(b, int) and a != b
            for a, b in zip(part.shape, parts[0].shape, strict=True)
        ):
            raise ShapeError(f"the shapes {parts[0].shape} and {part.shape} differ")
    return concat([dsl.apply("expand_dims", part, axes=(position,)) for part in parts], position)


@declares
def split(x: TensorLike, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Equal parts along an axis, or parts cut at the positions given, as numpy's split."""
    tensor = dsl.as_tensor(x)
    along = normalise_axis(axis, tensor.ndim)
    extent = tensor.shape[along]
    if isinstance(sections, int):
        if sections < 1:
            raise ShapeError(f"cannot split into {sections} parts")
        part = floordiv(extent, sections)
        if isinstance(extent, int) and extent % sections:
            raise ShapeError(f"an extent of {extent} does not split into {sections} equal parts")
        edges: list[Extent] = [part * k for k in range(sections)] + [extent]
    else:
        edges = [0, *(_cut(cut, extent) for cut in sections), extent]
    return [slice_axis(tensor, along, start, _at_least_zero(stop - start)) for start, stop in pairwise(edges)]


def _cut(cut: Any, extent: Extent) -> Extent:
    if isinstance(extent, int) and isinstance(cut, int):
        return min(max(cut + extent if cut < 0 else cut, 0), extent)
    return cut + extent if isinstance(cut, int) and cut < 0 else dsl.as_extent(cut)


def _at_least_zero(extent: Extent) -> Extent:
    return max(extent, 0) if isinstance(extent, int) else extent


def slice_axis(tensor: Tensor, axis: int, start: Extent, count: Extent) -> Tensor:
    """`count` elements from `start` along one axis."""
    starts = tuple(start if k == axis else 0 for k in range(tensor.ndim))
    shape = tuple(count if k == axis else e for k, e in enumerate(tensor.shape))
    return dsl.apply("slice", tensor, starts=starts, steps=(1,) * tensor.ndim, shape=shape)


@declares
def pad(x: TensorLike, pad_width: Any, mode: str = "constant", constant_values: float = 0) -> Tensor:
    """`x` between constant borders. `pad_width` is n, (before, after) or one such pair for each axis."""
    tensor = dsl.as_tensor(x)
    if mode != "constant":
        raise DeclarationError(f"pad has the mode 'constant' alone, not {mode!r}")
    pairs = _pad_pairs(pad_width, tensor.ndim)
    if all(edge == 0 for pair in pairs for edge in pair):
        return tensor
    dsl.full_of(constant_values, tensor.dtype, ())  # refuses a value that the dtype cannot hold
    low, high = (tuple(pair[side] for pair in pairs) for side in (0, 1))
    return dsl.apply("pad", tensor, low=low, high=high, value=float(constant_values))


def _pad_pairs(pad_width: Any, rank: int) -> list[tuple[Extent, Extent]]:
    if not isinstance(pad_width, (tuple, list)):
        edge = dsl.as_extent(pad_width)
        return [(edge, edge)] * rank
    if len(pad_width) == 2 and not any(isinstance(edge, (tuple, list)) for edge in pad_width):
        before, after = map(dsl.as_extent, pad_width)
        return [(before, after)] * rank
    if len(pad_width) == 1:
        return _pad_pairs(pad_width[0], rank)
    if len(pad_width) != rank or any(not isinstance(p, (tuple, list)) or len(p) != 2 for p in pad_width):
        raise ShapeError(f"pad_width {pad_width} is not n, one pair, or a pair for each of {rank} axes")
    return [(dsl.as_extent(before), dsl.as_extent(after)) for before, after in pad_width]


# ---------------------------------------------------------------------------------------------- gathering


def checked_indices(indices: TensorLike, extent: Extent, what: str) -> Tensor:
    """Indices into an axis of some extent, guarded: out of range fails the step and names `what`.

    Constant ones are checked at once (IndexRangeError), and may count from the end like numpy's.
    """
    if not isinstance(indices, dsl.Tensor) and isinstance(extent, int):
        array = np.asarray(indices)
        if array.dtype.kind not in "iu" and array.size:
            raise DTypeError(f"{what}: indices are integers, not {array.dtype}")
        if array.size and not (-extent <= array.min() and array.max() < extent):
            raise IndexRangeError(f"{what}: an index lies outside [-{extent}, {extent})")
        return dsl.constant(np.where(array < 0, array + extent, array).astype(np.int64))
    tensor = dsl.as_tensor(indices)
    if not tensor.dtype.is_integer:
        raise DTypeError(f"{what}: indices are integers, not {tensor.dtype}")
    return dsl.apply("check_index", tensor, extent=extent, what=what)


def extent_value(extent: Extent) -> int | Tensor:
    """An extent as an operand of arithmetic: the int, or the int64 scalar that it is at run time."""
    return extent if isinstance(extent, int) else dsl.apply("extent", extent=extent)


def describe_index(x: Tensor, fallback: str) -> str:
    """What an index error calls a tensor: its name, or what it is for."""
    return x.name or fallback


@declares
def take(x: TensorLike, indices: TensorLike, axis: int | None = None) -> Tensor:
    """Elements, rows, ... at integer indices along an axis (of the flattened values for None).

    Run-time indices must lie in [0, extent); a bad one fails the step with an IndexRangeError.
    """
    tensor = dsl.as_tensor(x)
    if axis is None:
        tensor, axis = reshape(tensor, -1), 0
    along = normalise_axis(axis, tensor.ndim)
    what = describe_index(indices, "take") if isinstance(indices, dsl.Tensor) else "take"
    return dsl.apply("gather", tensor, checked_indices(indices, tensor.shape[along], what), axis=along)


@declares
def take_along_axis(x: TensorLike, indices: TensorLike, axis: int) -> Tensor:
    """One element per index along an axis: `indices` has the shape of x, with extent 1 on that axis."""
    tensor, chosen = dsl.as_tensor(x), dsl.as_tensor(indices)
    along = normalise_axis(axis, tensor.ndim)
    if chosen.ndim != tensor.ndim or chosen.shape[along] != 1:
        raise ShapeError(f"indices of shape {chosen.shape} do not have extent 1 on axis {along}")
    guarded = checked_indices(
        squeeze(chosen, along), tensor.shape[along], describe_index(chosen, "take_along_axis")
    )
    return expand_dims(dsl.apply("pick", tensor, guarded, axis=along), along)


@declares
def one_hot(indices: TensorLike, depth: Extent, dtype: DTypeLike = "float32") -> Tensor:
    """1 at the index and 0 elsewhere, along a new last axis of extent `depth`; indices are checked."""
    given = dsl.as_tensor(indices)
    extent = dsl.as_extent(depth)
    guarded = checked_indices(given, extent, describe_index(given, "one_hot"))
    guarded = dsl.fit(guarded, int64, guarded.shape)
    shape = (*given.shape, extent)
    positions = dsl.apply("iota", axis=given.ndim, dtype=int64, shape=shape)
    wide = dsl.fit(dsl.apply("expand_dims", guarded, axes=(given.ndim,)), int64, shape)
    return functions.cast(dsl.apply("eq", positions, wide), dtype)


# ----------------------------------------------------------------------------------------------- constants


@declares
def full(shape: ShapeLike, value: bool | int | float, dtype: DTypeLike | None = None) -> Tensor:
    """One value repeated; the dtype follows the value (bool, int64 or float32) unless given."""
    return dsl.full_of(
        value, as_dtype(dtype) if dtype is not None else dsl.scalar_dtype(value), dsl.as_shape(shape)
    )


@declares
def zeros(shape: ShapeLike, dtype: DTypeLike = "float32") -> Tensor:
    """A tensor of this shape filled with 0."""
    return dsl.full_of(0, as_dtype(dtype), dsl.as_shape(shape))


@declares
def ones(shape: ShapeLike, dtype: DTypeLike = "float32") -> Tensor:
    """A tensor of this shape filled with 1."""
    return dsl.full_of(1, as_dtype(dtype), dsl.as_shape(shape))


@declares
def full_like(x: TensorLike, value: bool | int | float, dtype: DTypeLike | None = None) -> Tensor:
    """One value repeated to the shape and dtype of x."""
    tensor = dsl.as_tensor(x)
    return dsl.full_of(value, tensor.dtype if dtype is None else as_dtype(dtype), tensor.shape)


@declares
def zeros_like(x: TensorLike, dtype: DTypeLike | None = None) -> Tensor:
    """Zeros of the shape and dtype of x."""
    return full_like(x, 0, dtype)


@declares
def ones_like(x: TensorLike, dtype: DTypeLike | None = None) -> Tensor:
    """Ones of the shape and dtype of x."""
    return full_like(x, 1, dtype)


@declares
def arange(start: Any, stop: Any = None, step: Any = 1, dtype: DTypeLike | None = None) -> Tensor:
    """start, start + step, ... below stop. One argument is `stop`; that may be symbolic. int64, or float32
    if an argument is a float, unless `dtype` says otherwise."""
    if stop is None:
        start, stop = 0, start
    symbolic = any(isinstance(e, SymbolicExtent) for e in (start, stop))
    if step == 0 or (symbolic and step != 1):
        raise ShapeError(f"the step {step} is not supported here")
    if dtype is None:
        dtype = (
            "float32" if any(isinstance(e, (float, np.floating)) for e in (start, stop, step)) else "int64"
        )
    count: Extent = dsl.as_extent(stop - start) if symbolic else max(math.ceil((stop - start) / step), 0)
    found = as_dtype(dtype)
    if found.is_bool:
        raise DTypeError("a range cannot be bool")
    values = dsl.apply("iota", axis=0, dtype=found, shape=(count,))
    if step != 1:
        values = functions.multiply(values, dsl.full_of(step, found, (count,)))
    if isinstance(start, SymbolicExtent):
        raise ShapeError("the start of a range cannot be symbolic")
    return values if start == 0 else functions.add(values, dsl.full_of(start, found, (count,)))


@declares
def eye(n: Extent, m: Extent | None = None, k: int = 0, dtype: DTypeLike = "float32") -> Tensor:
    """Ones on the k-th diagonal of an n x m matrix of zeros."""
    shape: Shape = dsl.as_shape((n, n if m is None else m))
    rows, columns = (dsl.apply("iota", axis=axis, dtype=int64, shape=shape) for axis in (0, 1))
    shifted = functions.add(rows, dsl.full_of(k, int64, shape)) if k else rows
    return functions.cast(dsl.apply("eq", shifted, columns), dtype)
