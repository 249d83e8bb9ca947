"""Rows that are added to a training are those that it would have had, and everything that reads it sees all of them."""

import contextlib
import dataclasses
import shutil

import jax
import numpy as np
import pytest
from stopping import signalled_at

from lab import grid
from lab.cluster import status
from lab.disk import files
from lab.disk.files import WorkdirError
from lab.disk.load import load
from lab.disk.workdir import Workdir, united
from lab.engine import extension, plan, train, verify_row
from lab.engine.rows import Rows
from lab.tree import named_leaves

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

WIDTH = 2  # rows of a block; there are two devices
RATES = (0.01, 0.003, 1e30)  # the last one diverges


def axes(**changes):
    return dict(gamma=(0.5,), weight_decay=(0.1,), learning_rate=RATES, seed=(4,)) | changes


@pytest.fixture(scope="module")
def trained(echo, tmp_path_factory):
    """A training of three rows."""
    return train.train(echo.config(block_width=WIDTH), tmp_path_factory.mktemp("trained") / "w")


@pytest.fixture
def work(trained, tmp_path):
    """A copy of it."""
    shutil.copytree(trained, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture(scope="module")
def beginning(echo, tmp_path_factory):
    """The same with six seeds more from the beginning, and another rate."""
    config = echo.config(block_width=WIDTH, grid=axes(learning_rate=(*RATES, 0.02), seed=(4, 7, 9)))
    return train.train(config, tmp_path_factory.mktemp("beginning") / "w")


@pytest.fixture(scope="module")
def extended(trained, tmp_path_factory):
    """The training, extended twice."""
    path = tmp_path_factory.mktemp("extended") / "w"
    shutil.copytree(trained, path)
    train.extend(path, {"seed": (7, 9)})
    train.extend(path, {"learning_rate": (0.02,)})
    return path


def assert_same_numbers(path, other):
    """Axes, metrics and parameters at every snapshot, to the bit."""
    one, another = load(path), load(other)
    assert one.sizes == another.sizes and [*one.data_vars] == [*another.data_vars]
    for name in [*one.data_vars, *one.coords]:
        assert one[name].dims == another[name].dims
        np.testing.assert_array_equal(one[name].values, another[name].values, err_msg=name)
    assert united(path).snapshot_steps() == united(other).snapshot_steps()
    for step in united(path).snapshot_steps():
        theirs = named_leaves(united(other).params(step))
        for name, leaf in named_leaves(united(path).params(step)).items():
            np.testing.assert_array_equal(leaf, theirs[name], err_msg=f"{name} at {step}")


def contents(path):
    return {str(one): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


# --- the rows ---


def test_added_rows_have_the_bits_of_rows_that_were_there_from_the_beginning(extended, beginning):
    """Nine rows in three folders, of which the last has fewer rows than a block is wide."""
    assert [len(part.grid) for part in united(extended).parts] == [3, 6, 3]
    assert {plan.recall(part.path).width for part in united(extended).parts} == {WIDTH}
    assert_same_numbers(extended, beginning)
    assert united(extended).grid == united(beginning).grid


def test_so_they_have_where_every_row_is_alone_in_its_block(echo, tmp_path):
    config = echo.config(block_width=1, grid=axes(seed=(4, 7)))
    train.train(config, tmp_path / "beginning")
    train.train(echo.config(block_width=1), tmp_path / "w")
    train.extend(tmp_path / "w", {"seed": (7,)})
    assert_same_numbers(tmp_path / "w", tmp_path / "beginning")


def test_added_rows_are_in_blocks_as_wide_as_those_before_however_few_they_are(work, monkeypatch):
    layouts, start = [], Rows.start

    def and_note(rows, given):
        layouts.append(rows.layout)
        start(rows, given)

    monkeypatch.setattr(Rows, "start", and_note)
    train.extend(work, {"learning_rate": (0.02,)})
    assert [(layout.n_rows, layout.width) for layout in layouts] == [(1, WIDTH)]


def test_nothing_that_was_there_is_touched(work):
    before = contents(work)
    train.extend(work, {"seed": (7,)})
    assert contents(work).items() >= before.items()


def test_what_was_asked_for_once_trains_nothing_the_second_time(extended, capsys):
    before = contents(extended)
    train.extend(extended, {"seed": (7, 9)})
    assert contents(extended) == before
    assert capsys.readouterr().out.count("nothing to do") == 3


def test_train_with_more_rows_extends(work, beginning, echo):
    """In one step, and rows that make no product by themselves; the smaller grid is still the same training."""
    config = echo.config(block_width=WIDTH)
    train.train(echo.config(block_width=WIDTH, grid=axes(learning_rate=(*RATES, 0.02), seed=(4, 7, 9))), work)
    assert [len(part.grid) for part in united(work).parts] == [3, 9]
    assert_same_numbers(work, beginning)
    before = contents(work)
    train.train(config, work)
    assert contents(work) == before


def test_numbers_of_a_hyperparameter_are_compared_as_programs_see_them(work, echo):
    rates = tuple(np.array(RATES, np.float32).tolist())
    train.train(echo.config(block_width=WIDTH, grid=axes(learning_rate=rates, seed=(4, 7))), work)
    assert united(work).grid.axes["learning_rate"] == RATES and united(work).grid.axes["seed"] == (4, 7)


def test_rows_of_a_grid_that_is_no_product_get_what_is_beside_all_of_them(echo, tmp_path):
    rows = grid.zipped(dict(gamma=(0.3, 0.5), weight_decay=(0.1, 0.0), learning_rate=(0.01, 0.01), seed=(1, 1)))
    train.train(echo.config(), tmp_path / "w", rows)
    train.extend(tmp_path / "w", {"seed": (2,)})
    dataset = load(tmp_path / "w")
    assert dataset.sizes["row"] == 4 and dataset.seed.values.tolist() == [1, 1, 2, 2]
    assert dataset.gamma.values.tolist() == [0.3, 0.5, 0.3, 0.5]
    with pytest.raises(ValueError, match=r"grid.gamma=\(0.9,\): the rows of this grid were given one by one"):
        train.extend(tmp_path / "w", {"gamma": (0.9,)})


# --- interrupted ---


@pytest.mark.parametrize("end", [0, 16])
def test_extension_stopped_anywhere_leaves_the_old_dataset_and_continues_to_the_same_bits(
    work, trained, beginning, end
):
    """By a signal; the kill that leaves no time to save is `test_kill.py`'s, whose theorem is of any folder."""
    with signalled_at(end), pytest.raises(train.Interrupted):
        train.extend(work, {"seed": (7, 9)})
    with pytest.warns(UserWarning, match="extensions/1: not trained to its end, its rows are left out"):
        assert_same_numbers(work, trained)
    assert status.read("w", Workdir(work)).state == "stopped"
    train.extend(work, {"seed": (7, 9)})
    train.extend(work, {"learning_rate": (0.02,)})
    assert_same_numbers(work, beginning)


def test_extension_killed_in_the_middle_continues_from_its_checkpoint(extended, beginning, trained, tmp_path, capsys):
    """What is left by a kill after the metrics of step 20, which no checkpoint covers."""
    work = shutil.copytree(extended, tmp_path / "w")
    shutil.rmtree(work / "extensions" / "2")
    for name in ("metrics/24.npz", "snapshots/24", "checkpoints/24"):
        files.remove(work / "extensions" / "1" / name)
    (work / "extensions" / "1" / "snapshots" / ".24.tmp").mkdir()
    with pytest.warns(UserWarning, match="left out"):
        assert_same_numbers(work, trained)
    train.extend(work, {"learning_rate": (0.02,)})  # and the rest of what was asked for before
    assert "w/extensions/1: continuing at step 18" in capsys.readouterr().out
    assert_same_numbers(work, beginning)


@pytest.mark.parametrize("written", ["", "grid.json"])
def test_extension_killed_before_it_began_is_begun_again(work, beginning, extended, written):
    (work / "extensions" / "1").mkdir(parents=True)
    (work / "extensions" / "1" / ".lock").touch()
    if written:
        shutil.copy(extended / "extensions" / "1" / written, work / "extensions" / "1")
    with pytest.warns(UserWarning, match="left out") if written else contextlib.nullcontext():
        assert load(work).sizes["seed"] == 1
    train.extend(work, {"seed": (7, 9)})
    train.extend(work, {"learning_rate": (0.02,)})
    assert_same_numbers(work, beginning)


# --- what cannot be ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gama": (0.5,)}, r"^grid.gama: not an axis of this grid; did you mean 'gamma'\? There are gamma, "),
        ({"noise": (0.5,)}, "^grid.noise: not an axis of this grid. There are gamma, "),
        ({"seed": (4, 5)}, r"^grid.seed=\(4, 5\): 4 is there already; give the values that are to be added$"),
        ({"seed": (5, 5)}, r"^grid.seed=\(5, 5\): a value is repeated$"),
        ({"seed": (0.5,)}, r"^grid.seed=\(0.5,\): 0.5 is not an integer"),
        ({"weight_decay": (-1.0,)}, "is negative$"),
        ({}, "^which axes get more values"),
    ],
)
def test_values_that_cannot_be_added_are_refused_in_a_line_before_anything_is_written(trained, values, message):
    before = contents(trained)
    with pytest.raises(ValueError, match=message) as refused:
        train.extend(trained, values)
    assert "\n" not in str(refused.value) and contents(trained) == before


@pytest.mark.parametrize(
    ("held", "difference"),
    [
        ({"device_kind": "NVIDIA H200"}, "device_kind: NVIDIA H200 -> cpu"),
        ({"matmul_precision": "highest"}, r"matmul_precision: highest -> default \(a GPU"),
    ],
)
def test_rows_of_other_numerics_are_not_put_beside(work, held, difference):
    files.write_json(work / "config.json", Workdir(work).read_json("config.json") | held)
    with pytest.raises(WorkdirError, match=f"other numerics; to add rows would mix them. Changed: {difference}"):
        train.extend(work, {"seed": (7,)})
    assert not (work / "extensions").exists()


def test_where_other_versions_or_devices_made_the_others_it_is_said(work, capsys):
    held = Workdir(work).read_json("config.json")
    files.write_json(work / "config.json", held | {"versions": held["versions"] | {"jaxlib": "0.9"}})
    train.extend(work, {"seed": (7,)})
    assert "they agree up to rounding, for other versions made those: jaxlib: 0.9 -> " in capsys.readouterr().out
    plan.record(work, dataclasses.replace(plan.recall(work), devices="8 x cpu"))
    train.extend(work, {"seed": (9,)})
    assert "2: planned anew after 8 x cpu; from here on results agree up to rounding" in capsys.readouterr().out


def test_rows_that_were_added_are_not_extended_themselves(extended):
    with pytest.raises(WorkdirError, match=r"extensions/1: its rows were added to .*w; extend or train that one"):
        train.extend(extended / "extensions" / "1", {"weight_decay": (0.2,)})


def test_row_is_not_added_twice(trained, echo):
    rows = united(trained).grid
    with pytest.raises(ValueError, match="some rows are there and asked for once more"):
        train.train(echo.config(block_width=WIDTH), trained, grid.concat(rows, rows))


def test_several_processes_are_refused(trained, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="rows are added to a training by one process alone"):
        extension.parts(
            Workdir(trained), Workdir(trained).config, extension.larger_grid(Workdir(trained), {"seed": (7,)})
        )


def test_another_training_is_refused_with_more_rows_too(trained, echo):
    with pytest.raises(WorkdirError, match=r"holds another training; .* Changed: batch_size: 4 -> 5; grid.seed"):
        train.train(echo.config(block_width=WIDTH, batch_size=5, grid=axes(seed=(4, 7))), trained)
    with pytest.raises(WorkdirError, match=r"holds another training; .* Changed: grid.seed"):
        train.train(echo.config(block_width=WIDTH, grid=axes(seed=(7,))), trained)


def test_grid_that_is_lost_is_not_guessed(extended, tmp_path, echo):
    """What a folder holds of rows that nobody knows is neither trained twice nor taken for others."""
    work = shutil.copytree(extended, tmp_path / "w")
    (work / "extensions" / "1" / "grid.json").unlink()
    with pytest.raises(WorkdirError, match=r"1/grid.json is missing; move .*extensions/1 away to train its rows again"):
        train.extend(work, {"seed": (7, 9)})
    work = shutil.copytree(extended, tmp_path / "other")
    (work / "config.json").unlink()
    config = echo.config(block_width=WIDTH, grid=axes(seed=(4, 7, 9)))
    with pytest.raises(WorkdirError, match=r"config.json is missing; first train the rows that it began with"):
        train.train(config, work)
    train.train(echo.config(block_width=WIDTH), work)
    assert_same_numbers(work, extended)


def test_row_that_was_added_is_replayed(extended):
    row = next(row for row in range(12) if united(extended).grid.row(row)["learning_rate"] == 0.02)
    found = verify_row.replay(extended, row, steps=4)
    assert found.steps == 4 and found.diverged == (-1, -1) and found.loss < 1e-5  # far from another row's loss
    with pytest.raises(ValueError, match=r"row 12: .* has rows 0 to 11"):
        verify_row.replay(extended, 12)
