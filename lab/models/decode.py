"""Greedy decoding with a key-value cache, inside jit: batched, with prompts of different lengths, vmappable over rows.

The transformer's own code runs one token at a time: what it attends to is put in its place by edits of its
activations. Keys and values become those of the cache with the new ones written in, the score is masked where a
column holds nothing, and the embedding gets the token's own position; of a decoder, queries and keys are rotated to it.
So there is no second transformer to keep equal
to the first, and whatever `lab.models.Transformer` learns to do, decoding does. A Mamba has a state instead, see
`lab.models.recurrent`.

Prompts start at position 0, as in training, and are padded at their end; what is generated follows the prompt's last
token in position, and stands in cache columns after the longest prompt, the same ones for all sequences: attention
knows no order but what is in the embeddings.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab.models import recurrent
from lab.models.decoder import Decoder, rotate
from lab.models.mamba import Mamba1, Mamba2
from lab.models.recurrent import State
from lab.models.transformer import MASKED, Transformer

SILENT = -1  # in place of a token, where a sequence says nothing more


class Cache(NamedTuple):
    """What N layers remember of B sequences, in C columns; layers apart, so that each is written in place.

    Attributes:
      keys_N, values_N: of each layer, (B, H, C, K), in the model's dtype; H heads of keys.
      visible_BxC: bool, which columns hold a token of the sequence.
      position_B: int32, position of the next token.
      column: int32, where its key and value will be written.
    """

    keys_N: tuple[jax.Array, ...]
    values_N: tuple[jax.Array, ...]
    visible_BxC: jax.Array
    position_B: jax.Array
    column: jax.Array


Decoded = Transformer | Decoder | Mamba1 | Mamba2


def prefill(model: Decoded, params, prompt_BxL, prompt_length_B, n_more: int) -> tuple[jax.Array, Cache | State]:
    """One forward pass over all prompts, and a cache with room for `n_more` tokens (a state, of a Mamba).

    Args:
      prompt_BxL: int32 tokens, each prompt in its first `prompt_length_B` (1 to L) places; the others are not read.

    Returns:
      logits_BxV after each prompt's last token, and the cache.

    Raises:
      ValueError: L exceeds the positions that the model has; a transformer with a convolution, or with alpha or beta.
    """
    if isinstance(model, recurrent.Mamba):
        return recurrent.prefill(model, params, prompt_BxL, prompt_length_B)
    if isinstance(model, Transformer) and model.conv != "none":
        raise ValueError(f"model.conv={model.conv!r}: decoding keeps no window of a convolution; one of none")
    for name in ("alpha", "beta"):
        if getattr(model, name, 0):
            raise ValueError(f"model.{name}={getattr(model, name)}: decoding does not know a token's own place; use 0")
    n_prompt = prompt_BxL.shape[1]
    if model.max_length and n_prompt > model.max_length:
        raise ValueError(f"prompts of {n_prompt} tokens: the model has positions for {model.max_length}")
    last_Bx1x1 = (prompt_length_B - 1).astype(jnp.int32)[:, None, None]
    edits = {"final": lambda h_BxLxD: jnp.take_along_axis(h_BxLxD, last_Bx1x1, axis=1)}  # the head reads one position
    logits_Bx1xV, acts = model.clone(readout="all").apply({"params": params}, prompt_BxL, edits)

    def with_room(name):
        of_layers = (jnp.swapaxes(acts[f"block_{i}/attn/{name}"], 1, 2) for i in range(model.n_layers))
        return tuple(jnp.pad(a_BxHxLxK, ((0, 0), (0, 0), (0, n_more), (0, 0))) for a_BxHxLxK in of_layers)

    visible_BxC = jnp.arange(n_prompt + n_more, dtype=jnp.int32)[None] < prompt_length_B[:, None]
    position_B = prompt_length_B.astype(jnp.int32)
    return logits_Bx1xV[:, 0], Cache(with_room("k"), with_room("v"), visible_BxC, position_B, jnp.int32(n_prompt))


def extend(model: Decoded, params, cache: Cache | State, token_B) -> tuple[jax.Array, Cache | State]:
    """One more token for every sequence: logits_BxV after it, and the cache that holds it.

    The caller sees to it that there is room, and a position (`cache.position_B` below `model.max_length`): after the
    last position the tokens are read as if they stood there.
    """
    if isinstance(model, recurrent.Mamba):
        return recurrent.extend(model, params, cache, token_B)
    columns_C = jnp.arange(cache.visible_BxC.shape[1], dtype=jnp.int32)
    visible_BxC = cache.visible_BxC | (columns_C == cache.column)[None]

    def placed(a_Bx1xHxK):
        """As at the token's own position, where the model had the first."""
        if not isinstance(model, Decoder):
            return a_Bx1xHxK
        return rotate(a_Bx1xHxK, cache.position_B[:, None], model.rope_theta, model.n_rotated)

    def written_into(old_BxHxCxK, of_token=lambda value: value):
        def edit(new_Bx1xHxK):
            new_BxHx1xK = jnp.swapaxes(of_token(new_Bx1xHxK), 1, 2)
            whole = jax.lax.dynamic_update_slice_in_dim(old_BxHxCxK, new_BxHx1xK, cache.column, axis=2)
            return jnp.swapaxes(whole, 1, 2)  # as the model has them; it swaps them back, and neither is computed

        return edit

    def mask(score_BxHx1xC):
        return jnp.where(visible_BxC[:, None, None], score_BxHx1xC, MASKED)

    edits = {}
    if isinstance(model, Transformer) and model.max_length:
        embed, place_B = params["embed"], jnp.minimum(cache.position_B, model.max_length - 1)
        edits["embed"] = lambda _: (embed["token"]["embedding"][token_B] + embed["position"]["embedding"][place_B])[
            :, None
        ]
    for i in range(model.n_layers):
        edits |= {
            f"block_{i}/attn/q": placed,
            f"block_{i}/attn/k": written_into(cache.keys_N[i], placed),
            f"block_{i}/attn/v": written_into(cache.values_N[i]),
            f"block_{i}/attn/score": mask,
        }
    logits_Bx1xV, acts = model.apply({"params": params}, token_B[:, None], edits)
    keys_N, values_N = (
        tuple(jnp.swapaxes(acts[f"block_{i}/attn/{name}"], 1, 2) for i in range(model.n_layers)) for name in "kv"
    )
    return logits_Bx1xV[:, 0], Cache(keys_N, values_N, visible_BxC, cache.position_B + 1, cache.column + 1)


def greedy(model: Decoded, params, prompt_BxL, prompt_length_B, n_new: int, stop_token):
    """What the model says after each prompt, always its most probable token, until it says `stop_token`.

    All `n_new` steps are computed whatever is said, since a loop that ends early would, under vmap, copy the cache at
    every step: do not ask for more than the longest answer.

    Args:
      prompt_BxL, prompt_length_B: see `prefill`.
      n_new: at most so many tokens.
      stop_token: an integer, traced or not.

    Returns:
      `(tokens_BxN, done_B)`: int32, up to and with `stop_token`, -1 after it; bool, whether it was said. A sequence
      that has no positions left says nothing more either, and is not done.

    Raises:
      ValueError: as `prefill`, or `n_new` below 1.
    """
    if n_new < 1:
        raise ValueError(f"n_new={n_new}: must be at least 1")
    logits_BxV, cache = prefill(model, params, prompt_BxL, prompt_length_B, n_new - 1)

    def say(logits_BxV, speaking_B, cache):
        if model.max_length:
            speaking_B = speaking_B & (cache.position_B <= model.max_length)  # the logits are of a position it has
        said_B = jnp.where(speaking_B, jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32), SILENT)
        return said_B, speaking_B & (said_B != stop_token)

    def step(carry, _):
        said_B, speaking_B, cache = carry
        logits_BxV, cache = extend(model, params, cache, jnp.maximum(said_B, 0))  # the silent are fed any token
        said_B, speaking_B = say(logits_BxV, speaking_B, cache)
        return (said_B, speaking_B, cache), said_B

    first_B, speaking_B = say(logits_BxV, jnp.ones(prompt_length_B.shape, bool), cache)
    _, later_NxB = jax.lax.scan(step, (first_B, speaking_B, cache), length=n_new - 1)
    tokens_BxN = jnp.concatenate([first_B[:, None], later_NxB.T], axis=1)
    return tokens_BxN, jnp.any(tokens_BxN == stop_token, axis=1)


def exact_match(model: Decoded, params, task, batch):
    """(B) float32: 1 where the model, left to itself after the question, says the answer and nothing else.

    Word for word up to and with the end token. Greedy decoding of an answer is right if and only if each of its tokens
    is the likeliest after the true ones before it: up to rounding where two tokens are equally likely, this is
    `lab.tasks.answers.exact_match`, which costs one forward pass. What only decoding tells is what wrong answers are.

    Args:
      task: has `end`, its end token, and `longest_answer`, in tokens with the end.
      batch: as drawn: weights are positive on the targets that answer, the last of which is `end`.
    """
    is_answer_BxL = batch.weights_BxL > 0
    prompt_length_B = jnp.argmax(is_answer_BxL, axis=1).astype(jnp.int32) + 1  # the last of them asks for the first
    n_new = min(task.longest_answer, batch.tokens_BxL.shape[1])
    said_BxN, _ = greedy(model, params, batch.tokens_BxL, prompt_length_B, n_new, task.end)
    place_BxN = prompt_length_B[:, None] - 1 + jnp.arange(n_new, dtype=jnp.int32)[None]
    place_BxN = jnp.minimum(place_BxN, is_answer_BxL.shape[1] - 1)
    right_BxN = said_BxN == jnp.take_along_axis(batch.targets_BxL, place_BxN, axis=1)
    asked_BxN = jnp.arange(n_new, dtype=jnp.int32)[None] < jnp.sum(is_answer_BxL, axis=1, dtype=jnp.int32)[:, None]
    return jnp.all(right_BxN | ~asked_BxN, axis=1).astype(jnp.float32)
