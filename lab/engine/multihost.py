"""Agreement between the processes of one training: what the first one does, and what all agree on."""

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
    """Whether this process speaks and writes for all."""
    return jax.process_index() == 0


def on_first_process(function: Callable[[], int]) -> int:
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
    raise_everywhere(failure)
    return max_over_processes(value)


def raise_everywhere(failure: Exception | None) -> None:
    """Raises in every process if there is a failure in one."""
    if max_over_processes(failure is not None):
        raise failure or WorkdirError("another process of this training stopped, and says why")


def max_over_processes(value: int) -> int:
    """The largest of the processes' values, for all of them; waits for all."""
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
