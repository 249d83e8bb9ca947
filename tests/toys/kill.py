"""One training with a controller, killed again and again at moments drawn by a seeded generator, and what is left.

`python tests/toys/kill.py FOLDER KILLS STOPS SEED` trains a config over `Echo` in FOLDER/undisturbed in one go, and
in FOLDER/killed in KILLS lives that SIGKILL ends and STOPS lives that SIGTERM ends, shuffled, and a last one that runs
to the end. It prints its counts as JSON; what the lives said is in FOLDER/lives.log.

Every life is a fork of this process, which has imported everything and starts no backend. Of a life only its files and
its exit code are looked at.
"""

import contextlib
import gc
import json
import math
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import echo
import jax

from lab import tasks
from lab.configs import base
from lab.disk import store
from lab.disk.files import DamagedError, WorkdirError, steps
from lab.engine import train

DONE, STOPPED, REFUSED, BROKEN = 0, 3, 4, 5  # exit codes of a life
PATIENCE = 120  # seconds that any one wait may take
STEERED = base.controller(signal="entropy", least=-2.0, most=2.0, control_target=1.0, control_gain_p=0.5)
STEPS_A_LIFE = 9
USABLE = 0.85  # the share of the chunks that the lives before the last may use up
FOLDERS = ("", "metrics", "snapshots", "checkpoints")


def main(folder: Path, kills: int, stops: int, seed: int) -> dict:
    """Trains both; returns the counts of `Ledger`, and of what training itself took for damaged (`set_aside`)."""
    gc.freeze()  # all imports are inherited by every life: its garbage collector shall not walk, and so copy, them
    config = echo.config(steps=STEPS_A_LIFE * (kills + stops), eval_every=3, checkpoint_every=2, snapshots=10)
    config.controller = base.ConfigDict(STEERED)
    with Life(folder / "undisturbed", config) as model:
        model.wait_for_chunk()
        model.end(DONE)
    ledger, startup = Ledger(model.workdir), model.startup
    pace = (model.age() - startup) / len(ledger.chunks)  # seconds a chunk

    draw = random.Random(seed)
    kinds = ["starting"] * (kills // 5) + ["saving"] * (2 * kills // 5)
    kinds += ["any"] * (kills - len(kinds)) + ["stop"] * stops
    draw.shuffle(kinds)
    for i, kind in enumerate(kinds):
        room = max(0, USABLE * len(ledger.chunks) - ledger.n_safe)
        with Life(folder / "killed", config) as life:
            interrupt(life, kind, draw, startup, pace, min(room, 2 * room / (len(kinds) - i)))
        ledger.enter(life, kind)
        startup = life.startup or startup

    with Life(folder / "killed", config) as life:
        life.freeze_in_a_save(0)
        with Life(folder / "killed", config) as rival:
            rival.end(REFUSED)
        life.resume()
        life.end(DONE)
    ledger.enter(life, "last")
    set_aside = len([*(folder / "killed").rglob("damaged-*")])
    return ledger.counts | {"set_aside": set_aside}


def interrupt(life: "Life", kind: str, draw: random.Random, startup: float, pace: float, most: float) -> None:
    """Ends a life by a signal at a moment of its kind, when it has written about `most` chunks at most."""
    if kind == "starting":
        life.wait_seconds(draw.uniform(0, startup), most)
    else:
        life.wait_for_chunk()
        life.wait_seconds(draw.uniform(0, most * pace), most)
    if kind == "saving":
        life.freeze_in_a_save(draw.choice((0, draw.uniform(0, pace))))
    elif kind == "stop" and draw.random() < 0.5:
        life.wait(life.unfinished, nap=0)
    if kind == "stop":
        os.kill(life.pid, signal.SIGTERM)
        life.end(STOPPED)
    else:
        os.kill(life.pid, signal.SIGKILL)
        life.end(-signal.SIGKILL)


class Life:
    """A process that trains in a folder, and what it has written there; killed, at the latest, when its block ends."""

    def __init__(self, workdir: Path, config):
        self.workdir, self.code, self.startup = workdir, None, None
        self.chunks_before, self.unfinished_before = chunks(workdir), unfinished(workdir)
        self.born = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            live(workdir, config)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._ended(os.WNOHANG) is False:
            os.kill(self.pid, signal.SIGKILL)
            self._ended()

    def age(self) -> float:
        return time.monotonic() - self.born

    def chunks(self) -> set[str]:
        """Chunks that this life has written."""
        return {path for path, *_ in chunks(self.workdir) - self.chunks_before}

    def unfinished(self) -> set[str]:
        """What this life has begun to save and not finished."""
        return {path for path, *_ in unfinished(self.workdir) - self.unfinished_before}

    def wait(self, reached, nap: float = 0.004) -> None:
        """
        Raises:
          RuntimeError: the life ended before, or all this took too long.
        """
        limit = time.monotonic() + PATIENCE
        while not reached():
            if self._ended(os.WNOHANG) or time.monotonic() > limit:
                raise RuntimeError(f"{self.workdir.name}: waited in vain for a life (exit code {self.code})")
            time.sleep(nap)

    def wait_for_chunk(self) -> None:
        self.wait(self.chunks)
        self.startup = self.age()

    def wait_seconds(self, seconds: float, most_chunks: float = math.inf) -> None:
        """Waits that long, but for no more chunks than that."""
        limit = self.age() + seconds
        self.wait(lambda: self.age() > limit or len(self.chunks()) >= most_chunks)

    def freeze_in_a_save(self, seconds: float) -> None:
        """Halts the process where a save of its own is unfinished on disk, some `seconds` after that came up."""
        while True:
            self.wait(self.unfinished, nap=0)
            self.wait_seconds(seconds)
            os.kill(self.pid, signal.SIGSTOP)
            if self._ended(os.WUNTRACED):
                raise RuntimeError(f"{self.workdir.name}: a life ended by itself (exit code {self.code})")
            if self.unfinished():
                return
            self.resume()  # the save was faster
            seconds /= 2

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self, expected: int) -> None:
        """
        Raises:
          RuntimeError: the life ends with another exit code, or not at all.
        """
        limit = time.monotonic() + PATIENCE
        while not self._ended(os.WNOHANG) and time.monotonic() < limit:
            time.sleep(0.004)
        if self.code != expected:
            raise RuntimeError(f"{self.workdir.name}: a life ended with exit code {self.code}, not {expected}")

    def _ended(self, options: int = 0) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, options)
            if pid and not os.WIFSTOPPED(status):
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None


def live(workdir: Path, config) -> None:
    """The life of a forked process; does not return."""
    code = BROKEN
    try:
        with (workdir.parent / "lives.log").open("a") as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 2)
        jax.config.update("jax_compilation_cache_dir", str(workdir.parent / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        tasks.FAMILIES["echo"] = echo.Echo
        train.train(config, workdir)
        code = DONE
    except train.Interrupted:
        code = STOPPED
    except WorkdirError as error:
        print(error)
        code = REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Ledger:
    """What the lives left, held against the folder of a training that was never disturbed.

    Attributes:
      chunks: the step at which each chunk of that training ends, by the path of its file.
      n_safe: how many of them the newest checkpoint covers.
      counts: lives ended by SIGKILL (`kills`) and SIGTERM (`stops`). Kills that left something of their life unfinished
        (`saving`, and in which folders: `unfinished`), and kills before the life wrote a chunk (`starting`). Chunks
        written again (`redone`). Stops that left anything unsaved (`unsaved`). The newest checkpoints, and snapshots
        that they cover, that do not verify (`damaged`). Chunks and snapshots that a checkpoint covers and that are not
        there, and newest checkpoints older than the one before (`lost`).
    """

    def __init__(self, undisturbed: Path):
        self.chunks = {path: int(Path(path).stem) for path, *_ in chunks(undisturbed)}
        self.snapshots = steps(undisturbed / "snapshots")
        self.n_safe, self.newest, self.seen = 0, -1, set()
        names = ("kills", "stops", "saving", "starting", "redone", "unsaved", "damaged", "lost")
        self.counts = dict.fromkeys(names, 0) | {"unfinished": dict.fromkeys(FOLDERS, 0)}

    def enter(self, life: Life, kind: str) -> None:
        """Books a life that has ended."""
        counts, written, unfinished = self.counts, life.chunks(), life.unfinished()
        counts["redone"] += len(written & self.seen)
        self.seen |= written
        self._enter_saves(life.workdir)
        if kind == "stop":
            counts["stops"] += 1
            counts["unsaved"] += bool(unfinished) or max(self.chunks[path] for path in written) != self.newest
        elif kind != "last":
            counts["kills"] += 1
            counts["starting"] += not written
            counts["saving"] += bool(unfinished)
            for path in unfinished:
                counts["unfinished"][path.split("/")[0]] += 1

    def _enter_saves(self, workdir: Path) -> None:
        newest = newest_checkpoint(workdir)
        safe = {path for path, step in self.chunks.items() if step <= newest}
        due = {step for step in self.snapshots if step <= newest}
        self.counts["lost"] += (newest < self.newest) + len(safe - {path for path, *_ in chunks(workdir)})
        self.counts["lost"] += len(due - {*steps(workdir / "snapshots")})
        self.newest, self.n_safe = newest, len(safe)
        places = [f"checkpoints/{newest}"] * (newest >= 0) + [f"snapshots/{step}" for step in due]
        self.counts["damaged"] += sum(not is_whole(workdir / place) for place in places)


def is_whole(place: Path) -> bool:
    try:
        store.verify(place)
    except DamagedError:
        return False
    return True


def newest_checkpoint(workdir: Path) -> int:
    return max(steps(workdir / "checkpoints"), default=-1)


def chunks(workdir: Path) -> set[tuple]:
    return {mark for mark in files(workdir, "metrics", ".npz") if Path(mark[0]).stem.isdigit()}


def unfinished(workdir: Path) -> set[tuple]:
    """Saves of what no checkpoint holds yet: older ones under such names are being deleted."""
    newest = newest_checkpoint(workdir)
    marks = {mark for folder in FOLDERS for mark in files(workdir, folder, ".tmp")}
    return {mark for mark in marks if not (step := mark[0].split(".")[1]).isdigit() or int(step) > newest}


def files(workdir: Path, folder: str, suffix: str):
    """Path, inode and time of what a folder holds: whatever is written anew is another element."""
    with contextlib.suppress(FileNotFoundError), os.scandir(workdir / folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # it has another name since
                if entry.name.endswith(suffix):
                    stat = entry.stat()
                    yield f"{folder}/{entry.name}", stat.st_ino, stat.st_mtime_ns


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
