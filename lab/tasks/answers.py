"""Sequences that hold an answer: how they become a batch, and how what a model answers is scored."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab.tasks.task import Batch


def pack(sequence_BxM, is_answer_BxM, info: Mapping[str, jax.Array]) -> Batch:
    """The batch of sequences x_0 ... x_L (int32, M = L + 1, `PAD` after the end of each) and of which tokens answer.

    The first token is no target: an answer cannot begin there.
    """
    weights_BxL = is_answer_BxM[:, 1:].astype(jnp.float32)
    return Batch(sequence_BxM[:, :-1], sequence_BxM[:, 1:], weights_BxL, dict(info))


def at_the_end(tokens_BxL, answer_B, info: Mapping[str, jax.Array]) -> Batch:
    """The batch of sequences (int32) that are answered at their last position, by one token each (int32)."""
    targets_BxL = jnp.concatenate([tokens_BxL[:, 1:], answer_B[:, None]], axis=1)
    weights_BxL = jnp.zeros(tokens_BxL.shape, jnp.float32).at[:, -1].set(1.0)
    return Batch(tokens_BxL, targets_BxL, weights_BxL, dict(info))


def last_accuracy(logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
    """`accuracy` of the answer at the last position, float32."""
    predicted_B = jnp.argmax(logits_BxQxV[:, -1], axis=-1).astype(jnp.int32)
    return {"accuracy": jnp.mean(predicted_B == batch.targets_BxL[:, -1], dtype=jnp.float32)}


def score(logits_BxLxV, batch: Batch) -> dict[str, jax.Array]:
    """`accuracy` (`exact_match` of answers) and `token_accuracy` (share of answer tokens), of a batch as drawn.

    Raises:
      ValueError: as `token_correct`.
    """
    correct_BxL = token_correct(logits_BxLxV, batch).astype(batch.weights_BxL.dtype)
    return {
        "accuracy": jnp.mean(exact_match(logits_BxLxV, batch)),
        "token_accuracy": jnp.sum(correct_BxL * batch.weights_BxL) / jnp.sum(batch.weights_BxL),
    }


def token_correct(logits_BxLxV, batch: Batch):
    """(B, L) bool: where the likeliest token is the target.

    Raises:
      ValueError: logits at fewer positions than the batch has, among which some of an answer might be missing.
    """
    n_positions, length = logits_BxLxV.shape[1], batch.targets_BxL.shape[1]
    if n_positions != length:
        raise ValueError(
            f"logits at {n_positions} of {length} positions: answers may lie at any; use model.readout='all'"
        )
    return jnp.argmax(logits_BxLxV, axis=-1).astype(batch.targets_BxL.dtype) == batch.targets_BxL


def exact_match(logits_BxLxV, batch: Batch):
    """(B) float32: 1 where every token of the answer is right given the true ones before it, of a batch as drawn.

    Then, and only then, would greedy decoding have given that answer too.

    Raises:
      ValueError: as `token_correct`.
    """
    return jnp.all(token_correct(logits_BxLxV, batch) | (batch.weights_BxL == 0), axis=1).astype(jnp.float32)


def last_answer_token(value_BxL, batch: Batch):
    """The entries (B) at each sequence's last answer token."""
    length = batch.weights_BxL.shape[1]
    place_BxL = jnp.where(batch.weights_BxL > 0, jnp.arange(length, dtype=jnp.int32)[None], 0)
    return jnp.take_along_axis(value_BxL, jnp.max(place_BxL, axis=1)[:, None], axis=1)[:, 0]


def plausible(logits_BxLxV, batch: Batch):
    """Share of the answers whose last token is among `info["candidates_BxC"]`, float32."""
    predicted_BxL = jnp.argmax(logits_BxLxV, axis=-1).astype(jnp.int32)
    predicted_B = last_answer_token(predicted_BxL, batch)
    return jnp.mean(jnp.any(predicted_B[:, None] == batch.info["candidates_BxC"], axis=1), dtype=jnp.float32)
