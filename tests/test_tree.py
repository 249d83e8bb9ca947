from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import tree


class State(NamedTuple):
    params: dict
    count: jax.Array


def state(fill):
    kernel = jnp.full((2, 3), fill, jnp.float32)
    attn = {"kernel": kernel, "bias": kernel[0]}
    return State({"block_0": {"attn": attn}, "head": (kernel, kernel[1])}, jnp.int32(3))


NAMES = ["params/block_0/attn/bias", "params/block_0/attn/kernel", "params/head/0", "params/head/1", "count"]


def test_names_join_keys_fields_and_positions_in_the_order_of_the_leaves():
    named = tree.named_leaves(state(2.0))
    assert list(named) == NAMES
    for leaf, same in zip(named.values(), jax.tree.leaves(state(2.0)), strict=True):
        np.testing.assert_array_equal(leaf, same)


def test_mapped_leaves_keep_their_place_and_learn_their_name():
    mapped = tree.map_named(lambda name, leaf: (name, leaf.sum()), state(2.0))
    assert mapped.params["block_0"]["attn"]["kernel"] == ("params/block_0/attn/kernel", 2.0 * 6)
    assert mapped.params["head"][1] == ("params/head/1", 2.0 * 3)
    assert mapped.count == ("count", 3)


def test_select_keeps_either_side_bit_by_bit():
    odd = np.array([np.nan, -0.0, np.inf, 1e-45, -np.inf, 0.1], np.float32)
    even = np.array([1, 0, np.nan, -1e-45, 3, 0.2], np.float32)
    for condition, expected in ((True, odd), (False, even)):
        for chosen in (tree.where, jax.jit(tree.where)):
            result = chosen(jnp.bool_(condition), {"a": odd, "b": jnp.int32(1)}, {"a": even, "b": jnp.int32(2)})
            np.testing.assert_array_equal(np.asarray(result["a"]).view(np.int32), expected.view(np.int32))
            assert result["b"] == (1 if condition else 2)


def test_nothing_of_the_unselected_side_reaches_the_gradient_of_the_other():
    def loss(good, bad):
        return jnp.sum(tree.where(jnp.bool_(True), {"w": good}, {"w": bad})["w"] * 3.0)

    good_grad, bad_grad = jax.grad(loss, argnums=(0, 1))(jnp.ones(2), jnp.full(2, jnp.nan))
    np.testing.assert_array_equal(good_grad, [3, 3])
    np.testing.assert_array_equal(bad_grad, [0, 0])


def test_size_counts_scalars():
    assert tree.size(state(0.0)) == 6 + 3 + 6 + 3 + 1
    assert tree.size({}) == 0


def test_stacked_trees_have_a_first_axis_over_them():
    stacked = tree.stack([state(1.0), state(2.0)])
    np.testing.assert_array_equal(stacked.params["head"][1], [[1] * 3, [2] * 3])
    assert stacked.count.tolist() == [3, 3]


def test_what_is_packed_is_a_vector_a_group_and_comes_back_to_the_bit(same_bits):
    leaves = {
        "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)},
        "b": np.float16([[1, 2]]),
    }
    packing = tree.Packing.of(leaves, {"a/kernel": ("float32", 1), "a/bias": ("float32", 0), "b": ("float16", 0)})
    packed = packing.pack(leaves)
    assert {group: vector.shape for group, vector in packed.items()} == {
        ("float16", 0): (2,),
        ("float32", 0): (3,),
        ("float32", 1): (6,),
    }
    same_bits(packing.unpack(packed), leaves)
    state = (leaves, {"mu": leaves, "count": np.int32(3)})
    within = packing.pack_within(state)
    assert within[1]["count"] == 3 and within[1]["mu"].keys() == packed.keys()
    same_bits(packing.unpack_within(within), state)
