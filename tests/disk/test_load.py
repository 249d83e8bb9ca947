"""What `load` shows is what lies on disk, each number at its place in the grid."""

import shutil

import jax
import numpy as np
import pytest
from on_disk import AXES, ROWS, SCHEDULE, random, write_training

import lab
from lab import grid as grids
from lab import models
from lab.disk import files, measurements, metrics, store
from lab.disk.files import WorkdirError
from lab.disk.load import load
from lab.disk.workdir import Workdir

pytestmark = pytest.mark.usefixtures("echo_is_a_task")


@pytest.fixture
def config(echo):
    return echo.config(grid=AXES, **SCHEDULE)


@pytest.fixture
def trained(config, tmp_path):
    raw = write_training(tmp_path / "w", config, grids.product(AXES))
    return tmp_path / "w", raw


@pytest.fixture
def listed(config, tmp_path):
    """A grid that is no product: rows have no axes."""
    grid = grids.zipped({name: tuple(row[i] for row in ROWS[:5]) for i, name in enumerate(AXES)})
    raw = write_training(tmp_path / "w", config, grid)
    return tmp_path / "w", raw


def test_every_number_stands_at_its_place_in_the_grid(trained):
    path, raw = trained
    dataset = lab.load(path)
    assert dataset.train_step.values.tolist() == list(range(16))
    assert dataset.step.values.tolist() == [0, 4, 8, 12, 16]
    assert {name: tuple(dataset[name].values.tolist()) for name in AXES} == AXES
    for row, values in enumerate(ROWS):
        place = dict(zip(AXES, values, strict=True))
        here = dataset.sel(place)
        for name in ("train_loss", "grad_norm", "odd.accuracy"):
            np.testing.assert_array_equal(here[name].values, raw[name][:, row])
        np.testing.assert_array_equal(here["odd.share"].transpose("step", "token").values, raw["odd.share"][:, row])
        assert here.diverged_at == raw["diverged_at"][row] == (5 if row == 1 else -1)
        for token in range(8):
            found = here["odd.share"].sel(token=token, step=4)
            assert found == raw["odd.share"][1, row, token]
    assert dataset.train_loss.dtype == np.float32 and dataset.diverged_at.dtype == np.int32


def test_grid_that_is_no_product_keeps_its_rows(listed):
    path, raw = listed
    dataset = lab.load(path)
    assert dataset.train_loss.dims == ("train_step", "row") and dataset["odd.share"].dims == ("step", "row", "token")
    np.testing.assert_array_equal(dataset.train_loss.values, raw["train_loss"])
    for row, values in enumerate(ROWS[:5]):
        here = dataset.isel(row=row)
        assert tuple(here[name].item() for name in AXES) == values
        np.testing.assert_array_equal(here["odd.share"].values, raw["odd.share"][:, row])


def test_accessor_gives_the_parameters_of_the_row_that_was_asked_for(trained):
    path, _ = trained
    dataset = lab.load(path)
    for row, values in enumerate(ROWS):
        place = dict(zip(AXES, values, strict=True))
        assert dataset.lab.row(**place) == row
        for step in (0, 16):
            params = dataset.lab.params(step, **place)
            np.testing.assert_array_equal(params["in"]["kernel"], random(step, 12, 3, 2)[row])
    np.testing.assert_array_equal(
        dataset.lab.params(gamma=0.5, weight_decay=0, seed=7)["in"]["kernel"], random(16, 12, 3, 2)[7]
    )  # the last snapshot; the learning rate has one value, so it may be left out
    one = dataset.sel(gamma=0.5, weight_decay=0.1, seed=0).squeeze()
    place = {name: one[name].item() for name in AXES}
    assert dataset.lab.row(**place) == ROWS.index(tuple(place.values()))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"gamma": 0.5, "weight_decay": 0.1}, r"2 rows match; values to choose from: .*'seed': \[0, 7\]"),
        ({}, "12 rows match"),
        ({"gamma": 0.4, "weight_decay": 0.1, "seed": 0}, "0 rows match"),
        ({"gama": 0.5}, "gama: the grid has gamma, weight_decay, learning_rate, seed"),
    ],
)
def test_accessor_refuses_a_place_that_is_not_one_row(trained, place, message):
    with pytest.raises(ValueError, match=message):
        lab.load(trained[0]).lab.params(**place)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"gamma": 0.46, "weight_decay": 0.1, "seed": 0}, r"'gamma': \[0.5, 0.3\], 'weight_decay': \[0.1, 0.0, 1.0\]"),
        ({"gamma": 0.31}, r"^{'gamma': 0.31}: 0 rows match; values to choose from: {'gamma': \[0.3, 0.5\]}$"),
        ({"seed": 6}, r"{'seed': \[7, 0\]}$"),
    ],
)
def test_place_off_the_grid_is_answered_with_the_grids_values_the_nearest_first(trained, place, message):
    with pytest.raises(ValueError, match=message):
        lab.load(trained[0]).lab.params(**place)


@pytest.mark.parametrize(
    ("selection", "place", "row"),
    [
        ({"seed": 1}, {"gamma": 0.5, "weight_decay": 0.1}, (0.5, 0.1, 1e-3, 7)),
        ({"seed": 1, "gamma": 0, "weight_decay": 2}, {}, (0.3, 1.0, 1e-3, 7)),
        ({"seed": [1], "gamma": [1]}, {"weight_decay": 0}, (0.5, 0.0, 1e-3, 7)),
        ({"weight_decay": slice(1, None), "seed": 0}, {"gamma": 0.5, "weight_decay": 1}, (0.5, 1.0, 1e-3, 0)),
        ({"seed": 1, "step": -1, "train_step": 3}, {"gamma": 0.5, "weight_decay": 0.1}, (0.5, 0.1, 1e-3, 7)),
    ],
)
def test_what_was_selected_counts_as_given(trained, selection, place, row):
    found = lab.load(trained[0]).isel(selection).lab
    assert found.row(**place) == ROWS.index(row)
    np.testing.assert_array_equal(found.params(**place)["in"]["kernel"], random(16, 12, 3, 2)[ROWS.index(row)])


def test_row_that_was_selected_away_is_not_there(trained, listed_too):
    one = lab.load(trained[0]).isel(seed=1)
    with pytest.raises(ValueError, match=r"0 rows match; values to choose from: {'gamma': .* 'seed': \[7\]}$"):
        one.lab.row(gamma=0.5, weight_decay=0.1, seed=0)
    some = lab.load(listed_too).isel(row=[1, 4])
    assert some.lab.row(weight_decay=0.0) == 1 and some.isel(row=1).lab.row() == 4
    with pytest.raises(ValueError, match="0 rows match"):
        some.lab.row(weight_decay=0.1)


@pytest.fixture
def listed_too(config, tmp_path):
    grid = grids.zipped({name: tuple(row[i] for row in ROWS[:5]) for i, name in enumerate(AXES)})
    write_training(tmp_path / "listed", config, grid)
    return tmp_path / "listed"


def test_selected_time_is_the_snapshot_that_is_read(trained):
    dataset = lab.load(trained[0]).isel(gamma=0, weight_decay=0, seed=0)
    np.testing.assert_array_equal(dataset.sel(step=0).lab.params()["in"]["kernel"], random(0, 12, 3, 2)[0])
    np.testing.assert_array_equal(dataset.sel(step=0).lab.params(16)["in"]["kernel"], random(16, 12, 3, 2)[0])
    with pytest.raises(WorkdirError, match="no snapshot of step 4; there are"):
        dataset.sel(step=4).lab.params()


def test_dataset_and_workdir_stay_those_of_the_folder_that_was_named(trained, tmp_path, monkeypatch):
    """Also when the process goes to a folder that has another of that name."""
    path, _ = trained
    monkeypatch.chdir(path.parent)
    dataset, work, before = lab.load("w"), Workdir("w"), random(16, 12, 3, 2)[0]
    (tmp_path / "x").mkdir()
    other = shutil.copytree(path, tmp_path / "x" / "w")
    files.remove(other / "snapshots")
    store.save(other / "snapshots", 16, {"in": {"kernel": random(99, 12, 3, 2)}})
    monkeypatch.chdir(tmp_path / "x")
    place = dict(zip(AXES, ROWS[0], strict=True))
    np.testing.assert_array_equal(dataset.lab.params(**place)["in"]["kernel"], before)
    np.testing.assert_array_equal(work.params(row=0)["in"]["kernel"], before)


# --- tables ---


def test_table_has_a_line_for_each_number_with_its_own_coordinates(trained):
    path, raw = trained
    dataset = lab.load(path)
    table = dataset.lab.frame("train_loss", "odd.share", "diverged_at")
    assert len(table) == 16 * 12 + 5 * 12 * 8 + 12
    assert list(table.columns) == ["name", "train_step", *AXES, "step", "token", "value"]
    losses = table[table.name == "train_loss"]
    assert losses.step.isna().all() and losses.token.isna().all()
    for row, values in enumerate(ROWS):
        place = np.logical_and.reduce([losses[name] == value for name, value in zip(AXES, values, strict=True)])
        np.testing.assert_array_equal(losses[place].value, raw["train_loss"][:, row])
    shares = table[(table.name == "odd.share") & (table.step == 4) & (table.token == 3)]
    np.testing.assert_array_equal(shares.value, raw["odd.share"][1, :, 3])


def test_table_of_a_grid_that_is_no_product_or_of_one_number(listed):
    path, raw = listed
    dataset = lab.load(path)
    table = dataset.lab.frame("grad_norm")
    np.testing.assert_array_equal(table.pivot(index="train_step", columns="row", values="value"), raw["grad_norm"])
    assert {*AXES} < {*table.columns}
    one = dataset.isel(row=2, train_step=3).lab.frame("grad_norm")
    assert len(one) == 1 and one.value.item() == raw["grad_norm"][3, 2] and one.gamma.item() == ROWS[2][0]


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "which variables"), (("train_los",), "no variable 'train_los'; did you mean 'train_loss'")],
)
def test_table_of_what_is_not_there_is_refused(trained, names, message):
    with pytest.raises(ValueError, match=message):
        lab.load(trained[0]).lab.frame(*names)


def test_repeated_rows_are_ambiguous(config, tmp_path):
    columns = {name: (row, row) for name, row in zip(AXES, ROWS[0], strict=True)}
    write_training(tmp_path / "w", config, grids.zipped(columns))
    with pytest.raises(ValueError, match="2 rows match"):
        lab.load(tmp_path / "w").lab.params(gamma=0.3)


def test_snapshot_that_is_not_there_or_damaged_is_an_error_for_the_user(trained):
    path, _ = trained
    work = Workdir(path)
    with pytest.raises(WorkdirError, match=r"no snapshot of step 5; there are \[0, 16\]"):
        work.params(5, 0)
    (path / "snapshots" / "16" / store.MANIFEST).unlink()
    with pytest.raises(WorkdirError, match=r"manifest\.json is missing; the train command makes it again"):
        work.params(None, 0)
    np.testing.assert_array_equal(work.params(0, 3)["in"]["kernel"], random(0, 12, 3, 2)[3])


def test_variant_must_be_named_where_there_are_several(config, tmp_path):
    raws = {}
    for name, data_seed in (("a", 99), ("b", 5)):
        config.data_seed = data_seed
        raws[name] = write_training(tmp_path / name, config, grids.product(AXES))
    for missing in (None, "c"):
        with pytest.raises(WorkdirError, match="choose one of a, b"):
            load(tmp_path, missing)
    tree = lab.load(tmp_path)
    assert [*tree.children] == ["a", "b"] and tree["b"].attrs["config"]["data_seed"] == 5
    dataset = lab.load(tmp_path, "a")
    assert dataset.attrs["variant"] == "a" and dataset.attrs["config"]["data_seed"] == 99
    np.testing.assert_array_equal(dataset.train_loss.values.reshape(16, 12), raws["a"]["train_loss"])


def test_only_variant_need_not_be_named(config, tmp_path):
    raw = write_training(tmp_path / "main", config, grids.product(AXES))
    np.testing.assert_array_equal(lab.load(tmp_path).train_loss.values.reshape(16, 12), raw["train_loss"])


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "empty"])
def test_damaged_metrics_are_refused_by_name(trained, damage):
    path, _ = trained
    victim = path / "metrics" / "4.npz"
    whole = bytearray(victim.read_bytes())
    whole[whole.index(b"train_loss.npy") + 200] ^= 1  # in its numbers: a header of 128 bytes follows the name
    victim.write_bytes({"flipped bit": bytes(whole), "truncated": victim.read_bytes()[:-50], "empty": b""}[damage])
    with pytest.raises(WorkdirError, match=r"metrics/4\.npz: damaged"):
        lab.load(path)


@pytest.mark.parametrize(
    ("gone", "gap"),
    [
        ([0], r"0\.npz \(the evaluation at 0\)"),
        ([6], r"6\.npz \(steps 4 to 6\)"),
        ([8, 12], r"8\.npz \(steps 6 to 8\), 12\.npz \(steps 8 to 12\)"),
    ],
)
def test_gap_in_the_metrics_is_named_and_what_repairs_it(trained, gone, gap):
    path, _ = trained
    for end in gone:
        (path / "metrics" / f"{end}.npz").unlink()
    with pytest.raises(WorkdirError, match=rf"metrics: missing {gap}; running the train command again repairs it$"):
        lab.load(path)


def test_metrics_before_a_checkpoint_are_not_taken_for_the_end(trained):
    """What was evaluated last must not become what comes before it, because that file is lost."""
    path, _ = trained
    (path / "metrics" / "16.npz").unlink()
    assert lab.load(path).train_step.values.tolist() == list(range(12))  # nothing says that it went on
    (path / "checkpoints" / "16").mkdir(parents=True)
    with pytest.raises(WorkdirError, match=r"missing 16\.npz \(steps 12 to 16\)"):
        lab.load(path)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("4", "8", "holds other steps than its name says"),
        ("8", "4", "holds other steps than its name says"),
        ("16", "17", "no chunk of this training ends there"),
    ],
)
def test_chunk_under_another_name_is_refused(trained, source, target, message):
    path, _ = trained
    shutil.copy(path / "metrics" / f"{source}.npz", path / "metrics" / f"{target}.npz")
    with pytest.raises(WorkdirError, match=rf"metrics/{target}\.npz: {message}"):
        lab.load(path)


def test_chunk_without_its_evaluation_is_refused(trained):
    path, _ = trained
    chunk = metrics.read_npz(path / "metrics" / "8.npz")
    files.write_npz(path / "metrics" / "8.npz", {name: chunk[name] for name in chunk if name != "step"})
    with pytest.raises(WorkdirError, match=r"metrics/8\.npz: holds other steps"):
        lab.load(path)


def test_chunk_of_another_training_is_refused(trained, config, tmp_path):
    path, _ = trained
    config.data_seed += 1
    write_training(tmp_path / "other", config, grids.product(AXES))
    shutil.copy(tmp_path / "other" / "metrics" / "8.npz", path / "metrics" / "8.npz")
    with pytest.raises(WorkdirError, match=r"metrics/8\.npz: belongs to another training"):
        lab.load(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: [f.unlink() for f in (path / "metrics").iterdir()], "no metrics yet"),
        (lambda path: [shutil.rmtree(path), path.mkdir()], "no training here"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
        (lambda path: (path / "grid.json").unlink(), "grid.json is missing"),
        (lambda path: (path / "grid.json").write_text("{"), "grid.json: damaged"),
    ],
)
def test_folder_that_is_no_training_is_refused(trained, spoil, message):
    spoil(trained[0])
    with pytest.raises(WorkdirError, match=message):
        lab.load(trained[0])


def test_measurements_stand_beside_the_metrics(trained):
    path, raw = trained
    work = Workdir(path)
    size, cosine = random(50, 2, 12, 3), random(51, 12, 3, 2)
    header = {
        "snapshots": [0, 16],
        "rows": {},
        "every_snapshot": True,
        "coords": {"matrix": [*"qkv"]},
        "units": {"size": "m"},
    }
    measurements.write(work, "norm", {"size": size}, header | {"dims": {"size": ["matrix"]}})
    header = {"snapshots": [16], "rows": {}, "every_snapshot": False, "coords": {}, "units": {"cosine": "cosine"}}
    measurements.write(work, "last", {"cosine": cosine}, header | {"dims": {"cosine": ["i", "j"]}})
    dataset = lab.load(path)
    assert dataset["norm.size"].attrs["units"] == "m" and dataset["last.cosine"].attrs["units"] == "cosine"
    for row, values in enumerate(ROWS):
        place = dict(zip(AXES, values, strict=True))
        for at, step in enumerate((0, 16)):
            for m, matrix in enumerate("qkv"):
                assert dataset["norm.size"].sel({**place, "snapshot": step, "matrix": matrix}) == size[at, row, m]
        np.testing.assert_array_equal(dataset["last.cosine"].sel(place).values, cosine[row])
        np.testing.assert_array_equal(dataset.train_loss.sel(place).values, raw["train_loss"][:, row])


def test_measurement_without_its_header_does_not_count(trained):
    work = Workdir(trained[0])
    header = {"snapshots": [16], "rows": {}, "every_snapshot": False, "coords": {}, "units": {"x": "1"}, "dims": {}}
    measurements.write(work, "m", {"x": random(0, 12)}, header)
    assert measurements.read(work, "m")[0] == header and "m.x" in lab.load(work.path)
    (work.analysis / "m.json").unlink()
    assert "m.x" not in lab.load(work.path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "m.npz").unlink(), r"m\.npz is missing"),
        (lambda folder: (folder / "m.npz").write_bytes(b""), r"m\.npz: damaged"),
        (lambda folder: (folder / "m.json").write_text("{}"), r"m\.json: no sha256"),
        (lambda folder: shutil.copy(folder / "n.npz", folder / "m.npz"), r"m\.json: describes another m\.npz"),
        (lambda folder: shutil.copy(folder / "n.json", folder / "m.json"), r"m\.json: describes another m\.npz"),
    ],
    ids=["no numbers", "damaged numbers", "damaged header", "other numbers", "other header"],
)
def test_damaged_measurement_is_refused_and_counts_as_not_taken(trained, spoil, message):
    work = Workdir(trained[0])
    header = {"snapshots": [16], "rows": {}, "every_snapshot": False, "coords": {}, "units": {"x": "1"}, "dims": {}}
    for seed, name in enumerate("mn"):
        measurements.write(work, name, {"x": random(seed, 12)}, header)
    spoil(work.analysis)
    with pytest.raises(WorkdirError, match=rf"analysis/{message}.*; the analyze command takes it again"):
        lab.load(work.path)
    assert measurements.read(work, "n")[0] == header
    measurements.write(work, "m", {"x": random(0, 12)}, header)
    np.testing.assert_array_equal(lab.load(work.path)["m.x"].values.ravel(), random(0, 12))


def test_chunks_after_a_step_are_forgotten_and_no_others(trained):
    folder = trained[0] / "metrics"
    (folder / "notes.npz").write_text("not a chunk")
    metrics.forget_after(folder, 4)
    assert [path.name for path in metrics.metric_files(folder)] == ["0.npz", "4.npz"]
    assert (folder / "notes.npz").exists()


def test_model_of_a_dataset_answers_at_every_position(config, tmp_path):
    """What was trained to answer at the last position is looked at everywhere."""
    path = tmp_path / "w"
    config.model = dict(
        family="transformer", vocab_size=8, max_length=3, n_layers=1, n_heads=1, d_model=8, d_head=8, d_ff=8,
        activation="relu", norm="pre", use_bias=False, head_bias=False, final_norm=False, tied_head=False,
        readout="last",
    )  # fmt: skip
    write_training(path, config, grids.product(AXES))
    dataset, experiment = lab.load(path), Workdir(path).experiment
    tokens_BxL = experiment.task.sample(jax.random.key(0), 3, "train", {}).tokens_BxL
    params = jax.jit(models.init, static_argnums=0)(experiment.model, jax.random.key(1), tokens_BxL)
    (last, _), (everywhere, _) = (
        jax.jit(models.forward, static_argnums=0)(model, params, tokens_BxL)
        for model in (experiment.model, dataset.lab.model)
    )
    # 8-wide dots in another order: 64 roundings on logits below 4
    np.testing.assert_allclose(everywhere[:, -1:], last, rtol=0, atol=64 * 4 * 2.0**-23)
    assert everywhere.shape[1] == 3 and dataset.lab.task == experiment.task


def test_rows_that_were_not_measured_are_nan_whole_numbers_too(trained):
    work = Workdir(trained[0])
    header = {
        "snapshots": [0, 16], "rows": {"16": [2, 5]}, "every_snapshot": True, "coords": {}, "dims": {},
        "units": {"x": "1", "n": "1"},
    }  # fmt: skip
    x_SxR, n_SxR = random(0, 2, 12), np.arange(24, dtype=np.int32).reshape(2, 12)
    measurements.write(work, "m", {"x": x_SxR, "n": n_SxR}, header)
    dataset = lab.load(work.path)
    for row, values in enumerate(ROWS):
        here = dataset.sel(dict(zip(AXES, values, strict=True)))
        for at, step in enumerate((0, 16)):
            held = step == 0 or row in (2, 5)
            for name, raw in (("m.x", x_SxR), ("m.n", n_SxR)):
                expected = raw[at, row] if held else np.nan
                np.testing.assert_array_equal(here[name].sel(snapshot=step), expected)


@pytest.mark.parametrize("entry", measurements.HEADER)
def test_measurement_of_an_earlier_version_is_refused_and_can_be_left_out(trained, entry):
    """Its header says less than is asked of it now."""
    work = Workdir(trained[0])
    header = {"snapshots": [16], "rows": {}, "every_snapshot": False, "coords": {}, "units": {"x": "1"}, "dims": {}}
    measurements.write(work, "new", {"x": random(0, 12)}, header)
    measurements.write(work, "old", {"x": random(1, 12)}, {name: header[name] for name in header if name != entry})
    message = rf"old\.json: says nothing of '{entry}', an earlier version wrote it; the analyze command takes it again"
    with pytest.raises(WorkdirError, match=message):
        lab.load(work.path)
    dataset = load(work.path, without=["old"])
    assert "new.x" in dataset and "old.x" not in dataset
