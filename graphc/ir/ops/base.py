"""The op contract: everything the compiler knows about one op stands in one `OpDef`.

    infer(types, attrs) -> types                         raises ShapeError, DTypeError
    reference(arrays, attrs, results) -> arrays          numpy; the meaning of the op
    vjp(builder, node, cotangents) -> cotangents         built from other ops, so it nests
    jvp(builder, node, tangents) -> tangents             derived from `linearity` or, elementwise, from vjp
    scalar(s, *operands)                                 elementwise ops: the meaning, over primitives
    decompose(builder, node) -> operands                 composite ops: rewritten before lowering

`family` says how the op is lowered:

    leaf         input, parameter, constant, full, iota, extent: has no operands
    elementwise  one scalar expression; all operands and the result have the same shape
    view         an affine map of indices: transpose, broadcast_to, slice, expand_dims, squeeze; reshape
    move         pad, concat, gather along an axis by an index tensor, scatter_add
    reduce       reduce_sum/prod/max/min over axes, argmax/argmin
    scan         cumsum: a value carried along an axis
    contract     einsum of two operands
    composite    has `decompose`; never reaches a kernel
    effect       check_index: passes a value on and fails the step when it is bad
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphc.errors import DeclarationError, NotDifferentiableError
from graphc.ir.types import TensorType

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs, GraphBuilder, Node, Operand

Array = np.ndarray[Any, Any]


class ArraySpec(NamedTuple):
    """dtype and concrete shape that a reference must return."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


Infer = Callable[[Sequence[TensorType], "Attrs"], Sequence[TensorType]]
Reference = Callable[[Sequence[Array], "Attrs", Sequence[ArraySpec]], Sequence[Array]]
Cotangents = Sequence["Operand | None"]
Vjp = Callable[["GraphBuilder", "Node", Cotangents], Cotangents]
Decompose = Callable[["GraphBuilder", "Node"], "Sequence[Operand]"]

FAMILIES = ("leaf", "elementwise", "view", "move", "reduce", "scan", "contract", "composite", "effect")


@dataclass(frozen=True, eq=False, slots=True)
class OpDef:
    """One op. `vjp=None` declares that it is not differentiable (its cotangents are refused or zero)."""

    name: str
    family: str
    doc: str
    infer: Infer
    reference: Reference
    vjp: Vjp | None = None
    # "" | "linear" (in all differentiable operands together) | "multilinear" (in each one by itself)
    linearity: str = ""
    jvp: Vjp | None = None
    scalar: Callable[..., Any] | None = None
    decompose: Decompose | None = None
    # What a gradient through a non-differentiable op is: "zero" (comparisons, argmax) or "error".
    without_gradient: str = "zero"

    def __repr__(self) -> str:
        return f"OpDef({self.name})"


OPS: dict[str, OpDef] = {}


def define(definition: OpDef) -> OpDef:
    """Enters an op into the table `OPS`. Called at the bottom of each file in `graphc.ir.ops`."""
    if definition.name in OPS:
        raise DeclarationError(f"op {definition.name} is defined twice")
    if definition.family not in FAMILIES:
        raise DeclarationError(f"op {definition.name}: no family {definition.family!r}")
    OPS[definition.name] = definition
    return definition


def refuse_gradient(definition: OpDef) -> None:
    """Raises for an op through which no gradient may be asked."""
    raise NotDifferentiableError(f"{definition.name} has no gradient")
