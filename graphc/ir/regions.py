"""Regions: which consecutive kernels run without a barrier between them, and in what order kernels start.

    region = kernels that a worker runs one after the other for chunk c, before chunk c + 1

Kernels share a region if they are cut into the same chunks and chunk c of a later one touches only what
chunk c of an earlier one wrote. That holds where both address a storage by its rows, with the chunk axis
itself as the row number, or by slots, with the chunk's number as the slot. Everything else is a barrier.
Kernels without a chunk axis run as one chunk, so any row of them is a region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from graphc.errors import VerifyError
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Body,
    Buffer,
    Check,
    Expr,
    For,
    Index,
    Kernel,
    KernelProgram,
    Load,
    Store,
    exprs_of,
    walk_expr,
    walk_stmts,
)
from graphc.ir.types import Extent, floordiv

# Bytes of a partial result beyond which a kernel's chunks are not cut to suit its neighbours.
LARGE_COPY = 4096
# Launches of one region are numbered in 15 bits by the launch loop; far fewer are useful.
MAX_KERNELS = 4096


# ------------------------------------------------------------------------------------------- accesses


@dataclass(frozen=True, slots=True)
class Access:
    """One load or store of a buffer. `loops` are the enclosing loops, outermost first."""

    buffer: Buffer
    index: Index
    store: Store | None
    loops: tuple[For, ...]
    position: int  # ordinal among the kernel's statements

    @property
    def is_chunked(self) -> bool:
        """Whether the access stands inside the chunked loop."""
        return any(loop.chunked for loop in self.loops)


def accesses_of(kernel: Kernel) -> list[Access]:
    """Every load and store of the kernel's buffers (not of its local arrays), in order."""
    buffers = {buffer.name: buffer for buffer in kernel.buffers}
    found: list[Access] = []
    counter = 0

    def loads(expr: Expr, loops: tuple[For, ...]) -> Iterator[Access]:
        for part in walk_expr(expr):
            if isinstance(part, Load) and part.source in buffers:
                yield Access(buffers[part.source], part.index, None, loops, counter)

    def visit(body: Body, loops: tuple[For, ...]) -> None:
        nonlocal counter
        for stmt in body:
            counter += 1
            for expr in exprs_of(stmt):
                found.extend(loads(expr, loops))
            if isinstance(stmt, Store) and stmt.target in buffers:
                found.append(Access(buffers[stmt.target], stmt.index, stmt, loops, counter))
            if isinstance(stmt, For):
                visit(stmt.body, (*loops, stmt))

    visit(kernel.body, ())
    return found


def storages_read(kernel: Kernel) -> set[str]:
    return {buffer.storage for buffer in kernel.buffers if buffer.access != "out"}


def storages_written(kernel: Kernel) -> set[str]:
    return {buffer.storage for buffer in kernel.buffers if buffer.access != "in"}


# A storage's rows as a kernel addresses them: by "axis" or by "slot", how many, how long, of what dtype.
Rows = tuple[str, Extent, Extent, int]


def chunk_local_rows(kernel: Kernel) -> dict[str, Rows | None]:
    """For each storage: the rows by which chunk c of the kernel touches only its own part, or None.

    "axis": dim 0 of every access is exactly the chunk axis, inside the chunked loop, so the chunk owns
    rows first..last. "slot": dim 0 is exactly the chunk's number.
    """
    rows: dict[str, Rows | None] = {}
    axis = Affine.of(kernel.chunk_axis) if kernel.chunk_axis else None
    for access in accesses_of(kernel):
        shape = access.buffer.type.shape
        found: Rows | None = None
        if access.index:
            signature = (shape[0], access.buffer.type.size, access.buffer.type.dtype.itemsize)
            if access.index[0] == axis and access.is_chunked:
                found = ("axis", *signature)
            elif access.index[0] == Affine.of(CHUNK):
                found = ("slot", *signature)
        storage = access.buffer.storage
        rows[storage] = found if rows.setdefault(storage, found) == found else None
    return rows


# -------------------------------------------------------------------------------------------- regions


@dataclass(frozen=True, slots=True)
class Region:
    """Launches first..first + count - 1. `reason` says why the next kernel is not part of it."""

    first: int
    count: int
    reason: str = ""


def has_check(kernel: Kernel) -> bool:
    """Whether the kernel can fail the step."""
    return any(isinstance(stmt, Check) for stmt in walk_stmts(kernel.body))


def keeps_copies(kernel: Kernel) -> bool:
    """Whether each chunk leaves a large partial result, so that chunks should be few: a region of its own."""
    for buffer in kernel.buffers:
        rows = buffer.type.shape
        if buffer.access != "in" and rows and rows[0] == kernel.chunks and kernel.chunk_axis:
            size = floordiv(buffer.type.nbytes, rows[0])
            if not isinstance(size, int) or size > LARGE_COPY:
                return True
    return False


def form_regions(kernels: Sequence[Kernel]) -> list[Region]:
    """Cuts kernels in launch order into regions, greedily. A kernel that can fail stays alone, so that
    which failure is reported does not depend on how chunks of different kernels interleave."""
    rows = [chunk_local_rows(kernel) for kernel in kernels]
    regions: list[Region] = []
    first = 0
    for position in range(1, len(kernels) + 1):
        reason = "the end"
        if position < len(kernels):
            reason = _barrier(kernels, rows, range(first, position), position)
        if reason:
            regions.append(Region(first, position - first, reason))
            first = position
    return regions if kernels else []


def _barrier(
    kernels: Sequence[Kernel],
    rows: Sequence[Mapping[str, Rows | None]],
    members: Sequence[int],
    position: int,
) -> str:
    """Why the kernel at `position` cannot join a region of these members; "" if it can."""
    kernel, head = kernels[position], kernels[members[0]]
    if len(members) >= MAX_KERNELS:
        return "the region is full"
    if has_check(kernel) or has_check(head):
        return "a check"
    if bool(kernel.chunk_axis) != bool(head.chunk_axis) or kernel.chunk_extent != head.chunk_extent:
        return f"{kernel.name} is chunked over {kernel.chunk_extent}, not {head.chunk_extent}"
    if not kernel.chunk_axis:
        return ""
    if keeps_copies(kernel) or keeps_copies(head):
        return f"{kernel.name if keeps_copies(kernel) else head.name} keeps a copy of its result per chunk"
    written = storages_written(kernel)
    touched = written | storages_read(kernel)
    for earlier in members:
        before = kernels[earlier]
        before_written = storages_written(before)
        shared = (before_written & touched) | (storages_read(before) & written)
        for storage in sorted(shared):
            own, theirs = rows[position].get(storage), rows[earlier].get(storage)
            if own is None or own != theirs:
                return f"{kernel.name} touches other chunks' part of {storage}"
    return ""


# ------------------------------------------------------------------------------------- order of kernels


def checks_first(program: KernelProgram) -> KernelProgram:
    """Moves the kernels that can fail, and what they depend on, before all others; the order is kept
    otherwise. Raises VerifyError where state would be written before a check, since a failed step
    changes nothing."""
    kernels = program.kernels
    needed: set[int] = {n for n, kernel in enumerate(kernels) if has_check(kernel)}
    if not needed:
        return program
    dependences = _dependences(kernels)
    for position in reversed(range(len(kernels))):
        if position in needed:
            needed |= dependences[position]
    order = [n for n in range(len(kernels)) if n in needed] + [
        n for n in range(len(kernels)) if n not in needed
    ]
    state = {name for name, storage in program.storages.items() if storage.kind == "state"}
    last_check = max(rank for rank, n in enumerate(order) if has_check(kernels[n]))
    for n in order[: last_check + 1]:
        written = sorted(storages_written(kernels[n]) & state)
        if written:
            raise VerifyError(f"kernel {kernels[n].name} writes {written[0]} before a check that may fail")
    if order == list(range(len(kernels))):
        return program
    return replace(program, kernels=tuple(kernels[n] for n in order))


def order_for_regions(program: KernelProgram) -> KernelProgram:
    """Brings kernels that can share a region together, as far as their dependences allow.

    What is made of state alone (a weight laid out anew) goes first, so that it stands between no two
    layers. Then the region at hand takes every kernel that is ready and may join it, in the given order.
    """
    kernels = program.kernels
    state = {name for name, storage in program.storages.items() if storage.kind in ("state", "constant")}
    waiting = dict(enumerate(_dependences(kernels)))
    early = {
        n
        for n, kernel in enumerate(kernels)
        if storages_read(kernel) <= state and not storages_written(kernel) & state and not waiting[n]
    }
    rows = [chunk_local_rows(kernel) for kernel in kernels]
    order: list[int] = []
    done: set[int] = set()
    region: list[int] = []
    while waiting:
        ready = [n for n, before in waiting.items() if before <= done]
        joining = [n for n in ready if region and not _barrier(kernels, rows, region, n)]
        checks = [n for n in ready if has_check(kernels[n])]
        chosen = min(checks or joining or [n for n in ready if n in early] or ready)
        if chosen not in joining:
            region = []
        region.append(chosen)
        order.append(chosen)
        done.add(chosen)
        del waiting[chosen]
    if order == list(range(len(kernels))):
        return program
    return replace(program, kernels=tuple(kernels[n] for n in order))


def _dependences(kernels: Sequence[Kernel]) -> list[set[int]]:
    """For each kernel the earlier ones that it must come after: it reads, or overwrites, what they touch."""
    writers: dict[str, list[int]] = {}
    readers: dict[str, list[int]] = {}
    result: list[set[int]] = []
    for number, kernel in enumerate(kernels):
        read, written = storages_read(kernel), storages_written(kernel)
        before: set[int] = set()
        for storage in read | written:
            before.update(writers.get(storage, ()))
        for storage in written:
            before.update(readers.get(storage, ()))
        for storage in read:
            readers.setdefault(storage, []).append(number)
        for storage in written:
            writers.setdefault(storage, []).append(number)
        result.append(before)
    return result
