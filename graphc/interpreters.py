"""The engines of backend="python" and "numpy": interpreters, which say what native code should compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphc.engine import as_program, index_error, resident
from graphc.ir.graph import Graph
from graphc.ir.interpret import interpret
from graphc.ir.interpret_program import run_program
from graphc.ir.kernels import KernelProgram
from graphc.ir.python_kernels import CheckFailure
from graphc.ir.slabs import place_variables
from graphc.ir.tables import Program

Array = np.ndarray[Any, Any]


class PythonEngine:
    """Runs the kernels in plain Python, chunks interleaved in an order that changes from run to run."""

    name = "python"

    def __init__(self, program: Program | KernelProgram, seed: int = 0) -> None:
        self.program = as_program(program)
        self._seed = seed
        place_variables(s.variable for s in self.program.memory.values() if s.variable is not None)

    def run(
        self,
        feeds: Mapping[str, Array],
        bindings: Mapping[str, int],
        outputs: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """See `Engine.run`."""
        self._seed += 1
        try:
            results = run_program(self.program.bind(bindings), feeds, None, self._seed)
        except CheckFailure as failure:
            kernels = self.program.kernels
            kernel = next(kernel for kernel in kernels if kernel.name == failure.kernel)
            raise index_error(kernel, failure.position, lambda name: self._look_up(feeds, name)) from None
        return written_into(results, outputs)

    def _look_up(self, feeds: Mapping[str, Array], name: str) -> Array:
        storage = self.program.memory[name]
        if storage.kind == "input":
            return feeds[name]
        return np.zeros(0) if storage.kind == "temporary" else resident(storage)


class NumpyEngine:
    """Runs a graph with numpy, op by op."""

    name = "numpy"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        place_variables(graph.variables().values())

    def run(
        self,
        feeds: Mapping[str, Array],
        bindings: Mapping[str, int],
        outputs: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """See `Engine.run`."""
        results, updates = interpret(self.graph, feeds, bindings=bindings)
        for variable, value in updates.items():
            variable.array[...] = value
        return written_into(results, outputs)


def written_into(results: dict[str, Array], outputs: Mapping[str, Array] | None) -> dict[str, Array]:
    """The results, those that the caller gave arrays for copied there."""
    for label, array in (outputs or {}).items():
        array[...] = results[label]
        results[label] = array
    return results
