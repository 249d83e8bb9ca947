"""gammalab: how do initialization scale and weight decay decide what a network learns?

`lab.Training` (or `lab.train`) trains a grid of a model on a task; `lab.load(workdir)` opens what a training left, and
`lab.extend`, `lab.analyze`, `lab.report`, `lab.plan` are the stages beside. `lab.task` and `lab.examples` make tasks,
`lab.claim` claims. `lab.grid` makes rows, `lab.models`, `lab.tasks` and `lab.init` are the pieces of a training, and
what is in `lab.analysis` measures any model. All are imported on demand, so that `import lab` stays instant.
"""

__version__ = "0.3.0"

_FACE = {  # name -> where it is
    "Training": "lab.training",
    "analyze": "lab.training",
    "claim": "lab.training",
    "extend": "lab.training",
    "plan": "lab.training",
    "train": "lab.training",
    "examples": "lab.configure",
    "task": "lab.configure",
    "Batch": "lab.tasks",
    "Task": "lab.tasks",
}
_MODULES = ("analysis", "grid", "init", "models", "report", "tasks")


def load(workdir, variant=None):
    """See `lab.disk.load.load_all`; imported on demand, so that `import lab` stays instant."""
    from lab.disk.load import load_all

    return load_all(workdir, variant)


def export(workdir, to, out=None, rows=None, metrics=None, variants=None):
    """See `lab.sinks.export`."""
    from lab.sinks import export

    return export(workdir, to, out, rows, metrics, variants)


def diff(a, b):
    """See `lab.difference.diff`."""
    from lab.difference import diff

    return diff(a, b)


def write_report(workdir, partial=False):
    """See `lab.stages.report`; what a call of the package `lab.report` does."""
    from lab.training import report

    return report(workdir, partial)


def __getattr__(name):
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"lab.{name}")
    if name not in _FACE:
        raise AttributeError(f"module 'lab' has no attribute {name!r}")
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__():
    return sorted({*globals(), *_FACE, *_MODULES})
