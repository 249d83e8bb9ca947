"""Runs of Weights & Biases, a row each, kept offline until `wandb sync` uploads them."""

from pathlib import Path

import wandb

from lab.sinks.table import Table


def write(table: Table, place: Path) -> None:
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, save_code=False, disable_git=True)
    offline = {"project": table.name, "mode": "offline", "dir": str(place), "settings": settings}
    offline["reinit"] = "create_new"  # a run that this process has begun goes on
    for run in table.runs():
        with wandb.init(name=run.name, config=run.config, **offline) as tracked:
            for step, numbers in run:
                tracked.log(numbers, step=step)
    if (last := table.last()) is not None:
        with wandb.init(name="last", **offline) as tracked:
            tracked.log({"last": wandb.Table(dataframe=last)})
