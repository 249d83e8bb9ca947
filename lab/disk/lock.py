"""One writer a folder: a lock that dies with its process, and a heartbeat for disks on which locks end at the machine.

`.lock` is locked by `flock`, which on some shared disks other machines do not see. So its holder also says in `.writer`
who it is, and writes there again every few seconds: a foreign holder that still does is respected, one that has stopped
is taken over from.
"""

import contextlib
import fcntl
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lab.disk import files
from lab.disk.files import DamagedError, SaveError, WorkdirError, reason

LOCK_TRIES, LOCK_SECONDS = 10, 0.1  # `status` holds a lock for an instant, to see whether it is held
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0  # a holder that has not written for so long has ended
LONG_STALE_SECONDS = 180.0  # so long that a shared disk's caches cannot hide a beat
WRITER = ".writer"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it is not there.

    Raises:
      WorkdirError: another process holds it, or took it over while this one was suspended.
      SaveError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise SaveError(f"{folder}: cannot be written to ({reason(error)})") from error
    with lock:
        for _ in range(LOCK_TRIES):
            if _flock(lock, fcntl.LOCK_EX):
                break
            time.sleep(LOCK_SECONDS)
        else:
            raise WorkdirError(f"{folder}: another process is at work here{_who(_read(folder))}")
        with _beating(folder):
            yield


def held(folder: Path) -> bool:
    """Whether a process holds the lock: it is shared for an instant, which no holder allows, and heartbeats count."""
    try:
        with (folder / ".lock").open() as lock:
            if not _flock(lock, fcntl.LOCK_SH):
                return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    holder = _read(folder)
    if holder is None or _is_here(holder):
        return False
    return heard(folder)


def heard(folder: Path) -> bool:
    """As `held`, by the heartbeat alone, without touching the lock; also for a minute after a holder was killed."""
    seconds = silence(folder)
    return seconds is not None and seconds < STALE_SECONDS


def silence(folder: Path) -> float | None:
    """Seconds since a holder's last heartbeat; None where there is none."""
    with contextlib.suppress(OSError):
        return max(time.time() - (folder / WRITER).stat().st_mtime, 0.0)
    return None


def _flock(lock, kind: int) -> bool:
    """Whether the lock was got; also where the disk knows no locks, and heartbeats alone decide."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _beating(folder: Path) -> Iterator[None]:
    """Says in `.writer` that this process is at work, until the end."""
    path = folder / WRITER
    us = {"host": platform.node(), "process": os.getpid(), "id": uuid.uuid4().hex}
    _wait_for_foreign(folder)
    ended, lost = threading.Event(), threading.Event()

    def is_ours() -> bool:
        return (_read(folder) or us)["id"] == us["id"]

    def beat(number: int) -> None:
        with contextlib.suppress(SaveError):  # a full disk ends the training, if it does, where it saves
            files.write_json(path, us | {"beat": number})

    def go_on():
        number = 0
        while not ended.wait(BEAT_SECONDS):
            if not is_ours():
                lost.set()
                return
            number += 1
            beat(number)

    beat(0)
    if not is_ours():
        raise WorkdirError(f"{folder}: another process is at work here{_who(_read(folder))}")
    heart = threading.Thread(target=go_on, daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        if is_ours():
            files.remove(path)
    if lost.is_set():
        raise WorkdirError(f"{folder}: taken over{_who(_read(folder))} while this process was suspended")


def _wait_for_foreign(folder: Path) -> None:
    """Returns once no other machine's process is at work: at once, or when its heartbeat has stopped for long enough.

    Beats are compared with each other, and their times with that of a file just touched: clocks of machines differ.
    """
    first = _read(folder)
    if first is None or _is_here(first):  # the lock tells of processes of this machine, and we hold it
        return
    with contextlib.suppress(OSError):
        os.utime(folder / ".lock")
        if (folder / ".lock").stat().st_mtime - (folder / WRITER).stat().st_mtime > LONG_STALE_SECONDS:
            return
    until = time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
        now = _read(folder)
        if now is None:
            return
        if now != first:
            raise WorkdirError(f"{folder}: another process is at work here{_who(now)}")
        time.sleep(min(1.0, BEAT_SECONDS / 2))


def _read(folder: Path) -> dict | None:
    """What `.writer` says; None where it is not there or unreadable."""
    try:
        said = files.read_json(folder / WRITER)
    except DamagedError:
        return None
    return said if said.keys() >= {"host", "process", "id"} else None


def _is_here(holder: dict) -> bool:
    return holder["host"] == platform.node()


def _who(holder: dict | None) -> str:
    return "" if holder is None else f" (process {holder['process']} on {holder['host']})"
