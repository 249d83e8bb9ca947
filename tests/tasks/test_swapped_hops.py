"""Swapped parts of questions against a dictionary of the world's facts."""

import jax
import numpy as np
import pytest

from lab import rng
from lab.tasks import TwoHop, swapped_hops

TASK = TwoHop("graph", n_entities=12, n_relations=6, out_degree=4, ood_share=0.4, test_share=0.1, ratio=1.0)
# one fact for each head and one relation: no other relation, and no other fact of the same head
LONE = TwoHop("graph", n_entities=4, n_relations=1, out_degree=1, ood_share=1.0)
N = 200


def facts(task):
    table = task.facts
    return {(int(h), int(r)): int(t) for h, r, t in zip(table.head_A, table.relation_A, table.tail_A, strict=True)}


def drawn(task, split):
    batch = task.sample(rng.key(0, "batch"), N, split, {})
    parts = swapped_hops.parts(task, batch)
    return batch, {name: np.asarray(part_B) for name, part_B in parts.items()}


@pytest.mark.parametrize("thought", [False, True])
@pytest.mark.parametrize("split", ["two_hop_id", "two_hop_ood"])
def test_parts_of_a_question_are_two_facts(thought, split):
    task = TwoHop(**{**TASK.__dict__, "chain_of_thought": thought})
    known = facts(task)
    _, parts = drawn(task, split)
    for h, r1, r2, b, t in zip(*(parts[name] for name in ("h", "r1", "r2", "b", "t")), strict=True):
        assert known[int(h), int(r1)] == b and known[int(b), int(r2)] == t


def test_swapped_part_makes_another_fact_with_another_tail():
    known = facts(TASK)
    _, parts = drawn(TASK, "two_hop_id")
    tokens = jax.jit(lambda parts: swapped_hops.tokens(TASK, parts, rng.key(1, "swap")))(parts)
    words = {name: [TASK.words[int(token)] for token in token_B] for name, token_B in tokens.items()}
    changed = dict.fromkeys(words, 0)
    for i in range(N):
        h, r1, r2, b, t = (int(parts[name][i]) for name in ("h", "r1", "r2", "b", "t"))
        other = {name: int(words[name][i][1:]) for name in words}
        assert words["h"][i][0] == words["b"][i][0] == "e" and words["r1"][i][0] == words["r2"][i][0] == "r"
        tails = {"h": (known.get((other["h"], r1)), b), "r1": (known.get((h, other["r1"])), b),
                 "r2": (known.get((b, other["r2"])), t), "b": (known.get((other["b"], r2)), t)}  # fmt: skip
        for name, (tail, was) in tails.items():
            itself = other[name] == {"h": h, "r1": r1, "r2": r2, "b": b}[name]
            assert itself or (tail is not None and tail != was)
            changed[name] += not itself
    assert min(changed.values()) > 0.8 * N


def test_part_stays_where_no_other_fact_would_do():
    _, parts = drawn(LONE, "two_hop_ood")
    tokens = swapped_hops.tokens(LONE, parts, rng.key(1, "swap"))
    np.testing.assert_array_equal(tokens["r1"], parts["r1"] + swapped_hops.FIRST_RELATION)
