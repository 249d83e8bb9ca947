"""What a state of constant size costs in copying and chains of thought: arXiv 2410.03810, Mamba beside transformers.

The paper prints no numbers that we could have; directions are its, thresholds ours, written before the runs. Variants
are named `mamba_<N>` and `transformer_<N>` (strings of up to N letters), after what they change, and `full_` and
`banded_` with the model's name (subsequences). How fast is said in strings: those seen until 95 % of test strings are
copied whole, at the first evaluation that finds it so. Of a model that never gets there the strings of its whole
training count where they stand above: the ratio is then a lower bound.
"""

import numpy as np
import xarray as xr

from lab import models
from lab.analysis import copying, statistics
from lab.analysis.statistics import median_of
from lab.claims import DIRECTION, OURS, claim
from lab.experiment import Experiment
from lab.measuring.catalogue import state_space, weights
from lab.measuring.declare import Measure
from lab.report import comparison, figures
from lab.report import state_space as pictures
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.studies import Study
from lab.tasks import CopyStrings, IncreasingSubsequence

PAPER = "arXiv 2410.03810"
TASKS = (CopyStrings, IncreasingSubsequence)
COPIED = 0.95  # share of test strings from which on copying is learnt
SHORT, USUAL, LONG = 10, 20, 40  # letters of the longest string
HALVES = ("shallow", "narrow")  # variants of Mamba, of half the depth and of half the width
WORDS = {
    "mamba": "Mamba", "linear": "Mamba, linear start", "shallow": "Mamba, half depth", "narrow": "Mamba, half width",
    "plain": "transformer, positions", "transformer": "transformer",
}  # fmt: skip
ACCURACY = "test.accuracy"
REDUCED = "two layers of width 64, where the paper's models have tens of millions of parameters"
EXACT = "no training: constructed weights"

TITLE = "What does a state of constant size cost?"
LEAD = (
    "Attention looks a token up; a state space carries all tokens in a state of constant size. To single out one of L "
    "tokens softmax needs a score that grows as log L, a state that decays one that grows exponentially, and N states "
    "hold N vectors. Mamba learns to copy, too, but from more strings than a transformer."
)
COPYING = (
    "A string of up to N random letters, then the same again. Test strings are never trained on. A string counts where "
    "all of its letters and the end mark are right."
)
SUBSEQUENCES = (
    "A list of numbers, for each the length of the longest increasing subsequence that ends there, and the longest of "
    "all. Each entry may depend on all numbers before (full), or on the three before (banded)."
)
CONSTRUCTED = (
    "Nothing here is trained. Scores: at which one of L tokens has 99 % of the weight, found by bisection on what the "
    "models compute. Copies: by a Mamba-2 of one layer and eight states whose weights are written down."
)


def measures(experiment: Experiment) -> list[Measure]:
    """Ranks; of a Mamba what its state reads and its taps; of that on short strings what constructed weights can do.

    Raises:
      ValueError: neither a Mamba-2 nor a transformer, or a task of another study.
    """
    model, task = experiment.model, experiment.task
    if not isinstance(model, models.Mamba2 | models.Transformer) or not isinstance(task, TASKS):
        given = f"{type(model).__name__} on {type(task).__name__}"
        raise ValueError(f"mamba_copy measures Mamba-2 or a transformer on its own tasks, not {given}")
    wanted = [weights.ranks(experiment)]
    if isinstance(model, models.Mamba2):
        wanted += [state_space.mixing(experiment), state_space.taps(experiment)]
        if isinstance(task, CopyStrings) and task.longest == SHORT:  # once: they are of no training
            wanted += [state_space.scores_needed(experiment), state_space.states_needed(experiment)]
    return wanted


@claim(
    "Y1a", "Mamba needs more strings than a transformer until it copies", headline=True,
    quantity="ratio of strings to 95 %, up to 20 letters", source=f"{PAPER}, copying",
    published="the transformer learns much faster", at_least=2, threshold_from=OURS, scale=REDUCED,
)  # fmt: skip
def mamba_needs_more_strings(runs: Runs):
    ratio, note = _ratio(runs, f"mamba_{USUAL}", f"transformer_{USUAL}")
    return ratio, f"{note}{_controls(runs)}"


@claim(
    "Y1b", "The longer the strings, the more", quantity="ratio at 20 letters over that at 10",
    source=f"{PAPER}, copying", published="the number that Mamba needs grows steeply with the length", above=1,
    threshold_from=DIRECTION, scale=REDUCED,
)  # fmt: skip
def longer_strings_cost_mamba_more(runs: Runs):
    (long, _), (short, _) = (_ratio(runs, f"mamba_{n}", f"transformer_{n}") for n in (USUAL, SHORT))
    note = f"Ratios {median_of(short):.1f} and {median_of(long):.1f}; a ratio at 10 that is a bound has no number."
    return long / short.where(np.isfinite(_strings(runs[f"mamba_{SHORT}"]))), note


@claim(
    "Y1c", "Already of short strings it needs more", quantity="ratio of strings to 95 %, up to 10 letters",
    source=f"{PAPER}, copying", published="the transformer learns much faster", above=1, threshold_from=DIRECTION,
    scale=REDUCED,
)  # fmt: skip
def short_strings_cost_mamba_more(runs: Runs):
    return _ratio(runs, f"mamba_{SHORT}", f"transformer_{SHORT}")


@claim(
    "Y2a", "A transformer learns strings of up to 40 letters within the budget", quantity="highest test accuracy",
    source=f"{PAPER}, copying", published="it succeeds", at_least=COPIED, threshold_from=OURS, scale=REDUCED,
)  # fmt: skip
def a_transformer_copies_long_strings(runs: Runs):
    run = runs[f"transformer_{LONG}"]
    return _best(run), _budget(run)


@claim(
    "Y2b", "Mamba does not", headline=True, quantity="highest test accuracy", source=f"{PAPER}, copying",
    published="it fails", below=COPIED, threshold_from=OURS, scale=REDUCED,
)  # fmt: skip
def mamba_does_not(runs: Runs):
    run = runs[f"mamba_{LONG}"]
    capacity = "Forty letters are 188 bits, its state holds them: what fails is learning, within this budget."
    return _best(run), f"{_budget(run)} {capacity}"


@claim(
    "Y3", "Half of the width costs Mamba more than half of the depth",
    quantity="test accuracy of half depth less that of half width, mean over training", source=f"{PAPER}, copying",
    published="shrinking the hidden size hurts more", above=0, threshold_from=DIRECTION, scale=REDUCED,
)  # fmt: skip
def width_matters_more_than_depth(runs: Runs):
    shallow, narrow = (runs[f"{name}_{USUAL}"].over_time(ACCURACY, ("seed",)).mean("step") for name in HALVES)
    note = f"Half depth {median_of(shallow):.2f}, half width {median_of(narrow):.2f}"
    if f"mamba_{USUAL}" in runs:
        whole = runs[f"mamba_{USUAL}"].over_time(ACCURACY, ("seed",)).mean("step")
        note += f", whole {median_of(whole):.2f}"
    return shallow - narrow, f"{note}."


@claim(
    "Y4a", "The score that softmax needs grows as the logarithm of the length", quantity="slope against log L",
    source=f"{PAPER}, theorem on transformers", published="a bound that grows as log L", at_least=0.98, at_most=1.02,
    threshold_from=OURS, scale=EXACT,
)  # fmt: skip
def softmax_needs_a_logarithm(runs: Runs):
    scores = _constructed(runs).final("scores.softmax", ("seed",))
    return statistics.slope(scores, np.log(scores["length"]), "length")


@claim(
    "Y4b", "That which a decaying state needs grows exponentially: its logarithm by -log a at each token",
    quantity="slope against L over -log a, of the a where it is farthest from 1", source=f"{PAPER}, theorem on Mamba",
    published="a bound c (1/a)^(L-1) + d", at_least=0.98, at_most=1.02, threshold_from=OURS, scale=EXACT,
)  # fmt: skip
def decay_needs_a_power(runs: Runs):
    scores = _constructed(runs).final("scores.decay", ("seed",))
    slopes = statistics.slope(scores, scores["distance"], "distance") / -np.log(scores["rate"])
    note = ", ".join(f"a = {float(rate):g}: {median_of(slopes.sel(rate=rate)):.4f}" for rate in slopes["rate"].values)
    known = slopes.fillna(1)  # rows that diverged, in which nothing is the farthest
    return slopes.isel(rate=abs(known - 1).argmax("rate")).reset_coords(drop=True), f"{note}."


@claim(
    "Y5a", "Weights of a state-space layer copy exactly up to as many tokens as states",
    quantity="largest error of strings of 1 to 8 letters, eight states", source=f"{PAPER}, theorem on copying",
    published="a Mamba of size linear in the length copies", at_most=1e-5, threshold_from=OURS, scale=EXACT,
)  # fmt: skip
def states_copy_as_many_tokens(runs: Runs):
    error = _constructed(runs).final("copier.error", ("seed",))
    return error.sel(token=error["token"] <= state_space.STATES).max("token", skipna=False)


@claim(
    "Y5b", "And not beyond", quantity="smallest error of strings of 9 to 16 letters, eight states",
    source=f"{PAPER}, theorem on copying", published="one of constant size does not", at_least=0.1, threshold_from=OURS,
    scale=EXACT,
)  # fmt: skip
def and_not_more(runs: Runs):
    error = _constructed(runs).final("copier.error", ("seed",))
    least = copying.least_error(state_space.STATES + 1, state_space.STATES)
    note = f"Any weights of eight states leave nine orthonormal vectors an error of {least:.2f} at least (rank)."
    return error.sel(token=error["token"] > state_space.STATES).min("token", skipna=False), note


@claim(
    "Y6", "From a start near linear attention Mamba learns at least twice as fast",
    quantity="ratio of strings to 95 %, published start over linear, up to 20 letters", source="arXiv 2410.11135",
    published="copying becomes far easier", at_least=2, threshold_from=OURS, scale=REDUCED,
)  # fmt: skip
def a_linear_start_learns_faster(runs: Runs):
    return _ratio(runs, f"mamba_{USUAL}", f"linear_{USUAL}")


@claim(
    "Y7", "The transformer's lead is larger where each step may depend on all before than where on three",
    quantity="lead in test accuracy, full less banded", source=f"{PAPER}, longest increasing subsequence",
    published="local problems save Mamba cost", above=0, threshold_from=DIRECTION, scale=REDUCED,
)  # fmt: skip
def locality_helps_mamba(runs: Runs):
    leads = {
        kind: runs[f"{kind}_transformer"].final(ACCURACY, ("seed",)) - runs[f"{kind}_mamba"].final(ACCURACY, ("seed",))
        for kind in ("full", "banded")
    }
    note = ", ".join(f"{kind} {median_of(lead):.3f}" for kind, lead in leads.items())
    return leads["full"] - leads["banded"], f"Leads: {note}."


def _strings(run: Run) -> xr.DataArray:
    """Strings until `COPIED`, by seed; infinite where that never is."""
    reached = statistics.first_reached(run.over_time(ACCURACY, ("seed",)), COPIED)
    return reached * run.config["batch_size"]


def _seen(run: Run) -> int:
    return run.config["steps"] * run.config["batch_size"]


def _ratio(runs: Runs, slow: str, fast: str) -> tuple[xr.DataArray, str]:
    """Strings that one needs over those that the other needs, by seed, and what they are.

    Where the slow one alone never gets there a lower bound, where the fast one alone 0, where neither NaN.
    """
    above, below = (_strings(runs[name]) for name in (slow, fast))
    never = np.isinf(above)
    bounded, neither = never & np.isfinite(below), never & np.isinf(below)
    ratio = (above.where(~never, _seen(runs[slow])) / below).where(~neither)
    note = f"{slow} {_median(runs[slow])} strings, {fast} {_median(runs[fast])}."
    if int(bounded.sum()):
        note += f" {slow} alone has not got there in {int(bounded.sum())} of {bounded.size} seeds: a lower bound."
    if int(neither.sum()):
        note += f" Neither has in {int(neither.sum())} of {neither.size}: no ratio."
    return ratio, note


def _median(run: Run) -> str:
    """Of `_strings`, in words."""
    strings = median_of(_strings(run))
    return f"more than {_seen(run):,}" if np.isinf(strings) else f"{strings:,.0f}"


def _controls(runs: Runs) -> str:
    plain = f"plain_{USUAL}"
    if plain not in runs:
        return ""
    return f" A transformer with positions and no convolution: {_median(runs[plain])}."


def _best(run: Run) -> xr.DataArray:
    return run.best(ACCURACY, ("seed",))


def _budget(run: Run) -> str:
    return f"Budget: {_seen(run):,} strings."


def _constructed(runs: Runs) -> Run:
    """A run that has what constructed weights do, which is of no training.

    Raises:
      MissingData: no Mamba on copying.
    """
    for run in runs.values():
        if "scores.softmax" in run:
            return run
    raise MissingData(f"variant mamba_{SHORT}")


def sections(runs: Runs) -> list[Section]:
    parts = []
    for start, title, text in (("copy", "Copies", COPYING), ("lis", "Subsequences", SUBSEQUENCES)):
        own = runs.where(lambda name, _, start=start: _is_list(name) == (start == "lis"))
        if len(own):
            parts.append(draw_section(f"{title}: every model", text, own, (learning,)))
    if any("scores.softmax" in run for run in runs.values()):
        parts.append(draw_section("Constructed weights", CONSTRUCTED, runs, (scores, states)))
    for name, run in runs.items():
        title, text = ("Subsequences", SUBSEQUENCES) if _is_list(name) else ("Copies", COPYING)
        parts.append(draw_section(f"{title} ({name})", text, run, (training, reads, taps), name))
    return parts


def _is_list(name: str) -> bool:
    return name.startswith(("full_", "banded_"))


def learning(runs: Runs) -> Picture:
    """Test accuracy against the number of strings, a panel for each length or kind of task."""
    panels = {}
    for name, run in runs.items():
        kind, _, size = name.rpartition("_")
        panel, label = (f"{kind} table", size) if _is_list(name) else (f"up to {size} letters", kind)
        curve = run.over_time(ACCURACY, ("seed",))
        strings = curve.assign_coords(step=curve["step"] * run.config["batch_size"])
        panels.setdefault(panel, {})[WORDS.get(label, label)] = strings
    title, unit = ("Who fills the table?", "lists") if _is_list(next(iter(runs))) else ("Who copies?", "strings")
    xlabel, ylabel = f"{unit} seen in training", f"share of test {unit} right"
    figure = comparison.curves(panels, title, xlabel, ylabel=ylabel, ylim=(0, 1.02))
    kind = "subsequences" if unit == "lists" else "copies"
    return Picture(f"learning-{kind}", f"Share of test {unit} that are right from first to last token.", figure)


def scores(runs: Runs) -> Picture:
    run = _constructed(runs)
    softmax, decay = (run.final(f"scores.{name}", ("seed",)) for name in ("softmax", "decay"))
    lines = {"softmax: score": softmax} | {
        f"decay {float(rate):g}: log of the score": decay.sel(rate=rate) for rate in decay["rate"].values
    }
    figure = comparison.curves({"needed score": lines}, "What singles out one of L tokens?", "L", xscale="log")
    caption = "Scores at which 99 % of the weight is on one token; of a decaying state the logarithm of the score."
    return Picture("scores", caption, figure)


def states(runs: Runs) -> Picture:
    error = _constructed(runs).final("copier.error", ("seed",))
    tokens = error["token"].values
    bound = xr.DataArray([copying.least_error(n, state_space.STATES) for n in tokens], {"token": tokens}, "token")
    lines = {"constructed weights, largest": error, "least of any weights, root mean square": bound}
    figure = comparison.curves({"error of a copy": lines}, "Eight states: how many tokens?", "tokens of the string")
    figure.axes[0].axvline(state_space.STATES, color="0.6", lw=0.8, zorder=0)
    return Picture("states", "Errors of copied unit vectors; grey: as many tokens as states.", figure)


def training(run: Run) -> Picture:
    curves = {"train.accuracy": "training", ACCURACY: "test", "test.token_accuracy": "tokens of the test"}
    figure = figures.training_curves(run, curves, title="Accuracy over training")
    return Picture("training", "Whole strings, and tokens. Medians and the range over seeds.", figure)


def reads(run: Run) -> Picture:
    panels = pictures.by_layer(run.final("mixing.read", ("seed",)).isel(seed=0))
    return pictures.reads(panels, "Averaged over training strings of all lengths, first seed.")


def taps(run: Run) -> Picture:
    panels = pictures.by_layer(run.final("taps.cosine", ("seed",)).isel(seed=0))
    return pictures.taps(panels, "Taps of the convolution")


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER,),
    measures=measures,
    claims=(
        mamba_needs_more_strings, longer_strings_cost_mamba_more, short_strings_cost_mamba_more,
        a_transformer_copies_long_strings, mamba_does_not, width_matters_more_than_depth, softmax_needs_a_logarithm,
        decay_needs_a_power, states_copy_as_many_tokens, and_not_more, a_linear_start_learns_faster,
        locality_helps_mamba,
    ),
    target=ACCURACY,
    sections=sections,
    published_sizes=False,
)  # fmt: skip
