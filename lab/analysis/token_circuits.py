"""What a head's weights say in token space: who attends to whom (QK), and what is written when it does (OV).

Read from the factors, no data: embeddings go straight into a head, and its output straight to the logits. That is the
first layer's attention, and the direct path of its output, in a model without norms and biases. With norms, each
token's scale (pre-norm: and its mean) differs; in deeper layers, all that earlier layers add is left out.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab.analysis.condensation import split_heads, split_output_heads


class Heads(NamedTuple):
    """Matrices of one layer's heads; biases are left out."""

    query_HxDxK: jax.Array
    key_HxDxK: jax.Array
    value_HxDxK: jax.Array
    out_HxKxD: jax.Array


def heads(params: Mapping, layer: int, n_heads: int) -> Heads:
    """Those of `block_<layer>` of a `lab.models.Transformer`.

    Raises:
      ValueError: no such layer, or its kernels do not divide into `n_heads`.
    """
    name = f"block_{layer}"
    if name not in params:
        raise ValueError(f"no layer {layer}; there are {', '.join(key for key in params if key.startswith('block_'))}")
    of = params[name]["attn"]
    inputs = (split_heads(of[part]["kernel"], n_heads) for part in ("query", "key", "value"))
    return Heads(*inputs, split_output_heads(of["out"]["kernel"], n_heads))


def token_embedding(params: Mapping):
    """VxD, of a `lab.models.Transformer`."""
    return params["embed"]["token"]["embedding"]


def position_embedding(params: Mapping):
    """LxD with L the model's `max_length`."""
    return params["embed"]["position"]["embedding"]


def unembedding(params: Mapping):
    """DxV: the head's kernel, or the token embedding transposed where the head is tied. Its bias is left out."""
    return params["head"]["kernel"] if "head" in params else token_embedding(params).T


def qk_circuit(of: Heads, source_IxD, target_JxD):
    """Scores (x_i W_Q)(y_j W_K)^T / sqrt(K) of query vectors x and key vectors y: HxIxJ, before mask and softmax.

    Only differences along a row matter to the softmax.
    """
    query_HxIxK = jnp.einsum("id,hdk->hik", source_IxD, of.query_HxDxK)
    key_HxJxK = jnp.einsum("jd,hdk->hjk", target_JxD, of.key_HxDxK)
    return jnp.einsum("hik,hjk->hij", query_HxIxK, key_HxJxK) / math.sqrt(of.query_HxDxK.shape[2])


def qk_parts(of: Heads, token_IxD, position_LxD):
    """The four terms of the score between t_q + p_q and t_k + p_k (anchor function, arXiv 2401.08309).

    In the first layer of a model without norm and bias they add up to `block_0/attn/score`. A *shift* head lives in
    `position_position`, a *broadcast* head in `token_token` or `position_token`.

    Returns:
      `token_token` (HxIxI), `token_position` (HxIxL, the query's token and the key's position),
      `position_token` (HxLxI), `position_position` (HxLxL). Exact up to rounding.
    """
    sides = {"token": token_IxD, "position": position_LxD}
    return {f"{q}_{k}": qk_circuit(of, sides[q], sides[k]) for q in sides for k in sides}


def ov_circuit(of: Heads, source_JxD, unembed_DxT):
    """y_j W_V W_O U: what attending to vector y_j adds to T logits, HxJxT.

    A constant along a row does not change probabilities.
    """
    value_HxJxK = jnp.einsum("jd,hdk->hjk", source_JxD, of.value_HxDxK)
    logit_HxKxT = jnp.einsum("hkd,dt->hkt", of.out_HxKxD, unembed_DxT)
    return jnp.einsum("hjk,hkt->hjt", value_HxJxK, logit_HxKxT)


def copying(of: Heads, token_SxD, unembed_DxS):
    """Does a head raise the logits of what it attends to? From the eigenvalues of E W_V W_O U (SxS) of S tokens.

    Those that are not zero are those of (W_O U)(E W_V), KxK, so no SxS matrix is made for S > K (Elhage et al.,
    "A Mathematical Framework for Transformer Circuits", 2021).

    Returns:
      score: sum_i Re l_i / sum_i |l_i| (H), in [-1, 1]; 0 for a head that writes nothing.
      positive: share of eigenvalues with Re l > 0 (H), among min(K, S) of them.
      eigenvalues: Hxmin(K, S), complex, in no order. Exact up to rounding.
    """
    left_HxSxK = jnp.einsum("sd,hdk->hsk", token_SxD, of.value_HxDxK)
    right_HxKxS = jnp.einsum("hkd,ds->hks", of.out_HxKxD, unembed_DxS)
    n_tokens, d_head = left_HxSxK.shape[1:]
    if n_tokens > d_head:
        product = jnp.einsum("hks,hsj->hkj", right_HxKxS, left_HxSxK)
    else:
        product = jnp.einsum("hsk,hkt->hst", left_HxSxK, right_HxKxS)
    eigenvalues = jax.lax.map(jnp.linalg.eigvals, product)
    size_H = jnp.sum(jnp.abs(eigenvalues), axis=1)
    return {
        "score": jnp.sum(eigenvalues.real, axis=1) / jnp.where(size_H == 0, 1, size_H),
        "positive": jnp.mean(eigenvalues.real > 0, axis=1, dtype=size_H.dtype),
        "eigenvalues": eigenvalues,
    }
