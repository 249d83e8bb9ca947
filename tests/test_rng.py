import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import rng

WORD = 2**32


def crc32(text):
    """CRC-32 of ISO 3309, bit by bit."""
    remainder = WORD - 1
    for byte in text.encode():
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0xEDB88320 if remainder & 1 else 0)
    return remainder ^ (WORD - 1)


def threefry(key, counter):
    """Threefry-2x32 with 20 rounds (Salmon et al., SC 2011)."""
    schedule = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + key[0]) % WORD, (counter[1] + key[1]) % WORD
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = (x + y) % WORD
            y = ((y << turn) | (y >> (32 - turn))) % WORD ^ x
        x = (x + schedule[(group + 1) % 3]) % WORD
        y = (y + schedule[(group + 2) % 3] + group + 1) % WORD
    return x, y


def words(key):
    return tuple(int(word) for word in jax.random.key_data(key))


def test_threefry_of_this_file_gives_the_published_vectors():
    assert threefry((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)
    assert threefry((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)) == (0xC4923A9C, 0x483DF7A0)
    assert crc32("123456789") == 0xCBF43926


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("stream", ["init", "data", "eval/ood_43"])
def test_key_is_threefry_of_seed_stream_and_index(seed, stream):
    stream_key = threefry((0, seed), (0, crc32(stream)))
    assert words(rng.key(seed, stream)) == stream_key
    assert words(rng.key(seed, stream, 7)) == threefry(stream_key, (0, 7))
    assert words(rng.key(seed, stream, 0)) == threefry(stream_key, (0, 0))  # not the stream's own key


def test_named_part_of_a_key_is_threefry_of_its_name():
    key = jax.random.key(3, impl="threefry2x32")
    assert words(rng.named(key, "block_0/mlp/in/kernel")) == threefry((0, 3), (0, crc32("block_0/mlp/in/kernel")))


def test_traced_key_is_the_untraced_one():
    traced = jax.jit(lambda seed, index: rng.key(seed, "data", index))
    vmapped = jax.vmap(lambda index: jax.random.key_data(rng.key(5, "data", index)))(jnp.arange(4))
    for index in range(4):
        expected = words(rng.key(5, "data", index))
        assert words(traced(jnp.int32(5), jnp.int32(index))) == expected
        assert tuple(vmapped[index].tolist()) == expected


def test_keys_do_not_repeat():
    names = itertools.product(range(5), ["init", "data", "eval/train", "eval/swap"], [None, *range(20)])
    keys = [words(rng.key(seed, stream, index)) for seed, stream, index in names]
    assert len(set(keys)) == 5 * 4 * 21


def test_streams_seeds_and_indices_are_uncorrelated():
    n = 4096
    names = [(0, "init", None), (0, "data", None), (1, "init", None), (0, "data", 0), (0, "data", 1), (1, "data", 0)]
    draws = np.array([jax.random.normal(rng.key(*name), (n,)) for name in names], np.float64)
    correlation = np.corrcoef(draws) - np.eye(len(names))
    # 15 coefficients of standard error 1/sqrt(n): four of them, passed by chance once in a thousand seeds.
    assert np.abs(correlation).max() < 4 / np.sqrt(n)


def test_vmapped_draw_is_the_draw_of_a_loop_whatever_the_default_generator():
    with jax.default_prng_impl("rbg"):
        together = jax.vmap(lambda seed: jax.random.normal(rng.key(seed, "init"), (5,)))(jnp.arange(3))
        alone = [jax.random.normal(rng.key(seed, "init"), (5,)) for seed in range(3)]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(alone[2], jax.random.normal(rng.key(2, "init"), (5,)))
