"""The claims of the complexity-control study: phases over gamma and weight decay, circuits, noise groups, addition.

Thresholds are the paper's numbers, written before any run. Accuracies are those of the last evaluation, not the best
one, which is what the paper reports: the best flatters every phase (the report shows both). Where a grid has several
learning rates the middle one counts. A claim's number is taken per seed; it holds when every seed reaches the
threshold. The *boundary* of a seed is the first gamma of the grid that answers half of the unseen pair by reasoning.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.analysis import complexity, phase
from lab.studies.claims import Claim, Lacking, Measured, variant
from lab.studies.complexity_control import language, noise
from lab.studies.complexity_control.circuits import CIRCUITS
from lab.studies.complexity_control.published import EQUIVALENCE, PAPER
from lab.studies.composition.claims import LARGE_DECAY, NAMED, SMALL_DECAY, crossings, final, numbers
from lab.studies.composition.measures import QUERY

DESTROYED, SPARED = 0.5, 0.1  # shares of its accuracy that cutting edges costs
MECHANISM = "two_layers"  # the circuits' variant where the phase grid is of a deeper model

Datasets = Mapping[str, xr.Dataset]


def phases(dataset: xr.Dataset) -> xr.DataArray:
    """Phase of every row at the last evaluation, as `phase.classify`."""
    last = dataset.isel(step=-1)
    return phase.classify(last["test_seen.accuracy"], last["ood_43.reasoning"], last["swap.commutativity"])


def alike_but_wrong(dataset: xr.Dataset) -> xr.DataArray:
    """Least share of unseen sequences answered alike in both orders, and wrong in both: commutativity less reasoning.

    Commutativity alone is high where both orders are answered rightly, too.
    """
    return np.maximum(dataset["swap.commutativity"] - dataset["swap.reasoning"], 0)


def suspects(dataset: xr.Dataset) -> xr.Dataset:
    """`complexity.predictors` of the phase, from 1 to 3: which measure of complexity goes with it?"""
    last = dataset.isel(snapshot=-1)
    measures = {
        "stable rank of W_Q": last["rank.stable"].sel(matrix=QUERY),
        "neuron groups of W_Q": last["condensation.n_groups"],
        "condensed neuron pairs of W_Q": last["condensation.fraction_above"],
        "norm of the weights": last["norm.log_frobenius_whole"],
        "sharpness": dataset["minimum.top"],
        "description length": dataset["quantization.description_length"],
    }
    found = phases(dataset)
    knobs = [axis for axis in dataset["diverged_at"].dims if axis != "seed"]
    return complexity.predictors(dataset, measures, found.where(found != phase.NO_PHASE), knobs)


def boundary_moves(datasets: Datasets) -> Measured:
    dataset = variant(datasets, "phase")
    small, large = (crossings(dataset, decay) for decay in (SMALL_DECAY, LARGE_DECAY))
    note = (
        f"Median boundary {np.median(small):.2f} at decay {SMALL_DECAY:g}, {np.median(large):.2f} at {LARGE_DECAY:g}; "
        f"linear between gamma {_listed(dataset.gamma.values)}, and at the first of them where that reasons already."
    )
    return Measured(numbers(small - large), 0.05, note)


def accuracy_jumps(datasets: Datasets) -> Measured:
    reasoning = final(variant(datasets, "phase"), "ood_43.reasoning")
    above_S = _boundary(reasoning)
    jumps = [_step(one, above) for one, above in zip(reasoning.values, above_S, strict=True)]
    at = ", ".join("none" if np.isnan(a) else f"{reasoning.gamma.values[int(a)]:g}" for a in above_S)
    return Measured(numbers(jumps), 0.8, f"Between two gammas of the grid; the upper one, by seed: {at}.")


def rank_collapses_before(datasets: Datasets) -> Measured:
    dataset = variant(datasets, "phase")
    now = final(dataset, "rank.stable").sel(matrix=QUERY)
    start = final(dataset.isel(snapshot=[0]), "rank.stable").sel(matrix=QUERY)
    above_S = _boundary(final(dataset, "ood_43.reasoning"))
    ratio_SxG, ratios = (now / start).values, []
    for one, above in zip(ratio_SxG, above_S, strict=True):
        ratios.append(one[int(above) - 1] if above > 0 else np.nan)
    by_gamma = ", ".join(
        f"{g:g}: {r:.2f}" for g, r in zip(now.gamma.values, np.nanmedian(ratio_SxG, axis=0), strict=True)
    )
    return Measured(numbers(ratios), at_most=0.5, note=f"Share of the initial stable rank left, by gamma: {by_gamma}.")


def commutes_in_the_middle(datasets: Datasets) -> Measured:
    dataset = variant(datasets, "phase")
    found = final(dataset.assign(phase=phases(dataset)), "phase")
    alike = final(dataset.assign(alike=alike_but_wrong(dataset)), "alike")
    memory = found.isin([phase.PHASES.index(name) for name in ("2 w/o", "2 w")])
    outside = found.isin([phase.PHASES.index(name) for name in ("1", "3")])
    inside_S, outside_S = (alike.where(where).max("gamma").values for where in (memory, outside))
    note = (
        f"Highest share answered alike but wrong: {np.median(inside_S):.2f} in rows that know the seen pairs only, "
        f"{np.median(outside_S):.2f} in all others; {int(memory.sum())} rows of the former."
    )
    return Measured(numbers(inside_S - outside_S), 0.5, note)


def cutting_destroys(datasets: Datasets) -> Measured:
    lost = _lost(datasets)
    return Measured(numbers(lost["reasoning"]), DESTROYED, _each(lost))


def cutting_spares(datasets: Datasets) -> Measured:
    lost = _lost(datasets)
    worst_S = np.maximum(lost["symmetric"], lost["random"])
    return Measured(numbers(worst_S), at_most=SPARED, note=_each(lost))


def anchors_are_one(datasets: Datasets) -> Measured:
    dataset = _two_layers(datasets)
    whole = final(dataset, "masked_unseen.whole")
    gap = final(dataset, "equivalence.gap").where(whole >= NAMED).isel(gamma=-1)
    means = {name: final(dataset, f"equivalence.{name}").isel(gamma=-1).median() for name in EQUIVALENCE}
    listed = ", ".join(f"{name.replace('_', ' ')} {float(mean):.2f}" for name, mean in means.items())
    return Measured(numbers(gap), 0.42, f"Mean cosines at gamma {float(gap.gamma):g}: {listed}.")


CLAIMS = (
    Claim(
        "P1", "Weight decay 1 moves the boundary of reasoning to larger initial weights", f"{PAPER}, phase grid",
        "from 0.55-0.60 at decay 0.01 to 0.40-0.45 at decay 1", "down by at least 0.05, one step of the published grid",
        boundary_moves,
    ),
    Claim(
        "P2", "Accuracy on the unseen pair jumps across the boundary", f"{PAPER}, decay 0.01",
        "0.09 at gamma 0.55, 0.97 at 0.60", "rise of at least 0.8 from one gamma of the grid to the next",
        accuracy_jumps,
    ),
    Claim(
        "P3", "The stable rank of W_Q collapses before the boundary", f"{PAPER}, stable-rank grid",
        "30 of 160 at gamma 0.55, the last below the boundary", "there at most half of its initial value",
        rank_collapses_before,
    ),
    Claim(
        "P4", "Unseen pairs are answered alike in both orders, but wrongly, in the middle phase only",
        f"{PAPER}, phase grid", "commuting at gamma 0.55 (phase 2 w), neither below nor above",
        "largest share among rows that know seen pairs only, less that of all others, at least 0.5",
        commutes_in_the_middle,
    ),
    Claim(
        "M1", "Cutting the reasoning circuit destroys reasoning", f"{PAPER}, circuit masking", "no number",
        "smallest weights lose at least half of their accuracy on the unseen pair", cutting_destroys,
    ),
    Claim(
        "M2", "and cutting the symmetric circuit or random edges does not", f"{PAPER}, circuit masking", "no number",
        "they lose at most a tenth by either", cutting_spares,
    ),
    Claim(
        "M3", "First shifts to the same value are one to a reasoning model", f"{PAPER}, first-anchor equivalence",
        "0.91 to 0.98 within a value, 0.23 to 0.49 across",
        "smallest weights: lowest within less highest across at least 0.42", anchors_are_one,
    ),
    *noise.CLAIMS,
    *language.corner_claims("A", "addition", ("addition",), "arXiv 2405.05409, realistic tasks"),
)  # fmt: skip


def _boundary(reasoning: xr.DataArray) -> np.ndarray:
    """By seed: index of the first gamma that reasons; NaN where none does."""
    reasons_SxG = reasoning.values >= NAMED
    return np.where(reasons_SxG.any(axis=1), reasons_SxG.argmax(axis=1), np.nan)


def _step(values_G: np.ndarray, above: float) -> float:
    return values_G[int(above)] - values_G[int(above) - 1] if above > 0 else np.nan


def _two_layers(datasets: Datasets) -> xr.Dataset:
    return datasets[MECHANISM] if MECHANISM in datasets else variant(datasets, "phase")


def _lost(datasets: Datasets) -> dict[str, np.ndarray]:
    """Circuit -> share of its accuracy on the unseen pair, by seed, that cutting it costs the row of the smallest
    weights; NaN where that row does not reason."""
    dataset = _two_layers(datasets)
    if "masked_unseen.whole" not in dataset:
        raise Lacking("a model of two layers with its circuits cut")
    of = {name: final(dataset, f"masked_unseen.{name}").isel(gamma=-1).values for name in ("whole", *CIRCUITS)}
    whole_S = np.where(of["whole"] >= NAMED, of["whole"], np.nan)
    return {name: 1 - of[name] / whole_S for name in CIRCUITS}


def _each(lost: Mapping[str, np.ndarray]) -> str:
    return f"Median loss: {', '.join(f'{name} {np.median(values):.2f}' for name, values in lost.items())}."


def _listed(values) -> str:
    return ", ".join(f"{value:g}" for value in values)
