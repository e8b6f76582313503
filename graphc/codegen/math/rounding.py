"""floor, ceil, trunc, round half to even, and sqrt: instructions where the target has them.

SSE2 has no rounding instruction and LLVM would call libm, so there they are made of the magic constant
2^52 (2^23 for float32): adding it to |x| pushes the fraction out of the significand, and the addition
itself rounds to nearest even.
"""

from __future__ import annotations

from graphc.codegen.builder import Function, Value
from graphc.codegen.math.number import Number, select


def _nearest(x: Number) -> Number:
    """x rounded to an integer, ties to even; keeps the sign of zero."""
    if x.function.module.has_rounding:
        return x.intrinsic("roundeven")
    magic = 2.0**52 if x.is_double else 2.0**23
    size = x.absolute()
    rounded = (size + magic) - magic
    # From the magic constant on every float is an integer, and NaN and inf must pass unchanged.
    return select(size < magic, rounded.with_sign_of(x), x)


def nearest(x: Number) -> Number:
    """Round half to even, for other formulas' use."""
    return _nearest(x)


def floor(f: Function, x: Value) -> Value:
    """The largest integer <= x."""
    if f.module.has_rounding:
        return f.intrinsic("floor", x.type, x)
    n = Number(f, x)
    t = _nearest(n)
    return select(t > n, t - 1.0, t).value


def ceil(f: Function, x: Value) -> Value:
    """The smallest integer >= x; -0 for x in (-1, 0)."""
    if f.module.has_rounding:
        return f.intrinsic("ceil", x.type, x)
    n = Number(f, x)
    t = _nearest(n)
    return select(t < n, (t + 1.0).with_sign_of(n), t).value


def trunc(f: Function, x: Value) -> Value:
    """x without its fraction; keeps the sign of zero."""
    if f.module.has_rounding:
        return f.intrinsic("trunc", x.type, x)
    n = Number(f, x)
    size = n.absolute()
    t = _nearest(size)
    return select(t > size, t - 1.0, t).with_sign_of(n).value


def round_half_even(f: Function, x: Value) -> Value:
    """The nearest integer, ties to even: numpy's `round`."""
    return _nearest(Number(f, x)).value


def sqrt(f: Function, x: Value) -> Value:
    """The correctly rounded square root; an instruction on every target."""
    return f.intrinsic("sqrt", x.type, x)
