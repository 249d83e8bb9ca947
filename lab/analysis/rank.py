"""How many directions a weight matrix uses: three soft ranks, from the singular values s_1 >= s_2 >= ...

They are ordered: stable <= effective (squared) <= effective <= rank. A zero matrix has rank 0 in all of them.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from lab.tree import named_leaves


def singular_values(matrix):
    """s_1 >= s_2 >= ... of an (I, O) matrix: min(I, O) of them."""
    return jnp.linalg.svd(matrix, compute_uv=False)


def stable_rank(matrix):
    """|W|_F^2 / |W|_2^2 = sum_i (s_i / s_1)^2. A square Gaussian matrix of width n has about n / 4."""
    return _stable(singular_values(matrix))


def effective_rank(matrix):
    """exp(H(p)) with p_i = s_i / sum_j s_j, the convention of Roy & Vetterli (2007)."""
    return _effective(_relative(singular_values(matrix)))


def effective_rank_squared(matrix):
    """exp(H(p)) with p_i = s_i^2 / sum_j s_j^2: the same, of the eigenvalues of W^T W."""
    return _effective(jnp.square(_relative(singular_values(matrix))))


def matrix_names(params) -> list[str]:
    """The M weight matrices of a parameter tree: paths of its 2-D kernels and embeddings, in tree order."""
    return list(_matrices(params))


def ranks(params):
    """`stable` (M) and `effective` (M) rank of every weight matrix, in the order of `matrix_names`."""
    spectra = [singular_values(matrix) for matrix in _matrices(params).values()]
    return {
        "stable": jnp.stack([_stable(s_K) for s_K in spectra]),
        "effective": jnp.stack([_effective(_relative(s_K)) for s_K in spectra]),
    }


def _relative(s_K):
    # Relative to the largest: squares of strongly decayed weights would underflow.
    return s_K / jnp.where(s_K[0] == 0, 1, s_K[0])


def _stable(s_K):
    return jnp.sum(jnp.square(_relative(s_K)))


def _effective(weight_K):
    total = jnp.sum(weight_K)
    p_K = weight_K / jnp.where(total == 0, 1, total)
    return jnp.where(total == 0, 0, jnp.exp(jnp.sum(entr(p_K))))


def _matrices(params) -> dict[str, jax.Array]:
    return {
        name: leaf
        for name, leaf in named_leaves(params).items()
        if leaf.ndim == 2 and name.split("/")[-1] in ("kernel", "embedding")
    }
