"""Losses as functions of parameters and minibatches, for curvature and flatness.

A *loss* is any function `(params, batch) -> (sum, weight)`: a loss summed over tokens or examples, and how many there
were. Sums are added up over minibatches before they are divided, so that a mean weighs every token alike however the
data are cut. The parameters may be any pytree, the batch as well.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lab import losses, models
from lab.tree import named_leaves

Loss = Callable[..., tuple[jax.Array, jax.Array]]


def logits(model) -> Callable:
    """`(params, batch) -> logits_BxQxV` of a model; a classifier's (B, V) are those of one position."""
    return lambda params, batch: losses.at_positions(models.forward(model, params, batch.tokens_BxL)[0])


def score(model, score_of: Callable) -> Loss:
    """`(params, batch) -> (sum, weight)` of a model of ours, from one of its logits: the three that follow."""
    of = logits(model)
    return lambda params, batch: score_of(of(params, batch), batch)


def answer_loss_of(logits_BxQxV, batch):
    """Cross-entropy in nats where the batch carries weight: the answer's token in the composition task."""
    return losses.cross_entropy(logits_BxQxV, batch.targets_BxL, batch.weights_BxL)


def answer_accuracy_of(logits_BxQxV, batch):
    """Right answers, as weighted in the batch. NaN logits are wrong. It has no gradient."""
    n_positions = logits_BxQxV.shape[1]
    targets_BxQ, weights_BxQ = (losses.last(v, n_positions) for v in (batch.targets_BxL, batch.weights_BxL))
    right_BxQ = jnp.argmax(logits_BxQxV, axis=-1).astype(targets_BxQ.dtype) == targets_BxQ
    finite_BxQ = jnp.all(~jnp.isnan(logits_BxQxV), axis=-1)
    return jnp.sum(weights_BxQ, where=right_BxQ & finite_BxQ), jnp.sum(weights_BxQ)


def answer_loss(model) -> Loss:
    """`answer_loss_of` a model of ours."""
    return score(model, answer_loss_of)


def own_loss(model, task) -> Loss:
    """The loss that a task has of its own, `Task.mean_loss`: a mean by the weights (B,) of its batches."""

    def loss(params, batch):
        weight = jnp.sum(batch.weights_BxL)
        return task.mean_loss(models.forward(model, params, batch.tokens_BxL)[0], batch) * weight, weight

    return loss


def minibatches(batch, size: int):
    """The batch cut into M minibatches: every leaf (N, ...) becomes (M, size, ...); as one where size >= N.

    Raises:
      ValueError: `size` is below 1 or does not divide N: what is left over would be lost; leaves differ in N.
    """
    counts = sorted({leaf.shape[0] for leaf in jax.tree.leaves(batch)})
    if len(counts) != 1:
        raise ValueError(f"leaves of the batch hold {counts} examples: want one number of them")
    (n,) = counts
    if size < 1:
        raise ValueError(f"minibatches of {size}: at least 1 example each")
    size = min(size, n)
    if n % size:
        raise ValueError(f"minibatches of {size} do not divide {n} examples")
    return jax.tree.map(lambda leaf: leaf.reshape(n // size, size, *leaf.shape[1:]), batch)


def weighted_minibatches(batch, size: int):
    """A task's batch cut into minibatches of at most `size` sequences, as even as can be, whatever their number.

    The last one is filled up with sequences of weight 0. So it is for losses that weigh as the batch says, such as
    `answer_loss_of` and `answer_accuracy_of`: to their sums these add nothing.

    Raises:
      ValueError: `size` is below 1.
    """
    n = len(batch.weights_BxL)
    if size < 1 or n % min(size, n) == 0:
        return minibatches(batch, size)
    n_minibatches = math.ceil(n / size)
    size = math.ceil(n / n_minibatches)
    spare = n_minibatches * size - n
    filled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:spare]]), batch)
    return minibatches(filled._replace(weights_BxL=filled.weights_BxL.at[n:].set(0)), size)


def over_minibatches(function: Callable, batches):
    """`function(batch)` summed over the minibatches, one after the other: memory is that of one."""
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    if jax.tree.leaves(batches)[0].shape[0] == 1:
        return function(first)

    def add(total, batch):
        return jax.tree.map(jnp.add, total, function(batch)), None

    nothing = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(function, first))
    return jax.lax.scan(add, nothing, batches)[0]


def mean_loss(loss: Loss, params, batches):
    """Sum over all minibatches divided by their whole weight."""
    total, weight = over_minibatches(lambda batch: loss(params, batch), batches)
    return total / weight


def everything(name: str) -> bool:
    """The choice of all parameters."""
    return True


def flatten(params, where: Callable[[str], bool] = everything):
    """`(vector_P, rebuild)`: the leaves whose name `where` accepts as one vector, and `rebuild(vector_P) -> params`
    with the other leaves as they are. Names are those of `lab.tree`: `block_0/attn/query/kernel`.

    Raises:
      ValueError: no leaf is chosen.
    """
    leaves, structure = jax.tree.flatten(params)
    chosen = [i for i, name in enumerate(named_leaves(params)) if where(name)]
    if not chosen:
        raise ValueError(f"no parameter is chosen; there are {', '.join(named_leaves(params))}")
    vector_P, unravel = ravel_pytree([leaves[i] for i in chosen])

    def rebuild(vector_P):
        replaced = list(leaves)
        for i, leaf in zip(chosen, unravel(vector_P), strict=True):
            replaced[i] = leaf
        return jax.tree.unflatten(structure, replaced)

    return vector_P, rebuild
