"""The methods of `Tensor`: each is the function of that name in `gx`, applied to the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphc import functions, products, reductions, shaping
from graphc.axes import Axis
from graphc.sites import methods_name_options

if TYPE_CHECKING:
    from graphc.dsl import DTypeLike, ShapeLike, Tensor, TensorLike
    from graphc.ir.types import Extent


@methods_name_options
class TensorMethods:
    """Methods in numpy's spelling; see the function of the same name for what it does and raises."""

    __slots__ = ()

    def abs(self) -> Tensor:
        """As `gx.abs`."""
        return functions.absolute(self)

    def neg(self) -> Tensor:
        """As `gx.neg`."""
        return functions.negative(self)

    def exp(self) -> Tensor:
        """As `gx.exp`."""
        return functions.exp(self)

    def expm1(self) -> Tensor:
        """As `gx.expm1`."""
        return functions.expm1(self)

    def log(self) -> Tensor:
        """As `gx.log`."""
        return functions.log(self)

    def log1p(self) -> Tensor:
        """As `gx.log1p`."""
        return functions.log1p(self)

    def sqrt(self) -> Tensor:
        """As `gx.sqrt`."""
        return functions.sqrt(self)

    def rsqrt(self) -> Tensor:
        """As `gx.rsqrt`."""
        return functions.rsqrt(self)

    def square(self) -> Tensor:
        """As `gx.square`."""
        return functions.square(self)

    def reciprocal(self) -> Tensor:
        """As `gx.reciprocal`."""
        return functions.reciprocal(self)

    def sin(self) -> Tensor:
        """As `gx.sin`."""
        return functions.sin(self)

    def cos(self) -> Tensor:
        """As `gx.cos`."""
        return functions.cos(self)

    def tanh(self) -> Tensor:
        """As `gx.tanh`."""
        return functions.tanh(self)

    def sigmoid(self) -> Tensor:
        """As `gx.sigmoid`."""
        return functions.sigmoid(self)

    def erf(self) -> Tensor:
        """As `gx.erf`."""
        return functions.erf(self)

    def relu(self) -> Tensor:
        """As `gx.relu`."""
        return functions.relu(self)

    def selu(self) -> Tensor:
        """As `gx.selu`."""
        return functions.selu(self)

    def silu(self) -> Tensor:
        """As `gx.silu`."""
        return functions.silu(self)

    def softplus(self) -> Tensor:
        """As `gx.softplus`."""
        return functions.softplus(self)

    def stop_gradient(self) -> Tensor:
        """As `gx.stop_gradient`."""
        return functions.stop_gradient(self)

    def sign(self) -> Tensor:
        """As `gx.sign`."""
        return functions.sign(self)

    def floor(self) -> Tensor:
        """As `gx.floor`."""
        return functions.floor(self)

    def ceil(self) -> Tensor:
        """As `gx.ceil`."""
        return functions.ceil(self)

    def round(self) -> Tensor:
        """As `gx.round`."""
        return functions.round(self)

    def trunc(self) -> Tensor:
        """As `gx.trunc`."""
        return functions.trunc(self)

    def logical_not(self) -> Tensor:
        """As `gx.logical_not`."""
        return functions.logical_not(self)

    def isnan(self) -> Tensor:
        """As `gx.isnan`."""
        return functions.isnan(self)

    def leaky_relu(self, slope: float = 0.01) -> Tensor:
        """As `gx.leaky_relu`."""
        return functions.leaky_relu(self, slope)

    def elu(self, alpha: float = 1.0) -> Tensor:
        """As `gx.elu`."""
        return functions.elu(self, alpha)

    def gelu(self, approximate: str = "none") -> Tensor:
        """As `gx.gelu`."""
        return functions.gelu(self, approximate)

    def maximum(self, other: TensorLike) -> Tensor:
        """As `gx.maximum`."""
        return functions.maximum(self, other)

    def minimum(self, other: TensorLike) -> Tensor:
        """As `gx.minimum`."""
        return functions.minimum(self, other)

    def logical_and(self, other: TensorLike) -> Tensor:
        """As `gx.logical_and`."""
        return functions.logical_and(self, other)

    def logical_or(self, other: TensorLike) -> Tensor:
        """As `gx.logical_or`."""
        return functions.logical_or(self, other)

    def logical_xor(self, other: TensorLike) -> Tensor:
        """As `gx.logical_xor`."""
        return functions.logical_xor(self, other)

    def pow(self, exponent: TensorLike) -> Tensor:
        """As `gx.power`."""
        return functions.power(self, exponent)

    def clip(self, low: TensorLike | None = None, high: TensorLike | None = None) -> Tensor:
        """As `gx.clip`."""
        return functions.clip(self, low, high)

    def where(self, condition: TensorLike, other: TensorLike) -> Tensor:
        """The values where a condition holds, else those of `other`."""
        return functions.where(condition, self, other)

    def cast(self, dtype: DTypeLike) -> Tensor:
        """As `gx.cast`."""
        return functions.cast(self, dtype)

    def astype(self, dtype: DTypeLike) -> Tensor:
        """As `gx.cast`."""
        return functions.cast(self, dtype)

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.sum`."""
        return reductions.sum(self, axis, keepdims)

    def prod(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.prod`."""
        return reductions.prod(self, axis, keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.max`."""
        return reductions.max(self, axis, keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.min`."""
        return reductions.min(self, axis, keepdims)

    def any(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.any`."""
        return reductions.any(self, axis, keepdims)

    def all(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.all`."""
        return reductions.all(self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.mean`."""
        return reductions.mean(self, axis, keepdims)

    def logsumexp(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.logsumexp`."""
        return reductions.logsumexp(self, axis, keepdims)

    def var(self, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        """As `gx.var`."""
        return reductions.var(self, axis, keepdims, ddof)

    def std(self, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        """As `gx.std`."""
        return reductions.std(self, axis, keepdims, ddof)

    def norm(self, ord: float | None = None, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """As `gx.norm`."""
        return reductions.norm(self, ord, axis, keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """As `gx.argmax`."""
        return reductions.argmax(self, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """As `gx.argmin`."""
        return reductions.argmin(self, axis, keepdims)

    def cumsum(self, axis: int | None = None, reverse: bool = False) -> Tensor:
        """As `gx.cumsum`."""
        return reductions.cumsum(self, axis, reverse)

    def softmax(self, axis: int = -1) -> Tensor:
        """As `gx.softmax`."""
        return reductions.softmax(self, axis)

    def log_softmax(self, axis: int = -1) -> Tensor:
        """As `gx.log_softmax`."""
        return reductions.log_softmax(self, axis)

    def matmul(self, other: TensorLike) -> Tensor:
        """As `gx.matmul`."""
        return products.matmul(self, other)

    def reshape(self, *shape: Any) -> Tensor:
        """As `gx.reshape`."""
        return shaping.reshape(self, *shape)

    def flatten(self) -> Tensor:
        """All elements along one axis."""
        return shaping.reshape(self, -1)

    def transpose(self, *axes: Any) -> Tensor:
        """As `gx.transpose`."""
        return shaping.transpose(self, *axes)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """As `gx.swapaxes`."""
        return shaping.swapaxes(self, axis1, axis2)

    def expand_dims(self, axis: int | Sequence[int]) -> Tensor:
        """As `gx.expand_dims`."""
        return shaping.expand_dims(self, axis)

    def squeeze(self, axis: Axis = None) -> Tensor:
        """As `gx.squeeze`."""
        return shaping.squeeze(self, axis)

    def broadcast_to(self, shape: ShapeLike) -> Tensor:
        """As `gx.broadcast_to`."""
        return shaping.broadcast_to(self, shape)

    def flip(self, axis: Axis = None) -> Tensor:
        """As `gx.flip`."""
        return shaping.flip(self, axis)

    def split(self, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
        """As `gx.split`."""
        return shaping.split(self, sections, axis)

    def pad(self, pad_width: Any, mode: str = "constant", constant_values: float = 0) -> Tensor:
        """As `gx.pad`."""
        return shaping.pad(self, pad_width, mode, constant_values)

    def take(self, indices: TensorLike, axis: int | None = None) -> Tensor:
        """As `gx.take`."""
        return shaping.take(self, indices, axis)

    def one_hot(self, depth: Extent, dtype: DTypeLike = "float32") -> Tensor:
        """As `gx.one_hot`."""
        return shaping.one_hot(self, depth, dtype)
