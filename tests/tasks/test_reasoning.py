"""What the reasoning tasks share: words, choices that are uniform where they may be, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from lab.tasks import Ontology
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
    swapped_in,
    uniforms,
)

ALPHA = 1e-3  # level of the tests on counts; the seeds are fixed, so they pass or fail for good
N = 3000
TASK = Ontology(hops_train=(1, 2), hops_ood=(3,), n_chains=2, n_concepts=12, form="cloze", chain_of_thought=False)


def draws(*shape):
    return jax.random.uniform(jax.random.key(0), (N, *shape), jnp.float32)


def test_words_are_distinct():
    words = (*CONCEPTS, *ENTITIES, *PROPERTIES)
    assert len(CONCEPTS) == 126 and len(set(words)) == len(words)


def test_one_of_is_uniform_among_the_allowed_and_zero_where_there_is_none():
    allowed_N = np.array([False, True, False, True, True])
    chosen = np.asarray(one_of(draws(5), allowed_N[None]))
    assert stats.chisquare([np.sum(chosen == i) for i in np.flatnonzero(allowed_N)]).pvalue > ALPHA
    assert set(chosen.tolist()) == {1, 3, 4}
    assert one_of(draws(5)[0], np.zeros(5, bool)) == 0


def test_integers_and_permutations_are_uniform():
    assert stats.chisquare(np.bincount(integers(draws(), 7), minlength=7)).pvalue > ALPHA
    orders = np.asarray(jax.vmap(permutation)(draws(3)))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert (np.sort(orders, axis=1) == np.arange(3)).all()
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > ALPHA


def test_uniforms_is_one_draw_cut_into_the_shapes_asked_for():
    key = jax.random.key(3)
    parts = uniforms(key, (2, 3), (), (4,))
    assert [part.shape for part in parts] == [(2, 3), (), (4,)]
    np.testing.assert_array_equal(
        np.concatenate([part.ravel() for part in parts]), jax.random.uniform(key, (11,), jnp.float32)
    )


def test_a_value_is_swapped_in_and_nothing_is_lost():
    for place in range(5):
        for value in range(5):
            moved = np.asarray(swapped_in(jnp.array([4, 2, 0, 3, 1]), place, value))
            assert moved[place] == value and sorted(moved) == [0, 1, 2, 3, 4]
            assert (moved != [4, 2, 0, 3, 1]).sum() in (0, 2)


def test_one_combination_of_names_in_five_is_held_out_and_every_name_is_in_some():
    held_out = np.asarray(is_held_out(jnp.arange(20)[:, None], jnp.arange(40)[None]))
    assert held_out.mean() == 1 / HELD_OUT
    assert held_out.any(axis=0).all() and held_out.any(axis=1).all()


def test_sentences_are_made_of_tokens_and_arrays_of_tokens():
    np.testing.assert_array_equal(sentences(jnp.array([5, 6]), 3, jnp.array([7, 8])), [[5, 3, 7], [6, 3, 8]])
