import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab.tasks import Composition

EPS = 2.0**-23  # float32
ALPHA = 1e-3  # level of the chi-square tests; the seeds are fixed, so they pass or fail for good
N = 512
MANY = 40_000  # of each of the at most 560 combinations of key and position 70 are expected: none is missed
V = 201
SHIFTS = {4: {1: 5, 2: 1, 3: -2, 4: -8}, 9: {anchor: anchor - 5 for anchor in range(1, 10)}}
# arXiv 2501.08537: the true label of each unordered pair, and the wrong one of its noise group.
TRUE = {(1, 2): 6, (1, 3): 3, (1, 4): -3, (2, 3): -1, (2, 4): -7, (3, 4): -10}
WRONG = {(1, 2): 4, (1, 3): 1, (1, 4): -5, (2, 3): 5, (2, 4): -9, (3, 4): -6}

TASKS = [
    Composition(setting, n_anchors, modulus, 0)
    for setting, n_anchors, modulus in itertools.product(("34_wrong", "34_unseen", "all_pairs"), (4, 9), (7, 8, 9))
]
NOISY = [Composition(setting, 4, 9, k) for setting in ("all_pairs", "34_unseen", "34_wrong") for k in (1, 3, 6)]


def main(setting="34_wrong", **changes):
    return dataclasses.replace(Composition(setting, 4, 9, 0), **changes)


@functools.cache
def batch_of(task, split, n=N, seed=0):
    return jax.tree.map(np.asarray, task.sample(jax.random.key(seed), n, split, {}))


def name(task):
    return f"{task.setting}-{task.n_anchors}-{task.modulus}-{task.noise_groups}"


def truth(task, a, b):
    return SHIFTS[task.n_anchors][a] + SHIFTS[task.n_anchors][b]


def label_shift(task, split, a, b):
    """What the label adds to the key, by the papers' words."""
    if split in ("ood_43", "ood_34"):
        return truth(task, a, b)
    if task.setting == "34_wrong" and (a, b) == (3, 4):
        return -6
    unordered = (min(a, b), max(a, b))
    if unordered in list(WRONG)[: task.noise_groups]:
        return WRONG[unordered]
    return truth(task, a, b)


def splits_of(task):
    extra = ("ood_34",) if task.setting == "34_unseen" else ()
    return ("train", "test_seen", "ood_43", *extra, "swap")


def unseen_of(task):
    return {"34_wrong": {(4, 3)}, "34_unseen": {(3, 4), (4, 3)}, "all_pairs": set()}[task.setting]


def pairs_of(task, split):
    """Ordered pairs that a split draws from."""
    if split in ("train", "test_seen"):
        anchors = range(1, task.n_anchors + 1)
        return {(a, b) for a in anchors for b in anchors} - unseen_of(task)
    return {"ood_43": {(4, 3)}, "ood_34": {(3, 4)}, "swap": {(3, 4), (4, 3)}}[split]


@pytest.mark.parametrize("task", TASKS + NOISY, ids=name)
def test_every_sequence_and_label_is_what_the_paper_says(task):
    assert task.splits == splits_of(task)
    anchors = range(1, task.n_anchors + 1)
    coordinates = [(a, b) for a in anchors for b in anchors]
    assert task.coords["pair"] == tuple(f"{a},{b}" for a, b in coordinates)
    for split in task.splits:
        tokens_BxL, targets_BxL, weights_BxL, info = batch_of(task, split)
        assert tokens_BxL.shape == (N, 9)
        assert {leaf.dtype.name for leaf in (tokens_BxL, targets_BxL, *info.values())} == {"int32"}
        for i in range(N):
            tokens, position = tokens_BxL[i].tolist(), info["key_position_B"][i]
            key, a, b = tokens[position : position + 3]
            noise = tokens[:position] + tokens[position + 3 :]
            assert len(noise) == 6 and all(20 <= token <= 99 for token in (key, *noise))
            assert (a, b) in pairs_of(task, split)
            assert (key % task.modulus == position) == (split == "test_seen")
            assert targets_BxL[i].tolist() == [*tokens[1:], key + label_shift(task, split, a, b)]
            assert weights_BxL[i].tolist() == [0] * 8 + [1]
            described = [info[name][i] for name in ("key_B", "first_B", "second_B", "reasoning_B", "symmetric_B")]
            assert described == [key, a, b, key + truth(task, a, b), key - 6]
            assert coordinates[info["pair_B"][i]] == (a, b)


def test_published_noise_labels_are_wrong_and_symmetric():
    task = Composition("all_pairs", 4, 9, 6)
    for pair, shift in WRONG.items():
        assert task.trained(*pair) == task.trained(*pair[::-1]) == shift
        assert task.inferential(*pair) == task.inferential(*pair[::-1]) == TRUE[pair] != shift
    assert all(task.trained(a, a) == task.inferential(a, a) for a in range(1, 5))


@pytest.mark.parametrize("modulus", [7, 8, 9])
def test_train_and_test_seen_part_the_combinations_of_key_and_position(modulus):
    task = main(modulus=modulus)
    seen, held_out = (
        set(zip(batch.info["key_B"].tolist(), batch.info["key_position_B"].tolist(), strict=True))
        for batch in (batch_of(task, split, MANY) for split in ("train", "test_seen"))
    )
    assert not seen & held_out
    assert seen | held_out == set(itertools.product(range(20, 100), range(7)))
    assert {key for key, _ in seen} == set(range(20, 100))  # in training every key and every position occurs
    assert {position for _, position in seen} == set(range(7))


def test_positions_are_counted_from_one_and_unseen_pairs_have_held_out_keys_where_asked():
    """arXiv 2509.17514: key 33 may not stand first, where positions are counted from 1 and taken modulo 8."""
    task = main(modulus=8, length=8, first_position=1, ood_keys="held_out")
    for split in ("train", "test_seen", "ood_43", "swap"):
        info = batch_of(task, split, 4096).info
        held_out = info["key_B"] % 8 == info["key_position_B"] + 1
        assert set(held_out) == {split in ("test_seen", "ood_43")}
        assert set(info["key_position_B"]) == set(range(6))
    assert (
        33 not in batch_of(task, "train", 4096).tokens_BxL[batch_of(task, "train", 4096).info["key_position_B"] == 0, 0]
    )


def p_uniform(values, support):
    """P-value of the chi-square test that the values are uniform on the support; 0 if one lies outside."""
    values, counts = np.unique(values, return_counts=True)
    if not set(values.tolist()) <= set(support):
        return 0.0
    all_counts = dict.fromkeys(support, 0) | dict(zip(values.tolist(), counts.tolist(), strict=True))
    return stats.chisquare(list(all_counts.values())).pvalue


@pytest.mark.parametrize("task", [main(), main("34_unseen"), main("all_pairs", n_anchors=9)], ids=name)
@pytest.mark.parametrize("split", ["train", "test_seen"])
def test_pairs_positions_keys_and_noise_are_uniform(task, split):
    batch = batch_of(task, split, MANY)
    pairs = list(zip(batch.info["first_B"].tolist(), batch.info["second_B"].tolist(), strict=True))
    support = sorted(pairs_of(task, split))
    assert p_uniform([support.index(pair) for pair in pairs], range(len(support))) > ALPHA
    position_B = batch.info["key_position_B"]
    assert p_uniform(position_B, range(7)) > ALPHA
    for position in range(7):
        allowed = [key for key in range(20, 100) if (key % task.modulus == position) == (split == "test_seen")]
        assert p_uniform(batch.info["key_B"][position_B == position], allowed) > ALPHA / 7  # seven tests at once
    slot_BxL = np.arange(9)[None] - position_B[:, None]
    noise = batch.tokens_BxL[(slot_BxL < 0) | (slot_BxL > 2)]
    assert p_uniform(noise, range(20, 100)) > ALPHA


def test_pair_position_and_key_are_independent():
    info = batch_of(main(), "train", MANY).info
    for one, other in (("pair_B", "key_position_B"), ("pair_B", "key_B")):
        rows, columns = (np.unique(info[name], return_inverse=True)[1] for name in (one, other))
        table = np.zeros((rows.max() + 1, columns.max() + 1))
        np.add.at(table, (rows, columns), 1)
        assert table.size * 5 < MANY  # enough in each cell for the chi-square approximation
        assert stats.chi2_contingency(table).pvalue > ALPHA


@pytest.mark.parametrize("setting", ["34_wrong", "34_unseen", "all_pairs"])
def test_swap_holds_each_sequence_in_both_orders(setting):
    batch = batch_of(main(setting), "swap")
    partner_B, half = batch.info["partner_B"], N // 2
    np.testing.assert_array_equal(partner_B, np.r_[half:N, 0:half])
    np.testing.assert_array_equal(batch.info["first_B"], np.repeat([4, 3], half))
    np.testing.assert_array_equal(batch.info["second_B"], np.repeat([3, 4], half))
    swapped = batch.tokens_BxL.copy()
    rows, first = np.arange(N), batch.info["key_position_B"] + 1
    swapped[rows, first], swapped[rows, first + 1] = swapped[rows, first + 1], swapped[rows, first].copy()
    np.testing.assert_array_equal(batch.tokens_BxL[partner_B], swapped)


def test_keys_draw_different_batches():
    batches = [batch_of(main(), "train", seed=seed).tokens_BxL for seed in range(3)]
    # Two sequences agree in a noise token once in 80, in an anchor once in four: far from everywhere.
    assert all(np.mean(one == other) < 0.1 for one, other in itertools.combinations(batches, 2))


def answers(predicted_B, n_positions=9):
    """Logits that say nothing before the last position and the given token there."""
    logits_BxQxV = np.zeros((len(predicted_B), n_positions, V), np.float32)
    logits_BxQxV[np.arange(len(predicted_B)), -1, predicted_B] = 1
    return logits_BxQxV


@functools.cache
def _score(task):
    return jax.jit(task.score)


def score(task, predicted_B, batch, **options):
    return jax.tree.map(np.asarray, _score(task)(answers(predicted_B, **options), batch))


def histogram(**shares):
    """All 25 bins from -12 to 12, empty but for these."""
    bins = np.zeros(25, np.float32)
    for bin_, share in shares.items():
        bins[int(bin_.replace("plus", "").replace("minus", "-")) + 12] = share
    return bins


def inferred(task, batch):
    """The inferential label of each sequence."""
    described = zip(*(batch.info[name] for name in ("key_B", "first_B", "second_B")), strict=True)
    return np.array([key + truth(task, a, b) for key, a, b in described])


@pytest.mark.parametrize("n_positions", [1, 9])
@pytest.mark.parametrize("setting", ["34_wrong", "34_unseen"])
def test_perfect_reasoner(setting, n_positions):
    task = main(setting)
    for split in task.splits:
        batch = batch_of(task, split)
        scores = score(task, inferred(task, batch), batch, n_positions=n_positions)
        pairs = list(zip(batch.info["first_B"].tolist(), batch.info["second_B"].tolist(), strict=True))
        trained_wrong = setting == "34_wrong" and split != "ood_43"
        wrong = np.mean([pair == (3, 4) for pair in pairs]) if trained_wrong else 0.0
        assert scores["reasoning"] == 1
        assert scores["accuracy"] == pytest.approx(1 - wrong, abs=N * EPS)  # a mean of N ones and zeros
        # x - 6 is the inferential label of no pair of these shifts.
        assert scores["symmetric"] == 0
        np.testing.assert_array_equal(scores["deviation"], histogram(plus0=1))
        if split == "swap":
            assert scores["commutativity"] == 1


def test_perfect_symmetric_answerer():
    task = main("34_wrong")

    def answer(batch):
        of_34 = batch.info["first_B"] + batch.info["second_B"] == 7
        of_34 &= np.abs(batch.info["first_B"] - batch.info["second_B"]) == 1
        return np.where(of_34, batch.info["key_B"] - 6, inferred(task, batch))

    batch = batch_of(task, "ood_43")
    scores = score(task, answer(batch), batch)
    assert (scores["accuracy"], scores["reasoning"], scores["symmetric"]) == (0, 0, 1)
    np.testing.assert_array_equal(scores["deviation"], histogram(plus4=1))  # as the authors log it
    for split in ("train", "test_seen"):  # and it has learnt all it was taught
        assert score(task, answer(batch_of(task, split)), batch_of(task, split))["accuracy"] == 1
    swap = score(task, answer(batch_of(task, "swap")), batch_of(task, "swap"))
    assert (swap["commutativity"], swap["symmetric"], swap["accuracy"]) == (1, 1, 0.5)


def test_commutativity_asks_for_equal_answers_not_right_ones():
    task = main("34_unseen")
    batch = batch_of(task, "swap")
    neither = np.r_[: N // 2, : N // 2] % 3  # the same nonsense for both orders
    scores = score(task, neither, batch)
    assert (scores["commutativity"], scores["reasoning"], scores["symmetric"]) == (1, 0, 0)
    scores = score(task, inferred(task, batch) + (batch.info["first_B"] == 3), batch)  # right in one order only
    assert (scores["commutativity"], scores["reasoning"]) == (0, 0.5)
    np.testing.assert_array_equal(scores["deviation"], histogram(plus0=0.5, plus1=0.5))
    quarter = np.where(np.arange(N) < N // 4, 0, inferred(task, batch))  # a quarter of all, half of the (4,3)s, differs
    assert score(task, quarter, batch)["commutativity"] == 0.5
    assert "commutativity" not in score(task, neither, batch_of(task, "ood_43"))


def test_uniform_garbage_scores_chance():
    task, n_draws = main("34_unseen"), 40
    for split in ("train", "swap"):
        batch, rng = batch_of(task, split), np.random.default_rng(4)
        draws = [score(task, rng.integers(0, V, N), batch) for _ in range(n_draws)]
        scores = {name: np.mean([draw[name] for draw in draws], axis=0) for name in draws[0]}
        names = ["accuracy", "reasoning", "symmetric"] + ["commutativity"] * (split == "swap")
        n = dict.fromkeys(names, n_draws * N) | {"commutativity": n_draws * N // 2}  # a swapped pair counts twice
        for name in names:
            assert abs(scores[name] - 1 / V) < 4 * np.sqrt(1 / V / n[name]), name  # standard errors of a frequency
        shares = scores["deviation"][1:-1]  # one answer each, but for the ends
        assert np.abs(shares - 1 / V).max() < 5 * np.sqrt(1 / V / (n_draws * N))  # 23 at once: five


def test_constant_logits_answer_token_zero_which_is_never_right():
    task = main()
    for split in task.splits:
        batch = batch_of(task, split)
        scores = task.score(jnp.zeros((N, 1, V)), batch)
        assert (scores["accuracy"], scores["reasoning"], scores["symmetric"]) == (0, 0, 0)


@pytest.mark.parametrize("split", ["train", "test_seen", "ood_43", "ood_34", "swap"])
def test_pair_accuracy_is_that_of_each_pair_and_nan_where_there_is_none(split):
    task = main("34_unseen")
    batch = batch_of(task, split)
    right_B = np.random.default_rng(5).random(N) < 0.5 + 0.1 * (batch.info["first_B"] - 2)
    predicted_B = np.where(right_B, batch.targets_BxL[:, -1], 0)
    accuracy_P = score(task, predicted_B, batch)["pair_accuracy"]
    for i, (a, b) in enumerate(itertools.product(range(1, 5), range(1, 5))):
        of_pair = (batch.info["first_B"] == a) & (batch.info["second_B"] == b)
        assert of_pair.any() == ((a, b) in pairs_of(task, split))
        if of_pair.any():
            # Counts are exact in float32; one division.
            assert accuracy_P[i] == pytest.approx(np.mean(right_B[of_pair]), rel=EPS)
        else:
            assert np.isnan(accuracy_P[i])


@pytest.mark.parametrize("seed", range(3))
def test_deviations_are_a_histogram_with_everything_beyond_at_the_ends(seed):
    task = main()
    batch = batch_of(task, "train")
    predicted_B = np.random.default_rng(seed).integers(0, V, N)
    expected = dict.fromkeys(range(-12, 13), 0)
    for deviation in predicted_B - inferred(task, batch):
        expected[max(-12, min(12, int(deviation)))] += 1 / N  # N is a power of two: exact
    result = score(task, predicted_B, batch)["deviation"]
    assert task.coords["deviation"] == tuple(expected)
    np.testing.assert_array_equal(result, np.array(list(expected.values()), np.float32))
    assert result.sum() == 1


def test_score_under_jit_and_vmap_is_the_same():
    task = main()
    batch = batch_of(task, "swap")
    rows = np.stack([answers(np.random.default_rng(seed).integers(0, 60, N), 1) for seed in range(2)])
    together = jax.vmap(lambda logits: task.score(logits, batch))(rows)
    for i in range(2):
        eager = task.score(jnp.asarray(rows[i]), batch)
        assert eager.keys() == together.keys()
        for name, value in eager.items():
            # Counts below 2^24 are exact, whatever their order; one division, or a product with 1/N, a power of two.
            np.testing.assert_allclose(together[name][i], value, rtol=EPS)
            np.testing.assert_allclose(_score(task)(rows[i], batch)[name], value, rtol=EPS)


def test_smallest_and_longest_tasks_still_part_keys_and_positions():
    for task in (main(length=11), main(low=20, high=28), main(low=17, vocab_size=110)):
        for split, held_out in (("train", False), ("test_seen", True)):
            batch = batch_of(task, split)
            key_B, position_B = batch.info["key_B"], batch.info["key_position_B"]
            assert ((key_B % 9 == position_B) == held_out).all()
            assert set(position_B.tolist()) == set(range(task.length - 2))
            assert task.low <= batch.tokens_BxL[np.arange(N), position_B].min()
            assert batch.tokens_BxL.max() <= task.high
            assert batch.targets_BxL.min() > 0 and batch.targets_BxL.max() < task.vocab_size


def test_splits_that_a_setting_lacks_are_refused_with_those_it_has():
    for task, split in ((main(), "ood_34"), (main("all_pairs"), "ood_34"), (main("34_unseen"), "test")):
        message = rf"split '{split}': one of {', '.join(splits_of(task))}$"
        with pytest.raises(ValueError, match=message):
            task.sample(jax.random.key(0), 4, split, {})


def test_an_odd_swap_is_refused():
    with pytest.raises(ValueError, match=r"split 'swap' holds every sequence in both orders: n=5 must be even"):
        main().sample(jax.random.key(0), 5, "swap", {})
