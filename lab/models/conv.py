"""The causal depth-wise convolution before a state space, or before attention."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

CONVS = ("learned", "ones", "none")
PAST_CONVS = ("none", "added", "gated")


def causal_conv(u_BxLxC, taps_TxC):
    """Token t gets sum_k taps[k] u_{t-T+1+k}, zeros before the first token: the last tap is the token's own (a
    cross-correlation, as PyTorch's)."""
    n_taps, length = taps_TxC.shape[0], u_BxLxC.shape[1]
    padded = jnp.pad(u_BxLxC, ((0, 0), (n_taps - 1, 0), (0, 0)))
    return sum(padded[:, k : k + length] * taps_TxC[k][None, None] for k in range(n_taps))


def own_token(key, shape, dtype=jnp.float32):
    """Taps of the convolution that leaves everything as it is."""
    return jnp.zeros(shape, dtype).at[-1].set(1)


def uniform(bound: float) -> Callable:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolution, SiLU, and a path past both: SiLU(conv(u)), + u (`added`) or * u (`gated`).

    Attributes:
      kind: `learned` taps, `ones`: all taps are 1, and stay (their bias is learned), or `none`: SiLU alone.
      follow_gamma: the taps are a matrix of `n_taps` inputs; else they start as PyTorch's do and are none.
      identity: learned taps start as those that leave each token as it is, without bias.
    """

    n_taps: int
    kind: str = "learned"
    past: str = "none"
    follow_gamma: bool = False
    identity: bool = False

    @property
    def fan_in(self):
        return {"taps": (0,) if self.follow_gamma else None} if self.kind == "learned" else {}

    @nn.compact
    def __call__(self, u_BxLxC):
        convolved_BxLxC = u_BxLxC
        if self.kind != "none":
            shape, default = (self.n_taps, u_BxLxC.shape[-1]), uniform(1 / math.sqrt(self.n_taps))
            learned = self.kind == "learned"
            taps = own_token if self.identity else default
            taps_TxC = self.param("taps", taps, shape, jnp.float32) if learned else jnp.ones(shape, u_BxLxC.dtype)
            bias_C = self.param("bias", nn.initializers.zeros if self.identity else default, shape[1:], jnp.float32)
            convolved_BxLxC = causal_conv(u_BxLxC, taps_TxC) + bias_C[None, None]
        return self.after(convolved_BxLxC, u_BxLxC)

    def after(self, convolved_BxLxC, u_BxLxC):
        """SiLU, and the path past it."""
        active_BxLxC = nn.silu(convolved_BxLxC)
        if self.past == "none":
            return active_BxLxC
        return active_BxLxC + u_BxLxC if self.past == "added" else active_BxLxC * u_BxLxC
