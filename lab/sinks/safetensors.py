"""Weights as published checkpoints are laid out: a folder a row, which `lab.models.pretrained_files` reads."""

from pathlib import Path

from lab.disk import files, store
from lab.models import pretrained, pretrained_files
from lab.sinks.table import Table, TrackedRun

TOKENIZER = "tokenizer.json"  # that a task on text keeps


def write(table: Table, place: Path) -> None:
    """Parameters at the last snapshot in float32, `row.json`, which says whose they are, and the tokenizer of a text.

    Raises:
      ValueError: no published checkpoint could hold the model of a training; nothing is written then.
    """
    for training in table.trainings:
        try:
            pretrained.format_for(training.dataset.lab.model)
        except ValueError as error:
            raise ValueError(f"--to=safetensors, {training.variant}: {error}") from None
    for training in table.trainings:
        work, model = training.dataset.lab.work, training.dataset.lab.model
        params_R, at = work.params(), {"step": work.snapshot_steps()[-1]}
        for row in training.rows:
            run = TrackedRun(training, row)
            folder = place / run.name
            pretrained_files.write(model, store.take_row(params_R, row), folder)
            files.write_json(folder / "row.json", {"variant": training.variant} | at | run.config)
            if (work.data / TOKENIZER).is_file():
                files.write_bytes(folder / TOKENIZER, files.read_bytes(work.data / TOKENIZER))
