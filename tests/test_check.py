"""Checks by interpretation: `gx.check_gradients`, and `check="passes"`."""

from dataclasses import replace

import numpy as np
import pytest

import graphc as gx
from graphc import check, pipeline
from graphc.ir.graph import Graph
from graphc.ir.rebuild import rebuild


def network(rng, batch=5):
    x = gx.input("x", (gx.dim("B"), 6))
    t = gx.input("t", (gx.dim("B"),), dtype="int32")
    hidden = gx.nn.Linear(6, 20, name="a")(x).tanh()
    loss = gx.softmax_cross_entropy(gx.nn.Linear(20, 3, name="b")(hidden), t)
    feeds = {"x": rng.normal(size=(batch, 6)), "t": rng.integers(0, 3, batch).astype(np.int32)}
    return loss, feeds


def test_right_gradients_pass_and_the_report_names_every_parameter():
    loss, feeds = network(np.random.default_rng(0))
    report = gx.check_gradients(loss, feeds)
    assert report.ok and bool(report)
    by_name = {p.name: p for p in report.parameters}
    assert set(by_name) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert by_name["b.bias"].checked == 3  # every element
    assert by_name["a.weight"].checked == check.SAMPLES + check.SAMPLES // 2  # 120 elements: samples
    assert all(p.max_abs_error < 1e-8 for p in report.parameters)
    assert "a.weight" in str(report) and "ok" in str(report)


@pytest.mark.parametrize("size", [(3,), (40, 5)])
def test_a_wrong_gradient_is_found_in_small_and_large_parameters(size):
    w = gx.param("w", size, init="normal")
    # The value is w * w, the gradient that of 2 * w * stopped: half of what it should be.
    loss = (w * gx.stop_gradient(w)).sum()
    report = gx.check_gradients(loss, {})
    assert not report.ok
    assert "WRONG at" in str(report)
    assert report.parameters[0].max_rel_error > 0.3
    with pytest.raises(gx.VerifyError, match="WRONG"):
        gx.check_gradients(loss, {}, raise_on_error=True)


def test_kinks_accept_every_slope_between_the_sides():
    w = gx.param("w", (3,), init=np.array([0.0, -1.0, 2.0]))
    assert gx.check_gradients(gx.relu(w).sum() + gx.abs(w).sum(), {}).ok


def test_frozen_parameters_are_left_out_and_nothing_changes():
    w = gx.param("w", (2,), init="ones")
    frozen = gx.param("f", (2,), init="ones", trainable=False)
    before = w.variable.array.copy()
    report = gx.check_gradients((w * frozen).sum(), {})
    assert [p.name for p in report.parameters] == ["w"]
    assert np.array_equal(w.variable.array, before)


def test_bad_requests_are_refused():
    w = gx.param("w", (2,), init="ones")
    with pytest.raises(gx.DeclarationError, match="float scalar"):
        gx.check_gradients(w, {})
    with pytest.raises(gx.DeclarationError, match="trainable"):
        gx.check_gradients(gx.constant(1.0) * 2.0, {})
    with pytest.raises(gx.UsageError, match="positive"):
        gx.check_gradients(w.sum(), {}, tolerance=0.0)


def swapped_sub(graph):
    """A pass with a mistake: subtractions the wrong way round."""

    def rule(builder, node, inputs):
        return [builder("sub", inputs[1], inputs[0])] if node.name == "sub" else None

    return rebuild(graph, rule, "swapped")


def with_pass(monkeypatch, at, run):
    """The pipeline with the result of one pass changed."""
    original = pipeline.passes

    def changed(request, plan):
        return tuple(
            replace(step, run=lambda ir, step=step: run(step.run(ir))) if step.name == at else step
            for step in original(request, plan)
        )

    monkeypatch.setattr(pipeline, "passes", changed)


def test_a_right_pipeline_passes_with_a_training_step():
    loss, _ = network(np.random.default_rng(0))
    exe = gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.Adam(lr=0.1), check="passes")
    assert exe is not None


@pytest.mark.parametrize("at", ["identities", "fold", "lay_out"])
def test_the_first_pass_that_changes_results_is_named(monkeypatch, at):
    x = gx.input("x", (gx.dim("B"), 3))
    with_pass(monkeypatch, at, swapped_sub)
    with pytest.raises(gx.VerifyError, match=rf"pass {at} changes out: in|pass {at} changes out in"):
        gx.compile({"out": gx.tanh(x) - gx.exp(x)}, check="passes")


def test_a_mistake_in_the_kernels_is_named(monkeypatch):
    from graphc.ir.kernels import map_stmts, prim

    def wrong(program):
        def rule(expr):
            return prim("add", *expr.operands) if getattr(expr, "name", "") == "sub" else None

        return replace(
            program, kernels=tuple(replace(k, body=map_stmts(k.body, rule)) for k in program.kernels)
        )

    x = gx.input("x", (gx.dim("B"), 3))
    with_pass(monkeypatch, "fuse_and_lower", wrong)
    with pytest.raises(gx.VerifyError, match="pass fuse_and_lower changes out"):
        gx.compile({"out": gx.tanh(x) - gx.exp(x)}, check="passes")
    with_pass(monkeypatch, "schedule", wrong)


def test_a_mistake_in_an_update_is_named(monkeypatch):
    w = gx.param("w", (3,), init="normal")
    loss = (w * w).sum()
    with_pass(monkeypatch, "identities", swapped_sub)
    with pytest.raises(gx.VerifyError, match="pass identities changes state w"):
        gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.1), check="passes")


def test_improving_passes_may_make_finite_what_was_not():
    inf, one = np.array([np.inf, 1.0]), np.array([3.0, 1.0])
    check._compare("recognise_losses", "out", inf, one, True, "float64")
    with pytest.raises(gx.VerifyError, match="pass fold changes out"):
        check._compare("fold", "out", inf, one, False, "float64")
    with pytest.raises(gx.VerifyError):  # never the other way round
        check._compare("recognise_losses", "out", one, inf, True, "float64")


def test_equal_dims_and_checked_indices_are_drawn_so_that_a_run_succeeds():
    x = gx.input("x", (gx.dim("B"), 4))
    y = gx.input("y", (gx.dim("C"), 4))
    i = gx.input("i", (gx.dim("B"),), dtype="int64")
    out = gx.take(gx.param("table", (2, 4), init="normal"), i, 0) + (x + y)
    assert isinstance(gx.compile({"out": out}, check="passes").ir.graph, Graph)
