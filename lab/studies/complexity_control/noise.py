"""Corrupted primitives: how much longer training takes when some pairs of anchors get wrong, symmetric labels.

Variants of setting `all_pairs` differ in depth and in how many unordered pairs are wrong (`task.noise_groups`). Their
rows are compared at the largest gamma, and the middle of every other axis, seed by seed.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.studies.claims import Claim, Lacking, Measured
from lab.studies.complexity_control.published import PAPER
from lab.tasks.composition import NOISE_GROUPS

FITTED = 0.1  # nats of training loss (the released notebook)
LEARNT = 0.99  # of the answers of one pair
SHALLOW = 2  # layers of the model whose pairs the paper looks at
ONE, MANY = 1, 5  # corrupted pairs

Datasets = Mapping[str, xr.Dataset]


def trained(datasets: Datasets) -> dict[tuple[int, int], xr.Dataset]:
    """(layers, corrupted pairs) -> rows by seed, in order; NaN for those that diverged."""
    found = {}
    for dataset in datasets.values():
        task, model = dataset.attrs["config"]["task"], dataset.attrs["config"]["model"]
        if task.get("setting") == "all_pairs":
            middle = {axis: n // 2 for axis, n in dataset["diverged_at"].sizes.items() if axis not in ("seed", "gamma")}
            rows = dataset.sortby("gamma").isel(middle | {"gamma": -1})
            found[model["n_layers"], task["noise_groups"]] = rows.where(rows["diverged_at"] < 0)
    return dict(sorted(found.items()))


def fitted_at(rows: xr.Dataset) -> np.ndarray:
    """First evaluation, by seed, with a training loss below `FITTED`; infinite where there is none, NaN if diverged."""
    return _first(rows, rows["train.loss"] < FITTED).values


def learnt_at(rows: xr.Dataset) -> xr.DataArray:
    """(seed, pair): first evaluation with more than `LEARNT` of a pair's training answers right, as `fitted_at`."""
    return _first(rows, rows["train.pair_accuracy"] > LEARNT).transpose("seed", "pair")


def is_slowed(pairs, corrupted: int) -> np.ndarray:
    """Which pairs `a,b` have both anchors in one corrupted pair: (1,2), (2,1), (1,1) and (2,2) where (1,2) is."""
    sets = [{str(a), str(b)} for a, b, _ in NOISE_GROUPS[:corrupted]]
    return np.array([any(set(str(pair).split(",")) <= anchors for anchors in sets) for pair in pairs])


def slowdown(datasets: Datasets, depth: int) -> np.ndarray:
    """By seed: steps with `MANY` corrupted pairs over steps with none; one that does not get there counts all steps."""
    corrupted, clean = (_of(datasets, depth, k) for k in (MANY, 0))
    clean_S = fitted_at(clean)
    return np.minimum(fitted_at(corrupted), float(corrupted.step[-1])) / np.where(np.isfinite(clean_S), clean_S, np.nan)


def corruption_slows(datasets: Datasets) -> Measured:
    return Measured(tuple(slowdown(datasets, SHALLOW).tolist()), 1.35, _medians(datasets))


def exactly_the_pairs(datasets: Datasets) -> Measured:
    rows = _of(datasets, SHALLOW, ONE)
    steps_SxP = np.minimum(learnt_at(rows).values, float(rows.step[-1]))
    never_SxP = np.isinf(learnt_at(rows).values)
    slowed_P = is_slowed(rows.pair.values, ONE)
    others_S = np.where(never_SxP[:, ~slowed_P].any(axis=1), np.nan, steps_SxP[:, ~slowed_P].max(axis=1))
    median_P = np.median(steps_SxP, axis=0)
    note = (
        f"Median steps to {LEARNT:.0%}: {median_P[slowed_P].min():.0f} to {median_P[slowed_P].max():.0f} for pairs of "
        f"the corrupted anchors alone, {median_P[~slowed_P].min():.0f} to {median_P[~slowed_P].max():.0f} for others."
    )
    return Measured(tuple((steps_SxP[:, slowed_P].min(axis=1) / others_S).tolist()), 1.0, note, strictly=True)


def depth_helps(datasets: Datasets) -> Measured:
    deepest = max((depth for depth, _ in trained(datasets)), default=SHALLOW)
    if deepest == SHALLOW:
        raise Lacking(f"a model of more than {SHALLOW} layers on corrupted pairs")
    ratio_S = slowdown(datasets, SHALLOW) / slowdown(datasets, deepest)
    return Measured(tuple(ratio_S.tolist()), 1.0, f"Depth {SHALLOW} over depth {deepest}.", strictly=True)


CLAIMS = (
    Claim(
        "N1", "Corrupted primitives slow training down", f"{PAPER}, noise groups",
        "20 +- 3 epochs with none, 43 +- 12 with 5 pairs corrupted, depth 2",
        "steps to loss 0.1, 5 corrupted over none, at least 1.35: 43 - 12 over 20 + 3", corruption_slows,
    ),
    Claim(
        "N2", "and exactly the pairs that are made of them", f"{PAPER}, noise groups",
        "20 to 24 epochs for pairs of the corrupted anchors, 15 to 17.5 for all others",
        "steps to 99 %, first of the former over last of the latter, above 1", exactly_the_pairs,
    ),
    Claim(
        "N3", "Deeper models are slowed less", f"{PAPER}, noise groups",
        "by a factor of 2.2 at depth 2, 1.2 at 3, 1.4 at 4", "factor at depth 2 over that of the deepest above 1",
        depth_helps,
    ),
)  # fmt: skip


def _of(datasets: Datasets, depth: int, corrupted: int) -> xr.Dataset:
    found = trained(datasets)
    if (depth, corrupted) not in found:
        raise Lacking(f"a training of {depth} layers with {corrupted} corrupted pairs")
    return found[depth, corrupted]


def _first(rows: xr.Dataset, reached: xr.DataArray) -> xr.DataArray:
    first = reached.astype(int).idxmax("step").astype(float)
    return first.where(reached.any("step"), np.inf).where(rows["train.loss"].isel(step=-1, drop=True).notnull())


def _medians(datasets: Datasets) -> str:
    listed = {key: np.median(fitted_at(rows)) for key, rows in trained(datasets).items()}
    return f"Median steps: {'; '.join(f'{n} layers, {k} corrupted {at:.0f}' for (n, k), at in listed.items())}."
