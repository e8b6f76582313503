"""The state of a step: where parameters, gradients and the optimizer's moments lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphc import checkpoint
from graphc.codegen.locks import StateLock
from graphc.interface import GRADIENT_PREFIX, Interface
from graphc.ir.addresses import address_of
from graphc.ir.graph import Variable
from graphc.ir.locks import SlabLock
from graphc.ir.slabs import SlabView, group_variables, locks_of, place_variables
from graphc.ir.types import evaluate
from graphc.parameters import Parameters
from graphc.updates import OptimizerPlan

Array = np.ndarray[Any, Any]


class StepState:
    """All state of one step, laid out: a slab for the parameters, one for the gradients, one per moment.

    `slabs` says where it lies: "parameters", "gradients", each optimizer moment by name, and other "state".
    `params` are the parameters by name, live views; `gradient_outputs` the arrays that a run writes gradients
    into, by the labels of these outputs, and `gradients` the same by parameter. Who runs holds `lock`.
    """

    def __init__(self, interface: Interface, plan: OptimizerPlan | None) -> None:
        own = SlabLock()
        parameters, others = interface.parameters, interface.optimizer_state
        gradients = [Variable(label, type, _zeros(type)) for label, type in interface.gradients.items()]
        groups = group_variables(parameters, gradients, others)
        views = {name: place_variables(variables, name, own) for name, variables in groups.items()}
        self.slabs: dict[str, SlabView] = {name: view for name, view in views.items() if len(view)}
        self._locks = [own, *locks_of(self.slabs.values())]
        self._lock: StateLock | None = None
        rates = set(plan.lr_variables) if plan is not None else set()
        self._saved = [*parameters, *(variable for variable in others if variable not in rates)]
        self._updated = interface.updated
        self.gradient_outputs = {v.name: v.array for v in gradients}
        self.gradients = {v.name.removeprefix(GRADIENT_PREFIX): v.array for v in gradients}
        self.params = Parameters({variable.name: variable for variable in parameters})

    @property
    def lock(self) -> StateLock:
        """The right to run on this state, for one thread at a time; loaded when first asked for."""
        if self._lock is None:  # two threads may make one each: both are of the same locks
            self._lock = StateLock(self._locks)
        return self._lock

    def memory(self, written: bool = False) -> list[tuple[int, int]]:
        """The address ranges of all state, or of what a run writes to."""
        ranges = []
        for view in self.slabs.values():
            if not written or view.name == "gradients" or self._updated.intersection(view.variables):
                ranges += [(address_of(run), address_of(run) + run.nbytes) for run in view.runs()]
        return ranges

    def copies(self) -> dict[str, Array]:
        """Copies of all parameters and of the optimizer's state but the learning rates, by name."""
        with self.lock:
            return checkpoint.state_of(self._saved)

    def load(self, state: Mapping[str, Any], strict: bool) -> None:
        """Sets what `copies` gives; see `Executable.load_state_dict`."""
        with self.lock:
            checkpoint.load_state(checkpoint.check_state(self._saved, state, strict))


def _zeros(type: Any) -> Callable[[], Array]:
    shape = tuple(evaluate(extent, {}) for extent in type.shape)
    return lambda: np.broadcast_to(np.zeros((), type.dtype.numpy), shape)
