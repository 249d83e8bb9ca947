"""Reachability: every answer is found again by breadth-first search of the edges that a sequence tells."""

import functools
import itertools
import runpy
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab.tasks import GraphPath
from lab.tasks.reasoning import CONCEPTS, ENTITIES

ALPHA = 1e-3  # level of the tests on counts; the seeds are fixed, so they pass or fail for good
N = 1500
TREES = GraphPath(hops_train=(1, 2), hops_ood=(3,), width=2, n_parents=1, n_concepts=12)
GRAPHS = GraphPath(hops_train=(2, 3), hops_ood=(4, 5), width=2, n_parents=2, n_concepts=36)
WIDE = GraphPath(hops_train=(1, 3), hops_ood=(4,), width=4, n_parents=2, n_concepts=60)
TASKS = [TREES, GRAPHS, WIDE]
DEFAULT = [(TREES, "train"), *((GRAPHS, split) for split in ("train", "test", "ood"))]


draw = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("draw.py"))))
drawn, cases = functools.partial(draw.drawn, n=N), functools.partial(draw.cases, TASKS)


def name(case):
    return case if isinstance(case, str) else f"{case.n_parents}-parents-{case.width}-wide"


def items(task, batch):
    """Edges, entity asked about, the two candidates in their order, answer: as words."""
    for tokens, answer in zip(batch.tokens_BxL, batch.targets_BxL[:, -1], strict=True):
        words = task.decode(tokens).split()
        told, (entity, verb, first, either, second, mark) = words[:-6], words[-6:]
        assert (verb, either, mark) == ("is", "or", "?")
        assert told[1::4] == ["is"] * (len(told) // 4) and told[3::4] == ["."] * (len(told) // 4)
        yield list(zip(told[::4], told[2::4], strict=True)), entity, (first, second), task.words[answer]


def distances(edges, start):
    found, frontier = {start: 0}, [start]
    while frontier:
        node = frontier.pop(0)
        for parent, child in edges:
            if parent == node and child not in found:
                found[child] = found[node] + 1
                frontier.append(child)
    return found


@pytest.mark.parametrize(("task", "split"), cases(*DEFAULT), ids=name)
def test_exactly_the_answer_can_be_reached_and_in_as_many_steps_as_asked(task, split):
    batch = drawn(task, split)
    assert batch.tokens_BxL.shape == (N, task.length)
    assert (batch.weights_BxL == (np.arange(task.length) == task.length - 1)).all()
    assert set(batch.info["hops_B"].tolist()) == set(task.hops_ood if split == "ood" else task.hops_train)
    for i, (edges, entity, candidates, answer) in enumerate(items(task, batch)):
        assert len(set(edges)) == len(edges) == task.n_edges  # none twice
        found = distances(edges, entity)
        (right,) = [candidate for candidate in candidates if candidate in found]
        (wrong,) = set(candidates) - {right}
        assert answer == right
        assert found[right] == batch.info["hops_B"][i]
        # The other one is as deep below another entity, and in graphs alone below a third one too.
        below = [distances(edges, other)[wrong] for other in ENTITIES if wrong in distances(edges, other)]
        assert batch.info["hops_B"][i] in below
        assert [task.words[token] for token in batch.info["candidates_BxC"][i]] == [right, wrong]


@pytest.mark.parametrize(("task", "split"), cases(*DEFAULT), ids=name)
def test_graphs_have_no_cycle_and_all_paths_to_a_concept_are_equally_long(task, split):
    for edges, _, _, _ in itertools.islice(items(task, drawn(task, split)), 300):
        depth = dict.fromkeys(ENTITIES, 0)
        waiting = list(edges)
        while waiting:
            later = []
            for parent, child in waiting:
                if parent in depth:
                    assert depth.setdefault(child, depth[parent] + 1) == depth[parent] + 1
                else:
                    later.append((parent, child))
            assert len(later) < len(waiting)  # else a cycle, or a concept that hangs on nothing
            waiting = later
        parents = [sum(child == concept for _, child in edges) for concept in CONCEPTS if concept in depth]
        assert set(parents) == {1, task.n_parents}
        assert len(parents) == task.n_graphs * task.depth * task.width


def test_with_two_parents_walking_back_leads_astray():
    astray = 0
    for edges, _, candidates, _ in items(GRAPHS, drawn(GRAPHS, "ood")):
        above = [sum(candidate in distances(edges, entity) for entity in ENTITIES) for candidate in candidates]
        astray += above == [2, 2]
    # A candidate's second parent is of the third graph in 2 of 3 cases; its own ones may have such, too.
    assert astray > 4 / 9 * N


@pytest.mark.parametrize(
    "task", [GRAPHS, *(pytest.param(task, marks=pytest.mark.long) for task in (TREES, WIDE))], ids=name
)
def test_candidates_of_the_test_split_are_never_asked_about_together_in_training(task):
    pairs = {
        split: {frozenset(candidates) for _, _, candidates, _ in items(task, drawn(task, split))}
        for split in task.splits
    }
    assert not pairs["test"] & (pairs["train"] | pairs["ood"])
    assert set().union(*pairs["test"]) == set().union(*pairs["train"]) == set(CONCEPTS[: task.n_concepts])
    # Of the 630 pairs of 36 concepts 126 are in a class of names: all of these are drawn.
    assert task is not GRAPHS or len(pairs["test"]) == 126


@pytest.mark.parametrize(("task", "split"), cases(*DEFAULT), ids=name)
def test_neither_place_nor_degree_nor_name_tell_the_answer(task, split):
    first, degree, lower = [], [], []
    for edges, _, candidates, answer in items(task, drawn(task, split)):
        children = [sum(parent == candidate for parent, _ in edges) for candidate in candidates]
        first.append(candidates[0] == answer)
        lower.append(min(candidates, key=task.words.index) == answer)
        if children[0] != children[1]:
            degree.append(candidates[int(children[1] > children[0])] == answer)
    for of_what in (first, lower, *([degree] if len(degree) > 100 else [])):
        assert stats.binomtest(sum(of_what), len(of_what)).pvalue > ALPHA


def test_scores_tell_candidates_from_other_answers():
    batch = drawn(TREES, "train")
    right_B, wrong_B = batch.info["candidates_BxC"].T
    for last_B, accuracy, plausible in ((right_B, 1, 1), (wrong_B, 0, 1), (np.full(N, 1), 0, 0)):
        logits_BxLxV = jax.nn.one_hot(jnp.tile(jnp.asarray(last_B)[:, None], TREES.length), TREES.vocab_size)
        scores = TREES.score(logits_BxLxV, batch)
        assert (scores["accuracy"], scores["plausible"]) == (accuracy, plausible)
        np.testing.assert_array_equal(scores["hop_accuracy"], [accuracy, accuracy, np.nan])
