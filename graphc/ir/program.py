"""From kernels to a Program: the order of launches, regions, and the blocks of the arena.

The tables themselves, and how they are bound to extents, are in `graphc.ir.tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm
from typing import Any

from graphc.ir.kernels import For, Kernel, KernelProgram, Stmt, walk_stmts
from graphc.ir.memory import plan_blocks
from graphc.ir.regions import checks_first, form_regions, keeps_copies, order_for_regions
from graphc.ir.storage import KINDS
from graphc.ir.tables import BoundProgram, Columns, Program
from graphc.ir.types import DTYPES, Extent, evaluate


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


def bytes_moved(bound: BoundProgram) -> dict[str, int]:
    """For each kernel: the bytes of the buffers it reads plus those of the buffers it writes, each
    once. What it must move at least if nothing stays in a cache between kernels."""
    return {
        kernel.name: evaluate(compulsory_bytes(kernel), bound.bindings) for kernel in bound.program.kernels
    }


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
    copied = [_copied_rows(kernels[r.first : r.first + r.count]) for r in regions]
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
    ids = {name: number for number, name in enumerate(source.storages)}
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
        region_rows.append(
            (0, region.first, region.count, extents(extent), extents(cost), granules[number], copied[number])
        )
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
    region_names = (
        "opcode", "first_launch", "launch_count", "chunk_extent", "cost", "granule", "copied_rows",
    )  # fmt: skip
    return Program(
        _columns(launch_names, launch_rows),
        _columns(("storage", "offset"), operand_rows),
        _columns(region_names, region_rows),
        _columns(("kind", "dtype", "bytes", "block"), storage_rows),
        source.storages,
        source.outputs,
        tuple(kernel.name for kernel in kernels),
        tuple(extent for _, extent in extents.table),
        blocks,
        tuple(region.reason for region in regions),
        lambda: source,
    )


def _granule(members: Sequence[Kernel]) -> int:
    """The granule of a region: a multiple of those of kernels with tiles of rows, if it has any.

    What is left of a tile of rows runs row by row; what is left of a vector is masked, which costs little.
    Rows of a chunk that keeps a large copy come in any number.
    """
    in_rows = [kernel.granule for kernel in members if any(map(_is_tile_of_rows, walk_stmts(kernel.body)))]
    return lcm(*(in_rows or (kernel.granule for kernel in members if not keeps_copies(kernel))))


def _copied_rows(members: Sequence[Kernel]) -> int:
    """How many rows a chunk of a region should have at least for the sake of its large copies."""
    return max((kernel.granule for kernel in members if keeps_copies(kernel)), default=1)


def _is_tile_of_rows(stmt: Stmt) -> bool:
    return isinstance(stmt, For) and stmt.chunked and stmt.tile > 1 and not stmt.vector


def _columns(names: tuple[str, ...], rows: list[Any]) -> Columns:
    return Columns(**{name: [row[n] for row in rows] for n, name in enumerate(names)})
