"""Spans of steps: the tables that one call of `gx_steps` walks (layout: `steps_ir`)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.codegen.cache import cached_object
from graphc.codegen.jit import LoadedCode, once
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.steps_ir import (
    ARRAY_FIELDS,
    HEADER_FIELDS,
    MOVING_FIELDS,
    NOTE_FIELDS,
    RATE_FIELDS,
    steps_ir,
)
from graphc.codegen.target import host_target

Table = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Span:
    """What `gx_steps` does beside running the program, for `steps` batches in a row; see `steps_ir`.

    Rows are tuples in the order of the tables' fields. `indices` are the rows to gather, int64 and as many as
    steps * batch, or None where nothing is gathered; `chunk_rows` of them are one thread's portion. `step` is
    the address of the count of updates, which picks one of `rate_limit` values beginning with `first_step`'s.
    Whoever makes a span keeps alive what its addresses point at.
    """

    steps: int
    moving: tuple[tuple[int, int, int], ...]
    notes: tuple[tuple[int, int, int], ...] = ()
    arrays: tuple[tuple[int, int, int, int, int], ...] = ()
    indices: Table | None = None
    batch: int = 0
    chunk_rows: int = 1
    rates: tuple[tuple[int, int, int], ...] = ()
    step: int = 0
    first_step: int = 0
    rate_limit: int = 0

    def run(self, program: ProgramBlock) -> tuple[int, int]:
        """(status code of the program, steps done before it failed), without the GIL. Fewer steps than asked
        for, and code 0, where the count of updates has passed the rates that were given."""
        moving = _table(self.moving, MOVING_FIELDS)
        notes = _table(self.notes, NOTE_FIELDS)
        arrays = _table(self.arrays, ARRAY_FIELDS)
        rates = _table(self.rates, RATE_FIELDS)
        values = {
            "run": program.run_address,
            "program": program.address,
            "step_count": self.steps,
            "done": 0,
            "moving_count": len(moving),
            "moving": moving.ctypes.data,
            "array_count": len(arrays),
            "arrays": arrays.ctypes.data,
            "indices": 0 if self.indices is None else self.indices.ctypes.data,
            "batch": self.batch,
            "chunk_rows": self.chunk_rows,
            "chunks": -(-self.batch // self.chunk_rows),
            "cursor": 0,
            "rate_count": len(rates),
            "rates": rates.ctypes.data,
            "step": self.step,
            "first_step": self.first_step,
            "rate_limit": self.rate_limit,
            "note_count": len(notes),
            "notes": notes.ctypes.data,
        }
        header = np.array([values[field] for field in HEADER_FIELDS], dtype=np.int64)
        code = _native_steps().call(header.ctypes.data)
        return int(code), int(header[HEADER_FIELDS.index("done")])


def _table(rows: tuple[tuple[int, ...], ...], fields: tuple[str, ...]) -> Table:
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(fields))


def steps_module() -> str:
    """The LLVM text of gx_steps for this machine."""
    return f'target triple = "{host_target().triple}"\n{steps_ir()}'


class _NativeSteps:
    """gx_steps, with its code."""

    def __init__(self) -> None:
        self._code = LoadedCode(cached_object(steps_module(), host_target()), ("gx_steps",))
        self.call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(self._code.address("gx_steps"))


@once
def _native_steps() -> _NativeSteps:
    return _NativeSteps()
