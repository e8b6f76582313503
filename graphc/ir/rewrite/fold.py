"""Constant folding: what depends on constants alone is computed now, by the ops' own references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.ir.graph import ConstantData, Graph, GraphBuilder, Node, Operand
from graphc.ir.ops.base import Array, ArraySpec
from graphc.ir.rebuild import rebuild
from graphc.ir.rewrite.rules import is_full
from graphc.ir.types import DType, TensorType

# No folded array, and no array that is made to fold another, has more elements than this.
LARGEST = 64 * 1024

_KEEPS_VALUE = ("broadcast_to", "reshape", "expand_dims", "squeeze", "transpose", "slice")
_EXTREMES = ("reduce_max", "reduce_min")
# iota is left as it is: computing an index costs less than loading it.
_NEVER = ("input", "parameter", "constant", "full", "iota", "broadcast_to")


def fold(graph: Graph) -> Graph:
    """Folds constants.

        elementwise(full, ...)                     -> full, also at symbolic extents
        a view, slice or matching pad of a full    -> full
        the extreme, or the sum of zeros, of full  -> full
        op(constants of up to 64 Ki elements)      -> constant (the result no larger), or full if uniform
        extent(an int)                             -> full
        check_index(constant within range)         -> the constant; one that is out of range still fails

    Needs: a valid graph. Guarantees: dtypes and rounding are those of the op's reference in its own dtype
    (float32 is folded in float32); a constant that repeats one value is a `full`.
    """
    return rebuild(graph, _fold_node, "fold")


def _fold_node(b: GraphBuilder, node: Node, inputs: tuple[Operand, ...]) -> Sequence[Operand] | None:
    name, types = node.name, node.types
    if name == "constant":
        return _uniform(b, node.attrs["data"].array, types[0])
    if name == "extent":
        extent = node.attrs["extent"]
        return [b.full(extent, types[0])] if isinstance(extent, int) else None
    if not inputs:
        return None
    if all(map(is_full, inputs)):
        folded = _fold_fulls(b, node, inputs, types)
        if folded is not None:
            return folded
    if name == "check_index":
        return _fold_check(b, node, inputs[0])
    return _evaluate(b, node, inputs, types)


def _fold_fulls(
    b: GraphBuilder, node: Node, inputs: Sequence[Operand], types: Sequence[TensorType]
) -> Sequence[Operand] | None:
    """The value of an op on repeated values, where it repeats one value whatever the extents are."""
    name, values = node.name, [_scalar(operand) for operand in inputs]
    if node.op.family == "elementwise":
        (result,) = node.op.reference(values, node.attrs, [ArraySpec(types[0].dtype.numpy, ())])
        return [b.full(result.item(), types[0])]
    if name in _KEEPS_VALUE or (name == "concat" and len({v.tobytes() for v in values}) == 1):
        return [b.full(values[0].item(), types[0])]
    if name == "pad" and values[0].dtype.type(node.attrs["value"]).tobytes() == values[0].tobytes():
        return [b.full(values[0].item(), types[0])]
    reduced = [inputs[0].shape[axis] for axis in node.attrs.get("axes", ())]
    if name in _EXTREMES and all(isinstance(extent, int) for extent in reduced):
        return [b.full(values[0].item(), types[0])]
    # A sum of +0.0 is +0.0; one of -0.0 depends on how it starts.
    if name == "reduce_sum" and values[0] == 0 and not np.signbit(values[0]):
        return [b.full(0, types[0])]
    return None


def _scalar(operand: Operand) -> Array:
    return np.asarray(operand.node.attrs["value"], dtype=operand.dtype.numpy)


def _fold_check(b: GraphBuilder, node: Node, indices: Operand) -> Sequence[Operand] | None:
    extent, values = node.attrs["extent"], _array(indices)
    if values is None or not isinstance(extent, int):
        return None
    return [indices] if bool(np.all((values >= 0) & (values < extent))) else None


def _evaluate(
    b: GraphBuilder, node: Node, inputs: Sequence[Operand], types: Sequence[TensorType]
) -> Sequence[Operand] | None:
    """The op's reference on small constants, of which one at least is an array."""
    if node.name in _NEVER or node.op.family == "leaf":
        return None
    if not all(_is_small(t) for t in types) or not _is_concrete(tuple(node.attrs.values())):
        return None
    arrays = [_array(operand) for operand in inputs]
    known = [array for array in arrays if array is not None]
    if len(known) != len(arrays):
        return None
    specs = [ArraySpec(t.dtype.numpy, tuple(int(e) for e in t.shape)) for t in types]
    with np.errstate(all="ignore"):
        results = node.op.reference(known, node.attrs, specs)
    return [_constant(b, np.asarray(r), t) for r, t in zip(results, types, strict=True)]


def _array(operand: Operand) -> Array | None:
    """The value of a small constant or full of known shape."""
    if operand.node.name not in ("constant", "full") or not _is_small(operand.type):
        return None
    if operand.node.name == "constant":
        data = operand.node.attrs["data"]
        assert isinstance(data, ConstantData)
        return data.array
    return np.full(operand.shape, operand.node.attrs["value"], dtype=operand.dtype.numpy)


def _is_small(type: TensorType) -> bool:
    return isinstance(type.size, int) and _is_concrete(type.shape) and type.size <= LARGEST


def _is_concrete(value: Any) -> bool:
    """Whether no extent in an attribute is symbolic."""
    if isinstance(value, tuple):
        return all(map(_is_concrete, value))
    return isinstance(value, (bool, int, float, str, DType, type(None)))


def _constant(b: GraphBuilder, array: Array, type: TensorType) -> Operand:
    uniform = _uniform(b, array, type)
    if uniform is not None:
        return uniform[0]
    return b("constant", data=ConstantData(array), dtype=type.dtype, shape=type.shape)


def _uniform(b: GraphBuilder, array: Array, type: TensorType) -> Sequence[Operand] | None:
    """A `full`, if all elements have the same bits."""
    if array.size == 0:
        return [b.full(0, type)]
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")
    return [b.full(array.reshape(-1)[0].item(), type)] if bool(np.all(bits == bits[0])) else None
