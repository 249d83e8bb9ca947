import re

import numpy as np
import pytest
import xarray as xr

from lab.runs import MissingData, Run, Runs, first_scores, middle

STEPS = [0, 10, 20]
DECAYS, RATES = [0.0, 0.01, 1.0], [1e-3, 2e-3, 4e-3]
USUAL = {"weight_decay": 0.01, "noise": 0.0}


@pytest.fixture
def dataset():
    """Each cell of `a` says where it stands: step + 100 seed + 1000 gamma index + 1e4 decay index + 1e5 rate index."""
    sizes = {"step": 3, "gamma": 2, "weight_decay": 3, "learning_rate": 3, "seed": 2}
    step, gamma, decay, rate, seed = np.meshgrid(*(np.arange(n) for n in sizes.values()), indexing="ij")
    place = 10 * step + 100 * seed + 1000 * gamma + 1e4 * decay + 1e5 * rate
    coords = {"step": STEPS, "gamma": [0.8, 0.3], "weight_decay": DECAYS, "learning_rate": RATES, "seed": [0, 1]}
    rows = tuple(sizes)[1:]
    variables = {"a": (tuple(sizes), place), "diverged_at": (rows, np.full([sizes[axis] for axis in rows], -1))}
    return xr.Dataset(variables, coords)


def test_final_is_the_last_evaluation_at_the_usual_places_in_the_order_of_gamma(dataset):
    values = Run(dataset, USUAL).final("a")
    assert values.dims == ("seed", "gamma")
    # gamma 0.3 is index 1 in the file; decay 0.01 and the middle rate are index 1
    expected = [[20 + 100 * seed + 1000 * gamma + 1e4 + 1e5 for gamma in (1, 0)] for seed in (0, 1)]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("usual", "at", "decay", "rate"),
    [
        ({}, {}, 1, 1),
        ({"weight_decay": min, "learning_rate": max}, {}, 0, 2),
        ({"weight_decay": 0.5}, {}, 1, 1),  # the grid does not have it: its middle
        (USUAL, {"weight_decay": 1.0, "learning_rate": min}, 2, 0),
        (USUAL, {"weight_decay": 1, "noise": 0.0}, 2, 1),  # an axis that is not varied, at its usual value
    ],
)
def test_places(dataset, usual, at, decay, rate):
    values = Run(dataset, usual).final("a", **at)
    assert float(values[0, 1]) == 20 + 1e4 * decay + 1e5 * rate


@pytest.mark.parametrize(
    ("name", "at", "text"),
    [
        ("b", {}, "b"),
        ("a", {"weight_decay": 0.5}, "weight decay 0.5 (the grid has 0, 0.01, 1)"),
        ("a", {"noise": 0.1}, "an axis noise"),
        ("a", {"label_noise": 0.0}, "an axis label noise"),
    ],
)
def test_what_is_missing_is_named(dataset, name, at, text):
    with pytest.raises(MissingData, match=f"^{re.escape(text)}$"):
        Run(dataset, USUAL).final(name, **at)


def test_a_variable_is_there_as_loaded_or_missing(dataset):
    run = Run(dataset, USUAL)
    assert run["a"].identical(run.dataset["a"])
    with pytest.raises(MissingData, match=r"^b$"):
        run["b"]


def test_rows_that_diverged_are_nan_from_that_step_on(dataset):
    dataset["diverged_at"].loc[{"gamma": 0.3, "seed": 1}] = 10
    run = Run(dataset, USUAL)
    over_time = run.over_time("a")
    assert over_time.dims == ("seed", "gamma", "step")
    np.testing.assert_array_equal(over_time.isnull().sum("step"), [[0, 0], [2, 0]])
    assert run.final("a").isnull().sum() == run.best("a").isnull().sum() == 1
    assert bool(run.best("a").isnull().sel(gamma=0.3, seed=1))


def test_rows_that_diverged_keep_what_is_computed_from_their_start(dataset):
    dataset["limit"] = dataset["a"].rename(step="time").assign_coords(time=[0, 1, 2])
    healthy = Run(dataset, USUAL).final("a")
    dataset["diverged_at"][:] = 7
    run = Run(dataset, USUAL)
    assert run.over_time("a").isnull().any() and run.over_time("limit").notnull().all()
    np.testing.assert_array_equal(run.final("limit"), healthy)


def test_best_is_the_largest_of_all_evaluations(dataset):
    values = Run(dataset, USUAL).best("a")
    np.testing.assert_array_equal(values, Run(dataset, USUAL).over_time("a").max("step"))
    dataset["a"] = -dataset["a"]
    np.testing.assert_array_equal(Run(dataset, USUAL).best("a"), -values + 20)


def test_final_is_the_last_time_that_was_measured_even_where_every_row_diverged_since(dataset):
    dataset["a"] = dataset["a"].where(dataset.step < 20)
    assert float(Run(dataset, USUAL).final("a")[0, 1]) == 10 + 1e4 + 1e5
    dataset["diverged_at"][:] = 5
    assert Run(dataset, USUAL).final("a").isnull().all()


def test_what_is_kept_is_kept(dataset):
    run = Run(dataset, USUAL)
    assert run.final("a", keep=("weight_decay", "seed", "gamma")).dims == ("weight_decay", "seed", "gamma")
    assert run.place(keep=("seed", "gamma", "weight_decay"), learning_rate=max) == {"learning_rate": 2}
    assert run.final("a", keep=("gamma",), seed=1, gamma=0.8).ndim == 0  # what is asked for does not stay


def test_rows_of_no_product_are_selected_like_those_of_a_product(dataset):
    rows = [axis for axis in dataset["diverged_at"].dims]
    listed = dataset.stack(row=rows).reset_index("row").isel(row=slice(1, None))  # one row is not there
    values, expected = Run(listed, USUAL).final("a"), Run(dataset, USUAL).final("a")
    np.testing.assert_array_equal(values.transpose("seed", "gamma"), expected)
    absent = Run(listed, USUAL).final("a", weight_decay=0.0, learning_rate=1e-3)
    assert absent.isnull().sum() == 1 and bool(absent.isnull().sel(gamma=0.8, seed=0))


def test_numbers_that_no_row_has_stay(dataset):
    dataset["published"] = xr.DataArray([1.0, 2.0], dims="pair")
    dataset["diverged_at"][:] = 0
    np.testing.assert_array_equal(Run(dataset, USUAL).final("published"), [1, 2])


def test_variants_by_name(dataset):
    runs = Runs({"one": dataset, "two": dataset}, USUAL)
    assert [*runs] == ["one", "two"] and len(runs.where(lambda name, run: name == "two")) == 1
    assert runs["one"].usual == USUAL
    with pytest.raises(MissingData, match="variant three"):
        runs["three"]
    assert "three" not in runs and runs.get("two") is runs["two"]


def test_numbered_variants_are_those_of_a_prefix_and_a_whole_number_in_its_order(dataset):
    runs = Runs(dict.fromkeys(("large_64", "large_8", "large_8m", "very_large_4", "large"), dataset))
    assert list(runs.numbered("large")) == [8, 64] and runs.numbered("large")[8] is runs["large_8"]
    assert runs.numbered("small") == {}


def test_what_is_of_all_variants_is_not_had_of_some(dataset):
    runs = Runs({"one": dataset}, USUAL).without({"two": "not trained yet"})
    assert runs["one"].usual == USUAL
    ways = (lambda: runs["two"], lambda: "two" in runs, lambda: [*runs], lambda: runs.where(lambda name, run: True),
            lambda: [run for run in runs.values()], lambda: runs.only())  # fmt: skip
    for ask in ways:
        with pytest.raises(MissingData, match=r"variant two \(not trained yet\)"):
            ask()


@pytest.mark.parametrize(("values", "expected"), [([3, 1, 2], 2), ([1, 4, 2, 3], 3), ([5], 5)])
def test_middle(values, expected):
    assert middle(np.array(values)) == expected


def test_first_score_of_a_split_is_its_loss_only_where_it_has_no_other():
    names = ["test.loss", "test.r2", "test.a.loss", "ood.loss", "train.z", "train.b"]
    assert first_scores(names, ("train", "test", "ood", "none")) == ["train.b", "test.r2", "ood.loss"]
