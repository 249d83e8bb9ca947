"""Measurements of a transformer on the two-anchor task (arXiv 2405.05409 and 2501.08537): W_Q, embedding, circuits."""

import jax
import jax.numpy as jnp

from lab import models
from lab.analysis import condensation, embedding, flow, fused
from lab.experiment import Experiment
from lab.measuring.declare import Measure

QUERY = "block_0/attn/query/kernel"  # W_Q^(1), whose condensation and stable rank the papers report
KEYS = tuple(range(30, 41))  # keys of the fused-vector heatmaps (arXiv 2405.05409, figure 4)
COMPONENTS = 4
SEQUENCES = 256


def query_condensation(threshold: float) -> Measure:
    """Condensation of W_Q of the first block.

    Args:
      threshold: cosine from which two neurons count as one.
    """

    def function(row):
        found = condensation.condensation(_query(row.params), threshold)
        return {name: found[name] for name in ("n_groups", "fraction_above")}

    return Measure("condensation", function, {"n_groups": "groups", "fraction_above": "share of neuron pairs"})


def query_neurons(threshold: float) -> Measure:
    """All cosines between neurons of W_Q of the first block, of trained rows only: they are what fills a disk."""

    def function(row):
        found = condensation.condensation(_query(row.params), threshold)
        return {name: found[name] for name in ("cosine", "order")}

    dims = {"cosine": ("neuron", "neuron_"), "order": ("neuron",)}
    return Measure("neurons", function, {"cosine": "cosine", "order": "neuron index"}, dims, snapshots="last")


def value_embeddings(experiment: Experiment) -> Measure:
    """Principal components of the embeddings of tokens, and how well one of them orders the tokens by value.

    The tokens are the middle half of the keys: of 20 to 99 those from 40 to 79, as in the released notebook of arXiv
    2501.08537.
    """
    task = experiment.task
    margin = (task.high + 1 - task.low) // 4
    tokens = tuple(range(task.low + margin, task.high + 1 - margin))

    def function(row):
        return embedding.embedding(row.params["embed"]["token"]["embedding"], jnp.array(tokens), COMPONENTS)

    return Measure(
        "embedding",
        function,
        units={"components": "embedding units", "explained": "share of variance", "order": "|Spearman|"},
        dims={"components": ("token", "component"), "explained": ("component",)},
        coords={"token": tokens, "component": tuple(range(1, COMPONENTS + 1))},
    )


def circuits(experiment: Experiment) -> Measure:
    """Circuit masses averaged over sequences with (4,3), and the pattern of one of them."""

    def function(row):
        _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
        position_B = row.batch.info["key_position_B"]
        # the example: a key near position 1, so that key, anchors and last position are all apart
        example = jnp.argmin(jnp.abs(position_B - 1))
        pattern_NxQxL = flow.attention_edges(acts, row.model.n_layers)[:, example]
        return flow.circuit(acts, position_B) | {"pattern": pattern_NxQxL, "tokens": row.batch.tokens_BxL[example]}

    masses = (
        "first_to_key", "second_to_key", "anchor_to_key", "second_to_first", "last_to_anchors_first_layer",
        "last_to_anchors", "last_to_key", "reasoning_score", "symmetric_score",
    )  # fmt: skip
    return Measure(
        "flow",
        function,
        units={name: "attention mass" for name in masses} | {"pattern": "attention mass", "tokens": "token"},
        dims={"pattern": ("layer", "query", "position"), "tokens": ("position",)},
        snapshots="last",
        split="ood_43",
        n=SEQUENCES,
    )


def fused_vectors(experiment: Experiment) -> Measure:
    """Cosines of fused vectors (key plus anchors) whose outputs agree, and of others."""
    task = experiment.task
    shifts = {anchor: shift for anchor, shift in enumerate(task.shifts, start=1)}
    taught = tuple(p for p in task.pairs if p not in task.unseen and task.trained(*p) == task.inferential(*p))

    def function(row):
        noise_L = jax.random.randint(row.key, (task.length,), task.low, task.high + 1, jnp.int32)
        found = fused.fused(row.model, row.params, shifts, KEYS, taught, noise_L, 1, "block_1/resid_mid")
        return {name: found[name] for name in ("equal", "other", "contrast")}

    return Measure("fused", function, {name: "cosine" for name in ("equal", "other", "contrast")}, snapshots="last")


def _query(params):
    return params["block_0"]["attn"]["query"]["kernel"]
