"""Every claim on grids written by hand, on which the answer is known. Arrays are (seed, gamma)."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import synthetic
from synthetic import GARBAGE, RATES, Grid, by_gamma

from lab import claims
from lab import config as configs
from lab.analysis import phase
from lab.configs import composition as config
from lab.measuring.catalogue.anchors import QUERY
from lab.report.page import draw_section
from lab.runs import MissingData, Runs
from lab.studies import composition as study

measured = functools.partial(synthetic.measured, study.STUDY)

WRONG_GAMMAS, UNSEEN_GAMMAS = (0.5, 0.65, 0.8), (0.3, 0.5, 0.65, 0.8)
EPS = 2.0**-52
EMBEDDED = {"token": (40, 41, 42), "component": (1, 2, 3)}
MATRICES = {"matrix": ["block_1/attn/query/kernel", QUERY]}
MEASURED_AT = {"rank": "snapshot", "condensation": "snapshot", "embedding": "snapshot", "flow": None, "fused": None}
NAN = np.nan


def peaked(values):
    """Over time: the best evaluation is not the last one."""
    return np.stack([values, values - 0.05])


def grid(gammas, decays, **variables):
    made = Grid({"weight_decay": 0.01}, gamma=gammas, weight_decay=decays)
    for name, values in variables.items():
        name = name.replace("__", ".")
        time = MEASURED_AT.get(name.split(".")[0], "step")
        if name == "rank.stable":
            made.put(name, np.stack([np.full_like(values, GARBAGE), values], axis=-1), time, MATRICES)
        elif name in ("embedding.components", "embedding.explained"):
            made.put(name, values, time, {"component": (1, 2, 3)} if values.ndim == 3 else EMBEDDED)
        elif isinstance(values, tuple):  # of decay 0.01 and 1
            for decay, one in zip(decays, values, strict=True):
                made.put(name, peaked(one), time, weight_decay=decay)
        else:
            made.put(name, peaked(values) if time == "step" else values, time)
    return made


def wrong(**variables):
    """Accuracies are best at the smallest learning rate, which is not the usual one."""
    made = grid(WRONG_GAMMAS, (0.01,), **variables)
    for name, values in variables.items():
        if name.startswith("ood_43"):
            for rate, less in ((1e-4, 0.0), (1e-3, 0.1), (1e-2, 0.2)):
                made.put(name.replace("__", "."), peaked(values - less), learning_rate=rate)
    return made


def named(**variables):
    """Every seed but the last has, of all rates, a symmetric row (gamma 0.5), one of no name, and a reasoning row."""
    made = grid(WRONG_GAMMAS, (0.01,))
    answers = {"reasoning": by_gamma(0.2, 0.4, (0.9, 0.9, 0.9, 0.5, 0.4)), "symmetric": by_gamma(0.8, 0.4, 0.1)}
    for rate in RATES:
        for name, values in answers.items():
            made.put(f"ood_43.{name}", np.stack([1 - values, values]), learning_rate=rate)
        for name, values in variables.items():
            made.put(name.replace("__", "."), values, None, learning_rate=rate)
    return made


def unseen(**variables):
    return grid(UNSEEN_GAMMAS, (0.01, 1.0), **variables)


SPLIT = by_gamma(0.0, (0.0, 0.0, 0.6, 0.0, 0.0), 0.9, 1.0)  # memory below gamma 0.65, but seed 2 reasons at 0.5 already
RISING = by_gamma((0, 0.1, 0.05, 0.3, 0), 0.3, (1, 0.9, 0.8, 1, 0), (0.5, 1, 0.9, 1, 0))
FUSED = by_gamma((0.1, 0.3, 0.0, 1, 0), GARBAGE, (0.6, 0.6, 0.25, 0, 0))
SHARES = by_gamma((0.1, 0.1, 0.3, 0, 1), (0.2, 0.3, 0.2, 0, 2), (0.3, 0.2, 0.1, 0, 4), (0.9, 0.9, 0, 0, 3))
ORDERED = by_gamma((0, 0, 0, 0, 1), (0, 0, 1, 0, 1), (1, 1, 1, 0, 0), (1, 0, 1, 0, 0)).astype(bool)
# (token, component): of three values the order 1, 3, 1 has no rank correlation with 1, 2, 3; the third is not looked at
SORTED_TxC = np.array([[-1.0, 1, 1], [0, 3, 2], [1, 1, 3]])
UNSORTED_TxC = np.array([[1.0, 1, 1], [3, 3, 2], [1, 1, 3]])


@pytest.mark.parametrize(
    ("claim", "grids", "expected"),
    [
        (  # the smaller of the leads at both ends
            study.scale_picks_the_solution,
            {
                "wrong": wrong(
                    ood_43__symmetric=by_gamma((0.9, 0.8, 0.7, 0.1, 1), GARBAGE, (0.1, 0.0, 0.2, 0.0, 1)),
                    ood_43__reasoning=by_gamma((0.0, 0.1, 0.2, 0.2, 0), GARBAGE, (0.5, 0.9, 0.9, 0.9, 1)),
                )
            },
            (0.4, 0.7, 0.5, -0.1, 0),
        ),
        (  # from the smallest gamma to the best
            study.reasoning_rises,
            {"unseen": unseen(ood_43__reasoning=RISING)},
            (1.0, 0.9, 0.85, 0.7, 0.3),
        ),
        (  # crossings 0.725, 0.575, 0.575, beyond 0.8, below 0.3, less 0.4, 0.4, 0.575, below 0.3, beyond 0.8
            study.decay_moves_the_crossing,
            {
                "unseen": unseen(
                    ood_43__reasoning=(
                        by_gamma((0, 0, 0, 0, 1), (0, 0, 0, 0, 1), (0, 1, 1, 0, 1), (1, 1, 1, 0.4, 1)),
                        by_gamma((0, 0, 0, 1, 0), (1, 1, 0, 1, 0), (1, 1, 1, 1, 0), (1, 1, 1, 1, 0.4)),
                    )
                )
            },
            (0.325, 0.175, 0.0, 0.5, -0.5),
        ),
        (  # sqrt(40 10) / sqrt(4 9), sqrt(40 10) / sqrt(5 20), 40 / cbrt(4 16 1), 1, sqrt(10 40) / sqrt(2 2)
            study.stable_rank_falls,
            {
                "unseen": unseen(
                    ood_43__reasoning=SPLIT,
                    rank__stable=by_gamma((40, 40, 40, 1, 10), (10, 10, 4, 1, 40), (4, 5, 16, 1, 2), (9, 20, 1, 1, 2)),
                )
            },
            (20 / 6, 2.0, 10.0, 1.0, 10.0),
        ),
        (
            study.condensation_rises,
            {
                "unseen": unseen(condensation__fraction_above=SHARES),
            },
            [1.0, 0.8, -1.0, 0.0, 0.8],
        ),
        (  # two components, of 0.5 and 0.2 of the variance: one sorts the tokens where `ORDERED`, the other never does
            study.embeddings_are_ordered,
            {
                "unseen": unseen(
                    ood_43__reasoning=SPLIT,
                    embedding__order=by_gamma(0, 0, 0, 0),
                    embedding__explained=np.broadcast_to([0.5, 0.2, GARBAGE], (5, 4, 3)),
                    embedding__components=np.where(ORDERED[..., None, None], SORTED_TxC, UNSORTED_TxC),
                )
            },
            (0.5, 0.25, 0.5, 0, -0.5),
        ),
        (
            study.circuits_differ,
            {
                "wrong": named(
                    flow__symmetric_score=by_gamma((0.9, 0.5, 0.6, 0.9, 0.3), 0.9, (0.1, 0.1, 0.1, 0.5, 0)),
                    flow__reasoning_score=by_gamma((0.1, 0.1, 0.1, 0.1, 0.3), 0.1, (0.4, 0.9, 0.9, 0.4, 0)),
                )
            },
            (0.3, 0.4, 0.5, -0.1, NAN),
        ),
        (
            study.fused_vectors_agree,
            {"wrong": named(fused__contrast=FUSED, fused__equal=FUSED + 0.2, fused__other=FUSED * 0 + 0.2)},
            (0.5, 0.3, 0.25, -1, NAN),
        ),
    ],
    ids=lambda value: value.id if isinstance(value, claims.Claim) else "",
)  # fmt: skip
def test_claims_by_hand(claim, grids, expected):
    # at most eight roundings of numbers up to 40, through logarithms for ranks
    np.testing.assert_allclose(measured(claim.id, **grids).values_S, expected, rtol=0, atol=64 * 40 * EPS)


@pytest.mark.parametrize("claim", [study.stable_rank_falls, study.embeddings_are_ordered], ids=lambda claim: claim.id)
@pytest.mark.parametrize("reasoning", [0.0, 1.0])
def test_comparison_across_the_crossing_needs_rows_on_both_sides(claim, reasoning):
    values = by_gamma(1, 2, 3, 4)
    made = unseen(
        ood_43__reasoning=by_gamma(*[reasoning] * 4), rank__stable=values, embedding__order=values,
        embedding__explained=np.full((5, 4, 3), 0.1), embedding__components=np.zeros((5, 4, 3, 3)),
    )  # fmt: skip
    assert np.isnan(measured(claim.id, unseen=made).values_S).all()


def test_frozen_weights_of_a_diverged_row_count_on_neither_side():
    made = unseen(ood_43__reasoning=by_gamma(0, 0.1, 0.9, 1), rank__stable=by_gamma(16.0, 8, 4, 2))
    made.diverge(7, gamma=UNSEEN_GAMMAS[0])
    # memory: only 8 is left; reasoning: sqrt(4 * 2)
    np.testing.assert_allclose(measured(study.stable_rank_falls.id, unseen=made).values_S, 8 / np.sqrt(8), rtol=1e-12)


def accuracies(seen, reasoning, symmetric):
    """Of one rate: C1 looks at all of them. Of the larger decay, which it leaves out, nothing."""
    made = Grid({"weight_decay": 0.01}, gamma=WRONG_GAMMAS, weight_decay=(0.01, 1.0), learning_rate=(1e-3,))
    for name, values in {
        "test_seen.accuracy": seen,
        "ood_43.reasoning": reasoning,
        "ood_43.symmetric": symmetric,
    }.items():
        made.put(name, peaked(values))
    return made


def test_c1_is_the_worst_named_row_of_each_seed_over_all_variants():
    seen = by_gamma((0.2, 0.995, 1, 1, 1), 1, (1, 0.991, 1, 1, 1))
    reasoning, symmetric = by_gamma((0.1, 0.9, 0.9, 0, 0), 0, 0.5), by_gamma((0.3, 0, 0, 0, 0), 1, 0.2)
    first = accuracies(seen, reasoning, symmetric)  # the row with 0.2 is named after neither
    np.testing.assert_array_equal(measured(study.seen_pairs_generalize.id, wrong=first).values_S, [1, 0.991, 1, 1, 1])
    second = accuracies(by_gamma(1, (1, 1, 0.9, 1, 1), 1), by_gamma(1, 1, 1), by_gamma(0, 0, 0))
    for grids in ({"a": first, "b": second}, {"a": second, "b": first}):
        np.testing.assert_array_equal(measured(study.seen_pairs_generalize.id, **grids).values_S, [1, 0.991, 0.9, 1, 1])
    symmetric[0, 0] = 0.5  # now it is
    named = measured(study.seen_pairs_generalize.id, wrong=accuracies(seen, reasoning, symmetric))
    assert named.values_S[0] == 0.2


def test_c1_lacks_a_seed_without_a_named_row():
    reasoning = by_gamma(0, 0, (0.49, 1, 1, 1, 1))
    made = accuracies(by_gamma(1, 1, 1), reasoning, by_gamma(0, 0, 0))
    np.testing.assert_array_equal(measured(study.seen_pairs_generalize.id, wrong=made).values_S, [NAN, 1, 1, 1, 1])


def everything():
    """Both variants with every variable, all claims within reach."""
    late, early = by_gamma(0, 0, 1, 1), by_gamma(0, 1, 1, 1)
    both = unseen(
        ood_43__reasoning=(late, early), ood_43__symmetric=(late * 0, late * 0), condensation__fraction_above=late,
        test_seen__accuracy=(late * 0 + 1, late * 0 + 1), rank__stable=30 - 29 * late, embedding__order=late,
        embedding__explained=np.broadcast_to([0.5, 0.2, GARBAGE], (5, 4, 3)),
        embedding__components=np.where(late[..., None, None] > 0, SORTED_TxC, UNSORTED_TxC),
    )  # fmt: skip
    both.put("condensation.fraction_above", by_gamma(0.1, 0.2, 0.3, 0.4), "snapshot")
    ends = by_gamma(0, 0.4, 1)
    other = wrong(
        ood_43__reasoning=ends, ood_43__symmetric=1 - ends, test_seen__accuracy=ends * 0 + 1,
        flow__reasoning_score=ends, flow__symmetric_score=1 - ends, fused__contrast=ends, fused__equal=ends,
        fused__other=ends * 0,
    )  # fmt: skip
    both.dataset, other.dataset = (made.dataset.isel(learning_rate=[1]) for made in (both, other))
    return Runs({"unseen": both.dataset, "wrong": other.dataset}, {"weight_decay": 0.01})


def test_all_claims_hold_where_the_papers_are_right():
    rows = claims.table(study.STUDY.claims, everything(), "command")["claims"]
    assert {row["id"]: row["verdict"] for row in rows} == dict.fromkeys([row["id"] for row in rows], claims.HOLDS)


@pytest.mark.parametrize("variant", ["unseen", "wrong"])
def test_missing_variant_is_named_and_leaves_the_claims_of_the_other(variant):
    (other,) = {"unseen", "wrong"} - {variant}
    of_wrong = {"C2", "C7", "C8"}
    for row in claims.table(study.STUDY.claims, everything().where(lambda name, run: name == variant), "c")["claims"]:
        lacking = row["id"] != "C1" and (row["id"] in of_wrong) == (other == "wrong")
        assert (row["note"] == f"This run lacks variant {other}.") == lacking, row["id"]


# --- presets ---

PRESETS = json.loads(Path(__file__).with_name("composition_presets.json").read_text())


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_what_its_kept_results_were_trained_by(preset):
    """`cpu_full` was named `cpu` when the results in docs were made; options that are newer than these are free."""

    def known(now, then):
        return {name: known(now[name], of) if isinstance(of, dict) else now[name] for name, of in then.items()}

    now = configs.to_json(config.get_config(preset))
    assert now["preset"] == preset and known(now, PRESETS[preset]) == PRESETS[preset]
    assert now["variants"] == PRESETS[preset]["variants"]


def test_demo_is_the_published_grid_of_decays_around_the_gammas_where_its_size_turns():
    (demo,) = configs.variants(config.get_config("cpu")).values()
    assert demo.grid.weight_decay == tuple(phase.PUBLISHED.weight_decay.values)
    assert len(demo.grid.gamma) == phase.PUBLISHED.sizes["gamma"] and len(demo.grid.seed) == claims.FEWEST_SEEDS
    assert demo.task.setting == "34_unseen"


@pytest.mark.parametrize(("preset", "first", "last"), [("cpu", 30, 49), ("cpu_full", 40, 79)])
def test_embedding_is_of_the_middle_half_of_the_keys(preset, first, last):
    experiment = configs.experiment(configs.variants(config.get_config(preset))["unseen"])
    (measure,) = [measure for measure in study.measures(experiment) if measure.name == "embedding"]
    assert measure.coords["token"] == tuple(range(first, last + 1))


# --- the phase picture ---


def phase_run(seen, reasoning, alike):
    """Alike at both decays."""
    made = Grid(
        {"weight_decay": 0.01}, {"model": {"n_layers": 2, "d_model": 32}, "task": {"setting": "34_unseen"}},
        gamma=UNSEEN_GAMMAS, weight_decay=(0.01, 1.0), learning_rate=(1e-3,),
    )  # fmt: skip
    untrained = np.stack([np.ones_like(alike), alike])  # which answers everything alike
    for name, values in zip(phase.SCORES, (peaked(seen), peaked(reasoning), untrained), strict=True):
        for decay in (0.01, 1.0):
            made.put(name, values, weight_decay=decay)
    return made


def test_phases_stand_beside_the_published_ones_and_diverged_rows_are_counted():
    seen = by_gamma(0.3, 1, 1, 1)
    reasoning = by_gamma(0, 0.1, 0.2, (1, 0.9, 0.8, 0.9, 0.4))
    made = phase_run(seen, reasoning, by_gamma(0.2, 0.2, 0.9, 1.0))
    made.diverge(7, gamma=0.3, weight_decay=0.01, seed=2).diverge(9, gamma=0.8, weight_decay=1.0)
    ours, theirs = study.phases(made.run()).figure.axes
    four = ["1", "2 w/o", "2 w", "3\n4 of 5"]
    assert [text.get_text() for text in ours.texts] == ["1\n1/5 ×", *four[1:], *four[:3], "5/5 ×"]
    assert [text.get_text() for text in theirs.texts[:9]] == ["1", "2 w/o", "2 w/o", "2 w", *["3"] * 5]
    assert ours.get_title("left") == "ours: 2 layers of width 32, 5 seeds"
    assert theirs.get_title("left") == "published: 10 layers of width 640, 3 seeds"


def test_phase_picture_is_the_first_of_the_report_and_says_what_it_lacks():
    made = phase_run(*[by_gamma(0, 0, 1, 1)] * 3).put("ood_43.symmetric", by_gamma(0, 0, 0, 0))
    first, *_ = study.sections(Runs({"unseen": made.dataset}, {"weight_decay": 0.01}))
    assert first.pictures[0].name == "unseen-phases"
    without = Runs({"unseen": made.dataset.drop_vars("swap.commutativity")})["unseen"]
    with pytest.raises(MissingData, match=r"swap\.commutativity"):
        study.phases(without)
    assert "phases (this run lacks swap.commutativity)" in draw_section("t", "", without, (study.phases,)).text
