"""Matrix products, softmax and normalization, with derivatives in the form that a CPU computes fastest.

The values are those of the plain expressions. The derivatives are, too, up to rounding; they are written so that

- the gradient of a product's factor is a product of two matrices as they lie in memory. XLA's CPU kernels take half as
  long (attention: a tenth) for that as where the left factor has to be read along its columns, and a transposed copy
  costs little beside it. `_copied` holds XLA back from folding the transposition into the product again;
- what goes back through softmax and normalization is one expression, not the chain rule's.

All are `custom_jvp`: forward and reverse mode, and both on top of each other, differentiate them.
"""

import jax
import jax.numpy as jnp


def _copied(transposed):
    """A transposed array, as one in memory of its own; GPUs and TPUs read either way and need none."""
    return jax.lax.optimization_barrier(transposed) if jax.default_backend() == "cpu" else transposed


@jax.custom_jvp
def matmul(x_NxI, kernel_IxO):
    """The product x W of a dense layer, (N, O)."""
    return x_NxI @ kernel_IxO


@matmul.defjvp
def _(primals, tangents):
    (x_NxI, kernel_IxO), (dx_NxI, dkernel_IxO) = primals, tangents
    x_IxN = _copied(x_NxI.T)
    by_kernel_NxO = jax.lax.dot_general(x_IxN, dkernel_IxO, (((0,), (0,)), ((), ())))
    return matmul(x_NxI, kernel_IxO), dx_NxI @ kernel_IxO + by_kernel_NxO


@jax.custom_jvp
def scores(q_BxQxK, k_BxLxK):
    """Scalar products of all queries and keys, (B, Q, L)."""
    return jnp.einsum("bqk,blk->bql", q_BxQxK, k_BxLxK)


@scores.defjvp
def _(primals, tangents):
    (q_BxQxK, k_BxLxK), (dq_BxQxK, dk_BxLxK) = primals, tangents
    by_key_BxLxQ = _copied(jnp.einsum("blk,bqk->blq", dk_BxLxK, q_BxQxK))  # what comes back is transposed, then copied
    by_query_BxQxL = jnp.einsum("bqk,blk->bql", dq_BxQxK, k_BxLxK)
    return scores(q_BxQxK, k_BxLxK), by_query_BxQxL + jnp.swapaxes(by_key_BxLxQ, 1, 2)


@jax.custom_jvp
def mix(pattern_BxQxL, v_BxLxK):
    """Sums of values weighted by a pattern, (B, Q, K)."""
    return jnp.einsum("bql,blk->bqk", pattern_BxQxL, v_BxLxK)


@mix.defjvp
def _(primals, tangents):
    (pattern_BxQxL, v_BxLxK), (dpattern_BxQxL, dv_BxLxK) = primals, tangents
    pattern_BxLxQ = _copied(jnp.swapaxes(pattern_BxQxL, 1, 2))
    by_value_BxQxK = jnp.einsum("blq,blk->bqk", pattern_BxLxQ, dv_BxLxK)
    return mix(pattern_BxQxL, v_BxLxK), jnp.einsum("bql,blk->bqk", dpattern_BxQxL, v_BxLxK) + by_value_BxQxK


@jax.custom_jvp
def softmax(score):
    """Softmax over the last axis."""
    exponential = jnp.exp(score - jnp.max(score, axis=-1, keepdims=True))
    return exponential / jnp.sum(exponential, axis=-1, keepdims=True)


@softmax.defjvp
def _(primals, tangents):
    (score,), (dscore,) = primals, tangents
    pattern = softmax(score)
    return pattern, pattern * (dscore - jnp.sum(pattern * dscore, axis=-1, keepdims=True))


@jax.custom_jvp
def normalize(x, epsilon: float):
    """x with mean 0 and variance 1 over its last axis, (x - mean) / sqrt(var + epsilon); the variance in two passes."""
    return _normalize(x, epsilon)[0]


@normalize.defjvp
def _(primals, tangents):
    (x, epsilon), (dx, _) = primals, tangents
    normalized, rate = _normalize(x, epsilon)
    along = normalized * jnp.mean(normalized * dx, axis=-1, keepdims=True)
    return normalized, rate * (dx - jnp.mean(dx, axis=-1, keepdims=True) - along)


def _normalize(x, epsilon: float):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * rate, rate
