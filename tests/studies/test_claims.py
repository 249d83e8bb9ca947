"""A verdict needs three seeds, all of them on the right side of the threshold."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import studies
from lab.configs import base
from lab.report import page
from lab.studies import claims, outcome
from lab.studies.claims import Claim, Measured


@pytest.mark.parametrize(
    ("per_seed", "verdict"),
    [
        ((0.5, 0.6, 0.7), "holds"),
        ((0.5, 0.5, 0.5), "holds"),  # "at least" includes the threshold
        ((0.9, 0.9, 0.4999), "does not hold"),  # the median is not enough
        ((0.1, 0.2, 0.3), "does not hold"),
        ((0.9, 0.9), "not measured"),
        ((), "not measured"),
        ((0.9, 0.9, math.nan), "not measured"),
        ((0.1, 0.1, 0.1, math.nan), "not measured"),
        ((math.inf, 1.0, 2.0), "holds"),
    ],
)
def test_verdict_by_hand(per_seed, verdict):
    assert Measured(per_seed, 0.5).verdict == verdict


@pytest.mark.parametrize("threshold", [0.3, -0.5])
def test_upper_threshold_is_the_lower_one_of_the_negated_numbers(threshold):
    for per_seed in ((0.1, 0.2, 0.3), (0.1, 0.3, 0.31), (-0.5, -0.5, -0.6), (math.inf, 0.0, 0.0)):
        for strictly in (False, True):
            upper = Measured(per_seed, at_most=threshold, strictly=strictly)
            lower = Measured(tuple(-value for value in per_seed), -threshold, strictly=strictly)
            assert upper.verdict == lower.verdict


def test_interval_is_the_whole_range_around_the_median():
    measured = Measured((0.9, 0.1, 0.4, 0.6), 0.0)
    assert (measured.low, measured.median, measured.high) == (0.1, 0.5, 0.9)
    nothing = Measured((), 0.0)
    assert all(math.isnan(value) for value in (nothing.low, nothing.median, nothing.high))


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=9), st.floats(-10, 10))
def test_claim_holds_exactly_when_each_seed_alone_would(per_seed, threshold):
    measured = Measured(tuple(per_seed), threshold)
    assert (measured.verdict == "holds") == all(value >= threshold for value in per_seed)
    assert measured.low <= measured.median <= measured.high
    assert (measured.verdict == "not measured") is False


def claim(measure, name="X1"):
    return Claim(name, "statement", "source", "published", "at least 0.5", measure)


@pytest.mark.parametrize("value", [2e-4, -4.2e-6, 0.0, 12345.678])
def test_number_is_kept_and_printed_in_its_own_digits(value):
    rows = claims.evaluate((claim(lambda datasets: Measured((value,) * 3, 0.5)),), {}, "command")
    assert rows[0]["measured"] == pytest.approx(value, rel=1e-5)
    assert f"{value:.3g} [" in outcome.table_text(rows) and f"{value:.3g} [" in outcome.table_markdown(rows)


def test_table_holds_the_claims_words_and_its_numbers():
    (row,) = claims.evaluate((claim(lambda datasets: Measured((0.123456, 0.6, 0.9), 0.5, "note")),), {}, "command")
    assert row == {
        "id": "X1", "statement": "statement", "source": "source", "published": "published",
        "threshold": "at least 0.5", "measured": 0.6, "low": 0.123456, "high": 0.9, "n_seeds": 3,
        "verdict": "does not hold", "note": "note", "command": "command",
    }  # fmt: skip


def test_what_a_run_lacks_is_not_measured_and_named_and_hurts_no_other_claim():
    def lacking(datasets):
        raise claims.Lacking("variant wrong")

    made = (claim(lacking, "A"), claim(lambda datasets: Measured((math.nan,) * 3, 0.5), "B"))
    rows = claims.evaluate(made, {}, "c")
    assert [row["verdict"] for row in rows] == ["not measured", "not measured"]
    assert "wrong" in rows[0]["note"] and rows[0]["n_seeds"] == 0
    assert all(row[name] is None for row in rows for name in ("measured", "low", "high"))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_mistake_in_a_claim_is_not_taken_for_a_missing_measurement():
    def broken(datasets):
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        claims.evaluate((claim(broken),), {}, "c")


def test_report_knows_every_verdict():
    reached = [Measured((0.9,) * 3, 0.5), Measured((0.1,) * 3, 0.5), Measured((0.9,), 0.5)]
    assert [one.verdict for one in reached] == list(page.VERDICTS)


@pytest.mark.parametrize("name", studies.names())
def test_every_study_states_its_claims_once_and_in_full(name):
    study = studies.get(name)
    assert study.name == name and base.presets(name)
    ids = [claim.id for claim in study.claims]
    assert len(set(ids)) == len(ids)
    for claim in study.claims:
        assert all(getattr(claim, field).strip() for field in ("statement", "source", "published", "threshold"))


def test_unknown_study_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"unknown study 'compo'; did you mean 'composition'\? There are complexity_control, "
    ):
        studies.get("compo")
