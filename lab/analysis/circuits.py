"""Effects of single attention edges on the answer, and a smallest set of edges that keeps it.

Edges are cut after the softmax: the mass of a cut edge is lost, not shared. So the edges that stay carry exactly what
they did, effects of edges do not mix through the normalization, and a query may keep no edge at all: it then adds only
the output bias to its stream. MLPs, embeddings and the residual are never cut. Edges are absolute positions: give
sequences of one layout (key and anchors in the same places).

The answer is read at the last position.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import models
from lab.analysis.flow import Edge
from lab.analysis.patching import Answer, over_batch, read_answer


class Circuit(NamedTuple):
    """A set of edges that keeps the behaviour, and what it cost to find.

    Attributes:
      score, full_score: with these edges alone, and with all of them.
      evaluations: forwards of the whole batch.
    """

    edges: frozenset[Edge]
    score: float
    full_score: float
    evaluations: int


def visible_edges(model: models.Transformer, length: int) -> list[Edge]:
    """All edges of a sequence: (layer, query, key <= query, head), N H L (L+1) / 2 of them with `readout='all'`; with
    `'last'` the last block has those of the last query only."""
    edges = []
    for layer in range(model.n_layers):
        answers_only = model.readout == "last" and layer == model.n_layers - 1
        for query in range(length - 1 if answers_only else 0, length):
            edges += [Edge(layer, query, key, head) for head in range(model.n_heads) for key in range(query + 1)]
    return edges


def keep_mask(model: models.Transformer, length: int, edges: Iterable[Edge]) -> np.ndarray:
    """keep_NxHxLxL: True at the edges, False at all others.

    Raises:
      ValueError: the model has no such edge.
    """
    keep_NxHxLxL = np.zeros((model.n_layers, model.n_heads, length, length), bool)
    for layer, query, key, head in edges:
        exists = 0 <= layer < model.n_layers and 0 <= key <= query < length
        if not exists or head is None or not 0 <= head < model.n_heads:
            raise ValueError(
                f"{Edge(layer, query, key, head)}: layers 0 to {model.n_layers - 1}, heads 0 to {model.n_heads - 1}, "
                f"positions 0 to {length - 1}, key not after query"
            )
        keep_NxHxLxL[layer, head, query, key] = True
    return keep_NxHxLxL


def keep_edges(keep_NxHxLxL) -> dict[str, Callable]:
    """Edits that cut, after the softmax, every edge where the mask is False. The mask may be traced."""

    def keep(pattern_BxHxQxL, layer):
        n_queries, length = pattern_BxHxQxL.shape[2:]
        return jnp.where(keep_NxHxLxL[layer, None, :, length - n_queries :], pattern_BxHxQxL, 0)

    return {
        f"block_{layer}/attn/pattern": functools.partial(keep, layer=layer) for layer in range(keep_NxHxLxL.shape[0])
    }


@functools.partial(jax.jit, static_argnums=0)
def kept_answer(model, params, tokens_BxL, answer_B, keep_NxHxLxL) -> Answer:
    """What the model says, (B,) each, with only the edges of the mask. One forward; another mask recompiles nothing.

    Exact up to rounding.
    """
    logits_BxQxV, _ = models.forward(model, params, tokens_BxL, keep_edges(keep_NxHxLxL))
    return read_answer(logits_BxQxV, answer_B)


def edge_effects(model, params, tokens_BxL, answer_B, edges: Sequence[Edge], chunk: int) -> Answer:
    """Change of the answer's top-1 accuracy, logit and probability when one edge is cut, all others kept.

    Negative where the edge helps. E + 1 forwards, `chunk` of them at a time: memory is that of `chunk` batches.

    Args:
      edges: E edges, known while tracing: `visible_edges(model, length)` for all.

    Returns:
      Answer of (E,) estimates: means over the batch of the paired change, cut minus full.

    Raises:
      ValueError: no such edge, or `chunk` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: at least one edge at a time")
    length = tokens_BxL.shape[1]
    keep_mask(model, length, edges)  # refuses edges that do not exist
    whole_NxHxLxL = jnp.ones((model.n_layers, model.n_heads, length, length), bool)
    full = kept_answer(model, params, tokens_BxL, answer_B, whole_NxHxLxL)

    def change(edge):
        layer, query, key, head = edge
        cut_NxHxLxL = whole_NxHxLxL.at[layer, head, query, key].set(False)
        return jax.tree.map(jnp.subtract, kept_answer(model, params, tokens_BxL, answer_B, cut_NxHxLxL), full)

    return over_batch(jax.lax.map(change, jnp.array(edges, jnp.int32), batch_size=chunk))


def smallest_set(score: Callable[[Collection], float], items: Sequence, threshold: float) -> Circuit:
    """Greedy backward elimination: drops items while score(kept) >= threshold * score(items), until none can go.

    Items are tried in the order given, the least important first. Runs of items are dropped at once, twice as many
    after each success and half as many after a failure: about |kept| log2(|items| / |kept|) evaluations. Then single
    removals are tried, over and over, until a whole round removes nothing.

    So no single item of the result can be spared. It is a smallest set in that sense only: of two redundant paths one
    is kept, which one the order decides, and sets that can only be dropped together stay. On the host.

    Args:
      score: of a collection of kept items; deterministic.

    Raises:
      ValueError: `threshold` is not in (0, 1], or the full score is not positive: there is nothing to keep.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: a share of the full score, above 0 and at most 1")
    kept = list(items)
    full_score = best = score(kept)
    evaluations = 1
    if not full_score > 0:
        raise ValueError(f"the full score is {full_score}: it must be positive for a share of it to be kept")

    def try_without(start: int, size: int) -> bool:
        nonlocal kept, best, evaluations
        trial = kept[:start] + kept[start + size :]
        found, evaluations = score(trial), evaluations + 1
        if found >= threshold * full_score:
            kept, best = trial, found
            return True
        return False

    start, size = 0, max(1, len(kept) // 2)
    while start < len(kept):
        size = min(size, len(kept) - start)
        if try_without(start, size):
            size *= 2
        elif size == 1:
            start += 1
        else:
            size //= 2
    before = None
    while before != len(kept):
        before, start = len(kept), 0
        while start < len(kept):
            start += not try_without(start, 1)
    return Circuit(frozenset(kept), best, full_score, evaluations)


def find_circuit(model, params, tokens_BxL, answer_B, threshold: float, chunk: int) -> Circuit:
    """The edges without which accuracy falls below `threshold` times the whole model's; all others are cut together.

    Edges go in the order of their effect on the answer's probability (`edge_effects`), those that help least first.
    A host loop around one compiled forward; a row at a time. Deterministic: the accuracy is that on these sequences,
    and with B of them a circuit cannot be told from one that errs on 1/B.

    Args:
      chunk: edges at a time, of `edge_effects`.

    Raises:
      ValueError: as `smallest_set`; `chunk` is below 1.
    """
    length = tokens_BxL.shape[1]
    edges = visible_edges(model, length)
    effects = _effects(model, params, tokens_BxL, answer_B, tuple(edges), chunk)
    weakest_first = np.argsort(-np.asarray(effects.probability.value), kind="stable")

    def accuracy(kept):
        keep_NxHxLxL = keep_mask(model, length, kept)
        return float(jnp.mean(kept_answer(model, params, tokens_BxL, answer_B, keep_NxHxLxL).correct))

    found = smallest_set(accuracy, [edges[i] for i in weakest_first], threshold)
    return found._replace(evaluations=found.evaluations + len(edges) + 1)


_effects = jax.jit(edge_effects, static_argnums=(0, 4, 5))
