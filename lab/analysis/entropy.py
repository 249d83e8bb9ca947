"""Entropies and divergences of laws of strings, from conditional laws in every context or by sampling.

Strings have T symbols of an alphabet of V; `log_law_NxTxV` is log P(x_t = v | x_1..x_{t-1}) for each of the N = V^(T-1)
contexts x_1..x_{T-1}, in lexicographic order, so that a model is read by one forward pass over `contexts`. All in nats
of a whole string, exact up to rounding unless said otherwise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr as host_entr

from lab.analysis import estimate
from lab.analysis.estimate import Estimate

COLDEST, HOTTEST, HALVINGS = 1 / 16, 16.0, 40  # inverse temperatures that are searched
WITHIN = (0.025, 0.975)  # quantiles of a band


def log_contexts(log_law_NxTxV):
    """log P(x_1..x_{T-1}) of every context, (N)."""
    n, length, alphabet = log_law_NxTxV.shape
    place_N, log_N = jnp.arange(n, dtype=jnp.int32), jnp.zeros(n, log_law_NxTxV.dtype)
    for t in range(length - 1):
        symbol_N = place_N // alphabet ** (length - 2 - t) % alphabet
        log_N = log_N + jnp.take_along_axis(log_law_NxTxV[:, t], symbol_N[:, None], axis=1)[:, 0]
    return log_N


def by_depth(log_weight_N, log_law_NxTxV):
    """Mean entropy of the next symbol at each depth, (T), in contexts of the law `log_weight_N`.

    With a law's own contexts their sum is its entropy, by the chain rule; with those of the target it is the
    teacher-forced entropy.
    """
    entropy_NxT = -jnp.sum(_expected(log_law_NxTxV, log_law_NxTxV), axis=-1)
    return jnp.exp(log_weight_N) @ entropy_NxT


def entropy(log_law_NxTxV):
    """H(P)."""
    return jnp.sum(by_depth(log_contexts(log_law_NxTxV), log_law_NxTxV))


def divergence(log_p_NxTxV, log_q_NxTxV):
    """KL(P || Q); infinite where Q excludes what P has."""
    ratio_NxTxV = jnp.where(jnp.isneginf(log_p_NxTxV), 0, log_p_NxTxV - log_q_NxTxV)
    divergence_NxT = jnp.sum(_expected(log_p_NxTxV, ratio_NxTxV), axis=-1)
    return jnp.sum(jnp.exp(log_contexts(log_p_NxTxV)) @ divergence_NxT)


def top_mass(log_law_NxTxV, k: int):
    """Probability of the k likeliest strings."""
    log_NxV = log_contexts(log_law_NxTxV)[:, None] + log_law_NxTxV[:, -1]
    return jnp.sum(jnp.exp(jax.lax.top_k(log_NxV.ravel(), min(k, log_NxV.size))[0]))


def best_temperature(log_p_NxTxV, log_q_NxTxV):
    """The temperature at which Q is closest to P in KL(P || Q): 1 for a calibrated Q, above 1 for an overconfident one.

    By bisection of the derivative in 1 / temperature, which is monotone: teacher-forced entropy equals cross-entropy
    there, at least in direction ("calibration identity").
    """
    weight_N, p_NxTxV = jnp.exp(log_contexts(log_p_NxTxV)), jnp.exp(log_p_NxTxV)

    def slope(inverse):
        q_NxTxV = jax.nn.softmax(inverse * log_q_NxTxV)
        return jnp.sum(weight_N @ jnp.sum((q_NxTxV - p_NxTxV) * log_q_NxTxV, axis=-1))

    def halve(_, ends):
        low, high = ends
        middle = jnp.sqrt(low * high)
        rises = slope(middle) > 0
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    ends = (jnp.asarray(end, log_q_NxTxV.dtype) for end in (COLDEST, HOTTEST))
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, tuple(ends))
    return 1 / jnp.sqrt(low * high)


def sampled(next_log_law: Callable, key, n: int, length: int, begin: int) -> tuple[Estimate, jax.Array]:
    """H(Q) from n strings that Q itself says, symbol by symbol, and those strings, int32 (n, T).

    The estimate is the mean over strings of sum_t H(Q(. | x_1..x_{t-1})), whose variance is less than that of
    -log Q(x). No string is enumerated, so the length is free.

    Args:
      next_log_law: tokens (n, T) int32 -> log Q (n, T, V) of the symbol after each.
      begin: the token before the first symbol.
    """
    tokens_BxT = jnp.full((n, length + 1), begin, jnp.int32)

    def say(t, said):
        tokens_BxT, entropy_B = said
        log_law_BxTxV = next_log_law(tokens_BxT[:, :-1])
        log_law_BxV = jax.lax.dynamic_index_in_dim(log_law_BxTxV, t, axis=1, keepdims=False)
        symbol_B = jax.random.categorical(jax.random.fold_in(key, t), log_law_BxV).astype(jnp.int32)
        tokens_BxT = jax.lax.dynamic_update_index_in_dim(tokens_BxT, symbol_B, t + 1, axis=1)
        return tokens_BxT, entropy_B - jnp.sum(_expected(log_law_BxV, log_law_BxV), axis=-1)

    dtype = jax.eval_shape(next_log_law, tokens_BxT[:, :-1]).dtype
    tokens_BxT, entropy_B = jax.lax.fori_loop(0, length, say, (tokens_BxT, jnp.zeros(n, dtype)))
    return estimate.mean(entropy_B), tokens_BxT[:, 1:]


def of_sample(strings_NxT) -> float:
    """Entropy of the empirical law of strings, on the host: what a model that knows its sample by heart has."""
    _, count_K = np.unique(np.asarray(strings_NxT), axis=0, return_counts=True)
    return _of_counts(count_K)


def sample_band(probability_K: np.ndarray, n: int, n_resamples: int, seed: int) -> tuple[float, float, float]:
    """Median, and the ends of the middle 95 %, of the empirical entropy of n draws from a law, on the host.

    About H(P) - (K - 1) / (2 n) for n far above the K outcomes; for fewer draws only resampling tells.
    """
    draw, probability_K = np.random.default_rng(seed), np.asarray(probability_K, float)
    entropies = [_of_counts(draw.multinomial(n, probability_K / probability_K.sum())) for _ in range(n_resamples)]
    low, median, high = np.quantile(entropies, (WITHIN[0], 0.5, WITHIN[1]))
    return float(median), float(low), float(high)


def _of_counts(count_K) -> float:
    return float(host_entr(count_K / count_K.sum()).sum())


def _expected(log_law, values):
    """p v, 0 where p is: excluded symbols count nothing."""
    return jnp.where(jnp.isneginf(log_law), 0, jnp.exp(log_law) * jnp.where(jnp.isneginf(log_law), 0, values))
