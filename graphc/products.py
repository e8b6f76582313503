"""Products that sum over axes: matmul and einsum. Both become `contract` ops of two operands."""

from __future__ import annotations

from string import ascii_letters, ascii_lowercase
from typing import TYPE_CHECKING

from graphc import dsl, reductions, shaping
from graphc.errors import DTypeError, ShapeError
from graphc.ir.types import broadcast_shapes, int64, promote, require_equal
from graphc.sites import declares

if TYPE_CHECKING:
    from graphc.dsl import Tensor, TensorLike

# matmul's letters: x rows, y columns, z the summed axis; batch axes take the letters before.
_BATCH_LETTERS = ascii_lowercase[:23]


def _common_dtype(x: TensorLike, y: TensorLike) -> tuple[Tensor, Tensor]:
    """Both as tensors of the promoted dtype; bools count as int64."""
    a, b = dsl.as_tensor(x), dsl.as_tensor(y)
    dtype = promote(a.dtype, b.dtype)
    dtype = int64 if dtype.is_bool else dtype
    return dsl.fit(a, dtype, a.shape), dsl.fit(b, dtype, b.shape)


@declares
def matmul(x: TensorLike, y: TensorLike) -> Tensor:
    """The product over the last axis of x and the last but one of y, as numpy's `@`.

    One-dimensional operands are vectors; leading axes are batch axes and broadcast. Raises ShapeError
    for scalars and for inner extents that differ.
    """
    a, b = _common_dtype(x, y)
    if not a.shape or not b.shape:
        raise ShapeError("a scalar has no axis to sum over; use *")
    require_equal(a.shape[-1], b.shape[max(b.ndim - 2, 0)], "matmul: the inner extents")
    batch = max(a.ndim, b.ndim, 2) - 2
    if batch > len(_BATCH_LETTERS):
        raise ShapeError(f"{batch} batch axes are too many")
    broadcast_shapes([a.shape[:-2], b.shape[:-2]], "matmul: the batch axes")
    a_squeezed, a_letters = _batch_axes(a, b, batch)
    b_squeezed, b_letters = _batch_axes(b, a, batch)
    rows = "x" if a.ndim > 1 else ""
    columns = "y" if b.ndim > 1 else ""
    letters = "".join(sorted(set(a_letters) | set(b_letters)))
    spec = f"{a_letters}{rows}z,{b_letters}z{columns}->{letters}{rows}{columns}"
    return dsl.apply("contract", a_squeezed, b_squeezed, spec=spec)


def _batch_axes(tensor: Tensor, other: Tensor, batch: int) -> tuple[Tensor, str]:
    """The tensor without batch axes of extent 1 that the other repeats, and the letters of the rest."""
    axes = tensor.shape[:-2]
    missing, missing_there = batch - len(axes), batch - max(other.ndim - 2, 0)
    squeezed, letters = [], ""
    for axis, extent in enumerate(axes):
        position = missing + axis
        repeated = position >= missing_there and other.shape[position - missing_there] != 1
        if extent == 1 and repeated:
            squeezed.append(axis)
        else:
            letters += _BATCH_LETTERS[position]
    return shaping.squeeze(tensor, tuple(squeezed)) if squeezed else tensor, letters


@declares
def einsum(spec: str, *operands: TensorLike) -> Tensor:
    """numpy's einsum of one or two operands, without repeated letters in an operand and without `...`.

    Without `->` the result has the letters that occur once, in alphabetical order.
    """
    inputs, arrow, result = spec.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(operands) or len(terms) not in (1, 2):
        raise ShapeError(f"{spec!r} does not name one or two operands; {len(operands)} are given")
    if not set(inputs + result) <= set(ascii_letters + ","):
        raise ShapeError(f"{spec!r} may hold letters, a comma and an arrow alone")
    if not arrow:
        joined = "".join(terms)
        result = "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))
    if any(len(set(term)) != len(term) for term in (*terms, result)) or not set(result) <= set(inputs):
        raise ShapeError(f"{spec!r} repeats a letter within a term, or its result has one of its own")
    tensors = [dsl.as_tensor(operand) for operand in operands]
    for term, tensor in zip(terms, tensors, strict=True):
        if len(term) != tensor.ndim:
            raise ShapeError(f"{term!r} does not fit an operand of shape {tensor.shape}")
    if len(tensors) == 1:
        return _einsum_of_one(tensors[0], terms[0], result)
    for i in (0, 1):  # a letter that only one operand has, and the result has not, is summed before
        lonely = [k for k, letter in enumerate(terms[i]) if letter not in terms[1 - i] + result]
        tensors[i] = reductions.sum(tensors[i], tuple(lonely)) if lonely else tensors[i]
        terms[i] = "".join(letter for k, letter in enumerate(terms[i]) if k not in lonely)
    a, b = _common_dtype(*tensors)
    return dsl.apply("contract", a, b, spec=f"{terms[0]},{terms[1]}->{result}")


def _einsum_of_one(tensor: Tensor, term: str, result: str) -> Tensor:
    if tensor.dtype.is_bool:
        raise DTypeError("einsum does not take bools; cast them first")
    lonely = tuple(k for k, letter in enumerate(term) if letter not in result)
    summed = reductions.sum(tensor, lonely) if lonely else tensor
    kept = [letter for letter in term if letter in result]
    return shaping.transpose(summed, tuple(kept.index(letter) for letter in result))
