"""The scalar expression of a node's value at one iteration of the nest that is being written.

A node is *pulled* by who needs it: its expression is inlined where it is used once, named by a `Let` where
it is used again, and hoisted to the depth that fixes its indices. What lies in memory is loaded; views are
looked through, and pad, concat, gather and pick pull their operands at other indices than their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.errors import LoweringError
from graphc.ir.access import Label, is_view
from graphc.ir.clusters import Cluster
from graphc.ir.graph import Node, Operand
from graphc.ir.indices import conjunction, guarded, known_extent, name_shared, view_index, within
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Buffer,
    Cast,
    Const,
    Expr,
    ExtentValue,
    Index,
    IndexValue,
    KernelScalars,
    Let,
    Load,
    Ref,
    Stmt,
    children,
    prim,
)
from graphc.ir.literals import plain_name
from graphc.ir.types import Extent, Shape, TensorType, floordiv, int64

if TYPE_CHECKING:
    from graphc.ir.lower import Lowering

AXIS_NAMES = "ijklmnpqruvwxyz"


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop of the nest: its label, axis name and extent."""

    label: Label
    axis: str
    extent: Extent

    @property
    def index(self) -> Affine:
        return Affine.of(self.axis)


class Values:
    """What a nest knows while it is written, and the expressions of nodes' values there.

    `lowering` knows where values lie in memory.
    """

    def __init__(self, lowering: Lowering, cluster: Cluster, name: str, chunk_label: Label | None) -> None:
        self.lowering = lowering
        self.cluster = cluster
        self.name = name
        self.members = set(cluster.nodes)
        self.buffers: dict[tuple[str, Shape], Buffer] = {}
        self.loops: dict[Label, Loop] = {}
        for number, label in enumerate([*cluster.parallel, *cluster.inner]):
            axis = AXIS_NAMES[number] if number < len(AXIS_NAMES) else f"i{number}"
            self.loops[label] = Loop(label, axis, lowering.extent_of(label))
        # Axes that memory holds in panels are two loops: over the panels, and within one.
        self.panels: dict[Label, Loop] = {}
        self.indices = {label: loop.index for label, loop in self.loops.items()}
        for label, width in lowering.panels_of(cluster).items():
            loop = self.loops[label]
            self.panels[label] = Loop(label, f"{loop.axis}p", floordiv(loop.extent, width))
            self.loops[label] = Loop(label, loop.axis, width)
            self.indices[label] = self.panels[label].index.scale(width) + loop.index
        self.chunk_label = chunk_label
        self.chunk_loop = None if chunk_label is None else self.loops_of(chunk_label)[0]
        if chunk_label in cluster.inner:
            # Chunks of a contracted axis: the wider operand's columns outermost, so that the strip of it
            # which a chunk reads stays in cache while the rows of the narrower one pass by.
            cluster.parallel.sort(key=lambda x: -known_extent(lowering.extent_of(x)))
        order = [x for x in cluster.parallel if x == chunk_label]
        order += [x for x in cluster.parallel if x != chunk_label]
        # A panel stays in cache while all rows of the other operand pass by.
        self.parallel = [*self.panels.values(), *(self.loops[x] for x in order)]
        self.inner = [self.loops[x] for x in cluster.inner]
        self.depth_of = {loop.axis: depth + 1 for depth, loop in enumerate(self.parallel)}
        self.row = len(self.parallel)
        self.inner_axes = {loop.axis for loop in self.inner}
        # Statements at the start of each depth; the last list is the row's own, which sweeps extend.
        self.regions: list[list[Stmt]] = [[] for _ in range(self.row + 1)]
        self.end: list[Stmt] = []
        self.sweep: list[Stmt] | None = None
        self.row_memo: dict[object, Expr] = {}
        self.sweep_memo: dict[object, Expr] = {}
        self.settled: dict[int, Expr] = {}  # expressions in which nothing is repeated, by their ids
        self.is_guarded = False
        self.counter = 0
        self.current_level = 0
        self.level: dict[Node, int] = {}
        self.kept: dict[Node, str] = {}  # inner nodes that a later sweep loads from a local array
        self.stored_at: dict[Node, int] = {}
        self.uses: dict[Node, int] = {}

    def is_inner(self, node: Node) -> bool:
        """Whether a node's value differs between iterations of the inner loops."""
        labels = self.lowering.out_labels(node)
        return any(label in self.cluster.inner for label in labels if label is not None)

    def reduces_inner(self, node: Node) -> bool:
        return any(label in self.cluster.inner for label in self.lowering.reduced_labels(node))

    def row_index(self, node: Node, name: str) -> Index:
        inner = tuple(loop.index for loop in self.inner)
        return (Affine.of(CHUNK), *inner) if self.lowering.has_row_storage(self, name) else inner

    def operand_index(self, node: Node, position: int) -> Index:
        labels = self.lowering.operand_labels(node, position)
        if labels is None:
            raise LoweringError(f"{node!r} reads operand {position} in a way no kernel can")
        return tuple(self.index_of(label) for label in labels)

    def index_of(self, label: Label | None) -> Affine:
        return Affine() if label is None else self.indices[label]

    def loops_of(self, label: Label) -> list[Loop]:
        """The loops that run over a label, outermost first."""
        return [*([self.panels[label]] if label in self.panels else []), self.loops[label]]

    def buffer(self, storage: str, type: TensorType, access: str) -> str:
        """The name of this kernel's view of a storage."""
        key = (storage, type.shape)
        known = self.buffers.get(key)
        if known is None:
            name = plain_name(storage)
            if any(b.name == name for b in self.buffers.values()):
                name = f"{name}.v{len(self.buffers)}"
            known = Buffer(name, storage, type, access)
        elif known.access != access:
            known = Buffer(known.name, storage, type, "inout")
        self.buffers[key] = known
        return known.name

    # ------------------------------------------------------------------------------------ expressions

    def fresh(self, prefix: str) -> str:
        self.counter += 1
        return f"{prefix}{self.counter}"

    def named(self, prefix: str, value: Expr, where: list[Stmt]) -> Expr:
        if isinstance(value, (Ref, Const)):
            return value
        name = self.fresh(prefix)
        where.append(Let(name, self.shared(value, where)))
        return Ref(name, value.dtype)

    def pull(self, operand: Operand, index: Index) -> Expr:
        """The value of an operand at an index: looked through, inlined, or loaded."""
        node = operand.node
        if is_view(node):
            if node.name == "reshape":
                return self.lowering.load(self, operand, index)
            return self.pull(node.inputs[0], view_index(node, index))
        if node in self.members:
            return self.member(node)
        if self.lowering.is_computed(node) or node.name in ("input", "parameter", "constant"):
            return self.lowering.load(self, operand, index)
        match node.name:
            case "full":
                return Const(node.attrs["value"], node.types[0].dtype)
            case "iota":
                value: Expr = IndexValue(index[node.attrs["axis"]])
                dtype = node.types[0].dtype
                return value if dtype == int64 else Cast(value, dtype)
            case "extent":
                return ExtentValue(node.attrs["extent"])
        return self.hoisted((node, index), self._elementwise(node, lambda o, p: self.pull(o, index)), index)

    def pull_guarded(self, operand: Operand, index: Index) -> Expr:
        """As `pull`, for an index that may lie outside: its loads stay in the expression, to be guarded."""
        outer, self.is_guarded = self.is_guarded, True
        value = self.pull(operand, index)
        self.is_guarded = outer
        return value

    def member(self, node: Node) -> Expr:
        """The value of a node of this cluster at the current iteration."""
        for memo in (self.sweep_memo if self.sweep is not None else {}, self.row_memo):
            if node in memo:
                return memo[node]
        inner = self.is_inner(node)
        if inner and self._is_later(node):
            return self._reload(node)
        if self.sweep is not None and not inner:
            # A value of the row, wanted within a sweep: computed once, before the sweep.
            sweep, self.sweep = self.sweep, None
            value = self.named("v", self._expression(node), self.regions[self.row])
            self.row_memo[node] = value
            self.sweep = sweep
            return value
        value = self._expression(node)
        if self.uses.get(node, 0) > 1:
            where = self.sweep if inner and self.sweep is not None else self.regions[self.row]
            value = self.named("v", value, where)
            (self.sweep_memo if inner else self.row_memo)[node] = value
        return value

    def _is_later(self, node: Node) -> bool:
        """Whether the value of an inner node was stored by an earlier sweep than the current one."""
        return (node in self.kept or node in self.stored_at) and self.level[node] < self.current_level

    def _reload(self, node: Node) -> Expr:
        dtype = node.types[0].dtype
        assert self.sweep is not None
        if node in self.kept:
            value: Expr = Load(self.kept[node], self.row_index(node, self.kept[node]), dtype)
        else:
            index = tuple(self.index_of(label) for label in self.lowering.out_labels(node))
            storage = self.lowering.storages_of(node)[0]
            index = self.lowering.index_in_memory(node, index)
            value = Load(self.buffer(storage, self.lowering.type_in_memory(node), "in"), index, dtype)
        self.sweep_memo[node] = self.named("v", value, self.sweep)
        return self.sweep_memo[node]

    def _expression(self, node: Node) -> Expr:
        index = tuple(self.index_of(label) for label in self.lowering.out_labels(node))
        if node.op.family == "elementwise":
            return self._elementwise(node, lambda o, p: self.pull(o, self.operand_index(node, p)))
        if node.op.family == "move":
            return self._moved(node, index)
        raise LoweringError(f"{node!r} cannot be lowered")

    def _elementwise(self, node: Node, operand: Callable[[Operand, int], Expr]) -> Expr:
        assert node.op.scalar is not None
        values = [operand(o, position) for position, o in enumerate(node.inputs)]
        result = node.op.scalar(KernelScalars(), *values, **node.attrs)
        where = (
            self.sweep if self.sweep is not None and self._mentions_inner(result) else self.regions[self.row]
        )
        return self.shared(result, where)

    def _mentions_inner(self, expr: Expr) -> bool:
        """Whether an expression has to be evaluated within the sweep that is being written."""
        if isinstance(expr, Load) and any(affine.names & self.inner_axes for affine in expr.index):
            return True
        if isinstance(expr, IndexValue) and expr.affine.names & self.inner_axes:
            return True
        if isinstance(expr, (Load, Ref)):
            assert self.sweep is not None
            lets = {s.name for s in self.sweep if isinstance(s, Let)}
            names = {expr.name} if isinstance(expr, Ref) else {n for a in expr.index for n in a.names}
            if names & lets:
                return True
        return any(self._mentions_inner(child) for child in children(expr))

    def shared(self, expr: Expr, where: list[Stmt]) -> Expr:
        """Names every part of an expression that occurs in it more than once (by identity)."""
        return name_shared(expr, lambda: self.fresh("v"), where, self.settled)

    def hoisted(self, key: object, value: Expr, index: Index) -> Expr:
        """A value named at the depth where its index is known, if that is further out than here."""
        if self.is_guarded or isinstance(value, (Const, Ref)):
            return value
        names = {name for affine in index for name in affine.names}
        if self.sweep is not None and names & self.inner_axes:
            return value
        if any(name not in self.depth_of for name in names):
            return value  # indexed through a gathered scalar, which lives here
        depth = max((self.depth_of[name] for name in names), default=0)
        if depth == self.row and self.sweep is None:
            return value
        memo_key = ("hoisted", key)
        if memo_key not in self.row_memo:
            self.row_memo[memo_key] = self.named("h", value, self.regions[depth])
        return self.row_memo[memo_key]

    # -------------------------------------------------------------------------------- moving nodes

    def _moved(self, node: Node, index: Index) -> Expr:
        """pad, concat, gather, pick: reads of memory at other indices than the node's own."""
        match node.name:
            case "gather":
                axis = node.attrs["axis"]
                rank = len(node.inputs[1].shape)
                name = self._index_name(node.inputs[1], index[axis : axis + rank])
                return self.pull(node.inputs[0], (*index[:axis], Affine.of(name), *index[axis + rank :]))
            case "pick":
                axis = node.attrs["axis"]
                name = self._index_name(node.inputs[1], index)
                return self.pull(node.inputs[0], (*index[:axis], Affine.of(name), *index[axis:]))
            case "pad":
                return self._padded(node, index)
            case "concat":
                return self._concatenated(node, index)
        raise LoweringError(f"{node!r} cannot be lowered")

    def _index_name(self, operand: Operand, index: Index) -> str:
        """Names the integer scalar that a gather goes through."""
        value = self.pull(operand, index)
        where = self.sweep if self.sweep is not None else self.regions[self.row]
        name = self.fresh("at")
        where.append(Let(name, self.shared(value, where)))
        return name

    def _padded(self, node: Node, index: Index) -> Expr:
        source, low = node.inputs[0], node.attrs["low"]
        inner, conditions = [], []
        for axis, affine in enumerate(index):
            inner.append(affine + (low[axis] * -1))
            if low[axis] != 0 or node.attrs["high"][axis] != 0:
                conditions.append(within(inner[-1], 0, source.shape[axis]))
        dtype = source.dtype
        fill = Const(dtype.numpy.type(node.attrs["value"]).item(), dtype)
        value = self.pull_guarded(source, tuple(inner))
        return guarded(value, conjunction(conditions), fill) if conditions else value

    def _concatenated(self, node: Node, index: Index) -> Expr:
        axis = node.attrs["axis"]
        dtype = node.types[0].dtype
        result: Expr = Const(dtype.numpy.type(0).item(), dtype)
        start: Extent = 0
        for operand in node.inputs:
            shifted = index[axis] + (start * -1)
            inside = within(shifted, 0, operand.shape[axis])
            value = self.pull_guarded(operand, (*index[:axis], shifted, *index[axis + 1 :]))
            part = guarded(value, inside, Const(dtype.numpy.type(0).item(), dtype))
            result = part if start == 0 else prim("select", inside, part, result)
            start = start + operand.shape[axis]
        return result
