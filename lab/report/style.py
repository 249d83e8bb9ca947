"""Style and names of the pictures: colours that are safe for the colour-blind, legible sizes, no pyplot state."""

import textwrap
from collections.abc import Mapping
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

from lab.runs import TIMES

# Okabe & Ito's palette for categories; yellow last, since it fades on white.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
ORDERED = "viridis"
UNBOUNDED = "cividis"  # values that are no shares
DIVERGING = "RdBu_r"
DASHES = ("-", (0, (5, 2)), (0, (2, 3)))
GREY = "#6b7280"
DIVERGED = {"color": GREY, "ls": "", "marker": "x", "mew": 1.8}  # in a legend
LOST = {"facecolor": "none", "edgecolor": GREY, "hatch": "////"}  # in a legend, of a map

PNG_DPI = 110
WIDEST = 10.25  # inches

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "figure.titlesize": 11.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "lines.linewidth": 2,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "axes.formatter.min_exponent": 5,  # on logarithmic axes 20 and 0.001, not powers of ten
    "svg.hashsalt": "lab",  # the same figure gives the same bytes
}


@contextmanager
def paper():
    """The style, as a context manager or a decorator. Draw and save under it: ticks are made late."""
    with matplotlib.rc_context(_RC):
        yield


def panels(n, width, height, title, notes=(), **subplots):
    """(figure, n axes), `width` x `height` inches each, as many in a line as fit; title and notes on top."""
    columns = min(n, max(1, int(WIDEST // width)))
    rows = -(-n // columns)
    columns = -(-n // rows)
    wide = max(columns * width, 5)
    heading = textwrap.fill(title, int(9.5 * wide))
    small = "\n".join(textwrap.fill(note, int(14.5 * wide)) for note in notes)
    above = 0.15 + 0.22 * (1 + heading.count("\n"))
    top = above + (0.17 * (1 + small.count("\n")) if small else 0) + 0.04
    high = rows * height + top
    figure = Figure(figsize=(wide, high), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, rect=(0, 0, 1, 1 - top / high))
    axes = list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)
    figure.suptitle(heading, x=0.1 / wide, y=1 - 0.1 / high, ha="left", va="top", weight="bold")
    figure.text(0.1 / wide, 1 - above / high, small, ha="left", va="top", fontsize=9, color=GREY)
    for ax in axes[n:]:
        ax.remove()
    return figure, axes[:n]


def labelled(metrics):
    """{name: label} from a name, several names, or a mapping, which is returned as a dict."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    return {name: name for name in ([metrics] if isinstance(metrics, str) else metrics)}


def short(value):
    """A coordinate's value as text; numbers without the tail of their binary form."""
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def words(dim, value):
    """`dim` and its value for a title: "weight decay 0.1"; a metric's label alone."""
    special = {"metric": "", "gamma": "γ "} | dict.fromkeys(TIMES, "step ")
    return special.get(dim, f"{dim.replace('_', ' ')} ") + short(value)


def mark_diverged(ax, x, colour):
    """A cross on the floor at every x."""
    floor = np.full(len(x), 0.025)
    cross = {"color": colour, "ms": 7, "mew": 1.8, "zorder": 4, "gid": "diverged"}
    ax.plot(x, floor, "x", transform=ax.get_xaxis_transform(), **cross)


def log_steps(ax, steps, linscale):
    """The x axis logarithmic in training steps, linear below the first step after 0, which is returned."""
    first = np.append(steps[steps > 0], 1)[0]
    ax.set_xscale("symlog", linthresh=first, linscale=linscale)
    return first


def in_thousands(ax):
    """Numbers along an x axis as 10k, 1M: a linear one that goes beyond 20,000, and a logarithmic one from 1 on."""
    first, last = ax.get_xlim()
    if (ax.get_xscale() == "linear" and last >= 20_000) or (ax.get_xscale() == "log" and first >= 1):
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def hatching(x, y, ink):
    """The mark on a map's cell some of whose seeds are lost; a patch as `LOST` stands for it in the legend."""
    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", ec=ink, lw=0, alpha=0.3)


def as_image(ax):
    """No grid, frame or tick marks."""
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def ink(image, value):
    """Black or white, whichever is read on the colour of a finite value."""
    return "white" if np.dot(image.to_rgba(value)[:3], (0.3, 0.59, 0.11)) < 0.5 else "black"


def panel_width(n):
    """Inches, of curves in n panels."""
    return {1: 7, 2: 5.1}.get(n, 3.4)


def strokes(values):
    """Colour and dash per value: viridis for several numbers in order, the categorical palette otherwise.

    Categories are dashed too, so that of two lines on top of each other both are seen.
    """
    if np.issubdtype(np.asarray(values).dtype, np.number) and len(values) > 1:
        colours = matplotlib.colormaps[ORDERED](np.linspace(0, 0.82, len(values)))
        return [{"color": colour, "ls": "-"} for colour in colours]
    n = range(len(values))
    return [{"color": CATEGORIES[i % len(CATEGORIES)], "ls": DASHES[i % len(DASHES)]} for i in n]


def legend_below(figure, handles):
    """A legend under the panels, in one line if it fits and in equal columns otherwise."""
    widths = [0.65 + 0.075 * len(handle.get_label()) for handle in handles]
    room = figure.get_figwidth()
    columns = len(handles) if sum(widths) <= room else max(1, int(room // max(widths)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def fit_scale(ax, values):
    """The y axis of `ax`: 0 to 1 for shares, logarithmic for positive values over a factor of 30."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() >= 0 and finite.max() <= 1:
        ax.set_ylim(-0.06, 1.06)
    elif finite.size and finite.min() > 0 and finite.max() > 30 * finite.min():
        ax.set_yscale("log")
    else:
        ax.margins(y=0.1)
