import itertools
import json

import numpy as np
import pytest

from lab import grid

AXES = {"gamma": (0.3, 0.5, 0.8), "weight_decay": (0.0, 1.0), "learning_rate": (1e-3,), "seed": (1, 2)}
COLUMNS = {"gamma": (0.3, 0.8), "weight_decay": (0.0, 1.0), "learning_rate": (1e-3, 1e-4), "seed": (7, 7)}


def test_product_runs_the_last_axis_fastest():
    g = grid.product(AXES)
    rows = [
        {"gamma": gamma, "weight_decay": decay, "learning_rate": 1e-3, "seed": seed}
        for gamma in (0.3, 0.5, 0.8)
        for decay in (0.0, 1.0)
        for seed in (1, 2)
    ]
    assert [g.row(i) for i in range(len(g))] == rows
    assert g.axes == AXES


def test_product_reshapes_to_its_axes():
    g = grid.product({"seed": (3, 4), "gamma": (0.3, 0.5), "weight_decay": (0.0,), "learning_rate": (1e-3, 2e-3, 3e-3)})
    shape = tuple(len(values) for values in g.axes.values())
    for axis, (name, values) in enumerate(g.axes.items()):
        cube = np.reshape(g.columns[name], shape)
        for i, value in enumerate(values):
            assert (cube.take(i, axis) == value).all()


def test_zipped_takes_the_values_row_by_row():
    g = grid.zipped(COLUMNS)
    assert g.row(0) == {"gamma": 0.3, "weight_decay": 0.0, "learning_rate": 1e-3, "seed": 7}
    assert g.row(1) == {"gamma": 0.8, "weight_decay": 1.0, "learning_rate": 1e-4, "seed": 7}
    assert len(g) == 2
    assert g.axes is None


def test_concat_puts_rows_one_after_the_other_whatever_the_order_of_the_names():
    one, other = grid.product(AXES), grid.zipped(dict(reversed(COLUMNS.items())))
    g = grid.concat(one, other, one)
    parts = itertools.chain(*([part.row(i) for i in range(len(part))] for part in (one, other, one)))
    assert [g.row(i) for i in range(len(g))] == list(parts)
    assert g.axes is None


def test_arrays_are_the_columns_in_the_precision_of_the_device():
    arrays = grid.product(AXES).arrays()
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "gamma": "float32", "weight_decay": "float32", "learning_rate": "float32", "seed": "int32",
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["seed"], [1, 2] * 6)
    # Rounding to float32 is at most half an ulp, 2^-24 relative.
    np.testing.assert_allclose(arrays["gamma"], np.repeat([0.3, 0.5, 0.8], 4), rtol=2.0**-24)


def test_numpy_numbers_become_plain_ones():
    g = grid.product(
        {"gamma": np.linspace(0.25, 0.75, 3), "weight_decay": [0], "learning_rate": (1,), "seed": np.arange(2)}
    )
    assert g.axes == {"gamma": (0.25, 0.5, 0.75), "weight_decay": (0.0,), "learning_rate": (1.0,), "seed": (0, 1)}
    kinds = {name: {type(value) for value in column} for name, column in g.columns.items()}
    assert kinds == {"gamma": {float}, "weight_decay": {float}, "learning_rate": {float}, "seed": {int}}


@pytest.mark.parametrize(
    "g", [grid.product(AXES), grid.zipped(COLUMNS), grid.concat(grid.product(AXES), grid.zipped(COLUMNS))]
)
def test_json_round_trip_is_exact(g):
    again = grid.Grid.from_json(json.loads(json.dumps(g.to_json())))
    assert again == g
    assert list(again.columns) == list(g.columns)  # the order of the axes is the order of the rows
    if g.axes is not None:
        assert list(again.axes) == list(g.axes)


def test_group_rates_and_declared_names_are_accepted():
    rates = {f"gamma_{group}": (0.5, 0.6) for group in ("embed", "qk", "vo", "mlp", "head")}
    g = grid.product(AXES | rates | {"label_noise": (0.0, 0.1)}, extra=("label_noise",))
    assert len(g) == 12 * 2**6
    assert set(g.columns) == set(AXES) | set(rates) | {"label_noise"}


@pytest.mark.parametrize("make", [grid.product, grid.zipped])
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("gama", (0.5,), r"grid\.gama: unknown hyperparameter; did you mean 'gamma'\?"),
        ("gamma_kq", (0.5,), r"grid\.gamma_kq: unknown hyperparameter; did you mean 'gamma_qk'\?"),
        ("weightdecay", (0.5,), r"grid\.weightdecay: .*did you mean 'weight_decay'\?"),
        ("lr", (0.5,), r"grid\.lr: unknown hyperparameter\. Known: gamma, weight_decay, learning_rate, seed, "),
        ("gamma", (), r"grid\.gamma=\(\): expected a non-empty tuple"),
        ("gamma", 0.5, r"grid\.gamma=0\.5: expected a non-empty tuple"),
        ("gamma", "0.5", r"grid\.gamma='0\.5': expected a non-empty tuple"),
        ("gamma", (0.5, "0.6"), r"grid\.gamma=\(0\.5, '0\.6'\): '0\.6' is not a number"),
        ("gamma", (True,), r"grid\.gamma=\(True,\): True is not a number"),
        ("gamma", (None,), r"grid\.gamma=\(None,\): None is not a number"),
        ("gamma", (0.5, float("nan")), r"grid\.gamma=.*: nan is not finite"),
        ("learning_rate", (float("inf"),), r"grid\.learning_rate=.*: inf is not finite"),
        ("seed", (1.5,), r"grid\.seed=.*: 1\.5 is not an integer in \[0, 2\^31\)"),
        ("seed", (-1,), r"grid\.seed=.*: -1 is not an integer"),
        ("seed", (2**31,), r"grid\.seed=.*: 2147483648 is not an integer"),
        ("weight_decay", (0.1, -0.5), r"grid\.weight_decay=.*: -0\.5 is negative"),
        ("learning_rate", (-1e-3,), r"grid\.learning_rate=.*: -0\.001 is negative"),
    ],
)
def test_impossible_entries_are_refused_by_name_and_value(make, name, values, message):
    with pytest.raises(ValueError, match=message):
        make({key: axis[:1] for key, axis in AXES.items()} | {name: values})


@pytest.mark.parametrize("make", [grid.product, grid.zipped])
def test_a_missing_core_hyperparameter_is_named(make):
    with pytest.raises(ValueError, match=r"grid lacks weight_decay, seed: every row needs gamma, weight_decay"):
        make({"gamma": (0.5,), "learning_rate": (1e-3,)})


STARTS = {"weight_decay": (0.0, 1.0), "learning_rate": (0.1, 0.2), "seed": (0, 1)}


@pytest.mark.parametrize("make", [grid.product, grid.zipped])
def test_sigma_is_in_place_of_gamma(make):
    made = make(STARTS | {"sigma": (0.1, 0.3), "sigma_qk": (0.2, 0.02), "gamma_mlp": (0.5, 0.6)})
    assert set(made.columns) == {*STARTS, "sigma", "sigma_qk", "gamma_mlp"}
    assert make({"gamma": ()} | STARTS | {"sigma": (0.1, 0.3)}) == make(STARTS | {"sigma": (0.1, 0.3)})


@pytest.mark.parametrize("make", [grid.product, grid.zipped])
@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (
            {"gamma": (0.5, 0.6), "sigma": (0.1, 0.2)},
            r"grid\.sigma: beside grid\.gamma, .*; grid\.gamma=\(\) leaves it",
        ),
        (
            {"sigma": (1.0, 2.0), "gamma_qk": (1.0, 2.0), "sigma_qk": (1.0, 2.0)},
            r"grid\.sigma_qk: beside grid\.gamma_qk",
        ),
        ({"sigma": (-0.1, 0.0)}, r"grid\.sigma=.*: -0\.1 is negative"),
        ({"sigma_qk": (0.1, 0.2)}, r"grid lacks gamma"),
    ],
)
def test_two_scales_of_one_matrix_are_refused(make, beside, message):
    with pytest.raises(ValueError, match=message):
        make(STARTS | beside)


def test_rows_of_either_kind_make_one_grid_where_one_of_the_two_is_zero():
    made = grid.zipped(STARTS | {"gamma": (1.0, 0.0), "sigma": (0.0, 0.02), "gamma_qk": (0, 1), "sigma_qk": (3, 0)})
    assert made.row(1) | {"seed": 0} == dict(
        weight_decay=1.0, learning_rate=0.2, seed=0, gamma=0.0, sigma=0.02, gamma_qk=1.0, sigma_qk=0.0
    )
    with pytest.raises(ValueError, match=r"grid\.sigma: beside grid\.gamma, .* or in every row one of them is 0"):
        grid.zipped(STARTS | {"gamma": (1.0, 0.0), "sigma": (0.0, 0.0)})


def test_a_repeated_axis_value_is_refused():
    with pytest.raises(ValueError, match=r"grid\.gamma=\(0\.5, 0\.6, 0\.5\): a value is repeated"):
        grid.product(AXES | {"gamma": (0.5, 0.6, 0.5)})


def test_columns_of_unequal_length_are_refused_with_their_lengths():
    with pytest.raises(ValueError, match=r"equal lengths, got \{'gamma': 3, 'weight_decay': 2, .*'seed': 2\}"):
        grid.zipped(COLUMNS | {"gamma": (0.1, 0.2, 0.3)})


def test_grids_of_different_hyperparameters_are_refused():
    with pytest.raises(ValueError, match=r"same hyperparameters, got .*gamma_qk"):
        grid.concat(grid.zipped(COLUMNS), grid.zipped(COLUMNS | {"gamma_qk": (0.5, 0.6)}))


def test_grid_built_by_hand_of_numpy_numbers_is_of_plain_ones():
    given = grid.Grid({name: np.array(values) for name, values in COLUMNS.items()}, {"seed": np.arange(2)})
    assert given == grid.Grid(COLUMNS, {"seed": (0, 1)})
    assert json.dumps(given.to_json()) == json.dumps(grid.Grid(COLUMNS, {"seed": (0, 1)}).to_json())


# --- more rows ---


@pytest.mark.parametrize("name", AXES)
def test_extended_product_is_the_product_of_the_longer_axis(name):
    value = max(AXES[name]) + 1
    assert grid.product(AXES).extended(name, (value,)) == grid.product(AXES | {name: (*AXES[name], value)})


def test_values_that_are_there_change_nothing_and_numpys_are_the_same():
    g = grid.product(AXES)
    assert g.extended("seed", (2, 1)) == g == g.extended("gamma", np.array([0.8], np.float32))


def test_value_is_added_beside_all_that_others_have_together():
    g = grid.concat(grid.zipped(COLUMNS), grid.zipped(COLUMNS | {"seed": (8, 8)}))
    more = g.extended("seed", (9,))
    assert [more.row(i) for i in range(4)] == [g.row(i) for i in range(4)]
    assert [more.row(i) for i in (4, 5)] == [g.row(i) | {"seed": 9} for i in (0, 1)]
    with pytest.raises(ValueError, match=r"grid.gamma=\(0.5,\): the rows of this grid were given one by one"):
        g.extended("gamma", (0.5,))


def test_rows_that_lack_are_those_of_no_other_grid_as_often_as_they_are_asked_for():
    whole = grid.product(AXES)
    for chosen in ([0, 3, 11], [5], []):
        rest = [i for i in range(12) if i not in chosen]
        assert grid.lacking(whole, [whole.take(chosen), whole.take([1, 2])]) == whole.take(
            [i for i in rest if i not in (1, 2)]
        )
    assert grid.lacking(whole, [whole.take(range(6)), whole.take(range(6, 12))]) is None
    assert grid.lacking(whole.take([4, 4]), [whole]) == whole.take([4])


def test_value_that_is_beside_some_of_the_others_alone_is_not_taken_for_there():
    g = grid.concat(grid.zipped(COLUMNS), grid.zipped(COLUMNS | {"seed": (8, 8)}))
    g = g.take([i for i in range(len(g)) if i != 3])
    values = dict.fromkeys(g.columns["gamma"])
    *_, partly = values
    with pytest.raises(ValueError, match=r"the rows of this grid were given one by one"):
        g.extended("gamma", (partly,))


def test_axis_that_ascends_goes_on_ascending_and_others_get_new_values_behind():
    axes = AXES | {"gamma": (0.3, 0.5), "learning_rate": (0.1, 0.01)}
    small = grid.product(axes)
    rates = small.extended("gamma", (0.4,)).extended("learning_rate", (0.05,))
    assert rates.axes["gamma"] == (0.3, 0.4, 0.5) and rates.axes["learning_rate"] == (0.1, 0.01, 0.05)
    assert grid.union([small, grid.lacking(rates, [small])])[0] == rates


def test_large_seeds_are_told_apart():
    """2^24 and 2^24 + 1 are one float32."""
    g = grid.product(AXES | {"seed": (2**24,)})
    more = g.extended("seed", (2**24 + 1,))
    assert more.axes["seed"] == (2**24, 2**24 + 1)
    assert {*grid.lacking(more, [g]).columns["seed"]} == {2**24 + 1}


def test_union_finds_the_product_and_says_where_its_rows_were():
    whole, order = grid.product(AXES), np.random.default_rng(0).permutation(12)
    small = grid.product(AXES | {"seed": (1,)})
    rest = grid.lacking(whole, [small]).take(np.random.default_rng(0).permutation(6))
    found, places = grid.union([small, rest])
    assert found == whole
    assert [grid.concat(small, rest).row(i) for i in places] == [whole.row(i) for i in range(12)]
    listed, places = grid.union([whole.take(order[:5]), whole.take(order[5:])])  # nobody said it was a product
    assert listed.axes is None and places.tolist() == list(range(12))
    assert grid.union([small, rest.take([0])])[0].axes is None
