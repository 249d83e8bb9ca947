"""Sequences with an answer: which of their tokens are scored, and that a right answer is what decoding would give."""

import functools
import runpy
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.objective import context
from lab.tasks.answers import exact_match, last_answer_token, pack, plausible, token_correct

EPS = 2.0**-23  # float32
N = 4000
count = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "count.py")))
Count, sequences, parts, first = count.Count, count.sequences, count.parts, count.first
LONGEST = count.LONGEST


@functools.cache
def drawn():
    return jax.tree.map(np.asarray, Count().sample(jax.random.key(0), N, "train", {}))


def test_packed_sequences_weigh_every_token_of_the_answer_and_nothing_else():
    batch = drawn()
    seen = set()
    for i, sequence in enumerate(sequences(batch)):
        question, answer = parts(sequence)
        assert sequence == [*question, *answer, *[0] * (LONGEST - len(question) - len(answer))]
        assert question == list(range(question[0], question[0] + len(question)))
        assert answer == [50 + question[0] % 10] * (1 if len(question) < 4 else 2)
        weights = [0] * (len(question) - 1) + [1] * len(answer)
        assert batch.weights_BxL[i].tolist() == weights + [0] * (LONGEST - 1 - len(weights))
        in_context = [True] * (len(question) - 1)
        assert np.asarray(context(batch))[i].tolist() == in_context + [False] * (LONGEST - 1 - len(in_context))
        seen.add((len(question), len(answer)))
    assert seen == {(2, 1), (3, 1), (4, 2), (5, 2)}


def greedy(logits_LxLxV, question, n):
    """What a model that sees its last token and the position alone would write after a question."""
    written = list(question)
    for _ in range(n):
        written.append(int(np.argmax(logits_LxLxV[written[-1], len(written) - 1])))
    return written[len(question) :]


def test_exact_match_is_that_of_greedy_decoding():
    task, draw = Count(), np.random.default_rng(3)
    batch = first(512, drawn())
    # A model by table, right about most answers: at (token, position) the likeliest next token.
    next_VxL = draw.integers(1, 60, (60, LONGEST))
    for token, t, answer in zip(
        batch.tokens_BxL.ravel(), np.tile(range(6), 512), batch.targets_BxL.ravel(), strict=True
    ):
        if answer >= 50 and draw.random() < 0.2:
            next_VxL[token, t] = answer
    logits_VxLxV = np.eye(60, dtype=np.float32)[next_VxL]
    logits_BxLxV = logits_VxLxV[batch.tokens_BxL, np.arange(LONGEST - 1)]
    exact_B, decoded_B, correct, total = exact_match(logits_BxLxV, batch), [], 0, 0
    for sequence in sequences(batch):
        question, answer = parts(sequence)
        decoded_B.append(greedy(logits_VxLxV, question, len(answer)) == answer)
        given = [question[-1], *answer[:-1]]
        places = range(len(question) - 1, len(question) - 1 + len(answer))
        correct += sum(next_VxL[token, t] == said for token, t, said in zip(given, places, answer, strict=True))
        total += len(answer)
    assert exact_B.tolist() == decoded_B and 0.1 < np.mean(decoded_B) < 0.9
    scores = task.score(logits_BxLxV, batch)
    assert scores["accuracy"] == pytest.approx(np.mean(decoded_B), rel=4 * EPS)
    assert scores["token_accuracy"] == pytest.approx(correct / total, rel=4 * EPS)
    assert scores["token_accuracy"] > scores["accuracy"]


def test_constant_logits_answer_padding_which_is_never_right():
    scores = Count().score(jnp.zeros((N, LONGEST - 1, 60)), drawn())
    assert (scores["accuracy"], scores["token_accuracy"]) == (0, 0)


def test_logits_at_some_positions_only_are_refused():
    with pytest.raises(ValueError, match=r"logits at 1 of 6 positions: .* use model\.readout='all'"):
        token_correct(jnp.zeros((N, 1, 60)), drawn())


def test_last_tokens_of_answers_and_which_of_them_are_plausible():
    sequence_BxM = jnp.array([[5, 6, 7, 8, 9], [5, 6, 7, 8, 0]], jnp.int32)
    is_answer_BxM = np.array([[0, 0, 0, 1, 1], [0, 0, 1, 1, 0]], bool)
    batch = pack(sequence_BxM, jnp.asarray(is_answer_BxM), {"candidates_BxC": jnp.array([[9, 1], [2, 3]], jnp.int32)})
    np.testing.assert_array_equal(last_answer_token(batch.targets_BxL, batch), [9, 8])
    assert plausible(jax.nn.one_hot(batch.targets_BxL, 10), batch) == 0.5
