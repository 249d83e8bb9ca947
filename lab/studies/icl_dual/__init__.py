"""In-context learning as one gradient step of a dual model (arXiv 2310.13220), and induction over the init rate.

Variants `plain`, `regularized_<alpha>`, `augmented_<how>` and `negative_<beta>_<number>` are a softmax layer on linear
regression, at gamma 0.5 unless a claim says otherwise; `induction_<layers>` are transformers on patterns that repeat.
The paper's numbers and formulas were not available: thresholds are ours, or sentences of its abstract, written before
the kept run. What was seen in trials before stands in docs/icl_dual.md.

Of each family the setting is chosen by its error on the split `valid`, median over seeds, and judged on `test`.
"""

import numpy as np
import xarray as xr

from lab import models
from lab.analysis import statistics
from lab.analysis.statistics import median_of
from lab.claims import DIRECTION, OURS, claim
from lab.experiment import Experiment
from lab.measuring.catalogue import attention, dual, weights
from lab.measuring.declare import Measure
from lab.runs import Runs
from lab.studies import Study
from lab.studies.icl_dual import variants
from lab.studies.icl_dual.page import sections
from lab.studies.icl_dual.variants import ACCURATE, BY_SEED, EXPLAINED
from lab.tasks import Induction, LinearRegression

PAPER = "arXiv 2310.13220"
HEADS = "arXiv 2209.11895"
PLATEAUS = "arXiv 2605.01199, lemma 3.1"
BETTER = "better at some setting; numbers not available"

TITLE = "What does a softmax layer learn in its context?"
LEAD = (
    "One softmax layer gives what a dual model, linear in the kernel's features, gives after one step of gradient "
    "descent on the demonstrations: an identity, measured here on trained layers. The dual's loss suggests other "
    "layers: do they learn linear regression in context better? And when do in-context learning and induction come "
    "about, from large initial weights and from small ones?"
)


def measures(experiment: Experiment) -> list[Measure]:
    """Of the layer on linear regression its dual model; of induction the kinds of heads; ranks of both.

    Raises:
      ValueError: another model or task.
    """
    model, task = experiment.model, experiment.task
    if isinstance(model, models.VectorAttention) and isinstance(task, LinearRegression):
        is_plain = not model.alpha and not model.beta and model.augment == "none"
        return [weights.ranks(experiment), dual.dual_step(experiment)] + [dual.random_features(experiment)] * is_plain
    if isinstance(model, models.Transformer) and isinstance(task, Induction):
        return [weights.ranks(experiment), attention.head_scores(experiment)]
    given = f"{type(model).__name__} on {type(task).__name__}"
    raise ValueError(f"icl_dual measures vector attention on linear regression, or induction, not {given}")


@claim(
    "D1", "A softmax layer's output is its dual model's after one gradient step", headline=True,
    quantity="largest distance, of the output's size", source=PAPER, published="equal", at_most=1e-5,
    threshold_from=OURS,
)  # fmt: skip
def the_layer_is_one_step(runs: Runs):
    layers = variants.regressions(runs)
    gaps = [run.final("dual.gap", BY_SEED) for run in layers.values()]
    paths = {name: run.final("dual.path", BY_SEED) for name, run in layers.items()}
    gaps += [path.isel(demonstration=-1, drop=True) for path in paths.values()]  # one demonstration at a time
    before = paths["plain"].isel(demonstration=-2)
    note = (
        f"Over {len(layers)} variants, in one step and demonstration by demonstration. Before the last demonstration "
        f"the plain layer's dual is {median_of(before):.2f} away."
    )
    return xr.concat(gaps, "route").max("route", skipna=False), note


@claim(
    "D2a", "By F positive random features the kernel's squared error falls as 1 / F",
    quantity="slope of log error by log F", source=PAPER, published="falls to nearly 0; by theory -1", at_least=-1.15,
    at_most=-0.85, threshold_from=OURS,
)  # fmt: skip
def random_features_converge(runs: Runs):
    error = runs["plain"].final("features.error", BY_SEED)
    return statistics.slope(np.log(error), np.log(error["features"]), "features")


@claim(
    "D2b", "That error is as large as theory says, (exp |q + k|^2 - 1) / F",
    quantity="measured over predicted, the worst F",
    source=PAPER, published="-", at_least=0.5, at_most=2, threshold_from=OURS,
)  # fmt: skip
def random_features_have_the_predicted_error(runs: Runs):
    error, predicted = (runs["plain"].final(f"features.{name}", BY_SEED) for name in ("error", "predicted"))
    ratio = error / predicted
    furthest = abs(np.log(ratio)).fillna(0).argmax("features")
    length = median_of(runs["plain"].final("dual.length", BY_SEED))
    note = (
        f"Queries and keys at length {dual.LENGTH:g}. As trained |q + k|^2 is {length:.3g}, and the error exponential "
        "in it."
    )
    return ratio.isel(features=furthest, drop=True), note


def _judged(runs: Runs, family: str):
    """Test error of the family's chosen setting over the plain layer's, and a note of all settings."""
    ratios = variants.ratios(runs, family)
    name = variants.setting(variants.best(runs, family))
    others = ", ".join(f"{other} {median_of(ratio):.3f}" for other, ratio in ratios.items())
    plain = runs["plain"].final("test.loss", BY_SEED)
    note = f"Chosen: {name}. All, medians: {others}. Errors of plain seeds: {plain.min():.3f} to {plain.max():.3f}."
    return ratios[name], note


@claim(
    "D3a", "Some regularized layer has no larger error than the plain one", headline=True,
    quantity="its error over the plain layer's of the same seed", source=PAPER, published=BETTER, at_most=1,
    threshold_from=DIRECTION,
)  # fmt: skip
def regularized_is_no_worse(runs: Runs):
    return _judged(runs, "regularized")


@claim(
    "D3b", "Some layer with augmented keys and values has no larger error than the plain one", headline=True,
    quantity="its error over the plain layer's of the same seed", source=PAPER, published=BETTER, at_most=1,
    threshold_from=DIRECTION,
)  # fmt: skip
def augmented_is_no_worse(runs: Runs):
    return _judged(runs, "augmented")


@claim(
    "D3c", "Some layer with negatives has no larger error than the plain one", headline=True,
    quantity="its error over the plain layer's of the same seed", source=PAPER, published=BETTER, at_most=1,
    threshold_from=DIRECTION,
)  # fmt: skip
def negatives_are_no_worse(runs: Runs):
    return _judged(runs, "negative")


@claim(
    "D4", "The plain layer's error lies between that of ridge regression and that of the answer 0",
    quantity="share explained, ridge's being 1", source=PAPER, published="-", above=0, below=1, threshold_from=OURS,
)  # fmt: skip
def error_is_between_ridge_and_nothing(runs: Runs):
    plain = runs["plain"]
    error, ridge, step = (plain.final(f"test.{name}", BY_SEED) for name in ("loss", "ridge", "step"))
    nothing = error / (1 - plain.final("test.explained", BY_SEED))  # the mean square of the answers
    losses = {f"of {name}": variants.median_loss(run) for name, run in variants.chosen(runs).items()}
    losses |= {"of one gradient step of the best size": median_of(step), "of ridge": median_of(ridge)}
    said = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    note = f"Mean squared errors: {said}, of the answer 0 {median_of(nothing):.3f}."
    return (nothing - error) / (nothing - ridge), note


@claim(
    "D5a", "Trained without negatives, the dual's representations collapse", quantity="effective rank, end over start",
    source=PAPER, published="-", at_most=0.5, threshold_from=OURS,
)  # fmt: skip
def representations_collapse(runs: Runs):
    run = runs["plain"]
    rank = run.over_time("dual.rank", BY_SEED)
    start, end = (rank.isel(snapshot=at, drop=True) for at in (0, -1))
    note = f"From {median_of(start):.2f} to {median_of(end):.2f}."
    for decay in variants.other_decays(run):
        note += f" With weight decay {decay:g} to {median_of(run.final('dual.rank', BY_SEED, weight_decay=decay)):.2f}."
    return end / start, note


@claim(
    "D5b", "With negatives the dual's representations keep a higher rank",
    quantity="effective rank over the plain layer's",
    source=PAPER, published="-", above=1, threshold_from=OURS,
)  # fmt: skip
def negatives_keep_rank(runs: Runs):
    run = variants.best(runs, "negative")
    plain, rank = (run.final("dual.rank", BY_SEED) for run in (runs["plain"], run))
    return rank / plain, f"{variants.setting(run)} {median_of(rank):.2f}, plain {median_of(plain):.2f}."


@claim(
    "D6a", "One layer of one head does not learn induction", quantity="highest accuracy over gamma", source=HEADS,
    published="no induction heads in one layer", at_most=0.5, threshold_from=OURS,
)  # fmt: skip
def one_layer_does_not(runs: Runs):
    accuracy = runs["induction_1"].final("test.accuracy")
    return accuracy.max("gamma", skipna=False), variants.BY_POSITIONS


@claim(
    "D6b", "Two layers of one head learn induction",
    quantity="accuracy", source=HEADS, published="induction heads in two layers", at_least=0.95,
    threshold_from=OURS,
)  # fmt: skip
def two_layers_do(runs: Runs):
    run = runs["induction_2"]
    score = run.final("heads.induction", BY_SEED).max(("layer", "head"))
    return run.final("test.accuracy", BY_SEED), f"Highest induction score of a head {median_of(score):.2f}."


@claim(
    "D7a", "The plateau before induction lengthens with gamma", quantity="rank correlation", source=PLATEAUS,
    published="grows as log 1 / std", at_least=0.8, threshold_from=OURS,
)  # fmt: skip
def induction_waits_longer_from_small_weights(runs: Runs):
    plateau = variants.plateau(runs["induction_2"], "test.accuracy", ACCURATE)
    return statistics.rank_trend(plateau), f"Steps to accuracy {ACCURATE:g}: {variants.by_gamma(plateau)}."


@claim(
    "D7b", "The plateau before linear regression in context lengthens with gamma",
    quantity="rank correlation", source=PLATEAUS,
    published="grows as log 1 / std", at_least=0.8, threshold_from=OURS,
)  # fmt: skip
def regression_waits_longer_from_small_weights(runs: Runs):
    plateau = variants.plateau(runs["plain"], "test.explained", EXPLAINED)
    return statistics.rank_trend(plateau), f"Steps to {EXPLAINED:g} explained: {variants.by_gamma(plateau)}."


@claim(
    "D8", "Induction comes abruptly: its rise from 0.25 to 0.75 is no longer than the plateau before",
    quantity="rise over plateau, in steps", source=HEADS, published="a phase change", at_most=1, threshold_from=OURS,
)  # fmt: skip
def induction_is_abrupt(runs: Runs):
    accuracy = runs["induction_2"].over_time("test.accuracy", BY_SEED)
    begins, ends = (statistics.crossing(accuracy, level, "step") for level in (0.25, 0.75))
    reached = np.isfinite(begins) & np.isfinite(ends)
    note = f"Accuracy 0.25 at step {median_of(begins):.0f}, 0.75 at {median_of(ends):.0f}."
    return ((ends - begins) / begins).where(reached), note


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER, HEADS, "arXiv 2605.01199"),
    measures=measures,
    claims=(
        the_layer_is_one_step, random_features_converge, random_features_have_the_predicted_error,
        regularized_is_no_worse, augmented_is_no_worse, negatives_are_no_worse, error_is_between_ridge_and_nothing,
        representations_collapse, negatives_keep_rank, one_layer_does_not, two_layers_do,
        induction_waits_longer_from_small_weights, regression_waits_longer_from_small_weights, induction_is_abrupt,
    ),
    target="test.accuracy",
    usual=variants.USUAL,
    sections=sections,
    published_sizes=False,
)  # fmt: skip
