"""A single flipped bit anywhere in a training's folder is found and named."""

import json

import numpy as np
import pytest

from lab import grid
from lab.engine import store, table
from lab.engine.verify import damages
from lab.engine.workdir import Workdir


@pytest.fixture
def work(tmp_path):
    rows = grid.product({"gamma": (0.5,), "weight_decay": (0.0,), "learning_rate": (0.1,), "seed": (0, 1)})
    store.write_json(tmp_path / "grid.json", rows.to_json())
    store.write_json(tmp_path / "config.json", {"config": {"steps": 4}})
    made = Workdir(tmp_path)
    kernel = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    for folder in (made.checkpoints, made.snapshots):
        store.save(folder, 4, {"head": {"kernel": kernel}})
    table.write_npz(made.metrics / "4.npz", {"train_step": np.arange(4), "train_loss": kernel[0]})
    header = {"snapshots": [4], "every_snapshot": True, "dims": {}, "coords": {}, "units": {"size": "1"}}
    table.write_measure(made, "rank", {"size": kernel[:1]}, header)
    return made


def files(work):
    return sorted(path for path in work.path.rglob("*") if path.is_file())


def test_what_was_written_is_whole(work):
    assert len(files(work)) > 10
    assert damages(work) == []


def test_deleted_data_are_found(work):
    for folder in (work.checkpoints, work.snapshots):
        victim = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        victim.unlink()
    assert len(damages(work)) == 2


def test_one_flipped_bit_in_any_array_is_found(work):
    rng = np.random.default_rng(1)
    arrays = [path for path in files(work) if path.suffix == ".npz" or "arrays" in path.parts]
    for path in arrays:
        whole = path.read_bytes()
        # an npz is a zip file: its members' bytes are covered by their checksums, zip's own padding is not
        place = whole.index(b"NUMPY") + 64 if path.suffix == ".npz" else rng.integers(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        (line,) = damages(Workdir(work.path))
        assert path.name in line
        path.write_bytes(whole)
    assert damages(Workdir(work.path)) == []


def test_unreadable_config_is_named(work):
    (work.path / "config.json").write_text(json.dumps({"config": {}})[:-3])
    (line,) = damages(Workdir(work.path))
    assert "config.json" in line
