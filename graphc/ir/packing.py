"""Blocks of memory with live ranges, packed into one arena once their sizes are known."""

from __future__ import annotations

from bisect import bisect_left
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


Span = tuple[int, int]  # of addresses: start, end


class _Taken:
    """Which addresses are taken at which times: a binary tree over time, of unions of address spans.

    Node 1 stands for all times, the children of node n, 2n and 2n + 1, for the halves of its times. Packing
    leaves few gaps, so the unions are short, and what a range of times has taken is found in a few of them.
    """

    def __init__(self, times: int) -> None:
        self._leaf = 1 << (times - 1).bit_length()  # the first leaf
        # Of each node: what is taken at all of its times, as noted there; at some, as noted there or below.
        self._throughout: list[list[Span]] = [[] for _ in range(2 * self._leaf)]
        self._within: list[list[Span]] = [[] for _ in range(2 * self._leaf)]

    def spans(self, first: int, last: int) -> list[Span]:
        """What is taken at some time from first to last, rising by start; spans may overlap."""
        found: list[Span] = []
        for node in self._making_up(first, last):
            found += self._within[node]
        for node in self._above(first, last):
            found += self._throughout[node]
        found.sort()
        return found

    def take(self, first: int, last: int, span: Span) -> None:
        """Takes a span at all times from first to last."""
        for node in self._making_up(first, last):
            _unite(self._throughout[node], span)
            _unite(self._within[node], span)
        for node in self._above(first, last):
            _unite(self._within[node], span)

    def _making_up(self, first: int, last: int) -> list[int]:
        """The largest nodes of which a range of times consists."""
        nodes: list[int] = []
        low, high = self._leaf + first, self._leaf + last + 1
        while low < high:
            if low & 1:
                nodes.append(low)
                low += 1
            if high & 1:
                high -= 1
                nodes.append(high)
            low >>= 1
            high >>= 1
        return nodes

    def _above(self, first: int, last: int) -> list[int]:
        """All nodes above the ends of a range of times: among them those above what makes it up."""
        nodes: list[int] = []
        left, right = (self._leaf + first) >> 1, (self._leaf + last) >> 1
        while left:
            nodes += (left,) if left == right else (left, right)
            left >>= 1
            right >>= 1
        return nodes


def _unite(union: list[Span], span: Span) -> None:
    """Adds a span to a union of spans, which are apart from each other and rise."""
    start, end = span
    begin = stop = bisect_left(union, span)
    if begin and union[begin - 1][1] >= start:
        begin -= 1
    while stop < len(union) and union[stop][0] <= end:
        stop += 1
    if begin < stop:
        start, end = min(start, union[begin][0]), max(end, union[stop - 1][1])
    union[begin:stop] = [(start, end)]


def pack(blocks: Sequence[Block], sizes: Sequence[int]) -> Layout:
    """Offsets by best fit, largest first: each block goes into the tightest gap that those already placed
    and alive at the same time leave."""
    rounded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    offsets = [0] * len(blocks)
    taken = _Taken(max((block.last for block in blocks), default=0) + 1)
    total = 0
    for n in sorted(range(len(blocks)), key=lambda n: (-rounded[n], blocks[n].first, n)):
        block, size = blocks[n], rounded[n]
        if size == 0:
            continue
        best, slack, end = -1, 0, 0
        for start, stop in taken.spans(block.first, block.last):
            gap = start - end
            if gap >= size and (best < 0 or gap - size < slack):
                best, slack = end, gap - size
            end = max(end, stop)
        offsets[n] = best if best >= 0 else end
        taken.take(block.first, block.last, (offsets[n], offsets[n] + size))
        total = max(total, offsets[n] + size)
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
