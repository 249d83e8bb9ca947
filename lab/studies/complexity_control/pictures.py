"""The study's own pictures: phase diagrams side by side, accuracies beside the published ones, outputs by pair.

All return a matplotlib Figure; NaN and cells without a phase are left blank.
"""

from collections.abc import Mapping

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lab.analysis import phase
from lab.report import style

PHASE_COLOURS = ("#d1d5db", "#fde68a", "#f59e0b", "#0072B2")
PHASE_WORDS = ("seen pairs not learnt", "seen pairs only", "seen pairs only, orders alike", "reasoning")
MARKERS = {True: "o", False: "^"}  # a < b, and the other order


@style.paper()
def phases(grids: Mapping[str, xr.DataArray], agreements: Mapping[str, xr.DataArray], title: str):
    """Phase grids (gamma, weight_decay) side by side, each with its own gammas; cells in which seeds disagree say so.

    Args:
      grids: label -> indices into `phase.PHASES`, or `phase.NO_PHASE`.
      agreements: label -> share of the seeds that have the phase, for those that are known.
    """
    figure, axes = style.panels(len(grids), 5.1, 3.2, title, ["in a cell: its phase, and the share of seeds if not 1"])
    for ax, (label, grid) in zip(axes, grids.items(), strict=True):
        index_WxG = grid.transpose("weight_decay", "gamma").values
        shown = np.ma.masked_equal(index_WxG, phase.NO_PHASE)
        ax.imshow(shown, cmap=ListedColormap(PHASE_COLOURS), vmin=-0.5, vmax=3.5, origin="lower", aspect="auto")
        for (y, x), index in np.ndenumerate(index_WxG):
            share = float(agreements[label].transpose("weight_decay", "gamma")[y, x]) if label in agreements else 1.0
            text = phase.PHASES[index] if index != phase.NO_PHASE else "?"
            text += f"\n{share:.2f}" if share < 1 else ""
            ax.text(x, y, text, ha="center", va="center", fontsize=8.5, color="white" if index == 3 else "black")
        ax.set_xticks(range(grid.sizes["gamma"]), [style.short(g) for g in grid.gamma.values])
        ax.set_yticks(range(grid.sizes["weight_decay"]), [style.short(w) for w in grid.weight_decay.values])
        ax.set(xlabel="init rate γ", ylabel="weight decay")
        ax.set_title(label, loc="left")
        ax.grid(False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    names = [f"{name}: {words}" for name, words in zip(phase.PHASES, PHASE_WORDS, strict=True)]
    style.legend_below(figure, [Patch(color=c, label=n) for c, n in zip(PHASE_COLOURS, names, strict=True)])
    return figure


@style.paper()
def beside_published(panels: Mapping[str, Mapping[str, tuple]], title: str, xlabel="init rate γ", **axis):
    """Ours and theirs, a panel a quantity: lines of medians with bands over seeds, and what a paper reports.

    Args:
      panels: quantity -> label -> (x, y) with y (X) or, of several seeds, (seed, X). Labels that begin with
        `published` are drawn black.
      axis: properties of every panel's axes, e.g. `yscale="log"`.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    ours = [label for label in labels if not label.startswith("published")]
    theirs = [label for label in labels if label not in ours]
    colours = dict.fromkeys(theirs, "black") | dict(zip(ours, style.CATEGORIES, strict=False))
    dashes = dict.fromkeys(ours, "-") | dict(zip(theirs, ("--", ":", "-."), strict=False))
    notes = ["median over seeds, band from the lowest to the highest"]
    figure, axes = style.panels(len(panels), {1: 7, 2: 5.1}.get(len(panels), 3.4), 3.1, title, notes)
    for ax, (quantity, lines) in zip(axes, panels.items(), strict=True):
        for label, (x, y) in lines.items():
            y_SxX = np.atleast_2d(np.asarray(y, float))
            stroke = {"color": colours[label], "ls": dashes[label], "marker": "o", "ms": 4}
            ax.plot(x, np.median(y_SxX, axis=0), **stroke, gid=label)
            ax.fill_between(x, y_SxX.min(axis=0), y_SxX.max(axis=0), color=colours[label], alpha=0.15, lw=0)
        ax.set_title(quantity, loc="left")
        ax.set(xlabel=xlabel, **axis)
    strokes = [Line2D([], [], color=colours[label], ls=dashes[label], label=label) for label in labels]
    style.legend_below(figure, strokes)
    return figure


@style.paper()
def outputs_by_pair(rows: Mapping[str, xr.Dataset], title: str):
    """Principal components of output vectors, whole and with the key hidden; a colour a pair, a shape an order.

    Args:
      rows: label -> one row's dataset with the measurement `outputs`.
    """
    panels = [(label, row, name) for label, row in rows.items() for name in ("whole", "hidden")]
    figure, axes = style.panels(len(panels), 5.1, 3.4, title, ["dots: sequences; circles (a,b), triangles (b,a)"])
    pairs = [tuple(map(int, str(pair).split(","))) for pair in next(iter(rows.values())).ordered_pair.values]
    sets = sorted({tuple(sorted(pair)) for pair in pairs})
    colour = dict(zip(sets, matplotlib.colormaps["tab10"].colors, strict=False))
    for ax, (label, row, name) in zip(axes, panels, strict=True):
        components = row[f"outputs.{name}"].transpose("ordered_pair", "repeat", "component").values
        for pair, points_Rx2 in zip(pairs, components, strict=True):
            marker, c = MARKERS[pair[0] < pair[1]], colour[tuple(sorted(pair))]
            ax.scatter(*points_Rx2.T, s=14, marker=marker, color=c, alpha=0.6, lw=0)
        shares = 100 * row[f"outputs.{name}_explained"].values
        ax.set(
            xlabel=f"component 1 ({shares[0]:.0f} %)", ylabel=f"component 2 ({shares[1]:.0f} %)", xticks=[], yticks=[]
        )
        merged = float(row[f"outputs.{name}_merged"])
        words = "key hidden" if name == "hidden" else "whole"
        ax.set_title(f"{label}, {words}\ncosine of the two orders {merged:.2f}", loc="left")
    dots = [Line2D([], [], color=colour[pair], ls="", marker="o", label=f"{pair[0]} and {pair[1]}") for pair in sets]
    style.legend_below(figure, dots)
    return figure
