"""Weights, noise and shuffle of tasks with an answer, on a made-up one that is easily told apart by hand."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab import losses
from lab.tasks import Addition, Composition
from lab.tasks.answers import AnswerTask, context, exact, pack, padded, right, shuffled

EPS = 2.0**-23  # float32
ALPHA = 1e-3  # level of the chi-square tests; the seeds are fixed, so they pass or fail for good
N = 4000
LONGEST = 7  # tokens of question and answer together
ANSWERS, CONTEXTS = range(50, 60), range(1, 50)


@dataclasses.dataclass(frozen=True)
class Count(AnswerTask):
    """x, x + 1, x + 2, ... of 2 to 5 numbers below 50, answered by 50 + x mod 10 and, after 4 or 5, by that again."""

    vocab_size: int = 60
    length: int = LONGEST - 1
    splits = ("train", "test")
    answer_alphabet, context_alphabet = ANSWERS, CONTEXTS

    def draw(self, key, n, split, hparams):
        keys = jax.random.split(key)
        first_B = jax.random.randint(keys[0], (n,), 1, 45, jnp.int32)
        asked_Bx1 = jax.random.randint(keys[1], (n, 1), 2, 6, jnp.int32)
        place_1xM = jnp.arange(LONGEST, dtype=jnp.int32)[None]
        is_answer_BxM = (place_1xM >= asked_Bx1) & (place_1xM < asked_Bx1 + jnp.where(asked_Bx1 > 3, 2, 1))
        counted_BxM = jnp.where(place_1xM < asked_Bx1, first_B[:, None] + place_1xM, 0)
        return pack(jnp.where(is_answer_BxM, 50 + first_B[:, None] % 10, counted_BxM), is_answer_BxM, {"x_B": first_B})


def sequences(batch):
    """x_0 ... x_L of each; asserts that what is read is what was to be said."""
    np.testing.assert_array_equal(batch.tokens_BxL[:, 1:], batch.targets_BxL[:, :-1])
    return np.concatenate([batch.tokens_BxL, batch.targets_BxL[:, -1:]], axis=1).tolist()


@functools.cache
def drawn(task, split="train", seed=0):
    # All of one size, and piece by piece: every program would be compiled anew.
    return jax.tree.map(np.asarray, task.sample(jax.random.key(seed), N, split, {}))


def first(n, batch):
    return jax.tree.map(lambda leaf: leaf[:n], batch)


def altered(task, batch=None, **numbers):
    batch = drawn(task) if batch is None else batch
    numbers = {name: jnp.float32(p) for name, p in numbers.items()}
    return jax.tree.map(np.asarray, task.alter(jax.tree.map(jnp.asarray, batch), numbers))


def parts(sequence):
    """(question, answer) of a clean sequence, by its tokens alone."""
    real = [token for token in sequence if token]
    return [token for token in real if token < 50], [token for token in real if token >= 50]


def p_uniform(values, support):
    """P-value of the chi-square test that the values are uniform on the support; 0 if one lies outside."""
    counts = [int(np.sum(np.asarray(values) == value)) for value in support]
    return stats.chisquare(counts).pvalue if sum(counts) == len(values) else 0.0


def test_packed_sequences_weigh_every_token_of_the_answer_and_nothing_else():
    batch = drawn(Count())
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


def test_padded_gives_what_was_put_in():
    questions, answers = [[3, 4], [5], [6, 7, 8]], [[9], [1, 2], [4, 4]]
    sequence_NxM, is_answer_NxM = padded(questions, answers, 4)
    assert sequence_NxM.tolist() == [[3, 4, 9, 0, 0], [5, 1, 2, 0, 0], [6, 7, 8, 4, 4]]
    assert is_answer_NxM.astype(int).tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert (sequence_NxM.dtype, is_answer_NxM.dtype) == (np.int32, bool)


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ([1, 2, 3], [4, 5, 6], r"sequence 1 has 6 tokens: at most task\.length \+ 1 = 5"),
        ([], [4], "sequence 1 has 0 tokens of question and 1 of answer: at least 1"),
        ([4], [], "sequence 1 has 1 tokens of question and 0 of answer: at least 1"),
        ([4, 0], [1], "sequence 1 holds token 0, which is padding"),
    ],
)
def test_padded_refuses_what_cannot_be_told_apart_later(question, answer, message):
    with pytest.raises(ValueError, match=message):
        padded([[1], question], [[1], answer], 4)


@pytest.mark.parametrize("ntp_weight", [0.0, 0.3, 1.0])
def test_loss_is_ctp_at_0_ntp_at_1_and_their_weighted_mean_between(ntp_weight):
    batch, trained = (first(64, of) for of in (drawn(Count()), altered(Count(), ntp_weight=ntp_weight)))
    logits_BxLxV = np.random.default_rng(0).standard_normal((64, LONGEST - 1, 60)).astype(np.float32)
    total, weight = 0.0, 0.0
    for i, sequence in enumerate(sequences(batch)):
        for t, token in enumerate(sequence[1:]):
            counts = 0 if token == 0 else 1 if token >= 50 else ntp_weight
            logits_V = logits_BxLxV[i, t].astype(np.float64)
            total += counts * (np.log(np.exp(logits_V).sum()) - logits_V[token])
            weight += counts
    found = losses.mean_cross_entropy(logits_BxLxV, trained)
    # Some 300 terms below 10, each from a softmax over 60: their mean errs by less than 100 roundings.
    assert found == pytest.approx(total / weight, rel=100 * EPS)


@pytest.mark.parametrize("name", ["ntp_weight", "label_noise", "context_noise"])
def test_fields_count_where_a_grid_has_no_such_axis(name):
    batch, task = drawn(Count()), Count(**{name: 0.3})
    by_field, by_row, overruled = (
        altered(task, batch),
        altered(Count(), **{name: 0.3}),
        altered(task, batch, **{name: 0}),
    )
    for i in range(3):
        np.testing.assert_array_equal(by_field[i], by_row[i])
        np.testing.assert_array_equal(overruled[i], batch[i])
    assert any((by_field[i] != batch[i]).any() for i in range(3))


def test_rows_at_zero_are_trained_on_what_was_drawn():
    batch = drawn(Count())
    assert Count().alter(batch, {"gamma": 0.5}) is batch
    for one, before in zip(altered(Count(), ntp_weight=0, label_noise=0, context_noise=0)[:3], batch[:3], strict=True):
        np.testing.assert_array_equal(one, before)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_label_noise_replaces_whole_answers_with_uniform_tokens(p):
    batch, noisy = drawn(Count()), altered(Count(), label_noise=p)
    put, replaced = [], 0
    for before, after in zip(sequences(batch), sequences(noisy), strict=True):
        question, answer = parts(before)
        assert after[: len(question)] == question and after[len(question) + len(answer) :] == [0] * before.count(0)
        new = after[len(question) : len(question) + len(answer)]
        if new != answer:
            replaced += 1
            put.append(new)
    np.testing.assert_array_equal(noisy.weights_BxL, batch.weights_BxL)
    # Of ten (a hundred) uniform answers one is the right one; each of the four lengths is as likely.
    share = p * (0.9 + 0.99) / 2
    assert abs(replaced / N - share) < 4 * np.sqrt(share * (1 - share) / N)
    pairs = [10 * (new[0] - 50) + new[1] - 50 for new in put if len(new) == 2]
    right_ones = {11 * digit for digit in range(10)}  # seen less often: those left as they were are not counted
    if p == 1:
        assert p_uniform([pair for pair in pairs if pair not in right_ones], set(range(100)) - right_ones) > ALPHA
    assert {token for new in put for token in new} == set(ANSWERS)


def test_context_noise_replaces_tokens_one_by_one_where_read_and_where_said():
    p = 0.3
    batch, noisy = drawn(Count()), altered(Count(), context_noise=p)
    hits, put, at_first = [], [], 0
    for before, after in zip(sequences(batch), sequences(noisy), strict=True):
        question, _ = parts(before)
        assert after[len(question) :] == before[len(question) :]  # answer and padding stay
        changed = [one != other for one, other in zip(question, after, strict=False)]
        put += [after[i] for i, hit in enumerate(changed) if hit]
        at_first += changed[0]
        hits.append(changed[:2])
    share = p * (1 - 1 / len(CONTEXTS))
    assert abs(at_first / N - share) < 4 * np.sqrt(share * (1 - share) / N)
    assert set(put) == set(CONTEXTS)
    table_2x2 = np.zeros((2, 2))
    for one, other in hits:
        table_2x2[int(one), int(other)] += 1
    assert stats.chi2_contingency(table_2x2).pvalue > ALPHA  # neighbours are hit independently
    all_new = [sequence[0] for sequence in sequences(altered(Count(), context_noise=1.0))]
    assert p_uniform(all_new, CONTEXTS) > ALPHA


@pytest.mark.parametrize("shuffle", [False, True])
def test_more_noise_changes_all_that_less_noise_changes_and_to_the_same(shuffle):
    task = Count(shuffle_context=shuffle)
    clean = altered(task, label_noise=0.0, context_noise=0.0)
    levels = [altered(task, label_noise=p, context_noise=p) for p in (0.2, 0.5, 0.9)]
    for less, more in itertools.pairwise(levels):
        for field in ("tokens_BxL", "targets_BxL"):
            before, one, other = (getattr(batch, field) for batch in (clean, less, more))
            np.testing.assert_array_equal(other[one != before], one[one != before])
            assert (other != before).sum() > (one != before).sum() > 0


def test_noise_belongs_to_the_sequence_wherever_it_comes_up():
    """As in another epoch of a finite training set, where it is gathered into another batch."""
    for task in (Count(), Composition("34_unseen", 4, 9, 0), Addition(99, (40, 60))):
        batch, numbers = drawn(task), {"label_noise": 0.5, "context_noise": 0.2}
        whole = altered(task, batch, **numbers)
        index_B = np.random.default_rng(1).permutation(N)
        part = altered(task, jax.tree.map(lambda leaf, index_B=index_B: leaf[index_B], batch), **numbers)
        for one, other in zip(part[:3], whole[:3], strict=True):
            np.testing.assert_array_equal(one, other[index_B])


def test_sequences_have_noise_of_their_own_and_all_numbers_are_independent():
    seed_B = drawn(Count()).info["noise_seed_B"]
    batch = jax.tree.map(lambda leaf: np.repeat(leaf[:1], N, axis=0), drawn(Count()))
    batch = batch._replace(info=batch.info | {"noise_seed_B": seed_B})
    noisy = altered(Count(), batch, label_noise=0.5, context_noise=0.5)
    changed_BxL = noisy.targets_BxL != batch.targets_BxL
    answer, asked = np.flatnonzero(batch.weights_BxL[0])[0], np.flatnonzero(np.asarray(context(batch))[0])[0]
    table_2x2 = np.histogram2d(changed_BxL[:, answer], changed_BxL[:, asked], 2)[0]
    assert stats.chi2_contingency(table_2x2).pvalue > ALPHA
    assert len(np.unique(seed_B)) == N
    assert not set(seed_B.tolist()) & set(drawn(Count(), "test", seed=1).info["noise_seed_B"].tolist())


def test_rows_of_a_grid_are_altered_as_if_alone_by_one_program():
    task, batch = Count(), first(64, drawn(Count()))
    rows = {
        "ntp_weight": np.float32([0, 1, 0.5]),
        "label_noise": np.float32([0, 0.5, 1]),
        "context_noise": np.float32([0.2, 0, 0.7]),
    }
    together = jax.vmap(lambda hparams: task.alter(batch, hparams))(rows)
    alter = jax.jit(lambda batch, hparams: task.alter(batch, hparams))
    for r in range(3):
        alone = alter(batch, {name: values[r] for name, values in rows.items()})
        for one, other in zip(alone[:3], together[:3], strict=True):
            np.testing.assert_array_equal(one, other[r])
    assert alter._cache_size() == 1


@pytest.mark.parametrize("number", ["ntp_weight", "label_noise", "context_noise"])
@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_numbers_beyond_0_and_1_are_refused_in_the_task_and_diverge_in_a_grid(number, value):
    with pytest.raises(ValueError, match=rf"task\.{number}={value}: a number from 0 to 1"):
        Count(**{number: value})
    assert np.isnan(altered(Count(), **{number: value}).weights_BxL).any()


def test_shuffled_contexts_keep_the_law_of_each_position_and_nothing_else():
    task = Count(shuffle_context=True)
    batch, trained = drawn(task), altered(task, ntp_weight=1.0)
    plain = altered(Count(), ntp_weight=1.0)
    np.testing.assert_array_equal(trained.tokens_BxL, batch.tokens_BxL)
    np.testing.assert_array_equal(trained.weights_BxL, plain.weights_BxL)
    in_context = np.asarray(context(batch))
    np.testing.assert_array_equal(trained.targets_BxL[~in_context], batch.targets_BxL[~in_context])
    for position in range(4):
        of_context = in_context[:, position]
        clean, now = (b.targets_BxL[of_context, position] for b in (plain, trained))
        read = batch.tokens_BxL[of_context, position]
        assert (clean == read + 1).all()
        assert sorted(now.tolist()) == sorted(clean.tolist())
        # Of 44 numbers one follows; what is said no longer depends on what is read.
        assert (now == read + 1).mean() < 1 / 44 + 4 * np.sqrt(1 / 44 / of_context.sum())
        counts_QxQ = np.histogram2d(read // 9, now // 9, 4)[0]
        assert stats.chi2_contingency(counts_QxQ + 1).pvalue > ALPHA
    # nor do the positions say anything of one another
    longest = in_context.sum(axis=1) == 4
    assert np.mean(np.diff(trained.targets_BxL[longest][:, :4], axis=1) == 1) < 0.1


def test_each_position_is_permuted_for_itself_among_those_that_may_move():
    row_BxL = jnp.tile(jnp.arange(N, dtype=jnp.int32)[:, None], (1, LONGEST - 1))
    may_move_BxL = (row_BxL % 3 != jnp.arange(LONGEST - 1, dtype=jnp.int32)[None]) | (row_BxL % 3 == 2)
    moved_BxL = np.asarray(shuffled(jax.random.key(0), row_BxL, may_move_BxL))
    assert (np.sort(moved_BxL, axis=0) == row_BxL).all()
    assert (moved_BxL == row_BxL)[~may_move_BxL].all()
    # A permutation has one fixed point on average, and two of them have one in common.
    assert (moved_BxL == row_BxL)[may_move_BxL].sum() < 30
    for one, other in itertools.combinations(range(2, LONGEST - 1), 2):  # where all move
        assert (moved_BxL[:, one] == moved_BxL[:, other]).sum() < 10


def test_a_shuffle_is_the_same_in_every_epoch_and_not_of_the_evaluation():
    task = Count(shuffle_context=True)
    batch = drawn(task)
    backwards = jax.tree.map(lambda leaf: leaf[::-1], batch)
    once, again = (altered(task, b, ntp_weight=0.5, context_noise=0.1) for b in (batch, backwards))
    np.testing.assert_array_equal(again.targets_BxL[::-1], once.targets_BxL)
    for one, other in zip(batch[:3], drawn(Count())[:3], strict=True):
        np.testing.assert_array_equal(one, other)


def greedy(logits_LxLxV, question, n):
    """What a model that sees its last token and the position alone would write after a question."""
    written = list(question)
    for _ in range(n):
        written.append(int(np.argmax(logits_LxLxV[written[-1], len(written) - 1])))
    return written[len(question) :]


def test_exact_match_is_that_of_greedy_decoding():
    task, draw = Count(), np.random.default_rng(3)
    batch = first(512, drawn(task))
    # A model by table, right about most answers: at (token, position) the likeliest next token.
    next_VxL = draw.integers(1, 60, (60, LONGEST))
    for token, t, answer in zip(
        batch.tokens_BxL.ravel(), np.tile(range(6), 512), batch.targets_BxL.ravel(), strict=True
    ):
        if answer >= 50 and draw.random() < 0.2:
            next_VxL[token, t] = answer
    logits_VxLxV = np.eye(60, dtype=np.float32)[next_VxL]
    logits_BxLxV = logits_VxLxV[batch.tokens_BxL, np.arange(LONGEST - 1)]
    exact_B, decoded_B, correct, total = exact(logits_BxLxV, batch), [], 0, 0
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
    scores = Count().score(jnp.zeros((N, LONGEST - 1, 60)), drawn(Count()))
    assert (scores["accuracy"], scores["token_accuracy"]) == (0, 0)


def test_logits_at_some_positions_only_are_refused():
    with pytest.raises(ValueError, match=r"logits at 1 of 6 positions: .* use model\.readout='all'"):
        right(jnp.zeros((N, 1, 60)), drawn(Count()))


def test_composition_has_one_answer_and_its_noise_stays_within_its_tokens():
    task = Composition("34_unseen", 4, 9, 0)
    noisy = altered(task, label_noise=1.0, context_noise=1.0, ntp_weight=1.0)
    assert (noisy.weights_BxL == 1).all()
    sequence_BxM = np.array(sequences(noisy))
    assert p_uniform(sequence_BxM[:, -1], range(4, 110)) > ALPHA  # the labels span 4 ... 109, says 2405.05409
    for position in (0, 3, 8):
        assert p_uniform(sequence_BxM[:, position], [1, 2, 3, 4, *range(20, 100)]) > ALPHA
    clean, half = drawn(task), altered(task, label_noise=0.5)
    np.testing.assert_array_equal(half.tokens_BxL, clean.tokens_BxL)
    np.testing.assert_array_equal(half.targets_BxL[:, :-1], clean.targets_BxL[:, :-1])
    share = 0.5 * (1 - 1 / 106)
    wrong = np.mean(half.targets_BxL[:, -1] != clean.targets_BxL[:, -1])
    assert abs(wrong - share) < 4 * np.sqrt(share * (1 - share) / N)
