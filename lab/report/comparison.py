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
PHASE_WORDS = ("seen pairs not learnt", "memory of seen pairs", "memory, both orders alike", "reasoning")


@style.paper()
def phase_grids(grids: Mapping[str, xr.DataArray | xr.Dataset], title: str):
    """Phase grids (gamma, weight_decay) side by side, each with its own gammas, under one legend.

    Args:
      grids: label -> indices into `phase.PHASES`, or `phase.NO_PHASE`; or, of several seeds, what `phase.vote` or
        `phase.typical` returns: then cells in which seeds disagree, or are lost (hatched), say so.
    """
    notes = [
        "initial weights have std d_in^-γ: smaller to the right; "
        "in a cell: its phase, and how many of the seeds have it where not all do"
    ]
    figure, axes = style.panels(len(grids), 5.1, 3.3, title, notes)
    lost = False
    for ax, (label, grid) in zip(axes, grids.items(), strict=True):
        index_WxG = (grid["phase"] if isinstance(grid, xr.Dataset) else grid).transpose("weight_decay", "gamma")
        shown = np.ma.masked_equal(index_WxG.values, phase.NO_PHASE)
        ax.imshow(shown, cmap=ListedColormap(PHASE_COLOURS), vmin=-0.5, vmax=3.5, origin="lower", aspect="auto")
        for (y, x), index in np.ndenumerate(index_WxG.values):
            cell = {"weight_decay": y, "gamma": x}
            lines, n_lost = _cell(grid.isel(cell)) if isinstance(grid, xr.Dataset) else ([_name(index)], 0)
            ink = "white" if index == len(phase.PHASES) - 1 else "black"
            if n_lost:
                lost = True
                ax.add_patch(style.hatching(x, y, ink))
            ax.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=8.5, linespacing=1.15, color=ink)
        ax.set_xticks(range(grid.sizes["gamma"]), [style.short(g) for g in grid.gamma.values])
        ax.set_yticks(range(grid.sizes["weight_decay"]), [style.short(w) for w in grid.weight_decay.values])
        ax.set_xticks(np.arange(1, grid.sizes["gamma"]) - 0.5, minor=True)
        ax.set_yticks(np.arange(1, grid.sizes["weight_decay"]) - 0.5, minor=True)
        ax.set(xlabel="init rate γ", ylabel="weight decay")
        ax.set_title(label, loc="left")
        style.as_image(ax)
        ax.grid(True, which="minor", color="white", lw=1.5)
        ax.tick_params(which="minor", length=0)
    names = [f"{name}: {words}" for name, words in zip(phase.PHASES, PHASE_WORDS, strict=True)]
    handles = [Patch(color=colour, label=name) for colour, name in zip(PHASE_COLOURS, names, strict=True)]
    if lost:
        handles.append(Patch(**style.LOST, label="k of n seeds diverged or have no phase (k/n ×)"))
    style.legend_below(figure, handles)
    return figure


def _cell(seeds: xr.Dataset) -> tuple[list[str], int]:
    """What a cell says, and how many of its seeds are lost."""
    index, n, n_lost = (int(seeds[name]) for name in ("phase", "n", "n_lost"))
    agreement = float(seeds["agreement"])
    lines = [_name(index)] if n else []
    if index != phase.NO_PHASE and agreement < 1:
        lines.append(f"{round(agreement * n)} of {n}")
    return lines + [f"{n_lost}/{n + n_lost} ×"] * (n_lost > 0), n_lost


def _name(index: int) -> str:
    return "?" if index == phase.NO_PHASE else phase.PHASES[index]


@style.paper()
def curves(panels: Mapping[str, Mapping[str, xr.DataArray]], title: str, xlabel="init rate γ", **axis):
    """Ours and theirs, a panel a quantity: lines of medians with bands over seeds, and what a paper reports.

    Where no line is of several seeds the picture says so.

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
    n_seeds = {line.sizes["seed"] for lines in panels.values() for line in lines.values() if "seed" in line.dims}
    notes = ["one seed" if n_seeds == {1} else "median over seeds, band from the lowest to the highest"]
    figure, axes = style.panels(len(panels), style.panel_width(len(panels)), 3.1, title, notes)
    for ax, (quantity, lines) in zip(axes, panels.items(), strict=True):
        for label, values in lines.items():
            x, y_SxX = values[values.dims[-1]].values, np.atleast_2d(values.values.astype(float))
            stroke = {"color": colours[label], "ls": dashes[label], "marker": "o", "ms": 4}
            ax.plot(x, np.median(y_SxX, axis=0), **stroke, gid=label)
            ax.fill_between(x, y_SxX.min(axis=0), y_SxX.max(axis=0), color=colours[label], alpha=0.15, lw=0)
        ax.set_title(quantity, loc="left")
        ax.set(xlabel=xlabel, **axis)
        style.in_thousands(ax)
    strokes = [Line2D([], [], color=colours[label], ls=dashes[label], label=label) for label in labels]
    style.legend_below(figure, strokes)
    return figure
