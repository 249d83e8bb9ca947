"""State-space recurrences: a masked matrix product, and a scan over tokens.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,    y_t = C_t . h_t,    A < 0

Mamba-2 (arXiv 2405.21060) has one A a head, so that the recurrence is also one masked matrix product: `decays`, and
S = decays * C B^T, y = S (dt x). Mamba-1 (arXiv 2312.00752) has an A for every channel and state: `scan`.
Both discretize B by the Euler rule, dt B, as the published code does, and A exactly.

Shapes: B sequences, L tokens, Q of them (the last ones) that are answered, H heads of width K, I = H K channels, N
states. A scalar decay a_t = dt_t A is at most 0.
"""

import jax
import jax.numpy as jnp

from lab.models import products


def decays(a_BxHxL, n_queries: int):
    """exp(a_{j+1} + ... + a_i), (B, H, Q, L): what is left at token i of what token j wrote; 0 where j > i.

    Sums are of what is summed, not differences of cumulative sums: these lose digits and may turn positive. The mask
    comes before the exponential: after it the gradient would be 0 * inf. The sums are a product with a constant, of
    H Q L^2 multiplications a sequence.
    """
    length = a_BxHxL.shape[-1]
    token_L = jnp.arange(length, dtype=jnp.int32)
    later_LxL = token_L[:, None] > token_L[None, :]
    visible_QxL = (token_L[:, None] >= token_L[None, :])[length - n_queries :]
    passed_BxHxLxL = jnp.where(later_LxL[None, None], a_BxHxL[..., None], 0)  # [k, j]: what j loses at token k
    summed = jnp.einsum("ik,bhkj->bhij", visible_QxL.astype(a_BxHxL.dtype), passed_BxHxLxL, precision="highest")
    return jnp.exp(jnp.where(visible_QxL[None, None], summed, -jnp.inf))


def quadratic(c_BxQxN, b_BxLxN, a_BxHxL):
    """S = decays * C B^T, (B, H, Q, L); B and C are shared by all heads."""
    return decays(a_BxHxL, c_BxQxN.shape[1]) * products.scores(c_BxQxN, b_BxLxN)[:, None]


def mix(s_BxHxQxL, v_BxLxHxK):
    """S v, (B, Q, H, K)."""
    batch, n_heads, n_queries, length = s_BxHxQxL.shape
    v_MxLxK = jnp.swapaxes(v_BxLxHxK, 1, 2).reshape(batch * n_heads, length, -1)
    mixed_MxQxK = products.mix(s_BxHxQxL.reshape(batch * n_heads, n_queries, length), v_MxLxK)
    return jnp.swapaxes(mixed_MxQxK.reshape(batch, n_heads, n_queries, -1), 1, 2)


def final_state(b_BxLxN, v_BxLxHxK, a_BxHxL):
    """h after the last token, (B, H, K, N)."""
    left_BxHxL = decays(a_BxHxL, 1)[:, :, 0]
    return jnp.einsum("bhl,blhk,bln->bhkn", left_BxHxL, v_BxLxHxK, b_BxLxN)


def scan(c_BxLxN, b_BxLxN, x_BxLxI, dt_BxLxI, a_IxN):
    """Mamba-1's recurrence, token by token: y (B, L, I) and h after the last token (B, I, N).

    Args:
      a_IxN: A, below 0.
    """

    def step(h_BxIxN, now):
        c_BxN, b_BxN, v_BxI, dt_BxI = now
        h_BxIxN = jnp.exp(dt_BxI[..., None] * a_IxN[None]) * h_BxIxN + v_BxI[..., None] * b_BxN[:, None]
        return h_BxIxN, jnp.einsum("bin,bn->bi", h_BxIxN, c_BxN)

    start = jnp.zeros((x_BxLxI.shape[0], *a_IxN.shape), x_BxLxI.dtype)
    tokens_first = tuple(jnp.swapaxes(x, 0, 1) for x in (c_BxLxN, b_BxLxN, dt_BxLxI * x_BxLxI, dt_BxLxI))
    h_BxIxN, y_LxBxI = jax.lax.scan(step, start, tokens_first)
    return jnp.swapaxes(y_LxBxI, 0, 1), h_BxIxN


def selective(c_BxLxN, b_BxLxN, dt_BxLxI, a_IxN):
    """S of Mamba-1, a matrix for each channel, (B, I, L, L): sum_n C_in B_jn exp(A_n (dt_{j+1} + ... + dt_i))."""

    def of_state(c_BxL, b_BxL, a_I):
        left_BxIxLxL = decays(jnp.swapaxes(dt_BxLxI, 1, 2) * a_I[None, :, None], c_BxL.shape[1])
        return left_BxIxLxL * (c_BxL[:, :, None] * b_BxL[:, None])[:, None]

    return jnp.sum(jax.vmap(of_state, in_axes=(2, 2, 1))(c_BxLxN, b_BxLxN, a_IxN), axis=0)
