"""Condensation, then rank collapse: what theory says of `models.AttentionMLP`, computed from one row.

"From Condensation to Rank Collapse" (arXiv 2510.06954) has one output v, labels of +-1 and an exponential loss. Here
logits are s(Attn(X) W_1) W_2 U with a frozen head U (DxV) and cross-entropy, so derived anew:

At small weights attention is uniform, s is the identity and every token has probability 1/V. To leading order then
dW/dt = grad E with the energy E = tr(G^T W_V W_1 W_2), where G = <mean_j x_j^T (U (onehot - 1/V))^T> takes the place of
the paper's v. Its leading singular pair s_1 u w^T brings back the paper's equations, in time units of 1/s_1, for
`Reduced`: (u W_V, W_1, W_2 w). What outgrows the rest is W_V ~ u .., W_2 ~ .. w.

Later, at uniform attention and whatever W_V, W_1 and W_2 have become, -dL = tr(F^T d(W_Q W_K^T)) with
F = <x_s^T (C W_V g)^T> / sqrt(D), C = mean_j x_j^T (x_j - mean_l x_l) and g = -dL/dz at z = mean_j x_j W_V; to leading
order in W_Q, W_K: dW_Q/dt = F W_K and dW_K/dt = F^T W_Q (the paper's stage 2).

<> is the mean over sequences, weighted as the loss is; D width, F hidden width, s the last token. Everything here is
exact for the given sequences, up to rounding; what it says of the task has their sampling error.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab import models
from lab.analysis import condensation, focus, rank
from lab.analysis.scale import unit_rows

MATRICES = ("value", "in", "out", "query", "key")
OUTER = MATRICES[:3]
CLOSE = 0.9  # |cos| with the predicted direction from which a neuron counts as aligned; the theory's limit is 1


class Outer(NamedTuple):
    """What attention's pattern does not depend on: W_V, W_1 and W_2."""

    value_DxD: jax.Array
    in_DxF: jax.Array
    out_FxD: jax.Array


class Inner(NamedTuple):
    """What it depends on: W_Q and W_K."""

    query_DxD: jax.Array
    key_DxD: jax.Array


class Reduced(NamedTuple):
    """The paper's variables, with its index k over D value directions and F hidden neurons: W_v, W_1 and W_2."""

    value_D: jax.Array
    in_DxF: jax.Array
    out_F: jax.Array


class Pair(NamedTuple):
    """Leading singular pair of a matrix, and s_2 / s_1: how far from simple, hence from rank one, it is."""

    left_D: jax.Array
    value: jax.Array
    right_D: jax.Array
    second_ratio: jax.Array


class Context(NamedTuple):
    """What the frozen ends and B sequences are to the block between them.

    Attributes:
      inputs_BxLxD: embedded tokens.
      head_DxV: the head's kernel.
      targets_B, weights_B: what is asked at the last position, and how much it counts.
    """

    inputs_BxLxD: jax.Array
    head_DxV: jax.Array
    targets_B: jax.Array
    weights_B: jax.Array


def outer(params) -> Outer:
    block = params["block_0"]
    return Outer(block["attn"]["value"]["kernel"], block["mlp"]["in"]["kernel"], block["mlp"]["out"]["kernel"])


def inner(params) -> Inner:
    attention = params["block_0"]["attn"]
    return Inner(attention["query"]["kernel"], attention["key"]["kernel"])


def context(params, batch) -> Context:
    embedded_BxLxD = params["embed"]["token"]["embedding"][batch.tokens_BxL]
    weights_B = batch.weights_BxL[:, -1].astype(embedded_BxLxD.dtype)
    return Context(embedded_BxLxD, params["head"]["kernel"], batch.targets_BxL[:, -1], weights_B)


def leading_matrix(context: Context):
    """G (DxD), rows the inputs' side: see the module."""
    mean_BxD = jnp.mean(context.inputs_BxLxD, axis=1)
    error_BxV = _onehot(context) - 1 / context.head_DxV.shape[1]
    return _weighted(mean_BxD, error_BxV @ context.head_DxV.T, context.weights_B)


def attention_matrix(outer: Outer, context: Context, activation: str):
    """F (DxD), rows the query's side: see the module.

    The paper's F is this for one output and the identity. Holds while attention is uniform, however large the outer
    weights are; the error is of the order of the scores x_s W_Q W_K^T x_j / sqrt(D).
    """
    inputs_BxLxD = context.inputs_BxLxD
    mean_BxD = jnp.mean(inputs_BxLxD, axis=1)

    def logits(z_BxD):
        return models.ACTIVATIONS[activation](z_BxD @ outer.in_DxF) @ outer.out_FxD @ context.head_DxV

    logits_BxV, pull_back = jax.vjp(logits, mean_BxD @ outer.value_DxD)
    (push_BxD,) = pull_back(_onehot(context) - jax.nn.softmax(logits_BxV))
    wanted_BxD = push_BxD @ outer.value_DxD.T
    along_BxL = jnp.einsum("bld,bd->bl", inputs_BxLxD - mean_BxD[:, None], wanted_BxD)
    moved_BxD = jnp.einsum("bl,bld->bd", along_BxL, inputs_BxLxD) / inputs_BxLxD.shape[1]
    return _weighted(inputs_BxLxD[:, -1], moved_BxD, context.weights_B) / math.sqrt(inputs_BxLxD.shape[2])


def leading_pair(matrix_IxO) -> Pair:
    """Signs are such that left^T M right = s_1 > 0; the pair's common sign is LAPACK's. A zero matrix has ratio 0."""
    u_IxK, s_K, v_KxO = jnp.linalg.svd(matrix_IxO, full_matrices=False)
    return Pair(u_IxK[:, 0], s_K[0], v_KxO[0], s_K[1] / jnp.where(s_K[0] == 0, 1, s_K[0]))


def reduce(outer: Outer, pair: Pair) -> Reduced:
    """u W_V, W_1 and W_2 w."""
    return Reduced(pair.left_D @ outer.value_DxD, outer.in_DxF, outer.out_FxD @ pair.right_D)


def energy(reduced: Reduced):
    """E = W_v W_1 W_2, of gradient s_1 grad E in the units of the loss."""
    return reduced.value_D @ reduced.in_DxF @ reduced.out_F


def balance(outer: Outer):
    """W_V^T W_V - W_1 W_1^T (DxD) and W_1^T W_1 - W_2 W_2^T (FxF): the same for many outputs.

    Constant in gradient flow of any loss if the activation is the identity, with any attention and at any scale. With
    tanh it drifts once W_1's inputs are not small; under momentum, Adam, clipping or finite steps it drifts as well.
    """
    value_DxD, in_DxF, out_FxD = outer
    return value_DxD.T @ value_DxD - in_DxF @ in_DxF.T, in_DxF.T @ in_DxF - out_FxD @ out_FxD.T


def balance_drift(now: Outer, start: Outer):
    """|change of `balance`|_F over |W_V^T W_V| + 2 |W_1 W_1^T| + |W_2 W_2^T| now: 0 if conserved, near 1 if one grew
    alone."""

    def gram_norm(matrix):
        return jnp.linalg.norm(matrix.T @ matrix)  # W^T W and W W^T have the same norm

    moved = sum(jnp.sum(jnp.square(a - b)) for a, b in zip(balance(now), balance(start), strict=True))
    scale = gram_norm(now.value_DxD) + 2 * gram_norm(now.in_DxF) + gram_norm(now.out_FxD)
    return jnp.sqrt(moved) / jnp.where(scale == 0, 1, scale)


def condition_rates(reduced: Reduced):
    """How far the paper's condensation condition is met, each in [0, 1].

    `a1_hidden` (share of W_2,i (W_v W_1)_i > 0) and `a1_value` (of W_v,i (W_1 W_2)_i > 0); `a2_hidden` (share of pairs
    of W_2,i W_1[:, i] with positive inner product) and `a2_value` (of W_v,i W_1[i]), pairs of i with itself included.
    The paper's |A1|/d and |A2|/d^2 ask both of the same i, with W_1 square; here the indices run over F and over D.
    At independent random weights all are near 1/2.
    """
    value_D, in_DxF, out_F = reduced

    def agreeing(vectors_NxM):
        return jnp.mean(vectors_NxM @ vectors_NxM.T > 0, dtype=in_DxF.dtype)

    return {
        "a1_hidden": jnp.mean(out_F * (value_D @ in_DxF) > 0, dtype=in_DxF.dtype),
        "a1_value": jnp.mean(value_D * (in_DxF @ out_F) > 0, dtype=in_DxF.dtype),
        "a2_hidden": agreeing((in_DxF * out_F[None]).T),
        "a2_value": agreeing(in_DxF * value_D[:, None]),
    }


def alignment(vectors_NxD, direction_D, threshold):
    """Of N neurons and a direction: `mean` |cos|, and `above`, the share of them with |cos| > threshold.

    Random vectors have a mean of about sqrt(2 / (pi D)). A zero vector or direction is at cosine 0.
    """
    cosine_N = jnp.abs(unit_rows(vectors_NxD) @ unit_rows(direction_D[None])[0])
    return {"mean": jnp.mean(cosine_N), "above": jnp.mean(cosine_N > threshold, dtype=cosine_N.dtype)}


def relative_change(now, start):
    """|theta - theta_0| / |theta_0| of two trees, all leaves together."""
    moved, norm = (
        sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
        for tree in (jax.tree.map(jnp.subtract, now, start), start)
    )
    return jnp.sqrt(moved / norm)


def signals(row) -> dict:
    """All of the above of a `measure.Row` of `AttentionMLP`. Scalars, but for those of M `MATRICES`.

    Returns:
      cosine, effective_rank (M): mean |cos| between neurons (columns; rows of W_2), and `rank.effective_rank`.
      direction (MxD): leading singular vector, left but for W_2; |cos| of it between snapshots is the paper's curve.
      change_outer, change_inner: |theta - theta_0| / |theta_0|.
      aligned_value, aligned_in, aligned_out: mean |cos| of neurons with u, W_v and w; `_close`: shares above `CLOSE`.
      aligned_query, aligned_key: |cos| of the leading left singular vector of W_Q, W_K with F's left, right one.
      energy, balance_drift, a1_*, a2_*: as the functions. leading_ratio, attention_ratio: s_2 / s_1 of G and F.
      leading_value, attention_rate: s_1 of G (sets the unit of time) and F (rate of growth of W_Q, W_K).
      from_uniform: mean |a_j - 1/L|: F holds while it is small against 1/L.
    """
    now, start, held = outer(row.params), outer(row.start), context(row.params, row.batch)
    within = inner(row.params)
    matrices = (*now, *within)
    neurons = (now.value_DxD.T, now.in_DxF.T, now.out_FxD, within.query_DxD.T, within.key_DxD.T)
    pair, attention = (
        leading_pair(leading_matrix(held)),
        leading_pair(attention_matrix(now, held, row.model.activation)),
    )
    reduced = reduce(now, pair)
    directions = {"value": pair.left_D, "in": reduced.value_D, "out": pair.right_D}
    aligned = {name: alignment(each, directions[name], CLOSE) for name, each in zip(OUTER, neurons[:3], strict=True)}
    _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
    leading = jnp.stack([leading_pair(each).left_D for each in (now[0], now[1], now[2].T, *within)])
    return {
        "cosine": jnp.stack([condensation.mean_absolute_cosine(condensation.cosine_matrix(each)) for each in neurons]),
        "effective_rank": jnp.stack([rank.effective_rank(each) for each in matrices]),
        "direction": leading,
        "change_outer": relative_change(now, start),
        "change_inner": relative_change(within, inner(row.start)),
        **{f"aligned_{name}": found["mean"] for name, found in aligned.items()},
        **{f"aligned_{name}_close": found["above"] for name, found in aligned.items()},
        "aligned_query": jnp.abs(leading[3] @ attention.left_D),
        "aligned_key": jnp.abs(leading[4] @ attention.right_D),
        "energy": energy(reduced),
        "balance_drift": balance_drift(now, start),
        **condition_rates(reduced),
        "leading_value": pair.value,
        "leading_ratio": pair.second_ratio,
        "attention_rate": attention.value,
        "attention_ratio": attention.second_ratio,
        "from_uniform": focus.distance_to_uniform(acts["block_0/attn/pattern"])["mean"][0],
    }


def _onehot(context: Context):
    return jax.nn.one_hot(context.targets_B, context.head_DxV.shape[1], dtype=context.head_DxV.dtype)


def _weighted(left_BxI, right_BxO, weights_B):
    """<left^T right> (IxO)."""
    return (left_BxI * weights_B[:, None]).T @ right_BxO / jnp.sum(weights_B)
