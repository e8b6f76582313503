"""erf. float32: one odd rational function, without branches. float64: a polynomial in x^2 below 1, and
1 - exp(log erfc(x)) above.

The last follows N. Juffa's idea of fitting the logarithm of erfc, which is nearly a parabola.
Coefficients from `benchmarks/math_coefficients.py`.
"""

from __future__ import annotations

from graphc.codegen.builder import Function, Value
from graphc.codegen.math.exponential import exp_core
from graphc.codegen.math.number import Number, fma, horner, odd_rational, select, shared

# erf(x)/x - 1 in z = x^2 on [0, 1].
_SMALL_64 = (
    0.1283791670955126, -0.37612638903183876, 0.11283791670958783, -0.026866170645631897,
    0.00522397762924565, -0.0008548327199358272, 0.00012055338161400656, -1.4925748180206354e-05,
    1.6463247307130268e-06, -1.6372371891698225e-07, 1.4798357234369911e-08, -1.1876555591839105e-09,
    6.762801638832501e-11,
)  # fmt: skip
# -log erfc(1 + u) on [0, 5].
_LARGE_64 = (
    1.8496055099332482, 2.6389675142347904, 0.8431072563586063, 0.04156109804289497, -0.010033825383799166,
    0.0019779026186574834, -0.00023732266496093664, -2.6277410518673918e-05, 2.7158262973938994e-05,
    -9.60775562909504e-06, 2.058619049050575e-06, -1.420017588562461e-07, -9.804537310537797e-08,
    5.224989437088358e-08, -1.4977746224052333e-08, 2.8788018960564047e-09, -3.704614584171645e-10,
    2.9015721663012007e-11, -1.0473416962428197e-12,
)  # fmt: skip
# erf(x)/x as middle + P(z) / Q(z), z = x^2, on [0, 3.92^2].
_LIMIT_32, _MIDDLE_32 = 3.92, 0.31686481833457947
_P_32 = (1.3469841480255127, 0.05197892710566521, 0.027539342641830444, -0.0016226833686232567,
         -0.00013856662553735077, -1.663134025875479e-05)  # fmt: skip
_Q_32 = (1.6598402261734009, 0.8333648443222046, 0.18940232694149017, 0.02484639175236225,
         0.0019296093378216028, 6.322624540189281e-05)  # fmt: skip


def _erf_32(x: Number) -> Number:
    return odd_rational(x, _LIMIT_32, _MIDDLE_32, _P_32, _Q_32)


def _erf_64(x: Number) -> Number:
    size = x.absolute()
    z = x * x
    small = fma(size, horner(z, _SMALL_64), size)
    # From 6 on, erf rounds to 1.
    u = select(size > 6.0, 6.0, size) - 1.0
    large = 1.0 - exp_core(-horner(u, _LARGE_64))
    return select(size < 1.0, small, large).with_sign_of(x)


def erf(f: Function, x: Value) -> Value:
    """The error function."""
    return shared(f, "erf", _erf_64, x) if x.type.element == "double" else _erf_32(Number(f, x)).value
