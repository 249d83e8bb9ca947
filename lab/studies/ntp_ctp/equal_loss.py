"""Flatness and robustness where both objectives have learnt the training answers as well: at equal loss.

The objective that ends with the lower loss on training answers is taken when it was as high as the other's at the end,
between the two snapshots around that; by `measures.along_training`.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from lab.report.objectives import by_objective
from lab.runs import Run, Runs
from lab.studies.ntp_ctp.claims import base_variants, control_claim, over_tasks, ratio_of_positives
from lab.studies.ntp_ctp.tuning import of_tuned

LEAST = 1e-12  # nats: a loss below counts as this
AT_EQUAL_LOSS = "at equal loss on training answers"


def at_equal_loss(run: Run, value: Callable[[Run], tuple[xr.DataArray, xr.DataArray]]) -> list[xr.DataArray]:
    """CTP's and NTP's value at the same loss, one a seed.

    Args:
      value: run -> CTP's and NTP's values over snapshots, one a seed.

    Raises:
      MissingData: not measured along training.
    """
    losses = by_objective(run.over_time, "path.loss")
    level = np.maximum(*(loss.isel(snapshot=-1, drop=True) for loss in losses))
    dims = [["snapshot"], ["snapshot"], []]
    return [
        xr.apply_ufunc(value_at, loss, of, level, input_core_dims=dims, vectorize=True)
        for loss, of in zip(losses, value(run), strict=True)
    ]


def value_at(loss_T, value_T, level: float) -> float:
    """A value when the loss first was this low, linear in the loss's logarithm between snapshots; at the end if the
    loss ends there."""
    if not np.isfinite(loss_T).all() or not np.isfinite(level):
        return np.nan
    if loss_T[-1] >= level:
        return value_T[-1]
    after = int(np.argmax(loss_T <= level))
    if after == 0:
        return value_T[0]
    log_T = np.log(np.maximum(loss_T, LEAST))
    before = after - 1
    share = (log_T[before] - np.log(max(level, LEAST))) / (log_T[before] - log_T[after])
    return value_T[before] + share * (value_T[after] - value_T[before])


def ratio_at_equal_loss(run: Run, select: Callable[[Run], tuple]) -> xr.DataArray:
    """CTP's value over NTP's; logarithms are what is linear between snapshots. NaN where a value is not positive."""

    def logs(run: Run):
        return [np.log(values.where(values > 0)) for values in select(run)]

    ctp, ntp = at_equal_loss(run, logs)
    return ratio_of_positives(np.exp(ctp), np.exp(ntp))


def sharpness(run: Run):
    return by_objective(run.over_time, "path.top")


def lines(run: Run):
    return [values.mean("path_alpha") for values in by_objective(run.over_time, "path.line")]


def accuracy_lost(noise: str) -> Callable[[Run], list[xr.DataArray]]:
    """Of `weight` or `input` noise: the mean over levels."""

    def of_run(run: Run):
        clean = by_objective(run.over_time, "path.accuracy")
        noisy = by_objective(run.over_time, f"path.{noise}_accuracy")
        return [before - after.mean("sigma") for before, after in zip(clean, noisy, strict=True)]

    return of_run


def eigenvalue_ratio(run: Run) -> xr.DataArray:
    return ratio_at_equal_loss(run, sharpness)


def line_ratio(run: Run) -> xr.DataArray:
    return ratio_at_equal_loss(run, lines)


def robustness_gap(noise: str) -> Callable[[Run], xr.DataArray]:
    def gap(run: Run) -> xr.DataArray:
        ctp, ntp = at_equal_loss(run, accuracy_lost(noise))
        return ctp - ntp

    return gap


def _over_tasks(number: Callable[[Run], xr.DataArray], runs: Runs, ratio: bool = False):
    return over_tasks(of_tuned(number), base_variants(runs), ratio)


@control_claim("N3f", f"{AT_EQUAL_LOSS}: largest eigenvalue of the Hessian", quantity="CTP over NTP", above=1)
def flatter_by_eigenvalue(runs: Runs):
    return _over_tasks(eigenvalue_ratio, runs, ratio=True)


@control_claim("N3g", f"{AT_EQUAL_LOSS}: rise along random directions", quantity="CTP over NTP", above=1)
def flatter_along_lines(runs: Runs):
    return _over_tasks(line_ratio, runs, ratio=True)


LOST = "CTP's loss of accuracy minus NTP's"


@control_claim("N4d", f"{AT_EQUAL_LOSS}: noise in the weights", quantity=LOST, above=0)
def more_robust_to_weight_noise(runs: Runs):
    return _over_tasks(robustness_gap("weight"), runs)


@control_claim("N4e", f"{AT_EQUAL_LOSS}: noise in the embeddings", quantity=LOST, above=0)
def more_robust_to_embedding_noise(runs: Runs):
    return _over_tasks(robustness_gap("input"), runs)


CLAIMS = (flatter_by_eigenvalue, flatter_along_lines, more_robust_to_weight_noise, more_robust_to_embedding_noise)
