"""Clusters: what fusion groups into one kernel, and the small facts about nodes that it goes by."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from graphc.errors import VerifyError
from graphc.ir.access import Label, Read, Reader
from graphc.ir.graph import Node, Origin
from graphc.ir.ops.contract import split_spec
from graphc.ir.types import Extent

T = TypeVar("T", bound=Hashable)

SPLIT_RESULT = 32768  # elements of a product that chunks may each keep a copy of
SPLIT_WORK = 2**20  # multiply-adds below which cutting the contracted axis does not pay

EXPENSIVE = frozenset(
    {
        "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf", "pow", "gelu", "silu",
        "softplus", "elu", "selu", "div", "sqrt", "rsqrt", "reciprocal", "floordiv", "mod",
        "bce_with_logits",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether two nodes were fused, and why (not). `origin` is that of the consumer."""

    producer: Node
    consumer: Node
    taken: bool
    reason: str
    origin: Origin

    @property
    def bytes(self) -> Extent:
        """What the edge costs in memory traffic."""
        return self.producer.types[0].nbytes


@dataclass(eq=False)
class Cluster:
    """Nodes that become one kernel, in topological order."""

    nodes: list[Node]
    order: list[Label]  # the loop order: every node's labels are a subsequence
    parallel: list[Label] = field(default_factory=list)
    inner: list[Label] = field(default_factory=list)

    @property
    def contract(self) -> Node | None:
        return next((n for n in self.nodes if n.op.family == "contract"), None)


@dataclass(frozen=True)
class Clustering:
    """The result: clusters in a launch order, with everything lowering needs to know about labels."""

    clusters: list[Cluster]
    reader: Reader
    reads: Mapping[Node, Sequence[Read]]  # what each computed node reads
    decisions: list[Decision]
    labels: dict[Label, Label]  # representative of each label
    split: frozenset[Node]  # contractions whose chunks run along the contracted axis
    extents: dict[Label, Extent]


def splits(node: Node) -> bool:
    """Whether a product is small beside what it sums over (a weight gradient over a batch).

    Its chunks then run along the contracted axis, each with its own copy of the result: all cores work
    on it, and each reads its part of the operands only once, from a cache that can hold it.
    """
    if node.op.family != "contract" or not node.types[0].dtype.is_float:
        return False
    left, _, result = split_spec(node.attrs["spec"])
    contracted = [e for x, e in zip(left, node.inputs[0].shape, strict=True) if x not in result]
    size = node.types[0].size
    if len(contracted) != 1 or not isinstance(size, int) or size > SPLIT_RESULT:
        return False
    (extent,) = contracted
    return not isinstance(extent, int) or (size * extent >= SPLIT_WORK and extent >= 2 * size)


def topological_positions(items: Sequence[T], after: Mapping[T, Sequence[T]]) -> dict[T, int]:
    """Topological positions; among those that are ready, the one that stands first in `items`."""
    numbers = {item: i for i, item in enumerate(items)}
    waiting = dict.fromkeys(items, 0)
    for item in items:
        for later in set(after[item]):
            waiting[later] += 1
    ready = [numbers[item] for item in items if waiting[item] == 0]
    heapq.heapify(ready)
    positions: dict[T, int] = {}
    while ready:
        item = items[heapq.heappop(ready)]
        positions[item] = len(positions)
        for later in set(after[item]):
            waiting[later] -= 1
            if waiting[later] == 0:
                heapq.heappush(ready, numbers[later])
    if len(positions) != len(items):
        raise VerifyError("the order in which state is read and written has a cycle")
    return positions


def common_order(first: list[Label], second: list[Label]) -> list[Label] | None:
    """A sequence that has both as subsequences, where one of them is a subsequence of the other."""
    long, short = (first, second) if len(first) >= len(second) else (second, first)
    remaining = iter(long)
    return long if all(label in remaining for label in short) else None
