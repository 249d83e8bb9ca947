import functools

import numpy as np
import pytest
import xarray as xr
from reference_cycle import PI, SYMMETRIC, portraits

from lab.analysis.attention_stages import Curves, Event, count_turns, detect, swings
from lab.analysis.focus import log_slope


def entropy(pi):
    return -np.sum(np.asarray(pi) * np.log(pi))


@functools.cache
def population(pi, epsilon, n_steps, every):
    """The curves of the exact model."""
    step_T, seen = portraits(pi, epsilon, n_steps, every)
    return Curves(
        step_T, seen["loss"], seen["rank_embedding"], seen["rank_query"], seen["focus"], seen["attention"][:, 1:, 0],
        seen["singular_ratios"],
    )  # fmt: skip


def holds(event, step):
    return event.earliest <= step <= event.latest


def test_brackets_of_coarse_snapshots_hold_the_events_of_every_step():
    run = population(PI, 1e-3, 1200, 1)
    step = run.step_T
    on_ray = (np.abs(run.loss_T - entropy(PI)) < 1e-3) & (run.embedding_rank_T < 1.1)
    condensed = step[on_ray][0]
    # F is at pi_1 on the whole plateau, and W_Q's rank at a quarter of what it was when F moves: F decides.
    focused = step[run.focus_T > PI[0] + 0.01][0]
    peaks = np.argmax(run.to_top_TxI[:900], axis=0)
    split = step[(run.ratio_TxC[:, 0] > 0.05) & (step > condensed)][0]

    (first, second) = detect(Curves(*(value[::25] for value in run)), entropy(PI))
    assert holds(first.condensation_end, condensed) and first.condensation_end.latest <= 100
    assert holds(first.focus_start, focused) and 400 <= first.focus_start.step <= 650
    # The rows rise, then fall: the highest snapshot is a neighbour of the top.
    assert abs(first.dilution_start.step - peaks.min()) <= 25 and holds(first.dilution_start, peaks.min())
    assert first.dilution_start.latest <= 650
    assert holds(first.new_direction, split) and 800 <= first.new_direction.latest <= 1200
    for event in (first.condensation_end, first.focus_start, first.new_direction):
        assert (event.step, event.latest - event.earliest) == (event.latest, 25)
    assert np.isnan(second).all()  # the run ends before it


def test_symmetric_low_frequency_tokens_find_no_new_direction():
    run = population(SYMMETRIC, 1e-3, 12000, 100)
    assert run.loss_T[-1] == pytest.approx(0.8197, abs=0.5e-4)  # the stall, as printed
    (only,) = detect(run, entropy(SYMMETRIC))
    assert only.condensation_end.step < only.focus_start.step <= only.dilution_start.step < 700
    assert np.isnan(only.new_direction).all()


@pytest.mark.parametrize(("last", "reached"), [(50, 0), (400, 1), (550, 2), (800, 3), (1200, 4)])
def test_stages_that_a_run_does_not_reach_are_nan(last, reached):
    cut = Curves(*(value[: last + 1 : 10] for value in population(PI, 1e-3, 1200, 1)))
    assert list(np.isnan(detect(cut, entropy(PI))[0])[:, 1]) == [False] * reached + [True] * (4 - reached)


def test_noise_below_half_the_hysteresis_stays_within_the_brackets():
    clean, rng = population(PI, 1e-3, 1200, 1), np.random.default_rng(1)

    def noise(size, like):
        return like + rng.uniform(-size, size, like.shape)

    noisy = Curves(
        clean.step_T, noise(1e-4, clean.loss_T), noise(0.02, clean.embedding_rank_T), noise(0.05, clean.query_rank_T),
        noise(0.004, clean.focus_T), noise(0.004, clean.to_top_TxI), noise(1e-3, clean.ratio_TxC),
    )  # fmt: skip
    first = detect(noisy, entropy(PI))[0]
    gap = np.abs(clean.loss_T - entropy(PI))
    # Each curve is monotone where its threshold is, so the noisy one crosses between two shifted clean crossings;
    # the rank of W_0 is 1.04 there and decides nothing.
    assert np.argmax(gap < 1.1e-3) <= first.condensation_end.step <= np.argmax(gap < 0.9e-3)
    rise = clean.focus_T - PI[0]
    assert np.argmax(rise > 0.002) <= first.focus_start.step <= np.argmax(rise > 0.018)
    # Two values of a row differ by at most 0.008 in noise: a fall of 0.01 is none of it, and the clean maximum is in.
    tail = clean.to_top_TxI[int(first.focus_start.step) : 900]
    peaks = int(first.focus_start.step) + np.argmax(tail, axis=0)
    assert any(holds(first.dilution_start, peak) for peak in peaks)
    ratio = np.where(clean.step_T > 100, clean.ratio_TxC[:, 0], 0)
    assert np.argmax(ratio > 0.049) <= first.new_direction.step <= np.argmax(ratio > 0.051)


def test_running_median_removes_a_spike_and_widens_the_brackets():
    clean = population(PI, 1e-3, 1200, 10)
    ratio = clean.ratio_TxC.copy()
    ratio[30, 0] = 0.5
    spiked = clean._replace(ratio_TxC=ratio)
    assert detect(spiked, entropy(PI))[0].new_direction.step == 300
    plain, smooth = detect(clean, entropy(PI))[0].new_direction, detect(spiked, entropy(PI), window=3)[0].new_direction
    assert smooth == Event(plain.earliest - 10, plain.step, plain.latest + 10)


def ramps(step, *points):
    return np.interp(step, *zip(*points, strict=True))


def two_cycles():
    """Hand-made: straight lines between the points given, a snapshot every 10 steps."""
    step = np.arange(0, 1001, 10)
    focus = ramps(step, (0, 0.5), (200, 0.5), (300, 0.9), (400, 0.6), (600, 0.6), (700, 0.95), (800, 0.6), (1000, 0.6))
    rows = np.stack([focus, ramps(step, (0, 0.5), (1000, 0.5))], axis=1)
    query_rank = ramps(step, (0, 12), (200, 12), (300, 2), (500, 4), (600, 4), (700, 1), (1000, 1))
    second = ramps(step, (0, 0), (400, 0), (500, 0.1), (1000, 0.1))
    third = ramps(step, (0, 0), (800, 0), (900, 0.1), (1000, 0.1))
    loss = ramps(step, (0, 1.5), (100, 1.0), (1000, 1.0))
    return Curves(step, loss, np.ones(step.size), query_rank, focus, rows, np.stack([second, third], axis=1))


def test_stages_of_two_cycles_are_the_corners_of_hand_made_lines():
    never = (np.nan, np.nan, np.nan)
    first, second = detect(two_cycles(), 1.0)
    # Per snapshot F rises 0.04 and falls 0.03, then rises and falls 0.035; s_2 / s_1 and s_3 / s_1 rise 0.01.
    assert first == ((90, 100, 100), (200, 210, 210), (300, 300, 310), (450, 460, 460))
    np.testing.assert_array_equal(second, (never, (600, 610, 610), (700, 700, 710), (850, 860, 860)))


def test_next_cycle_waits_for_the_dilution_of_a_direction_that_came_before_it():
    lines = two_cycles()
    ratio = lines.ratio_TxC.copy()
    ratio[:, 0] = ramps(lines.step_T, (0, 0), (240, 0), (250, 0.1), (1000, 0.1))
    first, second = detect(lines._replace(ratio_TxC=ratio), 1.0)
    assert first.new_direction == (240, 250, 250) and first.dilution_start.step == 300
    assert second.focus_start.step == 610


def test_focus_waits_for_the_rank_of_the_query_matrix():
    still = two_cycles()._replace(query_rank_T=ramps(two_cycles().step_T, (0, 12), (250, 12), (260, 9), (1000, 9)))
    assert detect(still, 1.0)[0].focus_start == (250, 260, 260)


def test_swings_of_focus_are_the_published_cycle():
    run = population(PI, 1e-2, 20000, 50)
    focus = run.focus_T
    # Printed: .75 -> .872 (1.6k) -> .725 (5.6k) -> .835 (10.4k) -> .781 (12k) -> .802 (20k)
    up, down, again = swings(run.step_T, focus, 0.05)  # .802 - .781 is no swing of 0.05
    assert up.step < 1600 and down.step == 50 * np.argmin(focus) and holds(down, 5600) and holds(again, 10400)
    assert focus[int(again.step) // 50] == focus[150:].max()


def test_swings_are_the_corners_of_a_line():
    step = np.arange(0, 101)
    line = ramps(step, (0, 0.5), (20, 0.9), (50, 0.3), (60, 0.35), (100, 0.3))
    # 0.02 up and 0.02 down a step; 0.3 -> 0.35 -> 0.3 is below 0.1, and so is no turn at 50.
    assert swings(step, line, 0.1) == [(15, 20, 26)]
    assert [event.step for event in swings(step, line, 0.03)] == [20, 50, 60]
    assert swings(step, -line, 0.8) == []


def test_focus_grows_at_the_rate_of_the_linearised_theory():
    step_T, run = portraits(PI, 1e-3, 1200, 1)
    pi, h, m, chain = np.array(PI), entropy(PI), 16, 0.5
    chosen = slice(300, 400)
    gamma_2 = np.mean(np.sum(run["gamma"][chosen] ** 2, axis=1))
    bracket = np.sum(pi**2 * (np.log(pi) + h)) * (np.sum(pi**3) - (pi @ pi) ** 2)
    c = m**-0.5 * chain * gamma_2 / (pi @ pi) ** 2 * bracket  # W_Q and W_K each, in time = 0.5 step: F as e^(c step)
    slope, error = log_slope(step_T[chosen], run["focus"][chosen] - pi[0])
    # gamma changes by 0.3% over these steps; F - pi_1 <= 0.0015 of pi_1 (1 - pi_1) = 0.19 is the next order: 0.8%.
    assert slope == pytest.approx(c, rel=0.01)
    assert error < 0.01 * c


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_T": np.full(101, np.nan)}, "loss_T holds values that are not finite"),
        ({"loss_T": np.ones(100)}, "101.*steps for a curve of.*100"),
        ({"step_T": np.zeros(101)}, "must increase"),
        ({"to_top_TxI": np.ones(101)}, "to_top_TxI has 1 axes"),
    ],
)
def test_bad_curves_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        detect(two_cycles()._replace(**change), 1.0)


def test_even_windows_are_refused():
    with pytest.raises(ValueError, match="window=2"):
        detect(two_cycles(), 1.0, window=2)


def test_turns_are_counted_by_curve_and_not_at_all_where_one_is_not_finite():
    step_T, wave_T = np.arange(5), np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    curves_SxT = [wave_T, -wave_T, 0 * wave_T, np.where(step_T == 3, np.nan, wave_T)]
    counts = count_turns(xr.DataArray(curves_SxT, {"snapshot": step_T}, ("seed", "snapshot")), 0.5)
    assert counts.dims == ("seed",)
    np.testing.assert_array_equal(counts, [3, 2, 0, np.nan])  # the second falls first: its start is no turn
