"""SCAN and COGS: what is decoded, pictures along the axes of the grid, and the study from a folder to its page."""

import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from shown import lines
from synthetic import Grid

from lab import config as configs
from lab.configs import base
from lab.configs import complexity_control_language as config
from lab.measuring.declare import Row
from lab.studies import complexity_control_language as study
from lab.tasks import Batch

TINY = ["--config.steps=4", "--config.eval_every=2", "--config.checkpoint_every=4", "--config.eval_size=32"]
SMALL, LARGE = {"gamma": 0.8, "weight_decay": 1.0}, {"gamma": 0.3, "weight_decay": 0.01}


def pictures(**grids):
    sections = study.sections(synthetic.runs(study.STUDY, **grids))
    return {picture.name: picture.figure for section in sections for picture in section.pictures}


def test_accuracy_along_an_axis_is_of_the_corners_and_of_the_largest_training_set():
    axes = {"gamma": (0.3, 0.8), "weight_decay": (0.01, 1.0), "train_items": (100, 10), "ntp_weight": (0.0, 1.0)}
    grid = Grid(study.STUDY.usual, {"task": {"family": "scan"}}, **axes)
    for size, weight in itertools.product((10, 100), (0.0, 1.0)):
        at = {"train_items": size, "ntp_weight": weight}
        accuracy = size / 200 + weight / 10 + 0.01 * np.arange(-2, 3)
        grid.put("test.accuracy", accuracy, **SMALL, **at).put("test.accuracy", np.zeros(5), **LARGE, **at)
        grid.put("train.accuracy", np.ones(5), **SMALL, **at).put("train.accuracy", np.ones(5), **LARGE, **at)
    drawn = pictures(scan=grid)
    assert set(drawn) == {"scan-grid", "scan-training", "scan-train-items", "scan-ntp-weight"}
    # lines: in distribution at both corners, then out of it
    *_, small, large = lines(drawn["scan-ntp-weight"].axes[0], "value")
    np.testing.assert_allclose(small.get_xydata(), [[0, 0.5], [1, 0.6]])
    assert not large.get_ydata().any()
    *_, small, _ = lines(drawn["scan-train-items"].axes[0], "value")
    np.testing.assert_allclose(small.get_xydata(), [[10, 0.15], [100, 0.6]])  # of several weights the usual one


def test_types_of_generalization_are_drawn_by_corner():
    grid = Grid(study.STUDY.usual, {"task": {"family": "cogs"}}, gamma=(0.3, 0.8), weight_decay=(0.01, 1.0))
    by_type = np.linspace(0, 1, 21)
    for place, values in ((SMALL, by_type), (LARGE, 1 - by_type)):
        grid.put("decoded.type_accuracy", np.tile(values, (5, 1)), None, {"gen_type": range(21)}, **place)
    image = study.by_type(grid.run()).figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, np.stack([by_type, 1 - by_type], axis=1))


def test_decoded_answers_are_counted_by_type(monkeypatch):
    smoke = config.get_config("smoke_cogs")
    smoke.task.path = "anywhere"
    measure = study.decoded(configs.experiment(configs.variants(smoke)["cogs"]))
    assert (measure.split, measure.snapshots) == ("gen", "last")
    kind_B = jnp.array([0, 0, 0, 20, 20], jnp.int32)
    batch = Batch(jnp.zeros((5, 2), jnp.int32), jnp.zeros((5, 2), jnp.int32), jnp.ones((5, 2)), {"kind_B": kind_B})
    monkeypatch.setattr(study.decode, "exact_match", lambda *_: jnp.array([1.0, 0.0, 0.0, 1.0, 0.0]))
    found = measure.function(Row(None, {}, {}, {}, jnp.int32(0), batch, None))
    assert float(found["accuracy"]) == pytest.approx(0.4)
    by_type = np.asarray(found["type_accuracy"])
    assert by_type[[0, 20]] == pytest.approx([1 / 3, 0.5]) and np.isnan(by_type[1:20]).all()


@pytest.mark.parametrize("preset", base.presets("complexity_control_language"))
def test_every_preset_can_be_built(preset):
    made = config.get_config(preset)
    made.task.path = "anywhere"  # nothing is read yet
    for variant in configs.variants(made).values():
        experiment = configs.experiment(variant)
        assert "train_items" in configs.grid(variant).columns
        assert [one.name for one in study.measures(experiment)] == ["decoded"]


def test_published_embeddings_have_the_fixed_scale():
    (gamma,) = config.get_config("paper").grid.gamma_embed
    assert 768**-gamma == pytest.approx(0.02, rel=1e-12)  # float64, one power


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Commands of three words, and a study trained on them."""
    folder = tmp_path_factory.mktemp("scan")
    verbs, ways, counts = ("walk", "look", "run", "jump"), ("left", "right"), ("once", "twice", "thrice")
    commands = list(itertools.product(verbs, ways, range(len(counts))))
    for split, part in (("train", commands[:-4]), ("test", commands[-4:])):
        said = (
            f"IN: {verb} {way} {counts[n]} OUT: {' '.join([f'I_{way.upper()}', f'I_{verb.upper()}'] * (n + 1))}\n"
            for verb, way, n in part
        )
        (folder / f"tasks_{split}_addprim_turn_left.txt").write_text("".join(said))
    reproduce(folder, "w", "(8,16)", *TINY)
    return folder


def reproduce(folder: Path, name: str, train_items: str, *options: str):
    options = [f"--config.task.path={folder}", f"--config.grid.train_items={train_items}", *options]
    synthetic.reproduce("complexity_control_language", folder / name, "--config.task.length=12", *options)


def test_study_runs_from_a_folder_to_a_page(scan):
    drawn = {path.stem for path in (scan / "w" / "report" / "figures").glob("*.png")}
    assert {"scan-grid", "scan-training", "scan-train-items"} <= drawn


def test_more_training_items_than_there_are_cannot_be_asked_of_a_grid(scan, capsys):
    with pytest.raises(SystemExit):
        reproduce(scan, "more", "(8,99)")
    assert "a row of the grid: task.train_items=99.0: there are 20 training items" in capsys.readouterr().err
    assert not (scan / "more").exists()
