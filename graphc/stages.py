"""What compiling leaves behind: the IR of every stage, as data and as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphc.errors import UsageError
from graphc.ir.graph import Graph, Variable
from graphc.ir.lazy import cached_property

# Printing takes modules that a step from the cache runs without.
if TYPE_CHECKING:
    from graphc.ir.kernels import KernelProgram
    from graphc.ir.tables import Program

STAGES = ("graph", "joint", "optimized", "kernels", "program", "llvm", "asm")
SUFFIXES: Mapping[str, str] = {"llvm": "ll", "asm": "s"}


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass that ran: its name, the stage its result belongs to, the seconds it took, its result."""

    name: str
    stage: str
    seconds: float
    ir: Any

    def text(self) -> str:
        """The result as text."""
        if isinstance(self.ir, Graph):
            return _printed(self.ir, self.stage)
        from graphc.ir.text_kernels import print_kernels

        return print_kernels(self.ir)


def _printed(graph: Graph, stage: str) -> str:
    from graphc.ir.text import print_graph

    return print_graph(graph, stage)


@dataclass
class CompiledStages:
    """The last IR of every stage, and all passes in order. Later stages are made when first asked for.

    `chosen` are the variables that the loss was differentiated by.
    """

    graph: Graph
    joint: Graph
    optimized: Graph
    kernels: KernelProgram
    trail: list[PassRecord] = field(default_factory=list)
    chosen: tuple[Variable, ...] = ()

    @cached_property
    def program(self) -> Program:
        from graphc.ir.program import build_program

        return build_program(self.kernels)

    def trail_text(self) -> str:
        """The passes with their timings, one per line."""
        total = sum(record.seconds for record in self.trail)
        lines = [f"{len(self.trail)} passes, {1e3 * total:.2f} ms"]
        lines += [f"{1e3 * r.seconds:9.3f} ms  {r.stage:<10} {r.name}" for r in self.trail]
        return "\n".join(lines) + "\n"

    def text(
        self, stage: str, native: Callable[[str], str], bindings: Mapping[str, int] | None = None
    ) -> str:
        """A stage's text. `native` makes that of llvm and asm; `bindings` lay out the program's memory.

        "trail" is the list of passes. UsageError for an unknown stage.
        """
        require_stage(stage)
        if stage in ("llvm", "asm"):
            return native(stage)
        if stage == "trail":
            return self.trail_text()
        if stage == "kernels":
            from graphc.ir.text_kernels import print_kernels

            return print_kernels(self.kernels)
        if stage == "program":
            from graphc.ir.text_program import print_program

            return print_program(self.program, bindings)
        return _printed(getattr(self, stage), stage)

    def write(
        self, directory: Path, native: Callable[[str], str], bindings: Mapping[str, int] | None = None
    ) -> list[Path]:
        """Writes every stage, the trail, and what each pass made, as files. Returns their paths."""
        (directory / "passes").mkdir(parents=True, exist_ok=True)
        texts = {
            f"{number}_{stage}.{SUFFIXES.get(stage, 'txt')}": self.text(stage, native, bindings)
            for number, stage in enumerate(STAGES)
        }
        texts["trail.txt"] = self.trail_text()
        for number, record in enumerate(self.trail):
            texts[f"passes/{number:02d}_{record.name}.txt"] = record.text()
        paths = []
        for name, text in texts.items():
            paths.append(directory / name)
            paths[-1].write_text(text, encoding="utf-8")
        return paths


def require_stage(stage: str) -> None:
    """Raises UsageError unless there is such a stage (or it is the trail)."""
    if stage not in (*STAGES, "trail"):
        raise UsageError(f"there is no stage {stage!r}; the stages are {', '.join(STAGES)} (and trail)")
