"""Activations and other elementwise functions that networks are made of; see `elementwise.py`.

Formulas are arranged so that finite operands give finite results and derivatives, second ones included:
a branch that would overflow is given a harmless operand instead of being masked afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.errors import DeclarationError, DTypeError
from graphc.ir.ops.elementwise import (
    elementwise,
    numeric,
    only_float,
    plus,
    primitive,
    require_arity,
    same_dtype,
    scaled,
    zero_like,
)
from graphc.ir.types import TensorType, bool_

if TYPE_CHECKING:
    from graphc.ir.graph import Attrs, GraphBuilder, Node, Operand


def _positive(b: GraphBuilder, x: Operand) -> Operand:
    return b("gt", x, zero_like(b, x))


def _one_minus(b: GraphBuilder, x: Operand) -> Operand:
    return b("sub", b.full_like(1, x), x)


# ------------------------------------------------------------------------------------ sigmoid and tanh

elementwise(
    "tanh", "The hyperbolic tangent. d/dx = 1 - tanh(x)^2.", only_float, primitive("tanh"),
    lambda b, ct, out, x: b("mul", ct, _one_minus(b, b("square", out))),
)  # fmt: skip
elementwise(
    "sigmoid", "s = 1 / (1 + exp(-x)). d/dx = s (1 - s).", only_float, primitive("sigmoid"),
    lambda b, ct, out, x: b("mul", ct, b("mul", out, _one_minus(b, out))),
)  # fmt: skip


def _silu_gradient(b: GraphBuilder, ct: Operand, out: Operand, x: Operand) -> Operand:
    s = b("sigmoid", x)
    return b("mul", ct, b("mul", s, plus(b, b("mul", x, _one_minus(b, s)), 1)))


elementwise(
    "silu", "x sigmoid(x). d/dx = s (1 + x (1 - s)).", only_float,
    lambda s, x: s.prim("mul", x, s.prim("sigmoid", x)), _silu_gradient,
)  # fmt: skip


def _log1p_exp_minus_abs(s: Any, x: Any) -> Any:
    return s.prim("log1p", s.prim("exp", s.prim("neg", s.prim("abs", x))))


elementwise(
    "softplus", "log(1 + exp(x)), as max(x, 0) + log1p(exp(-|x|)). d/dx = sigmoid(x).", only_float,
    lambda s, x: s.prim("add", s.prim("maximum", x, s.const(0, x)), _log1p_exp_minus_abs(s, x)),
    lambda b, ct, out, x: b("mul", ct, b("sigmoid", x)),
)  # fmt: skip


# -------------------------------------------------------------------------------------- rectified units

elementwise(
    "relu", "max(x, 0), NaN for NaN. d/dx at 0 is 0.", numeric,
    lambda s, x: s.prim("select", s.prim("le", x, s.const(0, x)), s.const(0, x), x),
    lambda b, ct, out, x: b("select", b("le", x, zero_like(b, x)), zero_like(b, ct), ct),
)  # fmt: skip
elementwise(
    "leaky_relu", "x above 0, else slope * x. d/dx at 0 is slope.", only_float,
    lambda s, x, slope: s.prim(
        "select", s.prim("gt", x, s.const(0, x)), x, s.prim("mul", x, s.const(slope, x))
    ),
    lambda b, ct, out, x, slope: b("select", _positive(b, x), ct, scaled(b, slope, ct)),
)  # fmt: skip


def _elu_scalar(s: Any, x: Any, alpha: float, scale: float = 1.0) -> Any:
    below = s.prim("mul", s.prim("expm1", x), s.const(scale * alpha, x))
    above = x if scale == 1.0 else s.prim("mul", x, s.const(scale, x))
    return s.prim("select", s.prim("gt", x, s.const(0, x)), above, below)


def _elu_gradient(
    b: GraphBuilder, ct: Operand, out: Operand, x: Operand, alpha: float, scale: float = 1.0
) -> Operand:
    positive = _positive(b, x)
    # exp never sees a large x: its own derivative would make 0 * inf of it.
    below = scaled(b, scale * alpha, b("exp", b("select", positive, zero_like(b, x), x)))
    return b("mul", ct, b("select", positive, b.full_like(scale, x), below))


# Klambauer et al. 2017, "Self-Normalizing Neural Networks", equation 14.
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946

elementwise(
    "elu", "x above 0, else alpha (exp(x) - 1). d/dx at 0 is alpha.", only_float, _elu_scalar, _elu_gradient
)
elementwise(
    "selu", "scale times elu with alpha, both fixed (Klambauer et al. 2017).", only_float,
    lambda s, x: _elu_scalar(s, x, SELU_ALPHA, SELU_SCALE),
    lambda b, ct, out, x: _elu_gradient(b, ct, out, x, SELU_ALPHA, SELU_SCALE),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- gelu

_TANH_SCALE = math.sqrt(2 / math.pi)
_TANH_CUBIC = 0.044715
# From here on gelu is x or 0 and its derivative 1 or 0 to the last bit of a float64.
_GELU_SATURATED = 40.0


def _infer_gelu(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    require_arity(types, 1, "gelu")
    if attrs["approximate"] not in ("none", "tanh"):
        raise DeclarationError(f"gelu: approximate is 'none' or 'tanh', not {attrs['approximate']!r}")
    return [TensorType(same_dtype(types, only_float, "gelu"), types[0].shape)]


def _gelu_scalar(s: Any, x: Any, approximate: str) -> Any:
    if approximate == "tanh":
        cubic = s.prim("add", s.prim("mul", s.prim("mul", x, x), s.const(_TANH_CUBIC, x)), s.const(1, x))
        inner = s.prim("tanh", s.prim("mul", s.prim("mul", x, s.const(_TANH_SCALE, x)), cubic))
    else:
        clipped = s.prim("maximum", x, s.const(-_GELU_SATURATED, x))
        clipped = s.prim("minimum", clipped, s.const(_GELU_SATURATED, x))
        inner = s.prim("erf", s.prim("mul", clipped, s.const(math.sqrt(0.5), x)))
    return s.prim("mul", x, s.prim("add", s.prim("mul", inner, s.const(0.5, x)), s.const(0.5, x)))


def _gelu_parts(b: GraphBuilder, x: Operand, approximate: str) -> tuple[Operand, Operand, Operand]:
    """(the argument of erf or tanh, erf or tanh, what the value multiplies x by)."""
    if approximate == "tanh":
        cubic = plus(b, scaled(b, _TANH_CUBIC, b("square", x)), 1)
        argument = b("mul", scaled(b, _TANH_SCALE, x), cubic)
        inner = b("tanh", argument)
    else:
        argument = scaled(b, math.sqrt(0.5), b("clip", x, low=-_GELU_SATURATED, high=_GELU_SATURATED))
        inner = b("erf", argument)
    return argument, inner, plus(b, scaled(b, 0.5, inner), 0.5)


def _gelu_decomposed(b: GraphBuilder, node: Node) -> Sequence[Operand]:
    (x,) = node.inputs
    return [b("mul", x, _gelu_parts(b, x, **node.attrs)[2])]


def _gelu_gradient(b: GraphBuilder, ct: Operand, out: Operand, x: Operand, approximate: str) -> Operand:
    """none: Phi(x) + x phi(x), phi(x) = exp(-t^2) / sqrt(2 pi), t = x / sqrt(2).
    tanh: (1 + t)/2 + x/2 (1 - t^2) k (1 + 3 c x^2), t = tanh(k (x + c x^3))."""
    argument, inner, factor = _gelu_parts(b, x, approximate)
    # Where gelu is straight, the polynomial and the density would only produce inf * 0.
    x = b("clip", x, low=-_GELU_SATURATED, high=_GELU_SATURATED)
    if approximate == "tanh":
        slope = plus(b, scaled(b, 3 * _TANH_CUBIC * _TANH_SCALE, b("square", x)), _TANH_SCALE)
        bend = b("mul", scaled(b, 0.5, b("mul", x, _one_minus(b, b("square", inner)))), slope)
    else:
        density = b("exp", b("neg", b("square", argument)))
        bend = b("mul", scaled(b, 1 / math.sqrt(2 * math.pi), x), density)
    return b("mul", ct, b("add", bend, factor))


elementwise(
    "gelu", 'x Phi(x); with approximate="tanh" x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).', only_float,
    _gelu_scalar, _gelu_gradient, infer=_infer_gelu, decompose=_gelu_decomposed,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- clip


def _infer_clip(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    require_arity(types, 1, "clip")
    dtype = same_dtype(types, numeric, "clip")
    for bound in (attrs["low"], attrs["high"]):
        if bound is not None and dtype.is_integer:
            limits = np.iinfo(dtype.numpy)
            if not (limits.min <= bound <= limits.max) or bound != int(bound):
                raise DTypeError(f"clip: the bound {bound} is not a value of {dtype}")
    return [TensorType(dtype, types[0].shape)]


def _clip_scalar(s: Any, x: Any, low: float | None, high: float | None) -> Any:
    if low is not None:
        x = s.prim("maximum", x, s.const(low, x))
    if high is not None:
        x = s.prim("minimum", x, s.const(high, x))
    return x


def _clip_gradient(
    b: GraphBuilder, ct: Operand, out: Operand, x: Operand, low: float | None, high: float | None
) -> Operand:
    inside = b.full(True, TensorType(bool_, x.type.shape))
    if low is not None:
        inside = b("ge", x, b.full_like(low, x))
    if high is not None:
        below = b("le", x, b.full_like(high, x))
        inside = below if low is None else b("logical_and", inside, below)
    return b("select", inside, ct, zero_like(b, ct))


elementwise(
    "clip", "min(max(x, low), high); None is no bound. d/dx is 1 on the closed interval, else 0.", numeric,
    _clip_scalar, _clip_gradient, infer=_infer_clip,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- loss


def _bce_with_logits_scalar(s: Any, x: Any, t: Any) -> Any:
    linear = s.prim("sub", s.prim("maximum", x, s.const(0, x)), s.prim("mul", x, t))
    return s.prim("add", linear, _log1p_exp_minus_abs(s, x))


elementwise(
    "bce_with_logits",
    "-t log(s) - (1 - t) log(1 - s), s = sigmoid(x), as max(x, 0) - x t + log1p(exp(-|x|)). "
    "d/dx = s - t, d/dt = -x.",
    only_float, _bce_with_logits_scalar,
    lambda b, ct, out, x, t: [b("mul", ct, b("sub", b("sigmoid", x), t)), b("neg", b("mul", ct, x))], 2,
)  # fmt: skip
