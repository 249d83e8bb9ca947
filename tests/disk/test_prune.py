"""What is dropped by rule is not missed by anybody, and what is needed stays."""

import numpy as np
import pytest

from lab import config as configs
from lab import grid, schedule
from lab.cli import main
from lab.disk import files, measurements, metrics, store, verify
from lab.disk.files import WorkdirError
from lab.disk.lock import locked
from lab.disk.prune import prune
from lab.disk.workdir import Workdir
from lab.measuring import cache

CHECKPOINTS = [6, 12, 18, 24]


def saved(echo, path, last=24):
    """A training's folder up to a step, with all its checkpoints and a snapshot every four steps."""
    config = echo.config(snapshot_every=4, snapshots=3)
    files.write_json(path / "grid.json", grid.product(config.grid.to_dict()).to_json())
    files.write_json(path / "config.json", {"config": configs.to_json(config), "data": {}, "start": {}})
    work, (_, evaluated, kept) = Workdir(path), schedule.boundaries(config)
    for end, steps in schedule.chunks(config).items():
        if end <= last:
            tree = {"kernel": np.full((3, 5), end, np.float32)}
            chunk = {"train_step": np.array(steps, int)} | ({"step": np.array([end])} if end in evaluated else {})
            files.write_npz(work.metrics / f"{end}.npz", chunk)
            for folder, due in ((work.snapshots, kept), (work.checkpoints, schedule.checkpointed(config))):
                if end in due:
                    store.save(folder, end, tree)
    return work


@pytest.fixture
def work(echo, tmp_path, echo_is_a_task):
    return saved(echo, tmp_path / "w")


@pytest.mark.parametrize(
    ("rules", "checkpoints", "snapshots"),
    [
        ({}, CHECKPOINTS, [0, 4, 8, 12, 16, 20, 24]),
        ({"checkpoints": 1}, [24], [0, 4, 8, 12, 16, 20, 24]),
        ({"checkpoints": 9}, CHECKPOINTS, [0, 4, 8, 12, 16, 20, 24]),
        ({"snapshots": "last"}, CHECKPOINTS, [0, 24]),
        ({"snapshots": "log"}, CHECKPOINTS, [0, 4, 12, 24]),
        ({"checkpoints": 2, "snapshots": "last"}, [18, 24], [0, 24]),
    ],
)
def test_what_stays_is_as_the_rule_says_and_nothing_is_missed(work, rules, checkpoints, snapshots):
    before = {path: path.stat().st_size for path in work.path.rglob("*") if path.is_file()}
    would = prune(work, **rules, dry_run=True)
    assert {path: path.stat().st_size for path in work.path.rglob("*") if path.is_file()} == before
    assert prune(work, **rules) == would
    assert (files.steps(work.checkpoints), work.snapshot_steps()) == (checkpoints, snapshots)
    assert verify.damages(work) == [] and verify.whole(work)
    gone = sum(size for path, size in before.items() if not path.exists())
    assert sum(n_bytes for _, n_bytes in would) == gone
    assert prune(work, **rules) == []


def test_unfinished_training_continues_where_it_was(echo, tmp_path, echo_is_a_task):
    work = saved(echo, tmp_path / "w", last=20)
    prune(work, checkpoints=1, snapshots="last")
    assert files.steps(work.checkpoints) == [18] and work.snapshot_steps() == [0, 20]
    said = []
    assert verify.sound_until(work, said.append) == 20 and said == []
    assert len(metrics.read_chunks(work)) == len([end for end in schedule.chunks(work.config) if end <= 20])


def test_a_snapshot_that_was_not_dropped_on_purpose_is_missed(work):
    prune(work, snapshots="log")
    files.remove(work.snapshots / "12")
    (line,) = verify.damages(work)
    assert "snapshots/12 is missing" in line


def test_what_was_measured_of_a_dropped_snapshot_stays(work):
    header = {"rows": {}, "every_snapshot": True, "dims": {}, "coords": {}, "units": {}, "precision": "float32"}
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    measurements.write(work, "size", {"size": values}, header | {"snapshots": [8, 24], "float64": {}})
    prune(work, snapshots="last")
    held = cache.read(work, "size", {})
    assert {step: outputs["size"].tolist() for step, outputs in held.outputs.items()} == {8: [0, 1, 2], 24: [3, 4, 5]}


def test_rules_add_up(work):
    prune(work, snapshots="log")
    prune(work, snapshots="last")
    assert work.pruned == {4, 8, 12, 16, 20} and verify.damages(work) == []


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"checkpoints": 0}, ValueError, "keep 0 checkpoints: at least 1, training continues from the last one"),
        ({"snapshots": "none"}, ValueError, "snapshots='none': one of all, log, last"),
    ],
)
def test_rule_that_would_lose_what_is_needed_is_refused(work, rules, error, message):
    with pytest.raises(error, match=message):
        prune(work, **rules)
    assert files.steps(work.checkpoints) == CHECKPOINTS


def test_nothing_is_dropped_beside_damage_or_a_writer(work):
    with locked(work.path), pytest.raises(WorkdirError, match="another process"):
        prune(work, checkpoints=1)
    (work.checkpoints / "24" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(WorkdirError, match=r"nothing was dropped, for something is damaged: .*checkpoints/24"):
        prune(work, checkpoints=1)
    assert files.steps(work.checkpoints) == CHECKPOINTS


def test_damaged_note_is_found(work):
    prune(work, snapshots="last")
    (work.path / files.PRUNED).write_text("{}")
    assert any(files.PRUNED in line for line in verify.damages(work))


def test_command_says_what_it_frees(work, capsys):
    main(["prune", str(work.path), "--keep-snapshots=last", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"would drop {work.snapshots / '4'} (") and lines[-1].endswith(" would be free")
    main(["prune", str(work.path), "--keep-snapshots=last", "--keep-checkpoints=1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"dropped {work.checkpoints / '6'} (") and lines[-1].endswith(" freed")
    with pytest.raises(SystemExit, match="2"):
        main(["prune", str(work.path)])
    assert "what may go? --keep-checkpoints=N" in capsys.readouterr().err
