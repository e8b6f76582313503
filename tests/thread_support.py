"""Work on several threads at once, for tests."""

import threading
from contextlib import contextmanager


def in_threads(functions, seconds=60):
    """Runs functions at once; raises what one of them raised."""
    raised = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "a thread sleeps for ever"
    if raised:
        raise raised[0]


@contextmanager
def held_elsewhere(lock):
    """Another thread holds a lock while the block runs."""
    holding, release = threading.Event(), threading.Event()

    def hold():
        with lock:
            holding.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert holding.wait(30)
        yield
    finally:
        release.set()
        thread.join()
