"""From rows to cells: medians over seeds with their intervals, where a metric crosses a level, and which phase it is.

Everything here runs on the host, on DataArrays of `lab.disk.load.load`. A row that diverged is NaN
(`values.where(dataset["diverged_at"] < 0)`): it is left out and counted. Values may be infinite, which is how a
censored one is written (a crossing outside the grid, a dimension above the largest tried).

Intervals resample seeds (percentile bootstrap). They are of what changes with the seed; data that all rows share are
not resampled. A bootstrapped median never leaves the range of the S seeds, which holds the true median with
probability 1 - 2^(1-S): 0.75 for three seeds and 0.94 for five, whatever `level` is asked for.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr

# arXiv 2501.08537, phase grid: by in-distribution and out-of-distribution accuracy, and by whether unseen pairs of
# anchors are answered alike in both orders
PHASES = ("1", "2 w/o", "2 w", "3")
NO_PHASE = -1


class Bootstrapped(NamedTuple):
    """Median of S values, its percentile interval, and how many of them were not NaN."""

    median: float
    low: float
    high: float
    n: int


def draws(n: int, n_bootstrap: int, seed: int) -> np.ndarray:
    """Indices (n_bootstrap, n) of `n_bootstrap` samples with replacement from n; the same for the same arguments."""
    return np.random.default_rng(seed).integers(n, size=(n_bootstrap, n))


def resamples(n: int, n_bootstrap: int, seed: int) -> np.ndarray:
    """How often each of n clusters occurs (1 + n_bootstrap, n): first in the sample itself, then in each resample."""
    drawn_BxN = [np.bincount(draw, minlength=n) for draw in draws(n, n_bootstrap, seed)]
    return np.array([np.ones(n), *drawn_BxN])


def bootstrap_median(values_S: np.ndarray, n_bootstrap: int, level: float, seed: int) -> Bootstrapped:
    """Median over the values that are not NaN; where there are none it is NaN, and so is the interval of one value.

    The median of an even number is the mean of the middle two, or the lower of them if one is infinite.
    """
    values_N = values_S[~np.isnan(values_S)]
    n = len(values_N)
    if n < 2:
        return Bootstrapped(values_N[0] if n else np.nan, np.nan, np.nan, n)
    medians_B = _median(values_N[draws(n, n_bootstrap, seed)])
    # an order statistic, not a mean of two: one of them may be infinite
    low, high = np.quantile(medians_B, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Bootstrapped(_median(values_N), low, high, n)


def reduce(
    values: xr.DataArray, over: str = "seed", n_bootstrap: int = 1000, level: float = 0.9, seed: int = 0
) -> xr.Dataset:
    """Median over `over` in every cell, with its bootstrap interval.

    Args:
      values: one number a row; NaN rows are left out.
      over: the dimension of independent repetitions.
      level: nominal coverage of the interval.
      seed: of the resampling; cells with equally many healthy rows are resampled alike.

    Returns:
      Dataset of `median`, `low`, `high` (NaN below two healthy rows), `n` healthy rows and `n_lost`, each with the
      other dimensions of `values`.

    Raises:
      ValueError: `values` has no dimension `over`, or `level` is not between 0 and 1.
    """
    _check(values, (over,), level)
    results = xr.apply_ufunc(
        lambda values_S: tuple(bootstrap_median(values_S, n_bootstrap, level, seed)),
        values.astype(float),
        input_core_dims=[[over]],
        output_core_dims=[[]] * 4,
        vectorize=True,
    )
    reduced = xr.Dataset(dict(zip(Bootstrapped._fields, results, strict=True)))
    reduced["n_lost"] = values.sizes[over] - reduced["n"]
    reduced.attrs = {"over": over, "level": level, "n_bootstrap": n_bootstrap}
    return reduced


def first_crossing(values_G: np.ndarray, place_G: np.ndarray, level: float) -> tuple[float, bool]:
    """Smallest place at which a curve reaches `level` from below, linear between points, and whether it falls back.

    -inf if the first healthy point is there already, +inf if no point is, NaN if all points are NaN. Points that are
    NaN are passed over. `place_G` ascends.
    """
    healthy_G = ~np.isnan(values_G)
    values_N, place_N = values_G[healthy_G], place_G[healthy_G]
    if not values_N.size:
        return np.nan, False
    (above,) = np.nonzero(values_N >= level)
    if not above.size:
        return np.inf, False
    right = above[0]
    falls_back = bool((values_N[right:] < level).any())
    if right == 0:
        return -np.inf, falls_back
    share = (level - values_N[right - 1]) / (values_N[right] - values_N[right - 1])
    return float(place_N[right - 1] + share * (place_N[right] - place_N[right - 1])), falls_back


def crossing(
    values: xr.DataArray,
    axis: str = "gamma",
    level: float = 0.5,
    over: str = "seed",
    n_bootstrap: int = 1000,
    confidence: float = 0.9,
    seed: int = 0,
) -> xr.Dataset:
    """Where along `axis` a metric first reaches `level`: per seed, then the median over seeds with its interval.

    For a metric that falls, give `-values` and `-level`.

    Returns:
      Dataset with the other dimensions of `values`:
        `median`, `low`, `high`: in units of `axis`; -inf means at or below its smallest value, +inf never.
        `already`, `never`: shares of the seeds that are there at their smallest healthy value, and at none.
        `falls_back`: share of the seeds that are below the level again somewhere further on; their "where" is no
          single place.
        `n`, `n_lost`: seeds with any healthy row, and without.

    Raises:
      ValueError: a dimension is missing, or `confidence` is not between 0 and 1.
    """
    _check(values, (axis, over), confidence)
    values = values.sortby(axis)
    place_G = values[axis].values.astype(float)
    where, falls_back = xr.apply_ufunc(
        lambda values_G: first_crossing(values_G, place_G, level),
        values.astype(float),
        input_core_dims=[[axis]],
        output_core_dims=[[], []],
        vectorize=True,
    )
    found = reduce(where, over, n_bootstrap, confidence, seed)
    for name, flag in (("already", where == -np.inf), ("never", where == np.inf), ("falls_back", falls_back)):
        found[name] = flag.where(where.notnull()).mean(over)
    found.attrs |= {"axis": axis, "crossed": level}
    return found


def classify(
    id_accuracy: xr.DataArray,
    ood_accuracy: xr.DataArray,
    commutativity: xr.DataArray,
    good_id: float = 0.9,
    good_ood: float = 0.5,
    commutative: float = 0.5,
) -> xr.DataArray:
    """Phase of every row (arXiv 2501.08537): an index into `PHASES`, or `NO_PHASE`; int8, exact.

    | phase   | in distribution | out of distribution | unseen pairs commute |
    |---|---|---|---|
    | `1`     | poor            | poor                | either               |
    | `2 w/o` | good            | poor                | no                   |
    | `2 w`   | good            | poor                | yes                  |
    | `3`     | good            | good                | either               |

    Args:
      id_accuracy: on seen pairs with held-out keys. ood_accuracy: on the unseen pair.
      commutativity: P[same answer to (c, d) and (d, c)] on unseen pairs.
      good_id, good_ood, commutative: good, or commuting, from there on. 0.9 is where arXiv 2405.05409 shades cells
        as failing; the paper of the phases states no thresholds, and one half is ours for the other two.

    Returns:
      `NO_PHASE` where an accuracy is NaN, where a phase 2 depends on a commutativity that is NaN, and where a model
      is poor in distribution but good out of it, which no phase describes. `attrs`: `names` and `no_phase`.

    Raises:
      ValueError: the arrays have different coordinates.
    """
    id_accuracy, ood_accuracy, commutativity = xr.align(id_accuracy, ood_accuracy, commutativity, join="exact")
    known = id_accuracy.notnull() & ood_accuracy.notnull()
    fits, generalizes = id_accuracy >= good_id, ood_accuracy >= good_ood
    memorizes = known & fits & ~generalizes
    conditions = {
        "1": known & ~fits & ~generalizes,
        "2 w/o": memorizes & (commutativity < commutative),
        "2 w": memorizes & (commutativity >= commutative),
        "3": known & fits & generalizes,
    }
    phase = xr.full_like(sum(conditions.values()), NO_PHASE, dtype=np.int8)
    for index, name in enumerate(PHASES):
        phase = xr.where(conditions[name], np.int8(index), phase)
    return phase.rename("phase").assign_attrs(names=PHASES, no_phase=NO_PHASE)


def vote(phase: xr.DataArray, over: str = "seed") -> xr.Dataset:
    """The most frequent phase over seeds, and how far they agree.

    Returns:
      Dataset of `phase` (as of `classify`; `NO_PHASE` in a tie and where no row has a phase), `agreement` (the share
      of the rows with a phase that have the most frequent one; NaN where there is none), `n` rows with a phase and
      `n_lost`.

    Raises:
      ValueError: no dimension `over`.
    """
    _check(phase, (over,), 0.5)
    votes = xr.concat([(phase == index).sum(over) for index in range(len(PHASES))], "candidate")
    most, n = votes.max("candidate"), votes.sum("candidate")
    elected = votes.argmax("candidate").where((votes == most).sum("candidate") == 1, NO_PHASE).astype(np.int8)
    return xr.Dataset(
        {
            "phase": elected.assign_attrs(names=PHASES, no_phase=NO_PHASE),
            "agreement": most / n.where(n > 0),
            "n": n,
            "n_lost": phase.sizes[over] - n,
        }
    )


def _median(values_xN: np.ndarray):
    n = values_xN.shape[-1]
    values_xN = np.sort(values_xN, axis=-1)
    lower, upper = values_xN[..., (n - 1) // 2], values_xN[..., n // 2]
    finite = np.isfinite(lower) & np.isfinite(upper)
    # where, not a plain mean: -inf + inf has no value
    return np.where(finite, 0.5 * (np.where(finite, lower, 0) + np.where(finite, upper, 0)), lower)


def _check(values: xr.DataArray, dims: tuple[str, ...], level: float) -> None:
    missing = [dim for dim in dims if dim not in values.dims]
    if missing:
        raise ValueError(f"no dimension {missing[0]!r}; there are {', '.join(map(str, values.dims))}")
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level}: a number between 0 and 1")
