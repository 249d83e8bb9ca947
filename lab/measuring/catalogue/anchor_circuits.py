"""Measurements of the two-anchor task's circuits (arXiv 2501.08537): edges cut, the key hidden, equivalent anchors.

With k, a, b, l the positions of key, first anchor, second anchor and last token, and edges written reader <- read:
the reasoning circuit is a <- k, b <- k in block 0 and l <- a, l <- b in block 1; the symmetric one is l <- a, l <- b in
block 0 and l <- k in block 1 (`lab.analysis.flow`). Both are of two layers, and so is everything here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import models
from lab.analysis import embedding, flow
from lab.analysis.condensation import cosine_matrix
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.tasks import Composition

SEQUENCES = 256
CIRCUITS = ("reasoning", "symmetric", "random")
SPLITS = {"masked_seen": "test_seen", "masked_unseen": "ood_43"}  # measurement -> what it asks

# The released notebook's sequence, its key and first anchor at positions 2 and 3, and all four ways to two values.
NOISE = (35, 63, 0, 0, 2, 38, 42, 36, 62)
TARGETS = (40, 79)
KEY_POSITION = 1  # of the sequences whose outputs are compared: the first anchor stands at index 2
REPEATS = 50
VECTOR = "block_1/resid_mid"  # as of `lab.analysis.fused`; the notebook does not say which


class Edges(NamedTuple):
    """E edges a sequence: their blocks, and (B, E) positions of reader and read."""

    layers: tuple[int, ...]
    query_BxE: jax.Array
    key_BxE: jax.Array


def measures(experiment: Experiment) -> list[Measure]:
    """Those of the two-layer circuits; none for other depths, or another layout than the published one."""
    model, task = experiment.model, experiment.task
    published = task.n_anchors == 4 and task.length == len(NOISE) and {*NOISE[:2], *NOISE[5:]} <= set(_values(task))
    if model.n_layers != 2 or not published:
        return []
    return [*(masked(experiment, name) for name in SPLITS), equivalence(experiment), outputs(experiment)]


def reasoning_edges(key_position_B, length: int) -> Edges:
    k_B, a_B, b_B, last_B = _positions(key_position_B, length)
    return Edges((0, 0, 1, 1), jnp.stack([a_B, b_B, last_B, last_B], 1), jnp.stack([k_B, k_B, a_B, b_B], 1))


def symmetric_edges(key_position_B, length: int) -> Edges:
    k_B, a_B, b_B, last_B = _positions(key_position_B, length)
    return Edges((0, 0, 1), jnp.stack([last_B] * 3, 1), jnp.stack([a_B, b_B, k_B], 1))


def random_edges(key, key_position_B, length: int) -> Edges:
    """As many edges as the reasoning circuit has, block by block, of neither circuit, drawn for every sequence.

    In block 1 only the last position reads them, as the answer depends on no other; no query's edge to itself is cut.
    """
    circuits = [edges(key_position_B, length) for edges in (reasoning_edges, symmetric_edges)]
    at_L = jnp.arange(length, dtype=jnp.int32)
    earlier_LxL = at_L[:, None] > at_L[None]
    candidates = (earlier_LxL, earlier_LxL & (at_L == length - 1)[:, None])
    chosen = []
    for layer, (candidate_LxL, layer_key) in enumerate(zip(candidates, jax.random.split(key), strict=True)):
        taken_BxLxL = sum(_matrix(edges, layer, length) for edges in circuits) > 0
        luck_BxLxL = jax.random.uniform(layer_key, taken_BxLxL.shape, jnp.float32)
        luck_BxLxL = jnp.where(candidate_LxL[None] & ~taken_BxLxL, luck_BxLxL, -1)
        chosen.append(jax.lax.top_k(luck_BxLxL.reshape(luck_BxLxL.shape[0], -1), 2)[1].astype(jnp.int32))
    place_BxE = jnp.concatenate(chosen, axis=1)
    return Edges((0, 0, 1, 1), place_BxE // length, place_BxE % length)


def masked(experiment: Experiment, name: str) -> Measure:
    """Accuracy with one circuit's edges, or as many random ones, cut before the softmax (score -1e9)."""

    def function(row):
        batch, k_B = row.batch, row.batch.info["key_position_B"]
        length = batch.tokens_BxL.shape[1]
        counts_B = k_B <= length - 4  # in the others the second anchor is the last token, and edges of both circuits

        def accuracy(edits):
            logits_BxQxV, _ = models.forward(row.model, row.params, batch.tokens_BxL, edits)
            right_B = jnp.argmax(logits_BxQxV[:, -1], axis=-1).astype(jnp.int32) == batch.targets_BxL[:, -1]
            return jnp.mean(right_B.astype(logits_BxQxV.dtype), where=counts_B)

        cut = {
            "reasoning": reasoning_edges(k_B, length),
            "symmetric": symmetric_edges(k_B, length),
            "random": random_edges(row.key, k_B, length),
        }
        return {"whole": accuracy({})} | {circuit: accuracy(flow.mask_edges(*cut[circuit])) for circuit in CIRCUITS}

    units = dict.fromkeys(("whole", *CIRCUITS), "share right")
    return Measure(name, function, units, snapshots="last", split=SPLITS[name], n=SEQUENCES)


def equivalence(experiment: Experiment) -> Measure:
    """Cosines of last-token vectors of sequences whose first shift leads to the same value, and to another one."""
    shifts = experiment.task.shifts
    tokens_CxL = np.tile(np.array(NOISE, np.int32), (len(TARGETS) * len(shifts), 1))
    cells = [(target - shift, anchor) for target in TARGETS for anchor, shift in enumerate(shifts, 1)]
    tokens_CxL[:, 2:4] = cells
    target_C = np.repeat(TARGETS, len(shifts))
    same_CxC = target_C[:, None] == target_C[None]
    pairs_CxC = ~np.eye(len(target_C), dtype=bool)

    def function(row):
        _, acts = models.forward(row.model, row.params, jnp.asarray(tokens_CxL))
        cosine_CxC = cosine_matrix(acts[VECTOR][:, -1])
        of = {target: same_CxC & pairs_CxC & (target_C == target)[:, None] for target in TARGETS}
        found = {f"within_{target}": jnp.mean(cosine_CxC, where=of[target]) for target in TARGETS}
        lowest = jnp.min(cosine_CxC, where=same_CxC & pairs_CxC, initial=1)
        highest = jnp.max(cosine_CxC, where=~same_CxC, initial=-1)
        return found | {"across": jnp.mean(cosine_CxC, where=~same_CxC), "gap": lowest - highest}

    units = dict.fromkeys((*(f"within_{target}" for target in TARGETS), "across", "gap"), "cosine")
    return Measure("equivalence", function, units, snapshots="last")


def outputs(experiment: Experiment) -> Measure:
    """Output vectors of the unequal pairs, whole and with the key hidden: two principal components, and `merged`.

    Hidden: no later position reads the key's, in either block. `merged` is the mean cosine of the mean vectors of
    (a, b) and (b, a), all means centred: 1 where the two orders of a pair are one to the model, about -0.1 where they
    are as far apart as any two pairs.
    """
    task = experiment.task
    pairs = tuple(pair for pair in task.pairs if pair[0] != pair[1])
    reverse = np.array([pairs.index((b, a)) for a, b in pairs])
    later_E = jnp.arange(KEY_POSITION + 1, task.length, dtype=jnp.int32)
    hidden = flow.mask_edges([0] * later_E.size + [1] * later_E.size, jnp.tile(later_E, 2)[None], KEY_POSITION)

    def function(row):
        tokens_BxL = pair_sequences(row.key, task, pairs, REPEATS)
        found = {}
        for name, edits in (("whole", {}), ("hidden", hidden)):
            logits_BxQxV, _ = models.forward(row.model, row.params, tokens_BxL, edits)
            components_Bx2, explained_2 = embedding.pca(logits_BxQxV[:, -1], 2)
            mean_PxV = jnp.mean(logits_BxQxV[:, -1].reshape(len(pairs), REPEATS, -1), axis=1)
            cosine_PxP = cosine_matrix(mean_PxV - jnp.mean(mean_PxV, axis=0, keepdims=True))
            found[name] = components_Bx2.reshape(len(pairs), REPEATS, 2)
            found[f"{name}_explained"] = explained_2
            found[f"{name}_merged"] = jnp.mean(cosine_PxP[np.arange(len(pairs)), reverse])
        return found

    dims, units = {}, {}
    for name in ("whole", "hidden"):
        dims |= {name: ("ordered_pair", "repeat", "component"), f"{name}_explained": ("component",)}
        units |= {name: "logit", f"{name}_explained": "share of variance", f"{name}_merged": "cosine"}
    coords = {"ordered_pair": tuple(f"{a},{b}" for a, b in pairs), "component": (1, 2)}
    return Measure("outputs", function, units, dims, coords, "last")


def pair_sequences(key, task: Composition, pairs, repeats: int):
    """tokens_BxL, every pair `repeats` times, key at `KEY_POSITION` of the values that training never shows there."""
    value_key, noise_key = jax.random.split(key)
    values = [value for value in _values(task) if value % task.modulus == KEY_POSITION]
    n = len(pairs) * repeats
    key_B = jax.random.choice(value_key, jnp.array(values, jnp.int32), (n,))
    anchors_Bx2 = jnp.repeat(jnp.array(pairs, jnp.int32), repeats, axis=0)
    noise_BxL = jax.random.randint(noise_key, (n, task.length), task.low, task.high + 1, jnp.int32)
    triples_Bx3 = jnp.concatenate([key_B[:, None], anchors_Bx2], axis=1)
    return noise_BxL.at[:, KEY_POSITION : KEY_POSITION + 3].set(triples_Bx3)


def _values(task: Composition) -> range:
    return range(task.low, task.high + 1)


def _positions(key_position_B, length: int) -> tuple:
    return key_position_B, key_position_B + 1, key_position_B + 2, jnp.full_like(key_position_B, length - 1)


def _matrix(edges: Edges, layer: int, length: int):
    """(B, L, L) int32: how often each edge of a block is among them."""
    at_L = jnp.arange(length, dtype=jnp.int32)
    of_layer = np.array(edges.layers) == layer
    reads_BxExL, read_BxExL = (p[:, of_layer, None] == at_L[None, None] for p in (edges.query_BxE, edges.key_BxE))
    return jnp.sum(reads_BxExL[..., None] & read_BxExL[:, :, None], axis=1, dtype=jnp.int32)
