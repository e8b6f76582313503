"""log and log1p.

    x = 2^k (1 + f),  sqrt(1/2) <= 1 + f < sqrt(2);   log(x) = k ln 2 + log(1 + f)

float64 uses fdlibm's series in s = f / (2 + f) (e_log.c, s_log1p.c), float32 Cephes's
polynomial in f (logf.c).
"""

from __future__ import annotations

import math

from graphc.codegen.builder import Function, Value
from graphc.codegen.math.exponential import LN2_HIGH_32, LN2_HIGH_64, LN2_LOW_32, LN2_LOW_64
from graphc.codegen.math.number import Number, fma, horner, select, shared, two_sum

_LOG_64 = (
    6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01,
    1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01,
)  # fmt: skip
_LOG_32 = (
    3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1, 1.4249322787e-1,
    -1.2420140846e-1, 1.1676998740e-1, -1.1514610310e-1, 7.0376836292e-2,
)  # fmt: skip

_SQRT_HALF_BITS_64 = 0x3FE6A09E667F3BCD
_SQRT_HALF_BITS_32 = 0x3F3504F3


def split_exponent(x: Number) -> tuple[Number, Number]:
    """(k, m) with x = 2^k m and m in [sqrt(1/2), sqrt(2)), for finite x > 0, subnormals included."""
    double = x.is_double
    mantissa_bits, bias = (52, 1023) if double else (23, 127)
    tiny = x < (2.0**-1022 if double else 2.0**-126)
    scale = 54 if double else 25
    normal = select(tiny, x * 2.0**scale, x)
    anchor = _SQRT_HALF_BITS_64 if double else _SQRT_HALF_BITS_32
    # Counted from sqrt(1/2) instead of 1/2, the exponent field steps where the interval should end.
    offset = normal.bits() + ((bias << mantissa_bits) - anchor)
    exponent = offset >> mantissa_bits
    # An integer below 2^52 in the low bits of 2^52's pattern is that float plus the integer.
    base = 2.0**52 if double else 2.0**23
    base_bits = (1075 << 52) if double else (150 << 23)
    shift = select(tiny, normal.constant(base + bias + scale), base + bias)
    k = (exponent | base_bits).from_bits() - shift
    return k, ((offset & ((1 << mantissa_bits) - 1)) + anchor).from_bits()


def _log_of_parts(k: Number, f: Number, correction: Number | None = None) -> Number:
    """k ln 2 + log(1 + f) + correction."""
    if not f.is_double:
        z = f * f
        low = k * LN2_LOW_32 if correction is None else fma(k, LN2_LOW_32, correction)
        y = fma(z * f, horner(f, _LOG_32), low)
        return fma(k, LN2_HIGH_32, f + fma(z, -0.5, y))
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    low = k * LN2_LOW_64 if correction is None else fma(k, LN2_LOW_64, correction)
    tail = fma(s, half_square + z * horner(z, _LOG_64), low)
    return fma(k, LN2_HIGH_64, f - (half_square - tail))


def _log_limits(argument: Number, result: Number) -> Number:
    """The result with -inf at 0, NaN below it, and inf and NaN passed on."""
    result = select(argument < math.inf, result, argument)
    result = select(argument.equals(0.0), -math.inf, result)
    return select(argument < 0.0, math.nan, result)


def log_core(x: Number) -> Number:
    """The natural logarithm."""
    k, m = split_exponent(x)
    result = _log_of_parts(k, m - 1.0)
    return _log_limits(x, result)


def log(f: Function, x: Value) -> Value:
    """The natural logarithm; -inf at 0 and NaN below."""
    return shared(f, "log", log_core, x) if x.type.element == "double" else log_core(Number(f, x)).value


def _log1p(x: Number) -> Number:
    u, error = two_sum(x.constant(1.0), x)
    k, m = split_exponent(u)
    # With k = 0 the rounding of 1 + x need not enter at all: f is x itself.
    direct = k.equals(0.0)
    f = select(direct, x, m - 1.0)
    correction = select(direct, 0.0, error / u)
    result = _log_limits(u, _log_of_parts(k, f, correction))
    return select(x.absolute() < (2.0**-54 if x.is_double else 2.0**-25), x, result)


def log1p(f: Function, x: Value) -> Value:
    """log(1 + x), accurate near 0; -inf at -1 and NaN below."""
    return shared(f, "log1p", _log1p, x) if x.type.element == "double" else _log1p(Number(f, x)).value
