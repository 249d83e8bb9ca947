"""What Mamba's convolution cannot see: arXiv 2509.17514 on reversed sequences, reversed pairs and single shifts.

Published values are read off the paper's figures; thresholds are ours, but for S6's, and written before the runs.
Accuracies are those of the last step unless a claim says when. What a model does that has learnt nothing, too, is asked
of seeds that know what they were shown. Variants are named `mamba_<layers>`, `transformer_<layers>` (of the standard
task, one a depth), and after what they change.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab import models
from lab.analysis import statistics
from lab.analysis.statistics import median_of
from lab.claims import FIGURE, OURS, claim
from lab.experiment import Experiment
from lab.measuring.catalogue import state_space, weights
from lab.measuring.declare import Measure
from lab.report import comparison, figures, maps, portraits
from lab.report import state_space as pictures
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Place, Run, Runs
from lab.studies import Study
from lab.tasks import Composition, InverseMatching, SymmetricComposition

PAPER = "arXiv 2509.17514"
TASKS = (Composition, SymmetricComposition, InverseMatching)
CHANCE, FITTED, KNOWN = 0.2, 0.9, 0.99  # of five answers; from where sets are fitted, a pair is known
REDUCED = "published; in presets cpu and record 10,000 and 20,000 of 80,000 sequences, width 64 of 128, fewer updates"
DEEP, LARGE, SMALL, USUAL = 5, 0.3, 1.0, 0.5  # layers, and gamma of large, small and usual initial weights

GAMMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)
LAYERS = (2, 3, 4, 5, 6, 7)
PUBLISHED = {  # composite accuracy on (4,3), read off two figures of the paper; rows as LAYERS, columns as GAMMAS
    "mamba": (
        (0.06, 0.05, 0.04, 0.08, 0.25, 0.13, 0.29, 0.30, 0.50, 0.61, 0.34, 0.55),
        (0.07, 0.06, 0.06, 0.09, 0.07, 0.09, 0.17, 0.23, 0.85, 0.94, 0.64, 0.64),
        (0.08, 0.09, 0.10, 0.07, 0.12, 0.15, 0.23, 0.34, 0.49, 0.92, 0.77, 0.94),
        (0.10, 0.10, 0.11, 0.10, 0.14, 0.18, 0.31, 0.34, 0.44, 0.72, 0.73, 0.89),
        (0.12, 0.17, 0.10, 0.09, 0.26, 0.24, 0.28, 0.41, 0.55, 0.90, 0.97, 0.85),
        (0.06, 0.08, 0.11, 0.19, 0.33, 0.60, 0.71, 0.65, 0.86, 0.98, 0.98, 0.72),
    ),
    "transformer": (
        (0.34, 0.43, 0.47, 0.51, 0.50, 0.44, 0.67, 0.53, 0.65, 0.69, 0.61, 0.72),
        (0.03, 0.14, 0.61, 0.63, 0.51, 0.75, 0.62, 0.73, 0.72, 0.63, 0.67, 0.87),
        (0.03, 0.02, 0.39, 0.82, 0.77, 0.57, 0.54, 0.51, 0.67, 0.78, 0.68, 0.96),
        (0.03, 0.03, 0.29, 0.96, 0.80, 0.77, 0.52, 0.53, 0.83, 0.88, 0.96, 0.97),
        (0.04, 0.04, 0.19, 0.73, 0.89, 0.30, 0.60, 0.73, 0.57, 0.93, 0.89, 0.92),
        (0.04, 0.04, 0.03, 0.86, 0.93, 0.65, 0.62, 0.62, 0.78, 0.89, 0.95, 0.98),
    ),
}

TITLE = "What can Mamba's convolution not see?"
LEAD = (
    "Before its state space, Mamba fuses each token with the three before it by a convolution whose taps differ: the "
    "same tokens in another order are another thing. So it does not recognize a sequence read backwards, and gives a "
    "pair of anchors that it has never seen the answer that composes single anchors, not that of the reversed pair. "
    "The paper says that a path past the convolution, or a convolution of equal taps, changes that."
)
INVERSE = (
    "Five orders of three numbers are listed, then one of them stands backwards at the end: which? Test sets are of "
    "numbers alike modulo 3, which training sets never are. Chance is 0.2."
)
COMPOSITION = (
    "A key is followed by two anchors, each of which shifts it. (3,4) is trained with key - 6 where the shifts say "
    "key - 10, and (4,3) is never shown: key - 10 is the composite answer, key - 6 the symmetric one."
)
SYMMETRIC = "Every pair has the label of the reversed pair; only (4,3) is held out, and no anchor has one shift."
COMPOSITE, MIRRORED = "ood_43.reasoning", "ood_43.symmetric"
ANSWERS = {COMPOSITE: "composite", MIRRORED: "symmetric", "test_seen.accuracy": "seen pairs"}


def measures(experiment: Experiment) -> list[Measure]:
    """Ranks; of a Mamba what its state reads and its taps; of one that composes what cutting and substituting do.

    Raises:
      ValueError: neither a Mamba nor a transformer, or a task of another study.
    """
    model, task = experiment.model, experiment.task
    if not isinstance(model, models.Mamba1 | models.Mamba2 | models.Transformer) or not isinstance(task, TASKS):
        given = f"{type(model).__name__} on {type(task).__name__}"
        raise ValueError(f"mamba_asymmetry measures Mamba or a transformer on its own tasks, not {given}")
    wanted = [weights.ranks(experiment)]
    if isinstance(model, models.Transformer):
        return wanted
    wanted += [state_space.mixing(experiment)] + [state_space.taps(experiment)] * (model.conv == "learned")
    if isinstance(task, Composition):
        wanted += [state_space.cut(experiment), state_space.substitution(experiment), state_space.flow(experiment)]
    return wanted


@claim(
    "S1a", "A Mamba that fits its training sequences answers reversed ones of new numbers by chance", headline=True,
    quantity="distance of test accuracy from 0.2", source=f"{PAPER}, inverse sequence matching",
    published="training 1.00, test 0.20 at every gamma", at_most=0.02, threshold_from=OURS, scale=REDUCED,
)  # fmt: skip
def cannot_match_backwards(runs: Runs):
    run = runs["inverse_mamba"]
    train, test = run.final("train.accuracy"), run.final("test.accuracy")
    note = (
        f"Accuracy {median_of(train):.2f} on {_sequences(run)} (published 80,000), {median_of(test):.2f} on new "
        f"numbers; a seed counts from {FITTED} on those of training on."
    )
    return abs(test - CHANCE).where(train >= FITTED).max("gamma", skipna=False), note


@claim(
    "S1b", "With a path past the convolution, and positions, it answers them", headline=True,
    quantity="test accuracy", source=f"{PAPER}, inverse sequence matching", published="1.00 at every gamma",
    at_least=0.99, threshold_from=OURS, scale=REDUCED,
)  # fmt: skip
def a_path_past_the_convolution_matches(runs: Runs):
    test = runs["inverse_modified"].final("test.accuracy").min("gamma", skipna=False)
    return test, _controls(runs)


@claim(
    "S2a", "Free taps: the unseen pair never gets the symmetric answer", quantity="symmetric accuracy",
    source=f"{PAPER}, 5 layers, gamma 1", published="0 to 0.03", at_most=0.05, threshold_from=OURS,
)  # fmt: skip
def free_taps_are_not_symmetric(runs: Runs):
    return _of_learners(runs[f"mamba_{DEEP}"], MIRRORED, SMALL)


@claim(
    "S2b", "All taps one: it gets the symmetric answer", headline=True, quantity="symmetric accuracy",
    source=f"{PAPER}, 5 layers, gamma 1", published="0.8 at epoch 25, 0.99 at 150", at_least=0.7,
    threshold_from=OURS,
)  # fmt: skip
def equal_taps_are_symmetric(runs: Runs):
    run = runs["ones"]
    note = f"Highest composite accuracy on the way: {median_of(run.best(COMPOSITE, ('seed',), gamma=SMALL)):.2f}."
    return run.final(MIRRORED, ("seed",), gamma=SMALL), note


@claim(
    "S3", "Where every pair is symmetric, (3,4) is known at new keys and (4,3) is not, at the same moment",
    headline=True, quantity="accuracy on (4,3) when (3,4) is known", source=f"{PAPER}, fully symmetric task",
    published="(3,4) 1.00, (4,3) at most 0.03", at_most=0.05, threshold_from=OURS,
)  # fmt: skip
def symmetric_pairs_are_learnt_one_by_one(runs: Runs):
    run = runs["symmetric"]
    known, unseen = run.over_time("test_34.accuracy"), run.over_time("ood_43.accuracy")
    then = unseen.where(known >= KNOWN).max("step")  # the worst of all moments
    best = f"Highest accuracy on (3,4): {median_of(known.max('step')):.3f}; it is known from {KNOWN} on."
    return then.max("gamma", skipna=False), best


@claim(
    "S4a", "Deep and with small initial weights, Mamba composes", quantity="composite accuracy",
    source=f"{PAPER}, 5 layers, gamma 1", published="0.72", at_least=0.5, threshold_from=OURS,
)  # fmt: skip
def small_weights_compose(runs: Runs):
    return runs[f"mamba_{DEEP}"].final(COMPOSITE, ("seed",), gamma=SMALL)


@claim(
    "S4b", "With large ones it does not, at any depth", quantity="highest composite accuracy",
    source=f"{PAPER}, gamma 0.3", published="0.04 to 0.11", at_most=0.2, threshold_from=OURS,
)  # fmt: skip
def large_weights_do_not(runs: Runs):
    composite = [_of_learners(run, COMPOSITE, LARGE) for run in _two_depths(runs, "mamba").values()]
    return xr.concat(composite, "layers").max("layers", skipna=False)


@claim(
    "S4c", "Composite accuracy rises with gamma at every depth", headline=True,
    quantity="lowest rank correlation with gamma", source=f"{PAPER}, layers by gamma",
    published="0.89 to 0.98 over gamma 0.1 to 2", at_least=0.8, threshold_from=OURS,
)  # fmt: skip
def composing_rises_with_gamma(runs: Runs):
    depths = _two_depths(runs, "mamba")
    if any(len(run.values_of("gamma")) < 3 for run in depths.values()):
        raise MissingData("a third gamma")
    trends, transformer = (
        {depth: statistics.rank_trend(run.final(COMPOSITE)) for depth, run in family.items()}
        for family in (depths, runs.numbered("transformer"))
    )
    note, control = (
        ", ".join(f"{depth} layers {median_of(trend):.2f}" for depth, trend in family.items())
        for family in (trends, transformer)
    )
    note += f". The transformer with a convolution: {control}" * bool(control)
    return xr.concat([*trends.values()], "layers").min("layers", skipna=False), f"{note}."


@claim(
    "S5a", "Nothing reads key and anchors through the state: cutting that leaves the answer",
    quantity="share of answers that stay", source=f"{PAPER}, blocking", published="1.00 for 15 pairs, 0.994 for (4,3)",
    at_least=0.98, threshold_from=OURS,
)  # fmt: skip
def the_state_carries_nothing(runs: Runs):
    return _of_learners(_deepest(runs), "cut.agreement", max)


@claim(
    "S5b", "The convolution carries the pair: later tokens given that of (4,3) answer as (4,3)",
    quantity="share of answers that become (4,3)'s", source=f"{PAPER}, substitution", published="0.983 to 1.00",
    at_least=0.95, threshold_from=OURS,
)  # fmt: skip
def the_convolution_carries_the_pair(runs: Runs):
    run = _deepest(runs)
    before = run.final("substitution.before", ("seed",), gamma=max)
    return _of_learners(run, "substitution.collapse", max), f"Without it {median_of(before):.2f} are alike."


@claim(
    "S6", "The taps of the trained convolution stay far from parallel", quantity="largest cosine of two taps",
    source=f"{PAPER}, kernel taps", published="at most 0.18 in the first layer, 0.35 in the second", at_most=0.35,
    threshold_from=FIGURE,
)  # fmt: skip
def taps_stay_apart(runs: Runs):
    return _of_learners(runs["mamba_2"], "taps.largest", USUAL).max("layer", skipna=False)


@claim(
    "S7", "With a position embedding the unseen pair gets the symmetric answer",
    quantity="symmetric accuracy", source=f"{PAPER}, 2 layers, gamma 0.5",
    published="symmetric 0.82, composite 0.10; without positions 0.02 and 0.04", at_least=0.5, threshold_from=OURS,
)  # fmt: skip
def positions_make_it_symmetric(runs: Runs):
    composite, mirrored = (runs["positions"].final(name, ("seed",), gamma=USUAL) for name in (COMPOSITE, MIRRORED))
    note = f"Composite accuracy {median_of(composite):.2f}."
    if "mamba_2" in runs:
        lead = mirrored - runs["mamba_2"].final(MIRRORED, ("seed",), gamma=USUAL)
        note += f" Symmetric less that without positions: {median_of(lead):.2f}."
    return mirrored, note


def _of_learners(run: Run, name: str, gamma: Place) -> xr.DataArray:
    """As it ended; NaN for seeds that do not answer the pairs of training at new keys."""
    learnt = run.final("test_seen.accuracy", ("seed",), gamma=gamma) >= FITTED
    return run.final(name, ("seed",), gamma=gamma).where(learnt)


def _sequences(run: Run) -> str:
    size = run.config["train_size"]
    return f"{size:,} training sequences" if size else "training sequences that never recur"


def _two_depths(runs: Runs, family: str) -> dict[int, Run]:
    """Layers -> the run of the standard task, of two depths at least.

    Raises:
      MissingData: there are fewer.
    """
    trained = runs.numbered(family)
    if len(trained) < 2:
        raise MissingData(f"variants {family}_<layers> of two depths")
    return trained


def _deepest(runs: Runs) -> Run:
    trained = runs.numbered("mamba")
    if not trained:
        raise MissingData(f"variant mamba_{DEEP}")
    return trained[DEEP] if DEEP in trained else trained[max(trained)]


def _controls(runs: Runs) -> str:
    """What else was trained on inverse matching."""
    others = [
        name for name in runs if name.startswith("inverse_") and name not in ("inverse_mamba", "inverse_modified")
    ]
    accuracies = [
        f"{name.removeprefix('inverse_')} {median_of(runs[name].final('test.accuracy')):.2f}" for name in others
    ]
    return f"Beside it: {', '.join(accuracies)}." if accuracies else ""


def sections(runs: Runs) -> list[Section]:
    parts = []
    groups = {
        "inverse_": ("Sequences read backwards", INVERSE),
        "symmetric": ("Pairs that are all symmetric", SYMMETRIC),
    }
    for name, run in runs.items():
        title, text = next(
            (group for start, group in groups.items() if name.startswith(start)), ("Pairs of anchors", COMPOSITION)
        )
        drawings = {INVERSE: (matching,), SYMMETRIC: (pairs,)}.get(text, (answers, flow))
        parts.append(draw_section(f"{title} ({name})", text, run, (*drawings, reads, taps), name))
    if {"inverse_mamba", "inverse_modified"} <= {*runs}:
        parts.insert(0, draw_section("With and without a path past the convolution", INVERSE, runs, (beside,)))
    if len(runs.numbered("mamba")) > 1:
        text = f"{COMPOSITION} Grey: not trained here."
        parts.insert(0, draw_section("Layers and initial scale", text, runs, (diagram,)))
    return parts


def beside(runs: Runs) -> Picture:
    """Training and test accuracy of every variant of inverse matching, at the largest gamma."""
    named = {name.removeprefix("inverse_"): runs[name] for name in runs if name.startswith("inverse_")}
    splits = {"training sequences": "train.accuracy", "new numbers": "test.accuracy"}
    panels = {
        words: {label: run.over_time(name, ("seed",), gamma=max) for label, run in named.items()}
        for words, name in splits.items()
    }
    title = "Which sequence stands backwards?"
    figure = comparison.curves(panels, title, "step", ylabel="accuracy", ylim=(0, 1.02))
    return Picture("beside", "Accuracy over training; chance is 0.2.", figure)


def diagram(runs: Runs) -> Picture:
    """Composite accuracy over layers and gamma, ours beside the published one."""
    panels = {}
    for family, word in (("mamba", "Mamba"), ("transformer", "transformer with convolution")):
        if trained := runs.numbered(family):
            panels |= {f"{word}, ours": _composite(trained), f"{word}, published": np.array(PUBLISHED[family])}
    figure = maps.heatmap(
        panels, LAYERS, GAMMAS, "composite accuracy", "Layers by init rate: who composes?", "layers", "init rate γ"
    )
    caption = (
        "Accuracy of the composite answer on (4,3): ours, medians over seeds at the last step, beside the paper's. "
        "The std of our embeddings is width^-γ; the paper does not print theirs: with vocabulary^-γ the same γ means "
        "smaller embeddings, which shifts the axis."
    )
    return Picture("diagram", caption, figure)


def _composite(trained: Mapping[int, Run]) -> np.ndarray:
    """(layers, gammas) of the published diagram, NaN where we have no row."""
    at = np.full((len(LAYERS), len(GAMMAS)), np.nan)
    for i, depth in enumerate(LAYERS):
        if depth in trained:
            composite = trained[depth].final(COMPOSITE).median("seed")
            for gamma in composite["gamma"].values:
                at[i, np.isclose(GAMMAS, gamma)] = float(composite.sel(gamma=gamma))
    return at


def matching(run: Run) -> Picture:
    scores = {"train.accuracy": "training", "test.accuracy": "test", "ood.accuracy": "numbers from 101"}
    figure = figures.training_curves(run, scores, title="Which sequence stands backwards?")
    return Picture("training", "Chance is 0.2. Medians and the range over seeds.", figure)


def pairs(run: Run) -> Picture:
    scores = {
        "test_34.accuracy": "(3,4), new keys",
        "ood_43.accuracy": "(4,3), never seen",
        "train.accuracy": "training",
    }
    figure = figures.training_curves(run, scores, title="A pair and its reversal")
    return Picture("training", "Both have the same label. Medians and the range over seeds.", figure)


def answers(run: Run) -> Picture:
    figure = figures.training_curves(run, ANSWERS, title="The answer to (4,3) over training")
    return Picture("training", "Medians and the range over seeds.", figure)


def flow(run: Run) -> Picture:
    figure = portraits.attention_flow(_ends(run), title="What the state carries of key and anchors")
    return Picture("flow", "|S dt| of one sequence with (4,3), each row as shares, in the place of attention.", figure)


def reads(run: Run) -> Picture:
    panels = {label: row["mixing.read"].isel(layer=-1) for label, row in _ends(run, "mixing.read").items()}
    return pictures.reads(panels, "Last layer, averaged over sequences of training.")


def taps(run: Run) -> Picture:
    rows = {label: row["taps.cosine"].isel(snapshot=-1, layer=0) for label, row in _ends(run, "taps.cosine").items()}
    return pictures.taps(rows, "Taps of the first convolution")


def _ends(run: Run, name: str = "flow.pattern") -> dict[str, xr.Dataset]:
    """The rows with the smallest and the largest gamma, first seed."""
    run.over_time(name)  # it was measured
    rows = [run.rows(keep=(), seed=min, gamma=end) for end in (min, max)]
    return {f"γ = {float(row.gamma):g}": row for row in rows}


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER,),
    measures=measures,
    claims=(
        cannot_match_backwards, a_path_past_the_convolution_matches, free_taps_are_not_symmetric,
        equal_taps_are_symmetric, symmetric_pairs_are_learnt_one_by_one, small_weights_compose, large_weights_do_not,
        composing_rises_with_gamma, the_state_carries_nothing, the_convolution_carries_the_pair, taps_stay_apart,
        positions_make_it_symmetric,
    ),
    target="test.accuracy",
    sections=sections,
)  # fmt: skip
