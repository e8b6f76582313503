"""Kernels interpreted loop by loop in plain Python: the meaning of the kernel stage.

Each kernel is written out as a small Python function of scalar loops (`kernel_source` shows it) and
called once for each chunk, in any order. Values are numpy scalars of the exact dtype, so integers wrap
and float32 rounds as it does in native code. `tile` and `vector` are ignored.

Memory is strict: an index outside its buffer is a VerifyError (negative indices never wrap), what an
`out` buffer, a temporary or a local array holds before it is written is poison (NaN, or the least
integer), and an `in` buffer cannot be written.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import FeedError, GraphcError, IndexRangeError, ShapeError, UsageError, VerifyError
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Assign,
    Body,
    Cast,
    Check,
    Combine,
    Const,
    Expr,
    ExtentValue,
    For,
    Index,
    IndexValue,
    Kernel,
    KernelProgram,
    Let,
    Load,
    Prefetch,
    Prim,
    Ref,
    Stmt,
    Storage,
    Store,
    Temp,
    Var,
)
from graphc.ir.scalar import COMBINES, PRIMITIVES, cast_array
from graphc.ir.text_kernels import NO_NAMES, Names, format_stmt
from graphc.ir.types import DTYPES, DType, Shape, evaluate

Array = np.ndarray[Any, Any]
ChunkSizes = Mapping[str, int] | Callable[[Kernel, int], int] | None


class CheckFailure(IndexRangeError):
    """A `Check` that did not hold. `kernel` is the kernel's name, `check` the ordinal of the statement
    among the kernel's Checks, `position` the first bad value of its position expression."""

    def __init__(self, kernel: str, check: int, position: int) -> None:
        super().__init__(f"kernel {kernel}: check {check} fails at position {position}")
        self.kernel = kernel
        self.check = check
        self.position = position


# ------------------------------------------------------------------------------------- checked memory


class _OutOfRange(Exception):
    """An access outside an array; turned into a VerifyError that names the statement."""


class CheckedArray:
    """An array whose every access is checked: one index per axis, each within [0, extent).

    `array` is for accesses that are proven to lie inside when the Python is written."""

    __slots__ = ("_name", "array")

    def __init__(self, name: str, array: Array) -> None:
        self._name = name
        self.array = array

    def __getitem__(self, index: tuple[int, ...]) -> Any:
        for at, extent in zip(index, self.array.shape, strict=True):
            if not 0 <= at < extent:
                self._fail(index)
        return self.array[index]

    def __setitem__(self, index: tuple[int, ...], value: Any) -> None:
        for at, extent in zip(index, self.array.shape, strict=True):
            if not 0 <= at < extent:
                self._fail(index)
        self.array[index] = value

    def _fail(self, index: tuple[int, ...]) -> None:
        raise _OutOfRange(f"{self._name}{list(index)} is outside the shape {self.array.shape}")


def poisoned(dtype: DType, shape: Sequence[int]) -> Array:
    """Fresh memory whose contents nobody may use: NaN, or the least integer; bools are True."""
    poison = np.nan if dtype.is_float else True if dtype.is_bool else np.iinfo(dtype.numpy).min
    if dtype.name == "uint8":
        poison = 0xA5
    return np.full(tuple(shape), poison, dtype=dtype.numpy)


# -------------------------------------------------------------------------------- from nest to Python

# Primitives that numpy scalars spell as operators, with the same result.
_OPERATORS = frozenset({"add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge"})

_ROUNDINGS = frozenset({"floor", "ceil", "round", "trunc"})


class _Writer:
    """Writes a kernel's body as Python source; extents are replaced by their values."""

    def __init__(self, kernel: Kernel, bindings: Mapping[str, int]) -> None:
        self._bindings = bindings
        # The least and greatest value of each loop axis in scope.
        self._axes: dict[str, tuple[int, int]] = {}
        chunks = bindings.get(f"{kernel.name}.chunks")
        self._chunk_range = None if chunks is None else (0, chunks - 1)
        self._shapes = {b.name: _concrete(b.type.shape, bindings) for b in kernel.buffers}
        self._python: dict[str, str] = {}
        self._checks = 0
        self.lines: list[str] = []
        # The printed statement that each line of Python came from.
        self.statements: list[str] = []
        self._emit(0, "def run(chunk, first, last, memory):", "")
        for buffer in kernel.buffers:
            self._declare(1, buffer.name, f"memory[{buffer.name!r}]", "")
        self._body(kernel.body, 1, NO_NAMES)
        if len(self.lines) == 1:
            self._emit(1, "pass", "")

    def _emit(self, indent: int, line: str, statement: str) -> None:
        self.lines.append("    " * indent + line)
        self.statements.append(statement)

    def _declare(self, indent: int, name: str, value: str, statement: str) -> None:
        self._emit(indent, f"{self._name(name)} = {value}", statement)
        self._emit(indent, f"{self._bare(name)} = {self._name(name)}.array", statement)

    def _bare(self, name: str) -> str:
        return "bare" + self._name(name).removeprefix("v")

    def _name(self, name: str) -> str:
        """A Python identifier of its own for each name of the kernel."""
        if name not in self._python:
            candidate = "v_" + re.sub(r"\W", "_", name)
            while candidate in self._python.values():
                candidate += "_"
            self._python[name] = candidate
        return self._python[name]

    def _affine(self, affine: Affine) -> str:
        parts = []
        for name, extent in affine.terms:
            coefficient = evaluate(extent, self._bindings)
            value = "chunk" if name == CHUNK else self._name(name)
            if name != CHUNK and name not in self._axes:
                value = f"int({value})"  # a numpy integer would wrap
            parts.append(value if coefficient == 1 else f"{coefficient} * {value}")
        offset = evaluate(affine.offset, self._bindings)
        if offset or not parts:
            parts.append(str(offset))
        return " + ".join(parts).replace("+ -", "- ")

    def _is_inside(self, affine: Affine, extent: int) -> bool:
        """Whether an affine index is proven to lie within [0, extent) wherever it stands."""
        least = greatest = evaluate(affine.offset, self._bindings)
        for name, symbolic in affine.terms:
            bounds = self._chunk_range if name == CHUNK else self._axes.get(name)
            if bounds is None:
                return False
            reached = [evaluate(symbolic, self._bindings) * bound for bound in bounds]
            least, greatest = least + min(reached), greatest + max(reached)
        return least >= 0 and greatest < extent

    def _access(self, array: str, index: Index) -> str:
        """`x[i, j]` on the checked array, or on the bare one where that is proven safe."""
        proven = all(map(self._is_inside, index, self._shapes[array]))
        return f"{self._bare(array) if proven else self._name(array)}[{self._index(index)}]"

    def _index(self, index: Iterable[Affine]) -> str:
        parts = [self._affine(affine) for affine in index]
        return ", ".join(parts) + "," if len(parts) == 1 else ", ".join(parts) or "()"

    def _expr(self, expr: Expr) -> str:
        if isinstance(expr, Const):
            return _constant(expr)
        if isinstance(expr, Ref):
            return self._name(expr.name)
        if isinstance(expr, IndexValue):
            return f"int64({self._affine(expr.affine)})"
        if isinstance(expr, ExtentValue):
            return f"int64({evaluate(expr.extent, self._bindings)})"
        if isinstance(expr, Load):
            load = self._access(expr.source, expr.index)
            if expr.guard is None:
                return load
            fill = "None" if expr.fill is None else _constant(expr.fill)
            return f"({load} if {self._expr(expr.guard)} else {fill})"
        if isinstance(expr, Cast):
            return f"cast({self._expr(expr.operand)}, {expr.dtype.name})"
        operands = [self._expr(operand) for operand in expr.operands]
        return _apply(expr, operands)

    def _body(self, body: Body, indent: int, scalars: Names) -> None:
        for stmt in body:
            self._stmt(stmt, indent, scalars)
            if isinstance(stmt, (Let, Var)):
                scalars = scalars | {stmt.name}

    def _stmt(self, stmt: Stmt, indent: int, scalars: Names) -> None:
        text = format_stmt(stmt, scalars)
        if isinstance(stmt, For):
            extent = evaluate(stmt.extent, self._bindings)
            bounds = "first, last" if stmt.chunked else str(extent)
            self._emit(indent, f"for {self._name(stmt.axis)} in range({bounds}):", text)
            outer, self._axes = self._axes, {**self._axes, stmt.axis: (0, max(extent - 1, 0))}
            if not stmt.body:
                self._emit(indent + 1, "pass", text)
            self._body(stmt.body, indent + 1, scalars)
            self._axes = outer
        elif isinstance(stmt, (Let, Assign)):
            self._emit(indent, f"{self._name(stmt.name)} = {self._expr(stmt.expr)}", text)
        elif isinstance(stmt, Var):
            self._emit(indent, f"{self._name(stmt.name)} = {self._expr(stmt.init)}", text)
        elif isinstance(stmt, Combine):
            name = self._name(stmt.name)
            value = _combined(stmt.combine, name, self._expr(stmt.expr))
            self._emit(indent, f"{name} = {value}", text)
        elif isinstance(stmt, Temp):
            shape = tuple(evaluate(extent, self._bindings) for extent in stmt.shape)
            call = f"local({stmt.name!r}, DTYPES[{stmt.dtype.name!r}], {shape})"
            self._shapes[stmt.name] = shape
            self._declare(indent, stmt.name, call, text)
        elif isinstance(stmt, Check):
            self._emit(indent, f"if not {self._expr(stmt.condition)}:", text)
            self._emit(indent + 1, f"fail({self._checks}, {self._affine(stmt.position)})", text)
            self._checks += 1
        elif isinstance(stmt, Prefetch):
            self._emit(indent, "pass", text)
        else:
            self._store(stmt, indent, text)

    def _store(self, stmt: Store, indent: int, text: str) -> None:
        target = self._access(stmt.target, stmt.index)
        value = self._expr(stmt.expr)
        if stmt.guard is not None:
            # The value is computed whether or not the guard holds, as native code may do.
            self._emit(indent, f"value = {value}", text)
            self._emit(indent, f"if {self._expr(stmt.guard)}:", text)
            indent, value = indent + 1, "value"
        if stmt.combine:
            value = _combined(stmt.combine, target, value)
        self._emit(indent, f"{target} = {value}", text)


def _constant(const: Const) -> str:
    if const.dtype.is_bool:
        return f"bool({bool(const.value)})"
    value = repr(float(const.value)) if const.dtype.is_float else str(int(const.value))
    return f"{const.dtype.name}({value})"


def _combined(combine: str, left: str, right: str) -> str:
    symbol = {"sum": "+", "prod": "*"}.get(combine)
    return f"{left} {symbol} ({right})" if symbol else f"{COMBINES[combine]}({left}, {right})"


def _apply(expr: Prim, operands: list[str]) -> str:
    """A primitive applied. Both arms of a select are evaluated, as native code does."""
    primitive = PRIMITIVES[expr.name]
    if expr.name in _OPERATORS:
        return f"({operands[0]} {primitive.symbol} {operands[1]})"
    if expr.name in _ROUNDINGS and not expr.dtype.is_float:
        return operands[0]  # numpy would go through floats
    call = f"{expr.name}_({', '.join(operands)})"
    # Some return 0-d arrays.
    is_exact = isinstance(primitive.numpy, np.ufunc) and all(o.dtype.is_float for o in expr.operands)
    return call if is_exact or expr.name == "select" else f"{expr.dtype.name}({call})"


def _select(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


def _pow(a: Any, b: Any) -> Any:
    # numpy takes a scalar exponent of 0.5 for sqrt, which is wrong for -inf and -0.0.
    return PRIMITIVES["pow"].numpy(np.asarray([a]), np.asarray([b]))[0]


def _cast(value: Any, scalar: type[np.generic]) -> Any:
    return cast_array(np.asarray(value), np.dtype(scalar))[()]


def _local(name: str, dtype: DType, shape: tuple[int, ...]) -> CheckedArray:
    return CheckedArray(name, poisoned(dtype, shape))


_NAMESPACE: dict[str, Any] = {
    **{name: dtype.numpy.type for name, dtype in DTYPES.items()},
    **{f"{name}_": primitive.numpy for name, primitive in PRIMITIVES.items()},
    "maximum": np.maximum,
    "minimum": np.minimum,
    "inf": float("inf"),
    "nan": float("nan"),
    "select_": _select,
    "pow_": _pow,
    "cast": _cast,
    "local": _local,
    "DTYPES": DTYPES,
}


class CompiledKernel:
    """A kernel as a Python function of (chunk number, first, last, memory by buffer name)."""

    def __init__(self, kernel: Kernel, bindings: Mapping[str, int]) -> None:
        writer = _Writer(kernel, bindings)
        self.kernel = kernel
        self.source = "\n".join(writer.lines) + "\n"
        self._statements = writer.statements
        self._filename = f"<kernel {kernel.name}>"
        namespace = {**_NAMESPACE, "fail": self._fail}
        exec(compile(self.source, self._filename, "exec"), namespace)
        self._run: Callable[[int, int, int, Mapping[str, CheckedArray]], None] = namespace["run"]

    def _fail(self, check: int, position: int) -> None:
        raise CheckFailure(self.kernel.name, check, position)

    def run(self, chunk: int, first: int, last: int, memory: Mapping[str, CheckedArray]) -> None:
        """Runs one chunk. Raises VerifyError for a stray access, CheckFailure for a failed Check."""
        try:
            self._run(chunk, first, last, memory)
        except _OutOfRange as error:
            raise VerifyError(f"kernel {self.kernel.name}: {error}, in `{self._statement(error)}`") from None

    def _statement(self, error: Exception) -> str:
        """The printed statement that was running."""
        trace, line = error.__traceback__, 0
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._filename:
                line = trace.tb_lineno
            trace = trace.tb_next
        return self._statements[line - 1]


def kernel_source(kernel: Kernel, bindings: Mapping[str, int]) -> str:
    """The Python that the interpreter runs for a kernel at these extents."""
    return CompiledKernel(kernel, bindings).source


# The same few kernels run step after step. Keyed by identity: equality of kernels would take -0.0 for 0.0.
_compiled: OrderedDict[tuple[int, tuple[tuple[str, int], ...]], CompiledKernel] = OrderedDict()
_COMPILED_LIMIT = 256


def _compile(kernel: Kernel, bindings: Mapping[str, int]) -> CompiledKernel:
    key = (id(kernel), tuple(sorted(bindings.items())))
    found = _compiled.get(key)
    if found is None or found.kernel is not kernel:
        found = _compiled[key] = CompiledKernel(kernel, bindings)
        while len(_compiled) > _COMPILED_LIMIT:
            _compiled.popitem(last=False)
    return found


# ------------------------------------------------------------------------------------------- running


def chunk_bounds(kernel: Kernel, bindings: Mapping[str, int], chunk_size: int) -> list[tuple[int, int]]:
    """(first, last) of each chunk. An empty axis still has one, empty, chunk, so its slots are written."""
    if not kernel.chunk_axis:
        return [(0, 1)]
    if chunk_size < 1 or chunk_size % kernel.granule:
        raise UsageError(f"kernel {kernel.name}: a chunk of {chunk_size} is no multiple of {kernel.granule}")
    extent = evaluate(kernel.chunk_extent, bindings)
    count = max(1, -(-extent // chunk_size))
    return [(c * chunk_size, min(extent, (c + 1) * chunk_size)) for c in range(count)]


def default_chunk_size(kernel: Kernel, extent: int) -> int:
    """About three chunks, so that slots and chunk order are exercised even by small shapes."""
    size = max(1, -(-extent // 3))
    return -(-size // kernel.granule) * kernel.granule


def chunk_size_of(kernel: Kernel, bindings: Mapping[str, int], chunk_sizes: ChunkSizes = None) -> int:
    """The chunk size of a kernel: from a table by kernel name, a function, or the default."""
    extent = evaluate(kernel.chunk_extent, bindings)
    if callable(chunk_sizes):
        return chunk_sizes(kernel, extent)
    if chunk_sizes is not None and kernel.name in chunk_sizes:
        return chunk_sizes[kernel.name]
    return default_chunk_size(kernel, extent)


def _memory(
    kernel: Kernel, arrays: Mapping[str, Array], bindings: Mapping[str, int]
) -> dict[str, CheckedArray]:
    memory: dict[str, CheckedArray] = {}
    for buffer in kernel.buffers:
        array = arrays[buffer.storage]
        shape = _concrete(buffer.type.shape, bindings)
        if not array.flags.c_contiguous or array.dtype != buffer.type.dtype.numpy:
            raise UsageError(f"storage {buffer.storage} is not a contiguous {buffer.type.dtype} array")
        if array.size != int(np.prod(shape, dtype=np.int64)):
            raise VerifyError(f"kernel {kernel.name}: {buffer.name}{list(shape)} views {array.shape}")
        view = array.reshape(shape)
        if buffer.access == "in":
            view = view.view()
            view.setflags(write=False)
        memory[buffer.name] = CheckedArray(buffer.name, view)
    return memory


def _concrete(shape: Shape, bindings: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(extent, bindings) for extent in shape)


def run_kernel(
    kernel: Kernel,
    arrays: Mapping[str, Array],
    bindings: Mapping[str, int],
    chunk_size: int | None = None,
    order: Sequence[int] | None = None,
) -> None:
    """Runs a kernel on arrays by storage name, in place.

    `order` is the order of the chunks (default: rising). A kernel's own `<name>.chunks` dim is bound
    here where `bindings` lacks it. If Checks fail, the first bad position over all chunks is raised as
    CheckFailure, whatever the order.
    """
    bounds = chunk_bounds(kernel, bindings, chunk_size or chunk_size_of(kernel, bindings))
    bindings = {f"{kernel.name}.chunks": len(bounds), **bindings}
    compiled = _compile(kernel, bindings)
    memory = _memory(kernel, arrays, bindings)
    failures: list[CheckFailure] = []
    with np.errstate(all="ignore"):
        for chunk in range(len(bounds)) if order is None else order:
            try:
                compiled.run(chunk, *bounds[chunk], memory)
            except CheckFailure as failure:
                failures.append(failure)
    if failures:
        raise min(failures, key=lambda failure: (failure.check, failure.position))


def run_kernels(
    program: KernelProgram,
    feeds: Mapping[str, Array],
    state: Mapping[str, Array] | None = None,
    bindings: Mapping[str, int] | None = None,
    seed: int | None = None,
    chunk_sizes: ChunkSizes = None,
) -> dict[str, Array]:
    """Runs a program's kernels in order; returns its outputs by label, as fresh arrays.

    `feeds` are inputs by storage name. `state` arrays by storage name are updated in place; a state
    storage not given uses its Variable's array. `bindings` are the dims; `<kernel>.chunks` is bound here
    from `chunk_sizes`. `seed` permutes the order of each kernel's chunks (None: rising order).
    """
    bindings = dict(bindings or {})
    sizes: dict[str, int] = {}
    for kernel in program.kernels:
        sizes[kernel.name] = chunk_size_of(kernel, bindings, chunk_sizes)
        if kernel.chunk_axis:
            bindings[f"{kernel.name}.chunks"] = len(chunk_bounds(kernel, bindings, sizes[kernel.name]))
    for left, right, context in program.guards:
        a, b = evaluate(left, bindings), evaluate(right, bindings)
        if a != b:
            raise ShapeError(f"{context}: extents {left} = {a} and {right} = {b} differ")
    arrays = {s.name: _storage_array(s, feeds, state or {}, bindings) for s in program.storages.values()}
    random = None if seed is None else np.random.default_rng(seed)
    for kernel in program.kernels:
        count = evaluate(kernel.chunks, bindings)
        order = None if random is None else [int(c) for c in random.permutation(count)]
        run_kernel(kernel, arrays, bindings, sizes[kernel.name], order)
    return {
        label: arrays[storage].reshape(_concrete(type.shape, bindings)).copy()
        for label, (storage, type) in program.outputs.items()
    }


def _storage_array(
    storage: Storage,
    feeds: Mapping[str, Array],
    state: Mapping[str, Array],
    bindings: Mapping[str, int],
) -> Array:
    shape, dtype = _concrete(storage.type.shape, bindings), storage.type.dtype
    if storage.kind in ("temporary", "output"):
        return poisoned(dtype, shape)
    if storage.kind == "constant":
        if storage.data is None:
            raise GraphcError(f"constant {storage.name} has no data")
        return storage.data.array
    if storage.kind == "state":
        found = state.get(storage.name)
        if found is None and storage.variable is not None:
            found = storage.variable.array
    else:
        found = feeds.get(storage.name)
    if found is None:
        raise FeedError(f"{storage.kind} {storage.name} is not given")
    if found.dtype != dtype.numpy or found.shape != shape:
        raise FeedError(f"{storage.name} is {found.dtype}{list(found.shape)}, not {dtype}{list(shape)}")
    return found if storage.kind == "state" else np.ascontiguousarray(found).reshape(shape)
