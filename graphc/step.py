"""A compiled step, as the passes or the cache give it: what an executable is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphc.codegen.cache import Parts
from graphc.engine import Engine
from graphc.interface import Interface, interface_of
from graphc.ir.graph import Graph
from graphc.ir.types import Guard
from graphc.stages import CompiledStages
from graphc.updates import OptimizerPlan


@dataclass(slots=True)
class Step:
    """What it is from outside, the optimizer's plan, and the network as declared, before any pass.
    `key` has the parts of its key in the cache, or says why it has none.

    `make_engine` calls what it is given once, to lay out the state, before it looks where that lies.
    `make_stages` runs the passes, unless `stages` are there already.
    """

    interface: Interface
    plan: OptimizerPlan | None
    declared: Graph
    make_engine: Callable[[Callable[[], None]], Engine]
    make_stages: Callable[[], CompiledStages]
    stages: CompiledStages | None = None
    key: Parts | str = "it was not asked for"

    @property
    def all_stages(self) -> CompiledStages:
        """The IR of every stage. Runs the passes if they have not run."""
        if self.stages is None:
            self.stages = self.make_stages()
        return self.stages

    def located_guards(self) -> tuple[Guard, ...]:
        """The guards of the interface, with the lines that ask for them."""
        return interface_of(self.all_stages, self.plan).guards
