"""`cached_property` without a lock: before Python 3.12 the standard library's has one, which all instances
share, and which a fork may find held by another thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class cached_property(Generic[T]):
    """A value that is made when it is first read. Two threads may make one each; all read the same."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, instance: None, owner: Any) -> cached_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: Any) -> T: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        # No data descriptor: from now on Python finds the value before it comes here.
        return vars(instance).setdefault(self._name, self._make(instance))
