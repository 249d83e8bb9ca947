"""A model trained in bfloat16 is measured as the float32 function that its parameters define."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lab import config as configs
from lab import grid, models, rng
from lab.configs import composition
from lab.disk.load import load
from lab.engine import step as steps
from lab.measuring.declare import Measure, in_float32
from lab.measuring.run import measure


@functools.cache
def config():
    """One row of a small transformer whose products are of bfloat16."""
    (made, *_) = configs.variants(composition.smoke()).values()
    made.model.update(compute_dtype="bfloat16", d_model=8, d_head=8, d_ff=8)
    made.grid.update(gamma=(0.5,), weight_decay=(0.0,), learning_rate=(1e-3,), seed=(0,))
    return made


@functools.cache
def start():
    """Its parameters before training, with an axis of rows."""
    hparams = grid.product(config().grid.to_dict()).row(0)
    params = jax.jit(lambda: steps.start(configs.experiment(config()), hparams).params)()
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)


@pytest.fixture
def work(tmp_path, untrained):
    return untrained(tmp_path / "w", config(), {0: start()})


forward = jax.jit(models.forward, static_argnums=0)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_logits_of_a_row_are_those_of_its_parameters_own_precision(work, precision):
    def function(row):
        logits_BxLxV, _ = models.forward(row.model, row.params, row.batch.tokens_BxL)
        return {"logits": logits_BxLxV[:, -1]}

    with jax.numpy_dtype_promotion("standard"):  # flax's LayerNorm promotes float64
        dims = {"logits": ("item", "token")}
        measure(work, [Measure("said", function, {"logits": "logit"}, dims, n=4, precision=precision)])
    found_BxV = np.asarray(load(work.path)["said.logits"]).reshape(4, -1)
    params = work.params(0, 0)
    key = rng.key(work.experiment.data_seed, "analysis/said")
    batch = jax.jit(lambda: work.experiment.task.sample(key, 4, "train", {}))()
    plain = work.experiment.model.clone(compute_dtype="float32")
    logits = {
        model: np.asarray(forward(model, params, batch.tokens_BxL)[0])[:, -1]
        for model in (plain, work.experiment.model)
    }
    scale = np.abs(logits[plain]).max()
    # some hundred float32 roundings one after the other, where one of bfloat16 is 2^16 of them
    np.testing.assert_allclose(found_BxV, logits[plain], atol=100 * 2.0**-24 * scale)
    assert np.abs(found_BxV - logits[work.experiment.model]).max() > 2.0**-12 * scale


def test_measurements_are_built_of_the_same_training_with_an_exact_model(work):
    experiment = in_float32(work.experiment)
    assert experiment.model == work.experiment.model.clone(compute_dtype="float32") != work.experiment.model
    assert in_float32(experiment) is experiment
    assert dataclasses.replace(experiment, model=work.experiment.model) == work.experiment
