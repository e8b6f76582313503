"""Where the user declared what: call sites, and errors that name them.

`SITES` maps nodes to the line that declared them. It is a side table with weak keys, since origins are
no part of a node's meaning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from graphc.errors import DeclarationError, DTypeError, GraphcError, IndexRangeError, ShapeError
from graphc.ir.graph import Node, Operand, Origin, topological
from graphc.ir.types import SHORT_NAMES

SITES: WeakKeyDictionary[Node, Origin] = WeakKeyDictionary()

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_shown: dict[str, str] = {}
_origins: dict[str, Origin] = {}

_P = ParamSpec("_P")
_R = TypeVar("_R")


def call_site() -> str:
    """The innermost frame outside this package, as "file.py:12" (relative to the working directory)."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    path = frame.f_code.co_filename
    shown = _shown.get(path)
    if shown is None:
        shown = _shown[path] = _relative(path)
    return f"{shown}:{frame.f_lineno}"


def _relative(path: str) -> str:
    if path.startswith("<"):
        return path
    try:
        relative = os.path.relpath(path)
    except (ValueError, OSError):  # another drive, or a working directory that is gone
        return path
    return path if relative.startswith(os.pardir) else relative


def origin_of_site(site: str) -> Origin:
    """The Origin of one declaring line (shared between the nodes of that line)."""
    found = _origins.get(site)
    if found is None:
        found = _origins[site] = Origin(frozenset({site}))
    return found


def origins_of(operands: Iterable[Operand]) -> dict[Node, Origin]:
    """The declared origin of every node that the operands depend on."""
    return {node: SITES[node] for node in topological(operands) if node in SITES}


def declares(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes errors of a declaring function name it, its operands and the user's line."""
    name = function.__name__.strip("_")

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except (ShapeError, DTypeError, DeclarationError, IndexRangeError) as error:
            raise located(error, name, args) from None

    return wrapper


_MARK = " (declared at "


def located(error: GraphcError, name: str, operands: Iterable[Any]) -> GraphcError:
    """The error with the op, the operands' types and the declaring line in its message, once."""
    message = str(error)
    if _MARK in message:
        return error
    shown = ", ".join(text for text in map(_describe, operands) if text)
    head = f"{name}({shown})" if shown else name
    return type(error)(f"{head}: {message.removeprefix(name + ': ')}{_MARK}{call_site()})")


def _describe(value: Any) -> str:
    operand = getattr(value, "operand", None)
    if isinstance(operand, Operand):
        return str(operand.type)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        short = SHORT_NAMES.get(str(value.dtype), str(value.dtype))
        return f"{short}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (list, tuple)):
        parts = [_describe(item) for item in value]
        return f"[{', '.join(parts)}]" if len(parts) <= 16 and all(parts) else ""
    return repr(value) if isinstance(value, (bool, int, float, str)) else ""
