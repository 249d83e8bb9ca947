"""The study of concept graphs from the command line to its page, its claims, and the mosaic of what is drawn."""

import functools

import numpy as np
import pytest
import synthetic
from synthetic import Grid, reproduce

from lab.disk.load import load
from lab.studies import concept_graph as study
from lab.tasks import shapes

measured = functools.partial(synthetic.measured, study.STUDY)

GAMMAS = (0.3, 0.5, 0.7, 0.9)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.attributes, "STEPS", 100)
        return reproduce("concept_graph", tmp_path_factory.mktemp("concepts") / "w")


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


def grid(unseen_G=GAMMAS, seen_G=(0.95,) * 4, judge=0.99):
    made = Grid(gamma=GAMMAS)
    made.put("pictures.unseen", np.array(unseen_G), "snapshot").put("pictures.seen", np.array(seen_G), "snapshot")
    return made.put("pictures.judge", np.full((5, 4, 3), judge), "snapshot", dims={"attribute": shapes.CONCEPTS})


@pytest.mark.parametrize(
    ("unseen_G", "correlation"),
    [((0.1, 0.2, 0.3, 0.4), 1), ((0.1, 0.3, 0.2, 0.4), 0.8), ((0.2, 0.3, 0.4, 0.1), -0.2), ((0.5,) * 4, 0)],
)
def test_rise_of_the_unseen_score_is_in_rank(unseen_G, correlation):
    np.testing.assert_allclose(measured(study.unseen_rises.id, main=grid(unseen_G)).values_S, correlation, atol=1e-12)


def test_one_rate_below_is_enough_to_fail_the_others():
    low = measured(study.seen_is_generated.id, main=grid(seen_G=(0.95, 0.89, 0.95, 0.95)))
    assert low.verdict == "does not hold" and (low.values_S == 0.89).all()
    judged = grid()
    judged.put("pictures.judge", [0.96, 0.99, 0.99], "snapshot", dims={"attribute": shapes.CONCEPTS}, gamma=0.5)
    assert (measured(study.judge_can_tell.id, main=judged).values_S == 0.96).all()


def test_seed_with_a_diverged_row_is_missing_and_one_rate_lacks_a_second():
    diverged = grid().diverge(5, gamma=0.3, seed=0)
    for claim in study.STUDY.claims:
        np.testing.assert_array_equal(np.isnan(measured(claim.id, main=diverged).values_S), [True] + [False] * 4)
    alone = grid()
    alone.dataset = alone.dataset.isel(gamma=[0])
    assert measured(study.unseen_rises.id, main=alone).note == "This run lacks a second gamma."


def test_mosaic_lays_out_classes_down_and_examples_across():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4, 3))
    image[1, 2] = np.nan
    mosaic = study._mosaic(image)
    assert mosaic.shape == (2 * 5, 3 * 5, 3)
    np.testing.assert_array_equal(mosaic[5:9, 5:9], (image[1, 1] + 1) / 2)
    assert (mosaic[4] == 1).all() and (mosaic[5:9, 10:14] == 0.5).all()
    assert study._label("011", ("000",)) == "011 small blue circle *"
