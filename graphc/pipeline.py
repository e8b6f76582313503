"""The compiler, readable from top to bottom: the tuple that `passes` returns is all of it, in order.

    tensors -> graph     the network as declared, equal nodes merged
            -> joint     with gradients, gradient sums and the optimizer's updates
            -> optimized only primitive ops, laid out for lowering
            -> kernels   fused loop nests with their schedule
            -> program   launch table and memory plan (bound to extents at run time)
            -> llvm, asm native code

A pass is a pure function of an IR. The runner times it, and can verify and interpret what every single one
makes (`check="passes"`). The last result of every stage is verified in any case: before it runs, while LLVM
works on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from graphc.dsl import from_operand
from graphc.errors import DeclarationError, VerifyError
from graphc.figures import LOSS_LABEL
from graphc.ir.autodiff import vjp
from graphc.ir.binding import guards_of
from graphc.ir.common import share_expressions
from graphc.ir.fuse import fuse
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, Variable, topological
from graphc.ir.kernels import KernelProgram
from graphc.ir.lower import lower
from graphc.ir.panels import own_panels
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
from graphc.ir.strips import own_strips
from graphc.request import Request
from graphc.sites import SITES, origins_of
from graphc.stages import CompiledStages, PassRecord
from graphc.updates import OptimizerPlan, build_updates


@dataclass(slots=True)
class Derived:
    """What differentiation makes beside the graph: the variables it was done by, and the optimizer's plan."""

    chosen: tuple[Variable, ...] = ()
    plan: OptimizerPlan | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """A named step of the pipeline. `stage` is the dump that its result belongs to."""

    name: str
    stage: str
    run: Callable[[Any], Any]


def fuse_and_lower(graph: Graph) -> KernelProgram:
    """Clusters the nodes and writes one loop nest for each cluster."""
    return lower(graph, fuse(graph), guards_of(graph))


def passes(request: Request, derived: Derived) -> tuple[Pass, ...]:
    """The whole pipeline for one request. `derived` is filled in when it differentiates."""
    return (
        Pass("intern", "graph", intern),
        Pass("recognise_losses", "joint", recognise_losses),
        Pass("differentiate", "joint", lambda graph: differentiate(graph, request, derived)),
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
        Pass("own_panels", "kernels", lambda program: own_panels(program, request.machine)),
        Pass("own_strips", "kernels", lambda program: own_strips(program, request.machine)),
    )


def run_passes(
    graph: Graph, request: Request, check: str | None = None
) -> tuple[CompiledStages, OptimizerPlan | None]:
    """Runs the pipeline and keeps the last IR of every stage, with a trail of all passes. VerifyError where
    one is not valid."""
    stages, plan = run_unverified(graph, request, check)
    verify_stages(stages.trail)
    return stages, plan


def run_unverified(
    graph: Graph, request: Request, check: str | None = None
) -> tuple[CompiledStages, OptimizerPlan | None]:
    """As `run_passes`, for who calls `verify_stages` before anything of it is run."""
    derived = Derived()
    stages: dict[str, Any] = {}
    trail: list[PassRecord] = []
    ir: Any = graph
    for step in passes(request, derived):
        before = ir
        start = time.perf_counter()
        with blaming(trail):
            ir = step.run(before)
        trail.append(PassRecord(step.name, step.stage, time.perf_counter() - start, ir))
        if check == "passes":
            _verify_last(trail)
        if check == "passes" and step.name != "differentiate":
            from graphc.check import check_pass

            check_pass(step.name, before, ir)
        stages[step.stage] = ir
    graph, joint, optimized, kernels = (stages[name] for name in ("graph", "joint", "optimized", "kernels"))
    return CompiledStages(graph, joint, optimized, kernels, trail, derived.chosen), derived.plan


def verify_stages(trail: Sequence[PassRecord]) -> None:
    """Raises VerifyError unless the last result of every stage is valid: it names the first pass after which
    one is not."""
    ends = {record.stage: position for position, record in enumerate(trail, 1)}
    for end in ends.values():
        _verify_last(trail[:end])


@contextmanager
def blaming(trail: Sequence[PassRecord]) -> Iterator[None]:
    """An exception in the block becomes a VerifyError if it comes after a result that is not valid."""
    try:
        yield
    except Exception:
        verify_stages(trail)
        raise


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
    # Loaded, as a rule, while LLVM works.
    from graphc.ir.verify import verify_graph, verify_kernels

    if isinstance(ir, Graph):
        verify_graph(ir)
    else:
        verify_kernels(ir)


# -------------------------------------------------------------------------------------- differentiation


def differentiate(graph: Graph, request: Request, derived: Derived) -> Graph:
    """Adds gradients as outputs `grad.<parameter>`, or the optimizer's updates of state.

    Needs the loss as output `__loss__`, and keeps it only if the user gave it no label.
    """
    if request.loss is None:
        return graph
    loss = graph.outputs[LOSS_LABEL]
    outputs = {label: operand for label, operand in graph.outputs.items() if label != LOSS_LABEL}
    if loss not in outputs.values():
        outputs[LOSS_LABEL] = loss  # `fit` shows it
    builder = GraphBuilder()
    parameters = _parameters(graph, loss)
    chosen = _chosen(parameters, request)
    derived.chosen = tuple(chosen)
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
    for node, origin in origins.items():
        SITES.setdefault(node, origin)
    derived.plan, made = build_updates(
        request.optimizer,
        [(v, from_operand(Operand(parameters[v])), from_operand(g)) for v, g in gradients.items()],
        request.state,
    )
    updates = {v: tensor.operand for v, tensor in made.items()}
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
