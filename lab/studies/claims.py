"""Claims: published statements as measured numbers, each with its interval over seeds and a verdict."""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

FEWEST_SEEDS = 3


class Lacking(Exception):
    """What a claim needs and this run has not, e.g. `weight decay 1`."""


def variant(datasets: Mapping[str, xr.Dataset], name: str) -> xr.Dataset:
    """
    Raises:
      Lacking: it was not trained.
    """
    if name not in datasets:
        raise Lacking(f"variant {name}")
    return datasets[name]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One number per seed, what they must reach, and what else a reader should know.

    Attributes:
      per_seed: the claim's number, one per seed (or per pair of seeds); NaN where it could not be had.
      at_least, at_most: the thresholds, from the paper.
      note: one or two sentences.
      strictly: a threshold itself is not enough.
    """

    per_seed: tuple[float, ...]
    at_least: float = -math.inf
    note: str = ""
    strictly: bool = False
    at_most: float = math.inf

    @property
    def median(self) -> float:
        return float(np.median(self.per_seed)) if self.per_seed else math.nan

    @property
    def low(self) -> float:
        return float(np.min(self.per_seed)) if self.per_seed else math.nan

    @property
    def high(self) -> float:
        return float(np.max(self.per_seed)) if self.per_seed else math.nan

    @property
    def verdict(self) -> str:
        """`holds`: the whole range over at least three seeds lies where the thresholds say."""
        if len(self.per_seed) < FEWEST_SEEDS or math.isnan(self.low):
            return "not measured"
        within = operator.lt if self.strictly else operator.le
        reached = within(self.at_least, self.low) and within(self.high, self.at_most)
        return "holds" if reached else "does not hold"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A published statement and how it is measured.

    Attributes:
      threshold: in words, written from the paper before the run.
      measure: datasets of the study's variants -> `Measured`.
    """

    id: str
    statement: str
    source: str
    published: str
    threshold: str
    measure: Callable[[Mapping[str, xr.Dataset]], Measured]


def evaluate(claims: tuple[Claim, ...], datasets: Mapping[str, xr.Dataset], command: str) -> list[dict]:
    """The claims table: one dict a claim, plain JSON values (NaN as None)."""
    return [_row(claim, _measure(claim, datasets), command) for claim in claims]


def _measure(claim: Claim, datasets: Mapping[str, xr.Dataset]) -> Measured:
    try:
        return claim.measure(datasets)
    except Lacking as missing:
        return Measured((), math.nan, f"This run lacks {missing}.")


def _row(claim: Claim, measured: Measured, command: str) -> dict:
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "published": claim.published,
        "threshold": claim.threshold,
        "measured": _number(measured.median),
        "low": _number(measured.low),
        "high": _number(measured.high),
        "n_seeds": len(measured.per_seed),
        "verdict": measured.verdict,
        "note": measured.note,
        "command": command,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
