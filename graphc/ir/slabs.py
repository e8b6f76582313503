"""Slabs: the contiguous memory that state lies in.

    Slab     = one aligned allocation of zeroed bytes, cut into segments
    Segment  = (variable, slab, offset, nbytes)
    SlabView = the segments of one group of variables (parameters, gradients, one moment, ...)

Variables are laid out once, in the order in which the first executable that reaches them names them, and
never move: numpy views of them stay valid. A later executable that groups them differently gets a view
of several runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from graphc.errors import StateError
from graphc.ir.addresses import address_of, aligned_bytes, round_up
from graphc.ir.graph import Variable
from graphc.ir.locks import SlabLock
from graphc.ir.types import evaluate

Array = np.ndarray[Any, Any]
_lock = threading.RLock()


@dataclass(eq=False, slots=True)
class Slab:
    """One allocation. `array` is all of it as uint8; what lies between segments is zero. Whoever runs on it
    holds `lock`, as executables that share parameters may run on several Python threads."""

    name: str
    array: Array
    lock: SlabLock = field(default_factory=SlabLock)


class Segment(NamedTuple):
    """Where one variable lies."""

    variable: Variable
    slab: Slab
    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class SlabView:
    """A group of variables and where they lie; `len` is the number of variables."""

    name: str
    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def variables(self) -> tuple[Variable, ...]:
        return tuple(segment.variable for segment in self.segments)

    @property
    def nbytes(self) -> int:
        """The bytes of the values, without what aligns them."""
        return sum(segment.nbytes for segment in self.segments)

    def runs(self) -> Iterator[Array]:
        """The maximal contiguous stretches as live uint8 arrays, with the zeros that align segments."""
        start: Segment | None = None
        last: Segment | None = None
        for segment in self.segments:
            if segment.nbytes == 0:
                continue
            if start is not None and last is not None:
                if segment.slab is last.slab and segment.offset == last.offset + round_up(last.nbytes):
                    last = segment
                    continue
                yield start.slab.array[start.offset : last.offset + last.nbytes]
            start = last = segment
        if start is not None and last is not None:
            yield start.slab.array[start.offset : last.offset + last.nbytes]

    @property
    def is_contiguous(self) -> bool:
        """Whether the group is a single stretch of memory."""
        return sum(1 for _ in self.runs()) <= 1

    @property
    def array(self) -> Array:
        """The whole group as one live uint8 array. StateError if it is scattered (see `runs`)."""
        runs = list(self.runs())
        if len(runs) > 1:
            raise StateError(f"the slab {self.name} has {len(runs)} runs; use runs()")
        return runs[0] if runs else np.zeros(0, dtype=np.uint8)

    def __str__(self) -> str:
        lines = [f"slab {self.name}: {len(self)} segments, {self.nbytes} bytes"]
        for variable, slab, offset, nbytes in self.segments:
            lines.append(f"  {slab.name}+{offset:<10} {nbytes:>10}  {variable.name}: {variable.type}")
        return "\n".join(lines) + "\n"


def locks_of(views: Iterable[SlabView]) -> list[SlabLock]:
    """The locks of all slabs that the views have segments in, each once."""
    return list(dict.fromkeys(segment.slab.lock for view in views for segment in view.segments))


def variable_bytes(variable: Variable) -> int:
    """The bytes of a variable's value."""
    return evaluate(variable.type.nbytes, {})


def place_variables(
    variables: Iterable[Variable], name: str = "parameters", lock: SlabLock | None = None
) -> SlabView:
    """Lays out the variables that have no storage yet, in order, in one new slab, each on a 64-byte line.

    `lock` is the new slab's (default: one of its own); slabs that one step runs on may share it. Variables
    placed before stay where they are. Returns the segments of all of them, in the order given; a variable
    given twice has one segment.
    """
    ordered = list(dict.fromkeys(variables))
    with _lock:
        # Values first: an initializer that fails leaves nothing half placed.
        fresh = [(variable, variable.snapshot()) for variable in ordered if not variable.is_placed]
        offsets, size = [], 0
        for variable, _ in fresh:
            offsets.append(size)
            size += round_up(variable_bytes(variable))
        slab = Slab(name, aligned_bytes(size), lock or SlabLock())
        for (variable, value), offset in zip(fresh, offsets, strict=True):
            nbytes = variable_bytes(variable)
            shape = tuple(evaluate(extent, {}) for extent in variable.type.shape)
            storage = slab.array[offset : offset + nbytes].view(variable.type.dtype.numpy).reshape(shape)
            variable.place(storage, slab, value, zeroed=True)
        return SlabView(name, tuple(_segment(variable) for variable in ordered))


def _segment(variable: Variable) -> Segment:
    slab = variable.owner
    if not isinstance(slab, Slab):
        raise StateError(f"{variable.name} lies in memory of its own")
    return Segment(
        variable, slab, address_of(variable.array) - address_of(slab.array), variable_bytes(variable)
    )


def group_variables(
    parameters: Sequence[Variable], gradients: Sequence[Variable], others: Sequence[Variable]
) -> dict[str, list[Variable]]:
    """Variables by slab: parameters, gradients, one group for each optimizer moment, other state.

    A moment is a variable called `optim.<parameter>.<moment>`; all of one moment share a slab, in the
    order of the parameters.
    """
    groups: dict[str, list[Variable]] = {"parameters": list(parameters), "gradients": list(gradients)}
    order = {variable.name: position for position, variable in enumerate(parameters)}
    moments: dict[str, list[tuple[int, Variable]]] = {}
    rest: list[Variable] = []
    for variable in others:
        prefix, _, moment = variable.name.rpartition(".")
        owner = prefix.removeprefix("optim.")
        if prefix.startswith("optim.") and owner in order:
            moments.setdefault(moment, []).append((order[owner], variable))
        else:
            rest.append(variable)
    for moment, members in moments.items():
        groups[moment] = [variable for _, variable in sorted(members, key=lambda pair: pair[0])]
    groups["state"] = rest
    return groups


def _after_fork_in_child() -> None:
    global _lock
    if _lock.acquire(blocking=False):  # nobody's, or held by the thread that forked
        _lock.release()
    else:
        _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
