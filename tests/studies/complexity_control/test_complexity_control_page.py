"""Both studies from the command line to their pages."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import config as configs
from lab.cli import main
from lab.configs import complexity_control_language
from lab.measuring.declare import Measure, Row
from lab.studies.complexity_control import language
from lab.tasks import Batch

TINY = ["--config.steps=4", "--config.eval_every=2", "--config.checkpoint_every=4", "--config.eval_size=32"]


@pytest.fixture(scope="module", autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to whole numbers
        yield


def figures(root):
    return {path.stem for path in (root / "report" / "figures").glob("*.png")}


def test_smoke_preset_draws_every_part(tmp_path, monkeypatch):
    """Measures of the loss are replaced by numbers that are had at once: they alone take as long as all the rest."""

    def cheap(name, output):
        return lambda experiment: Measure(
            name, lambda row: {output: row.hparams["gamma"]}, {output: ""}, snapshots="last"
        )

    module = importlib.import_module("lab.studies.complexity_control.measures")
    monkeypatch.setattr(module, "minimum", cheap("minimum", "top"))
    monkeypatch.setattr(module.loss, "quantized", cheap("quantization", "description_length"))
    only = ["--variants=phase,noise_1_depth_2", "--config.grid.seed=(0,)"]
    main(["reproduce", "complexity_control", "--preset=smoke", f"--workdir={tmp_path}", *only, *TINY])
    assert {
        "phase-grid", "phase-slice", "phase-accuracies", "complexity-rank", "complexity-measures",
        "complexity-predictors", "masked-seen", "masked-unseen", "circuit-equivalence", "circuit-outputs",
        "noise-steps", "noise-pairs",
    } <= figures(tmp_path)  # fmt: skip


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
    options = [f"--config.task.path={folder}", "--config.grid.train_items=(8,16)", "--config.task.length=12"]
    root = folder / "w"
    main(["reproduce", "complexity_control_language", "--preset=smoke", f"--workdir={root}", *options, *TINY])
    return root


def test_language_study_runs_from_a_folder_to_a_page(scan):
    assert {"scan-grid", "scan-training", "scan-train-items"} <= figures(scan)


def test_more_training_items_than_there_are_cannot_be_asked_of_a_grid(scan, capsys):
    options = [f"--config.task.path={scan.parent}", "--config.grid.train_items=(8,99)", "--config.task.length=12"]
    more = scan.parent / "more"
    with pytest.raises(SystemExit):
        main(["reproduce", "complexity_control_language", "--preset=smoke", f"--workdir={more}", *options])
    assert "a row of the grid: task.train_items=99.0: there are 20 training items" in capsys.readouterr().err
    assert not more.exists()


def test_decoded_answers_are_counted_by_type(monkeypatch):
    config = complexity_control_language.get_config("smoke_cogs")
    config.task.path = "anywhere"
    measure = language.decoded(configs.experiment(configs.variants(config)["cogs"]))
    assert (measure.split, measure.snapshots) == ("gen", "last")
    kind_B = jnp.array([0, 0, 0, 20, 20], jnp.int32)
    batch = Batch(jnp.zeros((5, 2), jnp.int32), jnp.zeros((5, 2), jnp.int32), jnp.ones((5, 2)), {"kind_B": kind_B})
    monkeypatch.setattr(language.decode, "exact_match", lambda *_: jnp.array([1.0, 0.0, 0.0, 1.0, 0.0]))
    found = measure.function(Row(None, {}, {}, {}, jnp.int32(0), batch, None))
    assert float(found["accuracy"]) == pytest.approx(0.4)
    by_type = np.asarray(found["type_accuracy"])
    assert by_type[[0, 20]] == pytest.approx([1 / 3, 0.5]) and np.isnan(by_type[1:20]).all()
