"""What arXiv 2310.13220 changes in softmax attention: the query's own term, the views, negatives.

Attention of a token q to those before it, i, and to itself is one gradient step of a dual model (`lab.analysis.dual`).
What its authors' changes of the dual's loss do to the layer; their formulas were not available, the forms are ours:

- *regularized*: a penalty (alpha / 2) |W|^2 scales what the dual starts from, the query's own term: p_q becomes
  (1 - alpha) p_q;
- *augmented*: keys and values go through a small MLP g each, g(W x) (`serial`) or W x + g(W x) (`parallel`);
- *negative*: v_i -> v_i - (beta / r) sum of v_j over the r tokens before q that it scores lowest.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lab.models.layers import ACTIVATIONS, dense

AUGMENTS = ("none", "serial", "parallel")


@dataclasses.dataclass(frozen=True)
class Changes:
    """Static; the usual values change nothing, no bit. `activation`, `d_augment`: of the MLPs, their hidden width."""

    alpha: float = 0.0
    beta: float = 0.0
    n_negatives: int = 1
    augment: str = "none"
    d_augment: int = 32
    activation: str = "relu"

    @property
    def mixes(self) -> bool:
        return bool(self.alpha or self.beta)


def augmented(view_BxLxD, changes: Changes, prefix: str = ""):
    """Keys or values, through their MLP if they have one; called where layers may be made."""
    if changes.augment == "none":
        return view_BxLxD
    d_model = view_BxLxD.shape[-1]
    hidden_BxLxF = ACTIVATIONS[changes.activation](dense(d_model, changes.d_augment, False, f"{prefix}in")(view_BxLxD))
    mapped_BxLxD = dense(changes.d_augment, d_model, False, f"{prefix}out")(hidden_BxLxF)
    return mapped_BxLxD if changes.augment == "serial" else view_BxLxD + mapped_BxLxD


def mixing(pattern, score, changes: Changes):
    """What values are multiplied by, (..., Q, L) as both arguments; the pattern itself where alpha and beta are 0.

    The queries are the last Q of the L tokens. Of a query with fewer tokens before it than `n_negatives` all are
    negatives, and there is none of the first token.

    Args:
      pattern: softmax of `score`, 0 after the query.
    """
    ahead = (None,) * (pattern.ndim - 2)
    n_queries, length = pattern.shape[-2:]
    own_Qx1, places_1xL = np.arange(length - n_queries, length)[:, None], np.arange(length)[None]
    is_own = (places_1xL == own_Qx1)[ahead]
    mix = jnp.where(is_own, (1 - changes.alpha) * pattern, pattern) if changes.alpha else pattern
    if changes.beta:
        places_1xN = places_1xL[:, :-1]  # the last token is before none
        is_before = (places_1xN < own_Qx1)[ahead]
        known = jnp.where(is_before, score[..., :-1], jnp.inf)
        # by comparison: cheaper than to sort where L is small; of equal scores the earlier one is the lower
        lower, tied = known[..., None, :] < known[..., :, None], known[..., None, :] == known[..., :, None]
        is_earlier_NxN = (places_1xN < places_1xN.T)[(*ahead, None)]
        n_lower = jnp.sum(lower | (tied & is_earlier_NxN), axis=-1)
        is_negative = is_before & (n_lower < changes.n_negatives)
        share_Qx1 = changes.beta / np.clip(own_Qx1, 1, changes.n_negatives)
        own_weight = jnp.sum(jnp.where(is_own, pattern, 0), axis=-1, keepdims=True)
        taken = share_Qx1.astype(pattern.dtype)[ahead] * (1 - own_weight)
        mix = mix.at[..., :-1].add(-taken * is_negative.astype(mix.dtype))
    return mix
