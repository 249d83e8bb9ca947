"""Runs measurements over a workdir: each a pure function of one row, mapped over rows in blocks and over snapshots.

What is held already is not taken again, snapshot by snapshot and row by row; what is taken is on disk within seconds.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lab
from lab import rng
from lab.disk import store
from lab.disk.files import DamagedError, WorkdirError
from lab.disk.workdir import Workdir
from lab.engine import batches, shard, sweep
from lab.engine.multihost import only_writer
from lab.engine.shard import Layout
from lab.experiment import Experiment
from lab.measuring import cache, fingerprint
from lab.measuring.declare import PRECISIONS, SNAPSHOTS, Measure, Row, in_float32
from lab.tasks import Batch

BLOCK_ROWS = 16  # rows a vmap holds at once on an accelerator; on a CPU every core has its own, one at a time
MATMUL = "highest"  # JAX's GPU default is TF32, too coarse for spectra and cosines
WRITE_EVERY = 10.0  # seconds


@dataclasses.dataclass(frozen=True)
class Selection:
    """Of what, and how exactly.

    Attributes:
      snapshots: see `Measure`; None: as each measurement says.
      rows: indices into the grid; None: all.
      precision: `float32` or `float64`. What is held in float64 is not taken again in float32.

    Raises:
      ValueError: an unknown choice.
    """

    snapshots: str | None = None
    rows: Sequence[int] | None = None
    precision: str = "float32"

    def __post_init__(self):
        for name, accepted in (("snapshots", (None, *SNAPSHOTS)), ("precision", PRECISIONS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r}; one of {', '.join(filter(None, accepted))}")

    def of(self, one: Measure) -> "Selection":
        """The same, as exactly as that measurement needs."""
        return dataclasses.replace(self, precision=max(self.precision, one.precision, key=PRECISIONS.index))


def measure(work: Workdir, measures: Sequence[Measure], scope: Selection = Selection()) -> list[str]:
    """Takes of every measurement what the workdir does not hold yet; returns the names of those there was to take.

    Raises:
      ValueError: no such row.
      WorkdirError: no snapshots yet, a damaged one, or another process is measuring here.
      SaveError: the disk is full or cannot be written to; what was measured before is still there.
    """
    if not work.snapshot_steps():
        raise WorkdirError(f"{work.path}: no snapshots to analyze; train first")
    with only_writer(work.analysis):
        store.tidy(work.analysis)
        due = [(one, rows_at) for one in measures if (rows_at := _due(work, one, scope.of(one)))]
        total = sum(len(rows) for _, rows_at in due for rows in rows_at.values())
        with tqdm(total=total, unit="row", leave=False, disable=not total) as progress:
            for one, rows_at in due:
                progress.set_description(f"{work.path.name}: {one.name}")
                _take(work, one, scope.of(one), rows_at, progress)
    return [one.name for one, _ in due]


def missing(work: Workdir, measures: Sequence[Measure], scope: Selection = Selection()) -> list[Measure]:
    """Those of which the workdir does not hold all: it holds what the code of now took of its snapshots.

    Raises:
      ValueError: no such row.
    """
    return [one for one in measures if _due(work, one, scope.of(one))]


def stale(work: Workdir, measures: Sequence[Measure]) -> list[str]:
    """Names of those that the workdir holds as other code, or an earlier version, took them."""
    names = []
    for one in measures:
        try:
            header = work.read_json(f"analysis/{one.name}.json")
        except DamagedError:  # not there, or `table.load` refuses it
            continue
        if not header.items() >= _identity(one).items():
            names.append(one.name)
    return names


def refuse_unknown_rows(work: Workdir, scope: Selection) -> None:
    """
    Raises:
      ValueError: the workdir does not have one of the rows asked for.
    """
    n_rows = len(work.grid)
    for row in scope.rows or ():
        if not 0 <= row < n_rows:
            raise ValueError(f"row {row}: {work.path} has rows 0 to {n_rows - 1}")


def chosen_steps(steps: list[int], choice: str) -> list[int]:
    """`all` snapshots, the `last`, or a `log`-spaced part: the first, the last, and the last halved again and again."""
    if choice == "log":
        wanted = {steps[-1] >> k for k in range(steps[-1].bit_length())}
        near = {min(steps, key=lambda step, want=want: abs(step - want)) for want in wanted}
        return sorted(near | {steps[0]})
    return steps if choice == "all" else steps[-1:]


def _take(work: Workdir, one: Measure, scope: Selection, rows_at: Mapping[int, list[int]], progress) -> None:
    identity = _identity(one)
    so_far = cache.read(work, one.name, identity)
    layout = _layout(max(map(len, rows_at.values())))
    program = _program(work, one, scope, layout)

    def write():
        steps = sorted(so_far.exact)
        only_last = one.snapshots == "last" and steps == work.snapshot_steps()[-1:]
        cache.write(work, one.name, identity, so_far, only_last)

    written, unwritten = time.monotonic(), False
    try:
        for step, rows in rows_at.items():
            params_R = work.params(step)
            for first in range(0, len(rows), layout.n_padded):
                group = rows[first : first + layout.n_padded]
                so_far.add(step, group, program(step, params_R, group), scope.precision)
                unwritten = True
                progress.update(len(group))
                if time.monotonic() - written > WRITE_EVERY:
                    write()
                    written, unwritten = time.monotonic(), False
    finally:  # whatever stops it, what was measured is kept
        if unwritten:
            write()


def _layout(most: int) -> Layout:
    """Of a group of rows that the devices compute at once: `most` rows are dealt out to as few groups as will do."""
    width = 1 if jax.default_backend() == "cpu" else BLOCK_ROWS
    n_groups = math.ceil(most / (jax.device_count() * width))
    size = math.ceil(most / n_groups)
    return shard.layout(shard.run_mesh(size), size, width)


def _program(work: Workdir, one: Measure, scope: Selection, layout: Layout) -> Callable[..., dict[str, np.ndarray]]:
    """`(step, params_R, rows) -> outputs (len(rows), ...)` of a group of rows; it is compiled once."""
    experiment, hparams_R = in_float32(work.experiment), work.grid.arrays()
    model = experiment.model.clone(readout="all") if hasattr(experiment.model, "readout") else experiment.model
    key = rng.key(experiment.data_seed, f"analysis/{one.name}/noise")
    start_R = work.params(work.snapshot_steps()[0])
    own_data = bool(batches.varied(experiment, hparams_R))

    def draw(hparams):
        return _sequences(experiment, one, hparams)

    def of_row(params, start, hparams, batch, step, key):
        return one.function(Row(model, params, start, hparams, step, _cast(batch, scope.precision), key))

    # sequences are drawn in float32, whatever is made of them: in float64 other ones would come
    draw_rows = jax.jit(sweep.over_rows(draw, layout.width, layout.mesh, 1, 0)) if own_data else None
    shared = None if own_data else draw({})
    mapped = sweep.over_rows(of_row, layout.width, layout.mesh, 3 + own_data, 3 - own_data)
    of_rows = jax.jit(mapped, compiler_options=_compiler_options())

    def program(step: int, params_R, rows: list[int]) -> dict[str, np.ndarray]:
        group = dataclasses.replace(layout, n_rows=len(rows))
        params, start, hparams = (store.take_row(tree, np.array(rows)) for tree in (params_R, start_R, hparams_R))
        batch = draw_rows(group.to_device(hparams)[0]) if own_data else shared
        with jax.default_matmul_precision(MATMUL), jax.enable_x64(scope.precision == "float64"):
            placed = [group.to_device(_cast(tree, scope.precision))[0] for tree in (params, start, hparams)]
            return group.fetch([of_rows(*placed, batch, jnp.int32(step), key)])

    return program


def _sequences(experiment: Experiment, one: Measure, hparams: Mapping) -> Batch:
    """Those that a measurement is given of a row; where a finite set was trained on, of that."""
    if one.split == "train" and experiment.train_size:
        return jax.tree.map(lambda leaf: leaf[: one.n], batches.train_set(experiment))
    stream_key = rng.key(experiment.data_seed, f"analysis/{one.stream or one.name}")
    return experiment.task.sample(stream_key, one.n, one.split, hparams)


def _compiler_options() -> dict | None:
    """On a CPU every core has its own rows, and XLA's threads inside a row would bring nothing.

    They can wait for each other forever, too: with jaxlib 0.10.2, where two batched LAPACK calls (`ParallelBatchMap`)
    hold the pool's threads. So rows are not vmapped there, and nothing in this package vmaps a decomposition.
    """
    return {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None


def _due(work: Workdir, one: Measure, scope: Selection) -> dict[int, list[int]]:
    """Snapshot -> rows still to be measured there."""
    refuse_unknown_rows(work, scope)
    rows = range(len(work.grid)) if scope.rows is None else scope.rows
    held = cache.read(work, one.name, _identity(one))
    steps = chosen_steps(work.snapshot_steps(), scope.snapshots or one.snapshots)
    return {step: lacking for step in steps if (lacking := held.missing(step, rows, scope.precision))}


def _identity(one: Measure) -> dict:
    """What decides the numbers and their meaning; a measurement with another one is another measurement."""
    return {
        "dims": {name: list(dims) for name, dims in one.dims.items()},
        "coords": {name: list(values) for name, values in one.coords.items()},
        "units": dict(one.units),
        "batch": [one.split, one.n, one.stream],
        "matmul": MATMUL,
        "code": fingerprint.fingerprint(one.function),
        "version": lab.__version__,
    }


def _cast(tree, precision: str):
    """Floats of at least float32 as `precision` says; whole numbers, keys and half precision as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(precision) if leaf.dtype in (np.float32, np.float64) else leaf, tree)
