"""Information flow of the two objectives on the composition task: which circuit answers the pair never seen?

Next-token prediction is said to keep the steps of key and anchors apart, answer-only training to merge the anchors
early (arXiv 2502.02007). In the terms of arXiv 2405.05409, whose task this is: the first is the reasoning circuit, the
second the symmetric one, and `lab.analysis.flow.circuit` scores both. They are circuits of the first two blocks; a
deeper model may do either elsewhere, and attention says where a model reads, not that its answer uses it.
"""

import functools

import numpy as np
import xarray as xr

from lab import models
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.report import portraits
from lab.report.page import Picture
from lab.studies.claims import Claim
from lab.studies.composition.measures import attention
from lab.studies.ntp_ctp.claims import CTP, NTP, PAPER, both, final, measured, pooled, rows
from lab.tasks import Composition

SCORES = {"reasoning circuit": "flow.reasoning_score", "symmetric circuit": "flow.symmetric_score"}


def measures(experiment: Experiment) -> list[Measure]:
    """`flow`: scores of both circuits on (4,3), one attention pattern; of composition tasks, in two blocks or more."""
    model = experiment.model
    has_circuits = isinstance(model, models.Transformer) and model.n_layers >= 2
    return [attention(experiment)] if has_circuits and isinstance(experiment.task, Composition) else []


def apart(dataset: xr.Dataset) -> np.ndarray:
    """By seed: NTP's reasoning score less its symmetric score, minus CTP's; from -2 to 2.

    Raises:
      Lacking: attention was not measured, or an objective was not trained.
    """
    ctp_S, ntp_S = (final(_lead(chosen)) for chosen in both(dataset))
    return ntp_S - ctp_S


def picture(name: str, dataset: xr.Dataset) -> Picture:
    """Attention of both objectives on one sequence with (4,3), at the usual initial scale, first seed."""
    figure = portraits.attention_flow(_panels(dataset), title="Where attention carries key and anchors, by objective")
    caption = (
        "One sequence with (4,3), averaged over heads. Steps kept apart (reasoning): the first layer copies the key to "
        "each anchor, the second gathers the anchors. Anchors merged early (symmetric): the first layer brings both to "
        "the last position, the second the key. Scores, 0 to 1, are means over sequences."
    )
    return Picture(f"{name}-flow", "Information flow", caption, figure)


def _lead(chosen: xr.Dataset) -> xr.DataArray:
    reasoning, symmetric = (measured(chosen, variable) for variable in SCORES.values())
    return reasoning - symmetric


def _panels(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    panels = {}
    for label, objective in (("CTP", CTP), ("NTP", NTP)):
        row = rows(dataset, objective).isel(seed=0)
        scores = ", ".join(f"{of} {float(final(row[variable])):.2f}" for of, variable in SCORES.items())
        panels[f"{label}: {scores}"] = row
    return panels


CLAIMS = (
    Claim(
        "N10", "NTP keeps key-anchor steps separate, CTP merges anchors early", PAPER, "no number",
        "reasoning minus symmetric circuit score, NTP minus CTP, above 0", functools.partial(pooled, apart, False),
    ),
)  # fmt: skip
