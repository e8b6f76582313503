"""What optimizers are made of: groups of parameters, the update context, and the updates of one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

import numpy as np

from graphc import dsl, functions, init, reductions
from graphc.dsl import Tensor
from graphc.errors import DeclarationError
from graphc.ir.graph import Variable
from graphc.ir.types import DType, TensorType, float32, int64, promote
from graphc.sites import meant, names_options

LearningRate = float | Callable[[int], float]
RATE_PREFIX = "optim.lr."
STEP = "optim.step"
"""What the scalars of an optimizer's own are called: a rate for each group, and the number of updates."""


class Declared(NamedTuple):
    """State that an optimizer declares, with the initial value of all its elements."""

    name: str
    type: TensorType
    value: float

    def variable(self) -> Variable:
        """A new Variable for it."""
        return dsl.make_variable(self.name, self.type, init.Fixed(self.value), trainable=False)


@dataclass
class OptimizerPlan:
    """The state of an optimizer, apart from what a step makes of it. `declared` says how it was declared.

    `lr_variables` are scalars, one for each group; before a run Python writes `learning_rate(k, steps)`
    into each, where `steps` is `step_variable`'s value: the number of updates done so far.
    """

    lr_variables: list[Variable]
    lr: list[LearningRate]
    step_variable: Variable
    state_variables: list[Variable]
    declared: tuple[Declared, ...]

    @property
    def variables(self) -> list[Variable]:
        """All of it."""
        return [*self.lr_variables, *dict.fromkeys((self.step_variable, *self.state_variables))]

    def learning_rate(self, group: int, steps: int) -> float:
        """The learning rate of a group at the next update. Raises DeclarationError if it is no number."""
        rate = self.lr[group]
        return checked_rate(rate(steps) if callable(rate) else rate)


def plan_of(
    optimizer: Optimizer, declared: Sequence[Declared], variables: Mapping[str, Variable]
) -> OptimizerPlan:
    """The plan of an optimizer whose state, by name, is there. KeyError where some is not."""
    rates = [variables[f"{RATE_PREFIX}{k}"] for k in range(len(optimizer.groups))]
    return OptimizerPlan(
        rates,
        [group.options["lr"] for group in optimizer.groups],
        variables[STEP],
        [variables[name] for name, _, _ in declared if variables[name] not in rates],
        tuple(declared),
    )


def checked_rate(value: Any) -> float:
    """A finite learning rate >= 0. Raises DeclarationError."""
    try:
        rate = float(value)
    except (TypeError, ValueError):
        raise DeclarationError(f"a learning rate is a number, not {value!r}") from None
    if not (math.isfinite(rate) and rate >= 0):
        raise DeclarationError(f"a learning rate is finite and not negative, which {rate!r} is not")
    return rate


@dataclass
class Group:
    """Parameters that share hyperparameters. `members` is None for all."""

    members: list[Any] | None
    options: dict[str, Any]
    frozen: bool = False

    def selects(self, variable: Variable) -> bool:
        """Whether a parameter belongs here."""
        return self.members is None or any(_matches(member, variable) for member in self.members)


def _matches(member: Any, variable: Variable) -> bool:
    return fnmatchcase(variable.name, member) if isinstance(member, str) else member is variable


class UpdateContext:
    """What `update` may use: hyperparameters, learning rate, step and named state of one parameter."""

    def __init__(self, building: _Building, group: Group, lr: Tensor, step: Tensor, param: Tensor) -> None:
        self._building = building
        self._options = group.options
        self._param = param
        # Scalars of the parameter's dtype; `step` is 1 at the first update.
        self.lr = functions.cast(lr, param.dtype)
        self.step = functions.cast(step, param.dtype)

    def __getitem__(self, option: str) -> Any:
        """A hyperparameter of the parameter's group."""
        return self._options[option]

    def state(self, name: str, init: float = 0.0) -> Tensor:
        """State shaped like the parameter, "optim.<parameter>.<name>", as it was before this step."""
        return self._building.state(self._param, name, init)

    def set_state(self, name: str, value: Tensor) -> None:
        """The state's value after this step."""
        self._building.set_state(self._param, name, value)


class Optimizer:
    """Base class. `lr` is a number or `f(step)` of the number of updates done; `step.lr` changes it later.

    clip_value limits each gradient element to [-v, v]; clip_norm then scales all gradients together so that
    their global 2-norm n is at most v: by min(1, v / (n + 1e-6)). With `accumulate=k` gradients are
    averaged (or summed: `accumulation="sum"`) over k runs, and the k-th run applies them. `options` are a
    subclass's own hyperparameters: groups may override them, and `update` reads them as `ctx[name]`.
    """

    # Hyperparameters that a group may override, and what each must satisfy.
    non_negative: ClassVar[tuple[str, ...]] = ("weight_decay",)

    @names_options
    def __init__(
        self,
        params: Any = None,
        *,
        lr: LearningRate = 1e-3,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        accumulate: int = 1,
        accumulation: str = "mean",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not (is_number(limit) and limit > 0):
                raise DeclarationError(f"{name} is a positive number, not {limit!r}")
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise DeclarationError(f"accumulate is a number of runs >= 1, not {accumulate!r}")
        if accumulation not in ("mean", "sum"):
            raise DeclarationError(f"accumulation is 'mean' or 'sum', not {accumulation!r}")
        self.lr = lr
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.accumulate = accumulate
        self.accumulation = accumulation
        self.defaults = {"lr": lr, **(options or {})}
        self.groups = self._make_groups(params)

    def _make_groups(self, params: Any) -> list[Group]:
        if is_number(params):
            raise DeclarationError(f"the learning rate is given by name: lr={params!r}")
        if params is None:
            return [self._group(None, {})]
        listed = (
            [params] if isinstance(params, (str, Mapping, Tensor)) or _is_module(params) else list(params)
        )
        if not any(isinstance(item, Mapping) for item in listed):
            return [self._group(_members(listed), {})]
        groups = []
        for item in listed:
            if not isinstance(item, Mapping) or "params" not in item:
                raise DeclarationError(f"a parameter group is a dict with 'params', not {item!r}")
            groups.append(
                self._group(_members(item["params"]), {k: v for k, v in item.items() if k != "params"})
            )
        return groups

    def _group(self, members: list[Any] | None, given: dict[str, Any]) -> Group:
        frozen = given.pop("frozen", False)
        unknown = set(given) - set(self.defaults)
        if unknown:
            known = ", ".join([*self.defaults, "frozen"])
            hint = meant(min(unknown), [*self.defaults, "frozen"])
            raise DeclarationError(
                f"{type(self).__name__} has no option {min(unknown)!r}; there are {known}{hint}"
            )
        options = {**self.defaults, **given}
        self.validate(options)
        return Group(members, options, bool(frozen))

    def validate(self, options: Mapping[str, Any]) -> None:
        """Refuses hyperparameters out of range with a DeclarationError."""
        if not callable(options["lr"]):
            checked_rate(options["lr"])
        for name in self.non_negative:
            value = options.get(name, 0.0)
            if not (is_number(value) and value >= 0):
                raise DeclarationError(f"{type(self).__name__}: {name} is a number >= 0, not {value!r}")

    def selects(self, variable: Variable) -> bool:
        """Whether this optimizer updates a parameter: its first group that names it is not frozen."""
        group = self.group_of(variable)
        return group is not None and not self.groups[group].frozen

    def group_of(self, variable: Variable) -> int | None:
        """The number of the first group that names a parameter."""
        return next((k for k, group in enumerate(self.groups) if group.selects(variable)), None)

    def update(self, param: Tensor, grad: Tensor, ctx: UpdateContext) -> Tensor:
        """The parameter's new value. Subclasses define it."""
        raise DeclarationError(f"{type(self).__name__} does not define update()")


def is_number(value: Any) -> bool:
    """Whether a value is a real number, bools excluded."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _is_module(value: Any) -> bool:
    return callable(getattr(value, "parameters", None))


def _members(params: Any) -> list[Any]:
    """Variables and name patterns from tensors, modules, Variables, strings and lists of them."""
    if isinstance(params, (str, Variable)):
        return [params]
    if isinstance(params, Tensor):
        return [params.variable]
    if _is_module(params):
        return [tensor.variable for tensor in params.parameters()]
    if isinstance(params, Iterable):
        return [member for item in params for member in _members(item)]
    raise DeclarationError(f"a group holds parameters, modules or names, not {params!r}")


# -------------------------------------------------------------------------------------------- the updates


@dataclass
class _Building:
    """State variables of one plan, by name, and what the step makes of them. Those `known` are not declared
    anew."""

    known: Mapping[str, Variable] = field(default_factory=dict)
    declared: list[Declared] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    updates: dict[Variable, Tensor] = field(default_factory=dict)

    def scalar(self, name: str, dtype: DType, value: float) -> Tensor:
        return self._variable(name, TensorType(dtype, ()), value)

    def state(self, param: Tensor, name: str, init: float) -> Tensor:
        return self._variable(f"optim.{param.variable.name}.{name}", param.type, init)

    def set_state(self, param: Tensor, name: str, value: Tensor) -> None:
        full_name = f"optim.{param.variable.name}.{name}"
        if full_name not in self.variables:
            raise DeclarationError(f"state {name!r} is set before it is read")
        self.updates[self.variables[full_name]] = value

    def _variable(self, name: str, type: TensorType, value: float) -> Tensor:
        if name not in self.tensors:
            self.declared.append(Declared(name, type, value))
            variable = self.known.get(name) or self.declared[-1].variable()
            self.variables[name] = variable
            self.tensors[name] = dsl.from_variable(variable)
        return self.tensors[name]


Triple = tuple[Variable, Tensor, Tensor]


def build_updates(
    optimizer: Optimizer, gradients: Sequence[Triple], state: Mapping[str, Variable] | None = None
) -> tuple[OptimizerPlan, dict[Variable, Tensor]]:
    """The optimizer's state, and what one step makes of it and of the parameters, for (variable, its tensor,
    its gradient) triples. `state` is what was declared of it before, by name.

    Parameters that the optimizer does not select are skipped. Raises DeclarationError for a group that
    names a parameter which is not among the triples.
    """
    _require_reached(optimizer, [variable for variable, _, _ in gradients])
    chosen = [triple for triple in gradients if optimizer.selects(triple[0])]
    dtype = float32
    for k, (_, _, gradient) in enumerate(chosen):
        dtype = gradient.dtype if k == 0 else promote(dtype, gradient.dtype)
    building = _Building(state or {})
    rates = [building.scalar(f"{RATE_PREFIX}{k}", dtype, 0.0) for k in range(len(optimizer.groups))]
    step = building.scalar(STEP, int64, 0)
    chosen, last = _accumulated(building, optimizer, chosen)
    chosen = _clipped(optimizer, chosen, dtype)
    next_step = step + 1
    updates: dict[Variable, Tensor] = {}
    for variable, param, gradient in chosen:
        number = optimizer.group_of(variable)
        assert number is not None
        ctx = UpdateContext(building, optimizer.groups[number], rates[number], next_step, param)
        before = set(building.updates)
        updates[variable] = _held(last, optimizer.update(param, gradient, ctx), param)
        for own in set(building.updates) - before:
            building.updates[own] = _held(last, building.updates[own], building.tensors[own.name])
    updates.update(building.updates)
    updates[building.variables[STEP]] = _held(last, next_step, step)
    return plan_of(optimizer, building.declared, building.variables), updates


def _require_reached(optimizer: Optimizer, reached: Sequence[Variable]) -> None:
    for group in optimizer.groups:
        for member in group.members or ():
            if group.frozen or any(_matches(member, variable) for variable in reached):
                continue
            shown = member if isinstance(member, str) else member.name
            names = ", ".join(v.name for v in reached) or "none"
            raise DeclarationError(
                f"the optimizer's parameter {shown!r} is not reached by the loss; reached are {names}"
            )


def _held(last: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """The new value, or the old one in a run that only accumulates. Scalars may have met in `new`."""
    fitted = dsl.fit(new, old.dtype, old.shape)
    return fitted if last is None else functions.where(last, fitted, old)


def _accumulated(
    building: _Building, optimizer: Optimizer, triples: Sequence[Triple]
) -> tuple[list[Triple], Tensor | None]:
    """Gradients summed over runs, and whether this run applies them (None: every run does)."""
    runs = optimizer.accumulate
    if runs == 1:
        return list(triples), None
    counter = building.scalar("optim.run", int64, 0)
    next_run = (counter + 1) % runs
    building.updates[building.variables["optim.run"]] = next_run
    last = next_run == 0
    result = []
    for variable, param, gradient in triples:
        sums = building.state(param, "accumulated", 0.0)
        total = sums + gradient
        building.set_state(param, "accumulated", functions.where(last, 0.0, total))
        scaled = total / runs if optimizer.accumulation == "mean" else total
        result.append((variable, param, scaled))
    return result, last


def _clipped(optimizer: Optimizer, triples: Sequence[Triple], dtype: DType) -> list[Triple]:
    """Gradients clipped by value, then by their global norm (PyTorch's clip_grad_norm_)."""
    result = list(triples)
    limit = optimizer.clip_value
    if limit is not None:
        result = [(v, p, functions.clip(g, -float(limit), float(limit))) for v, p, g in result]
    if optimizer.clip_norm is None or not result:
        return result
    squares = [functions.cast(reductions.sum(functions.square(g)), dtype) for _, _, g in result]
    norm = functions.sqrt(dsl.apply("add_n", *squares))
    scale = functions.minimum(float(optimizer.clip_norm) / (norm + 1e-6), 1.0)
    return [(v, p, g * functions.cast(scale, g.dtype)) for v, p, g in result]
