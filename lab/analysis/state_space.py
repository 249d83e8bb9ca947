"""What a Mamba reads of earlier tokens: S in the place of attention, its columns cut, and what its convolution fuses.

Models are `lab.models.Mamba1` and `Mamba2`; activations those of an unedited run with `readout="all"`. All of this is
deterministic in them.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp


def reads(acts: Mapping, n_layers: int):
    """(N, B, Q, L), rows sum to one: which share of |S dt| token q has of token l, averaged over heads (channels).

    In the place of an attention pattern. S has signs, and what it weighs are the x of `ssm/conv`, not of one size.
    """
    return jnp.stack([_reads(acts[f"block_{i}/ssm/s"], acts[f"block_{i}/ssm/dt"]) for i in range(n_layers)])


def cut_columns(n_layers: int, first_B, width: int) -> dict[str, Callable]:
    """Edits that zero S[q, l] for tokens l = first, ..., first + width - 1 of each sequence and q > l, in all layers.

    What those tokens put into the state is then read by nobody but themselves; what the convolution carries stays.
    """

    def cut(s_BxHxQxL):
        n_queries, length = s_BxHxQxL.shape[2:]
        token_L = jnp.arange(length, dtype=jnp.int32)
        past_BxL = token_L[None] - first_B[:, None].astype(jnp.int32)
        cut_BxL = (past_BxL >= 0) & (past_BxL < width)
        later_QxL = token_L[length - n_queries :, None] > token_L[None]
        return jnp.where((cut_BxL[:, None] & later_QxL[None])[:, None], 0, s_BxHxQxL)

    return {f"block_{i}/ssm/s": cut for i in range(n_layers)}


def substitute_convolved(source_acts: Mapping, n_layers: int, last_B) -> dict[str, Callable]:
    """Edits that give tokens after `last_B` of each sequence the convolution's output of another run, in all layers."""

    def of(name):
        def edit(conv_BxLxC):
            token_L = jnp.arange(conv_BxLxC.shape[1], dtype=jnp.int32)
            after_BxL = token_L[None] > last_B[:, None].astype(jnp.int32)
            return jnp.where(after_BxL[..., None], source_acts[name], conv_BxLxC)

        return edit

    return {name: of(name) for name in (f"block_{i}/ssm/conv" for i in range(n_layers))}


def tap_cosines(params: Mapping, n_layers: int):
    """(N, T, T): cosines between the vectors of two taps over the convolved channels.

    A convolution whose taps are parallel adds up its window whatever the order; orthogonal ones keep order apart.
    """
    taps_NxTxC = jnp.stack([params[f"block_{i}"]["ssm"]["conv"]["taps"] for i in range(n_layers)])
    unit_NxTxC = taps_NxTxC / jnp.linalg.norm(taps_NxTxC, axis=2, keepdims=True)
    return jnp.einsum("ntc,nsc->nts", unit_NxTxC, unit_NxTxC, precision="highest")


def _reads(s_BxHxQxL, dt_BxLxH):
    weight_BxHxQxL = jnp.abs(s_BxHxQxL) * jnp.swapaxes(dt_BxLxH, 1, 2)[:, :, None]
    weight_BxQxL = jnp.mean(weight_BxHxQxL, axis=1)
    total_BxQx1 = jnp.sum(weight_BxQxL, axis=2, keepdims=True)
    return weight_BxQxL / jnp.where(total_BxQx1 == 0, 1, total_BxQx1)
