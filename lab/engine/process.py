"""A training's processes: what the first one does, what all agree on, the lock, the wish to stop, writing behind."""

import contextlib
import fcntl
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from lab.engine.files import SaveError, WorkdirError, reason

LEAST = -(2**31)  # of an int32
LOCK_TRIES, LOCK_SECONDS = 10, 0.1  # `status` holds a lock for an instant, to see whether it is held


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return jax.process_index() == 0


def by_first(function: Callable[[], int]) -> int:
    """What `function` gives in the first process, for all of them.

    Raises:
      Exception: what it raises, in the first process; WorkdirError in the others, so that none waits for the rest.
    """
    value, failure = LEAST, None
    if is_first():
        try:
            value = int(function())
        except Exception as error:
            failure = error
    end_together(failure)
    return agreed(value)


def end_together(failure: Exception | None) -> None:
    """Raises in every process if there is a failure in one."""
    if agreed(failure is not None):
        raise failure or WorkdirError("another process of this training stopped, and says why")


def agreed(value: int) -> int:
    """The largest of the processes' values, for all of them; waits for all."""
    if jax.process_count() == 1:
        return int(value)
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


class Writer:
    """Writes in the background, one thing after the other; what goes wrong is raised by the next `write` or the end."""

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


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """One process a folder, or one group of them; the lock dies with its process.

    Raises:
      WorkdirError: another process holds it.
      SaveError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        by_first(lambda: _lock(folder, stack))
        yield


def _lock(folder: Path, stack: contextlib.ExitStack) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((folder / ".lock").open("a"))
    except OSError as error:
        raise SaveError(f"{folder}: cannot be written to ({reason(error)})") from error
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return 0
        time.sleep(LOCK_SECONDS)
    raise WorkdirError(f"{folder}: another process is at work here")


@contextlib.contextmanager
def polite_stop() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether SIGTERM has come since."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
