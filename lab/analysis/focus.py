"""Focus: which tokens attend to which, and the embedding direction behind it ("Focus and Dilution", arXiv 2605.01199).

Patterns come from `block_i/attn/pattern` (BxHxQxL): Q = L, or the last Q positions. Those of one head, or their mean
over heads, are BxQxL; `jax.vmap(..., in_axes=(1, None))` goes over heads. Token 0 of the paper is `top` here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from lab.analysis.estimate import Estimate
from lab.analysis.loss_fn import over_minibatches


class TokenAttention(NamedTuple):
    """A_ik and its standard error (IxJ) and how often each of the I query tokens was seen (I)."""

    value: jax.Array
    standard_error: jax.Array
    count: jax.Array


def clustered_mean(function: Callable, sequences):
    """sum_b s_b / sum_b n_b over B sequences, with the standard error of a ratio whose draws are whole sequences.

    SE^2 = B'/(B'-1) sum_b (s_b - mean n_b)^2 / (sum_b n_b)^2 over the B' sequences with n_b > 0: positions of one
    sequence share their context and count as one draw. One sequence at a time, twice: memory is that of one.

    Args:
      function: a sequence -> `(s_b, n_b)`, of shapes that broadcast.
      sequences: pytree whose leaves have the axis B in front.

    Returns:
      `(Estimate, sum_b n_b)`; the value is NaN where that is 0, the error where B' < 2.
    """
    total, weight = over_minibatches(function, sequences)
    value = total / jnp.where(weight == 0, jnp.nan, weight)

    def spread(sequence):
        s, n = function(sequence)
        return jnp.square(s - value * n), (n > 0).astype(value.dtype)

    squares, n_draws = over_minibatches(spread, sequences)
    correction = n_draws / jnp.where(n_draws > 1, n_draws - 1, jnp.nan)
    return Estimate(value, jnp.sqrt(correction * squares) / weight), weight


def token_attention(pattern_BxQxL, tokens_BxL, query_tokens_I, key_tokens_J) -> TokenAttention:
    """A_ik = E[sum_j a_qj 1{x_j = k} | x_q = i] over the Q query positions of B sequences (arXiv 2605.01199).

    For the last position alone, as the paper has it, give `pattern[:, -1:]`. Rows sum to one only if the keys are all
    tokens. Memory is IxJ and QxL: with probes in place of `arange(V)` no VxV array is made.

    Args:
      query_tokens_I, key_tokens_J: distinct tokens.

    Returns:
      NaN for a query token never seen; an error of NaN for one seen in fewer than two sequences.
    """
    n_queries, length = pattern_BxQxL.shape[1:]
    query_tokens_I, key_tokens_J = (jnp.asarray(chosen, tokens_BxL.dtype) for chosen in (query_tokens_I, key_tokens_J))

    def of_sequence(sequence):
        pattern_QxL, tokens_L = sequence
        query_Q = _place(tokens_L[length - n_queries :], query_tokens_I)
        key_L = _place(tokens_L, key_tokens_J)
        mass_IxL = _sum_by(pattern_QxL, query_Q, query_tokens_I.size)
        mass_JxI = _sum_by(mass_IxL.T, key_L, key_tokens_J.size)
        count_I = _sum_by(jnp.ones(n_queries, pattern_QxL.dtype), query_Q, query_tokens_I.size)
        return mass_JxI.T, count_I[:, None]

    (value_IxJ, error_IxJ), count_Ix1 = clustered_mean(of_sequence, (pattern_BxQxL, tokens_BxL))
    return TokenAttention(value_IxJ, error_IxJ, count_Ix1[:, 0])


def unigram(tokens_BxL, vocab_size: int):
    """pi_V: share of each token among all positions. Exact for these tokens; a sample of the law behind them."""
    count_V = jnp.bincount(tokens_BxL.ravel(), length=vocab_size)
    return count_V / jnp.sum(count_V)


def focus(to_top_I, weight_I):
    """Attention of I query tokens to the high-frequency token, F = sum_i w_i A[i, top] / sum_i w_i.

    Args:
      to_top_I: A[i, top]; NaN for tokens never seen, which are left out of both sums.
      weight_I: pi_i for the paper's F; ones for the plain mean.
    """
    seen_I = ~jnp.isnan(to_top_I)
    return jnp.sum(jnp.where(seen_I, weight_I * to_top_I, 0)) / jnp.sum(jnp.where(seen_I, weight_I, 0))


def lift(attention_IxJ, base_J):
    """A_ik / pi_k: 1 when keys are attended as often as they occur. NaN for keys that never occur."""
    return attention_IxJ / jnp.where(base_J == 0, jnp.nan, base_J)[None]


def entropy(p):
    """-sum_k p_k log p_k in nats over the last axis: of A[i, :] over all keys, of pi, or of a pattern's rows."""
    return jnp.sum(entr(p), axis=-1)


def distance_to_uniform(pattern_BxHxQxL):
    """max and mean of |a_qj - 1/(q+1)| over batch, queries and visible keys j <= q, each (H) (arXiv 2502.04375).

    0 when attention averages the prefix. Exact up to rounding. With Q = L the first query contributes zeros.
    """
    position_Qx1, visible_QxL = _causal(*pattern_BxHxQxL.shape[2:])
    uniform_Qx1 = 1 / (position_Qx1 + 1).astype(pattern_BxHxQxL.dtype)
    distance_BxHxQxL = jnp.abs(pattern_BxHxQxL - uniform_Qx1[None, None])
    axes, visible = (0, 2, 3), visible_QxL[None, None]
    return {
        "max": jnp.max(jnp.where(visible, distance_BxHxQxL, 0), axis=axes),
        "mean": jnp.mean(distance_BxHxQxL, axis=axes, where=visible),
    }


def sink_mass(pattern_BxHxQxL) -> Estimate:
    """Mean attention to the first position (H), over all queries but the first; NaN if there is no other."""
    n_queries, length = pattern_BxHxQxL.shape[2:]
    after_first_HxQxL = pattern_BxHxQxL[:, :, 1 if n_queries == length else 0 :]

    def of_sequence(pattern_HxQxL):
        mass_HxQ = pattern_HxQxL[:, :, 0]
        return jnp.sum(mass_HxQ, axis=1), jnp.asarray(mass_HxQ.shape[1], mass_HxQ.dtype)

    return clustered_mean(of_sequence, after_first_HxQxL)[0]


def embedding_direction(embedding_VxD, base_V, top: int):
    """Condensation of the embedding onto one direction and the split of it (arXiv 2605.01199). Exact up to rounding.

    Of W_0 = sum_k s_k u_k v_k^T and the base rates pi; a zero embedding gives zeros.

    Returns:
      top_share: s_1^2 / sum s^2.
      second_ratio: s_2 / s_1, and off_direction = |W_0 (I - v_1 v_1^T)|_F^2 / |W_0|_F^2 = sum_{k>1} s_k^2 / sum s^2.
      singular_ratios: s_k / s_1 (K - 1), k = 2, 3, ...
      alignment: |u_1 . pi| / |pi|.
      gamma: W_0 v_1 (V), its sign such that gamma[top] >= 0.
      redistribution: rho = (1 - pi_top) gamma_top - pi_top sum_{i != top} gamma_i.
    """
    u_VxK, s_K, _ = jnp.linalg.svd(embedding_VxD, full_matrices=False)
    relative_K = s_K / jnp.where(s_K[0] == 0, 1, s_K[0])  # before squaring: decayed weights would underflow
    total = jnp.sum(jnp.square(relative_K))
    total = jnp.where(total == 0, 1, total)
    gamma_V = u_VxK[:, 0] * s_K[0] * jnp.where(u_VxK[top, 0] < 0, -1, 1)
    return {
        "top_share": jnp.square(relative_K[0]) / total,
        "second_ratio": jnp.sum(relative_K[1:2]),  # 0 where there is no second
        "off_direction": jnp.sum(jnp.square(relative_K[1:])) / total,
        "singular_ratios": relative_K[1:],
        "alignment": jnp.where(s_K[0] == 0, 0, jnp.abs(u_VxK[:, 0] @ base_V) / jnp.linalg.norm(base_V)),
        "gamma": gamma_V,
        # (1 - pi) g - pi (sum - g) = g - pi sum
        "redistribution": gamma_V[top] - base_V[top] * jnp.sum(gamma_V),
    }


def log_slope(step_T, value_T) -> Estimate:
    """Rate c of value ~ e^(c step), per step: least squares on the logarithm, and the slope's standard error.

    The error takes residuals for independent; those of a curve are not, and it comes out too small. It is NaN for
    fewer than three points, and both are NaN where a value is not positive.
    """
    log_T = jnp.log(jnp.where(value_T > 0, value_T, jnp.nan))
    step_T = jnp.asarray(step_T, log_T.dtype)
    x_T, y_T = step_T - jnp.mean(step_T), log_T - jnp.mean(log_T)
    spread = jnp.sum(jnp.square(x_T))
    slope = jnp.sum(x_T * y_T) / spread
    freedom = step_T.size - 2 if step_T.size > 2 else jnp.nan
    return Estimate(slope, jnp.sqrt(jnp.sum(jnp.square(y_T - slope * x_T)) / freedom / spread))


def _place(tokens_N, chosen_I):
    """Index in `chosen_I` of every token; I for tokens not chosen."""
    order_I = jnp.argsort(chosen_I)
    sorted_I = chosen_I[order_I]
    at_N = jnp.clip(jnp.searchsorted(sorted_I, tokens_N), 0, chosen_I.size - 1)
    return jnp.where(sorted_I[at_N] == tokens_N, order_I[at_N], chosen_I.size)


def _sum_by(values_NxX, index_N, size: int):
    """Sums of the rows with equal index below `size`; the others are dropped."""
    return jax.ops.segment_sum(values_NxX, index_N, size + 1)[:size]


def _causal(n_queries: int, length: int):
    position_Qx1 = jnp.arange(length - n_queries, length)[:, None]
    return position_Qx1, jnp.arange(length)[None] <= position_Qx1
