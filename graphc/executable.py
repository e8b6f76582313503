"""The executable: what `gx.compile` returns. It owns an engine, and the state that belongs to the step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

import numpy as np

from graphc import checkpoint, training
from graphc.emission import emit_program
from graphc.engine import Engine, NativeEngine, NumpyEngine, PythonEngine
from graphc.errors import FeedError, StateError, UsageError
from graphc.feeds import FeedPlan, guards_of, symbolic_extents
from graphc.figures import LOSS_LABEL
from graphc.ir.graph import Graph, Node, Variable
from graphc.ir.slabs import SlabView, StateLock, address_of, group_variables, place_variables
from graphc.ir.types import evaluate
from graphc.stages import STAGES, CompiledStages, PassRecord
from graphc.updates import LearningRate, OptimizerPlan, checked_rate

if TYPE_CHECKING:
    from graphc.codegen.target import Target
    from graphc.pipeline import Backend
    from graphc.roofline import RooflineReport

Array = np.ndarray[Any, Any]
GRADIENT_PREFIX = "grad."

_alive: WeakSet[Executable] = WeakSet()


class Executable:
    """A compiled network.

        out = exe.run(x=xb, t=tb)          one step; the structure that was given to compile
        exe.params["fc1.weight"]           a live numpy view, assignable
        exe.dump("kernels")                any stage as text

    Calls from several Python threads are served one at a time, also those of executables that share
    parameters: a run sees them as they are between two steps. A failed run changes no state. Executables
    cannot be copied or pickled; `save` and `load` carry values.
    """

    def __init__(
        self,
        stages: CompiledStages,
        structure: Any,
        *,
        backend: Backend = "native",
        target: Target | None = None,
        optimizer: Any = None,
        plan: OptimizerPlan | None = None,
        site: str = "",
    ) -> None:
        """`structure` is the label of an output, or a tuple, list or dict of labels. `plan` is what the
        optimizer does to state; `site` the line that called `compile`."""
        self._stages = stages
        self._structure = structure
        self._backend = backend
        self._target = target
        self.optimizer = optimizer
        self.site = site
        self._plan = plan
        self._rates: list[LearningRate] = list(plan.lr) if plan is not None else []
        self._evaluator: Executable | None = None
        self._last_bindings: dict[str, int] | None = None
        self._native_texts: dict[str, str] = {}
        self._lay_out()
        self._lock = StateLock(self.slabs.values())
        self._engine = _make_engine(stages, backend, target)
        inputs = {**stages.optimized.inputs(), **stages.graph.inputs()}
        guards = dict.fromkeys((*guards_of(stages.graph), *guards_of(stages.optimized)))
        extents = dict.fromkeys((*symbolic_extents(stages.graph), *symbolic_extents(stages.optimized)))
        self.feed_plan = FeedPlan(inputs, tuple(guards), tuple(extents), self._written_memory())
        _alive.add(self)

    # --------------------------------------------------------------------------------------- state

    def _lay_out(self) -> None:
        """Places all state: one slab for the parameters, one for the gradients, one per moment."""
        reached = {**self._stages.graph.variables(), **self._stages.joint.variables()}
        own = set(self._plan.lr_variables) if self._plan is not None else set()
        if self._plan is not None:
            own |= {self._plan.step_variable, *self._plan.state_variables}
        parameters = [variable for variable in reached.values() if variable not in own]
        others = [variable for variable in reached.values() if variable in own]
        gradients = [
            Variable(label, operand.type, _zeros(operand.type))
            for label, operand in self._stages.joint.outputs.items()
            if label.startswith(GRADIENT_PREFIX) and label not in self._stages.graph.outputs
        ]
        groups = group_variables(parameters, gradients, others)
        views = {name: place_variables(variables, name) for name, variables in groups.items()}
        self.slabs: dict[str, SlabView] = {name: view for name, view in views.items() if len(view)}
        """Where state lies: "parameters", "gradients", each optimizer moment by name, and other "state"."""
        self._parameters = {variable.name: variable for variable in parameters}
        rates = set(self._plan.lr_variables) if self._plan is not None else set()
        self._saved = [*parameters, *(variable for variable in others if variable not in rates)]
        self._gradients = {v.name.removeprefix(GRADIENT_PREFIX): v for v in gradients}
        self.gradient_outputs = {v.name: v.array for v in gradients}
        """Where a run writes gradients, by the labels of these outputs."""
        self.params = Parameters(self._parameters)
        """Parameters by name: live numpy views, assignable."""

    def _written_memory(self) -> list[tuple[int, int]]:
        """The address ranges that a run writes to."""
        written = set(self._stages.optimized.updates)
        ranges = []
        for view in self.slabs.values():
            if view.name == "gradients" or written.intersection(view.variables):
                ranges += [(address_of(run), address_of(run) + run.nbytes) for run in view.runs()]
        return ranges

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients of the last run by parameter name: live views, which the next run overwrites.

        UsageError unless the executable was compiled with a loss and without an optimizer.
        """
        if not self._gradients:
            raise UsageError("there are no gradients: compile with a loss and without an optimizer")
        return {name: variable.array for name, variable in self._gradients.items()}

    @property
    def inputs(self) -> dict[str, Node]:
        """The inputs by name."""
        return self.feed_plan.inputs

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and of the optimizer's state, by name."""
        with self._lock:
            return checkpoint.state_of(self._saved)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Sets parameters and optimizer state. Names, dtypes and shapes must fit, or StateError is raised and
        nothing changes; optimizer state that this executable lacks is passed over. With `strict=False` names
        may also be missing or unknown."""
        with self._lock:
            checkpoint.load_state(checkpoint.check_state(self._saved, state, strict))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `state_dict()` as a safetensors file, atomically. StateError if that fails."""
        checkpoint.write_file(path, self.state_dict())

    def load(self, path: str | os.PathLike[str], strict: bool = True) -> None:
        """Loads what `save` wrote; see `load_state_dict`."""
        self.load_state_dict(checkpoint.read_file(path), strict)

    # --------------------------------------------------------------------------------- learning rate

    @property
    def lr(self) -> float:
        """The learning rate at the next step (of the first group, if there are several)."""
        return self.learning_rates[0]

    @lr.setter
    def lr(self, value: LearningRate | Sequence[LearningRate]) -> None:
        """A number, a schedule f(step) of the updates done so far, or one of those for each group."""
        plan = self._require_plan()
        count = len(plan.lr_variables)
        given: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value] * count
        if len(given) != count:
            raise UsageError(
                f"there are {count} parameter groups, and {len(given)} learning rates were given"
            )
        for rate in given:
            if not callable(rate):
                checked_rate(rate)
        self._rates = given

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates at the next step, one for each parameter group."""
        plan = self._require_plan()
        steps = int(plan.step_variable.array)
        return [checked_rate(rate(steps) if callable(rate) else rate) for rate in self._rates]

    def _require_plan(self) -> OptimizerPlan:
        if self._plan is None:
            raise UsageError("there is no learning rate: the network was compiled without an optimizer")
        return self._plan

    # ------------------------------------------------------------------------------------- running

    def run(self, feeds: Mapping[str, Any] | None = None, /, **named: Any) -> Any:
        """Runs one step on feeds by name, and returns the outputs in the structure given to `compile`.

        Results are fresh arrays. Raises FeedError, ShapeError or IndexRangeError; then nothing has changed.
        """
        return _rebuilt(self._structure, self.run_labelled(feeds, **named))

    __call__ = run

    def run_labelled(self, feeds: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Array]:
        """As `run`, but returns all outputs in a dict by label."""
        if feeds is None:
            feeds = named
        elif not isinstance(feeds, Mapping):
            raise FeedError(f"feeds are given by name, as a dict or keywords, not as {type(feeds).__name__}")
        elif named:
            both = sorted(feeds.keys() & named.keys())
            if both:
                raise FeedError(f"input {both[0]} was fed twice")
            feeds = {**feeds, **named}
        arrays, bindings = self.feed_plan.prepare(feeds)
        with self._lock:
            if self._plan is not None:
                for variable, rate in zip(self._plan.lr_variables, self.learning_rates, strict=True):
                    variable.array[...] = rate
            self._last_bindings = bindings
            results = self._engine.run(arrays, bindings, self.gradient_outputs)
        for label in self.gradient_outputs:
            del results[label]
        return results

    @contextmanager
    def hold(self, bindings: dict[str, int]) -> Iterator[tuple[OptimizerPlan | None, Sequence[LearningRate]]]:
        """The right to run steps at these dims natively (see `graphc.steps`), and what sets their learning
        rates. Inside, no other thread runs on this state."""
        with self._lock:
            self._last_bindings = bindings
            yield self._plan, self._rates

    def evaluate(
        self,
        data: Any,
        batch_size: int = 256,
        metrics: Mapping[str, training.Metric] | None = None,
    ) -> dict[str, float]:
        """Means of the scalar outputs over a dataset, batches weighted by their size; never trains.

        data: a dict of arrays with a common first axis, or an iterable of feeds (its batches weigh as many
            samples as the first symbolic extent says).
        metrics: name -> f(outputs by label, feeds), a number or an array of one value per sample.
        """
        return training.evaluate(self.evaluator, data, batch_size, metrics)

    def fit(self, data: Any, **options: Any) -> training.History:
        """Trains on a dataset; see `graphc.training.fit` for all options.

        data: a dict of arrays with a common first axis, an iterable of feeds, or a function that returns one.
        epochs=1, batch_size=32 (the last, ragged batch is used), shuffle=True (seeded by seed=0);
        validation: a dataset that is evaluated after each epoch, as val_<name>;
        metrics: name -> f(outputs, feeds); callbacks: f(epoch, logs), which may raise gx.StopTraining;
        progress: True or False, else a bar is shown where stderr is a terminal.

        Returns a history: name -> one value per epoch, with "seconds". Ctrl-C ends training after a whole
        step, with all state intact; the finished epochs are returned (`history.interrupted` is set).

        A dict of arrays without metrics is trained on in spans of about 50 ms, each one native call that also
        gathers the shuffled batches; Ctrl-C and the progress bar wait for a span to end, and learning-rate
        schedules are asked for the steps of a span ahead. Results are those of `run` batch by batch.
        """
        return training.fit(self, data, **options)

    def roofline(self, feeds: Mapping[str, Any] | None = None, /, **named: Any) -> RooflineReport:
        """Every kernel of a step on these feeds: FLOPs, bytes, time, and the share of what this machine could
        do that is reached; see `graphc.roofline`. State is put back afterwards."""
        from graphc.roofline import roofline

        return roofline(self, {**(feeds or {}), **named})

    @property
    def evaluator(self) -> Executable:
        """The same outputs and parameters without any update (itself, if it has none)."""
        if not self._stages.optimized.updates:
            return self
        if self._evaluator is None:
            self._evaluator = self._without_updates()
        return self._evaluator

    def _without_updates(self) -> Executable:
        from graphc.pipeline import compile

        graph = self._stages.graph
        outputs = {label: o for label, o in graph.outputs.items() if label != LOSS_LABEL}
        loss = graph.outputs.get(LOSS_LABEL)
        if loss is not None and loss not in outputs.values() and "loss" not in outputs:
            outputs["loss"] = loss
        return compile(Graph(outputs, {}, graph.origins), backend=self._backend)

    # -------------------------------------------------------------------------------------- stages

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that `dump` prints, in order."""
        return STAGES

    @property
    def trail(self) -> list[PassRecord]:
        """Every pass that ran, with its seconds and its result."""
        return list(self._stages.trail)

    @property
    def ir(self) -> CompiledStages:
        """The IR of every stage, as data."""
        return self._stages

    @property
    def engine(self) -> Engine:
        """What runs the steps."""
        return self._engine

    def dump(self, stage: str) -> str:
        """The text of a stage; "trail" is the list of passes with timings. UsageError for another name.

        Extents in the program stage are those of the last run, if there was one.
        """
        return self._stages.text(stage, self._native_text, self._last_bindings)

    def dump_all(self, directory: str | os.PathLike[str]) -> list[str]:
        """Writes every stage, the trail, and the result of every pass, as files; returns their paths."""
        paths = self._stages.write(Path(directory), self._native_text, self._last_bindings)
        return [str(path) for path in paths]

    def _native_text(self, stage: str) -> str:
        if stage not in self._native_texts:
            from graphc.codegen.jit import assembly
            from graphc.codegen.target import host_target

            if isinstance(self._engine, NativeEngine):
                text = self._engine.llvm if stage == "llvm" else self._engine.asm
            else:
                target = self._target or host_target()
                text = emit_program(self._stages.program, target)[1]
                text = text if stage == "llvm" else assembly(text, target)
            self._native_texts[stage] = text
        return self._native_texts[stage]

    def __repr__(self) -> str:
        names = ", ".join(f"{name}: {node.types[0]}" for name, node in self.inputs.items())
        return f"<Executable ({names}) on {self._backend}{' at ' + self.site if self.site else ''}>"

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(
            f"an executable cannot be {what}; compile again, and use save() and load() for values"
        )

    def __copy__(self) -> NoReturn:
        self._refuse("copied")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self._refuse("copied")

    def __reduce__(self) -> NoReturn:
        self._refuse("pickled")


class Parameters(MutableMapping[str, Array]):
    """Parameters by name. Reading gives a live view; assigning writes into it, and shapes must be equal."""

    def __init__(self, variables: Mapping[str, Variable]) -> None:
        self._variables = dict(variables)

    def __getitem__(self, name: str) -> Array:
        try:
            return self._variables[name].array
        except KeyError:
            raise StateError(
                f"there is no parameter {name!r}; there are {', '.join(self) or 'none'}"
            ) from None

    def __setitem__(self, name: str, value: Any) -> None:
        view = self[name]
        array = np.asarray(value)
        if array.shape != view.shape:
            raise StateError(f"{name} has shape {list(view.shape)}, and the value {list(array.shape)}")
        if array.dtype == object or not np.can_cast(array.dtype, view.dtype, casting="same_kind"):
            raise StateError(f"{name} is {view.dtype}, and {array.dtype} cannot be used as that")
        view[...] = array

    def __contains__(self, name: object) -> bool:
        return name in self._variables

    def __delitem__(self, name: str) -> NoReturn:
        raise UsageError("parameters belong to the network and cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return f"<Parameters {', '.join(f'{n}: {v.type}' for n, v in self._variables.items())}>"


def _make_engine(stages: CompiledStages, backend: str, target: Target | None) -> Engine:
    if backend == "numpy":
        return NumpyEngine(stages.optimized)
    if backend == "python":
        return PythonEngine(stages.program)
    if backend == "native":
        return NativeEngine(stages.program, target)
    raise UsageError(f"there is no backend {backend!r}; there are native, numpy and python")


def _zeros(type: Any) -> Callable[[], Array]:
    shape = tuple(evaluate(extent, {}) for extent in type.shape)
    return lambda: np.zeros(shape, dtype=type.dtype.numpy)


def _rebuilt(structure: Any, results: Mapping[str, Array]) -> Any:
    """The outputs in the structure that labels stand in."""
    if isinstance(structure, str):
        return results[structure]
    if isinstance(structure, Mapping):
        return {key: results[label] for key, label in structure.items()}
    return type(structure)(results[label] for label in structure)


def _after_fork_in_child() -> None:
    for executable in _alive:
        executable._lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
