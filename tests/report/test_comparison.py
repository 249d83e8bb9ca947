import numpy as np
import xarray as xr
from shown import heading

from lab.analysis import phase
from lab.report import comparison


def test_cells_say_their_phase_and_how_many_seeds_have_it():
    grid = xr.DataArray([[0, 0, 0, 2], [2, 2, phase.NO_PHASE, 3]], {"gamma": [0.4, 0.5], "weight_decay": [0, 1, 2, 3]})
    agreement, lost = xr.ones_like(grid, float), xr.zeros_like(grid)
    agreement[0, 3], lost[0, 0], lost[0, 3], lost[1, 2] = 2 / 3, 1, 2, 5
    votes = xr.Dataset({"phase": grid, "agreement": agreement, "n": 5 - lost, "n_lost": lost})
    figure = comparison.phase_grids({"ours": votes, "theirs": grid[:1]}, "title")
    words = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert words[0] == ["1\n1/5 ×", "2 w", "1", "2 w", "1", "5/5 ×", "2 w\n2 of 3\n2/5 ×", "3"]  # decays from below
    assert words[1] == ["1", "1", "1", "2 w"]
    assert [len(ax.patches) for ax in figure.axes] == [3, 0]  # cells with lost seeds are hatched
    assert "diverged" in figure.legends[0].texts[-1].get_text()
    (alone,) = comparison.phase_grids({"theirs": grid}, "title").legends
    assert [text.get_text().partition(":")[0] for text in alone.texts] == [*phase.PHASES]


def test_curves_are_medians_over_seeds_in_a_band_and_published_ones_are_black():
    ours = xr.DataArray([[0.1, 0.5], [0.3, 0.6], [0.2, 0.9]], {"gamma": [0.4, 0.8]}, ["seed", "gamma"])
    theirs = xr.DataArray([0.2, 0.7], {"gamma": [0.5, 0.6]})
    (ax,) = comparison.curves({"accuracy": {"ours": ours, "published": theirs}}, "title").axes
    lines = {line.get_gid(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["ours"].get_xydata(), [[0.4, 0.2], [0.8, 0.6]])
    np.testing.assert_array_equal(lines["published"].get_xydata(), [[0.5, 0.2], [0.6, 0.7]])
    assert lines["published"].get_color() == "black" != lines["ours"].get_color()
    band = ax.collections[0].get_datalim(ax.transData)
    np.testing.assert_allclose([band.x0, band.x1, band.y0, band.y1], [0.4, 0.8, 0.1, 0.9])


def test_curves_of_one_seed_say_that_and_no_median():
    ours = xr.DataArray([[0.1, 0.5], [0.3, 0.6]], {"gamma": [0.4, 0.8]}, ["seed", "gamma"])
    alone = heading(comparison.curves({"loss": {"a": ours[:1], "b": ours[1:]}}, "title"))
    assert "one seed" in alone and "median" not in alone
    assert "median over seeds, band" in heading(comparison.curves({"loss": {"a": ours, "b": ours[:1]}}, "title"))


def test_large_numbers_along_a_linear_axis_are_in_thousands():
    seen = xr.DataArray([0.1, 0.5], {"step": [0, 100_000]})
    for xscale, expected in (("linear", "100k"), ("symlog", None)):
        (ax,) = comparison.curves({"accuracy": {"ours": seen}}, "title", "strings", xscale=xscale).axes
        shown = ax.xaxis.get_major_formatter()(100_000)
        assert shown == expected if expected else shown != "100k"


def test_large_numbers_along_a_logarithmic_axis_are_in_thousands_and_rates_never_in_milli():
    for values, is_short in (([100, 10_000], True), ([1e-3, 1e-1], False)):
        seen = xr.DataArray([0.1, 0.5], {"x": values})
        (ax,) = comparison.curves({"loss": {"ours": seen}}, "title", "x", xscale="log").axes
        ends = [ax.xaxis.get_major_formatter()(value) for value in values]
        assert (ends == ["100", "10k"]) == is_short
        assert "1m" not in ends
