"""Stores past the caches: results that nobody reads soon are written without fetching their lines first.

An ordinary store fetches its cache line from memory before it overwrites it, a third of all traffic where
results are as large as operands. A streamed store does not, but whoever reads the result soon finds it in
memory only, and the hardware's prefetcher does not run beside it as it does beside others. So stores stream

- in kernels that ask for the rows that they read (`graphc.ir.prefetch`), in place of asking for these lines;
- to outputs of the program that no kernel reads, in whole vectors (plain, along the vector axis, rows and
  offsets multiples of a vector);
- where the kernel's buffers exceed the last-level cache together. Where extents are bound at run time, the
  kernel decides when it runs (`KernelEmitter.streaming_form`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from graphc.ir.kernels import (
    STREAM_BYTES,
    Affine,
    Body,
    Check,
    For,
    Kernel,
    KernelProgram,
    Prefetch,
    Stmt,
    Store,
    contiguous_strides,
    loads_of,
    walk_stmts,
)
from graphc.ir.types import Extent


def unread_outputs(program: KernelProgram) -> frozenset[str]:
    """The outputs that one kernel alone touches."""
    uses = Counter(buffer.storage for kernel in program.kernels for buffer in kernel.buffers)
    return frozenset(s.name for s in program.storages.values() if s.kind == "output" and uses[s.name] == 1)


def stream_outputs(kernel: Kernel, unread: frozenset[str], vector_bytes: int) -> Kernel:
    """The kernel, scheduled already, with the stores that stream. `unread`: outputs that no kernel reads."""
    targets = {b.name: b for b in kernel.buffers if b.storage in unread and b.access == "out"}
    asks = any(isinstance(s, Prefetch) and s.source not in targets for s in walk_stmts(kernel.body))
    total: Extent = 0
    for buffer in kernel.buffers:
        total = total + buffer.type.nbytes
    if kernel.form != "rows" or not asks or (isinstance(total, int) and total <= STREAM_BYTES):
        return kernel
    if any(isinstance(stmt, Check) for stmt in walk_stmts(kernel.body)):
        return kernel
    stores = [stmt for stmt in walk_stmts(kernel.body) if isinstance(stmt, Store)]
    mixed = {s.target for s in stores if s.combine or s.guard is not None}
    mixed |= {load.source for load in loads_of(kernel.body)}

    def visit(body: Body, vector: str) -> Body:
        result: list[Stmt] = []
        for stmt in body:
            if isinstance(stmt, For):
                stmt = replace(stmt, body=visit(stmt.body, stmt.axis if stmt.vector else vector))
            elif isinstance(stmt, Store) and vector and stmt.target in targets.keys() - mixed:
                buffer = targets[stmt.target]
                lanes = vector_bytes // buffer.type.dtype.itemsize
                if _in_whole_vectors(stmt, buffer.type.shape, vector, lanes):
                    stmt = replace(stmt, stream=True)
            result.append(stmt)
        return tuple(result)

    return replace(kernel, body=visit(kernel.body, ""))


def _in_whole_vectors(store: Store, shape: tuple[Extent, ...], vector: str, lanes: int) -> bool:
    flat = Affine()
    for affine, stride in zip(store.index, contiguous_strides(shape), strict=True):
        flat = flat + affine.scale(stride)
    steps = [flat.offset, *(coefficient for name, coefficient in flat.terms if name != vector)]
    whole = all(isinstance(step, int) and step % lanes == 0 for step in steps)
    return whole and flat.coefficient(vector) == 1
