"""Runs of a preset that nobody trained: all that training and analysis would leave, a random number a row."""

from collections.abc import Mapping

import jax
import numpy as np
import xarray as xr

from lab import config as configs
from lab import rng, schedule
from lab.claims import evaluate
from lab.disk.load import _along_axes, _dataset
from lab.disk.metrics import train_metrics
from lab.engine import batches, step
from lab.measuring import run
from lab.measuring.declare import Row, in_float32
from lab.runs import Runs
from lab.verdicts import FEWEST_SEEDS


def decided(study, variants: Mapping) -> tuple[str, ...]:
    """Ids of the claims that configs, by variant, have the measurements and seeds to decide, in the study's order."""
    traced = {}
    runs = Runs({name: dataset(study, variant, traced) for name, variant in variants.items()}, study.usual)
    results = [evaluate(claim, runs) for claim in study.claims]
    return tuple(one.claim.id for one in results if len(one.values_S) >= (1 if one.exact else FEWEST_SEEDS))


def dataset(study, variant, traced: dict) -> xr.Dataset:
    """What `lab.load` would give of a variant: shapes are traced, nothing is computed.

    Args:
      traced: what is known of variants that differ in values of the grid alone; filled in here.
    """
    experiment, grid = in_float32(configs.experiment(variant)), configs.grid(variant)
    task, draw = experiment.task, np.random.default_rng(0)
    hparams = {name: column[0] for name, column in grid.arrays().items()}
    key = experiment, tuple(hparams)
    traced[key] = traced.get(key) or shapes(study, experiment, hparams)
    scores, measured = traced[key]
    _, evaluated, kept = schedule.boundaries(variant)
    times = {"step": sorted(evaluated), "train_step": range(min(variant.steps, 3)), "snapshot": sorted(kept)}

    def some(leaf, time=None):
        """A random number for each row, the same everywhere: shapes may be large."""
        shape = (len(grid), *leaf.shape)
        row_R = draw.random(len(grid)).reshape(-1, *(1,) * leaf.ndim)
        return np.broadcast_to(row_R, shape if time is None else (len(times[time]), *shape))

    variables = {"diverged_at": ((), np.full(len(grid), -1))}
    for name in train_metrics(variant):
        variables[name] = (("train_step",), some(jax.ShapeDtypeStruct((), "float32"), "train_step"))
    for name, leaf in scores.items():
        variables[name] = (("step",), some(leaf, "step"), task.dims.get(name.split(".")[-1], ()))
    coords = {name: np.array(values) for name, values in (times | dict(task.coords)).items()}
    for measure, leaves in measured:
        before = () if measure.snapshots == "last" else ("snapshot",)
        for name, leaf in leaves.items():
            dims = tuple(measure.dims.get(name, ()))
            variables[f"{measure.name}.{name}"] = (before, some(leaf, *before), dims)
        coords |= {name: np.array(values) for name, values in measure.coords.items()}
    made = _along_axes(_dataset(variables, coords), grid)
    made.attrs = {"config": configs.to_json(variant)}
    return made


def shapes(study, experiment, hparams):
    """Of what is evaluated, by name, and of each measurement with its outputs."""
    state = jax.eval_shape(lambda: step.start(experiment, hparams))
    evaluation = jax.eval_shape(lambda: batches.evaluation_set(experiment, batches.train_set(experiment), hparams))
    scores = jax.eval_shape(lambda state, batches: step.evaluate(experiment, state, batches), state, evaluation)
    measures = study.measures(experiment)
    return scores, [(one, outputs(experiment, one, state.params, hparams)) for one in measures]


def outputs(experiment, measure, params, hparams):
    """Name -> shape of what a measurement gives of a row."""
    model = experiment.model.clone(readout="all") if hasattr(experiment.model, "readout") else experiment.model

    def of_row(params):
        batch = run._sequences(experiment, measure, hparams)
        now = jax.numpy.int32(experiment.steps)
        return measure.function(Row(model, params, params, hparams, now, batch, rng.key(0, "planned")))

    return jax.eval_shape(of_row, params)
