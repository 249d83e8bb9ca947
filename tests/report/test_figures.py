"""Every number a figure shows is compared with numpy's answer on a synthetic dataset."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.collections import LineCollection
from numpy.testing import assert_allclose, assert_array_equal
from shown import band_at, heading, keys, lines, titles

from lab.analysis.statistics import first_crossing
from lab.report import figures, portraits, style
from lab.runs import MissingData, Run

GAMMA = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
DECAY = np.array([0.0, 0.1, 1.0])
AXES = ("gamma", "weight_decay", "learning_rate", "seed")
STEPS = np.array([0, 100, 300, 1000, 3000, 10000])
REASONING, SYMMETRIC = "ood_43.reasoning", "ood_43.symmetric"
TOKENS = [52, 31, 99, 4, 3, 60, 27, 88, 45]  # key 99, anchors 4 and 3


def synthetic(learning_rates=(1e-3,), n_seeds=3, lost=((0, 2, 0, 1, 300),)):
    """A dataset as `lab.load` gives it: larger gamma or decay reasons, smaller memorizes symmetrically.

    `lost` holds (gamma, decay, learning rate, seed) indices and the step of divergence.
    """
    rng = np.random.default_rng(0)
    grid = (len(GAMMA), len(DECAY), len(learning_rates), n_seeds)
    pull = GAMMA[:, None, None, None] - 0.58 + 0.12 * np.arange(3)[:, None, None] * np.ones(grid)
    reason = 1 / (1 + np.exp(-30 * (pull + rng.normal(0, 0.02, grid))))
    rise = (1 - np.exp(-STEPS / 1500))[:, None, None, None, None]
    noise = rng.uniform(0, 0.03, (len(STEPS), *grid))
    times = np.arange(0, 10000, 10)
    fall = np.exp(-times / 1500)[:, None, None, None, None]
    stable = np.stack([4 + 150 * (1 - reason), 4 + 90 * (1 - reason)], -1)
    ds = xr.Dataset(
        {
            "train_loss": (("train_step", *AXES), 5 * fall * rng.uniform(0.8, 1.2, (1000, *grid)) + 1e-3),
            "test_seen.accuracy": (("step", *AXES), rise * (1 - noise)),
            REASONING: (("step", *AXES), rise * reason * (1 - noise)),
            SYMMETRIC: (("step", *AXES), rise * (1 - reason) * (1 - noise)),
            "diverged_at": (AXES, np.full(grid, -1)),
            "rank.stable": (("snapshot", *AXES, "matrix"), np.stack([stable + 40, stable])),
        },
        {
            "step": STEPS,
            "train_step": times,
            "snapshot": [0, 10000],
            "gamma": GAMMA,
            "weight_decay": DECAY,
            "learning_rate": np.array(learning_rates),
            "seed": np.arange(n_seeds),
            "matrix": ["block_0/attn/query/kernel", "block_0/attn/key/kernel"],
        },
    )
    for *index, step in lost:
        ds["diverged_at"][tuple(index)] = step
        for name in ("test_seen.accuracy", REASONING, SYMMETRIC):
            ds[name][(slice(None), *index)] = ds[name][(slice(None), *index)].where(step > STEPS)
    return ds


def portrait(n_groups, n_neurons=48, noise=0.4, reasoning=True):
    """One row's measures over two snapshots, the first all NaN."""
    rng = np.random.default_rng(n_groups)
    group = rng.integers(n_groups, size=n_neurons)
    w = rng.normal(size=(n_groups, 30))[group] + noise * rng.normal(size=(n_neurons, 30))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    token = np.arange(20, 100)
    arc = np.stack([np.cos(token / 25), np.sin(token / 25)], 1) + noise * rng.normal(size=(80, 2))
    pattern = np.tril(rng.uniform(0, 0.1, (2, 9, 9)))
    if reasoning:  # the key to each anchor, then both anchors to the last position
        pattern[0, [3, 4], 2], pattern[1, 8, [3, 4]] = 5, 2
    else:  # both anchors to the last position, then the key
        pattern[0, 8, [3, 4]], pattern[1, 8, 2] = 2, 5
    last = {
        "neurons.cosine": (("neuron", "neuron_"), w @ w.T),
        "neurons.order": (("neuron",), np.argsort(group, kind="stable")),
        "condensation.n_groups": ((), n_groups),
        "embedding.components": (("token", "component"), arc),
        "embedding.explained": (("component",), np.array([0.41, 0.237])),
        "embedding.order": ((), 0.93),
        "flow.pattern": (("layer", "query", "position"), pattern / pattern.sum(-1, keepdims=True)),
        "flow.tokens": (("position",), np.array(TOKENS)),
    }
    both = {name: (("snapshot", *dims), np.stack([np.nan * np.asarray(x), x])) for name, (dims, x) in last.items()}
    return xr.Dataset(both | {"diverged_at": ((), -1)}, {"snapshot": [0, 900], "token": token})


def test_median_lines_equal_numpy_medians_and_every_gamma_has_a_tick():
    ds = synthetic()
    figure = figures.curves_against_gamma(ds, [REASONING, SYMMETRIC])
    ticks = ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]
    for ax, name in zip(figure.axes, [REASONING, SYMMETRIC], strict=True):
        last = ds[name].values[-1, :, :, 0, :]  # gamma, decay, seed
        for line, expected in zip(lines(ax, "median"), np.nanmedian(last, axis=-1).T, strict=True):
            assert_array_equal(line.get_xdata(), GAMMA)
            assert_allclose(line.get_ydata(), expected, rtol=1e-12)
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ticks
        assert ax.get_title("left") == name
    assert "median of 3 seeds, band from the lowest to the highest seed" in heading(figure)


def test_seed_band_runs_from_lowest_to_highest_seed():
    ds = synthetic(lost=())
    ax = figures.curves_against_gamma(ds, REASONING, weight_decay=0.1).axes[0]
    for band, decay in zip(ax.collections, DECAY, strict=True):
        last = ds[REASONING].sel(weight_decay=decay).values[-1, :, 0]
        for gamma, seeds in zip(GAMMA, last, strict=True):
            assert_allclose(band_at(band, gamma), [seeds.min(), seeds.max()], rtol=1e-12)


def test_diverged_row_is_marked_and_left_out_of_the_median():
    ds = synthetic()
    ds[REASONING][dict(step=-1, gamma=0, weight_decay=2, seed=1)] = 0.9  # a frozen row may keep a value
    ax = figures.curves_against_gamma(ds, REASONING).axes[0]
    marks = lines(ax, "diverged")
    assert [len(mark.get_xdata()) for mark in marks] == [0, 0, 1]
    assert abs(marks[2].get_xdata()[0] - 0.3) < 0.02
    healthy = ds[REASONING].values[-1, 0, 2, 0, [0, 2]]
    assert_allclose(lines(ax, "median")[2].get_ydata()[0], np.median(healthy), rtol=1e-12)


def test_two_solutions_share_a_panel_when_hue_is_metric():
    ds = synthetic()
    labels = {REASONING: "reasoning", SYMMETRIC: "symmetric"}
    figure = figures.curves_against_gamma(ds, labels, hue="metric", over="weight_decay")
    assert titles(figure) == ["weight decay 0", "weight decay 0.1", "weight decay 1"]
    assert keys(figure) == ["reasoning", "symmetric", "diverged, left out"]
    expected = np.nanmedian(ds[SYMMETRIC].values[-1, :, 1, 0], axis=-1)
    assert_allclose(lines(figure.axes[1], "median")[1].get_ydata(), expected, rtol=1e-12)


def test_other_dimensions_are_selected_and_named():
    ds = synthetic(learning_rates=(1e-4, 1e-3, 1e-2))
    assert "learning rate 0.001 (one of 3)" in heading(figures.curves_against_gamma(ds, REASONING))
    smallest = Run(ds, {"learning_rate": min})
    assert "learning rate 0.0001 (one of 3)" in heading(figures.curves_against_gamma(smallest, REASONING))
    figure = figures.curves_against_gamma(smallest, REASONING, learning_rate=1e-3, step=1000)
    assert "learning rate 0.001 (one of 3), step 1000" in heading(figure)
    expected = np.nanmedian(ds[REASONING].values[3, :, 1, 1], axis=-1)
    assert_allclose(lines(figure.axes[0], "median")[1].get_ydata(), expected, rtol=1e-12)
    variants = xr.concat([ds, ds], "variant").assign_coords(variant=["2 layers", "6 layers"])
    figure = figures.phase_diagram(variants, REASONING, variant="6 layers")
    assert "variant 6 layers (one of 2)" in heading(figure)
    with pytest.raises(MissingData, match=r"learning rate 5 \(the grid has 0\.0001, 0\.001, 0\.01\)"):
        figures.curves_against_gamma(ds, REASONING, learning_rate=5)
    with pytest.raises(ValueError, match="no dimension 'depth'"):
        figures.curves_against_gamma(ds, REASONING, depth=2)
    for draw in (figures.curves_against_gamma, figures.phase_diagram, figures.training_curves):
        with pytest.raises(MissingData, match=r"^sharpness\.top$"):
            draw(ds, "sharpness.top")


def test_heatmap_prints_medians_and_hatches_diverged_cells():
    ds = synthetic(lost=((0, 2, 0, 1, 300), *((5, 0, 0, seed, 100) for seed in range(3))))
    figure = figures.phase_diagram(ds, [REASONING, "rank.stable"], matrix="block_0/attn/key/kernel")
    reasoning, rank = figure.axes[:2]
    cells = {text.get_position(): text.get_text() for text in reasoning.texts}
    median = np.nanmedian(ds[REASONING].values[-1, :5, :, 0], axis=-1)
    for (x, y), value in np.ndenumerate(median):
        assert cells[x, y] == f"{value:.2f}" + ("\n1/3 ×" if (x, y) == (0, 2) else "")
    assert cells[5, 0] == "3/3 ×"
    assert sorted(patch.get_xy() for patch in reasoning.patches) == [(-0.5, 1.5), (4.5, -0.5)]
    assert all(patch.get_hatch() for patch in reasoning.patches)
    expected = np.median(ds["rank.stable"].values[-1, 2, 1, 0, :, 1])
    assert {text.get_position(): text.get_text() for text in rank.texts}[2, 1] == f"{expected:.1f}"
    assert [tick.get_text() for tick in reasoning.get_yticklabels()] == ["0", "0.1", "1"]
    assert "block_0/attn/key/kernel" in heading(figure)


def test_phase_diagram_of_one_weight_decay_keeps_its_row():
    for ds in (synthetic().isel(weight_decay=[1]), synthetic().isel(weight_decay=1)):
        ax = figures.phase_diagram(ds, REASONING).axes[0]
        assert len(ax.texts) == len(GAMMA)
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0.1"]


def test_training_curves_equal_medians_and_mark_divergence_at_its_step():
    ds = synthetic()
    figure = figures.training_curves(ds, [REASONING, SYMMETRIC], weight_decay=1, log_steps=True)
    assert titles(figure) == [f"γ {gamma:g}" for gamma in GAMMA]
    first = figure.axes[0]
    expected = np.nanmedian(ds[REASONING].values[:, 0, 2, 0], axis=-1)
    assert_allclose(lines(first, "median")[0].get_ydata(), expected, rtol=1e-12)
    assert first.get_xscale() == "symlog"
    assert_array_equal(lines(first, "diverged")[0].get_xdata(), [300])
    assert "weight decay 1 (one of 3)" in heading(figure)
    chosen = figures.training_curves(ds, "train_loss", gammas=[0.8, 0.5])
    assert titles(chosen) == ["γ 0.8", "γ 0.5"]
    assert chosen.axes[0].get_yscale() == "log"


def test_steps_beyond_twenty_thousand_are_in_thousands():
    ds = synthetic()
    for longer, expected in ((1, "10000"), (10, "100k")):
        (ax, *_) = figures.training_curves(ds.assign_coords(step=STEPS * longer), REASONING, weight_decay=1).axes
        ax.get_figure().canvas.draw()
        assert expected in [label.get_text() for label in ax.get_xticklabels()]


def test_scatter_draws_every_row_and_its_crossing():
    ds = synthetic(lost=())
    figure = figures.scatter_against_gamma(ds, "rank.stable", rivals=(REASONING, SYMMETRIC))
    ax = figure.axes[0]
    last = ds["rank.stable"].values[-1, :, :, 0, :, 0]
    for line, expected in zip(lines(ax, "seeds"), np.moveaxis(last, 1, 0), strict=True):
        assert_allclose(line.get_ydata(), expected.ravel(), rtol=1e-12)
    lead = np.median(ds[REASONING].values[-1, :, :, 0], -1) - np.median(ds[SYMMETRIC].values[-1, :, :, 0], -1)
    for line, one in zip(lines(ax, "crossing"), lead.T, strict=True):
        assert_allclose(line.get_xdata(), first_crossing(one, GAMMA, 0.0), rtol=1e-12)


def test_cosine_heatmap_shows_the_reordered_matrix():
    row = portrait(4)
    ax = portraits.cosine_heatmaps({"γ = 0.8": row}).axes[0]
    cosine, order = row["neurons.cosine"].values[-1], row["neurons.order"].values[-1].astype(int)
    assert_array_equal(ax.images[0].get_array(), cosine[order][:, order])
    assert ax.get_title("left") == "γ = 0.8\n4 groups of 48 neurons"


def test_embedding_pca_places_tokens_and_states_variance():
    row = portrait(4)
    figure = portraits.embedding_pca({"γ = 0.5": row, "γ = 0.8": portrait(9)})
    dots = figure.axes[0].collections[0]
    assert_array_equal(dots.get_offsets(), row["embedding.components"].values[-1])
    assert_array_equal(dots.get_array(), np.arange(20, 100))
    assert figure.axes[0].get_xlabel() == "component 1 (41.0 % of variance)"
    assert figure.axes[0].get_ylabel() == "component 2 (23.7 %)"
    assert "step 900" in heading(figure)


def test_attention_flow_width_follows_the_weight():
    row = portrait(4)
    ax = portraits.attention_flow({"reasoning": row, "memory": portrait(4, reasoning=False)}).axes[0]
    first, second = (c for c in ax.collections if isinstance(c, LineCollection))
    pattern = row["flow.pattern"].values[-1]
    edges = {
        (int(x0), int(x1)): width
        for ((x0, _), (x1, _)), width in zip(first.get_segments(), first.get_linewidths(), strict=True)
    }
    assert set(edges) == {(k, q) for q, k in np.argwhere(pattern[0] > portraits.FAINTEST)}
    assert sorted(edges, key=edges.get) == sorted(edges, key=lambda edge: pattern[0, edge[1], edge[0]])
    assert {segment[1][0] for segment in second.get_segments()} == {8}
    _answer, *labels = [text.get_text() for text in ax.texts]
    assert labels[0::2] == [str(token) for token in TOKENS]
    assert labels[1::2] == ["", "", "key", "anchor", "anchor", "", "", "", ""]


def test_crowded_gammas_keep_every_tick():
    gamma = np.round(np.arange(0.3, 1.01, 0.05), 2)
    ds = synthetic(lost=()).interp(gamma=gamma, kwargs={"fill_value": "extrapolate"})
    for ax in figures.curves_against_gamma(ds, [REASONING, SYMMETRIC]).axes:
        assert [float(tick.get_text()) for tick in ax.get_xticklabels()] == list(gamma)
        assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {90}


@pytest.mark.parametrize(("scale", "lost"), [(1, -1), (np.nan, -1), (np.nan, 5)])
def test_figures_leave_matplotlib_as_it_was_and_tolerate_nan(scale, lost):
    before = dict(matplotlib.rcParams)
    ds = synthetic().map(lambda x: x * scale if x.dtype.kind == "f" else xr.full_like(x, lost))
    row = portrait(3).isel(snapshot=[1 if scale == 1 else 0])
    drawings = [
        figures.curves_against_gamma(ds, REASONING),
        figures.phase_diagram(ds, ["rank.stable", REASONING]),
        figures.training_curves(ds, [REASONING, "train_loss"], log_steps=True),
        figures.scatter_against_gamma(ds, "rank.stable", rivals=(REASONING, SYMMETRIC)),
        portraits.cosine_heatmaps({"a": row}),
        portraits.embedding_pca({"a": row}),
        portraits.attention_flow({"a": row}),
    ]
    for figure in drawings:
        with style.paper():
            figure.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before and pyplot.get_fignums() == []
