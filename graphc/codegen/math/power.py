"""pow(x, y) = exp(y log|x|) with C99's special cases (annex F.9.4.4), which are numpy's.

float64 carries log|x| as a sum of two floats, since y log|x| may reach 745 and its error is the result's
relative error. float32 goes through float64, where one float is enough.
"""

from __future__ import annotations

import math

from graphc.codegen.builder import Function, Value
from graphc.codegen.math.exponential import LN2_HIGH_64, exp_core
from graphc.codegen.math.logarithm import log_core, split_exponent
from graphc.codegen.math.number import (
    Number,
    fast_two_sum,
    horner,
    select,
    shared,
    two_product,
    two_sum,
)
from graphc.codegen.math.rounding import nearest

# ln 2 less its 32-bit high part, to another 53 bits, and what is left.
_LN2_MIDDLE, _LN2_LOW = 1.9082149292705877e-10, 1.1612227229362532e-26
_THIRD_HIGH, _THIRD_LOW = 0.3333333333333333, 1.850371707708594e-17
# 1/5, 1/7, ...: the series of atanh(s)/s from z^2 on; s^2 <= 0.0295, so z^10 is below 2^-56 of the sum.
_ATANH = tuple(1.0 / n for n in range(5, 25, 2))


def _log_pair(x: Number) -> tuple[Number, Number]:
    """log(x) as high + low with about 64 good bits, for finite x > 0.

    log(m) = 2 atanh(s), s = (m - 1) / (m + 1); atanh(s) = s (1 + z/3 + z^2/5 + ...), z = s^2.
    """
    k, m = split_exponent(x)
    f = m - 1.0
    d, d_low = two_sum(m, m.constant(1.0))
    s = f / d
    product, product_low = two_product(s, d)
    s_low = (((f - product) - product_low) - s * d_low) / d
    z, z_low = two_product(s, s)
    z_low = z_low + 2.0 * s * s_low
    w, w_low = two_product(z, z.constant(_THIRD_HIGH))
    w_low = w_low + (z * _THIRD_LOW + z_low * _THIRD_HIGH)
    w, w_low = fast_two_sum(w, w_low + z * z * horner(z, _ATANH))
    term, term_low = two_product(s, w)
    term_low = term_low + (s * w_low + s_low * w)
    atanh, atanh_low = fast_two_sum(s, term)
    atanh_low = atanh_low + (term_low + s_low)
    middle, middle_low = two_product(k, k.constant(_LN2_MIDDLE))
    exponent, exponent_low = fast_two_sum(k * LN2_HIGH_64, middle)
    high, low = two_sum(exponent, 2.0 * atanh)
    low = low + (exponent_low + middle_low + k * _LN2_LOW + 2.0 * atanh_low)
    return fast_two_sum(high, low)


def _power_of_size(size: Number, y: Number) -> Number:
    """size^y for size >= 0, NaN included; wrong only where y is 0 or size is 1."""
    high, low = _log_pair(size)
    ordinary = (size > 0.0) & (size < math.inf)
    high = select(ordinary, high, select(size.equals(0.0), -math.inf, size))
    product, product_low = two_product(y, high)
    tail = product_low + y * low
    # Outside this range the result is 0 or inf, and the tail may be inf - inf.
    tail = select(product.absolute() < 800.0, tail, 0.0)
    return exp_core(product, tail)


def _special_cases(x: Number, y: Number, result: Number) -> Number:
    """The sign of negative bases, NaN for their fractional powers, and 1^y = x^0 = (-1)^inf = 1."""
    half = y * 0.5
    whole = nearest(y).equals(y)
    odd = whole & nearest(half).compare("une", half)
    one = result.constant(1.0)
    signed = result.with_sign_of(x)
    result = select(odd, signed, result)
    undefined = (x < 0.0) & (x > -math.inf) & nearest(y).compare("one", y)
    result = select(undefined, math.nan, result)
    unit = x.equals(1.0) | (x.equals(-1.0) & y.absolute().equals(math.inf))
    return select(unit | y.equals(0.0), one, result)


def _pow_64(x: Number, y: Number) -> Number:
    return _special_cases(x, y, _power_of_size(x.absolute(), y))


def _pow_32(x: Number, y: Number) -> Number:
    x, y = x.convert("fpext", "double"), y.convert("fpext", "double")
    product = y * log_core(x.absolute())
    return _special_cases(x, y, exp_core(product)).convert("fptrunc", "float")


def pow(f: Function, x: Value, y: Value) -> Value:
    """x to the power y, both of one type."""
    return shared(f, "pow", _pow_64 if x.type.element == "double" else _pow_32, x, y)
