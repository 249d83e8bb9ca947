"""Figures of a whole grid: curves against the init rate, phase diagrams, training curves.

Every function takes a `Run`, or the dataset of `lab.load`, and returns a matplotlib Figure. `metrics` is a
variable's name, several names, or {name: label}. A dimension the picture has no place for is
selected by keyword (`learning_rate=1e-3`, `matrix="block_0/attn/query/kernel"`, `step=2000`): an axis of
the grid is by default at the run's usual value, another dimension at its last time or its first value, and
the heading says which of how many. Diverged rows leave every median and are marked; NaN elsewhere is left blank.
"""

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lab.analysis import statistics
from lab.report import style
from lab.runs import MissingData, as_run, index_of

RATE = "init rate γ"
BAND = ", band from the lowest to the highest seed"
OVERTAKES = np.nextafter(0.0, 1.0)  # a lead of nothing is none
MOST_POINTS = 400  # of a drawn curve; more only swells the SVG


def select(values, keep, at):
    """(values with exactly the dims `keep`, notes): one value of every other dimension.

    That is the one in `at`, the last time, or the first value. `notes` name each selection that left something out.
    Raises ValueError for a value in `at` that the dimension does not have.
    """
    notes = []
    for dim in [dim for dim in values.dims if dim not in keep]:
        index = _index(values[dim].values, dim, at[dim]) if dim in at else -1 if dim in style.TIMES else 0
        if values.sizes[dim] > 1:
            notes.append(_note(values[dim], index))
        values = values.isel({dim: index}, drop=True)
    missing = [dim for dim in keep if dim not in values.dims]
    return values.expand_dims(missing).transpose(*keep).reset_coords(drop=True), notes


def _note(coordinate, index):
    dim = coordinate.name
    of = "" if dim in style.TIMES else f" (one of {coordinate.size})"
    return style.words(dim, coordinate.values[index]) + of


def _index(have, dim, wanted):
    index = index_of(have, wanted)
    if index is None:
        raise ValueError(f"{dim} = {wanted!r} is not among {', '.join(map(str, have))}")
    return index


def pick(run, name, keep, at):
    """`select` on variable `name`: axes of the grid by `Run.over_time`, all other dimensions as `select` says.

    Raises MissingData as `Run.over_time`, ValueError if `at` names a dimension that the run does not have.
    """
    if name not in run:
        raise MissingData(name)
    unknown = sorted(set(at) - set(run.dataset.dims))
    if unknown:
        raise ValueError(f"no dimension {unknown[0]!r}; the dataset has {', '.join(map(str, run.dataset.dims))}")
    axes = _places(run, keep, at)
    notes = [
        _note(run.dataset[axis], index)
        for axis, index in run.place(keep, **axes).items()
        if run.dataset.sizes[axis] > 1 and axis in run[name].dims
    ]
    values, others = select(run.over_time(name, keep, **axes), keep, at)
    return values, notes + others


def _gather(run, metrics, keep, at):
    """(values, lost, notes): the metrics' last values and which rows diverged, both with dims `keep`."""
    names = style.labelled(metrics)
    for absent in (name for name in names if name not in run):
        raise MissingData(absent)  # before a dimension is missed that it would bring
    inner = tuple(dim for dim in keep if dim != "metric")
    chosen = [pick(run, name, inner, at) for name in names]
    values = xr.concat([values for values, _ in chosen], "metric", coords="minimal", compat="override")
    values, notes = select(values.assign_coords(metric=list(names.values())), keep, at)
    lost, _ = select(diverged_at(run, inner, at) >= 0, inner, at)
    lost = lost.broadcast_like(values).transpose(*keep)
    notes = dict.fromkeys([note for _, notes in chosen for note in notes] + notes)
    return values.sortby("gamma"), lost.sortby("gamma"), list(notes)


def over_time(run, metrics, at):
    """(names, curves, lost, note): name -> label, name -> values with the dims (time, gamma, seed), and the steps at
    which rows diverged; what the lines are of. Raises ValueError for a variable without a time.
    """
    names, curves, notes = style.labelled(metrics), {}, []
    for name in names:
        dims = run[name].dims
        time = next((dim for dim in style.TIMES if dim in dims), None)
        if time is None:
            raise ValueError(f"{name} has the dims {dims}; accepted: one of {', '.join(style.TIMES)} among them")
        curves[name], note = pick(run, name, (time, "gamma", "seed"), at)
        notes += [one for one in note if one not in notes]
    lost, _ = select(diverged_at(run, ("gamma", "seed"), at), ("gamma", "seed"), at)
    return names, curves, lost, ", ".join([_seeds(lost, BAND), *notes])


def diverged_at(run, keep, at):
    """The steps at which the rows that `pick` would take diverged."""
    return run.dataset["diverged_at"].isel(run.place(keep, **_places(run, keep, at)))


def _places(run, keep, at):
    return {axis: place for axis, place in at.items() if axis in run.axes and axis not in keep}


def _seeds(values, also=""):
    n = values.sizes["seed"]
    return f"median of {n} seeds{also}" if n > 1 else "one seed"


def _gamma_axis(ax, gamma):
    inches = ax.get_position().width * ax.figure.get_figwidth()
    crowded = len(gamma) > 1 and inches * np.diff(gamma).min() / np.ptp(gamma) < 0.36
    ax.set_xticks(gamma, [style.short(one) for one in gamma], rotation=90 if crowded else 0)
    ax.set_xlabel(RATE)


def _lines(ax, values, lost, dim, band):
    """Median line, seed band and dots of each value of `dim` against gamma."""
    gamma = values["gamma"].values
    step = 0.07 * (np.diff(gamma).min() if len(gamma) > 1 else 0.1)
    n_seeds = values.sizes["seed"]
    for i, stroke in enumerate(style.strokes(values[dim].values)):
        one, gone, colour = values.isel({dim: i}), lost.isel({dim: i}).values, stroke["color"]
        # Dots of different lines stand side by side; the lines themselves stay on the true gamma.
        side = gamma + step * (i - (values.sizes[dim] - 1) / 2)
        ax.plot(gamma, one.median("seed"), **stroke, marker="o", ms=4.5, zorder=3, gid="median")
        if band:
            ax.fill_between(gamma, one.min("seed"), one.max("seed"), color=colour, alpha=0.15, lw=0)
        x = np.repeat(side, n_seeds)
        if n_seeds > 1:
            dots = {"alpha": 0.45, "ms": 3} if band else {"alpha": 0.7, "ms": 4.5}
            ax.plot(x, one.values.ravel(), "o", color=colour, mew=0, gid="seeds", **dots)
        if dim != "metric":
            style.mark_diverged(ax, x[gone.ravel()], colour)
    if dim == "metric":  # a row diverges in all its metrics at once
        style.mark_diverged(ax, np.repeat(gamma, n_seeds)[gone.ravel()], style.GREY)
    style.fit_scale(ax, values.values)
    _gamma_axis(ax, gamma)


def _legend(figure, dim, values, lost, extra=()):
    handles = [
        Line2D([], [], **stroke, label=style.words(dim, value))
        for value, stroke in zip(values, style.strokes(values), strict=True)
    ]
    if lost:
        handles.append(Line2D([], [], **style.DIVERGED, label="diverged, left out"))
    style.legend_below(figure, [*handles, *extra])


def _against_gamma(run, metrics, hue, over, title, at, band):
    values, lost, notes = _gather(run, metrics, (over, hue, "gamma", "seed"), at)
    title = title or f"Against the init rate γ: {', '.join(style.labelled(metrics).values())}"
    notes = [", ".join([_seeds(values, BAND if band else ", dots are single seeds"), *notes])]
    n = values.sizes[over]
    figure, axes = style.panels(n, style.panel_width(n), 3.3, title, notes)
    for i, ax in enumerate(axes):
        _lines(ax, values.isel({over: i}), lost.isel({over: i}), hue, band)
        ax.set_title(style.words(over, values[over].values[i]), loc="left")
    return figure, axes, values, bool(lost.any())


@style.paper()
def curves_against_gamma(run, metrics, hue="weight_decay", over="metric", title="", **at):
    """Last value of the metrics against gamma: a panel per `over`, a line per `hue`.

    Lines are medians over seeds, bands run from the lowest to the highest seed, faint dots are
    single seeds, an x on the floor is a diverged row. `hue` and `over` are dimensions, or "metric":
    `hue="metric", over="weight_decay"` draws competing solutions in one panel.
    """
    figure, _, values, lost = _against_gamma(as_run(run), metrics, hue, over, title, at, band=True)
    _legend(figure, hue, values[hue].values, lost)
    return figure


@style.paper()
def scatter_against_gamma(run, metrics, rivals=(), hue="weight_decay", title="", **at):
    """Every row's value against gamma with the median line, a panel per metric, a colour per `hue`.

    `rivals = (winner, loser)` are two accuracies; a dashed line in the colour of each `hue` marks the
    gamma from which the winner's median exceeds the loser's.
    """
    run = as_run(run)
    figure, axes, values, lost = _against_gamma(run, metrics, hue, "metric", title, at, band=False)
    extra = []
    if rivals:
        both, _, _ = _gather(run, rivals, ("metric", hue, "gamma", "seed"), at)
        winner, loser = both.median("seed")
        for lead, stroke in zip((winner - loser).values, style.strokes(values[hue].values), strict=True):
            where = statistics.first_crossing(lead, both["gamma"].values, OVERTAKES)
            for ax in axes if np.isfinite(where) else []:
                ax.axvline(where, color=stroke["color"], ls="--", lw=1.4, gid="crossing")
        winner, loser = style.labelled(rivals).values()
        extra = [Line2D([], [], color=style.GREY, ls="--", lw=1.4, label=f"{winner} overtakes {loser}")]
    _legend(figure, hue, values[hue].values, lost, extra)
    return figure


@style.paper()
def phase_diagram(run, metrics, rows="weight_decay", title="", **at):
    """Heatmaps gamma x `rows`, a panel per metric: medians over seeds, printed in the cells.

    A cell in which some seed diverged is hatched, and its text counts the diverged seeds.
    """
    values, lost, notes = _gather(as_run(run), metrics, ("metric", rows, "gamma", "seed"), at)
    width = min(0.42 * values.sizes["gamma"] + 1.3, style.WIDEST)
    height = 0.48 * values.sizes[rows] + 1.1
    title = title or f"Phase diagram over init rate γ and {rows.replace('_', ' ')}"
    notes = [", ".join([_seeds(values), *notes])]
    figure, axes = style.panels(values.sizes["metric"], width, height, title, notes)
    for ax, panel, gone in zip(axes, values, lost, strict=True):
        _heatmap(figure, ax, panel.median("seed"), gone.sum("seed").values, values.sizes["seed"])
        ax.set_title(panel["metric"].item(), loc="left")
        _ticks(ax, panel["gamma"].values, panel[rows].values, rows)
    if lost.any():
        style.legend_below(figure, [Patch(**style.LOST, label="k of n seeds diverged, left out (k/n ×)")])
    return figure


def _ticks(ax, gamma, rows, dim):
    style.as_image(ax)
    ax.set_xticks(range(len(gamma)), [style.short(one) for one in gamma])
    ax.set_yticks(range(len(rows)), [style.short(row) for row in rows])
    ax.set(xlabel=RATE, ylabel=dim.replace("_", " "))


def _heatmap(figure, ax, median, n_lost, n_seeds):
    finite = median.values[np.isfinite(median.values)]
    share = finite.size == 0 or (finite.min() >= 0 and finite.max() <= 1)
    low, high = (0, 1) if share else (finite.min(), finite.max())
    cmap = matplotlib.colormaps[style.ORDERED if share else style.UNBOUNDED].with_extremes(bad="#f3f4f6")
    norm = "log" if low > 0 and high > 30 * low else matplotlib.colors.Normalize(low, high)
    image = ax.imshow(median, cmap=cmap, norm=norm, origin="lower", aspect="auto")
    figure.colorbar(image, ax=ax, pad=0.02, fraction=0.06).outline.set_visible(False)
    for (y, x), value in np.ndenumerate(median.values):
        count = n_lost[y, x]
        number = f"{value:.{0 if abs(value) >= 100 else 1 if high >= 10 else 2}f}"
        text = number if np.isfinite(value) else "" if count else "n/a"
        text += f"\n{count}/{n_seeds} ×" if count else ""
        ink = style.ink(image, value) if np.isfinite(value) else "black"
        if count:
            ax.add_patch(style.hatching(x, y, ink))
        ax.text(x, y, text.strip(), ha="center", va="center", fontsize=8.5, color=ink)


@style.paper()
def training_curves(run, metrics, gammas=None, log_steps=False, title="", **at):
    """The metrics over training, a panel per gamma (up to six, spread evenly, unless `gammas` names them).

    Lines are medians over seeds, bands run from the lowest to the highest seed; an x on the floor
    stands at the step at which a row diverged.
    """
    run = as_run(run)
    have = np.sort(np.atleast_1d(run.dataset["gamma"].values))
    spread = np.unique(np.linspace(0, len(have) - 1, min(len(have), 6)).round().astype(int))
    drawn = have[spread] if gammas is None else have[[_index(have, "gamma", gamma) for gamma in gammas]]
    names, curves, lost, note = over_time(run, metrics, at)
    title = title or f"Over training: {', '.join(names.values())}"
    figure, axes = style.panels(len(drawn), 3.4, 2.6, title, [note], sharex=True, sharey=True)
    for ax, gamma in zip(axes, drawn, strict=True):
        _curves(ax, [values.sel(gamma=gamma) for values in curves.values()], log_steps)
        when = lost.sel(gamma=gamma).values
        style.mark_diverged(ax, when[when >= 0], style.GREY)
        ax.set_title(style.words("gamma", gamma), loc="left")
        ax.set_xlabel("step")
        ax.tick_params(labelbottom=True)
    style.fit_scale(axes[0], np.concatenate([values.values.ravel() for values in curves.values()]))
    _legend(figure, "metric", list(names.values()), (lost >= 0).any())
    return figure


def _curves(ax, metrics, log_steps):
    for values, stroke in zip(metrics, style.strokes([""] * len(metrics)), strict=True):
        time, n = values.dims[0], len(values)
        values = values.isel({time: np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).astype(int))})
        steps = values[time].values
        ax.plot(steps, values.median("seed"), **stroke, lw=1.8, gid="median")
        ax.fill_between(steps, values.min("seed"), values.max("seed"), color=stroke["color"], alpha=0.2, lw=0)
    if log_steps:
        style.log_steps(ax, steps, 0.4)
    style.in_thousands(ax)
