"""The contract of every config that is shipped: complete, possible, found by its name, refused with what there is."""

import dataclasses
import inspect
import math
import types

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from lab import config as configs
from lab import models, rng, studies, tree
from lab.configs import base, large
from lab.controller import Controller
from lab.optim import Optim

PRESETS = [(name, preset) for name in base.names() for preset in base.presets(name)]


def test_every_option_is_listed_and_no_other():
    made = base.config()
    assert set(made) == {*configs.SCALARS, *configs.SECTIONS}
    assert set(made.optim) == {field.name for field in dataclasses.fields(Optim)}
    assert set(made.start) == set(configs.START)
    listed = base.transformer(), base.mamba(), base.mamba1(), base.decoder(), base.fno2d(), base.m2m()
    for options in listed:
        fields = {field.name for field in dataclasses.fields(models.FAMILIES[options["family"]])} - {"parent", "name"}
        assert set(options) == {*fields, "family"}
    assert set(base.controller()) == {field.name for field in dataclasses.fields(Controller)}


def test_what_a_study_does_not_say_stays_and_what_it_says_counts():
    usual, made = base.config().to_dict(), base.config(steps=3, optim=dict(b2=0.5), grid=dict(stay=(0.1,)))
    assert made.to_dict() == usual | {
        "steps": 3, "optim": usual["optim"] | {"b2": 0.5}, "grid": usual["grid"] | {"stay": (0.1,)}
    }  # fmt: skip
    assert base.config().to_dict() == usual


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_shipped_preset_is_a_possible_training(name, preset):
    config = base.load(name, preset)
    assert config.preset == preset and config.study in ({"composition", "scaling_law"} if name == "large" else {name})
    if "path" in config.task:
        config.task.path = "anywhere"  # nothing is read yet
    for variant in configs.variants(config).values():
        experiment, grid = configs.experiment(variant), configs.grid(variant)
        axes = [values for axis, values in variant.grid.items() if (axis, values) != ("gamma", ())]  # beside sigma
        assert len(grid) == math.prod(map(len, axes))
        assert experiment.steps == variant.steps
        assert getattr(experiment.task, "setting", None) == variant.task.get("setting")
        assert variant.model.family != "transformer" or variant.model.compute_dtype == "float32"


def test_large_decoders_have_the_parameters_that_their_names_say():
    shapes = {name: _parameters(large.SIZES[name]) for name in large.SIZES}
    said = {"50m": 50e6, "100m": 100e6, "200m": 200e6, "400m": 400e6, "800m": 800e6, "2b": 2.4e9}
    for name, count in said.items():
        assert abs(shapes[name] / count - 1) < 0.1


def _parameters(size):
    model = models.Decoder(vocab_size=large.LARGE_VOCABULARY, max_length=0, norm_eps=1e-12, **size)
    return tree.size(jax.eval_shape(lambda: models.init(model, rng.key(0, "init"), jnp.zeros((1, 1), jnp.int32))))


@pytest.mark.parametrize("name", base.names())
def test_presets_are_said_with_their_cost_the_smallest_first(name):
    costs = base.presets(name)
    assert all(cost and not cost.endswith(".") for cost in costs.values())
    made = [base.load(name, preset) for preset in costs]
    assert made[0].steps * made[0].batch_size == min(config.steps * config.batch_size for config in made)
    assert name == "large" or {"smoke", "cpu", "gpu"} <= set(costs)


def test_language_presets_are_of_either_data_set():
    for size in ("smoke", "cpu", "gpu", "paper"):
        scan, cogs = (base.load("complexity_control_language", size + end) for end in ("", "_cogs"))
        assert (scan.task.family, cogs.task.family) == ("scan", "cogs")


@pytest.mark.parametrize("name", base.names())
def test_unknown_preset_is_refused_with_those_there_are(name):
    message = f"unknown preset 'huge' of {name}; one of {', '.join(base.presets(name))}$"
    with pytest.raises(ValueError, match=message):
        base.load(name, "huge")
    with pytest.raises(ValueError, match=message):
        base._module(name).get_config("huge")


def test_unknown_config_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown config 'base'; there are .*complexity_control, .*large"):
        base.load("base", "cpu")


def test_presets_are_public_functions_of_the_file_itself():
    module = types.ModuleType("mine")
    module.__file__ = "mine.py"
    with pytest.raises(ValueError, match="mine: no preset, a public function without arguments"):
        base.load(module)
    text = (
        "from lab.configs.composition import paper\n"
        "from lab.configs import base\n"
        "get_config = base.get_config(__name__)\n"
        "class Mine: pass\n"
        "def small():\n    'Seconds.\\n\\n    More.'\n    return _made()\n"
        "def bare(): return _made()\n"
        "def _made(): return base.config()\n"
        "def scaled(factor): return _made()\n"
    )
    exec(text, vars(module))
    assert base.presets(module) == {"small": "Seconds", "bare": ""}
    made = base.load(module)
    assert (made.study, made.preset) == ("mine", "small")


def test_every_config_file_states_its_presets_alone():
    """Besides get_config there is nothing to call in a config file but presets."""
    for name in base.names():
        module = base._module(name)
        public = {
            of for of, value in vars(module).items()
            if inspect.isfunction(value) and not of.startswith("_") and value.__module__ == module.__name__
        }  # fmt: skip
        assert public == set(base.presets(name))
        assert isinstance(module.get_config(), ConfigDict)


@pytest.mark.parametrize("checkpoints", [1, 2])
@pytest.mark.parametrize("name", studies.names())
def test_shrunk_training_evaluates_and_saves_evenly_and_is_small(name, checkpoints):
    before = base.load(name, "cpu")
    made = base.shrink(base.load(name, "cpu"), steps=20, batch_size=4, checkpoints=checkpoints)
    assert (made.steps, made.eval_every, made.eval_size, made.block_width) == (20, 10, 8, 1)
    assert made.checkpoint_every * checkpoints == 20 and made.snapshots == checkpoints + 1
    assert made.optim.warmup_steps == min(before.optim.warmup_steps, 2)
    assert made.variants.to_dict() == before.variants.to_dict() and made.task == before.task
    if made.model.family == "transformer":
        assert made.model.n_heads * made.model.d_head == made.model.d_model == 16


# --- studies ---


def test_studies_are_the_configs_that_have_claims():
    assert set(base.names()) - set(studies.names()) == {"large"}
