"""Facts and rules with two premises (RuleTaker-style) in a closed world: what cannot be proved is false.

`max is red . sam is kind . if red and kind then nice . max is nice ?` -> `false`. What is asked about has a proof of
depth h, or would have one but for a single missing fact. ("Transformers as Soft Reasoners over Language",
arXiv 2002.05867; there rules are written in many ways and may be negated, here they are not.)
"""

import dataclasses

import jax.numpy as jnp

from lab import limits
from lab.tasks import reasoning
from lab.tasks.reasoning import (
    ENTITIES,
    PROPERTIES,
    integers,
    is_held_out,
    one_of,
    permutation,
    sentences,
    uniforms,
)
from lab.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Rules(Task):
    """The task as a value.

    D = `max(hops_ood)` levels of `width` attributes are derived, each by one rule: from an attribute one level down and
    one of the D + 2 attributes of level 0, which are facts. Of two entities all level-0 attributes but one are told.
    The question is about an attribute of level h; the attribute that is missing is one of the at most h + 1 facts of
    its proof or one of the others, evenly, and the question states or denies, evenly. Facts, then rules, in random
    order.

    Either answer is right for 1/2, but partial search pays: who looks for j random ones of the h + 1 facts of a proof
    can be right for 1/2 + j / (2 h + 2), who counts the rules that lack a premise for up to 0.68 (`width` 2, h = 3).

    The entity and the attribute asked about are a combination of names in the sense of `lab.tasks.reasoning`.

    Attributes:
      hops_train, hops_ood: see there.
      width: derived attributes a level.
    """

    hops_train: tuple
    hops_ood: tuple
    width: int

    has_answer, splits, dims = True, reasoning.SPLITS, reasoning.DIMS
    vocab_size, depth, coords = map(property, (reasoning.vocab_size, reasoning.depth, reasoning.coords))
    sample, score, decode, ids = reasoning.sample, reasoning.score, reasoning.decode, reasoning.ids

    def __post_init__(self):
        reasoning.check_hops(self)
        limits.check("task", self, bounds={"width": (1, None)})
        if self.n_attributes > len(PROPERTIES):
            raise ValueError(
                f"task.width={self.width}, task.hops_ood={self.hops_ood}: at most {len(PROPERTIES)} attributes in all, "
                f"(width + 1) * max(hops_ood) + 2 = {self.n_attributes} are needed"
            )

    @property
    def n_facts(self) -> int:
        """Facts told of each entity."""
        return self.depth + 1

    @property
    def n_attributes(self) -> int:
        return self.n_facts + 1 + self.depth * self.width

    @property
    def words(self) -> tuple[str, ...]:
        return ("", ".", "?", "is", "isn't", "if", "and", "then", "true", "false", *ENTITIES, *PROPERTIES)

    @property
    def length(self) -> int:
        return 4 * 2 * self.n_facts + 7 * self.depth * self.width + 4

    @property
    def answer_alphabet(self) -> tuple[int, ...]:
        return tuple(self.ids("true false"))

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return tuple(token for token in range(1, self.vocab_size) if token not in self.answer_alphabet)

    def item(self, key, hops, held_out: bool):
        n_base, derived = self.n_facts + 1, (self.depth, self.width)
        name_A, entity_2xE, main_DxW, side_DxW, turn_DxW, missing_2xF, coin_2, fact_S, rule_R = uniforms(
            key,
            (len(PROPERTIES),),
            (2, len(ENTITIES)),
            derived,
            derived,
            derived,
            (2, n_base),
            (2,),
            (2 * self.n_facts,),
            (self.depth * self.width,),
        )
        provable, states = coin_2 < 0.5
        stop, asks, says, denies, true, false = self.ids(". ? is isn't true false")
        first_entity, first_property = self.ids(f"{ENTITIES[0]} {PROPERTIES[0]}")
        name_A = permutation(name_A)
        asked = name_A[self.n_facts + 1 + (hops - 1) * self.width]  # attributes of a level are alike: the first one
        entity_2 = first_entity + self._entities(entity_2xE, asked, held_out)
        name_A = first_property + name_A

        rule_Rx7, support_F, uses_F = self._rules(main_DxW, side_DxW, turn_DxW < 0.5, name_A, hops)
        # The largest of u^(1 / w) has probability proportional to w: the number of uses, or one over it. Facts of the
        # proof are used more than others, and rules that lack a premise would give the answer away.
        few_F = jnp.maximum(uses_F, 0.1)
        missing_2xF = missing_2xF.at[0].power(jnp.where(provable, 1 / few_F, few_F))
        missing_2 = one_of(missing_2xF, jnp.stack([support_F != provable, jnp.ones(n_base, bool)]))
        told_1xF = jnp.arange(self.n_facts, dtype=jnp.int32)[None]
        told_2xF = told_1xF + (told_1xF >= missing_2[:, None]).astype(jnp.int32)
        fact_Sx4 = sentences(entity_2[:, None], says, name_A[told_2xF], stop)

        sign = jnp.where(states, jnp.int32(says), jnp.int32(denies))
        question_4 = jnp.stack([entity_2[0], sign, first_property + asked, jnp.int32(asks)])
        answer = jnp.where(states == provable, jnp.int32(true), jnp.int32(false))
        text = fact_Sx4[permutation(fact_S)], rule_Rx7[permutation(rule_R)]
        sequence_M = jnp.concatenate([*(part.reshape(-1) for part in text), question_4, answer[None]])
        is_answer_M = jnp.arange(sequence_M.size, dtype=jnp.int32) == sequence_M.size - 1
        return sequence_M, is_answer_M, jnp.asarray([true, false], jnp.int32)

    def _rules(self, main_DxW, side_DxW, turned_DxW, name_A, hops):
        """Rules (R, 7), which level-0 attributes the first one of level `hops` rests on, how many rules use each."""
        if_, and_, then, stop = self.ids("if and then .")
        n_base, shape = self.n_facts + 1, (self.depth, self.width)
        below_D = jnp.asarray([n_base] + [self.width] * (self.depth - 1), jnp.int32)  # attributes one level down
        main_DxW = integers(main_DxW, below_D[:, None])
        side_DxW = integers(side_DxW, n_base - 1)
        # On level 1 both premises are facts: another one than the first.
        side_DxW = side_DxW.at[0].add((side_DxW[0] >= main_DxW[0]).astype(jnp.int32))

        derived_DxW = n_base + jnp.arange(self.depth * self.width, dtype=jnp.int32).reshape(shape)
        first_D = jnp.concatenate([jnp.zeros(1, jnp.int32), derived_DxW[:-1, 0]])  # of the attributes one level down
        premises = first_D[:, None] + main_DxW, side_DxW
        one_DxW, two_DxW = (name_A[jnp.where(turned_DxW, *pair)] for pair in (premises, premises[::-1]))
        rule_Rx7 = sentences(if_, one_DxW, and_, two_DxW, then, name_A[derived_DxW], stop)

        base_F = jnp.arange(n_base, dtype=jnp.int32)
        used_U = jnp.concatenate([main_DxW[0], side_DxW.reshape(-1)])
        uses_F = jnp.sum(used_U[:, None] == base_F[None], axis=0, dtype=jnp.float32)
        support_F, at = jnp.zeros(n_base, bool), jnp.int32(0)
        for level in reversed(range(self.depth)):
            passed = level < hops
            support_F |= passed & (base_F == side_DxW[level, at])
            at = jnp.where(passed, main_DxW[level, at], at)
        return rule_Rx7, support_F | (base_F == at), uses_F

    def _entities(self, uniform_2xE, attribute, held_out: bool):
        """The entity asked about, which may stand with the attribute, and another one."""
        entity_E = jnp.arange(len(ENTITIES), dtype=jnp.int32)
        asked = one_of(uniform_2xE[0], is_held_out(entity_E, attribute) == held_out)
        return jnp.stack([asked, one_of(uniform_2xE[1], entity_E != asked)])
