"""Every claim on grids written by hand, on which the answer is known; what the presets train."""

import functools

import jax
import numpy as np
import pytest
import synthetic
from synthetic import Grid

from lab import claims, models
from lab import config as configs
from lab.configs import mamba_copy as config
from lab.measuring.catalogue import state_space
from lab.report.page import draw_section
from lab.runs import MissingData, Runs
from lab.studies import mamba_copy as study

measured = functools.partial(synthetic.measured, study.STUDY)
NAN, INF = np.nan, np.inf
STEPS = (0, 50, 100, 150, 200)
EPS = 2.0**-52


def learner(*reached):
    """A run whose seed s copies from the evaluation at step `reached[s]` on; infinite: never."""
    made = Grid(steps=STEPS, config={"batch_size": 64, "steps": 200})
    return made.put("test.accuracy", np.array([[0.96 if step >= at else 0.9 for at in reached] for step in STEPS]))


def ends(*accuracy):
    """A run that ends with these accuracies, and had half of each before."""
    over_time = np.outer([0, 0.5, 0.5, 0.5, 1], accuracy)
    return Grid(steps=STEPS, config={"batch_size": 64, "steps": 200}).put("test.accuracy", over_time)


def constructed(softmax=1.0, decay=1.0, error=()):
    """Scores whose slopes are these times the right ones, and errors by number of tokens."""
    lengths, distances, rates, tokens = (
        state_space.GAP_LENGTHS, state_space.DECAY_LENGTHS, state_space.RATES, state_space.TOKENS,
    )  # fmt: skip
    made = Grid()
    log_scores = 3 - np.outer(decay * np.log(rates), distances)
    made.put("scores.softmax", np.tile(2 + softmax * np.log(lengths), (5, 1)), None, {"length": lengths})
    made.put("scores.decay", np.tile(log_scores, (5, 1, 1)), None, {"rate": rates, "distance": distances})
    errors = [0.0 if n <= state_space.STATES else 0.7 for n in tokens]
    return made.put("copier.error", np.tile(error or errors, (5, 1)), None, {"token": tokens})


@pytest.mark.parametrize(
    ("id", "grids", "expected"),
    [
        (  # a bound of 200 steps; a transformer that never copies; neither
            "Y1a",
            {
                "mamba_20": learner(150, 100, INF, 150, INF),
                "transformer_20": learner(50, 100, 50, INF, INF),
            },
            (3, 1, 4, 0, NAN),
        ),
        (  # of a bound at 10 letters there is no quotient
            "Y1b",
            {
                "mamba_10": learner(100, 100, INF, 100, 100),
                "transformer_10": learner(50, 50, 50, 100, 50),
                "mamba_20": learner(150, 100, 200, 150, INF),
                "transformer_20": learner(50, 50, 50, 150, 50),
            },
            (1.5, 1, NAN, 1, 2),
        ),
        (
            "Y1c",
            {"mamba_10": learner(*[100] * 5), "transformer_10": learner(50, 100, 200, 50, 50)},
            (2, 1, 0.5, 2, 2),
        ),
        ("Y2a", {"transformer_40": ends(1, 0.9, 0.95, 1, 1)}, (1, 0.9, 0.95, 1, 1)),
        ("Y2b", {"mamba_40": ends(0.1, 0.9, 0.95, 0, 1)}, (0.1, 0.9, 0.95, 0, 1)),
        (  # means over five evaluations: half of what is reached
            "Y3",
            {"shallow_20": ends(0.8, 0.4, 0, 1, 1), "narrow_20": ends(0.4, 0.8, 0, 0, 1)},
            (0.2, -0.2, 0, 0.5, 0),
        ),
        ("Y4a", {"mamba_10": constructed(softmax=1.01)}, (1.01,) * 5),
        ("Y4b", {"mamba_10": constructed(decay=0.97)}, (0.97,) * 5),
        ("Y5a", {"mamba_10": constructed()}, (0.0,) * 5),
        ("Y5b", {"mamba_10": constructed()}, (0.7,) * 5),
        ("Y6", {"mamba_20": learner(100, 100, 200, INF, 150), "linear_20": learner(*[50] * 5)}, (2, 2, 4, 4, 3)),
        (
            "Y7",
            {
                "full_transformer": ends(0.9, 0.9, 0.9, 0.9, 0.9), "full_mamba": ends(0.1, 0.9, 0.5, 0.5, 0.5),
                "banded_transformer": ends(1, 1, 1, 1, 0.4), "banded_mamba": ends(0.9, 0.5, 0.9, 0.6, 0.4),
            },
            (0.7, -0.5, 0.3, 0, 0.4),
        ),
    ],
)  # fmt: skip
def test_claims_by_hand(id, grids, expected):
    # quotients and differences of numbers up to four, slopes of ten
    np.testing.assert_allclose(measured(id, **grids).values_S, expected, rtol=0, atol=100 * EPS)


def test_one_rate_or_length_of_another_law_decides():
    wrong = constructed()
    wrong.dataset["scores.decay"].loc[{"rate": 0.8}] *= 1.1
    assert measured("Y4b", mamba_10=wrong).values_S == pytest.approx([1.1] * 5)
    tokens = state_space.TOKENS
    late = measured("Y5a", mamba_10=constructed(error=[1e-3 if n == 8 else 0 for n in tokens]))
    assert late.verdict == claims.FAILS and measured("Y5a", mamba_10=constructed()).verdict == claims.HOLDS
    early = measured("Y5b", mamba_10=constructed(error=[0 if n <= 9 else 1 for n in tokens]))
    assert early.verdict == claims.FAILS


def test_strings_bounds_and_budgets_stand_in_the_notes():
    slow, fast = learner(*[INF] * 5), learner(*[50] * 5)
    note = measured("Y1a", mamba_20=slow, transformer_20=fast, plain_20=learner(*[100] * 5)).note
    assert "transformer_20 3,200." in note and "alone has not got there in 5 of 5 seeds: a lower bound." in note
    assert note.startswith("mamba_20 more than 12,800 strings") and "Neither" not in note
    assert note.endswith("A transformer with positions and no convolution: 6,400.")
    note = measured("Y1a", mamba_20=learner(*[100] * 4, INF), transformer_20=learner(*[50] * 4, INF)).note
    assert note == "mamba_20 6,400 strings, transformer_20 3,200. Neither has in 1 of 5: no ratio."
    assert "more than 12,800" in measured("Y1a", mamba_20=slow, transformer_20=fast, plain_20=slow).note
    assert "Budget: 12,800 strings." in measured("Y2b", mamba_40=slow).note


# --- presets and pictures ---


@pytest.mark.parametrize("preset", ["smoke", "cpu", "record", "gpu", "paper"])
def test_variants_are_what_their_names_say(preset):
    for name, variant in configs.variants(config.get_config(preset)).items():
        experiment = configs.experiment(variant)
        kind, _, size = name.rpartition("_")
        transformer = "transformer" in name or kind == "plain"
        assert isinstance(experiment.model, models.Transformer if transformer else models.Mamba2), name
        if size.isdecimal():
            assert experiment.task.longest == int(size) and experiment.task.n_letters == 26
        else:
            assert experiment.task.band == {"full": 0, "banded": 3}[kind]
        assert experiment.model.readout == "all"
        assert (getattr(experiment.model, "start", "published") == "linear") == (kind == "linear")


def test_models_have_as_many_parameters():
    """Within 5 %, of those that are compared."""
    sizes = {}
    for name, variant in configs.variants(config.get_config("cpu")).items():
        experiment = configs.experiment(variant)
        shapes = jax.eval_shape(
            lambda experiment=experiment: models.init(experiment.model, jax.random.key(0), experiment.task.example())
        )
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    for longest in (10, 20):
        assert sizes[f"mamba_{longest}"] == pytest.approx(sizes[f"transformer_{longest}"], rel=0.05)


def test_learning_stands_against_strings():
    runs = Runs(
        {"mamba_10": learner(*[100] * 5).dataset, "transformer_10": learner(*[50] * 5).dataset}, study.STUDY.usual
    )
    (ax,) = [ax for ax in study.learning(runs).figure.axes if ax.lines]
    drawn = {line.get_gid(): (line.get_xdata(), line.get_ydata()) for line in ax.lines}
    assert set(drawn) == {"Mamba", "transformer"}
    np.testing.assert_array_equal(drawn["Mamba"][0], np.multiply(STEPS, 64))
    np.testing.assert_array_equal(drawn["Mamba"][1], [0.9, 0.9, 0.96, 0.96, 0.96])


def test_reads_and_taps_are_of_every_layer_of_the_first_seed():
    made = learner(*[100] * 5)
    read, cosine = np.arange(5 * 2 * 9.0).reshape(5, 2, 3, 3), np.arange(5 * 2 * 16.0).reshape(5, 2, 4, 4)
    made.put("mixing.read", read, None, {"layer": [1, 2], "query": range(3), "position": range(3)})
    made.put("taps.cosine", cosine, "snapshot", {"layer": [1, 2], "tap": range(4), "other_tap": range(4)})
    for draw, values in ((study.reads, read), (study.taps, cosine)):
        shown = [ax for ax in draw(made.run()).figure.axes if ax.get_title("left")]
        assert [ax.get_title("left") for ax in shown] == ["layer 1", "layer 2"]
        np.testing.assert_array_equal([ax.images[0].get_array() for ax in shown], values[0])


def test_pictures_of_constructed_weights_say_what_they_lack():
    run = Runs({"transformer_10": learner(*[50] * 5).dataset})
    with pytest.raises(MissingData, match="mamba_10"):
        study.scores(run)
    assert "reads (this run lacks mixing.read)" in draw_section("t", "", run["transformer_10"], (study.reads,)).text
    shown = study.states(Runs({"mamba_10": constructed().dataset})).figure.axes[0]
    errors = next(line for line in shown.lines if line.get_gid() == "constructed weights, largest")
    assert dict(zip(errors.get_xdata(), errors.get_ydata(), strict=True))[9] == 0.7
