"""Runs measurements over a workdir: pure functions of one row, mapped over blocks of rows and over snapshots.

Results are cached by snapshot and row, and written to disk every few seconds.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import lab
from lab import rng, schedule
from lab.disk import store
from lab.disk.files import DamagedError, WorkdirError
from lab.disk.workdir import Workdir
from lab.engine import batches, memory, numerics, shard, sweep
from lab.engine.multihost import only_writer
from lab.engine.progress import Progress
from lab.engine.shard import Layout
from lab.experiment import Experiment
from lab.measuring import cache, fingerprint
from lab.measuring.declare import PRECISIONS, SNAPSHOTS, Measure, Row, in_float32
from lab.tasks import Batch

BLOCK_ROWS = 16  # rows a vmap holds at once on an accelerator; on a CPU every core has its own, one at a time
MATMUL = "highest"  # JAX's GPU default is TF32, too coarse for spectra and cosines
WRITE_EVERY = 10.0  # seconds
NO_MATRIX = "which axes are inputs is not said, or the model says that it is no matrix (see lab.matrices: fan_in)"


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which snapshots and rows are measured, and in which precision.

    Attributes:
      snapshots: see `Measure`; None: as each measurement says.
      rows: indices into the grid; None: all.
      precision: `float32` or `float64`. A float64 result also satisfies a float32 request.
      n: how many sequences, for measurements of any: a number, or `all` of a finite training set. None: as each
        measurement says, or as a result that is there was asked for.

    Raises:
      ValueError: an unknown choice.
    """

    snapshots: str | None = None
    rows: Sequence[int] | None = None
    precision: str = "float32"
    n: int | str | None = None

    def __post_init__(self):
        for name, accepted in (("snapshots", (None, *SNAPSHOTS)), ("precision", PRECISIONS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r}; one of {', '.join(filter(None, accepted))}")

    def precision_for(self, declared: Measure) -> str:
        """At least the precision that the measurement needs."""
        return max(self.precision, declared.precision, key=PRECISIONS.index)


@numerics.settled()
def measure(
    work: Workdir,
    measures: Sequence[Measure],
    selection: Selection = Selection(),
    progress: Progress | None = None,
) -> list[str]:
    """Measures what the workdir does not hold yet; returns the names of the measurements of which anything was missing.

    Args:
      progress: that of several workdirs; None: of this one alone.

    Raises:
      WorkdirError: no snapshots yet, a damaged one, or another process is measuring here.
      SaveError: the disk is full or cannot be written to; what was measured before is still there.
      ValueError: no such row, or one row does not fit in memory.
    """
    if not work.snapshot_steps():
        raise WorkdirError(f"{work.path}: no snapshots to analyze; train first")
    measures = [_sized(work, declared, selection) for declared in measures]
    with contextlib.ExitStack() as stack:
        for part in work.parts:
            stack.enter_context(only_writer(part.analysis))
            store.tidy(part.analysis)
        progress = progress or stack.enter_context(Progress("row"))
        missing_of = ((declared, _missing(work, declared, selection)) for declared in measures)
        due = [(declared, missing) for declared, missing in missing_of if missing]
        progress.begin(work.path.name, sum(_count(missing) for _, missing in due))
        for declared, missing in due:
            progress.doing(f"measuring {declared.name}")
            if declared.left_out:
                progress.say(f"{work.path}: {declared.name} leaves out {', '.join(declared.left_out)}: {NO_MATRIX}")
            others = [*work.parts] if len(work.parts) > 1 else []

            def drop_others(declared=declared, others=others):  # one measurement has one meaning in all of them
                while others:
                    part = others.pop(0)
                    if cache.drop_other(part, declared.name, _identity(declared)):
                        progress.say(f"{part.path}: {declared.name} was dropped: taken by other code, or of other data")

            for part, rows_at in missing:
                _measure_rows(part, declared, selection.precision_for(declared), rows_at, progress, drop_others)
        progress.end()
    return [declared.name for declared, _ in due]


def missing(work: Workdir, measures: Sequence[Measure], selection: Selection = Selection()) -> list[Measure]:
    """The measurements of which the workdir lacks a result of the present code for a selected snapshot or row.

    Raises:
      ValueError: no such row.
    """
    sized = [_sized(work, declared, selection) for declared in measures]
    return [declared for declared in sized if _missing(work, declared, selection)]


def n_missing(work: Workdir, measures: Sequence[Measure], selection: Selection = Selection()) -> int:
    """How many rows of snapshots `measure` would measure, each measurement counted; raises as `missing`."""
    sized = (_sized(work, declared, selection) for declared in measures)
    return sum(_count(_missing(work, declared, selection)) for declared in sized)


def stale(work: Workdir, measures: Sequence[Measure]) -> list[str]:
    """Names of the measurements whose results were computed by an older version of the code."""
    names = []
    for declared in measures:
        identity = _identity(_sized(work, declared, Selection()))
        for part in work.parts:
            with contextlib.suppress(DamagedError):  # not there, or `load` refuses it
                if not part.read_json(f"analysis/{declared.name}.json").items() >= identity.items():
                    names.append(declared.name)
    return list(dict.fromkeys(names))


def refuse_unknown_rows(work: Workdir, selection: Selection) -> None:
    """
    Raises:
      ValueError: the workdir does not have one of the rows asked for.
    """
    n_rows = len(work.grid)
    for row in selection.rows or ():
        if not 0 <= row < n_rows:
            raise ValueError(f"row {row}: {work.path} has rows 0 to {n_rows - 1}")


def _sized(work: Workdir, declared: Measure, selection: Selection) -> Measure:
    """The measurement of as many sequences as the user names, or as he once named for the result that is there.

    Raises:
      ValueError: there are not so many, or no end of them.
    """
    if declared.n == 1:  # of the weights alone
        return declared
    n, train_size = selection.n, work.experiment.train_size if declared.split == "train" else 0
    if n is None:
        with contextlib.suppress(DamagedError):
            header = work.read_json(f"analysis/{declared.name}.json")
            if header.get("n_asked"):
                n = header["batch"][1]
    elif n == "all":
        if not train_size:
            raise ValueError(f"n=all: {work.path} draws its {declared.split} sequences without end; give a number")
        n = train_size
    elif train_size and n > train_size:
        raise ValueError(f"n={n}: {work.path} has {train_size} training sequences")
    return declared if n is None else dataclasses.replace(declared, n=n, n_asked=True)


def _measure_rows(
    work: Workdir,
    declared: Measure,
    precision: str,
    rows_at: Mapping[int, list[int]],
    progress: Progress,
    then: Callable[[], None],
) -> None:
    """
    Args:
      then: what is to be done once results are on disk.
    """
    identity = _identity(declared)
    cached = cache.read(work, declared.name, identity)
    cached.device_kinds.add(jax.devices()[0].device_kind)
    most = max(map(len, rows_at.values()))
    layout = _layout(most, 1 if jax.default_backend() == "cpu" else BLOCK_ROWS)
    program = _program(work, declared, precision, layout)

    def write():
        steps = sorted(cached.level)
        only_last = declared.snapshots == "last" and steps == work.snapshot_steps()[-1:]
        cache.write(work, declared.name, identity, cached, only_last)
        then()

    written, unwritten = time.monotonic(), False
    try:
        for step, rows in rows_at.items():
            params_R = work.params(step)
            done = 0
            while done < len(rows):
                group = rows[done : done + layout.n_padded]
                outputs = _unless_out_of_memory(program, step, params_R, group)
                if outputs is None:
                    if layout.width == 1:
                        raise ValueError(f"{declared.name}: one row does not fit in memory")
                    layout = _layout(most, layout.width // 2)
                    progress.say(
                        f"{work.path}: {declared.name}: out of memory, going on with {layout.width} rows at once"
                    )
                    program = _program(work, declared, precision, layout)
                    continue
                cached.add(step, group, outputs, precision)
                done, unwritten = done + len(group), True
                progress.advance(len(group))
                progress.doing(f"measuring {declared.name}")
                if time.monotonic() - written > WRITE_EVERY:
                    write()
                    written, unwritten = time.monotonic(), False
    finally:  # results so far are kept, whatever stops this
        if unwritten:
            write()


def _unless_out_of_memory(program: Callable, *args) -> dict[str, np.ndarray] | None:
    try:
        return program(*args)
    except jax.errors.JaxRuntimeError as error:
        if not memory.has_run_out(error):
            raise
        return None


def _layout(n_rows: int, width: int) -> Layout:
    """The layout of one group of rows, computed at once: `n_rows` rows are split into as few groups as possible.

    Args:
      width: rows a vmap holds at once, at most.
    """
    n_groups = math.ceil(n_rows / (jax.device_count() * width))
    size = math.ceil(n_rows / n_groups)
    return shard.layout(shard.run_mesh(size), size, width)


def _program(work: Workdir, declared: Measure, precision: str, layout: Layout) -> Callable[..., dict[str, np.ndarray]]:
    """`(step, params_R, rows) -> outputs (len(rows), ...)` of a group of rows; it is compiled once."""
    experiment, hparams_R = in_float32(work.experiment), work.grid.arrays()
    model = experiment.model.clone(readout="all") if hasattr(experiment.model, "readout") else experiment.model
    key = rng.key(experiment.data_seed, f"analysis/{declared.name}/noise")
    start_R = work.params(work.snapshot_steps()[0])
    own_data = bool(batches.varied(experiment, hparams_R))

    def draw(hparams):
        return _sequences(experiment, declared, hparams)

    def of_row(params, start, hparams, batch, step, key):
        return declared.function(Row(model, params, start, hparams, step, _cast(batch, precision), key))

    # sequences are drawn in float32 whatever the precision: float64 would draw other ones
    draw_rows = jax.jit(sweep.over_rows(draw, layout.width, layout.mesh, 1, 0)) if own_data else None
    shared = None if own_data else draw({})
    mapped = sweep.over_rows(of_row, layout.width, layout.mesh, 3 + own_data, 3 - own_data)
    of_rows = jax.jit(mapped, compiler_options=_compiler_options())

    def program(step: int, params_R, rows: list[int]) -> dict[str, np.ndarray]:
        group = dataclasses.replace(layout, n_rows=len(rows))
        params, start, hparams = (store.take_row(tree, np.array(rows)) for tree in (params_R, start_R, hparams_R))
        batch = draw_rows(group.to_device(hparams)[0]) if own_data else shared
        with jax.default_matmul_precision(MATMUL), jax.enable_x64(precision == "float64"):
            placed = [group.to_device(_cast(tree, precision))[0] for tree in (params, start, hparams)]
            return group.fetch([of_rows(*placed, batch, jnp.int32(step), key)])

    return program


def _sequences(experiment: Experiment, declared: Measure, hparams: Mapping) -> Batch:
    """The sequences a measurement is given of a row: of the finite training set, where there is one."""
    if declared.split == "train" and experiment.train_size:
        return jax.tree.map(lambda leaf: leaf[: declared.n], batches.train_set(experiment))
    stream_key = rng.key(experiment.data_seed, f"analysis/{declared.stream or declared.name}")
    return experiment.task.sample(stream_key, declared.n, declared.split, hparams)


def _compiler_options() -> dict | None:
    """On a CPU every core has its own rows, and XLA's threads inside a row would bring nothing.

    They can wait for each other forever, too: with jaxlib 0.10.2, where two batched LAPACK calls (`ParallelBatchMap`)
    hold the pool's threads. So rows are not vmapped there, and nothing in this package vmaps a decomposition.
    """
    return {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None


def _missing(work: Workdir, declared: Measure, selection: Selection) -> list[tuple[Workdir, dict[int, list[int]]]]:
    """What is still to be measured: the folders that lack anything, and of each snapshot -> rows there."""
    refuse_unknown_rows(work, selection)
    precision = selection.precision_for(declared)
    steps = schedule.chosen(work.snapshot_steps(), selection.snapshots or declared.snapshots)
    found = []
    for part, _, rows in work.by_part(range(len(work.grid)) if selection.rows is None else selection.rows):
        cached = cache.read(part, declared.name, _identity(declared))
        rows_at = {step: absent for step in steps if (absent := cached.missing(step, rows.tolist(), precision))}
        found += [(part, rows_at)] if rows_at else []
    return found


def _count(missing: Sequence[tuple[Workdir, Mapping[int, list[int]]]]) -> int:
    """Of rows, once for each snapshot."""
    return sum(len(rows) for _, rows_at in missing for rows in rows_at.values())


def _identity(declared: Measure) -> dict:
    """What decides the numbers and their meaning; a measurement with another one is another measurement."""
    return {
        "dims": {name: list(dims) for name, dims in declared.dims.items()},
        "coords": {name: list(values) for name, values in declared.coords.items()},
        "units": dict(declared.units),
        "batch": [declared.split, declared.n, declared.stream],
        **({"n_asked": True} if declared.n_asked else {}),
        **({"left_out": list(declared.left_out)} if declared.left_out else {}),
        "matmul": MATMUL,
        "code": fingerprint.fingerprint(declared.function),
        "version": lab.__version__,
    }


def _cast(tree, precision: str):
    """Floats of at least float32 as `precision` says; whole numbers, keys and half precision as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(precision) if leaf.dtype in (np.float32, np.float64) else leaf, tree)
