"""Kernels interpreted loop by loop in plain Python: the meaning of the kernel stage.

Each kernel is written out as a small Python function of scalar loops (`graphc.ir.python_kernels`) and
called once for each chunk, in any order. `tile` and `vector` are ignored.

Memory is strict: an index outside its buffer is a VerifyError (negative indices never wrap), what an
`out` buffer, a temporary or a local array holds before it is written is poison (NaN, or the least
integer), and an `in` buffer cannot be written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import FeedError, GraphcError, ShapeError, UsageError, VerifyError
from graphc.ir.kernels import (
    Kernel,
    KernelProgram,
    Storage,
)
from graphc.ir.python_kernels import CheckedArray, CheckFailure, CompiledKernel, concrete, poisoned
from graphc.ir.types import evaluate

Array = np.ndarray[Any, Any]
ChunkSizes = Mapping[str, int] | Callable[[Kernel, int], int] | None

# The same few kernels run step after step. Keyed by identity: equality of kernels would take -0.0 for 0.0.
_compiled: OrderedDict[tuple[int, tuple[tuple[str, int], ...]], CompiledKernel] = OrderedDict()
_COMPILED_LIMIT = 256


def _compile(kernel: Kernel, bindings: Mapping[str, int]) -> CompiledKernel:
    key = (id(kernel), tuple(sorted(bindings.items())))
    found = _compiled.get(key)
    if found is None or found.kernel is not kernel:
        found = _compiled[key] = CompiledKernel(kernel, bindings)
        while len(_compiled) > _COMPILED_LIMIT:
            _compiled.popitem(last=False)
    return found


# ------------------------------------------------------------------------------------------- running


def chunk_bounds(kernel: Kernel, bindings: Mapping[str, int], chunk_size: int) -> list[tuple[int, int]]:
    """(first, last) of each chunk. An empty axis still has one, empty, chunk, so its slots are written."""
    if not kernel.chunk_axis:
        return [(0, 1)]
    if chunk_size < 1 or chunk_size % kernel.granule:
        raise UsageError(f"kernel {kernel.name}: a chunk of {chunk_size} is no multiple of {kernel.granule}")
    extent = evaluate(kernel.chunk_extent, bindings)
    count = max(1, -(-extent // chunk_size))
    return [(c * chunk_size, min(extent, (c + 1) * chunk_size)) for c in range(count)]


def default_chunk_size(kernel: Kernel, extent: int) -> int:
    """About three chunks, so that slots and chunk order are exercised even by small shapes."""
    size = max(1, -(-extent // 3))
    return -(-size // kernel.granule) * kernel.granule


def chunk_size_of(kernel: Kernel, bindings: Mapping[str, int], chunk_sizes: ChunkSizes = None) -> int:
    """The chunk size of a kernel: from a table by kernel name, a function, or the default."""
    extent = evaluate(kernel.chunk_extent, bindings)
    if callable(chunk_sizes):
        return chunk_sizes(kernel, extent)
    if chunk_sizes is not None and kernel.name in chunk_sizes:
        return chunk_sizes[kernel.name]
    return default_chunk_size(kernel, extent)


def _memory(
    kernel: Kernel, arrays: Mapping[str, Array], bindings: Mapping[str, int]
) -> dict[str, CheckedArray]:
    memory: dict[str, CheckedArray] = {}
    for buffer in kernel.buffers:
        array = arrays[buffer.storage]
        shape = concrete(buffer.type.shape, bindings)
        if not array.flags.c_contiguous or array.dtype != buffer.type.dtype.numpy:
            raise UsageError(f"storage {buffer.storage} is not a contiguous {buffer.type.dtype} array")
        if array.size != int(np.prod(shape, dtype=np.int64)):
            raise VerifyError(f"kernel {kernel.name}: {buffer.name}{list(shape)} views {array.shape}")
        view = array.reshape(shape)
        if buffer.access == "in":
            view = view.view()
            view.setflags(write=False)
        memory[buffer.name] = CheckedArray(buffer.name, view)
    return memory


def run_kernel(
    kernel: Kernel,
    arrays: Mapping[str, Array],
    bindings: Mapping[str, int],
    chunk_size: int | None = None,
    order: Sequence[int] | None = None,
) -> None:
    """Runs a kernel on arrays by storage name, in place.

    `order` is the order of the chunks (default: rising). A kernel's own `<name>.chunks` dim is bound
    here where `bindings` lacks it. If Checks fail, the first bad position over all chunks is raised as
    CheckFailure, whatever the order.
    """
    bounds = chunk_bounds(kernel, bindings, chunk_size or chunk_size_of(kernel, bindings))
    bindings = {f"{kernel.name}.chunks": len(bounds), **bindings}
    compiled = _compile(kernel, bindings)
    memory = _memory(kernel, arrays, bindings)
    failures: list[CheckFailure] = []
    with np.errstate(all="ignore"):
        for chunk in range(len(bounds)) if order is None else order:
            try:
                compiled.run(chunk, *bounds[chunk], memory)
            except CheckFailure as failure:
                failures.append(failure)
    if failures:
        raise min(failures, key=lambda failure: (failure.check, failure.position))


def run_kernels(
    program: KernelProgram,
    feeds: Mapping[str, Array],
    state: Mapping[str, Array] | None = None,
    bindings: Mapping[str, int] | None = None,
    seed: int | None = None,
    chunk_sizes: ChunkSizes = None,
) -> dict[str, Array]:
    """Runs a program's kernels in order; returns its outputs by label, as fresh arrays.

    `feeds` are inputs by storage name. `state` arrays by storage name are updated in place; a state
    storage not given uses its Variable's array. `bindings` are the dims; `<kernel>.chunks` is bound here
    from `chunk_sizes`. `seed` permutes the order of each kernel's chunks (None: rising order).
    """
    bindings = dict(bindings or {})
    sizes: dict[str, int] = {}
    for kernel in program.kernels:
        sizes[kernel.name] = chunk_size_of(kernel, bindings, chunk_sizes)
        if kernel.chunk_axis:
            bindings[f"{kernel.name}.chunks"] = len(chunk_bounds(kernel, bindings, sizes[kernel.name]))
    for left, right, context in program.guards:
        a, b = evaluate(left, bindings), evaluate(right, bindings)
        if a != b:
            raise ShapeError(f"{context}: extents {left} = {a} and {right} = {b} differ")
    arrays = {s.name: _storage_array(s, feeds, state or {}, bindings) for s in program.storages.values()}
    random = None if seed is None else np.random.default_rng(seed)
    for kernel in program.kernels:
        count = evaluate(kernel.chunks, bindings)
        order = None if random is None else [int(c) for c in random.permutation(count)]
        run_kernel(kernel, arrays, bindings, sizes[kernel.name], order)
    return {
        label: arrays[storage].reshape(concrete(type.shape, bindings)).copy()
        for label, (storage, type) in program.outputs.items()
    }


def _storage_array(
    storage: Storage,
    feeds: Mapping[str, Array],
    state: Mapping[str, Array],
    bindings: Mapping[str, int],
) -> Array:
    shape, dtype = concrete(storage.type.shape, bindings), storage.type.dtype
    if storage.kind in ("temporary", "output"):
        return poisoned(dtype, shape)
    if storage.kind == "constant":
        if storage.data is None:
            raise GraphcError(f"constant {storage.name} has no data")
        return storage.data.array
    if storage.kind == "state":
        found = state.get(storage.name)
        if found is None and storage.variable is not None:
            found = storage.variable.array
    else:
        found = feeds.get(storage.name)
    if found is None:
        raise FeedError(f"{storage.kind} {storage.name} is not given")
    if found.dtype != dtype.numpy or found.shape != shape:
        raise FeedError(f"{storage.name} is {found.dtype}{list(found.shape)}, not {dtype}{list(shape)}")
    return found if storage.kind == "state" else np.ascontiguousarray(found).reshape(shape)
