"""Blocks of memory with live ranges, packed into one arena once their sizes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.ir.types import Extent

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Block:
    """Memory of one or more temporaries that live in it one after the other, from region first to last."""

    storages: tuple[str, ...]
    first: int
    last: int
    nbytes: Extent


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets of blocks in an arena of `nbytes`; `unshared` is what it would take without reuse."""

    offsets: tuple[int, ...]
    nbytes: int
    unshared: int


def pack(blocks: Sequence[Block], sizes: Sequence[int]) -> Layout:
    """Offsets by best fit, largest first: each block goes into the tightest gap that those already placed
    and alive at the same time leave."""
    rounded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    offsets = [0] * len(blocks)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    order = sorted(range(len(blocks)), key=lambda n: (-rounded[n], blocks[n].first, n))
    for n in order:
        block, size = blocks[n], rounded[n]
        if size == 0:
            continue
        rivals = sorted(p[:2] for p in placed if p[2] <= block.last and block.first <= p[3])
        best, slack, end = -1, 0, 0
        for start, stop in rivals:
            gap = start - end
            if gap >= size and (best < 0 or gap - size < slack):
                best, slack = end, gap - size
            end = max(end, stop)
        offsets[n] = best if best >= 0 else end
        placed.append((offsets[n], offsets[n] + size, block.first, block.last))
    total = max((end for _, end, _, _ in placed), default=0)
    unshared = sum(size * len(block.storages) for block, size in zip(blocks, rounded, strict=True))
    return Layout(tuple(offsets), total, unshared)


def format_blocks(
    blocks: Sequence[Block],
    region_count: int,
    sizes: Sequence[int] | None = None,
    layout: Layout | None = None,
) -> str:
    """The live-range table; with sizes and offsets once they are bound."""
    lines = []
    if layout is not None:
        lines.append(f"arena {layout.nbytes} bytes; {layout.unshared} without reuse")
    width = min(region_count, 64)
    for n, block in enumerate(blocks):
        where = f"{layout.offsets[n]:>10}" if layout is not None else f"{'':>10}"
        size = f"{sizes[n]:>10}" if sizes is not None else f"{block.nbytes!s:>10}"
        alive = ""
        if region_count <= width:
            alive = (
                "".join("#" if block.first <= r <= block.last else "." for r in range(region_count)) + "  "
            )
        names = " > ".join(block.storages)
        lines.append(f"  {where} {size}  r{block.first}..r{block.last}  {alive}{names}")
    return "\n".join(lines) + "\n" if lines else "  no temporaries\n"
