import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.analysis import loss_fn
from lab.tasks.task import Batch

EPS = 2.0**-23  # float32
B, L, V = 6, 5, 7


def small_batch(seed=0):
    rng = np.random.default_rng(seed)
    tokens_BxL, targets_BxL = rng.integers(0, V, (2, B, L)).astype(np.int32)
    weights_BxL = np.zeros((B, L), np.float32)
    weights_BxL[:, -1] = 1 + np.arange(B)  # unequal, and only the last position counts
    return Batch(jnp.array(tokens_BxL), jnp.array(targets_BxL), jnp.array(weights_BxL), {"pair_B": jnp.arange(B)})


def transformer(readout):
    return models.Transformer(
        vocab_size=V, max_length=L, n_layers=1, n_heads=1, d_model=4, d_head=4, d_ff=8, activation="tanh", norm="pre",
        use_bias=False, head_bias=False, final_norm=False, tied_head=False, readout=readout,
    )  # fmt: skip


def logits_of(model, params, batch):
    return jax.jit(lambda params: models.forward(model, params, batch.tokens_BxL)[0])(params)


@functools.cache
def parameters():
    """Shared by both readouts."""
    init = jax.jit(lambda key: models.init(transformer("all"), key, small_batch().tokens_BxL))
    return init(jax.random.key(0))


def nll(logits_BxLxV, targets_BxL):
    logits = np.asarray(logits_BxLxV, np.float64)
    log_sum = np.log(np.exp(logits).sum(axis=-1))
    return log_sum - np.take_along_axis(logits, np.asarray(targets_BxL)[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("size", [2, 60])
def test_mean_weighs_every_token_alike_however_the_data_are_cut(size):
    batch, model = small_batch(), transformer("all")
    params = parameters()
    logits_BxLxV = logits_of(model, params, batch)
    nll_BxL, weights_BxL = nll(logits_BxLxV, batch.targets_BxL), np.asarray(batch.weights_BxL, np.float64)
    batches = loss_fn.minibatches(batch, size)
    # nll of order two from ten float32 operations, averaged: 100 roundings are ample.
    expected = np.sum(nll_BxL * weights_BxL) / np.sum(weights_BxL)
    mean = jax.jit(lambda params: loss_fn.mean_loss(loss_fn.answer_loss(model), params, batches))(params)
    assert mean == pytest.approx(expected, rel=100 * EPS)


def test_minibatches_hold_the_examples_in_order():
    batches = loss_fn.minibatches(small_batch(), 2)
    np.testing.assert_array_equal(batches.info["pair_B"], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(batches.tokens_BxL.reshape(B, L), small_batch().tokens_BxL)


@pytest.mark.parametrize("size", [4, 0, -1])
def test_minibatches_that_would_lose_examples_are_refused(size):
    with pytest.raises(ValueError, match=f"minibatches of {size}"):
        loss_fn.minibatches(small_batch(), size)


def test_leaves_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"\[4, 8\]"):
        loss_fn.minibatches((jnp.zeros(4), jnp.zeros((8, 2))), 4)


def test_sum_over_minibatches_is_the_sum_of_every_leaf():
    batches = (jnp.arange(6.0).reshape(3, 2), jnp.array([1, 2, 4]))
    first, second = loss_fn.over_minibatches(lambda batch: (batch[0] ** 2, batch[1]), batches)
    np.testing.assert_array_equal(first, [0 + 4 + 16, 1 + 9 + 25])  # small integers are exact
    assert second == 7


def test_flatten_takes_the_named_leaves_in_tree_order_and_rebuilds_around_them():
    params = {
        "b": {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([9.0])},
        "a": {"kernel": jnp.array([1.0, 2.0])},
    }
    vector_P, rebuild = loss_fn.flatten(params, lambda name: name.endswith("/kernel"))
    np.testing.assert_array_equal(vector_P, [1, 2, 3, 4])
    rebuilt = rebuild(10 * vector_P)
    np.testing.assert_array_equal(rebuilt["a"]["kernel"], [10, 20])
    np.testing.assert_array_equal(rebuilt["b"]["kernel"], [[30, 40]])
    np.testing.assert_array_equal(rebuilt["b"]["bias"], [9])
    everything_P, _ = loss_fn.flatten(params)
    np.testing.assert_array_equal(everything_P, [1, 2, 9, 3, 4])


def test_choosing_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="a/kernel"):
        loss_fn.flatten({"a": {"kernel": jnp.ones(2)}}, lambda name: name == "kernel")


@jax.jit
def cut_and_whole(params, *cuts):
    """Summed losses, summed accuracies and the gradient of the mean loss, each of all cuts of the same sequences."""
    model = transformer("last")
    losses, accuracies = (
        loss_fn.score(model, score_of) for score_of in (loss_fn.answer_loss_of, loss_fn.answer_accuracy_of)
    )
    gradient = jax.grad(functools.partial(loss_fn.mean_loss, loss_fn.answer_loss(model)))
    return (
        [loss_fn.over_minibatches(functools.partial(losses, params), batches) for batches in cuts],
        [loss_fn.over_minibatches(functools.partial(accuracies, params), batches) for batches in cuts],
        [gradient(params, batches) for batches in cuts],
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 60])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_any_number_of_sequences_is_cut_without_loss(n, size):
    """Filled up with sequences of weight 0: sums, weights, accuracies and gradients are those of the batch as one."""
    batch = jax.tree.map(lambda leaf: leaf[:n], small_batch())
    batches = loss_fn.weighted_minibatches(batch, size)
    n_minibatches, held = batches.tokens_BxL.shape[:2]
    assert held <= size and n_minibatches == -(-n // min(size, n)) and n_minibatches * held < n + n_minibatches
    *sums, (cut, whole) = cut_and_whole(parameters(), batches, loss_fn.minibatches(batch, 60))
    for of_the_cut, of_the_whole in sums:  # of up to six terms, added in another order
        np.testing.assert_allclose(of_the_cut, of_the_whole, rtol=6 * EPS)
    for ours, theirs in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        # each entry is a sum of up to B L = 30 terms of at most the largest gradient
        np.testing.assert_allclose(ours, theirs, atol=30 * EPS * max(1.0, float(jnp.abs(theirs).max())))
