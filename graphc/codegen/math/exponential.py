"""exp, expm1, sigmoid and tanh.

    exp(x) = 2^k e^r,   k = round(x / ln 2),   r = x - k ln 2  in [-ln2/2, ln2/2]

The polynomials for e^r come from `benchmarks/math_coefficients.py`. ln 2 is split (Cody and Waite) so
that k times its high part is exact without a fused multiply.
"""

from __future__ import annotations

import math

from graphc.codegen.builder import Function, Value
from graphc.codegen.math.number import Number, clamp, fast_two_sum, fma, horner, odd_rational, select, shared

LOG2_E = math.log2(math.e)
# High parts with 32 (float64, from fdlibm's e_exp.c) and 9 (float32, Cephes's expf) significant bits.
LN2_HIGH_64, LN2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
LN2_HIGH_32, LN2_LOW_32 = 0.693359375, -2.12194440e-4

# (e^r - 1 - r) / r^2 on |r| <= ln2/2: weighted for e^r, and for e^r - 1.
_EXP_64 = (
    0.5000000000000013, 0.16666666666666685, 0.04166666666651157, 0.008333333333315953,
    0.0013888888947865923, 0.00019841269898664948, 2.480148917255337e-05, 2.7557232865118846e-06,
    2.7631526235149347e-07, 2.5112658622693133e-08,
)  # fmt: skip
_EXP_32 = (0.5, 0.16666516661643982, 0.04166645556688309, 0.008369090966880322, 0.001393576036207378)
_EXPM1_64 = (
    0.5, 0.16666666666666669, 0.04166666666666695, 0.008333333333328773, 0.0013888888888643888,
    0.0001984126986691138, 2.4801587957682427e-05, 2.7557264263385126e-06, 2.755662369270635e-07,
    2.5101901286612894e-08, 2.114335181620768e-09,
)  # fmt: skip
_EXPM1_32 = (
    0.5, 0.1666666865348816, 0.04166653752326965, 0.008332612924277782, 0.0013927719555795193,
    0.0002037475205725059,
)  # fmt: skip

# tanh(x)/x as middle + P(z) / Q(z), z = x^2, on [0, 9.01^2].
_TANH_LIMIT_32, _TANH_MIDDLE_32 = 9.01, 0.140625
_TANH_P_32 = (
    0.99365234375, 0.0787552073597908, -0.00016617968503851444, -2.95885529340012e-05,
    -1.1090622820120188e-07,
)  # fmt: skip
_TANH_Q_32 = (
    1.15625, 0.5401270389556885, 0.029916852712631226, 0.0003797548997681588, 8.983253678707115e-07,
)  # fmt: skip

# tanh(x) = x + x z P(z) / Q(z), z = x^2, for |x| < 0.625: Cephes tanh.c (Moshier), float64.
_TANH_P = (-1.61468768441708447952e3, -9.92877231001918586564e1, -9.64399179425052238628e-1)
_TANH_Q = (4.84406305325125486048e3, 2.23548839060100448583e3, 1.12811678491632931402e2, 1.0)


def _reduce(x: Number) -> tuple[Number, Number, Number, Number]:
    """(k as a float, k + 2 bias' as the low bits of an integer, r's high part, r's low part).

    Adding 1.5 * 2^52 (2^23) rounds to an integer and leaves it in the low bits of the significand; the
    extra 2046 (254) makes it positive there.
    """
    magic = 1.5 * 2.0**52 + 2046 if x.is_double else 1.5 * 2.0**23 + 254
    shifted = fma(x, LOG2_E, magic)
    k = shifted - magic
    if x.is_double:
        return k, shifted.bits(), fma(k, -LN2_HIGH_64, x), k * -LN2_LOW_64
    return k, shifted.bits(), fma(k, -LN2_HIGH_32, x), k * -LN2_LOW_32


def _reduced_32(x: Number, bias: int) -> tuple[Number, Number]:
    """(r, an integer whose low 9 bits are k + bias); bias + k is in 0..511. float32."""
    magic = 1.5 * 2.0**23 + bias
    shifted = fma(x, LOG2_E, magic)
    k = shifted - magic
    return fma(k, -LN2_LOW_32, fma(k, -LN2_HIGH_32, x)), shifted.bits()


def _scale(y: Number, biased: Number) -> Number:
    """y * 2^k, where the low 12 (9) bits of `biased` are k + 2046 (254): in two factors, so that subnormals
    round only once. What stands above those bits is shifted out."""
    half = biased >> 1
    mantissa_bits = 52 if y.is_double else 23
    first = (half << mantissa_bits).from_bits()
    second = ((biased - half) << mantissa_bits).from_bits()
    return y * first * second


def _exp_parts(x: Number, tail: Number | None) -> tuple[Number, Number, Number]:
    """(y, c, biased) with e^(x + tail) = 2^k (y + c), c the smaller: what exp adds and rounds last."""
    # Beyond these limits the result is 0 or inf by the ordinary route; they keep k in its bit field.
    _, biased, high, low = _reduce(clamp(x, -746.0, 710.0))
    low = low if tail is None else low + tail
    # 1 + high is summed with its rounding error, so that nearly all of the error is the last rounding.
    total, error = fast_two_sum(x.constant(1.0), high)
    r = high + low
    return total, error + fma(r * r, horner(r, _EXP_64), low), biased


def exp_core(x: Number, tail: Number | None = None) -> Number:
    """e^(x + tail) in float64, |tail| a rounding error of x; overflows to inf, underflows gradually."""
    y, c, biased = _exp_parts(x, tail)
    return _scale(y + c, biased)


def _exp_32(x: Number) -> Number:
    """2^k times the polynomial; overflows to inf, underflows through subnormals."""
    # Beyond these limits the result is 0 or inf by the ordinary route; they keep k in its bit field.
    r, biased = _reduced_32(clamp(x, -104.0, 89.0), 254)
    return _scale(horner(r, (1.0, 1.0, *_EXP_32)), biased)


def exp(f: Function, x: Value) -> Value:
    """e^x."""
    return shared(f, "exp", exp_core, x) if x.type.element == "double" else _exp_32(Number(f, x)).value


def _half_expm1(x: Number) -> tuple[Number, Number, Number]:
    """((e^x - 1) / 2, e^r - 1, k) for x at which k stays below the largest exponent + 2."""
    k, biased, high, low = _reduce(x)
    r, r_error = fast_two_sum(high, low)
    p = fma(r * r, horner(r, _EXPM1_64 if x.is_double else _EXPM1_32), r_error) + r
    # With h = 2^(k-1), (e^x - 1) / 2 = h p + (h - 1/2); h does not overflow where the result does.
    bias, mantissa_bits = (1023, 52) if x.is_double else (127, 23)
    h = ((biased - (bias + 1)) << mantissa_bits).from_bits()
    return fma(p, h, h - 0.5), p, k


def _expm1(x: Number) -> Number:
    half, p, k = _half_expm1(clamp(x, -50.0, 710.0) if x.is_double else clamp(x, -30.0, 89.0))
    # For k = 0 p is the answer, and where p is subnormal h p is not exact. Tiny x also keeps its sign of 0.
    result = select(k.equals(0.0), p, half * 2.0)
    return select(x.absolute() < (2.0**-54 if x.is_double else 2.0**-25), x, result)


def expm1(f: Function, x: Value) -> Value:
    """e^x - 1, accurate near 0."""
    return shared(f, "expm1", _expm1, x) if x.type.element == "double" else _expm1(Number(f, x)).value


def _exp_of_small_32(x: Number, high: float) -> Number:
    """e^x for x that are not large; from `high`, at most 43, on the result stays the same.

    Without large x, one factor reaches from the smallest subnormal to the largest result: the polynomial is
    made 2^64 times smaller and the factor larger.
    """
    x = select(x < -104.0, -104.0, x) if high == 0.0 else clamp(x, -104.0, high)
    r, biased = _reduced_32(x, 127 + 64)
    small = horner(r, [c * 2.0**-64 for c in (1.0, 1.0, *_EXP_32)])
    return small * (biased << 23).from_bits()


def exp_not_positive(f: Function, x: Value) -> Value:
    """e^x where x <= 0 or NaN: shorter than `exp` in float32."""
    return exp(f, x) if x.type.element == "double" else _exp_of_small_32(Number(f, x), 0.0).value


def _sigmoid_32(x: Number) -> Number:
    """e / (1 + e) with e = e^x, which keeps its relative accuracy in both tails; from 18 on it is 1."""
    e = _exp_of_small_32(x, 40.0)
    return e / (e + 1.0)


def _sigmoid_64(x: Number) -> Number:
    y, c, biased = _exp_parts(-x.absolute(), None)
    e, e_low = (_scale(part, biased) for part in fast_two_sum(y, c))
    d, d_low = fast_two_sum(e.constant(1.0), e)
    negative = x < 0.0
    q = select(negative, e, 1.0) / d
    # The first-order correction for the roundings of e and 1 + e; 1 / d is q or 1 - q.
    inverse = select(negative, 1.0 - q, q)
    return fma(select(negative, e_low, 0.0) - q * (d_low + e_low), inverse, q)


def sigmoid(f: Function, x: Value) -> Value:
    """1 / (1 + e^-x), accurate in both tails."""
    if x.type.element == "double":
        return shared(f, "sigmoid", _sigmoid_64, x)
    return _sigmoid_32(Number(f, x)).value


def _tanh_32(x: Number) -> Number:
    return odd_rational(x, _TANH_LIMIT_32, _TANH_MIDDLE_32, _TANH_P_32, _TANH_Q_32)


def _tanh_64(x: Number) -> Number:
    size = x.absolute()
    z = x * x
    small = size < 0.625
    e = exp_core(size + size)
    # One division serves both branches: x + x z P / Q and 1 - 2 / (e^2x + 1).
    numerator = select(small, size * z * horner(z, _TANH_P), -2.0)
    denominator = select(small, horner(z, _TANH_Q), e + 1.0)
    result = (select(small, size, 1.0) + numerator / denominator).with_sign_of(x)
    return select(size < 2.0**-28, x, result)


def tanh(f: Function, x: Value) -> Value:
    """The hyperbolic tangent."""
    return shared(f, "tanh", _tanh_64, x) if x.type.element == "double" else _tanh_32(Number(f, x)).value
