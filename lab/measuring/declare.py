"""Declares measurements: pure functions of one row, with units and axes."""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from lab.experiment import Experiment
from lab.measuring.fingerprint import unwrapped
from lab.tasks import Batch

SNAPSHOTS = ("all", "last", "log")
PRECISIONS = ("float32", "float64")


class Row(NamedTuple):
    """What a measurement is given: one row of the grid at one snapshot.

    Attributes:
      model: the Flax module, answering at every position, in its parameters' precision; static.
      params: its parameters at the snapshot.
      start: its parameters at the first snapshot, before training.
      hparams: its hyperparameters, scalars by name.
      step: of the snapshot, int32.
      batch: `Measure.n` sequences, the same for all snapshots, precisions and rows with the same data; of a finite
        training set the first ones, as many as there are.
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
      n_asked: whether `n` is a number that the user named, in place of the measurement's own.
      stream: measurements that name the same one are given the same sequences; empty: its own.
      precision: `float32` or `float64`: the least it is taken in, whatever is asked for.
      left_out: what of the model it does not cover though one might think so, for people.
    """

    name: str
    function: Callable
    units: Mapping[str, str]
    dims: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    coords: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    snapshots: str = "all"
    split: str = "train"
    n: int = 1
    n_asked: bool = False
    stream: str = ""
    precision: str = "float32"
    left_out: tuple[str, ...] = ()

    def __post_init__(self):
        if self.snapshots not in SNAPSHOTS:
            raise ValueError(f"measure {self.name}: snapshots={self.snapshots!r}; one of {', '.join(SNAPSHOTS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"measure {self.name}: precision={self.precision!r}; one of {', '.join(PRECISIONS)}")


def summary(measure: Measure) -> str:
    """What it measures: the first line of the docstring of its function, or of the function's maker."""
    function = unwrapped(measure.function)
    maker = getattr(sys.modules[function.__module__], function.__qualname__.split(".")[0], function)
    documented = inspect.getdoc(function) or inspect.getdoc(maker) or ", ".join(measure.units)
    return documented.splitlines()[0]


def in_float32(experiment: Experiment) -> Experiment:
    """The experiment with a model that computes in float32, whatever it was trained in; measurements are built from it.

    In bfloat16 a loss is constant over the steps that curvature is computed from, and Hessian-vector products are
    noise. So a row is measured as the function that its float32 parameters define, not quite the one it was trained as.
    """
    model = experiment.model
    if getattr(model, "compute_dtype", "float32") == "float32":
        return experiment
    return dataclasses.replace(experiment, model=model.clone(compute_dtype="float32"))
