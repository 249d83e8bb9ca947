"""Where an operator's roll-out is wrong (which waves, which frames, where), and where its gate sends what."""

import itertools

import jax.numpy as jnp
import numpy as np

BANDS = ("low", "middle", "high")
BORDER = 2  # points along the edge of a patch
TINY = 1e-12


def bands(size: int) -> np.ndarray:
    """bool (band, N, N): the entries of `fft2` with |k| below N / 8, below 3 N / 16, and of all others."""
    k_N = np.fft.fftfreq(size, 1 / size)
    radius_NxN = np.hypot(k_N[:, None], k_N[None])
    edges = (0, size / 8, 3 * size / 16, np.inf)
    return np.stack([(low <= radius_NxN) & (radius_NxN < high) for low, high in itertools.pairwise(edges)])


def shells(size: int) -> np.ndarray:
    """bool (shell, N, N): the entries of `fft2` with |k| nearest to 0 ... N / 2."""
    k_N = np.fft.fftfreq(size, 1 / size)
    radius_NxN = np.rint(np.hypot(k_N[:, None], k_N[None]))
    return radius_NxN[None] == np.arange(size // 2 + 1)[:, None, None]


def power(fields_BxTxNxN, parts_PxNxN):
    """Mean square of the fields in each part of Fourier space, (P,), summed over fields and frames."""
    hat = jnp.fft.fft2(fields_BxTxNxN)
    power_NxN = jnp.sum(jnp.square(hat.real) + jnp.square(hat.imag), axis=(0, 1))
    n = fields_BxTxNxN.shape[-1] ** 4
    return jnp.sum(jnp.where(jnp.asarray(parts_PxNxN), power_NxN[None], 0), axis=(1, 2)) / n


def band_errors(said, true):
    """||said - true|| / ||true|| in each of `BANDS`, of all fields together: (band,)."""
    parts = bands(true.shape[-1])
    return jnp.sqrt(power(said - true, parts) / (power(true, parts) + TINY))


def on_border(size: int, patches: int) -> np.ndarray:
    """bool (N, N): points less than `BORDER` away from the edge of one of patches x patches patches."""
    side = size // patches
    place_N = np.arange(size) % side
    edge_N = (place_N < BORDER) | (place_N >= side - BORDER)
    return edge_N[:, None] | edge_N[None]


def seam(said, true, patches: int):
    """Relative error on the border of patches, over that inside them; NaN where they are all border."""
    on_edge_NxN = on_border(true.shape[-1], patches)
    if on_edge_NxN.all():
        return jnp.full((), jnp.nan, true.dtype)
    edge_NxN = jnp.asarray(on_edge_NxN)

    def relative(where_NxN):
        wrong, size = (jnp.sum(jnp.where(where_NxN[None, None], jnp.square(field), 0)) for field in (said - true, true))
        return jnp.sqrt(wrong / (size + TINY))

    return relative(edge_NxN) / (relative(~edge_NxN) + TINY)


def fine_patches(region_B, patches: int):
    """bool (B, P): the patches whose centre lies in the quadrant that is fine; none where the region is -1."""
    half_G = np.arange(patches) * 2 // patches
    quadrant_P = (2 * half_G[:, None] + half_G[None]).ravel()
    return jnp.asarray(quadrant_P, jnp.int32)[None] == region_B[:, None]


def routing_accuracy(choice_BxTxP, region_B):
    """How often fine patches go to expert 0 and the others to another one, the mean of both shares: 1/2 by chance.

    NaN where no field has a fine patch.
    """
    n_patches = choice_BxTxP.shape[-1]
    is_fine_BxTxP = jnp.broadcast_to(fine_patches(region_B, round(n_patches**0.5))[:, None], choice_BxTxP.shape)
    to_first_BxTxP = choice_BxTxP == 0
    fine = jnp.mean(to_first_BxTxP, where=is_fine_BxTxP, dtype=jnp.float32)
    smooth = jnp.mean(~to_first_BxTxP, where=~is_fine_BxTxP, dtype=jnp.float32)
    return (fine + smooth) / 2
