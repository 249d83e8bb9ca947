"""The claims of the composition study; every threshold is from the papers, none from our runs.

A row is *named* after the solution that answers the unseen pair (4,3) more often, if that is at least half the time
(arXiv 2405.05409: "whichever it tends to output"). Accuracies are those of the last step, not the best one seen.
Each claim's number is taken per seed; it holds when every seed reaches the threshold. Claims that contrast large and
small initial weights take the smallest and the largest gamma of the grid.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.analysis.embedding import spearman
from lab.studies.claims import Claim, Lacking, Measured, variant
from lab.studies.composition.measures import QUERY

SMALL_DECAY, LARGE_DECAY = 0.01, 1.0
NAMED = 0.5
INITIALIZATION = "arXiv 2405.05409"
COMPLEXITY = "arXiv 2501.08537"

Datasets = Mapping[str, xr.Dataset]


def final(dataset: xr.Dataset, name: str, weight_decay: float = SMALL_DECAY) -> xr.DataArray:
    """A variable's last value with dims (seed, gamma), at one weight decay and the middle learning rate.

    NaN for rows that diverged.

    Raises:
      Lacking: there is no such variable, or no such weight decay in the grid.
    """
    if name not in dataset:
        raise Lacking(name)
    values, n_rates = dataset[name].where(dataset["diverged_at"] < 0), dataset.sizes["learning_rate"]
    for time in {"step", "snapshot"} & set(values.dims):
        values = values.isel({time: -1})
    (index,) = np.nonzero(np.isclose(values.weight_decay, weight_decay))
    if not index.size:
        raise Lacking(f"weight decay {weight_decay:g}")
    return values.isel(weight_decay=index[0], learning_rate=n_rates // 2).transpose("seed", "gamma", ...)


def crossing(reasoning_G: np.ndarray, gamma_G: np.ndarray) -> float:
    """Smallest gamma at which reasoning accuracy reaches one half, linear between grid points.

    The grid's smallest gamma if it does so already there; NaN if it never does.
    """
    above = np.flatnonzero(reasoning_G >= NAMED)
    if not above.size:
        return float("nan")
    right = above[0]
    if right == 0:
        return float(gamma_G[0])
    return float(np.interp(NAMED, reasoning_G[right - 1 : right + 1], gamma_G[right - 1 : right + 1]))


def crossings(dataset: xr.Dataset, decay: float) -> np.ndarray:
    """`crossing` of every seed at one weight decay."""
    reasoning = final(dataset, "ood_43.reasoning", decay)
    return np.array([crossing(one, reasoning.gamma.values) for one in reasoning.values])


def numbers(values) -> tuple[float, ...]:
    """One a seed, as `Measured` takes them."""
    return tuple(float(value) for value in np.asarray(values))


def seen_pairs_generalize(datasets: Datasets) -> Measured:
    worst, n_rows = {}, 0
    for dataset in datasets.values():
        last = dataset.isel(step=-1)
        named = np.maximum(last["ood_43.reasoning"], last["ood_43.symmetric"]) >= NAMED
        seen = last["test_seen.accuracy"].where(named)
        n_rows += int(named.sum())
        for seed in dataset.seed.values.tolist():
            worst[seed] = float(np.fmin(worst.get(seed, np.nan), seen.sel(seed=seed).min()))
    return Measured(tuple(worst.values()), 0.99, f"Lowest accuracy among the {n_rows} named rows of all variants.")


def scale_picks_the_solution(datasets: Datasets) -> Measured:
    dataset = variant(datasets, "wrong")
    large, small = _ends(final(dataset, "ood_43.reasoning") - final(dataset, "ood_43.symmetric"))
    note = f"Reasoning minus symmetric accuracy: {_at_both(large, small)}."
    return Measured(numbers(np.minimum(-large, small)), 0.0, note, strictly=True)


def reasoning_rises(datasets: Datasets) -> Measured:
    reasoning = final(variant(datasets, "unseen"), "ood_43.reasoning")
    low, high = reasoning.isel(gamma=0), reasoning.max("gamma")
    note = f"From {_median(low):.2f} at gamma {float(low.gamma):g} to {_median(high):.2f} at the best gamma."
    return Measured(numbers(high - low), 0.8, note)


def decay_moves_the_crossing(datasets: Datasets) -> Measured:
    small, large = (crossings(variant(datasets, "unseen"), decay) for decay in (SMALL_DECAY, LARGE_DECAY))
    grid = ", ".join(f"{gamma:g}" for gamma in variant(datasets, "unseen").gamma.values)
    note = (
        f"Median crossing {np.median(small):.2f} at decay {SMALL_DECAY}, {np.median(large):.2f} at {LARGE_DECAY:g}; "
        f"linear between gamma {grid}, and at the first of them where that reasons already."
    )
    return Measured(numbers(small - large), 0.05, note)


def stable_rank_falls(datasets: Datasets) -> Measured:
    # a ratio of ranks: geometric means on both sides
    log_rank = np.log(final(variant(datasets, "unseen"), "rank.stable").sel(matrix=QUERY))
    below, above = map(np.exp, _across(log_rank, datasets))
    note = f"Geometric mean of memory rows {np.median(below):.1f}, of reasoning rows {np.median(above):.1f}."
    return Measured(numbers(below / above), 2.0, note)


def condensation_rises(datasets: Datasets) -> Measured:
    share = final(variant(datasets, "unseen"), "condensation.fraction_above")
    correlation = [float(spearman(share.gamma.values, one)) for one in share.values]
    note = f"Share of neuron pairs with |cosine| above threshold, by gamma: {_listed(share.median('seed'))}."
    return Measured(tuple(correlation), 0.8, note)


def embeddings_are_ordered(datasets: Datasets) -> Measured:
    below, above = _across(final(variant(datasets, "unseen"), "embedding.order"), datasets)
    note = f"|Spearman| of the best component: memory rows {np.median(below):.2f}, reasoning {np.median(above):.2f}."
    return Measured(numbers(above - below), 0.5, note)


def circuits_differ(datasets: Datasets) -> Measured:
    dataset = variant(datasets, "wrong")
    large, small = _ends(final(dataset, "flow.reasoning_score") - final(dataset, "flow.symmetric_score"))
    note = f"Reasoning minus symmetric circuit score: {_at_both(large, small)}."
    if "flow.reasoning_score" in datasets.get("unseen", ()):
        unseen = _ends(final(datasets["unseen"], "flow.reasoning_score"))
        note += f" In 34_unseen, reasoning circuit score alone: {_at_both(*unseen)}."
    return Measured(numbers(np.minimum(-large, small)), 0.0, note, strictly=True)


def fused_vectors_agree(datasets: Datasets) -> Measured:
    large, small = _ends(final(variant(datasets, "wrong"), "fused.contrast"))
    note = f"Cosine of fused vectors, equal minus other outputs: {_at_both(large, small)}."
    return Measured(numbers(small - large), 0.25, note)


CLAIMS = (
    Claim(
        "C1",
        "Rows named after a solution answer seen pairs at held-out (value, position)",
        f"{INITIALIZATION}, section 3",
        "test accuracy of at least 0.99",
        "lowest accuracy of a named row at least 0.99",
        seen_pairs_generalize,
    ),
    Claim(
        "C2",
        "In 34_wrong, large initial weights answer (4,3) symmetrically, small ones by reasoning",
        f"{INITIALIZATION}, figure 2",
        "symmetric at gamma 0.5 (close to 1), reasoning at 0.8",
        "the named solution leads in both rows: smaller lead above 0",
        scale_picks_the_solution,
    ),
    Claim(
        "C3a",
        "In 34_unseen, reasoning on (4,3) rises from near 0 to near 1 with gamma",
        f"{COMPLEXITY}, decay 0.01",
        "0.04 to 0.09 below gamma 0.55, 0.97 from 0.60 on",
        "rise of at least 0.8",
        reasoning_rises,
    ),
    Claim(
        "C3b",
        "Weight decay 1 lets larger initial weights reason: the crossing gamma moves down",
        f"{COMPLEXITY}, phase grid",
        "from 0.55-0.60 at decay 0.01 to 0.40-0.45 at decay 1",
        "by at least 0.05, one step of the published grid",
        decay_moves_the_crossing,
    ),
    Claim(
        "C4",
        "The stable rank of W_Q falls across the crossing",
        f"{COMPLEXITY}, stable-rank grid",
        "30 at gamma 0.55, 14 at 0.60, below 10 from 0.65 on",
        "at least halved",
        stable_rank_falls,
    ),
    Claim(
        "C5",
        "Condensation of W_Q rises with gamma",
        f"{INITIALIZATION}, section 5",
        "rises over gamma 0.3 to 0.7 at every depth",
        "rank correlation with gamma at least 0.8",
        condensation_rises,
    ),
    Claim(
        "C6",
        "Reasoning rows order token embeddings by value, memory rows do not",
        f"{INITIALIZATION}, section 5; {COMPLEXITY}",
        "ordered along the leading directions; at gamma 0.5 no structure",
        "rank correlation of a component with value higher by at least 0.5",
        embeddings_are_ordered,
    ),
    Claim(
        "C7",
        "Reasoning rows copy the key to each anchor, symmetric rows merge the anchors first",
        f"{INITIALIZATION}, section 4",
        "the two circuits drawn there",
        "each row's own circuit scores higher: difference above 0",
        circuits_differ,
    ),
    Claim(
        "C8",
        "In reasoning rows fused vectors are parallel exactly where outputs agree",
        f"{INITIALIZATION}, figure 4; {COMPLEXITY}",
        "0.91-0.98 where outputs agree, 0.23-0.49 elsewhere; low in symmetric rows",
        "contrast higher than in symmetric rows by at least 0.25",
        fused_vectors_agree,
    ),
)


def _ends(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The rows with the largest and with the smallest initial weights."""
    return values.isel(gamma=0), values.isel(gamma=-1)


def _at_both(large: xr.DataArray, small: xr.DataArray) -> str:
    return ", ".join(f"{_median(values):.2f} at gamma {float(values.gamma):g}" for values in (large, small))


def _across(values: xr.DataArray, datasets: Datasets) -> tuple[np.ndarray, np.ndarray]:
    """Per seed: mean over rows below and over rows above the crossing; NaN where a side is empty."""
    reasoning = final(variant(datasets, "unseen"), "ood_43.reasoning")
    below, above = values.where(reasoning < NAMED), values.where(reasoning >= NAMED)
    return below.mean("gamma").values, above.mean("gamma").values


def _median(values: xr.DataArray) -> float:
    return float(values.median())


def _listed(values: xr.DataArray) -> str:
    return ", ".join(f"{float(v.gamma):g}: {float(v):.3f}" for v in values)
