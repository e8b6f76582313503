"""Optimizers against transcriptions of the formulas in PyTorch's documentation, over several steps."""

from __future__ import annotations

import numpy as np
import pytest
from frontend import place

import graphc as gx
from graphc.dsl import origins_of
from graphc.gradients import grad
from graphc.ir.graph import Graph
from graphc.ir.interpret import interpret
from graphc.ir.rebuild import intern
from graphc.optim import build_updates

RNG = np.random.default_rng(11)
START = {"a": RNG.normal(size=(3, 2)), "b": RNG.normal(size=2)}
TARGETS = [RNG.normal(size=2) * 3 for _ in range(8)]


def gradients(values, target):
    """Of sum((ones(3) @ a + b - target)^2 * [1, 2])."""
    d = 2 * (values["a"].sum(0) + values["b"] - target) * np.array([1.0, 2.0])
    return {"a": np.broadcast_to(d, (3, 2)), "b": d}


def train(optimizer):
    """The parameters after each run of graphc's updates, the plan, and what is updated."""
    a, b = (gx.param(name, init=value) for name, value in START.items())
    t = gx.input("t", (2,), dtype="float64")
    loss = (gx.square(np.ones(3) @ a + b - t) * np.array([1.0, 2.0])).sum()
    plan, updates = build_updates(
        optimizer, [(p.variable, p, g) for p, g in zip((a, b), grad(loss, [a, b]), strict=True)]
    )
    operands = {v: value.operand for v, value in updates.items()}
    graph = intern(Graph({"loss": loss.operand}, operands, origins_of([loss.operand, *operands.values()])))
    place(a.variable, b.variable, *plan.lr_variables, *plan.state_variables)
    assert set(graph.variables()) <= {
        v.name for v in (a.variable, b.variable, *plan.lr_variables, *plan.state_variables)
    }
    history = []
    for target in TARGETS:
        for group, variable in enumerate(plan.lr_variables):
            variable.array[...] = plan.learning_rate(group, int(plan.step_variable.array))
        _, updates = interpret(graph, {"t": target})
        for variable, value in updates.items():
            variable.array[...] = value
        history.append({"a": a.value.copy(), "b": b.value.copy()})
    return history, plan, set(operands)


def transcribe(rule, names=("a", "b"), prepare=lambda gs: gs):
    """The parameters after each step of `rule(p, g, state, t) -> p`."""
    values = {name: value.copy() for name, value in START.items()}
    states = {name: {} for name in values}
    history = []
    for t, target in enumerate(TARGETS, 1):
        grads = prepare(gradients(values, target))
        for name in names:
            values[name] = rule(values[name], grads[name], states[name], t)
        history.append({name: value.copy() for name, value in values.items()})
    return history


def same(found, expected):
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        for name in right:
            np.testing.assert_allclose(left[name], right[name], rtol=1e-11, atol=1e-13)


def sgd(lr=0.01, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0):
    def rule(p, g, s, t):
        g = g + weight_decay * p
        if momentum:
            s["b"] = g if t == 1 else momentum * s["b"] + (1 - dampening) * g
            g = g + momentum * s["b"] if nesterov else s["b"]
        return p - lr * g

    return rule


def adam(lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    def rule(p, g, s, t):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
        s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g * g
        m = s["m"] / (1 - betas[0] ** t)
        v = s["v"] / (1 - betas[1] ** t)
        return p - lr * m / (np.sqrt(v) + eps)

    return rule


def rmsprop(lr=0.01, alpha=0.99, eps=1e-8, momentum=0.0, centered=False, weight_decay=0.0):
    def rule(p, g, s, t):
        g = g + weight_decay * p
        s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
        v = s["v"]
        if centered:
            s["a"] = alpha * s.get("a", 0) + (1 - alpha) * g
            v = v - s["a"] ** 2
        d = g / (np.sqrt(v) + eps)
        if momentum:
            s["b"] = momentum * s.get("b", 0) + d
            d = s["b"]
        return p - lr * d

    return rule


def adagrad(lr=0.1, lr_decay=0.0, weight_decay=0.0, initial=0.0, eps=1e-10):
    def rule(p, g, s, t):
        g = g + weight_decay * p
        s["s"] = s.get("s", initial) + g * g
        return p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s["s"]) + eps)

    return rule


CASES = [
    (gx.optim.SGD, sgd, {"lr": 0.01}),
    (gx.optim.SGD, sgd, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    (gx.optim.SGD, sgd, {"lr": 0.01, "momentum": 0.9, "dampening": 0.3}),
    (gx.optim.SGD, sgd, {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    (gx.optim.Adam, adam, {"lr": 0.05}),
    (gx.optim.Adam, adam, {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2}),
    (gx.optim.Adam, adam, {"lr": 0.05, "betas": (0.0, 0.9)}),
    (gx.optim.RMSProp, rmsprop, {"lr": 0.02}),
    (
        gx.optim.RMSProp,
        rmsprop,
        {"lr": 0.02, "alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
    ),
    (gx.optim.Adagrad, adagrad, {"lr": 0.3}),
    (gx.optim.Adagrad, adagrad, {"lr": 0.3, "lr_decay": 0.1, "weight_decay": 0.05}),
]


@pytest.mark.parametrize(("optimizer", "rule", "options"), CASES)
def test_formulas(optimizer, rule, options):
    same(train(optimizer(**options))[0], transcribe(rule(**options)))


def test_adamw():
    options = {"lr": 0.05, "weight_decay": 0.3}
    same(train(gx.optim.AdamW(**options))[0], transcribe(adam(**options, decoupled=True)))
    assert gx.optim.AdamW().groups[0].options["weight_decay"] == 0.01


def test_initial_accumulator():
    found, *_ = train(gx.optim.Adagrad(lr=0.3, initial_accumulator_value=2.0))
    same(found, transcribe(adagrad(lr=0.3, initial=2.0)))


def test_schedule_counts_updates():
    rates = []

    def schedule(step):
        rates.append(step)
        return 0.1 / (1 + step)

    expected = transcribe(lambda p, g, s, t: p - 0.1 / t * g)
    found, plan, _ = train(gx.optim.SGD(lr=schedule))
    same(found, expected)
    assert rates == list(range(len(TARGETS)))
    assert int(plan.step_variable.array) == len(TARGETS)


def test_groups():
    optimizer = gx.optim.SGD([{"params": "b", "lr": 0.02, "momentum": 0.5}, {"params": ["a*"]}], lr=0.01)
    slow, fast = sgd(0.01), sgd(0.02, 0.5)
    expected = transcribe(lambda p, g, s, t: slow(p, g, s, t) if p.ndim == 2 else fast(p, g, s, t))
    same(train(optimizer)[0], expected)


@pytest.mark.parametrize(
    "groups", [[{"params": ["a"], "frozen": True}, {"params": "*"}], [{"params": ["b"]}], ["b"]]
)  # fmt: skip
def test_frozen_and_left_out(groups):
    found, _, updated = train(gx.optim.SGD(groups, lr=0.01, momentum=0.9))
    same(found, transcribe(sgd(0.01, 0.9), names=("b",)))
    assert not any(v.name == "a" or v.name.startswith("optim.a") for v in updated)


def test_clip_norm():
    def clip(grads):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        return {k: g * min(1, 2.0 / (norm + 1e-6)) for k, g in grads.items()}

    same(train(gx.optim.SGD(lr=0.1, clip_norm=2.0))[0], transcribe(sgd(0.1), prepare=clip))


def test_clip_value():
    def clip(grads):
        return {k: np.clip(g, -0.5, 0.5) for k, g in grads.items()}

    same(train(gx.optim.SGD(lr=0.1, clip_value=0.5))[0], transcribe(sgd(0.1), prepare=clip))


@pytest.mark.parametrize("accumulation", ["mean", "sum"])
def test_accumulation(accumulation):
    found, plan, _ = train(gx.optim.Adam(lr=0.05, accumulate=3, accumulation=accumulation))
    values = {name: value.copy() for name, value in START.items()}
    states, sums = {"a": {}, "b": {}}, {"a": 0.0, "b": 0.0}
    rule, history = adam(0.05), []
    for run, target in enumerate(TARGETS, 1):
        grads = gradients(values, target)
        for name in values:
            sums[name] = sums[name] + grads[name]
            if run % 3 == 0:
                scale = 3 if accumulation == "mean" else 1
                values[name] = rule(values[name], sums[name] / scale, states[name], run // 3)
                sums[name] = 0.0
        history.append({name: value.copy() for name, value in values.items()})
    same(found, history)
    assert int(plan.step_variable.array) == len(TARGETS) // 3


def test_own_optimizer():
    class SignSGD(gx.optim.Optimizer):
        def __init__(self, params=None, *, lr=0.1, scale=1.0, **common):
            super().__init__(params, lr=lr, options={"scale": scale}, **common)

        def update(self, param, grad, ctx):
            count = ctx.state("count") + 1
            ctx.set_state("count", count)
            return param - ctx.lr * ctx["scale"] * gx.sign(grad) / count

    found, *_ = train(SignSGD([{"params": ["a", "b"], "scale": 0.5}]))
    same(found, transcribe(lambda p, g, s, t: p - 0.05 * np.sign(g) / t))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gx.optim.SGD(0.1), "given by name: lr=0.1"),
        (lambda: gx.optim.SGD(lr=-1), "not negative"),
        (lambda: gx.optim.SGD(lr=float("nan")), "finite"),
        (lambda: gx.optim.SGD(lr="fast"), "number"),
        (lambda: gx.optim.SGD(lr=1, momentum=-0.1), "momentum"),
        (lambda: gx.optim.SGD(lr=1, nesterov=True), "Nesterov"),
        (lambda: gx.optim.SGD([{"params": "a", "mometum": 0.1}], lr=1), "mometum"),
        (lambda: gx.optim.SGD([{"lr": 1}], lr=1), "'params'"),
        (lambda: gx.optim.SGD([{"params": 3}], lr=1), "holds"),
        (lambda: gx.optim.Adam(betas=(0.9, 1.0)), r"betas\[1\]"),
        (lambda: gx.optim.Adam(betas=0.9), "pair"),
        (lambda: gx.optim.Adam(eps=-1), "eps"),
        (lambda: gx.optim.RMSProp(alpha=1.5), "alpha"),
        (lambda: gx.optim.SGD(clip_norm=0), "clip_norm"),
        (lambda: gx.optim.SGD(accumulate=0), "accumulate"),
        (lambda: gx.optim.SGD(accumulation="max"), "accumulation"),
        (lambda: train(gx.optim.SGD(["c*"], lr=1)), "not reached"),
        (lambda: train(gx.optim.Optimizer()), "update"),
        (lambda: train(gx.optim.SGD(lr=lambda step: -1.0)), "not negative"),
    ],
)
def test_refused(make, message):
    with pytest.raises(gx.DeclarationError, match=message):
        make()


def test_misspelt_argument():
    with pytest.raises(TypeError, match="mometum"):
        gx.optim.SGD(lr=1, mometum=0.1)
