"""The report's pictures of measurements: what is there is drawn, what is not is left out, whatever the grid."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from shown import titles

from lab.report import catalogue, page
from lab.runs import MissingData, Run, Runs

TARGET = "ood_43.reasoning"
GRID = {"gamma": [0.3, 0.5, 0.8], "weight_decay": [0.01, 1.0], "learning_rate": [1e-3], "seed": [0, 1]}
SNAPSHOTS = [0, 10, 40]
AXES = {
    "matrix": ["embed/embedding", "in/kernel"], "kernel": ["in/kernel", "head/kernel"], "alpha": [-0.5, 0.0, 0.5],
    "radius": [0.05, 0.1], "relative_radius": [0.5, 1.0], "sigma": [0.1, 0.2, 0.4], "query_token": [3, 1, 7],
    "key_token": [3, 1, 7], "state": ["embed", "block_0/resid_post", "block_1/resid_post"],
}  # fmt: skip
SIZES = {"index": 4, "eigenvalue": 2, "probe": 2, "node_index": 5, "position": 4, "query": 4, "layer": 2, "head": 2}
SIZES |= {dim: len(values) for dim, values in AXES.items()}
# variable -> its axes beside those of the grid
OVER_TIME = {
    "rank.stable": ("matrix",), "rank.effective": ("matrix",), "spectrum.matrix": ("matrix", "index"),
    "directions.n_groups": ("kernel",), "directions.weighted_effective_directions": ("kernel",),
    "norm.log_spectral_product": (), "norm.log_path": (), "norm.log_frobenius_whole": (), "laziness.turn_whole": (),
    "laziness.distance_whole": (), "norm.log_distance_whole": (), "ntk.alignment": (), "focus.second_ratio": (),
    "focus.attention": ("layer", "query_token", "key_token"), "sparsity.active": ("layer",),
}  # fmt: skip
AT_THE_END = {
    "sharpness.top": ("eigenvalue",), "sharpness.bottom": ("eigenvalue",), "sharpness.trace": (),
    "sharpness.adam_edge_at_peak": (),
    "density.node": ("probe", "node_index"), "density.weight": ("probe", "node_index"),
    "flatness.line": ("alpha",), "flatness.line_error": ("alpha",), "flatness.sam": ("radius",),
    "flatness.worst_adaptive": ("relative_radius",), "noise.weight_loss": ("sigma",), "noise.input_loss": ("sigma",),
    "noise.weight_accuracy": ("sigma",), "noise.weight_accuracy_error": ("sigma",),
    "noise.input_accuracy": ("sigma",), "noise.input_accuracy_error": ("sigma",),
    "learning_coefficient.coefficient": (), "quantization.description_length": (), "subspace.dimension": (),
    "lens.mrr": ("state", "position"), "tracing.restored": ("state", "position"),
    "edges.logit": ("layer", "head", "query", "position"),
}  # fmt: skip
# picture -> the measures without which it is not there
PICTURES = {
    "spectrum": ("spectrum",), "density": ("density", "sharpness"), "line": ("flatness",), "noise": ("noise",),
    "focus": ("focus",), "lens": ("lens",), "tracing": ("tracing",), "edges": ("edges",),
}  # fmt: skip
OF_A_PRODUCT = {"training", "sharpness"}
OF_ALL_ROWS = OF_A_PRODUCT | {"predictors"}


def dataset():
    """As `lab.load` gives it, with everything measured."""
    draw = np.random.default_rng(0)
    shape = tuple(map(len, GRID.values()))
    variables = {"diverged_at": (tuple(GRID), np.full(shape, -1)), TARGET: (("step", *GRID), draw.random((2, *shape)))}
    for name, dims in (OVER_TIME | AT_THE_END).items():
        before = ("snapshot",) if name in OVER_TIME else ()
        sizes = (*(len(SNAPSHOTS) for _ in before), *shape, *(SIZES[dim] for dim in dims))
        variables[name] = ((*before, *GRID, *dims), draw.random(sizes).astype(np.float32))
    config = {"optim": {"schedule": "constant"}}
    made = xr.Dataset(variables, GRID | AXES | {"snapshot": SNAPSHOTS, "step": [20, 40]}, {"config": config})
    made["spectrum.matrix"][..., 1, 2:] = np.nan  # a smaller matrix
    made["edges.logit"][:] = made["edges.logit"].where(made["query"] >= made["position"])
    made["ntk.alignment"][1] = np.nan  # taken at fewer snapshots than others
    return made


def as_rows(made):
    """The same rows as a grid that is no product of axes."""
    stacked = made.stack(row=tuple(GRID)).reset_index("row")
    return stacked.transpose("snapshot", "step", "row", ...)


def only_measured(made, where):
    """NaN for the rows that were not measured; training knows all of them."""
    return made.assign({name: made[name].where(where) for name in (*OVER_TIME, *AT_THE_END)})


def drawn(made):
    """Pictures by what follows the variant and `measured` in their names."""
    sections = catalogue.sections(Runs({"unseen": made}), TARGET)
    pictures = [picture for section in sections for picture in section.pictures]
    assert all(picture.name.startswith("unseen-measured-") for picture in pictures)
    return {picture.name.removeprefix("unseen-measured-"): picture for picture in pictures}


def without(made, leave_out):
    """Without the measures whose names `leave_out` says yes to."""
    return made.drop_vars([name for name in (*OVER_TIME, *AT_THE_END) if leave_out(name.split(".")[0])])


class Undrawn:
    """In place of a module: its functions give empty figures."""

    def __getattr__(self, name):
        return lambda *_, **__: Figure()


def picture(made, name):
    """The one of that name, drawn from its measures alone."""
    return drawn(without(made, lambda measure: measure not in PICTURES.get(name, (name,))))[name]


def heights(picture):
    return [line.get_ydata() for ax in picture.figure.axes for line in ax.lines]


def test_everything_that_was_measured_is_drawn_once():
    assert set(drawn(dataset())) == {*PICTURES, *OF_ALL_ROWS}


@pytest.mark.parametrize("measure", sorted({name.split(".")[0] for name in OVER_TIME | AT_THE_END}))
def test_measure_that_was_not_taken_leaves_out_its_own_pictures_and_no_others(measure, monkeypatch):
    """What is left is gathered and not drawn, which takes most of the time: drawing all of it is tested above."""
    for module in ("figures", "maps", "measures"):
        monkeypatch.setattr(catalogue, module, Undrawn())
    made = without(dataset(), lambda other: other == measure)
    left = {name for name, needs in PICTURES.items() if measure not in needs}
    assert set(drawn(made)) == left | OF_ALL_ROWS


@pytest.mark.parametrize("measure", sorted({name.split(".")[0] for name in OVER_TIME | AT_THE_END}))
def test_measure_that_is_alone_is_drawn_alone(measure):
    made = without(dataset(), lambda other: other != measure)
    there = set(drawn(made))
    assert there - OF_ALL_ROWS == {name for name, needs in PICTURES.items() if set(needs) == {measure}}
    assert ("training" in there) == (measure in {"rank", "directions", "laziness", "ntk", "focus", "sparsity"})
    assert ("sharpness" in there) == (measure in {"sharpness", "learning_coefficient"})
    # one measure predicts better than no other: there must be two
    predicting = [label for label, (of, _) in catalogue.PREDICTORS.items() if of in made]
    assert ("predictors" in there) == (len(predicting) > 1)


def test_nothing_measured_gives_no_section():
    bare = dataset().drop_vars([*OVER_TIME, *AT_THE_END])
    assert catalogue.sections(Runs({"unseen": bare, "other": bare}), TARGET) == []
    titles = [section.title for section in catalogue.sections(Runs({"unseen": bare, "other": dataset()}), TARGET)]
    assert titles == ["Measured (other)"]


def test_grid_that_is_no_product_has_the_same_pictures():
    product, rows = drawn(dataset()), drawn(as_rows(dataset()))
    assert set(rows) == set(product)
    for name in PICTURES:
        for found, expected in zip(heights(rows[name]), heights(product[name]), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert titles(rows[name].figure) == titles(product[name].figure)


@pytest.mark.parametrize("arrange", [lambda made: made, as_rows], ids=["product", "rows"])
def test_rows_compared_are_those_with_the_lowest_and_the_highest_target(arrange):
    made = dataset()
    target = made[TARGET].isel(step=-1).values
    ends = [np.unravel_index(at, target.shape) for at in (target.argmin(), target.argmax())]
    line = picture(arrange(made), "line")
    for found, end in zip(heights(line), ends, strict=True):
        np.testing.assert_array_equal(found, made["flatness.line"].values[end])
    text = line.figure.legends[0].get_texts()[0].get_text()
    gamma, decay, _, seed = (values[at] for values, at in zip(GRID.values(), ends[0], strict=True))
    assert text == f"lowest {TARGET} ({target.min():.2f})\ngamma {gamma:g}, weight decay {decay:g}, seed {seed}"


def test_rows_compared_are_measured_and_healthy():
    made = dataset()
    made["diverged_at"][:] = made["diverged_at"].where(made[TARGET].isel(step=-1) > made[TARGET].isel(step=-1).min(), 5)
    partly = only_measured(made, made.gamma == 0.5)
    rest = made[TARGET].isel(step=-1).sel(gamma=0.5).where(made["diverged_at"].sel(gamma=0.5) < 0)
    legend = [text.get_text() for text in picture(partly, "line").figure.legends[0].get_texts()]
    for label, value in zip(("lowest", "highest"), (rest.min(), rest.max()), strict=True):
        assert any(text.startswith(f"{label} {TARGET} ({float(value):.2f})") for text in legend)


def test_without_a_target_the_ends_of_gamma_are_compared():
    legend = picture(dataset().drop_vars(TARGET), "line").figure.legends[0].get_texts()
    assert [text.get_text().split("\n")[0] for text in legend] == ["lowest gamma (0.30)", "highest gamma (0.80)"]


@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine"])
def test_caption_of_sharpness_says_that_the_rate_had_decayed_only_where_it_had(schedule):
    made = dataset().assign_attrs(config={"optim": {"schedule": schedule}})
    assert ("had decayed by then" in picture(made, "sharpness").caption) == (schedule == "warmup_cosine")


def images(picture):
    return [ax.images[0].get_array() for ax in picture.figure.axes if ax.images]


@pytest.mark.parametrize("taken", [[40], [10, 40], [0, 10, 40]])
def test_attention_is_drawn_at_the_first_middle_and_last_snapshot_that_it_was_taken_at(taken):
    """Other measures were taken at all three."""
    made = dataset()
    made["focus.attention"][:] = made["focus.attention"].where(made.snapshot.isin(taken))
    focus = picture(made, "focus")
    expected = list(dict.fromkeys((taken[0], taken[len(taken) // 2], taken[-1])))
    assert [title.split("step ")[1] for title in titles(focus.figure)] == [str(step) for step in expected] * 2
    target = made[TARGET].isel(step=-1).stack(row=tuple(GRID))
    ends = [target.isel(row=int(at)).row.item() for at in (target.argmin("row"), target.argmax("row"))]
    one = made["focus.attention"].isel(layer=0)
    shown = [one.sel(dict(zip(GRID, end, strict=True))).sel(snapshot=step).values for end in ends for step in expected]
    for image, values in zip(images(focus), shown, strict=False):  # then the colour bar
        np.testing.assert_array_equal(image, values)


def test_rows_that_were_not_measured_are_left_out_of_what_is_drawn():
    made = dataset()
    some = only_measured(made, (made.gamma != 0.5) & (made.weight_decay == 0.01))
    assert set(drawn(some)) == {*PICTURES, *OF_ALL_ROWS} - {"predictors"}  # of four rows
    table = catalogue.predictors(Run(some), TARGET)
    assert (table["n_rows"] == 4).all() and (table["n_missing"] == 8).all()
    assert drawn(only_measured(made, made.gamma > 1)).keys() <= OF_A_PRODUCT


def test_single_seed_and_single_row_are_drawn():
    made = dataset()
    for one_seed in (made.isel(seed=[0]), as_rows(made.isel(seed=[0]))):
        assert set(drawn(one_seed)) >= {*PICTURES, "predictors"}
        table = catalogue.predictors(Run(one_seed), TARGET)
        assert np.isnan(table["low"]).all() and (table["n_rows"] == 6).all()  # nothing to resample
    single = made.isel({dim: [0] for dim in GRID})
    for one in (single, as_rows(single)):
        pictures = drawn(one)
        assert set(pictures) >= set(PICTURES)
        assert len(heights(pictures["line"])) == 1


def test_diverged_row_is_not_among_those_that_predict():
    made = dataset()
    made["diverged_at"][0, 0, 0, 0] = 5
    table = catalogue.predictors(Run(made), TARGET)
    assert (table["n_rows"] == 11).all() and (table["n_diverged"] == 1).all()
    assert set(drawn(made)) == {*PICTURES, *OF_ALL_ROWS}


COLUMNS = {  # label in the table -> numbers of the last snapshot that stand for it, by hand
    "path norm": lambda made: made["norm.log_path"].values[-1],
    "distance from init": lambda made: made["norm.log_distance_whole"].values[-1],
    "relative distance": lambda made: made["laziness.distance_whole"].values[-1],
    "stable rank, mean": lambda made: made["rank.stable"].values[-1].mean(axis=-1),
    "neuron groups, sum": lambda made: made["directions.n_groups"].values[-1].sum(axis=-1),
    "tangent kernel alignment": lambda made: made["ntk.alignment"].values[0],
    "sharpness": lambda made: made["sharpness.top"].values[..., 0],
    "loss under weight noise": lambda made: made["noise.weight_loss"].values[..., 1],
    "SAM sharpness": lambda made: made["flatness.sam"].values[..., 0],
    "subspace dimension": lambda made: made["subspace.dimension"].values,
}


@pytest.mark.parametrize("arrange", [lambda made: made, as_rows], ids=["product", "rows"])
def test_predictor_is_spearmans_correlation_with_the_last_evaluation(arrange):
    made = dataset()
    made["ntk.alignment"][2] = np.nan  # last measured before training
    made["subspace.dimension"][0] = np.inf  # above all that were tried: ties
    table = catalogue.predictors(Run(arrange(made)), TARGET)
    assert set(table["measure"].values) == set(catalogue.PREDICTORS)
    assert table.attrs["knobs"] == ("gamma", "weight_decay", "learning_rate")
    target = made[TARGET].values[-1].ravel()
    for label, column in COLUMNS.items():
        expected = spearmanr(column(made).ravel(), target).statistic
        found = table["value"].sel(measure=label, coefficient="spearman", control="none")
        # ranks are exact; a square root, a division and sums of 12 numbers
        assert float(found) == pytest.approx(expected, abs=32 * 2.0**-52), label


@pytest.mark.parametrize("arrange", [lambda made: made, as_rows], ids=["product", "rows"])
def test_rows_of_a_cell_agree_in_every_column_of_the_grid_but_the_seed(arrange):
    """A measure that says what gamma_qk says predicts nothing beyond it."""
    halves = [dataset(), dataset()]
    made = xr.concat(halves, xr.IndexVariable("gamma_qk", [0.4, 0.9])).transpose("snapshot", "step", "gamma_qk", ...)
    made["norm.log_path"][:] = made["norm.log_path"] * 0 + made["gamma_qk"]
    made[TARGET][:] = made[TARGET] * 0 + made["gamma_qk"]
    table = catalogue.predictors(Run(arrange(made)), TARGET)
    assert sorted(table.attrs["knobs"]) == ["gamma", "gamma_qk", "learning_rate", "weight_decay"]
    value = table["value"].sel(measure="path norm", coefficient="spearman")
    assert float(value.sel(control="none")) == pytest.approx(1, abs=32 * 2.0**-52)
    assert np.isnan(value.sel(control="knobs"))


def test_measure_follows_the_target_where_it_is_made_to():
    made = dataset()
    made["norm.log_path"][-1] = 2 * made[TARGET][-1].values
    made["norm.log_frobenius_whole"][-1] = -made[TARGET][-1].values
    value = catalogue.predictors(Run(made), TARGET)["value"].sel(coefficient="spearman", control="none")
    assert float(value.sel(measure="path norm")) == pytest.approx(1, abs=32 * 2.0**-52)
    assert float(value.sel(measure="Frobenius norm")) == pytest.approx(-1, abs=32 * 2.0**-52)


@pytest.mark.parametrize("absent", [[TARGET], [*OVER_TIME, *AT_THE_END]])
def test_there_are_no_predictors_without_a_target_or_a_measure(absent):
    with pytest.raises(MissingData):
        catalogue.predictors(Run(dataset().drop_vars(absent)), TARGET)
    assert "predictors" not in drawn(dataset().drop_vars(absent))


def test_page_takes_the_pictures_of_several_variants(tmp_path):
    """Names are unique and fit for files, and every kind of figure can be drawn."""
    lens = without(dataset(), lambda measure: measure != "lens")
    sections = catalogue.sections(Runs({"unseen": dataset(), "wrong_3-layers": lens}), TARGET)
    path = page.write_page(tmp_path, page.Page("Report", "", {}, [], sections, []))
    names = {file.stem for file in (path.parent / "figures").glob("*.png")}
    kinds = {*PICTURES, *OF_ALL_ROWS}
    assert names == {f"unseen-measured-{kind}" for kind in kinds} | {"wrong_3-layers-measured-lens"}
