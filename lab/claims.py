"""Claims: published statements as measured numbers with a threshold, an interval over seeds and a verdict.

The threshold is a number, written from the paper before the run and never moved; its words are derived from it. A
verdict speaks of the median over seeds, by its exact order-statistic interval (`statistics.median_interval`):
*holds* where the whole interval is on the threshold's side, *does not hold* where the whole interval is on the other,
*open* where it straddles or where there are fewer than five seeds. A seed that diverged, or in which the premise of the
claim does not come about (nothing reasons, say), has no number and counts on the wrong side; where no seed has one the
claim is open. A number without seeds (an exact identity, a fit over all seeds) is decided by the threshold alone.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import xarray as xr

from lab.analysis import statistics
from lab.runs import MissingData, Runs
from lab.verdicts import FAILS, FEWEST_SEEDS, HOLDS, OPEN, VERSION

# what a threshold may rest on
PRINTED, FIGURE, DIRECTION, OURS = "printed number", "read off a figure", "a direction in words", "our choice"


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Bounds that a number has to keep. `above` and `below` are `at_least` and `at_most` without the bound itself."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __post_init__(self):
        lower, upper = (self.at_least, self.above), (self.at_most, self.below)
        if all(bound is None for bound in (*lower, *upper)) or any(None not in pair for pair in (lower, upper)):
            raise ValueError(f"{self}: at least one bound, and at most one on each side")

    @property
    def text(self) -> str:
        """In words, e.g. `at least 0.9, at most 1.1`."""
        bounds = dataclasses.asdict(self).items()
        return ", ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in bounds if bound is not None)

    def kept(self, value: float) -> bool:
        """Whether the number keeps every bound; NaN keeps none."""
        return self._lower(value) and self._upper(value)

    def margin(self, value: float) -> float:
        """Distance to the nearest bound, negative on the wrong side."""
        below = [value - bound for bound in (self.at_least, self.above) if bound is not None]
        above = [bound - value for bound in (self.at_most, self.below) if bound is not None]
        return min(below + above)

    def verdict(self, values_S: np.ndarray) -> str:
        """Of one number a seed, NaN where it is missing: that is on the wrong side, unless all are."""
        if len(values_S) < FEWEST_SEEDS or np.isnan(values_S).all():
            return OPEN
        from_below, from_above = self._intervals(values_S)
        if self._lower(from_below.low) and self._upper(from_above.high):
            return HOLDS
        return FAILS if not self._lower(from_below.high) or not self._upper(from_above.low) else OPEN

    def interval(self, values_S: np.ndarray) -> statistics.Interval:
        """The interval that the verdict is of: a missing seed is as far on the wrong side as can be."""
        from_below, from_above = self._intervals(values_S)
        if self.at_most is None and self.below is None:
            return from_below
        if self.at_least is None and self.above is None:
            return from_above
        return from_below._replace(high=from_above.high)

    def _intervals(self, values_S: np.ndarray) -> tuple[statistics.Interval, statistics.Interval]:
        """With missing seeds below, and above, all others."""
        filled = (np.where(np.isnan(values_S), worst, values_S) for worst in (-np.inf, np.inf))
        below, above = map(statistics.median_interval, filled)
        return below, above

    def _lower(self, value: float) -> bool:
        if self.above is not None:
            return value > self.above
        return not math.isnan(value) and (self.at_least is None or value >= self.at_least)

    def _upper(self, value: float) -> bool:
        if self.below is not None:
            return value < self.below
        return not math.isnan(value) and (self.at_most is None or value <= self.at_most)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A published statement and how it is measured.

    Attributes:
      id: unique over all studies.
      quantity: what the number is, in a few words; the threshold's words follow it.
      published: the published value, in words.
      headline: whether it is a sentence of the paper's abstract.
      scale: how the measured size compares with the published one, where that is not as for the whole training.
      threshold_from: `PRINTED`, `FIGURE`, `DIRECTION` or `OURS`.
      measure: runs -> one number a seed (a DataArray over `seed`), or one number in all; or a pair of that and a note.
    """

    id: str
    statement: str
    quantity: str
    source: str
    published: str
    threshold: Threshold
    headline: bool
    scale: str
    threshold_from: str
    measure: Callable[[Runs], "Number | tuple[Number, str]"]


Number = xr.DataArray | float


def claim(
    id: str,
    statement: str,
    *,
    quantity: str,
    source: str,
    published: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    headline: bool = False,
    scale: str = "",
    threshold_from: str = PRINTED,
) -> Callable[[Callable], Claim]:
    """Turns the function that measures a claim into the `Claim`; see there and `Threshold` for the arguments.

    Raises:
      ValueError: no bound, or two on one side.
    """
    threshold = Threshold(at_least, above, at_most, below)

    def decorate(measure: Callable) -> Claim:
        return Claim(id, statement, quantity, source, published, threshold, headline, scale, threshold_from, measure)

    return decorate


@dataclasses.dataclass(frozen=True)
class Result:
    """A claim's number as measured.

    Attributes:
      values_S: one number a seed, NaN where it is missing; one number where `exact`; empty where the run lacks data.
    """

    claim: Claim
    values_S: np.ndarray
    exact: bool
    note: str

    @property
    def verdict(self) -> str:
        if not self.values_S.size:
            return OPEN
        if self.exact:
            return HOLDS if self.claim.threshold.kept(float(self.values_S[0])) else FAILS
        return self.claim.threshold.verdict(self.values_S)

    @property
    def median(self) -> float:
        """Over the seeds that are not missing."""
        known_S = self.values_S[~np.isnan(self.values_S)]
        return statistics.median(known_S) if known_S.size else math.nan

    @property
    def interval(self) -> statistics.Interval:
        """Of the median; see `Threshold.interval`."""
        if self.exact or np.isnan(self.values_S).all():
            return statistics.Interval(self.median, self.median, math.nan)
        return self.claim.threshold.interval(self.values_S)

    def row(self, command: str, scale: str) -> dict:
        """The claim's row of the table: plain JSON values; None for NaN, "inf" and "-inf" for infinite numbers."""
        threshold, interval = self.claim.threshold, self.interval
        return {
            "id": self.claim.id,
            "statement": self.claim.statement,
            "quantity": self.claim.quantity,
            "source": self.claim.source,
            "published": self.claim.published,
            "headline": self.claim.headline,
            "scale": self.claim.scale or scale,
            "threshold": threshold.text,
            "bounds": {name: bound for name, bound in dataclasses.asdict(threshold).items() if bound is not None},
            "threshold_from": self.claim.threshold_from,
            "measured": _json(self.median),
            "low": _json(interval.low),
            "high": _json(interval.high),
            "coverage": _json(interval.coverage),
            "margin": _json(threshold.margin(self.median)),
            "per_seed": [_json(value) for value in ([] if self.exact else self.values_S)],
            "n_seeds": 0 if self.exact else len(self.values_S),
            "n_missing": int(np.isnan(self.values_S).sum()),
            "exact": self.exact,
            "verdict": self.verdict,
            "note": self.note,
            "command": command,
        }


def evaluate(claim: Claim, runs: Runs) -> Result:
    """Measures a claim. What the run lacks leaves it open, and the note names it."""
    try:
        measured = claim.measure(runs)
    except MissingData as missing:
        return Result(claim, np.array([]), False, f"This run lacks {missing}.")
    values, note = measured if isinstance(measured, tuple) else (measured, "")
    exact = not isinstance(values, xr.DataArray) or "seed" not in values.dims
    values_S = np.atleast_1d(np.asarray(values.transpose("seed") if not exact else values, float))
    return Result(claim, values_S, exact, note)


def table(claims: tuple[Claim, ...], runs: Runs, command: str, scale: str = "") -> dict:
    """`claims.json`: a version, and one row a claim, headline claims first.

    Args:
      scale: of the training beside the published one, for claims that do not state their own.
    """
    ordered = sorted(claims, key=lambda claim: not claim.headline)
    return {"version": VERSION, "claims": [evaluate(claim, runs).row(command, scale) for claim in ordered]}


def _json(value: float) -> float | str | None:
    """Six significant digits; no negative zero."""
    if math.isnan(value):
        return None
    return str(float(value)) if math.isinf(value) else float(f"{value:.6g}") + 0.0
