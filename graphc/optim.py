"""`gx.optim`: optimizers as macros over the DSL; the formulas are PyTorch's, term by term.

    gx.optim.SGD(lr=0.1, momentum=0.9)
    gx.optim.Adam([{"params": ["fc1.*"], "lr": 1e-4}, {"params": ["*"]}], lr=1e-3, clip_norm=1.0)

Without groups an optimizer updates every parameter it is handed. With groups each parameter belongs to
the first group that names it (by tensor, module, name or pattern), and those in none are left alone; a
group may override any hyperparameter, or be `frozen`. An optimizer of one's own derives from `Optimizer`
and defines `update`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from graphc import dsl, functions
from graphc.dsl import Tensor
from graphc.errors import DeclarationError
from graphc.updates import Group as Group
from graphc.updates import LearningRate, is_number
from graphc.updates import Optimizer as Optimizer
from graphc.updates import OptimizerPlan as OptimizerPlan
from graphc.updates import UpdateContext as UpdateContext
from graphc.updates import build_updates as build_updates


def _require_fraction(optimizer: Optimizer, options: Mapping[str, Any], *names: str) -> None:
    for name in names:
        value = options[name]
        if not (is_number(value) and 0 <= value < 1):
            raise DeclarationError(
                f"{type(optimizer).__name__}: {name} lies in [0, 1), and {value!r} does not"
            )


def _decayed(param: Tensor, grad: Tensor, ctx: UpdateContext) -> Tensor:
    """The gradient with weight decay as an L2 penalty."""
    return grad + param * ctx["weight_decay"] if ctx["weight_decay"] else grad


class SGD(Optimizer):
    """g += weight_decay * p; buf = momentum * buf + (1 - dampening) * g (buf = g at first);
    g = g + momentum * buf with Nesterov, else buf; p -= lr * g (torch.optim.SGD)."""

    non_negative = ("weight_decay", "momentum")

    def __init__(
        self,
        params: Any = None,
        *,
        lr: LearningRate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        **common: Any,
    ) -> None:
        options = {
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        super().__init__(params, lr=lr, options=options, **common)

    def validate(self, options: Mapping[str, Any]) -> None:
        super().validate(options)
        if not is_number(options["dampening"]):
            raise DeclarationError(f"SGD: dampening is a number, not {options['dampening']!r}")
        if options["nesterov"] and (not options["momentum"] or options["dampening"]):
            raise DeclarationError("SGD: Nesterov needs a momentum and no dampening")

    def update(self, param: Tensor, grad: Tensor, ctx: UpdateContext) -> Tensor:
        grad = _decayed(param, grad, ctx)
        momentum, dampening = ctx["momentum"], ctx["dampening"]
        if momentum:
            buffer = ctx.state("momentum")
            moved = buffer * momentum + (grad * (1 - dampening) if dampening else grad)
            if dampening:  # otherwise 0 * momentum + grad is grad at the first step as it is
                moved = functions.where(ctx.step == 1, grad, moved)
            ctx.set_state("momentum", moved)
            grad = grad + moved * momentum if ctx["nesterov"] else moved
        return param - grad * ctx.lr


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; with t counted from 1,
    p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps) (torch.optim.Adam).

    `weight_decay` is an L2 penalty, added to the gradient; see AdamW for the decoupled one.
    """

    non_negative = ("weight_decay", "eps")
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Any = None,
        *,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **common: Any,
    ) -> None:
        options = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, lr=lr, options=options, **common)

    def validate(self, options: Mapping[str, Any]) -> None:
        super().validate(options)
        betas = options["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise DeclarationError(f"{type(self).__name__}: betas is a pair of numbers, not {betas!r}")
        _require_fraction(self, {"betas[0]": betas[0], "betas[1]": betas[1]}, "betas[0]", "betas[1]")

    def update(self, param: Tensor, grad: Tensor, ctx: UpdateContext) -> Tensor:
        if self.decoupled:
            if ctx["weight_decay"]:
                param = param * (1 - ctx.lr * ctx["weight_decay"])
        else:
            grad = _decayed(param, grad, ctx)
        first, second = ctx["betas"]
        mean = ctx.state("m") * first + grad * (1 - first)
        square = ctx.state("v") * second + functions.square(grad) * (1 - second)
        ctx.set_state("m", mean)
        ctx.set_state("v", square)
        step_size = ctx.lr / _bias_correction(first, ctx.step)
        scale = functions.sqrt(_bias_correction(second, ctx.step))
        denominator: Tensor = functions.sqrt(square) / scale + ctx["eps"]
        moved: Tensor = param - step_size * (mean / denominator)
        return moved


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step; as -expm1(step * log(beta)), which keeps its digits in float32 for beta near 1."""
    if beta == 0:
        return dsl.full_of(1.0, step.dtype, ())
    return -functions.expm1(step * float(np.log(beta)))


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - lr * weight_decay before the update (torch.optim.AdamW)."""

    decoupled = True

    def __init__(
        self,
        params: Any = None,
        *,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **common: Any,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)


class RMSProp(Optimizer):
    """v = alpha v + (1 - alpha) g^2; centered: a = alpha a + (1 - alpha) g, s = sqrt(v - a^2), else sqrt(v);
    buf = momentum * buf + g / (s + eps); p -= lr * buf (torch.optim.RMSprop)."""

    non_negative = ("weight_decay", "eps", "momentum")

    def __init__(
        self,
        params: Any = None,
        *,
        lr: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
        **common: Any,
    ) -> None:
        options = {
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "centered": centered,
            "weight_decay": weight_decay,
        }
        super().__init__(params, lr=lr, options=options, **common)

    def validate(self, options: Mapping[str, Any]) -> None:
        super().validate(options)
        _require_fraction(self, options, "alpha")

    def update(self, param: Tensor, grad: Tensor, ctx: UpdateContext) -> Tensor:
        grad = _decayed(param, grad, ctx)
        alpha = ctx["alpha"]
        square = ctx.state("v") * alpha + functions.square(grad) * (1 - alpha)
        ctx.set_state("v", square)
        spread = square
        if ctx["centered"]:
            mean = ctx.state("mean") * alpha + grad * (1 - alpha)
            ctx.set_state("mean", mean)
            spread = square - functions.square(mean)
        direction: Tensor = grad / (functions.sqrt(spread) + ctx["eps"])
        if ctx["momentum"]:
            direction = ctx.state("momentum") * ctx["momentum"] + direction
            ctx.set_state("momentum", direction)
        return param - direction * ctx.lr


class Adagrad(Optimizer):
    """s = s + g^2; p -= lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps), t from 1 (torch.optim.Adagrad)."""

    non_negative = ("weight_decay", "eps", "lr_decay", "initial_accumulator_value")

    def __init__(
        self,
        params: Any = None,
        *,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **common: Any,
    ) -> None:
        options = {
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(params, lr=lr, options=options, **common)

    def update(self, param: Tensor, grad: Tensor, ctx: UpdateContext) -> Tensor:
        grad = _decayed(param, grad, ctx)
        total = ctx.state("sum", ctx["initial_accumulator_value"]) + functions.square(grad)
        ctx.set_state("sum", total)
        rate = ctx.lr / (1 + (ctx.step - 1) * ctx["lr_decay"]) if ctx["lr_decay"] else ctx.lr
        denominator: Tensor = functions.sqrt(total) + ctx["eps"]
        return param - rate * (grad / denominator)
