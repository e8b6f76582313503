"""Writes the loop nest of one cluster.

The nest of a cluster with parallel labels P0, P1, ... and inner labels I0, ...:

    [depth 0]                 values that no loop changes; sums over all of P start here
    for P0 chunked:
      [depth 1]
      for P1:
        [row]                 values of one iteration of P, level by level:
          for I0: for I1:       sweep 0: reductions whose operands need no other reduction
          ...                   values that need the results of sweep 0
          for I0: for I1:       sweep 1, and so on
    [end]                     what was summed over all of P is stored

A node is *pulled* by who needs it: its scalar expression is inlined where it is used once, named by a
`Let` where it is used again, and hoisted to the depth that fixes its indices. A contraction is a
reduction over its contracted labels like any other; only its schedule will differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.errors import LoweringError
from graphc.ir.access import Label, is_view
from graphc.ir.clusters import EXPENSIVE, Cluster
from graphc.ir.graph import Node, Operand
from graphc.ir.indices import known_extent, name_shared, view_index
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Buffer,
    Cast,
    Combine,
    Const,
    Expr,
    ExtentValue,
    For,
    Index,
    IndexValue,
    KernelScalars,
    Let,
    Load,
    Ref,
    Stmt,
    Store,
    Temp,
    Var,
    children,
    prim,
)
from graphc.ir.literals import plain_name
from graphc.ir.scalar import combine_identity
from graphc.ir.types import Extent, Shape, TensorType, floordiv, int64

if TYPE_CHECKING:
    from graphc.ir.lower import Lowering

AXIS_NAMES = "ijklmnpqruvwxyz"
COMBINE_OF = {
    "reduce_sum": "sum", "reduce_prod": "prod", "reduce_max": "max", "reduce_min": "min", "contract": "sum",
}  # fmt: skip
TEMP_LIMIT = 8192  # elements of a row that may lie on the stack


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop of the nest: its label, axis name and extent."""

    label: Label
    axis: str
    extent: Extent

    @property
    def index(self) -> Affine:
        return Affine.of(self.axis)


class Nest:
    """Builds the body of one cluster's kernel. `lowering` knows where values lie in memory."""

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

    # -------------------------------------------------------------------------------- the whole body

    def body(self) -> tuple[Stmt, ...]:
        self._analyse()
        for level in range(max(self.level.values(), default=0) + 1):
            self.current_level = level
            self._row_level(level)
            self._sweep_level(level)
        return self.wrapped(tuple(self.regions[-1]))

    def wrapped(self, row: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """The statements of one row within the parallel loops."""
        nested = row
        for depth in range(self.row, 0, -1):
            loop = self.parallel[depth - 1]
            chunked = loop is self.chunk_loop
            nested = (*self.regions[depth - 1], For(loop.axis, loop.extent, nested, chunked=chunked))
        return (*nested, *self.end)

    def is_inner(self, node: Node) -> bool:
        """Whether a node's value differs between iterations of the inner loops."""
        labels = self.lowering.out_labels(node)
        return any(label in self.cluster.inner for label in labels if label is not None)

    def reduces_inner(self, node: Node) -> bool:
        return any(label in self.cluster.inner for label in self.lowering.reduced_labels(node))

    def _analyse(self) -> None:
        """Levels (how many sweeps must come before), and which inner values several sweeps share."""
        for node in self.cluster.nodes:
            level = 0
            for read in self.lowering.reads(node):
                source = read.terminal.node
                if source in self.members:
                    level = max(level, self.level[source] + (1 if self.reduces_inner(source) else 0))
                    self.uses[source] = self.uses.get(source, 0) + 1
            self.level[node] = level
        sweeps: dict[Node, set[int]] = {}
        for node in reversed(self.cluster.nodes):
            own = sweeps.setdefault(node, set())
            if self.is_inner(node) and (self.lowering.needs_memory(node) or self._is_final_columns(node)):
                own.add(self.level[node])
            reached = {self.level[node]} if self.reduces_inner(node) or not self.is_inner(node) else own
            for read in self.lowering.reads(node):
                if read.terminal.node in self.members and self.is_inner(read.terminal.node):
                    sweeps.setdefault(read.terminal.node, set()).update(reached)
        for node in self.cluster.nodes:
            if self.is_inner(node) and len(sweeps[node]) > 1:
                if self.lowering.needs_memory(node):
                    self.stored_at[node] = self.level[node]
                elif node.name in EXPENSIVE and self._sweeps_rows():
                    self._keep(node)

    def _sweeps_rows(self) -> bool:
        """Whether the inner loops run along rows in memory (else the vectors lie across them)."""
        order = self.cluster.order
        return order == [*self.cluster.parallel, *self.cluster.inner]

    def _is_final_columns(self, node: Node) -> bool:
        return node.op.family == "reduce" and not self.reduces_inner(node)

    def _keep(self, node: Node) -> None:
        """Gives an inner value a local array for its row."""
        name = self.fresh("row")
        self.kept[node] = name
        size: Extent = 1
        for loop in self.inner:
            size = size * loop.extent
        if not isinstance(size, int) or size > TEMP_LIMIT:
            # Too long for the stack, or of unknown length: a slot in memory for each chunk.
            shape = tuple(loop.extent for loop in self.inner)
            self.lowering.add_row_storage(self, name, TensorType(node.types[0].dtype, shape))
        else:
            shape = tuple(loop.extent for loop in self.inner)
            self.regions[self.row].append(Temp(name, node.types[0].dtype, shape))

    def _row_index(self, node: Node, name: str) -> Index:
        inner = tuple(loop.index for loop in self.inner)
        return (Affine.of(CHUNK), *inner) if self.lowering.has_row_storage(self, name) else inner

    # ------------------------------------------------------------------------------ levels and sweeps

    def _row_level(self, level: int) -> None:
        """Results of one iteration of P that lie at this level: stored, or added up over P."""
        for node in self.cluster.nodes:
            if self.level[node] != level or self.is_inner(node) or self.reduces_inner(node):
                continue
            if node.op.family == "reduce":
                value = self.pull(node.inputs[0], self._operand_index(node, 0))
                if not self._reduces_parallel(node):  # every reduced axis has an extent of 1
                    self.row_memo[node] = self._named("r", value, self.regions[self.row])
                    self._store_result(node)
                else:
                    self._accumulate(node, value, self.regions[self.row])
            elif self.lowering.needs_memory(node):
                self._store_result(node)

    def _sweep_level(self, level: int) -> None:
        """One pass over the inner loops for everything at this level that needs one."""
        reductions = [n for n in self.cluster.nodes if self.level[n] == level and self.reduces_inner(n)]
        roots = [
            n
            for n in self.cluster.nodes
            if self.level[n] == level
            and self.is_inner(n)
            and (self.lowering.needs_memory(n) or n in self.kept or n.op.family == "reduce")
        ]
        if not reductions and not roots:
            return
        row = self.regions[self.row]
        names: dict[Node, str] = {}
        for node in reductions:
            names[node] = self.fresh("acc")
            dtype = node.types[0].dtype
            identity = combine_identity(COMBINE_OF[node.name], dtype)
            row.append(Var(names[node], dtype, Const(identity, dtype)))
        self.sweep, self.sweep_memo = [], {}
        for node in [n for n in self.cluster.nodes if n in names or n in roots]:
            if node in names:
                self.sweep.append(Combine(names[node], COMBINE_OF[node.name], self._summand(node)))
            elif node.op.family == "reduce":
                self._accumulate(node, self.pull(node.inputs[0], self._operand_index(node, 0)), self.sweep)
            else:
                self._sweep_root(node)
        statements = tuple(self.sweep)
        self.sweep = None
        for loop in reversed(self.inner):
            chunked = loop is self.chunk_loop
            statements = (For(loop.axis, loop.extent, statements, chunked=chunked),)
        row.extend(statements)
        for node in reductions:
            total = Ref(names[node], node.types[0].dtype)
            self.row_memo[node] = total
            if self._reduces_parallel(node):
                self._accumulate(node, total, row)
            elif self.chunk_label in self.lowering.reduced_labels(node):
                storage, type, _ = self.lowering.accumulator_of(self, node)
                index = tuple(self.index_of(label) for label in self.lowering.out_labels(node))
                buffer = self.buffer(storage, type, "out")
                place = self.lowering.place_in_slot(node, index)
                row.append(Store(buffer, (Affine.of(CHUNK), *place), total))
            elif self.lowering.needs_memory(node):
                self._store_result(node)

    def _sweep_root(self, node: Node) -> None:
        """An inner value that is stored, or kept for later sweeps."""
        assert self.sweep is not None
        value = self._named("v", self.member(node), self.sweep)
        self.sweep_memo[node] = value
        if node in self.kept:
            self.sweep.append(Store(self.kept[node], self._row_index(node, self.kept[node]), value))
        if self.lowering.needs_memory(node):
            self._store_result(node)

    def _summand(self, node: Node) -> Expr:
        """What a reduction or a contraction adds up, at one iteration of the inner loops."""
        if node.op.family != "contract":
            return self.pull(node.inputs[0], self._operand_index(node, 0))
        factors = [self.pull(o, self._operand_index(node, p)) for p, o in enumerate(node.inputs)]
        return prim("mul", *factors)

    def _operand_index(self, node: Node, position: int) -> Index:
        labels = self.lowering.operand_labels(node, position)
        if labels is None:
            raise LoweringError(f"{node!r} reads operand {position} in a way no kernel can")
        return tuple(self.index_of(label) for label in labels)

    def index_of(self, label: Label | None) -> Affine:
        return Affine() if label is None else self.indices[label]

    def loops_of(self, label: Label) -> list[Loop]:
        """The loops that run over a label, outermost first."""
        return [*([self.panels[label]] if label in self.panels else []), self.loops[label]]

    # -------------------------------------------------------------------------------------- results

    def _reduces_parallel(self, node: Node) -> bool:
        reduced = self.lowering.reduced_labels(node)
        return any(label in self.cluster.parallel for label in reduced)

    def _store_result(self, node: Node) -> None:
        """Stores a node's value, where the statements of its iteration stand."""
        where = self.sweep if self.sweep is not None else self.regions[self.row]
        self._read_before_store(node)
        value = self.member(node)
        if self.uses.get(node, 0) and not isinstance(value, (Ref, Const)):
            value = self._named("v", value, where)
            (self.sweep_memo if self.sweep is not None else self.row_memo)[node] = value
        for storage in self.lowering.storages_of(node):
            buffer = self.buffer(storage, self.lowering.type_in_memory(node), "out")
            index = tuple(self.index_of(label) for label in self.lowering.out_labels(node))
            index = self.lowering.index_in_memory(node, index)
            where.append(Store(buffer, index, self.shared(value, where)))

    def _read_before_store(self, node: Node) -> None:
        """Names what else reads, at this iteration, the state that a node is about to overwrite: inlined
        into a later value, it would read the new state. (In sweeps only what the node is made of does, and
        what a sweep reads of a row's state stands before that sweep already.)"""
        if self.sweep is not None:
            return
        written = set(self.lowering.storages_of(node))
        for reader in self.cluster.nodes:
            if reader is node or reader in self.row_memo or reader.op.family != "elementwise":
                continue
            if self.is_inner(reader):
                continue
            sources = (read.terminal.node for read in self.lowering.reads(reader))
            if any(source.name == "parameter" and source.variable.name in written for source in sources):
                self.row_memo[reader] = self._named("v", self.member(reader), self.regions[self.row])

    def _accumulate(self, node: Node, value: Expr, where: list[Stmt]) -> None:
        """Adds a value to a result that is reduced over parallel labels."""
        combine = COMBINE_OF[node.name]
        dtype = node.types[0].dtype
        identity = Const(combine_identity(combine, dtype), dtype)
        labels = self.lowering.out_labels(node)
        storage, type, slotted = self.lowering.accumulator_of(self, node)
        prefix = (Affine.of(CHUNK),) if slotted else ()
        if not any(label is not None for label in labels):
            # A scalar: added up in a register over the whole chunk.
            name = self.fresh("sum")
            self.regions[0].insert(0, Var(name, dtype, identity))
            where.append(Combine(name, combine, value))
            zeros = tuple(Affine() for _ in labels)
            buffer = self.buffer(storage, type, "out")
            self.end.append(Store(buffer, (*prefix, *zeros), Ref(name, dtype)))
            return
        buffer = self.buffer(storage, type, "inout")
        index = (*prefix, *(self.index_of(label) for label in labels))
        where.append(Store(buffer, index, self.shared(value, where), combine))
        clear: tuple[Stmt, ...] = (Store(buffer, index, identity),)
        for label in reversed([label for label in labels if label is not None]):
            for loop in reversed(self.loops_of(label)):
                clear = (For(loop.axis, loop.extent, clear, chunked=loop is self.chunk_loop),)
        self.regions[0].extend(clear)

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

    def _named(self, prefix: str, value: Expr, where: list[Stmt]) -> Expr:
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
            value = self._named("v", self._expression(node), self.regions[self.row])
            self.row_memo[node] = value
            self.sweep = sweep
            return value
        value = self._expression(node)
        if self.uses.get(node, 0) > 1:
            where = self.sweep if inner and self.sweep is not None else self.regions[self.row]
            value = self._named("v", value, where)
            (self.sweep_memo if inner else self.row_memo)[node] = value
        return value

    def _is_later(self, node: Node) -> bool:
        """Whether the value of an inner node was stored by an earlier sweep than the current one."""
        return (node in self.kept or node in self.stored_at) and self.level[node] < self.current_level

    def _reload(self, node: Node) -> Expr:
        dtype = node.types[0].dtype
        assert self.sweep is not None
        if node in self.kept:
            value: Expr = Load(self.kept[node], self._row_index(node, self.kept[node]), dtype)
        else:
            index = tuple(self.index_of(label) for label in self.lowering.out_labels(node))
            storage = self.lowering.storages_of(node)[0]
            index = self.lowering.index_in_memory(node, index)
            value = Load(self.buffer(storage, self.lowering.type_in_memory(node), "in"), index, dtype)
        self.sweep_memo[node] = self._named("v", value, self.sweep)
        return self.sweep_memo[node]

    def _expression(self, node: Node) -> Expr:
        index = tuple(self.index_of(label) for label in self.lowering.out_labels(node))
        if node.op.family == "elementwise":
            return self._elementwise(node, lambda o, p: self.pull(o, self._operand_index(node, p)))
        if node.op.family == "move":
            return self.lowering.moved(self, node, index)
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
            self.row_memo[memo_key] = self._named("h", value, self.regions[depth])
        return self.row_memo[memo_key]
