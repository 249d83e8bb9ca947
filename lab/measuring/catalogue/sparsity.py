"""Measurements of how sparse a transformer is: hidden units that are on, those that are dead, attention passed by."""

import jax.numpy as jnp

from lab import models
from lab.analysis import sparsity as analysis
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.tree import stack

PROBE_TOKENS = 2**13
SMOOTH = 0.01  # of the root mean square: what counts as on where the activation has no exact zeros


def sparsity(experiment: Experiment) -> Measure:
    """Active share and dead units of every MLP, and how much of the stream goes past attention, on fixed sequences."""
    model = experiment.model
    threshold = 0.0 if model.activation == "relu" else SMOOTH
    normed = getattr(model, "sandwich_norm", False)  # a decoder's: what attention says has a norm before it is added
    kinds = {"active": "share of units", "dead": "share of units"} if model.d_ff else {}

    def of_layer(acts, name):
        stream_BxLxD = acts[f"{name}/resid_pre"]
        added_BxLxD = acts[f"{name}/resid_mid"] - stream_BxLxD if normed else acts[f"{name}/attn/out"]
        found = analysis.bypass(stream_BxLxD, added_BxLxD)
        if kinds:
            active_BxLxF = analysis.active(acts[f"{name}/mlp/post"], threshold)
            by_position_L = analysis.active_share(active_BxLxF)
            found |= {"active": jnp.mean(by_position_L), "dead": analysis.dead_share(active_BxLxF)}
            found |= {"active_at": by_position_L}
        return found

    def function(row):
        _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
        return stack([of_layer(acts, f"block_{i}") for i in range(row.model.n_layers)])

    units = {"ratio": "|attention| / |stream|", "bypass": "share of norm", "cosine": "cosine"}
    units |= {"bypassed": "share of tokens"} | kinds
    dims = dict.fromkeys(units, ("layer",))
    if kinds:
        units, dims = units | {"active_at": "share of units"}, dims | {"active_at": ("layer", "position")}
    n = max(2, PROBE_TOKENS // experiment.task.length)
    return Measure("sparsity", function, units, dims, n=n)
