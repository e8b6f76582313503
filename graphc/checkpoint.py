"""State on disk: safetensors files, written atomically and checked before anything changes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphc.errors import StateError
from graphc.ir.graph import Variable
from graphc.ir.types import DTYPES, evaluate

Array = np.ndarray[Any, Any]
METADATA = {"format": "graphc", "version": "1"}
OPTIMIZER_PREFIX = "optim."
"""Names of optimizer state begin so. A network without that optimizer passes over them when loading."""


def state_of(variables: Iterable[Variable]) -> dict[str, Array]:
    """Copies of the current values, by name."""
    return {variable.name: variable.array.copy() for variable in variables}


def check_state(
    variables: Iterable[Variable], state: Mapping[str, Any], strict: bool = True
) -> list[tuple[Variable, Array]]:
    """The arrays to load, by variable. Raises StateError; nothing has changed.

    Every name, dtype and shape must fit. Names that begin with "optim." may be left over. With
    `strict=False` only what both sides have is loaded, but it must still fit.
    """
    own = {variable.name: variable for variable in variables}
    if strict:
        missing = sorted(own.keys() - state.keys())
        unknown = sorted(n for n in state.keys() - own.keys() if not str(n).startswith(OPTIMIZER_PREFIX))
        if missing or unknown:
            parts = [f"missing: {', '.join(missing)}"] if missing else []
            parts += [f"unknown: {', '.join(unknown)}"] if unknown else []
            raise StateError(f"the state does not fit ({'; '.join(parts)}); nothing was loaded")
    pairs = []
    for name, variable in own.items():
        if name not in state:
            continue
        array = np.asarray(state[name])
        shape = tuple(evaluate(extent, {}) for extent in variable.type.shape)
        if array.shape != shape or array.dtype != variable.type.dtype.numpy:
            given = f"{array.dtype}{list(array.shape)}"
            raise StateError(f"{name} is {given}, not {variable.type.dtype}{list(shape)}; nothing was loaded")
        pairs.append((variable, array))
    return pairs


def load_state(pairs: Iterable[tuple[Variable, Array]]) -> None:
    """Writes checked arrays into their variables."""
    # Copies first: a given array may itself be a view of a parameter.
    for variable, array in [(variable, array.copy()) for variable, array in pairs]:
        variable.array[...] = array


def write_file(path: str | os.PathLike[str], state: Mapping[str, Array]) -> None:
    """Writes a safetensors file. The path holds the old file or the new one, never a part of it.

    StateError where the file cannot be written.
    """
    from safetensors.numpy import save

    target = Path(path)
    data = save({name: np.array(array, order="C") for name, array in state.items()}, METADATA)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    except OSError as error:
        raise StateError(f"cannot write {target}: {error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise StateError(f"cannot write {target}: {error}") from error
    _sync_directory(target.parent)


def _umask() -> int:
    """The process's file mode mask; mkstemp ignores it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    """Makes the new name durable, where directories can be synced (POSIX)."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_file(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a safetensors file by name. StateError if it cannot be read, or is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StateError(f"cannot read {path}: {error}") from error
    try:
        arrays: dict[str, Array] = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise StateError(f"{path} is not a safetensors file of {', '.join(DTYPES)}: {error}") from error
    return arrays
