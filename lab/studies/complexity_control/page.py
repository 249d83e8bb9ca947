"""The complexity-control study's report: our phase diagram beside the published one, and what explains it."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.analysis import phase
from lab.report import figures, maps, measures
from lab.report.page import Picture, Section
from lab.studies.complexity_control import language, noise, pictures, published
from lab.studies.complexity_control.circuits import CIRCUITS
from lab.studies.complexity_control.claims import MECHANISM, alike_but_wrong, phases, suspects
from lab.studies.composition.claims import LARGE_DECAY, SMALL_DECAY, final
from lab.studies.composition.measures import QUERY

TITLE = "Does the scale of weights and their decay decide what is learnt?"
LEAD = (
    "Initial scale (std = d_in^-gamma) and weight decay set how complex a solution training can afford. Pairs of "
    "anchors shift a key; (3,4) and (4,3) are held out. A row of low complexity learns the four shifts and composes "
    "them, one of higher complexity learns the pairs, one of the highest learns the examples."
)
PHASES = (
    "Phase 1 fails on seen pairs, `2 w/o` and `2 w` know seen pairs only (without, and with, the same answer to both "
    "orders of the unseen pair), 3 reasons. Ours is of the last evaluation, by a vote over seeds; the published one is "
    "of the best over all evaluations and of ten layers: compare how the boundary runs, not where it lies."
)
CIRCUIT = (
    "Attention edges are cut before the softmax, at the positions of each sequence's key and anchors. The reasoning "
    "circuit copies the key to both anchors and gathers these; the symmetric one gathers the anchors first. Cutting "
    "edges moves activations off what training has seen: a loss says that they matter, not what they carry."
)
COMPLEXITY = (
    "Measures of complexity of every row, and which goes with its phase: over all rows, and among rows of one gamma "
    "and decay, which differ in their seed alone."
)
NOISE = (
    "All pairs are trained, some with wrong but symmetric labels. A wrong pair spoils the shifts of its two anchors, "
    "so pairs of these anchors alone are learnt last."
)
DEPTH = (
    "(3,4) is trained wrong and (4,3) never: it can be answered by reasoning or symmetrically. The paper takes, for "
    "each of the two answers, the best of nine learning rates, which shows each phase where any rate has it."
)
RATES = "Both orders of the pair held out, initial scale gamma 0.5: learning rate and decay lower complexity, too."
ADDITION = "Sums of operands that both lie in the block are never trained. Digits are tokens, and all must be right."
SOLUTIONS = {"ood_43.reasoning": "reasoning on (4,3)", "ood_43.symmetric": "symmetric on (4,3)"}
ACCURACIES = {"test_seen.accuracy": "seen pairs, unseen keys", "ood_43.reasoning": "reasoning on (4,3)"}
MEASURED = {"condensation.n_groups": "neuron groups of W_Q", "minimum.top": "sharpness",
            "quantization.description_length": "description length (bits)"}  # fmt: skip


def sections(datasets: Mapping[str, xr.Dataset]) -> list[Section]:
    made = []
    if "phase" in datasets:
        dataset = datasets["phase"]
        made += [
            Section("Phases over initial scale and weight decay", PHASES, _phases(dataset)),
            Section("Complexity over the grid", COMPLEXITY, _complexity(dataset)),
        ]
    mechanism = datasets.get(MECHANISM, datasets.get("phase", {}))
    if "masked_unseen.whole" in mechanism:
        made.append(Section("Circuits that are cut", CIRCUIT, _circuits(mechanism)))
    if depths := by_depth(datasets):
        made.append(Section("Depth and initial scale", DEPTH, _depths(depths)))
    if "rates" in datasets:
        made.append(Section("Learning rate and weight decay", RATES, [_rates(datasets["rates"])]))
    if noise.trained(datasets):
        made.append(Section("Corrupted primitives", NOISE, _noise(datasets)))
    for name, dataset in datasets.items():
        if language.family(dataset) == "addition":
            made.append(Section("Addition, a block of operands held out", ADDITION, language.pictures(name, dataset)))
    return made


def by_depth(datasets: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Last evaluations of the variants `depth_<layers>`, by `n_layers`: at the middle learning rate, and for each
    solution at that which favours it most, as arXiv 2405.05409 reports; the first value of all else but the seed."""
    found = {"fixed": [], "best": []}
    for name, dataset in datasets.items():
        if name.startswith("depth_"):
            last = dataset[[*SOLUTIONS, "diverged_at"]].isel(step=-1, weight_decay=0, drop=True)
            last = last.assign_coords(n_layers=dataset.attrs["config"]["model"]["n_layers"])
            found["fixed"].append(last.isel(learning_rate=last.sizes["learning_rate"] // 2, drop=True))
            # a cell is lost where every rate diverged
            best = last.drop_vars("diverged_at").max("learning_rate")
            found["best"].append(best.assign(diverged_at=last["diverged_at"].min("learning_rate")))
    return {label: xr.concat(parts, "n_layers").sortby("n_layers") for label, parts in found.items() if parts}


def _phases(dataset: xr.Dataset) -> list[Picture]:
    votes = phase.vote(phases(dataset).isel(learning_rate=dataset.sizes["learning_rate"] // 2))
    grids = {"ours": votes["phase"], f"published, {published.PAPER}": published.phases()}
    title = "Phases over initial scale and weight decay"
    drawn = [
        Picture("phase-grid", title, PHASES, pictures.phases(grids, {"ours": votes["agreement"]}, title)),
        _slice(dataset),
    ]
    made = dataset.assign(alike=alike_but_wrong(dataset))
    shown = ACCURACIES | {"alike": "(3,4) and (4,3) alike but wrong"}
    drawn.append(
        Picture(
            "phase-accuracies", "Accuracies over the grid", "At the last evaluation.",
            figures.phase_diagram(made, shown, title="Accuracies over the grid", **_rate(dataset)),
        )
    )  # fmt: skip
    return drawn


def _slice(dataset: xr.Dataset) -> Picture:
    """Accuracies at weight decay 0.01, or the grid's smallest, at the end and the best, beside the published ones."""
    decay = _decay(dataset)
    panels = {}
    for name, label in ACCURACIES.items():
        best = dataset.assign(best=dataset[name].max("step"))
        panels[label] = {
            "ours, last evaluation": (dataset.gamma.values, final(dataset, name, decay).values),
            "ours, best evaluation": (dataset.gamma.values, final(best, "best", decay).values),
            "published, best evaluation": (published.SLICE_GAMMAS, published.SLICE[name]),
        }
    title = f"Accuracies at weight decay {decay:g}, ours and published"
    caption = "Published: ten layers, weight decay 0.01, mean over three seeds, read off a picture."
    return Picture("phase-slice", title, caption, pictures.beside_published(panels, title, ylim=(-0.06, 1.06)))


def _complexity(dataset: xr.Dataset) -> list[Picture]:
    ranks = {}
    for decay in sorted({_decay(dataset), LARGE_DECAY} & set(dataset.weight_decay.values.tolist())):
        rank = final(dataset, "rank.stable", decay).sel(matrix=QUERY)
        ranks[f"ours, decay {decay:g}"] = rank.gamma.values, rank.values
    theirs = published.stable_rank()
    for decay in theirs.weight_decay.values:
        ranks[f"published, decay {decay:g}"] = theirs.gamma.values, theirs.sel(weight_decay=decay).values
    title = "Stable rank of W_Q of the first block"
    caption = (
        "A Gaussian matrix has a quarter of its width: 160 at the published 640. Published values are good to about "
        "10, and are upper bounds from gamma 0.65 on, at decay 1 from 0.5 on."
    )
    figure = pictures.beside_published({title: ranks}, title, yscale="log")
    table = "Which complexity measure goes with the phase?"
    return [
        Picture("complexity-rank", title, caption, figure),
        Picture(
            "complexity-measures", "Measures over the grid", "At the end of training.",
            figures.curves_against_gamma(dataset, MEASURED, title="Measures of complexity", **_rate(dataset)),
        ),
        Picture("complexity-predictors", table, COMPLEXITY, measures.predictors(suspects(dataset), title=table)),
    ]  # fmt: skip


def _circuits(dataset: xr.Dataset) -> list[Picture]:
    decay = _decay(dataset)
    drawn = []
    for of, words in (("masked_seen", "seen pairs"), ("masked_unseen", "the unseen pair")):
        names = {f"{of}.whole": "nothing cut"} | {f"{of}.{name}": f"{name} cut" for name in CIRCUITS}
        figure = figures.curves_against_gamma(
            dataset, names, hue="metric", over="weight_decay", title=f"Accuracy on {words} with edges cut",
            **_rate(dataset),
        )  # fmt: skip
        drawn.append(Picture(of.replace("_", "-"), f"Accuracy on {words} with edges cut", CIRCUIT, figure))
    panels = {}
    for name, band in published.EQUIVALENCE.items():
        values = final(dataset, f"equivalence.{name}", decay)
        ends = (values.gamma.values[0], values.gamma.values[-1])
        panels[name.replace("_", " ")] = {
            "ours": (values.gamma.values, values.values),
            "published, gamma 0.8": (ends, [[end] * 2 for end in band]),
        }
    title = "Cosines of sequences whose first shift leads to one value, and to two"
    caption = "Published: two layers, gamma 0.8; the band is from the lowest to the highest pair of sequences."
    figure = pictures.beside_published(panels, title, ylim=(-0.1, 1.06))
    drawn.append(Picture("circuit-equivalence", title, caption, figure))
    rows = dataset.sel(weight_decay=decay, **_rate(dataset)).isel(seed=0)
    ends = {f"γ = {float(rows.gamma[i]):g}": rows.isel(gamma=i) for i in dict.fromkeys((0, rows.sizes["gamma"] - 1))}
    title = "What the output says of the pair"
    caption = (
        "Output vectors of sequences of the twelve unequal pairs, key at position 1, of the first seed. Hidden: no "
        "position reads the key's. The paper draws t-SNE of the latter; these are principal components, in which "
        "distances mean something but pairs may cover each other."
    )
    drawn.append(Picture("circuit-outputs", title, caption, pictures.outputs_by_pair(ends, title)))
    return drawn


def _depths(depths: Mapping[str, xr.Dataset]) -> list[Picture]:
    words = {"fixed": "at one learning rate", "best": "at the best learning rate for each answer"}
    return [
        Picture(
            f"depth-{label}", f"Depth and initial scale, {words[label]}", DEPTH,
            figures.phase_diagram(dataset, SOLUTIONS, rows="n_layers", title=f"Depth and γ, {words[label]}"),
        )
        for label, dataset in depths.items()
    ]  # fmt: skip


def _rates(dataset: xr.Dataset) -> Picture:
    title = "Reasoning by learning rate and weight decay"
    last = dataset["ood_43.reasoning"].isel(step=-1, gamma=0)
    median = last.where(dataset["diverged_at"].isel(gamma=0) < 0).median("seed").transpose("weight_decay", ...)
    names = [[f"{value:g}" for value in dataset[axis].values] for axis in ("weight_decay", "learning_rate")]
    shown = {"median over seeds": median.values}
    figure = maps.heatmap(shown, *names, "reasoning on (4,3)", title, "weight decay", "peak learning rate")
    return Picture("rates-grid", title, RATES, figure)


def _noise(datasets: Mapping[str, xr.Dataset]) -> list[Picture]:
    found = noise.trained(datasets)
    ours, theirs = {}, {}
    for depth in dict.fromkeys(depth for depth, _ in found):
        at = {k: noise.fitted_at(rows) for (n, k), rows in found.items() if n == depth}
        steps_SxK = np.stack([*at.values()], axis=1)
        ours[f"{depth} layers"] = list(at), np.where(np.isinf(steps_SxK), np.nan, steps_SxK)
        means = published.NOISE_EPOCHS.get(depth, {})
        theirs[f"{depth} layers"] = list(means), np.array([[m - s, m, m + s] for m, s in means.values()]).T
    title = "Steps to a training loss of 0.1"
    panels = {"ours (steps)": ours, f"{published.PAPER} (epochs)": theirs}
    figure = pictures.beside_published(panels, title, xlabel="corrupted pairs")
    drawn = [Picture("noise-steps", title, "Published: mean and standard deviation over 8 seeds, gamma 0.8.", figure)]
    grids = {}
    for (depth, k), rows in found.items():
        if depth == noise.SHALLOW:
            median_P = np.median(np.minimum(noise.learnt_at(rows).values, float(rows.step[-1])), axis=0)
            grids[f"{k} corrupted"] = median_P.reshape(4, 4)
    if grids:
        title = f"Steps to {noise.LEARNT:.0%} of a pair's answers, {noise.SHALLOW} layers"
        names = ["1", "2", "3", "4"]
        figure = maps.heatmap(grids, names, names, "steps", title, "first anchor", "second anchor")
        drawn.append(Picture("noise-pairs", title, "Medians over seeds; pairs not learnt count all steps.", figure))
    return drawn


def _rate(dataset: xr.Dataset) -> dict[str, float]:
    """The learning rate that claims are measured at."""
    return {"learning_rate": float(dataset.learning_rate[dataset.sizes["learning_rate"] // 2])}


def _decay(dataset: xr.Dataset) -> float:
    """The weight decay of most claims, or the grid's smallest."""
    decays = dataset.weight_decay.values
    return SMALL_DECAY if np.isclose(decays, SMALL_DECAY).any() else float(decays.min())
