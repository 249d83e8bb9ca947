"""Rows dealt out over devices: nothing is lost, nothing is added, and no device talks to another."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lab.engine import batches, shard

COLLECTIVES = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"


@pytest.mark.parametrize("n_rows", range(1, 9))
@pytest.mark.parametrize("width", [1, 2, 3])
def test_padding_is_the_least_that_keeps_devices_and_blocks_full(n_rows, width):
    layout = shard.layout(shard.run_mesh(n_rows), n_rows, width)
    n_devices = layout.mesh.shape["run"]
    # the fewest devices on which the busiest has as few rows as on all of them
    busiest = lambda devices: -(-n_rows // devices)  # noqa: E731
    assert n_devices == min(d for d in range(1, jax.device_count() + 1) if busiest(d) == busiest(jax.device_count()))
    # as few blocks as that width allows, each as narrow as they allow
    blocks = -(-busiest(n_devices) // width)
    assert layout.width == -(-busiest(n_devices) // blocks) <= width
    assert layout.n_padded == n_devices * blocks * layout.width < n_rows + n_devices * blocks + n_devices


@pytest.mark.parametrize("row_batches", [1, 2, 3])
def test_rows_come_back_as_they_were_placed(row_batches):
    layout = shard.layout(shard.run_mesh(7), 7, 1, row_batches)
    rows = {
        "a": np.array([np.nan, -0.0, 1e-45, 3, 4, 5, 6], np.float32),
        "seed": np.arange(14, dtype=np.int32).reshape(7, 2),
    }
    placed = layout.to_device(rows)
    assert len(placed) == row_batches
    for back in (layout.fetch(placed), layout.to_host(layout.all_gather(placed))):
        assert {name: leaf.tobytes() for name, leaf in back.items()} == {n: leaf.tobytes() for n, leaf in rows.items()}


def test_devices_get_their_rows_in_order_wave_by_wave_and_padding_is_the_last_row():
    layout = shard.Layout(shard.run_mesh(2), n_rows=7, width=2, rows_each=2, row_batches=2)
    placed = layout.to_device({"seed": np.array([10, 11, 12, 13, 14, 15, 16], np.int32)})
    held = [{s.device: np.asarray(s.data).tolist() for s in batch["seed"].addressable_shards} for batch in placed]
    first, second = jax.devices()[:2]
    assert held == [{first: [10, 11], second: [14, 15]}, {first: [12, 13], second: [16, 16]}]
    assert layout.n_padded == 8 and layout.local_rows == layout.source_rows == (0, 7) and layout.process_starts == [0]


def test_data_devices_must_divide_the_devices():
    with pytest.raises(ValueError, match="data_devices=3: must divide"):
        shard.run_mesh(4, 3)


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
        made.programs.evaluate.lower({}, state, batches.evaluation_set(made.experiment, None)).compile().as_text(),
    ]
    for text in texts:
        assert "num_partitions=2" in text  # it is the program of both devices
        assert not re.findall(COLLECTIVES, text)


def test_collective_would_have_been_found(sharded):
    mesh = sharded[0].layout.mesh
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
