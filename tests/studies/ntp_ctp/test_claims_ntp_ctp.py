"""Every claim on grids written by hand, on which the answer is known; and that every preset can be built."""

import math

import numpy as np
import pytest
import xarray as xr

from lab import config as configs
from lab.configs import base
from lab.configs import ntp_ctp as config
from lab.studies import claims
from lab.studies.claims import Lacking
from lab.studies.ntp_ctp import claims as module
from lab.studies.ntp_ctp import controls, page
from lab.studies.ntp_ctp.claims import CLAIMS, CTP, NTP, rows
from lab.studies.ntp_ctp.measures import measures

SEEDS, GAMMAS, STEPS = (0, 1, 2), (0.5, 0.8), (0, 100, 200, 400)
AXES = {
    "ntp_weight": (CTP, NTP), "gamma": GAMMAS, "weight_decay": (0.01, 1.0), "label_noise": (0.0, 0.2),
    "context_noise": (0.0, 0.1), "learning_rate": (1e-3,), "seed": SEEDS,
}  # fmt: skip
GARBAGE = -77.0  # in every place that no claim may read


def dataset(**axes):
    """A trained variant of which nothing is known."""
    coords = {name: list(values) for name, values in (AXES | axes).items()}
    sizes = [len(values) for values in coords.values()]
    return xr.Dataset({"diverged_at": (tuple(coords), np.full(sizes, -1))}, coords | {"step": list(STEPS)})


def put(made, name, ctp, ntp, time=None, gamma=0.5, **at):
    """Sets a variable where claims read it: arrays (seed), or (time, seed)."""
    if name not in made:
        extra = {} if time is None else {time: made.sizes[time]}
        shape = (*extra.values(), *made["diverged_at"].shape)
        made[name] = ((*extra, *made["diverged_at"].dims), np.full(shape, GARBAGE))
    place = {"gamma": gamma, "weight_decay": 0.01, "label_noise": 0.0, "context_noise": 0.0, "learning_rate": 1e-3}
    place = {axis: value for axis, value in (place | at).items() if axis in made.dims}
    for objective, values in ((CTP, ctp), (NTP, ntp)):
        if values is not None:
            made[name].loc[place | {"ntp_weight": objective}] = np.asarray(values, float)
    return made


def at_end(values):
    """(step, seed): garbage before the last evaluation."""
    return np.vstack([np.full((len(STEPS) - 1, len(SEEDS)), GARBAGE), np.broadcast_to(values, len(SEEDS))])


def measure(name, **datasets):
    (claim,) = [claim for claim in CLAIMS if claim.id == name]
    return claims._measure(claim, datasets)


def answered(ctp, ntp, made=None, **at):
    ends = (None if values is None else at_end(values) for values in (ctp, ntp))
    return put(dataset() if made is None else made, "ood.accuracy", *ends, "step", **at)


def learning(*at_steps):
    """(step, seed) of an accuracy that is 1 from a step on, a step for every seed."""
    return np.array([[float(step >= start) for start in at_steps] for step in STEPS])


def test_n1_is_a_ratio_of_first_evaluations_and_censored_rows_count_all_steps():
    never = math.inf
    made = put(dataset(), "train.accuracy", learning(100, 200, 100), learning(200, 100, never), "step")
    assert measure("N1", a=made).per_seed == pytest.approx((2.0, 0.5, 4.0))
    neither = put(dataset(), "train.accuracy", learning(100, 100, never), learning(200, 200, never), "step")
    assert measure("N1", a=neither).verdict == "not measured"
    slow = put(dataset(), "train.accuracy", 0.949 + 0.001 * learning(100, 100, 100), learning(200, 200, 200), "step")
    assert measure("N1", a=slow).per_seed == pytest.approx((2.0, 2.0, 2.0))  # 0.95 is enough


def test_n2_pools_tasks_and_says_what_each_has():
    first = answered((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    second = answered((0.4, 0.4, 0.4), (0.3, 0.3, 0.5))
    found = measure("N2", easy=first, hard=second)
    assert found.per_seed == pytest.approx((0.15, 0.1, 0.15)) and found.verdict == "holds"
    assert "easy 0.30 [0.20, 0.40] holds" in found.note and "hard -0.10 [-0.10, 0.10] does not hold" in found.note
    assert measure("N2", hard=second).verdict == "does not hold"


def test_several_splits_out_of_distribution_are_averaged():
    made = put(answered(0.2, 0.4), "ood_43.accuracy", at_end(0.0), at_end(0.8), "step")
    assert measure("N2", a=made).per_seed == pytest.approx((0.5, 0.5, 0.5))  # 0.6 and 0.1
    with pytest.raises(Lacking):
        module.accuracy(dataset())


def test_rows_that_diverged_count_nowhere():
    made = answered(0.1, 0.9)
    made["diverged_at"].loc[{"seed": 1, "ntp_weight": NTP}] = 7
    assert math.isnan(measure("N2", a=made).per_seed[1])


def test_values_that_the_grid_does_not_have_are_lacking():
    made = answered(0.1, 0.9).sel(ntp_weight=[NTP], label_noise=0.0, drop=True)
    assert rows(made, NTP).sizes["seed"] == 3  # an axis of noise that is not there means none
    for at in ({"objective": CTP}, {"objective": NTP, "label_noise": 0.2}, {"objective": NTP, "context_noise": 0.3}):
        with pytest.raises(Lacking):
            rows(made, **at)
    assert measure("N2", shuffled=made).verdict == "not measured"
    assert measure("N2", shuffled=made, both=answered(0.1, 0.9)).per_seed == pytest.approx((0.8, 0.8, 0.8))


def test_n2b_compares_where_answers_are_as_well_learnt():
    made = dataset()
    put(made, "train.loss", [[3] * 3, [1] * 3, [0.5] * 3, [0.1] * 3], [[3] * 3, [2] * 3, [1.5] * 3, [0.6] * 3], "step")
    put(made, "ood.accuracy", [[0] * 3, [0.2] * 3, [0.3] * 3, [0.0] * 3], [[0.0] * 3] * 3 + [[0.7] * 3], "step")
    assert measure("N2b", a=made).per_seed == pytest.approx((0.4, 0.4, 0.4))  # CTP at 0.5, its third evaluation


def test_n2c_takes_ntp_when_it_had_seen_as_many_targets():
    made = put(dataset(), "ood.accuracy", at_end(0.3), [[0.0] * 3, [0.9] * 3, [0.5] * 3, [0.6] * 3], "step")
    assert measure("N2c", a=made).verdict == "not measured"
    put(made, "expansion.answer_share", [0.3] * 3, [0.3] * 3)  # of 400 steps: 120, and nearest to 100
    assert measure("N2c", a=made).per_seed == pytest.approx((0.6, 0.6, 0.6))


def test_n2d_sets_shuffled_ntp_against_ctp_of_the_same_task():
    shuffled = answered(None, 0.6).sel(ntp_weight=[NTP])
    found = measure("N2d", a=answered(0.5, 0.9), b=answered(0.1, 0.9), a_shuffled=shuffled)
    assert found.per_seed == pytest.approx((0.1, 0.1, 0.1)) and "b 0." not in found.note
    assert measure("N2d", a=answered(0.5, 0.9)).verdict == "not measured"


@pytest.mark.parametrize(("name", "variable"), [("N3a", "top"), ("N3b", "trace"), ("N3c", "sam")])
def test_n3_is_ctp_over_ntp_pooled_geometrically(name, variable):
    first, second = (put(dataset(), f"minimum.{variable}", [ctp] * 3, [1, 1, 2]) for ctp in (8.0, 2.0))
    assert measure(name, a=first, b=second).per_seed == pytest.approx((4, 4, 2))
    negative = put(dataset(), f"minimum.{variable}", [8, -1, 8], [1, 1, 1])
    assert measure(name, a=negative).verdict == "not measured"


def test_n3d_takes_both_ends_of_the_lines():
    made = dataset().assign_coords(alpha=[-0.5, -0.1, 0.1, 0.5])
    ctp, ntp = (np.outer(ends, np.ones(3)) for ends in ([2, 9, 9, 4], [1, 9, 9, 1]))
    put(made, "minimum.line", ctp, ntp, "alpha")
    assert measure("N3d", a=made).per_seed == pytest.approx((3, 3, 3))


@pytest.mark.parametrize(("name", "of"), [("N4a", "weight"), ("N4b", "input")])
def test_n4_compares_what_noise_costs(name, of):
    made = dataset().assign_coords(sigma=[0.1, 0.2])
    put(made, "minimum.accuracy", [1.0] * 3, [0.8] * 3)
    put(made, f"minimum.{of}_accuracy", [[0.8] * 3, [0.4] * 3], [[0.8] * 3, [0.6] * 3], "sigma")
    assert measure(name, a=made).per_seed == pytest.approx((0.3, 0.3, 0.3))  # 0.4 lost, and 0.1


def test_n4c_compares_what_wrong_answers_cost():
    made = answered(0.4, 0.9, answered(0.9, 0.95), label_noise=0.2)
    assert measure("N4c", a=made).per_seed == pytest.approx((0.45, 0.45, 0.45))


@pytest.mark.parametrize(
    ("name", "at"),
    [("N5a", {"context_noise": 0.1}), ("N5b", {"label_noise": 0.2})],
)
def test_n5_is_the_gain_where_there_is_a_gap(name, at):
    made = answered((0.5, 0.1, 0.3), None, answered((0.2, 0.2, 0.2), (0.9, 0.9, 0.9)), **at)
    assert measure(name, a=made).per_seed == pytest.approx((0.3, -0.1, 0.1))
    ahead = answered(0.5, None, answered((0.2, 0.9, 0.2), (0.9, 0.2, 0.9)), **at)
    assert math.isnan(measure(name, a=ahead).per_seed[1])


def test_n6_compares_gaps_at_both_scales():
    made = answered(0.7, 0.8, answered(0.2, 0.9), gamma=0.8)
    assert measure("N6", a=made).per_seed == pytest.approx((0.6, 0.6, 0.6))
    assert measure("N6", a=made.isel(gamma=[1, 0])).per_seed == pytest.approx((0.6, 0.6, 0.6))  # in whatever order
    assert measure("N6", a=made.isel(gamma=[0])).verdict == "not measured"


def test_n9_is_the_fisher_term_over_slope_and_remainder():
    made = dataset().assign_coords(snapshot=[0, 10, 20])
    for term, value in (("quadratic", 0.6), ("slope", -0.4), ("remainder", 0.1)):
        values = np.full((3, 3), GARBAGE)
        values[1] = value
        put(made, f"expansion.{term}", None, values, "snapshot", gamma=0.8)
    assert measure("N9", a=made).per_seed == pytest.approx((2, 2, 2))


def test_objectives_are_compared_within_cells():
    """Gamma moves both sharpness and accuracy; given gamma the objective alone decides."""
    made = dataset(weight_decay=(0.01,), label_noise=(0.0,), context_noise=(0.0,))
    objective, gamma, _ = xr.broadcast(made.ntp_weight, made.gamma, made["diverged_at"])
    ood = (10 * gamma + objective).transpose(*made["diverged_at"].dims)
    noise = xr.zeros_like(ood) + np.random.default_rng(0).random(ood.shape)
    made["ood.accuracy"] = ood.expand_dims(step=list(STEPS))
    made["train.loss"] = noise.expand_dims(step=list(STEPS))
    made["norm.log_frobenius_whole"] = noise.expand_dims(snapshot=[0, 1])
    for name, values in (("top", gamma.transpose(*ood.dims)), ("trace", noise), ("sam", noise)):
        made[f"minimum.{name}"] = values
    found = page.suspects(made)["value"].sel(coefficient="spearman")
    # two groups of six in twelve rows: ranks 3.5 and 9.5 against 2, 5, 8, 11 make sqrt(0.8) and sqrt(0.2)
    assert float(found.sel(measure="objective", control="knobs")) == pytest.approx(1)
    assert float(found.sel(measure="sharpness", control="none")) == pytest.approx(6 / np.sqrt(45))
    assert np.isnan(found.sel(measure="sharpness", control="knobs"))


def test_curves_of_both_objectives_stand_side_by_side():
    made = answered(0.1, 0.9)
    made["diverged_at"].loc[{"seed": 2, "ntp_weight": CTP}] = 5
    found = page.side_by_side(made, {"ood": module.accuracy})
    assert set(found) == {"diverged_at", "CTP, ood", "NTP, ood"} and "ntp_weight" not in found.dims
    plain = {"gamma": 0.5, "weight_decay": 0.01, "label_noise": 0.0, "context_noise": 0.0, "learning_rate": 1e-3}
    last = found.isel(step=-1).sel(plain)
    assert last["CTP, ood"].values.tolist() == [0.1] * 3 and last["NTP, ood"].values.tolist() == [0.9] * 3
    assert last["diverged_at"].values.tolist() == [-1, -1, 5]


def test_variants_without_both_objectives_have_no_section():
    assert (
        page.sections({"shuffled": dataset(ntp_weight=(NTP,)), "none": dataset().isel(ntp_weight=0, drop=True)}) == []
    )


@pytest.mark.parametrize("preset", base.presets(config))
def test_every_variant_can_be_built_and_measured(preset):
    for name, variant in configs.variants(config.get_config(preset)).items():
        experiment, grid = configs.experiment(variant), configs.grid(variant)
        if variant.start.variant:
            assert measures(experiment) == []
            continue
        assert len({one.name for one in measures(experiment)}) == 4, name
        shuffled, controlled = name.endswith("shuffled"), name.endswith(tuple(controls.REGULARIZERS))
        wanted = (NTP,) if shuffled else (CTP,) if controlled else (CTP, NTP)
        assert set(wanted) <= set(grid.axes["ntp_weight"]) and experiment.objective.shuffle_context == shuffled


def test_models_and_tasks_that_cannot_be_measured_are_refused():
    variant = configs.variants(config.smoke())["composition"]
    variant.grid.ntp_weight = (0.0,)
    variant.model.readout = "last"
    with pytest.raises(ValueError, match=r"transformers with model\.readout='all'"):
        measures(configs.experiment(variant))


def test_row_that_diverged_is_not_slow():
    made = dataset()
    learnt = xr.DataArray([0.0, 1.0, 1.0, 1.0], {"step": list(STEPS)})
    made["train.accuracy"] = learnt * xr.ones_like(made["diverged_at"])
    assert measure("N1", a=made).median == 1
    made["diverged_at"].loc[{"ntp_weight": NTP}] = 150
    assert measure("N1", a=made).verdict == "not measured"


def test_controls_of_a_task_are_no_tasks():
    made = answered(0.1, 0.9)
    for of in module.CONTROLS:
        assert measure("N2", a=made, **{f"a_{of}": answered(0.9, 0.1)}).per_seed == measure("N2", a=made).per_seed
