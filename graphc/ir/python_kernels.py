"""Kernels as Python functions of scalar loops over checked memory, for `graphc.ir.interpret_kernels`.

`kernel_source` shows what is run. Values are numpy scalars of the exact dtype, so integers wrap and float32
rounds as it does in native code. An access that is proven to lie inside its buffer is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import IndexRangeError, VerifyError
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
    Let,
    Load,
    Prefetch,
    Prim,
    Ref,
    Stmt,
    Store,
    Temp,
    Var,
)
from graphc.ir.scalar import COMBINES, PRIMITIVES, cast_array
from graphc.ir.text_kernels import NO_NAMES, Names, format_stmt
from graphc.ir.types import DTYPES, DType, Shape, evaluate

Array = np.ndarray[Any, Any]


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


def concrete(shape: Shape, bindings: Mapping[str, int]) -> tuple[int, ...]:
    """The extents of a shape at these dims."""
    return tuple(evaluate(extent, bindings) for extent in shape)


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
        self._shapes = {b.name: concrete(b.type.shape, bindings) for b in kernel.buffers}
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
