"""Where the user declared what: call sites, and errors that name them, or the option that was meant.

`SITES` maps nodes to the line that declared them. It is a side table with weak keys, since origins are
no part of a node's meaning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import FunctionType
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from graphc.errors import DeclarationError, DTypeError, GraphcError, IndexRangeError, ShapeError, UsageError
from graphc.ir.graph import Node, Operand, Origin, topological
from graphc.ir.types import SHORT_NAMES

SITES: WeakKeyDictionary[Node, Origin] = WeakKeyDictionary()

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_site: ContextVar[str] = ContextVar("graphc_site", default="")
_shown: dict[str, str] = {}
_origins: dict[str, Origin] = {}

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")


def call_site() -> str:
    """The innermost frame outside this package, as "file.py:12" (relative to the working directory)."""
    given = _site.get()
    if given:
        return given
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    path = frame.f_code.co_filename
    shown = _shown.get(path)
    if shown is None:
        shown = _shown[path] = _relative(path)
    return f"{shown}:{frame.f_lineno}"


@contextmanager
def on_behalf_of(site: str) -> Iterator[None]:
    """Inside, `call_site` is this line: what it asked for is done now."""
    token = _site.set(site)
    try:
        yield
    finally:
        _site.reset(token)


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
    """Makes errors of a declaring function name it, its operands and the user's line; also as
    `names_options`."""
    name = function.__name__.strip("_")

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except (ShapeError, DTypeError, DeclarationError, IndexRangeError) as error:
            raise located(error, name, args) from None
        except TypeError as error:
            _require_known_options(error, function, args, kwargs)
            raise

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


# ------------------------------------------------------------------------------------------------- options


def names_options(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a call with an option that a function lacks a UsageError, which names the nearest one."""

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            _require_known_options(error, function, args, kwargs)
            raise

    return wrapper


def methods_name_options(cls: type[_T]) -> type[_T]:
    """`names_options` for every public method of a class."""
    for name, method in list(vars(cls).items()):
        if isinstance(method, FunctionType) and not name.startswith("_"):
            setattr(cls, name, names_options(method))
    return cls


def _require_known_options(
    error: TypeError, function: Callable[..., Any], args: Sequence[Any], given: Mapping[str, Any]
) -> None:
    """Raises UsageError if a function refused a call for an option that it does not have."""
    if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
        return  # raised inside the function
    if function.__name__ == "__init__":
        owner, known = type(args[0]).__name__, _options_of_class(type(args[0]))
    else:
        owner, known = function.__name__.strip("_"), _options(function)[len(args) :]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise unknown_option(owner, unknown, known) from None


def unknown_option(owner: str, name: str, known: Sequence[str]) -> UsageError:
    """The error for an option that is not there: "Adam has no option 'beta'; did you mean 'betas'?"."""
    hint = meant(name, known) or f"; there are {', '.join(known) or 'none'}"
    return UsageError(f"{owner} has no option {name!r}{hint}")


def _options(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters, those first that may be given by position."""
    from inspect import signature

    parameters = signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _options_of_class(cls: type) -> list[str]:
    """What a class is made with: also what its bases are, as far as they are handed the rest (`**common`)."""
    from inspect import signature

    found: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" in base.__dict__:
            init = base.__dict__["__init__"]
            found.update(dict.fromkeys(_options(init)[1:]))
            if all(p.kind is not p.VAR_KEYWORD for p in signature(init).parameters.values()):
                break
    return list(found)


def meant(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is near this one: by spelling, by initials, or by a word of it; or ""."""
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(name, names, 1)
    near = near or [k for k in names if k == _initials(name) or name == _initials(k)]
    near = near or [k for k in names if any(_begins(word, name) for word in k.split("_"))]
    return f"; did you mean {near[0]!r}?" if near else ""


def _begins(word: str, name: str) -> bool:
    """Whether one is the beginning of the other, and long enough to mean it."""
    return min(len(word), len(name)) > 2 and (word.startswith(name) or name.startswith(word))


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))
