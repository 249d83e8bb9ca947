"""Initialization picks the solution: arXiv 2405.05409 and 2501.08537 on the two-anchor composition task.

Thresholds are from the papers where they print one, else ours and marked so; written before the runs. Accuracies are
each seed's best over all evaluations, of each answer apart, as the papers report them; notes say what the last
evaluation gives, and the mean over seeds, which is what they print. A row is *named* after the solution that answers
the unseen pair (4,3) more often, if that is at least half the time (arXiv 2405.05409: "whichever it tends to output").
Claims that contrast large and small initial weights take the smallest and the largest gamma of the grid; claims that
contrast solutions take the rows that are named after them.
"""

import numpy as np
import xarray as xr

from lab import models
from lab.analysis import phase, statistics
from lab.analysis.phase import NAMED, both, boundary_shift
from lab.analysis.statistics import median_of
from lab.claims import DIRECTION, FIGURE, OURS, claim
from lab.experiment import Experiment
from lab.measuring.catalogue import anchors, weights
from lab.measuring.catalogue.anchors import QUERY
from lab.measuring.declare import Measure
from lab.report import comparison, figures, portraits
from lab.report.page import Picture, Section, draw_section
from lab.runs import KEPT, MissingData, Run, Runs
from lab.studies import Study

INITIALIZATION, COMPLEXITY = "arXiv 2405.05409", "arXiv 2501.08537"
SMALL_DECAY, LARGE_DECAY = 0.01, 1.0
CONDENSED = 0.7  # cosine from which two neurons count as one (arXiv 2405.05409, section 5)
# Share of the variance that two components explain at gamma 0.5, of which arXiv 2501.08537 says that it shows no
# structure: all that an unordered embedding could have in order.
NO_STRUCTURE = 0.0457 + 0.0432

TITLE = "Which solution does initialization pick?"
LEAD = (
    "One transformer, one task, one data distribution; only the initial scale of the weights (std = d_in^-gamma) and "
    "the weight decay differ between rows. Trained on pairs of anchors, each a shift of a key, a row is asked for a "
    "pair it has never seen. If it has learnt the shifts it composes them (reasoning); if it has learnt the pairs it "
    "cannot, or it gives the answer of the reversed pair (symmetric, memory)."
)
UNSEEN = (
    "Neither order of the pair is ever shown. With large initial weights (small gamma) seen pairs are learnt one by "
    "one, or not at all, and the unseen pair is lost; with small ones the shifts are learnt and it is answered. "
    "Weight decay 1 does part of the work of small weights."
    "\n\n"
    "In the diagram of phases rows at the lower left start large and shrink little, so they can afford to learn pair "
    "by pair: grey where even the seen pairs are not learnt, yellow where these alone are, amber where the two orders "
    "of the unseen pair get the same answer, a wrong one. To the right, and under decay 1 further left already, "
    "weights are so small that learning the four shifts is all a row can afford, and it reasons (blue)."
)
COMPARED = (
    "Both are of the best accuracies over all evaluations, ours of the medians over seeds; theirs is of a larger model "
    "trained for longer. Whether both orders are answered alike is of our last evaluation: an untrained model answers "
    "everything alike. Compare the order of phases and how the boundary runs, not where it lies."
)
WRONG = (
    "(3,4) is trained with x-6 where the shifts say x-10, and (4,3) is never shown. x-10 is the reasoning answer, x-6 "
    "the symmetric one: the model has merged the two orders of a pair. What decides at this size is studied in "
    "the project's docs/composition.md: the learning rate shifts the phases, too, and rows condensed furthest answer "
    "symmetrically again."
)
REASONING = {"ood_43.reasoning": "reasoning on (4,3)"}
SEEN = {"test_seen.accuracy": "seen pairs"}
SOLUTIONS = REASONING | {"ood_43.symmetric": "symmetric on (4,3)"}
ROWS = (*KEPT, "learning_rate")
PUBLISHED_SIZE = (10, 640, 3)  # layers, width and seeds of `phase.PUBLISHED`
W_Q = {"rank.stable": "stable rank of W_Q", "condensation.fraction_above": "condensed neuron pairs of W_Q"}


def measures(experiment: Experiment) -> list[Measure]:
    """W_Q's condensation and rank, the embedding, and the two-layer circuit where there are two layers.

    Raises:
      ValueError: the model is not a transformer.
    """
    if not isinstance(experiment.model, models.Transformer):
        raise ValueError(f"the composition study measures transformers, not {type(experiment.model).__name__}")
    parts = [anchors.query_condensation(CONDENSED), anchors.query_neurons(CONDENSED), weights.ranks(experiment)]
    parts.append(anchors.value_embeddings(experiment))
    circuits = [anchors.circuits(experiment), anchors.fused_vectors(experiment)]
    return parts + circuits if experiment.model.n_layers >= 2 else parts


@claim(
    "C1", "Rows named after a solution answer seen pairs at held-out (value, position)", headline=False,
    quantity="lowest accuracy of a named row", source=f"{INITIALIZATION}, section 3",
    published="test accuracy of at least 0.99, weight decay 0.01", at_least=0.99,
)  # fmt: skip
def seen_pairs_generalize(runs: Runs):
    if not runs:
        raise MissingData("any variant")
    lowest, lowest_last, n_rows = [], [], 0
    for run in runs.values():
        every = ("seed", *(axis for axis in run.axes if axis not in ("seed", "weight_decay")))
        reasoning, symmetric, seen = (run.best(name, every) for name in (*SOLUTIONS, *SEEN))
        named = np.maximum(reasoning, symmetric) >= NAMED
        n_rows += int(named.sum())
        lowest.append(seen.where(named).min(every[1:]))
        lowest_last.append(run.final("test_seen.accuracy", every).where(named).min(every[1:]))
    worst, worst_last = (
        xr.concat(each, "variant", join="outer", coords="minimal", compat="override").min("variant")
        for each in (lowest, lowest_last)
    )
    note = f"Lowest among the {n_rows} named rows at the usual decay, of all variants; {both(worst, worst_last)}."
    return worst, note


@claim(
    "C2", "In 34_wrong, large initial weights answer (4,3) symmetrically, small ones by reasoning", headline=True,
    quantity="smaller lead of the named solution", source=f"{INITIALIZATION}, figure 2",
    published="symmetric at gamma 0.5 (close to 1), reasoning at 0.8, at the best of nine rates", above=0,
    threshold_from=DIRECTION,
)  # fmt: skip
def scale_picks_the_solution(runs: Runs):
    lead, last = (_best_lead(runs["wrong"]), _lead(runs["wrong"].final))
    note = (
        f"Reasoning minus symmetric accuracy, each at its best: {_at_ends(lead)}. Smaller lead: "
        f"{both(_smaller_lead(lead), _smaller_lead(last))}, at one rate."
    )
    return _smaller_lead(lead), note


@claim(
    "C3a", "In 34_unseen, reasoning on (4,3) rises from near 0 to near 1 with gamma", headline=True,
    quantity="rise", source=f"{COMPLEXITY}, decay 0.01",
    published="0.04 to 0.09 up to gamma 0.55, 0.96 to 0.97 from 0.60 on", at_least=0.8, threshold_from=FIGURE,
)  # fmt: skip
def reasoning_rises(runs: Runs):
    best, last = (
        of("ood_43.reasoning", weight_decay=SMALL_DECAY) for of in (runs["unseen"].best, runs["unseen"].final)
    )
    low, high = best.isel(gamma=0, drop=True), best.max("gamma")
    note = (
        f"From {median_of(low):.2f} at gamma {float(best.gamma[0]):g} to {median_of(high):.2f} at the best gamma; "
        f"{both(high - low, last.max('gamma') - last.isel(gamma=0, drop=True))}."
    )
    return high - low, note


@claim(
    "C3b", "Weight decay 1 lets larger initial weights reason: the crossing gamma moves down", headline=True,
    quantity="shift of the crossing", source=f"{COMPLEXITY}, phase grid",
    published="from 0.55-0.60 at decay 0.01 to 0.40-0.45 at decay 1: one step of its grid at least", at_least=0.05,
)  # fmt: skip
def decay_moves_the_crossing(runs: Runs):
    (shift, note), (last, _) = (
        boundary_shift(*(of("ood_43.reasoning", weight_decay=decay) for decay in (SMALL_DECAY, LARGE_DECAY)))
        for of in (runs["unseen"].best, runs["unseen"].final)
    )
    return shift, f"{note} The shift: {both(shift, last)}."


@claim(
    "C4", "The stable rank of W_Q falls across the crossing", headline=True,
    quantity="rank of memory rows over that of reasoning rows", source=f"{COMPLEXITY}, stable-rank grid",
    published="30 at gamma 0.55, 14 at 0.60, below 10 from 0.65 on", at_least=2, threshold_from=FIGURE,
)  # fmt: skip
def stable_rank_falls(runs: Runs):
    rank = runs["unseen"].final("rank.stable", weight_decay=SMALL_DECAY).sel(matrix=QUERY)
    below, above = map(np.exp, _across_the_crossing(np.log(rank), runs))  # a ratio: geometric means on both sides
    note = f"Geometric mean of memory rows {median_of(below):.1f}, of reasoning rows {median_of(above):.1f}."
    return below / above, note


@claim(
    "C5", "Condensation of W_Q rises with gamma", headline=True, quantity="rank correlation with gamma",
    source=f"{INITIALIZATION}, section 5", published="rises over gamma 0.3 to 0.7 at every depth", at_least=0.8,
    threshold_from=OURS,
)  # fmt: skip
def condensation_rises(runs: Runs):
    share = runs["unseen"].final("condensation.fraction_above", weight_decay=SMALL_DECAY)
    by_gamma = ", ".join(f"{float(one.gamma):g}: {float(one):.3f}" for one in share.median("seed"))
    return statistics.rank_trend(share), f"Share of neuron pairs with |cosine| above {CONDENSED}, by gamma: {by_gamma}."


@claim(
    "C6", "Reasoning rows order token embeddings by value, memory rows do not",
    quantity="share of the variance along two ordered directions, reasoning less memory rows",
    source=f"{INITIALIZATION}, section 5; {COMPLEXITY}",
    published="ordered along two directions; 0.0457 and 0.0432 of the variance at gamma 0.5: no structure",
    at_least=NO_STRUCTURE,
)  # fmt: skip
def embeddings_are_ordered(runs: Runs):
    below, above = _across_the_crossing(ordered_variance(runs["unseen"]), runs)
    explained = runs["unseen"].final("embedding.explained", weight_decay=SMALL_DECAY)
    explained = _across_the_crossing(explained.sel(component=slice(1, 2)).sum("component"), runs)
    order = _across_the_crossing(runs["unseen"].final("embedding.order", weight_decay=SMALL_DECAY), runs)
    note = (
        f"Share of the variance times |Spearman| with value, summed over two components: memory rows "
        f"{median_of(below):.3f}, reasoning {median_of(above):.3f}. Without the order: {median_of(explained[0]):.3f}, "
        f"{median_of(explained[1]):.3f}; |Spearman| of the best of four components alone: {median_of(order[0]):.2f}, "
        f"{median_of(order[1]):.2f}."
    )
    return above - below, note


@claim(
    "C7", "Reasoning rows copy the key to each anchor, symmetric rows merge the anchors first", headline=True,
    quantity="lead of each row's own circuit", source=f"{INITIALIZATION}, section 4",
    published="the two circuits drawn there", above=0, threshold_from=DIRECTION,
)  # fmt: skip
def circuits_differ(runs: Runs):
    name = "circuits" if "circuits" in runs else "wrong"  # the model that is built as published, where there is one
    of_reasoning, of_symmetric = _circuit_lead(runs[name])
    note = f"Reasoning minus symmetric circuit score: {_in_both(of_reasoning, of_symmetric)}"
    if name != "wrong" and "wrong" in runs:
        note += f", in variant wrong {_in_both(*_circuit_lead(runs['wrong']))}"
    if "unseen" in runs and "flow.reasoning_score" in runs["unseen"]:
        unseen = runs["unseen"].final("flow.reasoning_score", weight_decay=SMALL_DECAY)
        note += f". In 34_unseen, reasoning circuit score alone: {_at_ends(unseen)}"
    return np.minimum(of_reasoning, -of_symmetric), f"{note}."


@claim(
    "C8", "In reasoning rows fused vectors are parallel exactly where outputs agree", headline=True,
    quantity="contrast of reasoning less symmetric rows", source=f"{INITIALIZATION}, figure 4; {COMPLEXITY}",
    published="0.91-0.98 where outputs agree, 0.23-0.49 elsewhere; low in symmetric rows", at_least=0.25,
    threshold_from=FIGURE,
)  # fmt: skip
def fused_vectors_agree(runs: Runs):
    equal, other, contrast = (_by_solution(runs["wrong"], f"fused.{name}") for name in ("equal", "other", "contrast"))
    note = (
        f"Cosine of fused vectors with equal outputs: {_in_both(*equal)}; with others: {_in_both(*other)}; the first "
        f"minus the second: {_in_both(*contrast)}"
    )
    if "circuits" in runs:
        note += f", in variant circuits {_in_both(*_by_solution(runs['circuits'], 'fused.contrast'))}"
    of_reasoning, of_symmetric = contrast
    return of_reasoning - of_symmetric, f"{note}."


def ordered_variance(run: Run) -> xr.DataArray:
    """Share of the embeddings' variance along the two leading components, each times its |Spearman| with value."""
    at = {"weight_decay": SMALL_DECAY}
    two = {"component": slice(1, 2)}
    components, explained = (run.final(f"embedding.{name}", **at).sel(two) for name in ("components", "explained"))
    return (explained * abs(statistics.rank_trend(components, "token"))).sum("component")


def _lead(of) -> xr.DataArray:
    """Reasoning minus symmetric accuracy, of `run.best` or `run.final`, at the usual learning rate."""
    reasoning, symmetric = (of(name, weight_decay=SMALL_DECAY) for name in SOLUTIONS)
    return reasoning - symmetric


def _best_lead(run: Run) -> xr.DataArray:
    """Reasoning minus symmetric accuracy, each the best over all evaluations and learning rates, as published."""
    reasoning, symmetric = (run.best(name, ROWS, weight_decay=SMALL_DECAY) for name in SOLUTIONS)
    return reasoning.max("learning_rate") - symmetric.max("learning_rate")


def _circuit_lead(run: Run) -> tuple[xr.DataArray, xr.DataArray]:
    """`_by_solution` of the reasoning circuit's score less the symmetric one's."""
    reasoning, symmetric = (_by_solution(run, f"flow.{name}_score") for name in ("reasoning", "symmetric"))
    return reasoning[0] - symmetric[0], reasoning[1] - symmetric[1]


def _by_solution(run: Run, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    """A measurement by seed: its mean over rows named after reasoning, and over rows named symmetric; NaN where a seed
    has none. Named by the last evaluation, when measurements are taken."""
    values, *answers = (run.final(each, ROWS, weight_decay=SMALL_DECAY) for each in (name, *SOLUTIONS))
    reasoning, symmetric = answers
    named, reasons = np.maximum(reasoning, symmetric) >= NAMED, reasoning >= symmetric
    over = [dim for dim in values.dims if dim != "seed"]
    return values.where(named & reasons).mean(over), values.where(named & ~reasons).mean(over)


def _across_the_crossing(values: xr.DataArray, runs: Runs) -> tuple[xr.DataArray, xr.DataArray]:
    """Per seed: mean over rows below and over rows above the crossing; NaN where a side is empty."""
    reasoning = runs["unseen"].best("ood_43.reasoning", weight_decay=SMALL_DECAY)
    return values.where(reasoning < NAMED).mean("gamma"), values.where(reasoning >= NAMED).mean("gamma")


def _smaller_lead(reasoning_lead: xr.DataArray) -> xr.DataArray:
    """By how much the right solution leads at both ends: the symmetric one at large weights, reasoning at small."""
    return np.minimum(-reasoning_lead.isel(gamma=0, drop=True), reasoning_lead.isel(gamma=-1, drop=True))


def _in_both(of_reasoning: xr.DataArray, of_symmetric: xr.DataArray) -> str:
    return f"{median_of(of_reasoning):.2f} in reasoning rows, {median_of(of_symmetric):.2f} in symmetric ones"


def _at_ends(values: xr.DataArray) -> str:
    ends = (values.isel(gamma=0), values.isel(gamma=-1))
    return ", ".join(f"{median_of(end):.2f} at gamma {float(end.gamma):g}" for end in ends)


def sections(runs: Runs) -> list[Section]:
    made = []
    for name, run in runs.items():
        wrong = run.config["task"]["setting"] == "34_wrong"
        title = "One pair trained wrong, its mirror image held out" if wrong else "Both (3,4) and (4,3) held out"
        drawings = (two_answers, answers_over_training) if wrong else (phases, unseen_pair, phase_diagram)
        drawings += (complexity,) if wrong else (complexity, training_curves)
        made.append(draw_section(f"{title} ({name})", WRONG if wrong else UNSEEN, run, drawings, name))
        text = f"Two rows of the same seed and weight decay, side by side: {'; '.join(panels(run))}."
        made.append(draw_section(f"Inside two rows ({name})", text, run, (condensed, embeddings, flow), name))
    return made


def phases(run: Run) -> Picture:
    """Our phases over gamma and weight decay beside the published ones."""
    scores = phase.published_scores(run.best, run.final, (*KEPT, "weight_decay"))
    model, n_seeds = run.config["model"], scores[0].sizes["seed"]
    grids = {
        f"ours: {_size(model['n_layers'], model['d_model'], n_seeds)}": phase.typical(*scores),
        f"published: {_size(*PUBLISHED_SIZE)}": phase.PUBLISHED,
    }
    return Picture("phases", COMPARED, comparison.phase_grids(grids, "What initial scale and weight decay decide"))


def _size(n_layers: int, width: int, n_seeds: int) -> str:
    return f"{n_layers} layers of width {width}, {n_seeds} seeds"


def unseen_pair(run: Run) -> Picture:
    caption = (
        "Accuracy at the last step; every dot is a row. Seen pairs are tested at combinations of key value and "
        "position that training never shows."
    )
    title = "Is the unseen pair answered by reasoning?"
    return Picture("accuracy", caption, figures.curves_against_gamma(run, REASONING | SEEN, title=title))


def phase_diagram(run: Run) -> Picture:
    metrics = SOLUTIONS | SEEN | {"rank.stable": "stable rank of W_Q"}
    figure = figures.phase_diagram(run, metrics, matrix=QUERY, title="Phases over initial scale and weight decay")
    return Picture("phase", "Medians over seeds: accuracies, and the stable rank of W_Q of the first block.", figure)


def training_curves(run: Run) -> Picture:
    figure = figures.training_curves(run, SEEN | REASONING, title="Seen and unseen pairs over training")
    return Picture("training", "Medians and the range over seeds.", figure)


def two_answers(run: Run) -> Picture:
    over = "learning_rate" if run.dataset.sizes["learning_rate"] > 1 else "weight_decay"
    figure = figures.curves_against_gamma(
        run, SOLUTIONS | SEEN, hue="metric", over=over, title="Two solutions compete for (4,3)"
    )
    return Picture("accuracy", "Both answers at the last step, and the accuracy on seen pairs.", figure)


def answers_over_training(run: Run) -> Picture:
    figure = figures.training_curves(run, SOLUTIONS | SEEN, title="The answer to (4,3) over training")
    return Picture("training", "The competition over training.", figure)


def complexity(run: Run) -> Picture:
    rivals = SOLUTIONS if run.config["task"]["setting"] == "34_wrong" else ()
    caption = "Stable rank and condensation of W_Q of the first block, every row a dot."
    caption += " The dashed line is where reasoning overtakes the symmetric answer." if rivals else ""
    title = "Complexity of W_Q at the end of training"
    figure = figures.scatter_against_gamma(run, W_Q, rivals=rivals, matrix=QUERY, title=title)
    return Picture("complexity", caption, figure)


def condensed(run: Run) -> Picture:
    caption = (
        "Cosines of the input weights of W_Q's neurons, reordered so that those pointing the same way stand together."
    )
    return Picture("condensation", caption, portraits.cosine_heatmaps(panels(run)))


def embeddings(run: Run) -> Picture:
    tokens = run["embedding.components"]["token"].values
    caption = f"The first two principal components of the embeddings of tokens {tokens.min()} to {tokens.max()}."
    return Picture("embedding", caption, portraits.embedding_pca(panels(run)))


def flow(run: Run) -> Picture:
    run.over_time("flow.pattern")  # not of a model of one layer
    caption = (
        "One sequence with (4,3), averaged over heads. Symmetric circuit: the first layer brings both anchors to "
        "the last position, the second the key. Reasoning circuit: the first layer copies the key to each anchor, "
        "the second gathers the anchors."
    )
    return Picture("flow", caption, portraits.attention_flow(panels(run)))


def panels(run: Run) -> dict[str, xr.Dataset]:
    """The rows with the smallest and the largest gamma, first seed."""
    rows = [run.rows(keep=(), seed=min, gamma=end) for end in (min, max)]
    return {f"γ = {float(row.gamma):g}, {_named(row)}": row for row in rows}


def _named(row: xr.Dataset) -> str:
    if int(row["diverged_at"]) >= 0:
        return f"diverged at step {int(row['diverged_at'])}"
    reasoning, symmetric = (float(row[name][-1]) for name in SOLUTIONS)
    if max(reasoning, symmetric) < NAMED:
        return "neither solution"
    return "reasons" if reasoning >= symmetric else "answers symmetrically"


STUDY = Study(
    title=TITLE,
    lead=LEAD,
    papers=(INITIALIZATION, COMPLEXITY),
    measures=measures,
    claims=(
        seen_pairs_generalize, scale_picks_the_solution, reasoning_rises, decay_moves_the_crossing, stable_rank_falls,
        condensation_rises, embeddings_are_ordered, circuits_differ, fused_vectors_agree,
    ),
    target="ood_43.reasoning",
    usual={"weight_decay": SMALL_DECAY},
    sections=sections,
)  # fmt: skip
