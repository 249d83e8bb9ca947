"""Spikes of the loss, and whether they coincide with something else: on the host, over training steps."""

import math

import numpy as np

WINDOW, DEVIATIONS = 50, 6.0  # steps before, and how many of their median absolute deviations


def spikes(loss_T: np.ndarray, window: int = WINDOW, deviations: float = DEVIATIONS) -> np.ndarray:
    """Where the loss is above the median of the `window` steps before by `deviations` times their median absolute
    deviation (6 are about 4 standard deviations of normal noise); boolean (T).

    None of the first `window` steps is one, nor is one that is not finite.
    """
    loss_T = np.asarray(loss_T, float)
    found_T = np.zeros(loss_T.size, bool)
    if loss_T.size <= window:
        return found_T
    before_NxW = np.lib.stride_tricks.sliding_window_view(loss_T, window)[:-1]
    median_N = np.median(before_NxW, axis=1)
    deviation_N = np.median(np.abs(before_NxW - median_N[:, None]), axis=1)
    later_N = loss_T[window:]
    found_T[window:] = np.isfinite(later_N) & (later_N > median_N + deviations * deviation_N)
    return found_T


def jumps(count_N: np.ndarray, share: float) -> np.ndarray:
    """The largest increases of a series: boolean (N - 1), at most this share of them, at least one, none of them falls.

    Of equal increases the first ones.
    """
    increase_M = np.diff(np.asarray(count_N, float))
    found_M = np.zeros(increase_M.size, bool)
    found_M[np.argsort(-increase_M, kind="stable")[: max(1, math.floor(share * increase_M.size))]] = True
    return found_M & (increase_M > 0)


def near(first_N: np.ndarray, last_N: np.ndarray, within: int, n_steps: int) -> np.ndarray:
    """Which steps are at most `within` from some interval [first, last], boolean (n_steps)."""
    found_T = np.zeros(n_steps, bool)
    for first, last in zip(first_N, last_N, strict=True):
        found_T[max(0, int(first) - within) : int(last) + within + 1] = True
    return found_T


def lagged_correlation(a_T: np.ndarray, b_T: np.ndarray, most: int) -> np.ndarray:
    """Pearson's correlation of a_t with b_{t+lag} for lags of -`most` to `most`; 0 where one is constant.

    Positive lags: b comes after a.
    """
    a_T, b_T = np.asarray(a_T, float), np.asarray(b_T, float)
    found = []
    for lag in range(-most, most + 1):
        first, second = (a_T[: a_T.size - lag], b_T[lag:]) if lag >= 0 else (a_T[-lag:], b_T[:lag])
        first, second = first - first.mean(), second - second.mean()
        norm = math.sqrt(np.sum(first**2) * np.sum(second**2))
        found.append(float(np.sum(first * second) / norm) if norm else 0.0)
    return np.array(found)


def shift_test(event_RxT: np.ndarray, near_RxT: np.ndarray, n_shifts: int, seed: int) -> tuple[float, float]:
    """The share of events that lie where `near` is, and how often circular shifts of the events reach it (p).

    Shifts keep how events cluster and what share of time is near; each row is shifted by itself. p = (1 + number of
    shifts that reach the share) / (1 + n_shifts). NaN, NaN without any event.
    """
    event_RxT, near_RxT = (np.atleast_2d(np.asarray(values, bool)) for values in (event_RxT, near_RxT))
    n_events = event_RxT.sum()
    if not n_events:
        return math.nan, math.nan
    draw, n_steps = np.random.default_rng(seed), event_RxT.shape[1]
    hits = np.sum(event_RxT & near_RxT)
    rows = [np.nonzero(row_T)[0] for row_T in event_RxT]
    reached = 0
    for _ in range(n_shifts):
        shifts_R = draw.integers(1, n_steps, len(rows)) if n_steps > 1 else np.zeros(len(rows), int)
        shifted = sum(
            near_T[(at + shift) % n_steps].sum() for at, near_T, shift in zip(rows, near_RxT, shifts_R, strict=True)
        )
        reached += int(shifted >= hits)
    return float(hits / n_events), (1 + reached) / (1 + n_shifts)
