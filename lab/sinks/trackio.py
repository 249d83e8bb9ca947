"""A project of trackio, in its own store on this machine (`TRACKIO_DIR`), a run a row."""

from pathlib import Path

import trackio

from lab.sinks.table import Table

QUIET = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}  # no dashboard, and not this machine's load


def write(table: Table, place: Path) -> None:
    """
    Raises:
      ValueError: there is such a project.
    """
    project = place.name
    try:
        trackio.Api().runs(project)
    except ValueError:  # there is none
        pass
    else:
        raise ValueError(f"trackio has a project {project!r} already, which would be mixed; name another --out")
    for run in table.runs():
        tracked = trackio.init(project, run.name, config=run.config, **QUIET)
        for step, numbers in run:
            tracked.log(numbers, step=step)
        tracked.finish()
    if (last := table.last()) is not None:
        tracked = trackio.init(project, "last", **QUIET)
        tracked.log({"last": trackio.Table(dataframe=last)})
        tracked.finish()
