"""How far the trainings of a study are, as their folders tell it."""

import fcntl
import shutil

import pytest

from lab.cluster import status
from lab.cluster.status import Progress
from lab.disk import files
from lab.disk.files import WorkdirError
from lab.engine import train

pytestmark = pytest.mark.usefixtures("echo_is_a_task")


@pytest.fixture(scope="module")
def trained(echo, tmp_path_factory):
    """A study of one variant: checkpoints of steps 18 and 24, chunks that end at 18, 20 and 24."""
    return train.train_variants(echo.config(), tmp_path_factory.mktemp("trained"))[0].parent


@pytest.fixture
def root(trained, tmp_path):
    """The same, cut short after step 20."""
    copy = shutil.copytree(trained, tmp_path / "study")
    shutil.rmtree(copy / "main" / "checkpoints" / "24")
    (copy / "main" / "metrics" / "24.npz").unlink()
    return copy


def only(root):
    (line,) = status.study(root)
    return line


def test_stopped_training_is_at_the_step_where_it_continues(root):
    assert only(root) == Progress("main", "stopped", 18, 24, 3, 1)  # of three rows the last diverges at once
    shutil.rmtree(root / "main" / "checkpoints")
    assert only(root) == Progress("main", "stopped", 0, 24, 3, 0)


def test_training_is_running_while_its_lock_is_held_and_is_at_its_last_chunk(root):
    with (root / "main" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert only(root) == only(root / "main") == Progress("main", "running", 20, 24, 3, 1)
    assert only(root).state == "stopped"


def test_being_looked_at_locks_nobody_out(root):
    status.study(root)
    with (root / "main" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_training_is_trained_when_its_last_checkpoint_is_there(trained):
    assert only(trained) == Progress("main", "trained", 24, 24, 3, 1)


def test_training_whose_config_is_unreadable_is_damaged_and_hides_no_other(root):
    for name, content in (("cut", '{"config": {'), ("empty", "{}"), ("list", "[]"), ("other", '{"config": {"a": 1}}')):
        shutil.copytree(root / "main", root / name)
        (root / name / "config.json").write_text(content)
    shutil.copytree(root / "main", root / "lost")
    (root / "lost" / "config.json").unlink()
    (root / "main" / "grid.json").unlink()
    lines = {line.variant: line for line in status.study(root)}
    assert {line.state for line in lines.values()} == {"damaged"} and all(line.note for line in lines.values())
    assert set(lines) == {"cut", "empty", "list", "lost", "main", "other"}
    assert "grid.json" in lines["main"].note and "config.json" in lines["lost"].note


def test_launched_variant_that_has_not_begun_is_not_started(root):
    planned = {
        name: {"cluster": "slurm", "job": "7", "tasks": 1, "steps": steps, "rows": 5}
        for name, steps in (("late", 30), ("main", 24))
    }
    (root / "jobs").mkdir()
    files.write_json(root / "jobs" / "launched.json", planned)
    late = Progress("late", "not started", 0, 30, 5)
    assert status.study(root) == [late, Progress("main", "stopped", 18, 24, 3, 1)]
    (root / "late").mkdir()
    (root / "late" / ".lock").touch()  # as its process leaves it, killed right after its birth
    assert status.study(root)[0] == late


def test_folder_without_a_training_is_refused(root, tmp_path):
    (root / "report").mkdir()
    assert [line.variant for line in status.study(root)] == ["main"]
    for path in (tmp_path / "nowhere", root / "report", root / "main" / "config.json"):
        with pytest.raises(WorkdirError, match="no training here"):
            status.study(path)


def test_table_has_a_line_a_variant_and_says_what_is_to_be_said_below():
    lines = [Progress("a", "trained", 9, 9, 120, 0), Progress("longer", "damaged", note="cut short")]
    assert status.text(lines).splitlines() == [
        "variant  state    step  rows  diverged",
        "a        trained  9/9   120   0",
        "longer   damaged  ?/?   ?     ?",
        "longer: cut short",
    ]
