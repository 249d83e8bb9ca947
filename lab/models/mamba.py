"""Mamba-2 and Mamba-1: x + block(x), a causal convolution before a state space, no attention and no MLP.

| | Mamba-2 (arXiv 2405.21060) | Mamba-1 (arXiv 2312.00752) |
|---|---|---|
| convolved, then SiLU | x, B and C | x alone |
| B, C | of the block's input | of the convolved x |
| dt | one a head, of the block's input | one a channel, through `dt_rank` numbers of the convolved x |
| A | one a head | one a channel and state |
| form | masked matrix product, `lab.models.ssm.quadratic` | scan, `lab.models.ssm.scan` |
| gate | RMSNorm(y SiLU(z)) | y SiLU(z) |

The published block computes gate, x, B, C and dt by one matrix; here each has its own, which is the same function.
Activation names are listed in `lab.models.acts`.

The init rate acts on embedding, projections and head. It never acts on A, D, dt's bias (and its matrix in Mamba-1),
which start as in the published code, nor on the taps unless `taps_follow_gamma`. By group: `embed`, `head`, `qk`: C and
B, which score as queries and keys do, `vo`: x and out, `mlp`: gate and the matrices that give dt.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab import limits
from lab.models import ssm
from lab.models.acts import Tape
from lab.models.conv import CONVS, PAST_CONVS, Conv, uniform
from lab.models.layers import Embedding, Model, RMSNorm, UnitNormal, dense

NORMS = ("none", "pre")
STARTS = ("published", "linear")
DT_RANGE, DT_FLOOR = (0.001, 0.1), 1e-4
A_RANGE = (1.0, 16.0)
NO_DECAY = 1e-3  # -A of a start near linear attention: 100 tokens leave 90 %


def rates_of_decay(key, shape, dtype=jnp.float32):
    """log -A of Mamba-2's heads, A uniform."""
    return jnp.log(jax.random.uniform(key, shape, dtype, *A_RANGE))


def steps_bias(key, shape, dtype=jnp.float32):
    """dt's bias: softplus of it is log-uniform."""
    low, high = map(math.log, DT_RANGE)
    dt = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, dtype, low, high)), DT_FLOOR)
    return dt + jnp.log(-jnp.expm1(-dt))


def little_decay(key, shape, dtype=jnp.float32):
    """log -A near linear attention: next to nothing decays."""
    return jnp.full(shape, math.log(NO_DECAY), dtype)


def steps_of_one(key, shape, dtype=jnp.float32):
    """dt's bias near linear attention: what is written is what is read, softplus of it is 1."""
    return jnp.full(shape, math.log(math.e - 1), dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Twin(UnitNormal):
    """Starts as another matrix at unit rate."""

    of: jax.Array

    def __call__(self, key, shape, dtype=jnp.float32):
        return self.of.astype(dtype)


def split(conv_BxLxC, d_inner: int, n_heads: int, d_state: int):
    """x by head (B, L, H, K), B and C (B, L, N) of Mamba-2's convolved channels."""
    x_BxLxI, b_BxLxN, c_BxLxN = jnp.split(conv_BxLxC, [d_inner, d_inner + d_state], axis=-1)
    return x_BxLxI.reshape(*x_BxLxI.shape[:2], n_heads, -1), b_BxLxN, c_BxLxN


class SSM2(nn.Module):
    """Mamba-2's mixer: the last `n_queries` tokens of what its input writes to the residual stream."""

    d_model: int
    d_inner: int
    n_heads: int
    d_state: int
    conv: Conv
    start: str = "published"

    groups = {"B/*": "qk", "C/*": "qk", "x/*": "vo", "out/*": "vo", "gate/*": "mlp", "dt/*": "mlp"}

    @nn.compact
    def __call__(self, h_BxLxD, n_queries: int, tape: Callable):
        batch, length, _ = h_BxLxD.shape
        inner, states = self.d_inner, self.d_state
        linear = self.start == "linear"

        def project(name, features, kernel_init=None):
            return dense(self.d_model, features, False, name, kernel_init=kernel_init)(h_BxLxD)

        x_BxLxI, b_BxLxN = project("x", inner), project("B", states)
        twin = Twin(self.d_model, self.variables["params"]["B"]["kernel"]) if linear else None
        u_BxLxC = tape("ssm/u", jnp.concatenate([x_BxLxI, b_BxLxN, project("C", states, twin)], axis=-1))
        conv_BxLxC = tape("ssm/conv", self.conv.clone(name="conv", parent=self)(u_BxLxC))
        x_BxLxHxK, b_BxLxN, c_BxLxN = split(conv_BxLxC, inner, self.n_heads, states)
        x_BxLxI = x_BxLxHxK.reshape(batch, length, inner)

        bias_H = self.param("dt_bias", steps_of_one if linear else steps_bias, (self.n_heads,), jnp.float32)
        log_a = little_decay if linear else rates_of_decay
        a_H = -jnp.exp(self.param("A_log", log_a, (self.n_heads,), jnp.float32))
        skip_I = self.param("D", nn.initializers.ones, (inner,), jnp.float32)
        dt_BxLxH = nn.softplus(dense(self.d_model, self.n_heads, False, "dt")(h_BxLxD) + bias_H[None, None])
        dt_BxLxH = tape("ssm/dt", dt_BxLxH)

        a_BxHxL = jnp.swapaxes(dt_BxLxH * a_H[None, None], 1, 2)
        s_BxHxQxL = tape("ssm/s", ssm.quadratic(c_BxLxN[:, length - n_queries :], b_BxLxN, a_BxHxL))
        y_BxQxI = ssm.mix(s_BxHxQxL, dt_BxLxH[..., None] * x_BxLxHxK).reshape(batch, n_queries, inner)
        y_BxQxI = tape("ssm/y", y_BxQxI + skip_I[None, None] * x_BxLxI[:, length - n_queries :])
        gate_BxQxI = nn.silu(dense(self.d_model, inner, False, "gate")(h_BxLxD[:, length - n_queries :]))
        gated_BxQxI = RMSNorm(name="norm")(y_BxQxI * tape("ssm/gate", gate_BxQxI))
        return tape("ssm/out", dense(inner, self.d_model, False, "out")(gated_BxQxI))


class SSM1(nn.Module):
    """Mamba-1's mixer, as `SSM2`. A scan is what runs; S is computed where it is read, and used where it is edited."""

    d_model: int
    d_inner: int
    dt_rank: int
    d_state: int
    conv: Conv

    groups = {"B/*": "qk", "C/*": "qk", "x/*": "vo", "out/*": "vo", "gate/*": "mlp", "dt_low/*": "mlp"}

    @nn.compact
    def __call__(self, h_BxLxD, n_queries: int, tape: Callable):
        first = h_BxLxD.shape[1] - n_queries
        inner, states, rank = self.d_inner, self.d_state, self.dt_rank
        u_BxLxI = tape("ssm/u", dense(self.d_model, inner, False, "x")(h_BxLxD))
        x_BxLxI = tape("ssm/conv", self.conv.clone(name="conv", parent=self)(u_BxLxI))
        b_BxLxN, c_BxLxN = (tape(f"ssm/{name}", dense(inner, states, False, name)(x_BxLxI)) for name in "BC")

        low_BxLxR = dense(inner, rank, False, "dt_low")(x_BxLxI)
        dt_BxLxI = tape("ssm/dt", nn.softplus(Steps(inner, name="dt")(low_BxLxR)))

        def integers(key, shape, dtype):
            return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype))[None], shape)

        a_IxN = -jnp.exp(self.param("A_log", integers, (inner, states), jnp.float32))
        skip_I = self.param("D", nn.initializers.ones, (inner,), jnp.float32)
        whole_BxIxLxL = ssm.selective(c_BxLxN, b_BxLxN, dt_BxLxI, a_IxN)
        s_BxIxQxL = whole_BxIxLxL[:, :, first:]
        edited_BxIxQxL = tape("ssm/s", s_BxIxQxL)
        if edited_BxIxQxL is s_BxIxQxL:
            y_BxQxI = ssm.scan(c_BxLxN, b_BxLxN, x_BxLxI, dt_BxLxI, a_IxN)[0][:, first:]
        else:
            y_BxQxI = ssm.mix(edited_BxIxQxL, (dt_BxLxI * x_BxLxI)[..., None])[..., 0]
        y_BxQxI = tape("ssm/y", y_BxQxI + skip_I[None, None] * x_BxLxI[:, first:])
        gate_BxQxI = tape("ssm/gate", nn.silu(dense(self.d_model, inner, False, "gate")(h_BxLxD[:, first:])))
        return tape("ssm/out", dense(inner, self.d_model, False, "out")(y_BxQxI * gate_BxQxI))


class Steps(nn.Module):
    """dt before its softplus; neither matrix nor bias follows the init rate."""

    d_inner: int

    fan_in = {"kernel": None}

    @nn.compact
    def __call__(self, low_BxLxR):
        rank = low_BxLxR.shape[-1]
        kernel_RxI = self.param("kernel", uniform(rank**-0.5), (rank, self.d_inner), jnp.float32)
        return low_BxLxR @ kernel_RxI + self.param("bias", steps_bias, (self.d_inner,), jnp.float32)[None, None]


class Block(nn.Module):
    """x + mixer(x), a norm before the mixer or none; of the last `n_queries` tokens."""

    mixer: nn.Module
    norm: str

    @nn.compact
    def __call__(self, h_BxLxD, n_queries: int, tape: Callable):
        h_BxLxD = tape("resid_pre", h_BxLxD)
        normed_BxLxD = RMSNorm(name="norm")(h_BxLxD) if self.norm == "pre" else h_BxLxD
        out_BxQxD = self.mixer.clone(name="ssm", parent=self)(normed_BxLxD, n_queries, tape)
        return tape("resid_post", h_BxLxD[:, h_BxLxD.shape[1] - n_queries :] + out_BxQxD)


class _Mamba(Model):
    """`__call__(tokens_BxL, edits) -> (logits_BxQxV, acts)`.

    Attributes:
      max_length: of the sequences it reads, and of its positions where it `has_positions`.
      d_inner: channels of the state space, the published models' 2 d_model.
      norm: `none`, as the figure of arXiv 2509.17514 has it, or `pre`, an RMSNorm before each block. final_norm: one
        before the head.
      conv, past_conv: see `Conv`; `ones`, `none`, `added` and `gated` are the variants of arXiv 2509.17514.
      readout: `last` or `all`, as the transformer's.
      start: of Mamba-2: `published`, or `linear`: near linear attention, as copying is learnt most easily (arXiv
        2410.11135). Next to nothing decays, dt is 1, the convolution leaves each token as it is, and C starts as B,
        so that a token reads most of those that are like it.

    Raises:
      ValueError: a size below 1, an unknown choice; when called (or traced), more tokens than `max_length`.
    """

    vocab_size: int
    max_length: int
    n_layers: int
    d_model: int
    d_inner: int
    d_state: int
    n_taps: int
    conv: str
    past_conv: str
    taps_follow_gamma: bool
    has_positions: bool
    norm: str
    final_norm: bool
    readout: str

    def __post_init__(self):
        limits.check("model", self, {"conv": CONVS, "past_conv": PAST_CONVS, "norm": NORMS})
        super().__post_init__()

    def mixer(self) -> nn.Module:
        raise NotImplementedError

    def convolution(self) -> Conv:
        return Conv(self.n_taps, self.conv, self.past_conv, self.taps_follow_gamma, parent=None)

    @nn.compact
    def __call__(self, tokens_BxL, edits: Mapping[str, Callable]):
        length = tokens_BxL.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens: the model reads at most model.max_length={self.max_length}")
        tape = Tape(edits)
        n_positions = self.max_length if self.has_positions else 0
        embed = Embedding(self.vocab_size, n_positions, self.d_model, name="embed")
        h = tape("embed", embed(tokens_BxL))
        for i in range(self.n_layers):
            n_queries = 1 if self.readout == "last" and i == self.n_layers - 1 else length
            block = Block(self.mixer(), self.norm, name=f"block_{i}")
            h = block(h, n_queries, lambda name, value, i=i: tape(f"block_{i}/{name}", value))
        h_BxQxD = tape("final", RMSNorm(name="final_norm")(h) if self.final_norm else h)
        logits_BxQxV = tape("logits", dense(self.d_model, self.vocab_size, False, "head")(h_BxQxD))
        return logits_BxQxV, tape.finish()


class Mamba2(_Mamba):
    __doc__ = _Mamba.__doc__

    n_heads: int
    start: str = "published"

    def __post_init__(self):
        super().__post_init__()
        limits.check("model", self, {"start": STARTS})
        if self.d_inner % self.n_heads:
            raise ValueError(f"model.n_heads={self.n_heads}: must divide model.d_inner={self.d_inner}")

    def split(self, conv_BxLxC):
        """x by head, B and C of `ssm/conv`, see `split`."""
        return split(conv_BxLxC, self.d_inner, self.n_heads, self.d_state)

    def mixer(self) -> SSM2:
        return SSM2(self.d_model, self.d_inner, self.n_heads, self.d_state, self.convolution(), self.start, parent=None)

    def convolution(self) -> Conv:
        return super().convolution().clone(identity=self.start == "linear")


class Mamba1(_Mamba):
    __doc__ = _Mamba.__doc__

    dt_rank: int

    def mixer(self) -> SSM1:
        return SSM1(self.d_model, self.d_inner, self.dt_rank, self.d_state, self.convolution(), parent=None)
