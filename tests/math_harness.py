"""Runs `graphc.codegen.math` over arrays at a chosen vector level, and measures its error in ulps."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import mpmath as mp
import numpy as np

from graphc.codegen import math as gxmath
from graphc.codegen.builder import F32, F64, I64, PTR, Function, Module, Value, constant
from graphc.codegen.jit import LoadedCode, compile_object
from graphc.codegen.target import Target

mp.mp.prec = 200
Array = Any


def write_loop(module: Module, name: str, dtype: str, lanes: int) -> None:
    """`@loop_<name>(ptr a, ptr b, ptr out, i64 count)`: out[i] = name(a[i]), or pow(a[i], b[i]).

    `count` is a positive multiple of `lanes`.

    entry -> loop (phi i) -> loop or exit
    """
    scalar = F32 if dtype == "float32" else F64
    f = Function(module, f"loop_{name}", [("a", PTR), ("b", PTR), ("out", PTR), ("count", I64)])
    a, b, out, count = f.parameters
    f.branch("loop")
    f.block("loop")
    i = Value(I64, "%i")
    f.line("%i = phi i64 [ 0, %entry ], [ %next, %body ]")
    type = scalar.with_lanes(lanes)
    x = f.load(f.gep(a, i, scalar), type)
    if name == "pow":
        result = gxmath.pow(f, x, f.load(f.gep(b, i, scalar), type))
    else:
        result = gxmath.MATH[name](f, x)
    f.store(result, f.gep(out, i, scalar))
    f.branch("body")
    f.block("body")
    f.line(f"%next = add i64 %i, {constant(lanes, I64).ref}")
    f.branch_if(f.compare("ult", Value(I64, "%next"), count), "loop", "exit")
    f.block("exit")
    f.ret()
    f.finish()


NAMES = (*gxmath.MATH, "pow")


@cache
def module_text(target: Target, dtype: str, lanes: int) -> str:
    """All functions as loops in one module."""
    module = Module.of(target)
    for name in NAMES:
        write_loop(module, name, dtype, lanes)
    return module.render()


@cache
def loaded(target: Target, dtype: str, lanes: int) -> LoadedCode:
    code = compile_object(module_text(target, dtype, lanes), target)
    return LoadedCode(code, [f"loop_{name}" for name in NAMES], target)


def evaluate(target: Target, name: str, lanes: int, x: Array, y: Array | None = None) -> Array:
    """The native function over x (and y), padded to a multiple of lanes."""
    padding = -len(x) % lanes
    x = np.ascontiguousarray(np.concatenate([x, x[:1].repeat(padding)]))
    y = x if y is None else np.ascontiguousarray(np.concatenate([y, y[:1].repeat(padding)]))
    out = np.empty_like(x)
    address = loaded(target, str(x.dtype), lanes).address(f"loop_{name}")
    native = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)(address)
    native(x.ctypes.data, y.ctypes.data, out.ctypes.data, len(x))
    return out[: len(out) - padding]


REFERENCE: dict[str, Callable[..., Any]] = {
    "exp": mp.exp, "expm1": mp.expm1, "log": mp.log, "log1p": mp.log1p, "sin": mp.sin, "cos": mp.cos,
    "tanh": mp.tanh, "sigmoid": lambda x: 1 / (1 + mp.exp(-x)), "erf": mp.erf, "sqrt": mp.sqrt,
    "floor": mp.floor, "ceil": mp.ceil, "pow": mp.power,
}  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """Finite inputs and their exact results as high + low floats (float64 each)."""

    x: Array
    y: Array | None
    high: Array
    low: Array


def ulps(samples: Samples, got: Array) -> Array:
    """The error of each result in units in the last place of the exact one (subnormal spacing included).

    Where the exact result rounds to inf only inf is right, and anything else counts as inf ulps.
    """
    bits, least = (24, -149) if got.dtype == np.float32 else (53, -1074)
    largest = float(np.finfo(got.dtype).max)
    spacing = np.ldexp(1.0, np.maximum(np.frexp(samples.high)[1] - bits, least))
    with np.errstate(all="ignore"):
        error = np.abs((got.astype(np.float64) - samples.high) - samples.low) / spacing
        half = np.ldexp(1.0, (104 if bits == 24 else 970) - 1)
        overflow = (np.abs(samples.high) > largest) & (np.abs(samples.high) - largest >= half)
        matches = np.isinf(got) & (np.signbit(got) == np.signbit(samples.high))
    return np.where(overflow, np.where(matches, 0.0, np.inf), np.where(np.isnan(got), np.inf, error))


def _spread(rng: np.random.Generator, low: float, high: float, count: int, signed: bool = True) -> Array:
    """Log-uniform magnitudes."""
    values = np.exp2(rng.uniform(low, high, count))
    return values * rng.choice([-1.0, 1.0], count) if signed else values


def _domain(name: str, double: bool, rng: np.random.Generator, count: int) -> Array:
    tiny = -1074.0 if double else -149.0
    big = 1024.0 if double else 128.0
    uniform = rng.uniform
    exp_low, exp_high = (-745.2, 709.8) if double else (-103.9, 88.8)
    normal = -1021.0 if double else -125.0
    if name == "log":
        return np.concatenate([_spread(rng, tiny, big, count, False), uniform(0.5, 2.0, count),
                               1 + _spread(rng, -40, -3, count)])  # fmt: skip
    if name == "log1p":
        return np.concatenate([uniform(-1, 1, count), _spread(rng, tiny, big, count, False),
                               _spread(rng, -60, -0.01, count)])  # fmt: skip
    if name in ("sin", "cos"):
        near = np.round(uniform(-63000, 63000, count)) * (np.pi / 2)
        return np.concatenate([uniform(-1e5, 1e5, count), uniform(-4, 4, count), near,
                               _spread(rng, tiny, 16.6, count // 2)])  # fmt: skip
    if name in ("exp", "expm1"):
        low = exp_low if name == "exp" else -60.0
        under = uniform(exp_low, normal * 0.69, count // 4) if name == "exp" else uniform(-1, 0, count)
        return np.concatenate([uniform(low, exp_high, count), uniform(-2, 2, count), under,
                               _spread(rng, tiny, 6, count)])  # fmt: skip
    if name == "sigmoid":
        return np.concatenate([uniform(exp_low, 40, count), uniform(-8, 8, count),
                               _spread(rng, tiny, 6, count)])  # fmt: skip
    if name in ("tanh", "erf"):
        return np.concatenate([uniform(-10, 10, count), uniform(-1.2, 1.2, count),
                               _spread(rng, tiny, 5, count)])  # fmt: skip
    if name == "sqrt":
        return _spread(rng, tiny, big, count, False)
    return np.concatenate([uniform(-100, 100, count), _spread(rng, tiny, 60, count)])


@cache
def samples(name: str, dtype: str, count: int = 700, seed: int = 1) -> Samples:
    """Random inputs over the function's domain (about 3 x count) with exact results."""
    double = dtype == "float64"
    rng = np.random.default_rng(seed)
    y = None
    with np.errstate(over="ignore"):
        if name == "pow":
            least = -1070 if double else -148
            base = np.concatenate([_spread(rng, -30, 30, count, False), rng.uniform(0.5, 2, count),
                                   _spread(rng, least, 0, count // 4, False)])  # fmt: skip
            base = base.astype(dtype).astype(float)
            limit = 740.0 if double else 100.0
            y = (rng.uniform(-limit, limit, len(base)) / np.log(base)).astype(dtype)
            x = base.astype(dtype)
        else:
            x = _domain(name, double, rng, count).astype(dtype)
        keep = np.isfinite(x) if y is None else np.isfinite(x) & np.isfinite(y)
    if name == "log1p":
        keep &= x > -1
    x = x[keep]
    y = None if y is None else y[keep]
    columns = (x,) if y is None else (x, y)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    exact = [REFERENCE[name](*map(mp.mpf, row)) for row in rows]
    high = [float(v) for v in exact]
    low = [float(v - h) if np.isfinite(h) else 0.0 for v, h in zip(exact, high, strict=True)]
    return Samples(x, y, np.array(high), np.array(low))
