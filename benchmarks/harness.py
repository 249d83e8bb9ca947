"""Ways of training timed against each other: each in its own process, all in one run, turn by turn.

Machines drift and other programs interfere, so no two ways are compared by numbers taken at different times: every
round times every way once, a ratio is taken within a round, and what is reported is its median and quartiles over the
rounds. A process which is not being timed waits on its pipe and takes no CPU.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from workload import MOST_STEPS, Workload, cores

from lab.cli.arguments import positive

WORKER = Path(__file__).with_name("worker.py")
QUIET = 0.05  # share of the machine that other programs may take, if its times are to mean anything


class Failed(Exception):
    """A way cannot run here; the message says why."""


class Worker:
    """A process that is told once what it trains, and then how long; see `worker.py`."""

    def __init__(self, program: Path, told: Mapping, environment: Mapping[str, str], folder: Path | None = None):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, cwd=folder,  # it shares the GPU
        )  # fmt: skip
        self.send(told)

    def send(self, message: Mapping) -> None:
        with contextlib.suppress(BrokenPipeError):  # its end is heard when the answer is missing
            print(json.dumps(message), file=self.process.stdin, flush=True)

    def receive(self) -> dict:
        """Raises Failed if it gave up or is gone."""
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip() or "it wrote nothing").splitlines()[-1]
            raise Failed(f"the process ended with code {self.process.wait()}: {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


class Team:
    """Processes that train the same side by side, usually one.

    Attributes:
      facts, loss: of the first process, see `worker.py`; the loss after the last timing.
      steps: of one timing.
      disturbance: of every timing, the share of the machine's cores that other programs took meanwhile.
    """

    def __init__(self, workers: Sequence[Worker]):
        self.workers = workers
        self.steps = 1
        self.disturbance = []

    def wait(self) -> None:
        """Until all are ready."""
        self.facts, *_ = [worker.receive() for worker in self.workers]

    def ask(self, message: Mapping) -> list[dict]:
        for worker in self.workers:
            worker.send(message)
        return [worker.receive() for worker in self.workers]

    def rate(self) -> float:
        """Row-steps a second, timed once."""
        busy_before = busy_seconds()
        answers = self.ask({"steps": self.steps})
        others = busy_seconds() - busy_before - sum(answer["cpu_seconds"] for answer in answers)
        seconds = max(answer["seconds"] for answer in answers)
        self.disturbance.append(max(0.0, others) / (seconds * os.cpu_count()))
        self.loss = answers[0]["loss"]
        return self.steps * self.facts["n_rows"] * len(self.workers) / seconds

    def settle(self, seconds: float) -> None:
        """Warms up, and finds the number of steps that takes about so long."""
        self.steps = chunk = self.facts["chunk"]
        took = max(answer["seconds"] for answer in self.ask({"steps": chunk}))
        while took < seconds / 3 and self.steps < MOST_STEPS:
            self.steps = min(
                MOST_STEPS, chunk * max(2 * self.steps // chunk, int(self.steps / chunk * seconds / took / 2))
            )
            took = max(answer["seconds"] for answer in self.ask({"steps": self.steps}))
        self.steps = min(MOST_STEPS, chunk * max(1, round(self.steps / chunk * seconds / took)))


def busy_seconds() -> float:
    """Time that all cores together have not been idle since the machine started; 0 where Linux does not say."""
    try:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """CPU time of all processes that this one has started and that are gone."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Disturbance:
    """While it is entered: `share` of the machine's cores that neither this process nor its children took."""

    def _read(self):
        own = time.process_time() + children_seconds()
        return time.perf_counter(), busy_seconds() - own

    def __enter__(self):
        self.before = self._read()
        return self

    def __exit__(self, *error):
        seconds, others = np.subtract(self._read(), self.before)
        self.share = max(0.0, float(others)) / (float(seconds) * os.cpu_count())


@contextlib.contextmanager
def started(workloads: Mapping[str, Sequence[Workload]]) -> Iterator[tuple[dict[str, Team], dict[str, str]]]:
    """Starts a team for each name, all at once; see `ready`."""
    with ready({name: Team(list(map(_start, workloads[name]))) for name in workloads}) as outcome:
        yield outcome


def _start(workload: Workload) -> Worker:
    on_cpu = workload.accelerator == "cpu" or workload.way not in ("grid", "lone")  # PyTorch's draw their data with JAX
    return Worker(WORKER, dataclasses.asdict(workload), os.environ | ({"JAX_PLATFORMS": "cpu"} if on_cpu else {}))


@contextlib.contextmanager
def ready(everyone: Mapping[str, Team]) -> Iterator[tuple[dict[str, Team], dict[str, str]]]:
    """Those that are ready, and why the others are not. Ends them all."""
    found, failures = {}, {}
    try:
        for name, team in everyone.items():
            try:
                team.wait()
                found[name] = team
            except Failed as error:
                failures[name] = str(error)
        yield found, failures
    finally:
        for team in everyone.values():
            for worker in team.workers:
                worker.close()


class Parser(argparse.ArgumentParser):
    """argparse with `--preset`, where there are any, and one line for a mistake."""

    def __init__(self, description: str, presets: Collection[str] = ()):
        super().__init__(description=description.splitlines()[0], allow_abbrev=False)
        if presets:
            self.add_argument("--preset", choices=presets, default="cpu", help="where and how much (default: cpu)")

    def add_json(self) -> None:
        self.add_argument("--json", type=_writable, help="file for every number")

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")

    def use_jax(self, accelerator: str) -> None:
        """JAX on the CPU cores, as the command line has it, or on a GPU; ends the program where there is none."""
        import jax

        if accelerator == "cpu":
            jax.config.update("jax_platforms", "cpu")
            with contextlib.suppress(RuntimeError):  # it has begun
                jax.config.update("jax_num_cpu_devices", cores())
        elif jax.default_backend() != "gpu":
            self.error("preset gpu: JAX sees no GPU: pip install 'gammalab[cuda]'")


def positives(text: str) -> tuple[int, ...]:
    """For argparse: `1,4,16`."""
    return tuple(map(positive(int), text.split(",")))


def _writable(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: a file in a folder that exists")
    return path


def machine(packages: Sequence[str]) -> dict[str, object]:
    """What numbers were taken on, which is printed; packages that are not there are left out."""
    found = {"platform": platform.platform(), "cores": cores(), "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def rounds(teams: Mapping[str, Team], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Row-steps a second of every team in every round, `seconds` each; every round begins with another team.

    Every round is printed as it ends, among the errors, so that a run that is cut short has said something.
    """
    for team in teams.values():
        team.settle(seconds)
    names = list(teams)
    rates = {name: [] for name in names}
    for i in range(repeats):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            rates[name].append(teams[name].rate())
        said = ", ".join(f"{_label(name)} {rates[name][-1]:.4g}" for name in names)
        print(f"round {i + 1} of {repeats}: {said}", file=sys.stderr, flush=True)
    return rates


def _label(name: str | tuple) -> str:
    return name if isinstance(name, str) else " ".join(map(str, name))


def quartiles(values) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    return tuple(float(value) for value in np.quantile(np.asarray(values), (0.25, 0.5, 0.75)))
