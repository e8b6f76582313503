"""erf: a polynomial in x^2 below 1, and 1 - exp(log erfc(x)) above.

The second branch follows N. Juffa's idea of fitting the logarithm of erfc, which is nearly a parabola.
Coefficients from `benchmarks/math_coefficients.py`.
"""

from __future__ import annotations

from graphc.codegen.builder import Function, Value
from graphc.codegen.math.exponential import exp_core
from graphc.codegen.math.number import Number, fma, horner, select, shared

# erf(x)/x - 1 in z = x^2 on [0, 1].
_SMALL_64 = (
    0.1283791670955126, -0.37612638903183876, 0.11283791670958783, -0.026866170645631897,
    0.00522397762924565, -0.0008548327199358272, 0.00012055338161400656, -1.4925748180206354e-05,
    1.6463247307130268e-06, -1.6372371891698225e-07, 1.4798357234369911e-08, -1.1876555591839105e-09,
    6.762801638832501e-11,
)  # fmt: skip
_SMALL_32 = (
    0.12837916612625122, -0.3761262893676758, 0.11283618211746216, -0.026855124160647392,
    0.005190725903958082, -0.000803065428044647, 7.919901690911502e-05,
)  # fmt: skip
# -log erfc(1 + u) on [0, 5] and [0, 3].
_LARGE_64 = (
    1.8496055099332482, 2.6389675142347904, 0.8431072563586063, 0.04156109804289497, -0.010033825383799166,
    0.0019779026186574834, -0.00023732266496093664, -2.6277410518673918e-05, 2.7158262973938994e-05,
    -9.60775562909504e-06, 2.058619049050575e-06, -1.420017588562461e-07, -9.804537310537797e-08,
    5.224989437088358e-08, -1.4977746224052333e-08, 2.8788018960564047e-09, -3.704614584171645e-10,
    2.9015721663012007e-11, -1.0473416962428197e-12,
)  # fmt: skip
_LARGE_32 = (
    1.8496055603027344, 2.638965368270874, 0.843132495880127, 0.04143562540411949, -0.009722892194986343,
    0.0015698664356023073, 3.900743831763975e-05, -0.00010239896073471755, 1.8534905393607914e-05,
)  # fmt: skip


def _erf(x: Number) -> Number:
    double = x.is_double
    size = x.absolute()
    z = x * x
    small = fma(size, horner(z, _SMALL_64 if double else _SMALL_32), size)
    # From 6 (4) on, erf rounds to 1.
    limit = 6.0 if double else 4.0
    u = select(size > limit, limit, size) - 1.0
    large = 1.0 - exp_core(-horner(u, _LARGE_64 if double else _LARGE_32))
    return select(size < 1.0, small, large).with_sign_of(x)


def erf(f: Function, x: Value) -> Value:
    """The error function."""
    return shared(f, "erf", _erf, x) if x.type.element == "double" else _erf(Number(f, x)).value
