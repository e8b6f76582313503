"""The Program: a step frozen into columns of integer ids, still open in its extents.

    Program      = columns launches, operands, regions, storages; extents; blocks; names
      launches   : opcode, kernel, first operand, operand count, region
      operands   : storage, byte offset                   one row per buffer of a launch, in order
      regions    : opcode, first launch, launch count, chunk extent, cost, granule, copied rows
      storages   : kind, dtype, bytes, block (-1: not in the arena)
      extents    : expressions; every extent in the columns is a position in this table
    BoundProgram = the same with every extent evaluated, the chunks cut, and offsets in the arena

Beside machine code, tables are all that running takes. The kernels that they were made from (see
`graphc.ir.program`) are reached through `source`, for those who print, interpret or emit them.

Chunks depend on shapes alone, never on threads, so that results do not either: a chunk is about 10 us of
work or 1/64 of the axis, whichever is more, in whole granules, and all chunks of a region are about
equal, and an even number of them. The granule of a region suits its tiles of rows; vectors take what that
leaves. Where chunks keep large copies of a result, which are to be written and added, one has at least the
region's copied rows, or half of all. An axis of extent 0 still has one, empty, chunk, which initialises what
a reduction leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.ir.lazy import cached_property
from graphc.ir.packing import Block, Layout, pack
from graphc.ir.storage import Storage
from graphc.ir.types import Extent, TensorType, evaluate

if TYPE_CHECKING:
    from graphc.ir.kernels import Kernel, KernelProgram

CHUNK_NANOSECONDS = 10_000
"""The least work that a chunk is worth: taking one costs about a tenth of a microsecond."""
MAX_CHUNKS = 64
OPCODES = ("launch",)
Column = np.ndarray[Any, np.dtype[np.int32]]


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
    """One step as tables. `memory` are the storages by name, one for each row of `storages`; `outputs` the
    storage and the type of each label. `make_source` gives the kernel program, kernels in launch order."""

    launches: Columns
    operands: Columns
    regions: Columns
    storages: Columns
    memory: Mapping[str, Storage]
    outputs: Mapping[str, tuple[str, TensorType]]
    kernel_names: tuple[str, ...]
    extents: tuple[Extent, ...]
    blocks: tuple[Block, ...]
    barriers: tuple[str, ...]  # per region: why it ends
    make_source: Callable[[], KernelProgram]

    @cached_property
    def source(self) -> KernelProgram:
        """The kernel program that the tables were made from."""
        return self.make_source()

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels, in launch order."""
        return self.source.kernels

    @property
    def storage_names(self) -> tuple[str, ...]:
        return tuple(self.memory)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.memory)}

    def storage_id(self, name: str) -> int:
        """A storage's row."""
        return self._ids[name]

    def bind(self, bindings: Mapping[str, int]) -> BoundProgram:
        """Evaluates every extent, cuts chunks and lays out the arena. ShapeError for an unbound dim."""
        bound = dict(bindings)
        # Where a cost mentions chunks that are not cut yet (its own region's), it counts with the most.
        bound.update({f"{name}.chunks": MAX_CHUNKS for name in self.kernel_names})
        rows = zip(*(self.regions[name].tolist() for name in self.regions.names), strict=True)
        chunkings = []
        for _, first, count, extent, cost, granule, copied in rows:
            chunking = chunk_rule(
                evaluate(self.extents[extent], bound), evaluate(self.extents[cost], bound), granule, copied
            )
            chunkings.append(chunking)
            for name in self.kernel_names[first : first + count]:
                bound[f"{name}.chunks"] = chunking.count
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
        pairs = zip(self.program.kernel_names, regions, strict=True)
        return {name: self.chunkings[region].size for name, region in pairs}

    def is_placed(self, storage: str) -> bool:
        """Whether a storage lies in the arena: a temporary that some kernel touches."""
        return int(self.program.storages["block"][self.program.storage_id(storage)]) >= 0

    def offset_of(self, storage: str) -> int:
        """The offset of a temporary in the arena."""
        program = self.program
        return self.layout.offsets[int(program.storages["block"][program.storage_id(storage)])]


def chunk_sizes(program: Program, bindings: Mapping[str, int]) -> dict[str, int]:
    """The chunk size of every kernel by name. Native code and the interpreters all cut by this."""
    return program.bind(bindings).chunk_sizes()


def _ceildiv(left: int, right: int) -> int:
    return -(-left // right)


def chunk_rule(extent: int, cost: int, granule: int, copied: int = 1) -> Chunking:
    """The chunks of `extent` iterations that take `cost` ns each; sizes are multiples of `granule`, and a
    copy of a result is worth `copied` iterations, or half of all where they are fewer than twice that."""
    least = max(_ceildiv(CHUNK_NANOSECONDS, max(cost, 1)), _ceildiv(extent, MAX_CHUNKS))
    least = max(least, min(copied, _ceildiv(extent, 2)))
    least = _ceildiv(least, granule) * granule
    # As many chunks as that allows, but all of about the same size.
    wanted = max(_ceildiv(extent, least), 1)
    wanted += wanted % 2 if 1 < wanted < MAX_CHUNKS else 0
    size = max(_ceildiv(_ceildiv(extent, wanted), granule), 1) * granule
    return Chunking(extent, size, max(_ceildiv(extent, size), 1))
