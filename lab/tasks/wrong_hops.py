"""Noise in questions of two hops: wrong bridges and wrong answers that belong to a question.

A question has five random numbers of its own: three say at which probability it is hit, two which entities stand in
place of the true ones. So of two probabilities the higher one changes all that the lower one does, to the same.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

XI = ("xi_first", "xi_second", "xi_both", "xi_leaking")
N_NUMBERS = 5


def entities(question_B, true: Mapping, xi: Mapping, n_entities: int, degree: int, key) -> dict:
    """`bridge` and `answer` as they are trained, int32 (B,); an entity that is drawn may be the true one.

    Args:
      question_B: numbers of questions of two hops, see `lab.tasks.worlds`.
      true: `bridge` and `answer`, int32 (B,).
      xi: those of `XI` that are asked for, traced or not. `xi_leaking`: every question of an (h, r1) is hit for
        itself, and its wrong bridge stays for the later ones, up to the next that is hit: the loop of arXiv
        2502.04667's code, which assigns to the variable that it iterates under.
      key: of the noise.
    """

    def bits_of(question):
        return jax.random.bits(jax.random.fold_in(key, question), (N_NUMBERS,), jnp.uint32)

    bits_5xB = jax.vmap(bits_of)(question_B).T
    first_B, second_B, both_B = (_uniform(bits_B) for bits_B in bits_5xB[:3])
    bridge_B, answer_B = (_entity(bits_B, n_entities) for bits_B in bits_5xB[3:])
    both_B = both_B < xi.get("xi_both", 0.0)
    found = {
        "bridge": jnp.where((first_B < xi.get("xi_first", 0.0)) | both_B, bridge_B, true["bridge"]),
        "answer": jnp.where((second_B < xi.get("xi_second", 0.0)) | both_B, answer_B, true["answer"]),
    }
    if "xi_leaking" not in xi:
        return found
    step_D = jnp.arange(degree, dtype=jnp.int32)
    up_to_B = question_B % degree
    bits_BxDx5 = jax.vmap(jax.vmap(bits_of))((question_B - up_to_B)[:, None] + step_D[None])
    hit_BxD = (_uniform(bits_BxDx5[..., 0]) < xi["xi_leaking"]) & (step_D[None] <= up_to_B[:, None])
    last_B = jnp.max(jnp.where(hit_BxD, step_D[None], -1), axis=1)
    leaked_B = jnp.take_along_axis(bits_BxDx5[..., 3], jnp.maximum(last_B, 0)[:, None], axis=1)[:, 0]
    return found | {"bridge": jnp.where(last_B >= 0, _entity(leaked_B, n_entities), found["bridge"])}


def _entity(bits, n_entities: int):
    return (bits % jnp.uint32(n_entities)).astype(jnp.int32)


def _uniform(bits):
    """On [0, 1), exact."""
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)
