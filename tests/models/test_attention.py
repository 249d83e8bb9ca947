import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import init, models
from lab.measuring.catalogue import attention as catalogue
from lab.measuring.declare import Row
from lab.tasks import Batch
from lab.tree import named_leaves

EPS64 = 2.0**-52
BATCH, LENGTH, VOCAB, D, D_FF = 3, 7, 5, 4, 6
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
# Entries of weights are below 3: a score is a sum of 4^3 products below 3^4 / 2 and errs by 64 x 64 x 41 eps, the
# exponentials of the pattern relatively by as much, and what is mixed with it is below 4 x 6 x 3^3 = 650.
ROUNDING = 64 * 64 * 41 * 650 * EPS64
MODELS = {
    "attention": models.OneLayerAttention(VOCAB, D),
    "attention_mlp": models.AttentionMLP(VOCAB, D, D_FF, "tanh"),
}


def row(model, scale=1.0):
    """Float64 parameters of order `scale`, all below 3 of them."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0), TOKENS)
    return jax.tree.map(lambda leaf: scale * np.clip(rng.standard_normal(leaf.shape), -3, 3), shapes)


def pattern_of(p, tokens):
    """Attention of the last token over positions, token by token."""
    query = p["embed/token/embedding"][tokens[-1]] @ p["block_0/attn/query/kernel"]
    keys = [p["embed/token/embedding"][token] @ p["block_0/attn/key/kernel"] for token in tokens]
    weight_L = np.array([np.exp(sum(query * key) / 2) for key in keys])  # sqrt(D) = 2
    return weight_L / weight_L.sum()


@pytest.mark.usefixtures("float64")
def test_attention_logits_are_the_papers_sum_over_tokens():
    model = MODELS["attention"]
    params = row(model)
    p = named_leaves(params)
    assert set(p) == {"embed/token/embedding", "block_0/attn/query/kernel", "block_0/attn/key/kernel", "head/kernel"}
    w0, w1 = p["embed/token/embedding"], p["head/kernel"]
    phi_VxV = w0 @ p["block_0/attn/query/kernel"] @ p["block_0/attn/key/kernel"].T @ w0.T / 2
    logits_Bx1xV, acts = models.forward(model, params, TOKENS)
    for b, tokens in enumerate(TOKENS):
        # In the lumped matrices of the theory: A_ik = n_k exp(Phi_ik) / sum_l n_l exp(Phi_il), logits A_i M.
        weight_V = np.bincount(tokens, minlength=VOCAB) * np.exp(phi_VxV[tokens[-1]])
        expected_V = weight_V / weight_V.sum() @ (w0 @ w1)
        np.testing.assert_allclose(logits_Bx1xV[b, 0], expected_V, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(acts["block_0/attn/pattern"][b, 0, 0], pattern_of(p, tokens), rtol=0, atol=ROUNDING)
    np.testing.assert_array_equal(acts["embed"], w0[TOKENS])
    np.testing.assert_array_equal(acts["final"], acts["block_0/attn/z"][:, :, 0])
    parts = ("q", "k", "score", "pattern", "z")
    assert set(acts) == {"embed", *(f"block_0/attn/{part}" for part in parts), "final", "logits"}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("activation", "bend"), [("tanh", np.tanh), ("identity", lambda x: x)])
def test_attention_mlp_is_its_formula(activation, bend):
    model = models.AttentionMLP(VOCAB, D, D_FF, activation)
    params = row(model)
    p = named_leaves(params)
    attn = {f"block_0/attn/{name}/kernel" for name in ("query", "key", "value")}
    mlp = {"block_0/mlp/in/kernel", "block_0/mlp/out/kernel"}
    assert set(p) == {"embed/token/embedding", "head/kernel"} | attn | mlp
    logits_Bx1xV, acts = models.forward(model, params, TOKENS)
    for b, tokens in enumerate(TOKENS):
        mixed_D = pattern_of(p, tokens) @ p["embed/token/embedding"][tokens]  # values are linear: mix, then project
        pre_F = mixed_D @ p["block_0/attn/value/kernel"] @ p["block_0/mlp/in/kernel"]
        final_D = bend(pre_F) @ p["block_0/mlp/out/kernel"]
        np.testing.assert_allclose(acts["block_0/mlp/pre"][b, 0], pre_F, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(acts["final"][b, 0], final_D, rtol=0, atol=30 * ROUNDING)  # 6 weights below 3 more
        np.testing.assert_allclose(logits_Bx1xV[b, 0], final_D @ p["head/kernel"], rtol=0, atol=400 * ROUNDING)
    np.testing.assert_array_equal(acts["final"], acts["block_0/mlp/out"])
    names = {f"block_0/attn/{part}" for part in ("q", "k", "v", "score", "pattern", "z")}
    names |= {f"block_0/mlp/{part}" for part in ("pre", "post", "out")}
    assert set(acts) == {"embed", "final", "logits"} | names


@pytest.mark.usefixtures("float64")
def test_tanh_at_small_weights_is_the_linear_control_up_to_cubes():
    params = row(MODELS["attention_mlp"], scale=0.05)
    curved, acts = models.forward(MODELS["attention_mlp"], params, TOKENS)
    linear, _ = models.forward(models.AttentionMLP(VOCAB, D, D_FF, "identity"), params, TOKENS)
    cubes_BxD = np.abs(acts["block_0/mlp/pre"][:, 0]) ** 3 / 3 @ np.abs(params["block_0"]["mlp"]["out"]["kernel"])
    bound_BxV = cubes_BxD @ np.abs(params["head"]["kernel"])  # |tanh(x) - x| <= |x|^3 / 3
    assert (np.abs(curved - linear)[:, 0] <= bound_BxV + ROUNDING * 1e-6).all()  # two more weights below 0.15
    assert not np.array_equal(curved, linear)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_only_which_token_is_last_matters_of_the_order(model):
    params = row(model)
    logits = models.forward(model, params, TOKENS)[0]
    shuffled = np.concatenate([TOKENS[:, [3, 0, 5, 1, 4, 2]], TOKENS[:, -1:]], axis=1)
    np.testing.assert_allclose(models.forward(model, params, shuffled)[0], logits, rtol=0, atol=400 * ROUNDING)
    assert not np.allclose(models.forward(model, params, TOKENS[:, ::-1])[0], logits, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_scores_edited_to_zero_answer_with_the_mean_embedding():
    params = row(MODELS["attention"])
    logits, _ = models.forward(MODELS["attention"], params, TOKENS, {"block_0/attn/score": jnp.zeros_like})
    mean_BxD = params["embed"]["token"]["embedding"][TOKENS].mean(axis=1)
    np.testing.assert_allclose(logits[:, 0], mean_BxD @ params["head"]["kernel"], rtol=0, atol=ROUNDING)


def test_one_gamma_is_the_papers_epsilon_for_every_matrix_of_the_attention_model():
    shapes = jax.eval_shape(functools.partial(models.init, MODELS["attention"]), jax.random.key(0), TOKENS)
    leaves = init.by_name(shapes)
    assert {leaf.d_in for leaf in leaves.values()} == {D}  # std = D^-gamma in all of them
    groups = {name: leaf.group for name, leaf in leaves.items()}
    attn = {"block_0/attn/query/kernel": "qk", "block_0/attn/key/kernel": "qk"}
    assert groups == {"embed/token/embedding": "embed", "head/kernel": "head"} | attn


def test_groups_and_fans_of_the_attention_mlp():
    shapes = jax.eval_shape(functools.partial(models.init, MODELS["attention_mlp"]), jax.random.key(0), TOKENS)
    found = {name: (leaf.group, leaf.d_in) for name, leaf in init.by_name(shapes).items()}
    assert found == {
        "embed/token/embedding": ("embed", D),
        "block_0/attn/query/kernel": ("qk", D),
        "block_0/attn/key/kernel": ("qk", D),
        "block_0/attn/value/kernel": ("vo", D),
        "block_0/mlp/in/kernel": ("mlp", D),
        "block_0/mlp/out/kernel": ("mlp", D_FF),
        "head/kernel": ("head", D),
    }


@pytest.mark.usefixtures("float64")
def test_catalogue_reads_the_token_attention_of_the_last_position():
    # Every last token with every multiset of three: A_ik of the measurement is the mean over the sequences.
    tokens = np.array(list(itertools.product(range(VOCAB), repeat=4)), np.int32)
    params = row(MODELS["attention"])
    weights = np.zeros(tokens.shape, np.float32)
    batch = Batch(*(jnp.asarray(a) for a in (tokens, tokens, weights)), {})

    class Uniform:
        vocab_size, length = VOCAB, 4

        def sample(self, key, n, split, hparams):
            return batch

    class Training:
        task, data_seed, model = Uniform(), 0, MODELS["attention"]

    one = catalogue.attention(Training())
    found = jax.jit(lambda p: one.function(Row(MODELS["attention"], p, p, {}, jnp.int32(0), batch, None)))(params)
    expected = np.zeros((VOCAB, VOCAB))
    for sequence in tokens:
        np.add.at(expected[sequence[-1]], sequence, pattern_of(named_leaves(params), sequence))
    expected /= VOCAB**3  # sequences with each last token
    np.testing.assert_allclose(found["attention"][0], expected, rtol=0, atol=ROUNDING)
    assert found["to_top"][0] == pytest.approx(expected[:, 0].mean(), abs=ROUNDING)  # all tokens are equally frequent


def test_an_unknown_edit_is_refused_with_the_nearest_name():
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), row(MODELS["attention"]))
    with pytest.raises(ValueError, match=r"edit of 'block_0/attn/v': no such activation; did you mean 'block_0/attn/"):
        models.forward(MODELS["attention"], params, TOKENS, {"block_0/attn/v": jnp.zeros_like})
