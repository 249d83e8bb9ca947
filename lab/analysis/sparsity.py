"""Sparse neurons and bypassed attention: which hidden units are on, which never are, and what attention adds.

The residual stream may carry a token past attention: it does where the norm of what attention adds is small beside the
stream's, or where the sum points where the stream did.
"""

import jax.numpy as jnp

BYPASSED = 0.1  # norm of what attention adds, over the stream's, below which it counts as passed by


def active(post_BxLxF, threshold: float):
    """Which hidden units are on, boolean (B, L, F): |s| above `threshold` times the root mean square of all.

    Args:
      threshold: 0 of a ReLU, whose zeros are exact: then this is s > 0.
    """
    return jnp.abs(post_BxLxF) > threshold * jnp.sqrt(jnp.mean(jnp.square(post_BxLxF)))


def active_share(active_BxLxF):
    """Share of the units that are on, by position, (L): mean over sequences."""
    return jnp.mean(active_BxLxF, axis=(0, 2), dtype=jnp.float32)


def dead_share(active_BxLxF):
    """Share of the units that no token turns on; at most what it would be on more tokens."""
    return jnp.mean(~jnp.any(active_BxLxF, axis=(0, 1)), dtype=jnp.float32)


def bypass(stream_BxLxD, added_BxLxD) -> dict:
    """How much of the stream goes past attention.

    `ratio`: median over tokens of |Attn(x)| / |x|. `bypass`: mean of |x| / (|x| + |Attn(x)|). `cosine`: mean of that
    between x and x + Attn(x). `bypassed`: share of tokens with a ratio below `BYPASSED`.
    """
    whole_BxLxD = stream_BxLxD + added_BxLxD
    stream_BxL, added_BxL, whole_BxL = (
        jnp.linalg.norm(h_BxLxD, axis=-1) for h_BxLxD in (stream_BxLxD, added_BxLxD, whole_BxLxD)
    )
    tiny = jnp.finfo(stream_BxL.dtype).tiny
    ratio_BxL = added_BxL / jnp.maximum(stream_BxL, tiny)
    inner_BxL = jnp.sum(stream_BxLxD * whole_BxLxD, axis=-1)
    return {
        "ratio": jnp.median(ratio_BxL),
        "bypass": jnp.mean(stream_BxL / jnp.maximum(stream_BxL + added_BxL, tiny)),
        "cosine": jnp.mean(inner_BxL / jnp.maximum(stream_BxL * whole_BxL, tiny)),
        "bypassed": jnp.mean(ratio_BxL < BYPASSED, dtype=jnp.float32),
    }
