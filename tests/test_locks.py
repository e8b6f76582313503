"""The locks of state: several at once, from many threads, again by their holder, under signals and forks."""

import multiprocessing
import os
import random
import signal
import threading
import time

import pytest
from thread_support import in_threads

from graphc.codegen import locks
from graphc.codegen.cpython import native_calls
from graphc.codegen.jit import compile_object, undefined_symbols
from graphc.codegen.locks import StateLock
from graphc.codegen.locks_ir import locks_ir
from graphc.codegen.target import target_by_name
from graphc.ir.locks import SlabLock

needs_native = pytest.mark.skipif(not native_calls(), reason="objects lie otherwise in this interpreter")
needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")


@pytest.fixture(params=["native", "portable"])
def kind(request, monkeypatch):
    """Locks taken by native code, or by Python's own."""
    if request.param == "portable":
        monkeypatch.setattr(locks, "native_calls", lambda: False)
    elif not native_calls():
        pytest.skip("objects lie otherwise in this interpreter")


def is_free(lock):
    """Whether another thread can take it."""
    found = []

    def take():
        with lock:
            found.append(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(10)
    return bool(found)


def test_sets_that_overlap_are_never_held_by_two_threads(kind):
    parts = [SlabLock() for _ in range(4)]
    holders = [0] * 4
    turns = [0] * 4

    def work(seed):
        choose = random.Random(seed)
        for _ in range(300):
            members = choose.sample(range(4), choose.randint(1, 4))
            with StateLock([parts[k] for k in members]):
                for k in members:
                    holders[k] += 1
                if choose.random() < 0.2:
                    time.sleep(0)
                with StateLock([parts[members[0]]]):  # again by its holder
                    assert [holders[k] for k in members] == [1] * len(members)
                for k in members:
                    turns[k] += 1
                    holders[k] -= 1

    expected = [0] * 4
    for seed in range(8):
        choose = random.Random(seed)
        for _ in range(300):
            for k in (members := choose.sample(range(4), choose.randint(1, 4))):
                expected[k] += 1
            choose.random()
            del members
    in_threads([lambda seed=seed: work(seed) for seed in range(8)])
    assert turns == expected
    assert is_free(StateLock(parts))


def test_two_orders_do_not_wait_for_each_other(kind):
    one, two = SlabLock(), SlabLock()
    forwards, backwards = StateLock([one, two, one]), StateLock([two, one])

    def work(lock):
        for _ in range(2000):
            with lock:
                pass

    in_threads([lambda: work(forwards), lambda: work(backwards)] * 2)
    assert is_free(forwards) and is_free(backwards)


def test_the_holder_may_take_it_again_and_others_wait(kind):
    lock = StateLock([SlabLock(), SlabLock()])
    entered = threading.Event()

    def take():
        with lock:
            entered.set()

    with lock:
        with lock, lock:
            pass
        thread = threading.Thread(target=take)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(10)
    thread.join()


def test_an_exception_frees_it_and_is_passed_on(kind):
    lock = StateLock([SlabLock()])
    waiting = threading.Thread(target=lambda: lock.__enter__() or lock.__exit__())
    with pytest.raises(KeyError, match="mine"), lock:
        waiting.start()
        time.sleep(0.02)  # it sleeps: leaving sends a token, with the exception on its way
        raise KeyError("mine")
    waiting.join(10)
    assert not waiting.is_alive() and is_free(lock)


@needs_native
def test_a_thread_that_never_lets_go_for_long_starves_nobody():
    lock = StateLock([SlabLock()])
    done = threading.Event()
    turns = []

    def greedy():
        while not done.is_set():
            with lock:
                time.sleep(0)

    def modest():
        for _ in range(20):
            with lock:
                turns.append(None)
        done.set()

    in_threads([greedy, greedy, modest])
    assert len(turns) == 20


class Interrupt(Exception):
    """What the signal handler of these tests raises."""


def in_a_storm(function, seconds, interval):
    """Calls a function for so long, while signals come whose handler raises. Returns how often one did."""
    raised, armed = 0, False

    def handler(*_):
        nonlocal raised, armed
        if armed:
            armed = False
            raised += 1
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            armed = True
            while time.monotonic() < end:
                function()
            armed = False
        except Interrupt:
            continue
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    return raised


@needs_native
@needs_timer
def test_signals_never_leave_it_held():
    parts = [SlabLock(), SlabLock()]
    lock, part = StateLock(parts), StateLock(parts[:1])

    def once():
        with lock, part:
            pass

    assert in_a_storm(once, 0.5, 1e-4) > 10
    assert is_free(lock)


@needs_native
@needs_timer
def test_signals_while_it_is_waited_for():
    """What a handler raises ends the wait, with nothing held, and does not put anybody else to sleep."""
    parts = [SlabLock(), SlabLock(), SlabLock()]
    lock = StateLock(parts[:2])
    end = time.monotonic() + 0.5
    turns = [0, 0]

    def other(number, theirs):
        while time.monotonic() < end:
            with theirs:
                turns[number] += 1
                time.sleep(2e-4)

    others = [StateLock(parts[1:]), StateLock(parts)]
    threads = [threading.Thread(target=other, args=(k, their)) for k, their in enumerate(others)]
    for thread in threads:
        thread.start()

    def once():
        with lock:
            pass

    assert in_a_storm(once, 0.5, 5e-4) > 10
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert min(turns) > 0 and is_free(lock) and is_free(StateLock(parts))


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("holder", ["nobody", "the thread that forks", "another thread"])
def test_after_a_fork(kind, holder):
    lock = StateLock([SlabLock(), SlabLock()])
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    ready, finish = threading.Event(), threading.Event()

    def hold():
        with lock:
            ready.set()
            finish.wait(60)

    thread = threading.Thread(target=hold)
    if holder == "another thread":
        thread.start()
        assert ready.wait(10)
    waiting = threading.Thread(target=is_free, args=(lock,))

    def in_child():
        queue.put(is_free(lock))
        with lock:
            pass
        queue.put(is_free(lock))

    def fork():
        child = context.Process(target=in_child)
        child.start()
        return child

    if holder == "the thread that forks":
        with lock:
            waiting.start()
            time.sleep(0.02)
            child = os.fork()
            if not child:
                os._exit(0 if not _taken_elsewhere(lock) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        waiting.join(20)
    child = fork()
    assert queue.get() and queue.get()
    child.join(20)
    assert child.exitcode == 0
    finish.set()
    if thread.ident is not None:
        thread.join(20)
    assert is_free(lock)


def _taken_elsewhere(lock):
    """In a child whose parent's thread held the lock: whether another thread could take it at once, or never
    could."""
    found = []
    thread = threading.Thread(target=lambda: found.append(lock.__enter__()), daemon=True)
    thread.start()
    thread.join(0.1)
    lock.__exit__()
    thread.join(10)
    return found != [None] or thread.is_alive()


@pytest.mark.parametrize("name", ["avx2", "neon"])
def test_the_text_names_no_symbol_of_others(name):
    target = target_by_name(name)
    text = f'target triple = "{target.triple}"\n{locks_ir()}'
    assert undefined_symbols(compile_object(text, target)) == []
