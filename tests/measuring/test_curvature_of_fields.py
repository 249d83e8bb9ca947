"""Measurements of operators: the curvature of their roll-out against a dense Hessian, and their spectral weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models, rng
from lab.analysis import loss_fn
from lab.measuring import catalogue
from lab.measuring.declare import Row
from lab.models import FNO2D, M2M
from lab.tasks import Fields
from lab.tree import size

TASK = Fields(
    equation="advection_diffusion", size=8, horizon=2, low=1, high=2, interval=0.1, step=0.05, n_train=6, n_test=2
)
SMALL = FNO2D(2, 1, n_layers=1, projection=2, horizon=2, activation="tanh")
MIXED = M2M(2, (3, 2), (2, 1), n_layers=1, projection=2, horizon=2, resolution=4, gate_width=2)
OF_OPERATORS = {"rank", "spectrum", "directions", "norm", "laziness", "rollout", "curvature"}


@pytest.fixture(scope="module")
def experiment(echo):
    return lambda model: echo.experiment(model=model, task=TASK)


def row_of(model):
    params = models.init(model, rng.key(0, "init"), TASK.example())
    batch = TASK.sample(rng.key(0, "batch"), 6, "train", {})
    moved = jax.tree.map(lambda leaf: leaf + 0.05, params)
    return Row(model, moved, params, {}, jnp.int32(0), batch, rng.key(0, "measure"))


@pytest.mark.parametrize(("model", "more"), [(SMALL, set()), (MIXED, {"routing"})])
def test_operators_are_offered_ranks_condensation_and_the_curvature_of_their_loss(experiment, model, more):
    made = experiment(model)
    assert {measure.name for measure in catalogue.measures(made)} == OF_OPERATORS | more
    assert set(catalogue.absent(made)) == set(catalogue.CATALOGUE) - OF_OPERATORS - more


def test_curvature_is_that_of_the_dense_hessian_of_the_trained_loss(experiment):
    row = row_of(SMALL)
    measure = {one.name: one for one in catalogue.measures(experiment(SMALL))}["curvature"]
    found = jax.jit(lambda params: measure.function(row._replace(params=params)))(row.params)
    assert set(found) == set(measure.units)
    vector_P, rebuild = loss_fn.flatten(row.params)
    assert vector_P.size == size(row.params) == 39

    def loss(vector_P):
        outputs, _ = models.forward(SMALL, rebuild(vector_P), row.batch.tokens_BxL)
        return TASK.mean_loss(outputs, row.batch)

    dense = np.asarray(jax.jit(jax.hessian(loss))(vector_P), np.float64)
    value_P = np.linalg.eigvalsh((dense + dense.T) / 2)
    # 32 products in 39 dimensions find the ends; entries of the Hessian are sums of some 10^3 rounded numbers
    scale = np.abs(value_P).max()
    np.testing.assert_allclose(found["top"], value_P[::-1][:5], rtol=0, atol=2e-3 * scale)
    np.testing.assert_allclose(found["bottom"], value_P[:5], rtol=0, atol=2e-3 * scale)
    assert found["trace"] == pytest.approx(np.trace(dense), abs=6 * float(found["trace_error"]) + 1e-3 * scale)


@pytest.mark.parametrize("name", ["rank", "directions"])
def test_weights_of_all_experts_are_measured(experiment, name):
    row = row_of(MIXED)
    measure = {one.name: one for one in catalogue.measures(experiment(MIXED))}[name]
    (axis,) = measure.coords
    spectral = [at for at in measure.coords[axis] if at.endswith("spectrum")]
    assert spectral == [f"mixture/expert_{e}/block_0_spectral/spectrum" for e in (0, 1)] and not measure.left_out
    found = jax.jit(lambda params: measure.function(row._replace(params=params)))(row.params)
    places = [measure.coords[axis].index(at) for at in spectral]  # a head of one number has no pair of neurons
    assert all(np.isfinite(np.asarray(values)[places]).all() for values in found.values())
