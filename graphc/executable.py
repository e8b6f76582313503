"""The executable: what `gx.compile` returns. It owns an engine, and the state that belongs to the step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from graphc import checkpoint
from graphc.calls import (
    BoundCall,
    Spec,
    StepGuard,
    by_label,
    check_given,
    empty_outputs,
    native_call,
    rebuilt,
    require_in_place,
)
from graphc.codegen.call import NativeCall
from graphc.codegen.locks import StateLock
from graphc.engine import Engine, NativeEngine
from graphc.errors import FeedError, UsageError
from graphc.feeds import FeedPlan
from graphc.figures import LOSS_LABEL
from graphc.ir.graph import Graph, Node
from graphc.ir.slabs import SlabView
from graphc.ir.types import evaluate
from graphc.sites import names_options
from graphc.stages import STAGES, CompiledStages, PassRecord, require_stage
from graphc.state import StepState
from graphc.step import Step
from graphc.updates import LearningRate, OptimizerPlan, checked_rate

if TYPE_CHECKING:
    from graphc import training
    from graphc.codegen.target import Target
    from graphc.request import Backend
    from graphc.roofline import RooflineReport

Array = np.ndarray[Any, Any]
NOT_RUN = "no pass has run: the step came from the cache; asking for a stage runs them\n"
KEPT_CALLS = 4
"""Sizes at which `run` goes the native way without looking further."""


class Executable:
    """A compiled network.

        out = exe.run(x=xb, t=tb)          one step; the structure that was given to compile
        step = exe.bind(x=xb, t=tb)        the same step again and again, on these arrays: step()
        exe.params["fc1.weight"]           a live numpy view, assignable
        exe.dump("kernels")                any stage as text

    Calls from several Python threads are served one at a time, also those of executables that share
    parameters: a run sees them as they are between two steps. A failed run changes no state. Executables
    cannot be copied or pickled; `save` and `load` carry values.
    """

    def __init__(
        self,
        step: Step,
        structure: Any,
        *,
        backend: Backend = "native",
        target: Target | None = None,
        optimizer: Any = None,
        site: str = "",
    ) -> None:
        """`structure` is the label of an output, or a tuple, list or dict of labels; `site` the line that
        called `compile`."""
        self._step = step
        self._structure = structure
        self._backend = backend
        self._target = target
        self.optimizer = optimizer
        self.site = site
        self._plan = step.plan
        self._evaluator: Executable | None = None
        self._last_bindings: dict[str, int] | None = None
        self._native_texts: dict[str, str] = {}
        self._calls: tuple[NativeCall, ...] = ()
        interface = step.interface
        self._state: StepState
        self._engine = step.make_engine(self._lay_out)
        self.slabs: dict[str, SlabView] = self._state.slabs
        """Where state lies: "parameters", "gradients", each optimizer moment by name, and other "state"."""
        self.params = self._state.params
        """Parameters by name: live numpy views, assignable."""
        self.gradient_outputs = self._state.gradient_outputs
        """Where a run writes gradients, by the labels of these outputs."""
        self._guard = StepGuard(self._state, step.plan)
        self.feed_plan = FeedPlan(
            interface.inputs, interface.guards, interface.extents, self._guard.written, step.located_guards
        )
        self._types = interface.outputs
        loss = self._types.get(LOSS_LABEL)
        # What a run with `out=` computes besides what the user asked for goes where nobody looks.
        self._unseen = {} if loss is None else {LOSS_LABEL: np.empty((), loss.dtype.numpy)}

    # --------------------------------------------------------------------------------------- state

    @property
    def _lock(self) -> StateLock:
        """The right to run on this state, for one thread at a time."""
        return self._state.lock

    def _lay_out(self) -> None:
        self._state = StepState(self._step.interface, self._step.plan)

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients of the last run by parameter name: live views, which the next run overwrites.

        UsageError unless the executable was compiled with a loss and without an optimizer.
        """
        if not self._state.gradients:
            raise UsageError("there are no gradients: compile with a loss and without an optimizer")
        return dict(self._state.gradients)

    @property
    def inputs(self) -> dict[str, Node]:
        """The inputs by name."""
        return self.feed_plan.inputs

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and of the optimizer's state, by name."""
        return self._state.copies()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Sets parameters and optimizer state. Names, dtypes and shapes must fit, or StateError is raised and
        nothing changes; optimizer state that this executable lacks is passed over. With `strict=False` names
        may also be missing or unknown."""
        self._state.load(state, strict)

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
        self._guard.change_rates(given)

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates at the next step, one for each parameter group."""
        self._require_plan()
        return self._guard.learning_rates

    def _require_plan(self) -> OptimizerPlan:
        if self._plan is None:
            raise UsageError("there is no learning rate: the network was compiled without an optimizer")
        return self._plan

    # ------------------------------------------------------------------------------------- running

    def run(self, feeds: Mapping[str, Any] | None = None, /, *, out: Any = None, **named: Any) -> Any:
        """Runs one step on feeds by name, and returns the outputs in the structure given to `compile`.

        Results are fresh arrays, or those in `out`, given in that structure (a dict may lack some, None
        stands for a fresh one): C-contiguous arrays of just the dtypes and shapes of the results, that share
        no memory with feeds, state or each other. An input that is called "out" is fed in a dict.

        Raises FeedError, ShapeError or IndexRangeError, and UsageError or DTypeError for `out`; then no state
        has changed, and what `out` holds is undefined.
        """
        if feeds is None:
            feeds = named
        elif named or type(feeds) is not dict:
            feeds = self._merged(feeds, named)
        given = None if out is None else {**self._unseen, **self._by_label(feeds, out)}
        for call in self._calls:
            found = call.function(feeds, given)
            if found is not None:
                self._last_bindings = call.bindings
                if len(found) == 1 and type(self._structure) is str:
                    return found[0]
                return rebuilt(self._structure, dict(zip(call.labels, found, strict=True)))
        return rebuilt(self._structure, self._general_results(feeds, given))

    __call__ = run

    def run_labelled(self, feeds: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Array]:
        """As `run`, but returns all outputs in a dict by label."""
        feeds = self._merged(feeds, named)
        for call in self._calls:
            found = call.function(feeds, None)
            if found is not None:
                self._last_bindings = call.bindings
                return dict(zip(call.labels, found, strict=True))
        return self._general_results(feeds, None)

    def bind(self, feeds: Mapping[str, Any] | None = None, /, *, out: Any = None, **named: Any) -> BoundCall:
        """The step on these very arrays, as a function without arguments: see `BoundCall`.

        Feeds are used in place, so that what is written into them later is what later calls read. FeedError
        for one that would have to be copied (another dtype, not C-contiguous, part of a parameter). Results
        are written into arrays that are made now, or those in `out`, as for `run`.
        """
        feeds = self._merged(feeds, named)
        given = {} if out is None else self._by_label(feeds, out)
        arrays, bindings = self.feed_plan.prepare(feeds)
        for name, array in arrays.items():
            require_in_place(name, feeds[name], array, self._guard.written)
        specs = self._specs(bindings)
        check_given(given, specs, arrays, self._guard.state)
        made = empty_outputs({label: spec for label, spec in specs.items() if label not in given})
        results = {**made, **given}
        outputs = rebuilt(self._structure, results)
        call = self._bound_call(arrays, bindings, results, outputs)
        return BoundCall(arrays, outputs, call, partial(self._run_in_place, arrays, bindings, results))

    def _merged(self, feeds: Mapping[str, Any] | None, named: dict[str, Any]) -> Mapping[str, Any]:
        """The feeds of a dict and of keywords in one mapping."""
        if feeds is None:
            return named
        if not isinstance(feeds, Mapping):
            raise FeedError(f"feeds are given by name, as a dict or keywords, not as {type(feeds).__name__}")
        if not named:
            return feeds
        both = sorted(feeds.keys() & named.keys())
        if both:
            raise FeedError(f"input {both[0]} was fed twice")
        return {**feeds, **named}

    def _by_label(self, feeds: Mapping[str, Any], out: Any) -> dict[str, Array]:
        if "out" in self.inputs and "out" not in feeds:
            raise FeedError(
                "input out was not fed: out= is for results; feed an input of that name in a dict"
            )
        return by_label(self._structure, out)

    def _specs(self, bindings: Mapping[str, int]) -> dict[str, Spec]:
        """Dtype and shape of every result but gradients."""
        return {
            label: (type.dtype.numpy, tuple(evaluate(extent, bindings) for extent in type.shape))
            for label, type in self._types.items()
        }

    def _general_results(
        self, feeds: Mapping[str, Any], given: Mapping[str, Array] | None
    ) -> dict[str, Array]:
        """One step by the general way. The second at one size prepares the native way for the next."""
        arrays, bindings = self.feed_plan.prepare(feeds)
        outputs = self.gradient_outputs
        if given is not None:
            check_given(given, self._specs(bindings), arrays, self._guard.state)
            outputs = {**outputs, **given}
        with self._lock:
            self._guard.set_rates()
            self._last_bindings = bindings
            results = self._engine.run(arrays, bindings, outputs)
            self._prepare_calls(arrays, bindings)
        for label in self.gradient_outputs:
            del results[label]
        return results

    def rates_at(self, bindings: dict[str, int]) -> tuple[OptimizerPlan | None, Sequence[LearningRate]]:
        """What sets the learning rates of steps at these dims that are run in spans (see `graphc.steps`).
        Whoever runs them holds the lock."""
        self._last_bindings = bindings
        return self._plan, self._guard.rates

    def _prepare_calls(self, arrays: Mapping[str, Array], bindings: dict[str, int]) -> None:
        """Puts the native call at this size first among those that `run` tries, and drops stale ones."""
        engine = self._engine
        if not isinstance(engine, NativeEngine):
            return
        ready = engine.at(bindings)
        if ready.runs >= 2 and not ready.is_prepared:
            ready.call = native_call(engine, ready, self._guard, arrays, bindings, self.gradient_outputs)
            ready.is_prepared = True  # a signal may have ended the second run before
        kept = [call for call in self._calls if call is not ready.call and engine.keeps(call)]
        self._calls = (*([ready.call] if ready.call is not None else []), *kept)[:KEPT_CALLS]

    def _bound_call(
        self, feeds: Mapping[str, Array], bindings: dict[str, int], results: Mapping[str, Array], outputs: Any
    ) -> NativeCall | None:
        """The native function that runs on these very arrays and returns `outputs`."""
        engine = self._engine
        if not isinstance(engine, NativeEngine):
            return None
        with self._lock:
            ready = engine.at(bindings)
            fixed = self.gradient_outputs
            return native_call(engine, ready, self._guard, feeds, bindings, fixed, results, outputs)

    def _run_in_place(
        self, feeds: Mapping[str, Array], bindings: Mapping[str, int], results: Mapping[str, Array]
    ) -> None:
        """One step by the general way. FeedError where an array is not what it was when it was bound."""
        arrays, found = self.feed_plan.prepare(feeds)
        for name, array in arrays.items():
            require_in_place(name, feeds[name], array, self._guard.written)
        if found != bindings:
            raise FeedError(f"a bound array changed its shape: the dims were {dict(bindings)}, now {found}")
        check_given(results, self._specs(bindings), arrays, self._guard.state)
        with self._lock:
            self._guard.set_rates()
            self._engine.run(arrays, bindings, {**self.gradient_outputs, **results})

    @names_options
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
        from graphc import training

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
        from graphc import training

        return training.fit(self, data, **options)

    def roofline(self, feeds: Mapping[str, Any] | None = None, /, **named: Any) -> RooflineReport:
        """Every kernel of a step on these feeds: FLOPs, bytes, time, and the share of what this machine could
        do that is reached; see `graphc.roofline`. State is put back afterwards."""
        from graphc.roofline import roofline

        return roofline(self, {**(feeds or {}), **named})

    @property
    def evaluator(self) -> Executable:
        """The same outputs and parameters without any update (itself, if it has none)."""
        if not self.is_training:
            return self
        if self._evaluator is None:
            self._evaluator = self._without_updates()
        return self._evaluator

    @property
    def is_training(self) -> bool:
        """Whether a run updates parameters or other state."""
        return bool(self._step.interface.updated)

    def _without_updates(self) -> Executable:
        from graphc.compiling import compile

        graph = self._step.declared
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
        """Every pass that ran, with its seconds and its result. Empty where the step came from the cache and
        nobody has asked for a stage yet."""
        stages = self._step.stages
        return [] if stages is None else list(stages.trail)

    @property
    def ir(self) -> CompiledStages:
        """The IR of every stage, as data. The passes of a step from the cache run when this is first read."""
        return self._step.all_stages

    @property
    def cache_key(self) -> Mapping[str, str] | str:
        """The parts of the step's key in the cache, or why it is not kept there."""
        return self._step.key

    @property
    def engine(self) -> Engine:
        """What runs the steps."""
        return self._engine

    def dump(self, stage: str) -> str:
        """The text of a stage; "trail" is the list of passes with timings. UsageError for another name.

        Extents in the program stage are those of the last run, if there was one.
        """
        require_stage(stage)
        if stage == "trail" and self._step.stages is None:
            return NOT_RUN
        return self._step.all_stages.text(stage, self._native_text, self._last_bindings)

    def dump_all(self, directory: str | os.PathLike[str]) -> list[str]:
        """Writes every stage, the trail, and the result of every pass, as files; returns their paths."""
        paths = self._step.all_stages.write(Path(directory), self._native_text, self._last_bindings)
        return [str(path) for path in paths]

    def _native_text(self, stage: str) -> str:
        if stage not in self._native_texts:
            from graphc.codegen.jit import assembly
            from graphc.codegen.target import host_target

            if isinstance(self._engine, NativeEngine):
                text = self._engine.llvm if stage == "llvm" else self._engine.asm
            else:
                from graphc.emission import emit_program

                target = self._target or host_target()
                text = emit_program(self._step.all_stages.program, target)[1]
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
