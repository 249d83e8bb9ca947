"""Information flow: which position reads which, how to cut it, and the two circuits of arXiv 2405.05409.

An edge is (layer, query, key, head): in that block and head, position `query` reads position `key` <= `query`.

Layout of the circuits: the key at position k, the first anchor at k+1, the second at k+2, noise elsewhere, the answer
read at the last position. The *symmetric* circuit brings both anchors to the last position in block 0 and the key in
block 1. The *reasoning* circuit copies the key to each anchor position in block 0 and gathers the two anchor
positions at the last one in block 1.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab.models.transformer import MASKED


class Edge(NamedTuple):
    """In block `layer`, position `query` reads position `key`, in `head` (None: in all of them)."""

    layer: int
    query: int
    key: int
    head: int | None


def attention_edges(acts: Mapping, n_layers: int):
    """pattern_NxBxQxL: the attention of every layer, averaged over heads; needs `readout='all'`."""
    return jnp.stack([_pattern(acts, layer) for layer in range(n_layers)])


def head_edges(acts: Mapping, n_layers: int):
    """pattern_NxBxHxQxL: the attention of every layer and head; needs `readout='all'`."""
    return jnp.stack([acts[f"block_{layer}/attn/pattern"] for layer in range(n_layers)])


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


def mask_edges(layers, query_positions, key_positions, heads=None) -> dict[str, Callable]:
    """Edits that cut a set of attention edges before the softmax: -1e9 in place of their score.

    The softmax shares a cut edge's mass among the edges its query keeps. A query must keep one: with every visible
    score at -1e9 its softmax would be uniform over all L keys, the later ones included. This is refused where the
    positions are known while tracing; with traced positions it is the caller's to exclude.

    Args:
      layers: a block, or E of them, one an edge; integers known while tracing.
      query_positions, key_positions: positions in the sequence of the E edges, broadcast together: a scalar, (E,)
        for the same edges in every item, or (B, E); `key_position_B[:, None]` is one edge an item.
      heads: likewise the head of each edge; None cuts it in every head. Edges as `Edge` tuples are
        `mask_edges(*zip(*edges))`.

    Returns:
      `edits` for `lab.models.forward`. Join two with `|` only where they share no layer: the later one wins there.

    Raises:
      ValueError: what is given are no integers; known positions are outside the sequence, or read ahead; a known
        head does not exist (those two when the edits are used); a query loses every edge it has.
    """
    sets = _by_layer(layers, query_positions, key_positions, heads)
    for layer, edges in sets.items():
        _refuse_blind(layer, *edges)
    return {f"block_{layer}/attn/score": functools.partial(_mask, edges=edges) for layer, edges in sets.items()}


def indices(name: str, values):
    """`values` as an integer array of at least two axes; NumPy's where they are known while tracing, to be checked.

    Raises:
      ValueError: they are no integers.
    """
    try:
        values = np.array(values, ndmin=2)
    except jax.errors.TracerArrayConversionError:
        values = jnp.array(values, ndmin=2)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise ValueError(f"{name}={values.tolist() if isinstance(values, np.ndarray) else values}: integers")
    return values


def refuse_outside(name: str, values, start: int, stop: int):
    """Raises ValueError where values known while tracing are outside [start, stop)."""
    if isinstance(values, np.ndarray) and not ((values >= start) & (values < stop)).all():
        wrong = values[(values < start) | (values >= stop)]
        raise ValueError(f"{name}={wrong[0]}: {start} to {stop - 1}")


def _by_layer(layers, query_positions, key_positions, heads) -> dict[int, tuple]:
    """Block -> (query_BxE, key_BxE, head_BxE or None) of its edges."""
    layer_1xE = indices("layers", layers)
    columns = [indices("query_positions", query_positions), indices("key_positions", key_positions)]
    columns += [] if heads is None else [indices("heads", heads)]
    shape = np.broadcast_shapes(layer_1xE.shape, *(column.shape for column in columns))
    layer_E = np.broadcast_to(layer_1xE, (1, shape[1]))[0]
    columns = [(np if isinstance(c, np.ndarray) else jnp).broadcast_to(c, shape) for c in columns]
    query_BxE, key_BxE = columns[:2]
    if isinstance(query_BxE, np.ndarray) and isinstance(key_BxE, np.ndarray) and (key_BxE > query_BxE).any():
        ahead = key_BxE > query_BxE
        raise ValueError(f"query {query_BxE[ahead][0]} does not see key {key_BxE[ahead][0]}: 0 to itself")
    sets = {}
    for layer in np.unique(layer_E):
        chosen = [column[:, layer_E == layer] for column in columns]
        sets[int(layer)] = (*chosen, None) if heads is None else tuple(chosen)
    return sets


def _refuse_blind(layer: int, query_BxE, key_BxE, head_BxE):
    head_BxE = np.zeros(query_BxE.shape, int) if head_BxE is None else head_BxE
    if not all(isinstance(column, np.ndarray) for column in (query_BxE, key_BxE, head_BxE)):
        return
    for query_E, key_E, head_E in zip(query_BxE, key_BxE, head_BxE, strict=True):
        readers, n_cut = np.unique(np.unique([head_E, query_E, key_E], axis=1)[:2], axis=1, return_counts=True)
        for query in readers[1][n_cut == readers[1] + 1]:
            raise ValueError(
                f"query {query} of block {layer} loses all of its keys 0 to {query}: "
                "its softmax would spread over every key, later ones too; keep one"
            )


def _mask(score_BxHxQxL, edges):
    """`MASKED` at the edges; the Q queries are the last of the sequence."""
    n_heads, n_queries, length = score_BxHxQxL.shape[1:]
    for name, values, stop in zip(("query", "key", "head"), edges, (length, length, n_heads), strict=True):
        refuse_outside(name, values, 0, stop)
    query_BxE, key_BxE, head_BxE = (None if values is None else jnp.asarray(values) for values in edges)
    reads_BxExQ = query_BxE[..., None] == jnp.arange(length - n_queries, length, dtype=query_BxE.dtype)[None, None]
    read_BxExL = key_BxE[..., None] == jnp.arange(length, dtype=key_BxE.dtype)[None, None]
    cut_BxExHxQxL = (reads_BxExQ[..., None] & read_BxExL[:, :, None])[:, :, None]
    if head_BxE is not None:
        in_head_BxExH = head_BxE[..., None] == jnp.arange(n_heads, dtype=head_BxE.dtype)[None, None]
        cut_BxExHxQxL = cut_BxExHxQxL & in_head_BxExH[..., None, None]
    return jnp.where(jnp.any(cut_BxExHxQxL, axis=1), MASKED, score_BxHxQxL)


def _pattern(acts: Mapping, layer: int):
    return jnp.mean(acts[f"block_{layer}/attn/pattern"], axis=1)
