"""Rules in a closed world: every answer is found again by forward chaining over the text of its sequence."""

import functools
import runpy
import types
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lab.tasks import Rules
from lab.tasks.reasoning import ENTITIES, PROPERTIES

ALPHA = 1e-3  # level of the tests on counts; the seeds are fixed, so they pass or fail for good
N = 2500
SMALL = Rules(hops_train=(1, 2), hops_ood=(3,), width=2)
WIDE = Rules(hops_train=(1, 3), hops_ood=(4, 5), width=3)
TASKS = [SMALL, WIDE, Rules(hops_train=(1,), hops_ood=(2,), width=1)]
DEFAULT = [*((SMALL, split) for split in ("train", "test", "ood")), (WIDE, "ood")]


draw = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("draw.py"))))
drawn, cases = functools.partial(draw.drawn, n=N), functools.partial(draw.cases, TASKS)


def name(case):
    return case if isinstance(case, str) else f"depth-{case.depth}-width-{case.width}"


def items(task, batch):
    """Facts (entity, attribute), rules (premises, conclusion), question, answer: as words."""
    for tokens, answer in zip(batch.tokens_BxL, batch.targets_BxL[:, -1], strict=True):
        text = task.decode(tokens)
        *sentences, question = text.split(" . ")
        facts, rules = set(), []
        for sentence in sentences:
            match sentence.split():
                case ["if", one, "and", two, "then", conclusion]:
                    rules.append(({one, two}, conclusion))
                case [entity, "is", attribute]:
                    assert not rules and entity in ENTITIES
                    facts.add((entity, attribute))
                case strange:
                    raise AssertionError(strange)
        entity, verb, attribute, mark = question.split()
        assert mark == "?" and verb in ("is", "isn't")
        yield facts, rules, (entity, verb == "is", attribute), task.words[answer]


def derived(facts, rules, entity):
    """Depth of the shortest proof of everything that follows of an entity."""
    depth = {attribute: 0 for who, attribute in facts if who == entity}
    while True:
        new = {
            conclusion: 1 + max(depth[premise] for premise in premises)
            for premises, conclusion in rules
            if conclusion not in depth and premises <= depth.keys()
        }
        if not new:
            return depth
        depth |= new


@pytest.mark.parametrize(("task", "split"), cases(*DEFAULT), ids=name)
def test_every_answer_follows_from_the_text(task, split):
    batch = drawn(task, split)
    assert batch.tokens_BxL.shape == (N, task.length)
    assert (batch.weights_BxL == (np.arange(task.length) == task.length - 1)).all()
    assert set(batch.info["hops_B"].tolist()) == set(task.hops_ood if split == "ood" else task.hops_train)
    for i, (facts, rules, (entity, states, attribute), answer) in enumerate(items(task, batch)):
        hops = batch.info["hops_B"][i]
        depth = derived(facts, rules, entity)
        assert answer == ("true" if (attribute in depth) == states else "false")
        # Everything has one proof, or would have one with all facts: the question lies as deep as it says.
        assert len({conclusion for _, conclusion in rules}) == len(rules) == task.depth * task.width
        base = {what for _, what in facts} | set().union(*(premises for premises, _ in rules))
        base -= {conclusion for _, conclusion in rules}
        assert derived({(entity, what) for what in base}, rules, entity)[attribute] == hops
        assert attribute not in depth or depth[attribute] == hops
        if attribute not in depth:  # for want of a single fact
            mended = [derived(facts | {(entity, what)}, rules, entity) for what in base]
            assert sum(attribute in one for one in mended) == 1
        entities = [who for who, _ in facts]
        assert {entities.count(who) for who in set(entities)} == {task.depth + 1} and len(set(entities)) == 2
        assert all(len(premises) == 2 for premises, _ in rules)


@pytest.mark.parametrize(("task", "split"), cases(*DEFAULT), ids=name)
def test_sign_and_truth_and_proof_are_even_and_independent(task, split):
    cells = np.zeros((2, 2), int)
    for facts, rules, (entity, states, attribute), _ in items(task, drawn(task, split)):
        cells[int(states), int(attribute in derived(facts, rules, entity))] += 1
    assert stats.chisquare(cells.ravel()).pvalue > ALPHA


def test_the_other_entity_does_not_answer():
    agree = []
    for facts, rules, (entity, _, attribute), _ in items(SMALL, drawn(SMALL, "ood")):
        (other,) = {who for who, _ in facts} - {entity}
        agree.append((attribute in derived(facts, rules, entity)) == (attribute in derived(facts, rules, other)))
    assert stats.binomtest(sum(agree), len(agree)).pvalue > ALPHA


def test_questions_of_the_test_split_are_never_asked_in_training():
    asked = {
        split: {(entity, attribute) for _, _, (entity, _, attribute), _ in items(SMALL, drawn(SMALL, split))}
        for split in SMALL.splits
    }
    assert not asked["test"] & (asked["train"] | asked["ood"])
    everything = len(ENTITIES) * len(PROPERTIES)
    assert len(asked["test"]) == everything / 5
    assert asked["train"] | asked["test"] | asked["ood"] == {(e, a) for e in ENTITIES for a in PROPERTIES}


def test_who_checks_one_premise_is_right_as_often_as_the_docstring_says():
    """One of the h + 1 facts of the proofs that need all of them: 1/2 + 1 / (2 h + 2)."""
    right, batch = [], drawn(SMALL, "train")
    for i, (facts, rules, (entity, states, attribute), answer) in enumerate(items(SMALL, batch)):
        if batch.info["hops_B"][i] == 1:
            (premises,) = [premises for premises, conclusion in rules if conclusion == attribute]
            guess = (entity, min(premises)) in facts
            right.append(answer == ("true" if guess == states else "false"))
    assert stats.binomtest(sum(right), len(right), 1 / 2 + 1 / 4).pvalue > ALPHA
