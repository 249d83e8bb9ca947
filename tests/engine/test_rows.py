"""Rows on their devices: taking turns, spread over several, moved from many to few."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from lab.disk import store
from lab.engine import shard
from lab.engine.rows import Rows
from lab.engine.shard import Layout
from lab.engine.sweep import Options
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
STEPS = 6


def mesh_of(n_groups, n_data=1):
    return Mesh(np.array(jax.devices()[: n_groups * n_data]).reshape(n_groups, n_data), ("run", "data"))


WHOLE = Options()


def train(experiment, grid, layout, options=WHOLE, chunks=(STEPS,), rows=None, first=0):
    """The rows after chunks of these lengths, and their losses, (rows, steps)."""
    here = Rows(experiment, grid, layout, STEPS, options)
    if rows is None:
        here.start()
    else:
        here.resume(rows)
    losses = []
    for n_steps in chunks:
        losses.append(layout.to_host(here.advance(first, first + n_steps))["train_loss"][:, :n_steps])
        first += n_steps
    here.wait()
    return here, np.concatenate(losses, axis=1)


@pytest.fixture(scope="module")
def alone(echo):
    """Four rows on one device: state and losses."""
    here, losses = train(echo.experiment(), echo.four_rows(), shard.layout(mesh_of(1), 4, 1))
    return here.fetch(), losses


@pytest.mark.parametrize("row_batches", [2, 3])
def test_row_batches_that_take_turns_change_no_bit(echo, same_bits, row_batches):
    experiment, grid = echo.experiment(), echo.four_rows()
    together, losses = train(experiment, grid, shard.layout(mesh_of(2), 4, 1), chunks=(2, 4))
    in_turn, their_losses = train(experiment, grid, shard.layout(mesh_of(2), 4, 1, row_batches), chunks=(2, 4))
    same_bits((in_turn.fetch(), their_losses), (together.fetch(), losses))
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(in_turn.row_batches)} == {"pinned_host"}
    scores, theirs = (rows.layout.to_host(rows.evaluate()) for rows in (together, in_turn))
    same_bits(theirs, scores)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("width", [1, 2])
def test_row_spread_over_devices_trains_as_the_unsplit_one(echo, monkeypatch, split, width):
    """Its batch on two devices, and its matrices too where `split`: six steps of AdamW from the same start.

    A gradient's sum over the batch is taken in another order: the tolerance is that of `test_sweep` for a row against
    the plain loop, 320 roundings of a gradient a step, and 32 of a loss below 4.
    """
    monkeypatch.setattr(shard, "SMALLEST_SPLIT", 1)
    experiment, grid = echo.experiment(), echo.four_rows()
    options = Options(split_params=split)
    unsplit, losses = train(experiment, grid, shard.layout(mesh_of(1), 4, width))
    spread, their_losses = train(experiment, grid, shard.layout(mesh_of(1, 2), 4, width), options)
    np.testing.assert_allclose(their_losses, losses, rtol=0, atol=128 * EPS + STEPS * 0.01 * 320 * EPS)
    theirs = named_leaves(spread.fetch().params)
    for name, leaf in named_leaves(unsplit.fetch().params).items():
        np.testing.assert_allclose(theirs[name], leaf, rtol=24 * EPS, atol=STEPS * 0.01 * 320 * EPS)
    kernel = spread.row_batches[0].params["in"]["kernel"]
    assert ("data" in kernel.sharding.spec) == split
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 4, 8) if split else (4, 8, 8)}


def test_loss_over_a_data_axis_is_the_mean_over_the_whole_batch_and_not_a_sum_of_means(echo):
    """A gradient too large by the number of devices would not show after Adam: the recorded norm does show it."""
    experiment, grid = echo.experiment(), echo.four_rows()
    norms = []
    for mesh in (mesh_of(1), mesh_of(1, 2)):
        layout = shard.layout(mesh, 4, 1)
        rows = Rows(experiment, grid, layout, STEPS, WHOLE)
        rows.start()
        norms.append(layout.to_host(rows.advance(0, 1))["grad_norm"][:, 0])
    np.testing.assert_allclose(norms[1], norms[0], rtol=320 * EPS)


def test_checkpoint_of_four_devices_continues_on_two_and_one(request, echo, alone, same_bits, tmp_path):
    """To the bit on four; on fewer a device has several rows, which XLA compiles as a loop that rounds differently."""
    if jax.device_count() < 4:  # another process has them
        command = [sys.executable, "-m", "pytest", f"{__file__}::{request.node.name}"]
        ended = subprocess.run(command, env=os.environ | {"LAB_TEST_DEVICES": "4"}, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout
        return
    experiment, grid = echo.experiment(), echo.four_rows()
    four, losses = train(experiment, grid, shard.layout(mesh_of(4), 4, 1), chunks=(2,))
    store.save(tmp_path, 2, four.fetch())
    uninterrupted, _ = train(experiment, grid, shard.layout(mesh_of(4), 4, 1), chunks=(2, STEPS - 2))
    for n_devices in (4, 2, 1):
        layout = shard.layout(mesh_of(n_devices), 4, 1)
        rows = store.restore(tmp_path, 2, four.abstract(), layout.source_rows)
        same_bits(rows, four.fetch())
        here, rest = train(experiment, grid, layout, chunks=(STEPS - 2,), rows=rows, first=2)
        if n_devices == 4:
            same_bits(here.fetch(), uninterrupted.fetch())
        both = np.concatenate([losses, rest], axis=1)
        np.testing.assert_allclose(both, alone[1], rtol=0, atol=128 * EPS + STEPS * 0.01 * 320 * EPS)
        for leaf, twin in zip(jax.tree.leaves(here.fetch().params), jax.tree.leaves(alone[0].params), strict=True):
            np.testing.assert_allclose(leaf, twin, rtol=24 * EPS, atol=STEPS * 0.01 * 320 * EPS)


def test_state_that_is_fetched_is_resumed_bitwise_whatever_the_layout(echo, same_bits):
    experiment, grid = echo.experiment(), echo.four_rows()
    rows, _ = train(experiment, grid, shard.layout(mesh_of(2), 4, 1))
    for layout in (shard.layout(mesh_of(1), 4, 2), Layout(mesh_of(2), 4, 1, 1, 4)):
        other = Rows(experiment, grid, layout, STEPS, WHOLE)
        other.resume(rows.fetch())
        same_bits(other.fetch(), rows.fetch())
