"""Metrics of a training on disk: one npz file a chunk, (n, R) per metric, named after the step at which it ends."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lab import schedule
from lab.disk import files
from lab.disk.files import DamagedError, WorkdirError, is_step, read_npz
from lab.disk.workdir import Workdir

TRAIN_METRICS = ("train_loss", "grad_norm")  # one value a step; all others one an evaluation
STEP_METRICS = (*TRAIN_METRICS, "controlled", "coefficient")  # of a training with a controller: what it held, by what


def train_metrics(config: Mapping) -> tuple[str, ...]:
    """Those that a training has a value of at every step."""
    return STEP_METRICS if "controller" in config else TRAIN_METRICS


def metric_files(folder: Path) -> list[Path]:
    """Chunks in order of their last step."""
    return sorted((path for path in folder.glob("*.npz") if is_step(path.stem)), key=lambda path: int(path.stem))


def forget_after(folder: Path, step: int) -> None:
    """Deletes the chunks that end after `step`: training is about to write them again."""
    for path in metric_files(folder):
        if int(path.stem) > step:
            path.unlink()


def read_chunk(path: Path, steps: range, evaluated: bool) -> dict[str, np.ndarray]:
    """One chunk's metrics.

    Args:
      steps: the training steps it should hold, to the one it is named after.
      evaluated: whether it should end with an evaluation.

    Raises:
      DamagedError: the file is missing or damaged, or is another chunk.
    """
    chunk = read_npz(path)
    held = [chunk[name].tolist() if name in chunk else [] for name in ("train_step", "step")]
    if held != [list(steps), [steps.stop] * evaluated]:
        raise DamagedError(f"{path}: holds other steps than its name says, it was renamed or copied here")
    return chunk


def read_chunks(work: Workdir) -> list[dict[str, np.ndarray]]:
    """The metrics of every chunk up to the newest, so that each step and each evaluation is there once.

    Raises:
      WorkdirError: no metrics yet.
      DamagedError: one is missing or damaged; the message says which steps.
    """
    chunks = schedule.chunks(work.config)
    _, evaluated, _ = schedule.boundaries(work.config)
    there = {int(path.stem) for path in metric_files(work.metrics)}
    reached = max(chunks.keys() & (there | {*files.steps(work.checkpoints)}), default=-1)
    if reached < 0:
        raise WorkdirError(f"{work.path}: no metrics yet")
    due = {end: steps for end, steps in chunks.items() if end <= reached}
    gap = [f"{end}.npz ({_text(due[end])})" for end in due if end not in there]
    if gap:
        raise DamagedError(f"{work.metrics}: missing {', '.join(gap)}; running the train command again repairs it")
    if there - due.keys():
        raise DamagedError(f"{work.metrics / str(min(there - due.keys()))}.npz: no chunk of this training ends there")
    return [read_chunk(work.metrics / f"{end}.npz", steps, end in evaluated) for end, steps in due.items()]


def _text(steps: range) -> str:
    return f"steps {steps.start} to {steps.stop}" if steps else f"the evaluation at {steps.stop}"
