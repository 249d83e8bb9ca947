import numpy as np
import pytest
import xarray as xr
from shown import lines

from lab.analysis import scaling
from lab.report import scaling as pictures

SIZES = np.array([1e3, 1e4, 1e5])
EXPONENTS = np.array([0.3, 0.2])


@pytest.mark.parametrize("n_seeds", [1, 5])
def test_laws_are_drawn_through_the_losses_that_they_were_fitted_to(n_seeds):
    factors = np.linspace(0.99, 1.01, n_seeds) if n_seeds > 1 else np.ones(1)
    losses = factors[:, None] * (4 * SIZES ** -EXPONENTS[:, None] + 1)[:, None]
    losses = xr.DataArray(
        losses, {"arm": ["one", "two"], "seed": range(n_seeds), "size": SIZES}, ("arm", "seed", "size")
    )
    draws = scaling.resampled(losses, n_bootstrap=20)
    figure = pictures.laws(losses, draws, "Loss by size", "parameters")
    (ax,) = figure.axes
    drawn = lines(ax, "law")
    assert len(drawn) == 2 and len(ax.collections) >= 2 * (n_seeds > 1)
    for line, exponent in zip(drawn, EXPONENTS, strict=True):
        x, y = line.get_xdata(), line.get_ydata()
        np.testing.assert_allclose(y, 4 * x**-exponent + 1, rtol=1e-3)  # factors whose mean is one
        assert (x[0], x[-1]) == pytest.approx((SIZES[0], SIZES[-1]))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [f"{arm}: α = {pictures.exponent(draws.sel(arm=arm))}" for arm in ("one", "two")]
    assert labels[0].startswith("one: α = 0.30") and ("[" in labels[0]) == (n_seeds > 1)
