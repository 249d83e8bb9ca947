"""One softmax layer is one gradient step of a dual model (arXiv 2310.13220): the step, its parts, random features.

With exp(k . q) = phi(k) . phi(q), of keys and queries into which the factor 1 / sqrt(D) is multiplied, the layer of
`lab.models.VectorAttention` gives for demonstrations i and the query itself, Z = sum of all exp,

    h = (1/Z) [ v_q exp(k_q . q) + sum_i v_i exp(k_i . q) ].

The dual model f(u) = W phi(u) starts at W_0 = (1/Z) v_q phi(k_q)^T, or at 0 where the query does not attend to itself.
Its loss over the demonstrations is an agreement of two views of each, without negatives,

    L(W) = -(1 / (eta Z)) sum_i v_i . W phi(k_i),

and a gradient step of size eta gives W = W_0 + (1/Z) sum_i v_i phi(k_i)^T, so f(q) = h whatever eta is. Z depends on
the query, so there is a dual model a query. With negatives v_i is replaced by v_i - (beta / r) sum of the negatives';
a penalty (alpha / 2) |W|^2, of weight 1 / eta, scales W_0 by 1 - alpha.

phi has no end, but Z W is a sum of v phi(k)^T: it is kept as that, beside log Z (`Dual`), and products of features are
exp. Trained scores pass 88, where exp overflows in float32: log Z is subtracted before exp is taken.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab.analysis import rank


class Dual(NamedTuple):
    """W = (1/Z) sum_m a_m phi(k_m)^T: a weight `a_MxV` a term, the features' arguments `k_MxD`, and log Z."""

    a_MxV: jax.Array
    k_MxD: jax.Array
    log_z: jax.Array | float

    def __call__(self, u_NxD):
        """f(u) = W phi(u), (N, V)."""
        return jnp.exp(u_NxD @ self.k_MxD.T - self.log_z) @ self.a_MxV

    def step(self, v_NxV, k_NxD) -> "Dual":
        """After a gradient step over these demonstrations; its size cancels that of the loss."""
        return Dual(jnp.concatenate([self.a_MxV, v_NxV]), jnp.concatenate([self.k_MxD, k_NxD]), self.log_z)


def halves(q_D, k_LxD):
    """Query and keys, each divided by D^(1/4): their products are the layer's scores."""
    root = k_LxD.shape[1] ** 0.25
    return q_D / root, k_LxD / root


def demonstrated(v_LxV, q_D, k_LxD, beta: float, n_negatives: int):
    """The demonstrations' values (N, V) with negatives taken from each: the last of the L is the query's."""
    v_NxV, score_N = v_LxV[:-1], k_LxD[:-1] @ q_D
    if not beta:
        return v_NxV
    r = min(n_negatives, v_NxV.shape[0])
    lowest_r = jnp.argsort(score_N, stable=True)[:r]
    return v_NxV - beta * jnp.mean(v_NxV[lowest_r], axis=0, keepdims=True)


def trained(q_D, k_LxD, v_LxV, alpha: float = 0.0, beta: float = 0.0, n_negatives: int = 1) -> Dual:
    """The dual model of a query (the last of the L tokens) after its one step; `q_D`, `k_LxD` as of `halves`."""
    start = Dual((1 - alpha) * v_LxV[-1:], k_LxD[-1:], jax.nn.logsumexp(k_LxD @ q_D))
    return start.step(demonstrated(v_LxV, q_D, k_LxD, beta, n_negatives), k_LxD[:-1])


def token_by_token(q_D, k_LxD, v_LxV, alpha: float = 0.0, beta: float = 0.0, n_negatives: int = 1):
    """f(q) after 0 ... N steps (N + 1, V), each over one demonstration, Z fixed from the whole prompt.

    What is missing after t of them is sum_{i > t} a_i v_i, a_i the attention to i: 0 at t = N, and in between not
    monotone where values differ in sign.
    """
    weight_L = jax.nn.softmax(k_LxD @ q_D)
    start_V = (1 - alpha) * v_LxV[-1] * weight_L[-1]
    v_NxV = demonstrated(v_LxV, q_D, k_LxD, beta, n_negatives)
    steps_NxV = v_NxV * weight_L[:-1, None]
    return jnp.concatenate([start_V[None], start_V[None] + jnp.cumsum(steps_NxV, axis=0)])


def representations(dual: Dual, k_NxD):
    """f(k_i) at length 1, (N, V); exponentials are taken relative to the largest, so that none overflows."""
    f_NxV = jax.nn.softmax(k_NxD @ dual.k_MxD.T) @ dual.a_MxV
    return f_NxV / jnp.maximum(jnp.linalg.norm(f_NxV, axis=1, keepdims=True), jnp.finfo(f_NxV.dtype).tiny)


def alignment(dual: Dual, k_NxD, v_NxV):
    """Mean cosine of the two views v_i and f(k_i), whose products the dual's loss is minus the sum of."""
    length_Nx1 = jnp.maximum(jnp.linalg.norm(v_NxV, axis=1, keepdims=True), jnp.finfo(v_NxV.dtype).tiny)
    return jnp.mean(jnp.sum(v_NxV / length_Nx1 * representations(dual, k_NxD), axis=1))


def representation_rank(dual: Dual, k_NxD):
    """Effective rank of `representations`: 1 where all lie on one line."""
    return rank.effective_rank(representations(dual, k_NxD))


def random_features(u_NxD, omega_FxD):
    """Positive random features (N, F) of exp (arXiv 2009.14794): exp(omega . u - |u|^2 / 2) / sqrt(F), omega normal.

    phi(q) . phi(k) has the mean exp(q . k) and the relative variance (exp(|q + k|^2) - 1) / F.
    """
    n_features = jnp.sqrt(jnp.asarray(omega_FxD.shape[0], u_NxD.dtype))
    return jnp.exp(u_NxD @ omega_FxD.T - 0.5 * jnp.sum(jnp.square(u_NxD), axis=1, keepdims=True)) / n_features


def feature_errors(key, q_PxD, k_PxLxD, n_features: int, n_draws: int):
    """Mean square relative error of exp(q . k) by random features, over draws, prompts and keys; and the predicted one.

    The prediction is the mean of (exp(|q + k|^2) - 1) / F: products are lognormal, and of long q + k no feasible number
    of draws shows it.
    """
    exact_PxL = jnp.exp(jnp.einsum("pld,pd->pl", k_PxLxD, q_PxD))

    def error(key):
        omega_FxD = jax.random.normal(key, (n_features, q_PxD.shape[1]), q_PxD.dtype)
        q_PxF = random_features(q_PxD, omega_FxD)
        k_PxLxF = random_features(k_PxLxD.reshape(-1, k_PxLxD.shape[2]), omega_FxD).reshape(*exact_PxL.shape, -1)
        return jnp.mean(jnp.square(jnp.einsum("plf,pf->pl", k_PxLxF, q_PxF) / exact_PxL - 1))

    length_PxL = jnp.sum(jnp.square(q_PxD[:, None] + k_PxLxD), axis=2)
    predicted = jnp.mean(jnp.exp(length_PxL) - 1) / n_features
    return jnp.mean(jax.lax.map(error, jax.random.split(key, n_draws))), predicted
