"""What the user asked `compile` for, beside the network itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from graphc.ir.graph import Operand, Variable
from graphc.ir.machine import Machine

if TYPE_CHECKING:
    from graphc.updates import Optimizer

Backend = Literal["native", "numpy", "python"]


@dataclass(frozen=True, slots=True)
class Request:
    """A loss to differentiate by `wrt` (default: all trainable parameters), and what then updates them.

    `state` is the optimizer's state by name where there is such state already; else it is declared anew.
    """

    loss: Operand | None = None
    optimizer: Optimizer | None = None
    wrt: tuple[Variable, ...] | None = None
    machine: Machine = field(default_factory=Machine)
    state: Mapping[str, Variable] = field(default_factory=dict)
