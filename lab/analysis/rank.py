"""Soft ranks of weight matrices, from the singular values s_1 >= s_2 >= ...

They are ordered: stable <= participation <= effective (squared) <= effective <= rank, and
nuclear^2 <= effective. A zero matrix has rank 0 in all of them. All are exact up to rounding: no error bars.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from lab.analysis.condensation import split_heads, split_output_heads
from lab.analysis.weights import Layouts, weight_matrices
from lab.tree import by_layer, stack


def singular_values(matrix):
    """s_1 >= s_2 >= ... of an (I, O) matrix: min(I, O) of them."""
    return jnp.linalg.svd(matrix, compute_uv=False)


def stable_rank(matrix):
    """|W|_F^2 / |W|_2^2 = sum_i (s_i / s_1)^2. A square Gaussian matrix of width n has about n / 4."""
    return _stable(singular_values(matrix))


def effective_rank(matrix):
    """exp(H(p)) with p_i = s_i / sum_j s_j, the convention of Roy & Vetterli (2007)."""
    return _effective(_relative(singular_values(matrix)))


def soft_ranks(s_K):
    """Soft ranks from the singular values, largest first.

    `stable` and `effective` as above; `effective_squared` = exp(H(p)) with p_i = s_i^2 / sum_j s_j^2; `participation` =
    (sum_i s_i^2)^2 / sum_i s_i^4; `nuclear` = |W|_* / |W|_F, between 1 and the root of the rank.
    """
    return {
        "stable": _stable(s_K),
        "effective": _effective(_relative(s_K)),
        "effective_squared": _effective(jnp.square(_relative(s_K))),
        "participation": _participation(s_K),
        "nuclear": _nuclear(s_K),
    }


def ranks(params, layouts: Layouts | None = None):
    """Every one of `soft_ranks` (M) of every weight matrix, in the order and with the arguments of `matrix_names`."""
    found = [soft_ranks(singular_values(matrix)) for matrix in weight_matrices(params, layouts).values()]
    return stack(found)


def spectra(params, layouts: Layouts | None = None):
    """Singular values (M, K) of every weight matrix, as `ranks`; NaN after those that a matrix has."""
    values = [singular_values(matrix) for matrix in weight_matrices(params, layouts).values()]
    longest = max(s_K.size for s_K in values)
    return jnp.stack([jnp.pad(s_K, (0, longest - s_K.size), constant_values=jnp.nan) for s_K in values])


def product_singular_values(a_IxK, b_KxO):
    """The min(I, K, O) singular values of A B that need not vanish, without forming the (I, O) product.

    With A = Q_a R_a and B^T = Q_b R_b they are those of R_a R_b^T, at most (K, K): O((I + O) K^2) operations.
    """
    r_a_KxK, r_b_KxK = (jnp.linalg.qr(factor, mode="r") for factor in (a_IxK, b_KxO.T))
    return singular_values(r_a_KxK @ r_b_KxK.T)


def circuit_factors(params, n_heads: int):
    """The factors of every head's QK and OV matrix in a parameter tree of `lab.models.Transformer`, or of `Decoder`,
    with N layers.

    For a row vector x in the residual stream the score of query x and key y is x (A B) y^T / sqrt(K) with the factors
    of `qk`, and what the head writes of x is x (A B) with those of `ov`. Biases, norms and rotations are left out. Of
    grouped heads each has the key and value of its group.

    Returns:
      `qk` = (W_Q, W_K^T) and `ov` = (W_V, W_O): pairs of arrays (N, H, D, K) and (N, H, K, D).

    Raises:
      ValueError: the tree has no layers, or `n_heads` does not divide the width of all heads.
    """
    layers = by_layer(params)
    if not layers:
        raise ValueError(f"no block_<i> among {', '.join(params)}: circuits are those of a lab transformer")

    def heads(matrix, split):
        return jnp.stack([split(layer["attn"][matrix]["kernel"], n_heads) for layer in layers])

    def grouped(kernel_DxE, n_heads):
        d_head = layers[0]["attn"]["query"]["kernel"].shape[1] // n_heads
        n_groups = kernel_DxE.shape[1] // d_head
        return jnp.repeat(split_heads(kernel_DxE, n_groups), n_heads // n_groups, axis=0)

    query, key, value = heads("query", split_heads), heads("key", grouped), heads("value", grouped)
    return {"qk": (query, jnp.swapaxes(key, 2, 3)), "ov": (value, heads("out", split_output_heads))}


def circuit_spectra(params, n_heads: int):
    """Singular values of W_Q W_K^T (`qk`) and W_V W_O (`ov`), each (N, H, min(D, K)) by layer and head.

    Raises:
      ValueError: as `circuit_factors`.
    """

    def spectrum(factors):
        # One head after the other: jaxlib's batched LAPACK calls can wait for each other forever (see `measure`).
        n_layers, n_heads = factors[0].shape[:2]
        flat = [factor.reshape(-1, *factor.shape[2:]) for factor in factors]
        values = jax.lax.map(lambda pair: product_singular_values(*pair), flat)
        return values.reshape(n_layers, n_heads, -1)

    return {name: spectrum(factors) for name, factors in circuit_factors(params, n_heads).items()}


def _relative(s_K):
    # Relative to the largest: squares of strongly decayed weights would underflow.
    return s_K / jnp.where(s_K[0] == 0, 1, s_K[0])


def _stable(s_K):
    return jnp.sum(jnp.square(_relative(s_K)))


def _effective(weight_K):
    total = jnp.sum(weight_K)
    p_K = weight_K / jnp.where(total == 0, 1, total)
    return jnp.where(total == 0, 0, jnp.exp(jnp.sum(entr(p_K))))


def _participation(s_K):
    square_K = jnp.square(_relative(s_K))
    fourth = jnp.sum(jnp.square(square_K))
    return jnp.square(jnp.sum(square_K)) / jnp.where(fourth == 0, 1, fourth)


def _nuclear(s_K):
    relative_K = _relative(s_K)
    norm = jnp.linalg.norm(relative_K)
    return jnp.sum(relative_K) / jnp.where(norm == 0, 1, norm)
