"""Fused vectors: cosines of last-position states by whether their answers agree (arXiv 2405.05409).

v(x; p) is the activation at the last position of a sequence with key x and anchor pair p. A model that
reasons has v(x1; p) parallel to v(x2; q) where the answers agree; one that remembers pairs does not.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from lab.analysis.condensation import cosine_matrix
from lab.models import forward


def cells(shifts: Mapping[int, int], keys: Sequence[int], pairs: Sequence[tuple[int, int]]):
    """Every pair with every key, keys fastest: triples_Cx3 (key, first, second) and answers output_C."""
    triples_Cx3 = np.array([(key, first, second) for first, second in pairs for key in keys], np.int32)
    output_C = np.array([key + shifts[first] + shifts[second] for key, first, second in triples_Cx3.tolist()])
    return triples_Cx3, output_C


def sequences(triples_Cx3, noise_tokens_L, key_position):
    """tokens_CxL: every triple written into the same noise, its key at `key_position`."""
    tokens_CxL = jnp.tile(jnp.asarray(noise_tokens_L, jnp.int32)[None], (len(triples_Cx3), 1))
    return tokens_CxL.at[:, key_position + jnp.arange(3)].set(triples_Cx3)


def fused(model, params, shifts, keys, pairs, noise_tokens_L, key_position, act_name):
    """Mean cosine of fused vectors where answers agree, where they do not, and the difference.

    Cells with the same two anchors, in either order, are not compared: the symmetric solution merges (a, b)
    with (b, a) and would score there without reasoning.

    Args:
      shifts: anchor token -> shift; the answer of (x; a, b) is x + shifts[a] + shifts[b].
      keys, pairs: static; every key with every ordered pair makes a cell.
      noise_tokens_L: what stands around key and anchors, the same in all cells.
      key_position: position of the key, at most L-4: the last token is noise.
      act_name: the activation read, B x Q x D; `block_1/resid_mid` is the paper's X_ao^(2).

    Returns:
      `equal`, `other`, `contrast` = equal - other, and `cosine` (CxC), cells in the order of `cells`.

    Raises:
      ValueError: no two cells with different anchors have the same answer, or none have different ones.
    """
    triples_Cx3, output_C = cells(shifts, keys, pairs)
    anchors_Cx2 = np.sort(triples_Cx3[:, 1:], axis=1)
    comparable_CxC = np.any(anchors_Cx2[:, None] != anchors_Cx2[None], axis=2)
    agree_CxC = output_C[:, None] == output_C[None]
    if not (comparable_CxC & agree_CxC).any() or not (comparable_CxC & ~agree_CxC).any():
        raise ValueError(
            f"keys {list(keys)} and pairs {list(pairs)} leave nothing to compare: "
            "cells of different anchors must have both equal and unequal answers"
        )

    _, acts = forward(model, params, sequences(triples_Cx3, noise_tokens_L, key_position))
    cosine_CxC = cosine_matrix(acts[act_name][:, -1])
    equal = jnp.mean(cosine_CxC, where=comparable_CxC & agree_CxC)
    other = jnp.mean(cosine_CxC, where=comparable_CxC & ~agree_CxC)
    return {"equal": equal, "other": other, "contrast": equal - other, "cosine": cosine_CxC}
