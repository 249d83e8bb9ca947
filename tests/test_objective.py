"""Weights, noise and shuffle of tasks with an answer, on a made-up one that is easily told apart by hand."""

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

from lab import losses
from lab.objective import DEFAULT, Objective, context, permute_context
from lab.tasks import Addition, Anchor, Composition

EPS = 2.0**-23  # float32
ALPHA = 1e-3  # level of the chi-square tests; the seeds are fixed, so they pass or fail for good
N = 4000
count = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("count.py"))))
Count, sequences, parts, first = count.Count, count.sequences, count.parts, count.first
LONGEST, ANSWERS, CONTEXTS = count.LONGEST, count.ANSWERS, count.CONTEXTS
COUNT = Count()
SHUFFLED = Objective(shuffle_context=True)


@functools.cache
def drawn(objective=DEFAULT, task=COUNT, seed=0):
    # All of one size, and piece by piece: every program would be compiled anew.
    return jax.tree.map(np.asarray, objective.sample(task, jax.random.key(seed), N, {}))


def altered(objective=DEFAULT, batch=None, task=COUNT, **numbers):
    batch = drawn(objective, task) if batch is None else batch
    numbers = {name: jnp.float32(p) for name, p in numbers.items()}
    return jax.tree.map(np.asarray, objective.apply(task, jax.tree.map(jnp.asarray, batch), numbers))


def p_uniform(values, support):
    """P-value of the chi-square test that the values are uniform on the support; 0 if one lies outside."""
    counts = [int(np.sum(np.asarray(values) == value)) for value in support]
    return stats.chisquare(counts).pvalue if sum(counts) == len(values) else 0.0


@pytest.mark.parametrize("ntp_weight", [0.0, 0.3, 1.0])
def test_loss_is_ctp_at_0_ntp_at_1_and_their_weighted_mean_between(ntp_weight):
    batch, trained = (first(64, of) for of in (drawn(), altered(ntp_weight=ntp_weight)))
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
    batch, objective = drawn(), Objective(**{name: 0.3})
    by_field, by_row, overruled = (
        altered(objective, batch),
        altered(**{name: 0.3}),
        altered(objective, batch, **{name: 0}),
    )
    for i in range(3):
        np.testing.assert_array_equal(by_field[i], by_row[i])
        np.testing.assert_array_equal(overruled[i], batch[i])
    assert any((by_field[i] != batch[i]).any() for i in range(3))


def test_rows_at_zero_are_trained_on_what_was_drawn():
    batch = drawn()
    assert DEFAULT.apply(COUNT, batch, {"gamma": 0.5}) is batch
    for one, before in zip(altered(ntp_weight=0, label_noise=0, context_noise=0)[:3], batch[:3], strict=True):
        np.testing.assert_array_equal(one, before)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_label_noise_replaces_whole_answers_with_uniform_tokens(p):
    batch, noisy = drawn(), altered(label_noise=p)
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
    batch, noisy = drawn(), altered(context_noise=p)
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
    all_new = [sequence[0] for sequence in sequences(altered(context_noise=1.0))]
    assert p_uniform(all_new, CONTEXTS) > ALPHA


@pytest.mark.parametrize("shuffle", [False, True])
def test_more_noise_changes_all_that_less_noise_changes_and_to_the_same(shuffle):
    objective = Objective(shuffle_context=shuffle)
    clean = altered(objective, label_noise=0.0, context_noise=0.0)
    levels = [altered(objective, label_noise=p, context_noise=p) for p in (0.2, 0.5, 0.9)]
    for less, more in itertools.pairwise(levels):
        for field in ("tokens_BxL", "targets_BxL"):
            before, one, other = (getattr(batch, field) for batch in (clean, less, more))
            np.testing.assert_array_equal(other[one != before], one[one != before])
            assert (other != before).sum() > (one != before).sum() > 0


def test_noise_belongs_to_the_sequence_wherever_it_comes_up():
    """As in another epoch of a finite training set, where it is gathered into another batch."""
    for task in (COUNT, Composition("34_unseen", 4, 9, 0), Addition(99, (40, 60))):
        batch, numbers = drawn(task=task), {"label_noise": 0.5, "context_noise": 0.2}
        whole = altered(batch=batch, task=task, **numbers)
        index_B = np.random.default_rng(1).permutation(N)
        some = jax.tree.map(lambda leaf, index_B=index_B: leaf[index_B], batch)
        part = altered(batch=some, task=task, **numbers)
        for one, other in zip(part[:3], whole[:3], strict=True):
            np.testing.assert_array_equal(one, other[index_B])


def test_sequences_have_noise_of_their_own_and_all_numbers_are_independent():
    seed_B = drawn().info["noise_seed_B"]
    batch = jax.tree.map(lambda leaf: np.repeat(leaf[:1], N, axis=0), drawn())
    batch = batch._replace(info=batch.info | {"noise_seed_B": seed_B})
    noisy = altered(batch=batch, label_noise=0.5, context_noise=0.5)
    changed_BxL = noisy.targets_BxL != batch.targets_BxL
    answer, asked = np.flatnonzero(batch.weights_BxL[0])[0], np.flatnonzero(np.asarray(context(batch))[0])[0]
    table_2x2 = np.histogram2d(changed_BxL[:, answer], changed_BxL[:, asked], 2)[0]
    assert stats.chi2_contingency(table_2x2).pvalue > ALPHA
    assert len(np.unique(seed_B)) == N
    assert not set(seed_B.tolist()) & set(drawn(seed=1).info["noise_seed_B"].tolist())


def test_rows_of_a_grid_are_altered_as_if_alone_by_one_program():
    batch = first(64, drawn())
    rows = {
        "ntp_weight": np.float32([0, 1, 0.5]),
        "label_noise": np.float32([0, 0.5, 1]),
        "context_noise": np.float32([0.2, 0, 0.7]),
    }
    together = jax.vmap(lambda hparams: DEFAULT.apply(COUNT, batch, hparams))(rows)
    apply = jax.jit(lambda batch, hparams: DEFAULT.apply(COUNT, batch, hparams))
    for r in range(3):
        alone = apply(batch, {name: values[r] for name, values in rows.items()})
        for one, other in zip(alone[:3], together[:3], strict=True):
            np.testing.assert_array_equal(one, other[r])
    assert apply._cache_size() == 1


@pytest.mark.parametrize("number", ["ntp_weight", "label_noise", "context_noise"])
@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_numbers_beyond_0_and_1_are_refused_in_the_objective_and_diverge_in_a_grid(number, value):
    with pytest.raises(ValueError, match=rf"objective\.{number}={value}: a number from 0 to 1"):
        Objective(**{number: value})
    assert np.isnan(altered(**{number: value}).weights_BxL).any()


def test_shuffled_contexts_keep_the_law_of_each_position_and_nothing_else():
    batch, trained = drawn(SHUFFLED), altered(SHUFFLED, ntp_weight=1.0)
    plain = altered(ntp_weight=1.0)
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
    moved_BxL = np.asarray(permute_context(jax.random.key(0), row_BxL, may_move_BxL))
    assert (np.sort(moved_BxL, axis=0) == row_BxL).all()
    assert (moved_BxL == row_BxL)[~may_move_BxL].all()
    # A permutation has one fixed point on average, and two of them have one in common.
    assert (moved_BxL == row_BxL)[may_move_BxL].sum() < 30
    for one, other in itertools.combinations(range(2, LONGEST - 1), 2):  # where all move
        assert (moved_BxL[:, one] == moved_BxL[:, other]).sum() < 10


def test_a_shuffle_is_the_same_in_every_epoch_and_not_of_the_evaluation():
    batch = drawn(SHUFFLED)
    backwards = jax.tree.map(lambda leaf: leaf[::-1], batch)
    once, again = (altered(SHUFFLED, b, ntp_weight=0.5, context_noise=0.1) for b in (batch, backwards))
    np.testing.assert_array_equal(again.targets_BxL[::-1], once.targets_BxL)
    for one, other in zip(batch[:3], drawn()[:3], strict=True):
        np.testing.assert_array_equal(one, other)


def test_composition_has_one_answer_and_its_noise_stays_within_its_tokens():
    task = Composition("34_unseen", 4, 9, 0)
    noisy = altered(task=task, label_noise=1.0, context_noise=1.0, ntp_weight=1.0)
    assert (noisy.weights_BxL == 1).all()
    sequence_BxM = np.array(sequences(noisy))
    assert p_uniform(sequence_BxM[:, -1], range(4, 110)) > ALPHA  # the labels span 4 ... 109, says 2405.05409
    for position in (0, 3, 8):
        assert p_uniform(sequence_BxM[:, position], [1, 2, 3, 4, *range(20, 100)]) > ALPHA
    clean, half = drawn(task=task), altered(task=task, label_noise=0.5)
    np.testing.assert_array_equal(half.tokens_BxL, clean.tokens_BxL)
    np.testing.assert_array_equal(half.targets_BxL[:, :-1], clean.targets_BxL[:, :-1])
    share = 0.5 * (1 - 1 / 106)
    wrong = np.mean(half.targets_BxL[:, -1] != clean.targets_BxL[:, -1])
    assert abs(wrong - share) < 4 * np.sqrt(share * (1 - share) / N)


def test_a_task_without_an_answer_is_sampled_as_it_is_and_refuses_another_objective():
    task, key = Anchor(), jax.random.key(0)
    for leaf, plain in zip(
        *(jax.tree.leaves(batch) for batch in (DEFAULT.sample(task, key, 8, {}), task.sample(key, 8, "train", {}))),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, plain)
    DEFAULT.check_fit(task, "last", {})
    for options, said in (
        (dict(ntp_weight=0.5), "ntp_weight=0.5"),
        (dict(shuffle_context=True), "shuffle_context=True"),
    ):
        with pytest.raises(ValueError, match=f"objective.{said}: Anchor has no answer apart from its context"):
            Objective(**options).check_fit(task, "all", {})


def test_weight_on_context_needs_a_model_that_answers_everywhere():
    for objective, axes in ((Objective(ntp_weight=0.5), {}), (DEFAULT, {"ntp_weight": (0.0, 1.0)})):
        objective.check_fit(COUNT, "all", axes)
        with pytest.raises(ValueError, match=r"model\.readout='last' with ntp_weight=.*: .* use 'all'"):
            objective.check_fit(COUNT, "last", axes)
    Objective(ntp_weight=0.5).check_fit(COUNT, "last", {"ntp_weight": (0.0,)})
