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


def rational(
    f: RealFunction, limit: float, degree: int, middle: float, scale: float
) -> tuple[list[float], list[float], float]:
    """P and Q in float32 with f(x) / x near middle + P(x^2) / Q(x^2) on [0, limit], Q(0) = scale; also the
    largest relative error before rounding.

    Least squares, made linear by the last round's denominator (Sanathanan and Koerner) and pushed towards
    minimax by weights that grow where the error is large (Lawson). `middle` and `scale` leave what is
    approximated alone; the values that the functions hold were picked among thousands for the least
    rounding error of the results.
    """
    s = (1 - np.cos((np.arange(400) + 0.5) / 400 * np.pi)) / 2
    target = np.array([float(f(mp.mpf(x)) / x) for x in s * limit])
    u = s * s
    powers = u[:, None] ** np.arange(degree + 1)
    weights, before = np.ones(len(u)), np.ones(len(u))
    best: tuple[Any, Any, float] = (None, None, np.inf)
    for _ in range(120):
        row = np.sqrt(weights) / (target * before)
        columns = np.hstack([powers, -target[:, None] * powers[:, 1:]])
        found = np.linalg.lstsq(columns * row[:, None], target * row, rcond=None)[0]
        p, q = found[: degree + 1], np.concatenate([[1.0], found[degree + 1 :]])
        error = np.abs(powers @ p / (powers @ q) / target - 1)
        if error.max() < best[2]:
            best = (p, q, float(error.max()))
        before = np.abs(powers @ q)
        weights = weights * (0.1 + 0.9 * error / error.max())
        weights /= weights.mean()
    shrink = scale / limit ** (2.0 * np.arange(degree + 1))
    p, q = best[0] * shrink, best[1] * shrink
    rounded = [[float(np.float32(c)) for c in row] for row in (p - middle * q, q)]
    return rounded[0], rounded[1], best[2]


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
        "erf large f64": lambda: polynomial(
            log_erfc(1.0), 0.0, 5.0, 18, lambda u: mp.erfc(1 + u) + mp.mpf(10) ** -20, 64
        ),
    }  # fmt: skip
    for name, fit in fits.items():
        coefficients, error = fit()
        print(f"{name}: largest weighted error {error:.3g}")
        print("   ", ", ".join(repr(c) for c in coefficients))
    for name, p, q, error in (
        ("tanh f32", *rational(mp.tanh, 9.01, 4, 0.140625, 1.15625)),
        ("erf f32", *rational(mp.erf, 3.92, 5, 0.31686481833457947, 1.6598402261734009)),
    ):
        print(f"{name}: largest relative error {error:.3g}")
        print("    P", ", ".join(repr(c) for c in p))
        print("    Q", ", ".join(repr(c) for c in q))


if __name__ == "__main__":
    main()
