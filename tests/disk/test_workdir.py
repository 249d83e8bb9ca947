"""A training and the rows that were added to it are read as one, whoever reads them; numbers are drawn here."""

import shutil

import jax
import numpy as np
import pytest
from on_disk import AXES, SCHEDULE, random, write_training

import lab
from lab import grid as grids
from lab.cli import main
from lab.cluster import status
from lab.disk import files, measurements, store, verify
from lab.disk.files import DamagedError, WorkdirError
from lab.disk.lock import locked
from lab.disk.prune import prune
from lab.disk.workdir import Workdir, united, variants_in
from lab.engine import init_from
from lab.measuring import run as measuring
from lab.measuring.declare import Measure
from lab.measuring.run import Selection
from lab.sinks import table

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

ALL = AXES | {"gamma": (0.3, 0.5, 0.8), "seed": (0, 7, 9)}


def parts_of(grid=None):
    """The rows of three folders: what was there, another seed, another gamma."""
    grid = grid or grids.product(AXES)
    with_seed = grid.extended("seed", (9,))
    with_gamma = with_seed.extended("gamma", (0.8,))
    added = grids.lacking(with_seed, [grid])
    return [grid, added, grids.lacking(with_gamma, [grid, added])]


def write(path, config, grid):
    """A folder as training leaves it, and parameters that no other has."""
    raw = write_training(path, config, grid)
    for step in (0, 16):
        store.save(path / "snapshots", step, {"in": {"kernel": random(step + len(grid), len(grid), 3, 2)}})
    store.save(path / "checkpoints", 16, {"x": np.zeros((len(grid), 1), np.float32)})
    return raw


@pytest.fixture(scope="module")
def config(echo):
    return echo.config(grid=AXES, **SCHEDULE)


@pytest.fixture(scope="module")
def written(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "w"
    folders = [path, path / "extensions" / "1", path / "extensions" / "2"]
    return path, [write(folder, config, grid) for folder, grid in zip(folders, parts_of(), strict=True)]


@pytest.fixture
def path(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "w")


def mean_weight(row):
    return {"mean": row.params["in"]["kernel"].mean(), "step": row.step * 1.0}


MEAN = Measure("size", mean_weight, {"mean": "1", "step": "1"})


def home(hparams):
    """Which folder a row is in, and its number there."""
    for number, grid in enumerate(parts_of()):
        for row in range(len(grid)):
            if grid.row(row) == hparams:
                return number, row
    raise AssertionError


def test_every_number_of_every_row_stands_at_its_place_in_the_product_of_all(written):
    path, raws = written
    dataset, work = lab.load(path), united(path)
    assert {name: tuple(dataset[name].values.tolist()) for name in AXES} == ALL and len(work.grid) == 27
    assert work.grid == grids.product(ALL)
    for row in range(27):
        part, number = home(work.grid.row(row))
        here = dataset.sel(work.grid.row(row))
        assert dataset.lab.row(**work.grid.row(row)) == row
        for name in ("train_loss", "odd.accuracy", "odd.share"):
            np.testing.assert_array_equal(here[name].values, raws[part][name][:, number])
        for params in (
            work.params(16, row),
            dataset.lab.params(**work.grid.row(row)),
            store.take_row(work.params(), row),
        ):
            expected = work.parts[part].params(16, number)
            jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert dataset.train_loss.dtype == np.float32 and dataset.diverged_at.dtype == np.int32


def test_rows_of_a_list_keep_their_numbers_and_the_added_ones_come_behind(config, tmp_path):
    listed = grids.Grid(grids.product(AXES).columns)
    parts = parts_of(listed)[:2]
    raws = [write(tmp_path / folder, config, grid) for folder, grid in zip(("w", "w/extensions/1"), parts, strict=True)]
    dataset = lab.load(tmp_path / "w")
    assert dataset.sizes["row"] == 18 and dataset.seed.values.tolist() == [0, 7] * 6 + [9] * 6
    losses = np.concatenate([raw["train_loss"] for raw in raws], axis=1)
    np.testing.assert_array_equal(dataset.train_loss.values, losses)


def test_rows_that_make_no_product_together_are_a_list(config, tmp_path):
    write(tmp_path / "w", config, grids.product(AXES))
    write(tmp_path / "w" / "extensions" / "1", config, parts_of()[1].take([2, 3]))
    assert lab.load(tmp_path / "w").sizes["row"] == 14


def test_folder_without_extensions_is_what_it_was(config, tmp_path):
    write(tmp_path / "w", config, grids.product(AXES))
    assert type(united(tmp_path / "w")) is Workdir


# --- measuring ---


def test_only_the_rows_that_were_added_are_measured(path, written, monkeypatch):
    shutil.move(path / "extensions", path.parent / "later")
    measuring.measure(united(path), [MEAN])
    shutil.move(path.parent / "later", path / "extensions")
    before = (path / "analysis" / "size.npz").read_bytes()
    work = united(path)
    assert measuring.missing(work, [MEAN]) == [MEAN] and measuring.n_missing(work, [MEAN]) == 2 * 15
    assert np.isnan(lab.load(path)["size.mean"].sel(seed=9)).all()
    assert measuring.measure(work, [MEAN]) == ["size"] and measuring.measure(work, [MEAN]) == []
    assert (path / "analysis" / "size.npz").read_bytes() == before
    found = lab.load(path)["size.mean"]
    assert found.dims == ("snapshot", *AXES) and found.attrs["units"] == "1"
    for row in range(27):
        for step in (0, 16):
            kernel = work.params(step, row)["in"]["kernel"]
            # six terms, one after the other or not
            assert found.sel(work.grid.row(row)).sel(snapshot=step) == pytest.approx(kernel.mean(), abs=2.0**-20)


def test_rows_that_are_named_are_measured_in_whichever_folder_they_are(path):
    work = united(path)
    measuring.measure(work, [MEAN], Selection(rows=(0, 2, 26), snapshots="last"))
    has = lab.load(path)["size.mean"].notnull()
    assert has.any("snapshot").values.reshape(-1).nonzero()[0].tolist() == [0, 2, 26]


def test_last_snapshot_of_some_rows_stands_beside_all_of_others_at_its_step(path):
    """The one is written without an axis for time, the other with one."""
    work = united(path)
    last = Measure("size", mean_weight, {"mean": "1", "step": "1"}, snapshots="last")
    first = next(row for row in range(27) if home(work.grid.row(row))[0] == 1)
    measuring.measure(work, [MEAN], Selection(rows=(0,)))
    measuring.measure(work, [last], Selection(rows=(first,)))
    steps = lab.load(path)["size.step"]
    assert steps.sel(work.grid.row(0)).values.tolist() == [0, 16]
    np.testing.assert_array_equal(steps.sel(work.grid.row(first)).values, [np.nan, 16])


def test_results_of_another_meaning_in_one_folder_do_not_stay_beside_new_ones_in_another(path):
    """As within a folder, where new results replace those of other code or of other sequences."""
    work = united(path)
    measuring.measure(work, [MEAN])
    other = Measure("size", mean_weight, {"mean": "weight", "step": "1"})
    assert measuring.stale(work, [other]) == ["size"]
    measuring.measure(work, [other], Selection(rows=(0,)))
    assert [(part.analysis / "size.json").is_file() for part in work.parts] == [True, False, False]
    assert lab.load(path)["size.mean"].notnull().sum() == 2


def test_mixed_results_are_refused(path):
    for part, unit in zip(united(path).parts, ("1", "nats", "1"), strict=True):
        header = dict(snapshots=[16], rows={}, every_snapshot=False, dims={}, coords={}, units={"x": unit})
        measurements.write(part, "size", {"x": np.zeros(len(part.grid))}, header)
    with pytest.raises(WorkdirError, match=r"measured otherwise in .*extensions; take it again for all rows"):
        lab.load(path)


# --- what is damaged, foreign, or not there yet ---


@pytest.mark.parametrize("name", ["grid.json", "config.json", "metrics/8.npz", "snapshots/16/manifest.json"])
def test_flipped_bit_of_an_added_row_is_found(path, name):
    file = path / "extensions" / "2" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert verify.damages(united(path)) and all(str(file.parent) in line for line in verify.damages(united(path)))
    with pytest.raises(WorkdirError):
        (lab.load(path), united(path).params())


def test_whole_training_is_without_damage(path):
    assert verify.damages(united(path)) == [] == verify.remarks(united(path))


def test_rows_of_another_training_are_not_taken_for_added_ones(path, echo, tmp_path):
    shutil.rmtree(path / "extensions" / "2")
    write(path / "extensions" / "2", echo.config(grid=AXES, data_seed=6, **SCHEDULE), parts_of()[2])
    with pytest.raises(DamagedError, match="2: extends another training than this one"):
        lab.load(path)
    assert any("extends another training" in line for line in verify.damages(united(path)))


def test_rows_not_trained_to_their_end_are_left_out_and_it_is_said(path, capsys):
    shutil.rmtree(path / "extensions" / "2" / "checkpoints")
    with pytest.warns(UserWarning, match="extensions/2: not trained to its end, its rows are left out"):
        assert lab.load(path).sizes["gamma"] == 2
    (line,) = status.study(path)
    assert (line.state, line.step, line.rows) == ("stopped", 0, 27) and line.note == "15 of the rows were added"
    with locked(path / "extensions" / "2"):
        assert status.study(path)[0].state == "running"


def test_folder_that_was_copied_is_found_and_its_rows_are_not_read_twice(path):
    shutil.copytree(path / "extensions" / "2", path / "extensions" / "3")
    with pytest.raises(DamagedError, match=r"extensions/3: has rows that .*extensions/2 has"):
        lab.load(path)
    assert [line for line in verify.damages(united(path)) if "extensions/3: has rows that" in line]


def test_main_folder_that_lost_its_end_is_named(path):
    shutil.rmtree(path / "checkpoints")
    with pytest.warns(UserWarning, match="w: not trained to its end, the rows that were added are left out") as said:
        assert lab.load(path).sizes["gamma"] == 2
    assert not [one for one in said if "extensions" in str(one.message)]


def test_rows_whose_config_is_not_written_yet_are_stopped_and_not_counted(path):
    for name in ("config.json", "checkpoints"):
        files.remove(path / "extensions" / "2" / name)
    (line,) = status.study(path)
    assert (line.state, line.steps, line.note) == ("stopped", 16, "")


# --- everybody else ---


def test_nothing_is_dropped_where_one_folder_trains(path):
    for folder in (path / "checkpoints", path / "extensions" / "1" / "checkpoints"):
        store.save(folder, 6, {"x": np.zeros((len(Workdir(folder.parent).grid), 1), np.float32)})
    with locked(path / "extensions" / "2"), pytest.raises(WorkdirError):
        prune(united(path), checkpoints=1)
    assert files.steps(path / "checkpoints") == [6, 16]


def test_old_results_stay_until_new_ones_are_there_and_what_is_dropped_is_said(path, capsys):
    work = united(path)
    measuring.measure(work, [MEAN])

    def fails(row):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        measuring.measure(work, [Measure("size", fails, {"mean": "1"})], Selection(rows=(0,)))
    assert all((part.analysis / "size.json").is_file() for part in work.parts)
    other = Measure("size", mean_weight, {"mean": "weight", "step": "1"})
    measuring.measure(work, [other], Selection(rows=(0,)))
    assert capsys.readouterr().out.count("size was dropped") == 2


def test_table_is_of_the_rows_that_were_there_when_it_was_read(path, tmp_path):
    later = shutil.move(path / "extensions" / "2", tmp_path / "later")
    read = table.read(path, None, ["train_loss"], None)
    shutil.move(later, path / "extensions" / "2")
    (block,) = read.blocks()
    assert {*block.gamma} == {0.3, 0.5} and len(read.trainings[0].columns["seed"]) == read.n_rows


def test_what_is_dropped_by_rule_is_dropped_of_all_rows(path, capsys):
    for folder in (path / "checkpoints", path / "extensions" / "1" / "checkpoints"):
        store.save(folder, 6, {"x": np.zeros((len(Workdir(folder.parent).grid), 1), np.float32)})
    main(["prune", str(path), "--keep-checkpoints=1"])
    assert capsys.readouterr().out.count("checkpoints/6") == 2
    assert [files.steps(part.checkpoints) for part in united(path).parts] == [[16]] * 3


def test_export_and_diff_take_all_rows(path, written, tmp_path):
    import pandas as pd

    table = pd.read_csv(lab.export(path, "csv", tmp_path / "t.csv", rows=[26], metrics=["train_loss"]))
    assert {(row.gamma, row.weight_decay, row.seed) for row in table.itertuples()} == {(0.8, 1.0, 9)}
    (found,) = lab.diff(path, written[0]).trainings.values()
    assert found.grid == ["27 rows in both, 0 only in A, 0 only in B"] and not len(found.table)


def test_training_may_start_from_rows_that_were_added(path, echo, written):
    """Row i of the one that starts is row i of the union, wherever that lies."""
    start = {"variant": "w", "row": {}}
    config = echo.config(grid=ALL, start=start, **SCHEDULE)
    order = np.random.default_rng(0).permutation(27)
    rows = united(path).grid.take(order)
    found = init_from.weights(path.parent / "next", config, rows, 0, 27)
    expected = store.take_row(united(path).params(16), order)
    jax.tree.map(np.testing.assert_array_equal, found["params"], expected)
    n_diverged = sum(home(row := rows.row(i)) and home(row)[1] == 1 for i in range(27))
    assert found["diverged_at"].tolist().count(0) == n_diverged == 3


def test_variants_are_found_with_what_was_added(path):
    assert {name: len(work.grid) for name, work in variants_in(path.parent).items()} == {"w": 27}
