"""The contraction of two operands: matrix products, batched ones, outer and inner products."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters
from typing import TYPE_CHECKING

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.ir.ops.base import Array, ArraySpec, Cotangents, OpDef, define
from graphc.ir.types import Extent, TensorType, require_equal

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs, GraphBuilder, Node


def split_spec(spec: str) -> tuple[str, str, str]:
    """The letters of the first operand, the second and the result of "bik,bkj->bij".

    Raises ShapeError unless each letter stands at most once per operand and result, each result letter
    comes from an operand, and each operand letter is in the result or in the other operand.
    """
    operands, arrow, result = spec.partition("->")
    left, comma, right = operands.partition(",")
    if not arrow or not comma or not set(left + right + result) <= set(ascii_letters):
        raise ShapeError(f"contract: {spec!r} is not of the form 'ik,kj->ij'")
    if any(len(set(part)) != len(part) for part in (left, right, result)):
        raise ShapeError(f"contract: {spec!r} repeats a letter within an operand or the result")
    if not set(result) <= set(left + right):
        raise ShapeError(f"contract: {spec!r} has a result letter that no operand has")
    if not set(left) ^ set(right) <= set(result):
        raise ShapeError(f"contract: {spec!r} sums a letter of one operand only; sum it first")
    return left, right, result


def _infer_contract(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    a, b = types
    spec = attrs["spec"]
    left, right, result = split_spec(spec)
    if a.dtype != b.dtype or a.dtype.is_bool:
        raise DTypeError(f"contract: {a} and {b} must have one dtype, which is not bool")
    if len(left) != a.rank or len(right) != b.rank:
        raise ShapeError(f"contract: {spec!r} does not fit {a} and {b}")
    extents: dict[str, Extent] = dict(zip(left, a.shape, strict=True))
    for letter, extent in zip(right, b.shape, strict=True):
        known = extents.get(letter)
        extents[letter] = (
            extent
            if known is None
            else require_equal(known, extent, f"contract {spec!r} of {a} and {b}, {letter}")
        )
    return [TensorType(a.dtype, tuple(extents[letter] for letter in result))]


def _contract_reference(
    arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]
) -> Sequence[Array]:
    return [np.asarray(np.einsum(attrs["spec"], *arrays, optimize=True)).astype(results[0].dtype, copy=False)]


def _vjp_contract(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """d/da of einsum(L,R->O) is einsum(O,R->L) of the cotangent and b, and so for b: each letter of an
    operand stands in the result or in the other operand, so no letter is missing."""
    (cotangent,) = cotangents
    assert cotangent is not None
    a, b = node.inputs
    left, right, result = split_spec(node.attrs["spec"])
    return [
        builder("contract", cotangent, b, spec=f"{result},{right}->{left}"),
        builder("contract", a, cotangent, spec=f"{left},{result}->{right}"),
    ]


define(
    OpDef(
        name="contract",
        family="contract",
        doc="einsum of two operands, e.g. 'bik,bkj->bij'. A letter in both operands and not in the result is"
        " summed over; in all three it is a batch axis. Integers wrap. attrs: spec.",
        infer=_infer_contract,
        reference=_contract_reference,
        vjp=_vjp_contract,
        linearity="multilinear",
    )
)
