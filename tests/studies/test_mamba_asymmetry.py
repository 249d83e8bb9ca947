"""Every claim on grids written by hand, on which the answer is known. Arrays are (seed, gamma)."""

import functools

import numpy as np
import pytest
import synthetic
from synthetic import Grid, by_gamma

from lab import claims
from lab import config as configs
from lab.configs import mamba_asymmetry as config
from lab.report.page import draw_section
from lab.runs import MissingData, Runs
from lab.studies import mamba_asymmetry as study
from lab.tasks import Composition, InverseMatching, SymmetricComposition

measured = functools.partial(synthetic.measured, study.STUDY)
NAN = np.nan
EPS = 2.0**-52
THREE = (0.3, 0.5, 1.0)


def grid(gammas, **variables):
    made = Grid(config={"train_size": 10_000}, gamma=gammas)
    for name, values in variables.items():
        name = name.replace("__", ".")
        if name == "taps.largest":
            made.put(name, values, "snapshot", {"layer": [0, 1]})
        else:
            made.put(name, values, None if name.split(".")[0] in ("cut", "substitution") else "step")
    return made


def depth(composite, symmetric=0.0, seen=1.0, **variables):
    """A variant of pairs of anchors; `seen`: (seed,), accuracy on the pairs of training at new keys."""
    variables["test_seen__accuracy"] = by_gamma(*[seen] * 3)
    return grid(THREE, ood_43__reasoning=composite, ood_43__symmetric=by_gamma(*[symmetric] * 3), **variables)


@pytest.mark.parametrize(
    ("claim", "grids", "expected"),
    [
        (  # the worse gamma; seed 3 does not fit its training set at one of them
            study.cannot_match_backwards,
            {
                "inverse_mamba": grid(
                    (0.5, 0.9),
                    train__accuracy=by_gamma((1, 1, 1, 0.5, 1), 0.95),
                    test__accuracy=by_gamma((0.21, 0.2, 0.15, 0.2, 0.2), (0.2, 0.17, 0.2, 0.2, 0.2)),
                )
            },
            (0.01, 0.03, 0.05, NAN, 0.0),
        ),
        (
            study.a_path_past_the_convolution_matches,
            {"inverse_modified": grid((0.5, 0.9), test__accuracy=by_gamma((1, 0.99, 0.5, 1, 1), 0.999))},
            (0.999, 0.99, 0.5, 0.999, 0.999),
        ),
        (
            study.free_taps_are_not_symmetric,
            {"mamba_5": depth(by_gamma(0, 0, 1)).put("ood_43.symmetric", by_gamma(1, 1, (0, 0.01, 0.02, 0.5, 0)))},
            (0, 0.01, 0.02, 0.5, 0),
        ),
        (
            study.equal_taps_are_symmetric,
            {"ones": depth(by_gamma(0, 0, 0)).put("ood_43.symmetric", by_gamma(0, 0, (0.9, 0.7, 1, 1, 0)))},
            (0.9, 0.7, 1, 1, 0),
        ),
        (
            study.small_weights_compose,
            {"mamba_5": depth(by_gamma(0, 0, (0.7, 0.8, 0.9, 0.4, 1)))},
            (0.7, 0.8, 0.9, 0.4, 1),
        ),
        (
            study.large_weights_do_not,
            {
                "mamba_2": depth(by_gamma((0.1, 0, 0, 0, 0), 1, 1)),
                "mamba_5": depth(by_gamma((0, 0.2, 0, 0, 0.3), 1, 1)),
            },
            (0.1, 0.2, 0, 0, 0.3),
        ),
        (
            study.composing_rises_with_gamma,
            {"mamba_2": depth(by_gamma(0, (0.5, 0.5, 0.5, 2, 0.5), 1)), "mamba_5": depth(by_gamma(0, 0.1, 0.9))},
            (1, 1, 1, 0.5, 1),
        ),
        (
            study.the_state_carries_nothing,
            {"mamba_2": depth(by_gamma(0, 0, 0), cut__agreement=by_gamma(0, 0, (1, 0.99, 1, 0.9, 1)))},
            (1, 0.99, 1, 0.9, 1),
        ),
        (
            study.the_convolution_carries_the_pair,
            {
                "mamba_5": depth(
                    by_gamma(0, 0, 0),
                    substitution__collapse=by_gamma(0, 0, (1, 0.99, 1, 0.9, 1)),
                    substitution__before=by_gamma(0, 0, 0.1),
                )
            },
            (1, 0.99, 1, 0.9, 1),
        ),
        (  # the larger of two layers
            study.taps_stay_apart,
            {"mamba_2": depth(by_gamma(0, 0, 0), taps__largest=np.tile([0.1, 0.3], (5, 3, 1)))},
            (0.3, 0.3, 0.3, 0.3, 0.3),
        ),
        (
            study.positions_make_it_symmetric,
            {"positions": depth(by_gamma(0, 0, 0)).put("ood_43.symmetric", by_gamma(0, (0.8, 0.9, 0.7, 0, 1), 0))},
            (0.8, 0.9, 0.7, 0, 1),
        ),
    ],
    ids=lambda value: value.id if isinstance(value, claims.Claim) else "",
)  # fmt: skip
def test_claims_by_hand(claim, grids, expected):
    # one difference of numbers up to one
    np.testing.assert_allclose(measured(claim.id, **grids).values_S, expected, rtol=0, atol=8 * EPS)


def test_reversed_pairs_are_asked_for_when_their_mirror_is_known_and_the_worst_moment_counts():
    made = Grid(steps=(0, 50, 100), gamma=(0.5,))
    known = np.array([[0, 0, 0, 0, 0], [0.99, 0.5, 1, 1, 0.9], [1, 1, 1, 1, 0.98]])[..., None]
    unseen = np.array([[1, 1, 1, 1, 1], [0.1, 0.9, 0, 0, 0], [0.0, 0.02, 0, 0.3, 0]])[..., None]
    made.put("test_34.accuracy", known).put("ood_43.accuracy", unseen)
    expected = [0.1, 0.02, 0, 0.3, NAN]
    np.testing.assert_array_equal(measured("S3", symmetric=made).values_S, expected)


LEARNT = (1, 0.9, 0.89, 0.05, 0.95)


@pytest.mark.parametrize(
    ("id", "grids"),
    [
        ("S2a", {"mamba_5": depth(by_gamma(0, 0, 0), seen=LEARNT)}),
        ("S4b", {"mamba_2": depth(by_gamma(0, 0, 0)), "mamba_5": depth(by_gamma(0, 0, 0), seen=LEARNT)}),
        ("S5a", {"mamba_5": depth(by_gamma(0, 0, 0), seen=LEARNT, cut__agreement=1)}),
        ("S5b", {"mamba_5": depth(by_gamma(0, 0, 0), seen=LEARNT, substitution__collapse=1, substitution__before=1)}),
        ("S6", {"mamba_2": depth(by_gamma(0, 0, 0), seen=LEARNT, taps__largest=np.full((5, 3, 2), 0.1))}),
    ],
)
def test_what_constant_answers_and_untrained_taps_do_too_is_asked_of_seeds_that_have_learnt(id, grids):
    found = measured(id, **grids)
    np.testing.assert_array_equal(np.isnan(found.values_S), [False, False, True, True, False])
    assert found.verdict != claims.HOLDS


def test_controls_stand_in_the_note():
    made = grid((0.5,), test__accuracy=by_gamma(1))
    found = measured("S1b", inverse_modified=made, inverse_positions=grid((0.5,), test__accuracy=by_gamma(0.21)))
    assert found.note == "Beside it: positions 0.21."


def test_what_positions_do_stands_beside_the_same_model_without():
    found = measured("S7", positions=depth(by_gamma(0, 0.1, 0), 0.8), mamba_2=depth(by_gamma(0, 0, 0), 0.02))
    assert found.note == "Composite accuracy 0.10. Symmetric less that without positions: 0.78."


def test_the_size_of_the_training_set_stands_beside_its_accuracy():
    found = measured("S1a", inverse_mamba=grid((0.5,), train__accuracy=by_gamma(1), test__accuracy=by_gamma(0.2)))
    assert "1.00 on 10,000 training sequences (published 80,000)" in found.note


def test_one_depth_or_two_gammas_decide_no_phase_diagram():
    assert "two depths" in measured("S4b", mamba_5=depth(by_gamma(0, 0, 1))).note
    two = {name: grid((0.3, 1.0), ood_43__reasoning=by_gamma(0, 1)) for name in ("mamba_2", "mamba_5")}
    assert "a third gamma" in measured("S4c", **two).note


# --- presets ---


@pytest.mark.parametrize("preset", ["smoke", "cpu", "record", "gpu", "paper"])
def test_fillers_are_what_convolutions_alone_reach(preset):
    for name, variant in configs.variants(config.get_config(preset)).items():
        experiment = configs.experiment(variant)
        kind = (
            InverseMatching
            if name.startswith("inverse_")
            else SymmetricComposition
            if name == "symmetric"
            else Composition
        )
        assert type(experiment.task) is kind, name
        if kind is InverseMatching:
            assert experiment.task.n_fillers == 3 * experiment.model.n_layers
        if name.startswith("mamba_"):
            assert experiment.model.n_layers == int(name[-1]) and experiment.model.conv == "learned"


def test_paper_has_the_published_sizes():
    variants = configs.variants(config.get_config("paper"))
    assert {variants[f"mamba_{depth}"].model.d_model for depth in range(2, 8)} == {32}
    assert {variant.model.get("d_state", 128) for variant in variants.values()} == {128}
    assert variants["mamba_5"].grid.gamma == study.GAMMAS and variants["inverse_mamba"].train_size == 80_000
    assert all(np.shape(table) == (len(study.LAYERS), len(study.GAMMAS)) for table in study.PUBLISHED.values())


# --- the diagram ---


def test_diagram_stands_beside_the_published_one_and_leaves_blank_what_was_not_trained():
    runs = Runs({f"mamba_{n}": depth(by_gamma(0.1, 0.2, 0.9)).dataset for n in (2, 5)})
    shown = [ax for ax in study.diagram(runs).figure.axes if ax.images]
    ours, theirs = (np.ma.filled(ax.images[0].get_array(), NAN) for ax in shown)
    assert [ax.get_title("left") for ax in shown] == ["Mamba, ours", "Mamba, published"]
    np.testing.assert_allclose(ours[0, [2, 4, 9]], [0.1, 0.2, 0.9])
    assert np.isfinite(ours).sum() == 6 and theirs[3, 9] == 0.72


def test_models_of_inverse_matching_stand_beside_each_other():
    def made(test):
        over_time = np.stack([by_gamma(0), by_gamma(test)])
        return Grid(gamma=(0.5,)).put("train.accuracy", over_time).put("test.accuracy", over_time).dataset

    runs = Runs({"inverse_mamba": made((0.1, 0.2, 0.3, 0.2, 0.2)), "inverse_modified": made(1)})
    first, *_ = study.sections(runs)
    _, test = first.pictures[0].figure.axes
    assert {line.get_gid(): line.get_ydata()[-1] for line in test.lines} == {"mamba": 0.2, "modified": 1.0}


def test_reads_are_of_the_last_layer_and_taps_of_the_first_at_the_smallest_and_the_largest_gamma():
    made = grid((0.3, 0.5, 1.0))
    read, cosine = np.arange(5 * 3 * 2 * 9.0).reshape(5, 3, 2, 3, 3), np.arange(5 * 3 * 2 * 16.0).reshape(5, 3, 2, 4, 4)
    made.put("mixing.read", read, None, {"layer": [1, 2], "query": range(3), "position": range(3)})
    made.put("taps.cosine", cosine, "snapshot", {"layer": [1, 2], "tap": range(4), "other_tap": range(4)})
    for draw, values in ((study.reads, read[0, ::2, 1]), (study.taps, cosine[0, ::2, 0])):
        shown = [ax for ax in draw(made.run()).figure.axes if ax.get_title("left")]
        assert [ax.get_title("left") for ax in shown] == ["γ = 0.3", "γ = 1"]
        np.testing.assert_array_equal([ax.images[0].get_array() for ax in shown], values)


def test_pictures_say_what_they_lack():
    run = Runs({"mamba_2": depth(by_gamma(0, 0, 1)).dataset})["mamba_2"]
    with pytest.raises(MissingData, match=r"flow\.pattern"):
        study.flow(run)
    assert "taps (this run lacks taps.cosine)" in draw_section("t", "", run, (study.taps,)).text
