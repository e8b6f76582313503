"""Runs DSL tensors in the graph interpreter."""

from __future__ import annotations

import numpy as np

from graphc.dsl import Tensor, origins_of
from graphc.ir.graph import Graph, Variable
from graphc.ir.interpret import interpret
from graphc.ir.rebuild import intern


def place(*variables: Variable) -> None:
    """Gives variables storage of their own, where nothing has laid them out yet."""
    for variable in variables:
        if not variable.is_placed:
            variable.place(np.empty(variable.type.shape, variable.type.dtype.numpy), None)


def run(tensor, **feeds):
    """The value of a tensor (or the values of a list) on feeds; the dtype must be the declared one."""
    tensors = tensor if isinstance(tensor, (list, tuple)) else [tensor]
    operands = {str(k): t.operand for k, t in enumerate(tensors)}
    graph = intern(Graph(operands, {}, origins_of(operands.values())))
    place(*graph.variables().values())
    outputs, _ = interpret(graph, feeds)
    values = [outputs[str(k)] for k in range(len(tensors))]
    for value, declared in zip(values, tensors, strict=True):
        assert isinstance(declared, Tensor)
        assert value.dtype == declared.dtype.numpy
    return values if isinstance(tensor, (list, tuple)) else values[0]
