"""The two one-layer attention models that theory is written for; parameters are named as in the transformer.

One head, no residual, no norm, no biases, no positions, no output matrix; the last position alone asks and answers.
Scores are q.k / sqrt(d_model).
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab.models.acts import Tape
from lab.models.layers import Embedding, Model, dense
from lab.models.transformer import MLP


class LastAttention(nn.Module):
    """What the last position collects, (B, 1, D); without `has_values` it mixes its inputs themselves."""

    d_model: int
    has_values: bool

    @nn.compact
    def __call__(self, h_BxLxD, tape: Callable):
        def project(name, h_BxLxD):
            return dense(self.d_model, self.d_model, False, name)(h_BxLxD)[:, :, None]

        q_Bx1x1xD = tape("attn/q", project("query", h_BxLxD[:, -1:]))
        k_BxLx1xD = tape("attn/k", project("key", h_BxLxD))
        v_BxLx1xD = tape("attn/v", project("value", h_BxLxD)) if self.has_values else h_BxLxD[:, :, None]

        score_Bx1x1xL = jnp.einsum("bqhd,blhd->bhql", q_Bx1x1xD, k_BxLx1xD) / math.sqrt(self.d_model)
        pattern_Bx1x1xL = tape("attn/pattern", jax.nn.softmax(tape("attn/score", score_Bx1x1xL)))
        z_Bx1x1xD = tape("attn/z", jnp.einsum("bhql,blhd->bqhd", pattern_Bx1x1xL, v_BxLx1xD))
        return z_Bx1x1xD[:, :, 0]


class AttentionBlock(nn.Module):
    d_model: int

    @nn.compact
    def __call__(self, h_BxLxD, tape: Callable):
        return LastAttention(self.d_model, has_values=False, name="attn")(h_BxLxD, tape)


class AttentionMLPBlock(nn.Module):
    d_model: int
    d_ff: int
    activation: str

    @nn.compact
    def __call__(self, h_BxLxD, tape: Callable):
        h_Bx1xD = LastAttention(self.d_model, has_values=True, name="attn")(h_BxLxD, tape)
        return MLP(self.d_model, self.d_ff, self.activation, use_bias=False, name="mlp")(h_Bx1xD, tape)


class OneLayerAttention(Model):
    """logits = sum_j softmax_j(e_s W_0 W_Q W_K^T W_0^T e_j / sqrt(D)) e_j W_0 W_1, s the last token ("Focus and
    Dilution", arXiv 2605.01199): the embeddings are their own values.

    `__call__(tokens_BxL, edits) -> (logits_Bx1xV, acts)`. W_0 is `embed/token/embedding` (VxD), W_Q and W_K are
    `block_0/attn/{query,key}/kernel` (DxD), W_1 is `head/kernel` (DxV).
    """

    vocab_size: int
    d_model: int

    n_layers = 1

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        return _answer(self, AttentionBlock(self.d_model, name="block_0"), tokens_BxL, edits)


class AttentionMLP(Model):
    """f(X) = s(Attn(X) W_1) W_2 between an embedding and a head ("From Condensation to Rank Collapse", arXiv
    2510.06954), whose theory wants s = `tanh`, or `identity` for its linear control.

    `__call__(tokens_BxL, edits) -> (logits_Bx1xV, acts)`. The paper freezes embedding and head: `optim.frozen`.
    Kernels: `block_0/attn/{query,key,value}` (DxD), `block_0/mlp/in` = W_1 (DxF), `block_0/mlp/out` = W_2 (FxD).
    """

    vocab_size: int
    d_model: int
    d_ff: int
    activation: str

    n_layers = 1

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        block = AttentionMLPBlock(self.d_model, self.d_ff, self.activation, name="block_0")
        return _answer(self, block, tokens_BxL, edits)


def _answer(model, block: nn.Module, tokens_BxL, edits: Mapping[str, Callable]):
    """The model's compact call: embedding, its one block, head."""
    tape = Tape(edits)
    h_BxLxD = tape("embed", Embedding(model.vocab_size, 0, model.d_model, name="embed")(tokens_BxL))
    h_Bx1xD = tape("final", block(h_BxLxD, lambda name, value: tape(f"block_0/{name}", value)))
    logits_Bx1xV = tape("logits", dense(model.d_model, model.vocab_size, False, "head")(h_Bx1xD))
    return logits_Bx1xV, tape.finish()
