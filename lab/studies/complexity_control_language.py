"""Complexity control where language is composed: SCAN and COGS (arXiv 2405.05409 and 2501.08537).

Two corners of the grid are compared: the largest initial weights with the smallest decay, and the smallest with the
largest. The user has the data.
"""

import functools

import jax.numpy as jnp
import numpy as np

from lab import models
from lab.claims import DIRECTION, Claim, claim
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.models import decode
from lab.report import corners, maps
from lab.report.corners import CORNERS, at_corner, task_family
from lab.report.measures import lines_with_error
from lab.report.page import Picture, Section, draw_section
from lab.runs import Run, Runs
from lab.studies import Study
from lab.tasks import Cogs, Scan, cogs

COMPLEXITY = "arXiv 2501.08537"
# Where a row is asked what training is like, and where it is not. SCAN has no test of the former kind.
SPLITS = {"scan": ("train", "test"), "cogs": ("test", "gen")}
SEQUENCES = 210  # decoded: of COGS ten of each type, on average

TITLE = "Does low complexity compose language?"
LEAD = (
    "One transformer answers questions by text: commands to actions (SCAN), sentences to logical forms (COGS). It is "
    "asked for combinations that training holds out. Only the initial scale of the weights (std = d_in^-gamma), the "
    "weight decay and the number of training items differ between rows."
)
TEXT = (
    "An answer counts if every word of it is right. For SCAN `in distribution` is accuracy on training items, as the "
    "variant's test is all held out; for COGS it is the test split."
)


def measures(experiment: Experiment) -> list[Measure]:
    """
    Raises:
      ValueError: the model is not a transformer, or the task neither SCAN nor COGS.
    """
    model, task = experiment.model, experiment.task
    if not isinstance(model, models.Transformer) or not isinstance(task, Scan | Cogs):
        raise ValueError(
            f"complexity_control_language measures transformers on scan or cogs, not {type(model).__name__} on "
            f"{type(task).__name__}"
        )
    return [decoded(experiment)]


def decoded(experiment: Experiment) -> Measure:
    """Exact matches out of distribution by greedy decoding with a key-value cache; by type of generalization (COGS)."""
    task = experiment.task
    by_type = isinstance(task, Cogs)

    def function(row):
        correct_B = decode.exact_match(row.model, row.params, task, row.batch)
        types = {"type_accuracy": cogs.by_type(correct_B, row.batch)} if by_type else {}
        return {"accuracy": jnp.mean(correct_B)} | types

    units = dict.fromkeys(("accuracy", "type_accuracy") if by_type else ("accuracy",), "share right")
    dims = {"type_accuracy": ("gen_type",)} if by_type else {}
    _, split = SPLITS["cogs" if by_type else "scan"]
    return Measure("decoded", function, units, dims, dict(task.coords), "last", split=split, n=SEQUENCES)


NAMES = {"scan": "SCAN", "cogs": "COGS"}
lead_claim = functools.partial(
    claim, quantity="least lead in accuracy out of distribution", source=COMPLEXITY,
    published="out of distribution, at every data size", above=0, threshold_from=DIRECTION,
)  # fmt: skip
fit_claim = functools.partial(
    claim, quantity="lowest accuracy of both in distribution", source=COMPLEXITY, published="above 99 %", at_least=0.99
)  # fmt: skip


def of_task(task: str) -> tuple[Claim, Claim]:
    """Both claims of one task."""
    splits = {task: SPLITS[task]}
    statement = f"On {NAMES[task]} small weights with large decay beat large weights with small decay"
    lead = lead_claim(f"L1-{task}", statement, headline=True)(lambda runs: corners.least_lead(runs, splits))
    fit = fit_claim(f"L2-{task}", f"while both fit {NAMES[task]} in distribution")(
        lambda runs: corners.least_fit(runs, splits)
    )
    return lead, fit


@lead_claim("L1", "On both small weights with large decay beat large weights with small decay")
def small_and_decayed_wins(runs: Runs):
    return corners.least_lead(runs, SPLITS)


@fit_claim("L2", "while both are fitted in distribution")
def both_fit(runs: Runs):
    return corners.least_fit(runs, SPLITS)


def sections(runs: Runs) -> list[Section]:
    return [
        draw_section(f"{task_family(run).upper()} ({name})", TEXT, run, _drawings(run), name)
        for name, run in runs.items()
    ]


def _drawings(run: Run) -> list:
    """The grid and training; accuracy along further axes that the grid varies; and by type where there are types."""
    along = {"train_items": by_training_items, "ntp_weight": by_objective}
    drawings = [exact_match, over_training, *(along[axis] for axis in along if run.dataset.sizes.get(axis, 1) > 1)]
    return drawings + ([by_type] if task_family(run) == "cogs" else [])


def exact_match(run: Run) -> Picture:
    return corners.grid_picture(run, SPLITS)


def over_training(run: Run) -> Picture:
    return corners.training_picture(run, SPLITS)


def by_training_items(run: Run) -> Picture:
    return _along(run, "train_items", "training items")


def by_objective(run: Run) -> Picture:
    # 0: answers are trained, 1: all tokens
    return _along(run, "ntp_weight", "weight of a question's token in the loss")


def _along(run: Run, axis: str, label: str) -> Picture:
    """Accuracies at both corners along one more axis of the grid; all others at their usual value."""
    lines = {}
    for where, split in zip(("in", "out of"), SPLITS[task_family(run)], strict=True):
        for corner in CORNERS:
            values = at_corner(run, f"{split}.accuracy", corner, (axis, "seed"))
            error = values.std("seed", ddof=1) / np.sqrt(values.sizes["seed"])
            lines[f"{corner}, {where} distribution"] = values.mean("seed"), error
    figure = lines_with_error(run.values_of(axis), lines, label, "exact match", f"Exact match by {label}")
    return Picture(axis.replace("_", "-"), "Means over seeds, at the last evaluation.", figure)


def by_type(run: Run) -> Picture:
    columns = [at_corner(run, "decoded.type_accuracy", corner, ("seed",)).mean("seed") for corner in CORNERS]
    labels = [corner.replace(", ", "\n") for corner in CORNERS]
    shown = {"mean over seeds": np.stack(columns, axis=1)}
    title = "Which generalizations succeed"
    figure = maps.heatmap(shown, list(cogs.GEN_TYPES), labels, "exact match", title, "", "")
    return Picture("types", "Decoded greedily, mean over seeds, the largest training set.", figure)


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=("arXiv 2405.05409", COMPLEXITY),
    measures=measures,
    claims=(*of_task("scan"), *of_task("cogs"), small_and_decayed_wins, both_fit),
    target="gen.accuracy",
    usual={"train_items": max},
    sections=sections,
)
