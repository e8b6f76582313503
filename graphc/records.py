"""`dataclass`, as the standard library has it, but made in a quarter of the time.

A frozen dataclass with slots takes the standard library 0.65 ms, because it compiles six functions for each;
the compiler has eighty of these classes, and a first `gx.compile` loads most. Here one text with the three
functions that are called often is compiled, and the others are closures. Instances are also made faster:
`__init__` of a frozen class with slots writes through the slots' descriptors.

`dataclasses.field` and `dataclasses.replace` work as ever. What no class here needs is left out: fields that
are inherited, keyword-only ones, an order, copies and pickles of what is frozen and has slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")
Fields = dict[str, dataclasses.Field[Any]]


def _make(cls: type[T], frozen: bool, slots: bool, eq: bool) -> type[T]:
    fields = _fields_of(cls)
    if slots:
        cls = _with_slots(cls, list(fields))
    own: dict[str, Any] = _functions(cls, fields, frozen, slots, eq)
    own["__repr__"] = _representation(fields)
    own["__dataclass_fields__"] = fields
    own["__match_args__"] = tuple(field.name for field in fields.values() if field.init)
    if eq and not frozen:
        own["__hash__"] = None
    if frozen:
        own["__setattr__"], own["__delattr__"] = _refuse_assignment, _refuse_deletion
    for name, value in own.items():
        # A class that says how it is compared but not how it is hashed has None there of itself.
        if cls.__dict__.get(name) is None:
            setattr(cls, name, value)
    return cls


def _fields_of(cls: type[Any]) -> Fields:
    """The annotated attributes in order. A default is left as an attribute of the class."""
    fields: Fields = {}
    for name, annotation in cls.__annotations__.items():
        if "ClassVar" not in annotation:
            default = cls.__dict__.get(name, dataclasses.MISSING)
            field = default if isinstance(default, dataclasses.Field) else dataclasses.field(default=default)
            field.name, field.type = name, annotation
            fields[name] = field
            if field.default is not dataclasses.MISSING:
                setattr(cls, name, field.default)
            elif default is not dataclasses.MISSING:
                delattr(cls, name)
    return fields


def _with_slots(cls: type[T], names: list[str]) -> type[T]:
    """The class anew, since slots are laid out when a class is made."""
    apart = {"__dict__", "__weakref__", *names}
    namespace = {key: value for key, value in cls.__dict__.items() if key not in apart}
    namespace["__slots__"] = names
    namespace["__qualname__"] = cls.__qualname__
    made: type[T] = type(cls.__name__, cls.__bases__, namespace)
    return made


def _functions(cls: type[Any], fields: Fields, frozen: bool, slots: bool, eq: bool) -> dict[str, Any]:
    """What is called often, compiled together: __init__, and __eq__ and __hash__ if they are wanted."""
    names: dict[str, Any] = {"_absent": dataclasses.MISSING, "_set": object.__setattr__}
    lines = _initializer(cls, fields, frozen, slots, names)
    if eq:
        compared = [field.name for field in fields.values() if field.compare]
        lines += [
            "def __eq__(self, other):",
            " if other.__class__ is not self.__class__: return NotImplemented",
            f" return {_values('self', compared)} == {_values('other', compared)}",
        ]
        if frozen:
            hashed = [f.name for f in fields.values() if (f.compare if f.hash is None else f.hash)]
            lines += ["def __hash__(self):", f" return hash({_values('self', hashed)})"]
    exec("\n".join(lines), names)
    found: dict[str, Any] = {}
    for name in ("__init__", "__eq__", "__hash__"):
        if name in names:
            found[name] = names[name]
            names[name].__qualname__ = f"{cls.__qualname__}.{name}"
    return found


def _initializer(
    cls: type[Any], fields: Fields, frozen: bool, slots: bool, names: dict[str, Any]
) -> list[str]:
    """The lines of __init__; what they refer to is put into `names`."""
    parameters, lines = ["self"], []
    for name, field in fields.items():
        value = name
        if field.default_factory is not dataclasses.MISSING:
            names[f"_made_{name}"] = field.default_factory
            parameters.append(f"{name}=_absent")
            value = f"_made_{name}() if {name} is _absent else {name}"
        elif field.default is not dataclasses.MISSING:
            names[f"_default_{name}"] = field.default
            parameters.append(f"{name}=_default_{name}")
        elif field.init:
            parameters.append(name)
        else:
            continue
        if not frozen:
            lines.append(f" self.{name} = {value}")
        elif slots:
            names[f"_set_{name}"] = cls.__dict__[name].__set__
            lines.append(f" _set_{name}(self, {value})")
        else:
            lines.append(f" _set(self, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    return [f"def __init__({', '.join(parameters)}):", *(lines or [" pass"])]


def _values(of: str, names: list[str]) -> str:
    return f"({''.join(f'{of}.{name}, ' for name in names)})"


def _representation(fields: Fields) -> Callable[[Any], str]:
    shown = [field.name for field in fields.values() if field.repr]

    def __repr__(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{self.__class__.__qualname__}({values})"

    return __repr__


def _refuse_assignment(self: Any, name: str, value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deletion(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True):
        """As `dataclasses.dataclass` with these options."""
        if cls is None:
            return lambda cls: _make(cls, frozen, slots, eq)
        return _make(cls, frozen, slots, eq)
