"""Fusion: groups computed nodes into clusters, each of which becomes one kernel.

`graphc.ir.merging` says which groups may become one; here is what is tried, in which order.

First, reductions over leading axes (bias gradients, sums of losses) join the kernel of their operand.
Pass 1 joins a node to its readers where that spares the node from memory altogether. Pass 2 joins what
still shares an edge, which spares a read. Pass 3 joins sweeps over one tensor in memory. Every edge
leaves a `Decision`.
"""

from __future__ import annotations

from itertools import pairwise

from graphc.ir.access import Read
from graphc.ir.clusters import Cluster, Clustering, Decision, topological_positions
from graphc.ir.graph import Graph, Node, Operand
from graphc.ir.groups import Group
from graphc.ir.merging import SMALL, Merging


def fuse(graph: Graph) -> Clustering:
    """Clusters the computed nodes of an optimized graph and orders the clusters."""
    return _Fuser(graph).run()


class _Fuser(Merging):
    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.decisions: dict[tuple[Node, Node], Decision] = {}

    def run(self) -> Clustering:
        for node in self.reader.computed:
            self._gather(node)
        changed = True
        while changed:
            changed = False
            for node in reversed(self.reader.computed):
                changed |= self._join_readers(node)
        in_order = {n: sorted(found, key=self._position_of) for n, found in self.consumers.items()}
        changed = True
        while changed:  # a join can clear the way for another one that would have made a cycle
            changed = False
            for node in self.reader.computed:
                for consumer, _ in in_order[node]:
                    changed |= self._join(node, consumer, "spares a read")
        for readers in self._readers_of_memory().values():
            for first, second in pairwise(readers):
                self._join_siblings(first, second)
        labels = {label: self.find(label) for label in (*self.extents, *self.parent)}
        return Clustering(
            self._launch_order(),
            self.reader,
            self.reads,
            list(self.decisions.values()),
            labels,
            frozenset(self.split),
            self.extents,
        )

    def _position_of(self, consumer: tuple[Node, Read]) -> int:
        return self.position[consumer[0]]

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
        a, b = self.group_of[first], self.group_of[second]
        if a is b or a.contract or b.contract:
            return
        ends_first = self.position[a.nodes[-1]] < self.position[b.nodes[-1]]
        if not self.merge(*((a, b) if ends_first else (b, a)), siblings=True):
            reason = "spares a second sweep over one tensor"
            self.decisions[first, second] = Decision(first, second, True, reason, self.graph.origin(second))

    def _gather(self, node: Node) -> None:
        """Joins a reduction over leading axes to the kernel of its operand: it costs no pass of its own."""
        if node.op.family != "reduce" or node.types[0].size == 0:
            return
        labels = self.reader.operand_labels(node, 0) or ()
        order = [label for label in labels if label is not None]
        reduced = set(self.reader.reduced_labels[node])
        leading = bool(order) and order[0] in reduced
        for read in self.reads[node] if leading else []:
            if read.terminal.node in self.group_of:
                self.gathered.add(node)
                if not self._join(read.terminal.node, node, "gathered beside its operand"):
                    self.gathered.discard(node)
        self.refused.clear()  # what is gathered has a say in what is legal

    def _join_readers(self, node: Node) -> bool:
        """Joins a node to its readers if they are all in one other cluster, so that it needs no memory."""
        if node in self.results:
            return False
        readers = {self.group_of[c] for c, _ in self.consumers[node]}
        if len(readers) != 1 or self.group_of[node] in readers:
            return False
        return self._join(node, self.consumers[node][0][0], "spares the value from memory")

    def _join(self, node: Node, consumer: Node, reason: str) -> bool:
        """Merges the groups of two nodes if that is legal, and notes why (not); whether anything changed."""
        a, b = self.group_of[node], self.group_of[consumer]
        refusal = self.merge(a, b) if a is not b else ""
        known = self.decisions.get((node, consumer))
        if known is None or not known.taken:
            self.decisions[node, consumer] = Decision(
                node, consumer, not refusal, refusal or reason, self.graph.origin(consumer)
            )
        return not refusal and a is not b

    def _launch_order(self) -> list[Cluster]:
        """Clusters topologically; among those that are ready, the one declared first."""
        groups = list(dict.fromkeys(self.group_of[n] for n in self.reader.computed))
        after: dict[Group, list[Group]] = {group: [] for group in groups}
        for node in self.reader.computed:
            own = self.group_of[node]
            after[own] += [self.group_of[n] for n in self.after[node] if self.group_of[n] is not own]
        groups.sort(key=lambda group: self.position[group.nodes[-1]])
        positions = topological_positions(groups, after)
        groups.sort(key=positions.__getitem__)
        return [Cluster(group.nodes, group.order, group.parallel, group.inner) for group in groups]
