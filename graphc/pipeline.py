"""The compiler, readable from top to bottom: the tuple that `passes` returns is all of it, in order.

    tensors -> graph     the network as declared, equal nodes merged
            -> joint     with gradients, gradient sums and the optimizer's updates
            -> optimized only primitive ops, laid out for lowering
            -> kernels   fused loop nests with their schedule
            -> program   launch table and memory plan (bound to extents at run time)
            -> llvm, asm native code

A pass is a pure function of an IR. The runner times it, verifies the last result of every stage, and can
verify and interpret every single one (`check="passes"`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from graphc import settings
from graphc.dsl import Tensor, from_operand
from graphc.errors import DeclarationError, ShapeError, UsageError, VerifyError
from graphc.ir.autodiff import vjp
from graphc.ir.common import share_expressions
from graphc.ir.fuse import fuse
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, Variable, topological
from graphc.ir.kernels import KernelProgram
from graphc.ir.lower import lower
from graphc.ir.machine import Machine
from graphc.ir.rebuild import intern
from graphc.ir.rewrite.copies import insert_copies
from graphc.ir.rewrite.decompose import decompose
from graphc.ir.rewrite.fold import fold
from graphc.ir.rewrite.identities import identities
from graphc.ir.rewrite.layout import lay_out
from graphc.ir.rewrite.materialise import materialise
from graphc.ir.rewrite.picks import mask_picks
from graphc.ir.rewrite.recognise_losses import recognise_losses
from graphc.ir.rewrite.shapes import canonical_views
from graphc.ir.rewrite.transposes import fold_transposes
from graphc.ir.schedule import schedule
from graphc.ir.types import Guard, collect_guards
from graphc.ir.verify import verify_graph, verify_kernels
from graphc.sites import SITES, call_site, names_options, origins_of
from graphc.stages import CompiledStages, PassRecord

if TYPE_CHECKING:
    from graphc.executable import Executable
    from graphc.optim import Optimizer, OptimizerPlan

LOSS = "__loss__"
"""The output under which the loss goes into differentiation, whether or not the user asked for it."""

Backend = Literal["native", "numpy", "python"]


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked `compile` for, beside the network itself."""

    loss: Operand | None = None
    optimizer: Optimizer | None = None
    wrt: tuple[Variable, ...] | None = None
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True, slots=True)
class Pass:
    """A named step of the pipeline. `stage` is the dump that its result belongs to."""

    name: str
    stage: str
    run: Callable[[Any], Any]


def fuse_and_lower(graph: Graph) -> KernelProgram:
    """Clusters the nodes and writes one loop nest for each cluster."""
    return lower(graph, fuse(graph), shape_guards(graph))


def passes(request: Request, plan: list[OptimizerPlan]) -> tuple[Pass, ...]:
    """The whole pipeline for one request. `plan` receives the optimizer's plan."""
    return (
        Pass("intern", "graph", intern),
        Pass("recognise_losses", "joint", recognise_losses),
        Pass("differentiate", "joint", lambda graph: differentiate(graph, request, plan)),
        Pass("decompose", "optimized", decompose),
        Pass("mask_picks", "optimized", mask_picks),
        Pass("fold", "optimized", fold),
        Pass("identities", "optimized", identities),
        Pass("canonical_views", "optimized", canonical_views),
        Pass("fold_transposes", "optimized", fold_transposes),
        Pass("lay_out", "optimized", lambda graph: lay_out(graph, request.machine)),
        Pass("insert_copies", "optimized", insert_copies),
        Pass("materialise", "optimized", materialise),
        Pass("fuse_and_lower", "kernels", fuse_and_lower),
        Pass("share_expressions", "kernels", share_expressions),
        Pass("schedule", "kernels", lambda program: schedule(program, request.machine)),
    )


def run_passes(
    graph: Graph, request: Request, check: str | None = None
) -> tuple[CompiledStages, OptimizerPlan | None]:
    """Runs the pipeline and keeps the last IR of every stage, with a trail of all passes."""
    plan: list[OptimizerPlan] = []
    stages: dict[str, Any] = {}
    trail: list[PassRecord] = []
    ir: Any = graph
    steps = passes(request, plan)
    ends = {step.stage: step for step in steps}  # the last pass of each stage
    for step in steps:
        before = ir
        start = time.perf_counter()
        ir = step.run(before)
        trail.append(PassRecord(step.name, step.stage, time.perf_counter() - start, ir))
        if check == "passes" or ends[step.stage] is step:
            _verify_last(trail)
        if check == "passes" and step.name != "differentiate":
            from graphc.check import check_pass

            check_pass(step.name, before, ir)
        stages[step.stage] = ir
    compiled = CompiledStages(stages["graph"], stages["joint"], stages["optimized"], stages["kernels"], trail)
    return compiled, plan[0] if plan else None


def _verify_last(trail: Sequence[PassRecord]) -> None:
    """Raises VerifyError if the last result is not valid, naming the first pass after which one is not."""
    try:
        _verify(trail[-1].ir)
    except VerifyError:
        for record in trail:
            try:
                _verify(record.ir)
            except VerifyError as error:
                raise VerifyError(f"after {record.name}: {error}") from None


def _verify(ir: Graph | KernelProgram) -> None:
    if isinstance(ir, Graph):
        verify_graph(ir)
    else:
        verify_kernels(ir)


def shape_guards(graph: Graph) -> tuple[Guard, ...]:
    """The extent equalities that type inference assumed, to be checked when extents are bound."""
    with collect_guards() as found:
        for node in graph.nodes():
            node.op.infer([operand.type for operand in node.inputs], node.attrs)
    return tuple(dict.fromkeys(found))


# -------------------------------------------------------------------------------------- differentiation


def differentiate(graph: Graph, request: Request, plan: list[OptimizerPlan]) -> Graph:
    """Adds gradients as outputs `grad.<parameter>`, or the optimizer's updates of state.

    Needs the loss as output `__loss__`, and keeps it only if the user gave it no label.
    """
    if request.loss is None:
        return graph
    loss = graph.outputs[LOSS]
    outputs = {label: operand for label, operand in graph.outputs.items() if label != LOSS}
    if loss not in outputs.values():
        outputs[LOSS] = loss  # `fit` shows it
    builder = GraphBuilder()
    parameters = _parameters(graph, loss)
    chosen = _chosen(parameters, request)
    with builder.attributed_to(graph.origin(loss.node), "gradient"):
        one = builder.full(1.0, loss.type)
    operands = [Operand(parameters[v]) for v in chosen]
    found = vjp(builder, [loss], [one], operands, dict(graph.origins))
    origins = {**graph.origins, **builder.origins}
    gradients = {
        v: operand if operand is not None else builder.full(0.0, v.type)
        for v, operand in zip(chosen, found, strict=True)
    }
    if request.optimizer is None:
        for variable, operand in gradients.items():
            outputs[f"grad.{variable.name}"] = operand
        return intern(Graph(outputs, graph.updates, origins))
    from graphc.optim import build_updates

    for node, origin in origins.items():
        SITES.setdefault(node, origin)
    made = build_updates(
        request.optimizer,
        [(v, from_operand(Operand(parameters[v])), from_operand(g)) for v, g in gradients.items()],
    )
    plan.append(made)
    updates = {v: tensor.operand for v, tensor in made.updates.items()}
    roots = [*outputs.values(), *updates.values()]
    return intern(Graph(outputs, {**graph.updates, **updates}, {**origins_of(roots), **origins}))


def _parameters(graph: Graph, loss: Operand) -> dict[Variable, Node]:
    """The parameter nodes that the loss reaches, in the order of their first use."""
    return {n.variable: n for n in topological([loss]) if n.name == "parameter"}


def _chosen(parameters: Mapping[Variable, Node], request: Request) -> list[Variable]:
    """The variables to differentiate by: those asked for, else all trainable ones."""
    if request.wrt is None:
        chosen = [v for v in parameters if v.trainable and v.type.dtype.is_float]
        if not chosen:
            raise DeclarationError("the loss does not reach any trainable parameter")
        return chosen
    for variable in request.wrt:
        if variable not in parameters:
            raise DeclarationError(f"the loss does not reach the parameter {variable.name!r}")
    return list(request.wrt)


# ----------------------------------------------------------------------------------------------- compile


@names_options
def compile(
    outputs: Any,
    *,
    loss: Tensor | None = None,
    optimizer: Optimizer | None = None,
    wrt: Any = None,
    threads: int | None = None,
    backend: Backend = "native",
    check: str | None = None,
) -> Executable:
    """Compiles a network into an `Executable`.

    outputs: a Tensor, or a tuple, list or dict of them; `run` returns the same structure. Also what
        `gx.parse` returns: a graph of any stage, or kernels.
    loss: a scalar Tensor. With `optimizer` every run is a training step that updates the parameters;
        without, the gradients of `wrt` (default: all trainable parameters) are in `exe.grads`.
    wrt: parameters to differentiate by (a tensor, or a sequence of them).
    threads: sets the process-wide number of threads (`gx.set_num_threads`).
    backend: "native" runs generated code; "numpy" interprets the optimized graph; "python" interprets
        the kernels loop by loop.
    check: "passes" interprets the IR after every pass and raises VerifyError for the first that changes
        results.

    Raises DeclarationError, ShapeError or another GraphcError for a network that cannot be compiled.
    """
    from graphc.executable import Executable

    if backend not in ("native", "numpy", "python"):
        raise UsageError(f"backend is native, numpy or python, not {backend!r}")
    if check not in (None, "passes"):
        raise UsageError(f'check is None or "passes", not {check!r}')
    if threads is not None:
        set_num_threads(threads)
    target, machine = _machine(backend)
    if isinstance(outputs, (Graph, KernelProgram)):
        if loss is not None or optimizer is not None or wrt is not None:
            raise DeclarationError("a parsed program is complete; it takes no loss, optimizer or wrt")
        return _compile_parsed(outputs, backend, target, machine, check)
    labels, structure = _flatten(outputs)
    roots = {label: tensor.operand for label, tensor in labels.items()}
    _require_loss(loss, optimizer, wrt)
    if loss is not None:
        roots[LOSS] = loss.operand
    graph = Graph(roots, {}, origins_of(roots.values()))
    _require_unique_names(graph)
    request = Request(loss.operand if loss is not None else None, optimizer, _wrt(wrt), machine)
    stages, plan = run_passes(graph, request, check)
    executable = Executable(
        stages, structure, backend=backend, target=target, optimizer=optimizer, plan=plan, site=call_site()
    )
    directory = settings.dump_directory()
    if directory is not None:
        executable.dump_all(directory)
    return executable


def _compile_parsed(
    parsed: Graph | KernelProgram, backend: Backend, target: Any, machine: Machine, check: str | None
) -> Executable:
    from graphc.executable import Executable
    from graphc.parsed import stages_of_kernels, structure_of

    if isinstance(parsed, Graph):
        kept = {label: operand for label, operand in parsed.outputs.items() if label != LOSS}
        parsed = Graph(kept, parsed.updates, parsed.origins)
        _require_unique_names(parsed)
        stages, _ = run_passes(parsed, Request(machine=machine), check)
    elif backend == "numpy":
        raise UsageError("kernels have no graph to interpret; use the native or the python backend")
    else:
        stages = stages_of_kernels(parsed)
    structure = structure_of(list(stages.graph.outputs))
    return Executable(stages, structure, backend=backend, target=target, site=call_site())


def set_num_threads(count: int) -> None:
    """Sets how many threads native code uses, for the whole process. Raises UsageError unless 1..64."""
    from graphc.codegen.threads import set_num_threads as set_threads

    set_threads(count)


def _machine(backend: Backend) -> tuple[Any, Machine]:
    """The target and what scheduling needs to know of it (the interpreters need none)."""
    if backend == "numpy":
        return None, Machine()
    from graphc.codegen.target import host_target

    target = host_target()
    rows, vectors = target.contract_tile
    return target, Machine(target.vector_bits // 8, rows, vectors, registers=target.registers)


def _flatten(outputs: Any) -> tuple[dict[str, Tensor], Any]:
    """Labels of all outputs, and the structure with labels in place of tensors."""
    if isinstance(outputs, Tensor):
        return {"output": outputs}, "output"
    if isinstance(outputs, Mapping):
        named = {_label(key): value for key, value in outputs.items()}
        structure: Any = {key: _label(key) for key in outputs}
    elif isinstance(outputs, (tuple, list)):
        named = {f"output{i}": value for i, value in enumerate(outputs)}
        structure = type(outputs)(named) if isinstance(outputs, list) else tuple(named)
    else:
        raise DeclarationError(f"outputs are tensors, or a tuple, list or dict of them, not {outputs!r}")
    for label, value in named.items():
        if not isinstance(value, Tensor):
            raise DeclarationError(f"output {label!r} is {type(value).__name__}, which is not a Tensor")
    if not named:
        raise DeclarationError("there is nothing to compile: outputs is empty")
    return named, structure


def _label(key: Any) -> str:
    if (
        not isinstance(key, str)
        or not key.replace("_", "a").replace(".", "a").isalnum()
        or key.endswith(".")
        or key == LOSS
    ):
        raise DeclarationError(f"an output is named with letters, digits, '_' and '.', not {key!r}")
    return key if not key[0].isdigit() else f"_{key}"


def _require_loss(loss: Tensor | None, optimizer: Any, wrt: Any) -> None:
    if loss is None:
        if optimizer is not None or wrt is not None:
            raise DeclarationError(
                "an optimizer or wrt needs a loss to differentiate: compile(..., loss=...)"
            )
        return
    if not isinstance(loss, Tensor):
        raise DeclarationError(f"the loss is a Tensor, not {type(loss).__name__}")
    if loss.shape != ():
        raise ShapeError(f"a loss is a scalar, and this has shape {loss.shape}; take its mean or sum")
    if not loss.dtype.is_float:
        raise DeclarationError(f"a loss is a float, not {loss.dtype}")
    if optimizer is not None and wrt is not None:
        raise DeclarationError("wrt goes without an optimizer; give the optimizer parameter groups instead")


def _wrt(wrt: Any) -> tuple[Variable, ...] | None:
    if wrt is None:
        return None
    tensors: Sequence[Any] = [wrt] if isinstance(wrt, Tensor) else list(wrt)
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.operand.node.name != "parameter":
            raise DeclarationError(f"wrt takes parameters (gx.param, layer.weight), not {tensor!r}")
    return tuple(tensor.variable for tensor in tensors)


def _require_unique_names(graph: Graph) -> None:
    """Inputs and parameters share one name space; two of a name would be fed or saved as one."""
    interned = intern(graph)
    both = set(interned.inputs()) & set(interned.variables())
    if both:
        raise DeclarationError(f"an input and a parameter are both named {sorted(both)[0]!r}")
