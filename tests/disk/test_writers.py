"""Whatever the disk writes comes back as it was, or is refused; and a write that fails is no write."""

import dataclasses
import os
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.disk import files, measurements, store
from lab.disk.files import DamagedError, SaveError
from lab.disk.workdir import Workdir

HEADER = {"snapshots": [0], "rows": {}, "every_snapshot": False, "dims": {}, "coords": {}, "units": {"size": "1"}}


@dataclasses.dataclass(frozen=True)
class Writer:
    """One kind of thing on disk: `write(workdir, seed)`, `read(workdir) -> tree`, and where its files are."""

    write: Callable
    read: Callable
    place: str


def arrays(seed):
    """Of two rows."""
    draw = np.random.default_rng(seed)
    return {"b": draw.integers(9, size=(2, 3), dtype=np.int32), "a": draw.standard_normal(2, np.float32)}


def save(folder, seed):
    store.save(folder, 10, {"params": arrays(seed)})


WRITERS = {
    "json": Writer(
        lambda path, seed: files.write_json(path / "plan.json", {"width": seed, "rates": {"1": seed / 3}}),
        lambda path: files.read_json(path / "plan.json"),
        "plan.json",
    ),
    "npz": Writer(
        lambda path, seed: files.write_npz(path / "metrics" / "4.npz", arrays(seed)),
        lambda path: files.read_npz(path / "metrics" / "4.npz"),
        "metrics",
    ),
    "measurement": Writer(
        lambda path, seed: measurements.write(Workdir(path), "norm", arrays(seed), HEADER),
        lambda path: measurements.read(Workdir(path), "norm")[1],
        "analysis",
    ),
    "checkpoint": Writer(
        lambda path, seed: save(path / "checkpoints", seed),
        lambda path: store.restore(path / "checkpoints", 10, {"params": arrays(0)}),
        "checkpoints",
    ),
    "snapshot": Writer(
        lambda path, seed: save(path / "snapshots", seed), lambda path: Workdir(path).params(10), "snapshots"
    ),
}
every_writer = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)


def begun(path, seed=0):
    """A folder that says which training it holds."""
    files.write_json(path / "config.json", {"config": {"data_seed": seed}, "start": {}})
    files.write_json(path / "grid.json", {"columns": {"seed": [0, 1]}})
    return path


def files_of(path, writer):
    place = path / writer.place
    return [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())


@pytest.fixture(scope="module", params=WRITERS.values(), ids=WRITERS)
def written(request, tmp_path_factory):
    """`(writer, folder)`: written once, and damaged and mended by every example."""
    path = begun(tmp_path_factory.mktemp("written") / "w")
    request.param.write(path, 1)
    return request.param, path


@every_writer
def test_what_is_written_comes_back_bitwise_and_is_replaced_whole(writer, tmp_path, same_bits):
    for seed in (1, 2):
        writer.write(begun(tmp_path / "w"), seed)
        writer.write(begun(tmp_path / "alone" / str(seed)), seed)
        same_bits(writer.read(tmp_path / "w"), writer.read(tmp_path / "alone" / str(seed)))
    assert not [file for file in (tmp_path / "w").rglob("*") if file.name.startswith(".") and file.name != ".lock"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_any_file_is_refused(written, data):
    """Also in the bookkeeping of zip and orbax, which no checksum of theirs covers."""
    writer, path = written
    file = data.draw(st.sampled_from([file for file in files_of(path, writer) if file.stat().st_size]))
    before = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    changed = bytearray(before)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        file.write_bytes(changed)
        with pytest.raises(DamagedError):
            writer.read(path)
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: os.truncate(file, file.stat().st_size - 1)])
def test_any_file_that_is_missing_or_cut_short_is_refused(written, spoil):
    writer, path = written
    for file in [file for file in files_of(path, writer) if file.stat().st_size]:
        before = file.read_bytes()
        spoil(file)
        with pytest.raises(DamagedError):
            writer.read(path)
        file.write_bytes(before)
    writer.read(path)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "json"])  # JSON says no training
def test_numbers_of_another_training_are_refused(name, tmp_path):
    writer = WRITERS[name]
    writer.write(begun(tmp_path / "w"), 1)
    shutil.copytree(tmp_path / "w", tmp_path / "other")
    writer.read(begun(tmp_path / "other"))
    with pytest.raises(DamagedError, match="another training"):
        writer.read(begun(tmp_path / "other", seed=1))


@every_writer
def test_disk_that_is_full_is_told_and_nothing_wrong_is_read_after(writer, tmp_path, monkeypatch, same_bits):
    path = begun(tmp_path / "w")
    writer.write(path, 1)
    before = writer.read(path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(SaveError, match=r"could not be written \(No space left on device\)"):
            writer.write(path, 2)
    assert not [file for file in path.rglob("*") if file.name.endswith(".tmp")]
    if writer is WRITERS["measurement"]:  # two files: its header goes first, so that no other one's numbers are read
        with pytest.raises(DamagedError, match=r"norm\.json is missing"):
            writer.read(path)
    else:
        same_bits(writer.read(path), before)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "json"])  # it needs no folder of its own
def test_file_in_the_way_of_a_folder_is_told(name, tmp_path):
    writer, path = WRITERS[name], begun(tmp_path / "w")
    (path / writer.place).write_text("in the way")
    with pytest.raises(SaveError, match="could not be written"):
        writer.write(path, 1)
    assert (path / writer.place).read_text() == "in the way"
