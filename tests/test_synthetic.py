import numpy as np
from synthetic import GARBAGE, Grid, by_gamma


def test_numbers_are_where_a_run_reads_them_and_garbage_elsewhere():
    grid = Grid({"weight_decay": 0.01}, gamma=(0.3, 0.8), weight_decay=(0.01, 1.0))
    values = by_gamma(0.1, [0.2, 0.3, 0.4, 0.5, 0.6])
    grid.put("a", values).put("a", 2 * values, weight_decay=1.0).put("b", [1.0, 2.0], dims={"matrix": ["q", "k"]})
    run = grid.diverge(50, gamma=0.3, seed=0).run()
    expected = values.copy()
    expected[0, 0] = np.nan
    np.testing.assert_array_equal(run.final("a"), expected)
    np.testing.assert_array_equal(run.final("a", weight_decay=1.0), 2 * expected)
    np.testing.assert_array_equal(run.final("b").sel(matrix="k", gamma=0.8), 2.0)
    assert (grid.dataset["a"] == GARBAGE).sum() == 2 * 2 * 2 * 3 * 5 - 20
