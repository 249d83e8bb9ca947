"""Least-squares regression of one number a row on several, with variance inflation and intervals over groups of rows.

Everything is read off the correlations R_PxP of the predictors and r_P with the target, in float64 and exact up to
rounding: the standardized coefficients R^-1 r, the share of variance explained r^T R^-1 r, and the variance inflation
factors diag(R^-1) (Marquardt 1970). A coefficient is what goes with a predictor at fixed others, no cause: where
inflation is large (above 5 or 10, it is said) rows hardly vary that way, and only the predictors' sum is known.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lab.analysis.statistics import resamples

SINGULAR = 1e-10  # smallest eigenvalue of correlations below which predictors are one and the same


def ols(
    y_N: np.ndarray,
    predictors: Mapping[str, np.ndarray],
    group_N: np.ndarray,
    n_bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> xr.Dataset:
    """Least squares of a target on standardized predictors, with percentile intervals over resampled groups.

    Rows of a group (a seed) share draws and stray together, so groups are resampled whole, and every resample is
    standardized anew. Those that a predictor does not vary in are left out. Few groups make intervals rough, and too
    narrow: three have ten different resamples.

    Args:
      y_N: the target. predictors: name -> one number a row; a row with any that is not finite is left out.
      group_N: what rows were drawn together, e.g. their seed.
      level: nominal coverage of the interval. seed: of the resampling.

    Returns:
      Dataset with the dimension `predictor`: `coefficient` (standard deviations of the target for one of the
      predictor), its `low` and `high` (NaN below two groups), `alone` (R^2 of a regression on it alone), `added` (what
      R^2 gains when it is added last) and `inflation`; `r2` of all; `n_rows` used and `n_missing` left out.

    Raises:
      ValueError: fewer rows than predictors + 2, a target or predictor that is constant, predictors that are linearly
        dependent, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level}: a number between 0 and 1")
    table_NxZ = np.stack([*predictors.values(), y_N], axis=1).astype(float)
    known_N = np.isfinite(table_NxZ).all(axis=1)
    table_NxZ = _standardized(table_NxZ[known_N], [*predictors, "the target"])

    _, group_N = np.unique(np.asarray(group_N)[known_N], return_inverse=True)
    n_groups = group_N.max() + 1
    correlation_ZxZ, *resampled = correlations(table_NxZ, group_N, resamples(n_groups, n_bootstrap, seed))
    if np.linalg.eigvalsh(correlation_ZxZ[:-1, :-1])[0] < SINGULAR:
        raise ValueError(f"predictors {', '.join(predictors)} are linearly dependent: leave one of them out")

    coefficient_P, inflation_P = _solve(correlation_ZxZ)
    target_P = correlation_ZxZ[:-1, -1]
    low_P, high_P = _interval(np.array(resampled), level) if n_groups > 1 else np.full((2, len(target_P)), np.nan)
    columns = {
        "coefficient": coefficient_P,
        "low": low_P,
        "high": high_P,
        "alone": target_P**2,
        "added": coefficient_P**2 / inflation_P,
        "inflation": inflation_P,
    }
    arrays = {name: ("predictor", values_P) for name, values_P in columns.items()}
    arrays |= {"r2": target_P @ coefficient_P, "n_rows": known_N.sum(), "n_missing": (~known_N).sum()}
    return xr.Dataset(arrays, {"predictor": [*predictors]}, {"level": level, "n_bootstrap": n_bootstrap})


def correlations(table_NxZ: np.ndarray, group_N: np.ndarray, counts_BxG: np.ndarray) -> np.ndarray:
    """(B, Z, Z): correlations of the columns in B resamples, in which the rows of group g occur counts_BxG[b, g] times.

    NaN where a column does not vary. Columns should be about centred: sums of squares are what is subtracted.
    """
    ones_Nx1 = np.ones_like(table_NxZ[:, :1])
    row_NxY = np.concatenate([table_NxZ, ones_Nx1], axis=1)
    moment_GxYxY = np.stack([row_NxY[group_N == g].T @ row_NxY[group_N == g] for g in range(counts_BxG.shape[1])])
    moment_BxYxY = np.tensordot(counts_BxG, moment_GxYxY, axes=1)
    mean_BxZ = moment_BxYxY[:, -1, :-1] / moment_BxYxY[:, -1:, -1]
    covariance_BxZxZ = moment_BxYxY[:, :-1, :-1] / moment_BxYxY[:, -1:, -1:] - mean_BxZ[:, :, None] * mean_BxZ[:, None]
    variance_BxZ = np.diagonal(covariance_BxZxZ, axis1=1, axis2=2)
    scale_BxZ = np.sqrt(np.where(variance_BxZ > SINGULAR, variance_BxZ, np.nan))
    return covariance_BxZxZ / (scale_BxZ[:, :, None] * scale_BxZ[:, None])


def _standardized(table_NxZ: np.ndarray, names: list[str]) -> np.ndarray:
    n_rows, n_columns = table_NxZ.shape
    if n_rows < n_columns + 1:
        raise ValueError(f"{n_rows} rows with finite numbers: {n_columns - 1} predictors need at least {n_columns + 1}")
    for name, column_N in zip(names, table_NxZ.T, strict=True):
        if np.ptp(column_N) == 0:
            raise ValueError(f"{name} is {column_N[0]:g} in all {n_rows} rows: it must vary")
    return (table_NxZ - table_NxZ.mean(axis=0)) / table_NxZ.std(axis=0)


def _solve(correlation_xZxZ: np.ndarray):
    """Standardized coefficients and variance inflation factors, the target being the last column."""
    inverse_xPxP = np.linalg.inv(correlation_xZxZ[..., :-1, :-1])
    coefficient_xP = np.einsum("...pq,...q->...p", inverse_xPxP, correlation_xZxZ[..., :-1, -1])
    return coefficient_xP, np.diagonal(inverse_xPxP, axis1=-2, axis2=-1)


def _interval(correlation_BxZxZ: np.ndarray, level: float) -> np.ndarray:
    """(2, P): the middle `level` of the coefficients of the resamples that have any."""
    varied = correlation_BxZxZ[np.isfinite(correlation_BxZxZ).all(axis=(1, 2))]
    apart = np.linalg.eigvalsh(varied[:, :-1, :-1])[:, 0] >= SINGULAR
    coefficient_BxP, _ = _solve(varied[apart])
    return np.quantile(coefficient_BxP, [(1 - level) / 2, (1 + level) / 2], axis=0)
