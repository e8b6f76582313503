"""Calls at once: memory that may not move, threads and forks."""

import gc
import multiprocessing
import threading

import numpy as np
import pytest
from call_support import T, X, classifier, general
from thread_support import held_elsewhere, in_threads

import graphc as gx
from graphc import calls, steps
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.threads import get_num_threads, set_num_threads
from graphc.errors import IndexRangeError

# ------------------------------------------------------------------- memory that may not move during a run


def attempts(x, owner, raw):
    """What moving memory that a run uses raises."""
    for move in (
        lambda: x.resize((400, 3), refcheck=False),
        lambda: owner.resize(4000, refcheck=False),
        lambda: raw.extend(bytes(10_000)),
    ):
        with pytest.raises((ValueError, BufferError)):
            move()


def lent():
    """Arrays that own their memory, view that of another, and lie in a bytearray that numpy does not hold."""
    owner = np.zeros(12, np.float32)
    raw = bytearray(48)
    return X.copy(), owner, owner[:].reshape(4, 3), raw, np.ndarray((4, 3), np.float32, raw)


@pytest.mark.parametrize("way", ["run", "general", "bind"])
def test_memory_stays_where_it_is_while_a_step_runs(monkeypatch, way):
    """A learning-rate schedule stands for another thread: it runs when the arrays have been pinned."""
    monkeypatch.setattr(calls, "LONG_NANOSECONDS", -1)
    x, owner, view, raw, foreign = lent()
    tried = []

    def move(*_):
        tried.append(attempts(x, owner, raw))
        return 0.1

    batch = gx.dim("B")
    names = ("x", "view", "foreign")
    loss = gx.sum(sum(gx.input(name, (batch, 3)) for name in names) * gx.param("w", (3,), init="ones"))
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=0.1))
    feeds = dict(zip(names, (x, view, foreign), strict=True))
    for _ in range(3):
        step.run(feeds)
    if way == "general":
        run = ProgramBlock.run
        monkeypatch.setattr(ProgramBlock, "run", lambda block: (move(), run(block))[1])
        general(step, feeds)
    else:
        call = step.bind(feeds) if way == "bind" else lambda: step.run(feeds)
        step.lr = move
        call()
        del call
        step.lr = 0.1
    assert len(tried) == 1
    step._calls = ()
    gc.collect()
    raw.extend(b"x")
    x.resize((400, 3), refcheck=False)


def test_pins_are_given_back(length):
    import weakref

    step = classifier()
    x, logits = X.copy(), np.empty((4, 4), np.float32)
    for _ in range(5):
        step.run(x=x, t=T, out={"logits": logits})
        assert weakref.getweakrefcount(x) == weakref.getweakrefcount(logits) == 0
    with pytest.raises(IndexRangeError):
        step.run(x=x, t=T + 9)
    assert weakref.getweakrefcount(x) == 0
    bound = step.bind(x=x, t=T, out={"logits": logits})
    assert weakref.getweakrefcount(x) == weakref.getweakrefcount(logits) == 1
    bound()
    del bound
    assert weakref.getweakrefcount(x) == weakref.getweakrefcount(logits) == 0


# ------------------------------------------------------------------------------------- threads and forks


def counter(length=1):
    """A step that adds 1 to every element of w, a bound call of it, and a reader of w."""
    w = gx.param("w", (length,), init=np.zeros(length, np.float32))
    x = gx.input("x", (length,))
    loss = gx.sum(w * x)
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    return step, np.full(length, -1, np.float32), gx.compile(w * 1.0)


def test_everything_at_once(length, monkeypatch):
    """Executables that share a parameter, all ways to run, finalizers that run, changing thread counts."""
    monkeypatch.setattr(steps, "FEW_BATCHES", 0)
    elements = 3000
    w = gx.param("w", (elements,), init=np.zeros(elements, np.float32))
    x = gx.input("x", (gx.dim("B"), elements))
    loss = gx.mean(gx.sum(w * x, axis=1))
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    scheduled = gx.compile({"now": w * 1.0}, loss=loss, optimizer=gx.optim.SGD(lr=lambda count: 1.0))
    reader = gx.compile(w * 1.0)
    feed, data = np.full((4, elements), -1, np.float32), {"x": np.full((19, elements), -1, np.float32)}
    finished = threading.Event()

    def look(values=None):
        values = reader.run() if values is None else values
        assert (values == values[0]).all(), "a read between two halves of a step"

    class Looks:
        def __init__(self):
            self.me = self  # for the collector

        def __del__(self):
            look()

    def read():
        for _ in range(60):
            look()
            Looks()

    def change():
        count = get_num_threads()
        while not finished.is_set():
            set_num_threads(1 + gc.collect() % 3)
            look(step.state_dict()["w"])
        set_num_threads(count)

    bound = [step.bind(x=feed.copy()) for _ in range(2)]
    work = [lambda: step.run(x=feed), lambda: look(scheduled.run(x=feed[:2])["now"]), *bound]
    others = threading.Thread(target=change)
    others.start()
    try:
        in_threads(
            [
                *(lambda one=one: [one() for _ in range(60)] for one in work),
                lambda: [step.fit(data, batch_size=8, progress=False) for _ in range(5)],
                lambda: [step.evaluate(data, batch_size=8) for _ in range(5)],
                read,
            ]
        )
    finally:
        finished.set()
        others.join(60)
    assert (step.params["w"] == 60 * len(work) + 5 * 3).all()


@pytest.mark.parametrize("elements", [1, 5000])
def test_no_step_is_lost_between_threads(elements, length):
    step, x, reader = counter(elements)
    bound, read = step.bind(x=x), reader.bind()

    def run():
        for _ in range(300):
            step.run(x=x)

    def call():
        for _ in range(300):
            bound()

    def look():
        for _ in range(300):
            now = reader.run()
            assert (now == now[0]).all(), "a read between two halves of a step"

    def look_bound():
        for _ in range(300):
            read()

    in_threads([run, call, run, call, look, look_bound], seconds=120)
    assert (step.params["w"] == 1200).all()


def test_a_held_lock_is_waited_for(length):
    step, x, reader = counter()
    bound, read = step.bind(x=x), reader.bind()
    for _ in range(3):
        step.run(x=x)
    for call in (bound, lambda: step.run(x=x), read, reader.run):
        done = threading.Event()

        def work(call=call, done=done):
            call()
            done.set()

        thread = threading.Thread(target=work)
        with step._lock:
            call()  # whoever holds it may
            before = step.params["w"].copy()
            thread.start()
            assert not done.wait(0.05)
            assert np.array_equal(step.params["w"], before)
        assert done.wait(30)
        thread.join()


def _in_child(queue, bound, step, x):
    for _ in range(3):
        bound()
        step.run(x=x)
    queue.put(float(step.params["w"][0]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_calls_in_a_forked_child(length):
    """Also of a child that was forked while another thread held the lock."""
    step, x, _ = counter()
    bound = step.bind(x=x)
    for _ in range(3):
        step.run(x=x)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, bound, step, x))
    with held_elsewhere(step._lock):
        child.start()
    child.join(60)
    assert child.exitcode == 0 and queue.get() == 9
    bound()
    assert float(step.params["w"][0]) == 4
