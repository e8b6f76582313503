"""Elementary functions that a kernel uses many times are functions of the module; results stay the same."""

import re

import numpy as np
import pytest

import graphc as gx
from graphc.codegen import repeated
from graphc.codegen.jit import compile_object, undefined_symbols
from graphc.codegen.target import TARGETS
from graphc.emission import emit_program
from graphc.ir.program import build_program
from graphc.pipeline import Request, run_passes


def sum_of(name, uses, dtype="float32"):
    """Uses of one function side by side, in one kernel."""
    x = gx.input("x", (gx.dim("B"), 13), dtype=dtype)
    terms = [getattr(x * (0.5 + 0.25 * number), name)() for number in range(uses)]
    total = terms[0]
    for number, term in enumerate(terms[1:]):
        total = total + term * (1.0 + number)
    return total


def calls(text, name):
    return re.findall(rf"= call \{{[^@]*@(gx_{name}_\w+)\(", text)


def defined(text):
    return re.findall(r"define internal [^@]*@(\w+)\(", text)


@pytest.mark.parametrize("name", sorted(repeated.ELEMENTARY))
def test_results_are_those_of_the_inline_form(name, monkeypatch):
    rng = np.random.default_rng(3)
    # 13 columns in rows that vectors do not divide, and enough rows for several vectors at once.
    x = rng.uniform(-0.9, 3.0, (41, 13)).astype("f")
    x[0, :5] = [0.0, -0.0, np.nan, np.inf, 1e-40]
    with np.errstate(all="ignore"):
        called = gx.compile(sum_of(name, repeated.REPEATED + 1))
        got = np.array(called.run({"x": x}))
        assert defined(called.dump("llvm"))
        expected = gx.compile(sum_of(name, repeated.REPEATED + 1), backend="numpy").run({"x": x})
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)
    monkeypatch.setattr(repeated, "REPEATED", 1000)
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    inline = gx.compile(sum_of(name, 5))
    assert not defined(inline.dump("llvm"))
    np.testing.assert_array_equal(np.array(inline.run({"x": x})), got)


def test_few_uses_are_inline_and_one_more_is_not():
    few = gx.compile(sum_of("tanh", repeated.REPEATED)).dump("llvm")
    assert not defined(few) and not calls(few, "tanh")
    text = gx.compile(sum_of("tanh", repeated.REPEATED + 1)).dump("llvm")
    used = calls(text, "tanh")
    assert set(used) == set(defined(text))
    assert min(map(used.count, used)) == repeated.REPEATED + 1  # each use of each form is one call


def test_forms_of_exp_are_told_apart():
    x = gx.input("x", (64,))
    both = sum_terms([(x * (0.1 + k)).exp() for k in range(5)] + [(-abs(x + k)).exp() for k in range(5)])
    exe = gx.compile(both)
    text = exe.dump("llvm")
    assert {"not_positive" in called for called in calls(text, "exp")} == {False, True}
    value = np.linspace(-2, 2, 64, dtype="f")
    expected = gx.compile(both, backend="numpy").run({"x": value})
    np.testing.assert_allclose(np.array(exe.run({"x": value})), expected, rtol=1e-5)


def sum_terms(terms):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_compiles_calls_without_a_library(target):
    graph = gx.compile(sum_of("sigmoid", 9), backend="numpy").ir.graph
    stages, _ = run_passes(graph, Request())
    _, text = emit_program(build_program(stages.kernels), TARGETS[target])
    assert calls(text, "sigmoid")
    assert undefined_symbols(compile_object(text, TARGETS[target])) == []


def test_float64_calls_what_it_always_calls():
    text = gx.compile(sum_of("tanh", 9, "float64")).dump("llvm")
    assert not calls(text, "tanh") and "@gx_tanh_" in text
