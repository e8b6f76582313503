"""The key of a step in the cache: everything that the passes and the code generator make it from.

    declaration  inputs, parameters by name and type, nodes, outputs; constants by digest; no lines, no values
    request      what is differentiated by what, and graphc's own optimizers with their options
    the rest     graphc's sources, Python, numpy, LLVM and its options, the CPU

Learning rates are no part of it: they are data. Whoever brings code of their own (an optimizer) has no key,
since nothing says what that code does: such a step is compiled each time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.codegen.cache import Parts, machine_parts, usable_directory
from graphc.codegen.target import Target, host_cpu_name
from graphc.ir.graph import ConstantData, Graph, Node, Operand, Variable
from graphc.ir.ops import OPS
from graphc.ir.types import DType, SymbolicExtent, TensorType
from graphc.request import Request
from graphc.sources import compiler_digest
from graphc.updates import Group, Optimizer

_COMMON = ("clip_norm", "clip_value", "accumulate", "accumulation")
_OPTIMIZER_FIELDS = {*_COMMON, "lr", "defaults", "groups"}


class NoKey(Exception):
    """Why a step is not kept; the message says it."""


def step_parts(graph: Graph, request: Request, target: Target) -> Parts:
    """The parts of the key for a declared graph. Raises NoKey where something cannot be part of one."""
    variables = variables_of(graph)
    numbers = {variable: number for number, variable in enumerate(variables.values())}
    leaves: dict[str, list[str]] = {"input": [], "parameter": []}
    lines = []
    directory = usable_directory()
    positions = {node: position for position, node in enumerate(graph.nodes())}
    for node, position in positions.items():
        if OPS.get(node.name) is not node.op:
            raise NoKey(f"the op {node.name} is none of graphc's own")
        attrs = " ".join(f"{name}={_text(node.attrs[name], numbers)}" for name in sorted(node.attrs))
        operands = ", ".join(_operand(operand, positions) for operand in node.inputs)
        lines.append(f"{position} {node.name}({operands}) {attrs}")
        if node.name in leaves:
            leaves[node.name].append(_leaf(node))
    return {
        "kind": "step",
        **machine_parts(target),
        "machine": f"{request.machine}, {host_cpu_name()}",
        "Python and numpy": f"{sys.version.split()[0]}, {np.__version__}",
        "sources": compiler_digest(None if directory is None else directory / ".sources"),
        "outputs": _labels(graph.outputs, positions),
        "updates": _labels({v.name: operand for v, operand in graph.updates.items()}, positions),
        "inputs": ", ".join(leaves["input"]),
        "parameters": ", ".join(leaves["parameter"]),
        "nodes": "\n".join(lines),
        "gradients": _gradients(request, variables),
        "optimizer": "none" if request.optimizer is None else _optimizer(request.optimizer, variables),
    }


def variables_of(graph: Graph) -> dict[str, Variable]:
    """The state that a declared graph names. Raises NoKey for two of one name, which no pass lets through."""
    found: dict[str, Variable] = {}
    read = (node.variable for node in graph.nodes() if node.name == "parameter")
    for variable in (*read, *graph.updates):
        if found.setdefault(variable.name, variable) is not variable:
            raise NoKey(f"two parameters are named {variable.name!r}")
    return found


def constants_of(graph: Graph) -> list[ConstantData]:
    """The constants that a declared graph holds, in order."""
    return [value for node in graph.nodes() for value in node.attrs.values() if type(value) is ConstantData]


def _leaf(node: Node) -> str:
    """An input or a parameter as messages show it."""
    if node.name == "input":
        return f"{node.attrs['name']}: {node.types[0]}"
    variable = node.variable
    return f"{variable.name}: {variable.type}{'' if variable.trainable else ' fixed'}"


def _operand(operand: Operand, positions: Mapping[Node, int]) -> str:
    return f"{positions[operand.node]}.{operand.index}"


def _labels(operands: Mapping[str, Operand], positions: Mapping[Node, int]) -> str:
    return ", ".join(f"{label!r} = {_operand(operand, positions)}" for label, operand in operands.items())


def _text(value: Any, numbers: Mapping[Variable, int]) -> str:
    """An attribute or an option. Two of one text are the same to every pass, as with `attr_key`."""
    if isinstance(value, np.generic):
        return f"{value.dtype.str}:{'nan' if value != value else value.tobytes().hex()}"
    if isinstance(value, float):
        return "nan" if value != value else value.hex()
    if value is None or isinstance(value, (bool, int, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({''.join(f'{_text(item, numbers)}, ' for item in value)})"
    if isinstance(value, (DType, TensorType)):
        return f"<{value}>"
    if isinstance(value, SymbolicExtent):
        return f"[{value}]"
    if isinstance(value, ConstantData):
        return f"#{value.full_digest}"
    if isinstance(value, Variable):
        return f"${numbers[value]} {value.name!r} <{value.type}> {value.trainable}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_text(value[key], numbers)}' for key in sorted(value))}}}"
    raise NoKey(f"a value of type {type(value).__name__} cannot be part of a key")


def _gradients(request: Request, variables: Mapping[str, Variable]) -> str:
    if request.loss is None:
        return "none"
    if request.wrt is None:
        return "of all trainable parameters"
    return "of " + ", ".join(_reference(variable, variables) for variable in request.wrt)


def _reference(variable: Variable, variables: Mapping[str, Variable]) -> str:
    if variables.get(variable.name) is not variable:
        raise NoKey(f"{variable.name!r} is not a parameter of the network")
    return f"${variable.name!r}"


# ------------------------------------------------------------------------------------------- optimizers


def _optimizer(optimizer: Optimizer, variables: Mapping[str, Variable]) -> str:
    """The class, and all that its updates depend on."""
    kind = type(optimizer)
    if kind.__module__ != "graphc.optim" or vars(optimizer).keys() != _OPTIMIZER_FIELDS:
        raise NoKey(f"{kind.__qualname__} is an optimizer of its own kind")
    common = {name: getattr(optimizer, name) for name in _COMMON}
    groups = "; ".join(" ".join(_group(group, variables)) for group in optimizer.groups)
    return f"{kind.__qualname__} {_text(common, {})} groups: {groups}"


def _group(group: Group, variables: Mapping[str, Variable]) -> Iterator[str]:
    yield "frozen" if group.frozen else "updated"
    yield _text({name: value for name, value in group.options.items() if name != "lr"}, {})
    members: Sequence[Any] | None = group.members
    if members is None:
        yield "all"
        return
    for member in members:
        yield repr(member) if isinstance(member, str) else _reference(member, variables)
