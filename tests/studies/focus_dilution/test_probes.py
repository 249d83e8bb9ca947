import numpy as np
import pytest

from lab.studies.focus_dilution.probes import decile_probes, deciles, named_probes


def deciles_by_hand(count):
    """Walks through tokens by falling count and looks in which tenth the middle of each one's mass lies."""
    below, found = 0, [9] * len(count)
    for token in sorted(range(len(count)), key=lambda token: (-count[token], token)):
        if count[token]:
            found[token] = 10 * (2 * below + count[token]) // (2 * sum(count))
        below += count[token]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_deciles_are_tenths_of_the_mass(seed):
    count = (1000 / np.random.default_rng(seed).permutation(np.arange(1, 301))).astype(int)  # Zipf's law
    count[:3] = 0
    found = deciles(count)
    np.testing.assert_array_equal(found, deciles_by_hand(count.tolist()))
    # tokens lie whole in the decile of their middle: each tenth is off by at most half of the largest token it touches
    for decile in range(10):
        mass = count[found == decile].sum() / count.sum()
        assert abs(mass - 0.1) <= count.max() / count.sum()
    assert set(found[:3]) == {9}


def test_probes_are_evenly_spaced_in_every_decile():
    # 100 equal tokens: ten in each decile; of ten, three evenly spaced ones are at 1, 5 and 8 (1.67, 5, 8.33)
    found = decile_probes(np.full(100, 7), 3, 1)
    np.testing.assert_array_equal(found.token_I, [10 * d + i for d in range(10) for i in (1, 5, 8)])
    np.testing.assert_array_equal(found.decile_I, np.repeat(np.arange(10), 3))


def test_rare_tokens_and_deciles_inside_one_token_have_no_probe():
    # token 2 has half of the mass, its middle at 0.25; tokens 0 and 1 end at 0.65 and 0.8; 20 rare ones have the rest
    count = np.array([60, 60, 200, *[4] * 20])
    np.testing.assert_array_equal(decile_probes(count, 5, 5).token_I, [2, 0, 1])
    np.testing.assert_array_equal(decile_probes(count, 5, 5).decile_I, [2, 5, 7])
    with_rare = decile_probes(count, 2, 4)
    np.testing.assert_array_equal(with_rare.token_I[:3], [2, 0, 1])
    assert len(with_rare.token_I) == 7 and set(with_rare.decile_I[3:]) == {8, 9}


def test_named_probes_are_the_words_that_are_there_preferably_after_a_space():
    vocabulary = {"a": 0, "Ġa": 1, ",": 2, "full": 3, "Ġbeen": 4}
    count = np.array([50, 40, 30, 2, 20])
    found = named_probes(count, vocabulary.get, ("the", ",", "a", "full", "been"), 3)
    np.testing.assert_array_equal(found.token_I, [2, 1, 4])
    np.testing.assert_array_equal(found.decile_I, np.array(deciles_by_hand(count.tolist()))[[2, 1, 4]])


def test_texts_without_tokens_and_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="no token occurs"):
        deciles(np.zeros(5, int))
    with pytest.raises(ValueError, match="n_per_decile=0: must be at least 1"):
        decile_probes(np.ones(5, int), 0, 1)
    with pytest.raises(ValueError, match="least_count=0: must be at least 1"):
        decile_probes(np.ones(5, int), 1, 0)
