"""Derives the polynomial coefficients that `graphc.codegen.math` holds.

    python benchmarks/math_coefficients.py

Each fit is a weighted least-squares fit on Chebyshev nodes in 200-bit arithmetic (close to minimax,
since Chebyshev nodes are dense at the ends). Coefficients are rounded to the working precision one at
a time, lowest order first, and the rest is fitted again, so that rounding is made up for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp
import numpy as np

mp.mp.prec = 240
Real = Any
RealFunction = Callable[[Real], Real]


def chebyshev_nodes(low: float, high: float, count: int) -> list[Real]:
    """Chebyshev points of the interval [low, high], in increasing order."""
    middle, half = (mp.mpf(low) + high) / 2, (mp.mpf(high) - low) / 2
    return [middle - half * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]


def least_squares(columns: Sequence[Sequence[Real]], target: Sequence[Real]) -> list[Real]:
    """The coefficients whose combination of columns is nearest to the target."""
    matrix = mp.matrix([list(row) for row in zip(*columns, strict=True)])
    solution, _ = mp.qr_solve(matrix, mp.matrix(list(target)))
    return list(solution)


def rounded(value: Real, bits: int) -> Real:
    """`value` rounded to float32 or float64."""
    return mp.mpf(float(np.float32(float(value)))) if bits == 32 else mp.mpf(float(value))


def polynomial(
    f: RealFunction, low: float, high: float, degree: int, weight: RealFunction, bits: int
) -> tuple[list[float], float]:
    """Coefficients c0.. of a polynomial near f on [low, high]; also the largest weighted error."""
    nodes = chebyshev_nodes(low, high, 6 * (degree + 1))
    weights = [weight(x) for x in nodes]
    powers = [[w * x**j for w, x in zip(weights, nodes, strict=True)] for j in range(degree + 1)]
    remaining = [w * f(x) for w, x in zip(weights, nodes, strict=True)]
    result: list[Real] = []
    for j in range(degree + 1):
        c = rounded(least_squares(powers[j:], remaining)[0], bits)
        remaining = [t - c * p for t, p in zip(remaining, powers[j], strict=True)]
        result.append(c)
    return [float(c) for c in result], float(max(abs(t) for t in remaining))


def exp_remainder(r: Real) -> Real:
    """(exp(r) - 1 - r) / r^2, by its series."""
    return mp.nsum(lambda n: r**n / mp.factorial(n + 2), [0, 40]) if r else mp.mpf(0.5)


def erf_over_x(z: Real) -> Real:
    """erf(x)/x - 1 with z = x^2."""
    x = mp.sqrt(z)
    return mp.erf(x) / x - 1


def log_erfc(centre: float) -> RealFunction:
    """u -> -log(erfc(centre + u)), the exponent that the large-argument branch of erf fits."""
    return lambda u: -mp.log(mp.erfc(centre + u))


def main() -> None:
    half_ln2 = float(mp.log(2) / 2) * 1.0001
    fits = {
        "exp f64": lambda: polynomial(exp_remainder, -half_ln2, half_ln2, 9, lambda r: r * r + 1e-9, 64),
        "exp f32": lambda: polynomial(exp_remainder, -half_ln2, half_ln2, 4, lambda r: r * r + 1e-3, 32),
        "expm1 f64": lambda: polynomial(exp_remainder, -half_ln2, half_ln2, 10, lambda r: r + 0.5, 64),
        "expm1 f32": lambda: polynomial(exp_remainder, -half_ln2, half_ln2, 5, lambda r: r + 0.5, 32),
        "erf small f64": lambda: polynomial(erf_over_x, 1e-30, 1.0, 12, lambda z: 1, 64),
        "erf small f32": lambda: polynomial(erf_over_x, 1e-30, 1.0, 6, lambda z: 1, 32),
        "erf large f64": lambda: polynomial(
            log_erfc(1.0), 0.0, 5.0, 18, lambda u: mp.erfc(1 + u) + mp.mpf(10) ** -20, 64
        ),
        "erf large f32": lambda: polynomial(
            log_erfc(1.0), 0.0, 3.0, 8, lambda u: mp.erfc(1 + u) + mp.mpf(10) ** -10, 32
        ),
    }  # fmt: skip
    for name, fit in fits.items():
        coefficients, error = fit()
        print(f"{name}: largest weighted error {error:.3g}")
        print("   ", ", ".join(repr(c) for c in coefficients))


if __name__ == "__main__":
    main()
