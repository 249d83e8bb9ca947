"""An induction head written by hand: two blocks of attention that find the last token's earlier place and say what
followed it there. Every attention weight that matters is 0 or 1, so that its circuit is known exactly.

Sequences are BOS, then distinct tokens, then a repeat of the one at position k: `BOS a b c d e f b` -> `c`. Coordinates
of the stream: token, position, previous token, output. The circuit has two edges:

  block 0, head 0: k+1 reads k        every position writes its previous token
  block 1, head 1: last reads k+1     the last position looks for its own token among previous ones, else reads BOS

Head 1 of block 0 and head 0 of block 1 write nothing, and the MLPs are zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lab import models
from lab.tree import map_named

VOCAB, LENGTH = 10, 8
BOS, LAST = 0, LENGTH - 1
GAIN = 10.0  # logit of what was found
# Gap between the scores of a match and of no match. The sink is at half of it, and so at most is a position whose
# masked reader shares its mass among two keys or more: half the gap is left, and exp(-2000) is 0 in float64 as well.
GAP = 4000.0
TOKEN, POSITION = slice(0, VOCAB), slice(VOCAB, VOCAB + LENGTH)
PREVIOUS, OUTPUT = slice(POSITION.stop, POSITION.stop + VOCAB), slice(POSITION.stop + VOCAB, POSITION.stop + 2 * VOCAB)
D_MODEL, D_HEAD, N_HEADS = OUTPUT.stop, VOCAB, 2


def transformer(readout="all"):
    return models.Transformer(
        vocab_size=VOCAB, max_length=LENGTH, n_layers=2, n_heads=N_HEADS, d_model=D_MODEL, d_head=D_HEAD, d_ff=1,
        activation="relu", norm="none", use_bias=False, head_bias=False, final_norm=False, tied_head=False,
        readout=readout,
    )  # fmt: skip


def random_parameters(model, length, seed, dtype=np.float32):
    """Every leaf normal with std d_model^-1/2, biases too, norms' scales about 1; NumPy's, to compile no `init`."""
    tokens_BxL = jax.ShapeDtypeStruct((1, length), jnp.int32)
    shapes = jax.eval_shape(lambda tokens_BxL: models.init(model, jax.random.key(0), tokens_BxL), tokens_BxL)
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        mean = float(name.endswith("norm/scale"))
        return (mean + rng.standard_normal(leaf.shape) / np.sqrt(model.d_model)).astype(dtype)

    return map_named(draw, shapes)


def parameters():
    params = jax.tree.map(np.zeros_like, random_parameters(transformer(), LENGTH, 0))
    identity, score = np.eye(VOCAB), GAP * np.sqrt(D_HEAD)
    head_0, head_1 = slice(0, D_HEAD), slice(D_HEAD, 2 * D_HEAD)

    params["embed"]["token"]["embedding"][:, TOKEN] = identity
    params["embed"]["position"]["embedding"][:, POSITION] = np.eye(LENGTH)
    first, second = (params[f"block_{i}"]["attn"] for i in range(2))
    first["query"]["kernel"][POSITION, head_0] = np.eye(LENGTH, VOCAB, k=-1)  # position i asks for position i - 1
    first["key"]["kernel"][POSITION, head_0] = score * np.eye(LENGTH, VOCAB)
    first["value"]["kernel"][TOKEN, head_0] = identity
    first["out"]["kernel"][head_0, PREVIOUS] = identity
    second["query"]["kernel"][TOKEN, head_1] = identity
    second["key"]["kernel"][PREVIOUS, head_1] = score * identity
    second["key"]["kernel"][POSITION.start, head_1] = score / 2  # the sink: BOS matches every token half
    second["value"]["kernel"][TOKEN, head_1] = identity
    second["out"]["kernel"][head_1, OUTPUT] = identity
    params["head"]["kernel"][OUTPUT] = GAIN * identity
    return params


def sequences(seed, key_position_B):
    """`(tokens_BxL, answer_B)` with the repeated token first at k, 2 <= k <= L-3, an item."""
    rng = np.random.default_rng(seed)
    tokens_BxL = np.zeros((len(key_position_B), LENGTH), np.int32)
    for tokens_L, k in zip(tokens_BxL, key_position_B, strict=True):
        tokens_L[1:LAST] = rng.permutation(np.arange(1, VOCAB))[: LAST - 1]
        tokens_L[LAST] = tokens_L[k]
    return tokens_BxL, tokens_BxL[np.arange(len(tokens_BxL)), np.asarray(key_position_B) + 1]


def replaced(tokens_BxL, position_B):
    """The sequences with another token, found nowhere else in them, at one position an item."""
    changed_BxL = tokens_BxL.copy()
    for tokens_L, position in zip(changed_BxL, position_B, strict=True):
        tokens_L[position] = np.setdiff1d(np.arange(VOCAB), tokens_L)[0]
    return changed_BxL


def circuit(k):
    """(layer, query, key, head) of the edges that the answer needs."""
    return {(0, k + 1, k, 0), (1, LAST, k + 1, 1)}
