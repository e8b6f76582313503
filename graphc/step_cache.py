"""Steps on disk: what the passes made of a network, and its machine code, for the next time.

    entry = the object code, and as JSON
            tables     the program (`graphc.ir.json_tables`)
            kernels    of each kernel its symbol and the extents in its operand block
            interface  inputs, outputs, state and checks by name (`graphc.interface`)
            optimizer  the state that it declared, in order
            chosen     the variables that the loss was differentiated by

On a hit no pass runs, and none is loaded. Stages are made when somebody asks for one: by the same passes, on
the same declared network and the same state; if they made other tables than those that run, that is an
error and not a dump of something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from math import isnan
from typing import Any

from graphc.codegen import cache
from graphc.codegen.emitted import CompiledProgram, EmittedKernel
from graphc.codegen.target import Target
from graphc.engine import NativeEngine
from graphc.errors import VerifyError
from graphc.interface import Interface, interface_of
from graphc.ir.binding import DECLARED_AT
from graphc.ir.graph import Graph, Variable
from graphc.ir.json_tables import Reader, extent_json, read_tables, require, tables_json, type_json
from graphc.ir.types import Guard
from graphc.request import Request
from graphc.sites import on_behalf_of
from graphc.stages import CompiledStages
from graphc.step import Step
from graphc.step_key import constants_of, variables_of
from graphc.updates import Declared, Group, Optimizer, OptimizerPlan, plan_of

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)


# --------------------------------------------------------------------------------------------- writing


def keep(step: Step, engine: NativeEngine, parts: cache.Parts) -> None:
    """Stores a step that the passes have made."""
    assert step.stages is not None
    content = _content(step, engine)
    if content is not None:
        cache.keep(cache.Cached(engine.compiled.object_bytes, content, False, parts))


def _content(step: Step, engine: NativeEngine) -> dict[str, Any] | None:
    """The JSON of a step; None for one whose constants are too large to be kept."""
    assert step.stages is not None
    tables = tables_json(engine.program, constants_of(step.declared))
    if tables is None:
        return None
    return {
        "tables": tables,
        "kernels": [[kernel.symbol, *map(extent_json, kernel.extents)] for kernel in engine.emitted],
        "interface": _interface_json(step.interface),
        "optimizer": None if step.plan is None else _plan_json(step.plan),
        "chosen": [variable.name for variable in step.stages.chosen],
    }


def _interface_json(interface: Interface) -> dict[str, Any]:
    return {
        "inputs": list(interface.inputs),
        "outputs": [[label, type_json(type)] for label, type in interface.outputs.items()],
        "gradients": [[label, type_json(type)] for label, type in interface.gradients.items()],
        "parameters": [variable.name for variable in interface.parameters],
        "optimizer_state": [variable.name for variable in interface.optimizer_state],
        "updated": sorted(variable.name for variable in interface.updated),
        "guards": _guards_json(interface.guards),
        "extents": list(map(extent_json, interface.extents)),
    }


def _guards_json(guards: Sequence[Guard]) -> list[list[Any]]:
    """Guards without the lines that ask for them: those are no part of the key."""
    found = [
        (extent_json(left), extent_json(right), why.partition(DECLARED_AT)[0]) for left, right, why in guards
    ]
    return [list(guard) for guard in dict.fromkeys(found)]


def _plan_json(plan: OptimizerPlan) -> list[list[Any]]:
    return [[name, type_json(type), float(value)] for name, type, value in plan.declared]


# --------------------------------------------------------------------------------------------- reading


def restored(found: cache.Cached, declared: Graph, request: Request, target: Target, site: str) -> Step:
    """The step of an entry, for the network that the key was made of. ValueError if it is not such an entry.

    `site` is the line that asked for it: what the passes would have attributed to it, they will.
    """
    try:
        return _restored(found, declared, request, target, site)
    except _UNREADABLE as error:
        raise ValueError(f"it does not describe this network: {error}") from error


def _restored(found: cache.Cached, declared: Graph, request: Request, target: Target, site: str) -> Step:
    content = found.content
    variables = variables_of(declared)
    plan = None
    if request.optimizer is not None:
        plan = _plan(request.optimizer, content["optimizer"])
        variables |= {variable.name: variable for variable in plan.variables}
    interface = _interface(content["interface"], declared, variables)
    request = _later(request, tuple(variables[name] for name in content["chosen"]), variables)
    types = {name: node.types[0] for name, node in interface.inputs.items()}
    step: Step

    def make_stages() -> CompiledStages:
        from graphc.pipeline import run_passes

        with on_behalf_of(site):
            stages, plan = run_passes(declared, request)
        made = [tables_json(stages.program, constants), _interface_json(interface_of(stages, plan))]
        if made != [content["tables"], content["interface"]]:
            raise VerifyError(
                "the passes make another program than the one that came from the cache; "
                "`graphc cache clear` and compile again"
            )
        return stages

    constants = constants_of(declared)
    program = read_tables(
        content["tables"], variables, constants, types, lambda: step.all_stages.program.source
    )
    compiled = CompiledProgram(found.object_bytes, _emitted(content["kernels"]), found.parts, True)
    require(len(compiled.emitted) == len(program.launches), "there is code for other kernels")
    symbols = {kernel.symbol.encode() for kernel in compiled.emitted}
    require(all(symbol in found.object_bytes for symbol in symbols), "the code of a kernel is missing")
    step = Step(
        interface,
        plan,
        declared,
        lambda lay_out: NativeEngine(program, target, compiled, lay_out),
        make_stages,
        key=found.parts,
    )
    return step


def _plan(optimizer: Optimizer, data: Any) -> OptimizerPlan:
    reader = Reader()
    declared = [Declared(name, reader.type(type), float(value)) for name, type, value in data]
    require(not any(isnan(state.value) for state in declared), "state begins with no number")
    return plan_of(optimizer, declared, {state.name: state.variable() for state in declared})


def _interface(data: Any, declared: Graph, variables: Mapping[str, Variable]) -> Interface:
    reader = Reader()
    inputs = {node.attrs["name"]: node for node in declared.nodes() if node.name == "input"}
    guards: list[Guard] = []
    for left, right, why in data["guards"]:
        require(type(why) is str, "a guard has no reason")
        guards.append((reader.extent(left), reader.extent(right), why))
    return Interface(
        {name: inputs[name] for name in data["inputs"]},
        {label: reader.type(type) for label, type in data["outputs"]},
        {label: reader.type(type) for label, type in data["gradients"]},
        tuple(variables[name] for name in data["parameters"]),
        tuple(variables[name] for name in data["optimizer_state"]),
        frozenset(variables[name] for name in data["updated"]),
        tuple(guards),
        tuple(map(reader.extent, data["extents"])),
    )


def _emitted(data: Any) -> tuple[EmittedKernel, ...]:
    reader = Reader()
    require(all(type(row[0]) is str for row in data), "a symbol is a text")
    return tuple(EmittedKernel(row[0], tuple(map(reader.extent, row[1:]))) for row in data)


def _later(request: Request, chosen: tuple[Variable, ...], variables: Mapping[str, Variable]) -> Request:
    """The request as it is now, for passes that run later: optimizers can be changed meanwhile."""
    optimizer = request.optimizer
    if optimizer is not None:
        optimizer = copy(optimizer)
        optimizer.groups = [Group(g.members, dict(g.options), g.frozen) for g in optimizer.groups]
    wrt = chosen if request.loss is not None else None
    return Request(request.loss, optimizer, wrt, request.machine, variables)
