"""Storages: the memory that kernels share, and that a program's tables name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.ir.types import TensorType

if TYPE_CHECKING:
    from graphc.ir.graph import ConstantData, Variable

KINDS = ("input", "state", "constant", "temporary", "output")


@dataclass(frozen=True, slots=True)
class Storage:
    """Memory that kernels share. `kind` is one of `KINDS`; state has a variable, a constant its data."""

    name: str
    type: TensorType
    kind: str
    variable: Variable | None = None
    data: ConstantData | None = None
