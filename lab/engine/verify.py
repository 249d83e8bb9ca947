"""Is everything in a training's folder still what was written?"""

from lab.engine import store, table
from lab.engine.workdir import Workdir, WorkdirError


def damages(work: Workdir) -> list[str]:
    """One line for every file or folder that is damaged; empty if all is whole.

    Checkpoints and snapshots are compared with their manifests, metrics and measurements with the checksums that
    every npz member carries, config and grid by reading them.
    """
    checks = [lambda: work.config, lambda: work.grid]
    for folder in (work.checkpoints, work.snapshots):
        checks += [lambda place=folder / str(step): store.verify(place) for step in store.steps(folder)]
    for path in (*table.metric_files(work.metrics), *sorted(work.analysis.glob("*.npz"))):
        checks.append(lambda path=path: table.read_npz(path))
    checks += [
        lambda path=path: work.read_json(f"analysis/{path.name}") for path in sorted(work.analysis.glob("*.json"))
    ]

    found = []
    for check in checks:
        try:
            check()
        except (store.DamagedError, WorkdirError) as error:
            found.append(str(error))
    return found
