"""Many steps in one native call: to the same bits, figures and errors as a loop over `run`."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import graphc as gx
from graphc import steps, training
from graphc.codegen.jit import compile_object, undefined_symbols
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.steps import Span
from graphc.codegen.steps_ir import steps_ir
from graphc.codegen.target import target_by_name
from graphc.codegen.threads import get_num_threads, set_num_threads
from graphc.errors import FeedError, IndexRangeError, ShapeError, StopTraining
from graphc.figures import Means, figure_labels

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((53, 5)).astype(np.float32)
T = (X[:, 0] > 0).astype(np.int32)
DATA = {"x": X, "t": T}


def network(optimizer=None, dtype="int32", extra=lambda logits, loss: {}):
    gx.seed(0)
    batch = gx.dim("B")
    x, t = gx.input("x", (batch, 5)), gx.input("t", (batch,), dtype=dtype)
    logits = gx.nn.Linear(5, 3, name="fc")(x)
    loss = gx.softmax_cross_entropy(logits, t)
    outputs = {"loss": loss, "logits": logits, **extra(logits, loss)}
    return gx.compile(outputs, loss=loss, optimizer=optimizer or gx.optim.Adam(lr=0.05))


@pytest.fixture
def loops(monkeypatch):
    """Runs f on the native loop and step by step: pairs of what it gives (an error counts) and of states."""

    def both(make, use):
        found = []
        for native in (True, False):
            step = make()
            with monkeypatch.context() as patch:
                patch.setattr(steps, "FEW_BATCHES", 0)
                if native:
                    patch.setattr(step, "run_labelled", None)  # nothing may go step by step
                else:
                    patch.setattr(training, "step_loop", lambda executable: None)
                try:
                    result = use(step)
                except (FeedError, IndexRangeError, ShapeError, ValueError) as error:
                    result = (type(error), str(error))
            if isinstance(result, dict):
                result = {name: values for name, values in result.items() if name != "seconds"}
            found.append((result, {name: a.tobytes() for name, a in step.state_dict().items()}))
        return found

    return both


def assert_same(pair):
    (mine, my_state), (theirs, their_state) = pair
    assert mine == theirs
    assert my_state == their_state
    return mine


# ------------------------------------------------------------------------------------- the same as a loop


def transposed(array):
    return np.asfortranarray(array)


def every_other(array):
    return np.repeat(array, 2, axis=0)[::2]


def backwards(array):
    return array[::-1].copy()[::-1]


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


MEMORY = {
    "plain": lambda a: a, "transposed": transposed, "every other": every_other, "backwards": backwards,
    "misaligned": misaligned, "swapped": swapped, "wider": lambda a: a.astype(a.dtype.kind + "8"),
    "list": lambda a: a.tolist(), "read only": lambda a: np.broadcast_to(a, a.shape),
}  # fmt: skip


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kind", MEMORY)
def test_datasets_however_they_lie(loops, kind, shuffle):
    data = {name: MEMORY[kind](array) for name, array in DATA.items()}
    options = {"epochs": 3, "batch_size": 8, "shuffle": shuffle, "seed": 3, "validation": data}
    history = assert_same(loops(network, lambda step: step.fit(data, **options)))
    assert list(history) == ["loss", "val_loss"] and len(history["loss"]) == 3
    plain = network().fit(DATA, epochs=3, batch_size=8, shuffle=shuffle, seed=3)
    assert plain["loss"] == history["loss"]


@pytest.mark.parametrize("batch_size", [1, 7, 53, 100])
def test_remainders(loops, batch_size):
    assert_same(loops(network, lambda step: step.fit(DATA, epochs=2, batch_size=batch_size)))


def test_memory_mapped_data(loops, tmp_path):
    for name, array in DATA.items():
        np.save(tmp_path / f"{name}.npy", array)
    data = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in DATA}
    assert_same(loops(network, lambda step: step.fit(data, epochs=2, batch_size=9)))


def test_rows_of_every_size(loops):
    """Bytes, words, lines, and what is left of each."""

    def make(width):
        gx.seed(0)
        batch = gx.dim("B")
        x, w = gx.input("x", (batch, width), dtype="uint8"), gx.param("w", (width,))
        loss = gx.mean(gx.cast(x, "float32") * w)
        return gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1))

    for width in (1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 200):
        data = {"x": RANDOM.integers(0, 255, (10, width), dtype=np.uint8)}
        assert_same(
            loops(lambda width=width: make(width), lambda step, data=data: step.fit(data, batch_size=4))
        )


def test_threads_and_large_rows(loops):
    """Gathering in chunks, on any number of threads."""
    x = RANDOM.standard_normal((300, 2000)).astype(np.float32)
    data = {"x": x, "t": x[:, :3]}

    def make():
        gx.seed(0)
        batch = gx.dim("B")
        x, t = gx.input("x", (batch, 2000)), gx.input("t", (batch, 3))
        loss = gx.mse(gx.nn.Linear(2000, 3, name="fc")(x), t)
        return gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1e-3))

    before, states = get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            set_num_threads(threads)
            pair = loops(make, lambda step: step.fit(data, epochs=2, batch_size=128))
            assert_same(pair)
            states.append(pair[0])
    finally:
        set_num_threads(before)
    assert all(state == states[0] for state in states)


def test_int64_labels_and_inputs_of_several_kinds(loops):
    wide = {"x": X, "t": T.astype(np.int64)}
    assert_same(loops(lambda: network(dtype="int64"), lambda step: step.fit(wide, batch_size=8)))
    assert_same(loops(network, lambda step: step.fit(wide, batch_size=8)))

    def two_inputs():
        batch = gx.dim("B")
        gx.seed(0)
        x, y = gx.input("x", (batch, 5)), gx.input("y", (batch, 5))
        unused = gx.input("unused", (batch,), dtype="bool")
        loss = gx.mean(gx.square(gx.nn.Linear(5, 5, name="fc")(x) - y)) + 0.0 * gx.mean(
            gx.cast(unused, "float32")
        )
        return gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1))

    shared = {"x": X, "y": X, "unused": X[:, 0] > 0}
    for shuffle in (True, False):
        options = {"epochs": 2, "batch_size": 10, "shuffle": shuffle}
        assert_same(loops(two_inputs, lambda step, options=options: step.fit(shared, **options)))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: gx.optim.SGD(lr=lambda n: 0.1 / (1 + n), momentum=0.5),
        lambda: gx.optim.SGD([{"params": ["*.bias"], "lr": lambda n: 0.1 * n}, {"params": ["*"]}], lr=0.2),
        lambda: gx.optim.SGD(lr=lambda n: 0.1 / (1 + n), accumulate=3),
    ],
    ids=["schedule", "groups", "accumulated"],
)
def test_schedules(loops, optimizer):
    assert_same(loops(lambda: network(optimizer()), lambda step: step.fit(DATA, epochs=4, batch_size=6)))


def test_a_schedule_that_ends_raises_at_its_step(loops):
    def schedule(count):
        if count == 5:
            raise ValueError("no more")
        return 0.1

    pair = loops(
        lambda: network(gx.optim.SGD(lr=schedule)), lambda step: step.fit(DATA, epochs=4, batch_size=16)
    )
    assert assert_same(pair) == (ValueError, "no more")
    assert np.frombuffer(pair[0][1]["optim.step"], np.int64) == 5
    # With accumulated gradients fewer updates are made than steps: those that never come are not missed.
    few = loops(
        lambda: network(gx.optim.SGD(lr=schedule, accumulate=4)),
        lambda step: step.fit(DATA, epochs=4, batch_size=16),
    )
    assert list(assert_same(few)) == ["loss"]


@pytest.mark.parametrize("last", [0, 3, 5])
def test_a_schedule_is_asked_once_for_a_step_that_it_refuses(monkeypatch, last):
    """Also one that would answer the second time."""
    monkeypatch.setattr(steps, "FEW_BATCHES", 0)
    asked = []

    def schedule(count):
        asked.append(count)
        if asked.count(last) == 1 and count == last:
            raise ValueError("no more")
        return 0.1

    step = network(gx.optim.SGD(lr=schedule))
    with pytest.raises(ValueError, match="no more"):
        step.fit(DATA, epochs=4, batch_size=16)
    assert asked == list(range(last + 1))
    assert step.state_dict()["optim.step"] == last
    step.fit(DATA, epochs=1, batch_size=16)
    assert step.state_dict()["optim.step"] == last + 4


def test_several_figures(loops):
    def extra(logits, loss):
        return {"twice": loss * 2.0, "same": loss, "size": gx.sum(gx.cast(logits > 0.0, "int64"))}

    history = assert_same(
        loops(lambda: network(extra=extra), lambda step: step.fit(DATA, epochs=2, batch_size=10))
    )
    assert list(history) == ["loss", "twice", "same", "size"] and history["same"] == history["loss"]


def test_evaluate(loops):
    def trained(step):
        return step.evaluate(DATA, batch_size=10)

    assert list(assert_same(loops(lambda: network().evaluator, trained))) == ["loss"]


def test_an_output_that_is_state_is_read_after_each_step(loops):
    def make():
        w = gx.param("w", (), init="ones")
        x = gx.input("x", (gx.dim("B"),))
        loss = gx.mean(gx.square(x - w))
        return gx.compile({"w": w, "loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.1))

    assert list(assert_same(loops(make, lambda step: step.fit({"x": X[:, 0]}, batch_size=8)))) == [
        "w",
        "loss",
    ]


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("at", [0, 20, 52])
def test_an_index_out_of_range_fails_its_step(loops, at, shuffle):
    labels = T.copy()
    labels[at] = 7
    data = {"x": X, "t": labels}
    pair = loops(network, lambda step: step.fit(data, batch_size=8, shuffle=shuffle))
    kind, message = assert_same(pair)
    assert kind is IndexRangeError and "index 7" in message
    done = np.frombuffer(pair[0][1]["optim.step"], np.int64)
    assert done == (
        at // 8 if not shuffle else np.random.default_rng(0).permutation(53).tolist().index(at) // 8
    )


def test_a_value_that_does_not_fit_fails_its_step(monkeypatch, loops):
    """The native loop leaves such data to the other."""
    data = {"x": X, "t": T.astype(np.int64)}
    data["t"][40] = 1 << 40
    states = []
    for native in (True, False):
        step = network()
        with monkeypatch.context() as patch:
            if not native:
                patch.setattr(training, "step_loop", lambda executable: None)
            with pytest.raises(FeedError, match="does not fit int32"):
                step.fit(data, batch_size=16, shuffle=False)
        states.append(step.state_dict())
    assert states[0]["optim.step"] == states[1]["optim.step"] == 2


def test_sizes_that_do_not_fit(loops):
    def fixed():
        x, w = gx.input("x", (16, 5)), gx.param("w", (5,))
        loss = gx.mean(x * w)
        return gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1))

    pair = loops(fixed, lambda step: step.fit({"x": X}, batch_size=16))
    assert assert_same(pair)[0] is FeedError  # the rest of 5, with the three batches before it done
    assert np.frombuffer(pair[0][1]["optim.step"], np.int64) == 3
    whole = loops(fixed, lambda step: step.fit({"x": X[:48]}, batch_size=16))
    assert list(assert_same(whole)) == ["output"]
    assert assert_same(loops(fixed, lambda step: step.fit({"x": X[:, :4]}, batch_size=16)))[0] is FeedError

    def guarded():
        x, y = gx.input("x", (gx.dim("B"), 5)), gx.input("y", (gx.dim("C"), 5))
        w = gx.param("w", (5,))
        loss = gx.mean((x + y) * w)
        return gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1))

    assert list(assert_same(loops(guarded, lambda step: step.fit({"x": X, "y": X}, batch_size=10)))) == [
        "output"
    ]


# ----------------------------------------------------------------------------- memory that training writes


def state_as_data(step):
    return {"x": step.params["w"], "t": X[:, :1].copy()}


@pytest.mark.parametrize("shuffle", [True, False])
def test_data_that_is_state_is_read_as_it_is_at_each_step(loops, shuffle):
    def make():
        w = gx.param("w", (53, 5), init="ones")
        batch = gx.dim("B")
        x, t = gx.input("x", (batch, 5)), gx.input("t", (batch, 1))
        loss = gx.mean(gx.square(x - t)) + gx.mean(gx.square(w - 0.5))
        return gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=5.0))

    pair = loops(make, lambda step: step.fit(state_as_data(step), batch_size=10, shuffle=shuffle))
    assert_same(pair)


def test_state_of_another_dtype_goes_step_by_step():
    w = gx.param("w", (6, 5), init="ones")
    x = gx.input("x", (gx.dim("B"), 5), dtype="float64")
    loss = gx.mean(gx.square(gx.cast(x, "float32"))) + gx.mean(gx.square(w - 0.5))
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    loop = steps.step_loop(step)
    assert loop is not None
    assert loop.epoch_of({"x": step.params["w"]}, 1, None) is None
    assert loop.epoch_of({"x": step.params["w"].copy()}, 1, None) is not None
    assert step.feed_plan.is_written(step.params["w"][::-1]) and not step.feed_plan.is_written(X[:0])


def test_little_data_goes_step_by_step():
    loop = steps.step_loop(network())
    assert loop is not None
    assert loop.epoch_of(DATA, 27, None) is None and loop.epoch_of(DATA, 26, None) is not None
    large = {"x": np.zeros((5000, 5), np.float32), "t": np.zeros(5000, np.int32)}
    assert loop.epoch_of(large, 5000, None) is not None


def test_large_datasets_are_converted_batch_by_batch(monkeypatch):
    loop = steps.step_loop(network())
    assert loop is not None
    wide = {"x": X.astype(np.float64), "t": T}
    assert loop.epoch_of(wide, 10, None) is not None
    monkeypatch.setattr(steps, "CONVERTED_BYTES", X.nbytes - 1)
    assert loop.epoch_of(wide, 10, None) is None and loop.epoch_of(DATA, 10, None) is not None


def test_callbacks_may_change_the_data(loops):
    """Conversion happens once an epoch, not once a fit."""

    def changed(step):
        wide = {"x": X.astype(np.float64), "t": T}

        def flip(epoch, logs):
            wide["x"] *= -1.0
            step.lr = 0.01

        return step.fit(wide, epochs=3, batch_size=10, callbacks=flip)

    assert_same(loops(network, changed))


# ---------------------------------------------------------------------------- spans, and what happens between


def test_spans_grow_to_their_time(monkeypatch):
    spans = []
    original = Span.run

    def noted(self, program):
        spans.append(self.steps)
        return original(self, program)

    monkeypatch.setattr(Span, "run", noted)
    monkeypatch.setattr(steps, "SPAN_SECONDS", 1e9)
    network().fit({"x": np.tile(X, (20, 1)), "t": np.tile(T, 20)}, batch_size=2)
    assert spans == [1, 8, 64, 457]
    spans.clear()
    monkeypatch.setattr(steps, "SPAN_SECONDS", 0.0)
    network().fit(DATA, batch_size=10)
    assert spans == [1] * 6


def test_ctrl_c_ends_a_long_fit_between_spans():
    """Within a span nobody looks; afterwards the state is that of whole steps."""
    step = network()
    data = {"x": np.tile(X, (4000, 1)), "t": np.tile(T, 4000)}
    interrupts = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupts.start()
    start = time.perf_counter()
    history = step.fit(data, epochs=100_000, batch_size=4000)
    assert history.interrupted and time.perf_counter() - start < 60
    interrupts.join()
    done, other = int(step.state_dict()["optim.step"]), network()
    assert done > 0
    order, rows = np.random.default_rng(0), []
    while len(rows) < done:
        rows += [*order.permutation(len(data["x"])).reshape(-1, 4000)]
    for row in rows[:done]:
        other.run(x=data["x"][row], t=data["t"][row])
    mine, theirs = step.state_dict(), other.state_dict()
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_between_spans_leaves_whole_steps():
    step = network()

    class Mine(Exception):
        pass

    def fails(epoch, logs):
        raise Mine

    with pytest.raises(Mine):
        step.fit(DATA, batch_size=8, callbacks=fails)
    assert step.state_dict()["optim.step"] == 7
    with pytest.raises(StopTraining):
        step.fit(
            DATA, batch_size=8, metrics={"m": lambda outputs, feeds: (_ for _ in ()).throw(StopTraining())}
        )
    assert step.state_dict()["optim.step"] == 8
    assert len(step.fit(DATA)["loss"]) == 1


def test_who_else_runs_waits_for_whole_steps():
    step, other = network(gx.optim.SGD(lr=1e-3)), network(gx.optim.SGD(lr=1e-3))
    data = {"x": np.tile(X, (50, 1)), "t": np.tile(T, 50)}
    errors = []

    def evaluate():
        try:
            for _ in range(20):
                step.run(x=X[:4], t=T[:4])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=evaluate) for _ in range(2)]
    for thread in threads:
        thread.start()
    step.fit(data, batch_size=10, epochs=3)
    for thread in threads:
        thread.join()
    assert not errors and step.state_dict()["optim.step"] == 3 * 265 + 40
    assert other.state_dict()["optim.step"] == 0


# ---------------------------------------------------------------------------------------- the parts alone


def test_series_add_up_to_the_same_bits():
    values = RANDOM.standard_normal(1000).astype(np.float32)
    one, many = Means(), Means()
    for value in values[:900]:
        one.add({"a": float(value)}, 7)
    for value in values[900:]:
        one.add({"a": float(value)}, 3)
    many.add_series({"a": values[:400].astype(np.float64)}, 7)
    many.add_series({"a": values[400:900].astype(np.float64)}, 7)
    many.add_series({"a": values[900:].astype(np.float64)}, 3)
    assert one.result() == many.result()


def test_the_names_of_figures():
    assert figure_labels(["a", "__loss__", "b"]) == {"a": "a", "b": "b", "loss": "__loss__"}
    assert figure_labels(["__loss__", "loss"]) == {"loss": "loss"}


def test_the_interpreters_have_no_loop():
    x, w = gx.input("x", (gx.dim("B"),)), gx.param("w", ())
    loss = gx.mean(x * w)
    for backend in ("numpy", "python"):
        step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1), backend=backend)
        assert steps.step_loop(step) is None


def test_an_empty_program_does_its_steps():
    none = np.zeros((0, 4), np.int64)
    block = ProgramBlock(none, none, np.zeros((0, 2), np.int64), 1)
    assert Span(steps=5, moving=((0, 1000, 8),)).run(block) == (0, 5)
    assert block.feeds.tolist() == [1032]
    counter = np.array([3], np.int64)
    table = np.arange(2, dtype=np.float32)
    slot = np.zeros(1, np.float32)
    rates = ((slot.ctypes.data, table.ctypes.data, 4),)
    span = Span(steps=5, moving=(), rates=rates, step=counter.ctypes.data, first_step=2, rate_limit=2)
    assert span.run(block) == (0, 5) and slot[0] == 1.0
    counter[0] = 4
    assert span.run(block) == (0, 0)


@pytest.mark.parametrize("name", ["avx512", "avx2", "sse2", "neon"])
def test_the_code_compiles_for_every_target_and_needs_no_library(name):
    target = target_by_name(name)
    text = f'target triple = "{target.triple}"\n{steps_ir()}'
    object_bytes = compile_object(text, target)
    assert len(object_bytes) > 1000
    if object_bytes[:4] == b"\x7fELF":
        assert undefined_symbols(object_bytes) == []
