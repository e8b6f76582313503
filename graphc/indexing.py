"""`x[...]`: integers, slices with steps, `...`, newaxis and integer index tensors or arrays, as in numpy.

Two differences: an axis of symbolic extent does not clamp a slice (x[:10] of a dim B has 10 elements, and
a run with B < 10 fails), and run-time index tensors must not be negative.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc import dsl, shaping
from graphc.errors import DTypeError, IndexRangeError, ShapeError
from graphc.ir.types import Extent, SymbolicExtent, broadcast_shapes, ceildiv, int64
from graphc.sites import declares

if TYPE_CHECKING:
    from graphc.dsl import Tensor


@declares
def index(x: Tensor, key: Any) -> Tensor:
    """`x[key]`. Raises IndexRangeError for a constant index out of range, DTypeError for boolean masks."""
    items = _expanded(key if isinstance(key, tuple) else (key,), x.ndim)
    sliced, items = _apply_basic(x, items)
    arrays = [k for k, item in enumerate(items) if item is not None and not isinstance(item, slice)]
    result = _insert_axes(sliced, items) if not arrays else _apply_arrays(sliced, items, arrays)
    return result


def _expanded(key: tuple[Any, ...], rank: int) -> list[Any]:
    """The items with `...` written out and missing axes as full slices."""
    ellipses = [k for k, item in enumerate(key) if item is Ellipsis]
    if len(ellipses) > 1:
        raise ShapeError("an index can hold only one '...'")
    used = sum(item is not None and item is not Ellipsis for item in key)
    if used > rank:
        raise ShapeError(f"{used} indices are too many for rank {rank}")
    position = ellipses[0] if ellipses else len(key)
    rest = [slice(None)] * (rank - used)
    return [_checked_item(i) for i in (*key[:position], *rest, *key[position + 1 :])]


def _checked_item(item: Any) -> Any:
    """The item, arrays as tensors or numpy arrays; boolean masks are refused."""
    if item is None or isinstance(item, (slice, SymbolicExtent)):
        return item
    if isinstance(item, dsl.Tensor):
        if not item.dtype.is_integer:
            raise DTypeError(_mask_message(item.dtype))
        return item
    if isinstance(item, (bool, np.bool_)):
        raise DTypeError(_mask_message("bool"))
    if isinstance(item, (list, tuple, np.ndarray)):
        array = np.asarray(item, dtype=np.int64 if np.size(item) == 0 else None)
        if array.dtype.kind not in "iu":
            raise DTypeError(_mask_message(array.dtype))
        return array
    try:
        return operator.index(item)
    except TypeError:
        raise DTypeError(f"{item!r} is not an index") from None


def _mask_message(dtype: Any) -> str:
    if str(dtype) != "bool":
        return f"an index is an integer, not {dtype}"
    return "a boolean mask would make the shape depend on values; use gx.where"


def _apply_basic(x: Tensor, items: Sequence[Any]) -> tuple[Tensor, list[Any]]:
    """Slices and integers done; left are None, full slices and index arrays."""
    starts: list[Extent] = []
    steps: list[int] = []
    counts: list[Extent] = []
    dropped: list[int] = []
    left: list[Any] = []
    for item in items:
        if item is None:
            left.append(None)
            continue
        axis = len(starts)
        extent = x.shape[axis]
        span: tuple[Extent, int, Extent] = (0, 1, extent)
        if isinstance(item, slice):
            span = _resolve_slice(item, extent)
            left.append(slice(None))
        elif isinstance(item, (int, SymbolicExtent)):
            span = (_resolve_integer(item, extent, axis), 1, 1)
            dropped.append(axis)
        else:
            left.append(item)
        starts.append(span[0])
        steps.append(span[1])
        counts.append(span[2])
    result = x
    if any(s != 0 for s in starts) or any(s != 1 for s in steps) or tuple(counts) != x.shape:
        result = dsl.apply("slice", x, starts=tuple(starts), steps=tuple(steps), shape=tuple(counts))
    if dropped:
        result = dsl.apply("squeeze", result, axes=tuple(dropped))
    return result, left


def _resolve_integer(item: Extent, extent: Extent, axis: int) -> Extent:
    if isinstance(item, int) and isinstance(extent, int) and not -extent <= item < extent:
        raise IndexRangeError(f"index {item} is out of range for axis {axis} with extent {extent}")
    return item + extent if isinstance(item, int) and item < 0 else item


def _resolve_slice(item: slice, extent: Extent) -> tuple[Extent, int, Extent]:
    """Start, step and number of elements."""
    step = 1 if item.step is None else operator.index(item.step)
    if step == 0:
        raise ShapeError("the step of a slice cannot be zero")
    bounds = (item.start, item.stop)
    if isinstance(extent, int) and not any(isinstance(b, SymbolicExtent) for b in bounds):
        elements = range(*item.indices(extent))
        return (elements.start, step, len(elements)) if elements else (0, 1, 0)
    first, last = (0, extent) if step > 0 else (extent - 1, -1)
    start: Extent = first if item.start is None else _resolve_bound(item.start, extent)
    stop: Extent = last if item.stop is None else _resolve_bound(item.stop, extent)
    distance = stop - start if step > 0 else start - stop
    count = ceildiv(distance, abs(step))
    return start, step, max(count, 0) if isinstance(count, int) else count


def _resolve_bound(bound: Any, extent: Extent) -> Extent:
    if isinstance(bound, SymbolicExtent):
        return bound
    value = operator.index(bound)
    return value + extent if value < 0 else value


def _insert_axes(x: Tensor, items: Sequence[Any]) -> Tensor:
    axes = tuple(k for k, item in enumerate(items) if item is None)
    return dsl.apply("expand_dims", x, axes=axes) if axes else x


def _apply_arrays(x: Tensor, items: Sequence[Any], arrays: Sequence[int]) -> Tensor:
    """Index arrays, broadcast together: axes that they index are merged and gathered from.

    As in numpy, the result's index axes stand where the arrays stood if those are adjacent, else first.
    """
    x = _insert_axes(x, items)
    extents = [x.shape[axis] for axis in arrays]
    picked = _pick_rows(x, items, arrays)
    if picked is not None:
        return picked
    adjacent = list(arrays) == list(range(arrays[0], arrays[0] + len(arrays)))
    target = arrays[0] if adjacent else 0
    if not adjacent:
        others = [k for k in range(x.ndim) if k not in arrays]
        x = shaping.transpose(x, (*arrays, *others))
    checked = [
        shaping.checked_indices(items[axis], extent, _name(items[axis]))
        for axis, extent in zip(arrays, extents, strict=True)
    ]
    if len(arrays) == 1:
        return dsl.apply("gather", x, checked[0], axis=target)
    shape = broadcast_shapes([t.shape for t in checked], "index arrays")
    linear = dsl.fit(checked[0], int64, shape)
    merged: Extent = extents[0]
    for tensor, extent in zip(checked[1:], extents[1:], strict=True):
        linear = linear * shaping.extent_value(extent) + dsl.fit(tensor, int64, shape)
        merged = merged * extent
    flat = (*x.shape[:target], merged, *x.shape[target + len(arrays) :])
    return dsl.apply("gather", dsl.apply("reshape", x, shape=flat), linear, axis=target)


def _pick_rows(x: Tensor, items: Sequence[Any], arrays: Sequence[int]) -> Tensor | None:
    """`x[arange(n), labels]` of an n x m matrix: one element of each row, without a gather."""
    if x.ndim != 2 or list(arrays) != [0, 1]:
        return None
    rows, columns = items
    if isinstance(rows, np.ndarray):
        is_arange = isinstance(x.shape[0], int) and np.array_equal(rows, np.arange(x.shape[0]))
    else:
        is_arange = rows.operand.node.name == "iota" and rows.shape == (x.shape[0],)
    if not is_arange or tuple(columns.shape) != (x.shape[0],):
        return None
    checked = shaping.checked_indices(columns, x.shape[1], _name(columns))
    return dsl.apply("pick", x, checked, axis=1)


def _name(item: Any) -> str:
    return (item.name if isinstance(item, dsl.Tensor) else None) or "index"
