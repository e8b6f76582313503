"""How passes apply tables of local rules to a graph.

    Rule    = f(builder, node) -> Operand | None      the value that replaces the node's only output
    Table   = {name of the rule: (names of the ops it looks at, rule)}

A rule sees the node already rebuilt on rewritten operands, so it may look through them at their
producers. Its replacement is taken only if it has the very type of the node (extents that are merely
assumed equal are spelled differently) and if no index check is lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, Origin, topological
from graphc.ir.rebuild import rebuild

LocalRule = Callable[[GraphBuilder, Node], Operand | None]
Table = Mapping[str, tuple[tuple[str, ...], LocalRule]]


def apply_rules(graph: Graph, table: Table, name: str, absorbs: bool = False) -> Graph:
    """Applies a table until no rule changes anything. Rules of one op are tried in the table's order.

    What a rule makes is attributed to the node that it replaces and to `name:rule`; with `absorbs`, where
    one op stands for several, also to the lines of all nodes that it takes the place of.
    """
    by_op: dict[str, list[tuple[str, LocalRule]]] = {}
    for label, (ops, rule) in table.items():
        for op in ops:
            by_op.setdefault(op, []).append((f"{name}:{label}", rule))
    sweep = _Sweep(by_op, absorbs)
    while True:
        swept = rebuild(graph, sweep.rewrite)
        if not sweep.fired:
            return swept
        graph, sweep.fired = swept, False


class _Sweep:
    """Offers every node to the rules, once per sweep. What they decline once they decline again."""

    def __init__(self, by_op: Mapping[str, Sequence[tuple[str, LocalRule]]], absorbs: bool) -> None:
        self.fired = False
        self._by_op = by_op
        self._absorbs = absorbs
        self._declined: set[Node] = set()
        self._checks = IndexChecks()

    def rewrite(
        self, builder: GraphBuilder, old: Node, inputs: tuple[Operand, ...]
    ) -> Sequence[Operand] | None:
        """The first replacement of a node that a rule has and that is fit to take its place."""
        rules = self._by_op.get(old.name)
        if rules is None:
            return None
        node = old if inputs is old.inputs else builder.keep(old, inputs)
        if node not in self._declined:
            for label, local in rules:
                builder.rule = label
                replacement = local(builder, node)
                if replacement is None or replacement == node.outputs[0]:
                    continue
                if replacement.type == node.types[0] and self._checks.kept(node.outputs[0], replacement):
                    self.fired = True
                    if self._absorbs:
                        _absorb(builder, node, replacement)
                    return [replacement]
            self._declined.add(node)
        return None if node is old else node.outputs


def _absorb(builder: GraphBuilder, node: Node, replacement: Operand) -> None:
    """Attributes what is new to the user's lines of everything that it replaces."""
    old, new = topological(node.outputs), topological([replacement])
    lost, made = set(old) - set(new), set(new) - set(old)
    sites = frozenset().union(*(builder.origins[n].sites for n in lost))
    for n in made:
        builder.origins[n] = builder.origins[n].merge(Origin(sites))


class IndexChecks:
    """Which `check_index` nodes a value depends on, remembered between questions."""

    def __init__(self) -> None:
        self._below: dict[Node, frozenset[Node]] = {}

    def below(self, operand: Operand) -> frozenset[Node]:
        """The checks that must succeed for this value to exist."""
        stack = [operand.node]
        while stack:
            node = stack[-1]
            if node in self._below:
                stack.pop()
                continue
            missing = [o.node for o in node.inputs if o.node not in self._below]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            found = {id(s): s for s in (self._below[o.node] for o in node.inputs) if s}
            below = next(iter(found.values())) if len(found) == 1 else frozenset().union(*found.values())
            self._below[node] = below | {node} if node.name == "check_index" else below
        return self._below[operand.node]

    def kept(self, before: Operand, after: Operand) -> bool:
        """Whether replacing one value by the other drops no check."""
        return self.below(before) <= self.below(after)


def is_full(operand: Operand) -> bool:
    """Whether the value is one repeated constant."""
    return operand.node.name == "full"


def full_value(operand: Operand) -> float | int | bool | None:
    """The repeated value of a `full`, also behind views that only repeat it; None for anything else."""
    node = operand.node
    while node.name in ("broadcast_to", "reshape", "expand_dims", "squeeze", "transpose"):
        node = node.inputs[0].node
    if node.name != "full":
        return None
    value: float | int | bool = node.attrs["value"]
    return value
