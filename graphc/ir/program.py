"""The Program: a step frozen into columns of integer ids, still open in its extents.

    Program      = columns launches, operands, regions, storages; extents; blocks; kernels
      launches   : opcode, kernel, first operand, operand count, region
      operands   : storage, byte offset                   one row per buffer of a launch, in order
      regions    : opcode, first launch, launch count, chunk extent, cost, granule
      storages   : kind, dtype, bytes, block (-1: not in the arena)
      extents    : expressions; every extent in the columns is a position in this table
    BoundProgram = the same with every extent evaluated, the chunks cut, and offsets in the arena

Chunks depend on shapes alone, never on threads, so that results do not either: a chunk is about 10 us of
work or 1/64 of the axis, whichever is more, in whole granules, and all chunks of a region are about
equal, and an even number of them. The granule of a region suits its tiles of rows;
vectors and copies of results take what that leaves. An axis of extent 0 still has one, empty, chunk, which
initialises what a reduction leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphc.ir.kernels import For, Kernel, KernelProgram, Stmt, walk_stmts
from graphc.ir.memory import Block, Layout, pack, plan_blocks
from graphc.ir.regions import checks_first, form_regions, order_for_regions
from graphc.ir.types import DTYPES, Extent, evaluate

CHUNK_NANOSECONDS = 10_000
"""The least work that a chunk is worth: taking one costs about a tenth of a microsecond."""
MAX_CHUNKS = 64
KINDS = ("input", "state", "constant", "temporary", "output")
OPCODES = ("launch",)
Column = NDArray[np.int32]
Array = np.ndarray[Any, Any]


class Columns:
    """Equally long int32 columns by name; read-only."""

    def __init__(self, **columns: list[int]) -> None:
        self._columns: dict[str, Column] = {}
        for name, values in columns.items():
            column = np.array(values, dtype=np.int32)
            column.setflags(write=False)
            self._columns[name] = column

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._columns)


@dataclass(frozen=True, eq=False)
class Program:
    """One step as tables. `source` is the kernel program with its kernels in launch order."""

    source: KernelProgram
    launches: Columns
    operands: Columns
    regions: Columns
    storages: Columns
    storage_names: tuple[str, ...]
    extents: tuple[Extent, ...]
    blocks: tuple[Block, ...]
    barriers: tuple[str, ...]  # per region: why it ends

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return self.source.kernels

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.storage_names)}

    def storage_id(self, name: str) -> int:
        """A storage's row."""
        return self._ids[name]

    def bind(self, bindings: Mapping[str, int]) -> BoundProgram:
        """Evaluates every extent, cuts chunks and lays out the arena. ShapeError for an unbound dim."""
        bound = dict(bindings)
        # Where a cost mentions chunks that are not cut yet (its own region's), it counts with the most.
        bound.update({f"{kernel.name}.chunks": MAX_CHUNKS for kernel in self.kernels})
        rows = zip(*(self.regions[name].tolist() for name in self.regions.names), strict=True)
        chunkings = []
        for _, first, count, extent, cost, granule in rows:
            chunking = chunk_rule(
                evaluate(self.extents[extent], bound), evaluate(self.extents[cost], bound), granule
            )
            chunkings.append(chunking)
            for kernel in self.kernels[first : first + count]:
                bound[f"{kernel.name}.chunks"] = chunking.count
        sizes = tuple(evaluate(block.nbytes, bound) for block in self.blocks)
        return BoundProgram(self, bound, tuple(chunkings), sizes, pack(self.blocks, sizes))


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a region is cut: `extent` iterations in `count` chunks of `size` (the last may be shorter)."""

    extent: int
    size: int
    count: int


@dataclass(frozen=True, eq=False)
class BoundProgram:
    """A program at fixed extents. `bindings` hold the dims and every `<kernel>.chunks`; `chunkings` are by
    region; `sizes` and `layout` place the blocks in the arena."""

    program: Program
    bindings: Mapping[str, int]
    chunkings: tuple[Chunking, ...]
    sizes: tuple[int, ...]
    layout: Layout

    def chunk_sizes(self) -> dict[str, int]:
        """The chunk size of every kernel by name."""
        regions = self.program.launches["region"].tolist()
        pairs = zip(self.program.kernels, regions, strict=True)
        return {kernel.name: self.chunkings[region].size for kernel, region in pairs}

    def is_placed(self, storage: str) -> bool:
        """Whether a storage lies in the arena: a temporary that some kernel touches."""
        return int(self.program.storages["block"][self.program.storage_id(storage)]) >= 0

    def offset_of(self, storage: str) -> int:
        """The offset of a temporary in the arena."""
        program = self.program
        return self.layout.offsets[int(program.storages["block"][program.storage_id(storage)])]

    def bytes_moved(self) -> dict[str, int]:
        """For each kernel: the bytes of the buffers it reads plus those of the buffers it writes, each
        once. What it must move at least if nothing stays in a cache between kernels."""
        return {
            kernel.name: evaluate(compulsory_bytes(kernel), self.bindings) for kernel in self.program.kernels
        }


def chunk_sizes(program: Program, bindings: Mapping[str, int]) -> dict[str, int]:
    """The chunk size of every kernel by name. Native code and the interpreters all cut by this."""
    return program.bind(bindings).chunk_sizes()


def compulsory_bytes(kernel: Kernel) -> Extent:
    """The bytes of all buffers read plus all buffers written; a storage read twice counts once."""
    reads: dict[str, Extent] = {}
    writes: dict[str, Extent] = {}
    for buffer in kernel.buffers:
        if buffer.access != "out":
            reads[buffer.storage] = buffer.type.nbytes
        if buffer.access != "in":
            writes[buffer.storage] = buffer.type.nbytes
    total: Extent = 0
    for nbytes in (*reads.values(), *writes.values()):
        total = total + nbytes
    return total


# ------------------------------------------------------------------------------------------- building


class _Extents:
    """The table of extents: each expression once."""

    def __init__(self) -> None:
        self.table: dict[tuple[type, Extent], int] = {}

    def __call__(self, extent: Extent) -> int:
        return self.table.setdefault((type(extent), extent), len(self.table))


def build_program(source: KernelProgram) -> Program:
    """Orders kernels, cuts them into regions and chunks, and plans the arena. Depends on `source` alone.

    Raises VerifyError where a kernel that can fail would come after one that writes state.
    """
    source = checks_first(order_for_regions(source))
    kernels = source.kernels
    regions = form_regions(kernels)
    granules = [_granule(kernels[r.first : r.first + r.count]) for r in regions]
    source = replace(
        source,
        kernels=tuple(
            kernel if granule % kernel.granule == 0 else replace(kernel, granule=granule)
            for region, granule in zip(regions, granules, strict=True)
            for kernel in kernels[region.first : region.first + region.count]
        ),
    )
    kernels = source.kernels
    blocks = plan_blocks(source, kernels, regions)
    extents = _Extents()
    names = tuple(source.storages)
    ids = {name: number for number, name in enumerate(names)}
    block_of = {name: number for number, block in enumerate(blocks) for name in block.storages}
    launch_rows: list[tuple[int, ...]] = []
    operand_rows: list[tuple[int, int]] = []
    region_rows: list[tuple[int, ...]] = []
    for number, region in enumerate(regions):
        members = kernels[region.first : region.first + region.count]
        cost: Extent = 0
        for kernel in members:
            cost = cost + kernel.cost
        extent = members[0].chunk_extent
        region_rows.append((0, region.first, region.count, extents(extent), extents(cost), granules[number]))
        for position, kernel in enumerate(members, region.first):
            launch_rows.append((0, position, len(operand_rows), len(kernel.buffers), number))
            operand_rows += [(ids[buffer.storage], 0) for buffer in kernel.buffers]
    storage_rows = [
        (
            KINDS.index(s.kind),
            list(DTYPES).index(s.type.dtype.name),
            extents(s.type.nbytes),
            block_of.get(n, -1),
        )
        for n, s in source.storages.items()
    ]
    launch_names = ("opcode", "kernel", "first_operand", "operand_count", "region")
    region_names = ("opcode", "first_launch", "launch_count", "chunk_extent", "cost", "granule")
    return Program(
        source,
        _columns(launch_names, launch_rows),
        _columns(("storage", "offset"), operand_rows),
        _columns(region_names, region_rows),
        _columns(("kind", "dtype", "bytes", "block"), storage_rows),
        names,
        tuple(extent for _, extent in extents.table),
        blocks,
        tuple(region.reason for region in regions),
    )


def _granule(members: Sequence[Kernel]) -> int:
    """The granule of a region: a multiple of those of kernels with tiles of rows, if it has any.

    What is left of a tile of rows runs row by row; what is left of a vector is masked, which costs little.
    """
    in_rows = [kernel.granule for kernel in members if any(map(_is_tile_of_rows, walk_stmts(kernel.body)))]
    return lcm(*(in_rows or (kernel.granule for kernel in members)))


def _is_tile_of_rows(stmt: Stmt) -> bool:
    return isinstance(stmt, For) and stmt.chunked and stmt.tile > 1 and not stmt.vector


def _columns(names: tuple[str, ...], rows: list[Any]) -> Columns:
    return Columns(**{name: [row[n] for row in rows] for n, name in enumerate(names)})


def _ceildiv(left: int, right: int) -> int:
    return -(-left // right)


def chunk_rule(extent: int, cost: int, granule: int) -> Chunking:
    """The chunks of `extent` iterations that take `cost` ns each; sizes are multiples of `granule`."""
    least = max(_ceildiv(CHUNK_NANOSECONDS, max(cost, 1)), _ceildiv(extent, MAX_CHUNKS))
    least = _ceildiv(least, granule) * granule
    # As many chunks as that allows, but all of about the same size.
    wanted = max(_ceildiv(extent, least), 1)
    wanted += wanted % 2 if 1 < wanted < MAX_CHUNKS else 0
    size = max(_ceildiv(_ceildiv(extent, wanted), granule), 1) * granule
    return Chunking(extent, size, max(_ceildiv(extent, size), 1))
