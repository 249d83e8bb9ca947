"""Which CTP counts as flat as NTP, what claims make of it, and what is drawn: on grids written by hand."""

import math

import numpy as np
import pytest
import xarray as xr

from lab.studies import claims
from lab.studies.claims import Lacking
from lab.studies.ntp_ctp import claims as module
from lab.studies.ntp_ctp import controls
from lab.studies.ntp_ctp.claims import CTP, NTP
from lab.studies.ntp_ctp.controls import CLAIMS, MARKERS, Trained, matched, regularized, sections, table
from lab.tasks.finetune import FIRST

SEEDS, STEPS = (0, 1, 2), (0, 100)
AXES = {
    "ntp_weight": (CTP, NTP), "gamma": (0.8, 0.5), "weight_decay": (0.01,), "label_noise": (0.0, 0.2),
    "learning_rate": (1e-3,), "seed": SEEDS,
}  # fmt: skip
GARBAGE = -77.0  # where nothing may be read
USUAL = {"gamma": 0.5, "weight_decay": 0.01, "label_noise": 0.0, "learning_rate": 1e-3}


def dataset(**axes):
    """A trained variant: no sharpness, and garbage for accuracy."""
    coords = {name: list(values) for name, values in (AXES | axes).items()}
    sizes = [len(values) for values in coords.values()]
    made = xr.Dataset({"diverged_at": (tuple(coords), np.full(sizes, -1))}, coords | {"step": list(STEPS)})
    made["minimum.top"] = xr.full_like(made["diverged_at"], GARBAGE, float)
    made["ood.accuracy"] = made["minimum.top"].expand_dims(step=list(STEPS)).copy()
    made["norm.log_frobenius_whole"] = made["minimum.top"].expand_dims(snapshot=[0, 9]).copy()
    return made


def put(made, sharpness, accuracy, **at):
    """Sets the rows of three seeds; of the usual scale, decay and rate, without noise."""
    place = {axis: value for axis, value in (USUAL | at).items() if axis in made.dims}
    made["minimum.top"].loc[place] = np.asarray(sharpness, float)
    made["ood.accuracy"].loc[place | {"step": 100}] = np.asarray(accuracy, float)
    return made


def task(ctp=(80.0, 0.2), ntp=(10.0, 0.8), noisy=(1e6, 0.9)):
    """Pairs of sharpness and accuracy: of CTP, of NTP, and of CTP with wrong answers."""
    made = put(put(dataset(), *ctp, ntp_weight=CTP), *ntp, ntp_weight=NTP)
    return put(made, *noisy, ntp_weight=CTP, label_noise=0.2)


def variant(axis, **axes):
    """CTP alone: value -> a pair of sharpness and accuracy."""
    pairs = axes.pop("pairs")
    made = dataset(**{"ntp_weight": (CTP,), "gamma": (0.5,), "label_noise": (0.0,), axis: tuple(pairs)} | axes)
    for value, pair in pairs.items():
        put(made, *pair, **{axis: value})
    return made


def measure(name, **datasets):
    (claim,) = [claim for claim in CLAIMS if claim.id == name]
    return claims._measure(claim, datasets)


@pytest.mark.parametrize(("name", "axis", "label"), [("N5d", "sam_radius", "SAM"), ("N5e", "weight_noise", "noise")])
def test_regularizers_count_at_the_strength_of_ntps_sharpness(name, axis, label):
    held = variant(axis, pairs={0.02: (40, 0.3), 0.05: (15, (0.5, 0.1, 0.4)), 0.2: (2, 0.9)})
    found = measure(name, a=task(), **{f"a_{axis}": held})
    assert found.per_seed == pytest.approx((0.3, -0.1, 0.2)) and found.verdict == "does not hold"
    assert f"{label} 0.05 has sharpness 15, NTP 10, plain CTP 80" in found.note
    within = task().expand_dims({axis: [0.0, 0.05]}).copy(deep=True)  # or as an axis of the task's own grid
    put(within, 15, 0.6, ntp_weight=CTP, **{axis: 0.05})
    assert measure(name, a=within).per_seed == pytest.approx((0.4, 0.4, 0.4))


def test_there_is_nothing_to_make_flat_where_plain_ctp_is_as_flat_as_ntp():
    held = variant("sam_radius", pairs={0.05: (9, 0.7)})
    assert measure("N5d", a=task(ctp=(20.1, 0.2)), a_sam_radius=held).median == pytest.approx(0.5)
    assert measure("N5d", a=task(ctp=(19.9, 0.2)), a_sam_radius=held).verdict == "not measured"


def test_weight_decay_1_counts_however_sharp_it_is():
    held = variant("weight_decay", pairs={0.1: (10, 0.9), 1.0: (1e6, (0.5, 0.1, 0.4))})
    found = measure("N5c", a=task(), a_weight_decay=held)
    assert found.per_seed == pytest.approx((0.3, -0.1, 0.2)) and "decay 1 has sharpness 1e+06" in found.note
    assert measure("N5c", a=task(), a_weight_decay=held.sel(weight_decay=[0.1])).verdict == "not measured"


def test_flat_means_at_most_twice_as_sharp_and_flatter_is_flat():
    sharper = variant("sam_radius", pairs={0.02: (40, 0.3), 0.05: (20.1, 0.9)})
    found = measure("N5d", a=task(), a_sam_radius=sharper)
    assert found.verdict == "not measured" and "SAM 0.05: 2 times" in found.note
    for one in (19.9, 0.001):
        pairs = {0.02: (40, 0.3), 0.05: (one, 0.9)}
        assert measure("N5d", a=task(), a_sam_radius=variant("sam_radius", pairs=pairs)).median == pytest.approx(0.7)


def test_there_is_nothing_to_recover_where_ntp_is_not_ahead():
    held = variant("sam_radius", pairs={0.05: (10, 0.5)})
    made = task(ctp=(80, (0.2, 0.8, 0.9)))
    for name in ("N5d", "N5f"):
        first, *others = measure(name, a=made, a_sam_radius=held).per_seed
        assert math.isfinite(first) and all(map(math.isnan, others))


def test_flatness_explains_what_the_ctp_of_ntps_sharpness_closes():
    held = {"a_sam_radius": variant("sam_radius", pairs={0.05: (9, 0.7)})}
    found = measure("N5f", a=task(), **held)
    assert found.per_seed == pytest.approx((0.4,) * 3)  # closes 0.5 of 0.6, leaves 0.1
    # wrong answers give exactly NTP's sharpness: they count, although SAM answers better
    found = measure("N5f", a=task(noisy=(10, 0.4)), **held)
    assert found.per_seed == pytest.approx((-0.2,) * 3) and "label noise 0.2 has" in found.note
    found = measure("N5f", a=task(ctp=(10, 0.2)), **held)  # plain CTP is as flat already
    assert found.per_seed == pytest.approx((-0.6,) * 3) and "CTP has sharpness 10," in found.note
    assert measure("N5f", a=task()).verdict == "not measured"


def test_tasks_are_pooled_and_variants_of_controls_are_no_tasks():
    first, second = (variant("sam_radius", pairs={0.05: (10, value)}) for value in (0.4, 0.6))
    found = measure("N5d", a=task(), b=task(), a_sam_radius=first, b_sam_radius=second)
    assert found.per_seed == pytest.approx((0.3,) * 3) and found.verdict == "holds"
    later = task().assign({f"{FIRST}train.accuracy": 1.0})
    assert list(module.compared({"a": task(), "a_sam_radius": first, "a_then_b": later})) == ["a"]
    assert measure("N5d", a_sam_radius=first).verdict == "not measured"


def test_rows_that_diverged_or_have_no_positive_sharpness_do_not_decide_the_match():
    made = variant("sam_radius", pairs={0.02: ((9, 9, 1e9), 0.5), 0.05: ((-1, 30, 30), 0.9), 0.1: (-1, 0.9)})
    made["diverged_at"].loc[{"sam_radius": 0.02, "seed": 2}] = 7
    ntp = controls.rows(task(), NTP)
    candidates = regularized({"a": task(), "a_sam_radius": made}, "a", "sam_radius")
    assert matched(candidates, ntp).value == 0.02
    assert [round(math.exp(controls.log_sharpness(one.rows)), 3) for one in candidates[:2]] == [9, 30]
    with pytest.raises(Lacking, match=r"as flat as NTP .*SAM 0\.1: nan times"):
        matched(candidates[1:], ntp)
    with pytest.raises(Lacking, match="none tried"):
        matched([], ntp)


def test_controls_of_other_seeds_are_refused():
    held = variant("weight_decay", pairs={1.0: (10, 0.9)}, seed=(0, 1, 3))
    with pytest.raises(Lacking, match="in variant a_weight_decay the seeds of a"):
        regularized({"a": task(), "a_weight_decay": held}, "a", "weight_decay")
    decayed = variant("weight_decay", pairs={1.0: (10, 0.9), 0.01: (80, 0.2)})
    (one,) = regularized({"a": task(), "a_weight_decay": decayed}, "a", "weight_decay")  # 0.01 is the plain one's
    assert isinstance(one, Trained) and one.value == 1.0


def random_task(seed=0):
    """Accuracy is 0.1 of the objective and 0.02 of log sharpness, of which the first half is the objective's."""
    made, rng = dataset(), np.random.default_rng(seed)
    objective = made["ntp_weight"].broadcast_like(made["diverged_at"])
    log_top = objective + rng.standard_normal(objective.shape)
    made["minimum.top"] = np.exp(log_top)
    made["norm.log_frobenius_whole"].loc[{"snapshot": 9}] = rng.standard_normal(objective.shape)
    made["ood.accuracy"].loc[{"step": 100}] = 0.4 + 0.1 * objective + 0.02 * log_top
    return made


def test_table_pools_a_task_with_its_controls_and_leaves_out_what_diverged():
    made, held = random_task(), variant("sam_radius", pairs={0.05: ((3, 4, 5), (0.5, 0.6, 0.7))})
    made["diverged_at"].loc[{"ntp_weight": NTP, "gamma": 0.8, "label_noise": 0.2, "seed": 1}] = 3
    columns = table({"a": made, "a_shuffled": dataset(), "a_sam_radius": held}, "a")
    assert {len(column) for column in columns.values()} == {24 + 3}
    lost = np.isnan(columns["accuracy"])
    assert lost.sum() == 1 and all(np.isnan(column[lost]).all() for column in columns.values())
    last = {label: column[-3:].tolist() for label, column in columns.items()}
    assert last["accuracy"] == [0.5, 0.6, 0.7] and last["seed"] == [0, 1, 2]
    np.testing.assert_allclose(last["log sharpness"], np.log([3, 4, 5]))
    objective, log_top = columns["objective (CTP 0, NTP 1)"][:-3], columns["log sharpness"][:-3]
    np.testing.assert_allclose(columns["accuracy"][:-3], 0.4 + 0.1 * objective + 0.02 * log_top)


def drawn(figure, gid):
    return [line for ax in figure.axes for line in ax.get_lines() if line.get_gid() == gid]


def test_pictures_show_the_rows_and_the_regression():
    made = put(put(random_task(), (7, 8, -9), (0.1, 0.2, 0.3), ntp_weight=CTP), 5, 0.8, ntp_weight=NTP)
    held = variant("sam_radius", pairs={0.05: (3, 0.5), 0.1: (2, 0.6)})
    (section,) = sections({"a": made, "a_sam_radius": held})
    scatter, bars = (picture.figure for picture in section.pictures)
    ctp, ntp, noise, *sam = drawn(scatter, "rows")
    np.testing.assert_array_equal(ctp.get_xydata(), [[7, 0.1], [8, 0.2], [np.nan, 0.3]])
    np.testing.assert_array_equal(ntp.get_xydata(), [[5, 0.8]] * 3)
    np.testing.assert_array_equal(np.concatenate([one.get_xydata() for one in sam]), [[3, 0.5]] * 3 + [[2, 0.6]] * 3)
    assert [one.get_marker() for one in (ctp, ntp, noise, sam[0])] == [
        MARKERS[label] for label in ("CTP", "NTP", "CTP + label noise", "CTP + SAM")
    ]
    assert len(set(MARKERS.values())) == 6
    columns = table({"a": made, "a_sam_radius": held}, "a")
    known = np.isfinite(np.stack([*columns.values()])).all(axis=0)
    x = np.stack([columns[label][known] for label in controls.PREDICTORS], axis=1)
    y = columns["accuracy"][known]
    slopes = np.linalg.lstsq((x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std(), rcond=None)[0]
    (dots,) = drawn(bars, "value")
    np.testing.assert_allclose(dots.get_xdata(), slopes, atol=1e-10)  # float64, thirty rows
    assert dots.get_ydata().tolist() == [2, 1, 0]
    assert [text.get_text() for text in bars.axes[0].get_yticklabels()] == list(controls.PREDICTORS)
    assert f"{(~known).sum()} rows without" in section.pictures[1].caption


def test_report_says_what_it_cannot_draw():
    (section,) = sections({"a": random_task().drop_vars("norm.log_frobenius_whole")})
    assert len(section.pictures) == 1 and section.text.endswith("could not be drawn: norm.log_frobenius_whole.")
    (section,) = sections({"a": random_task().isel(gamma=[1], label_noise=[0], seed=[0])})
    assert "2 rows with finite numbers: 3 predictors need at least 5" in section.text
    assert (
        sections({"a": random_task().drop_vars("minimum.top"), "b": variant("sam_radius", pairs={0.1: (1, 1)})}) == []
    )
