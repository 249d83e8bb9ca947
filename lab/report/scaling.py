"""Losses against size, with the laws fitted to them and intervals over seeds."""

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from lab.analysis import scaling
from lab.report import style

POINTS = 60  # of a drawn law


@style.paper()
def laws(losses: xr.DataArray, draws: xr.Dataset, title: str, xlabel: str, ylabel: str = "held-out loss, nats"):
    """Losses of every arm at every size, on logarithmic axes; the law of their means, and a band of resampled laws.

    Args:
      losses: dims arm, seed and size; NaN where a seed lacks one.
      draws: `scaling.resampled` of them.
    """
    sizes = np.sort(losses["size"].values)
    along_P = np.geomspace(sizes[0], sizes[-1], POINTS)
    floor, *ends = (float(part.isel(arm=0)) for part in scaling.interval(draws["floor"]))
    said = "" if np.isnan(ends[0]) else f" [{ends[0]:.2f}, {ends[1]:.2f}]"
    shared = float(np.ptp(draws["floor"].isel(draw=0).values)) == 0
    notes = [
        f"dots: median over seeds, bars from the lowest to the highest; band: {100 * scaling.CERTAINTY:g} % of laws of "
        "resampled seeds" + f"; floor of all arms {floor:.2f}{said} nats" * shared
    ]
    figure, (ax,) = style.panels(1, style.panel_width(1), 3.9, title, notes)
    handles = []
    for i, arm in enumerate(losses["arm"].values):
        stroke = {"color": style.CATEGORIES[i], "ls": style.DASHES[i % len(style.DASHES)]}
        of_arm = losses.sel(arm=arm).transpose("seed", "size").sortby("size")
        middle, low, high = of_arm.median("seed").values, of_arm.min("seed").values, of_arm.max("seed").values
        ax.errorbar(sizes, middle, [middle - low, high - middle], fmt="o", ms=4.5, color=stroke["color"], gid=str(arm))
        law = draws.sel(arm=arm)
        curve_DxP = law["amplitude"].values[:, None] * along_P ** -law["exponent"].values[:, None]
        curve_DxP += law["floor"].values[:, None]
        ax.plot(along_P, curve_DxP[0], **stroke, lw=1.6, gid="law")
        if len(curve_DxP) > 1:
            band = np.quantile(curve_DxP[1:], [(1 - scaling.CERTAINTY) / 2, (1 + scaling.CERTAINTY) / 2], axis=0)
            ax.fill_between(along_P, *band, color=stroke["color"], alpha=0.18, lw=0)
        handles.append(Line2D([], [], **stroke, marker="o", ms=4.5, label=f"{arm}: α = {exponent(law)}"))
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    style.in_thousands(ax)
    ax.yaxis.set_major_formatter("{x:.2f}")
    ax.yaxis.set_minor_formatter("{x:.2f}")
    style.legend_below(figure, handles)
    return figure


def exponent(law: xr.Dataset) -> str:
    """The exponent of one arm's draws with its interval: `0.21 [0.18, 0.25]`."""
    value, low, high = (float(part) for part in scaling.interval(law["exponent"]))
    return f"{value:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")
