"""The decoder of today's language models: rotary positions, RMSNorm, gated MLP, grouped heads, one scan over layers.

With `scan_layers` the N blocks are one program, compiled once whatever N: their parameters are stacked, every leaf
under `blocks` with a first axis over layers (`lab.matrices` sees N matrices). Else they are `block_0`, `block_1`, ...;
`stack` and `unstack` turn one form into the other. Edits of a block's activations are functions of one layer, so a
scanned model that is edited runs layer by layer, and compiles as one that is not scanned.

| | Llama | GPT-NeoX, Pythia |
|---|---|---|
| `norm_kind` | `rms` | `layer` |
| `gated` | True: W_out(act(W_gate h) * W_in h) | False: W_out act(W_in h + b) + b |
| `parallel` | False | True: h + attn(norm h) + mlp(norm' h) |
| `rope_share` | 1 | 0.25: of every head's channels, that are rotated |
| `use_bias` | False | True |
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab import limits, tree
from lab.models import products
from lab.models.acts import Tape
from lab.models.layers import ACTIVATIONS, Embedding, LayerNorm, Model, RMSNorm, dense, product
from lab.models.transformer import MASKED, MLP

NORM_KINDS = {"rms": RMSNorm, "layer": LayerNorm}
NO_EDITS: Mapping[str, Callable] = {}


def rotate(x_BxTxHxK, position_BxT, theta: float, n_rotated: int):
    """Channels i and i + n/2 of the first n turned by the angle position theta^(-2i/n) ("RoFormer", arXiv 2104.09864);
    at position 0 nothing changes."""
    if not n_rotated:
        return x_BxTxHxK
    half = n_rotated // 2
    rate_P = 1 / theta ** (2 * jnp.arange(half, dtype=jnp.float32) / n_rotated)
    angle_BxTx1xP = position_BxT.astype(jnp.float32)[..., None, None] * rate_P[None, None, None]
    cos, sin = (f(angle_BxTx1xP).astype(x_BxTxHxK.dtype) for f in (jnp.cos, jnp.sin))
    first, second, rest = jnp.split(x_BxTxHxK, [half, n_rotated], axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a block is made of; fields as the decoder's, which has them all."""

    n_heads: int
    n_key_heads: int
    d_model: int
    d_head: int
    d_ff: int
    activation: str
    gated: bool
    norm_kind: str
    norm_eps: float
    rope_theta: float
    n_rotated: int
    use_bias: bool
    parallel: bool
    sandwich_norm: bool
    qk_norm: bool
    compute_dtype: str

    def norm(self, name: str) -> nn.Module:
        return NORM_KINDS[self.norm_kind](self.norm_eps, name=name)

    def dense(self, d_in: int, features: int, name: str) -> nn.Module:
        return dense(d_in, features, self.use_bias, name, self.compute_dtype)


class GroupedAttention(nn.Module):
    """Causal attention; of R queries a key, those of heads g R to g R + R - 1 read keys and values of head g."""

    layer: Layer

    @nn.compact
    def __call__(self, h_BxLxD, tape: Callable):
        at, (batch, length, _) = self.layer, h_BxLxD.shape
        position_1xL = jnp.arange(length, dtype=jnp.int32)[None]

        def project(name, n_heads):
            flat = at.dense(at.d_model, n_heads * at.d_head, name)(h_BxLxD)
            return flat.reshape(batch, length, n_heads, at.d_head)

        def placed(name, a_BxLxHxK):
            normed = at.norm(f"{name}_norm")(a_BxLxHxK) if at.qk_norm else a_BxLxHxK
            return rotate(normed, position_1xL, at.rope_theta, at.n_rotated)

        def by_group(a_BxLxHxK):  # the heads of a group and their tokens are one axis, groups part of the batch
            return jnp.swapaxes(a_BxLxHxK, 1, 2).reshape(batch * at.n_key_heads, -1, at.d_head)

        q_BxLxHxK = tape("attn/q", placed("query", project("query", at.n_heads)))
        k_BxLxGxK = tape("attn/k", placed("key", project("key", at.n_key_heads)))
        v_BxLxGxK = tape("attn/v", project("value", at.n_key_heads))
        q_NxTxK, k_NxLxK, v_NxLxK = map(by_group, (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK))

        score_NxTxL = product(at.compute_dtype, products.scores)(q_NxTxK, k_NxLxK) / math.sqrt(at.d_head)
        score_BxHxLxL = score_NxTxL.reshape(batch, at.n_heads, length, -1)
        visible_LxL = position_1xL <= position_1xL.T
        score_BxHxLxL = tape("attn/score", jnp.where(visible_LxL, score_BxHxLxL, MASKED))
        pattern_BxHxLxL = tape("attn/pattern", products.softmax(score_BxHxLxL))

        pattern_NxTxL = pattern_BxHxLxL.reshape(*q_NxTxK.shape[:2], -1)
        z_NxTxK = product(at.compute_dtype, products.mix)(pattern_NxTxL, v_NxLxK)
        z_BxHxLxK = z_NxTxK.reshape(batch, at.n_heads, length, at.d_head)
        z_BxLxHxK = tape("attn/z", jnp.swapaxes(z_BxHxLxK, 1, 2))
        out = at.dense(at.n_heads * at.d_head, at.d_model, "out")
        return tape("attn/out", out(z_BxLxHxK.reshape(batch, length, -1)))


class GatedMLP(nn.Module):
    """W_out(act(W_gate h) * W_in h): with SiLU, SwiGLU (arXiv 2002.05202)."""

    layer: Layer

    @nn.compact
    def __call__(self, h_BxLxD, tape: Callable):
        at = self.layer
        pre_BxLxF = tape("mlp/pre", at.dense(at.d_model, at.d_ff, "gate")(h_BxLxD))
        up_BxLxF = tape("mlp/up", at.dense(at.d_model, at.d_ff, "in")(h_BxLxD))
        post_BxLxF = tape("mlp/post", ACTIVATIONS[at.activation](pre_BxLxF) * up_BxLxF)
        return tape("mlp/out", at.dense(at.d_ff, at.d_model, "out")(post_BxLxF))


class DecoderBlock(nn.Module):
    """One layer, `h_BxLxD -> (h_BxLxD, acts)`; names of acts and edits are those within the block."""

    layer: Layer

    @nn.compact
    def __call__(self, h_BxLxD, edits: Mapping[str, Callable] = NO_EDITS):
        at, tape = self.layer, Tape(edits)
        if at.gated:
            mlp = GatedMLP(at, name="mlp")
        else:
            mlp = MLP(at.d_model, at.d_ff, at.activation, at.use_bias, at.compute_dtype, name="mlp")

        def sandwiched(name, out_BxLxD):
            return at.norm(name)(out_BxLxD) if at.sandwich_norm else out_BxLxD

        h_BxLxD = tape("resid_pre", h_BxLxD)
        attn_BxLxD = GroupedAttention(at, name="attn")(at.norm("attn_norm")(h_BxLxD), tape)
        mid_BxLxD = tape("resid_mid", h_BxLxD + sandwiched("attn_out_norm", attn_BxLxD))
        mlp_BxLxD = mlp(at.norm("mlp_norm")(h_BxLxD if at.parallel else mid_BxLxD), tape)
        return tape("resid_post", mid_BxLxD + sandwiched("mlp_out_norm", mlp_BxLxD)), tape.acts


class Decoder(Model):
    """`__call__(tokens_BxL, edits) -> (logits_BxQxV, acts)`; activation names are listed in `lab.models.acts`.

    Attributes:
      max_length: of the sequences it reads, for whoever makes data; 0: any. It has no parameters for positions.
      n_kv_heads: heads of keys and values, each read by n_heads / n_kv_heads queries; 0: as many as `n_heads`.
      gated, norm_kind, parallel, rope_share, use_bias: see the module's table; norms stand before attention, MLP and
        head.
      norm_eps: epsilon of every norm. A stream of size d^-gamma is shrunk to (1 + norm_eps d^(2 gamma))^-1/2.
      rope_theta: base of the rotary angles.
      tied_head: the head is the token embedding.
      embed_norm: a norm after the embedding. sandwich_norm: after attention and MLP, too, before they are added.
        qk_norm: of every head's queries and keys, before they are rotated.
      scan_layers: one program for all layers. remat: what a block computes is not kept for the gradient, but computed
        again; its input alone is kept.
      readout, compute_dtype: as the transformer's.

    Raises:
      ValueError: a size that is too small, `n_kv_heads` that does not divide `n_heads`, an unknown
        `norm_kind`; when called (or traced), more tokens than `max_length`.
    """

    vocab_size: int
    max_length: int
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_ff: int
    norm_eps: float
    n_kv_heads: int = 0
    activation: str = "silu"
    gated: bool = True
    norm_kind: str = "rms"
    rope_theta: float = 10000.0
    rope_share: float = 1.0
    use_bias: bool = False
    parallel: bool = False
    tied_head: bool = False
    embed_norm: bool = False
    sandwich_norm: bool = False
    qk_norm: bool = False
    scan_layers: bool = True
    remat: bool = False
    readout: str = "all"
    compute_dtype: str = "float32"

    least = {"max_length": 0, "n_kv_heads": 0}
    # as the transformer's fields
    norm, final_norm, head_bias = "pre", True, False

    def __post_init__(self):
        limits.check("model", self, {"norm_kind": NORM_KINDS})
        super().__post_init__()
        if self.n_heads % self.n_key_heads:
            raise ValueError(f"model.n_kv_heads={self.n_kv_heads}: must divide model.n_heads={self.n_heads}")
        limits.check("model", self, bounds={"norm_eps": (0, None), "rope_theta": (1, None), "rope_share": (0, 1)})

    @property
    def n_key_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def n_rotated(self) -> int:
        """Channels of a head that are rotated, in pairs."""
        return int(self.d_head * self.rope_share) // 2 * 2

    @property
    def layer(self) -> Layer:
        """Of each block."""
        return Layer(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Layer)})

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        if self.max_length and tokens_BxL.shape[1] > self.max_length:
            raise ValueError(
                f"{tokens_BxL.shape[1]} tokens: the model reads at most model.max_length={self.max_length}"
            )
        tape = Tape(edits)
        embed = Embedding(self.vocab_size, 0, self.d_model, name="embed")
        h_BxLxD = embed(tokens_BxL)
        h_BxLxD = tape("embed", self.layer.norm("embed_norm")(h_BxLxD) if self.embed_norm else h_BxLxD)
        h_BxLxD = self._blocks(h_BxLxD, tape)
        h_BxQxD = h_BxLxD[:, -1:] if self.readout == "last" else h_BxLxD
        h_BxQxD = tape("final", self.layer.norm("final_norm")(h_BxQxD))
        if self.tied_head:
            logits_BxQxV = embed.attend(h_BxQxD)
        else:
            logits_BxQxV = dense(self.d_model, self.vocab_size, False, "head")(h_BxQxD)
        return tape("logits", logits_BxQxV), tape.finish()

    def _blocks(self, h_BxLxD, tape: Tape):
        kind = nn.remat(DecoderBlock, prevent_cse=not self.scan_layers) if self.remat else DecoderBlock
        edits_N = [_within(tape.edits, f"block_{i}/") for i in range(self.n_layers)]
        if self.scan_layers and not any(edits_N):
            layers = nn.scan(kind, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.n_layers)
            h_BxLxD, acts = layers(self.layer, name=tree.STACKED)(h_BxLxD)
            for i in range(self.n_layers):
                tape.acts |= {f"block_{i}/{name}": value_NxBx[i] for name, value_NxBx in acts.items()}
            return h_BxLxD
        for i, edits in enumerate(edits_N):
            if self.scan_layers:
                params = jax.tree.map(lambda leaf_Nx, i=i: leaf_Nx[i], self.variables["params"][tree.STACKED])
                h_BxLxD, acts = DecoderBlock(self.layer, parent=None).apply({"params": params}, h_BxLxD, edits)
            elif edits:  # which are no arrays, as a block that is computed again wants its arguments
                h_BxLxD, acts = DecoderBlock(self.layer, name=f"block_{i}")(h_BxLxD, edits)
            else:
                h_BxLxD, acts = kind(self.layer, name=f"block_{i}")(h_BxLxD)
            tape.acts |= {f"block_{i}/{name}": value for name, value in acts.items()}
        return h_BxLxD


def _within(edits: Mapping[str, Callable], prefix: str) -> dict[str, Callable]:
    return {name.removeprefix(prefix): edit for name, edit in edits.items() if name.startswith(prefix)}
