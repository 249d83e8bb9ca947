"""Writes to disk in the background, while the devices compute."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Runs writes in a background thread, one after the other; the next `write` or the end raises what failed."""

    def __enter__(self):
        self.pool, self.writing = ThreadPoolExecutor(1), Future()
        self.writing.set_result(None)
        return self

    def write(self, function: Callable, *args) -> None:
        self.writing.result()
        self.writing = self.pool.submit(function, *args)

    def failure(self) -> Exception | None:
        """What went wrong so far."""
        return self.writing.exception() if self.writing.done() else None

    def __exit__(self, kind, *_):
        self.pool.shutdown()
        if kind is None:
            self.writing.result()
