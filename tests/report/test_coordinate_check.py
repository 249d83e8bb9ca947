"""What the picture of a coordinate check shows is read back from its axes."""

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from shown import lines

from lab.report.coordinate_check import coordinate_check

COORDS = {
    "parametrization": ["one", "other"], "activation": ["embed", "block_0/resid_post", "logits"],
    "width": [16, 64], "seed": [0, 1, 2], "step": [0, 1],
}  # fmt: skip
SIZES = xr.DataArray(np.random.default_rng(0).uniform(1, 2, (2, 3, 2, 3, 2)), COORDS, tuple(COORDS))


def test_every_panel_has_the_medians_of_its_activation_a_curve_a_step():
    figure = coordinate_check(SIZES)
    panels = [(name, kind) for name in ("block_0/resid_post", "logits") for kind in ("one", "other")]
    for ax, (name, kind) in zip(figure.axes, panels, strict=True):
        assert ax.get_title(loc="left").startswith(f"{kind}: {name}\nwidth^")
        for step, line in enumerate(lines(ax, "curve")):
            median = SIZES.sel(activation=name, parametrization=kind, step=step).median("seed")
            assert_allclose(line.get_xydata(), np.column_stack([COORDS["width"], median]))
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim() != figure.axes[2].get_ylim()


def test_activation_that_was_not_measured_is_refused():
    assert len(coordinate_check(SIZES, ["embed"]).axes) == 2
    with pytest.raises(ValueError, match="activations: 'final' was not measured; there are embed, block_0"):
        coordinate_check(SIZES, ["final"])
