"""`gx.init`: initial values of parameters.

An initializer is any `f(rng, shape) -> array`. Random values are drawn from a generator seeded by the
parameter's name and the seed alone, so they do not depend on the process or on the order of declaration.
fan_in is the product of all extents but the first (weights are (out, in)), fan_out the first times the
receptive field, as in PyTorch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.errors import DeclarationError, ShapeError

if TYPE_CHECKING:
    from graphc.ir.types import TensorType

Array = np.ndarray[Any, Any]
# f(rng: np.random.Generator, shape) -> array. Named in full it would load numpy.random at import.
Initializer = Callable[..., Any]

_BLOCK_DRAWS = 1 << 13
_seed = 0
_on_seed: list[Callable[[], None]] = []


class Fixed:
    """The initializer of one value (an array, or a scalar for all elements). It draws nothing, so that no
    generator is made for it: numpy.random takes 10 ms to load."""

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value)

    def __call__(self, rng: Any, shape: tuple[int, ...]) -> Array:
        return self.value


class Drawn:
    """The initializer of random values: "uniform" in [a, b) or "normal" with mean a and deviation b, where
    `parameters` gives (a, b) for a shape. Draws what the generator's method of that name does."""

    def __init__(self, kind: str, parameters: Callable[[tuple[int, ...]], tuple[float, float]]) -> None:
        self._kind = kind
        self._parameters = parameters

    def __call__(self, rng: Any, shape: tuple[int, ...]) -> Array:
        return self.fill(rng, np.empty(shape))

    def fill(self, rng: np.random.Generator, out: Array) -> Array:
        """Draws into a contiguous array of any dtype, and returns it.

        A block of draws stays in the nearest cache until it is scaled and rounded: drawing all of it in
        float64 first takes twice as long, most of it on fresh pages.
        """
        a, b = self._parameters(out.shape)
        getattr(rng, self._kind)(a, b, 0)  # refuses what it has to, and draws nothing
        scale = b - a if self._kind == "uniform" else b
        standard: Any = rng.random if self._kind == "uniform" else rng.standard_normal
        flat = out.reshape(-1)
        block = np.empty(min(_BLOCK_DRAWS, flat.size))
        for start in range(0, flat.size, _BLOCK_DRAWS):
            part = block[: flat.size - start]
            standard(out=part)
            part *= scale
            part += a
            flat[start : start + len(part)] = part
        return out


def seed(value: int) -> None:
    """Sets the seed of parameters declared from now on, and starts the numbering of unnamed layers afresh."""
    global _seed
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise DeclarationError(f"a seed is an int, not {value!r}")
    _seed = value.__index__()
    for reset in _on_seed:
        reset()


def current_seed() -> int:
    """The seed that parameters declared now get."""
    return _seed


def on_seed(reset: Callable[[], None]) -> None:
    """Calls a function whenever the seed is set."""
    _on_seed.append(reset)


def draw(initializer: Initializer, name: str, seed: int, type: TensorType) -> Array:
    """The initial value of a parameter, not to be written to (a scalar's elements are one in memory).

    Raises ShapeError if the initializer's array does not fit.
    """
    shape = tuple(int(extent) for extent in type.shape)
    if isinstance(initializer, Fixed):
        value = initializer.value
    else:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        if isinstance(initializer, Drawn):
            return initializer.fill(rng, np.empty(shape, type.dtype.numpy))
        value = np.asarray(initializer(rng, shape))
    if value.shape not in ((), shape):
        raise ShapeError(f"the initial value of {name} has shape {value.shape}, not {shape}")
    return np.broadcast_to(value.astype(type.dtype.numpy), shape)


def resolve(spec: Any) -> Initializer:
    """An initializer from its name or a callable. Raises DeclarationError."""
    if isinstance(spec, str):
        if spec not in _BY_NAME:
            raise DeclarationError(f"no initializer {spec!r}; there are {', '.join(_BY_NAME)}")
        return _BY_NAME[spec]()
    if not callable(spec):
        raise DeclarationError(f"init is an array, a name or f(rng, shape), not {spec!r}")
    return _BY_FACTORY[spec]() if spec in _BY_FACTORY else spec


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out). A vector counts as a column: fan_in is its length."""
    if len(shape) < 2:
        size = int(shape[0]) if shape else 1
        return size, size
    field = math.prod(shape[2:])
    return int(shape[1]) * field, int(shape[0]) * field


def zeros() -> Initializer:
    """All zeros."""
    return Fixed(0.0)


def ones() -> Initializer:
    """All ones."""
    return Fixed(1.0)


def normal(mean: float = 0.0, std: float = 1.0) -> Initializer:
    """Normal with this mean and standard deviation."""
    return Drawn("normal", lambda shape: (mean, std))


def uniform(low: float = 0.0, high: float = 1.0) -> Initializer:
    """Uniform in [low, high)."""
    return Drawn("uniform", lambda shape: (low, high))


def _around_zero(bound: float) -> tuple[float, float]:
    return -bound, bound


def _gain(a: float) -> float:
    return math.sqrt(2 / (1 + a * a))


def kaiming_uniform(a: float = math.sqrt(5)) -> Initializer:
    """U(-b, b) with b = gain(a) * sqrt(3 / fan_in) (He et al. 2015).

    The default a = sqrt(5) gives b = 1 / sqrt(fan_in), the default of PyTorch's layers.
    """

    return Drawn("uniform", lambda shape: _around_zero(_gain(a) * math.sqrt(3 / max(fans(shape)[0], 1))))


def kaiming_normal(a: float = 0.0) -> Initializer:
    """Normal with standard deviation gain(a) / sqrt(fan_in) (He et al. 2015)."""
    return Drawn("normal", lambda shape: (0.0, _gain(a) / math.sqrt(max(fans(shape)[0], 1))))


def xavier_uniform(gain: float = 1.0) -> Initializer:
    """U(-b, b) with b = gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""

    return Drawn("uniform", lambda shape: _around_zero(gain * math.sqrt(6 / max(sum(fans(shape)), 1))))


def xavier_normal(gain: float = 1.0) -> Initializer:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return Drawn("normal", lambda shape: (0.0, gain * math.sqrt(2 / max(sum(fans(shape)), 1))))


_FACTORIES = (
    zeros, ones, normal, uniform, kaiming_uniform, kaiming_normal, xavier_uniform, xavier_normal,
)  # fmt: skip
_BY_NAME: dict[str, Callable[..., Initializer]] = {f.__name__: f for f in _FACTORIES}
# `init=gx.init.zeros` without the call means `gx.init.zeros()`.
_BY_FACTORY: dict[Any, Callable[..., Initializer]] = {f: f for f in _FACTORIES}
