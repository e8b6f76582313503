"""Regions: which consecutive kernels run without a barrier between them, and in what order kernels start.

    region = kernels that a worker runs one after the other for chunk c, before chunk c + 1

Kernels share a region if they are cut into the same chunks and chunk c of a later one touches only what
chunk c of an earlier one wrote. That holds where both address a storage by its rows, with the chunk axis
itself as the row number, or by slots, with the chunk's number as the slot. Everything else is a barrier.
Kernels without a chunk axis run as one chunk, so any row of them is a region.

Nor do products share a region if what every chunk of them reads again, such as their weights, exceeds what a
core's cache keeps: chunk by chunk each would fetch its weights anew. One after the other, each has
them at hand for all of its chunks, and the rows that pass between them come once.

A kernel whose chunks keep large copies of its result wants few and long chunks. It joins a region where it is
much of the work and reads again what the region has read: rows then come from memory once, and from the
core's own cache for the copies. Elsewhere it stays alone, and the others keep their short chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf

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
from graphc.ir.types import Extent, dims_of, evaluate, floordiv

# Bytes of a partial result beyond which a kernel's chunks are cut to suit it, not its neighbours.
LARGE_COPY = 4096
# Kernels with such copies share a region where this many times their work is all of the region's.
COPYING_SHARE = 3
# Bytes that a core keeps from one chunk to the next: half of the second-level cache on common server cores.
KEPT_BYTES = 2**18
# What a dim that is bound at run time, such as a batch, is taken for.
TYPICAL_EXTENT = 2**10
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


def chunk_local_rows(kernel: Kernel, accesses: Sequence[Access]) -> dict[str, Rows | None]:
    """For each storage: the rows by which chunk c of the kernel touches only its own part, or None.

    "axis": dim 0 of every access is exactly the chunk axis, inside the chunked loop, so the chunk owns
    rows first..last. "slot": dim 0 is exactly the chunk's number.
    """
    rows: dict[str, Rows | None] = {}
    axis = Affine.of(kernel.chunk_axis) if kernel.chunk_axis else None
    for access in accesses:
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


def read_by_every_chunk(kernel: Kernel, accesses: Sequence[Access]) -> dict[str, int]:
    """The storages that each chunk reads the same part of, such as weights, with their (likely) bytes."""
    own = {
        access.buffer.storage
        for access in accesses
        if access.store or any({kernel.chunk_axis, CHUNK} & affine.names for affine in access.index)
    }
    sizes = {buffer.storage: buffer.type.nbytes for buffer in kernel.buffers if buffer.storage not in own}
    return {
        name: evaluate(size, dict.fromkeys(dims_of(size), TYPICAL_EXTENT)) for name, size in sizes.items()
    }


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


@dataclass(frozen=True, slots=True)
class _Facts:
    """What decides which regions a kernel may be part of."""

    kernel: Kernel
    read: frozenset[str]
    written: frozenset[str]
    rows: Mapping[str, Rows | None]
    common: Mapping[str, int]
    has_check: bool
    keeps_copies: bool
    cost: float  # of a row, in ns; infinite where it depends on how kernels are cut

    @staticmethod
    def of(kernel: Kernel) -> _Facts:
        accesses = accesses_of(kernel)
        return _Facts(
            kernel,
            frozenset(storages_read(kernel)),
            frozenset(storages_written(kernel)),
            chunk_local_rows(kernel, accesses),
            read_by_every_chunk(kernel, accesses) if kernel.form == "contract" else {},
            has_check(kernel),
            keeps_copies(kernel),
            kernel.cost if isinstance(kernel.cost, int) else inf,
        )

    @property
    def chunking(self) -> tuple[bool, Extent]:
        """Whether and how it is cut into chunks: the same for all kernels of a region."""
        return bool(self.kernel.chunk_axis), self.kernel.chunk_extent


class _OpenRegion:
    """A region that takes more kernels."""

    def __init__(self, head: _Facts) -> None:
        self._head = head
        # By which rows all kernels address a storage, and those that write it; None: not all by the same.
        self._touched: dict[str, Rows | None] = {}
        self._written: dict[str, Rows | None] = {}
        self._count = 0
        self._read: set[str] = set()
        self._cost = self._copying = 0.0
        self._keeper = ""
        self._common: dict[str, int] = {}
        self.add(head)

    @property
    def chunking(self) -> tuple[bool, Extent]:
        """How its kernels are cut."""
        return self._head.chunking

    def add(self, facts: _Facts) -> None:
        """Takes a kernel."""
        self._count += 1
        self._read |= facts.read
        self._cost += facts.cost
        if facts.keeps_copies:
            self._copying += facts.cost
            self._keeper = self._keeper or facts.kernel.name
        self._common.update(facts.common)
        for storages, known in ((facts.read | facts.written, self._touched), (facts.written, self._written)):
            for storage in storages:
                rows = facts.rows.get(storage)
                known[storage] = rows if known.setdefault(storage, rows) == rows else None

    def barrier(self, facts: _Facts) -> str:
        """Why a kernel cannot join; "" if it can."""
        kernel, head = facts.kernel, self._head
        if self._count >= MAX_KERNELS:
            return "the region is full"
        if facts.has_check or head.has_check:
            return "a check"
        if facts.chunking != head.chunking:
            return f"{kernel.name} is chunked over {kernel.chunk_extent}, not {head.kernel.chunk_extent}"
        if not kernel.chunk_axis:
            return ""
        if keeper := self._keeper_apart(facts):
            return f"{keeper} keeps a copy of its result per chunk"
        if self._crowds(facts):
            return f"{kernel.name} reads what would not stay in cache beside what the others read each chunk"
        conflicts = [
            s for s in facts.written if s in self._touched and self._differs(facts, s, self._touched)
        ]
        conflicts += [s for s in facts.read if s in self._written and self._differs(facts, s, self._written)]
        return f"{kernel.name} touches other chunks' part of {min(conflicts)}" if conflicts else ""

    def _keeper_apart(self, facts: _Facts) -> str:
        """The kernel whose copies keep a kernel out of the region; "" if none does.

        Chunks are then cut to suit the copies. That may be where they are much of the work, and where a
        kernel that keeps copies reads again what the region has read: the second time from a nearer cache.
        """
        keeper = self._keeper or (facts.kernel.name if facts.keeps_copies else "")
        if not keeper:
            return ""
        reads_again = not facts.keeps_copies or not facts.read.isdisjoint(self._read)
        total = self._cost + facts.cost
        copying = self._copying + (facts.cost if facts.keeps_copies else 0)
        return "" if reads_again and inf > COPYING_SHARE * copying >= total else keeper

    def _crowds(self, facts: _Facts) -> bool:
        """Whether what each chunk reads again, such as weights, would be evicted until the next chunk.

        That takes two that are large: a little more is soon fetched again.
        """
        new = sum(size for name, size in facts.common.items() if name not in self._common)
        old = sum(self._common.values())
        return min(new, old) > KEPT_BYTES // 8 and new + old > KEPT_BYTES

    @staticmethod
    def _differs(facts: _Facts, storage: str, known: Mapping[str, Rows | None]) -> bool:
        own = facts.rows.get(storage)
        return own is None or own != known[storage]


def form_regions(kernels: Sequence[Kernel]) -> list[Region]:
    """Cuts kernels in launch order into regions, greedily. A kernel that can fail stays alone, so that
    which failure is reported does not depend on how chunks of different kernels interleave."""
    regions: list[Region] = []
    if not kernels:
        return regions
    first = 0
    region = _OpenRegion(_Facts.of(kernels[0]))
    for position, kernel in enumerate(kernels[1:], 1):
        facts = _Facts.of(kernel)
        reason = region.barrier(facts)
        if reason:
            regions.append(Region(first, position - first, reason))
            first, region = position, _OpenRegion(facts)
        else:
            region.add(facts)
    return [*regions, Region(first, len(kernels) - first, "the end")]


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
    facts = [_Facts.of(kernel) for kernel in kernels]
    dependences = _dependences(kernels)
    ready = _Ready(facts, dependences, state)
    order: list[int] = []
    region: _OpenRegion | None = None
    while (chosen := ready.take(region)) is not None:
        number, joins = chosen
        if region is not None and joins:
            region.add(facts[number])
        else:
            region = _OpenRegion(facts[number])
        order.append(number)
        ready.finish(number)
    if order == list(range(len(kernels))):
        return program
    return replace(program, kernels=tuple(kernels[n] for n in order))


class _Ready:
    """The kernels whose dependences are done, by their numbers: those with checks, by their chunking those
    that may join the region at hand, those of state alone, and all."""

    def __init__(self, facts: Sequence[_Facts], dependences: Sequence[set[int]], state: set[str]) -> None:
        self._facts = facts
        self._missing = [len(before) for before in dependences]
        self._after: list[list[int]] = [[] for _ in facts]
        for number, before in enumerate(dependences):
            for earlier in before:
                self._after[earlier].append(number)
        self._taken: set[int] = set()
        self._refused: list[int] = []  # by the region at hand, which will not change its mind
        self._region: _OpenRegion | None = None
        self._checks: list[int] = []
        self._early: list[int] = []
        self._all: list[int] = []
        self._by_chunking: dict[tuple[bool, Extent], list[int]] = {}
        for number, missing in enumerate(self._missing):
            if not missing:
                if facts[number].read <= state and not facts[number].written & state:
                    self._early.append(number)
                self._enter(number)

    def _enter(self, number: int) -> None:
        facts = self._facts[number]
        heappush(self._all, number)
        heappush(self._by_chunking.setdefault(facts.chunking, []), number)
        if facts.has_check:
            heappush(self._checks, number)

    def take(self, region: _OpenRegion | None) -> tuple[int, bool] | None:
        """The next kernel, and whether it joins the region at hand; None when all are done."""
        if region is not self._region:
            for refused in self._refused:
                heappush(self._by_chunking[self._facts[refused].chunking], refused)
            self._refused, self._region = [], region
        number = self._least(self._checks)
        if number is None and region is not None:
            number = self._joining(region)
            if number is not None:
                self._taken.add(number)
                return number, True
        for heap in (self._early, self._all):
            number = self._least(heap) if number is None else number
        if number is None:
            return None
        self._taken.add(number)
        return number, False

    def _least(self, heap: list[int]) -> int | None:
        while heap and heap[0] in self._taken:
            heappop(heap)
        return heap[0] if heap else None

    def _joining(self, region: _OpenRegion) -> int | None:
        heap = self._by_chunking.get(region.chunking, [])
        while (number := self._least(heap)) is not None and region.barrier(self._facts[number]):
            self._refused.append(heappop(heap))
        return number

    def finish(self, number: int) -> None:
        """Enters the kernels that waited for this one only."""
        for later in self._after[number]:
            self._missing[later] -= 1
            if not self._missing[later]:
                self._enter(later)


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
