"""Work: what a kernel computes and moves, counted from its loop nest.

A statement counts once for each iteration of the loops around it, and once for each chunk where it stands
outside the chunked loop. Both branches of a select, and what a guard leaves out, count as if computed: code
computes all lanes. FLOPs are additions, subtractions, multiplications, divisions, square roots, extrema
and comparisons of floats; an addition of a product counts 2. Functions such as exp are not FLOPs but
elements of their own. Index arithmetic, integers, casts, negations and selects count nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphc.ir.kernels import (
    Body,
    Combine,
    Expr,
    For,
    Kernel,
    Prim,
    Stmt,
    Store,
    exprs_of,
    walk_expr,
)
from graphc.ir.types import DType, evaluate

TRANSCENDENTALS = ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf", "pow")
"""The primitives that are computed by polynomials, each at a rate of its own."""
_COUNTED = frozenset(
    {"add", "sub", "mul", "div", "sqrt", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge"}
)


@dataclass
class Work:
    """What one launch of a kernel takes.

    `flops` by bits of the float (32, 64); `transcendentals` are elements by (primitive, bits). Bytes are
    compulsory: every buffer once, `updated` for those both read and written (it counts the bytes of the
    buffer, which are moved twice).
    """

    flops: dict[int, int] = field(default_factory=dict)
    transcendentals: dict[tuple[str, int], int] = field(default_factory=dict)
    read: int = 0
    written: int = 0
    updated: int = 0

    @property
    def total_flops(self) -> int:
        """FLOPs of all widths."""
        return sum(self.flops.values())

    @property
    def total_transcendentals(self) -> int:
        """Elements of all transcendental functions."""
        return sum(self.transcendentals.values())

    @property
    def nbytes(self) -> int:
        """Bytes read plus bytes written."""
        return self.read + self.written + 2 * self.updated

    @property
    def footprint(self) -> int:
        """Bytes of memory touched."""
        return self.read + self.written + self.updated

    @property
    def intensity(self) -> float:
        """FLOPs per byte; 0 where nothing is moved."""
        return self.total_flops / self.nbytes if self.nbytes else 0.0


def work_of(kernel: Kernel, bindings: Mapping[str, int]) -> Work:
    """The work of a kernel at fixed extents. `bindings` hold the dims and `<kernel>.chunks` (a program
    bound to its extents has both); ShapeError for a dim that is missing."""
    work = Work()
    _count_body(kernel.body, evaluate(kernel.chunks, bindings), 1, bindings, work)
    reads = {b.storage: b.type.nbytes for b in kernel.buffers if b.access != "out"}
    writes = {b.storage: b.type.nbytes for b in kernel.buffers if b.access != "in"}
    for storage in reads.keys() | writes.keys():
        nbytes = evaluate(reads.get(storage, writes.get(storage, 0)), bindings)
        if storage in reads and storage in writes:
            work.updated += nbytes
        elif storage in reads:
            work.read += nbytes
        else:
            work.written += nbytes
    return work


def _count_body(body: Body, chunks: int, times: int, bindings: Mapping[str, int], work: Work) -> None:
    """`chunks` is how often the body runs beside its loops: 1 within the chunked loop."""
    for stmt in body:
        if isinstance(stmt, For):
            inner = times * evaluate(stmt.extent, bindings)
            _count_body(stmt.body, 1 if stmt.chunked else chunks, inner, bindings, work)
        else:
            _count_statement(stmt, chunks * times, work)


def _count_statement(stmt: Stmt, times: int, work: Work) -> None:
    if isinstance(stmt, Combine) or (isinstance(stmt, Store) and stmt.combine):
        _count_flops(stmt.expr.dtype, times, work)
    for expr in exprs_of(stmt):
        _count_expr(expr, times, work)


def _count_expr(expr: Expr, times: int, work: Work) -> None:
    for part in walk_expr(expr):
        if not isinstance(part, Prim):
            continue
        dtype = part.operands[-1].dtype
        if part.name in TRANSCENDENTALS and dtype.is_float:
            key = (part.name, dtype.bits)
            work.transcendentals[key] = work.transcendentals.get(key, 0) + times
        elif part.name in _COUNTED:
            _count_flops(dtype, times, work)


def _count_flops(dtype: DType, times: int, work: Work) -> None:
    if dtype.is_float and times:
        work.flops[dtype.bits] = work.flops.get(dtype.bits, 0) + times
