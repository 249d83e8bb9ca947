"""Questions of two hops with one part swapped, so that one of their facts has another tail: for causal tracing."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab import rng
from lab.tasks.task import Batch
from lab.tasks.two_hop import FIRST_RELATION, TwoHop

RELATIONS = ("r1", "r2")


def parts(task: TwoHop, batch: Batch) -> dict:
    """Entities and relations of questions as drawn, by number, int32 (B,): `h`, `r1`, `r2`, bridge `b`, answer `t`."""
    tokens = dict(zip(("h", *RELATIONS), batch.tokens_BxL.T[:3], strict=True))
    tokens |= {"b": batch.info["bridge_B"], "t": batch.info["answer_B"]}
    return {name: token_B - _first(task, name) for name, token_B in tokens.items()}


def tokens(task: TwoHop, parts: Mapping, key) -> dict:
    """Another token for each part, int32 (B,): `h` or `r1` for another bridge, `r2` or `b` for another answer.

    At random among the facts of the world; the part itself where none of them would do.

    Args:
      parts: of questions, see `parts`.
    """
    world = task.facts.on_device()
    other_bridge_BxA, other_answer_BxA = (world.tail_A[None] != parts[tail][:, None] for tail in ("b", "t"))
    fits = {
        "h": (other_bridge_BxA & (world.relation_A[None] == parts["r1"][:, None]), world.head_A),
        "r1": (other_bridge_BxA & (world.head_A[None] == parts["h"][:, None]), world.relation_A),
        "r2": (other_answer_BxA & (world.head_A[None] == parts["b"][:, None]), world.relation_A),
        "b": (other_answer_BxA & (world.relation_A[None] == parts["r2"][:, None]), world.head_A),
    }
    found = {}
    for name, (fits_BxA, value_A) in fits.items():
        draw_BxA = jax.random.uniform(rng.named(key, name), fits_BxA.shape, jnp.float32)
        fact_B = jnp.argmax(jnp.where(fits_BxA, draw_BxA, -1), axis=1)
        found[name] = jnp.where(jnp.any(fits_BxA, axis=1), value_A[fact_B], parts[name]) + _first(task, name)
    return found


def _first(task: TwoHop, name: str) -> int:
    return FIRST_RELATION if name in RELATIONS else task.first_entity
