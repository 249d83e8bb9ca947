"""One writer a folder: a lock that dies with its process."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from lab.disk.files import SaveError, WorkdirError, reason

LOCK_TRIES, LOCK_SECONDS = 10, 0.1  # `status` holds a lock for an instant, to see whether it is held


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it is not there.

    Raises:
      WorkdirError: another process holds it.
      SaveError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise SaveError(f"{folder}: cannot be written to ({reason(error)})") from error
    with lock:
        for _ in range(LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_SECONDS)
        else:
            raise WorkdirError(f"{folder}: another process is at work here")
        yield
