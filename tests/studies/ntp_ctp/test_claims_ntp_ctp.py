"""Every claim on grids written by hand, on which the answer is known; and every preset is built and measured."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import synthetic
from synthetic import Grid

from lab import config as configs
from lab.claims import HOLDS, OPEN
from lab.configs import base
from lab.engine import init_from
from lab.objective import CTP, NTP
from lab.runs import MissingData
from lab.studies.ntp_ctp import STUDY, by_task, claims, equal_loss, transfer
from lab.studies.ntp_ctp.claims import KNOWN, SCORES
from lab.studies.ntp_ctp.measures import measures
from lab.studies.ntp_ctp.tuning import tuned
from lab.tasks import Finetune

STEPS = (0, 100, 200, 400)
NEVER, NAN = math.inf, math.nan
AXES = {
    "ntp_weight": (CTP, NTP), "gamma": (0.5, 0.8), "weight_decay": (0.01, 1.0), "label_noise": (0.0, 0.2),
    "context_noise": (0.0, 0.1),
}  # fmt: skip


def grid(**axes):
    """A trained variant of which nothing is known."""
    return Grid(claims.USUAL, steps=STEPS, **(AXES | axes))


def put(made, name, ctp, ntp, **how):
    """Sets a variable where claims read it, of gamma 0.5 unless told otherwise; `how` is of `Grid.put`."""
    for objective, values in ((CTP, ctp), (NTP, ntp)):
        if values is not None:
            made.put(name, values, **({"gamma": 0.5} | how), ntp_weight=objective)
    return made


def answered(ctp, ntp, made=None, **at):
    """With accuracies out of distribution at the last step."""
    return put(made or grid(), "ood.accuracy", ctp, ntp, **at)


measure = functools.partial(synthetic.measured, STUDY)


def values(id, **grids):
    return measure(id, **grids).values_S.tolist()


def learning(*starts):
    """(step, seed) of an accuracy that is 1 from a step on, a step for every seed."""
    return np.array([[float(step >= start) for start in starts] for step in STEPS])


def by_step(*numbers):
    """(step, seed), the same for every seed."""
    return np.array(numbers, float)[:, None]


def learnt(ctp, ntp):
    return put(grid(), "train.accuracy", ctp, ntp)


def test_n1_is_a_ratio_of_first_evaluations_and_censored_rows_count_all_steps():
    made = learnt(learning(100, 200, 100, 100, NEVER), learning(200, 100, NEVER, 100, NEVER))
    np.testing.assert_allclose(values("N1", a=made), [2, 0.5, 4, 1, np.nan])  # neither: nothing to compare
    almost = learnt(0.949 + 0.001 * learning(*[100] * 5), learning(*[200] * 5))
    assert values("N1", a=almost) == pytest.approx([2] * 5)  # 0.95 is enough


def test_row_that_diverged_is_not_slow():
    made = learnt(learning(*[100] * 5), learning(*[100] * 5)).diverge(150, seed=1, ntp_weight=NTP)
    np.testing.assert_array_equal(values("N1", a=made), [1, np.nan, 1, 1, 1])


def test_n2_pools_tasks_and_says_what_each_has():
    easy, hard = answered([0.1, 0.2, 0.3, 0.3, 0.3], 0.5), answered(0.4, [0.3, 0.3, 0.5, 0.3, 0.3])
    found = measure("N2", easy=easy, hard=hard)
    assert found.values_S == pytest.approx([0.15, 0.1, 0.15, 0.05, 0.05]) and found.verdict == HOLDS
    assert found.note == "easy 0.20 [0.20, 0.40]; hard -0.10 [-0.10, 0.10]."


def test_tasks_without_the_data_or_with_it_in_no_seed_do_not_count():
    diverged = answered(0.1, 0.9).diverge(7)
    found = measure("N2", a=answered(0.1, 0.9), b=grid(), lone=answered(None, 0.9, grid(ntp_weight=(NTP,))), c=diverged)
    assert found.values_S == pytest.approx([0.8] * 5) and found.note == "a 0.80 [0.80, 0.80]; c -."
    one = answered(0.1, 0.9).diverge(7, seed=1, ntp_weight=NTP)
    np.testing.assert_allclose(values("N2", a=one, b=answered(0.1, 0.5)), [0.6, np.nan, 0.6, 0.6, 0.6])


def test_a_number_that_no_seed_has_leaves_the_claim_open():
    found = measure("N2", a=answered(0.1, 0.9).diverge(7))
    assert found.verdict == OPEN and found.note == "This run lacks a seed that has the number: a -."


def test_controls_of_a_task_and_second_trainings_are_no_tasks():
    made, other = answered(0.1, 0.9), answered(0.9, 0.1)
    for of in claims.CONTROLS:
        assert values("N2", a=made, **{f"a_{of}": other}) == values("N2", a=made)
    later = put(answered(0.9, 0.1), KNOWN, 1, 1)
    runs = synthetic.runs(STUDY, a=made, later=later, one=grid(ntp_weight=(NTP,)))
    assert [*claims.with_both_objectives(runs)] == ["a"] and [*transfer.finetuned_variants(runs)] == ["later"]


def test_splits_out_of_distribution_are_averaged():
    made = put(answered(0.2, 0.4), "ood_43.accuracy", 0.0, 0.8)
    assert values("N2", a=made) == pytest.approx([0.5] * 5)  # 0.6 and 0.1
    with pytest.raises(MissingData, match="a split out of distribution"):
        claims.with_ood_accuracy(grid().run())


def test_n2b_compares_where_answers_are_as_well_learnt():
    made = put(grid(), "train.loss", by_step(3, 1, 0.5, 0.1), by_step(3, 2, 1.5, 0.6))
    put(made, "ood.accuracy", by_step(0, 0.2, 0.3, 0), by_step(0, 0, 0, 0.7))
    assert values("N2b", a=made) == pytest.approx([0.4] * 5)  # CTP at 0.5, its third evaluation


def test_n2c_takes_ntp_when_it_had_seen_as_many_targets():
    made = put(grid(), "ood.accuracy", 0.3, by_step(0, 0.9, 0.5, 0.6))
    put(made, "expansion.answer_share", 0.3, 0.3, time=None)  # of 400 steps: 120, and nearest to 100
    assert values("N2c", a=made) == pytest.approx([0.6] * 5)


def test_n2d_sets_shuffled_ntp_against_ctp_of_the_same_task():
    shuffled = answered(None, 0.6, grid(ntp_weight=(NTP,)))
    found = measure("N2d", a=answered(0.5, 0.9), b=answered(0.1, 0.9), a_shuffled=shuffled)
    assert found.values_S == pytest.approx([0.1] * 5) and found.note == "a 0.10 [0.10, 0.10]."
    other_seeds = answered(None, 0.6, grid(ntp_weight=(NTP,), seed=(0, 1, 2, 3, 5)))
    assert "the seeds of a in variant a_shuffled" in measure("N2d", a=answered(0.5, 0.9), a_shuffled=other_seeds).note


@pytest.mark.parametrize(("id", "variable"), [("N3a", "top"), ("N3b", "trace"), ("N3c", "sam")])
def test_n3_is_ctp_over_ntp_pooled_geometrically(id, variable):
    first, second = (
        put(grid(), f"minimum.{variable}", ctp, [1, 1, 2, 2, -1], time=None) for ctp in ([8, 8, 8, -1, 8], 2)
    )
    np.testing.assert_allclose(values(id, a=first, b=second), [4, 4, 2, np.nan, np.nan])


def test_n3d_takes_both_ends_of_the_lines():
    lines = {"time": None, "dims": {"alpha": [-0.5, -0.1, 0.1, 0.5]}}
    assert values("N3d", a=put(grid(), "minimum.line", [2, 9, 9, 4], [1, 9, 9, 1], **lines)) == pytest.approx([3] * 5)


@pytest.mark.parametrize(("id", "of"), [("N4a", "weight"), ("N4b", "input")])
def test_n4_compares_what_noise_costs(id, of):
    made = put(grid(), "minimum.accuracy", 1.0, 0.8, time=None)
    put(made, f"minimum.{of}_accuracy", [0.8, 0.4], [0.8, 0.6], time=None, dims={"sigma": [0.1, 0.2]})
    assert values(id, a=made) == pytest.approx([0.3] * 5)  # 0.4 lost, and 0.1


def test_n4c_compares_what_wrong_answers_cost():
    assert values("N4c", a=answered(0.4, 0.9, answered(0.9, 0.95), label_noise=0.2)) == pytest.approx([0.45] * 5)


def test_n3e_is_in_units_of_the_weights_length():
    made = put(grid(), "minimum.top", 8.0, 2.0, time=None)
    put(made, "norm.log_frobenius_whole", 0.0, math.log(1.5), time="snapshot")
    assert values("N3e", a=made) == pytest.approx([4 / 1.5**2] * 5)


# --- at equal loss ---


def test_value_at_a_loss_is_between_the_snapshots_around_it_and_of_the_one_that_sets_it_the_last():
    loss_T, value_T = np.array([4.0, 1.0, 0.25, 0.01]), np.array([0.0, 3.0, 5.0, 9.0])
    assert equal_loss.value_at(loss_T, value_T, 0.5) == pytest.approx(4.0)  # half way in the logarithm
    assert equal_loss.value_at(loss_T, value_T, 0.25) == 5.0
    assert equal_loss.value_at(loss_T, value_T, 0.01) == equal_loss.value_at(loss_T, value_T, 0.005) == 9.0
    assert equal_loss.value_at(loss_T, value_T, 7.0) == 0.0
    assert math.isnan(equal_loss.value_at(np.array([1.0, NAN]), np.array([1.0, 1.0]), 0.5))


def along(ctp, ntp, name, **how):
    """CTP ends with a hundredth of NTP's loss, 1, which it has had between its second and third snapshot."""
    made = put(grid(), "path.loss", by_step(4, 2, 0.5, 0.01), by_step(5, 3, 2, 1), time="snapshot")
    return put(made, name, ctp, ntp, time="snapshot", **how)


def test_n3f_and_n3g_compare_where_answers_are_as_well_learnt():
    top = along(by_step(77, 2, 8, 77), by_step(77, 77, 77, 1), "path.top")
    assert values("N3f", a=top) == pytest.approx([4] * 5)  # geometric, half way
    ends = np.array([0.5, 1.5])  # lines are the mean of both ends
    lines = along(*(by_step(*numbers)[..., None] * ends for numbers in ((77, 2, 8, 77), (77, 77, 77, 1))),
                  "path.line", dims={"path_alpha": [-0.5, 0.5]})  # fmt: skip
    assert values("N3g", a=lines) == pytest.approx([4] * 5)


@pytest.mark.parametrize(("id", "of"), [("N4d", "weight"), ("N4e", "input")])
def test_n4_at_equal_loss_compares_what_noise_costs_there(id, of):
    kept = [by_step(*numbers)[..., None] * np.array([0.5, 1.5]) for numbers in ((77, 0.4, 0.6, 77), (77, 77, 77, 0.7))]
    made = along(*kept, f"path.{of}_accuracy", dims={"sigma": [0.1, 0.2]})
    put(made, "path.accuracy", by_step(77, 0.8, 0.8, 77), by_step(77, 77, 77, 0.75), time="snapshot")
    assert values(id, a=made) == pytest.approx([0.3 - 0.05] * 5)


# --- by task, and tuned ---


def test_claims_of_one_task_are_of_that_variant():
    made, other = answered(0.1, 0.9), answered(0.9, 0.1)
    assert values("N2-addition", addition=made, kinship=other) == pytest.approx([0.8] * 5)
    assert "variant ontology" in measure("N2-ontology", addition=made).note
    second = put(learnt(learning(*[100] * 5), learning(*[400] * 5)), KNOWN, 1, 1)
    assert values("N7-other_keys", composition_then_other_keys=second) == [4] * 5


def test_each_objective_is_taken_at_its_own_best_decay_and_rate():
    """The best by accuracy on sequences like those of training, though others answer more out of distribution."""
    made = grid()
    settings = [(decay, rate) for decay in (0.01, 1.0) for rate in synthetic.RATES]
    best = {CTP: (1.0, synthetic.RATES[0]), NTP: (0.01, synthetic.RATES[2])}
    for objective in (CTP, NTP):
        for decay, rate in settings:
            at = {"ntp_weight": objective, "gamma": 0.5, "weight_decay": decay, "learning_rate": rate}
            is_best = (decay, rate) == best[objective]
            made.put("test.accuracy", [0.9, 0.1, 0.9, 0.9, 0.9] if is_best else 0.8, **at)
            made.put("ood.accuracy", {CTP: 0.3, NTP: 0.4}[objective] if is_best else 0.99, **at)
    found = measure("N2-addition", addition=made)
    assert found.values_S == pytest.approx([0.1] * 5)
    assert found.note == ("chosen by test.accuracy: CTP weight decay 1, learning rate 0.0001; "
                          "NTP weight decay 0.01, learning rate 0.01")  # fmt: skip
    assert measure("N2", addition=made).note.endswith(f" addition: {found.note}.")


def test_row_that_diverged_is_no_choice_and_a_run_of_one_setting_stays():
    made = grid(learning_rate=(1e-3,), gamma=(0.5,))
    for decay, accuracy in ((0.01, 0.5), (1.0, 0.9)):
        put(made, "test.accuracy", accuracy, accuracy, weight_decay=decay)
        put(made, "ood.accuracy", decay, decay, weight_decay=decay)
    made.diverge(7, weight_decay=1.0)
    assert "CTP weight decay 0.01; NTP weight decay 0.01" in measure("N2-addition", addition=made).note
    lone = grid(learning_rate=(1e-3,), weight_decay=(0.01,)).run()
    assert tuned(lone) == (lone, "")


@pytest.mark.parametrize(("id", "at"), [("N5a", {"context_noise": 0.1}), ("N5b", {"label_noise": 0.2})])
def test_n5_is_the_gain_where_there_is_a_gap(id, at):
    made = answered([0.5, 0.1, 0.3, 0.5, 0.5], None, answered(0.2, [0.9, 0.9, 0.9, 0.1, 0.2]), **at)
    np.testing.assert_allclose(values(id, a=made), [0.3, -0.1, 0.1, np.nan, np.nan])


def test_n6_compares_gaps_at_both_scales():
    assert values("N6", a=answered(0.7, 0.8, answered(0.2, 0.9), gamma=0.8)) == pytest.approx([0.6] * 5)
    assert "a second gamma" in measure("N6", a=answered(0.2, 0.9, grid(gamma=(0.5,)))).note


def test_n9_is_the_fisher_term_over_slope_and_remainder():
    made = grid()
    for term, value in (("quadratic", 0.6), ("slope", -0.4), ("remainder", 0.1)):
        put(made, f"expansion.{term}", None, by_step(77, value, 77, 77), time="snapshot", gamma=0.8)
    assert values("N9", a=made) == pytest.approx([2] * 5)


def scored(ctp, ntp):
    """Reasoning and symmetric scores of both objectives."""
    made = grid()
    for name, *scores in zip(SCORES.values(), ctp, ntp, strict=True):
        put(made, name, *scores, time=None)
    return made


def test_n10_is_how_much_further_ntp_is_from_the_symmetric_circuit():
    assert values("N10", a=scored((0.1, 0.4), ([0.5, 0.6, 0.7, 0.5, 0.5], [0.2, 0.1, 0, 0.2, 0.2]))) == pytest.approx(
        [0.6, 0.8, 1.0, 0.6, 0.6]
    )
    # both use the reasoning circuit, CTP more so: a high score of NTP alone is not enough
    assert values("N10", a=scored((0.9, 0), (0.8, 0))) == pytest.approx([-0.1] * 5)


def test_n7_is_a_ratio_of_steps_of_second_tasks_alone():
    first = learnt(learning(*[100] * 5), learning(*[400] * 5))  # a ratio of 4
    second = learnt(learning(100, 100, 200, 100, 100), learning(200, 400, 200, 200, 200))
    assert values("N7", first=first, second=put(second, KNOWN, 1, 1)) == [2, 4, 1, 2, 2]
    lone = measure("N7", first=first)
    assert lone.verdict == OPEN and "that starts from the weights of a first one" in lone.note


def test_n8_is_what_ntp_loses_more_of_the_first_task():
    made = put(grid(), KNOWN, by_step(1, 0.9, 0.8, 0.6), by_step(1, 0.7, 0.5, 0.3)).diverge(50, seed=1, ntp_weight=NTP)
    np.testing.assert_allclose(values("N8", second=made), [0.3, np.nan, 0.3, 0.3, 0.3])  # 0.4 lost, and 0.7
    # of 0, 0.1, 0.2, 0.4 and of 0, 0.3, 0.5, 0.7
    np.testing.assert_allclose(values("N8b", second=made), [0.2, np.nan, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("preset", base.presets("ntp_ctp"))
def test_every_variant_can_be_built_and_measured(preset):
    for name, variant in configs.variants(base.load("ntp_ctp", preset)).items():
        experiment, grid = configs.experiment(variant), configs.grid(variant)
        if variant.start.variant:
            assert measures(experiment) == []
            continue
        has_circuits = name.startswith("composition")
        found = {one.name for one in measures(experiment)}
        wanted = {"minimum", "path", "fisher", "expansion", "norm"} | ({"flow"} if has_circuits else set())
        assert found == wanted, name
        shuffled, is_control = name.endswith("shuffled"), name.endswith(tuple(claims.REGULARIZERS))
        wanted = (NTP,) if shuffled else (CTP,) if is_control else (CTP, NTP)
        assert set(wanted) <= set(grid.axes["ntp_weight"]) and experiment.objective.shuffle_context == shuffled


@pytest.mark.parametrize("preset", base.presets("ntp_ctp"))
def test_second_tasks_start_from_rows_of_the_first_that_ntp_trained_without_noise(preset):
    variants = configs.variants(base.load("ntp_ctp", preset))
    second = {name: variant for name, variant in variants.items() if variant.start.variant}
    assert second.keys() & {*by_task.SECOND_TASKS.values()}
    first = configs.grid(variants["composition"])
    for variant in second.values():
        grid = configs.grid(variant)
        init_from.check(Path("nowhere"), variant, grid, (variants["composition"], first))
        for row, start in enumerate(init_from.matched(variant.start, grid, first)):
            asked, at = grid.row(row), first.row(start)
            assert (at["ntp_weight"], at["label_noise"], at.get("context_noise", 0)) == (NTP, 0, 0)
            assert (at["gamma"], at["seed"]) == (asked["gamma"], asked["seed"])
        assert {CTP, NTP} <= set(grid.columns["ntp_weight"])
        task = configs.experiment(variant).task
        assert isinstance(task, Finetune) and task.first == configs.experiment(variants["composition"]).task


def test_models_without_the_circuits_or_an_answer_everywhere():
    experiment = configs.experiment(configs.variants(base.load("ntp_ctp", "smoke"))["composition"])
    (flow,) = [one for one in measures(experiment) if one.name == "flow"]
    assert set(SCORES.values()) <= {f"flow.{name}" for name in flow.units}
    shallow = dataclasses.replace(experiment, model=experiment.model.clone(n_layers=1))
    assert "flow" not in {one.name for one in measures(shallow)}
    with pytest.raises(ValueError, match=r"transformers with model\.readout='all'"):
        measures(dataclasses.replace(experiment, model=experiment.model.clone(readout="last")))
