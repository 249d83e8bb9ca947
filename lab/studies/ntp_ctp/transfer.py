"""A second task, learnt by either objective from a model that NTP trained on a first one: who is faster, who forgets?

Both objectives start from the same weights, row by row (`config.start`). The first task's accuracy is that on fresh
sequences of its training split, which the start answers: what is lost there was known before. As elsewhere in the
study, thresholds are the direction of the paper's statement, and numbers those of the usual initial scale.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from lab.report import figures
from lab.report.page import Picture, Section
from lab.studies.claims import Claim, Lacking, Measured
from lab.studies.ntp_ctp.claims import CONTROL, PAPER, Datasets, anew, both, pooled, slower
from lab.studies.ntp_ctp.page import OBJECTIVES, side_by_side
from lab.tasks.finetune import FIRST

KNOWN = f"{FIRST}train.accuracy"
TEXT = (
    "The second task is trained from weights that NTP had learnt the first one with, by NTP and by CTP: same start, "
    "same sequences, fresh optimizer. A row that forgets everything shows where it "
    "ends and not how it got there: the curves say when."
)
CURVES = {"second task": lambda ds: ds["train.accuracy"], "first task": lambda ds: ds[KNOWN]}


def second(datasets: Datasets) -> Datasets:
    """The variants that start from another's weights."""
    first = anew(datasets)
    return {name: dataset for name, dataset in datasets.items() if name not in first}


def finetuned(of_task: Callable[[xr.Dataset], np.ndarray], ratio: bool, datasets: Datasets) -> Measured:
    """`pooled`, of the variants that start from another's weights.

    Raises:
      Lacking: there is none, or none has the number.
    """
    if not (later := second(datasets)):
        raise Lacking("a second training that starts from the weights of a first one")
    return pooled(of_task, ratio, later)


def forgotten(dataset: xr.Dataset) -> np.ndarray:
    """Accuracy on the first task lost from the start to the last step, by seed: NTP's minus CTP's."""
    ctp_S, ntp_S = (_lost(chosen)[-1] for chosen in both(dataset))
    return ntp_S - ctp_S


def forgotten_on_average(dataset: xr.Dataset) -> np.ndarray:
    """As `forgotten`, the mean over all evaluations: at the end both may have forgotten everything."""
    ctp_S, ntp_S = (_lost(chosen).mean(axis=0) for chosen in both(dataset))
    return ntp_S - ctp_S


def sections(datasets: Mapping[str, xr.Dataset]) -> list[Section]:
    """One for every variant that starts from another's weights."""
    return [
        Section(f"A second task: {name}", TEXT, [_curves(name, dataset)]) for name, dataset in second(datasets).items()
    ]


def _lost(chosen: xr.Dataset) -> np.ndarray:
    """Accuracy on the first task at the start minus that at each evaluation, (step, seed)."""
    known_TxS = chosen[KNOWN].transpose("step", "seed").values
    return known_TxS[:1] - known_TxS


def _curves(name: str, dataset: xr.Dataset) -> Picture:
    curves = side_by_side(dataset, CURVES)
    labels = {f"{objective}, {task}": f"{objective}, {task}" for task in CURVES for objective in OBJECTIVES.values()}
    figure = figures.training_curves(curves, labels, title="Accuracy on both tasks while the second is learnt")
    caption = (
        "Second task: training sequences. First task: fresh sequences of its training split. Lines are medians over "
        "seeds, bands run from the lowest to the highest."
    )
    return Picture(f"{name}-transfer", "What is learnt and what is lost", caption, figure)


CLAIMS = (
    Claim(
        "N7", "CTP finetunes faster from a model pretrained by NTP", PAPER, "no number",
        "steps to 95 % training accuracy, NTP over CTP, above 1", functools.partial(finetuned, slower, True),
    ),
    Claim(
        "N8", "NTP forgets more of the first task when finetuned", PAPER, "no number",
        "loss of accuracy to the last step, NTP minus CTP, above 0", functools.partial(finetuned, forgotten, False),
    ),
    Claim(
        "N8b", "also on average over the finetuning", CONTROL, "-",
        "mean loss of accuracy, NTP minus CTP, above 0", functools.partial(finetuned, forgotten_on_average, False),
    ),
)  # fmt: skip
