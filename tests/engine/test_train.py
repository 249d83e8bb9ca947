"""What training leaves on disk, and that no interruption changes a byte of it."""

import os
import signal

import jax
import numpy as np
import pytest

from lab import grid, rng, schedule
from lab.disk import metrics, store, verify
from lab.disk.files import WorkdirError
from lab.disk.load import load
from lab.disk.workdir import Workdir
from lab.engine import train
from lab.engine.rows import Rows
from lab.tree import named_leaves

pytestmark = pytest.mark.usefixtures("echo_is_a_task", "compiled_once")

EPS = 2.0**-23  # float32


@pytest.fixture(scope="module")
def uninterrupted(echo, tmp_path_factory):
    return train.train(echo.config(), tmp_path_factory.mktemp("uninterrupted") / "w")


def written(workdir):
    """When every file was last changed."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(workdir.rglob("*")) if path.is_file()}


# --- what is on disk ---


def test_table_holds_every_step_of_every_row_of_a_plain_loop_and_no_padding(uninterrupted, echo):
    """Three rows on two devices: a fourth was computed, and must not show."""
    dataset = load(uninterrupted)
    config, experiment = echo.config(), Workdir(uninterrupted).experiment
    assert dataset.train_step.values.tolist() == list(range(24)) and dataset.sizes["learning_rate"] == 3
    train_set = experiment.task.sample(rng.key(5, "train_set"), 13, "train", {})

    def batch_at(step):
        order = jax.random.permutation(rng.key(4, "epoch", step // 3), 13)
        index_B = order[4 * (step % 3) : 4 * (step % 3) + 4]
        return train_set.tokens_BxL[index_B], train_set.targets_BxL[index_B, -1]

    for row, rate in enumerate((0.01, 0.003, 1e30)):
        hparams = grid.product(config.grid.to_dict()).row(row)
        losses_T, _, params, stopped = echo.train_by_hand(
            echo.start_by_hand(experiment.model, hparams), hparams, 24, batch_at, 24
        )
        mine = dataset.sel(learning_rate=rate).squeeze()
        assert mine.diverged_at == stopped == (0 if rate == 1e30 else -1)
        steps = len(losses_T)
        # As in test_sweep: 32 roundings of a loss below 4, and 24 Adam steps each off by lr times 320 eps, times the
        # gradient's norm, below 4. A row that diverges is compared at its first step only.
        weights = 24 * rate * 320 * EPS if stopped < 0 else 0
        np.testing.assert_allclose(mine.train_loss[:steps], losses_T, rtol=0, atol=128 * EPS + 4 * weights)
        assert np.isnan(mine.train_loss[steps:]).all() and np.isnan(mine["odd.loss"][1:]).all() == (stopped == 0)
        for name, leaf in named_leaves(dataset.lab.params(learning_rate=rate)).items():
            np.testing.assert_allclose(leaf, named_leaves(params)[name], rtol=24 * EPS, atol=weights)


def test_evaluations_are_those_of_the_snapshots(uninterrupted, echo):
    dataset, work = load(uninterrupted), Workdir(uninterrupted)
    assert dataset.step.values.tolist() == [0, 4, 8, 12, 16, 20, 24] and work.snapshot_steps() == [0, 12, 24]
    sets = {
        "train": work.experiment.task.sample(rng.key(5, "train_set"), 13, "train", {}),
        "odd": work.experiment.task.sample(rng.key(5, "eval/odd"), 16, "odd", {}),
    }
    for step in work.snapshot_steps():
        for rate in (0.01, 0.003):
            params = dataset.lab.params(step, learning_rate=rate)
            for split, batch in sets.items():
                expected = echo.loss_by_hand(params, batch.tokens_BxL, batch.targets_BxL[:, -1])
                found = dataset[f"{split}.loss"].sel(step=step, learning_rate=rate).item()
                assert found == pytest.approx(float(expected), abs=128 * EPS)  # 32 roundings of a loss below 4


def test_folder_says_what_made_it(uninterrupted, echo):
    identity = Workdir(uninterrupted).read_json("config.json")
    assert identity["versions"]["jax"] == jax.__version__
    assert identity["devices"] == [str(device) for device in jax.devices()]
    assert Workdir(uninterrupted).config.to_dict() == echo.config().to_dict()
    assert Workdir(uninterrupted).grid == grid.product(echo.config().grid.to_dict())


def test_training_again_touches_nothing(uninterrupted, echo):
    before = written(uninterrupted)
    train.train(echo.config(), uninterrupted)
    assert written(uninterrupted) == before


def test_only_the_two_newest_checkpoints_are_kept(uninterrupted):
    assert store.steps(uninterrupted / "checkpoints") == [18, 24]


# --- interruptions ---


def stop(config, workdir, end):
    """Trains until SIGTERM, which this process gets while the chunk that ends at step `end` is computed."""
    wait, ends = Rows.wait, iter(schedule.boundaries(config)[0])

    def and_signal(rows):
        wait(rows)
        if next(ends) == end:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "wait", and_signal)
        with pytest.raises(train.Interrupted, match=f"stopped at step {end} as asked"):
            train.train(config, workdir)


@pytest.mark.parametrize("stopped", [0, 4, 8])
def test_sigterm_saves_then_stops_and_training_continues_to_the_same_bytes(uninterrupted, echo, tmp_path, stopped):
    """At boundaries where no checkpoint is due."""
    workdir, before = tmp_path / "w", signal.getsignal(signal.SIGTERM)
    stop(echo.config(), workdir, stopped)
    assert store.steps(workdir / "checkpoints")[-1] == stopped
    assert int(metrics.metric_files(workdir / "metrics")[-1].stem) == stopped  # nothing is done that is not saved
    assert signal.getsignal(signal.SIGTERM) is before
    train.train(echo.config(), workdir)
    assert echo.digests(workdir) == echo.digests(uninterrupted)


@pytest.mark.parametrize("damaged", [1, 2])
def test_training_continues_from_what_is_still_whole(uninterrupted, echo, tmp_path, capsys, damaged):
    workdir = tmp_path / "w"
    stop(echo.config(), workdir, 16)
    assert store.steps(workdir / "checkpoints") == [12, 16]
    for step in (16, 12)[:damaged]:
        (workdir / "checkpoints" / str(step) / store.MANIFEST).unlink()
    (workdir / "metrics" / "17.npz").write_bytes(b"half a file of a chunk that is no more")
    train.train(echo.config(), workdir)
    assert echo.digests(workdir) == echo.digests(uninterrupted)
    assert capsys.readouterr().out.count("set aside") == damaged + 1  # the chunk too


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"steps": 25}, "steps: 24 -> 25"),
        ({"batch_size": 5}, "batch_size: 4 -> 5"),
        ({"model": dict(family="emb_mlp", vocab_size=8, d_model=8, d_ff=9, activation="tanh")}, "model.d_ff: 8 -> 9"),
    ],
)
def test_folder_of_another_config_is_refused_with_the_difference(uninterrupted, echo, changes, difference):
    before = written(uninterrupted)
    with pytest.raises(WorkdirError, match=f"holds another training.*Changed: {difference}$"):
        train.train(echo.config(**changes), uninterrupted)
    assert written(uninterrupted) == before


def test_folder_of_another_grid_is_refused_with_the_difference(uninterrupted, echo):
    before = written(uninterrupted)
    other = grid.product({"gamma": (0.5,), "weight_decay": (0.1,), "learning_rate": (0.01, 0.003, 1e30), "seed": (5,)})
    with pytest.raises(WorkdirError, match=r"grid.json axes.seed: \(4,\) -> \(5,\)"):
        train.train(echo.config(), uninterrupted, other)
    assert written(uninterrupted) == before


def test_training_keeps_its_tasks_files_and_is_not_continued_when_they_say_otherwise(echo, tmp_path, monkeypatch):
    monkeypatch.setattr(echo.Echo, "files", lambda self: {"words.txt": b"one two"})
    config, kept = echo.config(steps=6), tmp_path / "w" / "data" / "words.txt"
    work = Workdir(train.train(config, tmp_path / "w"))
    assert kept.read_bytes() == b"one two" and verify.damages(work) == []
    kept.write_bytes(b"one too")
    (line,) = verify.damages(work)
    assert line == f"{kept}: damaged (not what was written)"
    train.train(config, tmp_path / "w")
    assert verify.damages(work) == []
    monkeypatch.setattr(echo.Echo, "files", lambda self: {"words.txt": b"three"})
    with pytest.raises(WorkdirError, match=r"holds another training.*Changed: data words.txt: "):
        train.train(config, tmp_path / "w")
    assert kept.read_bytes() == b"one two"


def test_what_only_the_model_can_refuse_is_refused_before_anything_is_written(echo, tmp_path):
    with pytest.raises(ValueError, match="init convention 'authors' is defined for the transformer"):
        train.train(echo.config(init="authors"), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_no_variant_starts_before_all_are_checked(uninterrupted, echo, tmp_path):
    config = echo.config(variants={"a_good": {}, "bad": {"batch_size": 0}})
    with pytest.raises(ValueError, match="batch_size=0"):
        train.train_variants(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()
