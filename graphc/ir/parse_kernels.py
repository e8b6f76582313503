"""Reads the text form of kernels back: `parse_kernel` and `parse_kernels`.

The grammar stands in `graphc.ir.text_kernels`. A name in an expression means what its scope says: a loop
axis is its index, a Let or Var a reference, a buffer or local array a load. What is read here is well
formed, not yet valid: `graphc.ir.verify` checks the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from graphc.errors import ParseError
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Assign,
    Body,
    Buffer,
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
    Ref,
    Stmt,
    Storage,
    Store,
    Temp,
    Var,
    prim,
)
from graphc.ir.lexer import DTYPES_BY_SHORT_NAME, Cursor, lines_of, literal
from graphc.ir.literals import Bindings, read_data, read_variable
from graphc.ir.scalar import PRIMITIVES
from graphc.ir.text_kernels import COMBINE_SYMBOLS, HEADER, PRECEDENCE
from graphc.ir.types import DType, Extent, TensorType, bool_, float32, float64, int64

_COMBINES = {symbol: combine for combine, symbol in COMBINE_SYMBOLS.items()}
_ASSIGNING = ("[", "=", *_COMBINES)
_INFIX = {PRIMITIVES[name].symbol: name for name in PRECEDENCE}
_SPECIAL: dict[str, tuple[float | bool, DType]] = {
    "true": (True, bool_),
    "false": (False, bool_),
    **{
        f"{value}{suffix}": (float(value), dtype)
        for value in ("inf", "nan")
        for suffix, dtype in (("", float32), ("_f32", float32), ("_f64", float64))
    },
}


@dataclass(frozen=True)
class _Scope:
    """What names mean where a statement stands."""

    axes: frozenset[str] = frozenset({CHUNK})
    scalars: dict[str, DType] = field(default_factory=dict)
    arrays: dict[str, DType] = field(default_factory=dict)

    def with_axis(self, name: str) -> _Scope:
        return replace(self, axes=self.axes | {name})

    def with_scalar(self, name: str, dtype: DType) -> _Scope:
        return replace(self, scalars={**self.scalars, name: dtype}, axes=self.axes - {name})

    def with_array(self, name: str, dtype: DType) -> _Scope:
        return replace(self, arrays={**self.arrays, name: dtype})


# ----------------------------------------------------------------------------------------- expressions


def _affine(cursor: Cursor, scope: _Scope) -> Affine:
    result = Affine()
    sign = -1 if cursor.accept("-") else 1
    while True:
        result = result + _affine_term(cursor, scope).scale(sign)
        if not cursor.at("+", "-"):
            return result
        sign = 1 if cursor.take().text == "+" else -1


def _affine_term(cursor: Cursor, scope: _Scope) -> Affine:
    """`3`, `3*i`, `i`, `(B - 1)` or `(B)*i`."""
    coefficient: Extent = 1
    if cursor.peek().kind == "number":
        coefficient = cursor.natural()
    elif cursor.accept("("):
        coefficient = cursor.extent(")")
        cursor.expect(")")
    else:
        return _affine_name(cursor, scope)
    if cursor.accept("*"):
        return _affine_name(cursor, scope).scale(coefficient)
    return Affine((), coefficient)


def _affine_name(cursor: Cursor, scope: _Scope) -> Affine:
    token = cursor.peek()
    name = cursor.name("a loop axis")
    if name not in scope.axes and name not in scope.scalars:
        cursor.fail("no loop axis or integer of this name in scope", token)
    return Affine.of(name)


def _index(cursor: Cursor, scope: _Scope) -> tuple[Index, Expr | None, Expr | None]:
    """`[i, 2*j - 1 if guard else fill]`: the index, the guard and the fill."""
    cursor.expect("[")
    index: list[Affine] = []
    while not cursor.at("]", "if"):
        if index:
            cursor.expect(",")
        index.append(_affine(cursor, scope))
    guard = _expr(cursor, scope) if cursor.accept("if") else None
    fill = _expr(cursor, scope) if cursor.accept("else") else None
    cursor.expect("]")
    return tuple(index), guard, fill


def _expr(cursor: Cursor, scope: _Scope, context: int = 1) -> Expr:
    """An expression whose operators bind at least as tightly as `context`."""
    left = _primary(cursor, scope)
    while True:
        token = cursor.peek()
        name = _INFIX.get(token.text) if token.kind == "symbol" else None
        if name is None or PRECEDENCE[name] < context:
            return left
        cursor.take()
        level = PRECEDENCE[name]
        right = _expr(cursor, scope, level + 1)
        if left.dtype != right.dtype:
            cursor.fail(f"operands of {left.dtype} and {right.dtype}", token)
        left = prim(name, left, right)
        if level == 3 and cursor.peek().text in _INFIX and PRECEDENCE[_INFIX[cursor.peek().text]] == 3:
            cursor.fail("comparisons do not chain")


def _primary(cursor: Cursor, scope: _Scope) -> Expr:
    token = cursor.peek()
    if token.kind == "number" or token.text == "-" or token.text in _SPECIAL:
        return _constant(cursor)
    if cursor.accept("("):
        inner = _expr(cursor, scope)
        cursor.expect(")")
        return inner
    following = cursor.peek(1)
    if token.kind != "name":
        cursor.fail("expected an expression")
    if following.text == "(":
        return _call(cursor, scope)
    if following.text == "[":
        name = cursor.take().text
        if name not in scope.arrays:
            cursor.fail("no buffer or local array of this name in scope", token)
        index, guard, fill = _index(cursor, scope)
        if fill is not None and not isinstance(fill, Const):
            cursor.fail("a fill must be a constant", token)
        return Load(name, index, scope.arrays[name], guard, fill)
    name = cursor.take().text
    if name in scope.axes:
        return IndexValue(Affine.of(name))
    if name not in scope.scalars:
        cursor.fail("no value of this name in scope", token)
    return Ref(name, scope.scalars[name])


def _constant(cursor: Cursor) -> Const:
    negative = cursor.accept("-")
    token = cursor.peek()
    if token.text in _SPECIAL:
        value, dtype = _SPECIAL[cursor.take().text]
        if negative and dtype.is_bool:
            cursor.fail("expected a number", token)
        return Const(-value if negative else value, dtype)
    if token.kind != "number":
        cursor.fail("expected a number (negation of a value is written neg(...))")
    digits, suffix = cursor.number()
    if suffix and suffix not in DTYPES_BY_SHORT_NAME:
        cursor.fail("no such dtype suffix", token)
    dtype = DTYPES_BY_SHORT_NAME[suffix] if suffix else int64 if digits.isdecimal() else float32
    if dtype.is_integer and not digits.isdecimal():
        cursor.fail(f"not a literal of {dtype}", token)
    number = literal(digits, dtype)
    return Const(-number if negative else number, dtype)


def _call(cursor: Cursor, scope: _Scope) -> Expr:
    token = cursor.take()
    cursor.expect("(")
    if token.text == "index":
        affine = _affine(cursor, scope)
        cursor.expect(")")
        return IndexValue(affine)
    if token.text == "extent":
        extent = cursor.extent(")")
        cursor.expect(")")
        return ExtentValue(extent)
    operands = cursor.separated(")", lambda: _expr(cursor, scope))
    if token.text in DTYPES_BY_SHORT_NAME and len(operands) == 1:
        return Cast(operands[0], DTYPES_BY_SHORT_NAME[token.text])
    primitive = PRIMITIVES.get(token.text)
    if primitive is None or primitive.symbol:
        cursor.fail("no such primitive", token)
    if len(operands) != primitive.arity:
        cursor.fail(f"{token.text} takes {primitive.arity} operands, not {len(operands)}", token)
    return prim(token.text, *operands)


# ------------------------------------------------------------------------------------------ statements


class _Lines:
    """The lines of a text, looked at one at a time."""

    def __init__(self, lines: Sequence[Cursor]) -> None:
        self._lines = lines
        self._position = 0

    def peek(self) -> Cursor | None:
        return self._lines[self._position] if self._position < len(self._lines) else None

    def take(self) -> Cursor:
        cursor = self._lines[self._position]
        self._position += 1
        return cursor


def _body(lines: _Lines, indent: int, scope: _Scope) -> Body:
    """All statements that stand deeper than `indent`; they must line up."""
    body: list[Stmt] = []
    level: int | None = None
    while (cursor := lines.peek()) is not None and cursor.indent > indent:
        level = cursor.indent if level is None else level
        if cursor.indent != level:
            raise ParseError(f"this line should be indented by {level}", cursor.line, cursor.indent + 1)
        lines.take()
        stmt = _stmt(cursor, lines, scope)
        body.append(stmt)
        if isinstance(stmt, Let):
            scope = scope.with_scalar(stmt.name, stmt.expr.dtype)
        elif isinstance(stmt, Var):
            scope = scope.with_scalar(stmt.name, stmt.dtype)
        elif isinstance(stmt, Temp):
            scope = scope.with_array(stmt.name, stmt.dtype)
    return tuple(body)


def _stmt(cursor: Cursor, lines: _Lines, scope: _Scope) -> Stmt:
    keyword = cursor.peek().text
    if cursor.peek().kind != "name":
        cursor.fail("expected a statement")
    if cursor.peek(1).text in _ASSIGNING:
        stmt = _assignment(cursor, scope)
    elif keyword == "stream":
        cursor.take()
        store = _assignment(cursor, scope)
        if not isinstance(store, Store):
            cursor.fail("only a store streams")
        stmt = replace(store, stream=True)
    elif keyword == "for":
        return _for(cursor, lines, scope)
    elif keyword in ("let", "var", "temp", "check", "prefetch"):
        cursor.take()
        stmt = _declaration(keyword, cursor, scope)
    else:
        cursor.fail("expected a statement")
    cursor.end()
    return stmt


def _assignment(cursor: Cursor, scope: _Scope) -> Stmt:
    token = cursor.take()
    name = token.text
    if cursor.at("["):
        if name not in scope.arrays:
            cursor.fail("no buffer or local array of this name in scope", token)
        index, guard, fill = _index(cursor, scope)
        if fill is not None:
            cursor.fail("a store has no `else`", token)
        combine = _combine(cursor)
        return Store(name, index, _expr(cursor, scope), combine, guard)
    if name not in scope.scalars:
        cursor.fail("no variable of this name in scope", token)
    combine = _combine(cursor)
    expr = _expr(cursor, scope)
    return Combine(name, combine, expr) if combine else Assign(name, expr)


def _combine(cursor: Cursor) -> str:
    if not cursor.at("=", *_COMBINES):
        cursor.fail("expected `=` or a combining assignment")
    return _COMBINES.get(cursor.take().text, "")


def _declaration(keyword: str, cursor: Cursor, scope: _Scope) -> Stmt:
    if keyword == "check":
        condition = _expr(cursor, scope)
        cursor.expect("at")
        return Check(condition, _affine(cursor, scope))
    if keyword == "prefetch":
        return _prefetch(cursor, scope)
    name = cursor.name("a name")
    if keyword == "let":
        cursor.expect("=")
        return Let(name, _expr(cursor, scope))
    cursor.expect(":")
    if keyword == "temp":
        type = cursor.type()
        return Temp(name, type.dtype, type.shape)
    dtype = cursor.dtype()
    cursor.expect("=")
    return Var(name, dtype, _expr(cursor, scope))


def _prefetch(cursor: Cursor, scope: _Scope) -> Prefetch:
    token = cursor.peek()
    source = cursor.name("a buffer")
    words = {"far": False, "once": False}
    for word in words:
        words[word] = source == word and not cursor.at("[")
        if words[word]:
            token = cursor.peek()
            source = cursor.name("a buffer")
    if source not in scope.arrays:
        cursor.fail("no buffer or local array of this name in scope", token)
    index, guard, _ = _index(cursor, scope)
    if guard is not None:
        cursor.fail("a prefetch has no guard", token)
    return Prefetch(source, index, **words)


def _for(cursor: Cursor, lines: _Lines, scope: _Scope) -> For:
    cursor.expect("for")
    axis = cursor.name("an axis")
    extent = _angled(cursor)
    chunked = cursor.accept("chunked")
    tile, vector = 1, False
    if cursor.at("tile", "vector"):
        vector = cursor.take().text == "vector"
        tile = cursor.natural()
    apart = cursor.accept("apart")
    cursor.expect(":")
    cursor.end()
    body = _body(lines, cursor.indent, scope.with_axis(axis))
    return For(axis, extent, body, chunked, tile, vector, apart)


def _angled(cursor: Cursor) -> Extent:
    cursor.expect("<")
    extent = cursor.extent(">")
    cursor.expect(">")
    return extent


# ------------------------------------------------------------------------------------ kernels, programs


def _kernel(lines: _Lines) -> Kernel:
    cursor = lines.take()
    cursor.expect("kernel")
    name, form = cursor.name("the kernel's name"), cursor.name("the kernel's form")
    axis, granule = "", 1
    chunk_extent: Extent = 1
    cost: Extent = 1
    if cursor.peek(1).text == "<" or cursor.at("<"):
        axis = "" if cursor.at("<") else cursor.name("an axis")
        chunk_extent = _angled(cursor)
    if cursor.accept("cost"):
        cost = _held(cursor)
    if cursor.accept("granule"):
        granule = cursor.natural()
    cursor.end()
    buffers: list[Buffer] = []
    while (line := lines.peek()) is not None and line.indent > cursor.indent and _is_buffer(line):
        buffers.append(_buffer(lines.take()))
    scope = _Scope(arrays={buffer.name: buffer.type.dtype for buffer in buffers})
    body = _body(lines, cursor.indent, scope)
    return Kernel(
        name, form, tuple(buffers), body, axis, chunk_extent, cost, granule, cursor.unquoted_comment()
    )


def _held(cursor: Cursor) -> Extent:
    """A plain number, or an extent in parentheses."""
    if cursor.accept("("):
        extent = cursor.extent(")")
        cursor.expect(")")
        return extent
    sign = -1 if cursor.accept("-") else 1
    return sign * cursor.natural()


def _is_buffer(cursor: Cursor) -> bool:
    return cursor.at("in", "out", "inout") and cursor.peek(1).kind == "name"


def _buffer(cursor: Cursor) -> Buffer:
    access, name = cursor.take().text, cursor.name("a buffer's name")
    cursor.expect(":")
    type = cursor.type()
    storage = cursor.name("a storage") if cursor.accept("=") else name
    cursor.end()
    return Buffer(name, storage, type, access)


def _storage(cursor: Cursor, bindings: Bindings) -> Storage:
    cursor.expect("storage")
    name = cursor.name("the storage's name")
    cursor.expect(":")
    type = cursor.type()
    kind = cursor.name("the storage's kind")
    variable, data = None, None
    if cursor.at("of") or cursor.peek().kind == "digest":
        owner, owned = name, type
        if cursor.accept("of"):
            owner = cursor.name("the variable's name")
            cursor.expect(":")
            owned = cursor.type()
        variable = read_variable(cursor, bindings, owner, owned)
    if cursor.at("const"):
        data = read_data(cursor, bindings, name)
    cursor.end()
    return Storage(name, type, kind, variable, data)


def parse_kernel(text: str) -> Kernel:
    """One kernel, as `print_kernel` writes it. Raises ParseError with line and column."""
    lines = _Lines(list(lines_of(text)))
    if lines.peek() is None:
        raise ParseError("there is no kernel", 1, 1)
    kernel = _kernel(lines)
    if (rest := lines.peek()) is not None:
        rest.fail("expected the end of the text")
    return kernel


def parse_kernels(text: str, bindings: Bindings | None = None) -> KernelProgram:
    """A kernel program, as `print_kernels` writes it.

    `bindings` maps the names or digests of state and large constants to Variables or arrays (an array
    makes a fresh Variable). Raises ParseError with line and column, also for a missing binding.
    """
    lines = _Lines(list(lines_of(text)))
    head = lines.peek()
    if head is None or head.text.split() != HEADER.split():
        raise ParseError(f"the text does not begin with `{HEADER}`", head.line if head else 1, 1)
    lines.take()
    storages: dict[str, Storage] = {}
    outputs: dict[str, tuple[str, TensorType]] = {}
    guards: list[tuple[Extent, Extent, str]] = []
    kernels: list[Kernel] = []
    while (cursor := lines.peek()) is not None:
        if cursor.at("kernel"):
            kernels.append(_kernel(lines))
            continue
        lines.take()
        if cursor.at("storage"):
            storage = _storage(cursor, bindings or {})
            if storage.name in storages:
                raise ParseError(f"storage {storage.name} is declared twice", cursor.line, 1)
            storages[storage.name] = storage
        elif cursor.accept("output"):
            label, (target, type) = _output(cursor)
            outputs[label] = (target, type)
        elif cursor.accept("guard"):
            left = cursor.extent("==")
            cursor.expect("==")
            guards.append((left, cursor.extent(), cursor.unquoted_comment()))
        else:
            cursor.fail("expected storage, output, guard or kernel")
    return KernelProgram(storages, tuple(kernels), outputs, tuple(guards))


def _output(cursor: Cursor) -> tuple[str, tuple[str, TensorType]]:
    label = cursor.name("the output's label")
    cursor.expect(":")
    type = cursor.type()
    cursor.expect("=")
    storage = cursor.name("a storage")
    cursor.end()
    return label, (storage, type)
