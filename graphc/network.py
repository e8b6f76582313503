"""The declarative `Network`: named nodes that own layers, edges between them, and weighted losses.

    net = gx.nn.Network()
    net.input("x", (B, 4))
    net.input("t", (B, 2))
    net.node("hidden", gx.nn.Linear(4, 8), after="x")
    net.node("out", gx.nn.Linear(8, 2), after="hidden")
    net.loss("fit", gx.mse, after=["out", "t"], weight=0.5)
    step = gx.compile(net.outputs("out"), loss=net.total_loss(), optimizer=...)

Nodes and edges may be declared in any order. A node with several predecessors passes their values to its
layer in the order of the edges; a node with several successors is shared, and its gradients are summed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphc import dsl, functions
from graphc.dsl import DTypeLike, ShapeLike, Tensor
from graphc.errors import DeclarationError
from graphc.sites import call_site

Names = str | Sequence[str]


@dataclass
class _Node:
    name: str
    layer: Callable[..., Any] | None  # None for an input
    site: str
    before: list[str] = field(default_factory=list)
    value: Tensor | None = None


class Network:
    """Named nodes and edges, built into tensors in dependency order when they are first asked for."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self._nodes: dict[str, _Node] = {}
        self._losses: dict[str, float] = {}
        self._built = False

    # -------------------------------------------------------------------------------------- declaring

    def input(self, name: str, shape: ShapeLike = (), dtype: DTypeLike = "float32") -> Network:
        """A node whose value is fed at run time. Returns the network, as all declarations do."""
        self._enter(_Node(name, None, call_site(), [], dsl.input(name, shape, dtype)))
        return self

    def node(self, name: str, layer: Any, after: Names = ()) -> Network:
        """A node that applies a layer (a module, the name of an activation, any callable) to its
        predecessors `after`. A module without a name takes the node's, so its weight is "<node>.weight"."""
        from graphc.nn import Module, activation

        function = activation(layer)
        if isinstance(function, Module) and function.__dict__["_name"] is None:
            function.__dict__["_name"] = f"{self.name}.{name}" if self.name else name
        before = [after] if isinstance(after, str) else list(after)
        self._enter(_Node(name, function, call_site(), before))
        return self

    def edge(self, source: str, target: str) -> Network:
        """The value of `source` becomes the next operand of `target`."""
        self._require_open()
        if target not in self._nodes:
            raise self._error(f"an edge leads to {target!r}, which is not declared", call_site())
        if self._nodes[target].layer is None:
            raise self._error(f"an edge leads to {target!r}, which is an input", call_site())
        self._nodes[target].before.append(source)
        return self

    def loss(
        self, name: str, function: Callable[..., Tensor], after: Names = (), weight: float = 1.0
    ) -> Network:
        """A node whose scalar value is part of the weighted total that is minimised."""
        self.node(name, function, after)
        self._losses[name] = float(weight)
        return self

    def _enter(self, node: _Node) -> None:
        self._require_open()
        dsl.require_name(node.name, "a node")
        if node.name in self._nodes:
            first = self._nodes[node.name].site
            raise self._error(f"node {node.name!r} is declared twice, first at {first}", node.site)
        self._nodes[node.name] = node

    def _require_open(self) -> None:
        if self._built:
            raise self._error("the network is built already; declare everything before", call_site())

    @staticmethod
    def _error(message: str, site: str) -> DeclarationError:
        return DeclarationError(f"Network: {message} (declared at {site})")

    # --------------------------------------------------------------------------------------- building

    def build(self) -> dict[str, Tensor]:
        """The tensor of every node. Raises DeclarationError for an unknown predecessor or a cycle."""
        if not self._built:
            for name in self._order():
                node = self._nodes[name]
                if node.layer is not None:
                    node.value = self._apply(node, [self._value(source) for source in node.before])
            self._built = True
        return {name: self._value(name) for name in self._nodes}

    def _value(self, name: str) -> Tensor:
        value = self._nodes[name].value
        assert value is not None
        return value

    def _apply(self, node: _Node, operands: list[Tensor]) -> Tensor:
        assert node.layer is not None
        if not operands:
            raise self._error(f"node {node.name!r} has no predecessor", node.site)
        value = node.layer(*operands)
        if not isinstance(value, Tensor):
            raise self._error(f"node {node.name!r} gives {type(value).__name__}, not a tensor", node.site)
        return value

    def _order(self) -> list[str]:
        """Names so that predecessors come first: a node runs when its last unmet dependency is met."""
        unmet = {name: len(node.before) for name, node in self._nodes.items()}
        after: dict[str, list[str]] = {name: [] for name in self._nodes}
        for name, node in self._nodes.items():
            for source in node.before:
                if source not in self._nodes:
                    raise self._error(
                        f"node {name!r} comes after {source!r}, which is not declared", node.site
                    )
                after[source].append(name)
        ready = deque(name for name, count in unmet.items() if count == 0)
        order: list[str] = []
        while ready:
            name = ready.popleft()
            order.append(name)
            for target in after[name]:
                unmet[target] -= 1
                if unmet[target] == 0:
                    ready.append(target)
        if len(order) < len(self._nodes):
            cycle = self._cycle({name for name, count in unmet.items() if count})
            raise self._error(f"the nodes form a cycle: {' -> '.join(cycle)}", self._nodes[cycle[0]].site)
        return order

    def _cycle(self, stuck: set[str]) -> list[str]:
        """A cycle among nodes that wait: walking back from any of them must come round."""
        path = [next(name for name in self._nodes if name in stuck)]
        while True:
            before = next(source for source in self._nodes[path[-1]].before if source in stuck)
            if before in path:
                return [*path[path.index(before) :], before][::-1]
            path.append(before)

    # ---------------------------------------------------------------------------------------- reading

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a node."""
        if name not in self._nodes:
            raise self._error(f"no node {name!r}; there are {', '.join(self._nodes)}", call_site())
        return self.build()[name]

    def outputs(self, *names: str) -> dict[str, Tensor]:
        """The tensors of these nodes by name: what `gx.compile` takes."""
        return {name: self[name] for name in names}

    def total_loss(self) -> Tensor:
        """The weighted sum of all losses. Raises DeclarationError if there is none."""
        if not self._losses:
            raise self._error("there is no loss", call_site())
        terms = [
            self[name] if weight == 1 else functions.multiply(self[name], weight)
            for name, weight in self._losses.items()
        ]
        total = terms[0]
        for term in terms[1:]:
            total = functions.add(total, term)
        return total

    @property
    def names(self) -> list[str]:
        """The nodes in order of declaration."""
        return list(self._nodes)

    def __repr__(self) -> str:
        rows = [f"  {n.name} <- {', '.join(n.before) or 'fed'}" for n in self._nodes.values()]
        return "\n".join([f"Network({len(rows)} nodes)", *rows])
