"""Both objectives on the published questions (PrOntoQA, ProsQA): accuracy on those that were held out.

A coin is right for 1/2, and 1/2 is not where deduction begins: COINS says what answers better without any.
"""

import jax.numpy as jnp
import numpy as np

from lab import models
from lab.claims import DIRECTION, OURS, claim
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.objective import CTP, NTP
from lab.report import figures, objectives
from lab.report.page import Picture, Section, draw_section
from lab.runs import Run, Runs
from lab.studies import Study
from lab.tasks import QuestionFiles

PAPER = "arXiv 2502.02007"
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
ACCURACY = "held_out.accuracy"


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


@claim(
    "Q1", "NTP answers more of the held-out questions", headline=True, quantity="NTP minus CTP", source=PAPER,
    published="no number", above=0, threshold_from=DIRECTION,
)  # fmt: skip
def ntp_answers_more(runs: Runs):
    return objectives.objective_gap(runs["main"].final, ACCURACY)


COIN = {
    "quantity": "standard errors of a coin above 1/2", "source": "control of ours", "published": "-", "above": 2,
    "threshold_from": OURS,
}  # fmt: skip


@claim("Q2", "NTP answers more of them than a coin", **COIN)
def ntp_beats_a_coin(runs: Runs):
    return above_coin(runs["main"], NTP)


@claim("Q3", "CTP answers more of them than a coin", **COIN)
def ctp_beats_a_coin(runs: Runs):
    return above_coin(runs["main"], CTP)


def above_coin(run: Run, ntp_weight: float):
    """Accuracy on held-out questions less 1/2, in standard errors of a coin that is tossed for each; and a note."""
    accuracy, questions, plausible = (
        run.final(f"held_out.{name}", ("seed",), ntp_weight=ntp_weight)
        for name in ("accuracy", "questions", "plausible")
    )
    note = (
        f"Accuracy {float(accuracy.median()):.2f} on {float(questions.median()):.0f} held-out questions; "
        f"{float(plausible.median()):.0%} of the answers are one of the two that could be."
    )
    return (accuracy - 0.5) * 2 * np.sqrt(questions), note


def sections(runs: Runs) -> list[Section]:
    drawings = (training, held_out_questions)
    return [draw_section("Training and held-out questions", COINS, run, drawings) for run in runs.values()]


def training(run: Run) -> Picture:
    curves = {"train.accuracy": "training", "test.accuracy": "held out"}
    figure = objectives.training_curves(run, curves, "What is learnt by heart, and what of it is of use")
    return Picture("training", "Medians over seeds, bands from lowest to highest.", figure, "Accuracy over training")


def held_out_questions(run: Run) -> Picture:
    shares = {ACCURACY: "accuracy on held-out questions", "train.loss": "loss on training answers"}
    figure = figures.curves_against_gamma(run, shares, hue="ntp_weight", title="At the last step, a dot a seed")
    return Picture("held-out", "ntp weight 0 is CTP, 1 is NTP.", figure, "Held-out questions by objective")


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER,),
    measures=measures,
    claims=(ntp_answers_more, ntp_beats_a_coin, ctp_beats_a_coin),
    target="test.accuracy",
    usual={"gamma": min, "weight_decay": min, "label_noise": 0.0, "context_noise": 0.0},
    published_sizes=False,
    sections=sections,
)
