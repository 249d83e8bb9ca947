import numpy as np
import xarray as xr
from shown import heading, titles

from lab.report import state_space


def test_what_tokens_read_and_how_alike_taps_are_stand_as_measured_layer_by_layer():
    read_NxLxL = np.tril(np.arange(1.0, 19.0).reshape(2, 3, 3)) / 18
    shares = xr.DataArray(read_NxLxL, {"layer": [1, 2]}, ("layer", "query", "position"))
    cosine_NxTxT = np.stack([np.eye(4), np.full((4, 4), -0.5)])
    cosines = xr.DataArray(cosine_NxTxT, {"layer": [1, 2]}, ("layer", "tap", "other_tap"))
    pictures = [
        state_space.reads(state_space.by_layer(shares), "Of one row."),
        state_space.taps(state_space.by_layer(cosines), "Taps of every layer"),
    ]
    assert [picture.name for picture in pictures] == ["reads", "taps"] and pictures[0].caption == "Of one row."
    for picture, title, values in zip(
        pictures, ("What each token reads", "Taps of every layer"), (read_NxLxL, cosine_NxTxT), strict=True
    ):
        assert heading(picture.figure).startswith(title) and titles(picture.figure) == ["layer 1", "layer 2"]
        shown = np.stack([np.asarray(ax.images[0].get_array()) for ax in picture.figure.axes if ax.images])
        np.testing.assert_array_equal(shown[: len(values)], values)
