"""Ops without operands: what a graph starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphc.errors import GraphcError
from graphc.ir.ops.base import Array, ArraySpec, OpDef, define
from graphc.ir.types import TensorType, int64

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs


def _bound_elsewhere(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
    raise GraphcError("inputs, parameters and extents are bound by the interpreter, not computed")


def _infer_declared(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    return [TensorType(attrs["dtype"], tuple(attrs["shape"]))]


define(
    OpDef(
        name="input",
        family="leaf",
        doc="A value fed at run time. attrs: name, dtype, shape.",
        infer=_infer_declared,
        reference=_bound_elsewhere,
    )
)
define(
    OpDef(
        name="parameter",
        family="leaf",
        doc="The value of a Variable at the start of the step. attrs: variable.",
        infer=lambda types, attrs: [attrs["variable"].type],
        reference=_bound_elsewhere,
    )
)
define(
    OpDef(
        name="constant",
        family="leaf",
        doc="A constant array. attrs: data (ConstantData), dtype, shape.",
        infer=_infer_declared,
        reference=lambda arrays, attrs, results: [attrs["data"].array.astype(results[0].dtype)],
    )
)
define(
    OpDef(
        name="full",
        family="leaf",
        doc="One value repeated. attrs: value, dtype, shape. Lowered into its consumers.",
        infer=_infer_declared,
        reference=lambda arrays, attrs, results: [
            np.full(results[0].shape, attrs["value"], dtype=results[0].dtype)
        ],
    )
)
define(
    OpDef(
        name="iota",
        family="leaf",
        doc="The index along one axis: out[..., i, ...] = i. attrs: axis, dtype, shape.",
        infer=_infer_declared,
        reference=lambda arrays, attrs, results: [_iota(attrs["axis"], results[0])],
    )
)
define(
    OpDef(
        name="extent",
        family="leaf",
        doc="The run-time value of an extent, as an int64 scalar. attrs: extent.",
        infer=lambda types, attrs: [TensorType(int64, ())],
        reference=_bound_elsewhere,
    )
)


def _iota(axis: int, result: ArraySpec) -> Array:
    column = np.arange(result.shape[axis], dtype=result.dtype)
    shape = [1] * len(result.shape)
    shape[axis] = -1
    return np.broadcast_to(column.reshape(shape), result.shape).copy()
