"""Compiles what `gx.parse` read: a graph of any stage, or kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.errors import LoweringError
from graphc.ir.graph import Attrs, Graph, GraphBuilder, Node, Operand, Variable
from graphc.ir.kernels import KernelProgram
from graphc.ir.ops.base import Array, ArraySpec, OpDef
from graphc.ir.types import TensorType
from graphc.ir.verify import verify_kernels
from graphc.stages import CompiledStages, PassRecord


def _no_reference(arrays: Sequence[Array], attrs: Attrs, results: Sequence[ArraySpec]) -> Sequence[Array]:
    raise LoweringError("kernels have no graph to interpret; use the native or the python backend")


def _declared_types(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    return tuple(attrs["types"])


KERNELS = OpDef(
    name="kernels",
    family="composite",
    doc="A whole kernel program as one node: reads inputs and state, gives outputs and new state.",
    infer=_declared_types,
    reference=_no_reference,
)
"""Not in the table of ops: it stands for kernels that were read from text, whose graph is not known."""


def structure_of(labels: Sequence[str]) -> Any:
    """What `run` returns: the single array of a network compiled from one tensor, else a dict."""
    return "output" if list(labels) == ["output"] else {label: label for label in labels}


def stages_of_kernels(program: KernelProgram) -> CompiledStages:
    """Stages for a kernel program alone; its graph is one node over all inputs and state."""
    verify_kernels(program)
    builder = GraphBuilder()
    operands: list[Operand] = []
    written: dict[Variable, TensorType] = {}
    writes = {b.storage for kernel in program.kernels for b in kernel.buffers if b.access != "in"}
    for storage in program.storages.values():
        if storage.kind == "input":
            operands.append(
                builder("input", name=storage.name, dtype=storage.type.dtype, shape=storage.type.shape)
            )
        elif storage.variable is not None:
            operands.append(builder("parameter", variable=storage.variable))
            if storage.name in writes:
                written[storage.variable] = storage.type
    types = (*(type for _, type in program.outputs.values()), *written.values())
    node = Node(KERNELS, tuple(operands), {"types": types}, types)
    outputs = {label: Operand(node, i) for i, label in enumerate(program.outputs)}
    updates = {v: Operand(node, len(outputs) + i) for i, v in enumerate(written)}
    graph = Graph(outputs, updates)
    return CompiledStages(graph, graph, graph, program, [PassRecord("parse", "kernels", 0.0, program)])
