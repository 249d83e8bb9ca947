"""Corrupted primitives: how many steps training takes when some pairs of anchors get wrong, symmetric labels.

Variants of setting `all_pairs` differ in depth and in how many unordered pairs are wrong (`task.noise_groups`). Their
rows are compared at the largest gamma, seed by seed.
"""

import numpy as np
import xarray as xr

from lab.analysis.statistics import first_where
from lab.claims import DIRECTION, FIGURE, claim
from lab.report import comparison, maps
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.tasks.composition import NOISE_GROUPS

PAPER = "arXiv 2501.08537"
FITTED = 0.1  # nats of training loss (the released notebook)
LEARNT = 0.99  # of the answers of one pair
SHALLOW = 2  # layers of the model whose pairs the paper looks at
ONE, MANY = 1, 5  # corrupted pairs
# Published epochs to a training loss below 0.1, mean and standard deviation over 8 seeds: depth -> corrupted pairs ->
# both; read off a picture
EPOCHS = {
    2: {0: (20, 3), 1: (31, 9), 5: (43, 12)},
    3: {0: (20, 1), 1: (22, 2), 5: (24, 2)},
    4: {0: (17, 1), 1: (20.5, 2), 5: (23, 2)},
}

NOISE = (
    "All pairs are trained, some with wrong but symmetric labels. A wrong pair spoils the shifts of its two anchors, "
    "so pairs of these anchors alone are learnt last."
)


def trainings(runs: Runs) -> dict[tuple[int, int], Run]:
    """(layers, corrupted pairs) -> run, in order."""
    chosen = runs.where(lambda _, run: run.config["task"].get("setting") == "all_pairs").values()
    by_place = {(run.config["model"]["n_layers"], run.config["task"]["noise_groups"]): run for run in chosen}
    return dict(sorted(by_place.items()))


def training(runs: Runs, depth: int, corrupted: int) -> Run:
    """
    Raises:
      MissingData: it was not trained.
    """
    by_place = trainings(runs)
    if (depth, corrupted) not in by_place:
        raise MissingData(f"a training of {depth} layers with {corrupted} corrupted pairs")
    return by_place[depth, corrupted]


def fitted_at(run: Run) -> xr.DataArray:
    """First evaluation, by seed, with a training loss below `FITTED`; infinite where there is none, NaN if diverged."""
    return _first(run, _over_time(run, "train.loss") < FITTED)


def learnt_at(run: Run) -> xr.DataArray:
    """(seed, pair): first evaluation with more than `LEARNT` of a pair's training answers right, as `fitted_at`."""
    return _first(run, _over_time(run, "train.pair_accuracy") > LEARNT)


def at_most_all(steps: xr.DataArray, run: Run) -> xr.DataArray:
    """What is never reached counts all steps."""
    return steps.clip(max=float(run.dataset.step[-1]))


def is_slowed(pair: xr.DataArray, corrupted: int) -> xr.DataArray:
    """Which pairs `a,b` have both anchors in one corrupted pair: (1,2), (2,1), (1,1) and (2,2) where (1,2) is."""
    sets = [{str(a), str(b)} for a, b, _ in NOISE_GROUPS[:corrupted]]
    both_P = [any(set(str(label).split(",")) <= anchors for anchors in sets) for label in pair.values]
    return xr.DataArray(both_P, {"pair": pair.values}, ["pair"])


def slowdown(runs: Runs, depth: int) -> xr.DataArray:
    """By seed: steps with `MANY` corrupted pairs over steps with none; one that does not get there counts all steps."""
    noisy = training(runs, depth, MANY)
    clean = fitted_at(training(runs, depth, 0))
    return at_most_all(fitted_at(noisy), noisy) / clean.where(np.isfinite(clean))


def _over_time(run: Run, name: str) -> xr.DataArray:
    return run.over_time(name, ("seed",), gamma=max)


def _first(run: Run, reached: xr.DataArray) -> xr.DataArray:
    return first_where(reached, "step").fillna(np.inf).where(run.final("train.loss", ("seed",), gamma=max).notnull())


@claim(
    "K1", "Corrupted primitives slow training down",
    quantity=f"steps to loss {FITTED}, {MANY} corrupted over none", source=f"{PAPER}, noise groups",
    published="20 +- 3 epochs with none, 43 +- 12 with 5 pairs corrupted, depth 2: 43 - 12 over 20 + 3",
    at_least=1.35, threshold_from=FIGURE,
)  # fmt: skip
def corruption_slows(runs: Runs):
    medians = {at: float(fitted_at(run).median()) for at, run in trainings(runs).items()}
    listed = "; ".join(f"{depth} layers, {k} corrupted {steps:.0f}" for (depth, k), steps in medians.items())
    return slowdown(runs, SHALLOW), f"Median steps: {listed}."


@claim(
    "K2", "and exactly the pairs that are made of them",
    quantity=f"steps to {LEARNT:.0%}, first of these pairs over last of the others", source=f"{PAPER}, noise groups",
    published="20 to 24 epochs for pairs of the corrupted anchors, 15 to 17.5 for all others", above=1,
    threshold_from=DIRECTION,
)  # fmt: skip
def exactly_the_pairs(runs: Runs):
    run = training(runs, SHALLOW, ONE)
    slow_P, reached = is_slowed(run.dataset.pair, ONE), learnt_at(run)
    last = reached.where(~slow_P).max("pair")
    steps = at_most_all(reached, run)
    slowed, others = (
        f"{float(chosen.min()):.0f} to {float(chosen.max()):.0f}"
        for chosen in (steps.median("seed").where(chosen_P) for chosen_P in (slow_P, ~slow_P))
    )
    note = f"Median steps to {LEARNT:.0%}: {slowed} for pairs of the corrupted anchors alone, {others} for others."
    return steps.where(slow_P).min("pair") / last.where(np.isfinite(last)), note


@claim(
    "K3", "Deeper models are slowed less", quantity=f"slowdown at depth {SHALLOW} over that of the deepest",
    source=f"{PAPER}, noise groups", published="by a factor of 2.2 at depth 2, 1.2 at 3, 1.4 at 4", above=1,
    threshold_from=DIRECTION,
)  # fmt: skip
def depth_helps(runs: Runs):
    deepest = max((depth for depth, _ in trainings(runs)), default=SHALLOW)
    if deepest == SHALLOW:
        raise MissingData(f"a model of more than {SHALLOW} layers on corrupted pairs")
    ratio = slowdown(runs, SHALLOW) / slowdown(runs, deepest)
    return ratio, f"Depth {SHALLOW} over depth {deepest}."


CLAIMS = (corruption_slows, exactly_the_pairs, depth_helps)


def sections(runs: Runs) -> list[Section]:
    if not trainings(runs):
        return []
    return [draw_section("Corrupted primitives", NOISE, runs, (steps_to_fit, steps_by_pair), "noise")]


def steps_to_fit(runs: Runs) -> Picture:
    steps, ours, theirs = {}, {}, {}
    for (depth, k), run in trainings(runs).items():
        steps.setdefault(depth, {})[k] = fitted_at(run)
    for depth, by_k in steps.items():
        together = xr.concat(by_k.values(), xr.Variable("corrupted", list(by_k)), coords="minimal", compat="override")
        ours[f"{depth} layers"] = together.where(np.isfinite(together)).transpose("seed", "corrupted")
        if depth in EPOCHS:
            bands = [(mean - deviation, mean, mean + deviation) for mean, deviation in EPOCHS[depth].values()]
            theirs[f"{depth} layers"] = xr.DataArray(bands, {"corrupted": list(EPOCHS[depth])}, ["corrupted", "band"]).T
    panels = {"ours (steps)": ours, f"{PAPER} (epochs)": theirs}
    figure = comparison.curves(panels, f"Steps to a training loss of {FITTED}", xlabel="corrupted pairs")
    return Picture("steps", "Published: mean and standard deviation over 8 seeds, gamma 0.8.", figure)


def steps_by_pair(runs: Runs) -> Picture:
    """
    Raises:
      MissingData: no model of two layers was trained.
    """
    shallow = {k: run for (depth, k), run in trainings(runs).items() if depth == SHALLOW}
    if not shallow:
        raise MissingData(f"a training of {SHALLOW} layers on corrupted pairs")
    medians = {k: at_most_all(learnt_at(run), run).median("seed") for k, run in shallow.items()}
    grids = {f"{k} corrupted": median.values.reshape(4, 4) for k, median in medians.items()}
    names = ["1", "2", "3", "4"]
    title = f"Steps to {LEARNT:.0%} of a pair's answers, {SHALLOW} layers"
    figure = maps.heatmap(grids, names, names, "steps", title, "first anchor", "second anchor")
    return Picture("pairs", "Medians over seeds; pairs not learnt count all steps.", figure)
