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

The expressions that its statements compute come from `graphc.ir.values`. A contraction is a reduction over
its contracted labels like any other; only its schedule will differ.
"""

from __future__ import annotations

from graphc.ir.clusters import EXPENSIVE
from graphc.ir.graph import Node
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Combine,
    Const,
    Expr,
    For,
    Ref,
    Stmt,
    Store,
    Temp,
    Var,
    prim,
)
from graphc.ir.scalar import combine_identity
from graphc.ir.types import Extent, TensorType
from graphc.ir.values import Values

COMBINE_OF = {
    "reduce_sum": "sum", "reduce_prod": "prod", "reduce_max": "max", "reduce_min": "min", "contract": "sum",
}  # fmt: skip
TEMP_LIMIT = 8192  # elements of a row that may lie on the stack


class Nest(Values):
    """Builds the body of one cluster's kernel."""

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

    # ------------------------------------------------------------------------------ levels and sweeps

    def _row_level(self, level: int) -> None:
        """Results of one iteration of P that lie at this level: stored, or added up over P."""
        for node in self.cluster.nodes:
            if self.level[node] != level or self.is_inner(node) or self.reduces_inner(node):
                continue
            if node.op.family == "reduce":
                value = self.pull(node.inputs[0], self.operand_index(node, 0))
                if not self._reduces_parallel(node):  # every reduced axis has an extent of 1
                    self.row_memo[node] = self.named("r", value, self.regions[self.row])
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
                self._accumulate(node, self.pull(node.inputs[0], self.operand_index(node, 0)), self.sweep)
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
        value = self.named("v", self.member(node), self.sweep)
        self.sweep_memo[node] = value
        if node in self.kept:
            self.sweep.append(Store(self.kept[node], self.row_index(node, self.kept[node]), value))
        if self.lowering.needs_memory(node):
            self._store_result(node)

    def _summand(self, node: Node) -> Expr:
        """What a reduction or a contraction adds up, at one iteration of the inner loops."""
        if node.op.family != "contract":
            return self.pull(node.inputs[0], self.operand_index(node, 0))
        factors = [self.pull(o, self.operand_index(node, p)) for p, o in enumerate(node.inputs)]
        return prim("mul", *factors)

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
            value = self.named("v", value, where)
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
                self.row_memo[reader] = self.named("v", self.member(reader), self.regions[self.row])

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
