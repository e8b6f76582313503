"""The program stage as text: regions with their launches, bytes moved, storages, and the arena.

It is a printout of tables, not a language: the kernel stage is what parses back. With `bindings` every
extent is a number, chunks are cut and the arena has offsets; without, extents stand as expressions.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.ir.packing import format_blocks
from graphc.ir.program import bytes_moved, compulsory_bytes
from graphc.ir.storage import KINDS
from graphc.ir.tables import BoundProgram, Program
from graphc.ir.types import Extent, dims_of, evaluate

HEADER = "graphc program 1"


def print_program(program: Program, bindings: Mapping[str, int] | None = None) -> str:
    """The program's tables; bound to `bindings`, or by itself where it has no dims. Deterministic."""
    chunk_dims = {f"{name}.chunks" for name in program.kernel_names}
    dims = set().union(*(dims_of(extent) for extent in program.extents)) - chunk_dims
    if bindings is None and not dims:
        bindings = {}
    bound = None if bindings is None else program.bind(bindings)
    lines = [HEADER]
    if bound is not None:
        shown = ", ".join(f"{name} = {bound.bindings[name]}" for name in sorted(dims)) or "no dims"
        lines.append(f"bound to {shown}")
    lines += [
        "",
        f"{len(program.regions)} regions, {len(program.launches)} launches",
        *_regions(program, bound),
    ]
    lines += ["", f"{len(program.storages)} storages", *_storages(program, bound)]
    lines += ["", "temporaries: offset, bytes, live range in regions"]
    layout = (bound.sizes, bound.layout) if bound is not None else (None, None)
    return "\n".join(lines) + "\n" + format_blocks(program.blocks, len(program.regions), *layout)


def _shown(extent: Extent, bound: BoundProgram | None) -> str:
    return str(extent if bound is None else evaluate(extent, bound.bindings))


def _regions(program: Program, bound: BoundProgram | None) -> list[str]:
    lines: list[str] = []
    columns = [program.regions[name].tolist() for name in program.regions.names]
    operand_storages = program.operands["storage"].tolist()
    for number, (_, first, count, extent, cost, granule, copied) in enumerate(zip(*columns, strict=True)):
        if bound is None:
            cut = f"over {program.extents[extent]}, {program.extents[cost]} ns each, granule {granule}"
            cut += f", copies of {copied}" if copied > 1 else ""
        else:
            chunking = bound.chunkings[number]
            cut = f"{chunking.count} chunks of {chunking.size} over {chunking.extent}"
        lines.append(f"region r{number}: {cut}    ; ends: {program.barriers[number]}")
        for position in range(first, first + count):
            kernel = program.kernels[position]
            start = int(program.launches["first_operand"][position])
            storages = operand_storages[start : start + len(kernel.buffers)]
            operands = ", ".join(
                f"{buffer.access} s{storage}"
                for buffer, storage in zip(kernel.buffers, storages, strict=True)
            )
            moved = _shown(compulsory_bytes(kernel), bound)
            origin = f"    ; {kernel.origin}" if kernel.origin else ""
            lines.append(
                f"  launch {position}: {kernel.name} {kernel.form} ({operands}) moves {moved} bytes{origin}"
            )
    if bound is not None:
        lines.append(f"all launches move {sum(bytes_moved(bound).values())} bytes")
    return lines


def _storages(program: Program, bound: BoundProgram | None) -> list[str]:
    lines = []
    for number, storage in enumerate(program.memory.values()):
        block = int(program.storages["block"][number])
        where = ""
        if block >= 0:
            where = f" b{block}" if bound is None else f" arena+{bound.layout.offsets[block]}"
        kind = KINDS[int(program.storages["kind"][number])]
        nbytes = _shown(storage.type.nbytes, bound)
        lines.append(f"  s{number} {kind:<9} {nbytes:>10} bytes  {storage.name}: {storage.type}{where}")
    return lines
