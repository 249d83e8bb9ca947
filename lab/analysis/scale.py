"""Norms of arrays scaled by their largest entry, so that squares neither underflow nor overflow.

Weight decay takes weights to where their squares leave float32's range, 1e-19 and below. Zero arrays stay zero, NaN
stays NaN. Exact up to rounding.
"""

import jax.numpy as jnp


def by_peak(array, axis: int | None = None):
    """`(array / peak, peak)`, peak its largest magnitude: of all entries, or along an axis, which stays with length 1.

    So the largest magnitude becomes exactly 1 and the norm at least 1, where the array is not zero.
    """
    peak = jnp.max(jnp.abs(array), axis=axis, keepdims=axis is not None)
    return array / jnp.where(peak == 0, 1, peak), peak


def norm(array):
    """|A|_F, of an array of any shape as one vector."""
    scaled, peak = by_peak(array)
    return peak * jnp.linalg.norm(jnp.ravel(scaled))


def unit(array):
    """A / |A|_F."""
    scaled, _ = by_peak(array)
    return scaled / jnp.maximum(jnp.linalg.norm(jnp.ravel(scaled)), 1)


def unit_rows(vectors_NxD):
    """Every row w_i / |w_i|."""
    scaled_NxD, _ = by_peak(vectors_NxD, axis=1)
    return scaled_NxD / jnp.maximum(jnp.linalg.norm(scaled_NxD, axis=1, keepdims=True), 1)
