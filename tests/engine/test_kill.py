"""No kill at any moment, while saving included, costs a byte of a training: `kill.py` kills one again and again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.disk.load import load
from lab.disk.verify import damages
from lab.disk.workdir import Workdir

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

ROOT = Path(__file__).parents[2]
KILLS = (30, pytest.param(100, marks=pytest.mark.long))


@pytest.fixture(scope="module", params=KILLS, ids="{} kills".format)
def lives(request, tmp_path_factory):
    """What `kill.py` counted, the folders of the undisturbed and of the killed training, and what they said."""
    folder, wanted = tmp_path_factory.mktemp("kill"), (request.param, request.param // 6)
    command = [sys.executable, str(ROOT / "tests/toys/kill.py"), str(folder), *map(str, wanted), "0"]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True)
    log = folder / "lives.log"
    said = log.read_text() if log.is_file() else ""
    assert ran.returncode == 0, f"{ran.stderr}\nwhat the lives said last:\n{said[-4000:]}"
    counts = SimpleNamespace(**json.loads(ran.stdout))
    assert (counts.kills, counts.stops) == wanted
    return SimpleNamespace(counts=counts, undisturbed=folder / "undisturbed", killed=folder / "killed", said=said)


def names(workdir):
    """Everything training puts into its folder, but for what orbax names by chance."""
    folders = (workdir, *(workdir / name for name in ("metrics", "snapshots", "checkpoints")))
    return sorted(str(path.relative_to(workdir)) for folder in folders for path in folder.iterdir())


def test_training_killed_again_and_again_ends_in_the_bytes_of_an_undisturbed_one(lives, echo, capsys):
    """Nor was anything that a checkpoint covers ever missing or damaged: a kill costs only what came after the last."""
    expected, found = echo.digests(lives.undisturbed), echo.digests(lives.killed)
    wrong = {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
    counts = lives.counts
    with capsys.disabled():
        print(
            f"\n{counts.kills} kills: {counts.saving} while saving, {counts.starting} before the first chunk; "
            f"{counts.redone} chunks trained twice; {counts.lost} lost; {counts.damaged + counts.set_aside} damaged; "
            f"{len(wrong)} of {len(expected)} arrays wrong"
        )
    assert not wrong and any(name.endswith("control/integral") for name in expected)  # a controller's state, too
    assert (counts.lost, counts.damaged, counts.set_aside) == (0, 0, 0)
    assert names(lives.killed) == names(lives.undisturbed)
    assert damages(Workdir(lives.killed)) == []
    assert counts.saving >= counts.kills * 2 // 5 and counts.starting > 0 and counts.redone > 0  # it was hard enough


def test_every_step_is_in_the_table_once(lives):
    steps = Workdir(lives.killed).config.steps
    assert load(lives.killed).train_step.values.tolist() == list(range(steps))


def test_training_asked_to_stop_at_any_moment_ends_with_all_it_has_done_in_a_checkpoint(lives):
    assert lives.counts.stops > 0 and lives.counts.unsaved == 0


def test_second_process_is_refused_while_one_trains(lives):
    """`kill.py` starts it beside the last life, which it does not disturb."""
    assert lives.said.count("killed: another process is at work here") == 1
