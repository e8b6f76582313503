"""Lowers clusters to kernels: decides where values lie in memory and assembles the KernelProgram.

storage of a computed node:  the Variable it updates | the output it is | a temporary
a result that chunks add up: a slot per chunk, combined by its only reader if that runs over the
                             same elements (or if the result is a scalar), else by a kernel of its own
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from graphc.errors import LoweringError
from graphc.ir.access import Label, Labels, Read, is_view
from graphc.ir.clusters import Cluster, Clustering
from graphc.ir.graph import Graph, Node, Operand
from graphc.ir.indices import known_extent
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Body,
    Buffer,
    Combine,
    Const,
    Expr,
    For,
    Index,
    Kernel,
    KernelProgram,
    Let,
    Load,
    Ref,
    Stmt,
    Storage,
    Store,
    Temp,
    Var,
    map_stmts,
    walk_stmts,
)
from graphc.ir.literals import plain_name
from graphc.ir.nest import COMBINE_OF, Nest
from graphc.ir.rewrite.layout import SPACING, lies_turned, panel_of, rows_collide
from graphc.ir.scalar import combine_identity
from graphc.ir.solo import check_kernel, scan_kernel, scatter_kernel
from graphc.ir.types import Extent, Guard, TensorType, dim, floordiv
from graphc.ir.values import Values

T = TypeVar("T")


def lower(graph: Graph, clustering: Clustering, guards: Iterable[Guard] = ()) -> KernelProgram:
    """Kernels in launch order, not yet scheduled. Raises LoweringError for an op that has no lowering."""
    return Lowering(graph, clustering).run(tuple(guards))


FEW_ROWS = 96
"""Rows of a product up to which its chunks are panels of its columns."""
MANY_PANELS = 16


class Lowering:
    """State shared by the nests of one program: storages, and who reads what."""

    def __init__(self, graph: Graph, clustering: Clustering) -> None:
        self.graph = graph
        self.clustering = clustering
        self.reader = clustering.reader
        self.storages: dict[str, Storage] = {}
        self.kernels: list[Kernel] = []
        self._cluster_of = {n: c for c in clustering.clusters for n in c.nodes}
        self._external: dict[Node, set[Cluster]] = {}
        self._out_labels: dict[Node, Labels] = {}
        self._reduced_labels: dict[Node, tuple[Label, ...]] = {}
        self._names: dict[Node, list[str]] = {}
        self._partials: dict[Node, tuple[str, TensorType]] = {}  # slots, one per chunk
        self._row_storages: dict[str, TensorType] = {}
        self._counter = 0
        self._results = {operand.node for operand in graph.roots}
        self._spacing: dict[Node, int] = {}
        for node in self.reader.computed:
            for read in self.reads(node):
                source = read.terminal.node
                if self._cluster_of.get(source) is not self._cluster_of[node]:
                    self._external.setdefault(source, set()).add(self._cluster_of[node])
        self._name_leaves()
        self._name_results()

    # ----------------------------------------------------------------------------- labels, readers

    def _find(self, labels: Labels) -> Labels:
        mapping = self.clustering.labels
        return tuple(None if label is None else mapping.get(label, label) for label in labels)

    def out_labels(self, node: Node) -> Labels:
        if node not in self._out_labels:
            self._out_labels[node] = self._find(self.reader.out_labels[node])
        return self._out_labels[node]

    def reduced_labels(self, node: Node) -> tuple[Label, ...]:
        if node not in self._reduced_labels:
            found = self._find(self.reader.reduced_labels[node])
            self._reduced_labels[node] = tuple(x for x in found if x is not None)
        return self._reduced_labels[node]

    def operand_labels(self, node: Node, position: int) -> Labels | None:
        labels = self.reader.operand_labels(node, position)
        return None if labels is None else self._find(labels)

    def extent_of(self, label: Label) -> Extent:
        return self.clustering.extents[label]

    def reads(self, node: Node) -> Sequence[Read]:
        return self.clustering.reads[node]

    def is_computed(self, node: Node) -> bool:
        return node in self._cluster_of and node.op.family != "effect"

    # ----------------------------------------------------------------------------------- storages

    def _add(self, storage: Storage) -> str:
        self.storages[storage.name] = storage
        return storage.name

    def _name_leaves(self) -> None:
        for node in self.graph.nodes():
            type = node.types[0]
            if node.name == "input":
                self._names[node] = [self._add(Storage(node.attrs["name"], type, "input"))]
            elif node.name == "parameter":
                variable = node.variable
                self._names[node] = [self._add(Storage(variable.name, type, "state", variable=variable))]
            elif node.name == "constant":
                data = node.attrs["data"]
                self._names[node] = [self._add(Storage(f"const.d{data.digest}", type, "constant", data=data))]

    def _name_results(self) -> None:
        """Updates live in their Variable, outputs in a storage of their own, the rest in temporaries."""
        for variable, operand in self.graph.updates.items():
            if variable.name not in self.storages:
                self._add(Storage(variable.name, variable.type, "state", variable=variable))
            self._names.setdefault(operand.node, []).append(variable.name)
        for label, operand in self.graph.outputs.items():
            name = self._add(Storage(f"out.{label}", operand.type, "output"))
            self._names.setdefault(operand.node, []).append(name)

    def temporary(self, type: TensorType) -> str:
        self._counter += 1
        return self._add(Storage(f"tmp.t{self._counter}", type, "temporary"))

    def needs_memory(self, node: Node) -> bool:
        """Whether something outside a node's cluster reads it."""
        return node in self._names or node in self._external

    def storages_of(self, node: Node) -> list[str]:
        """Where a node's value lies; a temporary is made on first demand."""
        if node not in self._names:
            self._names[node] = [self.temporary(self.type_in_memory(node))]
        return self._names[node]

    def type_in_memory(self, node: Node) -> TensorType:
        """A node's type as it is stored: with a gap after each row where rows would collide in cache."""
        type = node.types[0]
        if panel := panel_of(node):
            return TensorType(type.dtype, (floordiv(type.shape[-1], panel), *type.shape[:-1], panel))
        if node not in self._spacing:
            self._spacing[node] = self._needed_spacing(node)
        spacing = self._spacing[node]
        return TensorType(type.dtype, (*type.shape[:-1], type.shape[-1] + spacing)) if spacing else type

    def index_in_memory(self, node: Node, index: Index) -> Index:
        """The index of an element as a node is stored: (panel, ..., place within it) for panels."""
        panel = panel_of(node)
        if not panel:
            return index
        whole = tuple((n, floordiv(c, panel)) for n, c in index[-1].terms if c == panel)
        rest = tuple((n, c) for n, c in index[-1].terms if c != panel)
        if any(c != 1 for _, c in rest) or index[-1].offset != 0:
            raise LoweringError(f"{node!r} lies in panels and is read at {index[-1]}")
        return (Affine(whole), *index[:-1], Affine(rest))

    def panels_of(self, cluster: Cluster) -> dict[Label, int]:
        """The labels of a cluster along which it writes or reads panels, with their widths."""
        found: dict[Label, int] = {}
        for node in cluster.nodes:
            width, label = panel_of(node), self.out_labels(node)[-1] if self.out_labels(node) else None
            if node.op.family == "contract":
                width = max(panel_of(operand.node) for operand in node.inputs)
            if width and label is not None:
                found[label] = width
        return found

    def _needed_spacing(self, node: Node) -> int:
        """A copy says so itself; a temporary needs it if a contraction may run down its columns."""
        if node.name == "copy" and "spacing" in node.attrs:
            return int(node.attrs["spacing"])
        is_result = node in self._results or node.op.family not in ("elementwise", "contract")
        if is_result or not rows_collide(node.types[0]):
            return 0
        readers = [n for cluster in self._external.get(node, ()) for n in cluster.nodes]
        readers = [n for n in readers if any(read.terminal.node is node for read in self.reads(n))]
        direct = all(self._is_direct(reader, node) for reader in readers)
        return SPACING if direct and any(r.op.family == "contract" for r in readers) else 0

    def add_row_storage(self, nest: Nest, name: str, type: TensorType) -> None:
        chunks: Extent = dim(f"{nest.name}.chunks") if nest.chunk_label is not None else 1
        full = TensorType(type.dtype, (chunks, *type.shape))
        storage = self.temporary(full)
        nest.buffers[(storage, full.shape)] = Buffer(name, storage, full, "inout")
        self._row_storages[f"{nest.name}/{name}"] = full

    def has_row_storage(self, nest: Values, name: str) -> bool:
        return f"{nest.name}/{name}" in self._row_storages

    def accumulator_of(self, nest: Nest, node: Node) -> tuple[str, TensorType, bool]:
        """Where a result reduced over parallel labels is added up: (storage, type, has a slot per chunk)."""
        type = node.types[0]
        if nest.chunk_label is None or nest.chunk_label in self.out_labels(node):
            return self.storages_of(node)[0], type, False
        if node not in self._partials:
            shape = self.place_in_slot(node, type.shape)
            slots = TensorType(type.dtype, (dim(f"{nest.name}.chunks"), *shape))
            self._partials[node] = (self.temporary(slots), slots)
        storage, slots = self._partials[node]
        return storage, slots, True

    def place_in_slot(self, node: Node, index: tuple[T, ...]) -> tuple[T, ...]:
        """The index of an element, or the shape, of a result as it lies in a chunk's slot: the axes of a
        product are exchanged if that suits its tiles and nothing but the slots' reader sees it."""
        turned = node in self.clustering.split and lies_turned(node.types[0])
        return (index[1], index[0]) if turned and self._is_left_to_reader(node) else index

    # -------------------------------------------------------------------------------------- loads

    def load(self, nest: Values, operand: Operand, index: Index) -> Expr:
        """Loads an operand that lies in memory, through the shape under which it is read."""
        node = operand.node
        while node.name == "reshape":
            node = node.inputs[0].node
        if node in self._partials and node not in self._names:
            if all(label is None for label in self.out_labels(node)):
                # One element, read under whatever shape and through whatever index: it stands at 0.
                index = (Affine(),) * len(node.types[0].shape)
            return self._combined(nest, node, index)
        storage = self.storages_of(node)[0]
        spaced = self.type_in_memory(node)
        buffer = nest.buffer(storage, spaced if spaced != node.types[0] else operand.type, "in")
        place = self.index_in_memory(node, index)
        return nest.hoisted((storage, operand.shape, index), Load(buffer, place, operand.dtype), index)

    def _combined(self, nest: Values, node: Node, index: Index) -> Expr:
        """Combines the slots that the chunks of an earlier kernel left, in their order."""
        storage, slots = self._partials[node]
        key = ("combined", node, index)
        if key in nest.row_memo:
            return nest.row_memo[key]
        dtype = slots.dtype
        combine = COMBINE_OF[node.name]
        name, axis = nest.fresh("acc"), nest.fresh("c")
        buffer = nest.buffer(storage, slots, "in")
        names = {n for affine in index for n in affine.names}
        depth = max((nest.depth_of[n] for n in names), default=0)
        part = Load(buffer, (Affine.of(axis), *self.place_in_slot(node, index)), dtype)
        nest.regions[depth] += [
            Var(name, dtype, Const(combine_identity(combine, dtype), dtype)),
            For(axis, slots.shape[0], (Combine(name, combine, part),)),
        ]
        nest.row_memo[key] = Ref(name, dtype)
        return nest.row_memo[key]

    # ------------------------------------------------------------------------------------ kernels

    def run(self, guards: tuple[Guard, ...]) -> KernelProgram:
        for cluster in self.clustering.clusters:
            node = cluster.nodes[0]
            name = f"k{len(self.kernels)}"
            if node.op.family == "effect":
                self.kernels.append(check_kernel(self, cluster, name))
            elif node.op.family == "scan":
                self.kernels.append(scan_kernel(self, cluster, name))
            elif node.name == "scatter_add":
                self.kernels.append(scatter_kernel(self, cluster, name))
            else:
                self._lower_nest(cluster, name)
        outputs = {label: (f"out.{label}", operand.type) for label, operand in self.graph.outputs.items()}
        used = {b.storage for k in self.kernels for b in k.buffers}
        storages = {n: s for n, s in self.storages.items() if n in used or s.kind in ("input", "output")}
        kernels = tuple(_with_distinct_names(kernel) for kernel in self.kernels)
        return KernelProgram(storages, kernels, outputs, guards, tuple(self.clustering.decisions))

    def origin_of(self, cluster: Cluster) -> str:
        merged = self.graph.origin(cluster.nodes[0])
        for node in cluster.nodes:
            merged = merged.merge(self.graph.origin(node))
        names = dict.fromkeys(node.name for node in cluster.nodes)
        return " ".join([", ".join(names), *sorted(merged.sites)])

    def chunk_label(self, cluster: Cluster) -> Label | None:
        """The axis that is cut into chunks: the first long one, so that each chunk reads whole rows.

        A product with few rows is cut along its columns: into panels, where the other operand has them.
        """
        contract = cluster.contract
        if contract in self.clustering.split:
            return cluster.inner[0]
        if not cluster.parallel:
            return None
        extents = {label: self.extent_of(label) for label in cluster.parallel}
        for label, width in self.panels_of(cluster).items():
            rows = [known_extent(extent) for other, extent in extents.items() if other != label]
            panels = known_extent(extents[label]) // width
            if contract is not None and len(rows) == 1 and rows[0] <= FEW_ROWS and panels >= MANY_PANELS:
                return label
        last = extents[cluster.parallel[-1]]
        for label, extent in extents.items():
            if not isinstance(extent, int):
                return label
            if extent > 32 or not isinstance(last, int) or (extent >= 8 and last < 8 * extent):
                return label
        return max(extents, key=lambda label: known_extent(extents[label]))

    def _lower_nest(self, cluster: Cluster, name: str) -> None:
        nest = Nest(self, cluster, name, self.chunk_label(cluster))
        body = nest.body()
        form = "map"
        if cluster.contract is not None:
            form = "contract"
        elif any(node.op.family == "reduce" for node in cluster.nodes):
            form = "rows" if cluster.inner else "columns"
        elif any(node.op.family == "move" for node in cluster.nodes):
            form = "move"
        self.kernels.append(self.kernel_of(nest, cluster, form, body))
        for node in cluster.nodes:
            if node in self._partials:
                self._combine_slots(node)

    def kernel_of(self, nest: Nest, cluster: Cluster, form: str, body: tuple[Stmt, ...]) -> Kernel:
        chunked = nest.chunk_loop
        return Kernel(
            nest.name,
            form,
            tuple(nest.buffers.values()),
            body,
            chunk_axis=chunked.axis if chunked else "",
            chunk_extent=chunked.extent if chunked else 1,
            origin=self.origin_of(cluster),
        )

    def _combine_slots(self, node: Node) -> None:
        """Leaves the slots to their reader where that is free, else adds a kernel that combines them."""
        if self._is_left_to_reader(node):
            return
        storage, slots = self._partials.pop(node)
        name = f"k{len(self.kernels)}"
        shape = node.types[0].shape
        dtype = slots.dtype
        combine = COMBINE_OF[node.name]
        axes = [f"a{n}" for n in range(len(shape))]
        index = tuple(Affine.of(a) for a in axes)
        targets: dict[str, str] = {}
        for target in self.storages_of(node):
            view = plain_name(target)
            targets[f"{view}.v{len(targets)}" if view in targets else view] = target
        part = Load(storage, (Affine.of("c"), *index), dtype)
        body: tuple[Stmt, ...] = (
            Var("acc", dtype, Const(combine_identity(combine, dtype), dtype)),
            For("c", slots.shape[0], (Combine("acc", combine, part),)),
            *(Store(view, index, Ref("acc", dtype)) for view in targets),
        )
        for axis, extent in reversed(list(zip(axes, shape, strict=True))):
            body = (For(axis, extent, body, chunked=axis == axes[0]),)
        buffers = (
            Buffer(storage, storage, slots, "in"),
            *(Buffer(view, target, node.types[0], "out") for view, target in targets.items()),
        )
        origin = f"combine {node.name} " + " ".join(sorted(self.graph.origin(node).sites))
        self.kernels.append(
            Kernel(
                name,
                "columns",
                buffers,
                body,
                axes[0] if axes else "",
                shape[0] if axes else 1,
                origin=origin,
            )
        )

    def _is_left_to_reader(self, node: Node) -> bool:
        """Whether a result that lies in slots has no storage of its own: its reader combines them."""
        is_scalar = all(label is None for label in self.out_labels(node))
        readers = self._external.get(node, set())
        return node not in self._names and (is_scalar or self._reader_spans(node, readers))

    def _reader_spans(self, node: Node, readers: set[Cluster]) -> bool:
        """Whether the one cluster that reads a result runs over just its elements, aligned."""
        if len(readers) != 1:
            return False
        (reader,) = readers
        spans: set[Label] = set()
        for consumer in reader.nodes:
            for read in self.reads(consumer):
                if read.terminal.node is not node:
                    continue
                if read.labels is None:
                    return False
                spans = {label for label in self._find(read.labels) if label is not None}
                own = [label for label in self.out_labels(node) if label is not None]
                if len(spans) != len(own) or not self._is_direct(consumer, node):
                    return False
        return bool(spans) and not reader.inner and spans == set(reader.parallel)

    def _is_direct(self, consumer: Node, node: Node) -> bool:
        """Whether a node reads another without a reshape in between."""
        stack = [operand.node for operand in consumer.inputs]
        while stack:
            current = stack.pop()
            if current.name == "reshape" and any(
                read.terminal.node is node for read in self.reader.resolve(current.inputs[0], None)
            ):
                return False
            if is_view(current) or (current is not node and self.reader.is_inline(current)):
                stack.extend(operand.node for operand in current.inputs)
        return True


def _with_distinct_names(kernel: Kernel) -> Kernel:
    """Renames buffers that are called like one of the kernel's axes or scalars, as that of an input `i`."""
    taken = {CHUNK}
    for stmt in walk_stmts(kernel.body):
        if isinstance(stmt, For):
            taken.add(stmt.axis)
        elif isinstance(stmt, (Let, Var, Temp)):
            taken.add(stmt.name)
    names = {b.name: f"{b.name}.buffer" for b in kernel.buffers if b.name in taken}
    if not names:
        return kernel

    def expr_rule(expr: Expr) -> Expr | None:
        if isinstance(expr, Load) and expr.source in names:
            return replace(expr, source=names[expr.source])
        return None

    def stmt_rule(stmt: Stmt) -> Body | None:
        if isinstance(stmt, Store) and stmt.target in names:
            return (replace(stmt, target=names[stmt.target]),)
        return None

    buffers = tuple(replace(b, name=names.get(b.name, b.name)) for b in kernel.buffers)
    return replace(kernel, buffers=buffers, body=map_stmts(kernel.body, expr_rule, stmt_rule))
