"""Weight decay and learning rate of each objective, chosen by accuracy on held-out sequences like those of training.

The choice is one a task and objective, by the median over seeds at the last step, at the usual scale and without
injected noise. Splits out of distribution have no part in it.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from lab.report.objectives import OBJECTIVES
from lab.runs import Run, words

TUNED = ("weight_decay", "learning_rate")
VALIDATION = "test"  # what splits like training, but held out, begin with


def tuned(run: Run) -> tuple[Run, str]:
    """The rows of each objective at its own best decay and rate, which are no axes any more; and what was chosen.

    A run that varies neither, has one objective alone or no split to choose by stays as it is.
    """
    axes = [axis for axis in TUNED if axis in run.axes and len(run.values_of(axis)) > 1]
    validation = [name for name in run.dataset if name.startswith(VALIDATION) and name.endswith(".accuracy")]
    if not axes or not validation or not {*OBJECTIVES.values()} <= {*_values(run, "ntp_weight")}:
        return run, ""
    scores = [run.final(name, ("seed", "ntp_weight", *axes)) for name in validation]
    score = sum(scores).fillna(-np.inf).median("seed")
    parts, said = [], []
    for objective, ntp_weight in OBJECTIVES.items():
        best = score.sel(ntp_weight=ntp_weight).stack(setting=axes).idxmax("setting").item()
        at = dict(zip(axes, best, strict=True))
        parts.append(run.dataset.sel(at | {"ntp_weight": [ntp_weight]}).drop_vars(axes))
        said.append(f"{objective} {', '.join(f'{words(axis)} {value:g}' for axis, value in at.items())}")
    return Run(xr.concat(parts, "ntp_weight", data_vars="minimal", coords="minimal", compat="override"), run.usual), (
        f"chosen by {', '.join(validation)}: {'; '.join(said)}"
    )


def of_tuned(number: Callable) -> Callable:
    """`number` of a task's run, of its tuned rows, with what was chosen as a remark."""

    def of_run(run: Run):
        chosen, said = tuned(run)
        return (number(chosen), said) if said else number(chosen)

    return of_run


def _values(run: Run, axis: str):
    return run.values_of(axis) if axis in run.axes else ()
