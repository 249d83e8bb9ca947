"""Every claim on grids written by hand, on which the answer is known, and the page of such runs."""

import functools

import numpy as np
import pytest
import synthetic
from synthetic import Grid

from lab import claims
from lab import config as configs
from lab.configs import base
from lab.configs import icl_dual as config
from lab.models import VectorAttention
from lab.report.page import draw_section
from lab.runs import MissingData, Runs
from lab.studies import icl_dual as study
from lab.studies.icl_dual import page, variants
from lab.tasks import Induction

measured = functools.partial(synthetic.measured, study.STUDY)
GAMMAS = (0.3, 0.5, 0.9)
STEPS = (0, 50, 100, 200)
FEATURES = (100, 1000, 10_000)
USUAL = 1  # place of gamma 0.5
NO_CHANGE = dict(alpha=0.0, beta=0.0, n_negatives=1, augment="none")


def alone(values, *shape):
    """(seed, gamma, ...): the numbers at the usual gamma, garbage at others."""
    values = np.asarray(values, float)
    made = np.full((5, len(GAMMAS), *values.shape[1:]), synthetic.GARBAGE)
    made[:, USUAL] = np.broadcast_to(values, (5, *values.shape[1:]))
    return made


def layer(valid, test, rank=(2.0,) * 5, gap=1e-7, **change):
    """A variant of linear regression; `valid`, `test`: errors (seed,)."""
    made = Grid(config={"model": NO_CHANGE | change}, usual=variants.USUAL, steps=STEPS, gamma=GAMMAS)
    made.put("valid.loss", alone(valid)).put("test.loss", alone(test))
    made.put("dual.rank", np.stack([alone((4.0,) * 5)] * 3 + [alone(rank)]), "snapshot")
    made.put("dual.gap", alone((gap,) * 5), "snapshot")
    path = np.tile([0.9, 0.5, 2 * gap], (5, 1))
    return made.put("dual.path", alone(path), "snapshot", {"demonstration": [0, 1, 2]})


def plain(test=(0.5, 0.5, 0.5, 0.5, 0.4), **options):
    made = layer((0.5,) * 5, test, **options)
    test = np.array(test)
    made.put("test.ridge", alone((0.0,) * 5)).put("test.step", alone((0.3,) * 5))
    made.put("test.explained", alone(1 - test / 0.8))
    error = np.array([0.7 / np.array(FEATURES)] * 5)
    error[1] *= [1, 1, 3]
    made.put("features.error", alone(error), None, {"features": FEATURES})
    made.put("features.predicted", alone([0.7 / np.array(FEATURES)] * 5), None, {"features": FEATURES})
    return made.put("dual.length", alone((9.0,) * 5), "snapshot")


def test_the_layer_is_one_step_where_the_worst_route_of_every_variant_is():
    found = measured("D1", plain=plain(), negative_5_5=layer((0.3,) * 5, (0.3,) * 5, gap=4e-6, beta=0.5))
    np.testing.assert_allclose(found.values_S, 8e-6, rtol=1e-9)
    assert found.verdict == claims.HOLDS and "0.50 away" in found.note
    assert measured("D1", plain=plain(gap=6e-6)).verdict == claims.FAILS


def test_random_features_slope_and_worst_ratio():
    np.testing.assert_allclose(measured("D2a", plain=plain()).values_S, [-1, -1 + np.log10(3) / 2, -1, -1, -1])
    np.testing.assert_allclose(measured("D2b", plain=plain()).values_S, [1, 3, 1, 1, 1])


@pytest.mark.parametrize("id", ["D3a", "D3b", "D3c"])
def test_setting_is_chosen_on_valid_and_judged_on_test_seed_by_seed(id):
    name, one, other = {
        "D3a": ("regularized", dict(alpha=1.0), dict(alpha=-1.0)),
        "D3b": ("augmented", dict(augment="serial"), dict(augment="parallel")),
        "D3c": ("negative", dict(beta=1.0), dict(beta=0.5)),
    }[id]
    runs = {
        f"{name}_one": layer((0.3,) * 5, (0.5, 0.4, 0.6, 0.25, 0.4), **one),
        f"{name}_other": layer((0.4,) * 5, (0.1,) * 5, **other),  # better, but not on `valid`
    }
    found = measured(id, plain=plain(), **runs)
    np.testing.assert_allclose(found.values_S, [1, 0.8, 1.2, 0.5, 1])
    assert found.verdict == claims.OPEN
    with pytest.raises(MissingData, match=rf"a variant {name}_\*"):
        variants.best(synthetic.runs(study.STUDY, plain=plain()), name)


def test_diverged_settings_are_not_chosen():
    lost = layer((0.1,) * 5, (0.1,) * 5, alpha=2.0)
    for seed in range(3):
        lost.diverge(50, gamma=0.5, seed=seed)
    runs = synthetic.runs(study.STUDY, regularized_lost=lost, regularized_one=layer((0.6,) * 5, (0.6,) * 5, alpha=1.0))
    assert variants.setting(variants.best(runs, "regularized")) == "alpha 1"


def test_error_is_between_ridge_and_the_answer_nothing():
    found = measured("D4", plain=plain())
    np.testing.assert_allclose(found.values_S, [0.375, 0.375, 0.375, 0.375, 0.5])
    assert found.verdict == claims.HOLDS and "one gradient step of the best size 0.300" in found.note
    assert measured("D4", plain=plain(test=(0.9,) * 5)).verdict == claims.FAILS


def test_collapse_and_its_remedy():
    ranks = (1.0, 1.5, 2.0, 2.5, 1.2)
    negative = layer((0.3,) * 5, (0.3,) * 5, rank=(2.0,) * 5, beta=0.5)
    np.testing.assert_allclose(measured("D5a", plain=plain(rank=ranks)).values_S, np.array(ranks) / 4)
    found = measured("D5b", plain=plain(rank=ranks), negative_5_1=negative)
    np.testing.assert_allclose(found.values_S, 2 / np.array(ranks))


def test_collapse_is_of_no_decay_and_the_note_says_what_the_others_did():
    made = Grid(config={"model": NO_CHANGE}, usual=variants.USUAL, steps=STEPS, gamma=GAMMAS, weight_decay=(0.0, 1.0))
    for decay, end in ((0.0, 3.0), (1.0, 1.5)):
        ranks = np.stack([alone((4.0,) * 5)] * 3 + [alone((end,) * 5)])
        made.put("dual.rank", ranks, "snapshot", weight_decay=decay)
    found = measured("D5a", plain=made)
    np.testing.assert_allclose(found.values_S, 0.75)
    assert found.note == "From 4.00 to 3.00. With weight decay 1 to 1.50."


def test_record_crosses_init_rates_with_decays():
    grid = configs.variants(base.load(config, "record"))["plain"].grid
    assert (len(grid.gamma), len(grid.weight_decay), len(grid.seed)) == (3, 2, 8)
    assert all(usual in grid[axis] for axis, usual in variants.USUAL.items())


def induction(accuracy_TxG, seeds=None):
    """Accuracies over time by gamma, the same of all seeds unless (time, seed, gamma) are given."""
    made = Grid(usual=variants.USUAL, steps=STEPS, gamma=GAMMAS)
    values = np.repeat(np.array(accuracy_TxG, float)[:, None], 5, axis=1) if seeds is None else seeds
    heads = {"layer": [0, 1], "head": [0]}
    return made.put("test.accuracy", values).put("heads.induction", np.full((5, 3, 2, 1), 0.8), "snapshot", heads)


LEARNS = [(0, 0, 0), (0.5, 0.25, 0), (1, 0.75, 0.25), (1, 1, 1)]


def test_one_layer_at_its_best_gamma_and_two_layers_at_the_usual():
    np.testing.assert_array_equal(
        measured("D6a", induction_1=induction([(0, 0, 0)] * 3 + [(0.3, 0.6, 0.2)])).values_S, 0.6
    )
    found = measured("D6b", induction_2=induction([(0, 0, 0)] * 3 + [(0.3, 0.97, 0.2)]))
    np.testing.assert_array_equal(found.values_S, 0.97)
    assert found.note == "Highest induction score of a head 0.80."


def test_plateaus_are_measured_to_where_curves_cross():
    found = measured("D7a", induction_2=induction(LEARNS))
    np.testing.assert_allclose(found.values_S, 1)
    assert found.note == "Steps to accuracy 0.5: 50 at gamma 0.3, 75 at gamma 0.5, 133 at gamma 0.9."
    never = induction([(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 0)])  # the last never: longest of all
    found = measured("D7a", induction_2=never)
    np.testing.assert_allclose(found.values_S, 1)
    assert found.note.endswith("75 at gamma 0.5, inf at gamma 0.9 (5 of 5 seeds never).")
    made = plain()
    made.put("test.explained", np.repeat(np.array(LEARNS, float)[::-1][:, None], 5, axis=1)[::-1])
    np.testing.assert_allclose(measured("D7b", plain=made).values_S, 1)


def test_abruptness_is_the_rise_over_the_plateau():
    found = measured("D8", induction_2=induction(LEARNS))
    np.testing.assert_allclose(found.values_S, 1)  # 0.25 at 50, 0.75 at 100
    assert measured("D8", induction_2=induction([(0, 0, 0)] * 4)).verdict == claims.OPEN


def test_page_of_all_variants_draws_every_picture():
    grids = {
        "plain": plain(), "regularized_5": layer((0.5,) * 5, (0.5,) * 5, alpha=0.5),
        "augmented_serial": layer((0.5,) * 5, (0.5,) * 5, augment="serial"),
        "negative_5_5": layer((0.3,) * 5, (0.3,) * 5, beta=0.5, n_negatives=5),
        "induction_1": induction([(0, 0, 0)] * 4), "induction_2": induction(LEARNS),
    }  # fmt: skip
    found = page.sections(synthetic.runs(study.STUDY, **grids))
    assert [picture.name for section in found for picture in section.pictures] == [
        "errors", "steps", "collapse", "features", "plain-training", "layers", "plateaus",
    ]  # fmt: skip
    assert not [section for section in found if "Not drawn" in section.text]
    bare = Grid(config={"model": NO_CHANGE}, gamma=GAMMAS).run().dataset
    lacking = draw_section("T", "", Runs({"plain": bare}), (page.errors,))
    assert "Not drawn: errors" in lacking.text


def test_variants_are_named_after_what_they_change():
    for preset in ("cpu", "record"):
        made = configs.variants(base.load(config, preset))
        for name, variant in made.items():
            family = name.partition("_")[0]
            model = variant.model
            if family == "induction":
                assert (variant.task.family, f"induction_{model.n_layers}") == ("induction", name)
                continue
            changed = {key for key, usual in NO_CHANGE.items() if model[key] != usual}
            expected = {"plain": set(), "regularized": {"alpha"}, "augmented": {"augment"}, "negative": {"beta"}}[
                family
            ]
            assert changed - {"n_negatives"} == expected
    assert made["regularized_m5"].model.alpha == -0.5 and made["negative_1_15"].model.beta == 0.1


def test_presets_have_the_sizes_that_they_say():
    made = configs.variants(base.load(config, "cpu"))
    experiment = configs.experiment(made["plain"])
    assert isinstance(experiment.model, VectorAttention) and experiment.task.n_features + 1 == experiment.model.d_in
    task = configs.experiment(made["induction_2"]).task
    assert isinstance(task, Induction) and f"{task.positions_accuracy:.2f}" == "0.27"  # as notes and captions say
