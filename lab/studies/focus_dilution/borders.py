"""Borders of the companion's stages (arXiv 2510.06954), from `collapse.signals` over snapshots; on the host."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from lab.analysis.attention_stages import NEVER, Event
from lab.studies.focus_dilution.collapse import MATRICES, OUTER


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The paper prints none ("loss plateau and jump in the heat-map"); these are ours.

    Attributes:
      share: of its whole way, that a curve has covered when it starts to move; when it ends, 1 - share.
      cosine: what the mean |cos| of every outer matrix must reach, else nothing condensed.
      rank: share of its first effective rank that W_Q and W_K must fall below, else nothing collapsed.
    """

    share: float = 0.05
    cosine: float = 0.5
    rank: float = 0.5


class Borders(NamedTuple):
    """Condensation ends with the last of the outer matrices, collapse starts with the first of W_Q, W_K and ends with
    the last."""

    condensation_end: Event
    collapse_start: Event
    collapse_end: Event


def borders(step_T, cosine_TxM, effective_rank_TxM, thresholds: Thresholds = Thresholds()) -> Borders:
    """When the outer matrices have condensed and W_Q, W_K collapse, from `signals` over T snapshots; on the host.

    Borders are shares of a curve's way from its first value to its extreme (a maximum of the cosine, a minimum of the
    rank), so they say when, not how far. NaN where a curve stays short of its threshold; a run that is cut during a
    fall ends its collapse where it was cut.

    Raises:
      ValueError: steps that do not increase, shapes that do not agree, values that are not finite.
    """
    step_T, cosine_TxM, rank_TxM = (np.asarray(values, float) for values in (step_T, cosine_TxM, effective_rank_TxM))
    if not {cosine_TxM.shape, rank_TxM.shape} == {(step_T.size, len(MATRICES))}:
        raise ValueError(
            f"{step_T.size} steps, cosines {cosine_TxM.shape} and ranks {rank_TxM.shape}: of one length, 5"
        )
    if not (np.diff(step_T) > 0).all() or not (np.isfinite(cosine_TxM).all() and np.isfinite(rank_TxM).all()):
        raise ValueError("steps must increase and values be finite; cut the run where it diverged")
    outer_TxM, inner_TxM = cosine_TxM[:, : len(OUTER)], -rank_TxM[:, len(OUTER) :]
    condensed = (outer_TxM.max(axis=0) >= thresholds.cosine).all()
    collapsed = (inner_TxM.max(axis=0) >= thresholds.rank * inner_TxM[0]).all()
    ends = [_covered(step_T, value_T, 1 - thresholds.share) for value_T in outer_TxM.T]
    starts, stops = ([_covered(step_T, value_T, share) for value_T in inner_TxM.T]
                     for share in (thresholds.share, 1 - thresholds.share))  # fmt: skip
    return Borders(
        max(ends, key=lambda event: event.step) if condensed else NEVER,
        min(starts, key=lambda event: event.step) if collapsed else NEVER,
        max(stops, key=lambda event: event.step) if collapsed else NEVER,
    )


def _covered(step_T, value_T, share: float) -> Event:
    """First snapshot at which `share` of the rise from the first value to the maximum is behind."""
    i = int(np.argmax(value_T - value_T[0] >= share * (value_T.max() - value_T[0])))
    return Event(float(step_T[i - 1]) if i else -math.inf, float(step_T[i]), float(step_T[i]))
