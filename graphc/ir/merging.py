"""Which groups of nodes may become one kernel, and the group that two of them make.

Groups are over one set of loop labels (`graphc.ir.access`): when two join, the labels of the dims through
which one reads the other become one. It is legal when

- every read inside is aligned, and no two dims of a node fall on one label;
- the labels split into parallel ones P, which every node iterates over, and inner ones I, which are
  swept over within one iteration of P. What is reduced and read again inside is reduced over I only;
  a reduction over P leaves the cluster (its chunks are combined later);
- at most one contraction, whose inner labels are exactly its contracted ones; readers of its result form
  the epilogue, cheap elementwise operands read by nobody else the prologue;
- merging makes no cycle among clusters, counting also that every reader of state comes before its writer
  and every use of an index after its check.

`graphc.ir.fuse` decides what is tried, in which order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graphc.ir.access import Label, Labels, Read, Reader, order_edges
from graphc.ir.clusters import EXPENSIVE, common_order, splits, topological_positions
from graphc.ir.graph import Graph, Node, Operand, Variable
from graphc.ir.groups import Group, GroupOrder, Profile
from graphc.ir.rewrite.layout import panel_of
from graphc.ir.types import Extent

MAX_CLUSTER = 96  # nodes; bounds kernels, the search, and how deep expressions nest
Renaming = Mapping[Label, Label]  # of labels to those that they are taken to be
OTHER_ORDER = "the axes come in another order"
SMALL = 4096  # elements that one core may as well sweep alone


class Merging:
    """Groups of the computed nodes of a graph, at first of one node each, and their merging."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reader = Reader(graph)
        self.parent: dict[Label, Label] = {}  # of labels that were taken to be the same
        self.reads: dict[Node, list[Read]] = {n: list(self.reader.reads(n)) for n in self.reader.computed}
        self.consumers: dict[Node, list[tuple[Node, Read]]] = {n: [] for n in self.reader.computed}
        for node, reads in self.reads.items():
            for read in reads:
                if read.terminal.node in self.consumers:
                    self.consumers[read.terminal.node].append((node, read))
        self.written: dict[Node, Variable] = {o.node: v for v, o in graph.updates.items()}
        self.results = {o.node for o in graph.roots}
        after = order_edges(self.reader, self.reads, self.written)
        self.after = after
        self.position = topological_positions(self.reader.computed, after)
        self.reader.computed.sort(key=self.position.__getitem__)
        # Pairs of groups that cannot be one, and why.
        self.refused: dict[tuple[Group, Group], str] = {}
        # Reductions over leading axes that are gathered beside their operand's kernel, chunk by chunk.
        self.gathered: set[Node] = set()
        self.extents: dict[Label, Extent] = {}
        self.split = {n for n in self.reader.computed if splits(n)}
        self.group_of: dict[Node, Group] = {}
        for node in self.reader.computed:
            self.group_of[node] = self._alone(node)
        self.order = GroupOrder(self.group_of, after)

    def _alone(self, node: Node) -> Group:
        """The group of one node."""
        out = self.reader.out_labels[node]
        family = node.op.family
        carried = out[node.attrs["axis"]] if family == "scan" else None
        profile = Profile(
            frozenset(label for label in out if label is not None),
            frozenset(self.reader.reduced_labels[node]),
        )
        group = Group(
            [node],
            self.reader.iteration_labels(node, self.extents),
            {profile: [node]},
            node if family == "contract" else None,
            frozenset() if carried is None else frozenset({carried}),
            [node] if node in self.written else [],
            [(node, read) for read in self.reads[node] if read.terminal.node.name == "parameter"],
            len(self.reads[node]) + len(self.consumers[node]),
            is_solo=family in ("scan", "effect") or node.name == "scatter_add",
            has_copy=node.name == "copy",
            panels=frozenset(label for label in out[-1:] if label is not None and panel_of(node)),
        )
        self._split(group)
        return group

    # -------------------------------------------------------------------------------------- labels

    def find(self, label: Label) -> Label:
        """The representative of a label's class."""
        parent = self.parent
        root = label
        while root in parent:
            root = parent[root]
        while label != root:  # the next look-up is short
            parent[label], label = root, parent[label]
        return root

    # ---------------------------------------------------------------------------------- legality

    def _split(self, group: Group) -> str:
        """Splits a group's labels into parallel and inner ones. Returns why that fails, or ''."""
        members = set(group.nodes)
        contract = group.contract
        prologue = self._prologue(contract, members) if contract is not None else set()
        inner = set(group.carried)
        final: set[Node] = set()
        for profile, nodes in group.profiles.items():
            for node in nodes if profile.reduced else ():
                read = any(c in members for c, _ in self.consumers[node])
                if read and (node in self.gathered or node in self.split):
                    return "the sum is complete only when all chunks are done"
                if read or node is contract:
                    inner |= profile.reduced
                else:
                    final.add(node)
        outside = final | prologue
        if contract is None:
            inner |= self._uncommon(group)
            inner |= self._trailing(group, final, inner)
        elif problem := self._unfit_for_product(group, contract, inner, prologue):
            return problem
        parallel = [label for label in group.order if label not in inner]
        if not inner.isdisjoint(group.panels):
            return "a sweep runs over whole rows, not panel by panel"
        if inner and not parallel and len(group.nodes) > 1 and not self._is_small(group.order):
            return "the whole tensor would be swept by one core"
        for profile, nodes in group.profiles.items():
            if not profile.out.issuperset(parallel) and any(n not in outside for n in nodes):
                return "a node does not span the parallel axes"
            if not _fits_sweep(profile, inner) and any(n is not contract for n in nodes):
                return "a reduction and the sweep run over different axes"
            partly = not profile.out.isdisjoint(inner) and not inner <= profile.out
            if partly and any(self._is_stored(n, members) for n in nodes):
                return "a value that is needed elsewhere does not span the sweep"
        group.parallel, group.inner = parallel, [label for label in group.order if label in inner]
        return ""

    def _unfit_for_product(self, group: Group, contract: Node, inner: set[Label], prologue: set[Node]) -> str:
        """Why not everything beside a product is its prologue, or spans the tile of its result; or ''."""
        (own,) = (profile for profile, nodes in group.profiles.items() if contract in nodes)
        if inner != own.reduced:
            return "another reduction is read beside the contraction"
        wanted = {label for label in group.order if label not in inner}
        if not wanted <= own.out:
            return "the epilogue has an axis that the product lacks"
        for profile, nodes in group.profiles.items():
            if not wanted <= profile.out | profile.reduced and any(n not in prologue for n in nodes):
                return "part of the epilogue does not span the tile"
        return ""

    def _uncommon(self, group: Group) -> set[Label]:
        """The labels over which not every node iterates."""
        return {x for x in group.order if any(x not in p.out and x not in p.reduced for p in group.profiles)}

    def _is_stored(self, node: Node, members: set[Node]) -> bool:
        """Whether a member is no reduction and is read outside the group."""
        return node.op.family not in ("reduce", "contract") and (
            node in self.results or any(c not in members for c, _ in self.consumers[node])
        )

    def _trailing(self, group: Group, final: set[Node], inner: set[Label]) -> set[Label]:
        """Trailing labels that results reduce over while they keep, or also reduce, an earlier one.

        They are swept over with the sum in registers; reducing over the first label is left to chunks.
        """
        results = [p.reduced for p, nodes in group.profiles.items() if not final.isdisjoint(nodes)]
        reduced = set().union(*results)
        result: set[Label] = set()
        for label in reversed(group.order[1:]):
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

    def _prologue(self, contract: Node, members: set[Node]) -> set[Node]:
        """Elementwise members that only the contraction reads."""
        result: set[Node] = set()
        stack = [contract]
        while stack:
            for read in self.reads[stack.pop()]:
                node = read.terminal.node
                if (
                    node in members
                    and node not in result
                    and node.op.family == "elementwise"
                    and node not in self.results
                    and all(c is contract or c in result for c, _ in self.consumers[node])
                ):
                    result.add(node)
                    stack.append(node)
        return result

    def merge(self, producer: Group, consumer: Group, siblings: bool = False) -> str:
        """Makes two groups one; or returns the reason why that is not legal."""
        pair = (producer, consumer)
        if not siblings and pair in self.refused:
            return self.refused[pair]
        merged, renamed, reason = self._candidate(producer, consumer, siblings)
        if merged is None:
            if not siblings:
                self.refused[pair] = reason
            return reason
        later = self.order.in_between(producer, consumer)
        if later is None:
            return "it would make a cycle"
        self.order.merge(producer, consumer, merged, later)
        self.parent.update(renamed)
        merged.nodes.sort(key=self.position.__getitem__)
        self.group_of.update(dict.fromkeys(merged.nodes, merged))
        return ""

    def _candidate(
        self, producer: Group, consumer: Group, siblings: bool
    ) -> tuple[Group | None, Renaming, str]:
        """The union of two groups and what it renames; or None and why it is not legal."""
        reason = self._apart(producer, consumer)
        pairs: list[tuple[Label, Label]] = []
        if not reason:
            pairs, reason = self._pairs(producer, consumer)
        if reason:
            return None, {}, reason
        renamed = _unified({}, pairs)
        merged, reason = (None, OTHER_ORDER) if siblings else self._united(producer, consumer, renamed)
        if reason == OTHER_ORDER:
            # Two sweeps over one tensor are one sweep, if their axes are taken to be the same.
            renamed = _unified(renamed, self._shared_reads(producer, consumer, renamed))
            merged, reason = self._united(producer, consumer, renamed)
        return merged, renamed, reason

    def _apart(self, producer: Group, consumer: Group) -> str:
        """Why two groups stay apart whatever they read of each other, or ''."""
        if len(producer.nodes) + len(consumer.nodes) > MAX_CLUSTER:
            return "the cluster is large enough"
        if producer.is_solo or consumer.is_solo:
            return "the op has a kernel of its own"
        if consumer.contract and producer.has_copy:
            return "the operand is laid out in memory"
        if producer.contract and consumer.contract:
            return "two contractions"
        return ""

    def _shared_reads(self, a: Group, b: Group, renamed: Renaming) -> list[tuple[Label, Label]]:
        """Labels under which two groups read the same tensors from memory."""
        if a.contract or b.contract:
            return []
        known: dict[Operand, Labels] = {}
        for node in a.nodes:
            for read in self.reads[node]:
                if read.labels is not None:
                    known.setdefault(read.terminal, read.labels)

        def current(label: Label) -> Label:
            root = self.find(label)
            return renamed.get(root, root)

        pairs: list[tuple[Label, Label]] = []
        own, other = set(map(current, a.order)), set(map(current, b.order))
        forward: dict[Label, Label] = {x: x for x in own & other}
        backward = dict(forward)
        for node in b.nodes:
            for read in self.reads[node]:
                mine = known.get(read.terminal)
                if mine is None or read.labels is None:
                    continue
                both = [(current(x), current(y)) for x, y in zip(mine, read.labels, strict=True) if x and y]
                if all(forward.get(x, y) == y and backward.get(y, x) == x for x, y in both):
                    forward.update(both)
                    backward.update((y, x) for x, y in both)
                    pairs += both
        return pairs

    def _crossing(self, producer: Group, consumer: Group) -> list[tuple[Node, Read]]:
        """The reads of each other's nodes: the producer's first, each in the order of its nodes."""
        one, other = (producer, consumer) if producer.edges < consumer.edges else (consumer, producer)
        found: list[tuple[Node, Read]] = []
        for node in one.nodes:
            found += [(node, r) for r in self.reads[node] if self.group_of.get(r.terminal.node) is other]
            found += [pair for pair in self.consumers[node] if self.group_of[pair[0]] is other]
        if len(found) > 1:
            found.sort(key=lambda pair: (self.group_of[pair[0]] is consumer, self.position[pair[0]]))
        return found

    def _pairs(self, producer: Group, consumer: Group) -> tuple[list[tuple[Label, Label]], str]:
        """Labels that reads between two groups identify; refuses reads that are not aligned.

        Looks both ways: of two sweeps over one tensor, the one that ends first may read the other.
        """
        pairs: list[tuple[Label, Label]] = []
        forward: dict[Label, Label] = {}
        backward: dict[Label, Label] = {}
        for _, read in self._crossing(producer, consumer):
            if read.labels is None:
                return [], "the read is not aligned"
            for own, used in zip(self.reader.out_labels[read.terminal.node], read.labels, strict=True):
                if own is None or used is None:
                    if own is not None:
                        return [], "the read is not aligned"
                    continue
                a, b = self.find(own), self.find(used)
                if forward.setdefault(a, b) != b or backward.setdefault(b, a) != a:
                    return [], "two reads disagree about the axes"
                pairs.append((a, b))
        return pairs, ""

    def _united(self, producer: Group, consumer: Group, renamed: Renaming) -> tuple[Group | None, str]:
        order = common_order(
            [renamed.get(label, label) for label in producer.order],
            [renamed.get(label, label) for label in consumer.order],
        )
        if order is None:
            return None, OTHER_ORDER
        merged = producer.united(consumer, order, renamed)
        if merged.contract is not None:
            # The contracted axes stay innermost.
            inner = {renamed.get(x, x) for x in map(self.find, self.reader.reduced_labels[merged.contract])}
            merged.order = [x for x in order if x not in inner] + [x for x in order if x in inner]
        reason = self._split(merged) or self._unsafe_state(merged, renamed) or self._unfit_prologue(merged)
        return (None, reason) if reason else (merged, "")

    def _unfit_prologue(self, group: Group) -> str:
        """Operands computed on load are computed once per tile that reads them: only cheap ones may be."""
        if group.contract is None:
            return ""
        members = set(group.nodes)
        feeding = self._ancestors(group.contract, members)
        if not feeding:
            return ""
        if not feeding <= self._prologue(group.contract, members):
            return "the operand of the contraction is also read elsewhere"
        if len(feeding) > 2 or any(node.name in EXPENSIVE for node in feeding):
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

    def _unsafe_state(self, group: Group, renamed: Renaming) -> str:
        """A kernel may write state that it reads only element by element, before the element is written."""
        written = {self.written[node]: node for node in group.writers}
        if not written:
            return ""

        def current(labels: Labels) -> list[Label | None]:
            roots = [None if x is None else self.find(x) for x in labels]
            return [None if x is None else renamed.get(x, x) for x in roots]

        inner = set(group.inner)
        for node, read in group.state_reads:
            writer = written.get(read.terminal.node.variable)
            if writer is None:
                continue
            own = current(self.reader.out_labels[writer])
            if read.labels is None or own != current(read.labels):
                return "it reads elements of the state that it writes elsewhere"
            if inner and (
                not inner.isdisjoint(own)
                or (node is not writer and node not in self._ancestors(writer, set(group.nodes)))
            ):
                return "it reads the state in a sweep after the one that writes it"
        return ""


def _fits_sweep(profile: Profile, inner: set[Label]) -> bool:
    """Whether a reduction that takes part in a sweep adds each element once, into one accumulator."""
    out, reduced = profile
    if not reduced or inner.isdisjoint(reduced | out):
        return True
    return inner <= reduced | out and (inner.isdisjoint(reduced) or inner.isdisjoint(out))


def _unified(renamed: Renaming, pairs: Iterable[tuple[Label, Label]]) -> Renaming:
    """A renaming under which also the labels of every pair are one: the second of the two."""
    result = dict(renamed)
    for left, right in pairs:
        old, new = result.get(left, left), result.get(right, right)
        if old != new:
            result = {label: new if name == old else name for label, name in result.items()}
            result[old] = new
    return result
