"""Fusion: groups computed nodes into clusters, each of which becomes one kernel.

A cluster is a set of nodes over one set of loop labels (`graphc.ir.access`): when two nodes join, the
labels of the dims through which one reads the other become one. It is legal when

- every read inside is aligned, and no two dims of a node fall on one label;
- the labels split into parallel ones P, which every node iterates over, and inner ones I, which are
  swept over within one iteration of P. What is reduced and read again inside is reduced over I only;
  a reduction over P leaves the cluster (its chunks are combined later);
- at most one contraction, whose inner labels are exactly its contracted ones; readers of its result form
  the epilogue, cheap elementwise operands read by nobody else the prologue;
- merging makes no cycle among clusters, counting also that every reader of state comes before its writer
  and every use of an index after its check.

First, reductions over leading axes (bias gradients, sums of losses) join the kernel of their operand.
Pass 1 joins a node to its readers where that spares the node from memory altogether. Pass 2 joins what
still shares an edge, which spares a read. Pass 3 joins sweeps over one tensor in memory. Every edge
leaves a `Decision`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from graphc.ir.access import Label, Labels, Read, Reader, order_edges
from graphc.ir.clusters import (
    EXPENSIVE,
    Cluster,
    Clustering,
    Decision,
    common_order,
    splits,
    topological_positions,
)
from graphc.ir.graph import Graph, Node, Operand, Variable
from graphc.ir.types import Extent

MAX_CLUSTER = 96  # nodes; bounds kernels, the search, and how deep expressions nest
OTHER_ORDER = "the axes come in another order"
SMALL = 4096  # elements that one core may as well sweep alone


def fuse(graph: Graph) -> Clustering:
    """Clusters the computed nodes of an optimized graph and orders the clusters."""
    return _Fuser(graph).run()


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reader = Reader(graph)
        self.parent: dict[Label, Label] = {}
        self.reads: dict[Node, list[Read]] = {n: list(self.reader.reads(n)) for n in self.reader.computed}
        self.consumers: dict[Node, list[tuple[Node, Read]]] = {n: [] for n in self.reader.computed}
        for node, reads in self.reads.items():
            for read in reads:
                if read.terminal.node in self.consumers:
                    self.consumers[read.terminal.node].append((node, read))
        self.written: dict[Node, Variable] = {o.node: v for v, o in graph.updates.items()}
        self.results = {o.node for o in graph.roots}
        self.after = order_edges(self.reader, self.reads, self.written)
        # Every edge of `after` goes to a later position, so a search for paths can stop early.
        self.position = topological_positions(self.reader.computed, self.after)
        self.reader.computed.sort(key=self.position.__getitem__)
        # For each position the first one of the clusters that reach as far.
        self.reach = list(range(len(self.reader.computed)))
        self.cluster_of: dict[Node, Cluster] = {}
        self.decisions: dict[tuple[Node, Node], Decision] = {}
        # Reductions over leading axes that are gathered beside their operand's kernel, chunk by chunk.
        self.gathered: set[Node] = set()
        self.extents: dict[Label, Extent] = {}
        self.split = {n for n in self.reader.computed if splits(n)}
        for node in self.reader.computed:
            order = self.reader.iteration_labels(node, self.extents)
            cluster = Cluster([node], order, first=self.position[node], last=self.position[node])
            self._split(cluster)
            self.cluster_of[node] = cluster

    # -------------------------------------------------------------------------------------- labels

    def find(self, label: Label) -> Label:
        while self.parent.setdefault(label, label) != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def _out(self, node: Node) -> set[Label]:
        return {self.find(label) for label in self.reader.out_labels[node] if label is not None}

    def _reduced(self, node: Node) -> set[Label]:
        return {self.find(label) for label in self.reader.reduced_labels[node]}

    # ---------------------------------------------------------------------------------- legality

    def _split(self, cluster: Cluster) -> str:
        """Splits a cluster's labels into parallel and inner ones. Returns why that fails, or ''."""
        members = set(cluster.nodes)
        contract = cluster.contract
        prologue = self._prologue(cluster) if contract else set()
        inner: set[Label] = set()
        common = set(cluster.order)
        final: list[Node] = []
        for node in cluster.nodes:
            reduced = self._reduced(node)
            if node is contract:
                if node in self.split and any(c in members for c, _ in self.consumers[node]):
                    return "the sum is complete only when all chunks are done"
                inner |= reduced
            elif reduced:
                if any(c in members for c, _ in self.consumers[node]):
                    if node in self.gathered:
                        return "the sum is complete only when all chunks are done"
                    inner |= reduced
                else:
                    final.append(node)
            if node.op.family == "scan":
                inner.add(self.find(self._scan_label(node)))
            if node not in prologue:
                common &= self._out(node) | reduced | (inner if node is not contract and contract else set())
        if contract:
            if inner != self._reduced(contract):
                return "another reduction is read beside the contraction"
            wanted = {label for label in cluster.order if label not in inner}
            if not wanted <= self._out(contract):
                return "the epilogue has an axis that the product lacks"
            if not wanted <= common | inner:
                return "part of the epilogue does not span the tile"
        else:
            inner |= set(cluster.order) - common
            inner |= self._trailing(cluster, final, inner)
        parallel = [label for label in cluster.order if label not in inner]
        if inner and not parallel and len(cluster.nodes) > 1 and not self._is_small(cluster.order):
            return "the whole tensor would be swept by one core"
        for node in cluster.nodes:
            if node in final or node in prologue:
                continue
            if not set(parallel) <= self._out(node) | ({*parallel} & self._reduced(node)):
                return "a node does not span the parallel axes"
            if set(parallel) & self._reduced(node):
                return "a reduction over a parallel axis is read inside"
        if any(node is not contract and not self._fits_sweep(node, inner) for node in cluster.nodes):
            return "a reduction and the sweep run over different axes"
        if any(self._out(n) & inner and not inner <= self._out(n) for n in self._stored(cluster, members)):
            return "a value that is needed elsewhere does not span the sweep"
        cluster.parallel, cluster.inner = parallel, [label for label in cluster.order if label in inner]
        return ""

    def _fits_sweep(self, node: Node, inner: set[Label]) -> bool:
        """Whether a reduction that takes part in a sweep adds each element once, into one accumulator."""
        reduced, out = self._reduced(node), self._out(node)
        if not reduced or not (reduced | out) & inner:
            return True
        return inner <= reduced | out and not (reduced & inner and out & inner)

    def _stored(self, cluster: Cluster, members: set[Node]) -> Iterator[Node]:
        """The members that are no reductions and are read outside the cluster."""
        for node in cluster.nodes:
            if node.op.family not in ("reduce", "contract") and (
                node in self.results or any(c not in members for c, _ in self.consumers[node])
            ):
                yield node

    def _scan_label(self, node: Node) -> Label:
        label = self.reader.out_labels[node][node.attrs["axis"]]
        return -1 if label is None else label

    def _trailing(self, cluster: Cluster, final: list[Node], inner: set[Label]) -> set[Label]:
        """Trailing labels that results reduce over while they keep, or also reduce, an earlier one.

        They are swept over with the sum in registers; reducing over the first label is left to chunks.
        """
        reduced = {label for node in final for label in self._reduced(node)}
        result: set[Label] = set()
        for label in reversed(cluster.order[1:]):
            if label in inner:
                continue
            if label not in reduced:
                break
            result.add(label)
        return result

    def _is_small(self, labels: Iterable[Label]) -> bool:
        size = 1
        for label in labels:
            extent = self.extents[label]
            if not isinstance(extent, int):
                return False
            size *= extent
        return size <= SMALL

    def _prologue(self, cluster: Cluster) -> set[Node]:
        """Elementwise members that only the contraction reads."""
        contract = cluster.contract
        result: set[Node] = set()
        for node in reversed(cluster.nodes):
            readers = [c for c, _ in self.consumers[node]]
            if (
                node.op.family == "elementwise"
                and readers
                and node not in self.results
                and all(c is contract or c in result for c in readers)
            ):
                result.add(node)
        return result

    def _merge(
        self, producer: Cluster, consumer: Cluster, siblings: bool = False
    ) -> tuple[Cluster | None, str]:
        """The union of two clusters, or None and the reason why it is not legal."""
        if len(producer.nodes) + len(consumer.nodes) > MAX_CLUSTER:
            return None, "the cluster is large enough"
        alone = {"scan", "effect"}
        for cluster in (producer, consumer):
            if any(n.op.family in alone or n.name == "scatter_add" for n in cluster.nodes):
                return None, "the op has a kernel of its own"
        if consumer.contract and any(n.name == "copy" for n in producer.nodes):
            return None, "the operand is laid out in memory"
        if producer.contract and consumer.contract:
            return None, "two contractions"
        pairs, reason = self._pairs(producer, consumer)
        if reason:
            return None, reason
        if self._makes_cycle(producer, consumer):
            return None, "it would make a cycle"
        saved = dict(self.parent)
        self._unify(pairs)
        merged, reason = (None, OTHER_ORDER) if siblings else self._united(producer, consumer)
        if reason == OTHER_ORDER:
            # Two sweeps over one tensor are one sweep, if their axes are taken to be the same.
            self._unify(self._shared_reads(producer, consumer))
            merged, reason = self._united(producer, consumer)
        if reason:
            self.parent = saved
        return merged, reason

    def _unify(self, pairs: list[tuple[Label, Label]]) -> None:
        for left, right in pairs:
            self.parent[self.find(left)] = self.find(right)

    def _shared_reads(self, a: Cluster, b: Cluster) -> list[tuple[Label, Label]]:
        """Labels under which two clusters read the same tensors from memory."""
        if a.contract or b.contract:
            return []
        known: dict[Operand, Labels] = {}
        for node in a.nodes:
            for read in self.reads[node]:
                if read.labels is not None:
                    known.setdefault(read.terminal, read.labels)
        pairs: list[tuple[Label, Label]] = []
        own, other = {self.find(x) for x in a.order}, {self.find(x) for x in b.order}
        forward: dict[Label, Label] = {x: x for x in own & other}
        backward = dict(forward)
        for node in b.nodes:
            for read in self.reads[node]:
                mine = known.get(read.terminal)
                if mine is None or read.labels is None:
                    continue
                both = [
                    (self.find(x), self.find(y)) for x, y in zip(mine, read.labels, strict=True) if x and y
                ]
                if all(forward.get(x, y) == y and backward.get(y, x) == x for x, y in both):
                    forward.update(both)
                    backward.update((y, x) for x, y in both)
                    pairs += both
        return pairs

    def _pairs(self, producer: Cluster, consumer: Cluster) -> tuple[list[tuple[Label, Label]], str]:
        """Labels that reads between two clusters identify; refuses reads that are not aligned.

        Looks both ways: of two sweeps over one tensor, the one that ends first may read the other.
        """
        members = set(producer.nodes) | set(consumer.nodes)
        pairs: list[tuple[Label, Label]] = []
        forward: dict[Label, Label] = {}
        backward: dict[Label, Label] = {}
        for node in (*producer.nodes, *consumer.nodes):
            for read in self.reads[node]:
                terminal = read.terminal.node
                if terminal not in members or self.cluster_of[terminal] is self.cluster_of[node]:
                    continue
                if read.labels is None:
                    return [], "the read is not aligned"
                for own, used in zip(self.reader.out_labels[terminal], read.labels, strict=True):
                    if own is None or used is None:
                        if own is not None:
                            return [], "the read is not aligned"
                        continue
                    a, b = self.find(own), self.find(used)
                    if forward.setdefault(a, b) != b or backward.setdefault(b, a) != a:
                        return [], "two reads disagree about the axes"
                    pairs.append((a, b))
        return pairs, ""

    def _united(self, producer: Cluster, consumer: Cluster) -> tuple[Cluster | None, str]:
        first = [self.find(label) for label in producer.order]
        second = [self.find(label) for label in consumer.order]
        order = common_order(first, second)
        if order is None:
            return None, OTHER_ORDER
        nodes = sorted(producer.nodes + consumer.nodes, key=self.position.__getitem__)
        merged = Cluster(
            nodes, order, first=min(producer.first, consumer.first), last=max(producer.last, consumer.last)
        )
        if merged.contract:
            # The contracted axes stay innermost.
            inner = self._reduced(merged.contract)
            merged.order = [x for x in order if x not in inner] + [x for x in order if x in inner]
        reason = self._split(merged) or self._unsafe_state(merged) or self._unfit_prologue(merged)
        return (None, reason) if reason else (merged, "")

    def _unfit_prologue(self, cluster: Cluster) -> str:
        """Operands computed on load are computed once per tile that reads them: only cheap ones may be."""
        contract = cluster.contract
        if contract is None:
            return ""
        before = [n for n in cluster.nodes if self.position[n] < self.position[contract]]
        feeding = self._ancestors(contract, set(before))
        prologue = self._prologue(cluster)
        for node in before:
            if node in feeding and node not in prologue:
                return "the operand of the contraction is also read elsewhere"
            if node in feeding and (node.name in EXPENSIVE or len(feeding) > 2):
                return "the operand is too dear to compute on every load"
        return ""

    def _ancestors(self, node: Node, within: set[Node]) -> set[Node]:
        result: set[Node] = set()
        stack = [node]
        while stack:
            for read in self.reads[stack.pop()]:
                source = read.terminal.node
                if source in within and source not in result:
                    result.add(source)
                    stack.append(source)
        return result

    def _unsafe_state(self, cluster: Cluster) -> str:
        """A kernel may write state that it reads only element by element, before the element is written."""
        written = {self.written[n]: n for n in cluster.nodes if n in self.written}
        if not written:
            return ""
        for node in cluster.nodes:
            for read in self.reads[node]:
                terminal = read.terminal.node
                if terminal.name != "parameter" or terminal.variable not in written:
                    continue
                writer = written[terminal.variable]
                own = [None if x is None else self.find(x) for x in self.reader.out_labels[writer]]
                if read.labels is None or own != [None if x is None else self.find(x) for x in read.labels]:
                    return "it reads elements of the state that it writes elsewhere"
                before = node is writer or node in self._ancestors(writer, set(cluster.nodes))
                if cluster.inner and (self._out(writer) & set(cluster.inner) or not before):
                    return "it reads the state in a sweep after the one that writes it"
        return ""

    def _makes_cycle(self, a: Cluster, b: Cluster) -> bool:
        """Whether some path between the two leads through a third cluster."""
        return self._path(a, b) or self._path(b, a)

    def _path(self, start: Cluster, goal: Cluster) -> bool:
        seen = {start}
        stack = []
        for node in start.nodes:
            for later in self.after[node]:
                cluster = self.cluster_of[later]
                if cluster is not goal and cluster not in seen:
                    seen.add(cluster)
                    stack.append(cluster)
        while stack:
            cluster = stack.pop()
            if self._lowest(cluster.first) > goal.last:
                continue
            for node in cluster.nodes:
                for later in self.after[node]:
                    following = self.cluster_of[later]
                    if following is goal:
                        return True
                    if following not in seen:
                        seen.add(following)
                        stack.append(following)
        return False

    def _lowest(self, position: int) -> int:
        """No node before this one can follow what stands at a position, or later.

        Edges lead to later positions, but within a cluster that spans it a path may go back.
        """
        while self.reach[position] < position:
            position = self.reach[position]
        return position

    def _span(self, cluster: Cluster) -> None:
        for position in range(cluster.last, cluster.first, -1):
            if self.reach[position] <= cluster.first:
                break
            self.reach[position] = cluster.first

    # ------------------------------------------------------------------------------------- search

    def run(self) -> Clustering:
        for node in self.reader.computed:
            self._gather(node)
        changed = True
        while changed:
            changed = False
            for node in reversed(self.reader.computed):
                changed |= self._join_readers(node)
        changed = True
        while changed:  # a join can clear the way for another one that would have made a cycle
            changed = False
            for node in self.reader.computed:
                for consumer, _ in sorted(self.consumers[node], key=lambda pair: self.position[pair[0]]):
                    changed |= self._join(node, consumer, "spares a read")
        for readers in self._readers_of_memory().values():
            for first, second in pairwise(readers):
                self._join_siblings(first, second)
        ordered = self._launch_order()
        labels = {label: self.find(label) for label in list(self.parent)}
        for label in self.extents:
            labels.setdefault(label, self.find(label))
        return Clustering(
            ordered, self.reader, list(self.decisions.values()), labels, frozenset(self.split), self.extents
        )

    def _readers_of_memory(self) -> dict[Operand, list[Node]]:
        """Who reads each large tensor that lies in memory, aligned, one node per cluster, in order."""
        readers: dict[Operand, list[Node]] = {}
        for node in self.reader.computed:
            for read in self.reads[node]:
                large = not isinstance(read.terminal.type.size, int) or read.terminal.type.size > SMALL
                if large and read.labels is not None and any(label is not None for label in read.labels):
                    readers.setdefault(read.terminal, []).append(node)
        return readers

    def _join_siblings(self, first: Node, second: Node) -> None:
        """Joins the sweeps of two nodes over one tensor, neither of which reads the other."""
        a, b = self.cluster_of[first], self.cluster_of[second]
        if a is b or a.contract or b.contract:
            return
        merged, _ = self._merge(*((a, b) if a.last < b.last else (b, a)), siblings=True)
        if merged is not None:
            for member in merged.nodes:
                self.cluster_of[member] = merged
            origin = str(self.graph.origin(second))
            reason = "spares a second sweep over one tensor"
            self.decisions[first, second] = Decision(
                repr(first), repr(second), True, reason, first.types[0].nbytes, origin
            )

    def _gather(self, node: Node) -> None:
        """Joins a reduction over leading axes to the kernel of its operand: it costs no pass of its own."""
        if node.op.family != "reduce" or node.types[0].size == 0:
            return
        labels = self.reader.operand_labels(node, 0) or ()
        order = [label for label in labels if label is not None]
        reduced = set(self.reader.reduced_labels[node])
        leading = bool(order) and order[0] in reduced
        for read in self.reads[node] if leading else []:
            if read.terminal.node in self.cluster_of:
                self.gathered.add(node)
                if not self._join(read.terminal.node, node, "gathered beside its operand"):
                    self.gathered.discard(node)

    def _join_readers(self, node: Node) -> bool:
        """Joins a node to its readers if they are all in one other cluster, so that it needs no memory."""
        readers = {self.cluster_of[c] for c, _ in self.consumers[node]}
        if node in self.results or len(readers) != 1 or self.cluster_of[node] in readers:
            return False
        return self._join(node, self.consumers[node][0][0], "spares the value from memory")

    def _join(self, node: Node, consumer: Node, reason: str) -> bool:
        a, b = self.cluster_of[node], self.cluster_of[consumer]
        taken = True
        if a is not b:
            merged, refusal = self._merge(a, b)
            taken, reason = merged is not None, refusal or reason
            if merged is not None:
                self._span(merged)
                for member in merged.nodes:
                    self.cluster_of[member] = merged
        known = self.decisions.get((node, consumer))
        if known is None or not known.taken:
            self.decisions[node, consumer] = Decision(
                repr(node), repr(consumer), taken, reason, node.types[0].nbytes,
                str(self.graph.origin(consumer)),
            )  # fmt: skip
        return taken and a is not b

    def _launch_order(self) -> list[Cluster]:
        """Clusters topologically; among those that are ready, the one declared first."""
        clusters = list(dict.fromkeys(self.cluster_of[n] for n in self.reader.computed))
        after: dict[Cluster, list[Cluster]] = {c: [] for c in clusters}
        for node in self.reader.computed:
            own = self.cluster_of[node]
            after[own] += [self.cluster_of[n] for n in self.after[node] if self.cluster_of[n] is not own]
        clusters.sort(key=lambda c: c.last)
        positions = topological_positions(clusters, after)
        ordered = sorted(clusters, key=positions.__getitem__)
        for cluster in ordered:
            cluster.order = [self.find(x) for x in cluster.order]
            cluster.parallel = [self.find(x) for x in cluster.parallel]
            cluster.inner = [self.find(x) for x in cluster.inner]
        return ordered
