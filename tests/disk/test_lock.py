"""One writer a folder: on one machine by its lock, across machines by heartbeats."""

import fcntl
import os
import threading
import time

import pytest

from lab.disk import files, lock
from lab.disk.files import SaveError, WorkdirError
from lab.disk.lock import WRITER, held, locked

OTHER = {"host": "another-machine", "process": 7, "id": "theirs", "beat": 3}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Seconds in place of minutes."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.4)
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.01)


def write(folder, **changes):
    files.write_json(folder / WRITER, OTHER | changes)


@pytest.fixture
def beating(tmp_path):
    """A foreign process that is at work, as a shared disk without shared locks shows it: by its heartbeat alone."""
    ended = threading.Event()

    def beat():
        number = 0
        while not ended.wait(0.02):
            write(tmp_path, beat=(number := number + 1))

    (tmp_path / ".lock").touch()
    write(tmp_path)
    heart = threading.Thread(target=beat)
    heart.start()
    yield tmp_path
    ended.set()
    heart.join()


def test_holder_says_who_it_is_beats_and_leaves_nothing(tmp_path):
    folder = tmp_path / "new"
    with locked(folder):
        first = files.read_json(folder / WRITER)
        assert first["process"] == os.getpid() and held(folder)
        time.sleep(0.3)
        assert files.read_json(folder / WRITER)["beat"] > first["beat"]
    assert not held(folder) and [path.name for path in folder.iterdir()] == [".lock"]


def test_second_process_of_this_machine_is_refused_by_the_lock_and_told_who(tmp_path):
    with (tmp_path / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        files.write_json(tmp_path / WRITER, lock_of_this_machine(tmp_path))
        assert held(tmp_path)
        with pytest.raises(WorkdirError, match=r"another process is at work here \(process 12 on "), locked(tmp_path):
            pass


def lock_of_this_machine(tmp_path):
    with locked(tmp_path / "elsewhere"):
        return files.read_json(tmp_path / "elsewhere" / WRITER) | {"process": 12}


def test_live_foreign_heartbeat_is_refused_and_goes_on(beating):
    assert held(beating)
    with pytest.raises(WorkdirError, match=r"at work here \(process 7 on another-machine\)"), locked(beating):
        pass
    assert files.read_json(beating / WRITER)["id"] == "theirs"


@pytest.mark.parametrize("age", [0, 3600])
def test_stale_foreign_heartbeat_is_taken_over(tmp_path, age):
    """At once where it is old by the disk's own clock, else when it was seen not to beat."""
    write(tmp_path)
    then = time.time() - age
    os.utime(tmp_path / WRITER, (then, then))
    (tmp_path / ".lock").touch()
    assert held(tmp_path) == (age == 0)
    begun = time.monotonic()
    with locked(tmp_path):
        assert files.read_json(tmp_path / WRITER)["process"] == os.getpid()
    assert (time.monotonic() - begun >= 0.4) == (age == 0)


def test_what_a_killed_process_of_this_machine_left_is_taken_over_at_once(tmp_path):
    files.write_json(tmp_path / WRITER, lock_of_this_machine(tmp_path))
    assert not held(tmp_path)
    begun = time.monotonic()
    with locked(tmp_path):
        pass
    assert time.monotonic() - begun < 0.4


@pytest.mark.parametrize("content", [b"", b"{}", b'{"host": "x"}', b"\xff"])
def test_heartbeat_that_cannot_be_read_stops_nobody(tmp_path, content):
    (tmp_path / WRITER).write_bytes(content)
    with locked(tmp_path):
        assert files.read_json(tmp_path / WRITER)["process"] == os.getpid()


def test_holder_that_was_taken_over_while_it_slept_is_told_and_leaves_the_others_heartbeat(tmp_path):
    def sleep():
        with locked(tmp_path):
            write(tmp_path)
            time.sleep(0.3)

    with pytest.raises(WorkdirError, match=r"taken over \(process 7 on another-machine\)"):
        sleep()
    assert files.read_json(tmp_path / WRITER)["id"] == "theirs"


def test_disk_without_locks_is_guarded_by_heartbeats_alone(beating, tmp_path_factory, monkeypatch):
    def unknown(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(WorkdirError, match="at work here"), locked(beating):
        pass
    with locked(tmp_path_factory.mktemp("free")):
        pass


def test_full_disk_does_not_forbid_to_look_whether_there_is_anything_to_do(tmp_path, monkeypatch):
    def full(path, value):
        raise SaveError(f"{path}: could not be written (No space left on device)")

    monkeypatch.setattr(files, "write_json", full)
    with locked(tmp_path):
        assert held(tmp_path)
