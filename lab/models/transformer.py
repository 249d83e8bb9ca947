"""Decoder-only transformer. Attention is plain einsum-softmax: the pattern is data, and second derivatives exist."""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from lab.models import products
from lab.models.acts import Tape
from lab.models.conv import Conv
from lab.models.dual_attention import Changes, augmented, mixing
from lab.models.layers import ACTIVATIONS, Embedding, LayerNorm, Model, dense, product

NORMS = ("pre", "post", "none")
READOUTS = ("last", "all")
COMPUTE_DTYPES = ("float32", "bfloat16")
CONVS = ("none", "causal")
N_TAPS = 4
MASKED = -1e9  # finite, so that a masked score has a derivative


class Attention(nn.Module):
    n_heads: int
    d_head: int
    d_model: int
    use_bias: bool
    compute_dtype: str
    conv: str
    changes: Changes

    @nn.compact
    def __call__(self, h_BxLxD, n_queries: int, tape: Callable):
        batch, length, _ = h_BxLxD.shape

        def project(name, h):
            flat = dense(self.d_model, self.n_heads * self.d_head, self.use_bias, name, self.compute_dtype)(h)
            if self.conv == "causal":
                flat = Conv(N_TAPS, name=f"{name}_conv")(flat)
            if name != "query":
                flat = augmented(flat, self.changes, f"{name}_")
            return flat.reshape(batch, h.shape[1], self.n_heads, self.d_head)

        if self.conv == "causal":  # of queries, too
            q_BxQxHxK = project("query", h_BxLxD)[:, length - n_queries :]
        else:
            q_BxQxHxK = project("query", h_BxLxD[:, length - n_queries :])
        q_BxQxHxK = tape("attn/q", q_BxQxHxK)
        k_BxLxHxK = tape("attn/k", project("key", h_BxLxD))
        v_BxLxHxK = tape("attn/v", project("value", h_BxLxD))

        # heads become part of the batch, batch axes first: twice as fast on a CPU, where products are many and small
        def by_head(a_BxTxHxK):
            return jnp.swapaxes(a_BxTxHxK, 1, 2).reshape(batch * self.n_heads, -1, self.d_head)

        q_NxQxK, k_NxLxK, v_NxLxK = map(by_head, (q_BxQxHxK, k_BxLxHxK, v_BxLxHxK))
        score_NxQxL = product(self.compute_dtype, products.scores)(q_NxQxK, k_NxLxK) / math.sqrt(self.d_head)
        score_BxHxQxL = score_NxQxL.reshape(batch, self.n_heads, n_queries, -1)
        query_position_Qx1 = jnp.arange(length - n_queries, length, dtype=jnp.int32)[:, None]
        visible_QxL = query_position_Qx1 >= jnp.arange(length, dtype=jnp.int32)[None, :]
        score_BxHxQxL = tape("attn/score", jnp.where(visible_QxL, score_BxHxQxL, MASKED))
        mix_BxHxQxL = tape("attn/pattern", products.softmax(score_BxHxQxL))
        if self.changes.mixes:
            mix_BxHxQxL = tape("attn/mix", mixing(mix_BxHxQxL, score_BxHxQxL, self.changes))

        mix_NxQxL = mix_BxHxQxL.reshape(batch * self.n_heads, n_queries, -1)
        z_NxQxK = product(self.compute_dtype, products.mix)(mix_NxQxL, v_NxLxK)
        z_BxHxQxK = z_NxQxK.reshape(batch, self.n_heads, n_queries, self.d_head)
        z_BxQxHxK = tape("attn/z", jnp.swapaxes(z_BxHxQxK, 1, 2))
        out = dense(self.n_heads * self.d_head, self.d_model, self.use_bias, "out", self.compute_dtype)
        return tape("attn/out", out(z_BxQxHxK.reshape(batch, n_queries, -1)))


class MLP(nn.Module):
    d_model: int
    d_ff: int
    activation: str
    use_bias: bool
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, h_BxQxD, tape: Callable):
        pre_BxQxF = tape("mlp/pre", dense(self.d_model, self.d_ff, self.use_bias, "in", self.compute_dtype)(h_BxQxD))
        post_BxQxF = tape("mlp/post", ACTIVATIONS[self.activation](pre_BxQxF))
        return tape("mlp/out", dense(self.d_ff, self.d_model, self.use_bias, "out", self.compute_dtype)(post_BxQxF))


class Block(nn.Module):
    """Attention, then an MLP if it has units, each with a residual; norm before each (`pre`), after each residual
    (`post`) or absent."""

    n_heads: int
    d_head: int
    d_model: int
    d_ff: int
    activation: str
    norm: str
    use_bias: bool
    compute_dtype: str
    conv: str
    changes: Changes

    @nn.compact
    def __call__(self, h_BxLxD, n_queries: int, tape: Callable):
        attention = Attention(
            self.n_heads, self.d_head, self.d_model, self.use_bias, self.compute_dtype, self.conv, self.changes,
            name="attn",
        )  # fmt: skip

        def norm(where, name, h):
            return LayerNorm(name=name)(h) if self.norm == where else h

        h_BxLxD = tape("resid_pre", h_BxLxD)
        attn_out_BxQxD = attention(norm("pre", "attn_norm", h_BxLxD), n_queries, tape)
        h_BxQxD = h_BxLxD[:, h_BxLxD.shape[1] - n_queries :] + attn_out_BxQxD
        h_BxQxD = tape("resid_mid", norm("post", "attn_norm", h_BxQxD))
        if not self.d_ff:
            return tape("resid_post", h_BxQxD)
        mlp = MLP(self.d_model, self.d_ff, self.activation, self.use_bias, self.compute_dtype, name="mlp")
        h_BxQxD = h_BxQxD + mlp(norm("pre", "mlp_norm", h_BxQxD), tape)
        return tape("resid_post", norm("post", "mlp_norm", h_BxQxD))


class Transformer(Model):
    """`__call__(tokens_BxL, edits) -> (logits_BxQxV, acts)`; activation names are listed in `lab.models.acts`.

    Attributes:
      readout: `last`: logits at the last position only (Q = 1), and the last block computes nothing else, which is
        all a loss on the answer reads; `all`: Q = L. Both have the same parameters and agree at the last position.
      max_length: positions, each with an embedding; 0: none, and any length: order is known by the causal mask alone,
        so it does not matter at which position a sequence begins, nor at which an answer is asked for.
      d_ff: hidden units of the MLP; 0: blocks of attention alone, without the MLP and its norm.
      norm: `pre`, `post` or `none`.
      final_norm: a LayerNorm before the head.
      use_bias: biases in attention and MLP.
      head_bias: one in the head.
      tied_head: the head is the token embedding.
      compute_dtype: `bfloat16`: matrix products inside blocks are of operands rounded to it. Parameters, the residual
        stream, LayerNorm, softmax and the head stay what they are with `float32`, which is: as precise as the
        parameters; results of those products and gradients of their kernels are rounded, in that dtype. So all
        activations are recorded, edited and cached in the parameters' dtype. ("Mixed Precision Training", arXiv
        1710.03740; bfloat16 has float32's range and needs no scaling of the loss.)
      conv: `causal`: queries, keys and values go through a causal convolution of four taps and SiLU, as the input of a
        Mamba block does ("Achilles' Heel of Mamba", arXiv 2509.17514); the init rate does not act on its taps.
      alpha, beta, n_negatives, augment, d_augment: see `lab.models.dual_attention`; its MLPs have this `activation` and
        the rate of MLPs.

    Raises:
      ValueError: a size that is too small; when called (or traced), more tokens than `max_length`.
    """

    vocab_size: int
    max_length: int
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_ff: int
    activation: str
    norm: str
    use_bias: bool
    head_bias: bool
    final_norm: bool
    tied_head: bool
    readout: str
    compute_dtype: str = "float32"
    conv: str = "none"
    alpha: float = 0.0
    beta: float = 0.0
    n_negatives: int = 1
    augment: str = "none"
    d_augment: int = 32

    least = {"max_length": 0, "d_ff": 0}

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        length = tokens_BxL.shape[1]
        if self.max_length and length > self.max_length:
            raise ValueError(f"{length} tokens: the model has positions for model.max_length={self.max_length}")
        tape = Tape(edits)
        embed = Embedding(self.vocab_size, self.max_length, self.d_model, name="embed")
        changes = Changes(self.alpha, self.beta, self.n_negatives, self.augment, self.d_augment, self.activation)
        h = tape("embed", embed(tokens_BxL))

        for i in range(self.n_layers):
            answers_only = self.readout == "last" and i == self.n_layers - 1
            n_queries = 1 if answers_only else length
            block = Block(
                self.n_heads, self.d_head, self.d_model, self.d_ff, self.activation, self.norm, self.use_bias,
                self.compute_dtype, self.conv, changes, name=f"block_{i}",
            )  # fmt: skip
            h = block(h, n_queries, lambda name, value, i=i: tape(f"block_{i}/{name}", value))

        if self.final_norm:
            h = LayerNorm(name="final_norm")(h)
        h_BxQxD = tape("final", h)
        if self.tied_head:
            logits_BxQxV = embed.attend(h_BxQxD)
        else:
            logits_BxQxV = dense(self.d_model, self.vocab_size, self.head_bias, "head")(h_BxQxD)
        return tape("logits", logits_BxQxV), tape.finish()
