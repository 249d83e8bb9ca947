"""Trainings that start from another's weights: which row starts where, that nothing else is kept, and resume."""

import os
import shutil
import signal

import numpy as np
import pytest
import xarray as xr

from lab import config as configs
from lab import grid as grids
from lab import rng, schedule
from lab.cluster import launch
from lab.disk import files, verify
from lab.disk.files import WorkdirError
from lab.disk.load import load
from lab.disk.workdir import Workdir, united
from lab.engine import init_from, train, verify_row
from lab.engine.rows import Rows
from lab.tree import named_leaves

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

EPS = 2.0**-23  # float32
START = {"variant": "first", "row": {"learning_rate": 0.01, "weight_decay": 0.1}}
FIRST = {"gamma": (0.3, 0.5), "learning_rate": (0.01, 1e30), "seed": (4, 5)}  # 1e30 diverges at step 0
AGAIN = {"gamma": (0.5,), "learning_rate": (0.003, 0.03), "seed": (5, 4), "weight_decay": (0.1, 0.2)}


@pytest.fixture(scope="module")
def config(echo):
    """Two variants; by name the one that starts from the other's weights comes first. One program trains both."""
    return echo.config(variants={"again": {"start": START, "grid": AGAIN}, "first": {"grid": FIRST}})


@pytest.fixture(scope="module")
def root(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained") / "w"
    train.train_variants(config, root)
    return root


@pytest.fixture
def copied(root, tmp_path):
    return shutil.copytree(root, tmp_path / "w")


def first_row(**place):
    """Number of a row of `first`, whose axes unfold in the order of their names."""
    sizes = [len(FIRST[name]) for name in sorted(FIRST)]
    index = [FIRST[name].index(place[name]) for name in sorted(FIRST)]
    return int(np.ravel_multi_index(index, sizes))


def equal(tree, other):
    leaves, others = named_leaves(tree), named_leaves(other)
    return leaves.keys() == others.keys() and all(leaves[name].tobytes() == others[name].tobytes() for name in leaves)


# --- which row starts where ---


def test_every_row_starts_bitwise_where_the_row_of_equal_values_ended(root):
    first, again = Workdir(root / "first"), Workdir(root / "again")
    assert len(again.grid) == 8 and again.snapshot_steps()[0] == 0
    for row in range(8):
        place = again.grid.row(row)
        source = first_row(gamma=place["gamma"], seed=place["seed"], learning_rate=0.01)
        assert equal(again.params(0, row), first.params(24, source))
        assert not equal(again.params(0, row), first.params(0, source))
        assert not equal(again.params(24, row), again.params(0, row))


def test_rows_are_matched_by_value_whatever_the_order_and_length_of_the_axes():
    source = grids.product({"seed": (3, 1, 2), "learning_rate": (1e-3,), "gamma": (0.8, 0.3), "weight_decay": (0.1,)})
    axes = {"weight_decay": (0.1, 1.0), "gamma": (0.1 + 0.2, 0.8), "seed": (2, 3), "learning_rate": (0.5, 1e-3)}
    grid = grids.product(axes | {"gamma_qk": (0.4, 0.6)})  # which only this grid has
    start = start_of(weight_decay=0.1, learning_rate=1e-3)
    found = init_from.matched(start, grid, source)
    assert len(found) == len(grid) == 32 and set(found) == {1, 0, 4, 5}
    for row, at in enumerate(found):  # 0.1 + 0.2 is 0.3 in the float32 that programs see
        assert source.row(at)["gamma"] == pytest.approx(grid.row(row)["gamma"], rel=1e-9)
        assert source.row(at)["seed"] == grid.row(row)["seed"]


def test_seeds_are_told_apart_where_float32_does_not():
    seeds = (2**24, 2**24 + 1)
    source = grids.product({"gamma": (0.5,), "weight_decay": (0.1,), "learning_rate": (1e-3,), "seed": seeds})
    assert init_from.matched(start_of(), source, source) == [0, 1]
    assert init_from.matched(start_of(seed=2**24 + 1), source, source) == [1, 1]


def start_of(**row):
    return configs.from_json({"variant": "first", "row": row})


# --- what is trained ---


def test_training_is_one_by_hand_from_those_weights_with_fresh_moments_and_steps(root, echo):
    dataset, work = load(root / "again"), Workdir(root / "again")
    task = work.experiment.task
    train_set = task.sample(rng.key(5, "train_set"), 13, "train", {})
    for rate in AGAIN["learning_rate"]:
        for seed in AGAIN["seed"]:

            def batch_at(step, seed=seed):
                order = np.asarray(echo.jax.random.permutation(rng.key(seed, "epoch", step // 3), 13))
                index_B = order[4 * (step % 3) : 4 * (step % 3) + 4]
                return train_set.tokens_BxL[index_B], train_set.targets_BxL[index_B, -1]

            begun = Workdir(root / "first").params(24, first_row(gamma=0.5, seed=seed, learning_rate=0.01))
            hparams = {"learning_rate": rate, "weight_decay": 0.2}
            losses_T, _, params, stopped = echo.train_by_hand(begun, hparams, 24, batch_at, 24)
            mine = dataset.sel(learning_rate=rate, seed=seed, weight_decay=0.2).squeeze()
            # As in test_train: 32 roundings of a loss below 4, and 24 Adam steps each off by the rate times 320 eps,
            # times the gradient's norm, below 4.
            weights = 24 * rate * 320 * EPS
            assert stopped == mine.diverged_at == -1
            np.testing.assert_allclose(mine.train_loss, losses_T, rtol=0, atol=128 * EPS + 4 * weights)
            for name, leaf in named_leaves(dataset.lab.params(learning_rate=rate, seed=seed, weight_decay=0.2)).items():
                np.testing.assert_allclose(leaf, named_leaves(params)[name], rtol=24 * EPS, atol=weights)


def test_rows_whose_source_had_diverged_show_as_diverged_from_their_start(root, echo):
    variant = {"start": {"variant": "first", "row": {}}, "grid": FIRST}
    work = Workdir(train.train(configs.variants(echo.config(variants={"lost": variant}))["lost"], root / "lost"))
    dataset = load(work.path).squeeze()
    assert (dataset.diverged_at == xr.where(dataset.learning_rate > 1, 0, -1)).all()
    assert np.isnan(dataset["odd.loss"].sel(learning_rate=1e30)).all()
    assert np.isfinite(dataset["odd.loss"].sel(learning_rate=0.01)).all()
    row = first_row(gamma=0.5, seed=4, learning_rate=1e30)
    assert equal(work.params(24, row), Workdir(root / "first").params(24, row))


def test_row_trained_alone_starts_there_too(root):
    found = verify_row.replay(root / "again", 7)
    assert found.params[0] == 0 and found.diverged == (-1, -1)
    weights = 24 * 0.03 * 320 * EPS  # as above
    assert found.loss <= 128 * EPS + 4 * weights and found.params[24] <= weights


# --- interruptions ---


@pytest.mark.parametrize("stopped", [0, 4])
def test_interrupted_training_ends_in_the_same_bytes(root, config, echo, tmp_path, stopped):
    shutil.copytree(root / "first", tmp_path / "first")
    variant = configs.variants(config)["again"]
    wait, ends = Rows.wait, iter(schedule.boundaries(variant)[0])

    def and_signal(rows):
        wait(rows)
        if next(ends) == stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "wait", and_signal)
        with pytest.raises(train.Interrupted):
            train.train(variant, tmp_path / "again")
    assert files.steps(tmp_path / "again" / "checkpoints") == [stopped]
    train.train(variant, tmp_path / "again")
    assert echo.digests(tmp_path / "again") == echo.digests(root / "again")


def test_training_that_lost_everything_but_its_config_starts_from_the_same_weights(root, copied, config, echo):
    for folder in ("metrics", "checkpoints", "snapshots"):
        shutil.rmtree(copied / "again" / folder)
    train.train_variants(config, copied)
    assert echo.digests(copied / "again") == echo.digests(root / "again")


def test_source_trained_again_to_the_same_bytes_is_the_same_source(copied, config):
    """Its files differ: orbax names them at random."""
    shutil.rmtree(copied / "first")
    train.train_variants(config, copied)
    verify_row.replay(copied / "again", 0, steps=1)


# --- refusals ---


def test_finished_training_needs_its_source_no_more_but_to_be_trained_again(copied, config):
    shutil.rmtree(copied / "first")
    work, variant = Workdir(copied / "again"), configs.variants(config)["again"]
    assert verify.damages(work) == [] and load(work.path).sizes["step"] == 7
    train.train(variant, work.path)  # nothing to do
    for start in (lambda: verify_row.replay(work.path, 0), lambda: _from_the_start(work, variant)):
        with pytest.raises(WorkdirError, match=r"again starts from .*first, which is not trained to its end; train"):
            start()


def _from_the_start(work, variant):
    for folder in (work.metrics, work.checkpoints, work.snapshots):
        shutil.rmtree(folder)
    train.train(variant, work.path)


@pytest.mark.parametrize("change", [{"data_seed": 6}, {"grid": FIRST | {"seed": (7, 8)}}])
def test_source_that_ends_elsewhere_now_is_refused(root, copied, config, echo, change):
    other = configs.variants(echo.config(variants={"first": {"grid": FIRST} | change}))["first"]
    shutil.rmtree(copied / "first")
    train.train(other, copied / "first")
    before = echo.digests(copied / "again")
    for run in (
        lambda: train.train(configs.variants(config)["again"], copied / "again"),
        lambda: verify_row.replay(copied / "again", 0),
    ):
        with pytest.raises(WorkdirError, match=r"again started from other weights than .*first ends with now"):
            run()
    assert echo.digests(copied / "again") == before


def test_source_that_is_not_trained_to_its_end_is_refused(root, config, tmp_path):
    variant = configs.variants(config)["again"]
    with pytest.raises(WorkdirError, match=r"start.variant='first': no training in .*first; train that variant first"):
        train.train(variant, tmp_path / "again")
    shutil.copytree(root / "first", tmp_path / "first")
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "24")
    with pytest.raises(WorkdirError, match=r"starts from .*first, which is not trained to its end; train that variant"):
        train.train(variant, tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()


def test_launch_waits_for_the_source(root, config, tmp_path):
    shutil.copytree(root / "first", tmp_path / "first")
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "24")
    del (only := configs.from_json(configs.to_json(config))).variants["first"]
    launched = launch.launch(only, tmp_path, "local", {}, None, print)
    assert launched.jobs == {} and launched.lines["again"].state == "not started"
    assert "not trained to its end, not launched: launch that first" in launched.lines["again"].note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": AGAIN | {"gamma": (0.7,)}}, r"start.variant='first': for row 0 exactly one must match, 0 rows of "
         r"first have gamma 0.7, learning_rate 0.01, seed 5, weight_decay 0.1; it has gamma \[0.3, 0.5\], "),
        ({"start": {"variant": "first", "row": {"learning_rat": 0.01}}}, "start.row.learning_rat: no axis of first, "
         r"which has gamma \[0.3, 0.5\].*; did you mean 'learning_rate'\?"),
        ({"model": {"d_ff": 9}}, r"start.variant='first': head/kernel is \(8, 8\) float32 there and \(9, 8\) float32 "
         "here; a start needs equal parameters"),
    ],
)  # fmt: skip
def test_start_that_no_row_of_the_source_gives_is_refused_before_anything_is_trained(echo, tmp_path, changes, message):
    again = {"start": START, "grid": AGAIN} | changes
    with pytest.raises(ValueError, match=message) as caught:
        train.train_variants(echo.config(variants={"again": again, "first": {"grid": FIRST}}), tmp_path / "w")
    assert "\n" not in str(caught.value) and not (tmp_path / "w").exists()


def test_axis_that_only_the_source_has_must_be_said():
    core = {"gamma": (0.5,), "weight_decay": (0.1,), "learning_rate": (1e-3,), "seed": (4,)}
    source = grids.product(core | {"gamma_qk": (0.4, 0.6)})
    with pytest.raises(ValueError, match=r"start.row lacks gamma_qk: .* first has .*gamma_qk \[0.4, 0.6\]"):
        init_from.matched(start_of(), grids.product(core), source)
    assert init_from.matched(start_of(gamma_qk=0.6), grids.product(core), source) == [1]


def test_two_rows_alike_are_refused():
    core = {"gamma": (0.5,), "weight_decay": (0.1,), "learning_rate": (1e-3,), "seed": (4,)}
    twice = grids.concat(grids.product(core), grids.product(core))
    with pytest.raises(ValueError, match="for row 0 exactly one must match, 2 rows of first have"):
        init_from.matched(start_of(), grids.product(core), twice)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"variant": "first"}, "start.row=None: expected dict"),
        ({"variant": 3, "row": {}}, "start.variant=3: expected str"),
        ({"variant": "first", "rows": {}, "row": {}}, r"start.rows: unknown option; did you mean 'row'\?"),
        ({"variant": "first", "row": {"gamma": "0.5"}}, "start.row.gamma='0.5': expected a number$"),
        ({"variant": "first", "row": {"seed": 0.5}}, "start.row.seed=0.5: expected a number without fraction"),
        (
            {"variant": "", "row": {"gamma": 0.5}},
            "start.row says which row of another variant, and start.variant names",
        ),
    ],
)
def test_impossible_start_is_refused_by_name(echo, start, message):
    with pytest.raises(ValueError, match=message):
        configs.experiment(echo.config(start=start))


def test_variants_come_behind_what_they_start_from_and_circles_are_refused(echo):
    def order(**sources):
        made = {name: {"start": {"variant": source}} for name, source in sources.items()}
        return list(configs.variants(echo.config(variants=made)))

    assert order(a="", b="", c="") == ["a", "b", "c"]
    assert order(a="c", b="", c="d", d="") == ["d", "c", "a", "b"]
    assert order(a="elsewhere", b="a") == ["a", "b"]
    for circle in ({"a": "a"}, {"a": "b", "b": "c", "c": "a"}):
        with pytest.raises(ValueError, match="would start from itself"):
            order(**circle)


def test_rows_that_are_added_to_both_start_from_those_that_were_added_to_the_source(copied):
    train.extend(copied, {"seed": (6,)})
    first, again = united(copied / "first"), united(copied / "again")
    added = [row for row in range(len(again.grid)) if again.grid.row(row)["seed"] == 6]
    assert len(added) == 4
    for row in added:
        place = {name: again.grid.row(row)[name] for name in ("gamma", "seed")} | START["row"]
        (source,) = [i for i in range(len(first.grid)) if first.grid.row(i) == place]
        assert equal(again.params(0, row), first.params(24, source))
    assert verify.damages(first) == verify.damages(again) == []
