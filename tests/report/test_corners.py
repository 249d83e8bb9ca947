import re

import numpy as np
import pytest
from synthetic import Grid

from lab.report import corners
from lab.runs import MissingData, Runs

SPLITS = {"scan": ("train", "test"), "cogs": ("test", "gen")}
USUAL = {"train_items": max}


def grid(family, small, large, sizes=(10, 100)):
    """`small` and `large`: (in, out of) distribution at a corner, each by seed or by size and seed."""
    axes = {"gamma": (0.3, 0.5, 0.8), "weight_decay": (0.01, 1.0)} | ({"train_items": sizes} if sizes else {})
    made = Grid(USUAL, {"task": {"family": family}}, **axes)
    for values, place in ((small, {"gamma": 0.8, "weight_decay": 1.0}), (large, {"gamma": 0.3, "weight_decay": 0.01})):
        for split, by_size in zip(SPLITS[family], values, strict=True):
            for i, size in enumerate(sizes or [None]):
                at = place | ({"train_items": size} if sizes else {})
                made.put(
                    f"{split}.accuracy", np.broadcast_to(by_size[i] if isinstance(by_size, tuple) else by_size, 5), **at
                )
    return made


def runs(**grids):
    return Runs({name: made.dataset for name, made in grids.items()}, USUAL)


def test_lead_is_that_of_the_worst_data_size_and_variant():
    scan = grid("scan", (1.0, (0.5, 0.9)), (1.0, (0.4, 0.2)))
    values, note = corners.least_lead(runs(scan=scan), SPLITS)
    np.testing.assert_allclose(values, 0.1)
    assert "scan of 10 items: 0.50 against 0.40; scan of 100 items: 0.90 against 0.20" in note
    cogs = grid("cogs", (1.0, ((0.5, 0.5, 0.4, 0.5, 0.5), 0.9)), (1.0, (0.4, 0.95)))
    np.testing.assert_allclose(corners.least_lead(runs(scan=scan, cogs=cogs), SPLITS)[0], -0.05)
    cogs = grid("cogs", (1.0, ((0.5, 0.5, 0.45, 0.5, 0.5), 0.9)), (1.0, (0.4, 0.2)))
    values, _ = corners.least_lead(runs(scan=scan, cogs=cogs), SPLITS)
    np.testing.assert_allclose(values, [0.1, 0.1, 0.05, 0.1, 0.1])


def test_fit_is_the_lowest_of_both_corners():
    scan = grid("scan", (1.0, 0.0), ((0.99, (1.0, 0.9, 1.0, 1.0, 1.0)), 0.0))
    values, note = corners.least_fit(runs(scan=scan), SPLITS)
    np.testing.assert_allclose(values, [0.99, 0.9, 0.99, 0.99, 0.99])
    assert note == "Of split train."


def test_a_seed_of_which_one_row_diverged_has_no_lead_but_the_others_do():
    made = grid("cogs", (1.0, (0.5, 0.9)), (1.0, (0.4, 0.2)))
    made.diverge(7, gamma=0.8, weight_decay=1.0, train_items=10, seed=1)
    for number in (corners.least_lead, corners.least_fit):
        values, _ = number(runs(cogs=made), SPLITS)
        np.testing.assert_array_equal(np.isnan(values), [False, True, False, False, False])


def test_grids_without_data_sizes_have_corners_too():
    values, note = corners.least_lead(runs(scan=grid("scan", (1.0, 0.9), (1.0, 0.5), None)), SPLITS)
    np.testing.assert_allclose(values, 0.4)
    assert note == "Medians: scan: 0.90 against 0.50."


@pytest.mark.parametrize("axis", ["gamma", "weight_decay"])
def test_corners_need_two_scales_and_two_decays(axis):
    dataset = grid("scan", (1.0, 1.0), (1.0, 0.0)).dataset.isel({axis: [0]})
    with pytest.raises(MissingData, match=f"a second {axis.replace('_', ' ')}"):
        corners.least_lead(Runs({"scan": dataset}, USUAL), SPLITS)


def test_runs_of_other_families_do_not_count():
    addition = {"addition": ("test_seen", "ood")}
    with pytest.raises(MissingData, match=re.escape("a training on addition")):
        corners.least_lead(runs(scan=grid("scan", (1.0, 1.0), (1.0, 0.0))), addition)
