"""Runs measurements over a workdir: each a pure function of one row, mapped over rows in blocks and over snapshots."""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

import lab
from lab import rng
from lab.engine import store, table
from lab.engine.workdir import Workdir, WorkdirError

SNAPSHOTS = ("all", "last")
BLOCK_ROWS = 16
PRECISION = "highest"  # JAX's GPU default is TF32, too coarse for spectra and cosines


@dataclasses.dataclass(frozen=True)
class Measure:
    """What to measure, and what the numbers mean.

    Attributes:
      name: of the file below `analysis/` and the prefix of its variables.
      function: `(model, params, batch, key) -> dict of arrays` of one row, jittable.
      dims: output -> names of its axes; outputs that are scalars need no entry.
      coords: axis -> its values; axes not listed are numbered.
      units: output -> unit, for every output.
      snapshots: `all`: the outputs get a leading `snapshot` dimension; `last`: only the trained rows are measured.
      split, n: the batch that `function` is given: `n` sequences of a split of the task.
    """

    name: str
    function: Callable
    units: Mapping[str, str]
    dims: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    coords: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    snapshots: str = "all"
    split: str = "train"
    n: int = 1

    def __post_init__(self):
        if self.snapshots not in SNAPSHOTS:
            raise ValueError(f"measure {self.name}: snapshots={self.snapshots!r}; one of {', '.join(SNAPSHOTS)}")


def measure(work: Workdir, measures: list[Measure]) -> list[str]:
    """Takes every measurement that the workdir does not hold yet; returns the names of those taken.

    Raises:
      WorkdirError: no snapshots yet, or a damaged one.
    """
    steps = work.snapshot_steps()
    if not steps:
        raise WorkdirError(f"{work.path}: no snapshots to analyze; train first")
    store.tidy(work.analysis)
    to_take = missing(work, measures)
    for one in tqdm(to_take, desc=f"{work.path.name}: analysis", unit="measure", leave=False, disable=not to_take):
        chosen = _chosen(one, steps)
        arrays = over_rows_and_snapshots(work, one, chosen)
        if one.snapshots == "last":
            arrays = {name: values[0] for name, values in arrays.items()}
        table.write_measure(work, one.name, arrays, _header(one, chosen))
    return [one.name for one in to_take]


def missing(work: Workdir, measures: list[Measure]) -> list[Measure]:
    """Those the workdir does not hold: it holds those of its snapshots, taken by the code of now."""
    steps = work.snapshot_steps()
    return [one for one in measures if table.read_header(work, one.name) != _header(one, _chosen(one, steps))]


def over_rows_and_snapshots(work: Workdir, one: Measure, steps: list[int]) -> dict[str, np.ndarray]:
    """Outputs of shape (snapshots, R, ...), float32 `highest`."""
    experiment = work.experiment
    model = experiment.model.clone(readout="all") if hasattr(experiment.model, "readout") else experiment.model
    stream = f"analysis/{one.name}"
    batch = experiment.task.sample(rng.key(experiment.data_seed, stream), one.n, one.split, {})
    key = rng.key(experiment.data_seed, f"{stream}/noise")

    @jax.jit
    def all_rows(params_R):
        return jax.lax.map(lambda params: one.function(model, params, batch, key), params_R, batch_size=BLOCK_ROWS)

    with jax.default_matmul_precision(PRECISION):
        outputs = [jax.device_get(all_rows(work.params(step))) for step in steps]
    return {name: np.stack([output[name] for output in outputs]) for name in outputs[0]}


def _header(one: Measure, steps: list[int]) -> dict:
    return {
        "snapshots": steps,
        "every_snapshot": one.snapshots == "all",
        "dims": {name: list(dims) for name, dims in one.dims.items()},
        "coords": {name: list(values) for name, values in one.coords.items()},
        "units": dict(one.units),
        "precision": f"float32 {PRECISION}",
        "batch": [one.split, one.n],
        "code": _code(one),
        "version": lab.__version__,
    }


def _code(one: Measure) -> str:
    """Hash of the sources that decide the numbers: this package, and the module that defines the measurement."""
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(inspect.getfile(one.function))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _chosen(one: Measure, steps: list[int]) -> list[int]:
    return steps if one.snapshots == "all" else steps[-1:]
