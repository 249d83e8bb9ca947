"""Which CTP counts as flat as NTP, what claims make of it, and what is drawn: on grids written by hand."""

import functools
import math

import numpy as np
import pytest
import synthetic
from shown import lines
from synthetic import Grid, runs

from lab.claims import OPEN
from lab.objective import CTP, NTP
from lab.runs import MissingData
from lab.studies.ntp_ctp import STUDY, flatness
from lab.studies.ntp_ctp.claims import controlled
from lab.studies.ntp_ctp.flatness import MARKERS, NORM, match_sharpness, regression_table, regularized

AXES = {"ntp_weight": (CTP, NTP), "gamma": (0.5, 0.8), "weight_decay": (0.01,), "label_noise": (0.0, 0.2),
        "learning_rate": (1e-3,)}  # fmt: skip


def put(made, sharpness, accuracy, **at):
    """Sets rows of the usual scale and decay, without noise unless `at` has it."""
    at = {"gamma": 0.5} | at
    return made.put("minimum.top", sharpness, time=None, **at).put("ood.accuracy", accuracy, **at)


def task(ctp=(80.0, 0.2), ntp=(10.0, 0.8), noisy=(1e6, 0.9), **axes):
    """Pairs of sharpness and accuracy: of CTP, of NTP, and of CTP with wrong answers."""
    made = put(put(Grid(STUDY.usual, **(AXES | axes)), *ctp, ntp_weight=CTP), *ntp, ntp_weight=NTP)
    return put(made, *noisy, ntp_weight=CTP, label_noise=0.2)


def variant(axis, pairs, **axes):
    """CTP alone: value -> a pair of sharpness and accuracy."""
    alone = {"ntp_weight": (CTP,), "gamma": (0.5,), "label_noise": (0.0,), axis: tuple(pairs)}
    made = Grid(STUDY.usual, **(AXES | alone | axes))
    for value, pair in pairs.items():
        put(made, *pair, ntp_weight=CTP, **{axis: value})
    return made


measure = functools.partial(synthetic.measured, STUDY)


@pytest.mark.parametrize(("id", "axis", "label"), [("N5d", "sam_radius", "SAM"), ("N5e", "weight_noise", "noise")])
def test_regularizers_count_at_the_strength_of_ntps_sharpness(id, axis, label):
    held = variant(axis, {0.02: (40, 0.3), 0.05: (15, [0.5, 0.1, 0.4, 0.2, 0.2]), 0.2: (2, 0.9)})
    found = measure(id, a=task(), **{f"a_{axis}": held})
    assert found.values_S == pytest.approx([0.3, -0.1, 0.2, 0, 0])
    assert f"{label} 0.05 has sharpness 15, NTP 10, plain CTP 80" in found.note
    within = put(task(**{axis: (0.0, 0.05)}), 15, 0.6, ntp_weight=CTP, **{axis: 0.05})  # an axis of the task's own grid
    assert measure(id, a=within).values_S == pytest.approx([0.4] * 5)


def test_there_is_nothing_to_make_flat_where_plain_ctp_is_as_flat_as_ntp():
    held = variant("sam_radius", {0.05: (9, 0.7)})
    assert measure("N5d", a=task(ctp=(20.1, 0.2)), a_sam_radius=held).median == pytest.approx(0.5)
    assert measure("N5d", a=task(ctp=(19.9, 0.2)), a_sam_radius=held).verdict == OPEN


def test_weight_decay_1_counts_however_sharp_it_is():
    held = variant("weight_decay", {0.1: (10, 0.9), 1.0: (1e6, [0.5, 0.1, 0.4, 0.2, 0.2])})
    found = measure("N5c", a=task(), a_weight_decay=held)
    assert found.values_S == pytest.approx([0.3, -0.1, 0.2, 0, 0]) and "decay 1 has sharpness 1e+06" in found.note
    mild = measure("N5c", a=task(), a_weight_decay=variant("weight_decay", {0.1: (10, 0.9)}))
    assert mild.note == "This run lacks weight decay 1."


def test_flat_means_at_most_twice_as_sharp_and_flatter_is_flat():
    found = measure("N5d", a=task(), a_sam_radius=variant("sam_radius", {0.02: (40, 0.3), 0.05: (20.1, 0.9)}))
    assert found.verdict == OPEN and "SAM 0.05: 2 times" in found.note
    for sharpness in (19.9, 0.001):
        held = variant("sam_radius", {0.02: (40, 0.3), 0.05: (sharpness, 0.9)})
        assert measure("N5d", a=task(), a_sam_radius=held).median == pytest.approx(0.7)


@pytest.mark.parametrize("id", ["N5d", "N5f"])
def test_there_is_nothing_to_recover_where_ntp_is_not_ahead(id):
    made, held = task(ctp=(80, [0.2, 0.8, 0.9, 0.2, 0.2])), variant("sam_radius", {0.05: (10, 0.5)})
    np.testing.assert_array_equal(np.isnan(measure(id, a=made, a_sam_radius=held).values_S), [0, 1, 1, 0, 0])


def test_flatness_explains_what_the_ctp_of_ntps_sharpness_closes():
    held = {"a_sam_radius": variant("sam_radius", {0.05: (9, 0.7)})}
    assert measure("N5f", a=task(), **held).values_S == pytest.approx([0.4] * 5)  # closes 0.5 of 0.6, leaves 0.1
    # wrong answers give exactly NTP's sharpness: they count, although SAM answers better
    found = measure("N5f", a=task(noisy=(10, 0.4)), **held)
    assert found.values_S == pytest.approx([-0.2] * 5) and "label noise 0.2 has" in found.note
    found = measure("N5f", a=task(ctp=(10, 0.2)), **held)  # plain CTP is as flat already
    assert found.values_S == pytest.approx([-0.6] * 5) and "CTP has sharpness 10," in found.note
    assert measure("N5f", a=task()).verdict == OPEN


def test_tasks_are_pooled():
    held = {
        f"{name}_sam_radius": variant("sam_radius", {0.05: (10, value)}) for name, value in (("a", 0.4), ("b", 0.6))
    }
    assert measure("N5d", a=task(), b=task(), **held).values_S == pytest.approx([0.3] * 5)
    assert measure("N5d", a_sam_radius=held["a_sam_radius"]).verdict == OPEN


def test_rows_that_diverged_or_have_no_positive_sharpness_do_not_decide_the_match():
    pairs = {0.02: ([9, 9, 9, 1e9, 1e9], 0.5), 0.05: ([-1, 30, 30, 30, -1], 0.9), 0.1: (-1, 0.9)}
    made = variant("sam_radius", pairs).diverge(7, sam_radius=0.02, seed=[3, 4])
    of_task = controlled(runs(STUDY, a=task(), a_sam_radius=made))["a"]
    candidates, (_, ntp) = regularized(of_task, "sam_radius"), flatness.plain(of_task)
    assert match_sharpness(candidates, ntp).strength == 0.02
    assert [round(math.exp(one.log_sharpness), 3) for one in candidates[:2]] == [9, 30]
    with pytest.raises(MissingData, match=r"as flat as NTP .*SAM 0\.1: nan times"):
        match_sharpness(candidates[1:], ntp)
    with pytest.raises(MissingData, match="none tried"):
        match_sharpness([], ntp)


def test_controls_are_those_beyond_the_usual_value_and_of_the_same_seeds():
    both = variant("weight_decay", {1.0: (10, 0.9), 0.01: (80, 0.2)})
    (one,) = regularized(controlled(runs(STUDY, a=task(), a_weight_decay=both))["a"], "weight_decay")
    assert one.strength == 1.0
    other_seeds = variant("weight_decay", {1.0: (10, 0.9)}, seed=(0, 1, 2, 3, 5))
    assert "the seeds of a in variant" in measure("N5c", a=task(), a_weight_decay=other_seeds).note


def random_task():
    """Accuracy is 0.1 of the objective and 0.02 of log sharpness, of which the first half is the objective's."""
    made, rng = task(), np.random.default_rng(0)
    dataset, rows = made.dataset, made.dataset["diverged_at"]
    objective = dataset["ntp_weight"].broadcast_like(rows).transpose(*rows.dims)
    log_top = objective + rng.standard_normal(rows.shape)
    dataset["minimum.top"] = np.exp(log_top)
    dataset[NORM] = rows.copy(data=rng.standard_normal(rows.shape)).expand_dims(snapshot=[100])
    dataset["ood.accuracy"].loc[{"step": 100}] = 0.4 + 0.1 * objective + 0.02 * log_top
    return made


def with_norm(made):
    return made.put(NORM, 0.5, time="snapshot", ntp_weight=CTP)


def test_regression_pools_a_task_with_its_controls_and_leaves_out_what_diverged():
    made = random_task().diverge(3, ntp_weight=NTP, gamma=0.8, label_noise=0.2, seed=1)
    held = with_norm(variant("sam_radius", {0.05: ([3, 4, 5, 6, 7], [0.5, 0.6, 0.7, 0.8, 0.9])}))
    columns = regression_table(controlled(runs(STUDY, a=made, a_shuffled=task(), a_sam_radius=held))["a"])
    assert {len(column) for column in columns.values()} == {40 + 5}
    accuracy, log_top, norm, objective = (columns[label] for label in ("accuracy", *flatness.PREDICTORS))
    assert np.isnan(accuracy).sum() == 1 and np.isnan(norm[np.isnan(accuracy)]).all()
    np.testing.assert_array_equal(accuracy[-5:], [0.5, 0.6, 0.7, 0.8, 0.9])
    np.testing.assert_array_equal(columns["seed"][-5:], range(5))
    np.testing.assert_allclose(log_top[-5:], np.log([3, 4, 5, 6, 7]))
    np.testing.assert_allclose(accuracy[:-5], 0.4 + 0.1 * objective[:-5] + 0.02 * log_top[:-5])


def test_pictures_show_the_rows_and_the_regression():
    accuracies = [0.1, 0.2, 0.3, 0.4, 0.5]
    made = put(put(random_task(), [7, 8, -9, 7, 7], accuracies, ntp_weight=CTP), 5, 0.8, ntp_weight=NTP)
    grids = {"a": made, "a_sam_radius": with_norm(variant("sam_radius", {0.05: (3, 0.5), 0.1: (2, 0.6)}))}
    (section,) = flatness.sections(runs(STUDY, **grids))
    scatter, bars = section.pictures
    assert [scatter.name, bars.name] == ["a-controls", "a-regression"]
    ctp, ntp, noise, *sam = lines(scatter.figure.axes[0], "rows")
    np.testing.assert_array_equal(ctp.get_xydata(), np.transpose([[7, 8, np.nan, 7, 7], accuracies]))
    np.testing.assert_array_equal(ntp.get_xydata(), [[5, 0.8]] * 5)
    np.testing.assert_array_equal(np.concatenate([one.get_xydata() for one in sam]), [[3, 0.5]] * 5 + [[2, 0.6]] * 5)
    labels = ("CTP", "NTP", "CTP + label noise", "CTP + SAM")
    assert [one.get_marker() for one in (ctp, ntp, noise, sam[0])] == [MARKERS[label] for label in labels]
    assert len(set(MARKERS.values())) == 6
    columns = regression_table(controlled(runs(STUDY, **grids))["a"])
    known = np.isfinite(np.stack([*columns.values()])).all(axis=0)
    x = np.stack([columns[label][known] for label in flatness.PREDICTORS], axis=1)
    y = columns["accuracy"][known]
    slopes = np.linalg.lstsq((x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std(), rcond=None)[0]
    (dots,) = lines(bars.figure.axes[0], "value")
    np.testing.assert_allclose(dots.get_xdata(), slopes, atol=1e-10)  # float64, fifty rows
    assert dots.get_ydata().tolist() == [2, 1, 0]
    assert [text.get_text() for text in bars.figure.axes[0].get_yticklabels()] == list(flatness.PREDICTORS)
    assert f"{(~known).sum()} rows without" in bars.caption


def test_report_says_what_it_cannot_draw():
    (section,) = flatness.sections(runs(STUDY, a=task()))
    assert len(section.pictures) == 1 and section.text.endswith(f"(this run lacks {NORM}).")
    few = random_task()
    few.dataset = few.dataset.isel(gamma=[1], label_noise=[0], seed=[0])
    (section,) = flatness.sections(runs(STUDY, a=few))
    assert "2 rows with finite numbers: 3 predictors need at least 5" in section.text
    assert flatness.sections(runs(STUDY, b=variant("sam_radius", {0.1: (1, 1)}))) == []
