"""Memory of devices: how much there is, what a program and a row need of it, and how its lack is heard."""

import functools
import math
import os

import jax
from jax.sharding import Mesh

from lab.engine import shard, step
from lab.engine.sweep import Options
from lab.experiment import Experiment
from lab.grid import Grid

SHARE = 0.9  # of a device's memory that is planned with


def of_device() -> float:
    """Bytes of one device; a CPU's are the machine's, shared by the devices there; infinite where nobody says."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not say
        return math.inf
    return machine / jax.local_device_count()


def of_program(compiled) -> int:
    """Bytes that a compiled program holds on one device while it runs, as XLA predicts."""
    size = compiled.memory_analysis()
    held = size.argument_size_in_bytes + size.output_size_in_bytes - size.alias_size_in_bytes
    return held + size.temp_size_in_bytes + size.generated_code_size_in_bytes


def of_row(experiment: Experiment, grid: Grid, mesh: Mesh, options: Options) -> float:
    """Bytes of a row's state on one device."""
    state = jax.eval_shape(functools.partial(step.start, experiment), grid.row(0))
    leaves = jax.tree.leaves(state)
    parts = [
        mesh.shape["data"] if options.split_params and shard.split_spec(leaf.shape, mesh) else 1 for leaf in leaves
    ]
    return sum(leaf.size * leaf.dtype.itemsize / n for leaf, n in zip(leaves, parts, strict=True))


def row_batches(row_bytes: float, rows_each: int, working: float = 0) -> int:
    """How many batches the rows of a device fall into, so that one and its copy fit beside a block at work.

    Args:
      working: bytes of that block.
    """
    return max(1, math.ceil(2 * rows_each * row_bytes / max(SHARE * of_device() - working, row_bytes)))


def has_run_out(error: BaseException) -> bool:
    """Whether a device had too little memory, as XLA and its allocators say it."""
    return any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"))
