"""What a kernel, and a program of kernels, must satisfy between passes.

Besides names, ranks and dtypes, the rules are those that let chunks run in any order on any worker: a
store of a chunked kernel must name its chunk (by the chunked axis or by `chunk`), what is reduced in a
vectorised loop is changed by Combine alone, and a buffer is used only as it is declared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from graphc.errors import VerifyError
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Assign,
    Body,
    Check,
    Combine,
    Const,
    Expr,
    ExtentValue,
    For,
    IndexValue,
    Kernel,
    KernelProgram,
    Let,
    Load,
    Prefetch,
    Prim,
    Ref,
    Store,
    Temp,
    Var,
    exprs_of,
    walk_expr,
    walk_stmts,
)
from graphc.ir.literals import LITERAL_NAMES, PLAIN_NAME
from graphc.ir.scalar import COMBINES, PRIMITIVES, result_dtype
from graphc.ir.text_kernels import format_body, format_buffer, kernel_head
from graphc.ir.types import DType, Extent, Shape, TensorType, dims_of, provably_different

FORMS = ("map", "rows", "columns", "contract", "window", "move", "check")
KINDS = ("input", "state", "constant", "temporary", "output")
CONTEXT_LINES = 4


@dataclass(frozen=True)
class _Array:
    """A buffer or a local array in scope; access is in, out, inout or local."""

    dtype: DType
    shape: Shape
    access: str


@dataclass(frozen=True)
class _Scope:
    axes: frozenset[str] = frozenset()
    scalars: dict[str, DType] = field(default_factory=dict)
    variables: frozenset[str] = frozenset()  # the scalars that a Var declared
    arrays: dict[str, _Array] = field(default_factory=dict)
    # Names whose value differs from chunk to chunk: the chunked axis, and what is computed from it.
    owned: frozenset[str] = frozenset({CHUNK})
    # Vars declared outside the innermost vectorised loop.
    vectorised: frozenset[str] = frozenset()
    in_chunk: bool = False

    def has(self, name: str) -> bool:
        return name in self.axes or name in self.scalars or name in self.arrays


class _KernelVerifier:
    """Walks one kernel; `fail` shows the statement that it stands at."""

    def __init__(self, kernel: Kernel, fresh: frozenset[str] = frozenset()) -> None:
        self.kernel = kernel
        # Buffers that hold nothing before the kernel stores to them.
        self._fresh = fresh | {buffer.name for buffer in kernel.buffers if buffer.access == "out"}
        self._at: int | None = None  # ordinal of the current statement; None: the head
        self._ordinal = -1
        self._stored: set[str] = set()

    def fail(self, problem: str) -> NoReturn:
        raise VerifyError(f"kernel {self.kernel.name}: {problem}\n{self._text()}")

    def _text(self) -> str:
        kernel = self.kernel
        head = [kernel_head(kernel), *(f"  {format_buffer(buffer)}" for buffer in kernel.buffers)]
        lines = head + [line for _, line in format_body(kernel.body, 1)]
        at = 0 if self._at is None else len(head) + self._at
        first, last = max(0, at - CONTEXT_LINES), at + CONTEXT_LINES + 1
        return "\n".join(
            f"{'>' if number == at else ' '} {line}" for number, line in enumerate(lines[first:last], first)
        )

    def run(self) -> None:
        kernel = self.kernel
        if kernel.form not in FORMS:
            self.fail(f"no form {kernel.form!r}")
        if not kernel.chunk_axis and kernel.chunk_extent != 1:
            self.fail("a kernel without a chunk axis has one chunk")
        if kernel.granule < 1:
            self.fail("the granule must be positive")
        arrays: dict[str, _Array] = {}
        for buffer in kernel.buffers:
            self._check_name(buffer.name)
            if buffer.name in arrays:
                self.fail(f"two buffers are named {buffer.name}")
            if buffer.access not in ("in", "out", "inout"):
                self.fail(f"buffer {buffer.name}: no access {buffer.access!r}")
            arrays[buffer.name] = _Array(buffer.type.dtype, buffer.type.shape, buffer.access)
        self._body(kernel.body, _Scope(arrays=arrays))
        self._at = None
        for buffer in kernel.buffers:
            if buffer.access != "in" and buffer.name not in self._stored:
                self.fail(f"buffer {buffer.name} is `{buffer.access}` but never stored to")

    def _check_name(self, name: str) -> None:
        if not PLAIN_NAME.match(name) or name in LITERAL_NAMES or name == CHUNK:
            self.fail(f"{name!r} is not a name")

    # ---------------------------------------------------------------------------------- statements

    def _body(self, body: Body, scope: _Scope) -> None:
        for stmt in body:
            self._ordinal += 1
            self._at = self._ordinal
            for expr in exprs_of(stmt):
                self._expr(expr, scope)
            if isinstance(stmt, For):
                self._for(stmt, scope)
            elif isinstance(stmt, (Let, Var, Temp)):
                scope = self._declare(stmt, scope)
            elif isinstance(stmt, (Combine, Assign)):
                self._change(stmt, scope)
            elif isinstance(stmt, Check):
                if not stmt.condition.dtype.is_bool:
                    self.fail(f"a condition of {stmt.condition.dtype}")
                self._affine(stmt.position, scope)
            elif isinstance(stmt, Prefetch):
                self._prefetch(stmt, scope)
            else:
                self._store(stmt, scope)

    def _for(self, stmt: For, scope: _Scope) -> None:
        self._check_name(stmt.axis)
        if scope.has(stmt.axis):
            self.fail(f"{stmt.axis} is declared already")
        if stmt.tile < 1:
            self.fail("a tile must be positive")
        if isinstance(stmt.extent, int) and stmt.extent < 0:
            self.fail(f"a loop over {stmt.extent} iterations")
        inner = replace(scope, axes=scope.axes | {stmt.axis})
        if stmt.chunked:
            if not self.kernel.chunk_axis or stmt.extent != self.kernel.chunk_extent:
                self.fail(f"a chunked loop over {stmt.extent}, which is not the kernel's chunk axis")
            if scope.in_chunk:
                self.fail("a chunked loop within a chunked loop")
            inner = replace(inner, in_chunk=True, owned=inner.owned | {stmt.axis})
        if stmt.vector:
            reduced = {s.name for s in walk_stmts(stmt.body) if isinstance(s, Combine)}
            inner = replace(inner, vectorised=scope.variables)
            for name in reduced & scope.variables:
                self._refuse_reads(stmt.body, name)
        self._body(stmt.body, inner)

    def _refuse_reads(self, body: Body, name: str) -> None:
        for stmt in walk_stmts(body):
            for expr in exprs_of(stmt):
                if any(isinstance(part, Ref) and part.name == name for part in walk_expr(expr)):
                    self.fail(f"{name} is read in the vectorised loop that reduces into it")

    def _declare(self, stmt: Let | Var | Temp, scope: _Scope) -> _Scope:
        self._check_name(stmt.name)
        if scope.has(stmt.name):
            self.fail(f"{stmt.name} is declared already")
        if isinstance(stmt, Temp):
            if any(isinstance(extent, int) and extent < 0 for extent in stmt.shape):
                self.fail(f"the local array {stmt.name} has a negative extent")
            array = _Array(stmt.dtype, stmt.shape, "local")
            return replace(scope, arrays={**scope.arrays, stmt.name: array})
        if isinstance(stmt, Var):
            if stmt.init.dtype != stmt.dtype:
                self.fail(f"{stmt.name} is {stmt.dtype}, its initial value {stmt.init.dtype}")
            scope = replace(scope, variables=scope.variables | {stmt.name})
            return replace(scope, scalars={**scope.scalars, stmt.name: stmt.dtype})
        parts = list(walk_expr(stmt.expr))
        names = {part.name for part in parts if isinstance(part, Ref)}
        names |= {n for part in parts if isinstance(part, IndexValue) for n in part.affine.names}
        # What was loaded may be the same in two chunks.
        if names & scope.owned and not any(isinstance(part, Load) for part in parts):
            scope = replace(scope, owned=scope.owned | {stmt.name})
        return replace(scope, scalars={**scope.scalars, stmt.name: stmt.expr.dtype})

    def _change(self, stmt: Combine | Assign, scope: _Scope) -> None:
        if stmt.name not in scope.variables:
            self.fail(f"{stmt.name} is not a Var in scope")
        if scope.scalars[stmt.name] != stmt.expr.dtype:
            self.fail(f"{stmt.name} is {scope.scalars[stmt.name]}, the value {stmt.expr.dtype}")
        if isinstance(stmt, Combine):
            self._combine(stmt.combine, stmt.expr.dtype)
        elif stmt.name in scope.vectorised:
            self.fail(f"{stmt.name} is carried through a vectorised loop; only a Combine may change it there")

    def _combine(self, combine: str, dtype: DType) -> None:
        if combine not in COMBINES:
            self.fail(f"no combine {combine!r}")
        if dtype.is_bool and combine in ("sum", "prod"):
            self.fail(f"a {combine} of bools")

    def _store(self, stmt: Store, scope: _Scope) -> None:
        array = scope.arrays.get(stmt.target)
        if array is None:
            self.fail(f"{stmt.target} is no buffer or local array in scope")
        if array.access == "in":
            self.fail(f"buffer {stmt.target} is `in` and cannot be stored to")
        self._access(stmt.target, array, stmt.index, scope)
        if array.dtype != stmt.expr.dtype:
            self.fail(f"{stmt.target} is {array.dtype}, the value {stmt.expr.dtype}")
        if stmt.guard is not None and not stmt.guard.dtype.is_bool:
            self.fail(f"a guard of {stmt.guard.dtype}")
        if stmt.combine:
            self._combine(stmt.combine, array.dtype)
            if stmt.target in self._fresh - self._stored:
                self.fail(f"buffer {stmt.target} is combined into before anything writes it")
        if stmt.stream and (stmt.combine or stmt.guard is not None or array.access == "local"):
            self.fail("only plain stores to buffers stream")
        self._stored.add(stmt.target)
        if self.kernel.chunk_axis and array.access != "local":
            names = frozenset().union(*(affine.names for affine in stmt.index))
            if not names & scope.owned:
                self.fail(
                    f"chunks race: the index of {stmt.target} names neither a chunked axis nor `{CHUNK}`"
                )

    def _prefetch(self, stmt: Prefetch, scope: _Scope) -> None:
        array = scope.arrays.get(stmt.source)
        if array is None:
            self.fail(f"{stmt.source} is no buffer or local array in scope")
        self._access(stmt.source, array, stmt.index, scope)
        gathered = frozenset().union(*(affine.names for affine in stmt.index)) & scope.scalars.keys()
        if gathered:
            self.fail(f"a prefetch at {min(gathered)}, which is no loop axis")

    # --------------------------------------------------------------------------------- expressions

    def _affine(self, affine: Affine, scope: _Scope) -> None:
        if list(affine.terms) != sorted(affine.terms, key=lambda term: term[0]):
            self.fail(f"the terms of {affine} are not sorted")
        for name, coefficient in affine.terms:
            if coefficient == 0:
                self.fail(f"a zero coefficient in {affine}")
            if name == CHUNK:
                if not self.kernel.chunk_axis:
                    self.fail(f"`{CHUNK}` in a kernel without a chunk axis")
            elif name in scope.scalars:
                if not scope.scalars[name].is_integer:
                    self.fail(f"{name} of {scope.scalars[name]} as an index")
            elif name not in scope.axes:
                self.fail(f"{name} is no loop axis or integer in scope")

    def _access(self, name: str, array: _Array, index: Sequence[Affine], scope: _Scope) -> None:
        if len(index) != len(array.shape):
            self.fail(f"{len(index)} indices into {name} of rank {len(array.shape)}")
        for affine in index:
            self._affine(affine, scope)

    def _expr(self, expr: Expr, scope: _Scope) -> None:
        for part in walk_expr(expr):
            if isinstance(part, Const):
                if part.dtype.is_integer and not isinstance(part.value, int):
                    self.fail(f"the constant {part.value!r} of {part.dtype}")
            elif isinstance(part, Ref):
                if part.name not in scope.scalars:
                    self.fail(f"{part.name} is no value in scope")
                if scope.scalars[part.name] != part.dtype:
                    self.fail(f"{part.name} is {scope.scalars[part.name]}, not {part.dtype}")
            elif isinstance(part, IndexValue):
                self._affine(part.affine, scope)
            elif isinstance(part, Load):
                self._load(part, scope)
            elif isinstance(part, Prim):
                self._prim(part)

    def _load(self, load: Load, scope: _Scope) -> None:
        array = scope.arrays.get(load.source)
        if array is None:
            self.fail(f"{load.source} is no buffer or local array in scope")
        if array.dtype != load.dtype:
            self.fail(f"{load.source} is {array.dtype}, loaded as {load.dtype}")
        if load.source in self._fresh - self._stored:
            self.fail(f"buffer {load.source} is read before anything writes it")
        self._access(load.source, array, load.index, scope)
        if (load.guard is None) != (load.fill is None):
            self.fail(f"a load of {load.source} needs both a guard and a fill, or neither")
        if load.guard is not None and not load.guard.dtype.is_bool:
            self.fail(f"a guard of {load.guard.dtype}")
        if load.fill is not None and load.fill.dtype != load.dtype:
            self.fail(f"a fill of {load.fill.dtype} for {load.dtype}")

    def _prim(self, part: Prim) -> None:
        primitive = PRIMITIVES.get(part.name)
        if primitive is None:
            self.fail(f"no primitive {part.name!r}")
        dtypes = tuple(operand.dtype for operand in part.operands)
        if len(dtypes) != primitive.arity:
            self.fail(f"{part.name} takes {primitive.arity} operands, not {len(dtypes)}")
        values = dtypes
        if part.name == "select":
            values = dtypes[1:]
            if not dtypes[0].is_bool:
                self.fail(f"select by {dtypes[0]}")
        if len(set(values)) != 1:
            self.fail(f"{part.name} of {', '.join(map(str, dtypes))}")
        if part.name in ("and", "or", "not") and not dtypes[0].is_bool:
            self.fail(f"{part.name} of {dtypes[0]}")
        if part.name == "div" and not dtypes[0].is_float:
            self.fail("division of integers is floordiv")
        if part.dtype != result_dtype(part.name, dtypes):
            self.fail(f"{part.name} of {', '.join(map(str, dtypes))} is not {part.dtype}")


def verify_kernel(kernel: Kernel) -> Kernel:
    """Returns the kernel, or raises VerifyError, whose message shows the text around the problem.

    Names are declared before use and unique along their nest; dtypes and ranks agree; `in` buffers are
    not written and `out` ones not read before they are (in the order of the text); a Var that a
    vectorised loop reduces into is changed by Combine alone and not read there; chunked loops run over
    the chunk axis, and every store of a chunked kernel belongs to its chunk.
    """
    _KernelVerifier(kernel).run()
    return kernel


# -------------------------------------------------------------------------------------------- programs


def verify_kernels(program: KernelProgram) -> KernelProgram:
    """Returns the program, or raises VerifyError.

    Each kernel is valid; its buffers view storages of the same dtype and number of elements; inputs and
    constants are never written; temporaries and outputs are written before they are read.
    """
    names = [kernel.name for kernel in program.kernels]
    if len(set(names)) != len(names):
        raise VerifyError(f"kernels share a name: {', '.join(names)}")
    for name, storage in program.storages.items():
        if storage.name != name or storage.kind not in KINDS:
            raise VerifyError(f"storage {name} is entered as {storage.name} of kind {storage.kind!r}")
        if storage.kind == "constant" and storage.data is None:
            raise VerifyError(f"constant {name} has no data")
    written = {s.name for s in program.storages.values() if s.kind in ("input", "constant", "state")}
    chunk_dims = {f"{name}.chunks" for name in names}
    for kernel in program.kernels:
        fresh = frozenset(buffer.name for buffer in kernel.buffers if buffer.storage not in written)
        verifier = _KernelVerifier(kernel, fresh)
        _verify_buffers(program, verifier, written)
        verifier.run()
        for used in _dims(kernel):
            if used.endswith(".chunks") and used not in chunk_dims:
                verifier.fail(f"{used} names no kernel of the program")
    for label, (name, type) in program.outputs.items():
        found = program.storages.get(name)
        if found is None or name not in written:
            raise VerifyError(f"output {label} = {name}, which no kernel writes")
        if found.type.dtype != type.dtype or _sizes_differ(program, found.type, type):
            raise VerifyError(f"output {label} is {type}, its storage {name} {found.type}")
    return program


def _verify_buffers(program: KernelProgram, verifier: _KernelVerifier, written: set[str]) -> None:
    kernel = verifier.kernel
    for buffer in kernel.buffers:
        storage = program.storages.get(buffer.storage)
        if storage is None:
            verifier.fail(f"buffer {buffer.name} views {buffer.storage}, which is not declared")
        if storage.type.dtype != buffer.type.dtype:
            verifier.fail(f"buffer {buffer.name} of {buffer.type} views {storage.type}")
        if _sizes_differ(program, storage.type, buffer.type):
            verifier.fail(f"buffer {buffer.name} of {buffer.type} views {storage.type}: sizes differ")
        if buffer.access != "in" and storage.kind in ("input", "constant"):
            verifier.fail(f"buffer {buffer.name} writes the {storage.kind} {storage.name}")
        if buffer.access == "in" and storage.name not in written:
            verifier.fail(f"buffer {buffer.name} reads {storage.name} before any kernel writes it")
    written.update(buffer.storage for buffer in kernel.buffers if buffer.access != "in")


def _sizes_differ(program: KernelProgram, left: TensorType, right: TensorType) -> bool:
    """Whether two types differ in size; under guards, only if no binding could make them equal."""
    if left.shape == right.shape:
        return False
    if program.guards:
        return provably_different(left.size, right.size)
    return left.size != right.size


def _dims(kernel: Kernel) -> Iterable[str]:
    extents: list[Extent] = [kernel.chunk_extent]
    for buffer in kernel.buffers:
        extents += buffer.type.shape
    for stmt in walk_stmts(kernel.body):
        if isinstance(stmt, For):
            extents.append(stmt.extent)
        for expr in exprs_of(stmt):
            extents += [part.extent for part in walk_expr(expr) if isinstance(part, ExtentValue)]
    return sorted(set().union(*map(dims_of, extents)))
