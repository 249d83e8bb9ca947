"""Mamba-1 and Mamba-2 are the published blocks: golden outputs of other packages, reach, limits, start."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab import init, models
from lab.models import mamba
from lab.models.conv import Conv
from lab.tree import named_leaves

EPS = 2.0**-23
V, L, LAYERS = 11, 14, 2
GOLDEN = np.load(Path(__file__).with_name("mamba_golden.npz"))  # by benchmarks/mamba_golden.py, versions in it
OPTIONS = dict(
    vocab_size=V, max_length=L, n_layers=LAYERS, d_model=8, d_inner=16, d_state=4, n_taps=4, conv="learned",
    past_conv="none", taps_follow_gamma=False, has_positions=False, norm="none", final_norm=False, readout="all",
)  # fmt: skip
OWN = {"mamba1": dict(dt_rank=2), "mamba2": dict(n_heads=2)}
TOKENS = np.random.default_rng(0).integers(0, V, (3, L)).astype(np.int32)
forward = jax.jit(models.forward, static_argnums=0)
versions = pytest.mark.parametrize("version", OWN)


def made(version, **changes):
    return models.FAMILIES[version](**OPTIONS | OWN[version] | changes)


def row(model, seed=1):
    return jax.jit(lambda key: models.init(model, key, TOKENS[:1]))(jax.random.key(seed))


def nested(leaves):
    tree = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = leaf
    return tree


@pytest.mark.parametrize("output", [name for name in GOLDEN if name.count("/") == 1])
def test_forward_pass_is_that_of_other_packages(output):
    version = output.partition("/")[0]
    start = f"{version}/params/"
    params = nested({name.removeprefix(start): GOLDEN[name] for name in GOLDEN if name.startswith(start)})
    model = made(version, norm="pre", final_norm=True, max_length=9)
    params["head"] = {"kernel": np.zeros((8, V), np.float32)}
    _, acts = forward(model, params, GOLDEN["tokens"])
    expected = GOLDEN[output]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(acts["final"], expected, rtol=0, atol=1e-5)


@versions
@pytest.mark.parametrize("changes", [{}, dict(has_positions=True, past_conv="gated", norm="pre")])
def test_a_token_changes_nothing_before_it(version, changes):
    model = made(version, **changes)
    params, other = row(model), TOKENS.copy()
    other[:, 6] = (other[:, 6] + 1) % V
    one, two = (forward(model, params, tokens)[0] for tokens in (TOKENS, other))
    np.testing.assert_array_equal(one[:, :6], two[:, :6])
    assert (np.asarray(one[:, 6:]) != np.asarray(two[:, 6:])).any(axis=(0, 2)).all()


@versions
def test_convolutions_alone_reach_three_tokens_a_layer(version):
    """The fillers of the inverse matching task: S's columns but the diagonal cut, what is left is the convolution."""
    model = made(version)
    params, diagonal = row(model), np.eye(L, dtype=np.float32)
    edits = {f"block_{i}/ssm/s": lambda s: s * diagonal[None, None] for i in range(LAYERS)}
    last = jax.jit(lambda tokens: models.forward(model, params, tokens, edits)[0][:, -1])
    expected, reach = np.asarray(last(TOKENS)), 3 * LAYERS
    for back in range(L):
        other = TOKENS.copy()
        other[:, L - 1 - back] = (other[:, L - 1 - back] + 1) % V
        assert (np.asarray(last(other)) != expected).any() == (back <= reach), back


@versions
def test_readout_of_the_last_position_is_the_last_of_all(version):
    model = made(version, norm="pre", final_norm=True, has_positions=True)
    params = row(model)
    every, last = (forward(model.clone(readout=readout), params, TOKENS)[0] for readout in ("all", "last"))
    assert last.shape == (3, 1, V)
    # sums of at most 33 terms below one in another order, and two norms
    np.testing.assert_allclose(last, every[:, -1:], rtol=0, atol=1e3 * EPS)


def test_an_edited_s_of_mamba_1_is_what_is_used_and_unedited_it_is_what_the_scan_does():
    model = made("mamba1")
    params = row(model)
    same = {f"block_{i}/ssm/s": lambda s: s + 0.0 for i in range(LAYERS)}
    by_matrix = jax.jit(lambda: models.forward(model, params, TOKENS, same)[0])()
    np.testing.assert_allclose(by_matrix, forward(model, params, TOKENS)[0], rtol=0, atol=1e3 * EPS)


@versions
def test_steps_of_zero_leave_the_path_past_the_state(version):
    model = made(version)
    params = row(model)
    acts = models.forward(model, params, TOKENS, {"block_0/ssm/dt": jnp.zeros_like})[1]
    x_BxLxI = acts["block_0/ssm/conv"][..., :16]
    np.testing.assert_array_equal(acts["block_0/ssm/y"], params["block_0"]["ssm"]["D"][None, None] * x_BxLxI)


def test_taps_of_one_do_not_see_the_order_in_their_window():
    u_BxLxC = np.random.default_rng(0).standard_normal((2, 8, 5)).astype(np.float32)
    swapped = u_BxLxC[:, [0, 1, 2, 3, 5, 4, 6, 7]]
    for kind, alike in (("ones", True), ("learned", False)):
        conv = Conv(4, kind)
        params = conv.init(jax.random.key(0), u_BxLxC)
        one, two = (np.asarray(conv.apply(params, u)) for u in (u_BxLxC, swapped))
        assert np.allclose(one[:, 5:], two[:, 5:], rtol=0, atol=16 * EPS) == alike  # token 7's window is 4 to 7
        assert not np.allclose(one[:, 4], two[:, 4])


@pytest.mark.parametrize("kind", ["learned", "ones", "none"])
def test_paths_past_the_convolution(kind):
    u = np.random.default_rng(0).standard_normal((2, 8, 5)).astype(np.float32)
    params = Conv(4, kind).init(jax.random.key(0), u)
    plain, added, gated = (Conv(4, kind, past).apply(params, u) for past in ("none", "added", "gated"))
    np.testing.assert_array_equal(added, plain + u)
    np.testing.assert_array_equal(gated, plain * u)
    taps = np.asarray(params["params"]["taps"]) if kind == "learned" else np.ones((4, 5))
    padded = np.pad(u, ((0, 0), (3, 0), (0, 0)))
    summed = np.stack([(padded[:, t : t + 4] * taps[None]).sum(axis=1) for t in range(8)], axis=1)
    before = u if kind == "none" else summed + np.asarray(params["params"]["bias"])
    np.testing.assert_allclose(plain, before / (1 + np.exp(-before)), rtol=0, atol=32 * EPS)


# --- start ---


def test_steps_and_decays_start_as_published():
    keys = jax.random.split(jax.random.key(0), 2)
    dt = np.log1p(np.exp(np.asarray(mamba.steps_bias(keys[0], (10_000,)), float)))
    assert dt.min() >= 0.001 * (1 - 1e-4) and dt.max() <= 0.1 * (1 + 1e-4)  # softplus^-1 of 0.001 keeps four digits
    assert stats.kstest(np.log(dt), "uniform", (math.log(0.001), math.log(100))).pvalue > 0.01
    rates = np.exp(np.asarray(mamba.rates_of_decay(keys[1], (10_000,)), float))
    assert rates.min() >= 1 and rates.max() <= 16 * (1 + EPS)
    assert stats.kstest(rates, "uniform", (1, 15)).pvalue > 0.01


def test_a_start_near_linear_attention_is_one():
    """S of the first layer is C B^T, with C = B of the token itself: the largest of its row for tokens of its kind."""
    model = made("mamba2", start="linear", d_model=32, d_state=32, n_layers=1)
    params = row(model)
    _, acts = forward(model, params, TOKENS)
    conv, u, s_BxHxLxL = (np.asarray(acts[f"block_0/ssm/{name}"], float) for name in ("conv", "u", "s"))
    np.testing.assert_allclose(conv, u / (1 + np.exp(-u)), rtol=0, atol=4 * EPS * np.abs(u).max())
    b_BxLxN = conv[..., 16:48]
    np.testing.assert_array_equal(b_BxLxN, conv[..., 48:])
    expected = np.tril(b_BxLxN @ np.swapaxes(b_BxLxN, 1, 2))
    steps = float(np.max(acts["block_0/ssm/dt"]))
    # what is left of 14 tokens: at least 1 - 14 dt |A|; beside 1e-5 of rounding
    lost = L * steps * mamba.NO_DECAY * np.abs(expected).max()
    np.testing.assert_allclose(s_BxHxLxL, np.stack([expected] * 2, axis=1), rtol=0, atol=lost + 1e-5)
    leaves = named_leaves(params)
    assert np.log1p(np.exp(leaves["block_0/ssm/dt_bias"])) == pytest.approx(1, rel=8 * EPS)
    assert not np.array_equal(leaves["block_0/ssm/B/kernel"], named_leaves(row(model, 2))["block_0/ssm/B/kernel"])


@versions
def test_rate_acts_on_embedding_projections_and_head_alone(version):
    sizes = dict(vocab_size=200, d_model=128, d_inner=256, d_state=128, has_positions=True, norm="pre")
    model = made(version, **sizes, n_layers=1, **(dict(dt_rank=64) if version == "mamba1" else {}))
    example, draw = TOKENS[:1], jax.jit(lambda key: models.init(model, key, TOKENS[:1]))
    leaves = init.leaves_of(model, example)
    drawn = named_leaves(draw(jax.random.key(0)))
    fan_in = {"embed": lambda shape: shape[1]}
    for gamma in (0.3, 1.0):
        scaled = named_leaves(init.rescale(draw(jax.random.key(0)), dict.fromkeys(init.GROUPS, gamma), "paper", leaves))
        for name, leaf in scaled.items():
            part = name.split("/")[-1]
            fixed = part in ("A_log", "D", "dt_bias", "bias", "taps", "scale") or name.endswith("ssm/dt/kernel")
            if fixed and not (version == "mamba2" and name.endswith("dt/kernel")):
                np.testing.assert_array_equal(leaf, drawn[name], name)
            elif leaf.size >= 16_384:  # a standard error of at most 0.6 %
                d_in = fan_in.get(name.split("/")[0], lambda shape: shape[0])(leaf.shape)
                assert np.std(np.asarray(leaf)) == pytest.approx(d_in**-gamma, rel=0.02), name


def test_taps_follow_gamma_where_asked():
    for follow in (False, True):
        leaves = init.leaves_of(made("mamba2", taps_follow_gamma=follow), TOKENS[:1])
        assert {leaf.d_in for name, leaf in leaves.items() if name.endswith("taps")} == ({4} if follow else set())


def test_parameters_of_the_published_cell():
    """32 wide, 128 states, one head: 12,320 in, 1,600 convolution, A, dt's bias, D of 64, norm of 64, 2,048 out."""
    model = made("mamba2", d_model=32, d_inner=64, d_state=128, n_heads=1, n_layers=1)
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0), TOKENS[:1]))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["block_0"])) == 16_098


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(conv="one"), "model.conv='one': one of learned, ones, none"),
        (dict(past_conv="sum"), "model.past_conv='sum': one of none, added, gated"),
        (dict(norm="post"), "model.norm='post': one of none, pre"),
        (dict(start="zero"), "model.start='zero': one of published, linear"),
        (dict(n_heads=3), "model.n_heads=3: must divide model.d_inner=16"),
    ],
)
def test_what_is_no_mamba_is_refused(changes, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        made("mamba2", **changes)


@versions
def test_longer_sequences_than_it_reads_are_refused(version):
    model = made(version, max_length=L - 1)
    with pytest.raises(ValueError, match=rf"{L} tokens: the model reads at most model\.max_length={L - 1}"):
        jax.eval_shape(lambda: models.init(model, jax.random.key(0), TOKENS))


# --- the convolution before attention ---


def transformer(**changes):
    options = dict(
        vocab_size=V, max_length=L, n_layers=2, n_heads=2, d_model=8, d_head=4, d_ff=8, activation="relu", norm="pre",
        use_bias=False, head_bias=False, final_norm=True, tied_head=False, readout="all",
    )  # fmt: skip
    return models.Transformer(**options | changes)


def test_queries_keys_and_values_are_convolved_before_attention():
    model = transformer(norm="none", conv="causal")
    params = row(model)
    _, acts = forward(model, params, TOKENS)
    of = params["block_0"]["attn"]
    for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
        plain = acts["embed"] @ of[name]["kernel"]
        expected = Conv(4).apply({"params": of[f"{name}_conv"]}, plain).reshape(3, L, 2, 4)
        np.testing.assert_allclose(acts[f"block_0/attn/{short}"], expected, rtol=0, atol=64 * EPS)
    last = forward(model.clone(readout="last"), params, TOKENS)[0]
    np.testing.assert_allclose(last, forward(model, params, TOKENS)[0][:, -1:], rtol=0, atol=1e3 * EPS)


def test_a_transformer_without_convolution_has_the_leaves_and_the_program_that_it_had():
    plain, off = transformer(), transformer(conv="none")
    assert plain == off
    params = row(plain)
    assert not [name for name in named_leaves(params) if "conv" in name]
    text = str(jax.make_jaxpr(lambda params: models.forward(plain, params, TOKENS)[0])(params))
    assert "pad" not in text
