"""The picture of a coordinate check: sizes of activations against width, a curve a step."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from lab.analysis import coordinates
from lab.report import style


@style.paper()
def coordinate_check(sizes: xr.DataArray, activations: Sequence[str] = (), title: str = "Coordinate check"):
    """A line of panels for each activation, a panel for each parametrization; flat curves are sizes that do not go with
    width.

    Args:
      sizes: of `lab.analysis.coordinates.coordinate_check`.
      activations: those to show; (): what the last block leaves, and the logits.

    Raises:
      ValueError: an activation that was not measured.
    """
    there = sizes["activation"].values.tolist()
    last_left = [name for name in there if name.endswith("resid_post")][-1:]
    shown = list(activations) or [*last_left, *(name for name in there if name == "logits")]
    if missing := [name for name in shown if name not in there]:
        raise ValueError(f"activations: {missing[0]!r} was not measured; there are {', '.join(there)}")
    kinds, step_T, widths = (sizes[dim].values for dim in ("parametrization", "step", "width"))
    slopes = coordinates.exponents(sizes).median("seed")
    notes = [
        f"root mean square over entries, median of {sizes.sizes['seed']} seeds; band from the lowest to the highest"
    ]
    width = min(3.1, style.WIDEST / len(kinds))
    figure, axes = style.panels(len(shown) * len(kinds), width, 2.6, title, notes, sharex=True)
    colours = matplotlib.colormaps[style.ORDERED](np.linspace(0, 0.9, len(step_T)))
    panels = [(name, kind) for name in shown for kind in kinds]
    for ax, (name, kind) in zip(axes, panels, strict=True):
        of_panel = sizes.sel(activation=name, parametrization=kind)
        for step, colour in zip(step_T, colours, strict=True):
            seen = of_panel.sel(step=step).transpose("seed", "width").values
            ax.plot(widths, np.median(seen, axis=0), color=colour, lw=1.6, marker="o", ms=3, gid="curve")
            ax.fill_between(widths, seen.min(axis=0), seen.max(axis=0), color=colour, alpha=0.15, lw=0)
        slope = float(slopes.sel(activation=name, parametrization=kind, step=step_T[-1]))
        ax.set_title(f"{kind}: {name}\nwidth^{slope:.2f} at step {step_T[-1]}", loc="left", fontsize=9)
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", xlabel="width")
        ax.xaxis.set_major_formatter("{x:g}")
        for which in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            which("{x:g}")
    for name in shown:  # one scale for what is compared
        row = [ax for ax, panel in zip(axes, panels, strict=True) if panel[0] == name]
        ends = [ax.get_ylim() for ax in row]
        for ax in row:
            ax.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    handles = [Line2D([], [], color=colour, label=f"step {step}") for step, colour in zip(step_T, colours, strict=True)]
    style.legend_below(figure, handles)
    return figure
