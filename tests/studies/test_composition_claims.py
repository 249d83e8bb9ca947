"""Every claim on grids written by hand, on which the answer is known."""

import math

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from lab.studies import claims
from lab.studies.claims import Lacking
from lab.studies.composition.claims import CLAIMS, NAMED, crossing, final
from lab.studies.composition.measures import QUERY

SEEDS = (0, 1, 2)
WRONG_GAMMAS, UNSEEN_GAMMAS = (0.5, 0.65, 0.8), (0.3, 0.5, 0.65, 0.8)
RATES = (1e-4, 1e-3, 1e-2)
GARBAGE = 77.0  # in every place that no claim may read


def dataset(gammas, seeds=SEEDS, decays=(0.01, 1.0), **variables):
    """A trained study's Dataset: `variables` are (gamma, seed) arrays at decay 0.01, or pairs of them for both decays.

    Two evaluations, of which the last counts; three learning rates, of which the middle one counts.
    """
    coords = {"gamma": list(gammas), "learning_rate": list(RATES), "seed": list(seeds), "weight_decay": list(decays)}
    data = {}
    for name, value in variables.items():
        pair = value if isinstance(value, tuple) else (value, np.full_like(value, GARBAGE))
        values = np.full((2, len(gammas), 3, len(seeds), len(decays)), GARBAGE)
        values[-1, :, 1] = np.stack(pair[: len(decays)], axis=-1)
        dims = ("step", "gamma", "learning_rate", "seed", "weight_decay")
        name = name.replace("__", ".")
        if name.startswith(("flow", "fused")):  # measured in the last snapshot only
            dims, values = dims[1:], values[-1]
        if name.startswith(("embedding", "condensation")):
            dims = ("snapshot", *dims[1:])
        if name == "rank.stable":
            dims = ("snapshot", *dims[1:], "matrix")
            values = np.stack([np.full_like(values, GARBAGE), values], axis=-1)
            coords["matrix"] = ["block_1/attn/query/kernel", QUERY]
        data[name] = (dims, values)
    axes = ("gamma", "learning_rate", "seed", "weight_decay")
    data["diverged_at"] = (axes, np.full([len(coords[axis]) for axis in axes], -1))
    return xr.Dataset(data, coords)


def rows(*by_gamma):
    """(gamma, seed): a number for all seeds, or one for each."""
    return np.array([np.broadcast_to(row, len(SEEDS)) for row in by_gamma], float)


def measure(name, **datasets):
    (claim,) = [claim for claim in CLAIMS if claim.id == name]
    return claims._measure(claim, datasets)


# --- crossing ---


@pytest.mark.parametrize(
    ("reasoning_G", "gamma"),
    [
        ((0.0, 0.0, 1.0, 1.0), 0.575),  # half way from 0.5 to 0.65
        ((0.0, 0.25, 0.75, 1.0), 0.575),
        ((0.0, 0.4, 0.9, 1.0), 0.5 + 0.15 * 0.2),
        ((0.0, 0.5, 1.0, 1.0), 0.5),
        ((0.0, 1.0, 0.0, 1.0), 0.4),  # the first time counts
        ((0.6, 0.0, 0.0, 1.0), 0.3),
        ((0.5, 0.7, 0.7, 0.7), 0.3),
    ],
)
def test_crossing_by_hand(reasoning_G, gamma):
    # four roundings of numbers below one, in float64
    assert crossing(np.array(reasoning_G), np.array(UNSEEN_GAMMAS)) == pytest.approx(gamma, abs=4 * 2.0**-52)


def test_rows_that_never_reason_have_no_crossing():
    assert math.isnan(crossing(np.array([0.0, 0.2, 0.4999, 0.3]), np.array(UNSEEN_GAMMAS)))
    assert math.isnan(crossing(np.array([np.nan] * 4), np.array(UNSEEN_GAMMAS)))  # all diverged


def test_frozen_weights_of_a_diverged_row_count_on_neither_side():
    ranks = rows(16.0, 8.0, 4.0, 2.0)
    made = dataset(UNSEEN_GAMMAS, **{"ood_43.reasoning": rows(0.0, 0.1, 0.9, 1.0), "rank.stable": ranks})
    made["diverged_at"].loc[{"gamma": UNSEEN_GAMMAS[0]}] = 7
    made["ood_43.reasoning"].loc[{"gamma": UNSEEN_GAMMAS[0]}] = np.nan  # what evaluation says of such a row
    # memory: only 8 is left; reasoning: sqrt(4 * 2)
    np.testing.assert_allclose(measure("C4", unseen=made).per_seed, 8 / np.sqrt(8), rtol=1e-12)


def test_last_step_middle_learning_rate_and_the_asked_decay_are_read():
    small, large = rows(0.1, 0.2, 0.3, 0.4), rows(0.5, 0.6, 0.7, 0.8)
    made = dataset(UNSEEN_GAMMAS, **{"ood_43.reasoning": (small, large)})
    np.testing.assert_array_equal(final(made, "ood_43.reasoning").values, small.T)
    np.testing.assert_array_equal(final(made, "ood_43.reasoning", 1.0).values, large.T)
    for missing in (0.1, 0.0):
        with pytest.raises(Lacking):
            final(made, "ood_43.reasoning", missing)
    with pytest.raises(Lacking):
        final(made, "ood_43.symmetry")


# --- claims ---


def wrong(**variables):
    return dataset(WRONG_GAMMAS, decays=(0.01,), **variables)


def unseen(**variables):
    return dataset(UNSEEN_GAMMAS, **variables)


def accuracies(seen, reasoning, symmetric, gammas=WRONG_GAMMAS):
    """All steps and rates alike: claim C1 looks at every row."""
    made = dataset(
        gammas, decays=(0.01,),
        **{"test_seen.accuracy": seen, "ood_43.reasoning": reasoning, "ood_43.symmetric": symmetric},
    )  # fmt: skip
    return made.isel(step=[-1], learning_rate=[1])


def test_c1_is_the_worst_named_row_of_each_seed():
    seen = rows((0.2, 0.995, 1.0), 1.0, (1.0, 0.991, 1.0))
    reasoning = rows((0.1, 0.9, 0.9), 0.0, 0.5)  # the row with 0.2 is named after neither
    symmetric = rows((0.3, 0.0, 0.0), 1.0, 0.2)
    measured = measure("C1", wrong=accuracies(seen, reasoning, symmetric))
    assert measured.per_seed == (1.0, 0.991, 1.0) and measured.verdict == "holds"

    symmetric[0, 0] = NAMED
    measured = measure("C1", wrong=accuracies(seen, reasoning, symmetric))
    assert measured.per_seed == (0.2, 0.991, 1.0) and measured.verdict == "does not hold"


def test_c1_takes_the_worst_of_all_variants_and_every_learning_rate():
    good = accuracies(rows(1.0, 1.0, 1.0), rows(1.0, 1.0, 1.0), rows(0.0, 0.0, 0.0))
    worse = accuracies(rows(1.0, (1.0, 0.9, 1.0), 1.0), rows(1.0, 1.0, 1.0), rows(0.0, 0.0, 0.0))
    assert measure("C1", unseen=good, wrong=worse).per_seed == (1.0, 0.9, 1.0)
    assert measure("C1", unseen=worse, wrong=good).per_seed == (1.0, 0.9, 1.0)
    second_rate = worse.assign_coords(learning_rate=[0.5])
    both = xr.concat([good, second_rate], "learning_rate")
    assert measure("C1", wrong=both).per_seed == (1.0, 0.9, 1.0)


def test_c1_is_not_measured_where_a_seed_has_no_named_row():
    reasoning = rows((0.0, 1.0, 1.0), (0.0, 1.0, 1.0), (0.49, 1.0, 1.0))
    measured = measure("C1", wrong=accuracies(rows(1.0, 1.0, 1.0), reasoning, rows(0.0, 0.0, 0.0)))
    assert math.isnan(measured.per_seed[0]) and measured.verdict == "not measured"
    diverged = rows(np.nan, np.nan, np.nan)
    assert measure("C1", wrong=accuracies(diverged, diverged, diverged)).verdict == "not measured"


def answers(symmetric, reasoning):
    return wrong(**{"ood_43.symmetric": symmetric, "ood_43.reasoning": reasoning})


def test_c2_is_the_smaller_of_the_two_leads():
    symmetric = rows((0.9, 0.8, 0.7), GARBAGE, (0.1, 0.0, 0.2))
    reasoning = rows((0.0, 0.1, 0.2), GARBAGE, (0.5, 0.9, 0.9))
    measured = measure("C2", wrong=answers(symmetric, reasoning))
    # leads: 0.9, 0.7, 0.5 at gamma 0.5 and 0.4, 0.9, 0.7 at gamma 0.8; one rounding each
    assert measured.per_seed == pytest.approx((0.4, 0.7, 0.5), abs=2.0**-52)
    assert measured.verdict == "holds"


def test_c2_does_not_hold_where_one_seed_has_it_the_other_way_round():
    symmetric = rows((0.9, 0.8, 0.1), GARBAGE, 0.0)
    reasoning = rows((0.0, 0.1, 0.2), GARBAGE, 0.9)
    measured = measure("C2", wrong=answers(symmetric, reasoning))
    assert measured.low == pytest.approx(-0.1, abs=2.0**-52) and measured.verdict == "does not hold"
    swapped = measure("C2", wrong=answers(rows(0.0, 0.0, 1.0), rows(1.0, 0.0, 0.0)))
    assert swapped.per_seed == (-1.0, -1.0, -1.0)


@pytest.mark.parametrize("name", ["C2", "C7"])
def test_tie_is_no_lead(name):
    nothing = rows(0.0, 0.0, 0.0)
    variables = ("ood_43.symmetric", "ood_43.reasoning", "flow.symmetric_score", "flow.reasoning_score")
    assert measure(name, wrong=wrong(**dict.fromkeys(variables, nothing))).verdict == "does not hold"


@pytest.mark.parametrize("name", ["C2", "C7", "C8"])
def test_contrast_is_between_the_ends_of_the_grid(name):
    ends = dict(symmetric=rows(1.0, GARBAGE, GARBAGE, 0.0), reasoning=rows(0.0, GARBAGE, GARBAGE, 1.0))
    variables = {f"ood_43.{name}": values for name, values in ends.items()}
    variables |= {f"flow.{name}_score": values for name, values in ends.items()}
    made = dataset((0.45, 0.5, 0.8, 0.85), decays=(0.01,), **variables, **{"fused.contrast": ends["reasoning"]})
    assert measure(name, wrong=made).per_seed == (1.0, 1.0, 1.0)


def test_c3a_is_the_rise_from_the_smallest_gamma_to_the_best():
    made = unseen(**{"ood_43.reasoning": rows((0.0, 0.1, 0.05), 0.3, (1.0, 0.9, 0.8), (0.5, 1.0, 0.9))})
    measured = measure("C3a", unseen=made)
    assert measured.per_seed == pytest.approx((1.0, 0.9, 0.85), abs=2.0**-52) and measured.verdict == "holds"
    flat = unseen(**{"ood_43.reasoning": rows((0.3, 0.1, 0.1), 0.3, 1.0, 1.0)})
    measured = measure("C3a", unseen=flat)
    assert measured.low == pytest.approx(0.7, abs=2.0**-52) and measured.verdict == "does not hold"


def test_c3b_is_how_far_the_crossing_moves_down():
    small = rows(0.0, 0.0, (0.0, 1.0, 1.0), 1.0)  # crossings 0.725, 0.575, 0.575
    large = rows(0.0, (1.0, 1.0, 0.0), 1.0, 1.0)  # crossings 0.4, 0.4, 0.575
    measured = measure("C3b", unseen=unseen(**{"ood_43.reasoning": (small, large)}))
    # each crossing has four roundings
    assert measured.per_seed == pytest.approx((0.325, 0.175, 0.0), abs=8 * 2.0**-52)
    assert measured.verdict == "does not hold"
    large[1, 2] = 1.0
    assert measure("C3b", unseen=unseen(**{"ood_43.reasoning": (small, large)})).verdict == "holds"


def test_c3b_is_not_measured_where_a_seed_never_crosses_or_a_decay_is_missing():
    never = rows((0.0, 1.0, 1.0), (0.0, 1.0, 1.0), (0.0, 1.0, 1.0), (0.4, 1.0, 1.0))
    always = rows(1.0, 1.0, 1.0, 1.0)
    assert measure("C3b", unseen=unseen(**{"ood_43.reasoning": (never, always)})).verdict == "not measured"
    one_decay = dataset(UNSEEN_GAMMAS, decays=(0.01,), **{"ood_43.reasoning": always})
    assert measure("C3b", unseen=one_decay).verdict == "not measured"


SPLIT = rows(0.0, (0.0, 0.0, 0.6), 0.9, 1.0)  # memory below gamma 0.65, but seed 2 reasons at 0.5 already


def test_c4_is_the_ratio_of_geometric_means_on_the_two_sides():
    rank = rows(40.0, (10.0, 10.0, 4.0), (4.0, 5.0, 16.0), (9.0, 20.0, 1.0))
    measured = measure("C4", unseen=unseen(**{"ood_43.reasoning": SPLIT, "rank.stable": rank}))
    # sqrt(40 10) / sqrt(4 9), sqrt(40 10) / sqrt(5 20), 40 / cbrt(4 16 1)
    assert measured.per_seed == pytest.approx((20 / 6, 2.0, 10.0), rel=1e-14)  # logs and exps of numbers below 40
    rank[0, 1] = 10.0
    measured = measure("C4", unseen=unseen(**{"ood_43.reasoning": SPLIT, "rank.stable": rank}))
    assert measured.per_seed[1] == pytest.approx(1.0, rel=1e-14) and measured.verdict == "does not hold"


def test_c5_is_the_rank_correlation_with_gamma():
    share = rows((0.1, 0.1, 0.3), (0.2, 0.3, 0.2), (0.3, 0.2, 0.1), (0.9, 0.9, 0.0))
    measured = measure("C5", unseen=unseen(**{"condensation.fraction_above": share}))
    expected = [spearmanr(UNSEEN_GAMMAS, column).statistic for column in share.T]
    assert expected == pytest.approx([1.0, 0.8, -1.0])
    # integers in float32, one square root and one division: 4 roundings
    assert measured.per_seed == pytest.approx(expected, abs=4 * 2.0**-23)
    assert measured.verdict == "does not hold"
    share[:, 2] = share[:, 0]
    assert measure("C5", unseen=unseen(**{"condensation.fraction_above": share})).verdict == "holds"


def test_c6_is_the_difference_of_means_on_the_two_sides():
    order = rows(0.1, (0.3, 0.3, 0.7), (0.9, 0.8, 0.8), (0.7, 1.0, 0.6))
    measured = measure("C6", unseen=unseen(**{"ood_43.reasoning": SPLIT, "embedding.order": order}))
    # 0.8 - 0.2, 0.9 - 0.2, 0.7 - 0.1: four roundings of numbers below one
    assert measured.per_seed == pytest.approx((0.6, 0.7, 0.6), abs=4 * 2.0**-52) and measured.verdict == "holds"
    order[0] = 0.4
    measured = measure("C6", unseen=unseen(**{"ood_43.reasoning": SPLIT, "embedding.order": order}))
    assert measured.verdict == "does not hold"


@pytest.mark.parametrize(("name", "variable"), [("C4", "rank.stable"), ("C6", "embedding.order")])
@pytest.mark.parametrize("reasoning", [0.0, 1.0])
def test_comparison_across_the_crossing_needs_rows_on_both_sides(name, variable, reasoning):
    everywhere = rows(reasoning, reasoning, reasoning, reasoning)
    made = unseen(**{"ood_43.reasoning": everywhere, variable: rows(1.0, 2.0, 3.0, 4.0)})
    assert measure(name, unseen=made).verdict == "not measured"


def test_c7_is_the_smaller_lead_of_the_two_circuits():
    variables = {
        "flow.symmetric_score": rows((0.9, 0.5, 0.6), GARBAGE, 0.1),
        "flow.reasoning_score": rows((0.1, 0.1, 0.1), GARBAGE, (0.4, 0.9, 0.9)),
    }
    measured = measure("C7", wrong=wrong(**variables))
    assert measured.per_seed == pytest.approx((0.3, 0.4, 0.5), abs=2.0**-52) and measured.verdict == "holds"
    variables["flow.symmetric_score"][2, 0] = 0.5
    measured = measure("C7", wrong=wrong(**variables))
    assert measured.low == pytest.approx(-0.1, abs=2.0**-52) and measured.verdict == "does not hold"


def test_c8_is_how_much_higher_the_contrast_is_in_the_reasoning_row():
    contrast = rows((0.1, 0.3, 0.0), GARBAGE, (0.6, 0.6, 0.25))
    measured = measure("C8", wrong=wrong(**{"fused.contrast": contrast}))
    assert measured.per_seed == pytest.approx((0.5, 0.3, 0.25), abs=2.0**-52) and measured.verdict == "holds"
    contrast[0, 1] = 0.4
    assert measure("C8", wrong=wrong(**{"fused.contrast": contrast})).verdict == "does not hold"


# --- all of them ---


def everything(seeds=SEEDS):
    """Both variants with every variable, all claims within reach."""
    take = slice(len(seeds))
    reasoning, symmetric = rows(0.0, 0.0, 1.0, 1.0)[:, take], rows(0.0, 0.0, 0.0, 0.0)[:, take]
    early = rows(0.0, 1.0, 1.0, 1.0)[:, take]
    made = dataset(
        UNSEEN_GAMMAS, seeds,
        **{
            "ood_43.reasoning": (reasoning, early), "ood_43.symmetric": (symmetric, symmetric),
            "test_seen.accuracy": (early * 0 + 1, early * 0 + 1), "rank.stable": 30 - 29 * reasoning,
            "condensation.fraction_above": rows(0.1, 0.2, 0.3, 0.4)[:, take], "embedding.order": reasoning,
        },
    )  # fmt: skip
    ends = rows(0.0, 0.5, 1.0)[:, take]
    other = dataset(
        WRONG_GAMMAS, seeds, (0.01,),
        **{
            "ood_43.reasoning": ends, "ood_43.symmetric": 1 - ends, "test_seen.accuracy": ends * 0 + 1,
            "flow.reasoning_score": ends, "flow.symmetric_score": 1 - ends, "fused.contrast": ends,
        },
    )  # fmt: skip
    middle = {"learning_rate": [1]}
    return {"unseen": made.isel(middle), "wrong": other.isel(middle)}


def test_all_claims_hold_where_the_papers_are_right():
    verdicts = {row["id"]: row["verdict"] for row in claims.evaluate(CLAIMS, everything(), "c")}
    assert set(verdicts.values()) == {"holds"}, verdicts


def test_nothing_is_measured_with_two_seeds_or_without_any_variant():
    for datasets in (everything(SEEDS[:2]), {}):
        verdicts = {row["id"]: row["verdict"] for row in claims.evaluate(CLAIMS, datasets, "c")}
        assert set(verdicts.values()) == {"not measured"}, verdicts


@pytest.mark.parametrize("variant", ["unseen", "wrong"])
def test_missing_variant_is_named_and_leaves_the_claims_of_the_other(variant):
    datasets = {name: made for name, made in everything().items() if name == variant}
    (other,) = {"unseen", "wrong"} - {variant}
    table = {row["id"]: row for row in claims.evaluate(CLAIMS, datasets, "c")}
    of_wrong = {"C2", "C7", "C8"}
    lacking = of_wrong if other == "wrong" else set(table) - of_wrong - {"C1"}
    for name, row in table.items():
        assert (row["verdict"] == "not measured") == (name in lacking), name
        assert (f"variant {other}" in row["note"]) == (name in lacking), name


def test_diverged_exemplar_is_not_measured():
    datasets = everything()
    reasoning = datasets["wrong"]["ood_43.reasoning"]
    datasets["wrong"]["ood_43.reasoning"] = reasoning.where((reasoning.seed != 1) | (reasoning.gamma != 0.8))
    table = {row["id"]: row for row in claims.evaluate(CLAIMS, datasets, "c")}
    assert table["C2"]["verdict"] == "not measured" and table["C2"]["n_seeds"] == 3
    assert table["C8"]["verdict"] == "holds"
