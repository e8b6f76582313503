"""sin and cos over the whole range.

    x = q pi/2 + r,  |r| <= pi/4;   the quadrant q mod 4 selects +-sin(r) or +-cos(r)

Up to 2^20 the reduction subtracts q times pi/2 in four parts (Cody and Waite; the split of fdlibm's
e_rem_pio2.c), each product exact without a fused multiply. Where any lane is larger, those lanes take
`@gx_reduce_large`, the integer reduction of Payne and Hanek: one 53 x 192 bit product with 2/pi.
"""

from __future__ import annotations

import math
from itertools import pairwise

from graphc.codegen.builder import F64, I64, PTR, Function, LLType, Module, Value, constant
from graphc.codegen.math.number import (
    Number,
    fast_two_sum,
    fma,
    horner,
    select,
    shared,
    two_product,
    two_sum,
)

_LARGE = 2.0**20
_TWO_OVER_PI = 0.6366197723675814
# pi/2 in three parts of 33 bits and a rest.
_PI_2 = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624871116645580e-21)
_PI_2_REST = 8.47842766036889956997e-32
_PI_2_HIGH, _PI_2_LOW = 1.5707963267948966, 6.123233995736766e-17

# fdlibm's k_sin.c and k_cos.c, and FreeBSD's k_sinf.c and k_cosf.c (float32 results from float64).
_SIN_64 = (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
)  # fmt: skip
_COS_64 = (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
)  # fmt: skip
_SIN_32 = (
    -0.166666666416265235595, 0.0083333293858894631756, -0.000198393348360966317347,
    0.0000027183114939898219064,
)  # fmt: skip
_COS_32 = (
    -0.499999997251031003120, 0.0416666233237390631894, -0.00138867637746099294692,
    0.0000243904487962774090654,
)  # fmt: skip

# The binary digits of 2/pi after 64 zeros: enough for the largest float64.
_TWO_OVER_PI_WORDS = (
    0x0000000000000000, 0xA2F9836E4E441529, 0xFC2757D1F534DDC0, 0xDB6295993C439041,
    0xFE5163ABDEBBC561, 0xB7246E3A424DD2E0, 0x06492EEA09D1921C, 0xFE1DEB1CB129A73E,
    0xE88235F52EBB4484, 0xE99C7026B45F7E41, 0x3991D639835339F4, 0x9C845F8BBDF9283B,
    0x1FF897FFDE05980F, 0xEF2F118B5A0A6D1F, 0x6D367ECF27CB09B7, 0x4F463F669E5FEA2D,
    0x7527BAC7EBE5F17B, 0x3D0739F78A5292EA, 0x6BFB5FB11F8D5D08, 0x56033046FC7B6BAB,
    0xF0CFBC209AF4361D,
)  # fmt: skip

Reduced = tuple[Number, Number, Number]  # quadrant (i64, its low two bits count), r, r's rounding error


def _reduce_medium(x: Number) -> Reduced:
    """Reduction for |x| <= 2^20."""
    magic = 1.5 * 2.0**52
    shifted = x * _TWO_OVER_PI + magic
    k = shifted - magic
    r, error = two_sum(x - k * _PI_2[0], k * -_PI_2[1])
    r, error_2 = two_sum(r, k * -_PI_2[2])
    return shifted.bits(), *fast_two_sum(r, error + error_2 - k * _PI_2_REST)


def _window(f: Function, first_bit: Number) -> list[Number]:
    """The 192 bits of the table of 2/pi from `first_bit` on, as three words, the highest first."""
    f.module.add_global(
        "gx_two_over_pi",
        f"@gx_two_over_pi = private constant [{len(_TWO_OVER_PI_WORDS)} x i64] "
        f"[{', '.join(f'i64 {word}' for word in _TWO_OVER_PI_WORDS)}]",
    )
    address = f.gep(Value(PTR, "@gx_two_over_pi"), (first_bit >> 6).value, I64)
    words = [first_bit.like(f.load(f.gep(address, constant(i, I64), I64), I64)) for i in range(4)]
    shift = first_bit & 63
    return [high.intrinsic("fshl", low, shift) for high, low in pairwise(words)]


def _write_reduce_large(module: Module) -> None:
    """Writes `@gx_reduce_large(x, ptr q, ptr r, ptr error)` for one finite x of at least 2^20.

    With x = M 2^e, bits of 2/pi above weight 2^(1-e) only add multiples of 4 to the quadrant, so a
    window of 192 bits from there gives P = M * window mod 2^192: two bits of quadrant and a fraction
    good to 2^-137, where no float64 comes nearer to a multiple of pi/2 than 2^-62.
    """
    wide = LLType("i128")
    f = Function(
        module, "gx_reduce_large", [("x", F64), ("q", PTR), ("r", PTR), ("error", PTR)], linkage="internal"
    )
    x = Number(f, f.parameters[0])
    bits = x.bits()
    # The table has one word of zeros in front: bit j of 2/pi, counted from 1, stands at j + 63.
    first_bit = ((bits >> 52) & 2047) - (1075 + 1 - 63)
    # Lanes that do not need this path come here too; keep their loads inside the table.
    first_bit = select(first_bit.compare("slt", 0), 0, first_bit)
    mantissa = (bits & ((1 << 52) - 1)) | (1 << 52)
    high, middle, low = _window(f, first_bit)

    def widened(value: Number) -> Number:
        return value.like(f.convert("zext", value.value, wide))

    def narrowed(value: Number) -> Number:
        return value.like(f.convert("trunc", value.value, I64))

    low_product = widened(mantissa) * widened(low)
    middle_product = widened(mantissa) * widened(middle) + (low_product >> 64)
    top = widened(mantissa * high) + (middle_product >> 64)
    # The upper 128 bits of P, less the two bits of the quadrant, and two more from below.
    upper = (top << 64) | widened(narrowed(middle_product))
    fraction = (upper << 2) | widened(narrowed(low_product) >> 62)
    negative = narrowed(fraction >> 127)
    quadrant = (narrowed(upper >> 64) >> 62) + negative
    # The fraction is a signed number of quarter turns / 2^128: normalise it and read off two floats.
    flip = f.convert("sext", f.convert("trunc", negative.value, LLType("i1")), wide)
    size = ((fraction ^ fraction.like(flip)) + widened(negative)) | 1
    zeros = size.like(f.intrinsic("ctlz", wide, size.value, Value(LLType("i1"), "false")))
    normal = size << zeros
    leading = narrowed(normal >> 75)
    following = narrowed((normal << 53) >> 75)
    unit = ((1023 - 53 - narrowed(zeros)) << 52).from_bits()
    turns = unit.like(f.convert("sitofp", leading.value, F64)) * unit
    rest = unit.like(f.convert("sitofp", following.value, F64)) * unit * 2.0**-53
    r, error = two_product(turns, turns.constant(_PI_2_HIGH))
    r, error = fast_two_sum(r, error + (turns * _PI_2_LOW + rest * _PI_2_HIGH))
    x_negative = bits >> 63
    sign = (x_negative ^ negative) << 63
    f.store(((quadrant ^ (0 - x_negative)) + x_negative).value, f.parameters[1])
    f.store((r.bits() ^ sign).from_bits().value, f.parameters[2])
    f.store((error.bits() ^ sign).from_bits().value, f.parameters[3])
    f.ret()
    f.finish()


def _reduce_lanes(x: Number, large: Number, medium: Reduced) -> Reduced:
    """`medium` with the large lanes replaced by `@gx_reduce_large`'s answers."""
    f = x.function
    if not f.module.has_function("gx_reduce_large"):
        _write_reduce_large(f.module)
    lanes = x.type.lanes
    buffers = [f.alloca("i64" if i == 0 else "double", lanes) for i in range(3)]
    for lane in range(lanes):
        addresses = [f.gep(buffer, constant(lane, I64), I64) for buffer in buffers]
        f.call("gx_reduce_large", None, x.value if lanes == 1 else f.extract(x.value, lane), *addresses)
    answers = [part.like(f.load(buffer, part.type)) for buffer, part in zip(buffers, medium, strict=True)]
    q, r, error = (select(large, a, b) for a, b in zip(answers, medium, strict=True))
    return q, r, error


def _reduce(x: Number) -> Reduced:
    """Quadrant and remainder; NaN and inf give a meaningless remainder.

    entry:  medium reduction; any lane >= 2^20 ? large : done
    large:  call per lane, select
    done:   phi
    """
    f = x.function
    medium = _reduce_medium(x)
    large = x.absolute() >= _LARGE
    lanes = x.type.lanes
    any_large = large
    if lanes > 1:
        word = large.like(f.convert("bitcast", large.value, LLType(f"i{lanes}")))
        any_large = word.compare("ne", 0)
    before, slow, done = f.current_block, f.label("large"), f.label("done")
    f.branch_if(any_large.value, slow, done)
    f.block(slow)
    exact = _reduce_lanes(x, large, medium)
    f.branch(done)
    f.block(done)
    q, r, error = (
        a.like(f.phi(a.type, [(a.value, before), (b.value, slow)]))
        for a, b in zip(medium, exact, strict=True)
    )
    return q, r, error


def _sin_cos_64(r: Number, error: Number) -> tuple[Number, Number]:
    """sin and cos of r + error, |r| <= pi/4."""
    z = r * r
    cube = z * r
    tail = z * (0.5 * error - cube * horner(z, _SIN_64[1:])) - error
    sine = r - (tail - cube * _SIN_64[0])
    half = 0.5 * z
    w = 1.0 - half
    cosine = w + (((1.0 - w) - half) + (z * (z * horner(z, _COS_64)) - r * error))
    return sine, cosine


def _sin_cos_32(r: Number) -> tuple[Number, Number]:
    """sin and cos of r to float32's precision, in float64."""
    z = r * r
    return fma(z * r, horner(z, _SIN_32), r), fma(z, horner(z, _COS_32), 1.0)


def _turned(x: Number, turns: int) -> Number:
    """sin(x + turns pi/2)."""
    single = not x.is_double
    wide = x.convert("fpext", "double") if single else x
    q, r, error = _reduce(wide)
    q = q + turns
    sine, cosine = _sin_cos_32(r) if single else _sin_cos_64(r, error)
    result = select((q & 1).equals(0), sine, cosine)
    result = (result.bits() ^ ((q & 2) << 62)).from_bits()
    result = select(wide.absolute().compare("one", math.inf), result, math.nan)
    return result.convert("fptrunc", "float") if single else result


def _sin(x: Number) -> Number:
    # A tiny x is its own sine; so -0 and subnormals pass unchanged.
    return select(x.absolute() < (2.0**-27 if x.is_double else 2.0**-13), x, _turned(x, 0))


def _cos(x: Number) -> Number:
    return _turned(x, 1)


def sin(f: Function, x: Value) -> Value:
    """The sine of x in radians; NaN for inf."""
    return shared(f, "sin", _sin, x)


def cos(f: Function, x: Value) -> Value:
    """The cosine of x in radians; NaN for inf."""
    return shared(f, "cos", _cos, x)
