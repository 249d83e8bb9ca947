"""Sparsity of transformers whose units were made dead and whose attention was made small."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planned import outputs

from lab import config as configs
from lab import models, rng, studies
from lab.analysis import sparsity as analysis
from lab.configs import base
from lab.engine import step
from lab.measuring import catalogue
from lab.measuring.catalogue import sparsity
from lab.measuring.declare import Row

TEXTS = ("focus_dilution_text", "scaling_law")
WIDTH, HIDDEN, LAYERS, LENGTH = 8, 12, 2, 5


def made(family=base.transformer, **model):
    options = dict(
        vocab_size=4, max_length=LENGTH, n_layers=LAYERS, d_model=WIDTH, d_head=WIDTH, d_ff=HIDDEN, readout="all",
        use_bias=True,
    )  # fmt: skip
    task = dict(family="strings", alphabet=4, length=LENGTH, order=1, concentration=1.0, law_seed=0)
    experiment = configs.experiment(base.config(task=task, model=family(**options | model)))
    params = models.init(experiment.model, rng.key(0, "init"), experiment.task.example())
    return experiment, params


def measured(experiment, params, n=200):
    one = sparsity.sparsity(experiment)
    batch = jax.jit(lambda key: experiment.task.sample(key, n, "train", {}))(jax.random.key(0))
    row = Row(experiment.model, params, params, {}, jnp.int32(0), batch, jax.random.key(1))
    found = jax.jit(lambda params: one.function(row._replace(params=params)))(params)
    return {name: np.asarray(values) for name, values in found.items()}, batch.tokens_BxL


def test_units_that_are_made_dead_are_counted_and_nothing_else_is():
    """Three units of the second block have no weights and a bias below zero, one has a bias above all else."""
    experiment, params = made()
    mlp = params["block_1"]["mlp"]["in"]
    mlp["kernel"] = mlp["kernel"].at[:, :4].set(0)
    mlp["bias"] = mlp["bias"].at[:3].set(-1).at[3].set(1)
    found, tokens = measured(experiment, params)
    _, acts = models.forward(experiment.model, params, tokens)
    posts = [np.asarray(acts[f"block_{i}/mlp/post"]) for i in range(LAYERS)]
    by_hand = [np.mean((post > 0).any(axis=(0, 1)) == 0) for post in posts]
    np.testing.assert_allclose(found["dead"], by_hand, rtol=0, atol=2**-20)
    assert found["dead"][1] >= 3 / HIDDEN
    np.testing.assert_allclose(found["active"], [np.mean(post > 0) for post in posts], rtol=0, atol=2**-20)
    np.testing.assert_allclose(found["active_at"][1], np.mean(posts[1] > 0, axis=(0, 2)), rtol=0, atol=2**-20)


def test_attention_that_adds_an_eighth_of_the_stream_or_something_across_it():
    """The output matrix is zero; its bias is an eighth of a stream that all tokens share, then orthogonal to it."""
    experiment, params = made(d_ff=0)
    stream = np.arange(1.0, WIDTH + 1, dtype=np.float32)
    params["embed"]["token"]["embedding"] = jnp.tile(stream, (4, 1))
    params["embed"]["position"]["embedding"] = jnp.zeros((LENGTH, WIDTH))
    for block in ("block_0", "block_1"):
        params[block]["attn"]["out"]["kernel"] = jnp.zeros_like(params[block]["attn"]["out"]["kernel"])
    params["block_0"]["attn"]["out"]["bias"] = jnp.asarray(stream / 8)
    across = np.where(np.arange(WIDTH) % 2, -1, 1) * np.roll(stream, 1)[[1, 0, 3, 2, 5, 4, 7, 6]]
    across = across - stream * (across @ stream) / (stream @ stream)
    params["block_1"]["attn"]["out"]["bias"] = jnp.asarray(across, jnp.float32)
    found, _ = measured(experiment, params)
    assert set(found) == {"ratio", "bypass", "cosine", "bypassed"}
    size = [np.linalg.norm(stream), np.linalg.norm(stream) * 1.125]
    ratio = [1 / 8, np.linalg.norm(across) / size[1]]
    # norms of eight numbers and one quotient, in float32
    np.testing.assert_allclose(found["ratio"], ratio, rtol=2**-19)
    np.testing.assert_allclose(found["bypass"], 1 / (1 + np.array(ratio)), rtol=2**-19)
    np.testing.assert_allclose(found["cosine"], [1, 1 / np.sqrt(1 + ratio[1] ** 2)], rtol=2**-18)
    assert found["bypassed"].tolist() == [0, 0]


def test_of_a_decoder_units_that_nothing_passes_are_dead_and_attention_adds_what_its_norm_makes_of_it():
    """Three units of the second layer have a gate, but nothing behind it; a norm makes attention an eighth."""
    experiment, params = made(base.decoder, n_heads=1, use_bias=False, sandwich_norm=True, norm_eps=0.0)
    stream = np.arange(1.0, WIDTH + 1, dtype=np.float32)
    params["embed"]["token"]["embedding"] = jnp.tile(stream, (4, 1))
    blocks = params["blocks"]
    blocks["attn_out_norm"]["scale"] = (
        blocks["attn_out_norm"]["scale"].at[0].set(np.linalg.norm(stream) / np.sqrt(WIDTH) / 8)
    )
    blocks["mlp"]["in"]["kernel"] = blocks["mlp"]["in"]["kernel"].at[1, :, :3].set(0)
    found, tokens = measured(experiment, params)
    _, acts = models.forward(experiment.model, params, tokens)
    posts, pre, mid = (
        np.stack([acts[f"block_{i}/{name}"] for i in range(LAYERS)]) for name in ("mlp/post", "resid_pre", "resid_mid")
    )
    on = np.abs(posts) > sparsity.SMOOTH * np.sqrt(np.mean(posts**2, axis=(1, 2, 3), keepdims=True))
    assert found["dead"][1] >= 3 / HIDDEN
    np.testing.assert_allclose(found["dead"], 1 - on.any(axis=(1, 2)).mean(axis=1), rtol=0, atol=2**-20)
    np.testing.assert_allclose(found["active"], on.mean(axis=(1, 2, 3)), rtol=0, atol=2**-20)
    # norms of eight numbers, and a difference of streams that is an eighth of them, in float32
    assert found["ratio"][0] == pytest.approx(1 / 8, rel=2**-17)
    added = np.linalg.norm(mid - pre, axis=-1) / np.linalg.norm(pre, axis=-1)
    np.testing.assert_allclose(found["ratio"], np.median(added, axis=(1, 2)), rtol=2**-17)


def test_tokens_that_attention_hardly_changes_are_counted():
    added = jnp.array([[[0.05, 0.0], [0.2, 0.0]], [[0.0, 0.0], [0.0, 5.0]]])
    found = analysis.bypass(jnp.ones((2, 2, 2)) / jnp.sqrt(2.0), added)
    assert found["bypassed"] == 0.5
    assert found["ratio"] == pytest.approx((0.05 + 0.2) / 2, rel=1e-6)


def test_of_smooth_activations_small_ones_count_as_off():
    post = jnp.array([[[1.0, -1.0, 0.005, 0.02]]])
    assert np.asarray(analysis.active(post, 0.01)).tolist() == [[[True, True, False, True]]]
    assert analysis.dead_share(analysis.active(post, 0.01)) == 0.25


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_probe_has_the_tokens_it_promises(activation):
    one = sparsity.sparsity(made(activation=activation)[0])
    assert one.n * LENGTH <= sparsity.PROBE_TOKENS < (one.n + 1) * LENGTH
    assert set(one.dims) == set(one.units)


def data(study, folder):
    """A path to what a study reads, made up; nothing for one that draws its own."""
    if study in TEXTS:
        (folder / "text.txt").write_text("\n".join(f"word{i % 90} of line {i % 7}" for i in range(2000)))
        return {"path": str(folder / "text.txt")}
    if study == "complexity_control_language":
        for split in ("train", "test"):
            lines = (f"IN: {verb} left OUT: I_TURN_LEFT I_{verb.upper()}\n" for verb in ("walk", "look", "run", "jump"))
            (folder / f"tasks_{split}_addprim_turn_left.txt").write_text("".join(lines))
        return {"path": str(folder)}
    if study == "ntp_ctp_files":
        pytest.importorskip("tokenizers")
        asked = "Every yumpus is a impus. {0} is a yumpus. Bob is a rompus. Is {0} a rompus or impus?"
        items = [{"question": asked.format(name), "answer": f"{name} is a impus."} for name in ("Tom", "Eva", "Jack")]
        (folder / "items.json").write_text(json.dumps(items))
        return {"path": str(folder / "items.json"), "test_share": 0.3}
    return {}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("study", studies.names())
def test_every_transformer_of_every_study_can_be_measured(study, tmp_path, monkeypatch):
    """By the catalogue, as `lab analyze --measure=sparsity` takes it; of equal models one, traced, not trained.

    Other models have no residual stream beside attention, or no attention, and the reason is said.
    """
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))
    config, found = base.load(study, "smoke"), {}
    config.task.update(data(study, tmp_path))
    for variant in configs.variants(config).values():
        experiment = configs.experiment(variant)
        if isinstance(experiment.model, models.Transformer | models.Decoder):
            found.setdefault(experiment.model.clone(readout="all"), (experiment, configs.grid(variant)))
        else:
            assert "this model is" in catalogue.absent(experiment)["sparsity"]
    for experiment, grid in found.values():
        hparams = {name: column[0] for name, column in grid.arrays().items()}
        params = jax.eval_shape(lambda experiment=experiment, hparams=hparams: step.start(experiment, hparams)).params
        (one,) = [one for one in catalogue.measures(experiment) if one.name == "sparsity"]
        shapes = outputs(experiment, one, params, hparams)
        assert set(shapes) == set(one.units)
        assert {leaf.shape[0] for leaf in shapes.values()} == {experiment.model.n_layers}
