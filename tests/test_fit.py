"""fit, evaluate, learning rates, dumps, and executables under threads, signals and fork."""

import io
import os
import signal
import sys
import threading

import numpy as np
import pytest
from thread_support import held_elsewhere

import graphc as gx
from graphc import training
from graphc.errors import DeclarationError, FeedError, StopTraining, UsageError
from graphc.stages import STAGES

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((53, 5)).astype(np.float32)
T = (X[:, 0] > 0).astype(np.int32)
DATA = {"x": X, "t": T}
ACCURACY = {"accuracy": lambda outputs, feeds: outputs["logits"].argmax(1) == feeds["t"]}


def network(lr=0.1, backend="native", optimizer=None):
    gx.seed(0)
    batch = gx.dim("B")
    x, t = gx.input("x", (batch, 5)), gx.input("t", (batch,), dtype="int32")
    logits = gx.nn.Linear(5, 2, name="fc")(x)
    loss = gx.softmax_cross_entropy(logits, t)
    optimizer = optimizer or gx.optim.SGD(lr=lr, momentum=0.5)
    return gx.compile({"loss": loss, "logits": logits}, loss=loss, optimizer=optimizer, backend=backend)


# ------------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("backend", ["native", "numpy", "python"])
def test_it_learns(backend):
    step = network(lr=0.5, backend=backend)
    epochs = 3 if backend == "python" else 20
    history = step.fit(DATA, epochs=epochs, batch_size=16, metrics=ACCURACY, validation=DATA)
    assert sorted(history) == ["accuracy", "loss", "seconds", "val_accuracy", "val_loss"]
    assert all(len(values) == epochs for values in history.values())
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert history["val_accuracy"][-1] > 0.85 and not history.interrupted


def test_every_sample_is_seen_once_an_epoch():
    step = network()
    seen = []
    metrics = {"size": lambda outputs, feeds: seen.append(feeds["x"].copy()) or len(feeds["x"])}
    step.fit(DATA, epochs=2, batch_size=16, metrics=metrics)
    assert [len(part) for part in seen] == [16, 16, 16, 5] * 2
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    for epoch in (first, second):
        assert np.array_equal(np.sort(epoch, axis=0), np.sort(X, axis=0))
        assert not np.array_equal(epoch, X)
    assert not np.array_equal(first, second)


def test_shuffling_is_seeded_and_optional():
    runs = [network().fit(DATA, epochs=2, batch_size=8, seed=seed)["loss"] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    step, order = network(), []
    step.fit(DATA, batch_size=50, shuffle=False, metrics={"m": lambda o, f: order.append(f["x"]) or 0})
    assert np.array_equal(np.concatenate(order), X)


def test_means_are_weighted_by_batch_size():
    step = network(lr=0.0)
    whole = step.evaluate(DATA, batch_size=53, metrics=ACCURACY)
    parts = step.evaluate(DATA, batch_size=50, metrics=ACCURACY)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["accuracy"] == pytest.approx(whole["accuracy"])
    history = step.fit(DATA, batch_size=50, shuffle=False)
    assert history["loss"][0] == pytest.approx(whole["loss"], rel=1e-5)


def test_iterables_of_feeds():
    step = network()
    batches = [{"x": X[:10], "t": T[:10]}, {"x": X[10:], "t": T[10:]}]
    history = step.fit(batches, epochs=2)
    assert len(history["loss"]) == 2
    assert len(step.fit(lambda: iter(batches), epochs=2)["loss"]) == 2
    assert len(step.fit(iter(batches))["loss"]) == 1
    expected = network(lr=0.0).evaluate(DATA)["loss"]
    assert network(lr=0.0).evaluate(batches)["loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UsageError, match="one epoch"):
        step.fit(iter(batches), epochs=2)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"x": X}, FeedError, "input t .* was not fed"),
        ({"x": X, "t": T, "u": T}, FeedError, "no input named 'u'"),
        ({"x": X, "t": T[:-1]}, FeedError, "differ in length: x has 53, t has 52"),
        ({"x": X, "t": 3}, FeedError, "'t' is a scalar"),
        (X, FeedError, "a dict of feeds, not ndarray"),
        (7, FeedError, "dict of arrays or an iterable"),
    ],
)
def test_bad_data(data, error, message):
    step = network()
    before = step.state_dict()
    with pytest.raises(error, match=message):
        step.fit(data)
    with pytest.raises(error, match=message):
        step.evaluate(data)
    if not isinstance(data, (int, np.ndarray)):
        with pytest.raises(error, match=message):
            step.fit(DATA, validation=data)
    assert all(before[n].tobytes() == a.tobytes() for n, a in step.state_dict().items())


@pytest.mark.parametrize("option", [{"epochs": 0}, {"epochs": 1.5}, {"batch_size": -1}, {"batch_size": True}])
def test_bad_options(option):
    with pytest.raises(UsageError, match="positive integer"):
        network().fit(DATA, **option)


def test_evaluating_changes_nothing():
    step = network()
    step.run(x=X, t=T)
    before = step.state_dict()
    step.evaluate(DATA, batch_size=7)
    assert all(before[n].tobytes() == a.tobytes() for n, a in step.state_dict().items())
    assert step.evaluator.params["fc.weight"] is step.params["fc.weight"]
    infer = gx.compile(gx.input("z", (3,)) * 2.0)
    assert infer.evaluator is infer


def test_empty_data():
    step = network()
    assert step.evaluate({"x": X[:0], "t": T[:0]}) == {}
    assert list(step.fit({"x": X[:0], "t": T[:0]})) == ["seconds"]


def test_callbacks():
    step, calls = network(), []

    def watch(epoch, logs):
        calls.append((epoch, sorted(logs)))
        if epoch == 2:
            raise StopTraining("enough")

    history = step.fit(DATA, epochs=10, callbacks=[watch])
    assert calls == [(n, ["loss", "seconds"]) for n in range(3)]
    assert len(history["loss"]) == 3 and not history.interrupted
    calls.clear()
    step.fit(DATA, callbacks=watch)
    assert len(calls) == 1

    def fails(epoch, logs):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        step.fit(DATA, callbacks=[fails])


def test_progress_only_on_a_terminal(monkeypatch, capsys):
    network().fit(DATA, epochs=2)
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    network().fit(DATA, epochs=2, batch_size=10)
    assert "epoch 2/2" in stream.getvalue() and "loss" in stream.getvalue() and "12/12" in stream.getvalue()


def test_ctrl_c_stops_between_steps_with_state_intact():
    step, other = network(), network()
    runs = []

    def interrupt(outputs, feeds):
        runs.append(len(feeds["x"]))
        if len(runs) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    before = signal.getsignal(signal.SIGINT)
    history = step.fit(DATA, epochs=50, batch_size=16, shuffle=False, metrics={"m": interrupt})
    assert signal.getsignal(signal.SIGINT) is before
    assert history.interrupted and len(history["loss"]) == 1 and len(runs) == 6
    for batch in range(6):
        part = slice(16 * (batch % 4), 16 * (batch % 4) + 16)
        other.run(x=X[part], t=T[part])
    mine, theirs = step.state_dict(), other.state_dict()
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
    assert len(step.fit(DATA)["loss"]) == 1


# -------------------------------------------------------------------------------------- learning rates


def test_the_learning_rate_is_a_run_time_value():
    step = network(lr=0.1)
    assert step.lr == 0.1
    compiled = step.engine
    step.lr = 0.0
    before = step.params["fc.weight"].copy()
    step.run(x=X, t=T)
    assert np.array_equal(before, step.params["fc.weight"]) and step.lr == 0.0
    step.lr = lambda count: 1.0 / (1 + count)
    assert step.lr == 0.5
    step.run(x=X, t=T)
    assert step.lr == pytest.approx(1 / 3) and step.engine is compiled
    for bad in (-1.0, float("nan"), "fast", None):
        with pytest.raises(DeclarationError, match="learning rate"):
            step.lr = bad
    assert step.lr == pytest.approx(1 / 3)


def test_a_schedule_counts_updates():
    asked = []

    def schedule(count):
        asked.append(count)
        return 0.01

    step = network(lr=schedule)
    asked.clear()
    for _ in range(3):
        step.run(x=X, t=T)
    assert asked == [0, 1, 2]


def test_learning_rates_of_groups():
    groups = [{"params": ["*.bias"], "lr": 0.3}, {"params": ["*"]}]
    step = network(optimizer=gx.optim.SGD(groups, lr=0.2))
    assert step.learning_rates == [0.3, 0.2]
    step.lr = [0.0, 0.1]
    before = step.state_dict()
    step.run(x=X, t=T)
    assert np.array_equal(before["fc.bias"], step.params["fc.bias"])
    assert not np.array_equal(before["fc.weight"], step.params["fc.weight"])
    with pytest.raises(UsageError, match="2 parameter groups"):
        step.lr = [0.1]
    with pytest.raises(UsageError, match="without an optimizer"):
        _ = step.evaluator.lr


# ------------------------------------------------------------------------------- structure, dumps, text


def test_outputs_come_in_the_structure_given():
    x = gx.input("x", (2,))
    y, z = x + 1.0, x * 2.0
    fed = np.array([1, 2], np.float32)
    assert gx.compile(y).run(x=fed).tolist() == [2, 3]
    for structure in ((y, z), [y, z]):
        out = gx.compile(structure).run(x=fed)
        assert type(out) is type(structure) and [o.tolist() for o in out] == [[2, 3], [2, 4]]
    out = gx.compile({"y": y, "z": z})(x=fed)
    assert list(out) == ["y", "z"] and out["z"].tolist() == [2, 4]


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_dumps(backend, tmp_path):
    step = network(backend=backend)
    assert step.stages == STAGES
    texts = {stage: step.dump(stage) for stage in step.stages}
    assert texts["graph"].startswith("graphc graph") and texts["kernels"].startswith("graphc kernels")
    assert "define i64 @gx_" in texts["llvm"] and "gx_" in texts["asm"]
    assert "differentiate" in step.dump("trail") and "ms" in step.dump("trail")
    assert "bound to" not in texts["program"]
    step.run(x=X, t=T)
    assert "bound to B = 53" in step.dump("program") and "arena" in step.dump("program")
    with pytest.raises(UsageError, match="no stage 'kernel'"):
        step.dump("kernel")
    paths = step.dump_all(tmp_path / "new")
    assert all(os.path.getsize(path) for path in paths) and len(paths) == 8 + len(step.trail)
    assert "6_asm.s" in os.listdir(tmp_path / "new")
    assert "<Executable (x: f32[B, 5], t: i32[B]) on" in repr(step)


# ------------------------------------------------------------------------------ threads, fork, failures


def test_calls_from_many_python_threads():
    step, alone = network(lr=0.01), network(lr=0.01)
    infer = gx.compile(gx.input("x", (gx.dim("B"), 5)) * 2.0)
    errors = []

    def work():
        try:
            for n in range(30):
                step.run(x=X, t=T)
                size = n % 7
                assert np.array_equal(infer.run(x=X[:size]), X[:size] * 2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for _ in range(120):
        alone.run(x=X, t=T)
    mine, theirs = step.state_dict(), alone.state_dict()
    assert mine["optim.step"] == 120
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_runs_and_leaves_the_parent_alone():
    step = network()
    step.run(x=X, t=T)
    before = step.state_dict()
    with held_elsewhere(step._lock):  # another thread is inside when the process forks
        child = os.fork()
        if child == 0:
            code = 1
            try:
                step.run(x=X, t=T)
                code = 0 if step.state_dict()["optim.step"] == 2 else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(before[n].tobytes() == a.tobytes() for n, a in step.state_dict().items())


def test_figures():
    means = training.Means()
    means.add({"a": 1.0}, 3)
    means.add({"a": 2.0, "b": 5.0}, 1)
    assert means.result() == {"a": 1.25, "b": 5.0}
    means = training.Means()
    means.add({"a": 1.0}, 0)
    assert np.isnan(means.result()["a"])
