"""A file is what was written, to the bit, or it is refused; and it is written whole or not at all."""

import hashlib
import json
import math
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lab.disk import files
from lab.disk.files import DamagedError, SaveError, WorkdirError

NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.booleans() | st.none()
VALUES = st.recursive(
    NUMBERS | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)
ARRAYS = {"b": np.arange(6, dtype=np.int32).reshape(2, 3), "a": np.float32([np.nan, -0.0, np.inf]), "c": np.zeros(0)}
in_one_folder = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def flip(path, bit):
    """Flips one bit, counted round the file; gives the file as it was."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[bit // 8 % len(before)] ^= 1 << bit % 8
    path.write_bytes(changed)
    return before


def training(folder, **config):
    """A folder that says which training it holds."""
    files.write_json(folder / "config.json", {"config": config, "start": {}, "command": str(folder)})
    files.write_json(folder / "grid.json", {"columns": {"seed": [0, 1]}})
    return folder


# --- JSON ---


@in_one_folder
@given(value=st.dictionaries(st.text(), VALUES).filter(lambda value: "sha256" not in value))
@example(value={"rate": 1e30, "low": -0.0, "γ": "\u2028", "deep": {"b": [1, {"a": math.inf}], "a": None}})
def test_dict_comes_back_as_it_was(tmp_path, value):
    files.write_json(tmp_path / "a.json", value)
    back = files.read_json(tmp_path / "a.json")
    assert back == value and list(back) == list(value)
    assert json.loads((tmp_path / "a.json").read_text()).keys() == {*value, "sha256"}


@in_one_folder
@given(value=st.dictionaries(st.text(min_size=1), VALUES), bit=st.integers(0, 10**6))
@example(value={"rate": 1e30}, bit=8 * len('{\n "rate": 1') + 5)  # 1E+30 is the same number
def test_any_flipped_bit_of_a_json_file_is_noticed(tmp_path, value, bit):
    files.write_json(tmp_path / "a.json", value)
    flip(tmp_path / "a.json", bit)
    with pytest.raises(DamagedError, match=r"a\.json: (damaged|no sha256)"):
        files.read_json(tmp_path / "a.json")


def test_hash_is_of_the_compact_sorted_dump(tmp_path):
    """So that who reads it elsewhere can check it too."""
    files.write_json(tmp_path / "a.json", {"b": (1, 2.5), "a": {"d": None, "c": "é"}})
    digest = json.loads((tmp_path / "a.json").read_text())["sha256"]
    assert digest == hashlib.sha256(b'{"a":{"c":"\\u00e9","d":null},"b":[1,2.5]}').hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"steps": 4}', "no sha256: damaged"),
        (b"[1, 2]", "no sha256"),
        (b"", "damaged"),
        (b'{"steps": 4', "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b'{"steps": 4, "sha256": "0"}', r"damaged \(not what was written\)"),
        (b'{"steps": 4, "sha256": null}', r"damaged \(not what was written\)"),
        (None, "is missing"),
    ],
)
def test_file_that_is_no_signed_json_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(WorkdirError, match=rf"a\.json:? {message}"):
        files.read_json(tmp_path / "a.json")


def test_folder_in_place_of_a_file_is_damage(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(DamagedError, match=r"a\.json: cannot be read \(Is a directory\)"):
        files.read_json(tmp_path / "a.json")


def test_json_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": [1, 2]})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == {"a": [1, 2]}


def test_list_is_written_as_it_is(tmp_path):
    files.write_json(tmp_path / "claims.json", [{"a": 1}])
    assert json.loads((tmp_path / "claims.json").read_text()) == [{"a": 1}]


# --- npz ---


def test_arrays_come_back_bitwise_and_numpy_reads_them_too(tmp_path, same_bits):
    files.write_npz(tmp_path / "m" / "4.npz", ARRAYS)
    same_bits(files.read_npz(tmp_path / "m" / "4.npz"), ARRAYS)
    with np.load(tmp_path / "m" / "4.npz") as file:
        assert set(file.files) == set(ARRAYS)
        same_bits(dict(file.items()), ARRAYS)
    assert zipfile.ZipFile(tmp_path / "m" / "4.npz").testzip() is None


def test_same_arrays_make_the_same_bytes(tmp_path):
    first, again = (files.write_npz(tmp_path / "m" / name, ARRAYS) for name in ("4.npz", "5.npz"))
    assert first == again == files.npz_hash(tmp_path / "m" / "4.npz")
    assert (tmp_path / "m" / "4.npz").read_bytes() == (tmp_path / "m" / "5.npz").read_bytes()
    swapped = ARRAYS | {"b": ARRAYS["b"].reshape(3, 2)}
    assert files.write_npz(tmp_path / "m" / "5.npz", swapped) != first


def test_npz_without_a_seal_is_refused(tmp_path):
    np.savez(tmp_path / "4.npz", **ARRAYS)
    with pytest.raises(DamagedError, match=r"4\.npz: damaged \(not what was written\)"):
        files.read_npz(tmp_path / "4.npz")


def test_npz_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "m" / "4.npz"
    files.write_npz(path, {"a": np.arange(3)})

    class Unwritable:
        def __array__(self, dtype=None, copy=None):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_npz(path, {"a": np.arange(5), "b": Unwritable()})
    assert files.read_npz(path)["a"].tolist() == [0, 1, 2]


def test_npz_of_another_training_is_refused_and_of_the_same_one_begun_again_is_not(tmp_path, same_bits):
    one, other, twin = training(tmp_path / "a", s=1), training(tmp_path / "b", s=2), training(tmp_path / "c", s=1)
    files.write_npz(one / "metrics" / "4.npz", ARRAYS)
    for folder in (other, twin):
        shutil.copytree(one / "metrics", folder / "metrics")
    same_bits(files.read_npz(twin / "metrics" / "4.npz"), ARRAYS)
    with pytest.raises(DamagedError, match=r"b/metrics/4\.npz: belongs to another training"):
        files.read_npz(other / "metrics" / "4.npz")
    (other / "config.json").unlink()  # nothing tells whose it is
    same_bits(files.read_npz(other / "metrics" / "4.npz"), ARRAYS)


def test_training_is_its_config_and_its_grid_and_not_who_started_it(tmp_path):
    one, twin = training(tmp_path / "a", s=1), training(tmp_path / "b", s=1)
    assert files.training_of(one) == files.training_of(twin) is not None
    files.write_json(twin / "grid.json", {"columns": {"seed": [0, 2]}})
    assert files.training_of(twin) not in (None, files.training_of(one))
    flip(twin / "grid.json", 99)
    assert files.training_of(twin) is None and files.training_of(tmp_path) is None


# --- writing that fails, and setting aside ---


def test_what_cannot_be_written_is_told_in_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "4.npz"
    files.write_npz(path, ARRAYS)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (lambda: files.write_npz(path, {"a": np.arange(5)}), lambda: files.write_json(path, {})):
        with pytest.raises(SaveError) as caught:
            write()
        assert str(caught.value) == f"{path}: could not be written (No space left on device)"
        assert caught.value.__cause__.errno == 28
        assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_what_is_set_aside_replaces_what_was_set_aside_before(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "4.npz").write_text(content)
        assert files.set_aside(tmp_path / "4.npz") == tmp_path / "damaged-4.npz"
    (tmp_path / "4.npz").mkdir()
    assert (tmp_path / "damaged-4.npz").read_text() == "two"
    files.set_aside(tmp_path / "4.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged-4.npz"] and (tmp_path / "damaged-4.npz").is_dir()


def test_file_that_another_tool_writes_takes_its_name_when_complete_or_leaves_what_was_there(tmp_path):
    place = tmp_path / "new" / "table"
    with files.writing(place) as temporary:
        temporary.write_text("whole")
        assert not place.exists()
    with pytest.raises(UnicodeEncodeError), files.writing(place) as temporary:
        temporary.write_text("half \ud800", encoding="utf-8")
    with pytest.raises(files.SaveError, match="table: could not be written"), files.writing(place):
        raise OSError("no space")
    assert [path.name for path in place.parent.iterdir()] == ["table"] and place.read_text() == "whole"
