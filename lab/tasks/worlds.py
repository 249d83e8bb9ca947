"""Worlds of facts (head, relation, tail) as tables of whole numbers, and the questions of two and three hops in them.

Host arrays, drawn by numpy's `RandomState`, whose streams never change. Entities are numbered from 0, relations
from 0. The facts of one head stand together, so a question of two hops is a number: `fact * degree + j` goes on with
the j-th fact of that fact's tail, and one of three hops is `(fact * degree + j) * degree + l`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

RELATIONS, BRIDGES = ("first", "second", "third"), ("bridge", "next")  # parts of questions
NO_FACT = -1
MOST_TESTED = 3000  # questions of a kind; as many as are published


class World(NamedTuple):
    """Facts, and what is known of entities.

    Attributes:
      head_A, relation_A, tail_A: int32, sorted by head.
      start_E: int32, the first fact of each entity, `NO_FACT` for one that is no head.
      kind_E: int32, which questions an entity may answer: two of one kind are answers of one type.
      bridge_I: int32, the entities whose identity, `e -> e`, may be trained: of a share the first ones are, so they
        stand in random order.
      is_ood_A: bool, facts that no trained question of two hops uses.
      degree: facts of a head.
    """

    head_A: np.ndarray
    relation_A: np.ndarray
    tail_A: np.ndarray
    start_E: np.ndarray
    kind_E: np.ndarray
    bridge_I: np.ndarray
    is_ood_A: np.ndarray
    degree: int

    def chain(self, n_hops: int, question) -> list:
        """The facts that questions join, by their numbers; those may be NumPy's or, of an `on_device`, traced."""
        if n_hops == 1:
            return [question]
        before = self.chain(n_hops - 1, question // self.degree)
        return [*before, self.start_E[self.tail_A[before[-1]]] + question % self.degree]

    def parts(self, n_hops: int, question) -> dict:
        """Entities and relations of questions: `head`, the first relations of `RELATIONS`, `bridge` and `next` if
        there are any, `answer`."""
        facts = self.chain(n_hops, question)
        *between, answer = [self.tail_A[fact] for fact in facts]
        relations = zip(RELATIONS, [self.relation_A[fact] for fact in facts], strict=False)
        bridges = zip(BRIDGES, between, strict=False)
        return {"head": self.head_A[facts[0]], **dict(relations), **dict(bridges), "answer": answer}

    def apply(self, entity_B, relation_B):
        """The tail of (entity, relation), int32; `NO_FACT` where that is none."""
        fact_BxD = self.start_E[entity_B][:, None] + jnp.arange(self.degree, dtype=jnp.int32)[None]
        is_fact_BxD = (self.relation_A[fact_BxD] == relation_B[:, None]) & (self.start_E[entity_B] != NO_FACT)[:, None]
        return jnp.max(jnp.where(is_fact_BxD, self.tail_A[fact_BxD], NO_FACT), axis=1)

    def on_device(self) -> "World":
        return World(*(jnp.asarray(part) if isinstance(part, np.ndarray) else part for part in self))


class Questions(NamedTuple):
    """Questions by number, int32, each in random order.

    Attributes:
      pool: of two hops, both in distribution: the first ones are trained, as many as a row asks for.
      two_hop_id, two_hop_ood: held out of the pool; both hops out of distribution. Mixed ones are left out.
      three_hop_id, three_hop_ood: all hops in distribution, or none.
    """

    pool: np.ndarray
    two_hop_id: np.ndarray
    two_hop_ood: np.ndarray
    three_hop_id: np.ndarray
    three_hop_ood: np.ndarray


def layers(n: int, n_relations: int, degree: int, ood_share: float, seed: int) -> World:
    """Subjects, bridges, objects; each relation is a bijection onto a set of entities of its own.

    First relation i leads to its own `n` bridges, and the l-th second relation leads from there to `n` objects of
    (i, l). With `degree` = `n_relations` heads share all relations: `n` subjects have an edge of every first relation,
    bridges one of every second. With degree 1 they have one each: `n` subjects for every first relation, and bridges
    take turns with the second ones. A share of subjects is out of distribution with all facts behind them.
    """
    random, k = np.random.RandomState(seed), n_relations
    shared = degree == k
    n_subjects = n if shared else n * k
    facts, kind = [], [0] * n_subjects + [1 + i for i in range(k) for _ in range(n)]
    for i in range(k):
        first = 0 if shared else i * n
        facts += [(first + s, i, n_subjects + i * n + b) for s, b in enumerate(random.permutation(n))]
    for i in range(k):
        for second in range(k):
            heads = np.arange(n) if shared else np.arange(second, n, k)
            first_object = n_subjects + n * k + len(kind[n_subjects + n * k :])
            facts += [
                (n_subjects + i * n + b, k + second, first_object + o)
                for b, o in zip(heads, random.permutation(len(heads)), strict=True)
            ]
            kind += [1 + k + i * k + second] * len(heads)
    subjects = random.permutation(n_subjects)[: round(ood_share * n_subjects)]
    heads = {*subjects.tolist()}
    heads |= {tail for head, _, tail in facts if head in heads}
    bridge_I = n_subjects + random.permutation(n * k)
    return _world(facts, [head in heads for head, *_ in facts], kind, bridge_I, degree)


def graph(n: int, n_relations: int, degree: int, ood_share: float, seed: int) -> World:
    """`n` entities, each the head of `degree` facts of distinct relations with uniformly random tails; a share of the
    facts, uniformly random, is out of distribution (arXiv 2502.04667)."""
    random = np.random.RandomState(seed)
    relation_ExD = np.argsort(random.random_sample((n, n_relations)), axis=1)[:, :degree]
    tail_ExD = random.randint(n, size=(n, degree))
    facts = np.stack([np.repeat(np.arange(n), degree), relation_ExD.ravel(), tail_ExD.ravel()], axis=1)
    is_ood_A = np.zeros(len(facts), bool)
    is_ood_A[random.permutation(len(facts))[: round(ood_share * len(facts))]] = True
    return _world(facts, is_ood_A, np.zeros(n), random.permutation(n), degree)


def questions(world: World, test_share: float, three_hop: bool, seed: int) -> Questions:
    """Splits the questions of a world.

    Args:
      test_share: of those in distribution, held out of the pool; at least one where there are any and it is not 0.
      three_hop: whether there are questions of three hops.
    """
    random = np.random.RandomState(seed)
    degrees = np.arange(world.degree)
    first = np.flatnonzero(world.start_E[world.tail_A] != NO_FACT)
    two = (first[:, None] * world.degree + degrees).ravel()
    last = world.chain(2, two)[1]
    n_ood = np.sum([world.is_ood_A[fact] for fact in world.chain(2, two)], axis=0)
    inside, ood = (random.permutation(two[n_ood == n]) for n in (0, 2))
    n_test = min(len(inside), max(1, round(test_share * len(inside)))) if test_share else 0
    found = [inside[n_test:], inside[:n_test][:MOST_TESTED], ood[:MOST_TESTED]]
    for wanted in (0, 3):
        goes_on = (world.start_E[world.tail_A[last]] != NO_FACT) & (n_ood == min(wanted, 2)) & three_hop
        three = (two[goes_on][:, None] * world.degree + degrees).ravel()
        three = three[world.is_ood_A[world.chain(3, three)[2]] == (wanted > 0)]
        found.append(random.permutation(three)[:MOST_TESTED])
    return Questions(*(part.astype(np.int32) for part in found))


def _world(facts, is_ood_A, kind_E, bridge_I, degree: int) -> World:
    facts_Ax3 = np.asarray(facts, np.int32)
    order_A = np.lexsort((facts_Ax3[:, 1], facts_Ax3[:, 0]))
    head_A, relation_A, tail_A = facts_Ax3[order_A].T
    start_E = np.full(len(kind_E), NO_FACT, np.int32)
    start_E[head_A[::degree]] = np.arange(0, len(head_A), degree)
    kind_E, bridge_I = (np.asarray(array, np.int32) for array in (kind_E, bridge_I))
    return World(head_A, relation_A, tail_A, start_E, kind_E, bridge_I, np.asarray(is_ood_A)[order_A], degree)
