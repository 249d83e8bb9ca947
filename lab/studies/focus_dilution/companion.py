"""The claims on the companion's anchor task (arXiv 2510.06954): condensation of the outer weights, then rank collapse.

Each takes the smallest initial weights of the grid, for which theory is asymptotic. "Condensed" and "collapsed" are the
borders of `collapse.borders`; other thresholds are the paper's words as numbers.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.studies.claims import Claim, Lacking, Measured, variant
from lab.studies.focus_dilution import collapse
from lab.studies.focus_dilution.claims import finite, listed, over, rows

PAPER = "arXiv 2510.06954"

Datasets = Mapping[str, xr.Dataset]


def outer_weights_condense_first(datasets: Datasets) -> Measured:
    borders = [borders_of(row) for row in rows(variant(datasets, "collapse"), -1)]
    pairs = [(one.condensation_end.step, one.collapse_end.step) for one in borders]
    note = f"Steps: condensed {listed(a for a, _ in pairs)}, collapsed {listed(b for _, b in pairs)}."
    return Measured(tuple(over(b, a) for a, b in pairs), 1.0, note, strictly=True)


def attention_waits(datasets: Datasets) -> Measured:
    ratios = []
    for row in rows(variant(datasets, "collapse"), -1):
        then = row.sel(snapshot=_reached(borders_of(row).condensation_end.step))
        ratios.append(float(then["signals.change_outer"] / then["signals.change_inner"]))
    note = "Relative change of W_V, W_1, W_2 over that of W_Q, W_K when condensation ends."
    return Measured(tuple(ratios), 10.0, note)


def attention_loses_rank(datasets: Datasets) -> Measured:
    dataset = variant(datasets, "collapse")
    by_gamma = {float(dataset.gamma[index]): [_kept(row) for row in rows(dataset, index)] for index in (0, -1)}
    listing = "; ".join(f"{np.median(kept):.2f} from gamma {gamma:g}" for gamma, kept in by_gamma.items())
    note = f"Least effective rank over the first, the larger of W_Q and W_K: {listing}, of which the last counts."
    return Measured(tuple(by_gamma[float(dataset.gamma[-1])]), at_most=0.5, note=note)


def condition_is_met(datasets: Datasets) -> Measured:
    lowest = []
    for row in rows(variant(datasets, "collapse"), -1):
        then = row.sel(snapshot=_reached(borders_of(row).condensation_end.step))
        rates = [then[f"signals.{name}"] for name in ("a1_hidden", "a1_value", "a2_hidden", "a2_value")]
        lowest.append(float(min(rates)))
    return Measured(tuple(lowest), 0.95, "The lowest of |A1|/d and |A2|/d^2 of both sides when condensation ends.")


def direction_is_predicted(datasets: Datasets) -> Measured:
    of_seeds = [finite(row, "signals.aligned_value") for row in rows(variant(datasets, "collapse"), -1)]
    highest = [float(aligned_T.max("snapshot")) for aligned_T in of_seeds]
    note = "Mean |cos| of the rows of W_V with the leading singular vector of the leading-order flow, at its highest."
    return Measured(tuple(highest), 0.9, note)


def balances_are_kept(datasets: Datasets) -> Measured:
    drifts = []
    for row in rows(variant(datasets, "descent"), -1):
        drifts.append(float(row["signals.balance_drift"].sel(snapshot=_reached(borders_of(row).condensation_end.step))))
    note = (
        "Change of W_V^T W_V - W_1 W_1^T and W_1^T W_1 - W_2 W_2^T over the norms of the four, by plain descent. It is "
        "the smaller the shorter the steps: at steps of 2 it was 0.06, of 0.5, chosen thereupon, 0.01."
    )
    return Measured(tuple(drifts), at_most=0.05, note=note)


def borders_of(row: xr.Dataset) -> collapse.Borders:
    """
    Raises:
      Lacking: the row diverged.
    """
    cosine_TxM, rank_TxM = (finite(row, f"signals.{name}").values for name in ("cosine", "effective_rank"))
    return collapse.borders(row.snapshot.values, cosine_TxM, rank_TxM)


CLAIMS = (
    Claim(
        "R1", "Outer weights condense before W_Q and W_K collapse", f"{PAPER}, stages", "in this order",
        "ratio of steps above 1", outer_weights_condense_first,
    ),
    Claim(
        "R2", "W_Q and W_K stay where they are meanwhile", f"{PAPER}, relative norm change", "static",
        "outer weights change at least 10 times as much", attention_waits,
    ),
    Claim(
        "R3", "Then the effective rank of W_Q and W_K collapses", f"{PAPER}, effective rank", "collapses",
        "at most half of what it was", attention_loses_rank,
    ),
    Claim(
        "R4", "The condensation condition comes to hold", f"{PAPER}, condition rates", "close to 1 in 200 steps",
        "all rates at least 0.95", condition_is_met,
    ),
    Claim(
        "R5", "Neurons point where the leading-order flow says", f"{PAPER}, condensation theorem",
        "cosine goes to 1 or -1", "mean |cos| at least 0.9", direction_is_predicted,
    ),
    Claim(
        "R6", "Differences of the outer weights' squares are kept while they condense", f"{PAPER}, conservation laws",
        "constant in gradient flow", "drift at most 0.05 when condensation ends", balances_are_kept,
    ),
)  # fmt: skip


def _kept(row: xr.Dataset) -> float:
    rank_TxM = finite(row, "signals.effective_rank").sel(matrix=["query", "key"])
    return float((rank_TxM.min("snapshot") / rank_TxM.isel(snapshot=0)).max())


def _reached(step: float) -> float:
    if np.isnan(step):
        raise Lacking("condensation: the outer weights' cosines stay below one half")
    return step
