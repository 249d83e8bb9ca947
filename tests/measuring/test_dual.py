"""Measurements of the dual model on a layer of random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import config as configs
from lab import models, rng
from lab.analysis import rank
from lab.configs import icl_dual as config
from lab.measuring.catalogue import dual
from lab.measuring.declare import Row


@pytest.fixture(scope="module", params=["plain", "negative_5_5"])
def measured(request):
    experiment = configs.experiment(configs.variants(config.smoke())[request.param])
    batch = experiment.task.sample(rng.key(0, "batch"), 16, "train", {})
    params = models.init(experiment.model, rng.key(0, "init"), batch.tokens_BxL)
    row = Row(experiment.model, params, params, {}, jnp.int32(0), batch, rng.key(0, "measure"))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dual, "FEATURES", (100, 1000))
        for make in (dual.dual_step, dual.random_features):
            measure = make(experiment)
            outputs = jax.jit(lambda params, measure=measure: measure.function(row._replace(params=params)))(params)
            assert set(outputs) == set(measure.units)
            found |= jax.tree.map(np.asarray, outputs)
    return experiment.model, found, models.forward(experiment.model, params, batch.tokens_BxL)[1]


def test_the_dual_is_the_layer_and_its_path_ends_there(measured):
    model, found, acts = measured
    assert found["gap"] <= 1e-5 and found["path"][-1] <= 1e-5 and found["path"].shape == (16,)
    # before any demonstration there is the query's own term alone
    pattern_BxL, v_BxLxD, z_BxD = (np.asarray(acts[f"block_0/attn/{name}"]) for name in ("pattern", "v", "z"))
    own_BxD = (1 - model.alpha) * pattern_BxL[:, -1:] * v_BxLxD[:, -1]
    assert found["path"][0] == pytest.approx(np.linalg.norm(own_BxD - z_BxD) / np.linalg.norm(z_BxD), rel=1e-5)


def test_rank_is_the_mean_over_prompts_and_length_that_of_queries_and_keys_as_scored(measured):
    model, found, acts = measured
    q_BxD, k_BxLxD, v_BxLxD = (np.asarray(acts[f"block_0/attn/{name}"], np.float64) for name in ("q", "k", "v"))
    root = model.d_model**0.25
    q_BxD, k_BxLxD = q_BxD[:, 0] / root, k_BxLxD / root
    lengths_BxL = np.sum((q_BxD[:, None] + k_BxLxD) ** 2, axis=2)
    assert found["length"] == pytest.approx(lengths_BxL.mean(), rel=1e-5)
    if model.beta:
        return
    ranks = []
    for k_LxD, v_LxD in zip(k_BxLxD, v_BxLxD, strict=True):  # one step leaves sum_m exp(k_i . k_m) v_m, up to a factor
        f_NxD = np.exp(k_LxD[:-1] @ k_LxD.T) @ v_LxD
        ranks.append(float(rank.effective_rank(f_NxD / np.linalg.norm(f_NxD, axis=1, keepdims=True))))
    assert found["rank"] == pytest.approx(np.mean(ranks), rel=1e-3)


def test_random_features_have_the_predicted_error(measured):
    _, found, _ = measured
    assert ((found["error"] > found["predicted"] / 2) & (found["error"] < 2 * found["predicted"])).all()
