"""`diff` says what differs, all of it and nothing else, and how far apart, by numbers worked out here."""

import json

import numpy as np
import pytest
from on_disk import AXES, ROWS, SCHEDULE, write_training

import lab
from lab import config as configs
from lab import grid as grids
from lab.analysis import statistics
from lab.disk import files
from lab.disk.files import WorkdirError
from lab.disk.load import load
from lab.disk.workdir import Workdir

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

SEEDS = tuple(range(6))
GRID = AXES | {"seed": SEEDS}


@pytest.fixture
def write(echo, tmp_path):
    """`(name, grid, shift=None, facts={}, **changes of the config)`: a training; `shift(chunk, end)` changes it."""

    def make(name, grid, shift=None, facts=None, **changes):
        config = echo.config(grid=AXES, **SCHEDULE)
        config.update(changes)
        path = tmp_path / name
        write_training(path, config, grid)
        held = {"config": configs.to_json(config), "data": {}, "start": {}} | (facts or {})
        files.write_json(path / "config.json", held)
        for file in (path / "metrics").glob("*.npz"):  # sealed anew, for this config.json
            with np.load(file) as held:
                chunk = dict(held)
            if shift:
                shift(chunk, int(file.stem))
            files.write_npz(file, chunk)
        return path

    return make


def test_training_does_not_differ_from_its_copy(write):
    a, b = (write(name, grids.product(GRID)) for name in ("a", "b"))
    (found,) = lab.diff(a, b).trainings.values()
    assert found.settings == found.remarks == [] and found.table.empty
    assert found.grid == ["36 rows in both, 0 only in A, 0 only in B"]
    assert found.same == ["train_loss", "grad_norm", "odd.accuracy", *(f"odd.share[{i}]" for i in range(8))]


def test_settings_that_differ_are_those_and_no_others(write):
    facts_a = {"versions": {"jax": "1", "numpy": "2"}, "device_kind": "cpu", "command": "lab train"}
    facts_b = facts_a | {"versions": {"jax": "3", "numpy": "2"}, "command": "lab reproduce"}
    a = write("a", grids.product(GRID), facts=facts_a)
    b = write("b", grids.product(GRID), facts=facts_b, data_seed=9)
    (found,) = lab.diff(a, b).trainings.values()
    assert found.settings == ["config.data_seed: 5 -> 9", "versions.jax: 1 -> 3"]


def test_an_option_newer_than_a_training_differs_where_the_other_has_no_default(write):
    plain = write("a", grids.product(AXES))
    held = Workdir(plain).config
    assert "readout" not in held.model and {"frozen", "least_decay"}.isdisjoint(held.optim)
    model, optim = held.model.to_dict(), held.optim.to_dict()
    usual = write("b", grids.product(AXES), model=model | dict(readout="last"), optim=optim | dict(least_decay=0.0))
    other = write("c", grids.product(AXES), model=model | dict(readout="all"), optim=optim | dict(frozen=("in",)))
    lines = ["config.model.readout: last -> all", "config.optim.frozen: [] -> ['in']"]
    for before in (plain, usual):
        assert [found.settings for found in lab.diff(before, other).trainings.values()] == [lines]
    for pair in ((plain, usual), (usual, plain)):
        assert [found.settings for found in lab.diff(*pair).trainings.values()] == [[]]


def test_settings_of_a_class_that_is_not_here_any_more_are_compared_as_they_were_written(write):
    a = write("a", grids.product(AXES))
    model = Workdir(a).config.model.to_dict() | dict(family="gone:Model")
    b = write("b", grids.product(AXES), model=model)
    c = write("c", grids.product(AXES), model=model | dict(readout="all"))
    (found,) = lab.diff(b, c).trainings.values()
    assert found.settings == ["config.model.readout: absent -> all"]


def test_distance_is_of_equal_rows_and_its_interval_over_their_seeds(write):
    """B holds more rows, in another order."""
    wide = grids.product(
        {"weight_decay": (1.0, 0.0, 7.0), "seed": SEEDS[::-1], "learning_rate": (1e-3,), "gamma": (0.5, 0.3)}
    )

    def known(chunk, end):
        for name in ("train_loss", "grad_norm", "odd.accuracy"):
            if name in chunk:
                chunk[name] = np.zeros_like(chunk[name])

    def shifted(chunk, end):
        known(chunk, end)
        if "odd.accuracy" in chunk and end >= 8:  # by gamma and seed
            gamma, seed = (np.array(wide.columns[name], np.float32) for name in ("gamma", "seed"))
            chunk["odd.accuracy"] += (gamma * (seed + 1))[None]

    a, b = write("a", grids.product(GRID), known), write("b", wide, shifted)
    found = lab.diff(a, b)
    (one,) = found.trainings.values()
    assert one.grid == [
        "24 rows in both, 12 only in A, 12 only in B",
        "weight_decay: only in A 0.1",
        "weight_decay: only in B 7",
    ]
    assert {"train_loss", "grad_norm"} <= {*one.same}
    assert "equal at every step: train_loss, grad_norm\n" in str(found)
    lines = found.table[found.table.metric == "odd.accuracy"]
    assert len(lines) == 4 and {*lines.step} == {16} and {*lines.since} == {8} and {*lines.n} == {6}
    for _, line in lines.iterrows():
        # seed by seed the difference is gamma (seed + 1); the interval of six values is their range, at 1 - 2 / 2^6
        gamma = np.float32(line.gamma)
        assert line["median"] == line.b == pytest.approx(3.5 * gamma) and line.a == 0
        assert (line.low, line.high) == pytest.approx((gamma, 6 * gamma)) and line.coverage == 1 - 2 / 2**6
    text = str(found)
    assert (
        "odd.accuracy at step 16, differs from step 8 on; the interval leaves out 0 at 4 of 4 places (by chance 0.1)"
        in text
    )
    assert "farthest at gamma=0.5, weight_decay=0: 0 -> 1.75, by +1.75 [+0.5, +3] (97%, seeds: 6)" in text


def test_seeds_are_paired_and_those_without_a_number_are_counted(write):
    def lost(chunk, end):
        for name in ("odd.accuracy", "train_loss"):
            if name in chunk:
                chunk[name] += 1
                chunk[name][:, 3] = np.nan
        chunk["diverged_at"][3] = 0

    a, b = write("a", grids.product(GRID)), write("b", grids.product(GRID), lost)
    (found,) = lab.diff(a, b).trainings.values()
    dataset = load(a)
    line = found.table[(found.table.metric == "odd.accuracy")].iloc[0]
    assert (line.n, line.missing) == (5, 1) and line["median"] == pytest.approx(1, abs=1e-6)
    first = dataset["odd.accuracy"].isel(step=-1, gamma=0, weight_decay=0, learning_rate=0).values[[0, 1, 2, 4, 5]]
    assert line.a == np.median(first.astype(float))
    assert statistics.median_interval(np.arange(5)).coverage == line.coverage
    assert "rows that diverged only in B: 1" in found.remarks
    held = json.loads(json.dumps(lab.diff(a, b).to_json(), allow_nan=False))["variants"]["a"]
    said = next(each for each in held["table"] if each["metric"] == "odd.accuracy")
    numbers = ["a", "b", "median", "low", "high"]
    assert {*said} == {*line.index}
    assert [said[name] for name in numbers] == pytest.approx(line[numbers].tolist(), rel=1e-14)
    assert (said["n"], said["missing"], held["remarks"]) == (5, 1, found.remarks)


def test_what_only_one_has_is_said_and_nothing_is_refused(write, tmp_path):
    def more(chunk, end):
        if "step" in chunk:
            chunk["odd.recall"] = chunk["odd.accuracy"]

    columns = {name: tuple(row[i] for row in ROWS[:5]) for i, name in enumerate(AXES)} | {"sam_radius": (0.0,) * 5}
    a, b = write("a", grids.product(AXES), more), write("b", grids.zipped(columns))
    (found,) = lab.diff(a, b).trainings.values()
    assert found.grid[0] == "5 rows in both, 7 only in A, 0 only in B" and "sam_radius: only in B 0" in found.grid
    assert found.remarks[0] == "only in A: odd.recall"
    for path in (b / "metrics").iterdir():
        path.unlink()
    found = lab.diff(a, b)
    (one,) = found.trainings.values()
    assert one.remarks == [f"not compared: {b}: no metrics yet"] and one.grid and found.table.empty
    assert "no metrics yet" in str(found)
    with pytest.raises(WorkdirError, match="no training here"):
        lab.diff(a, tmp_path / "nowhere")


def test_rows_that_no_hyperparameter_tells_apart_are_not_compared(write):
    columns = {name: (row, row, other) for name, row, other in zip(AXES, ROWS[0], ROWS[1], strict=True)}
    a, b = write("a", grids.product(AXES)), write("b", grids.zipped(columns))
    (found,) = lab.diff(a, b).trainings.values()
    assert found.grid[:2] == [
        "1 rows in both, 10 only in A, 0 only in B",
        "1 times several rows have the same gamma, weight_decay, learning_rate, seed: not compared",
    ]


def test_trainings_of_two_studies_are_compared_by_name(write, tmp_path):
    for name in ("s/x", "s/y", "t/y", "t/z"):
        write(name, grids.product(AXES), data_seed=len(name) + ord(name[0]))
    found = lab.diff(tmp_path / "s", tmp_path / "t")
    assert [*found.trainings] == ["y"] and found.alone == ["only in A: variant x", "only in B: variant z"]
    assert found.trainings["y"].settings == [f"config.data_seed: {3 + ord('s')} -> {3 + ord('t')}"]
    assert str(found).startswith("only in A: variant x\nonly in B: variant z\nvariant y\n  settings:\n")
    nothing = lab.diff(tmp_path / "s" / "x", tmp_path / "t")
    assert not nothing.trainings and nothing.table.empty and len(nothing.alone) == 2
