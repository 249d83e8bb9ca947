"""Every claim on losses written by hand, arms and quarters of the text, and the study from a text to its page."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import synthetic
from shown import keys
from synthetic import Grid

from lab import config as configs
from lab import tree
from lab.configs import base
from lab.configs import scaling_law as config
from lab.engine.train import train_variants
from lab.measuring.catalogue.weights import shapes
from lab.runs import MissingData, Runs
from lab.studies import scaling_law as study
from lab.tasks.text import bigram_entropy, by_openness, frequencies

measured = functools.partial(synthetic.measured, study.STUDY)
WIDTHS = (8, 16, 24, 40, 64)
SIZES = np.array([20.0 * width**2 for width in WIDTHS])
EPS = 2.0**-52
NAN = np.nan


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))


def trained(width, losses, steps=(0, 100, 200, 400), **variables):
    """A variant; `losses`: (seed,) at the last step, or (step, seed)."""
    made = Grid(
        config={"model": base.decoder(**config._model(width)), "batch_size": 2, "task": {"length": 5}}, steps=steps
    )
    made.put("valid.loss", losses).put("valid.loss_error", 0.01)
    for name, (values, dims) in variables.items():
        made.put(name.replace("__", "."), values, None, dims)
    return made


def law(exponent, amplitude=3.0, floor=1.5):
    """Losses (size, seed): exponents (seed,) or one."""
    exponent_S = np.broadcast_to(np.asarray(exponent, float), 5)
    return amplitude * SIZES[:, None] ** -exponent_S[None] + floor


def by_width(**arms):
    """Variants `<arm>_<width>` of losses (size, seed)."""
    return {
        f"{arm}_{width}": trained(width, losses[i]) for arm, losses in arms.items() for i, width in enumerate(WIDTHS)
    }


def test_exponents_of_both_rates_are_held_against_that_of_sigma():
    small, large = np.array([0.3, 0.3, 0.3, 0.2, 0.3]), np.array([0.25, 0.35, 0.25, 0.25, 0.25])
    runs = by_width(small=law(small), large=law(large, 2.5), sigma=law(0.22, 2.0))
    result = measured("SL1", **runs)
    # a fit that is exact, ended where a step changes the cost by less than 1e-10 of itself
    np.testing.assert_allclose(result.values_S, [0.03, 0.08, 0.03, -0.02, 0.03], atol=1e-3)
    assert result.verdict == "open" and "5 sizes from 1,280 to 81,920 parameters" in result.note
    assert result.note.count(": +0.") + result.note.count(": -0.") == len(study.FLOORS)
    runs["small_40"].put("valid.loss", [NAN, 2, 2, 2, 2])
    assert np.isnan(measured("SL1", **runs).values_S).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("id", "variants", "expected"),
    [
        (  # of the largest width that both have
            "SL2a",
            {
                "small_8": trained(8, [9.0] * 5), "large_8": trained(8, [0.0] * 5),
                "small_40": trained(40, [2.0, 2.1, 2.2, 2.0, 2.0]), "large_40": trained(40, [2.25] * 5),
                "large_64": trained(64, [9.0] * 5),
            },
            (0.25, 0.15, 0.05, 0.25, 0.25),
        ),
        (  # lead 0.1 ln(size) times the seed's factor
            "SL2b",
            by_width(
                small=2 - 0.1 * np.log(SIZES)[:, None] * np.array([1, 2, 0, -1, 1]),
                large=np.full((5, 5), 2.0),
            ),
            (0.1, 0.2, 0.0, -0.1, 0.1),
        ),
        (  # the second seed is there at its first evaluation; the third ends where the large arm began
            "SL3",
            {
                "small_8": trained(8, [[9] * 5, [3, 2, 3, 3, 3], [2, 1, 2.7, 2, 2], [1, 1, 2.5, 1, NAN]]),
                "large_8": trained(8, [[9] * 5, [3, 3, 2.5, 3, 3], [2.5, 2.5, 2, 2.5, 2.5], [2, 2, 2, 2, 2]]),
            },
            (0.5, 0.75, -3.0, 0.5, NAN),
        ),
        (
            "SL4a",
            {
                "eps_64": trained(64, [9.0] * 5), "eps_256": trained(256, [2.0, 2.1, 1.9, 2.0, 2.0]),
                "small_256": trained(256, [1.9, 1.9, 1.9, 1.9, 2.0]),
            },
            (0.1, 0.2, 0.0, 0.1, 0.0),
        ),
        (
            "SL4b",
            {"eps_64": trained(64, [2.0, 2.1, 1.9, 2.0, 2.0]), "small_64": trained(64, [2.0] * 5)},
            (0.0, 0.1, 0.1, 0.0, 0.0),
        ),
        *(
            (  # means over layers
                id,
                {
                    "small_8": trained(8, [2.0] * 5, **{name: ([[1, 3]] * 4 + [[2, 6]], {"layer": range(2)})}),
                    "large_8": trained(8, [2.0] * 5, **{name: ([[4, 4]] * 5, {"layer": range(2)})}),
                },
                (2.0, 2.0, 2.0, 2.0, 1.0),
            )
            for id, name in (("SL5a", "queries__stable_rank"), ("SL5b", "queries__groups"))
        ),
        (  # gains 0.2, 0.1, 0, 0 on shares of 0.3, 0.1, 0.3, 0.3; the last seed has them the other way round
            "SL6",
            {
                "small_8": trained(
                    8, [2.0] * 5,
                    tokens__loss=([[1.8, 1.9, 2, 2]] * 4 + [[2, 2, 1.9, 1.8]], {"quarter": (1, 2, 3, 4)}),
                    tokens__share=([[0.3, 0.1, 0.3, 0.3]] * 5, {"quarter": (1, 2, 3, 4)}),
                ),
                "large_8": trained(8, [2.0] * 5, tokens__loss=([[2.0] * 4] * 5, {"quarter": (1, 2, 3, 4)})),
            },
            (0.175, 0.175, 0.175, 0.175, -0.15),
        ),
    ],
)  # fmt: skip
def test_claims_by_hand(id, variants, expected):
    # differences and means of a few numbers up to nine
    np.testing.assert_allclose(measured(id, **variants).values_S, expected, rtol=0, atol=64 * EPS)


def test_what_is_missing_is_named():
    runs = synthetic.runs(study.STUDY, **{name: trained(8, [2.0] * 5) for name in ("small_8", "large_8", "sigma_8")})
    for ask, said in (
        (study._losses, "small_<width>, large_<width>, sigma_<width> of three widths"),
        (study.epsilon_costs_loss.measure, "eps_<width> of width 256 or more"),
        (study.tuning, "tune_<arm>"),
    ):
        with pytest.raises(MissingData, match=said):
            ask(runs)
    with pytest.raises(MissingData, match="small_<width> and large_<width>"):
        study._widest(Runs({}), "small")


@pytest.mark.parametrize("preset", ["smoke", "cpu", "record", "gpu", "paper"])
def test_sizes_are_those_of_the_models_and_arms_differ_in_nothing_else(preset):
    made = base.load("scaling_law", preset)
    made.task.path = "text.txt"
    variants = configs.variants(made)
    for name, variant in variants.items():
        arm, width = name.split("_")
        if arm in ("tune", "large", "sigma"):
            continue
        experiment = configs.experiment(variant)
        leaves = {leaf: value.size for leaf, value in tree.named_leaves(shapes(experiment)).items()}
        inside = [leaf for leaf, one in experiment.leaves.items() if one.group not in ("embed", "head")]
        assert study.size(variant.model) == sum(leaves[leaf] for leaf in inside)
        if arm == "small":
            others = [variants[f"{other}_{width}"] for other in ("large", "sigma")]
            alike = [
                {key: value for key, value in one.to_dict().items() if key != "grid"} for one in (variant, *others)
            ]
            assert alike[0] == alike[1] == alike[2]
    widest = max(int(name.removeprefix("sigma_")) for name in variants if name.startswith("sigma_"))
    sigma, large = (configs.grid(variants[f"{arm}_{widest}"]) for arm in ("sigma", "large"))
    assert "gamma" not in sigma.columns and large.columns["gamma"][0] == 0.5
    assert sigma.columns["sigma"][0] == widest**-0.5  # std d_in^-0.5 of the large arm, at the largest width


@pytest.mark.parametrize("preset", ["language", "language_2b"])
def test_decoders_at_size_are_named_as_the_study_reads_them(preset):
    made = base.load("large", preset)
    made.task.path = "text.txt"
    variants = configs.variants(made)
    grids = {name: trained(variant.model.d_model, [2.0] * 5) for name, variant in variants.items()}
    runs = synthetic.runs(study.STUDY, **grids)
    by_arm = {arm: [*runs.numbered(arm)] for arm in study.COMPLEXITIES}
    assert by_arm["small"] == by_arm["large"] == sorted({variant.model.d_model for variant in variants.values()})


def test_pictures_of_size_are_of_the_arms_there_are():
    both = by_width(small=law(0.2), large=law(0.3))
    for runs, n_arms in ((both, 2), (both | by_width(sigma=law(0.25)), 3)):
        for picture in (study.laws, study.lead):
            assert len(keys(picture(synthetic.runs(study.STUDY, **runs)).figure)) == n_arms


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join("aq" if draw < 0.5 else f"a{'bcde'[int(8 * draw) - 4]}" for draw in
                            np.random.default_rng(0).random(20_000)))  # fmt: skip
    return path


def test_quarters_go_from_tokens_that_decide_the_next_one_to_those_that_do_not(words):
    made = config.smoke()
    made.task.path = str(words)
    task = configs.experiment(configs.variants(made)["small_4"]).task
    quarter_V, entropy_Q = by_openness(task, study.QUARTERS)
    entropy_V, count_V = bigram_entropy(task), frequencies(task)
    assert quarter_V.shape == (64,) and set(quarter_V[count_V > 0]) <= {0, 1, 2, 3}
    order = np.argsort(entropy_V[count_V > 0])
    assert (np.diff(quarter_V[count_V > 0][order]) >= 0).all()
    held = np.bincount(quarter_V, count_V, 4)
    assert held.sum() == count_V.sum()
    # every other token is an `a`, whose successor is open; all others decide theirs
    of_a = np.argmax(count_V)
    assert quarter_V[of_a] >= 2 and entropy_Q[quarter_V[of_a]] == pytest.approx(entropy_V[of_a], rel=0.01)
    assert entropy_Q[0] < 0.01


def test_a_training_that_is_too_short_for_its_decay_is_refused_before_it_begins(words, tmp_path):
    made = config.smoke()
    made.task.path = str(words)
    made.optim.least_decay = 1.0
    said = r"steps=8: too few .* 1 / \(learning_rate=0.00333333 x weight_decay=1\) = 300 steps; .*wants 300 or more"
    with pytest.raises(ValueError, match=said):
        train_variants(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_text_one_line_says_how_to_give_one():
    with pytest.raises(ValueError, match=r"^task.path='', .*--config.task.path=FILE"):
        configs.experiment(configs.variants(config.cpu())["small_8"])


@pytest.mark.long
def test_study_goes_from_a_text_to_a_page(words, tmp_path):
    made = synthetic.reproduce("scaling_law", tmp_path / "run", f"--config.task.path={words}")
    rows = {row["id"]: row for row in json.loads((made / "claims.json").read_text())["claims"]}
    assert all(rows[id]["measured"] is not None for id in ("SL1", "SL2a", "SL2b", "SL3", "SL5a", "SL5b", "SL6"))
    page = Path(made / "report" / "index.html").read_text()
    assert all(title in page for title in ("Loss by size", "Where small complexity gains", "Learning rates"))
