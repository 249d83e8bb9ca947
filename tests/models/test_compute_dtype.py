"""bfloat16: which products are rounded to it, by how much that moves the model, and that nothing else is."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import extend

from lab import losses, models, rng
from lab.models import decode

U = 2.0**-8  # unit roundoff of bfloat16, which keeps 8 bits
BF16, F32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
TOKENS = np.random.default_rng(0).integers(0, 12, (3, 6)).astype(np.int32)
forward = jax.jit(models.forward, static_argnums=0)


def transformer(compute_dtype="bfloat16", **changes):
    options = dict(
        vocab_size=12, max_length=8, n_layers=2, n_heads=2, d_model=16, d_head=8, d_ff=32, activation="gelu",
        norm="pre", use_bias=True, head_bias=False, final_norm=True, tied_head=True, readout="all",
    )  # fmt: skip
    return models.Transformer(**options | changes, compute_dtype=compute_dtype)


@functools.cache
def params_of(model):
    return models.init(model, rng.key(0, "init"), TOKENS)


def loss(model, params, tokens_BxL=TOKENS):
    logits_BxLxV, _ = models.forward(model, params, tokens_BxL)
    sum_nll, n = losses.cross_entropy(logits_BxLxV, tokens_BxL, jnp.ones(tokens_BxL.shape))
    return sum_nll / n


def products(function, *args):
    """Dtypes of the operands of every matrix product in a program -> how many there are."""
    found, waiting = collections.Counter(), [jax.make_jaxpr(function)(*args).jaxpr]
    while waiting:
        for eqn in waiting.pop().eqns:
            waiting += extend.core.jaxprs_in_params(eqn.params)
            if eqn.primitive.name == "dot_general":
                found[tuple(v.aval.dtype for v in eqn.invars)] += 1
    return found


@pytest.mark.parametrize("tied_head", [True, False])
def test_products_inside_blocks_and_no_others_are_of_bfloat16(tied_head):
    model = transformer(tied_head=tied_head)
    params = params_of(model)
    inside = 2 * 8  # two blocks of q, k, v, score, mix, out and two of the MLP; the head is the one product more
    assert products(functools.partial(models.forward, model), params, TOKENS) == {(BF16, BF16): inside, (F32, F32): 1}
    # each product has two more in the gradient: by both of its operands
    of_gradient = products(jax.grad(functools.partial(loss, model)), params)
    assert of_gradient == {(BF16, BF16): 3 * inside, (F32, F32): 3}
    plain = model.clone(compute_dtype="float32")
    assert products(jax.grad(functools.partial(loss, plain)), params) == {(F32, F32): 3 * (inside + 1)}


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
def test_logits_are_those_of_float32_but_for_rounding(norm):
    """Each product is off by at most 3 roundings of what it adds up, which random signs let grow as a root, not as a
    sum: of the twelve that follow each other, by 3 U sqrt(12) of the size of what they say."""
    model = transformer(norm=norm)
    params = params_of(model)
    rounded, plain = (
        np.asarray(forward(model.clone(compute_dtype=dtype), params, TOKENS)[0]) for dtype in ("bfloat16", "float32")
    )
    error = np.sqrt(np.mean((rounded - plain) ** 2) / np.mean(plain**2))
    assert U / 100 < error < 3 * U * np.sqrt(12)


def test_parameters_gradients_activations_and_logits_are_float32():
    model = transformer()
    params = params_of(model)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(model.clone(compute_dtype="float32")))
    logits_BxLxV, acts = forward(model, params, TOKENS)
    grads = jax.jit(jax.grad(functools.partial(loss, model)))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, grads, logits_BxLxV, acts))} == {F32}
    # softmax is not rounded: its rows sum to one to float32's precision
    sums = np.asarray(acts["block_0/attn/pattern"]).sum(axis=-1)
    np.testing.assert_allclose(sums, 1, atol=16 * 2.0**-24)
    for rounded in (acts["block_0/attn/out"], acts["block_1/mlp/out"]):  # biases are zero-free: added after the product
        assert (rounded.astype(BF16).astype(F32) != rounded).any()


def test_edits_and_the_key_value_cache_see_what_they_see_in_float32():
    model = transformer()
    params = params_of(model)
    seen = {}

    def double(pattern):
        seen["dtype"] = pattern.dtype
        return 2 * pattern

    jax.eval_shape(lambda params: models.forward(model, params, TOKENS, {"block_0/attn/pattern": double}), params)
    assert seen["dtype"] == F32
    length_B = jnp.full((3,), 6, jnp.int32)

    @jax.jit
    def cached(params):
        logits_BxV, cache = decode.prefill(model, params, TOKENS[:, :5], length_B - 1, 1)
        return logits_BxV, cache, decode.extend(model, params, cache, TOKENS[:, 5])[0]

    logits_BxV, cache, extended_BxV = cached(params)
    assert cache.keys_N[0].dtype == F32
    whole_BxLxV, _ = forward(model, params, TOKENS)
    # the same rounded products, added up in another order: now and then a sum falls on the other side of a rounding
    atol = 3 * U * np.sqrt(12) * np.sqrt(np.mean(np.square(whole_BxLxV)))
    np.testing.assert_allclose(logits_BxV, whole_BxLxV[:, 4], atol=atol)
    np.testing.assert_allclose(extended_BxV, whole_BxLxV[:, 5], atol=atol)


def trained(compute_dtype, steps=120):
    """Losses over training to say the token before; the same draws whatever the dtype."""
    model = transformer(compute_dtype, vocab_size=6, max_length=6, n_layers=1)
    params = models.init(model, rng.key(0, "init"), TOKENS % 6)
    transform = optax.adam(1e-2)

    def mean_loss(params, tokens_BxL):
        logits_BxLxV, _ = models.forward(model, params, tokens_BxL)
        before_BxL = jnp.roll(tokens_BxL, 1, axis=1)
        sum_nll, n = losses.cross_entropy(logits_BxLxV[:, 1:], before_BxL[:, 1:], jnp.ones((32, 5)))
        return sum_nll / n

    def step(carry, key):
        params, state = carry
        tokens_BxL = jax.random.randint(key, (32, 6), 0, 6, jnp.int32)
        value, grads = jax.value_and_grad(mean_loss)(params, tokens_BxL)
        updates, state = transform.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(rng.key(1, "data"), steps)
    return np.asarray(jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[1])((params, transform.init(params))))


@pytest.mark.usefixtures("standard_promotion")
def test_training_learns_what_it_learns_in_float32():
    rounded_T, plain_T = trained("bfloat16"), trained("float32")
    assert plain_T[0] > 1.5 and plain_T[-10:].mean() < 0.1  # from log 6 = 1.8: it is learnt
    assert rounded_T[-10:].mean() < 0.1
    # gradients are off by some 3 U sqrt(8), and the first steps move the loss by about 1 in all
    assert abs(rounded_T[:10] - plain_T[:10]).max() < 3 * U * np.sqrt(8)
    assert (rounded_T != plain_T).any()


def test_products_inside_a_scanned_block_and_no_others_are_of_bfloat16():
    model = models.Decoder(12, 0, 3, 2, 16, 8, 24, 1e-5, compute_dtype="bfloat16")
    inside = 9  # of the one body: q, k, v, score, mix, out, and gate, in and out of the MLP
    params = params_of(model)
    found = products(functools.partial(models.forward, model), params, TOKENS)
    assert found == {(BF16, BF16): inside, (F32, F32): 1}
    of_gradient = products(jax.grad(functools.partial(loss, model)), params)
    assert of_gradient == {(BF16, BF16): 3 * inside, (F32, F32): 3}
    logits, acts = forward(model, params, TOKENS)
    assert {logits.dtype, *(act.dtype for act in acts.values())} == {F32}
    exact, _ = forward(model.clone(compute_dtype="float32"), params, TOKENS)
    error = np.abs(np.asarray(logits - exact))
    assert 0 < error.max() < 0.1 * np.abs(exact).max()  # some twenty roundings of 2^-9 each
