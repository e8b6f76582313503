"""The elementary functions against 200-bit references, at every vector level that this machine runs."""

from __future__ import annotations

import re

import math_harness as harness
import mpmath as mp
import numpy as np
import pytest
from math_harness import NAMES, evaluate, module_text, samples, ulps

from graphc.codegen.builder import F32, PTR, Function, Module, Value
from graphc.codegen.jit import assembly, compile_object, undefined_symbols
from graphc.codegen.math import MATH
from graphc.codegen.target import TARGETS, Target

LEVELS = [target for target in TARGETS.values() if target.runs_here]
level = pytest.mark.parametrize("target", LEVELS, ids=lambda target: target.name)
precision = pytest.mark.parametrize("dtype", ["float32", "float64"])

# The promised bounds in ulps (docs/math.md): float32, float64.
BOUNDS = {
    "exp": (2, 2), "expm1": (4, 2), "log": (2, 2), "log1p": (4, 2), "sin": (3, 2), "cos": (3, 2),
    "tanh": (5, 2), "sigmoid": (4, 2), "erf": (4, 2), "pow": (8, 2), "sqrt": (0.5, 0.5),
    "floor": (0, 0), "ceil": (0, 0),
}  # fmt: skip

INF, NAN = np.inf, np.nan


def widths(target: Target, dtype: str) -> tuple[int, int]:
    return 1, target.lanes(32 if dtype == "float32" else 64)


def same(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Equal bits, save that every NaN is the same."""
    equal = (got == expected) & (np.signbit(got) == np.signbit(expected))
    return equal | (np.isnan(got) & np.isnan(expected))


@level
@precision
@pytest.mark.parametrize("name", BOUNDS)
def test_error_stays_within_the_published_bound(name: str, dtype: str, target: Target) -> None:
    drawn = samples(name, dtype)
    for lanes in widths(target, dtype):
        error = ulps(drawn, evaluate(target, name, lanes, drawn.x, drawn.y))
        worst = int(np.argmax(error))
        assert error[worst] <= BOUNDS[name][dtype == "float64"], (lanes, drawn.x[worst].hex(), error[worst])


@level
@precision
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sin_and_cos_are_right_over_the_whole_range(name: str, dtype: str, target: Target) -> None:
    rng = np.random.default_rng(5)
    x = np.exp2(rng.uniform(16, 1023 if dtype == "float64" else 127, 600)) * rng.choice([-1, 1], 600)
    # The float64 nearest to a multiple of pi/2, and values about the switch of reductions.
    hard = [6381956970095103.0 * 2.0**797, 1e22, 2.0**20, -(2.0**20), 2.0**20 - 0.5, 1e6, -1e5]
    x = np.concatenate([x, hard, [1.79e308]] if dtype == "float64" else [x, hard[1:], [3e38]]).astype(dtype)
    with mp.workprec(1300):
        exact = [getattr(mp, name)(mp.mpf(float(v))) for v in x]
        high = np.array([float(v) for v in exact])
        low = np.array([float(v - float(v)) for v in exact])
    for lanes in widths(target, dtype):
        got = evaluate(target, name, lanes, x)
        assert np.max(ulps(harness.Samples(x, None, high, low), got)) <= 2


def _edges(dtype: str) -> dict[str, list[tuple[float, float]]]:
    info = np.finfo(dtype)
    tiny, small, big = float(info.smallest_subnormal), float(info.tiny), float(info.max)
    odd = [(v, v) for v in (0.0, -0.0, tiny, -tiny, small, -small, 3 * tiny)]
    return {
        "exp": [(0.0, 1), (-0.0, 1), (tiny, 1), (-tiny, 1), (INF, INF), (-INF, 0.0), (big, INF), (-big, 0.0),
                (NAN, NAN), (1000.0, INF), (-1000.0, 0.0)],
        "expm1": [*odd, (INF, INF), (-INF, -1), (big, INF), (-big, -1), (NAN, NAN), (-200.0, -1)],
        "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (-1.0, NAN), (-tiny, NAN), (-INF, NAN), (INF, INF),
                (NAN, NAN)],
        "log1p": [*odd, (-1.0, -INF), (-1.5, NAN), (-INF, NAN), (INF, INF), (NAN, NAN)],
        "sin": [*odd, (INF, NAN), (-INF, NAN), (NAN, NAN)],
        "cos": [(0.0, 1), (-0.0, 1), (tiny, 1), (INF, NAN), (-INF, NAN), (NAN, NAN)],
        "tanh": [*odd, (INF, 1), (-INF, -1), (big, 1), (-big, -1), (NAN, NAN), (30.0, 1)],
        "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (tiny, 0.5), (INF, 1), (-INF, 0.0), (big, 1), (-big, 0.0),
                    (NAN, NAN)],
        "erf": [(0.0, 0.0), (-0.0, -0.0), (tiny, tiny), (-tiny, -tiny), (INF, 1), (-INF, -1), (big, 1),
                (NAN, NAN), (10.0, 1)],
        "sqrt": [(0.0, 0.0), (-0.0, -0.0), (-1.0, NAN), (INF, INF), (NAN, NAN), (4.0, 2.0)],
    }  # fmt: skip


@level
@precision
@pytest.mark.parametrize("name", _edges("float64"))
def test_edges_are_exact(name: str, dtype: str, target: Target) -> None:
    x, expected = np.array(_edges(dtype)[name]).T.astype(dtype)
    for lanes in widths(target, dtype):
        got = evaluate(target, name, lanes, x)
        wrong = ~same(got, expected)
        assert not wrong.any(), list(zip(x[wrong], got[wrong], expected[wrong], strict=True))


@level
@precision
def test_rounding_agrees_with_numpy_bit_for_bit(dtype: str, target: Target) -> None:
    rng = np.random.default_rng(2)
    ties = np.arange(-9, 9) + 0.5
    powers = np.exp2(np.arange(-4, 66.0))
    edges = [0.0, -0.0, INF, -INF, NAN, 0.49999999999999994, -0.3, float(np.finfo(dtype).smallest_subnormal)]
    whole = np.concatenate([ties, powers, -powers, powers + 0.5, edges, rng.uniform(-1e3, 1e3, 500)])
    x = np.concatenate([whole.astype(dtype), np.nextafter(ties.astype(dtype), np.dtype(dtype).type(0))])
    for name, reference in (("floor", np.floor), ("ceil", np.ceil), ("trunc", np.trunc), ("round", np.round)):
        for lanes in widths(target, dtype):
            got = evaluate(target, name, lanes, x)
            wrong = ~same(got, reference(x))
            assert not wrong.any(), (name, x[wrong], got[wrong])


@level
@precision
def test_pow_follows_c99_on_special_operands(dtype: str, target: Target) -> None:
    edges = [0.0, 1.0, 0.5, 2.0, 3.0, 2.5, 1e30, 4503599627370497.0, INF]
    values = np.array([*edges, *(-v for v in edges), NAN])
    x, y = (grid.ravel().astype(dtype) for grid in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
    for lanes in widths(target, dtype):
        got = evaluate(target, "pow", lanes, x, y)
        with np.errstate(all="ignore"):
            close = np.abs(got - expected) <= 4 * np.spacing(np.abs(expected))
        finite = np.isfinite(expected) & (expected != 0)
        right = np.where(finite, close & (np.signbit(got) == np.signbit(expected)), same(got, expected))
        assert right.all(), list(zip(x[~right], y[~right], got[~right], expected[~right], strict=True))


@level
def test_float32_densely_against_float64(target: Target) -> None:
    """A stride through all float32 bit patterns, with numpy's float64 as the reference."""
    patterns = np.arange(0, 1 << 32, 4_003, dtype=np.uint64).astype(np.uint32)
    x = patterns.view(np.float32)
    x = x[np.isfinite(x)]
    wide = x.astype(np.float64)
    references = {
        "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
        "sin": np.sin, "cos": np.cos,
        "sigmoid": lambda v: np.where(v < 0, np.exp(v), 1) / (1 + np.exp(-abs(v))),
    }  # fmt: skip
    for name, reference in references.items():
        with np.errstate(all="ignore"):
            expected = reference(wide)
        got = evaluate(target, name, target.lanes(32), x)
        assert (np.isnan(got) == np.isnan(expected)).all(), name
        defined = ~np.isnan(expected) & ~np.isinf(expected)
        drawn = harness.Samples(x[defined], None, expected[defined], np.zeros(int(defined.sum())))
        assert np.max(ulps(drawn, got[defined])) <= BOUNDS[name][0], name
        infinite = np.isinf(expected)
        assert (got[infinite] == expected[infinite]).all(), name


@level
@precision
def test_bounded_functions_stay_bounded_and_tanh_does_not_step_back(dtype: str, target: Target) -> None:
    x = np.linspace(-12, 12, 100_001).astype(dtype)
    lanes = widths(target, dtype)[1]
    for name in ("tanh", "erf", "sigmoid", "sin", "cos"):
        assert np.max(np.abs(evaluate(target, name, lanes, x))) <= 1, name
    # Neighbours may round the wrong way round, by no more than their error.
    for name in ("tanh", "erf", "sigmoid", "exp"):
        result = evaluate(target, name, lanes, x)
        assert np.all(np.diff(result) >= -3 * np.spacing(np.abs(result[1:]))), name


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@precision
def test_no_function_needs_a_library(dtype: str, target: Target) -> None:
    for lanes in widths(target, dtype):
        text = module_text(target, dtype, lanes)
        assert undefined_symbols(compile_object(text, target)) == []
        calls = re.findall(r"^\s+(?:bl|callq?)\s+(\S+)", assembly(text, target), re.MULTILINE)
        assert calls and all(name.startswith("gx_") for name in calls), set(calls)


def test_an_undefined_symbol_would_be_seen() -> None:
    text = """
declare float @expf(float)
define float @f(float %x) {
  %y = call float @expf(float %x)
  ret float %y
}"""
    assert undefined_symbols(compile_object(text, TARGETS["sse2"])) == ["expf"]


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
@precision
def test_any_number_of_lanes_gives_the_same_bits(dtype: str, lanes: int) -> None:
    target = LEVELS[0]
    for name in NAMES:
        drawn = samples("pow" if name == "pow" else "exp", dtype)
        x, y = drawn.x[:200], None if drawn.y is None else drawn.y[:200]
        assert same(evaluate(target, name, lanes, x, y), evaluate(target, name, 1, x, y)).all(), name


def test_a_long_function_is_written_once_in_a_module() -> None:
    text = module_text(TARGETS["avx2"], "float64", 4)
    for name in ("exp", "sin", "pow"):
        assert len(re.findall(rf"^define internal .*@gx_{name}_v4f64\(", text, re.MULTILINE)) == 1


def test_chains_abreast_are_written_in_step_and_branching_ones_one_by_one() -> None:
    type = F32.with_lanes(8)
    f = Function(Module(), "f", [("x", type), ("y", type)])
    first, second = f.in_step([lambda p=p: MATH["exp"](f, p) for p in f.parameters])
    f.ret(f.binary("fadd", first, second))
    body = f.render().splitlines()[2:-3]
    assert [line.split(" = ")[1].split()[0] for line in body[::2]] == [
        line.split(" = ")[1].split()[0] for line in body[1::2]
    ]
    assert "%x" in body[0] and "%y" in body[1]
    g = Function(Module(), "g", [("x", PTR)])

    def block() -> Value:
        label = g.label("next")
        g.branch(label)
        g.block(label)
        return g.load(g.parameters[0], F32)

    g.in_step([block, block])
    kinds = [line.split()[0] for line in g.render().splitlines()[2:-1]]
    assert kinds == ["br", "next1:", "%v2", "br", "next3:", "%v4"]
