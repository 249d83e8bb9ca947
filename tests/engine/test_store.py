"""What is read back is what was written, bit by bit, or it is refused."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.engine import store
from lab.engine.step import RowState
from lab.engine.store import DamagedError

ODD_NUMBERS = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3.4e38], np.float32)


def state(fill):
    """Two rows of a training's state, with optax's namedtuples and numbers that a careless copy would change."""
    head = {"kernel": np.stack([ODD_NUMBERS, ODD_NUMBERS[::-1]])}
    params = {"head": head, "in": np.full((2, 3, 4), fill, np.float32)}
    transform = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-1.0)
    )
    moments = jax.tree.map(lambda leaf: np.asarray(leaf) + np.asarray(fill).astype(leaf.dtype), transform.init(params))
    return RowState(params, moments, np.array([-1, 17], np.int32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with saves of steps 10 and 20; copied before it is damaged."""
    folder = tmp_path_factory.mktemp("checkpoints")
    store.save(folder, 10, state(1.5))
    store.save(folder, 20, state(2.5))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def newest(folder):
    """What `restore_newest` gives, and what it says."""
    said = []
    return store.restore_newest(folder, state(0.0), said.append), said


def files_of(place):
    return sorted(path for path in place.rglob("*") if path.is_file())


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
    assert store.steps(folder) == [10, 20]


def test_steps_are_numbers_and_come_in_their_order(tmp_path):
    for name in ("100", "9", "20", "damaged-30", ".40.tmp", "50x", "-60"):
        (tmp_path / name).mkdir()
    (tmp_path / "70").write_text("a file")
    assert store.steps(tmp_path) == [9, 20, 100]
    assert store.steps(tmp_path / "absent") == []


def test_only_the_newest_are_kept(folder):
    store.save(folder, 100, {"a": np.zeros(2, np.float32)})
    store.keep_newest(folder, 2)
    assert store.steps(folder) == [20, 100]


def corrupt_bit(place):
    path = max(files_of(place / "arrays"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(place):
    path = max(files_of(place / "arrays"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def delete(place):
    max(files_of(place / "arrays"), key=lambda path: path.stat().st_size).unlink()


def edit_manifest(place, change):
    manifest = json.loads((place / store.MANIFEST).read_text())
    change(manifest)
    (place / store.MANIFEST).write_text(json.dumps(manifest))


DAMAGES = {
    "flipped bit": (corrupt_bit, "is not what was written"),
    "truncated file": (truncate, "is not what was written"),
    "deleted file": (delete, "is missing"),
    "deleted folder": (lambda place: shutil.rmtree(place / "arrays"), "is missing"),
    "added file": (lambda place: (place / "arrays" / "extra").write_text(""), "extra is not what was written"),
    "no manifest": (lambda place: (place / store.MANIFEST).unlink(), "no readable manifest.json"),
    "empty manifest": (lambda place: (place / store.MANIFEST).write_text(""), "no readable manifest.json"),
    "foreign manifest": (lambda place: (place / store.MANIFEST).write_text("[1]"), "no readable manifest.json"),
    "manifest without files": (lambda place: edit_manifest(place, lambda m: m.pop("files")), "no readable manifest"),
    "empty folder": (lambda place: [shutil.rmtree(place), place.mkdir()], "no readable manifest.json"),
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
    assert len(said) == 1 and message in said[0] and "checkpoint 20" in said[0]
    assert store.steps(folder) == [10] and (folder / "damaged-20").is_dir()
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


def test_save_under_another_number_is_not_that_step(folder):
    shutil.copytree(folder / "10", folder / "30")
    with pytest.raises(DamagedError, match="holds step 10"):
        store.restore(folder, 30, state(0.0))
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_any_file_is_noticed(saved, data):
    path = data.draw(st.sampled_from([path for path in files_of(saved / "20") if path.stat().st_size]))
    before = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    changed = bytearray(before)
    changed[bit // 8] ^= 1 << bit % 8
    intact = json.loads(before) if path.name == store.MANIFEST else None
    try:
        path.write_bytes(changed)
        try:
            found = store.verify(saved / "20")
        except DamagedError:
            pass
        else:
            # Only the manifest is not hashed: what still parses must still say the same of the arrays.
            assert path.name == store.MANIFEST and found["files"] == intact["files"]
    finally:
        path.write_bytes(before)


def test_json_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "claims.json"
    store.write_json(path, {"a": [1, 2]})
    with pytest.raises(TypeError):
        store.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
