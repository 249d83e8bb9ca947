"""A series is what the Dataset holds, one number a row in the order of the grid."""

import numpy as np
import pytest
import xarray as xr

from lab import series

STEPS, ROWS = [0, 4, 8], range(6)  # rows of gamma x seed, the last fastest
A_TxRxI = np.arange(3 * 6 * 2, dtype=np.float32).reshape(3, 6, 2)


@pytest.fixture
def dataset():
    return xr.Dataset(
        {
            "diverged_at": (("gamma", "seed"), np.full((2, 3), -1, np.int32)),
            "m.a": (("i", "seed", "snapshot", "gamma"), A_TxRxI.reshape(3, 2, 3, 2).transpose(3, 2, 0, 1)),
            "m.n": (("gamma", "seed"), np.arange(6).reshape(2, 3)),
            "big": (("gamma", "seed", "j"), np.zeros((2, 3, series.MOST + 1))),
        },
        {"gamma": [0.5, 0.3], "seed": [0, 1, 2], "snapshot": STEPS, "i": ["x", "y"]},
    )


def test_rows_are_in_the_order_of_the_grid_whatever_the_order_of_dimensions(dataset):
    found, left_out = series.of(dataset)
    assert [*found] == ["diverged_at", "m.a[x]", "m.a[y]", "m.n"] and left_out == {"big": series.MOST + 1}
    for i, label in enumerate("xy"):
        np.testing.assert_array_equal(found[f"m.a[{label}]"].values, A_TxRxI[..., i])
        np.testing.assert_array_equal(found[f"m.a[{label}]"].steps, STEPS)
    assert found["m.n"].steps is None and found["m.n"].values.tolist() == [*ROWS]
    assert [*series.of(dataset, ["big"])[0]] == ["diverged_at", *(f"big[{j}]" for j in range(series.MOST + 1))]


def test_numbers_at_steps_that_a_series_does_not_have_are_nan(dataset):
    found = series.of(dataset)[0]["m.a[y]"]
    nan = np.nan
    np.testing.assert_array_equal(
        found.at(np.array([2, 4, 8, 9]), [5, 0]),
        [[nan, A_TxRxI[1, 5, 1], A_TxRxI[2, 5, 1], nan], [nan, A_TxRxI[1, 0, 1], A_TxRxI[2, 0, 1], nan]],
    )


def test_last_number_is_of_the_last_step_at_which_any_row_has_one():
    values = np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(series.Series(values, np.arange(3)).last(), [3.0, np.nan])


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.float32, np.float64])
def test_dtype_holds_every_number(dtype):
    one = series.Series(np.array([[1]], dtype), np.array([0]))
    assert one.at(np.array([0, 1]), [0]).dtype == one.dtype == (np.float32 if dtype == np.float32 else np.float64)
