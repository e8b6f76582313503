"""Tokens of IR text, one line at a time; both text forms (graphs and kernels) are read through `Cursor`.

line = indentation, tokens, optional `; comment`
token = "json string" | number with an optional dtype suffix | name | #digest | %value | symbol
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np

from graphc.errors import GraphcError, ParseError
from graphc.ir.types import DTYPES, SHORT_NAMES, DType, Extent, TensorType, parse_extent

T = TypeVar("T")
DTYPES_BY_SHORT_NAME = {short: DTYPES[name] for name, short in SHORT_NAMES.items()}

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*")
      | (?P<number>\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?:[fiu]\d+)?)
      | (?P<symbol>(?:max|min)=(?!=)|\+=|\*=|==|!=|<=|>=|->|[-+*/=<>()\[\]{},:;&|$])
      | (?P<name>[A-Za-z_]\w*(?:\.\w+)*)
      | (?P<digest>\#[0-9a-f]+)
      | (?P<value>%\d+)""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"(?P<digits>[\d.]+(?:[eE][-+]?\d+)?)(?P<suffix>[fiu]\d+)?\Z")


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # string | number | symbol | name | digest | value | end
    text: str
    column: int  # from 1

    @property
    def end(self) -> int:
        """The column after the token."""
        return self.column + len(self.text)


class Cursor:
    """A position within the tokens of one line. Every failure is a ParseError with line and column."""

    def __init__(self, text: str, line: int) -> None:
        self.text = text
        self.line = line
        self.indent = len(text) - len(text.lstrip(" "))
        self.comment = ""
        self._tokens: list[Token] = []
        self._position = 0
        self._read()

    def _read(self) -> None:
        column, text = self.indent, self.text.rstrip()
        while column < len(text):
            if text[column] == " ":
                column += 1
                continue
            if text[column] == ";":
                self.comment = text[column + 1 :].strip()
                break
            match = _TOKEN.match(text, column)
            if match is None:
                raise ParseError(f"unexpected character {text[column]!r}", self.line, column + 1)
            self._tokens.append(Token(match.lastgroup or "", match.group(), column + 1))
            column = match.end()
        end = self._tokens[-1].end if self._tokens else self.indent + 1
        self._tokens.append(Token("end", "", end))

    def unquoted_comment(self) -> str:
        """The comment; one that is a JSON string stands for what it holds (see format_comment)."""
        if not self.comment.startswith('"'):
            return self.comment
        try:
            value = json.loads(self.comment)
        except json.JSONDecodeError as error:
            raise ParseError(f"bad string in a comment: {error.msg}", self.line, self.peek().column) from None
        return str(value)

    def peek(self, ahead: int = 0) -> Token:
        return self._tokens[min(self._position + ahead, len(self._tokens) - 1)]

    def at(self, *texts: str) -> bool:
        """Whether the next token is one of these names or symbols."""
        return self.peek().kind in ("symbol", "name", "end") and self.peek().text in texts

    def take(self) -> Token:
        token = self.peek()
        if token.kind == "end":
            self.fail("the line ends too early")
        self._position += 1
        return token

    def accept(self, text: str) -> bool:
        """Takes the next token if it is this name or symbol."""
        if self.at(text):
            self._position += 1
            return True
        return False

    def expect(self, text: str) -> Token:
        if not self.at(text):
            self.fail(f"expected `{text}`")
        return self.take()

    def end(self) -> None:
        if self.peek().kind != "end":
            self.fail("unexpected text")

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        """Raises ParseError at a token (default: the next one)."""
        token = token or self.peek()
        found = f", found `{token.text}`" if token.text else ", found the end of the line"
        raise ParseError(message + found, self.line, token.column)

    def name(self, what: str) -> str:
        """A plain name, or a quoted one."""
        token = self.peek()
        if token.kind == "string":
            return self.string()
        if token.kind != "name":
            self.fail(f"expected {what}")
        return self.take().text

    def string(self) -> str:
        token = self.take()
        try:
            value = json.loads(token.text)
        except json.JSONDecodeError:
            self.fail("bad string", token)
        assert isinstance(value, str)
        return value

    def digest(self) -> str:
        if self.peek().kind != "digest":
            self.fail("expected a #digest")
        return self.take().text[1:]

    def natural(self) -> int:
        """A plain integer without sign or suffix."""
        token = self.peek()
        if token.kind != "number" or not token.text.isdecimal():
            self.fail("expected an integer")
        return int(self.take().text)

    def number(self) -> tuple[str, str]:
        """A number literal's digits and its dtype suffix ("" if none)."""
        token = self.take()
        match = _NUMBER.match(token.text)
        if match is None:
            self.fail("bad number", token)
        return match["digits"], match["suffix"] or ""

    def extent(self, *closing: str) -> Extent:
        """An extent up to (not including) one of these symbols, or the end of the line."""
        first, depth = self.peek(), 0
        while self.peek().kind != "end" and (depth or not self.at(*closing)):
            depth += self.at("(") - self.at(")")
            self._position += 1
        source = self.text[first.column - 1 : self.peek().column - 1]
        return self.checked(lambda: parse_extent(source), first)

    def dtype(self) -> DType:
        token = self.peek()
        if token.kind != "name" or token.text not in DTYPES_BY_SHORT_NAME:
            self.fail("expected a dtype")
        return DTYPES_BY_SHORT_NAME[self.take().text]

    def type(self) -> TensorType:
        """`f32[B, 10]`"""
        dtype = self.dtype()
        self.expect("[")
        shape = tuple(self.separated("]", lambda: self.extent(",", "]")))
        return TensorType(dtype, shape)

    def separated(self, closing: str, item: Callable[[], T]) -> list[T]:
        """Items between commas up to a closing symbol, which is taken too."""
        items: list[T] = []
        while not self.accept(closing):
            if items:
                self.expect(",")
            items.append(item())
        return items

    def checked(self, build: Callable[[], T], token: Token) -> T:
        """What `build` returns; an error of its own becomes a ParseError at the token."""
        try:
            return build()
        except ParseError:
            raise
        except GraphcError as error:
            raise ParseError(str(error), self.line, token.column) from error


def lines_of(text: str, first: int = 1) -> Iterator[Cursor]:
    """A cursor for each line that holds more than a comment."""
    for number, line in enumerate(text.splitlines(), first):
        stripped = line.strip()
        if stripped and not stripped.startswith(";"):
            yield Cursor(line, number)


def literal(digits: str, dtype: DType) -> float | int:
    """The exact value of a number literal of a dtype, as a Python scalar."""
    if dtype.is_float:
        value: float = np.dtype(dtype.name).type(digits).item()
        return value
    return int(digits)
