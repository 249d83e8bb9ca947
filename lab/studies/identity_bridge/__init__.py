"""Identities bridge two facts: arXiv 2509.24653 on questions of two hops that training never shows.

Tables and settings of the paper are not available to us: thresholds rest on sentences of its abstracts (v1 and the
later version, which speaks of shortcuts), on what follows for the linear model from its nuclear norm, and on reference
values of our own. Thresholds were written before the runs; what I4 to I8 measure was mended after the first one.
Accuracies are those of the last step.
"""

import numpy as np
import xarray as xr

from lab.analysis.statistics import median_of
from lab.claims import DIRECTION, OURS, claim
from lab.runs import MissingData, Run, Runs
from lab.studies import Study
from lab.studies.identity_bridge.measures import measures
from lab.studies.identity_bridge.page import OOD, sections

PAPER = "arXiv 2509.24653"
SMALL, LARGE, DECAY = 0.03, 0.4, 1e-3  # initial std that is small, the large one, and the decay that undoes it
EVERY = ("seed", "sigma", "weight_decay")
ANSWERED, LOST = 0.95, 0.5  # of two-hop questions: a cell that joins facts, and one that does not

TITLE = "What makes a network join two facts?"
LEAD = (
    "A model is trained on single facts alone, (e1, r1) -> e2 and (e2, r2) -> e3, and asked (e1, r1, r2), which it has "
    "never seen. It knows both hops and fails. One more kind of example, the identity e2 -> e2, makes it answer: what "
    "e2 says of itself and what it says of e3 share a direction in a solution of low rank, and e1, which says e2, "
    "then says e3 as well. How strongly solutions are of low rank, initial weights and decay decide."
)


@claim(
    "I1a", "With identities, small initial weights answer two-hop questions", headline=True,
    quantity="lowest accuracy of rows with std at most 0.03", source=f"{PAPER}, abstract",
    published="identities make it possible", at_least=0.95, threshold_from=OURS,
)  # fmt: skip
def identities_join(runs: Runs):
    accuracy = _small(runs["linear"].final(OOD, EVERY, identity=1))
    return accuracy.min(["sigma", "weight_decay"], skipna=False), f"Linear model; {_cells(accuracy)}."


@claim(
    "I1b", "Without identities none are answered", headline=True,
    quantity="highest accuracy of rows with std at most 0.03", source=f"{PAPER}, abstract",
    published="complete failure", at_most=0.05, threshold_from=OURS,
)  # fmt: skip
def without_identities_none(runs: Runs):
    accuracy = _small(_fitted(runs["linear"], OOD, EVERY, identity=0))
    return accuracy.max(["sigma", "weight_decay"], skipna=False), f"Linear model; {_cells(accuracy)}."


@claim(
    "I2a", "Large initial weights answer fewer, with identities too", headline=True,
    quantity="accuracy lost from the smallest std to 0.4", source=f"{PAPER}, abstract",
    published="smaller initial weights strengthen the effect", at_least=0.3, threshold_from=OURS,
)  # fmt: skip
def large_weights_answer_fewer(runs: Runs):
    small, large = _with_identities(runs["linear"], weight_decay=0.0)
    return small - large, f"Linear model, no decay: from {median_of(small):.2f} to {median_of(large):.2f}."


@claim(
    "I2b", "Weight decay brings them back", headline=True, quantity="accuracy at std 0.4 and decay 0.001",
    source=f"{PAPER}, abstract", published="larger weight decay strengthens the effect", at_least=0.95,
    threshold_from=OURS,
)  # fmt: skip
def decay_brings_back(runs: Runs):
    without, restored = (
        runs["linear"].final(OOD, ("seed",), identity=1, sigma=LARGE, weight_decay=decay) for decay in (0.0, DECAY)
    )
    return restored, f"Linear model: {median_of(without):.2f} without decay, {median_of(restored):.2f} with it."


@claim(
    "I3", "A bag of embeddings with an MLP is an excellent approximation of the transformer", headline=True,
    quantity="difference in accuracy, cells with identities, median", source=f"{PAPER}, later abstract",
    published="an excellent approximation across levels of complexity", at_most=0.1, threshold_from=OURS,
)  # fmt: skip
def bag_is_like_the_transformer(runs: Runs):
    bag, transformer = (_fitted(runs[name], OOD, EVERY, identity=1) for name in ("emb_mlp", "transformer"))
    bag, transformer = xr.align(bag, transformer, join="inner")
    if not bag.size:
        raise MissingData("cells of both models with the same std and decay")
    gap = np.abs(bag - transformer)
    widest = gap.median("seed").stack(cell=["sigma", "weight_decay"])
    note = f"Both asked by `?`, chosen after trials. Emb-MLP: {_cells(bag)}; transformer: {_cells(transformer)}"
    if widest.notnull().any():
        cell = widest[int(widest.argmax("cell"))]
        note += f"; widest gap {float(cell):.2f}, at std {float(cell.sigma):g} and decay {float(cell.weight_decay):g}"
    return gap.median(["sigma", "weight_decay"]), f"{note}."


@claim(
    "I4", "Answers, right and wrong, are shortcuts: none reads all of the question", headline=True,
    quantity="smallest share that one shortcut explains, of three arms", source=f"{PAPER}, later abstract",
    published="simple shortcuts rather than implicit reasoning", at_least=0.9, threshold_from=OURS,
)  # fmt: skip
def answers_are_shortcuts(runs: Runs):
    linear, harder = runs["linear"], runs["linear_2"]
    small, large = (dict(keep=("seed",), weight_decay=0.0, sigma=sigma) for sigma in (min, LARGE))
    accuracy, right_type = (_fitted(linear, name, identity=1, **large) for name in (OOD, "two_hop_ood.right_type"))
    wrong = 1 - accuracy
    explained = {
        "without identities the answer is the bridge": _fitted(linear, "two_hop_ood.says_bridge", identity=0, **small),
        "with identities and small weights it is that of (e1, r2), at complexity 2": _fitted(
            harder, "shortcut.without_first", identity=1, **small
        ),
        "with identities and std 0.4 a wrong one is of the right type": (right_type - accuracy).where(wrong > 0)
        / wrong,
    }
    shares = xr.concat(list(explained.values()), "arm", coords="minimal", compat="override")
    note = "; ".join(f"{words}: {median_of(share):.2f}" for words, share in explained.items())
    return shares.min("arm", skipna=False), f"Linear model; {note}."


@claim(
    "I5", "How much rows share tells which ones answer",
    quantity="area under the curve of R = cp / (as), Emb-MLP, cells with identities",
    source=f"{PAPER}, latent alignment", published="states of (e1, r1) and e2 come together; R is ours",
    at_least=0.9, threshold_from=OURS,
)  # fmt: skip
def sharing_separates(runs: Runs):
    area, ends = _area(runs["emb_mlp"])
    note = f"Median R {ends[0]:.2f} of cells with accuracy 0.95 or more, {ends[1]:.2f} at 0.5 or less"
    others = {"transformer": "transformer", "linear": "linear model, whose c is the answer's margin itself"}
    areas = [f"{words} {median_of(_area(runs[name])[0]):.2f}" for name, words in others.items() if name in runs]
    return area, f"{'; '.join([note, *areas])}."


@claim(
    "I6", "With identities, small weights end at the least nuclear norm and large ones above it",
    quantity="excess over the least nuclear norm at the same margin, small over large weights",
    source=f"{PAPER}, theory", published="an implicit bias to a small nuclear norm", at_most=0.2, threshold_from=OURS,
)  # fmt: skip
def nuclear_norm_is_least(runs: Runs):
    ends = ("smallest std", "0.4")
    over, excess, ranks, ratios = (
        _with_identities(runs["linear"], name, weight_decay=0.0)
        for name in ("block.over_minimum", "block.excess", "solution.effective", "solution.nuclear")
    )
    small, large = (end - 1 for end in over)
    numbers = [
        f"{end}: {median_of(over[i]):.3f} ({median_of(excess[i]):.3f} of it by c alone), effective rank of E U "
        f"{median_of(ranks[i]):.1f}, its nuclear over Frobenius norm {median_of(ratios[i]):.2f}"
        for i, end in enumerate(ends)
    ]
    return small / large, f"Nuclear norm of the block over the least one; {'; '.join(numbers)}."


@claim(
    "I7", "What is generalized is lost more slowly from small weights",
    quantity="accuracy lost after its peak: largest std that reached 0.5, less the smallest",
    source=f"{PAPER}, abstract", published="the decay of generalization slows down", above=0, threshold_from=DIRECTION,
)  # fmt: skip
def decay_of_generalization(runs: Runs):
    run = runs["emb_mlp"]
    keep, cell = ("seed", "sigma"), dict(identity=1, weight_decay=min)
    peak, last = (
        values.transpose("sigma", ...) for values in (run.best(OOD, keep, **cell), run.final(OOD, keep, **cell))
    )
    rose = np.flatnonzero(peak.median("seed") >= LOST)
    fall = peak - last
    difference = fall[rose[-1]] - fall[0] if rose.size and rose[-1] > 0 else np.nan * fall[0]
    by_sigma = ", ".join(
        f"std {float(top.sigma):g}: {median_of(top):.2f} to {median_of(end):.2f}"
        for top, end in zip(peak, last, strict=True)
    )
    return difference.drop_vars("sigma", errors="ignore"), f"Emb-MLP, from its peak to the last step; {by_sigma}."


@claim(
    "I8", "States of (e1, r1) and e2 come together where two-hop questions are answered",
    quantity="cosine less that with other bridges, with identities less without", source=f"{PAPER}, latent alignment",
    published="(e1, r1) approaches e2", at_least=0.3, threshold_from=OURS,
)  # fmt: skip
def states_come_together(runs: Runs):
    arms, notes = [], []
    for identity, words in ((1, "with identities"), (0, "without")):
        true, other, any_other, rank = (
            _at_small(runs["linear_2"], f"latent.{name}", identity) for name in ("cosine", "other", "random", "rank")
        )
        arms.append(true - other)
        notes.append(
            f"{words} {median_of(true):.2f}, with another bridge of the relation {median_of(other):.2f}, with any "
            f"other {median_of(any_other):.2f}, median rank of the true one {median_of(rank):.0f}"
        )
    return arms[0] - arms[1], f"Linear model at complexity 2, smallest std; {'; '.join(notes)}."


@claim(
    "I9", "A model without factors shares nothing, identities or not", quantity="highest accuracy",
    source="control", published="-", at_most=0.05, threshold_from=OURS,
)  # fmt: skip
def no_factors_no_sharing(runs: Runs):
    accuracy, sharing = (_fitted(runs["table"], name, ("seed", "sigma"), identity=1) for name in (OOD, "block.sharing"))
    return accuracy.max("sigma", skipna=False), f"R = cp / (as): {median_of(sharing):.2f}."


def separation(accuracy_C: np.ndarray, sharing_C: np.ndarray) -> float:
    """Probability that a cell that answers shares more than one that does not; NaN if there are no such two."""
    there = np.isfinite(sharing_C)
    yes, no = (sharing_C[there & where] for where in (accuracy_C >= ANSWERED, accuracy_C <= LOST))
    if not yes.size or not no.size:
        return np.nan
    return float(np.mean((yes[:, None] > no[None]) + 0.5 * (yes[:, None] == no[None])))


def _area(run: Run) -> tuple[xr.DataArray, list[float]]:
    """`separation` by R of the cells with identities, by seed, and the median R of its two kinds of cells."""
    accuracy, sharing = (_all_cells(run.final(name, EVERY, identity=1)) for name in (OOD, "block.sharing"))
    area = xr.apply_ufunc(separation, accuracy, sharing, input_core_dims=[["cell"]] * 2, vectorize=True)
    return area, [float(sharing.where(where).median()) for where in (accuracy >= ANSWERED, accuracy <= LOST)]


def _fitted(run: Run, name: str, keep: tuple, **at) -> xr.DataArray:
    """At the end; NaN where a row does not fit all that it is trained on."""
    values, trained = (run.final(of, keep, **at) for of in (name, "train.accuracy"))
    return values.where(trained > 1 - 1e-6)


def _small(values: xr.DataArray) -> xr.DataArray:
    """Rows with small initial weights."""
    small = values.where(values.sigma <= SMALL * (1 + 1e-6), drop=True)
    if not small.size:
        raise MissingData(f"a sigma of at most {SMALL}")
    return small


def _with_identities(run: Run, name: str = OOD, **at) -> tuple[xr.DataArray, xr.DataArray]:
    """At the smallest initial std and at the large one."""
    small, large = (run.final(name, ("seed",), identity=1, sigma=sigma, **at) for sigma in (min, LARGE))
    return small, large


def _at_small(run: Run, name: str, identity: float) -> xr.DataArray:
    return run.final(name, ("seed",), identity=identity, sigma=min, weight_decay=min)


def _all_cells(values: xr.DataArray) -> xr.DataArray:
    return values.stack(cell=[dim for dim in values.dims if dim != "seed"]).reset_index("cell", drop=True)


def _cells(values: xr.DataArray) -> str:
    """Medians over seeds by std, over all decays."""
    return ", ".join(f"std {float(one.sigma):g}: {median_of(one):.2f}" for one in values.transpose("sigma", ...))


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER,),
    measures=measures,
    claims=(
        identities_join, without_identities_none, large_weights_answer_fewer, decay_brings_back,
        bag_is_like_the_transformer, answers_are_shortcuts, sharing_separates, nuclear_norm_is_least,
        decay_of_generalization, states_come_together, no_factors_no_sharing,
    ),
    target=OOD,
    usual={"weight_decay": min, "identity": max, "sigma": min},
    sections=sections,
    published_sizes=False,
)  # fmt: skip
