"""Measurements of one softmax layer over vectors as a gradient step of its dual model, see `lab.analysis.dual`."""

import jax
import jax.numpy as jnp

from lab import models
from lab.analysis import dual
from lab.experiment import Experiment
from lab.measuring.declare import Measure

PROMPTS = 64
FEATURES = (100, 316, 1000, 3162, 10_000)
FEATURE_PROMPTS, DRAWS = 8, 64
LENGTH = 0.5  # that queries and keys are brought to for random features, whose error is exponential in |q + k|^2


def dual_step(experiment: Experiment) -> Measure:
    """How far the dual's step is from the layer, token by token; how its representations f(k_i) align and collapse."""
    model = experiment.model
    options = (model.alpha, model.beta, model.n_negatives)

    def of_prompt(acts):
        q_D, k_LxD = dual.halves(acts["q"][0], acts["k"])
        trained = dual.trained(q_D, k_LxD, acts["v"], *options)
        return {
            "answer": trained(q_D[None])[0],
            "path": dual.token_by_token(q_D, k_LxD, acts["v"], *options),
            "alignment": dual.alignment(trained, k_LxD[:-1], acts["v"][:-1]),
            "length": jnp.mean(jnp.sum(jnp.square(q_D[None] + k_LxD), axis=1)),
        }

    def rank_of(acts):
        q_D, k_LxD = dual.halves(acts["q"][0], acts["k"])
        return dual.representation_rank(dual.trained(q_D, k_LxD, acts["v"], *options), k_LxD[:-1])

    def function(row):
        acts = layer(row)
        found = jax.vmap(of_prompt)(acts)

        def gap(answer):
            return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(answer - acts["z"]), axis=-1)))

        size = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(acts["z"]), axis=-1)))
        return {
            "gap": gap(found["answer"]) / size,
            "path": jax.vmap(gap, in_axes=1)(found["path"]) / size,
            "alignment": jnp.mean(found["alignment"]),
            "length": jnp.mean(found["length"]),
            # one prompt after the other: batched LAPACK calls can wait for each other forever
            "rank": jnp.mean(jax.lax.map(rank_of, acts)),
        }

    units = {
        "gap": "of the layer's output",
        "path": "of the layer's output",
        "alignment": "cosine",
        "length": "|q + k|^2",
    }
    return Measure("dual", function, units | {"rank": "effective rank"}, {"path": ("demonstration",)}, n=PROMPTS)


def random_features(experiment: Experiment) -> Measure:
    """Mean square relative error of exp(q . k) by random features, of queries and keys brought to one length."""

    def function(row):
        acts = layer(row)
        q_PxD, k_PxLxD = (LENGTH * a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (acts["q"][:, 0], acts["k"]))
        keys = jax.random.split(row.key, len(FEATURES))
        pairs = [dual.feature_errors(key, q_PxD, k_PxLxD, n, DRAWS) for key, n in zip(keys, FEATURES, strict=True)]
        error, predicted = zip(*pairs, strict=True)
        return {"error": jnp.stack(error), "predicted": jnp.stack(predicted)}

    dims = {"error": ("features",), "predicted": ("features",)}
    return Measure(
        "features", function, dict.fromkeys(dims, "squared, relative"), dims, {"features": FEATURES}, snapshots="last",
        n=FEATURE_PROMPTS,
    )  # fmt: skip


def layer(row) -> dict:
    """Activations of the layer by their last name, of all prompts of the row's batch."""
    _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
    return {name: acts[f"block_0/attn/{name}"] for name in ("q", "k", "v", "z")}
