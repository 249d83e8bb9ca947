"""Runs measurements over a workdir: each a pure function of one row, mapped over rows in blocks and over snapshots.

What is held already is not taken again, snapshot by snapshot and row by row; what is taken is on disk within seconds.
"""

import dataclasses
import hashlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lab
from lab import rng
from lab.engine import shard, store, sweep, table
from lab.engine.files import DamagedError
from lab.engine.process import only_writer
from lab.engine.workdir import Workdir, WorkdirError
from lab.tasks import Batch

SNAPSHOTS = ("all", "last", "log")
PRECISIONS = ("float32", "float64")
BLOCK_ROWS = 16  # rows a vmap holds at once on an accelerator; on a CPU every core has its own, one at a time
MATMUL = "highest"  # JAX's GPU default is TF32, too coarse for spectra and cosines
WRITE_EVERY = 10.0  # seconds


class Row(NamedTuple):
    """What a measurement is given: one row of the grid at one snapshot.

    Attributes:
      model: the Flax module, answering at every position; static.
      params: its parameters at the snapshot.
      start: its parameters at the first snapshot, before training.
      hparams: its hyperparameters, scalars by name.
      step: of the snapshot, int32.
      batch: `Measure.n` sequences, the same for all rows and snapshots.
      key: for what the measurement draws, the same for all rows and snapshots: their differences are their own.
    """

    model: object
    params: dict
    start: dict
    hparams: dict
    step: jax.Array
    batch: Batch
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Measure:
    """What to measure, and what the numbers mean.

    Attributes:
      name: of the file below `analysis/` and the prefix of its variables.
      function: `Row -> dict of arrays`, jittable.
      dims: output -> names of its axes; outputs that are scalars need no entry.
      coords: axis -> its values; axes not listed are numbered.
      units: output -> unit, for every output.
      snapshots: `all`, `last` (the trained rows only) or `log` (log-spaced), where the user does not say.
      split, n: the batch that `function` is given: `n` sequences of a split of the task.
      stream: measurements that name the same one are given the same sequences; empty: its own.
    """

    name: str
    function: Callable
    units: Mapping[str, str]
    dims: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    coords: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    snapshots: str = "all"
    split: str = "train"
    n: int = 1
    stream: str = ""

    def __post_init__(self):
        if self.snapshots not in SNAPSHOTS:
            raise ValueError(f"measure {self.name}: snapshots={self.snapshots!r}; one of {', '.join(SNAPSHOTS)}")


@dataclasses.dataclass(frozen=True)
class Scope:
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


class Taken:
    """A measurement so far: for every snapshot its outputs, each (R, ...), and the rows they are of."""

    def __init__(self, n_rows: int):
        self.n_rows = n_rows
        self.outputs: dict[int, dict[str, np.ndarray]] = {}
        self.has: dict[int, np.ndarray] = {}

    def add(self, step: int, rows: Sequence[int], outputs: Mapping[str, np.ndarray]) -> None:
        """Outputs of some rows, (len(rows), ...), at a snapshot; NaN, or 0 in whole numbers, stands for the others."""
        if step not in self.has:
            self.has[step] = np.zeros(self.n_rows, bool)
            self.outputs[step] = {name: _nothing(values, self.n_rows) for name, values in outputs.items()}
        self.has[step][rows] = True
        for name, values in outputs.items():
            self.outputs[step][name][rows] = values

    def lacks(self, step: int, rows: Sequence[int]) -> list[int]:
        has_R = self.has.get(step, np.zeros(self.n_rows, bool))
        return [row for row in rows if not has_R[row]]


def measure(work: Workdir, measures: Sequence[Measure], scope: Scope = Scope()) -> list[str]:
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
        due = [(one, rows_at) for one in measures if (rows_at := _due(work, one, scope))]
        total = sum(len(rows_at) for _, rows_at in due)
        with tqdm(total=total, unit="snapshot", leave=False, disable=not total) as progress:
            for one, rows_at in due:
                progress.set_description(f"{work.path.name}: {one.name}")
                _take(work, one, scope, rows_at, progress)
    return [one.name for one, _ in due]


def missing(work: Workdir, measures: Sequence[Measure], scope: Scope = Scope()) -> list[Measure]:
    """Those of which the workdir does not hold all: it holds what the code of now took of its snapshots."""
    return [one for one in measures if _due(work, one, scope)]


def chosen_steps(steps: list[int], choice: str) -> list[int]:
    """`all` snapshots, the `last`, or a `log`-spaced part: the first, the last, and the last halved again and again."""
    if choice == "log":
        wanted = {steps[-1] >> k for k in range(steps[-1].bit_length())}
        near = {min(steps, key=lambda step, want=want: abs(step - want)) for want in wanted}
        return sorted(near | {steps[0]})
    return steps if choice == "all" else steps[-1:]


def _take(work: Workdir, one: Measure, scope: Scope, rows_at: Mapping[int, list[int]], progress) -> None:
    taken, program = _held(work, one, scope), _program(work, one, scope)
    written = time.monotonic()
    unwritten = False
    try:
        for step, rows in rows_at.items():
            taken.add(step, rows, program(step, rows))
            unwritten = True
            progress.update()
            if time.monotonic() - written > WRITE_EVERY:
                _write(work, one, scope, taken)
                written, unwritten = time.monotonic(), False
    finally:  # whatever stops it, what was measured is kept
        if unwritten:
            _write(work, one, scope, taken)


def _program(work: Workdir, one: Measure, scope: Scope) -> Callable[[int, list[int]], dict[str, np.ndarray]]:
    """`(step, rows) -> outputs (len(rows), ...)`: rows side by side on the devices of this process."""
    experiment, grid = work.experiment, work.grid
    model = experiment.model.clone(readout="all") if hasattr(experiment.model, "readout") else experiment.model
    stream = f"analysis/{one.stream or one.name}"
    batch = experiment.task.sample(rng.key(experiment.data_seed, stream), one.n, one.split, {})
    key = rng.key(experiment.data_seed, f"analysis/{one.name}/noise")
    start = work.params(work.snapshot_steps()[0])
    width = 1 if jax.default_backend() == "cpu" else BLOCK_ROWS

    def of_row(params, start, hparams, step, batch, key):
        return one.function(Row(model, params, start, hparams, step, batch, key))

    compiled = {}

    def program(step: int, rows: list[int]) -> dict[str, np.ndarray]:
        with jax.default_matmul_precision(MATMUL), jax.enable_x64(scope.precision == "float64"):
            if len(rows) not in compiled:
                layout = shard.layout(shard.run_mesh(len(rows)), len(rows), width)
                mapped = sweep.over_rows(of_row, layout.width, layout.mesh, 3, 3)
                compiled[len(rows)] = layout, jax.jit(mapped, compiler_options=_compiler_options())
            layout, over_rows = compiled[len(rows)]
            picked = [store.take_row(tree, np.array(rows)) for tree in (work.params(step), start, grid.arrays())]
            placed = [layout.place(_cast(tree, scope.precision))[0] for tree in picked]
            outputs = over_rows(*placed, jnp.int32(step), _cast(batch, scope.precision), key)
            return layout.fetch([outputs])

    return program


def _compiler_options() -> dict | None:
    """On a CPU every core has its own rows, and XLA's threads inside a row would bring nothing.

    They can wait for each other forever, too: with jaxlib 0.10.2, where two batched LAPACK calls (`ParallelBatchMap`)
    hold the pool's threads. So rows are not vmapped there, and nothing in this package vmaps a decomposition.
    """
    return {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None


def _due(work: Workdir, one: Measure, scope: Scope) -> dict[int, list[int]]:
    """Snapshot -> rows still to be measured there."""
    n_rows = len(work.grid)
    rows = range(n_rows) if scope.rows is None else scope.rows
    for row in rows:
        if not 0 <= row < n_rows:
            raise ValueError(f"row {row}: {work.path} has rows 0 to {n_rows - 1}")
    held = _held(work, one, scope)
    steps = chosen_steps(work.snapshot_steps(), scope.snapshots or one.snapshots)
    return {step: lacking for step in steps if (lacking := held.lacks(step, rows))}


def _held(work: Workdir, one: Measure, scope: Scope) -> Taken:
    """What the workdir holds of a measurement, by the code of now and at least as exactly as asked; else nothing."""
    taken = Taken(len(work.grid))
    try:
        header, arrays = table.read_measure(work, one.name)
    except DamagedError:
        return taken
    wanted = {_precision(name) for name in PRECISIONS[PRECISIONS.index(scope.precision) :]}
    if header.pop("precision") not in wanted or not header.items() >= _identity(one).items():
        return taken
    whole = set(work.snapshot_steps())
    for i, step in enumerate(header["snapshots"]):
        if step in whole:
            rows = header["rows"].get(str(step), range(taken.n_rows))
            values = {name: a[i] if header["every_snapshot"] else a for name, a in arrays.items()}
            taken.add(step, list(rows), {name: a[list(rows)] for name, a in values.items()})
    return taken


def _write(work: Workdir, one: Measure, scope: Scope, taken: Taken) -> None:
    steps = sorted(taken.has)
    every_snapshot = one.snapshots != "last" or steps != work.snapshot_steps()[-1:]
    stacked = {name: np.stack([taken.outputs[step][name] for step in steps]) for name in taken.outputs[steps[0]]}
    arrays = stacked if every_snapshot else {name: values[0] for name, values in stacked.items()}
    incomplete = {str(step): np.flatnonzero(has_R).tolist() for step, has_R in taken.has.items() if not has_R.all()}
    header = {"snapshots": steps, "rows": incomplete, "every_snapshot": every_snapshot}
    table.write_measure(work, one.name, arrays, header | _identity(one) | {"precision": _precision(scope.precision)})


def _identity(one: Measure) -> dict:
    """What decides the numbers and their meaning; a measurement with another one is another measurement."""
    return {
        "dims": {name: list(dims) for name, dims in one.dims.items()},
        "coords": {name: list(values) for name, values in one.coords.items()},
        "units": dict(one.units),
        "batch": [one.split, one.n, one.stream],
        "code": _code(one),
        "version": lab.__version__,
    }


def _code(one: Measure) -> str:
    """Hash of the sources that decide the numbers: this package, and the module that defines the measurement."""
    sources = [*sorted(Path(__file__).parent.rglob("*.py")), Path(inspect.getfile(one.function))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _precision(name: str) -> str:
    return f"{name} {MATMUL}"


def _cast(tree, precision: str):
    """Floats of at least float32 as `precision` says; whole numbers, keys and half precision as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(precision) if leaf.dtype in (np.float32, np.float64) else leaf, tree)


def _nothing(values, n_rows: int) -> np.ndarray:
    empty = np.nan if np.issubdtype(values.dtype, np.inexact) else 0
    return np.full((n_rows, *values.shape[1:]), empty, values.dtype)
