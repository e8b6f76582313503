"""Reductions over axes, positions of extremes, running sums, and softmax.

`axis` is None (all axes), an int or a tuple, negative ones counted from the end; `keepdims` keeps the
reduced axes with extent 1. Sums and products of integers and bools are int64, means float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphc import dsl, functions
from graphc.axes import Axis, normalise_axes, normalise_axis
from graphc.errors import DeclarationError
from graphc.ir.types import Extent, int64
from graphc.sites import declares

if TYPE_CHECKING:
    from graphc.dsl import Tensor, TensorLike


def _keep(result: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    return dsl.apply("expand_dims", result, axes=axes) if keepdims and axes else result


def _reduce(op: str, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    axes = normalise_axes(axis, x.ndim)
    return _keep(dsl.apply(op, x, axes=axes) if axes else x, axes, keepdims)


def _widened(x: TensorLike) -> Tensor:
    """Integers and bools as int64, so that sums do not wrap where numpy's and PyTorch's do not."""
    tensor = dsl.as_tensor(x)
    return tensor if tensor.dtype.is_float else dsl.fit(tensor, int64, tensor.shape)


def extent_of(x: Tensor, axes: Sequence[int]) -> Extent:
    """The number of elements along axes."""
    count: Extent = 1
    for axis in axes:
        count = count * x.shape[axis]
    return count


def extent_tensor(extent: Extent, like: Tensor) -> Tensor:
    """An extent as a scalar of the dtype of a tensor; symbolic ones are read at run time."""
    if isinstance(extent, int):
        return dsl.full_of(extent, like.dtype, ())
    return functions.cast(dsl.apply("extent", extent=extent), like.dtype)


def divide_by_extent(x: Tensor, extent: Extent) -> Tensor:
    """x divided by an extent (zero gives NaN or inf, as numpy's mean of nothing)."""
    if isinstance(extent, int):
        return dsl.apply("div", x, dsl.full_of(extent, x.dtype, x.shape))
    return dsl.apply("div", x, dsl.fit(extent_tensor(extent, x), x.dtype, x.shape))


@declares
def sum(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum; 0 over an empty axis. Integers and bools are summed as int64."""
    return _reduce("reduce_sum", _widened(x), axis, keepdims)


@declares
def prod(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The product; 1 over an empty axis. Its gradient is right where elements are zero."""
    return _reduce("reduce_prod", _widened(x), axis, keepdims)


@declares
def max(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element, NaN if there is one. Ties share the gradient equally (PyTorch's amax)."""
    return _reduce("reduce_max", dsl.as_tensor(x), axis, keepdims)


@declares
def min(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element, NaN if there is one. Ties share the gradient equally (PyTorch's amin)."""
    return _reduce("reduce_min", dsl.as_tensor(x), axis, keepdims)


@declares
def any(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether any element differs from zero; False over an empty axis."""
    return _reduce("reduce_max", functions.as_bool(x), axis, keepdims)


@declares
def all(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element differs from zero; True over an empty axis."""
    return _reduce("reduce_min", functions.as_bool(x), axis, keepdims)


@declares
def mean(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum divided by the number of elements, which may be symbolic. Integers give float32."""
    tensor = functions.as_float(x)
    axes = normalise_axes(axis, tensor.ndim)
    total = _reduce("reduce_sum", tensor, axes, False)
    return _keep(divide_by_extent(total, extent_of(tensor, axes)), axes, keepdims)


@declares
def var(x: TensorLike, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The mean squared distance from the mean: sum((x - mean)^2) / (n - ddof), in two passes.

    ddof is 0 by default, as in numpy (PyTorch's default `correction` is 1).
    """
    tensor = functions.as_float(x)
    axes = normalise_axes(axis, tensor.ndim)
    centred = tensor - mean(tensor, axes, keepdims=True)
    total = _reduce("reduce_sum", functions.square(centred), axes, False)
    return _keep(divide_by_extent(total, extent_of(tensor, axes) - ddof), axes, keepdims)


@declares
def std(x: TensorLike, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The square root of `var`."""
    return functions.sqrt(var(x, axis, keepdims, ddof))


@declares
def norm(x: TensorLike, ord: float | None = None, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The vector norm over axes: ord 1, 2 (default) or inf; never a matrix norm (numpy: over two axes).

    The gradient of the 2-norm at the zero vector is 0.
    """
    tensor = functions.as_float(x)
    if ord is None or ord == 2:
        squares = _reduce("reduce_sum", functions.square(tensor), axis, keepdims)
        # sqrt has an infinite derivative at 0: there it is given 1 instead, and its result is not taken.
        positive = squares > 0
        return functions.where(positive, functions.sqrt(functions.where(positive, squares, 1)), squares)
    magnitudes = functions.absolute(tensor)
    if ord == 1:
        return _reduce("reduce_sum", magnitudes, axis, keepdims)
    if ord == math.inf:
        return _reduce("reduce_max", magnitudes, axis, keepdims)
    raise DeclarationError(f"the order of a norm is 1, 2 or inf, not {ord!r}")


def _position(op: str, x: TensorLike, axis: int | None, keepdims: bool) -> Tensor:
    tensor = dsl.as_tensor(x)
    if axis is None:
        flat = dsl.apply("reshape", tensor, shape=(tensor.size,))
        return _keep(dsl.apply(op, flat, axis=0), tuple(range(tensor.ndim)), keepdims)
    single = normalise_axis(axis, tensor.ndim)
    return _keep(dsl.apply(op, tensor, axis=single), (single,), keepdims)


@declares
def argmax(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The position of the largest element as int64: the first of equal ones, or the first NaN."""
    return _position("argmax", x, axis, keepdims)


@declares
def argmin(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The position of the smallest element as int64: the first of equal ones, or the first NaN."""
    return _position("argmin", x, axis, keepdims)


@declares
def cumsum(x: TensorLike, axis: int | None = None, reverse: bool = False) -> Tensor:
    """Running sums along an axis (of the flattened values for None), from the end with `reverse`."""
    tensor = _widened(x)
    if axis is None:
        tensor = dsl.apply("reshape", tensor, shape=(tensor.size,))
        axis = 0
    return dsl.apply("cumsum", tensor, axis=normalise_axis(axis, tensor.ndim), reverse=bool(reverse))


@declares
def logsumexp(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))), without overflow; -inf where all are -inf."""
    tensor = functions.as_float(x)
    axes = normalise_axes(axis, tensor.ndim)
    return _keep(dsl.apply("logsumexp", tensor, axes=axes) if axes else tensor, axes, keepdims)


@declares
def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis, without overflow."""
    tensor = functions.as_float(x)
    return dsl.apply("softmax", tensor, axis=normalise_axis(axis, tensor.ndim))


@declares
def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """x - logsumexp(x) along an axis."""
    tensor = functions.as_float(x)
    return dsl.apply("log_softmax", tensor, axis=normalise_axis(axis, tensor.ndim))
