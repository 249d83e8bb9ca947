"""Launches trainings as cluster jobs through submitit, one job a variant, and follows them until all have ended.

A job that is preempted or runs out of time saves, is queued again and continues to the same bytes; so does a job that
was killed, when it is launched again.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_collections

from lab import config as configs
from lab.cluster import status
from lab.cluster.job import TrainingJob
from lab.cluster.status import Progress
from lab.disk import files
from lab.disk.workdir import Workdir
from lab.engine import init_from
from lab.engine.prepare import prepare_variants

RESOURCES = {  # ours -> submitit's
    "time": "timeout_min",
    "gpus": "gpus_per_node",
    "partition": "slurm_partition",
    "cpus": "cpus_per_task",
    "memory": "mem_gb",
    "nodes": "nodes",
}
LOCAL_RESOURCES = ("gpus",)
ENDLESS_MINUTES = 365 * 24 * 60  # submitit kills a local job after two minutes unless told otherwise
MOST_TIMEOUTS = 100  # each continues where the last one saved; a job that never gets to save must end some day
SECONDS_BETWEEN_LOOKS = {"slurm": 30.0, "local": 1.0}
UNENDED = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}  # states of SLURM's


@dataclasses.dataclass(frozen=True)
class Launched:
    """What `launch` did.

    Attributes:
      lines: every variant, as it was right after the launch.
      jobs: submitit's job of every variant that has one.
    """

    cluster: str
    root: Path
    lines: Mapping[str, Progress]
    jobs: Mapping


def launch(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    cluster: str,
    resources: Mapping,
    config_file: str | None,
    set_up: Callable[[], None],
) -> Launched:
    """Submits a job for every variant that is not trained, nor being trained, nor queued on the cluster already.

    Every variant is checked before the first job is submitted. submitit keeps its files and logs in `workdir/jobs`. A
    variant that starts from another one's weights (`config.start`) gets its job when launched after that is trained.

    Args:
      cluster: `slurm`, or `local` for processes of this machine, all at once.
      resources: of each job, any of `RESOURCES`: `time` in minutes (slurm needs it), `memory` in GB, `gpus` on
        each of its `nodes`, ...
      config_file, set_up: see `TrainingJob`.

    Raises:
      ValueError: an impossible config or resource, no submitit, or a cluster that refuses.
      WorkdirError: a folder holds another training.
    """
    root = Path(workdir).absolute()
    prepared = prepare_variants(config, root)
    for name, training in prepared.items():
        if resources.get("nodes", 1) > 1 and len(training.parts) > 1 and not training.trained():
            raise ValueError(f"--nodes={resources['nodes']}: to variant {name} rows are added, by one process alone")
    executor = _executor(root, cluster, resources)
    jobs = {name: job for name, job in _queued(root).items() if name in prepared} if cluster == "slurm" else {}
    lines = {}
    for name, training in prepared.items():
        variant = training.config
        line = status.read(name, Workdir(training.work.path))
        line = dataclasses.replace(line, steps=variant.steps, rows=len(training.grid))
        if line.state == "trained" and not training.trained():
            line = dataclasses.replace(line, state="stopped")  # rows are to be added
        waits = init_from.waits_for(training.work.path, variant)
        lines[name] = _spared(line, jobs.get(name), waits) or dataclasses.replace(line, state="queued")
        if name not in jobs and lines[name].state == "queued":
            job = TrainingJob(configs.to_json(variant), str(root / name), config_file, set_up)
            jobs[name] = _submit(executor, f"{Path(variant.study).stem}-{name}", job)
            _remember(root, line, cluster, jobs[name])
    return Launched(cluster, root, lines, jobs)


def _spared(line: Progress, job, waits: str) -> Progress | None:
    """The line of a variant that needs no job, has one already, or cannot start yet; None for all others."""
    if line.state == "trained":
        return dataclasses.replace(line, note="trained already, not launched")
    if job is not None:
        return dataclasses.replace(line, state="queued", note=f"job {job.job_id} has it, not launched again")
    if line.state == "running":
        return dataclasses.replace(line, note="another process trains it, not launched")
    if waits and not line.step:
        return dataclasses.replace(line, note=f"{waits}, not launched: launch that first, then this again")
    return None


def follow(launched: Launched) -> Iterator[list[Progress]]:
    """All variants' lines whenever one has changed, until every job has ended: `trained` or `failed`."""
    ended: dict[str, Progress] = {}
    shown = [*launched.lines.values()]
    while True:
        for name, job in launched.jobs.items():
            if name not in ended and job.done():
                ended[name] = _outcome(launched.lines[name], Workdir(launched.root / name), job)
        waiting = {
            name: _look(launched.lines[name], Workdir(launched.root / name), job)
            for name, job in launched.jobs.items()
            if name not in ended
        }
        lines = [
            dataclasses.replace((ended | waiting).get(name, line), steps=line.steps, rows=line.rows)
            for name, line in launched.lines.items()
        ]
        if lines != shown:
            yield lines
            shown = lines
        if not waiting:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS[launched.cluster])


def _look(asked: Progress, work: Workdir, job) -> Progress:
    """A job that has not ended."""
    running = job.state in ("RUNNING", "COMPLETING")
    line = _read(asked, work, running)
    return line if line.state == "trained" else dataclasses.replace(line, state="running" if running else "queued")


def _outcome(asked: Progress, work: Workdir, job) -> Progress:
    """A job that has ended. What it was to leave decides, not what it said."""
    error = job.exception()
    line = _read(asked, work, running=False)
    if line.state == "trained":
        return line
    trace = str(error).rpartition('\n  File "')[2] if type(error).__name__ == "FailedJobError" else ""
    told = [line for line in trace.splitlines()[1:] if line[:1].strip()]  # below the last frame, and not indented
    reason = told[0] if told else f"it was killed (submitit calls it {job.state})"
    return dataclasses.replace(line, state="failed", note=f"{reason}; log: {job.paths.stderr.resolve()}")


def _read(asked: Progress, work: Workdir, running: bool) -> Progress:
    """The line of a training that has a job: not trained before all rows that were launched are there."""
    line = status.read(asked.variant, work, lambda path: running)
    behind = line.state == "trained" and line.rows < asked.rows  # those to be added have no folder yet
    return dataclasses.replace(line, state="stopped") if behind else line


def _submitit():
    try:
        import submitit
    except ImportError:
        raise ValueError("launching jobs needs submitit: pip install 'gammalab[cluster]'") from None
    return submitit


def _executor(root: Path, cluster: str, resources: Mapping):
    submitit = _submitit()
    accepted = LOCAL_RESOURCES if cluster == "local" else tuple(RESOURCES)
    for name in resources:
        if name not in accepted:
            raise ValueError(f"--{name}: unknown to --cluster={cluster}, which takes {', '.join(accepted)}")
    if cluster == "slurm" and "time" not in resources:
        raise ValueError("--time=MINUTES is missing: of one job, which is saved and queued again when it needs more")
    try:
        executor = submitit.AutoExecutor(_jobs_folder(root), cluster, slurm_max_num_timeout=MOST_TIMEOUTS)
    except RuntimeError as error:  # no srun here
        raise ValueError(f"--cluster={cluster}: {error}") from error
    resources = dict(resources) if cluster == "slurm" else {"time": ENDLESS_MINUTES, **resources}
    executor.update_parameters(**{RESOURCES[name]: value for name, value in resources.items()})
    if "nodes" in resources:  # one that fails would leave the others waiting for it
        executor.update_parameters(tasks_per_node=1, slurm_srun_args=["--kill-on-bad-exit=1"])
    return executor


def _jobs_folder(root: Path) -> Path:
    """The folder of the jobs, as submitit is given it: `workdir/jobs`.

    submitit and SLURM read `%j` and the like in a path as patterns. A folder with such a name is reached through a link
    beside the first part of its path that has a `%`.
    """
    folder = root / status.JOBS
    plain = [part for part in (folder, *folder.parents) if "%" not in str(part)]
    if folder in plain:
        return folder
    link = plain[0] / f".lab-jobs-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    files.link(link, folder)
    return link


def _submit(executor, name: str, job: TrainingJob):
    executor.update_parameters(name=name)
    try:
        return executor.submit(job)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{name}: the cluster refused the job: {said}") from error


def _remember(root: Path, line: Progress, cluster: str, job) -> None:
    note = {"cluster": cluster, "job": job.job_id, "tasks": job.num_tasks, "steps": line.steps, "rows": line.rows}
    files.write_json(root / status.JOBS / status.LAUNCHED, status.launched(root) | {line.variant: note})


def _queued(root: Path) -> dict:
    """The jobs of earlier launches that SLURM has still to end, by variant."""
    folder, submitted = _jobs_folder(root), _submitit().SlurmJob
    notes = {name: note for name, note in status.launched(root).items() if note["cluster"] == "slurm"}
    jobs = {name: submitted(folder, note["job"], range(note["tasks"])) for name, note in notes.items()}
    return {name: job for name, job in jobs.items() if job.get_info(mode="force").get("State") in UNENDED}
