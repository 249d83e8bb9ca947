"""Several processes, joined by jax.distributed on loopback: they train, save, are killed and resume as one."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import config as configs
from lab.disk import files, store
from lab.disk.load import load
from lab.disk.workdir import Workdir
from lab.engine import train

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

STEPS = 120
CONFIG = Path(__file__).parents[1] / "toys/echo_config.py"


@pytest.fixture(scope="module")
def config(echo):
    return configs.variants(echo.config(steps=STEPS, variants={"plain": {}}))["plain"]


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    """What one process makes of it."""
    return train.train(config, tmp_path_factory.mktemp("reference") / "w")


class Group:
    """Two processes of two devices each, training together."""

    def __init__(self, workdir):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.workdir, self.log = workdir / "plain", (workdir.parent / "log").open("a+")
        command = [sys.executable, "-m", "lab", "train", f"--config={CONFIG}", f"--config.steps={STEPS}"]
        command += [f"--workdir={workdir}", f"--coordinator=127.0.0.1:{port}", "--processes=2"]
        self.processes = [
            subprocess.Popen([*command, f"--process={i}"], stdout=self.log, stderr=self.log) for i in range(2)
        ]

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def wait_for_checkpoint(self, after, seconds=180):
        """Until a checkpoint newer than `after` is on disk."""
        until = time.monotonic() + seconds
        while max(files.steps(self.workdir / "checkpoints"), default=-1) <= after:
            assert all(process.poll() is None for process in self.processes), self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.005)

    def signal(self, number):
        for process in self.processes:
            process.send_signal(number)

    def end(self, seconds=180):
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            self.signal(signal.SIGKILL)
            self.log.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_processes_continue_together_to_the_same_bytes_or_one_of_them_alone(
    echo, config, reference, tmp_path, number
):
    """Three rows: the first process holds two of them, the second one and padding.

    Asked to stop, they train to the end the next time; killed, they are killed again, and one goes on, which has two
    devices.
    """
    workdir = tmp_path / "w"
    group = Group(workdir)
    group.wait_for_checkpoint(after=6)
    group.signal(number)
    ended = group.end()
    assert ended == ([-signal.SIGKILL] * 2 if number == signal.SIGKILL else [0, 0])
    reached = files.steps(workdir / "plain" / "checkpoints")[-1]
    saved = store.verify(workdir / "plain" / "checkpoints" / str(reached))
    assert sorted(saved["parts"]) == ["0", "2"]

    group = Group(workdir)
    if number == signal.SIGTERM:
        assert group.end() == [0, 0]
        assert len(Workdir(workdir / "plain").read_json("config.json")["devices"]) == 4
    else:
        group.wait_for_checkpoint(after=reached)
        group.signal(signal.SIGKILL)
        assert group.end() == [-signal.SIGKILL] * 2
        train.train(config, workdir / "plain")
    assert echo.digests(workdir / "plain") == echo.digests(reference)
    dataset = load(workdir)
    assert dataset.sizes["train_step"] == STEPS and dataset.sizes["learning_rate"] == 3


def test_what_stops_the_first_process_stops_all_in_a_line(tmp_path):
    """Here the folder belongs to another training's process, which only the first one sees."""
    (tmp_path / "w" / "plain").mkdir(parents=True)
    with (tmp_path / "w" / "plain" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        group = Group(tmp_path / "w")
        ended = [process.wait(90) for process in group.processes]
    said = group.said()
    assert ended == [2, 2], said
    assert said.count("another process is at work here") == said.count("another process of this training stopped") == 1
    assert "Traceback" not in said


@pytest.mark.long  # JAX notices after 100 seconds
def test_process_whose_partner_died_does_not_train_on_alone(tmp_path):
    group = Group(tmp_path / "w")
    group.wait_for_checkpoint(after=6)
    os.kill(group.processes[1].pid, signal.SIGKILL)
    first, second = group.end()
    assert second == -signal.SIGKILL and first != 0
    reached = files.steps(tmp_path / "w" / "plain" / "checkpoints")[-1]
    store.verify(tmp_path / "w" / "plain" / "checkpoints" / str(reached))
    assert reached < STEPS
