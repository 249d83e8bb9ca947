"""Is everything in a training's folder still what was written?"""

from lab.engine import store, table
from lab.engine.workdir import Workdir, WorkdirError


def damages(work: Workdir) -> list[str]:
    """One line for every file or folder that is damaged; empty if all is whole.

    Checkpoints and snapshots are compared with their manifests, metrics and measurements with the checksums that
    every npz member carries, config and grid by reading them.
    """
    checks = [(work.read_json, name) for name in ("config.json", "grid.json")]
    for folder in (work.checkpoints, work.snapshots):
        checks += [(store.verify, folder / str(step)) for step in store.steps(folder)]
    checks += [(table.read_npz, path) for path in table.metric_files(work.metrics)]
    checks += [(table.read_npz, path) for path in sorted(work.analysis.glob("*.npz"))]
    checks += [(work.read_json, f"analysis/{path.name}") for path in sorted(work.analysis.glob("*.json"))]

    found = []
    for check, subject in checks:
        try:
            check(subject)
        except (store.DamagedError, WorkdirError) as error:
            found.append(str(error))
    return found
