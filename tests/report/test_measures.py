"""Every number a picture shows is read back from its axes and compared with the arrays it was drawn from."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from numpy.testing import assert_allclose, assert_array_equal
from shown import band_at, heading, keys, lines

from lab.report import maps as heatmaps
from lab.report import measures, style
from lab.runs import MissingData

GAMMA = np.array([0.8, 0.3, 0.5])  # not in order
STEPS = np.array([0, 10, 100, 1000])
AXES = ("gamma", "weight_decay", "seed")
MATRICES = ["block_0/attn/query/kernel", "embed/token/embedding"]
MEASURES = ["path norm", "sharpness", "stable rank", "margin"]


def synthetic():
    """A dataset as `lab.load` gives it; the row (gamma 0.3, decay 0, seed 1) diverged at step 50."""
    rng = np.random.default_rng(0)
    grid = (3, 2, 3)
    ds = xr.Dataset(
        {
            "sharpness.top": (("snapshot", *AXES), 10 ** rng.uniform(-2, 3, (4, *grid))),
            "focus.share": (("snapshot", *AXES), rng.uniform(0.2, 0.9, (4, *grid))),
            "focus.distance": (("snapshot", *AXES), rng.uniform(0.1, 0.2, (4, *grid))),
            "rank.stable": (("snapshot", *AXES, "matrix"), rng.uniform(4, 40, (4, *grid, 2))),
            "diverged_at": (AXES, np.full(grid, -1)),
        },
        {"snapshot": STEPS, "gamma": GAMMA, "weight_decay": [0.0, 1.0], "seed": [0, 1, 2], "matrix": MATRICES},
    )
    ds["diverged_at"][1, 0, 1] = 50
    return ds


def spectra(seed):
    """Singular values of a 6 x 6 and a 4 x 6 matrix, the second padded with NaN."""
    s = -np.sort(-np.random.default_rng(seed).exponential(size=(2, 6)), axis=1)
    s[1, 4:] = np.nan
    return xr.DataArray(s, dims=("matrix", "index"), coords={"matrix": MATRICES})


def table():
    """As `lab.analysis.complexity.predictors` makes it, without a correlation for the third measure."""
    value = np.zeros((4, 2, 2))
    value[:, 0, 0] = [-0.2, 0.7, np.nan, 0.1]  # spearman, over all rows
    value[:, 0, 1] = [0.3, -0.1, np.nan, 0.25]
    value[:, 1] = [[-0.4, 0.1], [0.2, 0.1], [np.nan, np.nan], [0.5, 0.1]]
    dims = ("measure", "coefficient", "control")
    return xr.Dataset(
        {"value": (dims, value), "low": (dims, value - 0.15), "high": (dims, value + 0.1)}
        | {"n_rows": ("measure", [17, 17, 17, 16]), "n_diverged": ("measure", [1, 1, 1, 1])},
        {"measure": MEASURES, "coefficient": ["spearman", "kendall"], "control": ["none", "knobs"]},
        {"knobs": ("gamma", "weight_decay"), "over": "seed", "level": 0.9},
    )


def test_line_of_each_gamma_over_time_is_the_median_over_seeds():
    ds = synthetic()
    figure = measures.against_gamma_over_time(ds, ["sharpness.top", "rank.stable"], weight_decay=0, matrix=MATRICES[1])
    arrays = [ds["sharpness.top"].values[:, :, 0].copy(), ds["rank.stable"].values[:, :, 0, :, 1].copy()]
    for ax, array, name in zip(figure.axes, arrays, ["sharpness.top", "rank.stable"], strict=True):
        array[2:, 1, 1] = np.nan  # steps 100 and 1000 come after the divergence at 50
        for line, g in zip(lines(ax, "median"), np.argsort(GAMMA), strict=True):
            assert_array_equal(line.get_xdata(), STEPS)
            assert_allclose(line.get_ydata(), np.nanmedian(array[:, g], axis=-1), rtol=1e-12)
        assert ax.get_title("left") == name
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear"]
    assert "median of 3 seeds, band from the lowest to the highest seed" in heading(figure)
    assert "matrix embed/token/embedding (one of 2)" in heading(figure)
    assert keys(figure) == ["γ 0.3", "γ 0.5", "γ 0.8", "diverged, left out"]


def test_band_over_time_runs_from_lowest_to_highest_seed():
    ds = synthetic()
    ax = measures.against_gamma_over_time(ds, {"focus.share": "focus"}, weight_decay=1).axes[0]
    for band, g in zip(ax.collections, np.argsort(GAMMA), strict=True):
        for step, seeds in zip(STEPS, ds["focus.share"].values[:, g, 1], strict=True):
            assert_allclose(band_at(band, step), [seeds.min(), seeds.max()], rtol=1e-12)
    assert ax.get_title("left") == "focus"


def test_divergence_is_marked_at_its_step_in_the_gamma_of_its_row():
    figure = measures.against_gamma_over_time(synthetic(), "focus.share", weight_decay=0)
    marks = lines(figure.axes[0], "diverged")
    assert [list(mark.get_xdata()) for mark in marks] == [[50], [], []]  # gammas in order: 0.3 first
    colours = [line.get_color() for line in lines(figure.axes[0], "median")]
    assert_array_equal(marks[0].get_color(), colours[0])
    assert keys(measures.against_gamma_over_time(synthetic(), "focus.share", weight_decay=1)) == [
        "γ 0.3",
        "γ 0.5",
        "γ 0.8",
    ]


def test_step_axis_is_logarithmic_and_shows_every_snapshot_and_no_negative_step():
    for ds in (synthetic(), synthetic().isel(snapshot=slice(1, None))):
        ax = measures.against_gamma_over_time(ds, "focus.share").axes[0]
        low, high = ax.get_xlim()
        assert low < ds["snapshot"].values[0] and high > 1000
        assert ax.get_xscale() == "symlog"
        width = np.diff(ax.transData.transform([(step, 0.5) for step in (10, 100, 1000)])[:, 0])
        assert_allclose(width[0], width[1], rtol=1e-9)
    assert low > 0


def test_lines_join_the_snapshots_that_their_variable_was_taken_at():
    """Taken at the first and the last only, beside one taken at all four."""
    ds = synthetic()
    ds["sharpness.top"][1:3] = np.nan
    figure = measures.against_gamma_over_time(ds, ["sharpness.top", "focus.share"], weight_decay=1)
    for ax, steps, name in zip(figure.axes, ([0, 1000], STEPS), ["sharpness.top", "focus.share"], strict=True):
        for line, g in zip(lines(ax, "median"), np.argsort(GAMMA), strict=True):
            assert_array_equal(line.get_xdata(), steps)
            expected = np.median(ds[name].sel(snapshot=steps).values[:, g, 1], axis=-1)
            assert_allclose(line.get_ydata(), expected, rtol=1e-12)


def test_variable_without_a_time_and_unknown_selection_are_refused():
    ds = synthetic().isel(snapshot=-1)
    with pytest.raises(
        ValueError, match=r"focus.share has the dims \('gamma', .*accepted: one of step, train_step, sna"
    ):
        measures.against_gamma_over_time(ds, "focus.share")
    with pytest.raises(MissingData, match=r"weight decay 7 \(the grid has 0, 1\)"):
        measures.against_gamma_over_time(synthetic(), "focus.share", weight_decay=7)


def test_small_shares_fill_their_axis_and_large_ones_stand_on_0_to_1():
    figure = measures.against_gamma_over_time(synthetic(), ["focus.distance", "focus.share"])
    assert figure.axes[0].get_ylim()[1] < 0.25  # data up to 0.2
    assert figure.axes[1].get_ylim() == (-0.06, 1.06)


def test_spectrum_draws_density_band_and_eigenvalues_of_its_row():
    grid_G = np.linspace(-1, 9, 50)
    density = {"γ 0.3": np.exp(-(grid_G**2)), "γ 0.8": 0.5 * np.exp(-((grid_G - 1) ** 2))}
    error = {label: 0.1 * values_G for label, values_G in density.items()}
    eigenvalues = {"γ 0.3": [8.0, 3.5], "γ 0.8": []}
    grid = {"γ 0.3": grid_G, "γ 0.8": 2 * grid_G}
    figure = measures.spectrum(density, grid, error, eigenvalues)
    for ax, label in zip(figure.axes, density, strict=True):
        assert ax.get_title("left") == label and ax.get_yscale() == "log"
        (line,) = lines(ax, "density")
        assert_array_equal(line.get_xdata(), grid[label])
        assert_array_equal(line.get_ydata(), density[label])
        assert_array_equal(lines(ax, "eigenvalues")[0].get_xdata(), eigenvalues[label])
        near_zero = grid[label][5]
        expected = density[label][5] * np.array([0.8, 1.2])  # two standard errors of a tenth each
        assert_allclose(band_at(ax.collections[0], near_zero), expected, rtol=1e-12)
        assert_allclose(ax.get_ylim()[0], 1e-8 * max(d.max() for d in density.values()), rtol=1e-12)


def test_density_below_zero_or_absent_is_left_blank():
    grid_G = np.arange(4.0)
    values_G = np.array([1.0, 0.0, -1e-3, np.nan])
    ax = measures.spectrum({"a": values_G}, {"a": grid_G}, {"a": 0 * grid_G}, {"a": []}).axes[0]
    assert_array_equal(lines(ax, "density")[0].get_ydata(), [1, np.nan, np.nan, np.nan])


def test_singular_values_are_drawn_to_the_last_that_a_matrix_has():
    rows = {"γ 0.3": spectra(0), "γ 0.8": spectra(1).transpose("index", "matrix")}
    figure = measures.singular_spectra(rows, MATRICES[::-1])
    for ax, name, n in zip(figure.axes, MATRICES[::-1], [4, 6], strict=True):
        assert ax.get_title("left") == name and ax.get_yscale() == "log"
        for line, seed in zip(lines(ax, "values"), (0, 1), strict=True):
            assert_array_equal(line.get_xdata(), np.arange(1, n + 1))
            assert_array_equal(line.get_ydata(), spectra(seed).values[MATRICES.index(name), :n])
    assert keys(figure) == ["γ 0.3", "γ 0.8"]


def test_singular_values_of_unknown_matrices_or_other_dims_are_refused():
    with pytest.raises(ValueError, match="matrix = 'head' is not among block_0/attn/query/kernel, embed/token"):
        measures.singular_spectra({"a": spectra(0)}, ["head"])
    with pytest.raises(ValueError, match=r"dims \('seed', 'matrix', 'index'\); accepted: matrix and one more"):
        measures.singular_spectra({"a": spectra(0).expand_dims("seed")}, MATRICES)


def test_line_and_band_are_the_value_and_two_standard_errors():
    x = np.linspace(-0.5, 0.5, 5)
    curves = {"NTP": (3 * x**2, 0.1 * np.abs(x)), "CTP": (9 * x**2, np.full(5, np.nan))}
    figure = measures.lines_with_error(x, curves, "distance α", "rise of the loss, nats")
    (ax,) = figure.axes
    for line, (value, _) in zip(lines(ax, "value"), curves.values(), strict=True):
        assert_array_equal(line.get_xdata(), x)
        assert_array_equal(line.get_ydata(), value)
    value, error = curves["NTP"]
    for i in range(5):
        assert_allclose(
            band_at(ax.collections[0], x[i]), [value[i] - 2 * error[i], value[i] + 2 * error[i]], atol=1e-15
        )
    assert not ax.collections[1].get_paths()  # no error, no band
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("distance α", "rise of the loss, nats", "linear")
    assert keys(figure) == ["NTP", "CTP"]
    one = {"a": (np.ones(3), np.ones(3))}
    assert measures.lines_with_error([0.01, 0.1, 1], one, "σ", "loss").axes[0].get_xscale() == "log"


def test_more_labels_than_colours_are_coloured_in_order():
    curves = {f"row {i}": (np.full(2, i), np.zeros(2)) for i in range(9)}
    ax = measures.lines_with_error([0, 1], curves, "x", "y").axes[0]
    colours = [line.get_color() for line in lines(ax, "value")]
    assert_allclose(colours, matplotlib.colormaps["viridis"](np.linspace(0, 0.82, 9)))


def test_predictors_are_sorted_and_show_value_and_interval():
    figure = measures.predictors(table())
    (ax,) = figure.axes
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == ["stable rank", "path norm", "margin", "sharpness"]  # upwards: n/a, -0.2, 0.1, 0.7
    raw, within = lines(ax, "value")
    assert_array_equal(raw.get_xdata(), [np.nan, -0.2, 0.1, 0.7])
    assert_array_equal(within.get_xdata(), [np.nan, 0.3, 0.25, -0.1])
    for dots in (raw, within):
        assert_array_equal(np.round(dots.get_ydata()), range(4))
    assert (raw.get_ydata() > within.get_ydata()).all()
    for spans, dots in zip(ax.collections, (raw, within), strict=True):
        ends = [segment[:, 0] for segment in spans.get_segments() if len(segment)]
        expected = np.stack([dots.get_xdata() - 0.15, dots.get_xdata() + 0.1], axis=1)
        assert_allclose(ends, expected[1:], rtol=1e-12)
    assert_array_equal(lines(ax, "zero")[0].get_xdata(), [0, 0])
    assert [text.get_text() for text in ax.texts] == ["n/a", "n/a"]
    assert keys(figure) == ["over all rows", "among rows of equal gamma and weight decay"]
    assert "intervals of 90 % over resampled seeds, 16 to 17 rows, 1 diverged and left out" in heading(figure)


def test_legend_of_predictors_names_few_knobs_and_counts_the_rest():
    many = table().assign_attrs(knobs=("gamma", "weight_decay", "learning_rate", "gamma_qk", "ntp_weight"))
    assert (
        keys(measures.predictors(many))[1] == "among rows of equal gamma and weight decay and learning rate and 2 more"
    )


def test_predictors_draw_one_control_and_another_coefficient():
    figure = measures.predictors(table().isel(control=[1], measure=[0, 1]), "kendall")
    (dots,) = lines(figure.axes[0], "value")
    assert_array_equal(dots.get_xdata(), [0.1, 0.1])
    assert_array_equal(dots.get_ydata(), [0, 1])
    assert figure.axes[0].get_xlabel() == "Kendall correlation"
    assert keys(figure) == ["among rows of equal gamma and weight decay"]
    with pytest.raises(ValueError, match="coefficient 'pearson': one of spearman, kendall"):
        measures.predictors(table(), "pearson")


def test_token_attention_shows_the_matrix_with_the_first_query_on_top_on_one_scale():
    maps = {"step 0": np.array([[0.75, 0.25], [0.5, 0.5], [1, 0]]), "step 9": np.full((3, 2), 0.1)}
    figure = heatmaps.token_attention(maps, [7, 8, 9], ["key", "anchor"])
    for ax, (label, values) in zip(figure.axes, maps.items(), strict=False):  # then the colour bar
        assert_array_equal(ax.images[0].get_array(), values)
        assert ax.images[0].get_clim() == (0, 1)
        assert ax.get_title("left") == label
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["7", "8", "9"]
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["key", "anchor"]
        assert ax.transData.transform((0, 0))[1] > ax.transData.transform((0, 2))[1]
        printed = {text.get_position(): text.get_text() for text in ax.texts}
        assert printed == {(j, i): f"{value:.2f}" for (i, j), value in np.ndenumerate(values)}


def test_heatmap_has_the_first_layer_below_and_is_signed_where_a_value_is_negative():
    effect = np.random.default_rng(0).uniform(0, 0.5, (3, 12))
    figure = heatmaps.heatmap({"MLP": effect}, ["embed", 0, 1], list("abcdefghijkl"), "recovered share")
    ax, bar = figure.axes
    assert_array_equal(ax.images[0].get_array(), effect)
    assert ax.images[0].get_clim() == (0, effect.max()) and ax.images[0].cmap.name == style.ORDERED
    assert ax.transData.transform((0, 0))[1] < ax.transData.transform((0, 2))[1]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["embed", "0", "1"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list("abcdefghijkl")
    assert bar.get_ylabel() == "recovered share" and not ax.texts  # twelve columns: no numbers
    signed = heatmaps.heatmap({"a": effect, "b": -2 * effect}, ["embed", 0, 1], range(12), "effect").axes[0].images[0]
    assert signed.get_clim() == (-2 * effect.max(), 2 * effect.max()) and signed.cmap.name == style.DIVERGING


def test_map_of_another_shape_than_its_names_is_refused():
    with pytest.raises(ValueError, match=r"map 'a' has shape \(2, 3\); given are 3 and 2 names"):
        heatmaps.heatmap({"a": np.zeros((2, 3))}, [0, 1, 2], ["x", "y"], "effect")


def every_picture(scale):
    """One of each, the data times `scale`."""
    ds, x = synthetic(), np.arange(3.0)
    ds = ds.map(lambda array: array * scale if array.dtype.kind == "f" else array)
    row, maps = spectra(0) * scale, {"a": np.full((2, 3), 0.5) * scale}
    numbers = table().map(lambda array: array * scale if array.dtype.kind == "f" else array)
    return [
        measures.against_gamma_over_time(ds, ["sharpness.top", "focus.share"]),
        measures.spectrum({"a": x * scale}, {"a": x}, {"a": x * scale}, {"a": [scale]}),
        measures.singular_spectra({"a": row}, MATRICES),
        measures.lines_with_error(x, {0.3: (x * scale, x * scale)}, "x", "y"),
        measures.predictors(numbers.assign_attrs(table().attrs)),
        heatmaps.token_attention(maps, [1, 2], [1, 2, 3]),
        heatmaps.heatmap(maps, [1, 2], [1, 2, 3], "effect"),
    ]


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("scale", [1.0, np.nan])
def test_pictures_leave_matplotlib_as_it_was_and_tolerate_nan(scale):
    before = dict(matplotlib.rcParams)
    for figure in every_picture(scale):
        with style.paper():
            figure.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before and pyplot.get_fignums() == []
