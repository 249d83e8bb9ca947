"""Agreement between the processes of one training: first-process calls, maxima and errors shared by all."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from lab.disk.files import WorkdirError
from lab.disk.lock import locked

LEAST = -(2**31)  # of an int32


def is_first() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return jax.process_index() == 0


def on_first_process(function: Callable[[], int]) -> int:
    """Calls `function` in the first process and returns its result in all of them.

    Raises:
      Exception: in the first process, whatever `function` raises; in the others a WorkdirError, so that none waits.
    """
    value, failure = LEAST, None
    if is_first():
        try:
            value = int(function())
        except Exception as error:
            failure = error
    raise_everywhere(failure)
    return max_over_processes(value)


def raise_everywhere(failure: Exception | None) -> None:
    """Raises in every process if there is a failure in one."""
    if max_over_processes(failure is not None):
        raise failure or WorkdirError("another process of this training stopped, and says why")


def max_over_processes(value: int) -> int:
    """The largest value of any process, returned in all of them; waits for all."""
    if jax.process_count() == 1:
        return int(value)
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """One process a folder, or one group of them; the lock dies with its process.

    Raises:
      WorkdirError: another process holds it.
      SaveError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        on_first_process(lambda: stack.enter_context(locked(folder)) or 0)
        yield
