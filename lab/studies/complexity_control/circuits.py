"""Cut circuits: what is left of reasoning without its attention edges, and which sequences are one to the model.

Where the phase grid is of a deeper model, they are of the variant `two_layers`.
"""

import numpy as np
import xarray as xr

from lab.analysis.phase import NAMED
from lab.claims import OURS, claim
from lab.measuring.catalogue.anchor_circuits import CIRCUITS
from lab.report import comparison, figures, portraits
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs

PAPER = "arXiv 2501.08537"
DESTROYED, SPARED = 0.5, 0.1  # shares of its accuracy that cutting edges costs
# Published cosines of last-token vectors: lowest and highest among pairs of sequences
EQUIVALENCE = {"within_40": (0.91, 0.93), "within_79": (0.95, 0.98), "across": (0.23, 0.49)}

CUT = (
    "Attention edges are cut before the softmax, at the positions of each sequence's key and anchors. The reasoning "
    "circuit copies the key to both anchors and gathers these; the symmetric one gathers the anchors first. Cutting "
    "edges moves activations off what training has seen: a loss says that they matter, not what they carry."
)
MERGED = "Which sequences are one to the model: first shifts to the same value, and the two orders of a pair."


@claim(
    "M1", "Cutting the reasoning circuit destroys reasoning", headline=True,
    quantity="share of their accuracy on the unseen pair that the smallest weights lose",
    source=f"{PAPER}, circuit masking", published="no number", at_least=DESTROYED, threshold_from=OURS,
)  # fmt: skip
def cutting_destroys(runs: Runs):
    lost = _lost(runs)
    return lost["reasoning"], _medians(lost)


@claim(
    "M2", "and cutting the symmetric circuit or random edges does not", headline=True,
    quantity="larger share that the smallest weights lose by either", source=f"{PAPER}, circuit masking",
    published="no number", at_most=SPARED, threshold_from=OURS,
)  # fmt: skip
def cutting_spares(runs: Runs):
    lost = _lost(runs)
    return np.maximum(lost["symmetric"], lost["random"]), _medians(lost)


@claim(
    "M3", "First shifts to the same value are one to a reasoning model",
    quantity="lowest cosine within a value less highest across, smallest weights",
    source=f"{PAPER}, first-anchor equivalence", published="0.91 to 0.98 within a value, 0.23 to 0.49 across",
    at_least=0.42,
)  # fmt: skip
def anchors_are_one(runs: Runs):
    cosines = {name: _smallest_weights(runs, f"equivalence.{name}") for name in EQUIVALENCE}
    gap = _smallest_weights(runs, "equivalence.gap")
    listed = ", ".join(f"{name.replace('_', ' ')} {float(mean.median()):.2f}" for name, mean in cosines.items())
    whole = _smallest_weights(runs, "masked_unseen.whole")
    return gap.where(whole >= NAMED), f"Mean cosines at gamma {float(gap.gamma):g}: {listed}."


CLAIMS = (cutting_destroys, cutting_spares, anchors_are_one)


def trained(runs: Runs) -> Run:
    """The run whose circuits were cut.

    Raises:
      MissingData: there is none.
    """
    run = runs["two_layers"] if "two_layers" in runs else runs["phase"]
    if "masked_unseen.whole" not in run:
        raise MissingData("a model of two layers with its circuits cut")
    return run


def _smallest_weights(runs: Runs, name: str) -> xr.DataArray:
    return trained(runs).final(name, gamma=max)


def _lost(runs: Runs) -> dict[str, xr.DataArray]:
    """Circuit -> share of its accuracy on the unseen pair, by seed, that cutting it costs the row of the smallest
    weights; NaN where that row does not reason."""
    whole = _smallest_weights(runs, "masked_unseen.whole")
    whole = whole.where(whole >= NAMED)
    return {name: 1 - _smallest_weights(runs, f"masked_unseen.{name}") / whole for name in CIRCUITS}


def _medians(lost: dict[str, xr.DataArray]) -> str:
    return f"Median loss: {', '.join(f'{name} {float(shares.median()):.2f}' for name, shares in lost.items())}."


def sections(runs: Runs) -> list[Section]:
    try:
        run = trained(runs)
    except MissingData:
        return []
    return [
        draw_section("Circuits that are cut", CUT, run, (cut_seen, cut_unseen), "masked"),
        draw_section("Merged sequences", MERGED, run, (equivalence, outputs), "circuit"),
    ]


def cut_seen(run: Run) -> Picture:
    return _cut(run, "seen", "seen pairs")


def cut_unseen(run: Run) -> Picture:
    return _cut(run, "unseen", "the unseen pair")


def _cut(run: Run, which: str, words: str) -> Picture:
    names = {f"masked_{which}.whole": "nothing cut"} | {f"masked_{which}.{name}": f"{name} cut" for name in CIRCUITS}
    title = f"Accuracy on {words} with edges cut"
    figure = figures.curves_against_gamma(run, names, hue="metric", over="weight_decay", title=title)
    return Picture(which, CUT, figure)


def equivalence(run: Run) -> Picture:
    panels = {}
    for name, band in EQUIVALENCE.items():
        ours = run.final(f"equivalence.{name}")
        theirs = xr.DataArray([[end] * 2 for end in band], {"gamma": ours.gamma.values[[0, -1]]}, ["bound", "gamma"])
        panels[name.replace("_", " ")] = {"ours": ours, "published, gamma 0.8": theirs}
    title = "Cosines of sequences whose first shift leads to one value, and to two"
    caption = "Published: two layers, gamma 0.8; the band is from the lowest to the highest pair of sequences."
    return Picture("equivalence", caption, comparison.curves(panels, title, ylim=(-0.1, 1.06)))


def outputs(run: Run) -> Picture:
    run.over_time("outputs.whole")
    rows = [run.rows(keep=(), seed=min, gamma=end) for end in (min, max)]
    caption = (
        "Output vectors of sequences of the twelve unequal pairs, key at position 1, of the first seed. Hidden: no "
        "position reads the key's. The paper draws t-SNE of the latter; these are principal components, in which "
        "distances mean something but pairs may cover each other."
    )
    return Picture("outputs", caption, portraits.outputs_by_pair({f"γ = {float(row.gamma):g}": row for row in rows}))
