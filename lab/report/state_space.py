"""Pictures of a Mamba: what each token reads through its state, and how alike the taps of its convolution are.

`panels` is {panel title: the values of one layer of one row}.
"""

from collections.abc import Mapping

import xarray as xr

from lab.report import maps
from lab.report.page import Picture

Panels = Mapping[str, xr.DataArray]


def reads(panels: Panels, caption: str) -> Picture:
    """Of `mixing.read`, (query, position)."""
    places = _places(panels, "position")
    figure = maps.heatmap(panels, places, places, "share of |S dt|", "What each token reads", "reader", "read")
    return Picture("reads", caption, figure)


def taps(panels: Panels, title: str) -> Picture:
    """Of `taps.cosine`, (tap, other_tap)."""
    places = _places(panels, "tap")
    figure = maps.heatmap(panels, places, places, "cosine", title, "tap", "tap")
    return Picture("taps", "Cosines over channels after training; the last tap is the token's own.", figure)


def by_layer(values: xr.DataArray) -> dict[str, xr.DataArray]:
    """Panels of one row, one for each layer."""
    return {f"layer {int(layer)}": values.sel(layer=layer) for layer in values["layer"].values}


def _places(panels: Panels, dim: str) -> range:
    return range(next(iter(panels.values())).sizes[dim])
