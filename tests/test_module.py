"""What a model is given, and what it must return; everything else is refused in one line."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import foreign

from lab import module, rng
from lab.models import EmbMLP, forward, init

V, TOKENS = foreign.V, foreign.TOKENS


def parameters(model):
    return jax.jit(functools.partial(init, model))(jax.random.key(0), TOKENS)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, tokens_BxL):
        return nn.Dense(V)(nn.Embed(V, 16)(tokens_BxL))


class Pair(nn.Module):
    @nn.compact
    def __call__(self, tokens_BxL, edits):
        logits_BxLxV = nn.Embed(V, V)(tokens_BxL)
        return logits_BxLxV, {"logits": logits_BxLxV, "edits": jnp.int32(len(edits))}


def test_module_of_tokens_to_logits_is_a_model_without_activations():
    params = parameters(Plain())
    logits, acts = forward(Plain(), params, TOKENS)
    np.testing.assert_array_equal(logits, Plain().apply({"params": params}, TOKENS))
    assert acts == {}
    with pytest.raises(ValueError, match="edit of 'embed': Plain takes no `edits`"):
        forward(Plain(), params, TOKENS, {"embed": jnp.zeros_like})


def test_module_that_takes_edits_is_given_them():
    _, acts = forward(Pair(), parameters(Pair()), TOKENS, {"logits": jnp.zeros_like})
    assert acts["edits"] == 1


class Three(Plain):
    @nn.compact
    def __call__(self, tokens_BxL):
        return (super().__call__(tokens_BxL),) * 3


class WithCarry(Plain):
    @nn.compact
    def __call__(self, tokens_BxL):
        return (super().__call__(tokens_BxL),) * 2


class Dictionary(Plain):
    @nn.compact
    def __call__(self, tokens_BxL):
        return {"logits": super().__call__(tokens_BxL)}


class Masked(Plain):
    @nn.compact
    def __call__(self, tokens_BxL, mask, scale=1.0):
        return super().__call__(tokens_BxL) * mask * scale


class BatchNorm(Plain):
    @nn.compact
    def __call__(self, tokens_BxL, train):
        return nn.BatchNorm(use_running_average=not train)(super().__call__(tokens_BxL))


class Counts(Plain):
    @nn.compact
    def __call__(self, tokens_BxL):
        self.variable("counts", "calls", lambda: jnp.int32(0)).value += 1
        return super().__call__(tokens_BxL)


GIVES = r"a model gets tokens \(B, L\) and returns logits \(B, Q, V\), or \(logits, acts\)"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Three(), f"Three returns a tuple of 3; {GIVES}"),
        (WithCarry(), f"WithCarry returns a tuple of 2; {GIVES}"),
        (Dictionary(), f"Dictionary returns a dict; {GIVES}"),
        (Masked(), f"Masked.__call__ also wants mask; {GIVES}"),
        (
            BatchNorm(),
            r"BatchNorm keeps 'batch_stats' from call to call \(BatchNorm and SpectralNorm couple the sequences",
        ),
        (Counts(), r"Counts keeps 'counts' from call to call \(only parameters are trained and saved\)"),
        (foreign.nnx.bridge.ToLinen(foreign.BridgedNorm), "ToLinen keeps 'batch_stats' from call to call"),
        (len, "model <built-in function len>: expected a Flax Linen module"),
    ],
)
def test_what_no_model_may_take_keep_or_return_is_refused_in_one_line(model, message):
    def use():
        return forward(model, init(model, jax.random.key(0), TOKENS), TOKENS)

    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(use)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, V), (2, 3, V), (3, 9, V), (2, 9, V - 1)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"Plain returns an array of shape .* of tokens \(2, 9\): expected logits"):
        module.check_outputs(Plain(), jax.ShapeDtypeStruct(shape, jnp.float32), TOKENS, V)
    for length in (1, 9):
        module.check_outputs(Plain(), jax.ShapeDtypeStruct((2, length, V), jnp.float32), TOKENS, V)
    module.check_outputs(Plain(), jax.ShapeDtypeStruct((2, V), jnp.float32), TOKENS, V, classifies=True)
    with pytest.raises(ValueError, match=rf"or \(2, at least {V}\)"):
        module.check_outputs(Plain(), jax.ShapeDtypeStruct((2, V - 1), jnp.float32), TOKENS, V, classifies=True)


# --- dropout ---


class Untold(nn.Module):
    """Leaves it to the lab."""

    @nn.compact
    def __call__(self, tokens_BxL):
        h = nn.Embed(V, 16)(tokens_BxL)
        h = nn.SelfAttention(2, qkv_features=16, dropout_rate=0.2)(h)
        return nn.Dense(V)(nn.Dropout(0.5)(h))


class Train(nn.Module):
    @nn.compact
    def __call__(self, tokens_BxL, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Embed(V, V)(tokens_BxL))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, tokens_BxL, deterministic=True):
        return nn.Dropout(0.5)(nn.Embed(V, V)(tokens_BxL), deterministic)


class Always(nn.Module):
    """Would draw in evaluation, too."""

    @nn.compact
    def __call__(self, tokens_BxL):
        return nn.Dropout(0.5, deterministic=False)(nn.Embed(V, V)(tokens_BxL))


@pytest.mark.parametrize("model", [Untold(), Train(), Deterministic(), Always(), foreign.layers(foreign.Stack())])
def test_dropout_follows_the_key_of_a_training_step_and_is_off_elsewhere(model):
    params = parameters(model)

    def logits(key=None):
        return np.asarray(forward(model, params, TOKENS, dropout_key=None if key is None else lambda: key)[0])

    one, other = rng.key(0, "dropout", 1), rng.key(0, "dropout", 2)
    np.testing.assert_array_equal(logits(), logits())
    np.testing.assert_array_equal(logits(one), logits(one))
    assert not np.array_equal(logits(one), logits()) and not np.array_equal(logits(one), logits(other))


def test_mean_over_dropout_is_the_evaluation_where_the_rest_is_linear():
    params = parameters(Train())
    keys_N = jax.random.split(jax.random.key(1), 4000)
    drawn_N = jax.jit(jax.vmap(lambda key: forward(Train(), params, TOKENS, dropout_key=lambda: key)[0]))(keys_N)
    expected = np.asarray(forward(Train(), params, TOKENS)[0], np.float64)
    # kept with probability 1/2 and doubled: standard deviation |x|; five standard errors of 1080 means
    error = np.abs(np.mean(np.asarray(drawn_N, np.float64), axis=0) - expected)
    assert (error <= 5 * np.abs(expected) / np.sqrt(4000)).all()


class Stubborn(nn.Module):
    @nn.compact
    def __call__(self, tokens_BxL):
        return nn.Embed(V, V)(tokens_BxL) + jax.random.normal(self.make_rng("dropout"), (V,), jnp.float32)[None, None]


def test_model_that_draws_in_evaluation_is_refused():
    params = parameters(Stubborn())
    with pytest.raises(ValueError, match="Stubborn draws random numbers outside of training steps; let it take"):
        forward(Stubborn(), params, TOKENS)
    forward(Stubborn(), params, TOKENS, dropout_key=lambda: jax.random.key(0))


def test_model_that_draws_nothing_has_no_key_in_its_program():
    params = parameters(Plain())

    def program(**more):
        return str(jax.make_jaxpr(lambda params: forward(Plain(), params, TOKENS, **more)[0])(params))

    def key():
        raise AssertionError("asked for")

    assert program(dropout_key=key) == program()


# --- token ids ---


@pytest.mark.parametrize(("token", "wrong"), [(-1, -1), (8, 8), (2**31 - 1, 2**31 - 1)])
def test_token_ids_that_a_model_does_not_have_are_refused_where_they_are_known(token, wrong):
    model = EmbMLP(8, 4, 4, "tanh")
    params = jax.jit(functools.partial(init, model))(jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match=rf"tokens: token id {wrong}; accepted: 0 to 7 \(vocab_size=8\)"):
        forward(model, params, np.array([[0, token, 7]], np.int32))
    forward(model, params, np.array([[0, 7, 7]], np.int32))
