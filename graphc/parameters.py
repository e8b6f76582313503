"""The mapping behind `Executable.params`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NoReturn

import numpy as np

from graphc.errors import StateError, UsageError
from graphc.ir.graph import Variable

Array = np.ndarray[Any, Any]


class Parameters(MutableMapping[str, Array]):
    """Parameters by name. Reading gives a live view; assigning writes into it, and shapes must be equal."""

    def __init__(self, variables: Mapping[str, Variable]) -> None:
        self._variables = dict(variables)

    def __getitem__(self, name: str) -> Array:
        try:
            return self._variables[name].array
        except KeyError:
            raise StateError(
                f"there is no parameter {name!r}; there are {', '.join(self) or 'none'}"
            ) from None

    def __setitem__(self, name: str, value: Any) -> None:
        view = self[name]
        array = np.asarray(value)
        if array.shape != view.shape:
            raise StateError(f"{name} has shape {list(view.shape)}, and the value {list(array.shape)}")
        if array.dtype == object or not np.can_cast(array.dtype, view.dtype, casting="same_kind"):
            raise StateError(f"{name} is {view.dtype}, and {array.dtype} cannot be used as that")
        view[...] = array

    def __contains__(self, name: object) -> bool:
        return name in self._variables

    def __delitem__(self, name: str) -> NoReturn:
        raise UsageError("parameters belong to the network and cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return f"<Parameters {', '.join(f'{n}: {v.type}' for n, v in self._variables.items())}>"
