"""Search in directed acyclic graphs (ProsQA-style): which of two concepts can be reached from an entity?

`max is wumpus . wumpus is rompus . ... max is rompus or lorpus ?` -> `rompus`. One of the two lies h edges from the
entity that is asked about, the other one h edges from another entity. ("Training Large Language Models to Reason in a
Continuous Latent Space", arXiv 2412.06769, for ProsQA; the layered graphs are ours.)
"""

import dataclasses

import jax.numpy as jnp

from lab import limits
from lab.tasks import reasoning
from lab.tasks.reasoning import (
    CONCEPTS,
    ENTITIES,
    HELD_OUT,
    integers,
    is_held_out,
    one_of,
    permutation,
    sentences,
    swapped_in,
    uniforms,
)
from lab.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class GraphPath(Task):
    """The task as a value.

    Every entity is the root of `max(hops_ood)` levels of `width` concepts; those of the first level are children of the
    entity, others of `n_parents` concepts one level up. So all paths to a concept have the same length. With one parent
    there are two trees, and whoever walks back from a candidate never goes astray. With two parents there are three
    graphs: the second parent is another one of the same graph, or, in the two that hold the candidates, one of the
    third; the search has dead ends both ways. These two differ in nothing but the entity asked about.

    Edges stand in random order. Picking either candidate is right for 1/2 (`plausible` is the share of such answers).
    The two candidates are a combination of names in the sense of `lab.tasks.reasoning`: in `test` they are never asked
    about together in training.

    Attributes:
      hops_train, hops_ood: see `lab.tasks.reasoning`.
      width: concepts a level of each graph; two at least where there are two parents.
      n_parents: 1 or 2.
      n_concepts: names of concepts to choose from; at most 126.
    """

    hops_train: tuple
    hops_ood: tuple
    width: int
    n_parents: int
    n_concepts: int

    has_answer, splits, dims = True, reasoning.SPLITS, reasoning.DIMS
    vocab_size, depth, coords = map(property, (reasoning.vocab_size, reasoning.depth, reasoning.coords))
    sample, score, decode, ids = reasoning.sample, reasoning.score, reasoning.decode, reasoning.ids
    context_alphabet = property(reasoning.all_words)

    def __post_init__(self):
        reasoning.check_hops(self)
        limits.check("task", self, choices={"n_parents": (1, 2)})
        if self.width < self.n_parents:
            raise ValueError(f"task.width={self.width}: at least task.n_parents={self.n_parents}")
        least = max(self.n_graphs * self.depth * self.width, 2 * HELD_OUT)  # two of each class: any has a partner
        if not least <= self.n_concepts <= len(CONCEPTS):
            raise ValueError(f"task.n_concepts={self.n_concepts}: the graphs need {least}, there are {len(CONCEPTS)}")

    @property
    def n_graphs(self) -> int:
        return 1 + self.n_parents

    @property
    def n_edges(self) -> int:
        return self.n_graphs * self.width * (1 + self.n_parents * (self.depth - 1))

    @property
    def words(self) -> tuple[str, ...]:
        return ("", ".", "?", "is", "or", *ENTITIES, *CONCEPTS[: self.n_concepts])

    @property
    def length(self) -> int:
        return 4 * self.n_edges + 6

    @property
    def answer_alphabet(self) -> tuple[int, ...]:
        return tuple(range(self.words.index(CONCEPTS[0]), self.vocab_size))

    def item(self, key, hops, held_out: bool):
        shape = self.n_graphs, self.depth, self.width
        below = self.n_graphs, self.depth - 1, self.width  # concepts with parents
        name_C, pair_C, entity_E, main_GxExW, second_GxExWxC, order_S, which, swap = uniforms(
            key,
            (self.n_concepts,),
            (self.n_concepts,),
            (len(ENTITIES),),
            below,
            (*below, 2 * self.width),
            (self.n_edges,),
            (),
            (),
        )
        stop, asks, says, either, first_entity, first_concept = self.ids(f". ? is or {ENTITIES[0]} {CONCEPTS[0]}")
        # Concepts of a level are alike, so the candidates are the first ones of level h in their graphs.
        place, other_place = (hops - 1) * self.width, (self.depth + hops - 1) * self.width
        name_C = permutation(name_C)
        every_C = jnp.arange(self.n_concepts, dtype=jnp.int32)
        one = name_C[place]
        other = one_of(pair_C, (is_held_out(every_C, one) == held_out) & (every_C != one))
        # Not all names have as many others to go with: who is right must not depend on who came first.
        right, wrong = jnp.where(which < 0.5, jnp.stack([one, other]), jnp.stack([other, one]))
        name_C = swapped_in(swapped_in(name_C, place, right), other_place, wrong)

        concept_GxDxW = first_concept + name_C[: self.n_graphs * self.depth * self.width].reshape(shape)
        entity_G = first_entity + permutation(entity_E)[: self.n_graphs]
        from_entities_Sx4 = sentences(entity_G[:, None], says, concept_GxDxW[:, 0], stop)
        parent_GxExWxP = self._parents(integers(main_GxExW, self.width), second_GxExWxC, concept_GxDxW)
        among_concepts_Sx4 = sentences(parent_GxExWxP, says, concept_GxDxW[:, 1:, :, None], stop)
        edge_Sx4 = jnp.concatenate([from_entities_Sx4, among_concepts_Sx4])[permutation(order_S)]

        candidates_2 = first_concept + jnp.stack([right, wrong])
        first, second = jnp.where(swap < 0.5, candidates_2, candidates_2[::-1])
        question_6 = jnp.stack([entity_G[0], jnp.int32(says), first, jnp.int32(either), second, jnp.int32(asks)])
        sequence_M = jnp.concatenate([edge_Sx4.reshape(-1), question_6, candidates_2[:1]])
        return sequence_M, jnp.arange(sequence_M.size, dtype=jnp.int32) == sequence_M.size - 1, candidates_2

    def _parents(self, main_GxExW, uniform_GxExWxC, concept_GxDxW):
        """The P = `n_parents` parents of every concept below the first level, (G, D - 1, W, P) tokens."""
        above_GxExW = concept_GxDxW[:, :-1]
        main_parent_GxExW = jnp.take_along_axis(above_GxExW, main_GxExW, axis=2)
        if self.n_parents == 1:
            return main_parent_GxExW[..., None]
        # The second one is another of its own graph or any of the last: of these two groups of W, those that may be.
        n_graphs, width = self.n_graphs, self.width
        stray_GxExW = jnp.broadcast_to(above_GxExW[-1:], above_GxExW.shape)
        pool_GxExC = jnp.concatenate([above_GxExW, stray_GxExW], axis=2)
        place_C = jnp.arange(2 * width, dtype=jnp.int32)
        is_last_G = jnp.arange(n_graphs, dtype=jnp.int32) == n_graphs - 1
        other_GxExWxC = main_GxExW[..., None] != place_C[None, None, None]
        allowed_GxExWxC = other_GxExWxC & ((place_C < width)[None] | ~is_last_G[:, None])[:, None, None]
        second_GxExW = one_of(uniform_GxExWxC, allowed_GxExWxC)
        return jnp.stack([main_parent_GxExW, jnp.take_along_axis(pool_GxExC, second_GxExW, axis=2)], axis=3)
