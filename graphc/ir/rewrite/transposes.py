"""Transposes, and axes of extent 1, are folded into the specs of contractions."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.ops.contract import split_spec
from graphc.ir.rebuild import rebuild
from graphc.ir.rewrite.shapes import aligned


def fold_transposes(graph: Graph) -> Graph:
    """Contractions read and write transposed values by a permuted spec.

        contract(transpose(a), b; spec)    -> contract(a, b; spec')
        contract(expand_dims(a), b; spec)  -> contract(a, b; spec'), expanded where the result has the axis
        transpose(contract(a, b; spec))    -> contract(a, b; spec') if nothing else reads the contraction

    Needs: a valid graph. Guarantees: no operand of a contraction is a transpose or an expand_dims, and no
    transpose reads a contraction that has no other reader. The sums are the same, in the same order.
    """
    outside = {operand.node for operand in graph.roots}
    readers = {node: len(found) for node, found in graph.consumers().items()}

    def rule(builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]) -> Sequence[Operand] | None:
        if node.name == "contract":
            return _fold_operands(builder, inputs[0], inputs[1], node.attrs["spec"])
        if node.name == "transpose":
            source = node.inputs[0].node
            if source.name == "contract" and source not in outside and readers[source] == 1:
                return _fold_result(builder, inputs[0], node.attrs["permutation"])
        return None

    return rebuild(graph, rule, "fold_transposes")


def _fold_operands(builder: GraphBuilder, a: Operand, b: Operand, spec: str) -> Sequence[Operand] | None:
    """The contraction of what is under the transposes and expand_dims, or None if there are none."""
    left, right, result = split_spec(spec)
    declared = result
    while True:
        if a.node.name == "transpose":
            a, left = _under_transpose(a, left)
        elif b.node.name == "transpose":
            b, right = _under_transpose(b, right)
        elif a.node.name == "expand_dims":
            a, left, b, right, result = _under_expand_dims(builder, a, left, b, right, result)
        elif b.node.name == "expand_dims":
            b, right, a, left, result = _under_expand_dims(builder, b, right, a, left, result)
        else:
            break
    folded = f"{left},{right}->{result}"
    if folded == spec:
        return None
    value = builder("contract", a, b, spec=folded)
    return [builder.expand_dims(value, [k for k, letter in enumerate(declared) if letter not in result])]


def _under_transpose(operand: Operand, letters: str) -> tuple[Operand, str]:
    """Axis k of the transposed operand is axis permutation[k] of the one under it."""
    named = dict(zip(operand.node.attrs["permutation"], letters, strict=True))
    return operand.node.inputs[0], "".join(named[axis] for axis in range(len(letters)))


def _under_expand_dims(
    builder: GraphBuilder, operand: Operand, letters: str, other: Operand, others: str, result: str
) -> tuple[Operand, str, Operand, str, str]:
    """Drops the letters of the inserted axes, which stand for one element each.

    A letter that the other operand and the result have stays theirs. One that only this operand and the
    result have leaves the result, too. One that is summed is squeezed out of the other operand.
    """
    dropped = {letters[axis] for axis in operand.node.attrs["axes"]}
    summed = [axis for axis, letter in enumerate(others) if letter in dropped and letter not in result]
    if summed:
        other = _squeeze(builder, other, summed)
        others = "".join(letter for axis, letter in enumerate(others) if axis not in summed)
    return (
        operand.node.inputs[0],
        "".join(letter for letter in letters if letter not in dropped),
        other,
        others,
        "".join(letter for letter in result if letter not in dropped or letter in others),
    )


def _squeeze(builder: GraphBuilder, operand: Operand, axes: Sequence[int]) -> Operand:
    shape = tuple(extent for axis, extent in enumerate(operand.shape) if axis not in axes)
    under = operand.node.inputs[0] if operand.node.name == "expand_dims" else operand
    return aligned(builder, under, shape) or builder("squeeze", operand, axes=tuple(axes))


def _fold_result(
    builder: GraphBuilder, value: Operand, permutation: Sequence[int]
) -> Sequence[Operand] | None:
    if value.node.name != "contract":
        return None  # it was given back expanded
    a, b = value.node.inputs
    left, right, result = split_spec(value.node.attrs["spec"])
    permuted = "".join(result[axis] for axis in permutation)
    return [builder("contract", a, b, spec=f"{left},{right}->{permuted}")]
