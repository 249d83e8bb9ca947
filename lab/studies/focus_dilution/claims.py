"""The claims of the focus-dilution study: the paper's statements as numbers.

Thresholds are from the papers where they print one, else ours and marked so; written before the runs. What counts as a
move, as a cycle, as growth is ours, too, and the same for all rows.

F1 to F7d are of the exact limit of each row's start; F8 and F9 of the same rows trained on samples; those of the other
paper stand in `companion`. Where a grid has several initial scales, theory's statements (F1 to F5) take the smallest,
for which they are asymptotic, and those on repeated cycles (F7 to F9) the largest, from which most cycles fit into the
same time. The paper shows repeated cycles by norms and by the entropy of attention; focus itself is counted beside
them. A seed without the stage that a claim speaks of counts as missing.
"""

import functools
from collections.abc import Callable

import numpy as np
import xarray as xr

from lab.analysis import attention_stages
from lab.analysis.statistics import first_where, rank_trend, value_at
from lab.claims import DIRECTION, FIGURE, OURS, claim
from lab.runs import MissingData, Run, Runs
from lab.studies.focus_dilution import population
from lab.tasks import markov

PAPER = "arXiv 2605.01199"
HYSTERESIS = 0.01  # attention mass: what counts as a move of the exact limit
# rises and falls that make a cycle, above any noise: attention mass, nats, share of a norm's highest value
CYCLE = {"focus": 0.05, "entropy": 0.1, "norm": 0.05}
MAXIMA = f"maxima of focus with falls of {CYCLE['focus']:g}"
RISES = f"maxima of a low-frequency token's norm with falls of {CYCLE['norm']:.0%} of its highest"
GROWN = 2.0  # times its first value: W_Q has left where it started
CONDENSED_RANK, CONDENSED_GAP = 1.1, 1e-3  # of W_0, nats: the paper's criterion as `attention_stages.Thresholds` has it
ESCAPED = 0.05  # s_2 / s_1 of W_0 at which a new direction is there
FITTED = (0.05, 0.005)  # growth is fitted from this share of what it has reached when F has moved by this much

Curves = Callable[[str], xr.DataArray]  # name of a variable -> its values over time, of selected rows


@claim(
    "F1", "Embeddings condense to rank one before attention grows", headline=True,
    quantity="step of a doubled W_Q over step of condensation", source=f"{PAPER}, stage I",
    published="stages in this order", above=1, threshold_from=DIRECTION,
)  # fmt: skip
def condensation_comes_first(runs: Runs):
    curves = of_smallest_weights(runs)
    condensed, norm = condensed_at(curves), curves("limit.norm_query")
    doubled = first_where(norm > GROWN * norm.isel(time=0), "time")
    return ratio(doubled, condensed), f"Steps: condensed {listed(condensed)}, |W_Q| doubled {listed(doubled)}."


@claim(
    "F2", "The first plateau is at the unigram entropy", quantity="loss minus it in nats", source=f"{PAPER}, stage I",
    published="loss falls to H(pi)", at_least=-1e-2, at_most=1e-2, threshold_from=OURS,
)  # fmt: skip
def plateau_is_unigram(runs: Runs):
    curves = of_smallest_weights(runs)
    plateau = plateau_at(curves)
    gap = value_at(curves("limit.gap"), plateau, "time")
    return gap, f"Loss minus unigram entropy in nats, at steps {listed(plateau)}."


@claim(
    "F3a", "Then every query's attention to the most frequent token rises", headline=True, quantity="smallest rise",
    source=f"{PAPER}, stage II", published="every query moves mass to token 0", above=0, threshold_from=DIRECTION,
)  # fmt: skip
def every_query_focuses(runs: Runs):
    to_top = _to_top(of_smallest_weights(runs))
    rise = (to_top.max("time") - to_top.isel(time=0)).min("query_token")
    return rise, "The smallest rise among query tokens, in attention mass: theory has rises in proportion to frequency."


@claim(
    "F3b", "and falls again for low-frequency queries", headline=True, quantity="smallest fall",
    source=f"{PAPER}, stage III", published="low-frequency queries stop attending to token 0", at_least=HYSTERESIS,
    threshold_from=OURS,
)  # fmt: skip
def rare_queries_dilute(runs: Runs):
    rare = _to_top(of_smallest_weights(runs)).isel(query_token=slice(1, None))
    peak = xr.apply_ufunc(functools.partial(np.maximum.accumulate, axis=rare.get_axis_num("time")), rare)
    note = "The smallest fall below an earlier value among queries other than the most frequent, in attention mass."
    return (peak - rare).max("time").min("query_token"), note


@claim(
    "F4a", "W_Q and W_K grow exponentially along the embedding with the predicted constant",
    quantity="measured over predicted constant", source=f"{PAPER}, stage II", published="dW_Q/dt = c a a^T W_K",
    at_least=0.9, at_most=1.1, threshold_from=OURS,
)  # fmt: skip
def attention_grows_as_predicted(runs: Runs):
    return _growth(of_smallest_weights(runs), "limit.focusing", 1)


@claim(
    "F4b", "Mass redistribution grows exponentially with the predicted constant",
    quantity="measured over 2c, c of F4a (scores are products of W_Q and W_K)", source=f"{PAPER}, stage III",
    published="proportional to exp(ct)", at_least=0.9, at_most=1.1, threshold_from=OURS,
)  # fmt: skip
def redistribution_grows_as_predicted(runs: Runs):
    return _growth(of_smallest_weights(runs), "limit.redistribution", 2)


@claim(
    "F5", "W_Q and W_K lose their rank after W_0 has lost its", quantity="ratio of steps", source=f"{PAPER}, stage II",
    published="W_0, W_1 rank one while W_Q, W_K stay high rank", above=1, threshold_from=DIRECTION,
)  # fmt: skip
def attention_collapses_later(runs: Runs):
    curves = of_smallest_weights(runs)
    embedding, query, key = (_half_fallen_at(curves(f"limit.rank_{name}")) for name in ("embedding", "query", "key"))
    note = "Step of half the fall of W_Q's or W_K's rank, the first of the two, over that of W_0's."
    return ratio(np.minimum(query, key), embedding), note


@claim(
    "F6a", "Symmetric low-frequency tokens stall", quantity="s_2 / s_1 of W_0", source=f"{PAPER}, stage IV",
    published="long stall", below=ESCAPED, threshold_from=OURS,
)  # fmt: skip
def symmetric_tokens_stall(runs: Runs):
    run = with_limit(runs["escape"])
    last = run.final("limit.ratio_embedding", ("seed",), gamma=max, delta=0.0)
    return last, f"s_2 / s_1 of W_0 after {int(last.time)} steps; the threshold is that of a new direction."


@claim(
    "F6b", "Asymmetric ones escape, later the smaller delta is", headline=True,
    quantity="rank correlation of the step with delta", source=f"{PAPER}, stage IV",
    published="a transverse mode of strength delta", at_most=-0.9, threshold_from=OURS,
)  # fmt: skip
def asymmetric_tokens_escape(runs: Runs):
    steps = steps_to_escape(runs["escape"])
    if steps.sizes["delta"] < 2:
        raise MissingData("two values of delta above 0")
    by_delta = "; ".join(f"delta {float(one.delta):g}: {listed(one)}" for one in steps.transpose("delta", "seed"))
    return rank_trend(steps, "delta"), f"Steps to escape: {by_delta}."


@claim(
    "F7a", "The cycle recurs: norms of low-frequency tokens grow and shrink more than once, at the rate of training",
    headline=True, quantity=RISES, source=f"{PAPER}, figures", published="norms repeatedly grow and shrink",
    at_least=2, threshold_from=FIGURE,
)  # fmt: skip
def norms_recur(runs: Runs):
    return _recurring(runs["cycle"], "limit", "time")


@claim(
    "F7b", "and by gradient flow, which theory is written for", headline=True,
    quantity=RISES, source=f"{PAPER}, figures", published="norms repeatedly grow and shrink",
    at_least=2, threshold_from=FIGURE,
)  # fmt: skip
def norms_recur_in_the_flow(runs: Runs):
    return _recurring(runs["cycle"], "fine", "time")


@claim(
    "F7c", "Focus itself comes and goes more than once in gradient flow", quantity=MAXIMA,
    source="control of ours", published="-", at_least=2, threshold_from=OURS,
)  # fmt: skip
def focus_recurs_in_the_flow(runs: Runs):
    return _maxima(runs["cycle"], "fine", "time")


@claim(
    "F7d", "and with six tokens", quantity=MAXIMA, source="control of ours", published="-", at_least=2,
    threshold_from=OURS,
)  # fmt: skip
def focus_of_six_tokens_recurs_in_the_flow(runs: Runs):
    return _maxima(runs["six"], "fine", "time")


@claim(
    "F8", "The cycle survives training on finite sequences in minibatches", headline=True,
    quantity=RISES, source=f"{PAPER}, experiments", published="seen in training",
    at_least=2, threshold_from=OURS,
)  # fmt: skip
def cycle_survives_sampling(runs: Runs):
    return _recurring(trained_on_samples(runs), "state", "snapshot")


@claim(
    "F9", "Attention entropy goes down, up, down", quantity=f"turns of {CYCLE['entropy']:g} nats",
    source=f"{PAPER}, figures", published="down, up, down", at_least=2, threshold_from=DIRECTION,
)  # fmt: skip
def entropy_falls_rises_falls(runs: Runs):
    run = trained_on_samples(runs)
    task = run.config["task"]
    law = xr.DataArray(np.asarray(task["stationary"] or markov.stationary_of(task["transition"])), dims="query_token")
    entropy = (run.over_time("state.entropy", ("seed",), gamma=min) * law).sum("query_token", skipna=False)
    note = "Turns of the pi-weighted attention entropy: its first minimum and the maximum after it are two."
    return attention_stages.count_turns(-entropy, CYCLE["entropy"]), note


def trained_on_samples(runs: Runs) -> Run:
    """The variant `sampled`, or else `cycle`."""
    return runs["sampled" if "sampled" in runs else "cycle"]


def has_limit(run: Run) -> bool:
    """Whether there is anything of the exact limit: not for other optimizers, nor with weight decay."""
    return any(bool(values.notnull().any()) for name, values in run.dataset.items() if name.startswith("limit."))


def with_limit(run: Run) -> Run:
    """The run itself.

    Raises:
      MissingData: it was not trained by plain gradient descent, or has weight decay.
    """
    if not has_limit(run):
        raise MissingData("the exact limit, which is that of plain gradient descent without weight decay")
    return run


def of_smallest_weights(runs: Runs) -> Curves:
    """Curves over time of the variant `stages`, or else `cycle`, one a seed, at its largest gamma.

    Raises:
      MissingData: as `with_limit`.
    """
    run = runs["stages" if "stages" in runs else "cycle"]
    return functools.partial(with_limit(run).over_time, keep=("seed",), gamma=max)


def condensed_at(curves: Curves) -> xr.DataArray:
    """Step of the limit at which the loss is at the unigram entropy and W_0 of rank one; NaN if it never is."""
    condensed = (abs(curves("limit.gap")) < CONDENSED_GAP) & (curves("limit.rank_embedding") < CONDENSED_RANK)
    return first_where(condensed, "time")


def moved_at(curves: Curves, by: float = HYSTERESIS) -> xr.DataArray:
    """Step of the limit at which F has moved by more than this; NaN if it never does."""
    focus = curves("limit.focus")
    return first_where(abs(focus - focus.isel(time=0)) > by, "time")


def plateau_at(curves: Curves) -> xr.DataArray:
    """Step with the least gradient between condensation and the first move of attention; NaN without such a stretch."""
    gradient, focus = curves("limit.gradient_norm"), curves("limit.focus")
    still = (abs(focus - focus.isel(time=0)) >= HYSTERESIS).cumsum("time") == 0  # F passes where it began again, later
    before = gradient.where((gradient.time >= condensed_at(curves)) & still)
    return first_where(before == before.min("time"), "time")


def steps_to_escape(run: Run) -> xr.DataArray:
    """Step at which a second direction of W_0 is there, after it had condensed, by seed and delta above 0.

    Raises:
      MissingData: no limit, or no axis delta.
    """
    above_zero = run.values_of("delta")[run.values_of("delta") > 0]
    curves = functools.partial(with_limit(run).over_time, keep=("seed", "delta"), gamma=max)
    second = curves("limit.ratio_embedding")
    steps = first_where((second > ESCAPED) & (second.time > condensed_at(curves)), "time")
    return steps.sel(delta=above_zero)


def ratio(later: xr.DataArray, earlier: xr.DataArray) -> xr.DataArray:
    """Ratio of two steps; NaN where the earlier one is the start, before which nothing is seen."""
    return later / earlier.where(earlier > 0)


def counted(numbers: xr.DataArray) -> str:
    return ", ".join("-" if np.isnan(number) else f"{number:.0f}" for number in numbers.values)


def listed(steps: xr.DataArray) -> str:
    return ", ".join("never" if np.isnan(step) else f"{step:.0f}" for step in steps.values)


def _half_fallen_at(rank: xr.DataArray) -> xr.DataArray:
    """Step at which a rank is half way from where it starts down to one."""
    return first_where(rank < 1 + 0.5 * (rank.isel(time=0) - 1), "time")


def _to_top(curves: Curves) -> xr.DataArray:
    """A[i, top] of the limit; `top` is the first token in the study's laws."""
    return curves("limit.attention").isel(key_token=0)


def _growth(curves: Curves, name: str, times: int):
    """Fitted rate of growth from the first plateau until attention moves, over `times` the predicted constant."""
    plateau, moved, values = plateau_at(curves), moved_at(curves, FITTED[1]).fillna(np.inf), abs(curves(name))
    during = values.where((values.time >= plateau) & (values.time <= moved))
    elapsed_T = during.time.values * float(during.learning_rate)

    def fitted_rate(value_T):
        known_T = ~np.isnan(value_T)
        if not known_T.any():
            return np.nan
        last = value_T[known_T][-1]
        try:
            return float(population.growth_rate(elapsed_T[known_T], value_T[known_T], FITTED[0] * last, last).value)
        except ValueError:  # too few snapshots
            return np.nan

    fitted = xr.apply_ufunc(fitted_rate, during, input_core_dims=[["time"]], vectorize=True)
    predicted = times * value_at(curves("limit.predicted"), plateau, "time")
    pairs = ", ".join(f"{one:.4f} for {law:.4f}" for one, law in zip(fitted.values, predicted.values, strict=True))
    return fitted / predicted, f"Measured for predicted, per unit time: {pairs}."


def _maxima(run: Run, measure: str, time: str):
    focus = run.over_time(f"{measure}.focus", ("seed",), gamma=min)
    note = f"Maxima of F, each followed by a fall of {CYCLE['focus']:g}, at gamma {float(focus.gamma):g}."
    return _count_maxima(focus, CYCLE["focus"], time), note


def _recurring(run: Run, measure: str, time: str):
    """The most maxima that the norm of a token other than the most frequent has; beside it those of focus."""
    norm = run.over_time(f"{measure}.token_norm", ("seed",), gamma=min).isel(query_token=slice(1, None))
    relative = norm / norm.max(time)
    maxima, of_large_falls = (_count_maxima(relative, fall, time) for fall in (CYCLE["norm"], 2 * CYCLE["norm"]))
    focus, _ = _maxima(run, measure, time)
    by_token = "; ".join(f"token {i}: {counted(one)}" for i, one in enumerate(maxima.transpose("query_token", ...), 1))
    most = counted(of_large_falls.max("query_token", skipna=False))
    note = (
        f"By seed, at gamma {float(norm.gamma):g}: {by_token}; {MAXIMA}: {counted(focus)}. The paper does not say how "
        f"far a norm must fall; {CYCLE['norm']:.0%} is ours, chosen when runs had shown it beside "
        f"{2 * CYCLE['norm']:.0%}, with which the most are {most}."
    )
    return maxima.max("query_token", skipna=False), note


def _count_maxima(curves: xr.DataArray, fall: float, time: str) -> xr.DataArray:
    """Maxima, each followed by a fall; NaN for a curve that is not finite."""
    return (attention_stages.count_turns(curves, fall, time) + 1) // 2  # the first turn is a maximum


CLAIMS = (
    condensation_comes_first, plateau_is_unigram, every_query_focuses, rare_queries_dilute,
    attention_grows_as_predicted, redistribution_grows_as_predicted, attention_collapses_later, symmetric_tokens_stall,
    asymmetric_tokens_escape, norms_recur, norms_recur_in_the_flow, focus_recurs_in_the_flow,
    focus_of_six_tokens_recurs_in_the_flow, cycle_survives_sampling, entropy_falls_rises_falls,
)  # fmt: skip
