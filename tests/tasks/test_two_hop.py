"""Two-hop facts: every answer is found again in a dictionary of the facts, by look-ups of this file's own."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab.tasks import TwoHop
from lab.tasks.two_hop import FACT, IDENTITY, TWO_HOP

ALPHA = 1e-3  # level of the tests on counts; the seeds are fixed, so they pass or fail for good
SHARED = TwoHop("layers", n_entities=5, n_relations=3, out_degree=3, ood_share=0.4, ratio=0.5, identity=1.0)
SINGLE = TwoHop("layers", n_entities=6, n_relations=2, out_degree=1, ood_share=0.5, test_share=0.3, ratio=0.2)
ALL_OOD = TwoHop("layers", n_entities=6, n_relations=1, out_degree=1, ood_share=1.0, identity=1.0)
GRAPH = TwoHop("graph", n_entities=12, n_relations=6, out_degree=4, ood_share=0.4, test_share=0.1, ratio=1.0)
COT = TwoHop(
    "graph", n_entities=12, n_relations=6, out_degree=4, ood_share=0.4, test_share=0.1, ratio=1.0, identity=0.5,
    chain_of_thought=True, three_hop=True, end_token=True, world_seed=3,
)  # fmt: skip
LARGE = TwoHop("layers", n_entities=40, n_relations=2, out_degree=2, ood_share=1.0)
MARKED = TwoHop("layers", n_entities=5, n_relations=2, out_degree=2, ood_share=0.4, identity=1.0, asked="question")
RELATED = TwoHop("layers", n_entities=5, n_relations=2, out_degree=2, ood_share=0.4, identity=1.0, asked="relation")
NOISY = TwoHop("graph", n_entities=50, n_relations=12, out_degree=10, ood_share=0.2, ratio=6.0, chain_of_thought=True)
TASKS = {"shared": SHARED, "single": SINGLE, "all_ood": ALL_OOD, "graph": GRAPH, "cot": COT}
MANY = 4096
each = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@functools.cache
def drawn(task, split, n=MANY, seed=0, **hparams):
    """Pairs (question, answer) of words, in order."""
    batch = jax.tree.map(np.asarray, task.sample(jax.random.key(seed), n, split, hparams))
    return tuple(
        (tuple(task.decode(one[: answers[0] + 1]).split()), tuple(task.decode(one[answers[0] + 1 :]).split()))
        for tokens, target, weights in zip(batch.tokens_BxL, batch.targets_BxL[:, -1], batch.weights_BxL, strict=True)
        if (answers := np.flatnonzero(weights)).size and (one := np.append(tokens, target)).size
    )


def told(task):
    """(head, relation) -> tail, of the facts in and out of distribution."""
    found = [{q: a[0] for q, a in drawn(task, split)} if split in task.splits else {} for split in FACTS]
    assert not found[0].keys() & found[1].keys()
    return found


FACTS = ("fact_id", "fact_ood")


def hops(known, question):
    """The entities that a question goes through, by look-up."""
    entity, *relations = question
    path = []
    for relation in relations:
        entity = known[entity, relation]
        path.append(entity)
    return tuple(path)


@each
def test_every_answer_is_that_of_the_facts(task):
    inside, outside = told(task)
    known = inside | outside
    for split in task.splits:
        for question, answer in drawn(task, split, 512):
            if task.end_token:
                assert answer[-1] == "end"
                answer = answer[:-1]
            path = hops(known, question) or question
            assert answer == (path if task.chain_of_thought else path[-1:])


@each
def test_splits_share_no_question_and_keep_their_hops(task):
    """Held-out questions are never trained; trained ones and `two_hop_id` join facts in distribution alone."""
    inside, outside = told(task)
    trained = {question for question, _ in drawn(task, "train") if len(question) == 3}
    asked = {split: {question for question, _ in drawn(task, split)} for split in task.splits if "two_hop" in split}
    assert trained == asked.get("two_hop_train", set())
    for one in asked:
        for other in asked:
            assert one == other or not asked[one] & asked[other]
    known = inside | outside
    for split, questions in asked.items():
        for head, first, second in questions:
            facts = (head, first), (known[head, first], second)
            assert all(fact in (outside if split == "two_hop_ood" else inside) for fact in facts)
    every = {(*fact, r) for fact, tail in known.items() for head, r in known if head == tail}
    mixed = {(h, r, s) for h, r, s in every if ((h, r) in inside) != ((known[h, r], s) in inside)}
    assert asked["two_hop_ood"] == {(h, r, s) for h, r, s in every - mixed if (h, r) in outside}


@each
def test_the_full_batch_is_every_item_of_the_training_set_once(task):
    """Facts of both kinds, the share of identities and lambda questions for each fact in distribution."""
    items = collections.Counter(question for question, _ in drawn(task, "train"))
    inside, outside = told(task)
    n_of_length = collections.Counter(map(len, items))
    assert set(items.values()) == {1}
    assert {question for question in items if len(question) == 2} == {*inside, *outside}
    assert n_of_length[1] == round(task.identity * len(task.facts.bridge_I))
    assert n_of_length[3] == round(task.ratio * len(inside))


def test_a_smaller_batch_shows_every_item_as_often():
    counts = collections.Counter()
    n_items = len(drawn(COT, "train"))
    for seed in range(400):
        counts.update(question for question, _ in drawn.__wrapped__(COT, "train", 32, seed))
    assert len(counts) == n_items
    assert stats.chisquare(list(counts.values())).pvalue > ALPHA


def test_rows_of_one_program_have_counts_of_their_own():
    sample = jax.jit(lambda hparams: COT.sample(jax.random.key(0), MANY, "train", hparams))
    for identity, ratio in ((0.0, 0.0), (1.0, 0.25), (0.5, 1.0)):
        batch = sample({"identity": jnp.float32(identity), "ratio": jnp.float32(ratio)})
        kinds = np.asarray(batch.info["kind_B"])[np.asarray(batch.weights_BxL).any(axis=1)]
        n_id = (~COT.facts.is_ood_A).sum()
        assert collections.Counter(kinds) == collections.Counter(
            {FACT: 48, IDENTITY: round(12 * identity), TWO_HOP: round(ratio * n_id)}
        )
    assert np.isnan(sample({"identity": jnp.float32(0), "ratio": jnp.float32(99)}).weights_BxL).any()


def test_identities_of_a_share_are_of_bridges_of_all_relations():
    """Drawn by the world's seed; a higher share has all that a lower one has."""
    tasks = [dataclasses.replace(LARGE, identity=share) for share in (0.25, 0.5)]
    few, half = ({question for question, _ in drawn(task, "train") if len(question) == 1} for task in tasks)
    assert few < half and len(half) == 40
    reached = collections.Counter(q[1] for q, a in drawn(LARGE, "train") if len(q) == 2 and a in half)
    assert set(reached) == {"r0", "r1"} and min(reached.values()) > 10
    other = dataclasses.replace(tasks[1], world_seed=1)
    assert half != {question for question, _ in drawn(other, "train") if len(question) == 1}


def test_a_row_that_trains_no_question_has_no_score_of_trained_ones():
    batch = GRAPH.sample(jax.random.key(0), 8, "two_hop_train", {"ratio": jnp.float32(0)})
    right = GRAPH.score(says(GRAPH, batch, batch.info["answer_B"]), batch)
    assert np.isnan(right["accuracy"]) and np.isnan(right["token_accuracy"])


@pytest.mark.parametrize(("task", "n_objects"), [(SHARED, 9), (SINGLE, 4), (ALL_OOD, 1)])
def test_relations_of_layers_lead_to_sets_of_their_own(task, n_objects):
    """Complexity k: k disjoint bridge sets, and a set of objects for each pair of relations on the way to it."""
    known = functools.reduce(dict.__or__, told(task))
    tails, heads = collections.defaultdict(list), collections.Counter(head for head, _ in known)
    for (_, relation), tail in known.items():
        tails[relation].append(tail)
    assert all(len(set(found)) == len(found) for found in tails.values())  # bijections
    assert not any(set(a) & set(b) for r, a in tails.items() for s, b in tails.items() if r != s)
    assert set(heads.values()) == {task.out_degree}
    sets = collections.defaultdict(set)
    for (_, first), tail in known.items():
        for second in tails:
            if (tail, second) in known:
                sets[first, second].add(known[tail, second])
    assert len(sets) == n_objects
    assert not any(a & b for r, a in sets.items() for s, b in sets.items() if r != s)


def test_the_world_of_a_graph_is_as_published():
    """2,000 entities, 200 relations, out-degree 20: 40,000 facts, 2,000 of them out of distribution; no question of
    mixed hops; about 2,000 questions out of distribution and 722,000 in it."""
    task = TwoHop("graph", n_entities=2000, n_relations=200, out_degree=20, ood_share=0.05, test_share=0.005)
    world, found = task.facts, task.questions
    assert len(world.head_A) == 40_000 and world.is_ood_A.sum() == 2000
    assert all(len(set(of_head)) == 20 for of_head in world.relation_A.reshape(2000, 20)[:50].tolist())
    assert abs(len(found.pool) / 0.995 - 722_000) < 3000 and abs(len(found.two_hop_ood) - 2000) < 250
    assert len(found.two_hop_id) == 3000 and 18.8 < task.most_ratio < 19
    assert sum(table.nbytes for table in (*world[:-1], *found)) < 2**22


TRUE = {question: answer for question, answer in drawn(NOISY, "two_hop_train", 2400)}


def wrong(**xi):
    """Shares of bridges and answers of trained questions that differ from the facts', and which do."""
    found = dict(drawn(NOISY, "two_hop_train", 2400, **xi))
    hit = np.array([[given != true for given, true in zip(found[q], TRUE[q], strict=True)] for q in sorted(TRUE)])
    return *hit.mean(axis=0), hit, found


N_TRAINED, SEEN = len(TRUE), 49 / 50  # a random entity is the true one once in fifty


@pytest.mark.parametrize(("name", "bridge", "answer"), [("xi_first", 1, 0), ("xi_second", 0, 1), ("xi_both", 1, 1)])
def test_noise_hits_its_share_and_what_a_higher_level_changes_contains_that_of_a_lower(name, bridge, answer):
    hits, answers = [], []
    for xi in (0.2, 0.6):
        first, second, hit, found = wrong(**{name: xi})
        for share, is_hit in ((first, bridge), (second, answer)):
            expected = xi * SEEN * is_hit
            assert abs(share - expected) < 4 * np.sqrt(max(expected * (1 - expected), 0) / N_TRAINED) + 1e-12
        hits.append(hit)
        answers.append(found)
    assert (hits[1] >= hits[0]).all()
    low, high = answers
    assert all(high[q] == low[q] for q, is_hit in zip(sorted(TRUE), hits[0].any(axis=1), strict=True) if is_hit)


def test_a_leaking_bridge_is_wrong_far_more_often_than_its_nominal_share():
    """1 - mean of (1 - xi)^j over the j = 1 ... D questions of an (h, r1): 0.39 at 0.05 for the published D = 20."""
    first, second, _, _ = wrong(xi_leaking=0.1)
    expected = SEEN * (1 - np.mean(0.9 ** np.arange(1, 11)))
    assert second == 0 and abs(first - expected) < 0.04
    assert abs(1 - np.mean(0.95 ** np.arange(1, 21)) - 0.39) < 0.001


def test_noise_is_in_no_other_split():
    noisy = {"xi_second": 1.0, "xi_first": 1.0}
    for split in ("fact_id", "fact_ood", "two_hop_ood"):
        assert drawn(NOISY, split, 256) == drawn(NOISY, split, 256, **noisy)
    facts = [[pair for pair in drawn(NOISY, "train", 8192, **xi) if len(pair[0]) == 2] for xi in ({}, noisy)]
    assert facts[0] == facts[1]


def says(task, batch, token_B):
    """Logits of a model that says these tokens wherever it answers."""
    tokens_BxL = jnp.broadcast_to(jnp.asarray(token_B)[:, None], batch.targets_BxL.shape)
    return jax.nn.one_hot(tokens_BxL, task.vocab_size, dtype=jnp.float32)


@pytest.mark.parametrize("task", [SHARED, GRAPH])
def test_what_is_said_in_place_of_the_answer_is_named(task):
    batch = task.sample(jax.random.key(0), 48, "two_hop_ood", {})
    answer_B, bridge_B, subject_B = (batch.info[f"{name}_B"] for name in ("answer", "bridge", "subject"))
    score = jax.jit(task.score)
    right = score(says(task, batch, answer_B), batch)
    assert right["accuracy"] == right["right_type"] == right["within_type"] == 1
    bridge = score(says(task, batch, bridge_B), batch)
    assert bridge["says_bridge"] == 1 and bridge["right_type"] == int(task is GRAPH)
    known = functools.reduce(dict.__or__, told(task))
    expected = [known.get((q[0], q[2])) for q, _ in drawn(task, "two_hop_ood", 48)]
    assert [task.words[t] if t else None for t in np.asarray(subject_B)] == expected
    scores = score(says(task, batch, subject_B), batch)
    assert scores["says_subject"] == 1 if task is GRAPH else "says_subject" not in scores
    # the right entity beside a likelier one of another type: a relation, which none answers
    mixed = says(task, batch, answer_B) + 2 * says(task, batch, jnp.full_like(answer_B, 2))
    scores = score(mixed, batch)
    assert scores["accuracy"] == scores["right_type"] == 0 and scores["within_type"] == 1


@pytest.mark.parametrize(("task", "marked"), [(MARKED, (1, 2, 3)), (RELATED, (1,))])
def test_a_mark_stands_behind_the_questions_that_have_one_and_changes_nothing_else(task, marked):
    plain = TwoHop("layers", n_entities=5, n_relations=2, out_degree=2, ood_share=0.4, identity=1.0)
    assert task.vocab_size == plain.vocab_size + 1 and task.words[task.mark] == "?"
    assert task.answer_alphabet == plain.answer_alphabet
    for split in ("train", "two_hop_ood"):
        pairs = zip(drawn(task, split), drawn(plain, split), strict=True)
        assert all(pair == (((*q, "?") if len(q) in marked else q), a) for pair, (q, a) in pairs)
    batch = task.sample(jax.random.key(0), 16, "two_hop_ood", {})
    right = task.score(says(task, batch, batch.info["answer_B"]), batch)
    assert right["accuracy"] == right["right_type"] == right["within_type"] == 1


def test_a_chain_of_thought_is_scored_step_by_step():
    batch = COT.sample(jax.random.key(0), 32, "two_hop_ood", {})
    right = jax.nn.one_hot(batch.targets_BxL, COT.vocab_size, dtype=jnp.float32)
    wrong_bridge = right.at[:, 2].set(0)
    scores = COT.score(wrong_bridge, batch)
    assert (scores["accuracy"], scores["bridge_accuracy"], scores["answer_accuracy"]) == (0, 0, 1)
    assert COT.score(right, batch)["accuracy"] == 1


def test_what_fills_up_a_full_batch_is_not_scored():
    batch = SHARED.sample(jax.random.key(0), MANY, "train", {})
    right = jax.nn.one_hot(batch.targets_BxL, SHARED.vocab_size, dtype=jnp.float32)
    n_items = len(drawn(SHARED, "train"))
    wrong_third = right.at[: n_items // 3].set(0)
    np.testing.assert_allclose(SHARED.score(wrong_third, batch)["accuracy"], 1 - (n_items // 3) / n_items, rtol=1e-6)
