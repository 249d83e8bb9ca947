"""The study of concept graphs from the command line to its page, its claims, and the mosaic of what is drawn."""

import jax
import numpy as np
import pytest
import xarray as xr

from lab import config as configs
from lab.cli import main
from lab.configs import base, composition
from lab.configs import concept_graph as config
from lab.disk.load import load
from lab.studies import claims
from lab.studies import concept_graph as study
from lab.tasks import shapes

GAMMAS = (0.3, 0.5, 0.7, 0.9)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts") / "w"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):  # optax raises whole numbers
        patch.setattr(study.attributes, "STEPS", 100)
        main(["reproduce", "concept_graph", "--preset=smoke", f"--workdir={folder}"])
    return folder


def test_score_is_the_product_of_accuracies_by_class_and_its_means_are_of_seen_and_unseen(root):
    dataset = load(root / "main")
    accuracy = dataset["pictures.accuracy"]
    # shares of 32 pictures are exact in float32; a product of three rounds twice, a mean of four four times
    np.testing.assert_allclose(dataset["pictures.score"], accuracy.prod("attribute"), rtol=4 * 2.0**-23)
    for name, classes in (("seen", ["000", "100", "010", "111"]), ("unseen", ["001", "011", "110", "101"])):
        mean = dataset["pictures.score"].sel({"class": classes}).mean("class")
        np.testing.assert_allclose(dataset[f"pictures.{name}"], mean, rtol=8 * 2.0**-23)


def test_judge_of_these_tiny_pictures_tells_colour_and_size(root):
    judge = load(root / "main")["pictures.judge"].isel(gamma=0, seed=0).squeeze()
    assert (judge.sel(attribute=["colour", "size"]) > 0.97).all() and judge.sel(attribute="shape") > 0.6


def test_page_shows_every_picture(root):
    figures = {path.name for path in (root / "report" / "figures").iterdir()}
    assert {"main-drawn.png", "main-score.png", "main-loss.png"} <= figures


def measured(unseen_G, seen_G=(0.95,) * 4, judge=0.99):
    """Three seeds that are alike."""
    axes, grid = ("gamma", "weight_decay", "learning_rate", "seed"), (4, 1, 1, 3)

    def over(values_G):
        return ("snapshot", *axes), np.broadcast_to(np.asarray(values_G)[None, :, None, None, None], (1, *grid))

    ds = xr.Dataset(
        {
            "pictures.unseen": over(unseen_G),
            "pictures.seen": over(seen_G),
            "pictures.judge": (("snapshot", *axes, "attribute"), np.full((1, *grid, 3), judge)),
            "diverged_at": (axes, np.full(grid, -1)),
        },
        {"snapshot": [100], "gamma": [*GAMMAS], "seed": [0, 1, 2], "attribute": [*shapes.CONCEPTS]},
    )
    return {"main": ds}


def verdicts(datasets):
    return {row["id"]: row["verdict"] for row in claims.evaluate(study.CLAIMS, datasets, "c")}


@pytest.mark.parametrize(
    ("unseen_G", "verdict"),
    [
        ((0.1, 0.2, 0.3, 0.4), "holds"),
        ((0.1, 0.3, 0.2, 0.4), "holds"),  # one neighbouring pair swapped: 0.8
        ((0.2, 0.3, 0.4, 0.1), "does not hold"),  # -0.2
        ((0.5, 0.5, 0.5, 0.5), "does not hold"),
    ],
)
def test_claim_holds_where_the_unseen_score_rises_in_rank(unseen_G, verdict):
    assert verdicts(measured(unseen_G))["G1"] == verdict
    shuffled = measured(unseen_G)["main"].isel(gamma=[2, 0, 3, 1])
    assert verdicts({"main": shuffled})["G1"] == verdict


def test_one_rate_below_is_enough_to_fail_the_others():
    fine = verdicts(measured(GAMMAS))
    assert fine == {"G1": "holds", "G2": "holds", "G3": "holds"}
    assert verdicts(measured(GAMMAS, seen_G=(0.95, 0.89, 0.95, 0.95))) == fine | {"G2": "does not hold"}
    assert verdicts(measured(GAMMAS, judge=0.96)) == fine | {"G3": "does not hold"}


def test_diverged_rows_leave_claims_unmeasured_and_one_rate_lacks_a_second():
    datasets = measured(GAMMAS)
    datasets["main"]["diverged_at"][0, 0, 0, 0] = 5
    assert set(verdicts(datasets).values()) == {"not measured"}
    one = {"main": measured(GAMMAS)["main"].isel(gamma=[0])}
    assert verdicts(one)["G1"] == "not measured"


def test_mosaic_lays_out_classes_down_and_examples_across():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4, 3))
    image[1, 2] = np.nan
    mosaic = study._mosaic(image)
    assert mosaic.shape == (2 * 5, 3 * 5, 3)
    np.testing.assert_array_equal(mosaic[5:9, 5:9], (image[1, 1] + 1) / 2)
    assert (mosaic[4] == 1).all() and (mosaic[5:9, 10:14] == 0.5).all()
    assert study._label("011", ("000",)) == "011 small blue circle *"


def test_other_tasks_and_models_and_pictures_noised_once_are_refused():
    (variant, *_) = configs.variants(composition.smoke()).values()
    with pytest.raises(ValueError, match="concept_graph measures a model of shapes, not of Composition"):
        study.measures(configs.experiment(variant))
    changed = config.smoke()
    changed.model = {**composition.smoke().model}
    with pytest.raises(ValueError, match=r"Transformer reads tokens, Shapes gives noised pictures; .* read by unet$"):
        configs.experiment(configs.variants(changed)["main"])
    changed = config.smoke()
    changed.train_size = 64
    with pytest.raises(ValueError, match=r"train_size=64: would fix noise .* task\.images_per_class"):
        configs.experiment(configs.variants(changed)["main"])


@pytest.mark.parametrize("preset", base.presets(config))
def test_every_preset_describes_an_experiment(preset):
    (variant,) = configs.variants(config.get_config(preset)).values()
    assert configs.experiment(variant).task.size == {"smoke": 8, "cpu": 16, "gpu": 32, "paper": 64}[preset]
    assert len(configs.grid(variant)) == {"smoke": 2, "cpu": 12, "gpu": 35, "paper": 35}[preset]
