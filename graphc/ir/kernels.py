"""Kernels: loop nests over symbolic extents. One grammar; what can be written in it can be fused,
printed, parsed, interpreted in plain Python and emitted as native code.

    KernelProgram = storages, kernels in launch order, outputs
    Kernel  = name, form, chunk axis (or none), buffers, body
    Buffer  = a kernel's typed view (in, out, inout) of a storage

    Stmt = For(axis, extent, body, chunked, tile, vector, apart)
         | Let(name, expr)                    a value, fixed within one iteration
         | Var(name, dtype, init)             an accumulator or a carried value, declared before its loop
         | Combine(name, combine, expr)       name = name (sum|prod|max|min) expr: order may change
         | Assign(name, expr)                 name = expr: carried from one iteration to the next, in order
         | Temp(name, dtype, shape)           a local array, private to the iteration
         | Store(target, index, expr, combine, guard, stream)   to a buffer or a local array
         | Check(condition, position)         fails the step, naming the first bad position
         | Prefetch(source, index, once, far) asks for memory that will be touched soon; has no meaning
    Expr = Const(value, dtype) | Ref(name, dtype) | IndexValue(affine) | ExtentValue(extent)
         | Load(source, index, dtype, guard, fill) | Prim(name, operands, dtype) | Cast(operand, dtype)
    Affine = offset + sum of coefficient * name, with Extent coefficients; a name is a loop axis, the
             chunk number `chunk`, or an integer scalar (then the access is a gather)

A kernel's body runs once for each chunk. A `For` with `chunked=True` runs over the chunk's own part of
the kernel's chunk axis; every other `For` runs over its whole extent. What is carried between chunks goes
through memory in slots of their own (an index with `chunk`), and a later kernel combines the slots, so
chunks may run in any order on any worker.

`tile`, `vector`, `apart`, `stream` and `Prefetch` are the schedule, not the meaning: `tile 6` unrolls and
jams six iterations, `vector 2` runs two SIMD vectors of iterations at a time, a loop that is `apart` runs for
each of the jammed iterations around it in turn, and `stream` stores past the caches where the kernel's
buffers exceed them. The interpreter ignores them. In a vectorised loop, a `Var` declared outside may only be
changed by `Combine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import is_not
from typing import Any

from graphc.ir.scalar import result_dtype
from graphc.ir.storage import Storage as Storage
from graphc.ir.types import DType, Extent, Shape, TensorType, bool_, dim, evaluate, int64

STREAM_BYTES = 2**25
"""What the last-level cache holds, on common server cores."""
CHUNK = "chunk"  # the name of the chunk number in affine indices


# ------------------------------------------------------------------------------------------ affine maps


@dataclass(frozen=True, slots=True)
class Affine:
    """offset + sum(coefficient * name). Terms are sorted by name and never zero."""

    terms: tuple[tuple[str, Extent], ...] = ()
    offset: Extent = 0

    @staticmethod
    def of(name: str) -> Affine:
        return Affine(((name, 1),), 0)

    def __add__(self, other: Affine | Extent) -> Affine:
        if not isinstance(other, Affine):
            return Affine(self.terms, self.offset + other)
        if not self.terms or not other.terms:
            return Affine(self.terms or other.terms, self.offset + other.offset)
        merged = dict(self.terms)
        for name, coefficient in other.terms:
            merged[name] = merged.get(name, 0) + coefficient
        kept = tuple(sorted((n, c) for n, c in merged.items() if c != 0))
        return Affine(kept, self.offset + other.offset)

    def scale(self, factor: Extent) -> Affine:
        if isinstance(factor, int) and factor in (0, 1):
            return self if factor else Affine()
        return Affine(tuple((n, c * factor) for n, c in self.terms), self.offset * factor)

    def coefficient(self, name: str) -> Extent:
        return next((coefficient for known, coefficient in self.terms if known == name), 0)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.terms)

    def substitute(self, mapping: Mapping[str, Affine]) -> Affine:
        result = Affine((), self.offset)
        for name, coefficient in self.terms:
            result = result + mapping.get(name, Affine.of(name)).scale(coefficient)
        return result

    def evaluate(self, names: Mapping[str, int], bindings: Mapping[str, int]) -> int:
        total = evaluate(self.offset, bindings)
        for name, coefficient in self.terms:
            total += evaluate(coefficient, bindings) * int(names[name])
        return total

    def __str__(self) -> str:
        parts: list[str] = []
        for name, coefficient in self.terms:
            if coefficient == 1:
                text = name
            elif isinstance(coefficient, int):
                text = f"{coefficient}*{name}"
            else:
                text = f"({coefficient})*{name}"
            parts.append(text)
        if self.offset != 0 or not parts:
            parts.append(str(self.offset) if isinstance(self.offset, int) else f"({self.offset})")
        return " + ".join(parts).replace("+ -", "- ")


Index = tuple[Affine, ...]


# ------------------------------------------------------------------------------------------ expressions


@dataclass(frozen=True, slots=True)
class Const:
    value: float | int | bool
    dtype: DType


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of a Let or a Var."""

    name: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class IndexValue:
    """A loop index, or an affine function of some, as an int64."""

    affine: Affine

    @property
    def dtype(self) -> DType:
        return int64


@dataclass(frozen=True, slots=True)
class ExtentValue:
    """The run-time value of an extent, as an int64."""

    extent: Extent

    @property
    def dtype(self) -> DType:
        return int64


@dataclass(frozen=True, slots=True)
class Load:
    """source[index]; where the guard is false, `fill` instead, and memory is not touched."""

    source: str
    index: Index
    dtype: DType
    guard: Expr | None = None
    fill: Const | None = None


@dataclass(frozen=True, slots=True)
class Prim:
    """A scalar primitive (graphc.ir.scalar.PRIMITIVES) applied to operands."""

    name: str
    operands: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True, slots=True)
class Cast:
    operand: Expr
    dtype: DType


Expr = Const | Ref | IndexValue | ExtentValue | Load | Prim | Cast


def prim(name: str, *operands: Expr) -> Prim:
    """A primitive with its result dtype worked out."""
    return Prim(name, operands, result_dtype(name, tuple(o.dtype for o in operands)))


class KernelScalars:
    """Traces an elementwise op's scalar function into a kernel expression (a ScalarBuilder)."""

    def prim(self, name: str, *operands: Expr) -> Expr:
        return prim(name, *operands)

    def const(self, value: float | int | bool, like: Expr) -> Expr:
        return Const(like.dtype.numpy.type(value).item(), like.dtype)

    def cast(self, value: Expr, dtype: DType) -> Expr:
        return value if value.dtype == dtype else Cast(value, dtype)


# ------------------------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class For:
    axis: str
    extent: Extent
    body: tuple[Stmt, ...]
    chunked: bool = False
    tile: int = 1
    vector: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Let:
    name: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class Var:
    name: str
    dtype: DType
    init: Expr


@dataclass(frozen=True, slots=True)
class Combine:
    name: str
    combine: str  # sum | prod | max | min
    expr: Expr


@dataclass(frozen=True, slots=True)
class Assign:
    name: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class Temp:
    name: str
    dtype: DType
    shape: Shape


@dataclass(frozen=True, slots=True)
class Store:
    target: str
    index: Index
    expr: Expr
    combine: str = ""  # "" overwrites; sum | prod | max | min accumulate into memory
    guard: Expr | None = None
    # Past the caches, if the kernel's buffers together take more than STREAM_BYTES.
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """Fails the step where the condition is false; `position` is reported (an int64 expression)."""

    condition: Expr
    position: Affine


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Asks for the cache line of an element before it is loaded or stored. The element need not exist.

    `once`: of the iterations that are unrolled together only the first asks, and none in what is left over of
    a loop. `far`: into the second-level cache, which keeps more until it is wanted, and can wait for more
    lines of memory at a time.
    """

    source: str
    index: Index
    once: bool = False
    far: bool = False


Stmt = For | Let | Var | Combine | Assign | Temp | Store | Check | Prefetch
Body = tuple[Stmt, ...]


# ------------------------------------------------------------------------------------ kernels, programs


@dataclass(frozen=True, slots=True)
class Buffer:
    """A kernel's view of a storage. The shape may differ from the storage's (same elements, C order)."""

    name: str
    storage: str
    type: TensorType
    access: str  # in | out | inout

    @property
    def strides(self) -> tuple[Extent, ...]:
        """C-contiguous strides in elements."""
        return contiguous_strides(self.type.shape)


@lru_cache(maxsize=4096)
def contiguous_strides(shape: Shape) -> tuple[Extent, ...]:
    """The strides of a C-contiguous array, in elements."""
    result: list[Extent] = []
    stride: Extent = 1
    for extent in reversed(shape):
        result.append(stride)
        stride = stride * extent
    return tuple(reversed(result))


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch: `body` runs for each chunk of `chunk_extent` (None: a single chunk)."""

    name: str
    form: str  # map | rows | columns | contract | window | move | check
    buffers: tuple[Buffer, ...]
    body: Body
    chunk_axis: str = ""
    chunk_extent: Extent = 1
    # Work of one iteration of the chunk axis, in rough nanoseconds; the chunk size follows from it.
    cost: Extent = 1
    # Chunk bounds are multiples of this many iterations (so that tiles stay whole).
    granule: int = 1
    origin: str = ""

    @property
    def chunks(self) -> Extent:
        """The number of chunks, as an extent that is bound when the program is laid out."""
        return dim(f"{self.name}.chunks") if self.chunk_axis else 1

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)


@dataclass(frozen=True)
class KernelProgram:
    """The kernels of one step in launch order."""

    storages: Mapping[str, Storage]
    kernels: tuple[Kernel, ...]
    outputs: Mapping[str, tuple[str, TensorType]]  # label -> (storage, type)
    guards: tuple[tuple[Extent, Extent, str], ...] = ()
    decisions: tuple[Any, ...] = field(default=(), compare=False)


# ------------------------------------------------------------------------------------------ traversal


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of an expression."""
    if isinstance(expr, Prim):
        return expr.operands
    if isinstance(expr, Cast):
        return (expr.operand,)
    if isinstance(expr, Load) and expr.guard is not None:
        return (expr.guard,)
    return ()


def walk_expr(expr: Expr) -> list[Expr]:
    """The expression and everything below it, operands after what they belong to."""
    found: list[Expr] = []
    stack = [expr]
    while stack:
        part = stack.pop()
        found.append(part)
        stack.extend(reversed(children(part)))
    return found


def walk_stmts(body: Body) -> Iterator[Stmt]:
    """All statements, outer before inner."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, For):
            yield from walk_stmts(stmt.body)


def exprs_of(stmt: Stmt) -> tuple[Expr, ...]:
    """The expressions that stand directly in a statement."""
    if isinstance(stmt, (Let, Combine, Assign)):
        return (stmt.expr,)
    if isinstance(stmt, Var):
        return (stmt.init,)
    if isinstance(stmt, Store):
        return (stmt.expr,) if stmt.guard is None else (stmt.expr, stmt.guard)
    if isinstance(stmt, Check):
        return (stmt.condition,)
    return ()


def map_expr(expr: Expr, rule: Callable[[Expr], Expr | None]) -> Expr:
    """Rewrites bottom up; the rule returns a replacement, or None to keep what it is offered."""
    if isinstance(expr, Prim):
        operands = tuple([map_expr(o, rule) for o in expr.operands])
        if any(map(is_not, operands, expr.operands)):
            expr = Prim(expr.name, operands, expr.dtype)
    elif isinstance(expr, Cast):
        operand = map_expr(expr.operand, rule)
        expr = expr if operand is expr.operand else Cast(operand, expr.dtype)
    elif isinstance(expr, Load) and expr.guard is not None:
        guard = map_expr(expr.guard, rule)
        expr = expr if guard is expr.guard else replace(expr, guard=guard)
    replaced = rule(expr)
    return expr if replaced is None else replaced


def map_stmts(
    body: Body,
    expr_rule: Callable[[Expr], Expr | None] | None = None,
    stmt_rule: Callable[[Stmt], Body | None] | None = None,
) -> Body:
    """Rewrites every expression and then every statement, inner statements first."""
    result: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For):
            inner = map_stmts(stmt.body, expr_rule, stmt_rule)
            if any(map(is_not, inner, stmt.body)) or len(inner) != len(stmt.body):
                stmt = replace(stmt, body=inner)
        elif expr_rule is not None:
            stmt = _map_exprs_of(stmt, expr_rule)
        replaced = None if stmt_rule is None else stmt_rule(stmt)
        result.extend((stmt,) if replaced is None else replaced)
    return tuple(result)


def _map_exprs_of(stmt: Stmt, rule: Callable[[Expr], Expr | None]) -> Stmt:
    """The statement with its expressions rewritten; itself where they stay the same."""
    if isinstance(stmt, (Let, Combine, Assign)):
        expr = map_expr(stmt.expr, rule)
        return stmt if expr is stmt.expr else replace(stmt, expr=expr)
    if isinstance(stmt, Var):
        init = map_expr(stmt.init, rule)
        return stmt if init is stmt.init else replace(stmt, init=init)
    if isinstance(stmt, Store):
        guard = None if stmt.guard is None else map_expr(stmt.guard, rule)
        expr = map_expr(stmt.expr, rule)
        is_same = expr is stmt.expr and guard is stmt.guard
        return stmt if is_same else replace(stmt, expr=expr, guard=guard)
    if isinstance(stmt, Check):
        condition = map_expr(stmt.condition, rule)
        return stmt if condition is stmt.condition else replace(stmt, condition=condition)
    return stmt


def names_used(body: Body) -> set[str]:
    """The values that a body reads or changes, and all names in its indices."""
    names: set[str] = set()
    for stmt in walk_stmts(body):
        indices: list[Affine] = []
        if isinstance(stmt, (Combine, Assign)):
            names.add(stmt.name)
        elif isinstance(stmt, (Store, Prefetch)):
            indices += stmt.index
        for expr in exprs_of(stmt):
            for part in walk_expr(expr):
                if isinstance(part, Ref):
                    names.add(part.name)
                elif isinstance(part, Load):
                    indices += part.index
                elif isinstance(part, IndexValue):
                    indices.append(part.affine)
        names.update(name for affine in indices for name in affine.names)
    return names


def loads_of(body: Body) -> Iterator[Load]:
    """Every load in a body."""
    for stmt in walk_stmts(body):
        for expr in exprs_of(stmt):
            for part in walk_expr(expr):
                if isinstance(part, Load):
                    yield part


TRUE = Const(True, bool_)
