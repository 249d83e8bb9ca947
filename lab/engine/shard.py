"""Devices: a mesh with axes `run` and `data`; rows are dealt out over `run`, and no step talks to another device."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ROWS = PartitionSpec("run")


def run_mesh(n_rows: int) -> Mesh:
    """As many devices on the `run` axis as `n_rows` rows keep evenly busy."""
    rows_each = math.ceil(n_rows / jax.device_count())
    devices = np.array(jax.devices()[: math.ceil(n_rows / rows_each)])
    return Mesh(devices.reshape(-1, 1), ("run", "data"))


def padded_rows(n_rows: int, width: int, mesh: Mesh) -> int:
    """The number of rows computed: the next multiple of devices x block width."""
    quantum = width * mesh.shape["run"]
    return math.ceil(n_rows / quantum) * quantum


def place_rows(tree_R, n_padded: int, mesh: Mesh):
    """Host arrays with leading row axis -> device arrays of `n_padded` rows over `run`; padding repeats row 0."""

    def place(leaf):
        leaf = np.asarray(leaf)
        padding = np.repeat(leaf[:1], n_padded - len(leaf), axis=0)
        return jax.device_put(np.concatenate([leaf, padding]), NamedSharding(mesh, ROWS))

    return jax.tree.map(place, tree_R)


def fetch_rows(tree_R, n_rows: int):
    """Device arrays -> host arrays, padding dropped."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:n_rows], jax.device_get(tree_R))
