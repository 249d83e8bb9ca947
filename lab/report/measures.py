"""Pictures of single analyses: measurements over training, spectra, noise curves, predictors.

`against_gamma_over_time` takes the dataset of `lab.load`, as `lab.report.figures`; the others take arrays, in
mappings {label: values} of what stands side by side. Labels that are numbers, or more than eight, are coloured in
order. All return a matplotlib Figure; NaN is left blank.
"""

import numpy as np
from matplotlib.lines import Line2D

from lab.report import style
from lab.report.figures import over_time, select
from lab.runs import as_run

DECADES = 8  # of a density below its peak that are drawn: one eigenvalue among 10^7 still shows
ERRORS = 2  # standard errors either side
MOST_KNOBS = 3  # that a legend names
SMALL = 0.3  # shares that are all below this get an axis of their own, not 0 to 1
DOTS = {  # by control of `lab.analysis.complexity.predictors`
    "none": {"color": style.CATEGORIES[0], "marker": "o", "ls": ""},
    "knobs": {"color": style.CATEGORIES[1], "marker": "s", "ls": ""},
}


@style.paper()
def against_gamma_over_time(run, metrics, title="", **at):
    """Measured variables over the snapshots: a panel per variable, a line per gamma.

    Lines are medians over seeds, bands run from the lowest to the highest seed, an x on the floor
    stands at the step at which a row diverged; a variable's lines join the times it was taken at. The
    step axis is logarithmic, linear below the first step after 0. `metrics` and `at` are as in
    `lab.report.figures`; `at` selects all other dimensions. Raises ValueError for a variable without a
    time, or a selection that the dataset does not have.
    """
    names, values, lost, note = over_time(as_run(run), metrics, at)
    lost = lost.sortby("gamma")
    title = title or f"Over training: {', '.join(names.values())}"
    strokes = style.strokes(lost["gamma"].values)
    keys = [style.words("gamma", gamma) for gamma in lost["gamma"].values]
    if (lost >= 0).any():
        strokes.append(style.DIVERGED)
        keys.append("diverged, left out")
    figure, axes = _panels(len(names), 2.9, title, note, keys)
    for ax, name in zip(axes, names, strict=True):
        _over_time(ax, _taken(values[name].sortby("gamma")), lost)
        ax.set_title(names[name], loc="left")
    _legend(figure, strokes, keys)
    return figure


def _taken(values):
    """Without the times at which no row has a value: another variable's; all of them where there is none."""
    time = values.dims[0]
    there = values.dropna(time, how="all")
    return there if there.sizes[time] else values


def _over_time(ax, values, lost):
    steps = values[values.dims[0]].values
    for i, stroke in enumerate(style.strokes(values["gamma"].values)):
        one, when = values.isel(gamma=i), lost.isel(gamma=i).values
        ax.plot(steps, one.median("seed"), **stroke, marker="o", ms=3, gid="median")
        ax.fill_between(steps, one.min("seed"), one.max("seed"), color=stroke["color"], alpha=0.15, lw=0)
        style.mark_diverged(ax, when[when >= 0], stroke["color"])
    _fit(ax, values.values)
    first = style.log_steps(ax, steps, 0.4)
    ax.set(xlim=(0.8 * first if steps[0] > 0 else -0.3 * first, 1.3 * max(steps[-1], first)), xlabel="step")


@style.paper()
def spectrum(density, grid, error, eigenvalues, title="Spectral density of the Hessian"):
    """Spectral densities on a logarithmic axis, a panel per label, with a tick on the floor per eigenvalue.

    All four are mappings {label: values}: density_G and its standard error_G at grid_G, eigenvalues_K (those known
    one by one; may be empty). The densities share their axis, which ends eight decades below the highest peak.
    """
    peak = max(_finite(values_G).max(initial=0) for values_G in density.values()) or 1
    floor = peak * 10.0**-DECADES
    notes = f"band: {ERRORS} standard errors either side; ticks on the floor: eigenvalues known one by one"
    figure, axes = _panels(len(density), 2.9, title, notes, (), sharey=True)
    for ax, label in zip(axes, density, strict=True):
        x_G, y_G, spread_G = grid[label], np.asarray(density[label]), ERRORS * np.asarray(error[label])
        ax.set_yscale("log")
        ax.plot(x_G, np.where(y_G > 0, y_G, np.nan), color=style.CATEGORIES[0], lw=1.6, gid="density")
        # what a logarithm cannot show is below the floor, not absent
        low_G, high_G = (np.maximum(bound_G, floor / 10) for bound_G in (y_G - spread_G, y_G + spread_G))
        ax.fill_between(x_G, low_G, high_G, color=style.CATEGORIES[0], alpha=0.25, lw=0)
        known_K = np.asarray(eigenvalues[label])
        rug = {"color": style.CATEGORIES[1], "ms": 12, "mew": 1.2, "gid": "eigenvalues", "zorder": 4}
        ax.plot(known_K, np.full(len(known_K), 0.04), "|", transform=ax.get_xaxis_transform(), **rug)
        ax.set_title(style.short(label), loc="left")
        ax.set_xlabel("eigenvalue")
    axes[0].set_ylim(floor, 4 * peak)
    axes[0].set_ylabel("density")
    return figure


@style.paper()
def singular_spectra(rows, matrices, title="Singular values"):
    """Singular values from the largest down, a panel per matrix, a line per row.

    `rows` is {label: DataArray with the dims `matrix`, which has coordinates, and one more}, NaN after the values
    that a matrix has; `matrices` are the names to draw. Zeros fall off the logarithmic axis. Raises ValueError for
    other dims, or a name that is not there.
    """
    keys, strokes = [style.short(label) for label in rows], _strokes(rows)
    figure, axes = _panels(len(matrices), 2.6, title, "", keys)
    for ax, matrix in zip(axes, matrices, strict=True):
        for stroke, values in zip(strokes, rows.values(), strict=True):
            s_K = _finite(select(values, _beside_matrix(values), {"matrix": matrix})[0])
            ax.plot(np.arange(1, len(s_K) + 1), np.where(s_K > 0, s_K, np.nan), **stroke, lw=1.6, gid="values")
        ax.set_yscale("log")
        ax.set_title(matrix, loc="left")
        ax.set_xlabel("index")
    _legend(figure, strokes, keys)
    return figure


def _beside_matrix(values):
    if "matrix" not in values.dims or len(values.dims) != 2:
        raise ValueError(f"singular values with the dims {values.dims}; accepted: matrix and one more")
    return [dim for dim in values.dims if dim != "matrix"]


@style.paper()
def lines_with_error(x, lines, xlabel, ylabel, title=""):
    """A mean and its standard error against a distance or a noise level: a line and a band per label.

    `lines` is {label: (value_X, standard_error_X)}, such as `lab.analysis.estimate.Estimate`; where the error is NaN
    there is no band.
    """
    x = np.asarray(x)
    notes = f"band: {ERRORS} standard errors either side"
    keys, strokes = [style.short(label) for label in lines], _strokes(lines)
    figure, (ax,) = _panels(1, 3.4, title or f"Against {xlabel}: {ylabel}", notes, keys)
    for stroke, (value_X, error_X) in zip(strokes, lines.values(), strict=True):
        value_X, spread_X = np.asarray(value_X), ERRORS * np.asarray(error_X)
        ax.plot(x, value_X, **stroke, marker="o", ms=3.5, gid="value")
        ax.fill_between(x, value_X - spread_X, value_X + spread_X, color=stroke["color"], alpha=0.18, lw=0)
    if x.min() > 0 and x.max() > 30 * x.min():
        ax.set_xscale("log")
    _fit(ax, np.concatenate([np.asarray(value_X) for value_X, _ in lines.values()]))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, strokes, keys)
    return figure


@style.paper()
def predictors(table, coefficient="spearman", title="What predicts generalization?"):
    """Each measure's rank correlation with the target, dots and intervals, the largest on top.

    `table` is that of `lab.analysis.complexity.predictors`, or a selection of its measures or controls. The order is
    that of the first control; a correlation that does not exist is written as n/a. Raises ValueError for a
    coefficient that the table does not have.
    """
    if coefficient not in table["coefficient"]:
        raise ValueError(f"coefficient {coefficient!r}: one of {', '.join(table['coefficient'].values)}")
    table = table.sel(coefficient=coefficient)
    controls = table["control"].values
    # sorted for an axis that points up: the largest last, NaN first
    first_M = table["value"].sel(control=controls[0]).values
    table = table.isel(measure=np.argsort(np.where(np.isnan(first_M), -np.inf, first_M), kind="stable"))
    notes = f"{coefficient.capitalize()} correlation, intervals of {100 * table.attrs['level']:g} % over resampled "
    notes += f"{table.attrs['over']}s, {_counts(table)}"
    n = table.sizes["measure"]
    figure, (ax,) = style.panels(1, 7.5, 0.3 * n + 0.9, title, [notes])
    ax.axvline(0, color=style.GREY, lw=1, zorder=1, gid="zero")
    for i, control in enumerate(controls):
        side = (len(controls) - 1) / 2 - i  # the first above, the second below
        _dots(ax, table.sel(control=control), side, DOTS[control])
    ax.set_yticks(range(n), table["measure"].values)
    ax.set(xlim=(-1.05, 1.05), ylim=(-0.6, n - 0.4), xlabel=f"{coefficient.capitalize()} correlation")
    ax.grid(False, axis="y")
    named = table.attrs["knobs"][:MOST_KNOBS]
    more = len(table.attrs["knobs"]) - len(named)
    knobs = " and ".join([*named, *([f"{more} more"] if more else [])]).replace("_", " ")
    keys = {"none": "over all rows", "knobs": f"among rows of equal {knobs}"}
    _legend(figure, [DOTS[control] for control in controls], [keys[control] for control in controls])
    return figure


def _dots(ax, table, side, dot):
    y = np.arange(table.sizes["measure"]) + 0.22 * side
    ax.hlines(y, table["low"], table["high"], color=dot["color"], lw=1.8, gid="interval")
    ax.plot(table["value"], y, **dot, ms=6, gid="value")
    for missing in y[np.isnan(table["value"].values)]:
        ax.text(-0.1 * side, missing, "n/a", color=dot["color"], ha="center", va="center", fontsize=8)


def _counts(table):
    rows = table["n_rows"].values
    used = f"{rows.min()}" if rows.min() == rows.max() else f"{rows.min()} to {rows.max()}"
    lost = table["n_diverged"].values.max()
    return f"{used} rows" + (f", {lost} diverged and left out" if lost else "")


def _panels(n, height, title, note, keys, **subplots):
    """`style.panels` with room below for a legend of these keys."""
    width = style.panel_width(n)
    columns = max(1, int(7 // (0.65 + 0.075 * max(map(len, keys), default=0))))
    room = 0.2 * -(-len(keys) // columns)
    rows = -(-n // int(style.WIDEST // width))
    return style.panels(n, width, height + room / rows, title, [note] if note else [], **subplots)


def _strokes(labels):
    labels = list(labels)
    return style.strokes(range(len(labels)) if len(labels) > len(style.CATEGORIES) else labels)


def _legend(figure, strokes, keys):
    style.legend_below(figure, [Line2D([], [], **stroke, label=key) for stroke, key in zip(strokes, keys, strict=True)])


def _fit(ax, values):
    """The y axis as `style.fit_scale` has it, but small numbers are not squeezed onto 0 to 1."""
    finite = _finite(values)
    if finite.size and finite.min() >= 0 and finite.max() < SMALL:
        if finite.min() > 0 and finite.max() > 30 * finite.min():
            ax.set_yscale("log")
        ax.margins(y=0.1)
    else:
        style.fit_scale(ax, values)


def _finite(values):
    values = np.asarray(values)
    return values[np.isfinite(values)]
