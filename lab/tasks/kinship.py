"""Chains of family relations (CLUTRR-style): how are their two ends related?

`bob mother rose . rose brother paul . bob paul ?` -> `uncle`: Bob's mother is Rose, her brother is Paul, who is Bob's
uncle. Chains are made of parents, children, siblings and spouses; COMPOSED says what two relations make. Families are
simple: everyone has two parents of different gender, who have married each other and nobody else, and relatives do not
marry. ("CLUTRR: A Diagnostic Benchmark for Inductive Reasoning from Text", arXiv 1908.06177; the table is ours.)
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from lab.tasks import reasoning
from lab.tasks.reasoning import integers, is_held_out, one_of, permutation, sentences, swapped_in, uniforms
from lab.tasks.task import Task

# kind -> what a man and a woman of that relation are called
RELATIONS = {
    "parent": ("father", "mother"),
    "child": ("son", "daughter"),
    "sibling": ("brother", "sister"),
    "spouse": ("husband", "wife"),
    "grandparent": ("grandfather", "grandmother"),
    "grandchild": ("grandson", "granddaughter"),
    "parent's sibling": ("uncle", "aunt"),
    "sibling's child": ("nephew", "niece"),
    "spouse's parent": ("father-in-law", "mother-in-law"),
    "child's spouse": ("son-in-law", "daughter-in-law"),
}
STEPS = ("parent", "child", "sibling", "spouse")
SELF = "self"
# (b of a, c of b) -> c of a, for three people. What is missing has no name here or is not decided: a child of a
# grandparent is a parent or a parent's sibling.
COMPOSED = {
    ("parent", "parent"): "grandparent",
    ("parent", "child"): "sibling",
    ("parent", "sibling"): "parent's sibling",
    ("parent", "spouse"): "parent",
    ("parent", "spouse's parent"): "grandparent",
    ("child", "parent"): "spouse",
    ("child", "child"): "grandchild",
    ("child", "sibling"): "child",
    ("child", "spouse"): "child's spouse",
    ("child", "sibling's child"): "grandchild",
    ("sibling", "parent"): "parent",
    ("sibling", "child"): "sibling's child",
    ("sibling", "sibling"): "sibling",
    ("sibling", "grandparent"): "grandparent",
    ("sibling", "parent's sibling"): "parent's sibling",
    ("spouse", "parent"): "spouse's parent",
    ("spouse", "child"): "child",
    ("spouse", "spouse"): SELF,
    ("spouse", "grandchild"): "grandchild",
    ("spouse", "spouse's parent"): "parent",
    ("spouse", "child's spouse"): "child's spouse",
    ("grandparent", "spouse"): "grandparent",
    ("grandchild", "sibling"): "grandchild",
    ("parent's sibling", "parent"): "grandparent",
    ("sibling's child", "sibling"): "sibling's child",
    ("spouse's parent", "spouse"): "spouse's parent",
    ("child's spouse", "child"): "grandchild",
    ("child's spouse", "spouse"): "child",
    ("child's spouse", "spouse's parent"): "spouse",
}
MEN_NAMES = "adam bob carl david eric frank george henry ivan jack kevin louis martin noah oscar paul"
WOMEN_NAMES = "alice beth clara diana emma flora grace helen ida julia kate laura mary nina olga rose"
MEN, WOMEN = tuple(MEN_NAMES.split()), tuple(WOMEN_NAMES.split())


@dataclasses.dataclass(frozen=True)
class Kinship(Task):
    """The task as a value.

    A sequence tells `max(hops_ood)` facts in random order: a chain of h relations among h + 1 people, and as noise
    children and siblings of people in the chain, who are new. Answers are balanced: each of the ten kinds of relation
    is as likely, and then each chain of h steps that makes it. `plausible` is the share of answers of the right gender,
    which a name in the question tells; 1/10 of these are right by chance.

    There are few kinds of chain, 13 of two steps, 29 of three, 52 of four (times genders and names): training sees all
    of its own, so `test` can be solved by memory of whole chains, `ood` cannot.

    The two people asked about are a combination of names in the sense of `lab.tasks.reasoning`.

    Attributes:
      hops_train, hops_ood: see there; at least 2.
    """

    hops_train: tuple
    hops_ood: tuple

    has_answer, splits, dims = True, reasoning.SPLITS, reasoning.DIMS
    vocab_size, depth, coords = map(property, (reasoning.vocab_size, reasoning.depth, reasoning.coords))
    sample, score, decode, ids = reasoning.sample, reasoning.score, reasoning.decode, reasoning.ids
    context_alphabet = property(reasoning.all_words)

    def __post_init__(self):
        reasoning.check_hops(self, least=2)
        if self.depth >= len(MEN):
            raise ValueError(f"task.hops_ood={self.hops_ood}: at most {len(MEN) - 1}, for want of names")

    @property
    def words(self) -> tuple[str, ...]:
        relations = (word for both in RELATIONS.values() for word in both)
        return ("", ".", "?", *relations, *MEN, *WOMEN)

    @property
    def length(self) -> int:
        return 4 * self.depth + 3

    @property
    def answer_alphabet(self) -> tuple[int, ...]:
        first = self.words.index("father")
        return tuple(range(first, first + 2 * len(RELATIONS)))

    def item(self, key, hops, held_out: bool):
        n_people = self.depth + 1
        chain, gender_N, name_2xM, last_M, whose_F, noise_F, order_F = uniforms(
            key, (), (n_people,), (2, len(MEN)), (len(MEN),), *[(self.depth,)] * 3
        )
        stop, asks, first_relation = self.ids(". ? father")
        chain = self._chain(chain, hops)
        gender_N = integers(gender_N, 2)
        for i in range(1, n_people):  # of a couple, the later one has the other gender
            partner = chain["partner_N"][i]
            gender_N = gender_N.at[i].set(jnp.where(partner < 0, gender_N[i], 1 - gender_N[partner]))
        name_N = self._names(name_2xM, last_M, gender_N, hops, held_out)

        place_F = jnp.arange(self.depth, dtype=jnp.int32)
        in_chain_F = place_F < hops
        whose_F = jnp.where(in_chain_F, place_F, integers(whose_F, hops + 1))
        noise_F = STEPS.index("child") + integers(noise_F, 2)  # or "sibling", the next
        kind_F = jnp.where(in_chain_F, chain["kind_F"], noise_F)
        relation_F = first_relation + 2 * kind_F + gender_N[1:]
        fact_Fx4 = sentences(name_N[whose_F], relation_F, name_N[1:], stop)[permutation(order_F)]

        question_3 = jnp.stack([name_N[0], name_N[hops], jnp.int32(asks)])
        answer = first_relation + 2 * chain["answer"] + gender_N[hops]
        sequence_M = jnp.concatenate([fact_Fx4.reshape(-1), question_3, answer[None]])
        candidates_C = first_relation + 2 * jnp.arange(len(RELATIONS), dtype=jnp.int32) + gender_N[hops]
        return sequence_M, jnp.arange(sequence_M.size, dtype=jnp.int32) == sequence_M.size - 1, candidates_C

    def _chain(self, uniform, hops) -> dict:
        """A chain of `hops` steps: kinds of relation (F), who before is one's spouse, or -1 (F + 1), and the answer."""
        tables = [_table(h, self.depth) for h in self.coords["hop"]]
        first_H = np.cumsum([0] + [len(t["edges"]) for t in tables[:-1]]).astype(np.int32)
        row_H = first_H + jnp.stack([jnp.searchsorted(jnp.asarray(t["edges"]), uniform) for t in tables]).astype(
            jnp.int32
        )
        row = row_H[jnp.argmax(jnp.asarray(self.coords["hop"], jnp.int32) == hops)]
        return {
            name: jnp.asarray(np.concatenate([t[name] for t in tables]))[row]
            for name in ("kind_F", "partner_N", "answer")
        }

    def _names(self, uniform_2xM, last_M, gender_N, hops, held_out: bool):
        """Tokens of everyone's name; the first and the one at `hops` are a combination that is held out, or is not."""
        n = len(MEN)
        name_2xM = jnp.stack([permutation(uniform_2xM[0]), n + permutation(uniform_2xM[1])])
        first = name_2xM[gender_N[0], 0]
        every_M = gender_N[hops] * n + jnp.arange(n, dtype=jnp.int32)
        last = gender_N[hops] * n + one_of(last_M, (is_held_out(first, every_M) == held_out) & (every_M != first))
        name_2xM = name_2xM.at[gender_N[hops]].set(swapped_in(name_2xM[gender_N[hops]], hops, last))
        place_N = jnp.arange(self.depth + 1, dtype=jnp.int32)
        return self.words.index(MEN[0]) + name_2xM[gender_N, place_N]


def chains(n_steps: int) -> list[tuple[tuple[str, ...], dict[tuple[int, int], str]]]:
    """All chains of so many of STEPS among different people whose every part has a name in RELATIONS.

    Returns:
      the steps, and what person j is to person i for all i < j.
    """
    found = [((), {})]
    for end in range(1, n_steps + 1):
        longer = []
        for steps, named in found:
            for step in STEPS:
                of_last = _relations_to_last(named | {(end - 1, end): step}, end)
                if of_last is not None:
                    longer.append(((*steps, step), of_last))
        found = longer
    return found


def _relations_to_last(named: dict, end: int) -> dict | None:
    """`named` with what the last person is to everyone; None where this is nothing, or someone who was there before."""
    for i in range(end - 2, -1, -1):
        made = {COMPOSED.get((named[i, j], named[j, end])) for j in range(i + 1, end)} - {None}
        if len(made) != 1 or SELF in made:
            return None
        named = named | {(i, end): made.pop()}
    return named


@functools.cache
def _table(n_steps: int, width: int) -> dict[str, np.ndarray]:
    """The chains of so many steps as arrays, padded to `width` steps; `edges` are their cumulative probabilities."""
    kinds, found = list(RELATIONS), chains(n_steps)
    answers = [kinds.index(named[0, n_steps]) for _, named in found]
    kind_SxF = np.zeros((len(found), width), np.int32)
    partner_SxN = np.full((len(found), width + 1), -1, np.int32)
    for row, (steps, named) in enumerate(found):
        kind_SxF[row, :n_steps] = [kinds.index(step) for step in steps]
        for (i, j), relation in named.items():
            if relation == "spouse":
                partner_SxN[row, j] = i
    p_S = np.array([1 / len(set(answers)) / answers.count(answer) for answer in answers])
    edge_S = np.append(np.cumsum(p_S)[:-1], 1).astype(np.float32)
    return {"kind_F": kind_SxF, "partner_N": partner_SxN, "answer": np.array(answers, np.int32), "edges": edge_S}
