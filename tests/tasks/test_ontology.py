"""Fictional ontologies: every answer and proof is derived again from the text of its sequence."""

import dataclasses
import functools
import runpy
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab.objective import Objective
from lab.tasks import Ontology
from lab.tasks.reasoning import CONCEPTS, ENTITIES, PROPERTIES

EPS = 2.0**-23  # float32
ALPHA = 1e-3  # level of the tests on counts; the seeds are fixed, so they pass or fail for good
N = 1500
SMALL = Ontology(hops_train=(1, 2), hops_ood=(3,), n_chains=2, n_concepts=12, form="true_false", chain_of_thought=False)
CLOZE = dataclasses.replace(SMALL, form="cloze")
WIDE = Ontology(hops_train=(2, 4), hops_ood=(5, 6), n_chains=4, n_concepts=40, form="true_false", chain_of_thought=True)
WIDE_CLOZE = dataclasses.replace(WIDE, form="cloze")
TASKS = [
    SMALL,
    CLOZE,
    WIDE,
    WIDE_CLOZE,
    dataclasses.replace(SMALL, chain_of_thought=True),
    dataclasses.replace(WIDE, form="cloze", chain_of_thought=False),
]


draw = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("draw.py"))))
drawn, cases = functools.partial(draw.drawn, n=N), functools.partial(draw.cases, TASKS)


def name(case):
    return case if isinstance(case, str) else f"{case.form}-{case.n_chains}{'-proof' * case.chain_of_thought}"


def texts(task, batch):
    """What is told and asked, and what is answered, as words."""
    sequence_BxM = np.concatenate([batch.tokens_BxL[:, :1], batch.targets_BxL], axis=1)
    for sequence, weights in zip(sequence_BxM, batch.weights_BxL, strict=True):
        first = 1 + np.flatnonzero(weights)[0]
        yield task.decode(sequence[:first]).split(), task.decode(sequence[first:]).split()


def parsed(asked):
    """The sentences that are told, as (subject, verb, object), and the question."""
    told, question = asked[: asked.index("?")], []
    while told[-1] != ".":
        question.insert(0, told.pop())
    assert told[3::4] == ["."] * (len(told) // 4)
    return list(zip(told[::4], told[1::4], told[2::4], strict=True)), question


def deduced(facts, entity):
    """All that follows of an entity: statement -> (number of rules, proof), breadth first."""
    known, frontier = {}, [(entity, 0, [])]
    while frontier:
        subject, depth, proof = frontier.pop(0)
        for who, verb, what in facts:
            if who == subject:
                told = (entity, verb, what)
                assert told not in known  # one way to everything
                known[told] = (depth, [*proof, told])
                if verb == "is" and what in CONCEPTS:
                    frontier.append((what, depth + 1, [*proof, told]))
    return known


def answers(facts, question):
    """Number of rules, proof and answer of a question, by reasoning alone."""
    entity, verb = question[:2]
    known = deduced(facts, entity)
    if len(question) == 2:
        ((statement, (depth, proof)),) = [(s, how) for s, how in known.items() if s[2] in PROPERTIES]
        return depth, proof[:-1], statement[2]
    (sign,) = [v for v in ("is", "isn't") if (entity, v, question[2]) in known]
    depth, proof = known[entity, sign, question[2]]
    return depth, proof, "true" if sign == verb else "false"


@pytest.mark.parametrize(
    ("task", "split"),
    cases(*((SMALL, split) for split in SMALL.splits), (CLOZE, "train"), (WIDE, "ood"), (WIDE_CLOZE, "ood")),
    ids=name,
)
def test_every_answer_and_proof_follows_from_the_text(task, split):
    batch = drawn(task, split)
    assert batch.tokens_BxL.shape == batch.weights_BxL.shape == (N, task.length)
    assert batch.tokens_BxL.max() < task.vocab_size
    hops = task.hops_ood if split == "ood" else task.hops_train
    assert set(batch.info["hops_B"].tolist()) == set(hops)
    for i, (asked, answer) in enumerate(texts(task, batch)):
        facts, question = parsed(asked)
        depth, proof, truth = answers(facts, question)
        assert depth == batch.info["hops_B"][i]
        said = [word for statement in proof for word in (*statement, ".")] if task.chain_of_thought else []
        assert answer == [*said, truth]
        assert task.words.index(truth) in batch.info["candidates_BxC"][i]
        shown = (batch.tokens_BxL[i] != 0).sum()
        assert shown == min(len(asked) + len(answer), task.length)  # padding at the end alone, none without a proof
        assert task.chain_of_thought or shown == task.length
        np.testing.assert_array_equal(batch.tokens_BxL[i, 1:shown], batch.targets_BxL[i, : shown - 1])


@pytest.mark.parametrize(
    ("task", "split"), cases((SMALL, "train"), (CLOZE, "train"), (WIDE, "ood"), (WIDE_CLOZE, "ood")), ids=name
)
def test_chains_differ_in_the_entity_alone(task, split):
    for asked, answer in texts(task, drawn(task, split)):
        facts, question = parsed(asked)
        entities = [who for who, _, _ in facts if who in ENTITIES]
        assert len(entities) == len(set(entities)) == task.n_chains
        reach = {entity: deduced(facts, entity) for entity in entities}
        depths = {entity: sorted(depth for depth, _ in known.values()) for entity, known in reach.items()}
        assert len(set(map(tuple, depths.values()))) == 1  # as much follows of each, in as many steps
        concepts = [{what for _, _, what in known if what in CONCEPTS} for known in reach.values()]
        assert sum(map(len, concepts)) == len(set().union(*concepts))  # from chains with nothing in common
        others = [answers(facts, [entity, *question[1:]])[2] for entity in entities if entity != question[0]]
        assert answer[-1] not in others if task.form == "cloze" or task.n_chains == 2 else len(set(others)) > 0
        if task.form == "true_false":  # the property asked about is told with both signs
            assert {verb for _, verb, what in facts if what == question[2]} == {"is", "isn't"}


@pytest.mark.parametrize("task", [SMALL, *(pytest.param(task, marks=pytest.mark.long) for task in TASKS[1:])], ids=name)
def test_facts_of_the_test_split_are_told_in_no_training_sequence(task):
    told = {}
    for split in task.splits:
        batch = drawn(task, split)
        told[split] = {fact for asked, _ in texts(task, batch) for fact in parsed(asked)[0] if fact[0] in ENTITIES}
    assert not told["test"] & (told["train"] | told["ood"])
    # In 1500 sequences each of the at most 800 combinations is told 7 times or more on average.
    combinations = len(ENTITIES) * task.n_concepts
    assert len(told["test"]) == pytest.approx(combinations / 5, rel=0.02)
    assert len(told["train"]) == pytest.approx(combinations * 4 / 5, rel=0.02)
    assert {fact[0] for fact in told["test"]} == {fact[0] for fact in told["train"]} == set(ENTITIES)


@pytest.mark.parametrize("split", ["train", "test", "ood"])
def test_neither_sign_nor_place_nor_majority_tell_the_answer(split):
    counts = {"answer": [], "sign": [], "last": []}
    for asked, (answer,) in texts(SMALL, drawn(SMALL, split)):
        facts, question = parsed(asked)
        signs = [verb for _, verb, what in facts if what == question[2]]
        counts["answer"].append(answer == "true")
        counts["sign"].append((question[1] == "is") == (answer == "true"))
        counts["last"].append((signs[-1] == question[1]) == (answer == "true"))
    for of_what in counts.values():
        assert stats.binomtest(sum(of_what), len(of_what)).pvalue > ALPHA


def test_names_and_their_order_are_uniform():
    batch = drawn(SMALL, "train")
    for place in (0, 16):  # the subjects of the first and the fifth sentence
        words = [SMALL.words[token] for token in batch.tokens_BxL[:, place]]
        for names in (ENTITIES, CONCEPTS[:12]):
            assert stats.chisquare([words.count(name) for name in names]).pvalue > ALPHA
        # 2 of 12 sentences are of entities
        assert stats.binomtest(sum(word in ENTITIES for word in words), N, 2 / 12).pvalue > ALPHA


def logits_of(task, batch, predicted_BxL):
    return 9 * jax.nn.one_hot(jnp.asarray(predicted_BxL), task.vocab_size)


def test_scores_of_right_decoy_and_strange_answers():
    batch = drawn(CLOZE, "train")
    other_B = batch.info["candidates_BxC"][:, 1]
    hops_B = batch.info["hops_B"]
    right_B = batch.targets_BxL[:, -1]
    for last_B, accuracy_H, plausible in (
        (right_B, (1, 1), 1),
        (other_B, (0, 0), 1),
        (np.where(hops_B == 2, other_B, right_B), (1, 0), 1),
        (np.where(hops_B == 2, right_B, 1), (0, 1), np.mean(hops_B == 2)),
    ):
        predicted_BxL = np.concatenate([batch.targets_BxL[:, :-1], last_B[:, None]], axis=1)
        scores = CLOZE.score(logits_of(CLOZE, batch, predicted_BxL), batch)
        np.testing.assert_array_equal(scores["hop_accuracy"], [*accuracy_H, np.nan])
        assert scores["plausible"] == pytest.approx(plausible, rel=2 * EPS)
        assert scores["accuracy"] == pytest.approx(np.mean(last_B == right_B), rel=2 * EPS)
    assert CLOZE.coords["hop"] == (1, 2, 3)


def test_a_wrong_step_of_a_proof_is_a_wrong_answer_but_not_a_wrong_last_word():
    task, n = WIDE, 60
    batch = jax.tree.map(lambda leaf: leaf[:n], drawn(task, "ood"))
    predicted_BxL = batch.targets_BxL.copy()
    first_B = np.argmax(batch.weights_BxL > 0, axis=1)
    spoilt_B = np.arange(n) < n // 3
    predicted_BxL[np.arange(n), first_B] = np.where(spoilt_B, 1, predicted_BxL[np.arange(n), first_B])
    scores = task.score(logits_of(task, batch, predicted_BxL), batch)
    assert scores["accuracy"] == pytest.approx(1 - spoilt_B.mean(), rel=2 * EPS)
    assert scores["final_accuracy"] == 1
    batch = drawn(SMALL, "test")
    assert "final_accuracy" not in SMALL.score(logits_of(SMALL, batch, batch.targets_BxL), batch)


def test_next_token_training_weighs_all_but_padding():
    task = WIDE
    batch = drawn(task, "ood")
    altered = Objective(ntp_weight=0.25).apply(task, jax.tree.map(jnp.asarray, batch), {})
    np.testing.assert_array_equal(
        altered.weights_BxL, np.where(batch.weights_BxL > 0, 1, 0.25 * (batch.targets_BxL != 0))
    )


def test_words_are_distinct_and_alphabets_are_theirs():
    for task in TASKS:
        assert len(set(task.words)) == task.vocab_size
        assert 0 not in (*task.answer_alphabet, *task.context_alphabet)
    assert {SMALL.words[token] for token in SMALL.answer_alphabet} == {"true", "false"}
    assert {CLOZE.words[token] for token in CLOZE.answer_alphabet} == set(PROPERTIES)
