"""Checking by interpretation: gradients against finite differences, and passes against each other.

`gx.check_gradients` asks whether the derivative rules are right for a network; `check_pass` is what
`gx.compile(..., check="passes")` does after every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from graphc.dsl import Tensor
from graphc.errors import (
    DeclarationError,
    IndexRangeError,
    ShapeError,
    UsageError,
    VerifyError,
)
from graphc.ir.autodiff import vjp
from graphc.ir.graph import Graph, GraphBuilder, Operand, Variable, topological
from graphc.ir.interpret import interpret
from graphc.ir.interpret_kernels import run_kernels
from graphc.ir.kernels import (
    Cast,
    Check,
    Const,
    Expr,
    ExtentValue,
    KernelProgram,
    Let,
    Load,
    Prim,
    Ref,
    exprs_of,
    walk_expr,
    walk_stmts,
)
from graphc.ir.python_kernels import CheckFailure
from graphc.ir.types import Extent, TensorType, dims_of, evaluate

Array = np.ndarray[Any, Any]

ALL_ELEMENTS = 64  # parameters up to this size are checked element by element
SAMPLES = 16  # elements, and half as many projections, for larger ones
STEP = float(np.cbrt(np.finfo(np.float64).eps))  # balances truncation and rounding of a central difference
IMPROVING = frozenset({"recognise_losses"})  # passes that may turn inf or NaN into a finite value


# ------------------------------------------------------------------------------------------- gradients


@dataclass(frozen=True, slots=True)
class ParameterCheck:
    """The comparison for one parameter. Errors are over all derivatives taken; `at` names the worst."""

    name: str
    type: TensorType
    checked: int
    max_abs_error: float
    max_rel_error: float
    at: str
    ok: bool


@dataclass(frozen=True, slots=True)
class GradientReport:
    """What `check_gradients` found; prints as a table, and is true where everything agrees."""

    loss: float
    tolerance: float
    parameters: tuple[ParameterCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every gradient agrees with its finite differences."""
        return all(parameter.ok for parameter in self.parameters)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        width = max(len(p.name) for p in self.parameters)
        lines = [f"gradients of a loss of {self.loss:.6g}, tolerance {self.tolerance:g}"]
        for p in self.parameters:
            verdict = "ok" if p.ok else f"WRONG at {p.at}"
            lines.append(
                f"  {p.name:<{width}}  {p.checked:4d} checked  abs {p.max_abs_error:.1e}  "
                f"rel {p.max_rel_error:.1e}  {verdict}"
            )
        return "\n".join(lines)


def check_gradients(
    loss: Tensor,
    feeds: Mapping[str, Any],
    *,
    eps: float | None = None,
    tolerance: float = 1e-6,
    raise_on_error: bool = False,
) -> GradientReport:
    """Compares the gradient of every trainable parameter with central differences, all in float64.

    loss: a scalar tensor. feeds: arrays by input name.
    eps: the step of the differences, times max(1, |value|); by default the cube root of the unit roundoff.
    tolerance: on |gradient - difference| relative to the largest gradient of that parameter.

    Parameters of up to 64 elements are checked element by element, larger ones at 16 elements and along 8
    random directions. At a kink every value between the one-sided slopes counts as right. A mismatch is
    reported, and raised as VerifyError only with `raise_on_error=True`. Raises DeclarationError for a loss
    that is not a float scalar or reaches no trainable parameter, UsageError for a step or tolerance that is
    not positive, and whatever a run with these feeds would raise.
    """
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.dtype.is_float:
        raise DeclarationError(f"the loss is a float scalar, not {loss!r}")
    if not tolerance > 0 or (eps is not None and not eps > 0):
        raise UsageError(f"eps and tolerance are positive, and are {eps} and {tolerance}")
    nodes = [n for n in topological([loss.operand]) if n.name == "parameter"]
    chosen = {n.variable: n for n in nodes if n.variable.trainable and n.variable.type.dtype.is_float}
    if not chosen:
        raise DeclarationError("the loss does not reach any trainable parameter")
    builder = GraphBuilder()
    operands = [Operand(node) for node in chosen.values()]
    found = vjp(builder, [loss.operand], [builder.full(1.0, loss.operand.type)], operands, {})
    gradients = {v.name: g for v, g in zip(chosen, found, strict=True) if g is not None}
    values, _ = interpret(Graph({"loss.": loss.operand, **gradients}), feeds, precision="float64")
    start = {n.variable: n.variable.array.astype(np.float64) for n in nodes}
    only_loss = Graph({"loss.": loss.operand})

    def loss_at(variable: Variable, value: Array) -> float:
        state = {**start, variable: value}
        return float(interpret(only_loss, feeds, state=state, precision="float64")[0]["loss."])

    checks = []
    for variable in chosen:
        gradient = values.get(variable.name, np.zeros(start[variable].shape))
        checks.append(
            _check_parameter(
                variable, start[variable], gradient, float(values["loss."]),
                partial(loss_at, variable), eps or STEP, tolerance,
            )
        )  # fmt: skip
    report = GradientReport(float(values["loss."]), tolerance, tuple(checks))
    if raise_on_error and not report.ok:
        raise VerifyError(str(report))
    return report


def _directions(shape: tuple[int, ...], seed: int) -> Iterator[tuple[str, Array]]:
    """Unit vectors of all elements, or of some and random signs besides, each with what to call it."""
    size = int(np.prod(shape, dtype=np.int64))
    rng = np.random.default_rng([seed, size])
    sampled = range(size) if size <= ALL_ELEMENTS else rng.choice(size, SAMPLES, replace=False)
    for flat in sampled:
        direction = np.zeros(size)
        direction[flat] = 1.0
        index = [int(i) for i in np.unravel_index(int(flat), shape)]
        yield str(index), direction.reshape(shape)
    if size > ALL_ELEMENTS:
        for number in range(SAMPLES // 2):
            signs = rng.choice([-1.0, 1.0], size) / np.sqrt(size)
            yield f"random direction {number}", signs.reshape(shape)


def _check_parameter(
    variable: Variable,
    start: Array,
    gradient: Array,
    loss: float,
    loss_at: Callable[[Array], float],
    eps: float,
    tolerance: float,
) -> ParameterCheck:
    scale = float(np.abs(gradient).max(initial=0.0))
    # A difference of two losses cannot be more exact than the losses are.
    floor = 1e3 * np.finfo(np.float64).eps * max(1.0, abs(loss)) / eps
    count, worst, worst_rel, at, ok = 0, 0.0, 0.0, "", True
    for name, direction in _directions(start.shape, seed=len(variable.name)):
        analytic = float(np.sum(gradient * direction))
        error = np.inf
        size = eps * max(1.0, float(np.abs(start * (direction != 0)).max(initial=0.0)))
        for step in (size, size / 16):  # a shorter step where the first one crosses a kink
            above, below = loss_at(start + step * direction), loss_at(start - step * direction)
            slopes = sorted(((above - loss) / step, (loss - below) / step))
            central = (above - below) / (2 * step)
            inside = slopes[0] <= analytic <= slopes[1]
            at_kink = inside and slopes[1] - slopes[0] > tolerance
            error = min(error, 0.0 if at_kink else abs(analytic - central))
            if error <= tolerance * max(scale, abs(central)) + floor:
                break
        else:
            ok = False
        if np.isnan(error):
            error, ok = np.inf, False
        count += 1
        relative = error / max(scale, abs(central), 1e-30) if error else 0.0
        worst_rel = max(worst_rel, relative)
        if error > worst or not at:
            worst, at = max(worst, error), f"{name}: gradient {analytic:.9g}, difference {central:.9g}"
    return ParameterCheck(variable.name, variable.type, count, worst, worst_rel, at, ok)


# ---------------------------------------------------------------------------------------------- passes


def check_pass(name: str, before: Graph | KernelProgram, after: Graph | KernelProgram) -> None:
    """Interprets what a pass was given and what it returned, on the same drawn feeds and state.

    Graphs run in float64, kernels in the declared precision. Dims are small distinct numbers (or all equal,
    where the network asks for that), indices in range. Raises VerifyError naming the pass, the first output
    or state that differs, and by how much. A pass in `IMPROVING` may make finite what was not.
    """
    precision = "declared" if isinstance(after, KernelProgram) else "float64"
    for bindings in _candidate_bindings(before):
        feeds = _draw_feeds(before, bindings)
        state = _draw_state(before)
        try:
            expected = _interpreted(before, feeds, state, bindings, precision)
        except ShapeError:
            continue
        except (IndexRangeError, CheckFailure):
            return  # an index that is computed from drawn values is out of range: nothing to compare
        found = _interpreted(after, feeds, state, bindings, precision)
        for label, value in expected.items():
            _compare(name, label, value, found[label], name in IMPROVING, precision)
        return


def _interpreted(
    ir: Graph | KernelProgram,
    feeds: Mapping[str, Array],
    state: Mapping[str, Array],
    bindings: Mapping[str, int],
    precision: Any,
) -> dict[str, Array]:
    """Outputs by label, and the new values of updated state by name."""
    if isinstance(ir, Graph):
        known = {v: state[v.name] for v in ir.variables().values() if v.name in state}
        outputs, updates = interpret(ir, feeds, state=known, bindings=bindings, precision=precision)
        return {**outputs, **{f"state {v.name}": array for v, array in updates.items()}}
    copies = {
        s.name: state[s.name].copy() for s in ir.storages.values() if s.kind == "state" and s.name in state
    }
    declared = {
        s.name: feeds[s.name].astype(s.type.dtype.numpy) for s in ir.storages.values() if s.kind == "input"
    }
    results = run_kernels(ir, declared, copies, bindings, seed=0)
    written = {b.storage for k in ir.kernels for b in k.buffers if b.access != "in"} & copies.keys()
    return {**results, **{f"state {storage}": copies[storage] for storage in written}}


def _compare(name: str, label: str, before: Array, after: Array, improving: bool, precision: str) -> None:
    what = f"pass {name} changes {label}"
    if before.dtype != after.dtype or before.shape != after.shape:
        raise VerifyError(
            f"{what} from {before.dtype}{list(before.shape)} to {after.dtype}{list(after.shape)}"
        )
    if before.dtype.kind != "f":
        if not np.array_equal(before, after):
            raise VerifyError(f"{what} in {int(np.sum(before != after))} of {before.size} elements")
        return
    finite = np.isfinite(before)
    scale = max(1.0, float(np.abs(before[finite]).max(initial=0.0)))
    # Passes reorder sums and use other formulas for the same function; a wrong one errs by far more.
    allowed = scale * float(np.finfo(before.dtype).eps) * (2**10 if precision == "declared" else 2**20)
    with np.errstate(all="ignore"):
        error = np.where(finite, np.abs(after.astype(np.float64) - before), 0.0)
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    wrong = (error > allowed) | np.isnan(error) | (~finite & ~same & (not improving))
    if wrong.any():
        largest = float(np.nanmax(np.where(wrong, error, 0.0)))
        raise VerifyError(
            f"{what} in {int(wrong.sum())} of {wrong.size} elements: "
            f"the largest error is {largest:.3g}, allowed is {allowed:.1g}"
        )


# ----------------------------------------------------------------------------------------- drawn feeds


def _inputs(ir: Graph | KernelProgram) -> dict[str, TensorType]:
    if isinstance(ir, Graph):
        return {name: node.types[0] for name, node in ir.inputs().items()}
    return {s.name: s.type for s in ir.storages.values() if s.kind == "input"}


def _candidate_bindings(ir: Graph | KernelProgram) -> Iterator[dict[str, int]]:
    """Values for all dims: small and distinct, then all equal."""
    names: set[str] = set()
    if isinstance(ir, Graph):
        shapes = [type.shape for node in ir.nodes() for type in node.types]
        extents: list[Extent] = [extent for shape in shapes for extent in shape]
        extents += [node.attrs["extent"] for node in ir.nodes() if node.name == "extent"]
    else:
        extents = [extent for s in ir.storages.values() for extent in s.type.shape]
        for left, right, _ in ir.guards:
            extents += [left, right]
    for extent in extents:
        names |= {name for name in dims_of(extent) if not name.endswith(".chunks")}
    yield {name: 3 + number for number, name in enumerate(sorted(names))}
    yield dict.fromkeys(sorted(names), 4)


def _draw_feeds(ir: Graph | KernelProgram, bindings: Mapping[str, int]) -> dict[str, Array]:
    """Normal floats, and integers below the extents that they index."""
    rng = np.random.default_rng(0)
    limits = _index_limits(ir, bindings)
    feeds: dict[str, Array] = {}
    for name, type in sorted(_inputs(ir).items()):
        shape = tuple(max(evaluate(extent, bindings), 0) for extent in type.shape)
        if type.dtype.is_float:
            values: Array = rng.normal(size=shape)
        else:
            values = rng.integers(0, 2 if type.dtype.is_bool else max(limits.get(name, 3), 1), shape)
        feeds[name] = np.asarray(values).astype(type.dtype.numpy)
    return feeds


def _draw_state(ir: Graph | KernelProgram) -> dict[str, Array]:
    """The values that variables hold; small positive ones where a float variable is still all zero, so
    that moments and learning rates matter."""
    if isinstance(ir, Graph):
        variables = ir.variables()
    else:
        variables = {s.name: s.variable for s in ir.storages.values() if s.variable is not None}
    rng = np.random.default_rng(1)
    state: dict[str, Array] = {}
    for name, variable in sorted(variables.items()):
        array = variable.array
        if variable.type.dtype.is_float and not array.any():
            array = (0.1 * np.abs(rng.normal(size=array.shape))).astype(array.dtype)
        state[name] = array
    return state


def _index_limits(ir: Graph | KernelProgram, bindings: Mapping[str, int]) -> dict[str, int]:
    """For each input that is checked as an index, the smallest extent that it is checked against."""
    limits: dict[str, int] = {}
    pairs = _graph_checks(ir) if isinstance(ir, Graph) else _kernel_checks(ir)
    for name, extent in pairs:
        bound = evaluate(extent, bindings)
        limits[name] = min(bound, limits.get(name, bound))
    return limits


def _graph_checks(graph: Graph) -> Iterator[tuple[str, Extent]]:
    for node in graph.nodes():
        if node.name == "check_index":
            for below in topological([node.inputs[0]]):
                if below.name == "input":
                    yield below.attrs["name"], node.attrs["extent"]


def _kernel_checks(program: KernelProgram) -> Iterator[tuple[str, Extent]]:
    for kernel in program.kernels:
        storages = {buffer.name: buffer.storage for buffer in kernel.buffers}
        named = {s.name: s.expr for s in walk_stmts(kernel.body) if isinstance(s, Let)}
        for stmt in walk_stmts(kernel.body):
            if not isinstance(stmt, Check):
                continue
            for expr in exprs_of(stmt):
                for part in walk_expr(expr):
                    if isinstance(part, Prim) and part.name == "lt":
                        value, limit = part.operands
                        source = _loaded(value, named)
                        if source is not None and isinstance(limit, (Const, ExtentValue)):
                            bound = limit.extent if isinstance(limit, ExtentValue) else int(limit.value)
                            yield storages[source], bound


def _loaded(expr: Expr, named: Mapping[str, Expr]) -> str | None:
    """The buffer that a value was loaded from, through casts and names."""
    while not isinstance(expr, Load):
        if isinstance(expr, Cast):
            expr = expr.operand
        elif isinstance(expr, Ref) and expr.name in named:
            expr = named[expr.name]
        else:
            return None
    return expr.source


__all__ = ["GradientReport", "ParameterCheck", "check_gradients", "check_pass"]
