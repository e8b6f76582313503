"""Elementary functions as LLVM IR, for float and double at any number of lanes, without libm.

`MATH[name](f, x)` appends the function's code (or a call of a function shared by the module) to `f` and
returns the result; `pow(f, x, y)`, `mod` and `floordiv` have two operands. docs/math.md has the measured
errors.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.math.division import floordiv, mod
from graphc.codegen.math.error_function import erf
from graphc.codegen.math.exponential import exp, exp_not_positive, expm1, sigmoid, tanh
from graphc.codegen.math.logarithm import log, log1p
from graphc.codegen.math.number import MathFunction
from graphc.codegen.math.power import pow
from graphc.codegen.math.rounding import ceil, floor, round_half_even, sqrt, trunc
from graphc.codegen.math.trigonometric import cos, sin

MATH: Mapping[str, MathFunction] = {
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "sin": sin,
    "cos": cos,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "erf": erf,
    "sqrt": sqrt,
    "floor": floor,
    "ceil": ceil,
    "trunc": trunc,
    "round": round_half_even,
}

__all__ = [
    "MATH", "ceil", "cos", "erf", "exp", "exp_not_positive", "expm1", "floor", "floordiv", "log", "log1p",
    "mod", "pow", "round_half_even", "sigmoid", "sin", "sqrt", "tanh", "trunc",
]  # fmt: skip
