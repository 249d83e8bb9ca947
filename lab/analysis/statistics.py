"""Statistics over seeds and grids: order-statistic intervals, crossings, rank correlation, resampling.

Everything here runs on the host, in float64. A value that is missing, e.g. of a row that diverged, is NaN; a censored
one is infinite (a crossing below or above the grid).
"""

import functools
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import optimize, stats

COVERAGE = 0.9  # least coverage of a median's interval that a verdict is built on


class Interval(NamedTuple):
    """An interval and the probability with which it covers what it estimates."""

    low: float
    high: float
    coverage: float


def median_interval(values_S: np.ndarray, coverage: float = COVERAGE) -> Interval:
    """The narrowest order-statistic interval of the median with at least this coverage; free of any distribution.

    With n sorted values, [x_(k), x_(n+1-k)] covers the median with probability 1 - 2 P(Bin(n, 1/2) < k), exactly for
    continuous distributions and at least so for others (David and Nagaraja, Order Statistics, section 7.1). The largest
    k with enough coverage is taken. Where even k = 1 has too little (n < 5 at 0.9) it is the whole range, with the
    coverage that this has.

    Args:
      values_S: at least one value; infinite ones are ordered like all others, NaN is refused.

    Raises:
      ValueError: no value, or one that is NaN.
    """
    values_S = np.sort(np.asarray(values_S, float))
    n = len(values_S)
    if not n or np.isnan(values_S).any():
        raise ValueError(f"median_interval of {values_S}: needs at least one value and no NaN")
    k, covered = _rank(n, coverage)
    return Interval(float(values_S[k - 1]), float(values_S[n - k]), covered)


@functools.cache
def _rank(n: int, coverage: float) -> tuple[int, float]:
    """The k of `median_interval`, and the coverage that it has."""
    coverages = {k: 1 - 2 * float(stats.binom.cdf(k - 1, n, 0.5)) for k in range(1, (n + 1) // 2 + 1)}
    k = max((k for k, covered in coverages.items() if covered >= coverage), default=1)
    return k, max(coverages[k], 0.0)


def median(values_S: np.ndarray) -> float:
    """The median; of an even number the mean of the middle two, or the lower of them if one is infinite."""
    values_S = np.sort(np.asarray(values_S, float))
    lower, upper = values_S[(len(values_S) - 1) // 2], values_S[len(values_S) // 2]
    return float(0.5 * (lower + upper) if np.isfinite(lower) and np.isfinite(upper) else lower)


def median_of(values: xr.DataArray) -> float:
    """The median of all values that are not missing, over every dimension."""
    return float(values.median())


def spearman(a_N, b_N) -> float:
    """Spearman's rank correlation; ties share their mean rank. 0 where one is constant, NaN where one holds a NaN."""
    a_N, b_N = np.asarray(a_N, float), np.asarray(b_N, float)
    if np.isnan(a_N).any() or np.isnan(b_N).any():
        return float("nan")
    a_N, b_N = (stats.rankdata(values_N) - (len(values_N) + 1) / 2 for values_N in (a_N, b_N))
    norm = np.sqrt(np.sum(a_N * a_N) * np.sum(b_N * b_N))
    return float(np.sum(a_N * b_N) / norm) if norm else 0.0


def rank_trend(values: xr.DataArray, axis: str = "gamma") -> xr.DataArray:
    """`spearman` of the values with the coordinate `axis`, one number for every place in the other dimensions."""
    along = values[axis].values
    return xr.apply_ufunc(lambda values_G: spearman(along, values_G), values, input_core_dims=[[axis]], vectorize=True)


def slope(values: xr.DataArray, along: xr.DataArray, axis: str) -> xr.DataArray:
    """The slope of the least-squares line of values against `along`, for every place in the other dimensions.

    NaN where a value is missing.

    Args:
      along: with the dimension `axis`, alone or among others.
    """
    centred = along - along.mean()
    return (centred * values).sum(axis, skipna=False) / (centred * centred).sum()


def first_crossing(values_G: np.ndarray, place_G: np.ndarray, level: float) -> float:
    """Smallest place at which a curve reaches `level` from below, linear between its points.

    -inf if its first point is there already, +inf if no point is, NaN if all points are NaN. Points that are NaN are
    passed over. From a point at -inf the level is reached at the next one, to a point at +inf it is at the one before.
    `place_G` ascends.
    """
    known_G = ~np.isnan(values_G)
    values_N, place_N = np.asarray(values_G, float)[known_G], np.asarray(place_G, float)[known_G]
    if not values_N.size:
        return np.nan
    (above,) = np.nonzero(values_N >= level)
    if not above.size:
        return np.inf
    right = above[0]
    if right == 0:
        return -np.inf
    before, after = values_N[right - 1], values_N[right]
    if np.isinf(before) or np.isinf(after):
        share = 0.5 * (int(np.isinf(before)) + int(np.isfinite(after)))
    else:
        share = (level - before) / (after - before)
    return float(place_N[right - 1] + share * (place_N[right] - place_N[right - 1]))


def crossing(values: xr.DataArray, level: float = 0.5, axis: str = "gamma") -> xr.DataArray:
    """`first_crossing` along `axis`, for every place in the other dimensions. For a falling metric negate both."""
    values = values.sortby(axis)
    place_G = values[axis].values
    return xr.apply_ufunc(
        lambda values_G: first_crossing(values_G, place_G, level),
        values.astype(float),
        input_core_dims=[[axis]],
        vectorize=True,
    )


def first_where(holds: xr.DataArray, axis: str = "gamma") -> xr.DataArray:
    """Smallest place along `axis` at which a condition holds, for every place in the other dimensions; NaN if none."""
    return holds[axis].where(holds).min(axis)


def value_at(values: xr.DataArray, place: xr.DataArray, axis: str = "gamma") -> xr.DataArray:
    """The values at a place along `axis` that may differ in the other dimensions; NaN where that is NaN or no place."""
    return values.where(values[axis] == place).max(axis)


def first_reached(values: xr.DataArray, level: float, axis: str = "step") -> xr.DataArray:
    """`first_where` a curve is at least at a level: +inf where it never is, NaN where its last value is missing."""
    last = values.sortby(axis).isel({axis: -1}, drop=True)
    return first_where(values >= level, axis).fillna(np.inf).where(last.notnull())


class LogisticFit(NamedTuple):
    """Midpoint and width of a logistic curve, and an interval of the midpoint."""

    midpoint: float
    width: float
    low: float
    high: float


def logistic_crossing(
    values: xr.DataArray, axis: str = "gamma", over: str = "seed", n_bootstrap: int = 200, seed: int = 0
) -> LogisticFit:
    """Where accuracy passes one half, by a fit of 1 / (1 + exp(-(x - midpoint) / width)) to all seeds at once.

    Least squares of the mean over seeds; NaN is left out. The interval is the middle 90 % of fits to resampled seeds
    (NaN for one seed), and as rough as they are few.

    Args:
      values: accuracies in [0, 1] with the dimensions `axis` and `over`.

    Raises:
      ValueError: other dimensions, or fewer than three places with a finite value.
    """
    if set(values.dims) != {axis, over}:
        raise ValueError(f"dims {values.dims}: a logistic fit is of {axis} and {over}")
    x_G, values_SxG = values[axis].values.astype(float), values.transpose(over, axis).values.astype(float)

    def fit(counts_S):
        weight_SxG = np.where(np.isnan(values_SxG), 0.0, counts_S[:, None])
        weight_G = weight_SxG.sum(axis=0)
        known_G = weight_G > 0
        if known_G.sum() < 3:
            raise ValueError(f"{known_G.sum()} values of {axis} with an accuracy: a logistic fit needs three")
        mean_G = (weight_SxG * np.nan_to_num(values_SxG)).sum(axis=0)[known_G] / weight_G[known_G]
        x_K, root_K = x_G[known_G], np.sqrt(weight_G[known_G])
        middle = x_K[np.argmin(np.abs(mean_G - 0.5))]
        start = (middle, np.log(np.ptp(x_K) / 10))

        def residual(at):
            return root_K * (1 / (1 + np.exp(-np.clip((x_K - at[0]) / np.exp(at[1]), -50, 50))) - mean_G)

        midpoint, log_width = optimize.least_squares(residual, start).x
        return float(midpoint), float(np.exp(log_width))

    counts_BxS = resamples(len(values_SxG), n_bootstrap, seed)
    midpoint, width = fit(counts_BxS[0])
    if len(values_SxG) < 2:
        return LogisticFit(midpoint, width, np.nan, np.nan)
    low, high = np.quantile([fit(counts_S)[0] for counts_S in counts_BxS[1:]], [0.05, 0.95])
    return LogisticFit(midpoint, width, float(low), float(high))


def resamples(n: int, n_bootstrap: int, seed: int) -> np.ndarray:
    """How often each of n clusters occurs (1 + n_bootstrap, n): first in the sample itself, then in each resample."""
    draws_BxN = np.random.default_rng(seed).integers(n, size=(n_bootstrap, n))
    return np.array([np.ones(n), *(np.bincount(draw, minlength=n) for draw in draws_BxN)])
