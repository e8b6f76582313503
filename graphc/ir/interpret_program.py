"""A bound program interpreted: the kernels in plain Python, on the memory that was planned for them.

What the kernel interpreter leaves open is decided here as native code decides it: temporaries lie at their
offsets in one arena (which starts as NaN and -1 in every byte), and the chunks of a region interleave, each
running the region's launches in order. Which chunk goes next is drawn from a seed. A program whose regions or
live ranges are wrong gives other results for some seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphc.errors import FeedError, GraphcError
from graphc.ir.interpret_kernels import run_kernel
from graphc.ir.kernels import Storage
from graphc.ir.python_kernels import CheckFailure, poisoned
from graphc.ir.tables import BoundProgram
from graphc.ir.types import Shape, evaluate

Array = np.ndarray[Any, Any]


def run_program(
    bound: BoundProgram,
    feeds: Mapping[str, Array],
    state: Mapping[str, Array] | None = None,
    seed: int | None = None,
) -> dict[str, Array]:
    """Runs one step and returns the outputs by label; `state` arrays by storage name are updated in place
    (default: those of the Variables). `seed` None runs the chunks of a region one after the other.

    Raises CheckFailure, for the first bad position over all chunks of the first failing kernel.
    """
    program, bindings = bound.program, bound.bindings
    arena = np.full(bound.layout.nbytes, 0xFF, dtype=np.uint8)
    arrays = {
        name: _memory(storage, bound, arena, feeds, state or {}) for name, storage in program.memory.items()
    }
    random = None if seed is None else np.random.default_rng(seed)
    for region, chunking in enumerate(bound.chunkings):
        first = int(program.regions["first_launch"][region])
        last = first + int(program.regions["launch_count"][region])
        following = dict.fromkeys(range(chunking.count), first)
        failures: list[CheckFailure] = []
        while following:
            unfinished = list(following)
            chunk = unfinished[0 if random is None else int(random.integers(len(unfinished)))]
            launch = following[chunk]
            try:
                run_kernel(program.kernels[launch], arrays, bindings, chunking.size, [chunk])
            except CheckFailure as failure:
                failures.append(failure)
            following[chunk] = launch + 1
            if following[chunk] == last:
                del following[chunk]
        if failures:
            raise min(failures, key=lambda failure: (failure.check, failure.position))
    return {
        label: arrays[storage].reshape(_concrete(type.shape, bindings)).copy()
        for label, (storage, type) in program.outputs.items()
    }


def _concrete(shape: Shape, bindings: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(extent, bindings) for extent in shape)


def _memory(
    storage: Storage,
    bound: BoundProgram,
    arena: Array,
    feeds: Mapping[str, Array],
    state: Mapping[str, Array],
) -> Array:
    """The array that a storage's kernels work on."""
    shape, dtype = _concrete(storage.type.shape, bound.bindings), storage.type.dtype
    if storage.kind == "output":
        return poisoned(dtype, shape)
    if storage.kind == "temporary":
        if not bound.is_placed(storage.name):
            return poisoned(dtype, shape)
        offset = bound.offset_of(storage.name)
        nbytes = evaluate(storage.type.nbytes, bound.bindings)
        return arena[offset : offset + nbytes].view(dtype.numpy).reshape(shape)
    if storage.kind == "input":
        if storage.name not in feeds:
            raise FeedError(f"input {storage.name} is not given")
        return np.asarray(feeds[storage.name], order="C")
    if storage.name in state:
        return state[storage.name]
    if storage.variable is not None:
        return storage.variable.array
    if storage.data is None:
        raise GraphcError(f"{storage.kind} {storage.name} has no value")
    return storage.data.array
