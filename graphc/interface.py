"""What a compiled step is from outside: its inputs, state and outputs, and what a run has to check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.ir.binding import guards_of, symbolic_extents
from graphc.ir.graph import Node, Variable
from graphc.ir.types import Extent, Guard, TensorType
from graphc.updates import OptimizerPlan

if TYPE_CHECKING:
    from graphc.stages import CompiledStages

GRADIENT_PREFIX = "grad."


@dataclass(frozen=True, slots=True)
class Interface:
    """All that an executable has to know of a step beside how it is run.

    `inputs` are by name, `outputs` by label, kept losses among them; `gradients` are outputs that the user
    did not ask for as such, which go into memory of the step's own. `parameters` and `optimizer_state` are
    all state, `updated` what of it a run writes. `guards` are the equalities of extents that were assumed,
    `extents` what must not be negative.
    """

    inputs: Mapping[str, Node]
    outputs: Mapping[str, TensorType]
    gradients: Mapping[str, TensorType]
    parameters: tuple[Variable, ...]
    optimizer_state: tuple[Variable, ...]
    updated: frozenset[Variable]
    guards: tuple[Guard, ...]
    extents: tuple[Extent, ...]


def interface_of(stages: CompiledStages, plan: OptimizerPlan | None) -> Interface:
    """The interface of what the passes made."""
    graph, joint, optimized = stages.graph, stages.joint, stages.optimized
    reached = {**graph.variables(), **joint.variables()}.values()
    own = set(plan.variables) if plan is not None else set()
    gradients = {
        label: operand.type
        for label, operand in joint.outputs.items()
        if label.startswith(GRADIENT_PREFIX) and label not in graph.outputs
    }
    return Interface(
        {**optimized.inputs(), **graph.inputs()},
        {label: operand.type for label, operand in optimized.outputs.items() if label not in gradients},
        gradients,
        tuple(variable for variable in reached if variable not in own),
        tuple(variable for variable in reached if variable in own),
        frozenset(optimized.updates),
        tuple(dict.fromkeys((*guards_of(graph), *guards_of(optimized)))),
        tuple(dict.fromkeys((*symbolic_extents(graph), *symbolic_extents(optimized)))),
    )
