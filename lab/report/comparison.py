"""Phase grids and curves of ours beside published ones.

Both functions return a matplotlib Figure; NaN and cells without a phase are left blank.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lab.analysis import phase
from lab.report import style

PHASE_COLOURS = ("#d1d5db", "#fde68a", "#f59e0b", "#0072B2")
PHASE_WORDS = ("seen pairs not learnt", "seen pairs only", "seen pairs only, orders alike", "reasoning")


@style.paper()
def phase_grids(grids: Mapping[str, xr.DataArray], agreements: Mapping[str, xr.DataArray], title: str):
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
        style.as_image(ax)
    names = [f"{name}: {words}" for name, words in zip(phase.PHASES, PHASE_WORDS, strict=True)]
    style.legend_below(figure, [Patch(color=c, label=n) for c, n in zip(PHASE_COLOURS, names, strict=True)])
    return figure


@style.paper()
def curves(panels: Mapping[str, Mapping[str, xr.DataArray]], title: str, xlabel="init rate γ", **axis):
    """Ours and theirs, a panel a quantity: lines of medians with bands over seeds, and what a paper reports.

    Args:
      panels: quantity -> label -> values (X) or, of several seeds, (seed, X), with the coordinate X. Labels that begin
        with `published` are drawn black.
      axis: properties of every panel's axes, e.g. `yscale="log"`.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    ours = [label for label in labels if not label.startswith("published")]
    theirs = [label for label in labels if label not in ours]
    colours = dict.fromkeys(theirs, "black") | dict(zip(ours, style.CATEGORIES, strict=False))
    dashes = dict.fromkeys(ours, "-") | dict(zip(theirs, ("--", ":", "-."), strict=False))
    notes = ["median over seeds, band from the lowest to the highest"]
    figure, axes = style.panels(len(panels), style.panel_width(len(panels)), 3.1, title, notes)
    for ax, (quantity, lines) in zip(axes, panels.items(), strict=True):
        for label, values in lines.items():
            x, y_SxX = values[values.dims[-1]].values, np.atleast_2d(values.values.astype(float))
            stroke = {"color": colours[label], "ls": dashes[label], "marker": "o", "ms": 4}
            ax.plot(x, np.median(y_SxX, axis=0), **stroke, gid=label)
            ax.fill_between(x, y_SxX.min(axis=0), y_SxX.max(axis=0), color=colours[label], alpha=0.15, lw=0)
        ax.set_title(quantity, loc="left")
        ax.set(xlabel=xlabel, **axis)
    strokes = [Line2D([], [], color=colours[label], ls=dashes[label], label=label) for label in labels]
    style.legend_below(figure, strokes)
    return figure
