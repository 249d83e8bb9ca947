"""Every claim on grids written by hand, on which the answer is known; presets; pictures. Arrays are (seed,)."""

import functools
import io
import math

import jax
import numpy as np
import pytest
import synthetic
from PIL import Image
from synthetic import Grid

from lab import config as configs
from lab import models, rng
from lab.configs import m2m as config
from lab.report.page import draw_section
from lab.runs import Runs
from lab.studies import m2m as study

measured = functools.partial(synthetic.measured, study.STUDY)
NAN = np.nan
ONES = np.ones(5)
BANDS = ("low", "middle", "high")
TRAIN_STEPS = tuple(range(100))


def grid(**variables):
    made = Grid(
        config={"controller": {"control_target": 0.1, "control_constant": 0.02}}, times={"train_step": TRAIN_STEPS}
    )
    for name, values in variables.items():
        dims = {"rollout__by_band": {"band": BANDS}}.get(name)
        time = "train_step" if name in ("controlled", "coefficient") else None
        made.put(name.replace("__", "."), values, time, dims)
    return made


@pytest.mark.parametrize(
    ("id", "grids", "expected"),
    [
        (
            "V1a",
            {"fno": grid(rollout__error=0.4 * ONES), "m2m": grid(rollout__error=(0.2, 0.36, 0.4, 0.8, 0.1))},
            (0.5, 0.9, 1.0, 2.0, 0.25),
        ),
        (
            "V1b",
            {"ns_fno": grid(rollout__error=0.1 * ONES), "ns_m2m": grid(rollout__error=(0.1, 0.05, 0.2, 0.1, 0.1))},
            (1.0, 0.5, 2.0, 1.0, 1.0),
        ),
        ("V2a", {"m2m": grid(routing__accuracy=(1, 0.9, 0.5, NAN, 1))}, (1, 0.9, 0.5, NAN, 1)),
        (
            "V2b",
            {"free": grid(routing__accuracy=(0.5, 0.5, 0.7, 1, 0), routing__largest_share=ONES)},
            (0.5, 0.5, 0.7, 1, 0),
        ),
        (
            "V4",
            {"m2m": grid(rollout__seam=(1, 2, 3, 1, 1)), "fno": grid(rollout__seam=ONES)},
            (1, 2, 3, 1, 1),
        ),
        (
            "V5",
            {
                "fno": grid(rollout__by_band=np.tile([0.1, 0.5, 1.0], (5, 1))),
                "m2m": grid(rollout__by_band=np.outer((1, 1, 1, 2, 0.5), [0.1, 0.5, 0.25])),
            },
            (-0.75, -0.75, -0.75, -1.5, -0.375),
        ),
    ],
)  # fmt: skip
def test_claims_by_hand(id, grids, expected):
    np.testing.assert_allclose(measured(id, **grids).values_S, expected, rtol=1e-12)


def test_a_controller_has_a_fifth_of_the_training_to_settle_and_noise_of_both_signs_is_none():
    steps = np.arange(100)[:, None]
    early, noise = steps < 20, 0.05 * (-1.0) ** steps
    held = np.where(early, 5.0, 0.1 + noise * np.array([0, 1, 1, 1, 1]) + np.array([0, 0, 0.005, 0.05, -0.1]))
    made = grid(controlled=held, coefficient=np.full((100, 5), 0.03))
    # windows of five steps keep a fifth of the noise, 0.01 of 0.1, at most
    np.testing.assert_allclose(measured("V3a", m2m=made).values_S, [0, 0.1, 0.1, 0.5, 1.0], atol=0.03)
    assert measured("V3a", m2m=made).note == "Weights from 0.030 to 0.030."


def test_a_constant_weight_is_compared_with_the_same_seed():
    target, far = np.full((100, 5), 0.1), np.full((100, 5), 0.3)
    found = measured("V3b", m2m=grid(controlled=target), constant=grid(controlled=far))
    np.testing.assert_allclose(found.values_S, 2.0)
    assert found.note == "Weight 0.02, distance 2.00."


def test_init_rates_are_compared_seed_by_seed():
    made = Grid(gamma=(0.3, 0.5, 0.7))
    made.put("rollout.error", synthetic.by_gamma(0.4, (0.1, 0.2, 0.4, 0.4, 0.4), 0.2), None)
    made.put("routing.largest_share", synthetic.by_gamma(1, 0.75, 0.75), None)
    found = measured("V6", gamma=made)
    np.testing.assert_allclose(found.values_S, [4, 2, 2, 2, 2])
    assert "0.5: 0.400 and 0.75" in found.note
    assert "a third gamma" in measured("V6", gamma=Grid(gamma=(0.3, 0.5))).note


def test_the_published_error_is_asked_of_the_published_setting_alone():
    errors = Grid(config={"task": study.BENCHMARK}).put("test.error", (0.15, 0.156, 0.16, 0.2, 0.13))
    np.testing.assert_allclose(measured("V7", ns_fno=errors).values_S, (0.15, 0.156, 0.16, 0.2, 0.13))
    for change in ({"viscosity": 1e-4}, {"size": 32}, {"frames": 1}):
        other = Grid(config={"task": study.BENCHMARK | change}).put("test.error", ONES)
        assert "viscosity 1e-5" in measured("V7", ns_fno=other).note


# --- presets ---


def experiments(preset):
    return {name: configs.experiment(one) for name, one in configs.variants(config.get_config(preset)).items()}


def n_params(experiment):
    drawn = jax.eval_shape(lambda: models.init(experiment.model, rng.key(0, "init"), experiment.task.example()))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(drawn))


@pytest.mark.parametrize("preset", ["cpu", "record", "gpu", "paper"])
def test_operators_that_are_compared_have_as_many_parameters_within_five_percent(preset):
    counts = {name: n_params(one) for name, one in experiments(preset).items() if name != "gamma"}
    assert max(counts.values()) <= 1.05 * min(counts.values()), counts


@pytest.mark.parametrize("preset", ["cpu", "record", "gpu"])
def test_fine_waves_are_beyond_the_modes_of_one_operator_and_within_those_of_the_first_expert(preset):
    made = experiments(preset)
    task, expert, single = made["m2m"].task, made["m2m"].model, made["fno"].model
    assert task.horizon == expert.horizon == single.horizon and task.n_train == made["m2m"].train_size
    # on the ring of the fine waves some wavenumber is below high / sqrt(2) along both axes
    assert (task.high - 0.5) / math.sqrt(2) >= single.modes - 1
    assert expert.patches * (expert.modes[0] - 1) >= task.high
    assert expert.modes[0] > expert.modes[1] > task.low / expert.patches


def test_paper_has_the_published_operator():
    single = experiments("paper")["ns_fno"]
    assert n_params(single) == 414_517
    assert {name: getattr(single.task, name) for name in study.BENCHMARK} == study.BENCHMARK


# --- pictures ---


def drawn(rough=0.1):
    n = 8
    true = np.random.default_rng(0).normal(size=(5, 2, 3, n, n))
    pixels = {"example": [0, 1], "time_ahead": [0, 1, 2], "down": range(n), "right": range(n)}
    made = grid()
    for name, values in {"true": true, "said": true + rough}.items():
        made.put(f"rollout.{name}", values, None, pixels)
    for name in ("true_power", "said_power", "error_power"):
        made.put(f"rollout.{name}", np.full((5, 5), 0.5), None, {"wavenumber": range(5)})
    made.put("rollout.by_frame", np.full((5, 2), 0.3), None, {"frame": [1, 2]})
    return made


def test_fields_and_predictions_stand_beside_each_other_and_move():
    mixture = drawn(0.05)
    choice = np.tile([0, 1, 1, 1], (5, 2, 2, 1))
    mixture.put("routing.choice", choice, None, {"example": [0, 1], "frame": [1, 2], "patch": range(4)})
    runs = Runs({"fno": drawn().dataset, "m2m": mixture.dataset})
    rows, shown = study._shown(runs)
    assert [*rows] == ["true", "one operator", "error, one operator", "mixture, PI", "error, mixture, PI"]
    np.testing.assert_allclose(rows["error, mixture, PI"], 0.05, atol=1e-12)
    np.testing.assert_array_equal(shown, [[0, 1, 1, 1]] * 2)
    film = study.film(runs).film
    assert len(film) < 300_000 and Image.open(io.BytesIO(film)).n_frames == 3
    section = draw_section("t", "", runs, (study.beside, study.film, study.spectra, study.frames))
    assert len(section.pictures) == 4


def test_sections_say_of_which_fields_they_are():
    of_both = Runs({"fno": drawn().dataset, "ns_fno": drawn().dataset})
    scales, flow = study.sections(of_both)
    assert (scales.title, flow.title) == ("Fields of two scales", "Navier-Stokes")
    assert scales.text.startswith(study.FIELDS) and flow.text.startswith(study.VORTICITY)


def test_pictures_say_what_they_lack():
    section = draw_section("t", "", Runs({"fno": grid(rollout__error=ONES).dataset}), (study.beside, study.spectra))
    assert "this run lacks rollout.said" in section.text
