"""Same bytes at any thread count, with proof that several worked; and runs from everywhere at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spec_support import (
    XAND,
    case_c_step,
    case_d,
    case_e,
    classifier,
    classifier_feeds,
    network_a,
    random,
    state_bytes,
    threads,
    xand,
)

import graphc as gx
from graphc.codegen.threads import pool

COUNTS = (1, 2, 3, 8)
Case = tuple[gx.Executable, dict[str, np.ndarray]]


def _a() -> Case:
    net, feeds = network_a()
    total = net.total_loss()
    exe = gx.compile({"loss": total, **net.outputs("join")}, loss=total, optimizer=gx.optim.Adam(lr=0.01))
    return exe, {k: np.tile(v, (12, 1)) for k, v in feeds.items()}


def _b() -> Case:
    a1, a2, loss = xand()
    exe = gx.compile((a1, a2, loss), loss=loss, optimizer=gx.optim.SGD(lr=0.5))
    return exe, {k: np.tile(v, (2500, 1)) for k, v in XAND.items()}


def _c() -> Case:
    return case_c_step(), classifier_feeds(1000)


def _d() -> Case:
    y, loss = case_d()
    exe = gx.compile((y, loss), loss=loss, optimizer=gx.optim.RMSProp(lr=0.01))
    x = random(0, 5000, 9)
    return exe, {"x": x, "t": np.eye(4, dtype=np.float32)[x[:, :4].argmax(1)]}


def _e() -> Case:
    y, loss = case_e()
    exe = gx.compile((y, loss), loss=loss, optimizer=gx.optim.SGD(lr=0.1))
    x = np.linspace(-1, 1, 200_000)
    return exe, {"x": x, "t": (x - 32) * 5 / 9}


def _rows(function: Callable[[gx.Tensor], Any], *shape: int) -> Callable[[], Case]:
    def make() -> Case:
        x = gx.input("x", (gx.dim("B"), *shape[1:]))
        return gx.compile(function(x)), {"x": random(7, *shape)}

    return make


def _layer_norm(x: gx.Tensor) -> gx.Tensor:
    """Layer norm written out."""
    scale, shift = (
        gx.param("scale", (x.shape[-1],), init="ones"),
        gx.param("shift", (x.shape[-1],), init="zeros"),
    )
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * (var + 1e-5).rsqrt() * scale + shift


CASES: dict[str, Callable[[], Case]] = {
    "a": _a,
    "b": _b,
    "c": _c,
    "d": _d,
    "e": _e,
    "softmax": _rows(lambda x: x.softmax(), 3000, 40),
    "layer norm": _rows(_layer_norm, 3000, 64),
    "matmul rows": _rows(lambda x: x @ gx.constant(random(1, 64, 48)), 2000, 64),
    "tall product": _rows(lambda x: x.T @ x, 6000, 24),
    "sums": _rows(lambda x: [x.sum(), x.sum(0), x.exp().sum(1), x.max()], 6000, 24),
}


@pytest.fixture(autouse=True)
def same_seed() -> None:
    """Every case starts from the same weights."""
    gx.seed(0)


def transcript(make: Callable[[], Case], steps: int = 3) -> list[bytes]:
    """The bytes of all results and of the state after a few steps."""
    gx.seed(0)
    exe, feeds = make()
    results = [value.tobytes() for _ in range(steps) for value in exe.run_labelled(feeds).values()]
    return [*results, *state_bytes(exe).values()]


@pytest.mark.parametrize("name", CASES)
def test_same_bytes_at_any_thread_count(name: str) -> None:
    found = {}
    for count in COUNTS:
        with threads(count):
            found[count] = transcript(CASES[name])
    for count in COUNTS[1:]:
        assert found[count] == found[1], count


@pytest.mark.parametrize("name", CASES)
def test_several_threads_take_chunks(name: str) -> None:
    exe, feeds = CASES[name]()
    with threads(3):
        pool().reset_counters()
        deadline = time.monotonic() + 20  # on a busy machine a thread may sleep through many short runs
        while sum(count > 0 for count in pool().chunks_taken()) < 2 and time.monotonic() < deadline:
            exe.run(feeds)
        taken = pool().chunks_taken()
        assert len(taken) == 3 and sum(count > 0 for count in taken) >= 2, taken
    with threads(1):
        pool().reset_counters()
        exe.run(feeds)
        assert len(pool().chunks_taken()) == 1


def test_threads_argument_of_compile() -> None:
    with threads(1):
        exe = gx.compile(gx.input("x", (3,)) + 1, threads=2)
        assert pool().threads == 2
        assert exe.run(x=np.zeros(3, np.float32)).tolist() == [1, 1, 1]


# -------------------------------------------------------------------------------------- concurrency


def together(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Runs jobs on Python threads that start at once; their results, in order. Errors are raised."""
    barrier = threading.Barrier(len(jobs))
    results: list[Any] = [None] * len(jobs)

    def work(index: int) -> None:
        barrier.wait()
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def test_one_executable_from_four_threads() -> None:
    out, _ = classifier()
    exe = gx.compile(out)
    batches = [classifier_feeds(size)["x"] for size in (200, 131, 64, 777)]
    expected = [exe.run(x=x).tobytes() for x in batches]
    with threads(2):
        jobs = [lambda x=x: {exe.run(x=x).tobytes() for _ in range(30)} for x in batches]
        for got, want in zip(together(jobs), expected, strict=True):
            assert got == {want}


def test_training_steps_from_four_threads_lose_no_update() -> None:
    w = gx.param("w", (1000,), init="zeros")
    loss = w.sum()
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    with threads(2):
        together([lambda: [exe.run() for _ in range(50)]] * 4)
    assert set(exe.params["w"].tolist()) == {-200.0}


def test_different_executables_from_four_threads() -> None:
    makers = [_a, _c, _d, CASES["softmax"]]
    expected = [transcript(make) for make in makers]
    built = []
    for make in makers:
        gx.seed(0)
        built.append(make())

    def job(exe: gx.Executable, feeds: dict[str, np.ndarray]) -> list[bytes]:
        results = [value.tobytes() for _ in range(3) for value in exe.run_labelled(feeds).values()]
        return [*results, *state_bytes(exe).values()]

    with threads(3):
        got = together([lambda e=e, f=f: job(e, f) for e, f in built])
    assert got == expected


def test_shared_parameters_from_two_executables_at_once() -> None:
    """An inference beside training sees the parameters before or after a step, never half of one."""
    w = gx.param("w", (200_000,), init="zeros")
    loss = w.sum()
    step = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    read = gx.compile([w.min(), w.max()])
    with threads(2):
        _, seen = together([lambda: [step.run() for _ in range(40)], lambda: [read.run() for _ in range(40)]])
    torn = [(low, high) for low, high in seen if low != high]
    assert not torn, torn[:3]


def test_compile_from_four_threads() -> None:
    expected = transcript(_d)

    def job() -> list[bytes]:
        y, loss = case_d()
        exe = gx.compile((y, loss), loss=loss, optimizer=gx.optim.RMSProp(lr=0.01))
        x = random(0, 5000, 9)
        feeds = {"x": x, "t": np.eye(4, dtype=np.float32)[x[:, :4].argmax(1)]}
        results = [value.tobytes() for _ in range(3) for value in exe.run_labelled(feeds).values()]
        return [*results, *state_bytes(exe).values()]

    assert together([job] * 4) == [expected] * 4


def test_nested_run_from_a_callback() -> None:
    exe, feeds = _d()
    other = gx.compile(gx.input("z", (5000, 20)).softmax())
    z = random(3, 5000, 20)
    expected, seen = other.run(z=z).tobytes(), []

    def callback(epoch: int, logs: dict[str, float]) -> None:
        seen.append(other.run(z=z).tobytes())
        exe.run(feeds)
        exe.evaluate(feeds)

    with threads(2):
        exe.fit(feeds, epochs=3, batch_size=1000, callbacks=[callback])
    assert seen == [expected] * 3


def test_run_inside_the_iterable_of_fit() -> None:
    exe, feeds = _d()

    def batches() -> Any:
        for start in range(0, 5000, 1000):
            part = {k: v[start : start + 1000] for k, v in feeds.items()}
            exe.evaluator.run(part)
            yield part

    history = exe.fit(batches(), epochs=1)
    assert len(history["seconds"]) == 1


# ------------------------------------------------------------------------------- processes, interrupts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_fork() -> None:
    exe, feeds = _c()
    with threads(3):
        for _ in range(3):
            exe.run(feeds)
        start = state_bytes(exe)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # a fresh pool: the workers did not come along
            code = 1
            try:
                os.close(read)
                signal.alarm(30)
                value = exe.run(feeds)
                again = exe.run(feeds)
                os.write(write, value["loss"].tobytes() + again["loss"].tobytes())
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
        got = os.read(read, 100)
        os.close(read)
        assert state_bytes(exe) == start  # the child trained its own copy
        assert exe.run(feeds)["loss"].tobytes() + exe.run(feeds)["loss"].tobytes() == got


def script(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of its own, in this directory's reach."""
    path = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, "-c", body], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)"])
def test_interpreter_exit(ending: str) -> None:
    body = (
        "import numpy as np, graphc as gx\n"
        "gx.set_num_threads(4)\n"
        "from spec_support import *\n"
        "step = case_c_step(); feeds = classifier_feeds(1000)\n"
        "[step.run(feeds) for _ in range(5)]\n"
        "import atexit; atexit.register(lambda: print('late', np.isfinite(step.run(feeds)['loss'])))\n"
        f"{ending}\n"
    )
    done = script(body)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "late True" in done.stdout


def test_exit_while_another_thread_runs() -> None:
    body = (
        "import threading, time, graphc as gx\n"
        "gx.set_num_threads(3)\n"
        "from spec_support import *\n"
        "step = case_c_step(); feeds = classifier_feeds(1000)\n"
        "def forever():\n"
        "    while True: step.run(feeds)\n"
        "threading.Thread(target=forever, daemon=True).start()\n"
        "time.sleep(0.3); print('bye')\n"
    )
    done = script(body)
    assert done.returncode == 0 and done.stdout == "bye\n", (done.returncode, done.stderr[-500:])


def test_environment_variable_sets_threads() -> None:
    body = "import graphc; from graphc.codegen.threads import pool; print(pool().threads)"
    assert script(body, GRAPHC_NUM_THREADS="5").stdout == "5\n"
    for bad in ("0", "-3", "many"):
        done = script(body, GRAPHC_NUM_THREADS=bad)
        assert done.returncode != 0 and "GRAPHC_NUM_THREADS" in done.stderr, bad


def test_keyboard_interrupt_in_fit_leaves_state_intact() -> None:
    """Ctrl-C at some moment: the state is the one after a whole number of steps."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals arrive in the main thread")
    exe, feeds = _c()
    after = {state_bytes(exe)["net.0.weight"]: 0}
    reference, _ = _c()
    for name, value in exe.params.items():
        reference.params[name] = value
    seen = 0

    def data() -> Any:
        nonlocal seen
        for index in range(10_000):
            if index == 5:
                threading.Timer(0.02, lambda: signal.raise_signal(signal.SIGINT)).start()
            seen = index
            yield feeds

    with threads(2):
        try:
            history = exe.fit(data())
        except KeyboardInterrupt:
            pytest.fail("fit lets Ctrl-C end training, not the program")
        assert history.interrupted and 5 <= seen < 9_999
        for step in range(seen + 3):
            after[state_bytes(reference)["net.0.weight"]] = step
            reference.run(feeds)
    assert after[state_bytes(exe)["net.0.weight"]] >= 5
    assert np.isfinite(exe.run(feeds)["loss"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
