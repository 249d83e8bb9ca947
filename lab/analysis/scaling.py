"""Scaling laws, loss = A size^-alpha + floor, fitted in log space; and tokens saved at equal loss.

The fit is that of Hoffmann et al. (arXiv 2203.15556): Huber loss of the difference of log losses, so that one bad
training weighs little; SciPy's least squares from several starts. Everything runs on the host, in float64.

A floor that no arm comes near is hardly determined, and alpha trades against it: five sizes over a factor of ten leave
alpha uncertain by a good part of itself. A floor shared by all arms, which is that of the text, makes differences of
alpha between arms much more certain than alpha.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import optimize

from lab.analysis import statistics

DELTA = 1e-3  # of Huber's loss, in log loss
STARTS = (1e-3, 0.5, 0.9)  # floors as shares of the lowest loss; the first one is as good as none
LEAST_SIZES = 3
FARTHEST = 50.0  # log losses on the way to the solution
CERTAINTY = 0.9  # of intervals over resampled seeds


class Laws(NamedTuple):
    """A law an arm: loss = amplitude size^-exponent + floor.

    Attributes:
      amplitude_A, exponent_A, floor_A: float64, one an arm; equal floors where they are shared.
      residual: root of the mean square of the differences of log losses.
    """

    amplitude_A: np.ndarray
    exponent_A: np.ndarray
    floor_A: np.ndarray
    residual: float

    def at(self, size_X: np.ndarray) -> np.ndarray:
        """Losses (A, X) at these sizes."""
        size_X = np.asarray(size_X, float)
        return self.amplitude_A[:, None] * size_X ** -self.exponent_A[:, None] + self.floor_A[:, None]


def fit(
    size_X: np.ndarray, loss_AxX: np.ndarray, shared_floor: bool = True, delta: float = DELTA, starts=STARTS
) -> Laws:
    """The laws of A arms over the same sizes.

    Args:
      shared_floor: one floor for all arms; False: one an arm.
      delta: from where on a difference of log losses counts by its size, not by its square.
      starts: floors that the search begins from, as shares of the lowest loss, in (0, 1); the best end counts.

    Raises:
      ValueError: fewer than three sizes, or sizes or losses that are not positive and finite.
    """
    size_X, loss_AxX = np.asarray(size_X, float), np.asarray(loss_AxX, float)
    if len(np.unique(size_X)) < LEAST_SIZES:
        raise ValueError(f"sizes {size_X}: a law has three parameters, so at least {LEAST_SIZES} sizes are needed")
    for values in (size_X, loss_AxX):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"{values}: sizes and losses must be positive and finite")
    if not shared_floor:
        laws = [fit(size_X, loss_X[None], True, delta, starts) for loss_X in loss_AxX]
        residual = float(np.sqrt(np.mean([law.residual**2 for law in laws])))
        return Laws(*(np.concatenate(parts) for parts in list(zip(*laws, strict=True))[:3]), residual)

    n_arms, lowest = len(loss_AxX), loss_AxX.min()
    middle = np.exp(np.log(size_X).mean())  # amplitudes there are better conditioned than at size 1
    log_size_X = np.log(size_X / middle)
    solutions = [_solve(log_size_X, loss_AxX, share, delta) for share in starts]
    best = min(solutions, key=lambda solution: solution.cost)
    exponent_A = best.x[n_arms:-1]
    amplitude_A = np.exp(best.x[:n_arms]) * middle**exponent_A
    return Laws(amplitude_A, exponent_A, np.full(n_arms, best.x[-1] * lowest), float(np.sqrt(np.mean(best.fun**2))))


def _solve(log_size_X: np.ndarray, loss_AxX: np.ndarray, share: float, delta: float) -> optimize.OptimizeResult:
    """Least squares of (log amplitudes, exponents, the floor as a share of the lowest loss) from one such share."""
    n_arms, lowest = len(loss_AxX), loss_AxX.min()
    arm_A = np.arange(n_arms)

    def losses(at):
        log_power_AxX = at[:n_arms, None] - at[n_arms:-1, None] * log_size_X
        power_AxX = np.exp(np.clip(log_power_AxX, -FARTHEST, FARTHEST))
        return power_AxX, power_AxX + at[-1] * lowest

    def residual(at):
        return (np.log(losses(at)[1]) - np.log(loss_AxX)).ravel()

    def jacobian(at):
        power_AxX, total_AxX = losses(at)
        by_AxXxP = np.zeros((*loss_AxX.shape, at.size))
        by_AxXxP[arm_A, :, arm_A] = power_AxX / total_AxX
        by_AxXxP[arm_A, :, n_arms + arm_A] = -log_size_X * power_AxX / total_AxX
        by_AxXxP[:, :, -1] = lowest / total_AxX
        return by_AxXxP.reshape(-1, at.size)

    slope_A, log_amplitude_A = np.polyfit(log_size_X, np.log(loss_AxX - share * lowest).T, 1)
    start = np.concatenate([log_amplitude_A, -slope_A, [share]])
    free = np.full(2 * n_arms, np.inf)
    return optimize.least_squares(
        residual, start, jacobian, (np.append(-free, 0), np.append(free, 1)), loss="huber", f_scale=delta,
        x_scale="jac", xtol=1e-10, ftol=1e-10, gtol=1e-10,
    )  # fmt: skip


def by_seed(losses: xr.DataArray, shared_floor: bool = True) -> xr.Dataset:
    """The laws of every seed by itself.

    Args:
      losses: dims `arm`, `seed` and `size`, which has coordinates.

    Returns:
      `exponent`, `amplitude` and `floor` with the dims arm and seed; NaN for a seed that lacks a loss.

    Raises:
      ValueError: as `fit`, or other dims.
    """
    losses = _ordered(losses)
    found = np.full((3, losses.sizes["arm"], losses.sizes["seed"]), np.nan)
    for seed in np.flatnonzero(losses.notnull().all(["arm", "size"]).values):
        found[:, :, seed] = fit(losses["size"].values, losses.values[:, seed], shared_floor)[:3]
    coords = {"arm": losses["arm"], "seed": losses["seed"]}
    names = ("amplitude", "exponent", "floor")
    return xr.Dataset({name: (("arm", "seed"), values) for name, values in zip(names, found, strict=True)}, coords)


def exponents_at(losses: xr.DataArray, floor: float) -> xr.DataArray:
    """The exponents of every arm and seed, by least squares of log(loss - floor), for a floor that is held fixed.

    Args:
      losses: as `by_seed`, all larger than the floor.
    """
    return -statistics.slope(np.log(losses - floor), np.log(losses["size"]), "size")


def resampled(losses: xr.DataArray, shared_floor: bool = True, n_bootstrap: int = 200, seed: int = 0) -> xr.Dataset:
    """The laws of the mean loss over seeds, and over seeds drawn again and again with replacement.

    All arms of a draw have the same seeds, so that differences between arms are paired. Seeds that lack a loss are left
    out. Intervals of few seeds are too narrow: with n seeds by a factor of about sqrt((n - 1) / n).

    Args:
      losses: as `by_seed`.

    Returns:
      `exponent`, `amplitude` and `floor` with the dims draw and arm; draw 0 is of the seeds themselves.

    Raises:
      ValueError: as `by_seed`, or no seed with all losses.
    """
    losses = _ordered(losses)
    losses = losses.isel(seed=losses.notnull().all(["arm", "size"]).values)
    if not losses.sizes["seed"]:
        raise ValueError("no seed has a loss at every size of every arm")
    sizes, n = losses["size"].values, losses.sizes["seed"]
    counts_DxS = statistics.resamples(n, n_bootstrap if n > 1 else 0, seed)
    means_DxAxX = np.einsum("ds,asx->dax", counts_DxS / n, losses.values)
    first = fit(sizes, means_DxAxX[0], shared_floor)
    near = np.clip(first.floor_A.max() / means_DxAxX[0].min(), STARTS[0], STARTS[-1])
    laws = [first, *(fit(sizes, mean_AxX, shared_floor, starts=(near,)) for mean_AxX in means_DxAxX[1:])]
    found = {
        name: (("draw", "arm"), np.array([getattr(law, f"{name}_A") for law in laws]))
        for name in ("amplitude", "exponent", "floor")
    }
    return xr.Dataset(found, {"arm": losses["arm"]})


def interval(draws: xr.DataArray, certainty: float = CERTAINTY) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The value of the seeds themselves, and the ends of the middle `certainty` of the resamples; NaN of one seed."""
    value, again = draws.isel(draw=0), draws.isel(draw=slice(1, None))
    if not again.sizes["draw"]:
        return value, value * np.nan, value * np.nan
    low, high = (again.quantile((1 + sign * certainty) / 2, "draw").drop_vars("quantile") for sign in (-1, 1))
    return value, low, high


def tokens_saved(tokens_T: np.ndarray, loss_T: np.ndarray, other_T: np.ndarray) -> float:
    """Share of tokens that a training needs less than another one for equal loss; negative where it needs more.

    That is 1 - tokens / tokens of the other, each where its curve first comes down to the higher of both last losses:
    the worse one is at its end there. Between evaluations the loss is linear in log tokens; a curve that is there at
    its first evaluation counts as reaching it then. NaN where a curve lacks its last loss.

    Args:
      tokens_T: positive and ascending; evaluations before that are not to be given.
      loss_T, other_T: of both trainings, after so many tokens.

    Raises:
      ValueError: tokens that are not positive and ascending.
    """
    tokens_T, loss_T, other_T = (np.asarray(values, float) for values in (tokens_T, loss_T, other_T))
    if not (tokens_T > 0).all() or not (np.diff(tokens_T) > 0).all():
        raise ValueError(f"tokens {tokens_T}: must be positive and ascending")
    level = max(loss_T[-1], other_T[-1])
    if np.isnan(loss_T[-1]) or np.isnan(other_T[-1]):
        return float("nan")
    mine, theirs = (_first_at(tokens_T, curve_T, level) for curve_T in (loss_T, other_T))
    return 1 - mine / theirs


def _first_at(tokens_T: np.ndarray, loss_T: np.ndarray, level: float) -> float:
    crossing = statistics.first_crossing(-loss_T, np.log(tokens_T), -level)
    return float(tokens_T[0] if crossing == -np.inf else np.exp(crossing))


def _ordered(losses: xr.DataArray) -> xr.DataArray:
    if {*losses.dims} != {"arm", "seed", "size"}:
        raise ValueError(f"losses with the dims {losses.dims}; accepted: arm, seed and size")
    return losses.transpose("arm", "seed", "size").sortby("size")
