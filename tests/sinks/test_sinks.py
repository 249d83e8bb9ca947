"""What a sink holds is what `lab.load` gives, read back by the sink's own tool."""

import configparser
import importlib
import json
import re
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from on_disk import AXES, ROWS, SCHEDULE, random, write_training

import lab
from lab import grid as grids
from lab import sinks
from lab.disk import measurements
from lab.disk.files import WorkdirError
from lab.disk.workdir import Workdir
from lab.sinks import table

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

LARGE = 2 * sinks.RUNS  # more rows than become runs unasked, and more columns than a table has unasked
TRACKERS = [name for name, sink in sinks.SINKS.items() if sink.tracks]
FRAMES = {"csv": pd.read_csv, "parquet": pd.read_parquet}


@pytest.fixture(scope="module")
def trained(echo, tmp_path_factory):
    """A study of two variants, of other grids; the first is measured."""
    root = tmp_path_factory.mktemp("study")
    write_training(root / "a", echo.config(grid=AXES, **SCHEDULE), grids.product(AXES))
    columns = {name: tuple(row[i] for row in ROWS[:5]) for i, name in enumerate(AXES)}
    columns["sam_radius"] = (0.0, 0.1, 0.2, 0.3, 0.4)
    write_training(root / "b", echo.config(grid=AXES, **SCHEDULE), grids.zipped(columns))
    header = {
        "snapshots": [0, 16], "rows": {"16": [2, 5]}, "every_snapshot": True, "coords": {"matrix": ["q/k", "v,o"]},
        "units": {"size": "m", "large": "m"}, "dims": {"size": ["matrix"], "large": ["i"]},
    }  # fmt: skip
    arrays = {"size": random(50, 2, 12, 2), "large": random(51, 2, 12, LARGE)}
    measurements.write(Workdir(root / "a"), "norm", arrays, header)
    return root


@pytest.fixture
def needs(monkeypatch, tmp_path):
    """Skips where a sink's tool, or what reads it back, is not installed."""
    reader = {"tensorboard": ("tensorboard",)}

    def check(to):
        package = sinks.SINKS[to].package
        for name in (*((package,) if package else ()), *reader.get(to, ())):
            beside = "" if name == package else f" {name}"
            pytest.importorskip(
                name, reason=f"{name} is not installed: pip install 'gammalab[{sinks.SINKS[to].extra}]'{beside}"
            )
        if to == "trackio":
            monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
            monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")

    return check


def numbers(dataset, place):
    """{(name, step): value} of one row, from the Dataset; without NaN, and without what has no time."""
    here, found = dataset.sel(place) if isinstance(place, dict) else dataset.isel(row=place), {}
    for name in here.data_vars:
        for time in {"step", "train_step", "snapshot"} & {*here[name].dims}:
            series = here[name].transpose(time, ...)
            steps, *labels = (series[dim].values for dim in series.dims)
            for (at, *index), number in np.ndenumerate(series.values):
                label = ",".join(str(of[i]) for of, i in zip(labels, index, strict=True))
                if number == number:
                    found[f"{name}[{label}]" if label else name, steps[at].item()] = number.item()
    return found


def place_of(row):
    return dict(zip(AXES, ROWS[row], strict=True))


# --- tables ---


@pytest.mark.parametrize("to", FRAMES)
def test_table_read_back_holds_every_number_at_its_row_and_step(trained, tmp_path, needs, to):
    needs(to)
    place = lab.export(trained / "a", to, tmp_path / "t", metrics=["train_loss", "grad_norm", "odd", "norm"])
    read = FRAMES[to](place)
    assert [*read.columns[:8]] == ["variant", "row", *AXES, "step", "diverged_at"]
    assert len(read) == 12 * 17 and not read.duplicated(["row", "step"]).any() and {*read.variant} == {"a"}
    dataset = lab.load(trained / "a")
    for row, lines in read.groupby("row"):
        assert (lines[[*AXES]] == list(ROWS[row])).all(axis=None)
        assert (lines.diverged_at == dataset.diverged_at.sel(place_of(row)).item()).all()
        long = lines.drop(columns=["variant", "row", *AXES, "diverged_at"]).melt("step", var_name="name").dropna()
        found = dict(zip(zip(long.name, long.step, strict=True), long.value.astype(np.float32).tolist(), strict=True))
        assert found == numbers(dataset, place_of(row))


@pytest.mark.parametrize("to", FRAMES)
def test_table_of_a_study_has_the_lines_of_each_training(trained, tmp_path, needs, to):
    needs(to)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = FRAMES[to](lab.export(trained, to, tmp_path / "whole"))
        alone = {name: FRAMES[to](lab.export(trained, to, tmp_path / name, variants=[name])) for name in "ab"}
    for name, lines in alone.items():
        assert {*lines.variant} == {name}
        here = whole[whole.variant == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(here[lines.columns], lines, check_dtype=False)
        assert here.drop(columns=lines.columns).isna().all(axis=None)
    assert len(whole) == sum(map(len, alone.values())) and whole.sam_radius.notna().sum() == 5 * 17


def test_table_is_the_same_in_blocks_of_any_size(trained, tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match=f"left out: norm.large, {LARGE} numbers"):
        whole = lab.export(trained, "csv", tmp_path / "whole").read_bytes()
    monkeypatch.setattr(table, "LINES", 40)  # of two rows
    with pytest.warns(UserWarning, match="left out"):
        assert lab.export(trained, "csv", tmp_path / "blocks").read_bytes() == whole
    read = table.read(trained, None, None, None)
    assert max(map(len, read.blocks())) <= 40


def test_rows_of_a_table_are_those_asked_for(trained, tmp_path):
    read = pd.read_csv(lab.export(trained, "csv", tmp_path / "t", rows=[4, 1], metrics=["odd.accuracy"]))
    assert read.row.unique().tolist() == [4, 1] and read.step.unique().tolist() == [0, 4, 8, 12, 16]
    assert [*read.columns[-2:]] == ["diverged_at", "odd.accuracy"]


def test_export_replaces_a_file_and_lies_in_the_workdir_unless_told(trained, tmp_path):
    first = lab.export(trained / "b", "csv")
    assert first == trained / "b" / "export" / "table.csv"
    lab.export(trained / "b", "csv", rows=[0])
    assert pd.read_csv(first).row.unique().tolist() == [0]
    assert [path.name for path in first.parent.iterdir()] == ["table.csv"]  # nothing temporary stays
    assert lab.load(trained / "b").sizes["row"] == 5


def test_what_the_page_shows_is_the_median_over_seeds_at_the_last_step(trained, tmp_path, monkeypatch):
    page = (Path(lab.__file__).parents[1] / "docs" / "numbers.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "a", "runs/wide")
    *lines, shown = block.replace("ood.accuracy", "odd.accuracy").strip().splitlines()
    names = {}
    exec("\n".join(lines), names)
    medians = eval(shown, names)
    expected = lab.load("runs/wide")["odd.accuracy"].isel(step=-1, learning_rate=0).median("seed")
    np.testing.assert_allclose(medians, expected.transpose("weight_decay", "gamma"), rtol=1e-6)


# --- datasets ---


@pytest.mark.parametrize("variant", ["a", "b"])
def test_netcdf_read_back_is_the_dataset(trained, tmp_path, variant):
    dataset = lab.load(trained, variant)
    with xr.open_dataset(lab.export(trained / variant, "netcdf", tmp_path / "d.nc")) as read:
        xr.testing.assert_equal(read, dataset)
        assert read["odd.accuracy"].dtype == np.float32
        assert json.loads(read.attrs["config"]) == dataset.attrs["config"]
        for name in dataset.data_vars:
            assert read[name].attrs == dataset[name].attrs


def test_netcdf_of_some_rows_has_them_in_order(trained, tmp_path):
    dataset = lab.load(trained, "a")
    place = lab.export(trained, "netcdf", tmp_path / "d.nc", rows=[7, 2], metrics=["norm"], variants=["a"])
    with xr.open_dataset(place) as read:
        assert read.row.values.tolist() == [7, 2] and {*read.data_vars} == {"norm.size", "norm.large", "diverged_at"}
        for i, row in enumerate((7, 2)):
            here = read.isel(row=i)
            assert all(here[name] == value for name, value in place_of(row).items())
            np.testing.assert_array_equal(here["norm.large"], dataset["norm.large"].sel(place_of(row)))


# --- trackers ---


def read_tensorboard(place, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / name), size_guidance={"scalars": 0})
    events.Reload()
    found = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    texts = [tag for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")]
    (text,) = [events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in texts]
    if "row-" not in name:
        return found, text
    return found, json.loads(text.strip("`\n"))


def read_trackio(place, name):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [run for run in trackio.Api().runs(place.name) if run.name == name]
    logs = SQLiteStorage.get_logs(place.name, name)
    if name == "last":
        return {}, pd.DataFrame(logs[0]["last"]["_value"]).to_csv(index=False)
    found = {(tag, log["step"]): log[tag] for log in logs for tag in log if tag not in ("step", "timestamp")}
    return found, run.config


def read_wandb(place, name):
    """Out of a LevelDB log of protobuf records, which is what `wandb sync` reads."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service may still be writing
    for file in place.glob("wandb/offline-run-*/*.wandb"):
        content, at, record, records = file.read_bytes(), 7, b"", []
        while at < len(content):
            if 2**15 - at % 2**15 < 7:  # no header fits into the rest of a block
                at += 2**15 - at % 2**15
                continue
            _, length, kind = struct.unpack("<IHB", content[at : at + 7])
            record += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                records.append(wandb_internal_pb2.Record.FromString(record))
                record = b""
        (run,) = [one.run for one in records if one.HasField("run")]
        if run.display_name != name:
            continue
        found = {}
        for one in records:
            if one.HasField("history"):
                items = {item.key or ".".join(item.nested_key): item.value_json for item in one.history.item}
                step = one.history.step.num
                found |= {(tag, step): json.loads(text) for tag, text in items.items() if not tag.startswith("_")}
        if name == "last":
            (media,) = file.parent.glob("files/media/table/*.json")
            held = json.loads(media.read_text())
            return {}, pd.DataFrame(held["data"], columns=held["columns"]).to_csv(index=False)
        return found, {item.key: json.loads(item.value_json) for item in run.config.update}
    raise AssertionError(name)


READ = {"tensorboard": read_tensorboard, "trackio": read_trackio, "wandb": read_wandb}


@pytest.mark.parametrize("to", TRACKERS)
def test_tracker_has_a_run_a_row_with_its_numbers_and_settings(trained, tmp_path, needs, to):
    needs(to)
    place = lab.export(trained / "a", to, tmp_path / "out", rows=[1, 5], metrics=["train_loss", "odd", "norm.size"])
    dataset = lab.load(trained / "a").drop_vars(["grad_norm", "norm.large"])
    names = {1: "a/row-001,gamma=0.3,weight_decay=0,seed=7", 5: "a/row-005,gamma=0.3,weight_decay=1,seed=7"}
    for row, name in names.items():
        found, config = READ[to](place, name)
        expected = numbers(dataset, place_of(row))
        assert len(expected) == 16 + 5 + 5 * 8 + 2 * (1 + (row == 5))
        if to == "tensorboard":  # its tags have no brackets and commas
            expected = {(re.sub(r"[^-/\w.]", "_", tag), step): value for (tag, step), value in expected.items()}
        assert {key: np.float32(value).item() for key, value in found.items()} == expected
        assert {axis: config[axis] for axis in AXES} == place_of(row)
        assert config["diverged_at"] == (5 if row == 1 else -1) and config["config"]["steps"] == 16


@pytest.mark.parametrize("to", TRACKERS)
def test_many_rows_that_were_not_asked_for_are_one_table_of_last_values(trained, tmp_path, needs, monkeypatch, to):
    needs(to)
    monkeypatch.setattr(sinks, "RUNS", 11)
    with pytest.warns(UserWarning, match="12 rows: one table of their last values; --rows=all makes a run of each"):
        place = lab.export(trained / "a", to, tmp_path / "out", metrics=["odd.accuracy", "norm.size"])
    _, text = READ[to](place, "." if to == "tensorboard" else "last")
    lines = [line for line in text.splitlines() if "`" not in line]
    assert lines[0].split(",")[:8] == ["variant", "row", *AXES, "diverged_at", "odd.accuracy"] and len(lines) == 13
    dataset = lab.load(trained / "a")
    last = dataset["odd.accuracy"].isel(step=-1).values.ravel()
    np.testing.assert_array_equal([np.float32(line.split(",")[7]) for line in lines[1:]], last)


@pytest.mark.parametrize("to", TRACKERS)
def test_tracker_is_not_given_a_second_export_beside_the_first(trained, tmp_path, needs, to):
    needs(to)
    lab.export(trained / "a", to, tmp_path / "out", rows=[1], metrics=["odd.accuracy"])
    with pytest.raises(ValueError, match=r"would be mixed; .*name another --out"):
        lab.export(trained / "a", to, tmp_path / "out", rows=[1], metrics=["odd.accuracy"])


# --- refusals ---


@pytest.mark.parametrize("to", [name for name, sink in sinks.SINKS.items() if sink.package])
def test_missing_package_is_named_with_what_installs_it(trained, monkeypatch, to):
    package, extra, known = sinks.SINKS[to].package, sinks.SINKS[to].extra, importlib.import_module

    def missing(name):
        if name == package:
            raise ImportError(name)
        return known(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=rf"--to={to} needs the package {package}: pip install 'gammalab\[{extra}\]'"):
        lab.export(trained, to)
    setup = configparser.ConfigParser()
    setup.read(Path(lab.__file__).parents[1] / "setup.cfg")
    assert package in setup["options.extras_require"][extra]


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (ValueError, {"to": "exel"}, "--to=exel: one of csv, parquet, netcdf, tensorboard, trackio, wandb"),
        (ValueError, {"to": "cvs"}, "did you mean 'csv'"),
        (ValueError, {"rows": [12]}, "row 12: .*a has rows 0 to 11"),
        (ValueError, {"rows": [5]}, "row 5: .*b has rows 0 to 4"),
        (ValueError, {"metrics": ["train_los"]}, "no metric 'train_los'; did you mean 'train_loss'.*There are"),
        (WorkdirError, {"variants": ["c"]}, "no variant 'c'; there are a, b"),
        (ValueError, {"to": "netcdf"}, "netcdf holds one training; --variants= one of a, b"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_written(trained, tmp_path, error, changes, message):
    with pytest.raises(error, match=message):
        lab.export(trained, **{"to": "csv", "out": tmp_path / "t"} | changes)
    assert not [*tmp_path.iterdir()]
