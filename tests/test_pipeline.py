"""Results of passes that are not valid: never run, and the pass is named."""

from dataclasses import replace

import pytest

import graphc as gx
from graphc import pipeline
from graphc.errors import LoweringError, VerifyError
from graphc.ir.kernels import Ref, Store, map_stmts


def unknown_value(program):
    """The kernels with something stored that no statement defines."""

    def rule(stmt):
        return (replace(stmt, expr=Ref("nobody", stmt.expr.dtype)),) if isinstance(stmt, Store) else None

    kernels = tuple(replace(k, body=map_stmts(k.body, stmt_rule=rule)) for k in program.kernels)
    return replace(program, kernels=kernels)


def broken(name, change):
    """A pipeline in which the result of one pass is changed."""

    def passes(request, derived):
        return tuple(
            replace(step, run=lambda ir, run=step.run: change(run(ir))) if step.name == name else step
            for step in real(request, derived)
        )

    real = pipeline.passes
    return passes


@pytest.mark.parametrize("backend", ["native", "numpy", "python"])
@pytest.mark.parametrize("name", ["share_expressions", "own_strips"])
def test_kernels_that_are_not_valid_are_not_run(name, backend, monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    monkeypatch.setattr(pipeline, "passes", broken(name, unknown_value))
    x = gx.input("x", (gx.dim("B"), 4))
    with pytest.raises(VerifyError, match=f"after {name}.*nobody"):
        gx.compile((x * 2.0).sum(axis=1), backend=backend)


def test_a_pass_that_fails_on_an_invalid_result_is_not_blamed(monkeypatch):
    def fail(program):
        raise LoweringError("no such loop")

    broken_first = broken("share_expressions", unknown_value)
    monkeypatch.setattr(pipeline, "passes", broken_first)
    monkeypatch.setattr(pipeline, "passes", broken("schedule", fail))
    with pytest.raises(VerifyError, match="after share_expressions"):
        gx.compile(gx.input("x", (3,)) * 2.0, backend="python")


def test_a_pass_that_fails_on_a_valid_one_is(monkeypatch):
    def fail(program):
        raise LoweringError("no such loop")

    monkeypatch.setattr(pipeline, "passes", broken("schedule", fail))
    with pytest.raises(LoweringError, match="no such loop"):
        gx.compile(gx.input("x", (3,)) * 2.0, backend="python")


def test_initial_values_that_do_not_fit_are_still_what_is_reported(monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    w = gx.param("w", (4, 3), init=lambda rng, shape: [1.0, 2.0])
    with pytest.raises(gx.ShapeError, match="initial value"):
        gx.compile(gx.input("x", (2, 4)) @ w)
