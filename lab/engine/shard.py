"""Sharding: a device mesh with axes `run` and `data`, and the layout of rows on it.

Rows are sharded over `run`; the step has no collectives on that axis. A row too large or too slow for one device is
sharded over `data`: its batch always, its parameters on request. XLA inserts the collectives on `data`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ROWS = PartitionSpec("run")
SMALLEST_SPLIT = 2**16  # leaves of fewer numbers are cheaper to copy than to gather


def run_mesh(n_rows: int, data_devices: int = 1) -> Mesh:
    """As many groups of `data_devices` devices as `n_rows` rows keep evenly busy; all if processes have joined.

    Raises:
      ValueError: `data_devices` does not divide the devices of a process.
    """
    if jax.local_device_count() % data_devices:
        raise ValueError(f"data_devices={data_devices}: must divide this process's {jax.local_device_count()} devices")
    by_process = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    groups = np.array(by_process).reshape(-1, data_devices)
    if jax.process_count() == 1:
        rows_each = math.ceil(n_rows / len(groups))
        groups = groups[: math.ceil(n_rows / rows_each)]
    return Mesh(groups, ("run", "data"))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each row is computed: sharded over devices in order, on each over row batches, and in a batch over blocks.

    Attributes:
      width: rows that a vmap holds at once.
      rows_each: rows of one batch on one device, a multiple of `width`.
      row_batches: how many batches of rows take turns on the devices; 1 where all rows' states fit there together.
    """

    mesh: Mesh
    n_rows: int
    width: int
    rows_each: int
    row_batches: int

    @property
    def n_padded(self) -> int:
        """The number of rows computed."""
        return self.mesh.shape["run"] * self.row_batches * self.rows_each

    @property
    def process_starts(self) -> list[int]:
        """First row of every process that has any."""
        return list(range(0, self.n_rows, self.n_padded // jax.process_count()))

    @property
    def local_rows(self) -> tuple[int, int]:
        """First row of this process and the one after its last; empty for one that holds nothing but padding."""
        each = self.n_padded // jax.process_count()
        first, last = jax.process_index() * each, (jax.process_index() + 1) * each
        return min(first, self.n_rows), min(last, self.n_rows)

    @property
    def source_rows(self) -> tuple[int, int]:
        """`local_rows`, or the last row of all for a process that has none: padding repeats it."""
        first, last = self.local_rows
        return min(first, self.n_rows - 1), max(last, min(first, self.n_rows - 1) + 1)

    def to_device(self, rows_R, split: bool = False) -> list:
        """Host arrays of `source_rows` -> one tree of device arrays for each row batch; padding repeats the last row.

        Args:
          split: spread large leaves over the `data` axis, see `split_spec`.
        """
        return [
            jax.tree.map(functools.partial(self._leaf_to_device, batch, split), rows_R)
            for batch in range(self.row_batches)
        ]

    def abstract(self, rows_R, split: bool = False):
        """Shapes, dtypes and shardings of one row batch of `to_device`; the number of rows given is ignored."""
        return jax.tree.map(functools.partial(self._abstract_leaf, split), rows_R)

    def _abstract_leaf(self, split: bool, leaf_R) -> jax.ShapeDtypeStruct:
        spec = split_spec(leaf_R.shape[1:], self.mesh) if split else PartitionSpec()
        shape = (self.mesh.shape["run"] * self.rows_each, *leaf_R.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf_R.dtype, sharding=NamedSharding(self.mesh, PartitionSpec("run", *spec)))

    def _leaf_to_device(self, batch: int, split: bool, leaf_R):
        leaf_R = np.asarray(leaf_R)
        whole = self._abstract_leaf(split, leaf_R)

        def rows(index):
            place = np.arange(*index[0].indices(whole.shape[0]))
            device, nth = place // self.rows_each, place % self.rows_each
            row = (device * self.row_batches + batch) * self.rows_each + nth
            return leaf_R[np.minimum(row, self.n_rows - 1) - self.source_rows[0]][(slice(None), *index[1:])]

        return jax.make_array_from_callback(whole.shape, whole.sharding, rows)

    def fetch(self, row_batches: list):
        """Device arrays -> host arrays of the rows `local_rows`, padding dropped."""
        return self._collect([jax.tree.map(self._of_this_process, batch) for batch in row_batches], self.local_rows)

    def all_gather(self, row_batches: list) -> list:
        """Device arrays replicated in every process, for `to_host`. Starts the transfer and does not wait."""
        if jax.process_count() == 1:
            return row_batches
        return [_everywhere(self.mesh)(batch) for batch in row_batches]

    def to_host(self, row_batches: list):
        """Gathered device arrays -> host arrays of all rows, padding dropped."""
        return self._collect(row_batches, (0, self.n_rows))

    def _collect(self, row_batches: list, rows: tuple[int, int]):
        def together(*leaves):
            by_device = [np.asarray(leaf).reshape(-1, self.rows_each, *leaf.shape[1:]) for leaf in leaves]
            leaf_R = np.concatenate(by_device, axis=1).reshape(-1, *leaves[0].shape[1:])
            return leaf_R[: rows[1] - rows[0]]

        return jax.tree.map(together, *(jax.device_get(batch) for batch in row_batches))

    def _of_this_process(self, leaf):
        if leaf.is_fully_addressable:
            return leaf
        return multihost_utils.global_array_to_host_local_array(leaf, self.mesh, leaf.sharding.spec)


def layout(mesh: Mesh, n_rows: int, width: int, row_batches: int = 1, exactly: bool = False) -> Layout:
    """The layout with the least padding; blocks are made narrower where that saves some, unless `exactly` so wide."""
    rows_each = math.ceil(n_rows / (mesh.shape["run"] * row_batches))
    blocks = math.ceil(rows_each / width)
    width = width if exactly else math.ceil(rows_each / blocks)
    return Layout(mesh, n_rows, width, blocks * width, row_batches)


@functools.cache
def _everywhere(mesh: Mesh) -> Callable:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def replicate(tree, mesh: Mesh):
    """Arrays that every process has alike -> device arrays on the whole mesh."""

    def place(leaf):
        leaf = np.asarray(leaf)
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place, tree)


def split_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How a leaf of one row is spread over `data`: along its longest axis that divides evenly, if it is large."""
    n = mesh.shape["data"]
    axes = [axis for axis, size in enumerate(shape) if size % n == 0]
    if n == 1 or not axes or math.prod(shape) < SMALLEST_SPLIT:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, "data")


def over_data(mesh: Mesh, split_params: bool) -> tuple[Callable, Callable]:
    """`(batch -> batch, state -> state)` of one row, for inside a compiled step: the same values, spread over `data`.

    XLA computes on each device with the part it holds, and adds up what is a sum over the batch.
    """
    if mesh.shape["data"] == 1:
        return (lambda batch: batch), (lambda state: state)

    def batch(batch):
        return jax.lax.with_sharding_constraint(batch, PartitionSpec("data"))

    def state(state):
        if not split_params:
            return state
        specs = jax.tree.map(lambda leaf: split_spec(leaf.shape, mesh), state)
        return jax.lax.with_sharding_constraint(state, specs)

    return batch, state
