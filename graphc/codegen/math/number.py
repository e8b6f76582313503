"""Arithmetic on SSA values in the notation of the formulas, and the bit tricks that they share.

A `Number` is a value with operators; an int or float operand becomes a splat constant. Nothing is ever
contracted or reassociated: `a * b + c` rounds twice, `fma(a, b, c)` once where the target can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

from graphc.codegen.builder import Function, LLType, Value, constant

Operand = Union["Number", float, int]


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A scalar or vector value under construction in `function`."""

    function: Function
    value: Value

    @property
    def type(self) -> LLType:
        return self.value.type

    @property
    def is_double(self) -> bool:
        return self.type.element == "double"

    def like(self, value: Value) -> Number:
        return Number(self.function, value)

    def constant(self, value: float | int) -> Number:
        """A splat of this number's type."""
        return self.like(constant(value, self.type))

    def _binary(self, name: str, other: Operand, swapped: bool = False) -> Number:
        right = other if isinstance(other, Number) else self.constant(other)
        left, right = (right, self) if swapped else (self, right)
        return self.like(self.function.binary(name, left.value, right.value))

    def _arithmetic(self, name: str, other: Operand, swapped: bool = False) -> Number:
        return self._binary(f"f{name}" if self.type.is_float else name, other, swapped)

    def __add__(self, other: Operand) -> Number:
        return self._arithmetic("add", other)

    def __radd__(self, other: Operand) -> Number:
        return self._arithmetic("add", other, swapped=True)

    def __sub__(self, other: Operand) -> Number:
        return self._arithmetic("sub", other)

    def __rsub__(self, other: Operand) -> Number:
        return self._arithmetic("sub", other, swapped=True)

    def __mul__(self, other: Operand) -> Number:
        return self._arithmetic("mul", other)

    def __rmul__(self, other: Operand) -> Number:
        return self._arithmetic("mul", other, swapped=True)

    def __truediv__(self, other: Operand) -> Number:
        return self._binary("fdiv", other)

    def __rtruediv__(self, other: Operand) -> Number:
        return self._binary("fdiv", other, swapped=True)

    def __neg__(self) -> Number:
        return self.like(self.function.fneg(self.value))

    def __and__(self, other: Operand) -> Number:
        return self._binary("and", other)

    def __or__(self, other: Operand) -> Number:
        return self._binary("or", other)

    def __xor__(self, other: Operand) -> Number:
        return self._binary("xor", other)

    def __lshift__(self, other: Operand) -> Number:
        return self._binary("shl", other)

    def __rshift__(self, other: Operand) -> Number:
        """A logical shift: AVX2 has no arithmetic one for 64-bit lanes."""
        return self._binary("lshr", other)

    def compare(self, predicate: str, other: Operand) -> Number:
        """An i1 of LLVM's predicate (olt, ogt, oeq, une, uno ... or eq, slt ...)."""
        right = other if isinstance(other, Number) else self.constant(other)
        return self.like(self.function.compare(predicate, self.value, right.value))

    def __lt__(self, other: Operand) -> Number:
        return self.compare("olt", other)

    def __gt__(self, other: Operand) -> Number:
        return self.compare("ogt", other)

    def __ge__(self, other: Operand) -> Number:
        return self.compare("oge", other)

    def equals(self, other: Operand) -> Number:
        return self.compare("oeq" if self.type.is_float else "eq", other)

    def intrinsic(self, name: str, *others: Number) -> Number:
        operands = [self.value, *(other.value for other in others)]
        return self.like(self.function.intrinsic(name, self.type, *operands))

    def absolute(self) -> Number:
        return self.intrinsic("fabs")

    def with_sign_of(self, other: Number) -> Number:
        return self.intrinsic("copysign", other)

    def convert(self, opcode: str, element: str) -> Number:
        """fpext, fptrunc, bitcast ... to the same number of lanes of another element."""
        return self.like(self.function.convert(opcode, self.value, self.type.with_element(element)))

    def bits(self) -> Number:
        """The IEEE bit pattern as integers of the same width."""
        return self.convert("bitcast", "i64" if self.is_double else "i32")

    def from_bits(self) -> Number:
        """The float that a bit pattern stands for."""
        return self.convert("bitcast", "double" if self.type.element == "i64" else "float")


def fma(a: Number, b: Operand, c: Operand) -> Number:
    """a * b + c, with one rounding where the target has the instruction and two where not."""
    right, addend = (v if isinstance(v, Number) else a.constant(v) for v in (b, c))
    return a.like(a.function.fmuladd(a.value, right.value, addend.value))


def select(condition: Number, a: Operand, b: Operand) -> Number:
    """`a` where the condition holds, else `b`; at least one of them is a Number."""
    pattern = a if isinstance(a, Number) else b
    assert isinstance(pattern, Number)
    left, right = (v if isinstance(v, Number) else pattern.constant(v) for v in (a, b))
    return pattern.like(pattern.function.select(condition.value, left.value, right.value))


def horner(x: Number, coefficients: Sequence[float]) -> Number:
    """The polynomial c0 + c1 x + c2 x^2 + ..."""
    result = x.constant(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = fma(result, x, c)
    return result


def odd_rational(x: Number, limit: float, middle: float, p: Sequence[float], q: Sequence[float]) -> Number:
    """x (middle + P(z) / Q(z)), z = x^2, for a function that is +-1 from +-`limit` on; never beyond +-1.

    Past the limit z stays, so that the result grows with x and is cut off at 1; inf is, too, and NaN
    passes. P and Q are two chains that run side by side. `middle` makes the quotient small where the
    polynomials' rounding errors are large: near the limit.
    """
    z = x * x
    z = select(z > limit * limit, limit * limit, z)
    return clamp(x * (horner(z, p) / horner(z, q) + middle), -1.0, 1.0)


def clamp(x: Number, low: float, high: float) -> Number:
    """x limited to [low, high]; NaN passes, which min and max instructions do not promise."""
    x = select(x > high, high, x)
    return select(x < low, low, x)


def two_sum(a: Number, b: Number) -> tuple[Number, Number]:
    """(s, e) with s = fl(a + b) and s + e = a + b exactly (Knuth)."""
    s = a + b
    a_part = s - b
    b_part = s - a_part
    return s, (a - a_part) + (b - b_part)


def fast_two_sum(a: Number, b: Number) -> tuple[Number, Number]:
    """two_sum for |a| >= |b| (Dekker)."""
    s = a + b
    return s, b - (s - a)


def two_product(a: Number, b: Number) -> tuple[Number, Number]:
    """(p, e) with p = fl(a * b) and p + e = a * b for float64, without relying on a fused multiply.

    Splits by masking, which unlike Veltkamp's multiplication cannot overflow; the product of the two
    low halves (27 bits each) may lose its last bit, 2^-106 of the whole.
    """
    p = a * b
    a_high, b_high = ((x.bits() & ~0x7FFFFFF).from_bits() for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - p) + a_high * b_low) + a_low * b_high
    return p, error + a_low * b_low


MathFunction = Callable[[Function, Value], Value]


def shared(function: Function, name: str, body: Callable[..., Number], *operands: Value) -> Value:
    """Calls `@gx_<name>_<type>`, first writing it into the module if it is not there.

    `body` maps Numbers of the operands' types to a Number of the first one's. For bodies too long to
    repeat at every use: instruction selection is the larger part of compile time.
    """
    type = operands[0].type
    full = f"gx_{name}_{type.mangled}"
    if not function.module.has_function(full):
        parameters = [(f"x{i}", operand.type) for i, operand in enumerate(operands)]
        callee = Function(function.module, full, parameters, type, linkage="internal")
        callee.ret(body(*(Number(callee, parameter) for parameter in callee.parameters)).value)
        callee.finish()
    result = function.call(full, type, *operands)
    assert result is not None
    return result
