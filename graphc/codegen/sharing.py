"""Kernels that differ in extents alone share one function, which reads those extents at run time.

The layers of a network have the same kernels over other widths. `shared_forms` finds them: shapes and
loop extents that are not the same in all of them become dims, so `f32[512, 784]` and `f32[512, 512]` are
both `f32[512, 16*shared.0]`. What divides all of them stays in sight of the emitter. What code is cut by
stays a literal: extents below `LEAST`, those of vectors and tiles that do not divide them, and the strides
that a register tile takes within an inner loop, where they are displacements of one address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from math import gcd

from graphc.codegen.kernels import lanes_for
from graphc.ir.kernels import (
    Body,
    Buffer,
    For,
    Index,
    Kernel,
    Load,
    Stmt,
    Temp,
    exprs_of,
    walk_expr,
    walk_stmts,
)
from graphc.ir.types import Extent, TensorType, dim, divides

LEAST = 16
"""Smaller extents stay literals: windows, heads and short rows are straight-line code."""

Change = Callable[[Extent, bool], Extent]
"""What replaces an extent; True for one that only says how much room a local array has."""
Form = tuple[Kernel, dict[str, Extent]]
"""What kernels share, and what its dims stand for in one of them."""


def shared_forms(
    kernels: Sequence[Kernel], texts: Sequence[str], text_of: Callable[[Kernel], str], vector_bits: int
) -> list[Form]:
    """For each kernel the form that it shares with others; one like no other is its own, without dims.

    `texts` are what `text_of` makes of the kernels: equal for equal code.
    """
    prefix = "shared"
    while any(f"{prefix}." in text for text in texts):  # a dim of that name
        prefix += "_"
    outlines = [_outline(kernel) for kernel in kernels]
    alike = Counter(outlines)
    groups: dict[str, list[int]] = {}
    values: dict[int, list[tuple[Extent, bool]]] = {}
    for number, kernel in enumerate(kernels):
        if alike[outlines[number]] > 1:
            found: list[tuple[Extent, bool]] = []
            blank = _changed(kernel, vector_bits, _blanking(found, prefix))
            groups.setdefault(text_of(blank), []).append(number)
            values[number] = found
    forms: list[Form] = [(kernel, {}) for kernel in kernels]
    for members in groups.values():
        if len(members) > 1:
            named: dict[tuple[Extent, ...], str] = {}
            columns = [
                (tuple(extent for extent, _ in column), column[0][1])
                for column in zip(*(values[member] for member in members), strict=True)
            ]
            extents = iter([_symbol(column, is_room, named, prefix) for column, is_room in columns])
            form = _changed(kernels[members[0]], vector_bits, _taking(extents))
            for position, member in enumerate(members):
                bindings = {name: column[position] for column, name in named.items()}
                forms[member] = form, bindings
    return forms


def _outline(kernel: Kernel) -> Hashable:
    """What kernels that share a form have in common, and is had sooner than their text without extents."""
    return kernel.form, len(kernel.buffers), tuple(map(type, walk_stmts(kernel.body)))


def _blanking(found: list[tuple[Extent, bool]], prefix: str) -> Change:
    """Notes every extent, and leaves only of what kind it is."""

    def change(extent: Extent, is_room: bool) -> Extent:
        found.append((extent, is_room))
        return dim(f"{prefix}.number" if isinstance(extent, int) else f"{prefix}.expression")

    return change


def _taking(extents: Iterator[Extent]) -> Change:
    return lambda extent, is_room: next(extents)


def _symbol(
    column: tuple[Extent, ...], is_room: bool, named: dict[tuple[Extent, ...], str], prefix: str
) -> Extent:
    """What stands for one extent of all kernels of a group: the extent itself if it is the same in all, else
    a multiple of a dim, which multiples of the same numbers share. Room is what the largest needs."""
    if all(value == column[0] for value in column):
        return column[0]
    numbers = [value for value in column if isinstance(value, int)]
    if is_room:
        return max(numbers)
    factor = gcd(*numbers) if len(numbers) == len(column) else 1
    key = tuple(number // factor for number in numbers) if factor > 1 else column
    return factor * dim(named.setdefault(key, f"{prefix}.{len(named)}"))


def _changed(kernel: Kernel, vector_bits: int, change: Change) -> Kernel:
    """The kernel with each extent that code need not know replaced, in a fixed order."""
    kept = _kept_strides(kernel)
    lanes = lanes_for(kernel, vector_bits)

    def at(extent: Extent, is_room: bool = False) -> Extent:
        return extent if isinstance(extent, int) and extent < LEAST else change(extent, is_room)

    def type_of(buffer: Buffer) -> TensorType:
        known = kept.get(buffer.name, len(buffer.type.shape))
        shape = [extent if d >= known else at(extent) for d, extent in enumerate(buffer.type.shape)]
        return TensorType(buffer.type.dtype, tuple(shape))

    def stmt(s: Stmt) -> Stmt:
        if isinstance(s, Temp):
            return replace(s, shape=tuple(at(extent, True) for extent in s.shape))
        if not isinstance(s, For):
            return s
        # A chunk ends anywhere; any other loop must be cut alike, without a tail.
        step = s.tile * (lanes if s.vector else 1)
        extent = at(s.extent) if s.chunked or divides(step, s.extent) else s.extent
        return replace(s, extent=extent, body=tuple(map(stmt, s.body)))

    return replace(
        kernel,
        buffers=tuple(replace(buffer, type=type_of(buffer)) for buffer in kernel.buffers),
        chunk_extent=at(kernel.chunk_extent),
        body=tuple(map(stmt, kernel.body)),
    )


def _kept_strides(kernel: Kernel) -> dict[str, int]:
    """For buffers with strides to keep: the first dimension whose extent those depend on."""
    kept: dict[str, int] = {}
    for load, loops in _loads(kernel.body, ()):
        plain = [depth for depth, loop in enumerate(loops) if loop.tile == 1 and not loop.vector]
        tiled = {loop.axis for loop in loops[: max(plain, default=0)] if loop.tile > 1}
        if not _is_turned(load.index, loops):
            tiled |= {loop.axis for loop in loops if loop.vector}
        for position, affine in enumerate(load.index[:-1]):
            if affine.names & tiled:
                kept[load.source] = min(kept.get(load.source, position + 1), position + 1)
    return kept


def _is_turned(index: Index, loops: Sequence[For]) -> bool:
    """Whether rows of a tile lie side by side: its vectors are loaded along them and turned in registers."""
    return bool(index) and any(loop.tile > 1 and index[-1].coefficient(loop.axis) == 1 for loop in loops)


def _loads(body: Body, loops: tuple[For, ...]) -> Iterator[tuple[Load, tuple[For, ...]]]:
    """Every load with the loops around it."""
    for stmt in body:
        if isinstance(stmt, For):
            yield from _loads(stmt.body, (*loops, stmt))
        for expr in exprs_of(stmt):
            yield from ((part, loops) for part in walk_expr(expr) if isinstance(part, Load))
