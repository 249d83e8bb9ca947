"""Spikes of the loss, jumps, and the test of whether they coincide."""

import numpy as np
import pytest

from lab.analysis import spikes


def test_a_spike_is_above_the_median_by_six_deviations_and_a_level_is_none():
    loss_T = 1 + 0.01 * np.where(np.arange(300) % 2, 1, -1)  # median 1 at every other step, deviation 0.01
    loss_T[120], loss_T[200], loss_T[250] = 3.0, 1.04, np.nan
    assert np.flatnonzero(spikes.spikes(loss_T)).tolist() == [120]
    assert not spikes.spikes(np.linspace(5, 1, 300)).any()  # a falling loss is below its past
    assert not spikes.spikes(loss_T[:40]).any()


def test_normal_noise_has_few_spikes():
    loss_T = np.random.default_rng(0).standard_normal(20_000)
    assert spikes.spikes(loss_T).sum() < 20  # 6 deviations of the median are 4 standard deviations, of 50 numbers less


def test_jumps_are_the_largest_increases_and_never_falls():
    assert np.flatnonzero(spikes.jumps([0, 1, 1, 9, 8, 10], 0.4)).tolist() == [2, 4]
    assert np.flatnonzero(spikes.jumps([0, 1, 1, 9, 8, 10], 0.01)).tolist() == [2]
    assert not spikes.jumps([3, 2, 2, 1], 1.0).any()


def test_steps_near_an_interval():
    assert np.flatnonzero(spikes.near([4], [6], 2, 10)).tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert spikes.near([0], [9], 3, 10).all()


def test_correlation_is_one_at_the_lag_by_which_a_series_was_shifted():
    a_T = np.random.default_rng(0).standard_normal(200)
    found = spikes.lagged_correlation(a_T, np.roll(a_T, 3), 5)
    assert np.argmax(found) == 5 + 3 and found[8] == pytest.approx(1, abs=1e-12)
    by_hand = np.corrcoef(a_T[2:], np.roll(a_T, 3)[:-2])[0, 1]
    assert found[3] == pytest.approx(by_hand, abs=1e-12)
    assert (spikes.lagged_correlation(np.ones(50), a_T[:50], 2) == 0).all()


def test_spikes_at_jumps_are_told_from_spikes_anywhere():
    draw, near_T = np.random.default_rng(0), np.zeros(1000, bool)
    near_T[200:300] = near_T[550:650] = True
    at_jumps, anywhere = np.zeros((2, 1000), bool)
    at_jumps[draw.choice(np.flatnonzero(near_T), 20, replace=False)] = True
    anywhere[np.arange(25, 1000, 50)] = True
    share, p = spikes.shift_test(at_jumps, near_T, 999, 0)
    assert share == 1 and p < 0.01
    share, p = spikes.shift_test(anywhere, near_T, 999, 0)
    assert share == 0.2 and p > 0.5  # every shift has the same share


def test_rows_are_shifted_each_by_itself_and_without_spikes_there_is_no_p():
    near = np.zeros((2, 100), bool)
    near[:, 40:50] = True
    event = np.zeros((2, 100), bool)
    event[:, 45] = True
    share, p = spikes.shift_test(event, near, 4000, 0)
    assert share == 1
    # both in 10 of 99 shifts but for the one by nothing: (9 / 99)^2, of 4000 draws with 4 standard errors
    assert p == pytest.approx((9 / 99) ** 2, abs=4 * np.sqrt(0.0083 / 4000) + 1 / 4000)
    assert np.isnan(spikes.shift_test(np.zeros((2, 100)), near, 10, 0)).all()
