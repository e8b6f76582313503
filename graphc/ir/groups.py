"""Groups: clusters in the making, and an order of them that follows their merging.

A group knows its nodes by profile, the labels that they iterate over: the nodes of one kernel are many, and
their profiles few, so what a merge has to look at stays small as groups grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from graphc.ir.access import Label, Read
from graphc.ir.graph import Node


class Profile(NamedTuple):
    """The labels of a node's result, and those that it reduces."""

    out: frozenset[Label]
    reduced: frozenset[Label]


@dataclass(eq=False, slots=True)
class Group:
    """Nodes of one kernel in topological order, over labels that no other group has.

    `order` is the loop order: every node's labels are a subsequence. It falls into `parallel` and `inner`.
    """

    nodes: list[Node]
    order: list[Label]
    profiles: dict[Profile, list[Node]]
    contract: Node | None = None
    carried: frozenset[Label] = frozenset()  # labels along which a scan runs, in order
    writers: list[Node] = field(default_factory=list)  # nodes that a Variable takes as its next value
    state_reads: list[tuple[Node, Read]] = field(default_factory=list)  # reads of the present value of state
    edges: int = 0  # reads by and of the nodes
    is_solo: bool = False  # the op has a kernel of its own
    has_copy: bool = False
    panels: frozenset[Label] = frozenset()  # labels along which a node is laid out in panels
    parallel: list[Label] = field(default_factory=list)
    inner: list[Label] = field(default_factory=list)
    rank: int = 0

    def united(self, other: Group, order: list[Label], renamed: Mapping[Label, Label]) -> Group:
        """Both as one group, over the labels of `order`; the nodes are not in order yet."""
        profiles: dict[Profile, list[Node]] = {}
        for group in (self, other):
            for profile, nodes in group.profiles.items():
                new = Profile(_renamed(profile.out, renamed), _renamed(profile.reduced, renamed))
                profiles[new] = profiles[new] + nodes if new in profiles else nodes
        return Group(
            self.nodes + other.nodes,
            order,
            profiles,
            self.contract or other.contract,
            writers=self.writers + other.writers,
            state_reads=self.state_reads + other.state_reads,
            edges=self.edges + other.edges,
            has_copy=self.has_copy or other.has_copy,
            panels=_renamed(self.panels | other.panels, renamed),
        )


def _renamed(labels: frozenset[Label], renamed: Mapping[Label, Label]) -> frozenset[Label]:
    return labels if renamed.keys().isdisjoint(labels) else frozenset(renamed.get(x, x) for x in labels)


class GroupOrder:
    """A topological order of groups under merging.

    `rank` rises along every edge, so a search for paths between two groups stays among those ranked in
    between; a merge moves only those that it finds there (Pearce and Kelly, "A dynamic topological sort
    algorithm for directed acyclic graphs", 2006).
    """

    def __init__(self, group_of: dict[Node, Group], after: Mapping[Node, Sequence[Node]]) -> None:
        """`group_of` has one group per node, in topological order, and is kept up to date by its owner."""
        self._group_of = group_of
        self._after = after
        self._before: dict[Node, list[Node]] = {node: [] for node in group_of}
        for rank, (node, group) in enumerate(group_of.items()):
            group.rank = rank
            for later in after[node]:
                self._before[later].append(node)

    def in_between(self, a: Group, b: Group) -> list[Group] | None:
        """What depends on the first of two groups and is ranked before the other. None if the other
        depends on any of it: merging the two would make a cycle."""
        first, last = (a, b) if a.rank < b.rank else (b, a)
        found: dict[Group, None] = {}
        stack = [first]
        while stack:
            current = stack.pop()
            for node in current.nodes:
                for later in self._after[node]:
                    group = self._group_of[later]
                    if group is last:
                        if current is not first:
                            return None
                    elif first.rank < group.rank < last.rank and group not in found:
                        found[group] = None
                        stack.append(group)
        return list(found)

    def merge(self, a: Group, b: Group, merged: Group, later: list[Group]) -> None:
        """Ranks a merged group, before `group_of` knows it; `later` is what `in_between` found."""
        first, last = (a, b) if a.rank < b.rank else (b, a)
        if not later:
            merged.rank = last.rank
            return
        earlier = self._needed_by(last, first.rank)
        moved = [*sorted(earlier, key=_rank), merged, *sorted(later, key=_rank)]
        ranks = sorted([first.rank, *map(_rank, earlier), *map(_rank, later)])
        for group, rank in zip(moved, ranks, strict=True):
            group.rank = rank

    def _needed_by(self, last: Group, above: int) -> list[Group]:
        """What a group depends on, as far as it is ranked above this."""
        found: dict[Group, None] = {}
        stack = [last]
        while stack:
            for node in stack.pop().nodes:
                for earlier in self._before[node]:
                    group = self._group_of[earlier]
                    if above < group.rank < last.rank and group not in found:
                        found[group] = None
                        stack.append(group)
        return list(found)


def _rank(group: Group) -> int:
    return group.rank
