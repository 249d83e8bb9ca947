"""Maps: attention between tokens, and values by layer and position, a panel per label."""

import matplotlib
import numpy as np

from lab.report import style

MOST_PRINTED = 10  # rows and columns of a map whose numbers are printed
BLANK = "#d1d5db"
SIGNED = 0.02  # of the largest magnitude: what is less below 0 gets no colours of its own


@style.paper()
def token_attention(maps, queries, keys, title="Attention between tokens", top=None):
    """Heatmaps of A_IxJ, how much query token i attends to key token j, a panel per label (a row, or a time).

    `queries` and `keys` name the I rows and J columns, the first row on top; all panels share the scale from 0
    to `top` (None: the largest value). Raises ValueError for a map of another shape.
    """
    figure, axes = _maps(maps, queries, keys, "attention", title, top)
    for ax in axes:
        ax.set_xlabel("key token, attended to")
        ax.invert_yaxis()
    axes[0].set_ylabel("query token")
    return figure


@style.paper()
def heatmap(maps, layers, positions, quantity, title="", ylabel="layer", xlabel="position"):
    """Maps of N layers x L positions, a panel per label, the first layer below: causal tracing, logit lens.

    `layers` and `positions` are labels, `quantity` says what is shown. All panels share the scale: from 0, or around 0
    in two colours where some value is negative. Raises ValueError for a map of another shape.
    """
    figure, axes = _maps(maps, layers, positions, quantity, title or f"By layer and position: {quantity}")
    for ax in axes:
        ax.set_xlabel(xlabel)
    axes[0].set_ylabel(ylabel)
    return figure


def _maps(maps, rows, columns, quantity, title, top=None):
    maps = {label: np.asarray(map_IxJ) for label, map_IxJ in maps.items()}
    for label, map_IxJ in maps.items():
        if map_IxJ.shape != (len(rows), len(columns)):
            given = f"{len(rows)} and {len(columns)} names"
            raise ValueError(f"map {label!r} has shape {map_IxJ.shape}; given are {given}")
    everything = np.concatenate([map_IxJ[np.isfinite(map_IxJ)] for map_IxJ in maps.values()])
    top = top or np.abs(everything).max(initial=0) or 1
    signed = everything.min(initial=0) < -SIGNED * top
    cmap = matplotlib.colormaps[style.DIVERGING if signed else style.ORDERED].with_extremes(bad=BLANK)
    printed = max(len(rows), len(columns)) <= MOST_PRINTED and 0.1 <= top < 1000
    cell, (beside, below) = 0.42 if printed else 0.17, (_longest(names) for names in (rows, columns))
    upright = below > cell - 0.05
    width = min(max(cell * len(columns), 2) + beside + 0.7, style.WIDEST)
    height = min(max(cell * len(rows), 1.8), 7) + (below if upright else 0.15) + 0.8
    figure, axes = style.panels(len(maps), width, height, title)
    for ax, (label, map_IxJ) in zip(axes, maps.items(), strict=True):
        image = ax.imshow(map_IxJ, cmap=cmap, vmin=-top if signed else 0, vmax=top, origin="lower", aspect="auto")
        ax.set_xticks(range(len(columns)), [style.short(name) for name in columns], rotation=90 if upright else 0)
        ax.set_yticks(range(len(rows)), [style.short(name) for name in rows])
        ax.set_title(style.short(label), loc="left")
        style.as_image(ax)
        if printed:
            _print(ax, image, map_IxJ, 2 if top < 10 else 1 if top < 100 else 0)
    bar = figure.colorbar(image, ax=axes, label=quantity, shrink=0.8, pad=0.015, aspect=6 * figure.get_figheight())
    bar.outline.set_visible(False)
    return figure, axes


def _longest(names):
    """Inches that the longest name takes as a tick."""
    return 0.08 * max(len(style.short(name)) for name in names)


def _print(ax, image, map_IxJ, digits):
    for (i, j), value in np.ndenumerate(map_IxJ):
        if np.isfinite(value):
            text = f"{round(value, digits) + 0.0:.{digits}f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=style.ink(image, value))
