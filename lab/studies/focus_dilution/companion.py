"""The claims on the companion's anchor task (arXiv 2510.06954): condensation of the outer weights, then rank collapse.

Each takes the smallest initial weights of the grid, for which theory is asymptotic. "Condensed" and "collapsed" are
`borders`; other thresholds are as in `claims`, the paper's words as numbers, and only R6's step size was chosen after
a run. A seed whose outer weights do not condense counts as missing where a claim speaks of the step at which they have.
"""

import numpy as np
import xarray as xr

from lab.analysis.statistics import value_at
from lab.claims import DIRECTION, OURS, claim
from lab.runs import Run, Runs
from lab.studies.focus_dilution import collapse
from lab.studies.focus_dilution.borders import Borders, borders
from lab.studies.focus_dilution.claims import listed, ratio

PAPER = "arXiv 2510.06954"
EARLY = 200  # steps


@claim(
    "R1", "Outer weights condense before W_Q and W_K collapse", headline=True, quantity="ratio of steps",
    source=f"{PAPER}, stages", published="in this order", above=1, threshold_from=DIRECTION,
)  # fmt: skip
def outer_weights_condense_first(runs: Runs):
    steps = border_steps(runs["collapse"], gamma=max)
    condensed, collapsed = (steps.sel(border=name) for name in ("condensation_end", "collapse_end"))
    return ratio(collapsed, condensed), f"Steps: condensed {listed(condensed)}, collapsed {listed(collapsed)}."


@claim(
    "R2", "W_Q and W_K stay where they are meanwhile", headline=True,
    quantity="change of the outer weights over theirs", source=f"{PAPER}, relative norm change", published="static",
    at_least=10, threshold_from=OURS,
)  # fmt: skip
def attention_waits(runs: Runs):
    note = "Relative change of W_V, W_1, W_2 over that of W_Q, W_K when condensation ends."
    return _once_condensed(runs["collapse"], "change_outer") / _once_condensed(runs["collapse"], "change_inner"), note


@claim(
    "R3", "Then the effective rank of W_Q and W_K collapses", headline=True, quantity="share of it that is left",
    source=f"{PAPER}, effective rank", published="collapses", at_most=0.5, threshold_from=OURS,
)  # fmt: skip
def attention_loses_rank(runs: Runs):
    rank = runs["collapse"].over_time("signals.effective_rank").sel(matrix=["query", "key"])
    kept = (rank.min("snapshot", skipna=False) / rank.isel(snapshot=0)).max("matrix", skipna=False)
    ends = kept.isel(gamma=[0, -1]).median("seed")
    listing = "; ".join(f"{float(end):.2f} from gamma {float(end.gamma):g}" for end in ends)
    note = f"Least effective rank over the first, the larger of W_Q and W_K: {listing}, of which the last counts."
    return kept.isel(gamma=-1), note


@claim(
    "R4", "The condensation condition comes to hold", quantity=f"lowest rate, at its highest in {EARLY} steps",
    source=f"{PAPER}, condition rates", published=f"close to 1 in {EARLY} steps", at_least=0.95, threshold_from=OURS,
)  # fmt: skip
def condition_is_met(runs: Runs):
    names = [f"{kind}_{side}" for kind in ("a1", "a2") for side in ("hidden", "value")]
    run = runs["collapse"]
    curves = [run.over_time(f"signals.{name}", ("seed",), gamma=max) for name in names]
    lowest = xr.concat(curves, "rate").min("rate", skipna=False)
    condensed = xr.concat([_once_condensed(run, name) for name in names], "rate").min("rate")
    each = ", ".join("-" if np.isnan(one) else f"{one:.2f}" for one in condensed.values)
    early = lowest.where(lowest.snapshot <= EARLY).max("snapshot")
    return early.where(
        lowest.notnull().all("snapshot")
    ), f"The lowest of |A1|/d and |A2|/d^2; when condensation ends {each}."


@claim(
    "R5", "Neurons point where the leading-order flow says", quantity="mean |cos|",
    source=f"{PAPER}, condensation theorem", published="cosine goes to 1 or -1", at_least=0.9, threshold_from=OURS,
)  # fmt: skip
def direction_is_predicted(runs: Runs):
    highest = runs["collapse"].best("signals.aligned_value", ("seed",), gamma=max)
    note = "Mean |cos| of the rows of W_V with the leading singular vector of the leading-order flow, at its highest."
    return highest, note


@claim(
    "R6", "Differences of the outer weights' squares are kept while they condense",
    quantity="drift when condensation ends", source=f"{PAPER}, conservation laws",
    published="constant in gradient flow", at_most=0.05, threshold_from=OURS,
)  # fmt: skip
def balances_are_kept(runs: Runs):
    note = (
        "Change of W_V^T W_V - W_1 W_1^T and W_1^T W_1 - W_2 W_2^T over the norms of the four, by plain descent. It is "
        "the smaller the shorter the steps: at steps of 2 it was 0.06, of 0.5, chosen thereupon, 0.01."
    )
    return _once_condensed(runs["descent"], "balance_drift"), note


def border_steps(run: Run, **at) -> xr.DataArray:
    """Steps of `borders`, dims (seed, border); NaN where a border is not reached or the row diverged."""
    # Other measurements name other matrices.
    cosine, rank = (
        run.over_time(f"signals.{name}", ("seed",), **at).sel(matrix=list(collapse.MATRICES))
        for name in ("cosine", "effective_rank")
    )

    def steps(cosine_TxM, rank_TxM):
        if not (np.isfinite(cosine_TxM).all() and np.isfinite(rank_TxM).all()):
            return np.full(len(Borders._fields), np.nan)
        return np.array([event.step for event in borders(cosine.snapshot.values, cosine_TxM, rank_TxM)])

    found = xr.apply_ufunc(
        steps, cosine, rank, input_core_dims=2 * [["snapshot", "matrix"]], output_core_dims=[["border"]], vectorize=True
    )
    return found.assign_coords(border=list(Borders._fields))


def _once_condensed(run: Run, name: str) -> xr.DataArray:
    """A signal of each seed when condensation ends."""
    condensed = border_steps(run, gamma=max).sel(border="condensation_end", drop=True)
    return value_at(run.over_time(f"signals.{name}", ("seed",), gamma=max), condensed, "snapshot")


CLAIMS = (
    outer_weights_condense_first, attention_waits, attention_loses_rank, condition_is_met, direction_is_predicted,
    balances_are_kept,
)  # fmt: skip
