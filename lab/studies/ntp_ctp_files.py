"""Both objectives on the published questions (PrOntoQA, ProsQA): who answers those that were held out?

A coin is right for 1/2, and 1/2 is not where deduction begins: COINS says what answers better without any.
"""

import functools
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab import models
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.report import figures
from lab.report.page import Picture, Section
from lab.studies import Study
from lab.studies.claims import Claim, Measured
from lab.studies.ntp_ctp.claims import CONTROL, CTP, NTP, PAPER, both, final, measured, pooled, rows
from lab.studies.ntp_ctp.page import side_by_side
from lab.tasks import QuestionFiles

TITLE = "Next-token prediction and answer-only training on published questions"
LEAD = (
    "One small model, one file of questions, two objectives: next-token prediction (NTP) scores every word, critical "
    "token prediction (CTP) the answer alone. Accuracy is taken on questions that were held out."
)
COINS = (
    "A coin tossed between the two words that could answer is right for 1/2; who has not learnt to look for the two is "
    "right more seldom. More than 1/2 is no deduction yet: of the 500 published PrOntoQA questions 74 % are answered "
    "by believing the later of the two sentences that tell the property asked about, and of the 500 test questions of "
    "ProsQA 66 % by naming the candidate that is named less often."
)
ACCURACIES = {"training": lambda ds: ds["train.accuracy"], "held out": lambda ds: ds["test.accuracy"]}


def measures(experiment: Experiment) -> list[Measure]:
    """
    Raises:
      ValueError: the task is no file of questions, or as `lab.text.question_files.prepare`.
    """
    if not isinstance(experiment.task, QuestionFiles):
        raise ValueError(f"ntp_ctp_files measures question files, not {type(experiment.task).__name__}")
    return [held_out(experiment)]


def held_out(experiment: Experiment) -> Measure:
    """Answers to every held-out question once: share right, its binomial error, share that could be."""
    n = len(experiment.task.prepared.tables["test"].sequence_NxM)

    def function(row):
        logits_BxLxV, _ = models.forward(row.model, row.params, row.batch.tokens_BxL)
        found = experiment.task.score(logits_BxLxV, row.batch)
        error = jnp.sqrt(found["accuracy"] * (1 - found["accuracy"]) / n)
        kept = {name: found[name] for name in ("accuracy", "plausible")}
        return kept | {"accuracy_error": error, "questions": jnp.int32(n)}

    units = dict.fromkeys(("accuracy", "accuracy_error", "plausible"), "share") | {"questions": "questions"}
    return Measure("held_out", function, units, snapshots="last", split="test", n=n)


def gap(dataset: xr.Dataset) -> np.ndarray:
    """NTP's accuracy on held-out questions minus CTP's."""
    ctp_S, ntp_S = (final(measured(chosen, "held_out.accuracy")) for chosen in both(dataset))
    return ntp_S - ctp_S


def above_coin(objective: float, datasets: Mapping[str, xr.Dataset]) -> Measured:
    """Accuracy on held-out questions, to be more than two standard errors of a coin above 1/2."""
    (dataset,) = datasets.values()
    chosen = rows(dataset, objective)
    accuracy_S = final(measured(chosen, "held_out.accuracy"))
    n, plausible = (float(np.nanmedian(final(chosen[f"held_out.{name}"]))) for name in ("questions", "plausible"))
    note = f"Of {n:.0f} held-out questions; {plausible:.0%} of the answers are one of the two that could be."
    return Measured(tuple(accuracy_S.tolist()), 0.5 + 1 / math.sqrt(n), note, strictly=True)


def sections(datasets: Mapping[str, xr.Dataset]) -> list[Section]:
    return [Section("Training and held-out questions", COINS, _pictures(dataset)) for dataset in datasets.values()]


def _pictures(dataset: xr.Dataset) -> list[Picture]:
    curves = side_by_side(dataset, ACCURACIES)
    labels = {label: label for label in curves if label != "diverged_at"}
    over_time = figures.training_curves(curves, labels, title="What is learnt by heart, and what of it is of use")
    share = {"held_out.accuracy": "accuracy on held-out questions", "train.loss": "loss on training answers"}
    at_end = figures.curves_against_gamma(dataset, share, hue="ntp_weight", title="At the last step, a dot a seed")
    caption = "ntp weight 0 is CTP, 1 is NTP."
    return [
        Picture("training", "Accuracy over training", "Medians over seeds, bands from lowest to highest.", over_time),
        Picture("held-out", "Held-out questions by objective", caption, at_end),
    ]


CLAIMS = (
    Claim(
        "Q1", "NTP answers more of the held-out questions", PAPER, "no number", "NTP minus CTP above 0",
        functools.partial(pooled, gap, False),
    ),
    Claim(
        "Q2", "NTP answers more of them than a coin", CONTROL, "-", "two standard errors above 1/2",
        functools.partial(above_coin, NTP),
    ),
    Claim(
        "Q3", "CTP answers more of them than a coin", CONTROL, "-", "two standard errors above 1/2",
        functools.partial(above_coin, CTP),
    ),
)  # fmt: skip

STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=("arXiv 2502.02007",),
    measures=measures,
    claims=CLAIMS,
    target="test.accuracy",
    sections=sections,
)
