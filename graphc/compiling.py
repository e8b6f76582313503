"""`gx.compile`: checks what it is given, has the passes make a step of it, and returns the executable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphc import settings, step_cache
from graphc.codegen.cache import Parts, look_up, refuse, usable_directory
from graphc.collector import paused_collector
from graphc.dsl import Tensor
from graphc.engine import Engine, NativeEngine
from graphc.errors import DeclarationError, ShapeError, UsageError
from graphc.executable import Executable
from graphc.figures import LOSS_LABEL
from graphc.interface import interface_of
from graphc.ir.binding import require_bound_dims
from graphc.ir.graph import Graph, Variable
from graphc.ir.machine import Machine
from graphc.request import Backend, Request
from graphc.sites import call_site, names_options, origins_of
from graphc.step import Step
from graphc.step_key import NoKey, step_parts

# The passes are most of the compiler; a step from the cache never loads them.
if TYPE_CHECKING:
    from graphc.ir.kernels import KernelProgram
    from graphc.stages import CompiledStages
    from graphc.updates import Optimizer, OptimizerPlan


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
    if backend not in ("native", "numpy", "python"):
        raise UsageError(f"backend is native, numpy or python, not {backend!r}")
    if check not in (None, "passes"):
        raise UsageError(f'check is None or "passes", not {check!r}')
    if threads is not None:
        set_num_threads(threads)
    target, machine = _machine(backend)
    if not isinstance(outputs, (Tensor, Mapping, tuple, list)) and _is_parsed(outputs):
        if loss is not None or optimizer is not None or wrt is not None:
            raise DeclarationError("a parsed program is complete; it takes no loss, optimizer or wrt")
        return _compile_parsed(outputs, backend, target, machine, check)
    labels, structure = _flatten(outputs)
    roots = {label: tensor.operand for label, tensor in labels.items()}
    _require_loss(loss, optimizer, wrt)
    if loss is not None:
        roots[LOSS_LABEL] = loss.operand
    graph = Graph(roots, {}, origins_of(roots.values()))
    request = Request(loss.operand if loss is not None else None, optimizer, _wrt(wrt), machine)
    with paused_collector():  # no decorator: its frame would pass for the user's
        step = _step(graph, request, backend, target, check)
        executable = Executable(
            step, structure, backend=backend, target=target, optimizer=optimizer, site=call_site()
        )
    directory = settings.dump_directory()
    if directory is not None:
        executable.dump_all(directory)
    return executable


def _is_parsed(outputs: Any) -> bool:
    from graphc.ir.kernels import KernelProgram

    return isinstance(outputs, (Graph, KernelProgram))


def _compile_parsed(
    parsed: Graph | KernelProgram, backend: Backend, target: Any, machine: Machine, check: str | None
) -> Executable:
    from graphc.parsed import stages_of_kernels, structure_of

    if isinstance(parsed, Graph):
        kept = {label: operand for label, operand in parsed.outputs.items() if label != LOSS_LABEL}
        parsed = Graph(kept, parsed.updates, parsed.origins)
        step = _step(parsed, Request(machine=machine), backend, target, check)
    elif backend == "numpy":
        raise UsageError("kernels have no graph to interpret; use the native or the python backend")
    else:
        stages = stages_of_kernels(parsed)
        step = _step_of(stages, None, stages.graph, backend, target, "it was compiled from kernels")
    structure = structure_of(list(step.declared.outputs))
    return Executable(step, structure, backend=backend, target=target, site=call_site())


def _step(graph: Graph, request: Request, backend: Backend, target: Any, check: str | None) -> Step:
    """The step of a declared graph: from the cache, or as the passes make it."""
    key = _key(graph, request, backend, target, check)
    if not isinstance(key, str):
        found = look_up(key)
        if found is not None:
            try:
                return step_cache.restored(found, graph, request, target, call_site())
            except ValueError as why:
                refuse(key, why)
    from graphc.codegen.background import beside
    from graphc.codegen.threads import load as load_pool
    from graphc.pipeline import run_unverified

    _require_unique_names(graph)
    require_bound_dims(graph)
    if backend != "native" or not target.runs_here:
        stages, plan = run_unverified(graph, request, check)
    else:
        # LLVM has nothing to do while the passes run, and the step will run on the pool.
        with beside(load_pool):
            stages, plan = run_unverified(graph, request, check)
    return _step_of(stages, plan, graph, backend, target, key)


def _key(graph: Graph, request: Request, backend: Backend, target: Any, check: str | None) -> Parts | str:
    """The parts of a step's key in the cache, or why it is not looked up and not kept."""
    if backend != "native":
        return "only native code is kept"
    if check is not None:
        return f"check={check!r} runs the passes"
    if usable_directory() is None:
        return "the cache is switched off or its directory is not usable"
    try:
        return step_parts(graph, request, target)
    except NoKey as why:
        return str(why)


def _step_of(
    stages: CompiledStages,
    plan: OptimizerPlan | None,
    declared: Graph,
    backend: Backend,
    target: Any,
    key: Parts | str,
) -> Step:
    """The step that the passes have made. Its engine is made with the stages verified and the state laid out
    before, or while LLVM compiles the kernels; a step with a key is then kept."""
    from graphc.pipeline import blaming, verify_stages

    def make_engine(lay_out: Callable[[], None]) -> Engine:
        def meanwhile() -> None:
            verify_stages(stages.trail)
            lay_out()

        if backend == "native":
            with blaming(stages.trail):
                engine = NativeEngine(stages.program, target, meanwhile=meanwhile)
            if not isinstance(key, str):
                step_cache.keep(step, engine, key)
            return engine
        meanwhile()
        from graphc.interpreters import NumpyEngine, PythonEngine

        return NumpyEngine(stages.optimized) if backend == "numpy" else PythonEngine(stages.program)

    step = Step(interface_of(stages, plan), plan, declared, make_engine, lambda: stages, stages, key)
    return step


def set_num_threads(count: int) -> None:
    """Sets how many threads native code uses, for the whole process. Raises UsageError unless 1..64."""
    from graphc.codegen.threads import set_num_threads as set_threads

    set_threads(count)


def get_num_threads() -> int:
    """How many threads native code uses; before `set_num_threads`, what `GRAPHC_NUM_THREADS`, the process's
    CPU affinity and its cgroup's quota allow."""
    from graphc.codegen.threads import get_num_threads as get_threads

    return get_threads()


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
        or key == LOSS_LABEL
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
    from graphc.ir.rebuild import intern

    interned = intern(graph)
    both = set(interned.inputs()) & set(interned.variables())
    if both:
        raise DeclarationError(f"an input and a parameter are both named {sorted(both)[0]!r}")
