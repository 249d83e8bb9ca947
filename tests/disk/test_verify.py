"""What is damaged or missing in a training's folder is found and named, and nothing else is."""

import shutil

import numpy as np
import pytest

from lab import config as configs
from lab import grid, schedule
from lab.disk import files, measurements, metrics, store, verify
from lab.disk.workdir import Workdir, variants_in

ENDS = [0, 4, 6, 8, 12, 16, 18, 20, 24]  # of `echo.config()`; snapshots at 0, 12 and 24, checkpoints at 6, 12, 18, 24
HEADER = {
    "snapshots": [0, 12, 24],
    "rows": {},
    "every_snapshot": True,
    "dims": {},
    "coords": {},
    "units": {"size": "1"},
}


def write_training(path, config, last=24, after=None):
    """A folder as training leaves it that was stopped by force at a step, after writing its metrics or its snapshot.

    Numbers are drawn here, but depend on nothing but the step: written again they are the same bytes.
    """
    files.write_json(path / "grid.json", grid.product(config.grid.to_dict()).to_json())
    files.write_json(path / "config.json", {"config": configs.to_json(config), "data": {}, "start": {}})
    files.write_json(path / "plan.json", {"width": 1})
    work = Workdir(path)
    _, evaluated, kept = schedule.boundaries(config)
    for end, steps in schedule.chunks(config).items():
        if end <= last:
            state = {"head": {"kernel": np.random.default_rng(end).normal(size=(3, 5)).astype(np.float32)}}
            chunk = {"train_step": np.array(steps, int), "train_loss": state["head"]["kernel"][:, :1].T}
            files.write_npz(
                work.metrics / f"{end}.npz", chunk | ({"step": np.array([end])} if end in evaluated else {})
            )
            if end in kept and not (end == last and after == "metrics"):
                store.save(work.snapshots, end, state)
            if end in schedule.checkpointed(config) and not (end == last and after in ("metrics", "snapshot")):
                store.save(work.checkpoints, end, state)
                store.keep_newest(work.checkpoints, 2)
    return work


@pytest.fixture(scope="module")
def ended(echo, tmp_path_factory):
    work = write_training(tmp_path_factory.mktemp("ended") / "w", echo.config())
    for seed, name in enumerate(("rank", "focus")):
        measurements.write(work, name, {"size": np.random.default_rng(seed).normal(size=(3, 3))}, HEADER)
    return work.path


@pytest.fixture
def work(ended, tmp_path):
    return Workdir(shutil.copytree(ended, tmp_path / "w"))


def every_file(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sound(work):
    """What `sound_until` returns, and what it says."""
    said = []
    return verify.sound_until(Workdir(work.path), said.append), said


def test_what_was_written_is_whole_and_stays_untouched(work):
    assert len(every_file(work.path)) > 40
    before = {path: path.stat().st_mtime_ns for path in every_file(work.path)}
    assert verify.damages(work) == [] and verify.remarks(work) == [] and verify.whole(work)
    assert sound(work) == (24, [])
    assert {path: path.stat().st_mtime_ns for path in every_file(work.path)} == before


@pytest.mark.parametrize("after", [None, "metrics", "snapshot"])
@pytest.mark.parametrize("last", ENDS)
def test_training_stopped_anywhere_is_not_damaged(echo, tmp_path, last, after):
    """Each step's metrics, snapshot and checkpoint are written in this order, and whichever was the last is enough."""
    work = write_training(tmp_path, echo.config(), last, after)
    expected = []
    if last == 24 and after == "snapshot":  # the end was reached: its checkpoint cannot be told from a lost one
        expected = [f"{tmp_path}/checkpoints/24 is missing; the train command makes it again"]
    assert verify.damages(work) == expected
    whole = last == 24 and after is None
    assert verify.whole(work) == whole
    held_back = after == "metrics" and last in (0, 12, 24)  # the snapshot due there has not been written
    assert sound(work)[0] == (max([end for end in ENDS if end < last], default=-1) if held_back else last)


def test_one_flipped_bit_anywhere_is_found_and_named(work):
    draw = np.random.default_rng(1)
    paths = every_file(work.path)
    for path in paths:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        if not whole:
            continue
        damaged[draw.integers(len(whole))] ^= 1 << draw.integers(8)
        path.write_bytes(damaged)
        (line,) = verify.damages(Workdir(work.path))
        assert path.name in line
        path.write_bytes(whole)
    assert verify.damages(Workdir(work.path)) == []


@pytest.mark.parametrize(
    "lost", [*(f"metrics/{end}.npz" for end in ENDS), "snapshots/0", "snapshots/12", "snapshots/24"]
)
def test_what_the_config_promises_is_missed(work, lost):
    files.remove(work.path / lost)
    assert verify.damages(work) == [f"{work.path / lost} is missing; the train command makes it again"]
    assert not verify.whole(work)
    step = int(lost.split("/")[1].removesuffix(".npz"))
    until, said = sound(work)
    assert until == max([end for end in ENDS if end < step], default=-1)
    assert said == [f"{work.path / lost} is missing; training it again"]


def test_lost_checkpoint_is_missed_where_training_would_not_have_gone_on_without(work, echo, tmp_path):
    files.remove(work.checkpoints / "24")
    assert verify.damages(work) == [f"{work.checkpoints}/24 is missing; the train command makes it again"]
    assert sound(work) == (24, [f"{work.checkpoints}/24 is missing; training it again"])
    files.remove(work.checkpoints)
    assert verify.damages(work) == [f"{work.checkpoints}/24 is missing; the train command makes it again"]
    stopped = write_training(tmp_path / "stopped", echo.config(), 16)
    files.remove(stopped.checkpoints / "6")  # nothing is lost: who goes on does so at 12
    assert verify.damages(stopped) == []


def test_lost_folders_are_missed(work):
    files.remove(work.metrics)
    assert len(verify.damages(work)) == len(ENDS) and sound(work)[0] == -1
    files.remove(work.snapshots)
    assert len(verify.damages(work)) == len(ENDS) + 3 and sound(work)[0] == -1


def test_damage_is_set_aside_once_and_not_counted_again(work):
    for path in (work.metrics / "16.npz", work.checkpoints / "24" / store.MANIFEST, work.snapshots / "24" / "rows-0"):
        files.remove(path) if path.is_dir() else path.write_bytes(b"damaged")
    assert len(verify.damages(work)) == 3 and not verify.whole(work)
    until, said = sound(work)
    assert until == 12 and len(said) == 3
    for name in ("damaged-16.npz", "damaged-24"):
        assert any(line.endswith(f"; set aside as {name}") for line in said)
    (remark,) = verify.remarks(work)
    assert remark == f"{work.path}: 3 set aside as damaged-*; not used any more, delete them when you like"
    until, said = sound(work)
    assert until == 12 and all("damaged" not in line for line in said)
    assert files.steps(work.checkpoints) == [18] and files.steps(work.snapshots) == [0, 12]


def test_damaged_checkpoint_that_nobody_needs_is_set_aside_and_training_has_nothing_to_do(work):
    (work.checkpoints / "18" / store.MANIFEST).unlink()
    assert len(verify.damages(work)) == 1
    assert sound(work)[0] == 24
    assert verify.damages(work) == [] and verify.whole(work)


def test_leftovers_are_no_damage_and_cleared_away(work):
    shutil.copytree(work.checkpoints / "24", work.checkpoints / ".30.tmp")
    (work.metrics / ".28.npz.tmp").write_bytes(b"half")
    (work.snapshots / "24").rename(work.snapshots / ".24.old")
    (work.path / ".config.json.tmp").write_bytes(b"{")
    assert verify.remarks(work) == [f"{work.path}: 4 left of saves that were cut short; train and analyze remove them"]
    assert sound(work) == (24, [])
    assert verify.damages(work) == [] and verify.remarks(work) == []


def test_damaged_plan_is_found_and_set_aside(work):
    (work.path / "plan.json").write_text('{"width": 2}')
    (line,) = verify.damages(work)
    assert "plan.json: no sha256" in line
    said = []
    verify.set_aside_identity(work, said.append)
    assert said == [f"{line}; set aside as damaged-plan.json"]
    assert verify.damages(work) == [] and verify.whole(work)  # who has ended needs none


@pytest.mark.parametrize("name", ["config.json", "grid.json"])
@pytest.mark.parametrize("damage", ["lost", "cut short"])
def test_lost_config_does_not_hide_the_other_damage(work, name, damage):
    (work.path / name).unlink() if damage == "lost" else (work.path / name).write_text("{")
    (work.metrics / "8.npz").write_bytes(b"damaged")
    lines = verify.damages(Workdir(work.path))
    assert len(lines) == 2 and f"/{name}" in lines[0] and "metrics/8.npz" in lines[1]
    assert [*variants_in(work.path)] == ["w"] and [*variants_in(work.path.parent)] == ["w"]
    said = []
    verify.set_aside_identity(Workdir(work.path), said.append)
    assert len(said) == (damage == "cut short")
    other = {"config.json": "grid.json", "grid.json": "config.json"}[name]
    assert not (work.path / name).exists() and (work.path / other).is_file()


def test_files_of_another_training_are_not_believed_when_its_config_is_put_here(work, echo):
    """Same shapes, same steps, other data: all that is here is of the training that was here."""
    config = echo.config(data_seed=6)
    files.write_json(work.path / "config.json", {"config": configs.to_json(config), "data": {}, "start": {}})
    lines = verify.damages(Workdir(work.path))
    assert len(lines) == len(ENDS) + 3 + 2 + 2 and all("another training" in line for line in lines)
    assert sound(work)[0] == -1
    assert not metrics.metric_files(work.metrics) and not files.steps(work.checkpoints)


@pytest.mark.parametrize(
    ("lost", "line"),
    [("rank.npz", "rank.npz is missing"), ("rank.json", "rank.json is missing")],
)
def test_half_a_measurement_is_found(work, lost, line):
    (work.analysis / lost).unlink()
    assert verify.damages(work) == [f"{work.analysis}/{line}"]
    assert verify.whole(work)  # the training is


def test_header_beside_the_numbers_of_another_measurement_is_found(work):
    for first, second in (("rank.npz", "focus.npz"), ("focus.json", "rank.json")):
        shutil.copy(work.analysis / first, work.analysis / "kept")
        shutil.copy(work.analysis / second, work.analysis / first)
        (line,) = verify.damages(work)
        assert "describes another" in line
        shutil.copy(work.analysis / "kept", work.analysis / first)
    assert verify.damages(work) == []
