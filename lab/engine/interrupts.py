"""SIGTERM and SIGINT as requests to save and stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_flag(say: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Gives a function that returns the signal that has asked to stop since, 0 where none has.

    A second SIGINT raises KeyboardInterrupt. Only in the main thread: elsewhere signals do what they did before.

    Args:
      say: is told in a line that the first SIGINT was heard.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def ask(number, frame):
        if number == signal.SIGINT:
            if signal.SIGINT in asked:
                signal.default_int_handler(number, frame)
            say("stopping: this chunk of steps is finished and saved first; a second interruption ends at once")
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield lambda: int(asked[-1]) if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
