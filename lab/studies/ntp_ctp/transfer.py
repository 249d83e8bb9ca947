"""A second task, learnt by either objective from a model that NTP trained on a first one: speed and forgetting.

Both objectives start from the same weights, row by row (`config.start`). The first task's accuracy is that on fresh
sequences of its training split, which the start answers: what is lost there was known before. As elsewhere in the
study, thresholds are the direction of the paper's statement, and numbers those of the usual initial scale.
"""

from collections.abc import Callable

import xarray as xr

from lab.report import objectives
from lab.report.objectives import objective_gap
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.studies.ntp_ctp.claims import KNOWN, LEARNT, control_claim, convergence_ratio, over_tasks, paper_claim

TEXT = (
    "The second task is trained from weights that NTP had learnt the first one with, by NTP and by CTP: same start, "
    "same sequences, fresh optimizer. A row that forgets everything shows where it "
    "ends and not how it got there: the curves say when."
)


def finetuned_variants(runs: Runs) -> Runs:
    """The variants that start from another's weights."""
    return runs.where(lambda name, run: KNOWN in run)


def _over_tasks(number: Callable[[Run], xr.DataArray], runs: Runs, ratio: bool = False):
    if not (finetuned := finetuned_variants(runs)):
        raise MissingData("a second training that starts from the weights of a first one")
    return over_tasks(number, finetuned, ratio)


@paper_claim(
    "N7", "CTP finetunes faster from a model pretrained by NTP, mean over tasks", above=1,
    quantity=f"steps to {LEARNT:.0%} training accuracy, NTP over CTP",
)  # fmt: skip
def finetunes_faster(runs: Runs):
    return _over_tasks(convergence_ratio, runs, ratio=True)


@paper_claim(
    "N8", "NTP forgets more of the first task when finetuned", above=0,
    quantity="loss of accuracy to the last step, NTP minus CTP",
)  # fmt: skip
def forgets_more(runs: Runs):
    return _over_tasks(lambda run: forgetting_gap(run).isel(step=-1), runs)


@control_claim("N8b", "also on average over the finetuning", quantity="mean loss of accuracy, NTP minus CTP", above=0)
def forgets_more_on_average(runs: Runs):
    """At the end both may have forgotten everything."""
    return _over_tasks(lambda run: forgetting_gap(run).mean("step", skipna=False), runs)


def forgetting_gap(run: Run) -> xr.DataArray:
    """Accuracy on the first task lost since the start, (seed, step): NTP's minus CTP's."""
    gap = objective_gap(run.over_time, KNOWN)
    return gap.isel(step=0, drop=True) - gap


CLAIMS = (finetunes_faster, forgets_more, forgets_more_on_average)


def sections(runs: Runs) -> list[Section]:
    """One for every variant that starts from another's weights."""
    return [
        draw_section(f"A second task: {name}", TEXT, run, (both_tasks,), name)
        for name, run in finetuned_variants(runs).items()
    ]


def both_tasks(run: Run) -> Picture:
    curves = {"train.accuracy": "second task", KNOWN: "first task"}
    figure = objectives.training_curves(run, curves, "Accuracy on both tasks while the second is learnt")
    caption = (
        "Second task: training sequences. First task: fresh sequences of its training split. Lines are medians over "
        "seeds, bands run from the lowest to the highest."
    )
    return Picture("transfer", caption, figure, "What is learnt and what is lost")
