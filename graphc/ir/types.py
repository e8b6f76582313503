"""Element types, extents and tensor types: the vocabulary every stage shares.

    Extent      = int | SymbolicExtent
    SymbolicExtent = integer polynomial over atoms;  atom = Dim(name) | floordiv(Extent, Extent)
                                                          | max(Extent, Extent) | min(Extent, Extent)
    TensorType  = (DType, shape: tuple[Extent, ...])

A symbolic extent is canonical: two that denote the same polynomial are equal and hash equal, so `2*B`
is `B + B`. A constant one is always a plain `int`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from graphc.errors import DTypeError, ShapeError


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. `kind` is one of float, int, uint, bool; `rank` orders promotion within a kind."""

    name: str
    kind: str
    bits: int

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.name)

    @property
    def itemsize(self) -> int:
        return max(self.bits // 8, 1)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


float32 = DType("float32", "float", 32)
float64 = DType("float64", "float", 64)
int32 = DType("int32", "int", 32)
int64 = DType("int64", "int", 64)
uint8 = DType("uint8", "uint", 8)
bool_ = DType("bool", "bool", 8)

DTYPES: Mapping[str, DType] = {d.name: d for d in (float32, float64, int32, int64, uint8, bool_)}
SHORT_NAMES: Mapping[str, str] = {
    "float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64", "uint8": "u8", "bool": "bool",
}  # fmt: skip


def as_dtype(dtype: DType | str | type | np.dtype[Any]) -> DType:
    """The DType named by a string, a numpy dtype, a Python scalar type or a DType."""
    if isinstance(dtype, DType):
        return dtype
    if dtype is float:
        return float32
    if dtype is int:
        return int64
    try:
        name = np.dtype(dtype).name
    except TypeError:
        raise DTypeError(f"{dtype!r} is not a dtype") from None
    if name not in DTYPES:
        raise DTypeError(f"dtype {name} is not supported; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


_PROMOTION_ORDER = ("bool", "uint8", "int32", "int64", "float32", "float64")


def promote(a: DType, b: DType) -> DType:
    """The common dtype of two arrays, as PyTorch promotes (int64 with float32 is float32).

    numpy differs: there int32 with float32 is float64, which would send networks to float64.
    """
    return DTYPES[max(a.name, b.name, key=_PROMOTION_ORDER.index)]


# --------------------------------------------------------------------------------------------- extents

# A monomial is a sorted tuple of atoms (repeats are powers); the empty tuple is the constant term.
Monomial = tuple["Atom", ...]


@dataclass(frozen=True, slots=True)
class Atom:
    """An indivisible factor of an extent: a named dim, or floordiv/min/max of two extents."""

    kind: str  # dim | floordiv | min | max
    name: str
    operands: tuple[Any, ...] = ()

    def evaluate(self, bindings: Mapping[str, int]) -> int:
        if self.kind == "dim":
            try:
                return bindings[self.name]
            except KeyError:
                raise ShapeError(f"dim {self.name} is not bound") from None
        left, right = (evaluate(e, bindings) for e in self.operands)
        if self.kind == "floordiv":
            return left // right
        return max(left, right) if self.kind == "max" else min(left, right)

    def __str__(self) -> str:
        if self.kind == "dim":
            return self.name
        return f"{self.kind}({self.operands[0]}, {self.operands[1]})"

    @property
    def sort_key(self) -> tuple[str, str]:
        return (self.kind, str(self))


class SymbolicExtent:
    """A non-constant integer polynomial over atoms. Build with `dim` and arithmetic operators."""

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymbolicExtent) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Extent) -> Extent:
        return _combine(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Extent) -> Extent:
        return _combine(self, other, -1)

    def __rsub__(self, other: Extent) -> Extent:
        return _combine(other, self, -1)

    def __neg__(self) -> Extent:
        return _combine(0, self, -1)

    def __mul__(self, other: Extent) -> Extent:
        if isinstance(other, int):
            if other in (0, 1):
                return self if other else 0
            return SymbolicExtent(tuple([(monomial, other * c) for monomial, c in self.terms]))
        result: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = tuple(sorted(left + right, key=lambda atom: atom.sort_key))
                result[monomial] = result.get(monomial, 0) + a * b
        return _canonical(result)

    __rmul__ = __mul__

    def __floordiv__(self, other: Extent) -> Extent:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Extent) -> Extent:
        return floordiv(other, self)

    def __bool__(self) -> bool:
        raise ShapeError(f"the truth of the symbolic extent {self} is unknown until it is bound")

    def __index__(self) -> int:
        raise ShapeError(f"the symbolic extent {self} has no value until it is bound")

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+"
            parts.append((sign, "*".join(factors)))
        first_sign, first = parts[0]
        text = first if first_sign == "+" else f"-{first}"
        return text + "".join(f" {sign} {part}" for sign, part in parts[1:])

    __repr__ = __str__


Extent = int | SymbolicExtent
Shape = tuple[Extent, ...]


def _terms(extent: Extent) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(extent, SymbolicExtent):
        return extent.terms
    return (((), int(extent)),)


def _canonical(terms: dict[Monomial, int]) -> Extent:
    kept = {m: c for m, c in terms.items() if c != 0}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    if len(kept) == 1:
        return SymbolicExtent(tuple(kept.items()))
    # Highest degree first, the constant last: the order a person writes.
    order = sorted(kept, key=lambda m: (-len(m), [atom.sort_key for atom in m]))
    return SymbolicExtent(tuple((m, kept[m]) for m in order))


def _combine(left: Extent, right: Extent, sign: int) -> Extent:
    if isinstance(right, int) and right == 0:
        return left
    result = dict(_terms(left))
    for monomial, coefficient in _terms(right):
        result[monomial] = result.get(monomial, 0) + sign * coefficient
    return _canonical(result)


_DIM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def dim(name: str) -> SymbolicExtent:
    """A named symbolic extent, bound by the feeds at run time. Equal names are the same dim."""
    if not isinstance(name, str) or not _DIM_NAME.match(name):
        raise ShapeError(f"a dim needs a name made of letters, digits and underscores, not {name!r}")
    return SymbolicExtent((((Atom("dim", name),), 1),))


def floordiv(left: Extent, right: Extent) -> Extent:
    """`left // right`, simplified where every coefficient divides exactly."""
    if isinstance(right, int):
        if right == 0:
            raise ShapeError(f"extent {left} is divided by zero")
        if isinstance(left, int):
            return left // right
        if all(c % right == 0 for _, c in left.terms):
            return _canonical({m: c // right for m, c in left.terms})
    if left == right:
        return 1
    if isinstance(left, int) and left == 0:
        return 0
    quotient = _exact_quotient(left, right)
    return quotient if quotient is not None else _atom("floordiv", left, right)


def _exact_quotient(left: Extent, right: Extent) -> Extent | None:
    """left / right where right is a single monomial that divides each term of left."""
    divisor = _terms(right)
    if len(divisor) != 1:
        return None
    monomial, coefficient = divisor[0]
    result: dict[Monomial, int] = {}
    for term, c in _terms(left):
        remaining = list(term)
        for atom in monomial:
            if atom not in remaining:
                return None
            remaining.remove(atom)
        if c % coefficient:
            return None
        result[tuple(remaining)] = c // coefficient
    return _canonical(result)


def ceildiv(left: Extent, right: Extent) -> Extent:
    """The smallest extent e with e * right >= left."""
    return floordiv(left + right - 1, right)


def divides(divisor: int, extent: Extent) -> bool:
    """Whether an extent is a multiple of `divisor` (positive), whatever its dims are bound to.

    False also where that cannot be told.
    """
    return all(coefficient % divisor == 0 for _, coefficient in _terms(extent))


def extent_max(left: Extent, right: Extent) -> Extent:
    if isinstance(left, int) and isinstance(right, int):
        return max(left, right)
    return left if left == right else _atom("max", left, right)


def extent_min(left: Extent, right: Extent) -> Extent:
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right)
    return left if left == right else _atom("min", left, right)


def _atom(kind: str, left: Extent, right: Extent) -> Extent:
    return SymbolicExtent((((Atom(kind, "", (left, right)),), 1),))


def evaluate(extent: Extent, bindings: Mapping[str, int]) -> int:
    """The value of an extent under bindings of dim names; raises ShapeError for an unbound dim."""
    if isinstance(extent, int):
        return extent
    return sum(c * prod(a.evaluate(bindings) for a in m) for m, c in extent.terms)


def dims_of(extent: Extent) -> frozenset[str]:
    """The names of all dims that an extent mentions."""
    if isinstance(extent, int):
        return frozenset()
    names: set[str] = set()
    for monomial, _ in extent.terms:
        for atom in monomial:
            names |= {atom.name} if atom.kind == "dim" else set().union(*map(dims_of, atom.operands))
    return frozenset(names)


def substitute(extent: Extent, bindings: Mapping[str, Extent]) -> Extent:
    """The extent with dims replaced by other extents (those not named stay)."""
    if isinstance(extent, int):
        return extent
    total: Extent = 0
    for monomial, coefficient in extent.terms:
        factor: Extent = coefficient
        for atom in monomial:
            if atom.kind == "dim":
                factor = factor * bindings.get(atom.name, dim(atom.name))
            else:
                left, right = (substitute(e, bindings) for e in atom.operands)
                build = {"floordiv": floordiv, "max": extent_max, "min": extent_min}[atom.kind]
                factor = factor * build(left, right)
        total = total + factor
    return total


def parse_extent(text: str) -> Extent:
    """Reads what `str(extent)` prints. Raises ShapeError for anything else."""
    tokens = re.findall(r"\d+|[A-Za-z_][\w.]*|[-+*(),]|\S", text)
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take(expected: str | None = None) -> str:
        nonlocal position
        token = peek()
        if not token or (expected is not None and token != expected):
            raise ShapeError(f"cannot read the extent {text!r} at {token!r}")
        position += 1
        return token

    def total() -> Extent:
        value: Extent = 0
        sign = 1
        if peek() == "-":
            take()
            sign = -1
        value = product() * sign
        while peek() in ("+", "-"):
            value = value + product() if take() == "+" else value - product()
        return value

    def product() -> Extent:
        value = factor()
        while peek() == "*":
            take()
            value = value * factor()
        return value

    def factor() -> Extent:
        token = take()
        if token.isdecimal():
            return int(token)
        if token == "(":
            value = total()
            take(")")
            return value
        build: Callable[[Extent, Extent], Extent] | None = {
            "floordiv": floordiv, "max": extent_max, "min": extent_min,
        }.get(token)  # fmt: skip
        if build is not None and peek() == "(":
            take("(")
            left = total()
            take(",")
            right = total()
            take(")")
            return build(left, right)
        return dim(token)

    result = total()
    if position != len(tokens):
        raise ShapeError(f"cannot read the extent {text!r} at {peek()!r}")
    return result


@lru_cache(maxsize=4096)
def _product(extents: Shape) -> Extent:
    total: Extent = 1
    for extent in extents:
        total = total * extent
    return total


# ------------------------------------------------------------------------------------------ tensor type


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape of one value."""

    dtype: DType
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Extent:
        return _product(self.shape)

    @property
    def nbytes(self) -> Extent:
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{SHORT_NAMES[self.dtype.name]}[{', '.join(map(str, self.shape))}]"

    __repr__ = __str__


# ------------------------------------------------------------------------------------- extent equalities

# Equalities that the compiler assumed and that only a run can confirm: (left, right, who asked).
Guard = tuple[Extent, Extent, str]
_guards: ContextVar[list[Guard] | None] = ContextVar("graphc_guards", default=None)


@contextmanager
def collect_guards() -> Iterator[list[Guard]]:
    """Collects every extent equality that `require_equal` assumes inside the block."""
    found: list[Guard] = []
    token = _guards.set(found)
    try:
        yield found
    finally:
        _guards.reset(token)


def provably_different(left: Extent, right: Extent) -> bool:
    difference = left - right
    return isinstance(difference, int) and difference != 0


def require_equal(left: Extent, right: Extent, context: str) -> Extent:
    """The common extent of two that must be equal; raises ShapeError where they provably differ.

    Where equality can be neither proved nor refuted it is assumed, and recorded for a run-time guard.
    An int is preferred as the result, since it is the more precise of the two.
    """
    if left == right:
        return left
    if provably_different(left, right):
        raise ShapeError(f"{context}: extents {left} and {right} differ")
    found = _guards.get()
    if found is not None:
        found.append((left, right, context))
    return right if isinstance(right, int) else left


def broadcast_shapes(shapes: Sequence[Shape], context: str) -> Shape:
    """numpy's broadcasting over extents. A named dim never broadcasts; only a literal 1 does."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Extent] = []
    for axis in range(rank):
        extent: Extent = 1
        for shape in shapes:
            offset = axis - (rank - len(shape))
            if offset < 0 or shape[offset] == 1:
                continue
            candidate = shape[offset]
            extent = candidate if extent == 1 else require_equal(extent, candidate, context)
        result.append(extent)
    return tuple(result)
