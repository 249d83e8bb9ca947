"""Measurements of a transformer's attention and circuits: focus, heads, lens, attribution, tracing, edges."""

import jax.numpy as jnp
import numpy as np

from lab import models, rng
from lab.analysis import circuits, estimate, focus, heads, lens, patching, rank
from lab.analysis.estimate import errors, named
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.tree import stack

SEQUENCES = 256
TOKENS = 8  # most frequent ones, whose attention is looked at


def attention(experiment: Experiment) -> Measure:
    """Who attends to whom among the most frequent tokens, layer by layer, heads averaged."""
    sample = experiment.task.sample(rng.key(experiment.data_seed, "analysis/tokens"), SEQUENCES, "train", {})
    count_V = np.bincount(np.asarray(sample.tokens_BxL).ravel(), minlength=experiment.task.vocab_size)
    tokens = tuple(int(token) for token in np.argsort(-count_V, kind="stable")[:TOKENS])

    def function(row):
        _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
        base_V = focus.unigram(row.batch.tokens_BxL, experiment.task.vocab_size)
        embedding_VxD = row.params["embed"]["token"]["embedding"]
        embedded = focus.embedding_direction(embedding_VxD, base_V.astype(float), tokens[0])
        layers = [_attention_of(acts[f"block_{i}/attn/pattern"], row.batch.tokens_BxL, tokens, base_V)
                  for i in range(row.model.n_layers)]  # fmt: skip
        kept = ("second_ratio", "off_direction", "alignment", "redistribution")
        return stack(layers) | {name: embedded[name] for name in kept}

    by_head = {"entropy": "nats", "distance_to_uniform": "attention mass", "sink": "attention mass"}
    by_token = {"attention": "attention mass", "attention_error": "attention mass", "lift": "of the base rate"}
    units = by_head | by_token | {"to_top": "attention mass", "second_ratio": "s2 / s1", "off_direction": "share",
                                  "alignment": "cosine", "redistribution": "embedding units"}  # fmt: skip
    dims = {name: ("layer", "head") for name in by_head} | {
        name: ("layer", "query_token", "key_token") for name in by_token
    }
    dims |= {"to_top": ("layer",)}
    coords = {"query_token": tokens, "key_token": tokens}
    return Measure("focus", function, units, dims, coords, n=SEQUENCES)


def head_scores(experiment: Experiment) -> Measure:
    """Previous-token, duplicate and induction scores on sequences of distinct tokens said twice."""
    sample = experiment.task.sample(rng.key(experiment.data_seed, "analysis/tokens"), SEQUENCES, "train", {})
    half = sample.tokens_BxL.shape[1] // 2
    seen_S = np.unique(np.asarray(sample.tokens_BxL))

    def function(row):
        tokens_BxL = heads.repeated_sequences(row.key, seen_S, SEQUENCES, half).astype(jnp.int32)
        _, acts = models.forward(row.model, row.params, tokens_BxL)
        layers = [heads.head_scores(acts[f"block_{i}/attn/pattern"], tokens_BxL) for i in range(row.model.n_layers)]
        by_kind = stack(layers)
        return {output: values for kind in by_kind for output, values in named(kind, by_kind[kind]).items()}

    units = errors(dict.fromkeys(heads.EDGES, "attention mass"))
    return Measure("heads", function, units, dict.fromkeys(units, ("layer", "head")))


def head_cosines(experiment: Experiment) -> Measure:
    """Cosines of every two heads of a layer: of what they look for (QK) and of what they write (OV)."""

    def function(row):
        factors = rank.circuit_factors(row.params, row.model.n_heads)
        return {name: heads.cosines(*pair) for name, pair in factors.items()}

    dims = {name: ("layer", "head", "other_head") for name in ("qk", "ov")}
    return Measure("head_cosines", function, dict.fromkeys(dims, "cosine"), dims)


def logit_lens(experiment: Experiment) -> Measure:
    """Where the answer can be read: mean reciprocal rank by layer and position, and the layer that resolves it."""
    names = tuple(patching.stream_names(experiment.model.n_layers))

    def function(row):
        _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
        found = lens.lens_mrr(row.model, row.params, acts, row.batch.targets_BxL[:, -1], names)
        return named("mrr", found) | {"resolved": lens.resolved_layer(found.value, 0.9)}

    units = errors({"mrr": "mean reciprocal rank"}) | {"resolved": "blocks"}
    dims = {"mrr": ("state", "position"), "mrr_error": ("state", "position"), "resolved": ("position",)}
    return Measure("lens", function, units, dims, {"state": names}, snapshots="last", n=SEQUENCES)


def attribution(experiment: Experiment) -> Measure:
    """Direct logit attribution of the answer at the last position, averaged over sequences."""

    def function(row):
        _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
        found = lens.logit_attribution(row.model, row.params, acts, row.batch.targets_BxL[:, -1])
        means = {
            "heads": estimate.mean(found.heads_NxBxHxQxL[:, :, :, -1], axis=1),
            "mlps": estimate.mean(found.mlps_NxBxQ[:, :, -1], axis=1),
            "embed": estimate.mean(found.embed_BxQ[:, -1]),
            "total": estimate.mean(found.total()[:, -1]),
        }
        return {output: values for part in means for output, values in named(part, means[part]).items()}

    units = errors(dict.fromkeys(("heads", "mlps", "embed", "total"), "logit"))
    dims = {name: ("layer", "head", "position") for name in ("heads", "heads_error")}
    dims |= {name: ("layer",) for name in ("mlps", "mlps_error")}
    return Measure("attribution", function, units, dims, snapshots="last", n=SEQUENCES)


def tracing(experiment: Experiment) -> Measure:
    """Causal tracing: probability of the answer restored in a run on another sequence, by layer and position."""
    names = tuple(patching.stream_names(experiment.model.n_layers))

    def function(row):
        tokens_BxL, answer_B = row.batch.tokens_BxL, row.batch.targets_BxL[:, -1]
        other_BxL = jnp.roll(tokens_BxL, 1, axis=0)
        found = patching.causal_trace(row.model, row.params, tokens_BxL, other_BxL, answer_B, names)
        return named("restored", found.restored.probability)

    dims = {name: ("state", "position") for name in ("restored", "restored_error")}
    units = errors({"restored": "probability"})
    return Measure("tracing", function, units, dims, {"state": names}, snapshots="last", n=SEQUENCES)


def edges(experiment: Experiment) -> Measure:
    """What cutting one attention edge does to accuracy and to the answer's logit.

    NaN where there is no edge, or none that leads to the answer: in the last block only the last query's do.
    """
    model = experiment.model.clone(readout="last")

    def function(row):
        tokens_BxL, answer_B = row.batch.tokens_BxL, row.batch.targets_BxL[:, -1]
        visible = circuits.visible_edges(model, tokens_BxL.shape[1])
        effect = circuits.edge_effects(model, row.params, tokens_BxL, answer_B, visible, 1)
        layer, query, key, head = (np.array(part) for part in zip(*visible, strict=True))
        shape = (model.n_layers, model.n_heads, *(tokens_BxL.shape[1],) * 2)

        def place(values_E):
            return jnp.full(shape, jnp.nan, values_E.dtype).at[layer, head, query, key].set(values_E)

        found = named("accuracy", effect.correct) | named("logit", effect.logit)
        return {name: place(values_E) for name, values_E in found.items()}

    units = errors({"accuracy": "share", "logit": "logit"})
    return Measure(
        "edges", function, units, dict.fromkeys(units, ("layer", "head", "query", "position")), {}, "last", n=SEQUENCES
    )


def _attention_of(pattern_BxHxQxL, tokens_BxL, tokens, base_V) -> dict:
    token_I = jnp.array(tokens, jnp.int32)
    among = focus.token_attention(jnp.mean(pattern_BxHxQxL, axis=1), tokens_BxL, token_I, token_I)
    return {
        "entropy": jnp.mean(focus.entropy(pattern_BxHxQxL), axis=(0, 2)),
        "distance_to_uniform": focus.distance_to_uniform(pattern_BxHxQxL)["mean"],
        "sink": focus.sink_mass(pattern_BxHxQxL).value,
        "attention": among.value,
        "attention_error": among.standard_error,
        "lift": focus.lift(among.value, base_V[token_I].astype(among.value.dtype)),
        "to_top": focus.focus(among.value[:, 0], base_V[token_I].astype(among.value.dtype)),
    }
