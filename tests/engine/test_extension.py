"""Rows that are added to a training are those that it would have had, and everything that reads it sees all of them."""

import os
import shutil
import signal

import numpy as np
import pytest

from lab import grid
from lab.cluster import status
from lab.disk.load import load
from lab.disk.workdir import Workdir, united
from lab.engine import plan, train
from lab.engine.rows import Rows
from lab.tree import named_leaves

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

RATES = (0.01, 0.003, 1e30)  # the last one diverges


def axes(**changes):
    return dict(gamma=(0.5,), weight_decay=(0.1,), learning_rate=RATES, seed=(4,)) | changes


@pytest.fixture(scope="module", params=[1, 2])
def width(request):
    return request.param


@pytest.fixture(scope="module")
def trained(echo, width, tmp_path_factory):
    """A training of three rows."""
    return train.train(echo.config(block_width=width), tmp_path_factory.mktemp("trained") / "w")


@pytest.fixture
def work(trained, tmp_path):
    """A copy of it."""
    shutil.copytree(trained, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture(scope="module")
def beginning(echo, width, tmp_path_factory):
    """The same with six seeds more from the beginning, and another rate."""
    config = echo.config(block_width=width, grid=axes(learning_rate=(*RATES, 0.02), seed=(4, 7, 9)))
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


def test_added_rows_have_the_bits_of_rows_that_were_there_from_the_beginning(extended, beginning, width):
    """Nine rows in three folders, of which the last has fewer rows than a block is wide."""
    assert [len(part.grid) for part in united(extended).parts] == [3, 6, 3]
    assert {plan.recall(part.path).width for part in united(extended).parts} == {width}
    assert_same_numbers(extended, beginning)
    assert united(extended).grid == united(beginning).grid


def test_added_rows_are_in_blocks_as_wide_as_those_before_however_few_they_are(work, width, monkeypatch):
    layouts, start = [], Rows.start

    def and_note(rows, given):
        layouts.append(rows.layout)
        start(rows, given)

    monkeypatch.setattr(Rows, "start", and_note)
    train.extend(work, {"learning_rate": (0.02,)})
    assert [(layout.n_rows, layout.width) for layout in layouts] == [(1, width)]


def test_nothing_that_was_there_is_touched(work):
    before = contents(work)
    train.extend(work, {"seed": (7,)})
    assert contents(work).items() >= before.items()


def test_what_was_asked_for_once_trains_nothing_the_second_time(extended, capsys):
    before = contents(extended)
    train.extend(extended, {"seed": (7, 9)})
    assert contents(extended) == before
    assert capsys.readouterr().out.count("nothing to do") == 3


def test_train_with_more_rows_extends(work, beginning, echo, width):
    """In one step, and rows that make no product by themselves; the smaller grid is still the same training."""
    config = echo.config(block_width=width)
    train.train(echo.config(block_width=width, grid=axes(learning_rate=(*RATES, 0.02), seed=(4, 7, 9))), work)
    assert [len(part.grid) for part in united(work).parts] == [3, 9]
    assert_same_numbers(work, beginning)
    before = contents(work)
    train.train(config, work)
    assert contents(work) == before


def test_numbers_of_a_hyperparameter_are_compared_as_programs_see_them(work, echo, width):
    rates = tuple(np.array(RATES, np.float32).tolist())
    train.train(echo.config(block_width=width, grid=axes(learning_rate=rates, seed=(4, 7))), work)
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


@pytest.mark.parametrize("end", [0, 8, 16])
def test_extension_stopped_anywhere_leaves_the_old_dataset_and_continues_to_the_same_bits(
    work, trained, beginning, end, monkeypatch
):
    """By a signal; the kill that leaves no time to save is `test_kill.py`'s, whose theorem is of any folder."""
    wait, advance, reached = Rows.wait, Rows.advance, [0]

    def and_remember(rows, first, last):
        reached.append(last)
        return advance(rows, first, last)

    def and_signal(rows):
        wait(rows)
        if reached[-1] == end:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "advance", and_remember)
        patch.setattr(Rows, "wait", and_signal)
        with pytest.raises(train.Interrupted):
            train.extend(work, {"seed": (7, 9)})
    with pytest.warns(UserWarning, match="extensions/1: not trained to its end, its rows are left out"):
        assert_same_numbers(work, trained)
    assert status.read("w", Workdir(work)).state == "stopped"
    train.extend(work, {"seed": (7, 9)})
    train.extend(work, {"learning_rate": (0.02,)})
    assert_same_numbers(work, beginning)


@pytest.mark.parametrize("written", ["", "grid.json"])
def test_extension_killed_before_it_began_is_begun_again(work, beginning, extended, written):
    (work / "extensions" / "1").mkdir(parents=True)
    if written:
        shutil.copy(extended / "extensions" / "1" / written, work / "extensions" / "1")
    with pytest.warns(UserWarning, match="left out"):
        assert load(work).sizes["seed"] == 1
    train.extend(work, {"seed": (7, 9)})
    train.extend(work, {"learning_rate": (0.02,)})
    assert_same_numbers(work, beginning)


# --- who reads it ---
