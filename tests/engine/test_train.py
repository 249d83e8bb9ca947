"""What training leaves on disk, and that no interruption changes a byte of it."""

import os
import signal

import jax
import numpy as np
import pytest
from stopping import signalled_at

from lab import grid, rng
from lab.disk import files, metrics, store, verify
from lab.disk.files import WorkdirError
from lab.disk.load import load
from lab.disk.workdir import Workdir
from lab.engine import train
from lab.engine.rows import Rows
from lab.tree import named_leaves

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

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
    assert files.steps(uninterrupted / "checkpoints") == [18, 24]


# --- interruptions ---


def stop(config, workdir, end, number=signal.SIGTERM):
    """Trains until a signal, which this process gets while the chunk that ends at step `end` is computed."""
    expected = pytest.raises(train.Interrupted, match=f"stopped at step {end} as asked")
    with signalled_at(end, number), expected as stopped:
        train.train(config, workdir)
    assert stopped.value.number == number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stopped", [0, 4, 8])
def test_signal_saves_then_stops_and_training_continues_to_the_same_bytes(
    uninterrupted, echo, tmp_path, stopped, number
):
    """At boundaries where no checkpoint is due."""
    workdir, before = tmp_path / "w", signal.getsignal(number)
    stop(echo.config(), workdir, stopped, number)
    assert files.steps(workdir / "checkpoints")[-1] == stopped
    assert int(metrics.metric_files(workdir / "metrics")[-1].stem) == stopped  # nothing is done that is not saved
    assert signal.getsignal(number) is before
    train.train(echo.config(), workdir)
    assert echo.digests(workdir) == echo.digests(uninterrupted)


def test_second_sigint_ends_at_once_and_what_was_saved_continues_to_the_same_bytes(
    uninterrupted, echo, tmp_path, monkeypatch, capsys
):
    wait, calls = Rows.wait, []

    def and_signals(rows):
        wait(rows)
        calls.append(1)
        for _ in range(2 if len(calls) == 3 else 0):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "wait", and_signals)
        with pytest.raises(KeyboardInterrupt):
            train.train(echo.config(), tmp_path / "w")
    assert "a second interruption ends at once" in capsys.readouterr().out
    train.train(echo.config(), tmp_path / "w")
    assert echo.digests(tmp_path / "w") == echo.digests(uninterrupted)


def test_signal_is_heard_while_the_devices_compute():
    """Waiting ends when the devices do, and Python runs in between."""

    class Leaf:
        def __init__(self):
            self.asked = 0

        def is_ready(self):
            self.asked += 1
            return self.asked > 3

    rows, leaf = Rows.__new__(Rows), Leaf()
    rows.row_batches = [leaf]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "block_until_ready", lambda leaves: leaves)
        rows.wait()
    assert leaf.asked == 4


@pytest.mark.parametrize("damaged", [1, 2])
def test_training_continues_from_what_is_still_whole(uninterrupted, echo, tmp_path, capsys, damaged):
    workdir = tmp_path / "w"
    stop(echo.config(), workdir, 16)
    assert files.steps(workdir / "checkpoints") == [12, 16]
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


def test_an_option_that_came_after_a_training_was_recorded_means_its_default(uninterrupted, echo):
    before = written(uninterrupted)
    held = Workdir(uninterrupted).config
    assert "readout" not in held.model and "least_decay" not in held.optim
    usual = dict(model=held.model.to_dict() | dict(readout="last"), optim=held.optim.to_dict() | dict(least_decay=0.0))
    train.train(echo.config(**usual), uninterrupted)
    assert written(uninterrupted) == before
    with pytest.raises(WorkdirError, match=r"Changed: optim.least_decay: 0.0 -> 1e-09$"):
        train.train(echo.config(**usual | dict(optim=usual["optim"] | dict(least_decay=1e-9))), uninterrupted)


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


# --- nothing half-begun ---


@pytest.mark.parametrize("lost", ["grid.json", "config.json"])
def test_start_cut_short_between_its_first_files_is_completed_by_the_same_command(
    uninterrupted, echo, tmp_path, monkeypatch, lost
):
    write = files.write_json

    def until(path, value):
        if path.name == lost:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", until)
        with pytest.raises(KeyboardInterrupt):
            train.train(echo.config(), tmp_path / "w")
    assert (tmp_path / "w" / "grid.json").exists() == (lost == "config.json")
    train.train(echo.config(), tmp_path / "w")
    assert echo.digests(tmp_path / "w") == echo.digests(uninterrupted)


def test_grid_that_was_left_without_a_config_is_no_training_and_gives_way(echo, tmp_path):
    other = grid.product({"gamma": (0.3,), "weight_decay": (0.1,), "learning_rate": (0.01,), "seed": (5, 6)})
    files.write_json(tmp_path / "w" / "grid.json", other.to_json())
    work = Workdir(train.train(short(echo), tmp_path / "w"))
    assert work.grid == grid.product(echo.config().grid.to_dict()) and verify.damages(work) == []


def test_grid_of_numpy_numbers_is_trained_and_recorded_as_one_of_plain_ones(echo, tmp_path):
    axes = {"gamma": np.float64([0.3]), "weight_decay": (0.1,), "learning_rate": (0.01,), "seed": tuple(np.arange(2))}
    work = Workdir(train.train(short(echo, grid=axes), tmp_path / "w"))
    assert work.grid.axes["seed"] == work.config.grid.seed == (0, 1)
    plain = axes | {"gamma": (0.3,), "seed": (0, 1)}
    train.train(short(echo, grid=plain), tmp_path / "w")  # the same training


def short(echo, **changes):
    """Two steps."""
    return echo.config(
        steps=2, eval_every=2, checkpoint_every=2, snapshots=2, optim=echo.OPTIM | {"warmup_steps": 1}, **changes
    )


# --- scores ---


@pytest.mark.parametrize(
    ("scores", "dims", "message"),
    [
        (
            {"share": np.zeros(8, np.float32)},
            {},
            r"Echo.score: odd.share has the shape \(8,\), and .* dimensions \(\)",
        ),
        ({"share": np.float32(0)}, {"share": ("token",)}, r"the shape \(\), and .* dimensions \('token',\)"),
        ({"share": np.zeros((8, 2), np.float32)}, {"share": ("token",)}, r"the shape \(8, 2\)"),
        ({"share": np.zeros(7, np.float32)}, {"share": ("token",)}, "7 entries along 'token'.* has 8"),
        (
            {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)},
            {"a": ("i",), "b": ("i",)},
            "3 entries along 'i'",
        ),
        (
            {"share": np.zeros(8, np.float32)},
            {"share": ("seed",)},
            "a dimension 'seed', which is one of every training's",
        ),
        ({"share": np.zeros(8, np.float32)}, {"share": ("step",)}, "a dimension 'step'"),
    ],
)
def test_scores_that_are_not_what_the_task_says_are_refused_before_the_first_step(
    echo, tmp_path, monkeypatch, scores, dims, message
):
    monkeypatch.setattr(echo.Echo, "score", lambda self, logits, batch: scores)
    monkeypatch.setattr(echo.Echo, "dims", dims)
    with pytest.raises(ValueError, match=message):
        train.train(echo.config(), tmp_path / "w")
    assert not (tmp_path / "w").exists()


# --- memory ---

FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1099511627776 bytes.\n more"


def too_wide(monkeypatch, widest, where):
    """Devices that hold no more than so many rows at once."""
    real = getattr(Rows, where)

    def limited(rows, *args):
        if rows.layout.width > widest:
            raise jax.errors.JaxRuntimeError(FULL)
        return real(rows, *args)

    monkeypatch.setattr(Rows, where, limited)


@pytest.mark.parametrize("where", ["start", "advance", "wait", "evaluate"])
def test_block_too_wide_for_the_memory_gives_way_to_a_narrower_one_and_it_is_said(
    echo, tmp_path, monkeypatch, capsys, where
):
    rows = dict(
        gamma=(0.3, 0.5), weight_decay=(0.1,), learning_rate=(0.01,), seed=tuple(range(4 * jax.device_count() // 2))
    )
    too_wide(monkeypatch, 1, where)
    work = Workdir(train.train(short(echo, grid=rows, block_width=4), tmp_path / "w"))
    said = capsys.readouterr().out
    assert "out of memory, going on with 2 rows at once" in said and "going on with 1 rows at once" in said
    assert work.read_json("plan.json")["width"] == 1 and verify.damages(work) == []
    monkeypatch.undo()
    narrow = train.train(short(echo, grid=rows, block_width=1), tmp_path / "narrow")
    assert echo.digests(work.path) == echo.digests(narrow)


def test_row_too_large_for_the_memory_is_a_line(echo, tmp_path, monkeypatch):
    too_wide(monkeypatch, 0, "advance")
    with pytest.raises(
        ValueError, match=r"^one row does not fit in memory: set data_devices .*RESOURCE_EXHAUSTED.*bytes\.\)$"
    ):
        train.train(short(echo), tmp_path / "w")


def test_what_else_goes_wrong_on_a_device_is_no_want_of_memory(echo, tmp_path, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(Rows, "advance", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="ILLEGAL_ADDRESS"):
        train.train(short(echo, block_width=2), tmp_path / "w")
