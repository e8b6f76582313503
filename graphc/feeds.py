"""Feeds: what is handed to `run`, checked against the inputs and converted where numpy would.

A feed that is a C-contiguous, aligned array of the declared dtype is used in place. Lists and other
dtypes are converted as far as the kind of value allows (float64 to float32, ints to floats, and between
integer dtypes where the values fit); anything else is a FeedError that names the input. Every check is
made before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import FeedError, ShapeError
from graphc.ir.addresses import address_of
from graphc.ir.binding import bind_dims, check_guards
from graphc.ir.graph import Node
from graphc.ir.types import DType, Extent, Guard, evaluate
from graphc.sites import meant

Array = np.ndarray[Any, Any]
CACHED_SHAPES = 256


class FeedPlan:
    """Knows the inputs of a network, and checks feeds against them.

    `guards` are equalities of extents that only a run can confirm; `protected` are the (first, end)
    addresses that a run writes to: a feed that lies there is copied. `located` gives the guards with the
    lines that ask for them, where they came without.
    """

    def __init__(
        self,
        inputs: Mapping[str, Node],
        guards: Sequence[Guard] = (),
        extents: Sequence[Extent] = (),
        protected: Sequence[tuple[int, int]] = (),
        located: Callable[[], Sequence[Guard]] = lambda: (),
    ) -> None:
        self.inputs = dict(inputs)
        self._dtypes = {name: node.types[0].dtype for name, node in inputs.items()}
        self._numpy = {name: dtype.numpy for name, dtype in self._dtypes.items()}
        self._guards = tuple(guards)
        self._located = located
        self._extents = tuple(extents)
        self._protected = tuple(protected)
        self._bound: dict[tuple[tuple[int, ...], ...], dict[str, int]] = {}

    def prepare(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, int]]:
        """Arrays that fit exactly, by name, and the values of the dims.

        Raises FeedError for an unknown, missing, misshapen or unsuitable feed, or two values for one dim;
        ShapeError where extents that the network needs equal differ, or one would be negative.
        """
        if feeds.keys() != self._dtypes.keys():
            self._check_names(feeds)
        arrays = {name: self._array(name, feeds[name]) for name in self._dtypes}
        shapes = tuple([array.shape for array in arrays.values()])
        bindings = self._bound.get(shapes)
        if bindings is None:
            bindings = self._bind(arrays)
            if len(self._bound) >= CACHED_SHAPES:
                self._bound.clear()
            self._bound[shapes] = bindings
        for name, array in arrays.items():
            arrays[name] = self._exact(name, array)
        return arrays, bindings

    def check_names(self, names: Sequence[str]) -> None:
        """Raises FeedError unless these are just the names of the inputs."""
        self._check_names(dict.fromkeys(names))

    def is_written(self, array: Array) -> bool:
        """Whether an array lies in memory that a run writes to, as a whole or in part."""
        reach = [(extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True)]
        first = address_of(array) + sum(step for step in reach if step < 0)
        end = address_of(array) + sum(step for step in reach if step > 0) + array.itemsize
        return array.size > 0 and any(first < stop and start < end for start, stop in self._protected)

    def _check_names(self, feeds: Mapping[str, Any]) -> None:
        for name in feeds:
            if name not in self._dtypes:
                hint = meant(str(name), self._dtypes)
                known = ", ".join(self._dtypes) or "none"
                raise FeedError(f"there is no input named {name!r} (inputs: {known}){hint}")
        for name, node in self.inputs.items():
            if name not in feeds:
                raise FeedError(f"input {name} ({node.types[0]}) was not fed")

    def _array(self, name: str, feed: Any) -> Array:
        if type(feed) is np.ndarray:
            return feed
        try:
            return np.asarray(feed)
        except ValueError as error:  # a ragged list
            raise FeedError(f"input {name}: {error}") from None

    def _bind(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        bindings = bind_dims(self.inputs, arrays)
        try:
            check_guards(self._guards, bindings)
        except ShapeError as error:
            check_guards(self._located(), bindings)
            raise error from None
        for extent in self._extents:
            value = evaluate(extent, bindings)
            if value < 0:
                raise ShapeError(f"the extent {extent} is {value} for {bindings}")
        return bindings

    def _exact(self, name: str, array: Array) -> Array:
        """The array itself, or a converted copy."""
        flags = array.flags
        if array.dtype != self._numpy[name]:
            array = convert(f"input {name}", array, self._dtypes[name])
        elif not (flags.c_contiguous and flags.aligned):
            array = np.array(array, order="C")
        elif self._protected and array.nbytes:
            first = address_of(array)
            end = first + array.nbytes
            if any(first < stop and start < end for start, stop in self._protected):
                array = array.copy()
        return array


def convert(what: str, array: Array, dtype: DType) -> Array:
    """A C-contiguous array of another dtype with the same values, floats rounded.

    Raises FeedError, naming `what`, for objects, strings and other kinds of value, and for integers that
    do not fit.
    """
    wanted = dtype.numpy
    between_integers = array.dtype.kind in "iub" and dtype.is_integer
    if not between_integers and (
        array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, wanted, casting="same_kind")
    ):
        raise FeedError(f"{what}: {array.dtype} cannot be used as {dtype}; convert it with astype()")
    if between_integers and not np.can_cast(array.dtype, wanted, casting="safe") and array.size:
        limits = np.iinfo(wanted)
        bad = (array < limits.min) | (array > limits.max)
        if bad.any():
            position = int(np.argmax(bad.reshape(-1)))
            value = array.reshape(-1)[position]
            raise FeedError(f"{what}: the value {value} at position {position} does not fit {dtype}")
    with np.errstate(all="ignore"):
        return array.astype(wanted, order="C")
