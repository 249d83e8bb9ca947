"""Every claim on runs written by hand, on which the answer is known. Arrays are (seed, gamma)."""

import functools

import numpy as np
import pytest
import synthetic
from synthetic import Grid, by_gamma

from lab import config as configs
from lab.configs import base
from lab.configs import low_entropy as config
from lab.studies import low_entropy as study
from lab.studies.low_entropy.sizes import by_size, n_parameters

measured = functools.partial(synthetic.measured, study.STUDY)
SIZES = [(width, depth) for width in (8, 16, 32) for depth in (1, 2)]
NULL = dict(target=6.0, sample=5.7, sample_median=5.75, sample_low=5.6, sample_high=5.9, entropy=6, said=6.01)
TRAINED = NULL | dict(said_error=0.01, forward=0.5)


def model(width, depth, **changes):
    options = dict(
        d_model=width, n_layers=depth, n_heads=1, d_head=width, d_ff=4 * width, vocab_size=6, max_length=6,
    )  # fmt: skip
    return options | changes


def size(width, depth, sparse=None, axes=None, of=None, **distribution):
    """One variant; numbers are per seed, `sparse` is per seed and layer."""
    settings = {"model": of or model(width, depth), "task": {"length": 6}}
    made = Grid(study.STUDY.usual, config=settings, gamma=(0.5,), **(axes or {}))
    for name, values in (TRAINED | distribution).items():
        made.put(f"distribution.{name}", by_gamma(values), "snapshot")
    for name, values in (sparse or {}).items():
        layers = np.broadcast_to(np.asarray(values, float)[:, None, None], (5, 1, depth))
        made.put(f"sparsity.{name}", layers, "snapshot", {"layer": range(depth)})
    return made


def sizes(gap=lambda width, depth: -(width**2) * depth, **others):
    """`gap` and sparsity by width and depth: a number, or one for each seed."""
    made = {}
    for width, depth in SIZES:
        sparse = {name: np.broadcast_to(of(width, depth), 5) for name, of in others.items()}
        made[f"fixed_{width}x{depth}"] = size(width, depth, sparse, gap=gap(width, depth))
    return made


def test_share_of_sizes_below_the_target_by_seed():
    def gap(width, depth):  # the first seed is above at two of six sizes, the second at one
        return (0.1 if width == 8 else -0.1, 0.1 if (width, depth) == (8, 1) else -0.1, -0.1, -0.2, -0.3)

    found = measured("E1", **sizes(gap))
    np.testing.assert_allclose(found.values_S, (4 / 6, 5 / 6, 1, 1, 1))


@pytest.mark.parametrize(
    ("gap", "words"),
    [(-0.2, "the sample explains it"), (-0.5, "lower than the sample explains"), (0.1, "not below its target")],
)
def test_the_sample_stands_beside_the_gap_of_the_largest_model(gap, words):
    """Its own entropy is 0.3 below the target's, the band begins 0.4 below."""
    found = measured("E1", **sizes(lambda width, depth: gap))
    assert words in found.note and f"{gap:.3f}; the training sample itself -0.300" in found.note
    assert "[-0.400, -0.100]" in found.note and "1.0 standard errors" in found.note


def test_entropy_that_falls_with_parameters():
    assert (measured("E2", **sizes()).values_S == -1).all()
    assert measured("E2", **sizes(lambda width, depth: width**2 * depth)).verdict == "does not hold"
    assert "three sizes" in measured("E2", fixed_8x1=size(8, 1), fixed_8x2=size(8, 2)).note


def test_attention_alone_is_held_against_the_full_model_of_its_size():
    full = sizes(lambda width, depth: (-0.4, -0.4, -0.4, -0.4, 0.1) if (width, depth) == (32, 2) else -9)
    alone = size(32, 2, of=model(32, 2, n_heads=3, d_ff=0), gap=(-0.1, -0.2, -0.4, 0.2, -0.1))
    found = measured("E3", attention=alone, **full)
    np.testing.assert_allclose(found.values_S, (0.25, 0.5, 1.0, -0.5, np.nan))
    del full["fixed_32x2"]
    assert "fixed_32x2" in measured("E3", attention=alone, **full).note


def test_attention_alone_has_as_many_parameters():
    runs = synthetic.runs(study.STUDY, a=size(32, 2), b=size(32, 2, of=model(32, 2, n_heads=3, d_ff=0)))
    assert n_parameters(runs["a"]) == n_parameters(runs["b"])
    made = configs.experiment(configs.variants(config.get_config("cpu"))["attention"])
    assert (made.model.n_heads, made.model.d_ff) == (3, 0)


def test_distance_of_entropy_and_loss_is_of_a_symbol():
    made = size(32, 2, teacher_forced=(6.0, 6.06, 5.97, 6.0, 6.0), cross_entropy=6.03, temperature=1.02, gap=0.0)
    np.testing.assert_allclose(measured("E4", fresh=made).values_S, (0.005, 0.005, 0.01, 0.005, 0.005), rtol=1e-9)


@pytest.mark.parametrize("name", ["ratio", "active"])
def test_trends_with_width_are_of_the_worst_depth(name):
    id = {"ratio": "E5a", "active": "E5b"}[name]
    found = measured(id, **sizes(**{name: lambda width, depth: 1 / width}))
    assert (found.values_S == pytest.approx(-1)) and found.verdict == "holds"

    def mixed(width, depth):  # of the first seed, at depth 2, it rises at last
        return (0.2 if (width, depth) == (32, 2) else 1 / width, *[1 / width] * 4)

    np.testing.assert_allclose(measured(id, **sizes(**{name: mixed})).values_S, (0.5, -1, -1, -1, -1), atol=1e-12)


@pytest.mark.parametrize("name", ["ratio", "active"])
def test_changes_with_depth_are_of_the_worst_width(name):
    id = {"ratio": "E5c", "active": "E5d"}[name]
    found = measured(id, **sizes(**{name: lambda width, depth: width - depth * (0.5 if width == 16 else 1)}))
    np.testing.assert_allclose(found.values_S, [-0.5] * 5)
    one_depth = {name: grid for name, grid in sizes(**{name: lambda width, depth: 1.0}).items() if name.endswith("x1")}
    assert "two depths" in measured(id, **one_depth).note


def unstable(spikes_at):
    """2,000 steps at two rates; dead neurons jump between 400 and 420, and at 1200, of every row alike."""
    snapshots = range(0, 2001, 20)
    made = Grid(study.STUDY.usual, steps=snapshots, times={"train_step": range(2000)}, learning_rate=(3e-3, 1e-2))
    dead = np.zeros(len(snapshots))
    dead[21:] += 0.2
    noise = np.where(np.arange(2000) % 2, 0.01, -0.01)
    for rate in (3e-3, 1e-2):
        loss = np.tile(1 + noise[:, None], (1, 5))
        for seed in range(5):
            loss[spikes_at[seed], seed] = 5.0
        made.put("train_loss", loss, "train_step", learning_rate=rate)
        made.put(
            "sparsity.dead", np.tile(dead[:, None, None], (1, 5, 1)), "snapshot", {"layer": [0]}, learning_rate=rate
        )
    return made


def test_spikes_near_deaths_are_told_from_others_and_without_spikes_there_is_no_number():
    found = measured("E6", unstable=unstable([[410, 420], [355, 468], [1000, 1500], [], [400]]))
    p = found.values_S
    # the share of time near the jump is 120 of 2,000: of two rows shifted each by itself 0.0036
    assert p[0] < 0.02 and p[1] < 0.02 and p[2] == 1 and np.isnan(p[3]) and p[4] < 0.02
    assert "4, 4, 4, 0, 2" in found.note and "1.00, 1.00, 0.00, nan, 1.00" in found.note


def test_diagram_is_of_the_usual_decay_and_its_corners_are_said():
    made = Grid(study.STUDY.usual, gamma=(0.3, 0.5, 0.8), weight_decay=(0.01, 1.0))
    made.put("distribution.gap", by_gamma(-0.3, -0.2, (-0.1, -0.1, -0.1, -0.1, -0.25)), "snapshot")
    made.put("distribution.gap", by_gamma(0.1, 0.2, 0.3), "snapshot", weight_decay=1.0)
    found = measured("E7", diagram=made)
    np.testing.assert_allclose(found.values_S, (1, 1, 1, 1, 0.5), atol=1e-12)
    assert "gamma 0.3, decay 0.01: -0.300" in found.note and "gamma 0.8, decay 1: 0.300" in found.note


# --- presets ---


@pytest.mark.parametrize("preset", ["smoke", "cpu", "record", "gpu", "paper"])
def test_variants_are_of_the_size_they_are_named_after(preset):
    for name, variant in configs.variants(config.get_config(preset)).items():
        experiment = configs.experiment(variant)
        if name.startswith("fixed_"):
            assert name == f"fixed_{experiment.model.d_model}x{experiment.model.n_layers}"
            assert experiment.train_size
        assert bool(experiment.train_size) != (name in ("fresh", "unstable")), name


def test_sizes_are_found_in_order_and_others_left_out():
    runs = synthetic.runs(
        study.STUDY, fixed_16x1=size(16, 1), fixed_8x2=size(8, 2), text_32x1=size(32, 1), fresh=size(8, 1)
    )
    assert [*by_size(runs)] == [(8, 2), (16, 1), (32, 1)]


def test_text_needs_a_path_and_names_one():
    made = config.get_config("text")
    assert made.task.path == "" and set(made.variants) == {f"text_{w}x{d}" for w in (16, 32, 64) for d in (1, 2)}
    assert "TinyStories" in base.presets("low_entropy")["text"]
