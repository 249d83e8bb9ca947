"""Detects stages of training: condensation, focus, dilution, new direction ("Focus and Dilution", arXiv 2605.01199).

From curves over snapshots, on the host. Every event comes with the snapshots it lies between; an event that the curves
do not show is NaN. The rules:

- condensation ends when |loss - H(pi)| < `loss_gap` and the embedding's effective rank < `rank`;
- focus starts, after that, when F has risen `hysteresis` above its lowest and the rank of W_Q fallen by `rank_fall`;
- dilution starts, after that, at the first maximum of A[i, top] of any low-frequency token i;
- a new direction is there when, after condensation, s_2 / s_1 of the embedding exceeds `ratio`.

The next cycle is looked for after both of the last two, without a condensation: its rule is that of the first plateau.
The c-th cycle takes s_{c+1} / s_1.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.ndimage import median_filter


class Event(NamedTuple):
    """A step, that of a snapshot, and the steps the event lies between; all NaN if it is not in the curves.

    For a threshold they are the snapshot before it and `step` itself; for a maximum, the first snapshot around it
    within `hysteresis` of it and the one that is no more: it is between them if noise is below half of that.
    `earliest` is -inf where it had happened, or was falling, when the search for it began.
    """

    earliest: float
    step: float
    latest: float


NEVER = Event(math.nan, math.nan, math.nan)


class Cycle(NamedTuple):
    """`condensation_end` is NaN in every cycle but the first."""

    condensation_end: Event
    focus_start: Event
    dilution_start: Event
    new_direction: Event


class Curves(NamedTuple):
    """What T snapshots say; arrays of finite float, or anything numpy makes into that.

    Attributes:
      step_T: increasing.
      loss_T: nats.
      embedding_rank_T, query_rank_T: effective ranks of W_0 and W_Q (`rank.effective_rank`).
      focus_T: F = sum_i pi_i A[i, top] (`focus.focus`).
      to_top_TxI: A[i, top] of I low-frequency tokens.
      ratio_TxC: s_{c+1} / s_1 of the embedding, c = 1 ... C: at most C cycles are looked for.
    """

    step_T: np.ndarray
    loss_T: np.ndarray
    embedding_rank_T: np.ndarray
    query_rank_T: np.ndarray
    focus_T: np.ndarray
    to_top_TxI: np.ndarray
    ratio_TxC: np.ndarray


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """`loss_gap` in nats, `hysteresis` in attention mass, `rank_fall` as a share, the others pure numbers.

    The paper prints none; these are ours, for a small start. From larger weights an embedding condenses less, and
    `rank` must be larger. `hysteresis` must exceed twice the noise of F and A.
    """

    loss_gap: float = 1e-3
    rank: float = 1.1
    hysteresis: float = 0.01
    rank_fall: float = 0.05
    ratio: float = 0.05


def detect(curves: Curves, unigram_entropy: float, thresholds: Thresholds = Thresholds(), window: int = 1):
    """Cycles as far as they go: the last one is the first that is not complete, or the C-th.

    Args:
      unigram_entropy: H(pi) in nats.
      window: odd number of snapshots of a running median over every curve, for noise; 1 leaves them as they are. It
        moves no monotone stretch, but removes what is shorter than half of it, and the brackets grow by that half.

    Returns:
      list of `Cycle`.

    Raises:
      ValueError: shapes that do not agree, values that are not finite, steps that do not increase, an even window.
    """
    curves = _smooth(_checked(curves), window)
    condensation_end, start = _condensation_end(curves, unigram_entropy, thresholds)
    cycles = []
    for c in range(curves.ratio_TxC.shape[1]):
        focus_start, focused = _focus_start(curves, start, thresholds)
        dilution_start, diluted = _dilution_start(curves, focused, thresholds)
        new_direction, found = _first(curves.step_T, curves.ratio_TxC[:, c] > thresholds.ratio, start)
        events = (condensation_end, focus_start, dilution_start, new_direction)
        cycles.append(Cycle(*(_widen(event, curves.step_T, window // 2) for event in events)))
        condensation_end = NEVER
        if diluted is None or found is None:
            break
        start = max(diluted, found)
    return cycles


def swings(step_T, focus_T, hysteresis: float) -> list[Event]:
    """Turning points of F: maximum, minimum, maximum, ... as far as each is confirmed by a move of `hysteresis` back.

    Needs no embedding and no condensation: each maximum ends a focus and begins a dilution. The start of the curve is
    no turning point; a first rise shorter than `hysteresis` is not seen.

    Raises:
      ValueError: as `detect`.
    """
    step_T, focus_T = _finite("step_T", step_T), _finite("focus_T", focus_T)
    _increasing(step_T, focus_T.shape)
    rise = _first(step_T, focus_T - np.minimum.accumulate(focus_T) > hysteresis, 0)[1]
    turns, start, sign = [], rise, 1
    while start is not None:
        turn, start = _turn(step_T, sign * focus_T, start, hysteresis)
        if start is not None:
            turns.append(turn)
        sign = -sign
    return turns


def count_turns(curves: xr.DataArray, hysteresis: float, time: str = "snapshot") -> xr.DataArray:
    """Number of `swings` of each curve along `time`; NaN for a curve that is not finite."""
    step_T = curves[time].values

    def count(curve_T):
        return float(len(swings(step_T, curve_T, hysteresis))) if np.isfinite(curve_T).all() else math.nan

    return xr.apply_ufunc(count, curves, input_core_dims=[[time]], vectorize=True)


def _condensation_end(curves: Curves, unigram_entropy: float, thresholds: Thresholds):
    on_plateau_T = np.abs(curves.loss_T - unigram_entropy) < thresholds.loss_gap
    return _first(curves.step_T, on_plateau_T & (curves.embedding_rank_T < thresholds.rank), 0)


def _focus_start(curves: Curves, start: int | None, thresholds: Thresholds):
    if start is None:
        return NEVER, None
    rise_T = curves.focus_T[start:] - np.minimum.accumulate(curves.focus_T[start:])
    rank_T = curves.query_rank_T[start:]
    fallen_T = rank_T < (1 - thresholds.rank_fall) * np.maximum.accumulate(rank_T)
    both_T = np.zeros(curves.step_T.size, bool)
    both_T[start:] = (rise_T > thresholds.hysteresis) & fallen_T
    return _first(curves.step_T, both_T, start)


def _dilution_start(curves: Curves, start: int | None, thresholds: Thresholds):
    if start is None:
        return NEVER, None
    turns = [_turn(curves.step_T, row_T, start, thresholds.hysteresis) for row_T in curves.to_top_TxI.T]
    return min((turn for turn in turns if turn[1] is not None), default=(NEVER, None), key=lambda turn: turn[0].step)


def _first(step_T, holds_T, start: int | None):
    """First snapshot from `start` on where it holds, as an Event and as an index; `NEVER, None` if there is none."""
    if start is None or not holds_T[start:].any():
        return NEVER, None
    i = start + int(np.argmax(holds_T[start:]))
    return _event(step_T[i - 1] if i > start else -math.inf, step_T[i], step_T[i]), i


def _turn(step_T, value_T, start: int, hysteresis: float):
    """First maximum from `start` on that is followed by a fall of `hysteresis`, and the index where it has fallen."""
    tail_T = value_T[start:]
    peak_T = np.maximum.accumulate(tail_T)
    fallen_T = peak_T - tail_T > hysteresis
    if not fallen_T.any():
        return NEVER, None
    confirmed = int(np.argmax(fallen_T))
    peak = int(np.argmax(tail_T[:confirmed]))
    below_T = tail_T[:peak] < tail_T[peak] - hysteresis
    first = peak - int(np.argmax(below_T[::-1])) if below_T.any() else 0
    earliest = step_T[start + first] if peak else -math.inf
    return _event(earliest, step_T[start + peak], step_T[start + confirmed]), start + confirmed


def _event(*steps) -> Event:
    return Event(*map(float, steps))


def _widen(event: Event, step_T, half: int) -> Event:
    if half == 0 or math.isnan(event.step):
        return event
    first, last = np.searchsorted(step_T, event.earliest), np.searchsorted(step_T, event.latest)
    earliest = -math.inf if first < half or math.isinf(event.earliest) else step_T[first - half]
    return _event(earliest, event.step, step_T[min(last + half, step_T.size - 1)])


def _smooth(curves: Curves, window: int) -> Curves:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window={window}; an odd number of snapshots, 1 for no smoothing")

    def median(value):
        return median_filter(value, size=(window,) + (1,) * (value.ndim - 1), mode="nearest")

    return Curves(curves.step_T, *(median(value) for value in curves[1:]))


def _checked(curves: Curves) -> Curves:
    curves = Curves(*(_finite(name, value) for name, value in curves._asdict().items()))
    for name, value in curves._asdict().items():
        n_axes = len(name.split("_")[-1].split("x"))
        if value.ndim != n_axes:
            raise ValueError(f"{name} has {value.ndim} axes; its name says {n_axes}")
        _increasing(curves.step_T, value.shape[:1])
    return curves


def _finite(name: str, value) -> np.ndarray:
    value = np.asarray(value, float)
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds values that are not finite; cut the run where it diverged")
    return value


def _increasing(step_T, shape):
    if step_T.shape != tuple(shape):
        raise ValueError(f"{step_T.shape} steps for a curve of {tuple(shape)} snapshots")
    if not (np.diff(step_T) > 0).all():
        raise ValueError("steps must increase")
