"""What is read back is what was written, bit by bit, or it is refused."""

import contextlib
import errno
import json
import logging
import pathlib
import re
import shutil
import sys

import jax
import numpy as np
import optax
import pytest

from lab.disk import files, shard_files, store
from lab.disk.files import DamagedError, SaveError
from lab.engine.step import RowState

ROWS = "rows-0"  # the part of the only process
ODD_NUMBERS = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3.4e38], np.float32)


def state(fill):
    """Two rows of a training's state, with optax's namedtuples and numbers that a careless copy would change."""
    head = {"kernel": np.stack([ODD_NUMBERS, ODD_NUMBERS[::-1]])}
    params = {"head": head, "in": np.full((2, 3, 4), fill, np.float32)}
    transform = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-1.0)
    )
    moments = jax.vmap(transform.init)(params)
    moments = jax.tree.map(lambda leaf: np.asarray(leaf) + np.asarray(fill).astype(leaf.dtype), moments)
    return RowState(params, moments, np.array([-1, 17], np.int32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with saves of steps 10 and 20; copied before it is damaged."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    store.save(folder, 10, state(1.5))
    store.save(folder, 20, state(2.5))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def newest(folder):
    """Step and tree of the newest save that is whole, and what is said of the others."""
    said = []
    step = store.newest_whole(folder, state(0.0), said.append)
    return None if step is None else (step, store.restore(folder, step, state(0.0))), said


def files_of(place):
    return sorted(path for path in place.rglob("*") if path.is_file())


def test_part_of_a_process_lists_its_own_file_alone(tmp_path, monkeypatch):
    """Rows 80 of another process are there already, and `rows-80.npz` begins as `rows-8` does."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for first in (80, 8):
        shard_files.write(tmp_path, first, {"x": np.arange(first)})
    assert [[*shard_files.collect(tmp_path, first)["files"]] for first in (8, 80)] == [["rows-8.npz"], ["rows-80.npz"]]


def test_state_comes_back_bitwise_with_its_namedtuples(saved, same_bits):
    for step, fill in ((10, 1.5), (20, 2.5)):
        back = store.restore(saved, step, state(0.0))
        same_bits(back, state(fill))
        assert type(back) is RowState and type(back.opt_state[1]) is optax.ScaleByAdamState
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(back))
    found, said = newest(saved)
    assert found[0] == 20 and said == []
    same_bits(found[1], state(2.5))


def test_parameters_come_back_without_a_template(tmp_path, same_bits):
    params = {"block_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "scale": np.float32([1, 2])}
    store.save(tmp_path, 0, params)
    back = store.restore(tmp_path, 0)
    same_bits(back, params)
    same_bits(store.take_row(back, 1), {"block_0": {"kernel": np.float32([3, 4, 5])}, "scale": np.float32(2)})


def test_saving_a_step_again_replaces_it(folder, same_bits):
    store.save(folder, 20, state(9.0))
    same_bits(store.restore(folder, 20, state(0.0)), state(9.0))
    assert files.steps(folder) == [10, 20]


def test_steps_are_numbers_and_come_in_their_order(tmp_path):
    for name in ("100", "9", "20", "damaged-30", ".40.tmp", "50x", "-60", "030", "²", "٣"):
        (tmp_path / name).mkdir()
    (tmp_path / "70").write_text("a file")
    assert files.steps(tmp_path) == [9, 20, 100]
    assert files.steps(tmp_path / "absent") == []


def test_only_the_newest_are_kept(folder):
    store.save(folder, 100, {"a": np.zeros(2, np.float32)})
    store.keep_newest(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["100", "20"]


def corrupt_bit(place):
    path = max(files_of(place / ROWS), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(place):
    path = max(files_of(place / ROWS), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def delete(place):
    max(files_of(place / ROWS), key=lambda path: path.stat().st_size).unlink()


def edit_manifest(place, change):
    """As somebody would who knows what a manifest is, but not how it is signed."""
    manifest = json.loads((place / store.MANIFEST).read_text())
    change(manifest)
    (place / store.MANIFEST).write_text(json.dumps(manifest, indent=1))


def believe_a_flipped_bit(place):
    corrupt_bit(place)
    edit_manifest(place, lambda manifest: manifest["parts"]["0"].update(files=shard_files.hashes(place, "rows-*")))


DAMAGES = {
    "flipped bit": (corrupt_bit, "is not what was written"),
    "truncated file": (truncate, "is not what was written"),
    "deleted file": (delete, "is missing"),
    "deleted folder": (lambda place: shutil.rmtree(place / ROWS), "is missing"),
    "added file": (lambda place: (place / ROWS / "extra").write_text(""), "extra is not what was written"),
    "added manifest": (lambda place: (place / ROWS / store.MANIFEST).write_text(""), "is not what was written"),
    "no manifest": (lambda place: (place / store.MANIFEST).unlink(), r"manifest\.json is missing"),
    "empty manifest": (lambda place: (place / store.MANIFEST).write_text(""), r"manifest\.json: damaged"),
    "foreign manifest": (lambda place: (place / store.MANIFEST).write_text("[1]"), r"manifest\.json: no sha256"),
    "unsigned manifest": (
        lambda place: edit_manifest(place, lambda m: m.pop("sha256")),
        "no sha256: damaged",
    ),
    "edited manifest": (believe_a_flipped_bit, r"manifest\.json: damaged \(not what was written\)"),
    "other manifest": (lambda place: files.write_json(place / store.MANIFEST, {"a": 1}), "holds step None of None"),
    "empty folder": (lambda place: [shutil.rmtree(place), place.mkdir()], r"manifest\.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_save_is_refused_set_aside_and_the_one_before_it_is_used(folder, same_bits, damage):
    spoil, message = DAMAGES[damage]
    spoil(folder / "20")
    with pytest.raises(DamagedError, match=message):
        store.restore(folder, 20, state(0.0))
    found, said = newest(folder)
    assert found[0] == 10
    same_bits(found[1], state(1.5))
    assert len(said) == 1 and re.search(message, said[0]) and "checkpoint 20 is damaged" in said[0]
    assert files.steps(folder) == [10] and (folder / "damaged-20").is_dir()
    store.save(folder, 20, state(3.5))  # training comes by again
    same_bits(newest(folder)[0][1], state(3.5))


def test_later_damage_of_the_same_step_replaces_what_was_set_aside(folder):
    corrupt_bit(folder / "20")
    newest(folder)
    store.save(folder, 20, state(3.5))
    delete(folder / "20")
    assert newest(folder)[0][0] == 10
    assert not (folder / "20").exists() and (folder / "damaged-20" / store.MANIFEST).is_file()


def test_empty_folder_with_a_larger_number_does_not_hide_the_save(folder):
    (folder / "999").mkdir()
    found, said = newest(folder)
    assert found[0] == 20 and len(said) == 1 and "999" in said[0]


def test_save_that_was_cut_short_is_not_seen_and_not_in_the_way(folder, same_bits):
    shutil.copytree(folder / "20", folder / ".30.tmp")
    (folder / ".30.tmp" / store.MANIFEST).unlink()
    found, said = newest(folder)
    assert found[0] == 20 and said == []
    store.save(folder, 30, state(4.5))
    same_bits(newest(folder)[0][1], state(4.5))
    assert not (folder / ".30.tmp").exists()


def test_save_under_another_number_or_in_another_folder_is_not_that_step(folder):
    shutil.copytree(folder / "10", folder / "30")
    shutil.copytree(folder / "10", folder.parent / "snapshots" / "10")
    with pytest.raises(DamagedError, match="30: holds step 10 of checkpoints"):
        store.restore(folder, 30, state(0.0))
    with pytest.raises(DamagedError, match="snapshots/10: holds step 10 of checkpoints"):
        store.restore(folder.parent / "snapshots", 10, state(0.0))
    assert newest(folder)[0][0] == 20


def test_save_of_another_training_is_refused_however_alike(tmp_path, same_bits):
    """Two trainings of the same shapes, and the same one begun again elsewhere."""
    for name, seed in (("one", 1), ("other", 2), ("twin", 1)):
        files.write_json(tmp_path / name / "config.json", {"config": {"seed": seed}, "start": {}, "command": name})
        files.write_json(tmp_path / name / "grid.json", {"columns": {}})
    place = pathlib.Path("checkpoints") / "10"
    store.save(tmp_path / "one" / "checkpoints", 10, state(1.5))
    for name in ("other", "twin"):
        shutil.copytree(tmp_path / "one" / place, tmp_path / name / place)
    with pytest.raises(DamagedError, match="other/checkpoints/10: belongs to another training"):
        store.restore(tmp_path / "other" / "checkpoints", 10, state(0.0))
    same_bits(store.restore(tmp_path / "twin" / "checkpoints", 10, state(0.0)), state(1.5))
    files.write_json(tmp_path / "twin" / "grid.json", {"columns": {"seed": [1]}})
    with pytest.raises(DamagedError, match="another training"):
        store.verify(tmp_path / "twin" / place)


def test_saves_behind_a_hole_are_set_aside_and_not_continued(folder, same_bits):
    store.save(folder, 30, state(3.5))
    said = []
    assert store.newest_whole(folder, state(0.0), said.append, newest=15) == 10
    assert [line.split(" is")[0] for line in said] == ["checkpoint 30", "checkpoint 20"]
    same_bits(store.restore(folder, 10, state(0.0)), state(1.5))
    assert files.steps(folder) == [10] and {path.name for path in folder.iterdir()} >= {"damaged-20", "damaged-30"}
    assert store.newest_whole(folder, state(0.0), said.append, newest=10) == 10
    assert store.newest_whole(folder, state(0.0), said.append, newest=-1) is None


# --- saves that fail ---


def test_save_that_fails_says_why_and_what_there_is_still(folder, same_bits, monkeypatch):
    """tensorstore hides the reason in a page of text, and orbax's threads raise whatever they met."""

    def full(self, path, *args, **kwargs):
        (path / "some").mkdir(parents=True)
        (path / "some" / "bytes").write_bytes(b"1")
        raise ValueError("RESOURCE_EXHAUSTED: Error writing \"a/0\"\nFailed to write 9 bytes: [os_error_code='28']")

    corrupt_bit(folder / "20")
    monkeypatch.setattr(shard_files.ocp.StandardCheckpointer, "save", full)
    with pytest.raises(SaveError) as caught:
        store.save(folder, 30, state(3.5))
    told = f"{folder}/30: could not be written (No space left on device); the newest whole one is 10"
    assert str(caught.value) == told and isinstance(caught.value.__cause__, ValueError)
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]
    with pytest.raises(SaveError, match="there is no earlier one"):
        store.save(folder.parent / "empty", 30, state(3.5))


def test_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveError, match=r"^\S*/file/10: could not be written \(Not a directory\); there is no .*one$"):
        store.save(tmp_path / "file", 10, state(0.0))


def test_save_that_fails_at_its_last_step_leaves_the_one_it_would_replace(folder, same_bits, monkeypatch):
    rename = pathlib.Path.rename

    def fails(path, target):
        if path.name == ".20.tmp":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fails)
    with pytest.raises(SaveError, match="the newest whole one is 20"):
        store.save(folder, 20, state(9.0))
    same_bits(store.restore(folder, 20, state(0.0)), state(2.5))
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


class Killed(BaseException):
    """What no handler of ours sees."""


def count_renames(monkeypatch, most):
    """Lets that many renames happen, then the process is gone."""
    rename, left = pathlib.Path.rename, [most]

    def counted(path, target):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", counted)


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_save_killed_at_any_moment_loses_nothing(folder, same_bits, monkeypatch, renames):
    """A save of a step that is there already: the old one or the new one is found, after tidying as before it."""
    with monkeypatch.context() as patch:
        count_renames(patch, renames)
        with contextlib.suppress(Killed):
            store.save(folder, 20, state(9.0))
    assert (newest(folder)[0][0] == 10) == (renames == 1)  # neither stands under its name
    store.tidy(folder)
    same_bits(newest(folder)[0][1], state(9.0 if renames == 2 else 2.5))
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


def test_deletion_killed_half_way_is_not_taken_for_damage(folder, monkeypatch):
    def half(path):
        corrupt_bit(path)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store.files, "remove", half)
        with pytest.raises(Killed):
            store.keep_newest(folder, 1)
    assert newest(folder)[0][0] == 20 and newest(folder)[1] == []
    store.tidy(folder)
    assert [path.name for path in folder.iterdir()] == ["20"]


def test_what_is_no_save_does_not_push_a_save_out(folder):
    """Empty folders with larger numbers are not among the newest that are kept."""
    for name in ("998", "999"):
        (folder / name).mkdir()
    store.keep_newest(folder, 2)
    assert files.steps(folder) == [10, 20, 998, 999]
    assert newest(folder)[0][0] == 20


def test_when_every_save_is_damaged_there_is_none(folder):
    corrupt_bit(folder / "20")
    truncate(folder / "10")
    found, said = newest(folder)
    assert found is None and len(said) == 2
    assert newest(folder) == (None, [])


@pytest.mark.parametrize("kind", ["shape", "dtype", "name", "missing leaf"])
def test_arrays_of_another_training_are_refused(saved, kind):
    like = state(0.0)
    changed = {
        "shape": like._replace(params={**like.params, "in": np.zeros((2, 4, 3), np.float32)}),
        "dtype": like._replace(diverged_at=like.diverged_at.astype(np.int64)),
        "name": like._replace(params={"head": like.params["head"], "out": like.params["in"]}),
        "missing leaf": like._replace(params={"head": like.params["head"]}),
    }[kind]
    with pytest.raises(DamagedError, match="other names, shapes or dtypes"):
        store.restore(saved, 20, changed)


@pytest.mark.parametrize("fails", [False, True])
def test_what_orbax_says_later_of_a_failed_save_is_not_heard(monkeypatch, fails):
    """The error is heard; its threads still write, and would say more after it. After a success all is heard again."""
    told = []
    handler = logging.Handler()
    handler.emit = told.append
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    for name in shard_files.SPEAKERS:
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
    with contextlib.suppress(OSError), shard_files._quiet_orbax():
        for name in shard_files.SPEAKERS:
            logging.getLogger(name).error("while it saves")
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")
    for name in shard_files.SPEAKERS:
        logging.getLogger(name).error("afterwards")
    assert [record.getMessage() for record in told] == ["afterwards"] * (0 if fails else len(shard_files.SPEAKERS))
