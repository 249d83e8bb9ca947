import itertools
import json
import math

import numpy as np
import pytest
import xarray as xr

from lab import claims, verdicts
from lab.claims import FAILS, HOLDS, OPEN, Threshold
from lab.runs import Runs

NAN = math.nan


def seeds(*values):
    return xr.DataArray(list(map(float, values)), dims="seed")


def measured(measure, **options):
    made = claims.claim("X1", "It rises", quantity="rise", source="a paper", published="-", **options)(measure)
    return claims.evaluate(made, Runs({}))


def table_row(measure, **options):
    return measured(measure, **options).row("command", "")


@pytest.mark.parametrize(
    ("values", "bounds", "verdict"),
    [
        ([1, 2, 3, 4, 5], {"at_least": 1}, HOLDS),
        ([1, 2, 3, 4, 5], {"above": 1}, OPEN),
        ([1, 2, 3, 4, 5], {"above": 5}, FAILS),
        ([1, 2, 3, 4, 5], {"at_least": 5}, OPEN),
        ([1, 2, 3, 4, 5], {"at_most": 5}, HOLDS),
        ([1, 2, 3, 4, 5], {"below": 1}, FAILS),
        ([1, 2, 3, 4, 5], {"at_most": 1}, OPEN),
        ([1, 2, 3, 4, 5], {"at_least": 0, "at_most": 6}, HOLDS),
        ([1, 2, 3, 4, 5], {"at_least": 0, "at_most": 4}, OPEN),
        ([1, 2, 3, 4, 5], {"at_least": 6, "at_most": 9}, FAILS),
        ([1, 2, 3, 4, 5], {"at_least": -2, "at_most": 0}, FAILS),
        ([2, 2, 2, 2], {"at_least": 1}, OPEN),  # four seeds decide nothing
        ([2, 2, 2, 2, NAN], {"at_least": 1}, OPEN),  # a missing seed is on the wrong side,
        ([0, 0, 0, 0, NAN], {"at_least": 1}, FAILS),
        ([0, 0, 0, 0, NAN], {"at_most": 1}, OPEN),  # whichever that is
        ([2, 2, 2, 2, NAN], {"at_most": 1}, FAILS),
        ([2, 2, 2, 2, NAN], {"at_least": 1, "at_most": 3}, OPEN),
        ([NAN] * 5, {"at_least": 1}, OPEN),  # nothing is known
        ([0, *[2] * 7], {"at_least": 1}, HOLDS),  # eight seeds forgive one
        ([NAN, *[2] * 7], {"at_least": 1}, HOLDS),
        ([0, 0, *[2] * 6], {"at_least": 1}, OPEN),
        ([math.inf] * 5, {"above": 1}, HOLDS),
        ([-math.inf, 2, 2, 2, 2], {"above": 1}, OPEN),
    ],
)
def test_verdict(values, bounds, verdict):
    result = measured(lambda runs: seeds(*values), **bounds)
    assert result.verdict == verdict
    assert Threshold(**bounds).verdict(np.array(values)[::-1]) == verdict  # whatever the order


MULTISETS = [np.array(values) for values in itertools.combinations_with_replacement([0.0, 1.0, 2.0, NAN], 5)]


def test_an_upper_bound_is_the_lower_bound_of_the_negated_numbers():
    for lower, upper in ((Threshold(at_least=1), Threshold(at_most=-1)), (Threshold(above=1), Threshold(below=-1))):
        for values in MULTISETS:
            assert lower.verdict(values) == upper.verdict(-values)


def test_a_missing_seed_never_helps():
    order = [FAILS, OPEN, HOLDS]
    for threshold in (Threshold(at_least=1), Threshold(at_most=1), Threshold(at_least=1, at_most=1.5)):
        for values, lost in itertools.product(MULTISETS, range(5)):
            with_one_lost = np.where(np.arange(5) == lost, NAN, values)
            if threshold.kept(values[lost]) and not np.isnan(with_one_lost).all():
                assert order.index(threshold.verdict(with_one_lost)) <= order.index(threshold.verdict(values))


@pytest.mark.parametrize(
    ("bounds", "value", "kept", "margin", "text"),
    [
        ({"at_least": 0.8}, 0.8, True, 0.0, "at least 0.8"),
        ({"above": 0.8}, 0.8, False, 0.0, "above 0.8"),
        ({"at_most": -0.9}, -1.0, True, 0.1, "at most -0.9"),
        ({"below": 1}, 3.0, False, -2.0, "below 1"),
        ({"at_least": 0.9, "at_most": 1.1}, 1.05, True, 0.05, "at least 0.9, at most 1.1"),
        ({"at_least": 0.9, "at_most": 1.1}, NAN, False, NAN, "at least 0.9, at most 1.1"),
    ],
)
def test_a_number_without_seeds_is_decided_by_the_threshold_alone(bounds, value, kept, margin, text):
    row = table_row(lambda runs: value, **bounds)
    assert row["verdict"] == (HOLDS if kept else FAILS)
    assert (row["threshold"], row["exact"], row["n_seeds"], row["per_seed"]) == (text, True, 0, [])
    assert row["margin"] == (None if math.isnan(margin) else pytest.approx(margin))


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1, "above": 1}, {"at_most": 1, "below": 2}])
def test_a_threshold_has_one_bound_or_one_on_each_side(bounds):
    with pytest.raises(ValueError, match="at least one bound"):
        Threshold(**bounds)


def test_what_the_run_lacks_leaves_a_claim_open_and_is_named():
    def measure(runs):
        return runs["wrong"].final("a")

    row = table_row(measure, at_least=1)
    assert (row["verdict"], row["note"]) == (OPEN, "This run lacks variant wrong.")
    assert (row["measured"], row["low"], row["margin"], row["n_seeds"]) == (None, None, None, 0)


def test_a_mistake_in_a_claim_is_not_taken_for_missing_data():
    with pytest.raises(KeyError):
        measured(lambda runs: {}["a"], at_least=1)


@pytest.mark.parametrize(
    ("bounds", "interval"),
    [
        ({"at_least": 1}, (-math.inf, 4)),
        ({"at_most": 1}, (1, math.inf)),
        ({"above": 0, "below": 9}, (-math.inf, math.inf)),
    ],
)
def test_interval_that_is_shown_is_the_one_of_the_verdict(bounds, interval):
    assert Threshold(**bounds).interval(np.array([1.0, NAN, 3, 2, 4]))[:2] == interval


def test_row_of_the_table():
    row = table_row(lambda runs: (seeds(3, 1, NAN, 2, 5), "a note"), at_least=2.5, headline=True)
    assert row["measured"] == 2.5 and (row["low"], row["high"]) == ("-inf", 5) and row["coverage"] == 0.9375
    assert (row["n_seeds"], row["n_missing"], row["per_seed"]) == (5, 1, [3, 1, None, 2, 5])
    assert (row["note"], row["bounds"], row["margin"]) == ("a note", {"at_least": 2.5}, 0)
    json.dumps(row, allow_nan=False)


def test_headline_claims_come_first_and_otherwise_in_the_order_they_are_listed():
    def made(name, headline):
        return claims.claim(
            name, "", quantity="", source="", published="", above=0, headline=headline
        )(lambda runs: seeds(*range(1, 6)))  # fmt: skip

    listed = (made("A", False), made("B", True), made("C", False), made("D", True))
    table = claims.table(listed, Runs({}), "command")
    assert [row["id"] for row in table["claims"]] == ["B", "D", "A", "C"]
    assert table["version"] == verdicts.VERSION
    # four verdicts, each with the interval from the smallest to the largest of five: 2^-5 on each side
    assert verdicts.wrong_by_chance(table["claims"]) == pytest.approx(4 * 2**-5)
