"""Pictures of study `icl_dual`."""

from lab.analysis.statistics import median_of
from lab.measuring.catalogue import dual
from lab.report import comparison, figures
from lab.report.page import Picture, Section, draw_section
from lab.runs import Run, Runs
from lab.studies.icl_dual.variants import ACCURATE, BY_POSITIONS, BY_SEED, EXPLAINED, chosen, plateau

REGRESSION = (
    "Fifteen pairs of a vector and its value are shown, the value of another vector is asked for; every sequence has "
    "weights of its own. Share explained: 0 is the answer 0, 1 is ridge regression."
)
INDUCTION = (
    "A pattern of distinct tokens repeats, with another period in every sequence: after a token seen before comes what "
    "came after it then. One head in one layer cannot know that; two layers can."
)


def sections(runs: Runs) -> list[Section]:
    parts = []
    if "plain" in runs:
        drawings = (errors, steps, collapse, convergence)
        parts.append(draw_section("Linear regression in context", REGRESSION, runs, drawings))
        title = "Linear regression from large weights and from small ones"
        parts.append(draw_section(title, REGRESSION, runs["plain"], (regression,), "plain"))
    if {"induction_1", "induction_2"} <= {*runs}:
        parts.append(draw_section("Induction: one layer against two", INDUCTION, runs, (layers, plateaus)))
    return parts


def errors(runs: Runs) -> Picture:
    lines = {name: run.over_time("test.loss", BY_SEED) for name, run in chosen(runs).items()}
    title = "Linear regression in context: error over training"
    figure = comparison.curves({"mean squared error": lines}, title, "step", ylim=(0, 1.1))
    step = median_of(runs["plain"].final("test.step", BY_SEED))
    caption = f"Of each family the setting best on another split. One gradient step: {step:.3f}; ridge: 0; nothing: 1."
    return Picture("errors", caption, figure)


def steps(runs: Runs) -> Picture:
    lines = {name: run.final("dual.path", BY_SEED) for name, run in chosen(runs).items()}
    title = "From the dual model to the layer, one demonstration at a time"
    figure = comparison.curves({"distance, of the output's size": lines}, title, "demonstrations", yscale="log")
    caption = "Each demonstration is one gradient step, the normalizer that of the whole prompt."
    return Picture("steps", caption, figure)


def collapse(runs: Runs) -> Picture:
    lines = {name: run.over_time("dual.rank", BY_SEED) for name, run in chosen(runs).items()}
    title = "Representations of the demonstrations"
    figure = comparison.curves({"effective rank": lines}, title, "step", ylim=(0, None))
    return Picture("collapse", "Effective rank of the f(k_i) of a prompt, each at length 1.", figure)


def convergence(runs: Runs) -> Picture:
    names = {"measured": "features.error", "predicted": "features.predicted"}
    lines = {label: runs["plain"].final(name, BY_SEED) for label, name in names.items()}
    title = "The kernel by random features"
    scales = dict(xscale="log", yscale="log")
    figure = comparison.curves({"squared relative error": lines}, title, "random features", **scales)
    caption = f"Queries and keys of trained layers at length {dual.LENGTH:g}. The prediction goes through the points."
    return Picture("features", caption, figure)


def regression(run: Run) -> Picture:
    figure = figures.training_curves(run, {"test.explained": "share explained"}, title="Share explained over training")
    return Picture("training", "0: as good as the answer 0; 1: ridge. Medians and the range over seeds.", figure)


def layers(runs: Runs) -> Picture:
    named = {"one layer": runs["induction_1"], "two layers": runs["induction_2"]}
    panels = {
        f"γ = {gamma:g}": {name: run.over_time("test.accuracy", BY_SEED, gamma=gamma) for name, run in named.items()}
        for gamma in runs["induction_2"].values_of("gamma")
    }
    figure = comparison.curves(panels, "Induction over training", "step", ylabel="accuracy", ylim=(0, 1.02))
    return Picture("layers", f"Accuracy on repeated tokens. {BY_POSITIONS}", figure)


def plateaus(runs: Runs) -> Picture:
    curves = {
        "induction, two layers": (runs["induction_2"], "test.accuracy", ACCURATE),
        "linear regression": (runs["plain"], "test.explained", EXPLAINED),
    }
    lines = {
        name: plateau(run, metric, level).clip(max=float(run["step"].max()))
        for name, (run, metric, level) in curves.items()
    }
    figure = comparison.curves({"steps": lines}, "How long the plateau lasts", yscale="log")
    caption = (
        f"Steps until an accuracy of {ACCURATE:g}, and until {EXPLAINED:g} is explained; seeds that never get there "
        "stand at the end of their training."
    )
    return Picture("plateaus", caption, figure)
