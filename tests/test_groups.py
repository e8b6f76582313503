"""The order of groups under merging, against searches through the whole graph."""

import random

import pytest

from graphc.ir.graph import GraphBuilder
from graphc.ir.groups import Group, GroupOrder
from graphc.ir.types import TensorType, float32


def successors(group, group_of, after):
    return {group_of[later] for node in group.nodes for later in after[node]} - {group}


def has_path_through_others(a, b, group_of, after):
    """Whether b can be reached from a by way of a third group."""
    stack = list(successors(a, group_of, after) - {b})
    seen = set(stack)
    while stack:
        following = successors(stack.pop(), group_of, after)
        if b in following:
            return True
        stack += following - seen
        seen |= following
    return False


@pytest.mark.parametrize("seed", range(40))
def test_merges_keep_ranks_rising_and_are_refused_only_for_cycles(seed):
    rng = random.Random(seed)
    builder = GraphBuilder()
    nodes = [builder.full(float(n), TensorType(float32, (2,))).node for n in range(24)]
    after = {n: rng.sample(nodes[p + 1 :], min(rng.randrange(3), 23 - p)) for p, n in enumerate(nodes)}
    group_of = {node: Group([node], [], {}) for node in nodes}
    order = GroupOrder(group_of, after)
    for _ in range(60):
        a, b = (group_of[node] for node in rng.sample(nodes, 2))
        if a is b:
            continue
        cyclic = has_path_through_others(a, b, group_of, after) or has_path_through_others(
            b, a, group_of, after
        )
        later = order.in_between(a, b)
        assert (later is None) == cyclic
        if later is not None:
            merged = a.united(b, [], {})
            order.merge(a, b, merged, later)
            group_of.update(dict.fromkeys(merged.nodes, merged))
        groups = set(group_of.values())
        assert len({group.rank for group in groups}) == len(groups)
        for group in groups:
            assert all(group.rank < other.rank for other in successors(group, group_of, after))
