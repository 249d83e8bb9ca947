"""Chains of thought and the composition of facts: arXiv 2502.04667, two hops with the bridge written out or not."""

import xarray as xr

from lab import models
from lab.experiment import Experiment
from lab.measuring.catalogue import hops
from lab.measuring.declare import Measure
from lab.report import comparison, figures, maps
from lab.report.page import Picture, Section, draw_section
from lab.runs import MissingData, Run, Runs
from lab.studies import Study
from lab.studies.chain_of_thought.claims import (
    CLAIMS,
    IN,
    OUT,
    PAPER,
    SEED,
    by_noise,
    exposures_a_step,
    published_accuracy,
)  # fmt: skip
from lab.tasks import TwoHop

TITLE = "Facts that are known and not joined: what a written bridge changes"
LEAD = (
    "Every fact (h, r) -> t of a random graph is trained, and many questions of two hops (h, r1, r2), but none that "
    "joins two of the facts that are set aside (out of distribution). A model that answers at once memorizes the "
    "questions it is trained on; one that writes the bridge first can use its facts."
)
LEARNING = "Facts alone, questions trained, questions held out, and questions of facts that are joined in no training."
INSIDE = (
    "In each map one part of the question is swapped for one with another answer, and the state at one layer and "
    "position is taken from that run: the share of questions that lose the answer. Where a number is near 1 the state "
    "carries the part. Below, how well bridge and answer are read off each state by the final norm and the head."
)
WRONG = (
    "A share of the trained questions has a random answer after the true bridge. Published: 8 layers of width 768, a "
    "world of 2,000 entities."
)
OFTEN = (
    "Training sets of more questions show each fact less often. If curves that part over steps meet over exposures, "
    "repetition set their speed. An exposure is one expected sight of a fact that is out of distribution."
)
SCALE = "The median over seeds at the last step, over initial scale and weight decay."
CURVES = {
    "fact_id.accuracy": "facts, in distribution", "fact_ood.accuracy": "facts, out of distribution",
    "two_hop_train.accuracy": "questions, trained", "two_hop_id.accuracy": "questions, in distribution",
    "two_hop_ood.accuracy": "questions, out of distribution",
}  # fmt: skip


def measures(experiment: Experiment) -> list[Measure]:
    """What is said freely, and where the bridge is read; with a chain of thought its routing, and pairs of hops.

    Raises:
      ValueError: the model is not a transformer that answers everywhere, or the task is not two hops in a graph.
    """
    model, task = experiment.model, experiment.task
    if not isinstance(model, models.Transformer) or model.readout != "all":
        raise ValueError(f"the chain_of_thought study measures transformers with model.readout='all', not {model}")
    if not isinstance(task, TwoHop) or task.world != "graph" or not task.end_token:
        raise ValueError(f"the chain_of_thought study measures two hops in a graph with an end token, not {task}")
    parts = [hops.generation(experiment), hops.readability(experiment)]
    if task.chain_of_thought:
        parts.append(hops.routing(experiment))
        parts += [hops.overlapping_pairs(experiment)] if task.three_hop else []
    return parts


def sections(runs: Runs) -> list[Section]:
    return [
        draw_section("With and without a chain of thought", LEARNING, runs, (learning,)),
        draw_section("Where the bridge is, and what routes it", INSIDE, runs, (bridge_swaps, answer_swaps, readable)),
        draw_section("Wrong steps", WRONG, runs, (ceilings, noise_over_training)),
        draw_section("How often a fact is seen", OFTEN, runs, (over_steps, over_exposures)),
        draw_section("Initial scale and decay", SCALE, runs, (thought_phases, direct_phases)),
    ]  # fmt: skip


def learning(runs: Runs) -> Picture:
    arms = {"with a chain of thought": runs["thought"], "without": runs["direct"]}
    panels = {arm: {label: run.over_time(name, SEED) for name, label in CURVES.items()} for arm, run in arms.items()}
    figure = comparison.curves(panels, "Facts and questions over training", "step", ylim=(-0.03, 1.03))
    return Picture("learning", "Accuracy, all of the answer right.", figure)


def bridge_swaps(runs: Runs) -> Picture:
    return _tracing(runs["thought"], "bridge", "What decides the bridge, read after h r1 r2")


def answer_swaps(runs: Runs) -> Picture:
    return _tracing(runs["thought"], "answer", "What decides the answer, read after h r1 r2 b")


def _tracing(run: Run, stage: str, title: str) -> Picture:
    share = run.final(f"routing.{stage}", SEED).median("seed")
    panels = {f"{part} swapped": share.sel({f"{stage}_swap": part}) for part in share[f"{stage}_swap"].values}
    layers = [f"input {i}" for i in range(share.sizes["input"])]
    figure = maps.heatmap(panels, layers, share[f"{stage}_place"].values, "share lost", title, "block")
    caption = f"Share of questions in distribution, answered right, that lose the {stage}; medians over seeds."
    return Picture(f"tracing-{stage}", caption, figure)


def readable(runs: Runs) -> Picture:
    panels = {}
    for arm, label in (("thought", "with"), ("direct", "without")):
        if arm in runs:
            for part in ("bridge", "answer"):
                values = runs[arm].final(f"readability.{part}", SEED).median("seed")
                panels[f"{part}, {label}"] = values.transpose("state", "place")
    if not panels:
        raise MissingData("variant thought")
    places = max((panel["place"].values.tolist() for panel in panels.values()), key=len)
    depths = [f"after {i}" for i in range(next(iter(panels.values())).sizes["state"])]
    panels = {label: panel.reindex(place=places) for label, panel in panels.items()}
    title = "Where bridge and answer can be read, with and without a chain of thought"
    figure = maps.heatmap(panels, depths, places, "mean reciprocal rank", title, "blocks")
    return Picture("readability", "Questions in distribution; medians over seeds.", figure)


def ceilings(runs: Runs) -> Picture:
    panels = {}
    for column, split, label in ((IN, "id", "in distribution"), (OUT, "ood", "out of distribution")):
        ours = by_noise(runs, f"generation.two_hop_{split}").transpose("seed", "xi_second")
        panels[label] = {"ours": ours, "published": published_accuracy(column)}
    figure = comparison.curves(panels, "Accuracy after training on wrong answers", "share ξ", ylim=(-0.03, 1.03))
    return Picture("ceilings", "At the last step.", figure)


def noise_over_training(runs: Runs) -> Picture:
    panels = {}
    for split, label in (("two_hop_train", "trained, wrong ones too"), ("two_hop_id", "in distribution"),
                         ("two_hop_ood", "out of distribution")):  # fmt: skip
        over_time = by_noise(runs, f"{split}.accuracy", over_time=True).transpose("xi_second", "seed", "step")
        panels[label] = {f"ξ = {float(one.xi_second):g}": one.reset_coords(drop=True) for one in over_time}
    title = "The rule is learnt first, wrong answers later"
    return Picture("noise", "Accuracy over training.", comparison.curves(panels, title, "step", ylim=(-0.03, 1.03)))


def over_steps(runs: Runs) -> Picture:
    run = runs["ratios"]
    return _speeds(run, xr.ones_like(run.dataset["ratio"], float), "step", "steps")


def over_exposures(runs: Runs) -> Picture:
    run = runs["ratios"]
    return _speeds(run, exposures_a_step(run), "exposures of a fact", "exposures")


def _speeds(run: Run, scale: xr.DataArray, xlabel: str, name: str) -> Picture:
    panels = {}
    for split, label in (("fact_ood", "facts"), ("two_hop_ood", "questions")):
        over_time = run.over_time(f"{split}.accuracy", ("seed", "ratio")).transpose("ratio", "seed", "step")
        panels[f"{label}, out of distribution"] = {
            f"λ = {float(one.ratio):g}": one.assign_coords(step=one["step"].values * float(factor))
            for one, factor in zip(over_time, scale, strict=True)
        }
    title = f"Learning over {name}, by the ratio of questions to facts"
    figure = comparison.curves(panels, title, xlabel, ylim=(-0.03, 1.03))
    return Picture(f"speed-{name}", "Accuracy over training; the last points are of one training set each.", figure)


def thought_phases(runs: Runs) -> Picture:
    return _phases(runs["phase"], "thought", "with a chain of thought")


def direct_phases(runs: Runs) -> Picture:
    return _phases(runs["phase_direct"], "direct", "without a chain of thought")


def _phases(run: Run, name: str, words: str) -> Picture:
    metrics = {"two_hop_ood.accuracy": "out of distribution", "two_hop_id.accuracy": "in distribution"}
    figure = figures.phase_diagram(run, metrics, title=f"Questions answered {words}")
    return Picture(f"phases-{name}", "", figure)


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(PAPER,),
    measures=measures,
    claims=CLAIMS,
    target="two_hop_ood.accuracy",
    usual={"weight_decay": 0.1, "ratio": max},
    sections=sections,
)  # fmt: skip
