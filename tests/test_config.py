"""The boundary where a config comes in: what it accepts means one thing, what it refuses is named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from lab import config as configs
from lab import configure, models
from lab.configs import base, composition
from lab.optim import Optim

pytestmark = pytest.mark.usefixtures("echo_is_a_task")


def test_config_survives_json(echo):
    config = echo.config(optim=echo.OPTIM | {"clip_norm": float("inf")})
    back = configs.from_json(json.loads(json.dumps(configs.to_json(config))))
    assert back.to_dict() == config.to_dict()
    assert configs.experiment(back) == configs.experiment(config)
    assert configs.grid(back) == configs.grid(config)


def test_experiment_holds_what_the_config_says(echo):
    experiment = configs.experiment(echo.config(init="paper", optim=echo.OPTIM | {"b2": 0.99, "clip_norm": 2}))
    assert experiment.model == models.EmbMLP(8, 8, 8, "tanh")
    assert experiment.optim == Optim(**(echo.OPTIM | {"b2": 0.99, "clip_norm": 2}))
    assert (experiment.steps, experiment.batch_size, experiment.train_size) == (24, 4, 13)
    assert (experiment.data_order, experiment.data_seed, experiment.eval_size) == ("row", 5, 16)
    assert experiment.init_convention == "paper" and experiment.task == echo.Echo()


def test_variant_is_the_config_with_its_changes(echo):
    config = echo.config(variants={"wide": {"model": {"d_ff": 16}, "steps": 30}, "same": {}})
    before = config.to_dict()
    resolved = configs.variants(config)
    assert set(resolved) == {"wide", "same"}
    assert resolved["same"].to_dict() == {k: v for k, v in before.items() if k != "variants"}
    wide = resolved["wide"].to_dict()
    assert wide.pop("model") == before["model"] | {"d_ff": 16} and wide.pop("steps") == 30
    assert wide == {k: v for k, v in before.items() if k not in ("variants", "model", "steps")}
    assert config.to_dict() == before
    assert list(configs.variants(echo.config())) == ["main"]


def test_variant_of_another_family_keeps_nothing_of_the_first_ones_options(echo):
    other = dict(family="attention", vocab_size=8, d_model=4)
    resolved = configs.variants(echo.config(variants={"other": {"model": other}, "same": {}}))
    assert resolved["other"].model.to_dict() == other
    assert configs.experiment(resolved["other"]).model == models.OneLayerAttention(8, 4)
    assert resolved["same"].model.to_dict() == echo.config().model.to_dict()


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a/b": {}}, "variants: 'a/b' cannot name a folder"),
        ({"": {}}, "variants: '' cannot name a folder"),
        ({"a": {"stepps": 3}}, "variants.a: .*stepps"),
        ({"a": {"model": {"dff": 3}}}, "variants.a: .*dff"),
        ({"a": {"steps": "many"}}, "variants.a: .*(str|int)"),
    ],
)
def test_impossible_variant_is_refused_by_name(echo, variants, message):
    with pytest.raises(ValueError, match=message) as caught:
        configs.variants(echo.config(variants=variants))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["variants", "grid", "start", "task"])
def test_config_that_lacks_a_section_has_no_variants(echo, section):
    with pytest.raises(ValueError, match=f"config.{section} is missing"):
        configs.variants(changed(echo.config(), section, None))


def changed(config, path, value):
    """The config with one option set, or deleted where `value` is None."""
    *sections, last = path.split(".")
    options = config.to_dict()
    section = options
    for name in sections:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return ConfigDict(options)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("step", 3, r"config.step: unknown option; did you mean 'steps'\?"),
        ("colour", "red", "config.colour: unknown option; known: .*batch_size"),
        ("steps", None, "config.steps is missing"),
        ("optim", None, "config.optim is missing"),
        ("grid", 3, "config.grid=3: expected dict"),
        ("steps", 2.0, "config.steps=2.0: expected int"),
        ("steps", True, "config.steps=True: expected int"),
        ("data_order", 3, "config.data_order=3: expected str"),
        ("eval_every", 0, "eval_every=0: must be at least 1"),
        ("snapshots", 1, "snapshots=1: must be at least 2"),
        ("checkpoint_every", -1, "checkpoint_every=-1: must be at least 1"),
        ("block_width", -1, "block_width=-1: must be at least 0"),
        ("task.family", "eco", "task.family='eco': one of composition, .*echo"),
        ("model.family", None, "model.family=None: one of transformer, emb_mlp"),
        ("model.d_model", None, "model.d_model is missing"),
        ("model.d_modell", 8, r"model.d_modell: unknown option; did you mean 'd_model'\?"),
        ("model.d_model", "8", "model.d_model='8': expected int"),
        ("model.d_model", True, "model.d_model=True: expected int"),
        ("model.activation", "swish", "model.activation='swish': one of relu, gelu, tanh"),
        ("model.vocab_size", 7, "model.vocab_size=7: the task needs at least 8"),
        ("model.name", "me", "model.name: unknown option"),
        ("optim.family", "adam", "optim.family='adam': one of adamw, sgd"),
        ("optim.b1", 1.0, r"optim.b1=1.0: must lie in \[0, 1\)"),
        ("optim.clip_norm", 0, "optim.clip_norm=0: must be positive"),
        ("optim.warmup_steps", 24, r"optim.warmup_steps=24: must lie in \[0, steps=24\)"),
        ("optim.warmup_steps", 2.5, "optim.warmup_steps=2.5: expected int"),
        ("optim.warm_up_steps", 2, r"optim.warm_up_steps: unknown option; did you mean 'warmup_steps'\?"),
        ("init", "papers", "init='papers': one of paper, authors"),
        ("train_size", 3, "train_size=3 is smaller than batch_size=4"),
    ],
)
def test_impossible_option_is_refused_by_name(echo, path, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        configs.experiment(changed(echo.config(), path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.norm", "batch", "model.norm='batch': one of pre, post, none"),
        ("model.readout", "first", "model.readout='first': one of last, all"),
        ("model.max_length", 8, "model.max_length=8: the task needs at least 9"),
        ("model.use_bias", 1, "model.use_bias=1: expected bool"),
        ("task.setting", "34", "task.setting='34': one of 34_wrong, 34_unseen, all_pairs"),
        ("task.modulus", 10, "task.modulus=10: one of 7, 8, 9"),
    ],
)
def test_impossible_option_of_the_composition_study_is_refused_by_name(path, value, message):
    (variant, *_) = configs.variants(composition.smoke()).values()
    with pytest.raises(ValueError, match=message):
        configs.experiment(changed(variant, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("grid.gama", (0.3,), r"grid.gama: unknown hyperparameter; did you mean 'gamma'\?"),
        ("grid.seed", None, "grid lacks seed"),
        ("grid.gamma", (), r"grid.gamma=\(\): expected a non-empty tuple"),
        ("grid.learning_rate", (-1.0,), "-1.0 is negative"),
    ],
)
def test_impossible_grid_is_refused_by_name(echo, path, value, message):
    with pytest.raises(ValueError, match=message):
        configs.grid(changed(echo.config(), path, value))


def test_whole_number_is_accepted_where_a_float_is_wanted(echo):
    config = changed(echo.config(), "optim.clip_norm", 1)
    assert configs.experiment(config).optim.clip_norm == 1


TREES = st.recursive(
    st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)
CONFIGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


def leaves(tree, prefix=()):
    """Path -> value; an empty section counts as a leaf."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {path: value for name, part in tree.items() for path, value in leaves(part, (*prefix, name)).items()}


@given(old=CONFIGS, new=CONFIGS)
def test_differences_are_none_exactly_for_equal_configs(old, new):
    lines = configs.differences(old, new)
    assert (lines == []) == (old == new)
    for line in lines:
        path = tuple(line.split(":")[0].split("."))
        under = [{p: v for p, v in leaves(tree).items() if p[: len(path)] == path} for tree in (old, new)]
        assert under[0] != under[1]


def test_difference_shows_name_and_both_values():
    old = {"steps": 3, "model": {"d": 8, "h": 1}, "gone": 1}
    new = {"steps": 4, "model": {"d": 8, "h": 2}, "come": {"x": 1}}
    assert configs.differences(old, new) == [
        "come: absent -> {'x': 1}",
        "gone: 1 -> absent",
        "model.h: 1 -> 2",
        "steps: 3 -> 4",
    ]


@pytest.mark.parametrize("seed", [-1, 2**31, 2**32, 2**64])
def test_seed_beyond_the_one_range_of_all_seeds_is_refused(echo, seed):
    with pytest.raises(ValueError, match=rf"^data_seed={seed}: must be an integer in \[0, 2\^31\)"):
        configs.experiment(echo.config(data_seed=seed))
    with pytest.raises(ValueError, match=rf"^grid.seed=.*{seed} is not an integer in \[0, 2\^31\)"):
        configs.grid(echo.config(grid=echo.config().grid.to_dict() | {"seed": (seed,)}))


def test_last_seed_of_the_range_is_one(echo):
    last = 2**31 - 1
    config = echo.config(data_seed=last, grid=echo.config().grid.to_dict() | {"seed": (last,)})
    assert configs.experiment(config).data_seed == last and configs.grid(config).arrays()["seed"].tolist() == [last] * 3


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.int64(3), 3), (np.float32(0.25), 0.25), (np.bool_(True), True), (np.str_("x"), "x"),
        (np.arange(2), (0, 1)), (tuple(np.arange(2)), (0, 1)), (np.array(7), 7), (np.ones((1, 2)), ((1.0, 1.0),)),
        (tuple(np.float32([0.5, 0.25])), (0.5, 0.25)), ([np.int8(1), "a"], [1, "a"]), (jnp.arange(2), (0, 1)),
        ({"deep": {"er": (np.int64(1),)}}, {"deep": {"er": (1,)}}), ("x", "x"), (None, None), (0.1, 0.1),
    ],
)  # fmt: skip
def test_values_of_numpy_become_values_of_python(given, plain):
    made = configs.plain(ConfigDict({"value": given})).to_dict()["value"]
    assert made == plain and json.dumps(made) == json.dumps(plain)
    assert configs.to_json(ConfigDict({"value": given}))["value"] == json.loads(json.dumps(plain))


def test_config_of_numpy_values_is_the_same_as_of_plain_ones(echo):
    axes = {"gamma": np.float64([0.3, 0.5]), "weight_decay": (np.float64(0.1),), "learning_rate": [0.01],
            "seed": tuple(np.arange(2))}  # fmt: skip
    plain = {"gamma": (0.3, 0.5), "weight_decay": (0.1,), "learning_rate": [0.01], "seed": (0, 1)}
    given = ConfigDict(echo.config().to_dict() | {"grid": axes, "steps": np.int64(24), "data_seed": np.uint32(5)})
    assert configs.experiment(given) == configs.experiment(echo.config())
    assert configs.grid(given) == configs.grid(echo.config(grid=plain))
    assert configs.variants(given)["main"].to_dict() == configs.variants(echo.config(grid=plain))["main"].to_dict()


def test_sigma_from_python_is_in_place_of_the_usual_gamma():
    assert configure.axes({"sigma": (0.1, 0.2)}) == {
        name: values for name, values in base.OPTIONS["grid"].items() if name != "gamma"
    } | {"sigma": (0.1, 0.2)}
    assert configure.axes({"sigma_qk": 0.1}) == base.OPTIONS["grid"] | {"sigma_qk": (0.1,)}
