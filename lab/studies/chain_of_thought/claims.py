"""The claims of the chain-of-thought study.

Thresholds are from the paper, its released logs and its result files where they print a number, else ours and marked
so; written before the runs. What a model answers is what it says by itself, by greedy decoding up to the end token
(`generation`); curves over training are of one forward pass, which is the same up to ties. One number a seed: initial
scale, decay and learning rate are the usual ones.
"""

import math

import numpy as np
import xarray as xr

from lab.analysis import statistics
from lab.analysis.statistics import median_of
from lab.claims import DIRECTION, OURS, claim
from lab.measuring.catalogue import hops
from lab.runs import MissingData, Run, Runs
from lab.tasks import TwoHop

PAPER, LOGS = "arXiv 2502.04667", "arXiv 2502.04667, released logs"
SEED = ("seed",)
IN, OUT = 0, 1
# released logs, last step, lambda 7.2: share of wrong answers -> accuracy in and out of distribution
PUBLISHED_XI = {0.05: (0.990, 0.978), 0.2: (0.951, 0.776), 0.4: (0.866, 0.491), 0.8: (0.426, 0.148)}
PUBLISHED_LEAKING = 0.513  # first hop, nominally 0.05, out of distribution; by the authors' loop
PUBLISHED_DEGREE = 20  # facts of a head, over which that loop runs
XI_FIRST = 0.05  # nominal share of wrong bridges
SAME_SHARE = 0.02  # wrong bridges of the loop are as many as published up to this
FITTED = 0.95  # accuracy on trained questions from which a model has learnt them
ANSWERED = 0.5  # accuracy out of distribution from which there is a rise to be timed
MUCH_NOISE = (0.4, 0.8)


@claim(
    "H1a", "With a chain of thought questions held out are answered", headline=True, quantity="accuracy",
    source=PAPER, published="about 1.0", at_least=0.98, threshold_from=OURS,
)  # fmt: skip
def thought_generalizes(runs: Runs):
    return runs["thought"].final("generation.two_hop_id", SEED)


@claim(
    "H1b", "and so are questions of facts that no training question joins", headline=True, quantity="accuracy",
    source=PAPER, published="above 0.90", at_least=0.9,
)  # fmt: skip
def thought_generalizes_out_of_distribution(runs: Runs):
    run = runs["thought"]
    steps = ("fact_ood.accuracy", "two_hop_ood.bridge_accuracy", "two_hop_ood.answer_accuracy")
    known = [median_of(run.final(name, SEED)) for name in steps]
    note = "Facts {:.2f}, bridge {:.2f}, answer after the true bridge {:.2f}.".format(*known)
    return run.final("generation.two_hop_ood", SEED), note


@claim(
    "H1c", "Without one they are not, at any step", headline=True, quantity="highest accuracy over training",
    source=PAPER, published="about 0", at_most=0.05, threshold_from=OURS,
)  # fmt: skip
def direct_does_not(runs: Runs):
    run = runs["direct"]
    known = run.final("two_hop_train.accuracy", SEED), run.final("two_hop_id.accuracy", SEED)
    note = "At the last step trained questions {:.2f}, in distribution {:.2f}.".format(*map(median_of, known))
    return run.best("two_hop_ood.accuracy", SEED).where(known[0] >= FITTED), note


@claim(
    "H2a", "Accuracy out of distribution falls with the share of wrong answers", headline=True,
    quantity="rank correlation", source=LOGS, published="0.98, 0.78, 0.49, 0.15 at 0.05, 0.2, 0.4, 0.8",
    at_most=-0.9, threshold_from=DIRECTION,
)  # fmt: skip
def ceiling_falls(runs: Runs):
    return statistics.rank_trend(by_noise(runs, "generation.two_hop_ood"), "xi_second")


@claim(
    "H2b", "to the published values", headline=True, quantity="largest distance", source=LOGS,
    published="0.98, 0.78, 0.49, 0.15 at 0.05, 0.2, 0.4, 0.8", at_most=0.15, threshold_from=OURS,
)  # fmt: skip
def ceiling_is_the_published_one(runs: Runs):
    ceiling = by_noise(runs, "generation.two_hop_ood")
    return abs(ceiling - published_accuracy(OUT)).max("xi_second", skipna=False), f"Measured: {_by_xi(ceiling)}."


@claim(
    "H2c", "As many wrong bridges by the authors' loop as its nominal 0.05 makes cost half",
    quantity="distance of accuracy", source=LOGS, published="0.513 out of distribution", at_most=0.15,
    threshold_from=OURS,
)  # fmt: skip
def leaking_noise_costs_half(runs: Runs):
    accuracy, wrong = _of_the_loop(runs)
    return abs(
        accuracy - PUBLISHED_LEAKING
    ), f"Accuracy {median_of(accuracy):.2f}; {wrong:.2f} of the bridges are wrong."


@claim(
    "H2d", "of which wrong bridges drawn one by one, at 0.05, cost less", quantity="lead over the authors' loop",
    source="the authors' code, as read by us", published="-", at_least=0.2, threshold_from=OURS,
)  # fmt: skip
def clean_first_hop_noise_costs_less(runs: Runs):
    clean = runs["first_hop"].final("generation.two_hop_ood", SEED, xi_first=XI_FIRST)
    leaking, _ = _of_the_loop(runs)
    return clean - leaking, f"One by one {median_of(clean):.2f}, by the loop {median_of(leaking):.2f}."


@claim(
    "H3a", "The rule is learnt before the noise: none of it is fitted where held-out accuracy peaks",
    quantity="largest distance of training accuracy from 1 - xi", source=LOGS, published="at most 0.012",
    at_most=0.03, threshold_from=OURS,
)  # fmt: skip
def rule_before_noise(runs: Runs):
    trained, held_out = (
        by_noise(runs, f"{split}.accuracy", over_time=True) for split in ("two_hop_train", "two_hop_id")
    )
    at_peak = statistics.value_at(trained, held_out.idxmax("step"), "step")
    distance = abs(at_peak - (1 - at_peak["xi_second"]))
    return distance.max("xi_second", skipna=False), f"Training accuracy at the peak: {_by_xi(at_peak)}."


@claim(
    "H3b", "Much noise is memorized later", quantity="lowest final training accuracy", source=LOGS,
    published="0.97 to 0.98", at_least=0.9, threshold_from=OURS,
)  # fmt: skip
def noise_is_memorized(runs: Runs):
    trained = by_noise(runs, "two_hop_train.accuracy", MUCH_NOISE)
    return trained.min("xi_second", skipna=False), f"Final training accuracy: {_by_xi(trained)}."


@claim(
    "H3c", "while held-out accuracy falls from its peak", quantity="smallest fall", source=LOGS,
    published="0.13 and 0.56 at 0.4 and 0.8", at_least=0.1, threshold_from=OURS,
)  # fmt: skip
def held_out_falls(runs: Runs):
    over_time = by_noise(runs, "two_hop_id.accuracy", MUCH_NOISE, over_time=True)
    fall = over_time.max("step") - over_time.isel(step=-1, drop=True)
    return fall.min("xi_second", skipna=False), f"Fall: {_by_xi(fall)}."


@claim(
    "H4", "A question waits for both of its facts", quantity="largest distance from ceiling x facts^2 over training",
    source=LOGS, published="0.1 at most, xi 0.05", at_most=0.15, threshold_from=OURS,
)  # fmt: skip
def questions_wait_for_their_facts(runs: Runs):
    fact, question = (runs["thought"].over_time(f"{split}.accuracy", SEED) for split in ("fact_ood", "two_hop_ood"))
    ceiling = (question / fact**2).isel(step=-1, drop=True)
    distance = abs(question - ceiling * fact**2).max("step", skipna=False)
    return distance.where(question.isel(step=-1, drop=True) >= ANSWERED), f"Ceiling {median_of(ceiling):.2f}."


@claim(
    "H5a", "h and r1 decide the bridge at the input of the first block", quantity="smaller share of bridges lost",
    source=f"{PAPER}, released result files", published="1.00 and 1.00, 8 layers", at_least=0.95, threshold_from=OURS,
)  # fmt: skip
def question_decides_at_the_input(runs: Runs):
    own = _own_place(runs["thought"], "bridge")
    return own.isel(input=0).min("part", skipna=False), _of_layers(runs)


@claim(
    "H5b", "and not above it", quantity="largest share of bridges lost",
    source=f"{PAPER}, released result files", published="0.00, 8 layers", at_most=0.05, threshold_from=OURS,
)  # fmt: skip
def question_is_read_once(runs: Runs):
    above = _own_place(runs["thought"], "bridge").isel(input=slice(1, None))
    if not above.sizes["input"]:
        raise MissingData("a second layer")
    by_part = ", ".join(f"{part} {median_of(above.sel(part=part).max('input')):.2f}" for part in above["part"].values)
    return above.max(("part", "input"), skipna=False), f"{by_part}. {_of_layers(runs)}"


@claim(
    "H5c", "The bridge's token decides the answer at every block's input", quantity="smallest share of answers lost",
    source=f"{PAPER}, released result files", published="0.997 or more, 8 layers", at_least=0.95, threshold_from=OURS,
)  # fmt: skip
def bridge_decides_everywhere(runs: Runs):
    own = _own_place(runs["thought"], "answer").sel(part=hops.BRIDGE)
    return own.min("input", skipna=False), _of_layers(runs)


@claim(
    "H6a", "The bridge can be read at r1 as well as at r2", quantity="largest difference of mean reciprocal ranks",
    source=f"{PAPER}, released result files", published="at most 0.07, 8 layers", at_most=0.1, threshold_from=OURS,
)  # fmt: skip
def bridge_is_read_at_both(runs: Runs):
    after = _readability(runs)
    gap = abs(after.sel(place="r1", drop=True) - after.sel(place="r2", drop=True))
    return gap.max("state", skipna=False), _of_layers(runs)


@claim(
    "H6b", "and fades at its own position while the answer is built",
    quantity="fall from the second block's input to the last's", source=f"{PAPER}, released result files",
    published="from 0.93 to 0.03, 8 layers", at_least=0.5, threshold_from=OURS,
)  # fmt: skip
def bridge_fades(runs: Runs):
    own = _readability(runs).sel(place=hops.BRIDGE, drop=True)
    if own.sizes["state"] < 2:
        raise MissingData("a third layer")
    ends = own.isel(state=0, drop=True), own.isel(state=-1, drop=True)
    return ends[0] - ends[1], "From {:.2f} to {:.2f}. ".format(*map(median_of, ends)) + _of_layers(runs)


@claim(
    "H7", "How often a fact is seen sets the speed, not the ratio of questions to facts",
    quantity="spread of log exposures at half the final accuracy",
    source="ours; the paper says that fewer questions are faster", published="-", at_most=math.log(1.3),
    threshold_from=OURS,
)  # fmt: skip
def exposures_order_speeds(runs: Runs):
    run = runs["ratios"]
    if len(run.values_of("ratio")) < 2:
        raise MissingData("a second ratio")
    over_time = run.over_time("two_hop_ood.accuracy", ("seed", "ratio"))
    final = over_time.isel(step=-1, drop=True)
    steps = statistics.first_where(over_time >= final.where(final >= ANSWERED) / 2, "step")
    log_exposures = np.log(steps) + np.log(exposures_a_step(run))
    by_ratio = ", ".join(f"{float(at.ratio):g}: {median_of(at):.0f}" for at in steps.transpose("ratio", ...))
    spread = log_exposures.max("ratio", skipna=False) - log_exposures.min("ratio", skipna=False)
    return spread, f"Steps to half of the final accuracy: {by_ratio}."


@claim(
    "H8", "Both overlapping pairs of a question of three hops are answered, out of distribution",
    quantity="share of questions", source=f"{PAPER}, notebook", published="96 of 100, 2 layers, lambda 3.6",
    at_least=0.9, threshold_from=OURS,
)  # fmt: skip
def overlapping_pairs_are_answered(runs: Runs):
    run = runs["thought"]
    freely = run.final("generation.three_hop_ood", SEED)
    note = f"Three hops said in one go: {median_of(freely):.2f}."
    return run.final("pairs.all", SEED).sel(split="three_hop_ood"), note


def exposures_a_step(run: Run) -> xr.DataArray:
    """Expected sights of a fact out of distribution in a step, by ratio: batch size over items of the training set."""
    task = TwoHop(**{name: value for name, value in run.config["task"].items() if name != "family"})
    n_facts = len(task.facts.head_A)
    n_questions = run.dataset["ratio"] * (n_facts - int(task.facts.is_ood_A.sum()))
    return run.config["batch_size"] / (n_facts + n_questions)


def wrong_bridges(xi: float, out_degree: int) -> float:
    """Share of bridges that the authors' loop makes wrong: it leaves the j-th fact of a head alone at (1 - xi)^j."""
    return 1 - float(np.mean((1 - xi) ** np.arange(1, out_degree + 1)))


def _of_the_loop(runs: Runs) -> tuple[xr.DataArray, float]:
    """Accuracy by seed where the loop makes as many bridges wrong as published, and how many those are."""
    run = runs["leaking"]
    published = wrong_bridges(XI_FIRST, PUBLISHED_DEGREE)
    share = {float(xi): wrong_bridges(xi, run.config["task"]["out_degree"]) for xi in run.values_of("xi_leaking")}
    xi = min(share, key=lambda xi: abs(share[xi] - published))
    if abs(share[xi] - published) > SAME_SHARE:
        raise MissingData(f"an xi_leaking that makes {published:.2f} of the bridges wrong")
    return run.final("generation.two_hop_ood", SEED, xi_leaking=xi), share[xi]


def by_noise(runs: Runs, name: str, shares=tuple(PUBLISHED_XI), over_time: bool = False) -> xr.DataArray:
    """Of each published share of wrong answers the last value, or all over time; dims (seed, *step*, xi_second)."""
    run = runs["noise"]
    pick = run.over_time if over_time else run.final
    values = [pick(name, SEED, xi_second=xi).reset_coords(drop=True) for xi in shares]
    return xr.concat(values, "xi_second").assign_coords(xi_second=list(shares))


def published_accuracy(column: int) -> xr.DataArray:
    """At the published shares of wrong answers, `IN` or `OUT` of distribution."""
    return xr.DataArray([pair[column] for pair in PUBLISHED_XI.values()], {"xi_second": list(PUBLISHED_XI)})


def _own_place(run: Run, stage: str) -> xr.DataArray:
    """Share that is lost to the state of a swapped part at the part's own position; dims (seed, part, input)."""
    share = run.final(f"routing.{stage}", SEED)
    own = [share.sel({f"{stage}_swap": part, f"{stage}_place": part}).reset_coords(drop=True)
           for part in share[f"{stage}_swap"].values]  # fmt: skip
    return xr.concat(own, "part").assign_coords(part=share[f"{stage}_swap"].values)


def _readability(runs: Runs) -> xr.DataArray:
    """Of the bridge, at the inputs of the second block to the last, as published; dims (seed, state, place)."""
    after = runs["thought"].final("readability.bridge", SEED).isel(state=slice(1, -1))
    if not after.sizes["state"]:
        raise MissingData("a second layer")
    return after


def _of_layers(runs: Runs) -> str:
    n_layers = runs["thought"].config["model"]["n_layers"]
    return f"{n_layers} layers{'' if n_layers == 8 else ': reduced, so that this is a prediction'}."


def _by_xi(values: xr.DataArray) -> str:
    return ", ".join(f"{float(at.xi_second):g}: {median_of(at):.2f}" for at in values.transpose("xi_second", ...))


CLAIMS = (
    thought_generalizes, thought_generalizes_out_of_distribution, direct_does_not, ceiling_falls,
    ceiling_is_the_published_one, leaking_noise_costs_half, clean_first_hop_noise_costs_less, rule_before_noise,
    noise_is_memorized, held_out_falls, questions_wait_for_their_facts, question_decides_at_the_input,
    question_is_read_once, bridge_decides_everywhere, bridge_is_read_at_both, bridge_fades, exposures_order_speeds,
    overlapping_pairs_are_answered,
)  # fmt: skip
