"""Every interleaving of the thread pool's state machine, explored on a model of its native code.

The model has the atomic steps of `graphc/codegen/threads_ir.py`, one transition each, under the names that
the `; step:` comments give there; memory is sequentially consistent. Plain loads and stores of a region's
function and argument are steps of their own. A region's part (its base) counts as one region. Spinning is
a free choice to look again or to park. A change in one of the two files is a change in the other.

Checked in every reachable state: no chunk runs twice; none is lost; a function meets its own region's
argument, while that region runs; the lowest failing chunk is reported; the caller waits only while a
worker holds a chunk; no state is a dead end for a caller; every caller can still finish.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from graphc.codegen import threads_ir

NO_CHUNK = 99
Region = namedtuple("Region", "id chunks failing")
# `running` and `ran` are ghosts: regions published and not yet released, (region, chunk) pairs that ran.
Shared = namedtuple(
    "Shared",
    "generation chunks next function argument error_chunk completed target busy wake_word parked stop "
    "running ran",
)
# `plan` is what a caller still has to do; a worker's is empty. `seen` is a ticket or another value read.
Thread = namedtuple("Thread", "pc plan own seen chunk function argument value failed")
State = tuple[Shared, tuple[Thread, ...]]
Move = tuple[Shared, Thread, tuple[Thread, ...]]  # the memory, this thread, and all threads it touched

INITIAL = Shared(0, 0, 0, None, None, NO_CHUNK, 0, 0, 0, 0, 0, 0, frozenset(), frozenset())
STOP, RESTART = "stop", "restart"


class ModelError(AssertionError):
    """The pool broke its promise in some interleaving."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)


def worker() -> Thread:
    return Thread("read_stop", (), 0, None, 0, None, None, 0, NO_CHUNK)


def caller(*plan: object) -> Thread:
    return worker()._replace(pc="next", plan=plan)


class Model:
    """The transitions. `mutation` names one deliberate fault that the checks must find."""

    def __init__(self, mutation: str = "") -> None:
        self.mutation = mutation

    def moves(self, s: Shared, t: Thread, all_threads: tuple[Thread, ...]) -> Iterator[Move]:
        """What thread `t` can do next: nothing if it sleeps or has ended."""
        step: Callable[..., Iterator[Move]] | None = getattr(self, t.pc, None)
        return iter(()) if step is None else step(s, t, all_threads)

    # ---- gx_take: shared by callers and workers

    def read_ticket(self, s, t, all_threads):
        seen = (s.generation, s.chunks, s.next)
        if self.mutation == "read region before winning":
            t = t._replace(function=s.function)
        yield s, self.after_look(t._replace(seen=seen)), all_threads

    def after_look(self, t):
        """The compare of next and count, which touches no shared memory."""
        if t.seen[2] < t.seen[1]:
            return t._replace(pc="win_chunk")
        t = t._replace(seen=None, chunk=0, function=None, argument=None)
        if t.plan:
            return t._replace(pc="read_completed")
        return t._replace(pc="report" if t.own else "read_stop")

    def win_chunk(self, s, t, all_threads):
        now = (s.generation, s.chunks, s.next)
        matches = now == t.seen
        if self.mutation == "compare without generation":
            matches = now[1:] == t.seen[1:]
        if not matches:
            yield s, self.after_look(t._replace(seen=now)), all_threads
            return
        won = t._replace(own=t.own + 1, chunk=s.next, seen=(s.generation, s.chunks, s.next + 1))
        if self.mutation == "exchange that is not atomic":
            yield s, won._replace(pc="store_ticket"), all_threads
        elif self.mutation in ("read region before winning", "compare without generation"):
            yield s._replace(next=s.next + 1), won._replace(pc="read_argument"), all_threads
        else:
            yield s._replace(next=s.next + 1), won._replace(pc="read_region"), all_threads

    def store_ticket(self, s, t, all_threads):
        yield s._replace(next=t.seen[2]), t._replace(pc="read_region"), all_threads

    def read_region(self, s, t, all_threads):
        yield s, t._replace(pc="read_argument", function=s.function), all_threads

    def read_argument(self, s, t, all_threads):
        yield s, t._replace(pc="check_error", argument=s.argument), all_threads

    def check_error(self, s, t, all_threads):
        skip = s.error_chunk < t.chunk
        if self.mutation == "skip every chunk after an error":
            skip = s.error_chunk != NO_CHUNK
        yield s, self.after_look(t) if skip else t._replace(pc="run_chunk"), all_threads

    def run_chunk(self, s, t, all_threads):
        check(t.function == t.argument, f"function of {t.function} ran with the argument of {t.argument}")
        check(t.function in s.running, f"region {t.function} ran after its caller had left it")
        pair = (t.function.id, t.chunk)
        check(t.chunk < t.function.chunks, f"{pair} does not exist")
        check(pair not in s.ran, f"{pair} ran twice")
        s = s._replace(ran=s.ran | {pair})
        if t.chunk in t.function.failing:
            yield s, t._replace(pc="record_error"), all_threads
        else:
            yield s, self.after_look(t), all_threads

    def record_error(self, s, t, all_threads):
        lowest = min(s.error_chunk, t.chunk)
        if self.mutation == "last error wins":
            lowest = t.chunk
        yield s._replace(error_chunk=lowest), self.after_look(t._replace(failed=t.chunk)), all_threads

    # ---- gx_parallel

    def next(self, s, t, all_threads):
        if not t.plan:
            yield s, t._replace(pc="done"), all_threads
        elif t.plan[0] == STOP:
            yield s, t._replace(pc="close"), all_threads
        elif t.plan[0] == RESTART:
            yield s, t._replace(pc="restart"), all_threads
        else:
            yield s, t._replace(pc="acquire"), all_threads

    def finish(self, t):
        return worker()._replace(pc="next", plan=t.plan[1:])

    def acquire(self, s, t, all_threads):
        if s.busy:
            yield s, t._replace(pc="alone"), all_threads
        else:
            yield s._replace(busy=1), t._replace(pc="write_region"), all_threads

    def alone(self, s, t, all_threads):
        """gx_alone touches nothing that is shared."""
        yield s, self.finish(t), all_threads

    def write_region(self, s, t, all_threads):
        yield s._replace(function=t.plan[0]), t._replace(pc="write_argument"), all_threads

    def write_argument(self, s, t, all_threads):
        s = s._replace(argument=t.plan[0], error_chunk=NO_CHUNK)
        if self.mutation != "completed is not reset":
            s = s._replace(completed=0)
        yield s, t._replace(pc="publish"), all_threads

    def publish(self, s, t, all_threads):
        region = t.plan[0]
        s = s._replace(running=s.running | {region})
        s = s._replace(generation=s.generation + 1, chunks=region.chunks, next=0)
        yield s, t._replace(pc="read_parked"), all_threads

    def read_parked(self, s, t, all_threads):
        if self.mutation == "wait for all workers":
            workers = sum(not other.plan and other.pc not in ("next", "done") for other in all_threads)
            t = t._replace(value=workers)
        yield s, t._replace(pc="zero_parked" if s.parked else "read_ticket"), all_threads

    def read_completed(self, s, t, all_threads):
        region = t.plan[0]
        theirs = region.chunks - t.own
        holds = any(self.holds(other) for other in all_threads if other is not t)
        if s.completed == theirs and self.mutation == "wait for all workers":
            asleep = sum(other.pc in ("asleep_worker", "out") for other in all_threads)
            check(asleep == 0, "the caller waits though no worker holds a chunk")
        if s.completed == theirs:
            yield s, t._replace(pc="release", value=s.error_chunk), all_threads
        else:
            check(holds, "the caller waits though no worker holds a chunk")
            yield s, t, all_threads  # a pause
            yield s, t._replace(pc="announce"), all_threads

    def holds(self, t):
        return t.own > 0 and t.pc not in ("next", "done")

    def announce(self, s, t, all_threads):
        if self.mutation == "sleep without announcing":
            yield s, t._replace(pc="reread_completed"), all_threads
        else:
            yield s._replace(target=t.plan[0].chunks - t.own), t._replace(pc="reread_completed"), all_threads

    def reread_completed(self, s, t, all_threads):
        late = s.completed == t.plan[0].chunks - t.own
        yield s, t._replace(pc="clear_target" if late else "sleep_caller", value=s.completed), all_threads

    def sleep_caller(self, s, t, all_threads):
        same = s.completed == t.value or self.mutation == "sleep without comparing"
        yield s, t._replace(pc="asleep_caller" if same else "clear_target", value=0), all_threads

    def clear_target(self, s, t, all_threads):
        yield s._replace(target=0), t._replace(pc="read_completed", value=0), all_threads

    def release(self, s, t, all_threads):
        region = t.plan[0]
        lowest = min(region.failing, default=NO_CHUNK)
        check(t.value == lowest, f"region {region.id} reports chunk {t.value}, not {lowest}")
        must = {(region.id, chunk) for chunk in range(min(region.chunks, lowest + 1))}
        mine = {pair for pair in s.ran if pair[0] == region.id}
        check(must <= mine, f"region {region.id} lost {must - mine}")
        found = sum(other.failed == lowest for other in all_threads)
        check(lowest == NO_CHUNK or found == 1, f"chunk {lowest} failed in {found} slots")
        s = s._replace(busy=s.busy & ~1, running=s.running - {region}, ran=s.ran - mine)
        finished = self.finish(t)
        if self.mutation == "slots are not cleared":
            yield s, finished._replace(failed=t.failed), all_threads
        else:
            yield s, finished, tuple(other._replace(failed=NO_CHUNK) for other in all_threads)

    # ---- gx_wake_workers: for a new region, or to stop

    def zero_parked(self, s, t, all_threads):
        yield s._replace(parked=0), t._replace(pc="bump_wake_word"), all_threads

    def bump_wake_word(self, s, t, all_threads):
        yield s._replace(wake_word=s.wake_word + 1), t._replace(pc="wake_workers"), all_threads

    def wake_workers(self, s, t, all_threads):
        woken = tuple(
            other._replace(pc="read_stop") if other.pc == "asleep_worker" else other for other in all_threads
        )
        yield s, t._replace(pc="join" if t.plan[0] == STOP else "read_ticket"), woken

    # ---- gx_worker_loop

    def read_stop(self, s, t, all_threads):
        yield s, t._replace(pc="out" if s.stop else "peek_ticket"), all_threads

    def peek_ticket(self, s, t, all_threads):
        if s.next < s.chunks:
            yield s, t._replace(pc="read_ticket"), all_threads
        else:
            yield s, t._replace(pc="read_stop"), all_threads
            yield s, t._replace(pc="read_wake_word"), all_threads

    def report(self, s, t, all_threads):
        s = s._replace(completed=s.completed + t.own)
        yield s, worker()._replace(pc="read_target", value=s.completed, failed=t.failed), all_threads

    def read_target(self, s, t, all_threads):
        wake = s.target == t.value
        yield s, t._replace(pc="wake_caller" if wake else "read_stop", value=0), all_threads

    def wake_caller(self, s, t, all_threads):
        woken = tuple(
            other._replace(pc="clear_target") if other.pc == "asleep_caller" else other
            for other in all_threads
        )
        yield s, t._replace(pc="read_stop"), woken

    def read_wake_word(self, s, t, all_threads):
        yield s, t._replace(pc="count_parked", value=s.wake_word), all_threads

    def count_parked(self, s, t, all_threads):
        after = "sleep_worker" if self.mutation == "park without looking again" else "reread_stop"
        yield s._replace(parked=s.parked + 1), t._replace(pc=after), all_threads

    def reread_stop(self, s, t, all_threads):
        yield s, t._replace(pc="out" if s.stop else "repeek_ticket"), all_threads

    def repeek_ticket(self, s, t, all_threads):
        if s.next < s.chunks:
            yield s, t._replace(pc="read_stop", value=0), all_threads
        else:
            yield s, t._replace(pc="sleep_worker"), all_threads

    def sleep_worker(self, s, t, all_threads):
        same = s.wake_word == t.value
        yield s, t._replace(pc="asleep_worker" if same else "read_stop", value=0), all_threads

    # ---- gx_close, gx_stop and Python's join and reset

    def close(self, s, t, all_threads):
        free = not s.busy & 1
        yield s._replace(busy=s.busy | 2), t._replace(pc="set_stop" if free else "close"), all_threads

    def set_stop(self, s, t, all_threads):
        if self.mutation == "stop without waking":
            yield s._replace(stop=1), t._replace(pc="join"), all_threads
        else:
            yield s._replace(stop=1), t._replace(pc="zero_parked"), all_threads

    def join(self, s, t, all_threads):
        if all(other.pc == "out" for other in all_threads if is_worker(other)):
            yield s, self.finish(t), all_threads

    def restart(self, s, t, all_threads):
        fresh = tuple(worker() if other.pc == "out" else other for other in all_threads)
        yield reset(s, self.mutation), self.finish(t), fresh


def is_worker(t: Thread) -> bool:
    return not t.plan and t.pc not in ("next", "done")


def reset(s: Shared, mutation: str = "") -> Shared:
    """ThreadPool._reset: every field but the region's, which nobody reads before it is written."""
    kept = {"function": s.function, "argument": s.argument}
    if mutation == "reset forgets busy":
        kept["busy"] = s.busy
    return INITIAL._replace(**kept)


# The steps that look at other threads or move them; all others depend on memory and the thread alone.
NEEDS_ALL_THREADS = {
    "read_parked", "read_completed", "release", "wake_workers", "wake_caller", "join", "restart",
}  # fmt: skip


class Explorer:
    """A walk over all reachable states. Memories and threads are interned as ints: a state is a row of them.

    Workers are alike, so their order in a state makes no difference and the row keeps them sorted.
    """

    def __init__(self, start: State, mutation: str) -> None:
        self.model = Model(mutation)
        self.things: list[Shared | Thread] = []
        self.numbers: dict[Shared | Thread, int] = {}
        self.known: dict[tuple[int, int], list[tuple[int, int]]] = {}
        shared, threads = start
        self.callers = sum(not is_worker(t) for t in threads)
        self.start = self.row(self.number(shared), [self.number(t) for t in threads])

    def number(self, thing: Shared | Thread) -> int:
        if thing not in self.numbers:
            self.numbers[thing] = len(self.things)
            self.things.append(thing)
        return self.numbers[thing]

    def row(self, shared: int, threads: list[int]) -> tuple[int, ...]:
        return (shared, *threads[: self.callers], *sorted(threads[self.callers :]))

    def successors(self, row: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        shared, *threads = row
        for index, number in enumerate(threads):
            if self.things[number].pc in NEEDS_ALL_THREADS:
                everyone = tuple(self.things[t] for t in threads)
                moves = self.model.moves(self.things[shared], everyone[index], everyone)
                for memory, thread, others in moves:
                    moved = [self.number(t) for t in others]
                    moved[index] = self.number(thread)
                    yield self.row(self.number(memory), moved)
                continue
            if (shared, number) not in self.known:
                moves = self.model.moves(self.things[shared], self.things[number], ())
                self.known[shared, number] = [(self.number(s), self.number(t)) for s, t, _ in moves]
            for memory_number, thread_number in self.known[shared, number]:
                yield self.row(memory_number, [*threads[:index], thread_number, *threads[index + 1 :]])

    def explore(self) -> tuple[int, set[Shared]]:
        """How many states there are, and every memory in them. ModelError where a check fails."""
        seen, frontier, finished = {self.start}, [self.start], []
        before: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        while frontier:
            row = frontier.pop()
            if all(self.things[t].pc == "done" for t in row[1 : 1 + self.callers]):
                finished.append(row)
            stuck = not finished or finished[-1] is not row
            for after in self.successors(row):
                stuck = False
                before.setdefault(after, []).append(row)
                if after not in seen:
                    seen.add(after)
                    frontier.append(after)
            check(not stuck, f"a caller is stuck: {[self.things[number] for number in row]}")
            check(len(seen) < 3_000_000, "the model has more states than expected")
        check_all_can_finish(seen, before, finished)
        return len(seen), {self.things[row[0]] for row in seen}


def check_all_can_finish(seen: set, before: dict, finished: list) -> None:
    """From every reachable state some schedule lets all callers finish (no livelock)."""
    reaching, frontier = set(finished), list(finished)
    while frontier:
        for earlier in before.get(frontier.pop(), ()):
            if earlier not in reaching:
                reaching.add(earlier)
                frontier.append(earlier)
    check(reaching == seen, f"{len(seen - reaching)} states from which a caller never finishes")


@cache
def explored(name: str) -> tuple[int, set[Shared]]:
    return Explorer((INITIAL, SCENARIOS[name]), "").explore()


def region(number: int, chunks: int, *failing: int) -> Region:
    return Region(number, chunks, failing)


SCENARIOS = {
    "three workers": (caller(region(0, 2)), worker(), worker(), worker()),
    "two regions": (caller(region(0, 2), region(1, 2)), worker(), worker()),
    "three regions": (caller(region(0, 2), region(1, 1), region(2, 2)), worker()),
    "errors": (caller(region(0, 3, 1, 2), region(1, 1)), worker(), worker()),
    "errors twice": (caller(region(0, 2, 1), region(1, 2, 1)), worker(), worker()),
    "two callers": (caller(region(0, 2)), caller(region(1, 2)), worker()),
    "stop": (caller(region(0, 2), STOP), worker(), worker()),
    "change threads": (caller(region(0, 2), region(1, 1)), caller(STOP, RESTART), worker()),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_all_interleavings(name: str) -> None:
    states, _ = explored(name)
    print(name, states)
    assert states > 10_000


MUTATIONS = {
    "read region before winning": ("two regions", "argument|left|twice"),
    "exchange that is not atomic": ("three workers", "twice"),
    "wait for all workers": ("two regions", "waits though"),
    "completed is not reset": ("two regions", "waits though|stuck|lost|left|never"),
    "skip every chunk after an error": ("errors", "reports|lost"),
    "slots are not cleared": ("errors twice", "slots"),
    "last error wins": ("errors", "reports"),
    "sleep without announcing": ("two regions", "stuck"),
    "sleep without comparing": ("two regions", "stuck"),
    "park without looking again": ("stop", "stuck"),
    "stop without waking": ("stop", "stuck"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_fault_is_found(mutation: str) -> None:
    scenario, message = MUTATIONS[mutation]
    with pytest.raises(ModelError, match=message):
        Explorer((INITIAL, SCENARIOS[scenario]), mutation).explore()


def test_fork_at_any_moment() -> None:
    """A child sees the parent's memory of any moment, resets it, and works like a new process."""
    moments = explored("errors")[1] | explored("two callers")[1] | explored("change threads")[1]
    assert len(moments) > 100 and any(shared.busy for shared in moments)
    children = {reset(shared) for shared in moments}
    assert all(not child.busy and not child.stop for child in children)
    for child in children:
        Explorer((child, (caller(region(7, 2)), worker())), "").explore()


def test_reset_that_forgets_busy_is_found() -> None:
    busy = INITIAL._replace(busy=1)
    with pytest.raises(ModelError):
        Explorer((reset(busy, "reset forgets busy"), (caller(STOP), worker())), "").explore()


def test_model_and_native_code_have_the_same_steps() -> None:
    text = Path(threads_ir.__file__).read_text(encoding="utf-8")
    native = set(re.findall(r"; step: (\w+)", text))
    assert native and all(hasattr(Model, name) for name in native), native - set(dir(Model))
