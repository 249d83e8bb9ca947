"""The claims of the focus-dilution study; every threshold is the paper's statement as a number.

Where the paper prints no scale (what counts as a move, as a cycle, as growth) it is ours, and the same for all rows.

F1 to F7b are of the exact limit of each row's start; F8 and F9 of the same rows trained on samples; those of the other
paper stand in `companion`. Where a grid has several initial scales, theory's statements (F1 to F5) take the smallest,
for which they are asymptotic, and those on repeated cycles (F7 to F9) the largest, from which most cycles fit into the
same time.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.analysis import stages
from lab.analysis.embedding import spearman
from lab.studies.claims import Claim, Lacking, Measured, variant
from lab.studies.focus_dilution import population
from lab.tasks import markov

PAPER = "arXiv 2605.01199"
HYSTERESIS = 0.01  # attention mass: what counts as a move of the exact limit
CYCLE = {"focus": 0.05, "entropy": 0.1}  # attention mass, nats: rises and falls that make a cycle, above any noise
GROWN = 2.0  # times its first value: W_Q has left where it started
CONDENSED_RANK, CONDENSED_GAP = 1.1, 1e-3  # of W_0, nats: the paper's criterion as `stages.Thresholds` has it
ESCAPED = 0.05  # s_2 / s_1 of W_0 at which a new direction is there
FITTED = (0.05, 0.005)  # growth is fitted from this share of what it has reached when F has moved by this much

Datasets = Mapping[str, xr.Dataset]


def rows(dataset: xr.Dataset, gamma: int) -> list[xr.Dataset]:
    """One row for every seed: the gamma of this index, the middle of every other axis."""
    axes = {dim: dataset.sizes[dim] // 2 for dim in dataset["diverged_at"].dims if dim != "seed"}
    return [dataset.isel(axes | {"gamma": gamma}).sel(seed=seed) for seed in dataset.seed.values]


def smallest_weights(datasets: Datasets) -> list[xr.Dataset]:
    return rows(_with_limit(variant(datasets, "cycle")), -1)


def largest_weights(datasets: Datasets) -> list[xr.Dataset]:
    return rows(variant(datasets, "cycle"), 0)


def finite(row: xr.Dataset, name: str) -> xr.DataArray:
    """
    Raises:
      Lacking: it was not measured, or the row diverged; what snapshots hold from there on are the weights it was
        frozen at.
    """
    if name not in row:
        raise Lacking(name)
    frozen = "snapshot" in row[name].dims and int(row["diverged_at"]) >= 0
    if frozen or not np.isfinite(row[name]).all():
        raise Lacking(f"a finite {name}: seed {int(row.seed)} diverged")
    return row[name]


def has_limit(dataset: xr.Dataset) -> bool:
    """Whether there is anything of the exact limit: not for other optimizers, nor with weight decay."""
    return any(bool(dataset[name].notnull().any()) for name in dataset if name.startswith("limit."))


def _with_limit(dataset: xr.Dataset) -> xr.Dataset:
    """
    Raises:
      Lacking: it was not trained by plain gradient descent, or has weight decay.
    """
    if not has_limit(dataset):
        raise Lacking("the exact limit, which is that of plain gradient descent without weight decay")
    return dataset


def law(dataset: xr.Dataset) -> np.ndarray:
    """pi of the study's task, without asymmetry."""
    task = dataset.attrs["config"]["task"]
    return np.asarray(task["stationary"] or markov.stationary_of(task["transition"]))


def condensed_at(row: xr.Dataset) -> float:
    """Step of the limit at which the loss is at the unigram entropy and W_0 of rank one."""
    at_plateau_T = (abs(row["limit.gap"]) < CONDENSED_GAP) & (row["limit.rank_embedding"] < CONDENSED_RANK)
    return first(row.time, at_plateau_T)


def grown_at(row: xr.Dataset) -> float:
    norm_T = row["limit.norm_query"]
    return first(row.time, norm_T > GROWN * norm_T[0])


def fallen_at(row: xr.Dataset, name: str, share: float = 0.5) -> float:
    """Step at which a rank is `share` of its way from where it starts down to one."""
    rank_T = row[name]
    return first(row.time, rank_T < 1 + (1 - share) * (rank_T[0] - 1))


def plateau(row: xr.Dataset) -> xr.Dataset:
    """The state of the limit with the least gradient between condensation and the first move of attention."""
    moved_T = abs(row["limit.focus"] - row["limit.focus"][0]) >= HYSTERESIS
    before_T = (row.time >= condensed_at(row)) & (moved_T.cumsum("time") == 0)  # F passes where it began again, later
    gradient_T = row["limit.gradient_norm"].where(before_T)
    if gradient_T.isnull().all():
        raise Lacking("a plateau: it did not condense before attention moved")
    return row.isel(time=int(gradient_T.argmin("time")))


def condensation_comes_first(datasets: Datasets) -> Measured:
    pairs = [(condensed_at(row), grown_at(row)) for row in smallest_weights(datasets)]
    note = f"Steps: condensed {listed(a for a, _ in pairs)}, |W_Q| doubled {listed(b for _, b in pairs)}."
    return Measured(tuple(over(b, a) for a, b in pairs), 1.0, note, strictly=True)


def plateau_is_unigram(datasets: Datasets) -> Measured:
    found = [plateau(row) for row in smallest_weights(datasets)]
    note = f"Loss minus unigram entropy in nats, at steps {listed(float(one.time) for one in found)}."
    return Measured(tuple(float(one["limit.gap"]) for one in found), -1e-2, note, at_most=1e-2)


def every_query_focuses(datasets: Datasets) -> Measured:
    to_top = [_to_top(row, "limit") for row in smallest_weights(datasets)]
    rises = [float((a_TxV.max("time") - a_TxV[0]).min()) for a_TxV in to_top]
    note = "The smallest rise among query tokens, in attention mass: theory has rises in proportion to frequency."
    return Measured(tuple(rises), 0.0, note, strictly=True)


def rare_queries_dilute(datasets: Datasets) -> Measured:
    falls = []
    for row in smallest_weights(datasets):
        rare_TxV = _to_top(row, "limit")[:, 1:]
        peak_T = np.maximum.accumulate(rare_TxV.values)
        falls.append(float((peak_T - rare_TxV.values).max(axis=0).min()))
    note = "The smallest fall below an earlier value among queries other than the most frequent, in attention mass."
    return Measured(tuple(falls), HYSTERESIS, note)


def attention_grows_as_predicted(datasets: Datasets) -> Measured:
    return _growth(datasets, "limit.focusing", 1)


def redistribution_grows_as_predicted(datasets: Datasets) -> Measured:
    return _growth(datasets, "limit.redistribution", 2)


def attention_collapses_later(datasets: Datasets) -> Measured:
    ratios = []
    for row in smallest_weights(datasets):
        embedding = fallen_at(row, "limit.rank_embedding")
        collapsed = np.minimum(*(fallen_at(row, f"limit.rank_{name}") for name in ("query", "key")))  # NaN if one is
        ratios.append(over(float(collapsed), embedding))
    note = "Step of half the fall of W_Q's or W_K's rank, the first of the two, over that of W_0's."
    return Measured(tuple(ratios), 1.0, note, strictly=True)


def symmetric_tokens_stall(datasets: Datasets) -> Measured:
    dataset = _escapes(datasets)
    if 0 not in dataset.delta:
        raise Lacking("rows with delta 0")
    still = dataset.sel(delta=0.0)
    largest = [float(row["limit.ratio_embedding"].isel(time=-1)) for row in rows(still, -1)]
    note = f"s_2 / s_1 of W_0 after {int(still.time[-1])} steps; the threshold is that of a new direction."
    return Measured(tuple(largest), at_most=ESCAPED, note=note, strictly=True)


def asymmetric_tokens_escape(datasets: Datasets) -> Measured:
    """Rank correlation of the escape time with delta."""
    dataset = _escapes(datasets)
    dataset = dataset.sel(delta=dataset.delta > 0)
    if dataset.sizes["delta"] < 2:
        raise Lacking("two values of delta above 0")
    times = {float(delta): [escaped_at(row) for row in rows(dataset.sel(delta=delta), -1)] for delta in dataset.delta}
    per_seed = [spearman(np.array([*times]), np.array(one)) for one in zip(*times.values(), strict=True)]
    by_delta = "; ".join(f"delta {delta:g}: {listed(steps)}" for delta, steps in times.items())
    return Measured(tuple(map(float, per_seed)), at_most=-0.9, note=f"Steps to escape: {by_delta}.")


def _escapes(datasets: Datasets) -> xr.Dataset:
    dataset = _with_limit(variant(datasets, "escape"))
    if "delta" not in dataset.dims:
        raise Lacking("an axis of delta")
    return dataset


def escaped_at(row: xr.Dataset) -> float:
    """Step at which a second direction of W_0 is there, after it had condensed."""
    ratio_T = row["limit.ratio_embedding"]
    return first(row.time, (ratio_T > ESCAPED) & (row.time > condensed_at(row)))


def cycle_repeats(datasets: Datasets) -> Measured:
    return _maxima(datasets, "limit", "time")


def cycle_repeats_in_the_flow(datasets: Datasets) -> Measured:
    return _maxima(datasets, "fine", "time")


def cycle_survives_sampling(datasets: Datasets) -> Measured:
    return _maxima(datasets, "state", "snapshot")


def entropy_falls_rises_falls(datasets: Datasets) -> Measured:
    turns = []
    for row in largest_weights(datasets):
        entropy_T = _weighted(finite(row, "state.entropy"), row)
        turns.append(float(len(stages.swings(row.snapshot.values, -entropy_T.values, CYCLE["entropy"]))))
    note = "Turns of the pi-weighted attention entropy: its first minimum and the maximum after it are two."
    return Measured(tuple(turns), 2.0, note)


CLAIMS = (
    Claim(
        "F1", "Embeddings condense to rank one before attention grows", f"{PAPER}, stage I",
        "stages in this order", "step of a doubled W_Q over step of condensation above 1", condensation_comes_first,
    ),
    Claim(
        "F2", "The first plateau is at the unigram entropy", f"{PAPER}, stage I", "loss falls to H(pi)",
        "gap below 0.01 nats", plateau_is_unigram,
    ),
    Claim(
        "F3a", "Then every query's attention to the most frequent token rises", f"{PAPER}, stage II",
        "every query moves mass to token 0", "smallest rise above 0", every_query_focuses,
    ),
    Claim(
        "F3b", "and falls again for low-frequency queries", f"{PAPER}, stage III",
        "low-frequency queries stop attending to token 0", "smallest fall at least 0.01", rare_queries_dilute,
    ),
    Claim(
        "F4a", "W_Q and W_K grow exponentially along the embedding with the predicted constant", f"{PAPER}, stage II",
        "dW_Q/dt = c a a^T W_K", "measured over predicted constant within 10 %", attention_grows_as_predicted,
    ),
    Claim(
        "F4b", "Mass redistribution grows exponentially with the predicted constant", f"{PAPER}, stage III",
        "proportional to exp(ct)", "measured over 2c, c of F4a (scores are products of W_Q and W_K), within 10 %",
        redistribution_grows_as_predicted,
    ),
    Claim(
        "F5", "W_Q and W_K lose their rank after W_0 has lost its", f"{PAPER}, stage II",
        "W_0, W_1 rank one while W_Q, W_K stay high rank", "ratio of steps above 1", attention_collapses_later,
    ),
    Claim(
        "F6a", "Symmetric low-frequency tokens stall", f"{PAPER}, stage IV", "long stall",
        "s_2 / s_1 of W_0 below 0.05", symmetric_tokens_stall,
    ),
    Claim(
        "F6b", "Asymmetric ones escape, later the smaller delta is", f"{PAPER}, stage IV",
        "a transverse mode of strength delta", "rank correlation with delta at most -0.9", asymmetric_tokens_escape,
    ),
    Claim(
        "F7a", "More than one cycle is seen, by gradient descent at the rate of training", f"{PAPER}, figures",
        "norms repeatedly grow and shrink", "at least 2 maxima of focus, falls of 0.05", cycle_repeats,
    ),
    Claim(
        "F7b", "and by gradient flow, which theory is written for", f"{PAPER}, figures",
        "norms repeatedly grow and shrink", "at least 2 maxima of focus, falls of 0.05", cycle_repeats_in_the_flow,
    ),
    Claim(
        "F8", "The cycle survives training on finite sequences in minibatches", f"{PAPER}, experiments",
        "seen in training", "at least 2 maxima of focus, falls of 0.05", cycle_survives_sampling,
    ),
    Claim(
        "F9", "Attention entropy goes down, up, down", f"{PAPER}, figures", "down, up, down",
        "at least 2 turns of 0.1 nats", entropy_falls_rises_falls,
    ),
)  # fmt: skip


def _to_top(row: xr.Dataset, measure: str) -> xr.DataArray:
    """A[i, top] over time, (T, V); `top` is the first token in the study's laws."""
    return row[f"{measure}.attention"].isel(key_token=0).transpose(..., "query_token")


def _weighted(values_TxV: xr.DataArray, row: xr.Dataset) -> xr.DataArray:
    return (values_TxV * xr.DataArray(law(row), dims="query_token")).sum("query_token")


def _growth(datasets: Datasets, name: str, times: int) -> Measured:
    """Fitted rate of growth from the first plateau until attention moves, over `times` the predicted constant."""
    ratios, pairs = [], []
    for row in smallest_weights(datasets):
        at = plateau(row)
        moved_T = abs(row["limit.focus"] - row["limit.focus"][0]) > FITTED[1]
        during = row.sel(time=slice(float(at.time), first(row.time, moved_T)))
        value_T = abs(during[name]).values
        if not value_T.size:
            raise Lacking("growth between the plateau and the first move of attention")
        try:
            fitted = population.growth_rate(
                during.time.values * float(row.learning_rate), value_T, FITTED[0] * value_T[-1], value_T[-1]
            )
        except ValueError as short:
            raise Lacking(f"a growing {name} ({short})") from short
        predicted = times * float(at["limit.predicted"])
        ratios.append(float(fitted.value) / predicted)
        pairs.append(f"{float(fitted.value):.4f} for {predicted:.4f}")
    return Measured(tuple(ratios), 0.9, f"Measured for predicted, per unit time: {', '.join(pairs)}.", at_most=1.1)


def _maxima(datasets: Datasets, measure: str, time: str) -> Measured:
    counts = []
    for row in largest_weights(datasets):
        turns = stages.swings(row[time].values, finite(row, f"{measure}.focus").values, CYCLE["focus"])
        counts.append(float((len(turns) + 1) // 2))  # the first turn is a maximum
    scale = float(largest_weights(datasets)[0].gamma)
    return Measured(
        tuple(counts), 2.0, f"Maxima of F, each followed by a fall of {CYCLE['focus']:g}, at gamma {scale:g}."
    )


def first(time_T: xr.DataArray, holds_T: xr.DataArray) -> float:
    """The first time at which it holds; NaN if it never does."""
    return float(time_T[int(np.argmax(holds_T.values))]) if bool(holds_T.any()) else float("nan")


def over(later: float, earlier: float) -> float:
    """Ratio of two steps; NaN where the earlier one is the start, before which nothing is seen."""
    return later / earlier if earlier else float("nan")


def listed(steps) -> str:
    return ", ".join("never" if np.isnan(step) else f"{step:.0f}" for step in steps)
