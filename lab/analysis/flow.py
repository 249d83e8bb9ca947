"""Information flow: which position reads which, and the two circuits of arXiv 2405.05409.

Layout: the key at position k, the first anchor at k+1, the second at k+2, noise elsewhere, the answer read at
the last position. The *symmetric* circuit brings both anchors to the last position in block 0 and the key in
block 1. The *reasoning* circuit copies the key to each anchor position in block 0 and gathers the two anchor
positions at the last one in block 1.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from lab.models.transformer import MASKED


def attention_edges(acts: Mapping, n_layers: int):
    """pattern_NxBxQxL: the attention of every layer, averaged over heads; needs `readout='all'`."""
    return jnp.stack([_pattern(acts, layer) for layer in range(n_layers)])


def circuit(acts: Mapping, key_position_B):
    """Attention masses on the edges of the two circuits, averaged over the batch.

    Only sequences with k <= L-4 count: in the others the second anchor and the last token are one position.
    NaN if none is left.

    Args:
      acts: activations of a transformer of at least two blocks, with either `readout`.

    Returns:
      Scalars in [0, 1]. With A0, A1 the patterns of blocks 0 and 1 averaged over heads, rows the reader, and
      k, a, b, l the positions of key, first anchor, second anchor and last token:

        first_to_key = A0[a,k]    second_to_key = A0[b,k]    anchor_to_key = their mean
        second_to_first = A0[b,a]    last_to_anchors_first_layer = A0[l,a] + A0[l,b]
        last_to_anchors = A1[l,a] + A1[l,b]    last_to_key = A1[l,k]
        reasoning_score = sqrt(A0[a,k] A0[b,k]) * 2 sqrt(A1[l,a] A1[l,b])
        symmetric_score = 2 sqrt(A0[l,a] A0[l,b]) * A1[l,k]

      A score is 1 when its circuit takes all the attention of its readers, the two anchors being read alike
      (2 sqrt(pq) <= p + q <= 1), and 0 when any one of its edges is missing.
    """
    a0_BxQxL, a1_BxQxL = _pattern(acts, 0), _pattern(acts, 1)
    item_B = jnp.arange(key_position_B.size)
    k_B, a_B, b_B, last = key_position_B, key_position_B + 1, key_position_B + 2, -1

    a0_ak_B, a0_bk_B = a0_BxQxL[item_B, a_B, k_B], a0_BxQxL[item_B, b_B, k_B]
    a0_la_B, a0_lb_B = a0_BxQxL[item_B, last, a_B], a0_BxQxL[item_B, last, b_B]
    a1_la_B, a1_lb_B = a1_BxQxL[item_B, last, a_B], a1_BxQxL[item_B, last, b_B]
    a1_lk_B = a1_BxQxL[item_B, last, k_B]
    of_each_item = {
        "first_to_key": a0_ak_B,
        "second_to_key": a0_bk_B,
        "anchor_to_key": (a0_ak_B + a0_bk_B) / 2,
        "second_to_first": a0_BxQxL[item_B, b_B, a_B],
        "last_to_anchors_first_layer": a0_la_B + a0_lb_B,
        "last_to_anchors": a1_la_B + a1_lb_B,
        "last_to_key": a1_lk_B,
        "reasoning_score": jnp.sqrt(a0_ak_B * a0_bk_B) * 2 * jnp.sqrt(a1_la_B * a1_lb_B),
        "symmetric_score": 2 * jnp.sqrt(a0_la_B * a0_lb_B) * a1_lk_B,
    }
    counts_B = k_B <= a0_BxQxL.shape[-1] - 4
    return {name: jnp.mean(mass_B, where=counts_B) for name, mass_B in of_each_item.items()}


def mask_edges(layer: int, query_positions, key_positions) -> dict[str, Callable]:
    """An edit that cuts attention edges of one layer, in every head: -1e9 in place of the pre-softmax score.

    The softmax shares a cut edge's mass among the edges its query keeps; every query must keep one.

    Args:
      query_positions, key_positions: positions in the sequence of E edges, broadcast together: a scalar, (E,)
        for the same edges in every item, or (B, E); `key_position_B[:, None]` is one edge an item.

    Returns:
      `edits` for `lab.models.forward`; those of different layers join with `|`.
    """
    query_BxE, key_BxE = jnp.broadcast_arrays(jnp.array(query_positions, ndmin=2), jnp.array(key_positions, ndmin=2))

    def cut(score_BxHxQxL):
        n_queries, length = score_BxHxQxL.shape[-2:]
        query_1x1xQ = jnp.arange(length - n_queries, length)[None, None]
        key_1x1xL = jnp.arange(length)[None, None]
        reads_BxExQ, read_BxExL = query_BxE[..., None] == query_1x1xQ, key_BxE[..., None] == key_1x1xL
        cut_BxQxL = jnp.any(reads_BxExQ[..., None] & read_BxExL[:, :, None], axis=1)
        return jnp.where(cut_BxQxL[:, None], MASKED, score_BxHxQxL)

    return {f"block_{layer}/attn/score": cut}


def _pattern(acts: Mapping, layer: int):
    return jnp.mean(acts[f"block_{layer}/attn/pattern"], axis=1)
