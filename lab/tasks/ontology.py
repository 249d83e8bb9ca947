"""Deduction in fictional ontologies (PrOntoQA-style).

`wumpus is rompus . rompus isn't red . max is wumpus . max is red ?` -> `false`. Concepts form chains, properties hang
on them, an entity enters a chain, and the question is about the property h rules away: h - 1 of the form "every A is a
B" and one that gives the property. ("Language Models Are Greedy Reasoners", arXiv 2210.01240, for the ontologies;
"Reasoning Bias of Next Token Prediction Training", arXiv 2502.02007, for the cloze form. The layout is ours.)
"""

import dataclasses

import jax
import jax.numpy as jnp

from lab import limits
from lab.objective import PAD
from lab.tasks import reasoning
from lab.tasks.answers import last_answer_token, token_correct
from lab.tasks.reasoning import (
    CONCEPTS,
    ENTITIES,
    HELD_OUT,
    PROPERTIES,
    integers,
    is_held_out,
    one_of,
    permutation,
    sentences,
    uniforms,
)
from lab.tasks.task import Batch, Task

FORMS = ("true_false", "cloze")


@dataclasses.dataclass(frozen=True)
class Ontology(Task):
    """The task as a value.

    Every sequence tells `n_chains` chains of `max(hops_ood)` concepts each in random order, and of one entity a chain
    where it enters, all at the same level: chains differ in nothing but the entity asked about. `true_false`: every
    concept of a chain has one property, the second chain the opposite ones at the same levels, further chains at
    random; the question states or denies one of them. `cloze`: only the last concept of each chain has a property, and
    the question asks for it; `max is ?` -> `red`. What is asked about lies h rules from the entity.

    The shallowest answers are right for 1/2 (`true_false`) and 1/`n_chains` (`cloze`: any property that is told). With
    `chain_of_thought` the answer is the proof, `max is wumpus . max is rompus . max isn't red . false`: `accuracy` asks
    for all of it, as greedy decoding would give it; `final_accuracy` for the last token given the true proof, which
    hardly leaves anything to deduce.

    Attributes:
      hops_train, hops_ood: see `lab.tasks.reasoning`.
      n_chains: 2 to 4.
      n_concepts: names of concepts to choose from; at most 126.
      form: `true_false` or `cloze`.

    An entity and the concept it enters at are a combination of names in the sense of `lab.tasks.reasoning`: `max is
    wumpus` of split `test` is told in no training sequence. (It may be a conclusion there, in the proof of another
    one.)
    """

    hops_train: tuple
    hops_ood: tuple
    n_chains: int
    n_concepts: int
    form: str
    chain_of_thought: bool

    has_answer, splits, dims = True, reasoning.SPLITS, reasoning.DIMS
    vocab_size, depth, coords = map(property, (reasoning.vocab_size, reasoning.depth, reasoning.coords))
    sample, decode, ids = reasoning.sample, reasoning.decode, reasoning.ids

    def __post_init__(self):
        reasoning.check_hops(self)
        most = len(ENTITIES) // HELD_OUT  # each with a name of its own, all in one class of names
        limits.check("task", self, choices={"form": FORMS}, bounds={"n_chains": (2, most)})
        least = self.n_chains * self.depth
        if not least <= self.n_concepts <= len(CONCEPTS):
            raise ValueError(
                f"task.n_concepts={self.n_concepts}: from task.n_chains * max(task.hops_ood) = {least} "
                f"to {len(CONCEPTS)}"
            )
        if self.depth > len(PROPERTIES):
            raise ValueError(f"task.hops_ood={self.hops_ood}: at most {len(PROPERTIES)}, for want of properties")

    @property
    def words(self) -> tuple[str, ...]:
        marks = ("", ".", "?", "is", "isn't", "true", "false")
        return (*marks, *ENTITIES, *PROPERTIES, *CONCEPTS[: self.n_concepts])

    @property
    def length(self) -> int:
        proof = self.depth + (self.form == "true_false") if self.chain_of_thought else 0
        return 4 * (self._n_told + proof) + (4 if self.form == "true_false" else 3)

    @property
    def _n_told(self) -> int:
        """Sentences before the question."""
        return self.n_chains * (self.depth + (self.depth if self.form == "true_false" else 1))

    @property
    def answer_alphabet(self) -> tuple[int, ...]:
        """The words that answer; all words where answers hold a proof."""
        if self.chain_of_thought:
            return tuple(range(1, self.vocab_size))
        return tuple(self.ids("true false" if self.form == "true_false" else " ".join(PROPERTIES)))

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return tuple(token for token in range(1, self.vocab_size) if token not in self.ids("true false"))

    def item(self, key, hops, held_out: bool):
        shape = self.n_chains, self.depth
        name_C, entry_1, entity_KxE, order_S, property_P, sign_KxN, asked_1 = uniforms(
            key, (self.n_concepts,), (), (self.n_chains, len(ENTITIES)), (self._n_told,), (len(PROPERTIES),), shape, ()
        )
        says, stop, first_entity, first_concept = self.ids(f"is . {ENTITIES[0]} {CONCEPTS[0]}")
        place_KxN = permutation(name_C)[: self.n_chains * self.depth].reshape(shape)
        concept_KxN = first_concept + place_KxN
        highest = self.depth - hops  # where an entity may enter
        is_cloze = self.form == "cloze"
        entry = highest if is_cloze else integers(entry_1, highest + 1)
        entity_K = first_entity + self._entities(entity_KxE, place_KxN[:, entry], held_out)

        property_P = permutation(property_P)
        if is_cloze:
            parts = self._cloze(property_P, concept_KxN, entity_K[0])
        else:
            sign_KxN = sign_KxN < 0.5
            parts = self._true_false(property_P, sign_KxN, asked_1 < 0.5, concept_KxN, entity_K[0], entry + hops - 1)
        properties_Sx4, question_Q, conclusion_C, answer, candidates_A = parts
        chains_Sx4 = sentences(concept_KxN[:, :-1], says, concept_KxN[:, 1:], stop)
        enters_Sx4 = sentences(entity_K, says, concept_KxN[:, entry], stop)
        told_Sx4 = jnp.concatenate([properties_Sx4, chains_Sx4, enters_Sx4])[permutation(order_S)]
        asked_M = jnp.concatenate([told_Sx4.reshape(-1), question_Q])
        if not self.chain_of_thought:
            sequence_M = jnp.append(asked_M, answer)
            return sequence_M, jnp.arange(sequence_M.size, dtype=jnp.int32) >= asked_M.size, candidates_A
        proof_Nx4 = sentences(entity_K[0], says, jnp.roll(concept_KxN[0], -entry), stop)
        proof_Nx4 = jnp.where(jnp.arange(self.depth, dtype=jnp.int32)[:, None] < hops, proof_Nx4, PAD)
        sequence_M = jnp.concatenate([asked_M, proof_Nx4.reshape(-1), conclusion_C, answer[None]])
        sequence_M = sequence_M[jnp.argsort(sequence_M == PAD, stable=True)]  # padding to the end
        is_answer_M = (jnp.arange(sequence_M.size, dtype=jnp.int32) >= asked_M.size) & (sequence_M != PAD)
        return sequence_M, is_answer_M, candidates_A

    def _true_false(self, property_P, is_KxN, states, concept_KxN, entity, level):
        """What properties concepts have; of the one at a level of the first chain: question, conclusion, answer, and
        the answers there could be."""
        stop, asks, says, denies, true, false, first = self.ids(f". ? is isn't true false {PROPERTIES[0]}")
        property_N = first + property_P[: self.depth]
        sign_KxN = jnp.where(is_KxN.at[1].set(~is_KxN[0]), jnp.int32(says), jnp.int32(denies))
        properties_Sx4 = sentences(concept_KxN, sign_KxN, property_N[None], stop)
        sign, asked = sign_KxN[0, level], property_N[level]
        sign_asked = jnp.where(states, jnp.int32(says), jnp.int32(denies))
        question_Q = jnp.stack([entity, sign_asked, asked, jnp.int32(asks)])
        conclusion_C = jnp.stack([entity, sign, asked, jnp.int32(stop)])
        answer = jnp.where(sign == sign_asked, jnp.int32(true), jnp.int32(false))
        return properties_Sx4, question_Q, conclusion_C, answer, jnp.asarray([true, false], jnp.int32)

    def _cloze(self, property_P, concept_KxN, entity):
        """The same in the form that asks for the property at the end; its answer is the conclusion."""
        stop, asks, says, first = self.ids(f". ? is {PROPERTIES[0]}")
        property_K = first + property_P[: self.n_chains]
        properties_Sx4 = sentences(concept_KxN[:, -1], says, property_K, stop)
        question_Q = jnp.stack([entity, jnp.int32(says), jnp.int32(asks)])
        return properties_Sx4, question_Q, jnp.zeros(0, jnp.int32), property_K[0], property_K

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """As `reasoning.score`, with `final_accuracy` where there is a chain of thought."""
        scores = reasoning.score(self, logits_BxQxV, batch)
        if self.chain_of_thought:
            scores["final_accuracy"] = jnp.mean(
                last_answer_token(token_correct(logits_BxQxV, batch), batch), dtype=jnp.float32
            )
        return scores

    def _entities(self, uniform_KxE, place_K, held_out: bool):
        """Distinct entities (K), each of which may stand with the concept it enters at."""
        entity_E = jnp.arange(len(ENTITIES), dtype=jnp.int32)
        free_E, chosen = jnp.ones(len(ENTITIES), bool), []
        for uniform_E, place in zip(uniform_KxE, place_K, strict=True):
            chosen.append(one_of(uniform_E, free_E & (is_held_out(entity_E, place) == held_out)))
            free_E &= entity_E != chosen[-1]
        return jnp.stack(chosen)
