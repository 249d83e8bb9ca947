"""Which measurements of which variants are taken, and what is refused before anything is measured."""

import functools
import html
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from lab import config as configs
from lab import grid, schedule, stages
from lab.configs import composition, scaling_law
from lab.disk import files, measurements, store
from lab.disk.files import WorkdirError
from lab.disk.load import load
from lab.disk.workdir import Workdir, variants_in
from lab.measuring.catalogue import weights
from lab.text import corpus

ROWS = {"unseen": 3, "wrong": 2}
STEPS = 40  # of the smoke preset
SPLITS = configs.experiment(next(iter(configs.variants(composition.smoke()).values()))).task.splits


def config(n_rows, **changes):
    """The composition study's task, and a model that the study does not measure."""
    options = next(iter(configs.variants(composition.get_config("smoke")).values())).to_dict()
    options["model"] = dict(family="emb_mlp", vocab_size=201, d_model=4, d_ff=3, activation="tanh")
    options["grid"] = dict(gamma=(0.5,), weight_decay=(0.0,), learning_rate=(1e-3,), seed=tuple(range(n_rows)))
    return ConfigDict(options | changes)


def train(path, settings):
    """What training leaves, of random weights."""
    rows = grid.product(settings.grid.to_dict())
    said = {"data": {}, "start": {}, "command": "python -m lab train", "devices": ["cpu"], "versions": {"jax": "0"}}
    files.write_json(path / "config.json", {"config": configs.to_json(settings), **said})
    files.write_json(path / "grid.json", rows.to_json())
    for end, steps in schedule.chunks(settings).items():
        losses = np.zeros((len(steps), len(rows)), np.float32)
        chunk = {"train_step": np.array(steps, int), "step": np.array([end]), "train_loss": losses}
        names = [f"{split}.{score}" for split in SPLITS for score in ("loss", "accuracy", "reasoning", "symmetric")]
        chunk |= dict.fromkeys(names, np.zeros((1, len(rows)), np.float32))
        files.write_npz(path / "metrics" / f"{end}.npz", chunk | {"diverged_at": np.full(len(rows), -1)})
    draw = np.random.default_rng(0)
    shapes = {"embed": ("embedding", (201, 4)), "in": ("kernel", (4, 3)), "head": ("kernel", (3, 201))}
    tree = {of: {leaf: draw.standard_normal((len(rows), *shape), np.float32)} for of, (leaf, shape) in shapes.items()}
    store.save(path / "snapshots", 0, tree)
    (path / "checkpoints" / str(settings.steps)).mkdir(parents=True)


@pytest.fixture
def root(tmp_path):
    for name, n_rows in ROWS.items():
        train(tmp_path / name, config(n_rows))
    return tmp_path


def held(root):
    return {path.stem for path in root.glob("*/analysis/*.json")}


def test_catalogue_is_there_for_models_that_the_study_does_not_measure(root):
    assert stages.analyze(root, ["norm"]) == ["unseen/norm", "wrong/norm"]
    with pytest.raises(ValueError, match="the composition study measures transformers, not EmbMLP"):
        stages.analyze(root)
    with pytest.raises(ValueError, match=r"no measurement 'flow': the composition study measures transformers"):
        stages.analyze(root, ["flow"])
    with pytest.raises(ValueError, match=r"no measurement 'nor'; did you mean 'norm'\? There are .*, or all$"):
        stages.analyze(root, ["nor"])


def test_all_leaves_out_what_the_study_cannot_measure(root, monkeypatch):
    monkeypatch.setattr(stages.catalogue, "measures", lambda experiment, names: [weights.norms(experiment)])
    assert stages.analyze(root, ["all"]) == ["unseen/norm", "wrong/norm"]


def test_training_of_no_study_is_measured_by_name(root):
    train(root / "mine", config(1, study="mine"))
    assert stages.analyze(root, ["norm"], ["mine"]) == ["mine/norm"]
    with pytest.raises(ValueError, match=r"name measurements, or all: .*mine belongs to no study"):
        stages.analyze(root, None, ["mine"])
    with pytest.raises(ValueError, match=r"^no measurement 'condensation'; see directions\. There are .*, or all$"):
        stages.analyze(root, ["condensation"], ["mine"])


def test_rows_are_refused_before_the_first_variant_is_measured(root):
    with pytest.raises(ValueError, match=r"row 2: .*wrong has rows 0 to 1"):
        stages.analyze(root, ["norm"], rows=(0, 2))
    assert held(root) == set()
    assert stages.analyze(root, ["norm"], ["unseen"], rows=(0, 2)) == ["unseen/norm"]


def test_variant_that_is_still_training_does_not_stop_the_others(root):
    shutil.rmtree(root / "wrong" / "checkpoints" / str(STEPS))
    with pytest.raises(WorkdirError, match="variant wrong is not trained to its last step"):
        stages.analyze(root, ["norm"])
    assert held(root) == set()
    assert stages.analyze(root, ["norm"], ["unseen"]) == ["unseen/norm"]
    with pytest.raises(WorkdirError, match="variant wrong is not trained to its last step"):
        stages.analyze(root, ["norm"], ["wrong"])


TRANSFORMER = dict(
    family="transformer", vocab_size=201, max_length=9, n_layers=2, n_heads=1, d_model=8, d_head=8, d_ff=8,
    activation="relu", norm="post", use_bias=False, head_bias=False, final_norm=False, tied_head=False, readout="last",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model", "most", "why"),
    [
        ("edges", TRANSFORMER, 10, "it cuts every attention edge on its own, and this model has more than 10"),
        ("attribution", TRANSFORMER, 1000, "it is not for model.norm='post'"),
        ("focus", None, 1000, "it is of a transformer's attention, this model is EmbMLP"),
        ("edges", None, 1000, "it is of a transformer's attention, this model is EmbMLP"),
    ],
)
def test_measurement_that_this_model_cannot_have_says_why(tmp_path, monkeypatch, name, model, most, why):
    monkeypatch.setattr(stages.catalogue, "MOST_EDGES", most)
    train(tmp_path / "main", config(1, **({"model": model} if model else {})))
    with pytest.raises(ValueError, match=rf"^no measurement '{name}': {re.escape(why)}\. There are .*rank.*, or all$"):
        stages.analyze(tmp_path, [name])


@pytest.mark.parametrize(
    ("names", "end"), [(["taps"], r"\. Variant ones does not have it; .*: --variants=a,b$"), (None, "$")]
)
def test_variants_that_have_a_measurement_are_named_where_another_has_not(monkeypatch, names, end):
    def measures(work, names):
        if work == "ones":
            raise ValueError("no measurement 'taps'. There are rank, or all")
        return ["taps"]

    monkeypatch.setattr(stages, "_measures", measures)
    with pytest.raises(ValueError, match=rf"^no measurement 'taps'\. There are rank, or all{end}"):
        stages._due({"a": "a", "ones": "ones", "b": "b"}, names)
    assert stages._due({"a": "a", "b": "b"}, names) == {"a": ["taps"], "b": ["taps"]}


def test_only_measurements_of_other_code_are_outdated(root):
    assert stages.stale(root) == {}
    stages.analyze(root, ["norm", "rank"])
    assert stages.stale(root) == {}
    work = Workdir(root / "wrong")
    header, arrays = measurements.read(work, "norm")
    measurements.write(work, "norm", arrays, header | {"code": "other"})
    assert stages.stale(root) == {"wrong": ["norm"]}
    assert stages.analyze(root, ["norm", "rank"]) == ["wrong/norm"]
    assert stages.stale(root) == {} and measurements.read(work, "norm")[0] == header


def test_only_what_a_training_holds_is_built_to_see_what_is_outdated(root, monkeypatch):
    built = []
    for name, (build, requires) in stages.catalogue.CATALOGUE.items():
        noting = functools.partial(lambda name, build, experiment: built.append(name) or build(experiment), name, build)
        monkeypatch.setitem(stages.catalogue.CATALOGUE, name, (noting, requires))
    files.write_json(root / "wrong" / "analysis" / "norm.json", {"code": "other"})
    assert stages.stale(root) == {"wrong": ["norm"]} and built == ["norm"]


def test_trainings_on_one_text_read_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))
    text, read, files_of = tmp_path / "text.txt", [], corpus.files_of
    monkeypatch.setattr(corpus, "files_of", lambda recipe: read.append(recipe) or files_of(recipe))
    text.write_text("".join(f"{'abc'[i % 3]} {'de'[i % 2]}\n" for i in range(99)))
    settings = scaling_law.get_config("smoke")
    settings.task.path = str(text)
    for name, variant in configs.variants(settings).items():
        if name in ("small_4", "large_4", "eps_12"):
            files.write_json(tmp_path / "run" / name / "config.json", {"config": configs.to_json(variant)})
            files.write_json(tmp_path / "run" / name / "grid.json", configs.grid(variant).to_json())
    for _ in range(2):
        assert stages.stale(tmp_path / "run") == {} and len(read) == 1


# --- a report of what there is so far ---


def test_report_of_what_there_is_leaves_open_what_is_not(tmp_path):
    """One variant is trained but not analyzed, one is not trained to its end."""
    for name in ("unseen", "wrong"):
        train(tmp_path / name, config(1, model=TRANSFORMER))
    shutil.rmtree(tmp_path / "wrong" / "checkpoints" / str(STEPS))
    with pytest.raises(WorkdirError, match="variant wrong is not trained to its last step"):
        stages.report(tmp_path)
    page, rows = stages.report(tmp_path, partial=True)
    notes = {row["id"]: row["note"] for row in rows}
    assert {row["verdict"] for row in rows} == {"open"}
    assert "variant wrong (not trained to its last step)" in notes["C1"]  # it is of all variants
    assert "variant wrong" in notes["C2"] and notes["C4"] == "This run lacks rank.stable."
    assert notes["C3a"] == "This run lacks weight decay 0.01 (the grid has 0)."  # its metric is there
    text = page.read_text()
    assert "left out wrong" in text and "left out unseen" in text and "(not analyzed yet)" in text


def test_variant_that_was_not_begun_is_named(tmp_path):
    train(tmp_path / "unseen", config(1, model=TRANSFORMER))
    _, rows = stages.report(tmp_path, partial=True)
    assert "variant wrong (not trained yet)" in {row["id"]: row["note"] for row in rows}["C2"]


def test_nothing_trained_is_no_part_of_a_report(root):
    for name in ROWS:
        shutil.rmtree(root / name / "checkpoints" / str(STEPS))
    with pytest.raises(WorkdirError, match="no variant is trained to its last step"):
        stages.report(root, partial=True)


def test_training_of_no_study_is_reported_without_claims(tmp_path):
    train(tmp_path / "My Run", config(2, study="mine"))
    stages.analyze(tmp_path, ["norm"])
    page, rows = stages.report(tmp_path / "My Run")
    assert rows == [] and stages.NO_STUDY in page.read_text()
    assert 'data-variant="My Run"' in page.read_text()  # two rows: a grid to explore
    assert all(picture.stem.startswith("my-run-") for picture in (page.parent / "figures").glob("*"))


def test_commands_in_texts_can_be_pasted(tmp_path, monkeypatch):
    """And a folder that is called `.` has a name."""
    train(tmp_path / "my run" / "unseen", config(1, model=TRANSFORMER))
    with pytest.raises(WorkdirError, match=re.escape(f"run `python -m lab analyze '{tmp_path / 'my run'}'` first")):
        stages.report(tmp_path / "my run")
    page, _ = stages.report(tmp_path / "my run", partial=True)
    assert f"python -m lab claims --workdir='{tmp_path / 'my run'}'" in html.unescape(page.read_text())
    assert "<script" not in page.read_text()  # one row: nothing to explore
    monkeypatch.chdir(tmp_path / "my run" / "unseen")
    assert [*variants_in(".")] == ["unseen"] and load(".").attrs["variant"] == "unseen"
