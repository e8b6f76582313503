"""What the tests of ops share: running one op, and composites taken apart."""

import numpy as np

from graphc.ir.graph import Graph, GraphBuilder
from graphc.ir.interpret import interpret
from graphc.ir.ops import OPS
from graphc.ir.rebuild import rebuild
from graphc.ir.types import DTYPES


def names_in(family):
    """The names of all ops of a family."""
    return {name for name, op in OPS.items() if op.family == family}


def inputs_of(builder, arrays):
    return [
        builder("input", name=f"x{i}", dtype=DTYPES[a.dtype.name], shape=a.shape)
        for i, a in enumerate(arrays)
    ]


def feeds_of(arrays):
    return {f"x{i}": a for i, a in enumerate(arrays)}


def apply(name, *arrays, **attrs):
    builder = GraphBuilder()
    arrays = [np.asarray(a) for a in arrays]
    graph = Graph({"out": builder(name, *inputs_of(builder, arrays), **attrs)})
    return interpret(graph, feeds_of(arrays))[0]["out"]


def decomposed(graph):
    """The graph with composites replaced by what they are made of, until none is left."""

    def rule(builder, node, inputs):
        if node.op.decompose is None:
            return None
        return node.op.decompose(builder, builder.node(node.op, inputs, node.attrs))

    while any(node.op.family == "composite" for node in graph.nodes()):
        graph = rebuild(graph, rule)
    return graph


def wrap(value, dtype):
    bits = 8 * np.dtype(dtype).itemsize
    value %= 2**bits
    return value - 2**bits if dtype != "uint8" and value >= 2 ** (bits - 1) else value
