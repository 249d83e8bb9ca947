"""The exact limit of `Markov` and `OneLayerAttention` for endless sequences and endlessly many of them.

With s -> infinity the context holds token k with frequency pi_k, so that training is a VxV problem without noise
("Focus and Dilution", arXiv 2605.01199). In the lumped matrices M = W_0 W_1 and Phi = W_0 W_Q W_K^T W_0^T / sqrt(D)

    A_ik = pi_k exp(Phi_ik) / sum_l pi_l exp(Phi_il),  p_i = softmax(A_i M),  L = -sum_i pi_i sum_v P_iv log p_iv.

Parameters are the model's own tree. All is in nats, and in float64 where the parameters are: plateaus want that.
Times are of the gradient flow: n steps of gradient descent with rate r are the time n r.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lab import init, models, rng
from lab.analysis import focus, rank
from lab.analysis.estimate import Estimate
from lab.models import OneLayerAttention
from lab.tasks import markov
from lab.tree import map_named, named_leaves

W_0, W_Q, W_K, W_1 = NAMES = (
    "embed/token/embedding", "block_0/attn/query/kernel", "block_0/attn/key/kernel", "head/kernel",
)  # fmt: skip


def start(seed, vocab_size: int, d_model: int, epsilon):
    """Parameters with entries from N(0, epsilon^2), float64 where that is enabled.

    The draw of a training of `OneLayerAttention` with this seed and gamma = -log(epsilon) / log(d_model), so that
    sampled and exact training can be compared row by row.
    """
    model = OneLayerAttention(vocab_size, d_model)
    params = models.init(model, rng.key(seed, "init"), jnp.zeros((1, 1), jnp.int32))
    params = jax.tree.map(lambda leaf: leaf.astype(float), params)
    gamma = -jnp.log(jnp.asarray(epsilon, float)) / math.log(d_model)
    return init.rescale(params, dict.fromkeys(init.GROUPS, gamma))


def attention(params, law_V):
    """A (VxV): attention of each query token to all positions with token k together."""
    p = named_leaves(params)
    embedding_VxD = p[W_0]
    query_VxD, key_VxD = embedding_VxD @ p[W_Q], embedding_VxD @ p[W_K]
    phi_VxV = query_VxD @ key_VxD.T / math.sqrt(embedding_VxD.shape[1])
    return jax.nn.softmax(jnp.log(law_V)[None] + phi_VxV)


def logits(params, law_V):
    """What each last token is answered with (VxV)."""
    p = named_leaves(params)
    return attention(params, law_V) @ (p[W_0] @ p[W_1])


def loss(params, law_V, transition_VxV):
    """Cross-entropy of the answers with P, averaged over pi; never below the entropy rate."""
    return -jnp.sum(law_V[:, None] * transition_VxV * jax.nn.log_softmax(logits(params, law_V)))


def descend(params, law_V, transition_VxV, learning_rate, recorded_T):
    """Full-batch gradient descent; a row can be vmapped over all arguments but the last.

    It follows the flow while learning_rate < 2 / sharpness. At rate 0.5 and epsilon 1e-2 the path of
    pi = (.75, .19, .05, .01) meets that bound at step 2000: what it does later, new rises of F among it, is the step
    size's doing, not the flow's.

    Args:
      recorded_T: T numbers of steps, increasing, at which the parameters are kept.

    Returns:
      Parameters after those steps, with an axis T in front.
    """

    def step(_, params):
        grads = jax.grad(loss)(params, law_V, transition_VxV)
        return jax.tree.map(lambda leaf, grad: leaf - learning_rate * grad, params, grads)

    def segment(params, n_steps):
        params = jax.lax.fori_loop(0, n_steps, step, params)
        return params, params

    recorded_T = jnp.asarray(recorded_T, jnp.int32)
    return jax.lax.scan(segment, params, jnp.diff(recorded_T, prepend=jnp.zeros_like(recorded_T[:1])))[1]


def plane(params):
    """Two orthonormal directions (Dx2) of the model's width that hold most of W_0: its leading right singular vectors.

    Not centred, as the origin, where training starts, has a meaning here. Signs: the largest entry of W_0 on each is
    positive. Take them of the last snapshot, and show all snapshots in the same plane.
    """
    embedding_VxD = named_leaves(params)[W_0]
    _, _, direction_KxD = jnp.linalg.svd(embedding_VxD, full_matrices=False)
    on_Vx2 = embedding_VxD @ direction_KxD[:2].T
    peak_2 = jnp.take_along_axis(on_Vx2, jnp.argmax(jnp.abs(on_Vx2), axis=0)[None], axis=0)[0]
    return (direction_KxD[:2] * jnp.where(peak_2 < 0, -1, 1)[:, None]).T


def portrait(params, law_V, transition_VxV, basis_Dx2) -> dict[str, jax.Array]:
    """All that is measured of one state; `top` is the most frequent token. Not to be vmapped on a CPU: `portraits`.

    Returns:
      `loss`, `gap` (loss - H(pi)) and `excess` (loss - entropy rate), nats; `gradient_norm`;
      `attention` A (VxV), its `entropy` by query (V, nats), `focus` F = sum_i pi_i A[i, top];
      by matrix (`_embedding`, `_query`, `_key`): `rank_*` (effective), `ratio_*` = s_2 / s_1, `norm_*` (Frobenius);
      `focusing` = |(W_Q + W_K)^T v_1| with v_1 the embedding's direction, what stage 2 multiplies by e^{ct};
      `token_norm` (V) of W_0's rows; `gamma` (V) and `redistribution` rho, `alignment` = |u_1 . pi| / |pi| and
      `singular_ratios` s_k / s_1 (k > 1) as `focus.embedding_direction` has them; `coordinates` (Vx2) of W_0 in the
      plane `basis_Dx2`.
    """
    p = named_leaves(params)
    value, grads = jax.value_and_grad(loss)(params, law_V, transition_VxV)
    attention_VxV = attention(params, law_V)
    top = jnp.argmax(law_V)
    direction = focus.embedding_direction(p[W_0], law_V, top)
    along_D = direction["gamma"] @ p[W_0]  # gamma^T W_0 = s_1^2 v_1^T
    along_D = along_D / jnp.linalg.norm(along_D)
    found = {
        "loss": value,
        "gap": value - markov.unigram_entropy(law_V),
        "excess": value - markov.entropy_rate(law_V, transition_VxV),
        "gradient_norm": jnp.linalg.norm(ravel_pytree(grads)[0]),
        "attention": attention_VxV,
        "entropy": focus.entropy(attention_VxV),
        "focus": focus.focus(attention_VxV[:, top], law_V),
        "focusing": jnp.linalg.norm(along_D @ (p[W_Q] + p[W_K])),
        "token_norm": jnp.linalg.norm(p[W_0], axis=1),
        "coordinates": p[W_0] @ basis_Dx2,
    }
    for name, matrix in (("embedding", p[W_0]), ("query", p[W_Q]), ("key", p[W_K])):
        s_K = rank.singular_values(matrix)
        found[f"rank_{name}"] = rank.soft_ranks(s_K)["effective"]
        found[f"ratio_{name}"] = s_K[1] / s_K[0]
        found[f"norm_{name}"] = jnp.linalg.norm(s_K)
    return found | {name: direction[name] for name in ("gamma", "redistribution", "alignment", "singular_ratios")}


def portraits(params_T, law_V, transition_VxV, basis_Dx2) -> dict[str, jax.Array]:
    """`portrait` of T states, one after the other: batched LAPACK calls can wait for each other forever."""
    return jax.lax.map(lambda params: portrait(params, law_V, transition_VxV, basis_Dx2), params_T)


def growth_constant(gamma_V, law_V, stay, d_model: int):
    """c of stage 2, per unit time: dW_Q/dt = c a a^T W_K and dW_K/dt = c a a^T W_Q for W_0 = gamma a^T, gamma ~ pi.

    c = stay / sqrt(D) |gamma|^2 / |pi|^4 [sum_i pi_i^2 (log pi_i + H(pi))] [sum_k pi_k^3 - (sum_k pi_k^2)^2]

    at the plateau of the unigram entropy, for P = stay I + (1 - stay) 1 pi^T. (W_Q + W_K)^T a grows as e^{ct}; scores
    are products of the two, and with them rho, which they drive, grows as e^{2ct}.
    """
    square = jnp.sum(jnp.square(law_V))
    surprise = jnp.sum(jnp.square(law_V) * (jnp.log(law_V) + markov.unigram_entropy(law_V)))
    spread = jnp.sum(law_V**3) - jnp.square(square)
    return stay / math.sqrt(d_model) * jnp.sum(jnp.square(gamma_V)) / jnp.square(square) * surprise * spread


def growth_rate(time_T, value_T, low, high) -> Estimate:
    """Measured rate of value ~ e^{ct} per unit time, where low < value < high; on the host, see `focus.log_slope`.

    The longest stretch of snapshots inside counts. The error takes residuals for independent.

    Raises:
      ValueError: fewer than three snapshots lie inside.
    """
    value_T = np.asarray(value_T)
    inside_T = (value_T > low) & (value_T < high)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside_T, [False]])))
    first, end = max(zip(edges[::2], edges[1::2], strict=True), key=lambda ends: ends[1] - ends[0], default=(0, 0))
    if end - first < 3:
        raise ValueError(f"{end - first} snapshots with values between {low} and {high}: a rate needs three or more")
    return focus.log_slope(jnp.asarray(time_T)[first:end], jnp.asarray(value_T)[first:end])


class Critical(NamedTuple):
    """A state as a critical point: |grad L|, and eigenvalues, least first, of the Hessian and of its diagonal blocks.

    A negative eigenvalue -c is a direction in which gradient flow leaves as e^{ct}.

    Attributes:
      outer_N: of W_0 and W_1, attention held.
      attention_N: of W_Q and W_K, the outer matrices held.
    """

    gradient_norm: jax.Array
    whole_N: jax.Array
    outer_N: jax.Array
    attention_N: jax.Array


def critical(params, law_V, transition_VxV) -> Critical:
    """The dense Hessian's spectrum: for hundreds of parameters, in float64. Not to be vmapped on a CPU."""
    flat_N, unravel = ravel_pytree(params)

    def flat_loss(flat_N):
        return loss(unravel(flat_N), law_V, transition_VxV)

    hessian_NxN = jax.hessian(flat_loss)(flat_N)
    in_attention = map_named(lambda name, leaf: np.full(leaf.shape, name in (W_Q, W_K)), params)
    in_attention_N = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(in_attention)])
    blocks = [np.flatnonzero(block) for block in (~in_attention_N, in_attention_N)]
    return Critical(
        jnp.linalg.norm(jax.grad(flat_loss)(flat_N)),
        jnp.linalg.eigvalsh(hessian_NxN),
        *(jnp.linalg.eigvalsh(hessian_NxN[np.ix_(block, block)]) for block in blocks),
    )
