"""Rows dealt out over devices: nothing is lost, nothing is added, and no device talks to another."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lab.engine import data, shard

COLLECTIVES = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"


@pytest.mark.parametrize("n_rows", range(1, 9))
@pytest.mark.parametrize("width", [1, 2, 3])
def test_padding_is_the_least_that_keeps_devices_and_blocks_full(n_rows, width):
    mesh = shard.run_mesh(n_rows)
    n_devices = mesh.shape["run"]
    padded = shard.padded_rows(n_rows, width, mesh)
    enough = [n for n in range(n_rows, 100) if n % (n_devices * width) == 0]
    assert padded == enough[0]
    # the fewest devices on which the busiest has as few rows as on all of them
    busiest = lambda devices: -(-n_rows // devices)  # noqa: E731
    assert n_devices == min(d for d in range(1, jax.device_count() + 1) if busiest(d) == busiest(jax.device_count()))


def test_rows_come_back_as_they_were_placed_and_padding_is_row_0():
    mesh = shard.run_mesh(3)
    rows = {"a": np.array([[1.5, np.nan], [-0.0, 2], [3, 4]], np.float32), "seed": np.array([7, 8, 9], np.int32)}
    placed = shard.place_rows(rows, 4, mesh)
    for name, back in shard.fetch_rows(placed, 3).items():
        assert back.tobytes() == rows[name].tobytes()
    assert shard.fetch_rows(placed, 4)["a"][3].tobytes() == rows["a"][0].tobytes()
    held = {s.device: np.asarray(s.data).tolist() for s in placed["seed"].addressable_shards}
    assert held == {jax.devices()[0]: [7, 8], jax.devices()[1]: [9, 7]}


@pytest.fixture(scope="module")
def sharded(bench, echo):
    """Four rows on two devices, one at a time on each."""
    return bench(4, 1, 2), echo.four_rows()


def test_compiled_programs_hold_no_collective(sharded):
    made, grid = sharded
    hparams, state = made.hparams(grid), made.start(grid)
    texts = [
        made.programs.start.lower(hparams).compile().as_text(),
        made.programs.chunk.lower(hparams, state, None, 0, 12).compile().as_text(),
        made.programs.evaluate.lower(state, data.evaluation_set(made.experiment, None)).compile().as_text(),
    ]
    for text in texts:
        assert "num_partitions=2" in text  # it is the program of both devices
        assert not re.findall(COLLECTIVES, text)


def test_collective_would_have_been_found(sharded):
    mesh = sharded[0].mesh
    total = jax.shard_map(lambda x: jax.lax.psum(x, "run"), mesh=mesh, in_specs=shard.ROWS, out_specs=PartitionSpec())
    text = jax.jit(total).lower(jnp.ones(4)).compile().as_text()
    assert "num_partitions=2" in text and re.findall(COLLECTIVES, text)


def test_every_device_holds_its_own_rows_after_training(sharded):
    made, grid = sharded
    state, _ = made.programs.chunk(made.hparams(grid), made.start(grid), None, 0, 2)
    expected = jax.device_get(state)
    for leaf, whole in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        shards = {s.device: np.asarray(s.data) for s in leaf.addressable_shards}
        for device, rows in zip(jax.devices(), (whole[:2], whole[2:]), strict=True):
            assert shards[device].tobytes() == rows.tobytes()
