"""What joins two facts in a model: the 2 x 2 block of entity matrices, and how alike (e1, r1) and e2 are inside.

By symmetry the part of a solution that tells entities apart is a block [[a, c], [p, s]] times the identity on what has
mean zero. Rows: what (e1, r1) says, what e2 says. Columns: of the bridge e2, and of the object e3. Trained are
a (e1 -> its bridge), s (e2 -> its object) and with identities p (e2 -> itself); c (e1 -> its object) answers questions
of two hops. The nuclear norm of the block is sqrt(a^2 + c^2 + p^2 + s^2 + 2 |as - cp|), least over c where rank is
one or c = p; its Frobenius norm is least at c = 0, where nothing is shared. (Derived for the linear model of arXiv
2509.24653, whose theory is of the nuclear norm.)
"""

from typing import NamedTuple

import jax.numpy as jnp


class Block(NamedTuple):
    """Centred entries: of the right one less the mean of the others of its set."""

    a: object
    c: object
    p: object
    s: object

    @property
    def sharing(self):
        """R = cp / (as): 1 where all of it is shared, 0 where nothing is."""
        return self.c * self.p / (self.a * self.s)

    @property
    def nuclear(self):
        squares = self.a**2 + self.c**2 + self.p**2 + self.s**2
        return jnp.sqrt(squares + 2 * jnp.abs(self.a * self.s - self.c * self.p))

    @property
    def over_minimum(self):
        """Nuclear norm over the least one of all blocks whose trained entries a, p, s are no smaller than the least of
        these: 1 for a multiple of [[1, 1], [1, 1]]."""
        return self.nuclear / (2 * jnp.minimum(jnp.minimum(self.a, self.p), self.s))

    @property
    def least(self) -> "Block":
        """With the c of least nuclear norm, for a, s > 0: p, but no more than makes the rank one."""
        bound = self.a * self.s / jnp.maximum(jnp.abs(self.p), 1e-30)
        return self._replace(c=jnp.clip(self.p, -bound, bound))

    @property
    def excess(self):
        """Nuclear norm over the least one of its own a, p, s: what its c alone adds."""
        return self.nuclear / self.least.nuclear


def margin(logits_CxV, token_C, group_C):
    """Mean over C chains of the logit of the chain's token less those of the other chains of its group, float32."""
    logit_CxC = logits_CxV[:, token_C].astype(jnp.float32)
    return jnp.mean(jnp.diagonal(logit_CxC) - _of_others(logit_CxC, group_C))


def latent(h_first_CxD, h_bridge_CxD, h_entity_ExD, group_C):
    """How alike the states h(e1, r1) and h(e2) of C chains are, and three controls.

    Args:
      h_entity_ExD: of every entity alone, the true bridge among them.
      group_C: chains of the same relations.

    Returns:
      `centred`: mean cosine after the mean of each group is taken off both; `cosine`, without that; and beside it
      `other`: with the other bridges of the group, `random`: with all other ones; `rank`: the median rank of the true
      bridge among all entities by cosine, 1 if it is the nearest.
    """
    same_CxC = (group_C[:, None] == group_C[None]).astype(jnp.float32)
    mean_CxC = same_CxC / jnp.sum(same_CxC, axis=1, keepdims=True)
    first_CxD, bridge_CxD = (h.astype(jnp.float32) for h in (h_first_CxD, h_bridge_CxD))
    centred_C = jnp.sum(_unit(first_CxD - mean_CxC @ first_CxD) * _unit(bridge_CxD - mean_CxC @ bridge_CxD), axis=1)
    cosine_CxC = _unit(first_CxD) @ _unit(bridge_CxD).T
    true_C = jnp.diagonal(cosine_CxC)
    cosine_CxE = _unit(first_CxD) @ _unit(h_entity_ExD.astype(jnp.float32)).T
    # what is as near as the true bridge up to rounding is it
    rank_C = 1 + jnp.sum((cosine_CxE > true_C[:, None] + 1e-5).astype(jnp.float32), axis=1)
    n = len(group_C)
    return {
        "centred": jnp.mean(centred_C),
        "cosine": jnp.mean(true_C),
        "other": jnp.mean(_of_others(cosine_CxC, group_C)),
        "random": (jnp.sum(cosine_CxC) - jnp.sum(true_C)) / (n * (n - 1)),
        "rank": jnp.median(rank_C),
    }


def _of_others(value_CxC, group_C):
    """Mean over the other chains of the group, of each row."""
    same_CxC = (group_C[:, None] == group_C[None]).astype(jnp.float32)
    others_CxC = same_CxC * (1 - jnp.eye(len(group_C), dtype=jnp.float32))
    return jnp.sum(value_CxC * others_CxC, axis=1) / jnp.sum(others_CxC, axis=1)


def _unit(h_xD):
    return h_xD / jnp.maximum(jnp.linalg.norm(h_xD, axis=-1, keepdims=True), 1e-30)
