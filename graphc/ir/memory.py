"""The arena: which temporaries share memory, by live range, and in place where that is legal.

Time is counted in regions, since the chunks of a region run in any order: a temporary lives from the
region that first touches it to the region that last does, both included, and two that live in one region
never overlap. The exception is in-place reuse: where an elementwise kernel reads a temporary for the last
time and writes another at the same index, both have the same bytes.

Live ranges follow from the program alone. Sizes, and therefore offsets, follow from the bound extents: see
`graphc.ir.packing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphc.ir.kernels import Affine, Kernel, KernelProgram
from graphc.ir.packing import Block
from graphc.ir.regions import Access, Region, accesses_of


@dataclass(slots=True)
class _Uses:
    """The launches that touch a storage, rising."""

    launches: list[int]


def plan_blocks(
    program: KernelProgram, kernels: Sequence[Kernel], regions: Sequence[Region]
) -> tuple[Block, ...]:
    """The blocks of all temporaries that some kernel touches, in order of first use.

    An output of the program that is a temporary lives to the end.
    """
    region_of = [number for number, region in enumerate(regions) for _ in range(region.count)]
    uses: dict[str, _Uses] = {}
    for position, kernel in enumerate(kernels):
        for name in dict.fromkeys(buffer.storage for buffer in kernel.buffers):
            if program.storages[name].kind == "temporary":
                uses.setdefault(name, _Uses([])).launches.append(position)
    kept = {storage for storage, _ in program.outputs.values()}
    root = _reuse_in_place(program, kernels, region_of, uses, kept)
    members: dict[str, list[str]] = {}
    for name in uses:
        members.setdefault(root.get(name, name), []).append(name)
    blocks = []
    for names in members.values():
        first = min(region_of[uses[name].launches[0]] for name in names)
        last = max(region_of[uses[name].launches[-1]] for name in names)
        if kept.intersection(names):
            last = len(regions) - 1
        blocks.append(Block(tuple(names), first, last, program.storages[names[0]].type.nbytes))
    return tuple(blocks)


# ----------------------------------------------------------------------------------------- in-place reuse


def _reuse_in_place(
    program: KernelProgram,
    kernels: Sequence[Kernel],
    region_of: Sequence[int],
    uses: Mapping[str, _Uses],
    kept: set[str],
) -> dict[str, str]:
    """For each temporary that takes over another's memory: the first that lay there."""
    root: dict[str, str] = {}
    for position, kernel in enumerate(kernels):
        dying = [
            name
            for name in dict.fromkeys(buffer.storage for buffer in kernel.buffers)
            if name in uses and name not in kept and _dies_at(uses[name], position, region_of)
        ]
        born = [
            name
            for name in dict.fromkeys(buffer.storage for buffer in kernel.buffers)
            if name in uses and uses[name].launches[0] == position
        ]
        if not dying or not born:
            continue
        accesses = accesses_of(kernel)
        for new in born:
            for old in dying:
                if old != new and _same_elements(program, accesses, old, new):
                    root[new] = root.get(old, old)
                    dying.remove(old)
                    break
    return root


def _dies_at(uses: _Uses, position: int, region_of: Sequence[int]) -> bool:
    """Whether a launch is the last to touch a storage, and the only one of its region that does: another
    chunk of an earlier launch of the region could still read what this one overwrites."""
    if uses.launches[-1] != position or uses.launches[0] == position:
        return False
    return region_of[uses.launches[-2]] != region_of[position]


def _same_elements(program: KernelProgram, accesses: Sequence[Access], old: str, new: str) -> bool:
    """Whether every iteration reads `old` at just the index at which it then writes `new`, once."""
    before, after = program.storages[old].type, program.storages[new].type
    if before.size != after.size or before.dtype.itemsize != after.dtype.itemsize:
        return False
    reads = [access for access in accesses if access.buffer.storage == old]
    writes = [access for access in accesses if access.buffer.storage == new]
    if len(writes) != 1 or not reads:
        return False
    (write,) = writes
    if write.store is None or write.store.combine or not _is_one_to_one(write):
        return False
    return all(
        read.store is None
        and read.index == write.index
        and read.buffer.type.shape == write.buffer.type.shape
        and len(read.loops) == len(write.loops)
        and all(a is b for a, b in zip(read.loops, write.loops, strict=True))
        and read.position <= write.position
        for read in reads
    )


def _is_one_to_one(access: Access) -> bool:
    """Whether no two iterations of the loops around an access address the same element."""
    axes = {loop.axis for loop in access.loops}
    bare = {affine.terms[0][0] for affine in access.index if _is_bare(affine)}
    names = {name for affine in access.index for name in affine.names}
    return axes <= bare and names <= axes


def _is_bare(affine: Affine) -> bool:
    return affine.offset == 0 and len(affine.terms) == 1 and affine.terms[0][1] == 1
