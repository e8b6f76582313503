"""Work on several threads at once, for tests."""

import threading


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
