"""LLVM beside Python: a thread compiles the modules that are written already while the next one is written.

Calls into LLVM let other Python threads run. They take about twice as long as writing the text did, so
writing costs next to no time where there is a second CPU, and so does all else that a compile has to do.
What is compiled depends on the texts alone, never on the thread: it takes them one by one in their order,
and llvmlite lets one call in at a time anyway.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import TracebackType

from graphc.codegen.jit import compile_object
from graphc.codegen.target import Target

SWITCH_SECONDS = 0.0001
"""How long a thread that comes back from LLVM waits for Python while another one runs. Ten calls make an
object, and Python's default (5 ms) for each would cost more than the thread gains."""


class ObjectThread:
    """Compiles LLVM texts in the order in which they are added, while the caller goes on.

        with ObjectThread(target) as thread:
            thread.add(text)
            thread.add(another)
            objects = thread.objects()

    The thread is started by the first text and has ended when the block is left, also by an exception:
    texts that it has not begun are dropped then.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._texts: list[str] = []
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._objects: list[bytes] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="graphc-llvm", daemon=True)
        self._is_dropped = False

    def add(self, text: str) -> None:
        """Hands over one more text."""
        self._texts.append(text)
        self._queue.put(text)
        if len(self._texts) == 1:
            with suppress(RuntimeError):  # no more threads may be started; then `objects` does the work
                self._thread.start()

    def objects(self) -> list[bytes]:
        """Waits, and returns the objects of all texts in their order. LoweringError for a text that is not
        valid IR."""
        self._end()
        if self._error is not None:
            raise self._error
        # All of them where no thread could be started, and some after a fork, which leaves the thread behind.
        missing = self._texts[len(self._objects) :]
        return self._objects + [compile_object(text, self._target) for text in missing]

    def __enter__(self) -> ObjectThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_dropped = True
        self._end()

    def _end(self) -> None:
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            with switching_often():
                for text in iter(self._queue.get, None):
                    if self._is_dropped:
                        return
                    self._objects.append(compile_object(text, self._target))
        except Exception as error:  # it is raised where the objects are wanted
            self._error = error


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Calls a function in a thread of its own while the block runs. What the function raises is raised at the
    end of the block; no thread is left."""
    errors: list[Exception] = []

    def call() -> None:
        try:
            with switching_often():
                work()
        except Exception as error:  # it is raised at the end of the block
            errors.append(error)

    thread = threading.Thread(target=call, name="graphc-beside", daemon=True)
    with suppress(RuntimeError):  # no more threads may be started: whoever needs the work does it then
        thread.start()
    try:
        yield
    finally:
        if thread.ident is not None:
            thread.join()
    if errors:
        raise errors[0]


_switching_lock = threading.Lock()
_switching = 0
_usual_seconds = 0.0


@contextmanager
def switching_often() -> Iterator[None]:
    """Within the block threads of this process hand Python to each other after `SWITCH_SECONDS`."""
    global _switching, _usual_seconds
    with _switching_lock:
        if _switching == 0:
            _usual_seconds = sys.getswitchinterval()
            sys.setswitchinterval(min(SWITCH_SECONDS, _usual_seconds))
        _switching += 1
    try:
        yield
    finally:
        with _switching_lock:
            _switching -= 1
            if _switching == 0:
                sys.setswitchinterval(_usual_seconds)


def _after_fork_in_child() -> None:
    """The threads that were switching often are not in the child."""
    global _switching, _switching_lock
    _switching_lock = threading.Lock()
    if _switching:
        _switching = 0
        sys.setswitchinterval(_usual_seconds)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
