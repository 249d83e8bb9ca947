"""TensorBoard's event files, a folder a row, with its hyperparameters; written by tensorboardX, without TensorFlow."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from lab.sinks.table import Table


def write(table: Table, place: Path) -> None:
    for run in table.runs():
        with SummaryWriter(str(place / run.name)) as writer:
            metrics = dict.fromkeys(run.training.series, 0.0)  # only their names are written
            for part in hparams(run.hparams, metrics):
                writer.file_writer.add_summary(part)
            writer.add_text("config", f"```\n{json.dumps(run.config, indent=1)}\n```")
            for step, numbers in run:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, step)
    if (last := table.last()) is not None:
        with SummaryWriter(str(place)) as writer:
            writer.add_text("last", f"```\n{last.to_csv(index=False)}```")
