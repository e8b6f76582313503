"""Which nodes become memory, and how one node reads another through views.

Views (transpose, broadcast, slice, ...) and values without operands (full, iota, extent) are never
computed for their own sake: a reader looks through them. What is left are the *computed* nodes.

    read = (terminal operand, labels or None)

A node's own dims carry labels; a read says with which labels of the reader each dim of the terminal is
indexed (None in the tuple: an extent of 1, or a dim that broadcasting repeats). Labels None altogether:
the access is not aligned (a slice, a reshape, a gather), so the terminal has to lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from graphc.ir.graph import Graph, Node, Operand, Variable
from graphc.ir.ops.contract import split_spec
from graphc.ir.types import Extent

T = TypeVar("T")
Label = int
Labels = tuple["Label | None", ...]

INLINE_LEAVES = frozenset({"full", "iota", "extent"})
STORED_LEAVES = frozenset({"input", "parameter", "constant"})


class Read(NamedTuple):
    """One read of a computed node or a stored leaf by another node."""

    terminal: Operand
    labels: Labels | None


def is_view(node: Node) -> bool:
    """Whether a node is read through; a check_index is a view of what it has checked."""
    return node.op.family == "view" or node.name == "check_index"


class Reader:
    """Answers how nodes of one graph read each other. Caches per node, so build one per graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._inline: dict[Node, bool] = {}
        self._next_label = 0
        self.out_labels: dict[Node, Labels] = {}
        self.reduced_labels: dict[Node, tuple[Label, ...]] = {}
        self.computed: list[Node] = []
        for node in graph.nodes():
            looked_through = is_view(node) and node.op.family != "effect"
            if not (looked_through or node.name in STORED_LEAVES or self.is_inline(node)):
                self.computed.append(node)
                self._label(node)

    # ------------------------------------------------------------------------------ classification

    def is_inline(self, node: Node) -> bool:
        """full, iota, extent, and elementwise expressions over them: cheaper to evaluate than to keep."""
        if node not in self._inline:
            self._inline[node] = node.name in INLINE_LEAVES or (
                node.op.family == "elementwise"
                and node.name != "copy"
                and all(self.is_inline(_through_views(o.node)) for o in node.inputs)
            )
        return self._inline[node]

    def _fresh(self) -> Label:
        self._next_label += 1
        return self._next_label

    def _label(self, node: Node) -> None:
        """Gives every dim of a node, and every axis it reduces, a label of its own."""
        self.out_labels[node] = tuple(None if e == 1 else self._fresh() for e in node.types[0].shape)
        self.reduced_labels[node] = ()
        if node.op.family == "reduce":
            self.reduced_labels[node] = tuple(self._fresh() for _ in node.attrs["axes"])
        if node.op.family == "contract":
            left, _, result = split_spec(node.attrs["spec"])
            self.reduced_labels[node] = tuple(self._fresh() for letter in left if letter not in result)

    def iteration_labels(self, node: Node, extents: dict[Label, Extent]) -> list[Label]:
        """The labels of all loops a node needs, in the order of its operand's axes. Notes their extents."""
        out = self.out_labels[node]
        reduced = self.reduced_labels[node]
        extents.update((x, e) for x, e in zip(out, node.types[0].shape, strict=True) if x is not None)
        if not reduced:
            return [label for label in out if label is not None]
        operand = self.operand_labels(node, 0) or ()
        named = [(x, e) for x, e in zip(operand, node.inputs[0].shape, strict=True) if x is not None]
        if node.op.family == "reduce":
            extents.update(named)
            return [label for label, _ in named]
        extents.update((label, extent) for label, extent in named if label in reduced)
        return [label for label in out if label is not None] + list(reduced)

    # -------------------------------------------------------------------------------------- reads

    def operand_labels(self, node: Node, position: int) -> Labels | None:
        """With which of its labels a node indexes the dims of an operand; None where that is not aligned."""
        out = self.out_labels[node]
        family = node.op.family
        if family == "elementwise":
            return out
        if family == "reduce":
            labels = list(out)
            for axis, label in zip(node.attrs["axes"], self.reduced_labels[node], strict=True):
                labels.insert(axis, label)
            return tuple(labels)
        if family == "contract":
            left, right, result = split_spec(node.attrs["spec"])
            letters = dict(zip(result, out, strict=True))
            reduced = [letter for letter in left if letter not in result]
            letters.update(zip(reduced, self.reduced_labels[node], strict=True))
            return tuple(letters[letter] for letter in (left, right)[position])
        if node.name == "pick" and position == 1:
            return out
        if node.name == "gather" and position == 1:
            axis = node.attrs["axis"]
            return out[axis : axis + len(node.inputs[1].shape)]
        if is_view(node):
            return _through(node, out)
        return None

    def reads(self, node: Node) -> Iterator[Read]:
        """Everything a computed node reads from memory or from other computed nodes."""
        for position, operand in enumerate(node.inputs):
            yield from self.resolve(operand, self.operand_labels(node, position))

    def resolve(self, operand: Operand, labels: Labels | None) -> Iterator[Read]:
        """The computed nodes and stored leaves behind an operand that is indexed with these labels."""
        node = operand.node
        if is_view(node):
            yield from self.resolve(node.inputs[0], None if labels is None else _through(node, labels))
        elif not self.is_inline(node):
            yield Read(operand, labels)

    def checks(self, node: Node) -> Iterator[Node]:
        """The check_index nodes whose success a node relies on."""
        stack = [operand.node for operand in node.inputs]
        while stack:
            current = stack.pop()
            if current.name == "check_index":
                yield current
            if is_view(current) or self.is_inline(current):
                stack.extend(operand.node for operand in current.inputs)


def order_edges(
    reader: Reader, reads: Mapping[Node, Sequence[Read]], written: Mapping[Node, Variable]
) -> dict[Node, list[Node]]:
    """node -> what must come later: its readers, writers of state that it reads, users of a check.

    `written` are the nodes whose value a Variable takes at the end of the step.
    """
    after: dict[Node, list[Node]] = {n: [] for n in reader.computed}
    state_readers: dict[Variable, list[Node]] = {}
    for node in reader.computed:
        for read in reads[node]:
            terminal = read.terminal.node
            if terminal in after:
                after[terminal].append(node)
            elif terminal.name == "parameter":
                state_readers.setdefault(terminal.variable, []).append(node)
        for check in reader.checks(node):
            if check in after and check is not node:
                after[check].append(node)
    # Nothing may be written before every check of the step has passed.
    checks = [n for n in reader.computed if n.op.family == "effect"]
    for writer, variable in written.items():
        if writer in after:
            for earlier in (*state_readers.get(variable, []), *checks):
                if earlier is not writer:
                    after[earlier].append(writer)
    return after


def _through_views(node: Node) -> Node:
    while is_view(node):
        node = node.inputs[0].node
    return node


def through_view(node: Node, per_axis: tuple[T, ...], absent: T) -> tuple[T, ...] | None:
    """What belongs to each axis of a view's operand, from what belongs to those of its result.

    `absent` is for axes of the operand that the result lacks, or repeats. None for views that do more than
    choose axes: a slice, a reshape.
    """
    shape = node.inputs[0].shape
    match node.name:
        case "check_index":
            return per_axis
        case "transpose":
            result = [absent] * len(per_axis)
            for position, source in enumerate(node.attrs["permutation"]):
                result[source] = per_axis[position]
            return tuple(result)
        case "expand_dims":
            axes = node.attrs["axes"]
            return tuple(entry for position, entry in enumerate(per_axis) if position not in axes)
        case "squeeze":
            kept = iter(per_axis)
            axes = node.attrs["axes"]
            return tuple(absent if position in axes else next(kept) for position in range(len(shape)))
        case "broadcast_to":
            tail = per_axis[len(per_axis) - len(shape) :]
            return tuple(absent if extent == 1 else entry for extent, entry in zip(shape, tail, strict=True))
    return None


def _through(node: Node, labels: Labels) -> Labels | None:
    """The labels of a view's operand, from those of its result; None where the map is not aligned."""
    if node.name == "slice":
        whole = all(s == 0 for s in node.attrs["starts"]) and all(s == 1 for s in node.attrs["steps"])
        return labels if whole and tuple(node.attrs["shape"]) == node.inputs[0].shape else None
    return through_view(node, labels, None)
