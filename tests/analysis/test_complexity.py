import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr
from synthetic import normal

from lab import models
from lab.analysis import complexity as module
from lab.analysis.complexity import predictors, rank_correlations
from lab.analysis.weights import matrix_names
from lab.models import EmbMLP, Transformer, TwoLayerMLP
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
norms, distance = jax.jit(module.norms), jax.jit(module.distance)
log_path_norm, forward = (jax.jit(function, static_argnums=0) for function in (module.log_path_norm, models.forward))
RELU = TwoLayerMLP(d_in=3, d_ff=4, d_out=2, activation="relu", use_bias=False)


def small_tree(seed=0):
    return {
        "embed": {"embedding": normal(seed, 7, 4)},
        "in": {"kernel": normal(seed + 1, 4, 5), "bias": normal(seed + 2, 5)},
        "out": {"kernel": 0.1 * normal(seed + 3, 5, 3)},
    }


def drawn(model, tokens_BxL):
    """Parameters of the model, all of them (biases too) standard normal divided by 2."""
    shapes = jax.eval_shape(lambda key: models.init(model, key, tokens_BxL), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (rng.standard_normal(leaf.shape) / 2).astype(np.float32), shapes)


def two_layer(first_DxF, second_FxV):
    return {"in": {"kernel": first_DxF}, "out": {"kernel": second_FxV}}


def spectrum(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)


# s_1 errs by max(I, O) eps relative, a sum of n squares by n eps; so do their logs, and a log of size l by l eps.
LOG_ERROR = (7 * 5 + 5) * EPS


def test_log_norms_are_those_of_float64_singular_values():
    params = small_tree()
    names = matrix_names(params)
    assert names == ["embed/embedding", "in/kernel", "out/kernel"]
    result = norms(params)
    spectra = [spectrum(named_leaves(params)[name]) for name in names]
    largest_M, frobenius_M = [s_K[0] for s_K in spectra], [np.sqrt(np.sum(s_K**2)) for s_K in spectra]
    np.testing.assert_allclose(result["log_spectral"], np.log(largest_M), rtol=0, atol=LOG_ERROR)
    np.testing.assert_allclose(result["log_frobenius"], np.log(frobenius_M), rtol=0, atol=LOG_ERROR)
    assert result["log_spectral_product"] == pytest.approx(np.log(np.prod(largest_M)), abs=3 * LOG_ERROR)
    assert result["log_frobenius_product"] == pytest.approx(np.log(np.prod(frobenius_M)), abs=3 * LOG_ERROR)
    whole = np.log(np.linalg.norm(frobenius_M))
    assert result["log_frobenius_whole"] == pytest.approx(whole, abs=2 * LOG_ERROR)


def test_log_norms_of_weights_whose_squares_and_products_underflow_are_shifted_by_the_scale():
    params = small_tree()
    tiny = jax.tree.map(lambda leaf: leaf * np.float32(2.0**-90), params)
    shift = -90 * np.log(2)
    for name, value in norms(params).items():
        layers = 3 if name.endswith("product") else 1
        # a log of about 62 (three of them, 187) rounds by half an eps of 64 (128), on both sides
        np.testing.assert_allclose(norms(tiny)[name], value + layers * shift, rtol=0, atol=layers * 64 * 2 * EPS)
    kernels = [normal(1, 4, 5), normal(2, 5, 3)]
    tiny_path = log_path_norm(RELU, two_layer(*(kernel * np.float32(2.0**-90) for kernel in kernels)))
    assert tiny_path == pytest.approx(float(log_path_norm(RELU, two_layer(*kernels))) + 2 * shift, abs=3 * 128 * EPS)


def test_zero_matrix_has_log_norm_minus_infinity_and_nan_stays_nan():
    params = small_tree()
    params["in"]["kernel"] = np.zeros((4, 5), np.float32)
    params["out"]["kernel"] = np.full((5, 3), np.nan, np.float32)
    result = norms(params)
    np.testing.assert_array_equal(result["log_spectral"][1:], [-np.inf, np.nan])
    np.testing.assert_array_equal(result["log_frobenius"][1:], [-np.inf, np.nan])
    assert np.isnan(result["log_frobenius_whole"])


def test_distance_is_the_norm_of_the_difference_of_the_matrices():
    params, initial = small_tree(0), small_tree(10)
    result = distance(params, initial)
    names = matrix_names(params)
    moved = [np.float64(named_leaves(params)[name]) - named_leaves(initial)[name] for name in names]
    np.testing.assert_allclose(result["log_distance"], [np.log(np.linalg.norm(m)) for m in moved], atol=LOG_ERROR)
    whole = np.log(np.sqrt(sum(np.sum(m**2) for m in moved)))
    assert result["log_distance_whole"] == pytest.approx(whole, abs=2 * LOG_ERROR)


def test_vmapped_rows_equal_lone_rows():
    rows = [small_tree(seed) for seed in (0, 10, 20)]
    together = jax.jit(jax.vmap(module.norms))(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
    for r, row in enumerate(rows):
        for name, alone in norms(row).items():
            np.testing.assert_allclose(together[name][r], alone, rtol=0, atol=2 * 3 * LOG_ERROR)


def path_sum(kernels):
    """sum over all paths of the product of |w|, one path after the other."""
    kernels = [np.abs(np.asarray(kernel, np.float64)) for kernel in kernels]
    units = [range(kernels[0].shape[0]), *(range(kernel.shape[1]) for kernel in kernels)]
    return sum(
        np.prod([kernel[path[i], path[i + 1]] for i, kernel in enumerate(kernels)])
        for path in itertools.product(*units)
    )


# A layer of I terms, each a log and an exp of numbers of size below 4: (I + 8) eps; at most 5 layers with I <= 8.
PATH_ERROR = 5 * 16 * EPS


def test_float64_weights_are_measured_in_float64(float64):
    kernels = [np.random.default_rng(i).standard_normal((3, 3)) for i in range(2)]
    found = log_path_norm(RELU, two_layer(*kernels))
    assert found == pytest.approx(np.log(path_sum(kernels)), abs=PATH_ERROR * 2.0**-29)
    largest = np.log([spectrum(kernel)[0] for kernel in kernels])
    result = norms({"in": {"kernel": kernels[0]}, "out": {"kernel": kernels[1]}})
    np.testing.assert_allclose(result["log_spectral"], largest, rtol=0, atol=LOG_ERROR * 2.0**-29)


def test_path_norm_of_two_layer_mlp_counts_biases_as_paths_from_a_constant():
    model = TwoLayerMLP(d_in=3, d_ff=4, d_out=2, activation="relu", use_bias=True)
    params = two_layer(normal(0, 3, 4), normal(1, 4, 2))
    params["in"]["bias"] = normal(2, 4)
    first = np.concatenate([params["in"]["kernel"], params["in"]["bias"][None]])
    expected = path_sum([first, params["out"]["kernel"]])
    assert log_path_norm(model, params) == pytest.approx(np.log(expected), abs=PATH_ERROR)


def test_path_norm_of_emb_mlp_starts_at_every_token():
    model = EmbMLP(vocab_size=5, d_model=3, d_ff=4, activation="tanh")
    params = drawn(model, jnp.zeros((1, 3), jnp.int32))
    kernels = [params["embed"]["embedding"], params["in"]["kernel"], params["head"]["kernel"]]
    assert log_path_norm(model, params) == pytest.approx(np.log(path_sum(kernels)), abs=PATH_ERROR)


@pytest.mark.parametrize("tied_head", [False, True])
def test_transformer_proxy_sums_the_paths_of_every_choice_of_skips_and_branches(tied_head):
    model = Transformer(
        vocab_size=3, max_length=2, n_layers=1, n_heads=2, d_model=3, d_head=1, d_ff=2, activation="relu",
        norm="none", use_bias=False, head_bias=False, final_norm=False, tied_head=tied_head, readout="all",
    )  # fmt: skip
    params = drawn(model, jnp.zeros((1, 2), jnp.int32))
    sources = np.concatenate([params["embed"]["token"]["embedding"], params["embed"]["position"]["embedding"]])
    block = params["block_0"]
    attention = [block["attn"]["value"]["kernel"], block["attn"]["out"]["kernel"]]
    mlp = [block["mlp"]["in"]["kernel"], block["mlp"]["out"]["kernel"]]
    head = params["embed"]["token"]["embedding"].T if tied_head else params["head"]["kernel"]
    routes = itertools.product(([], attention), ([], mlp))
    expected = sum(path_sum([sources, *through, *then, head]) for through, then in routes)
    assert log_path_norm(model, params) == pytest.approx(np.log(expected), abs=2 * PATH_ERROR)


def test_path_norm_of_attention_alone_has_no_paths_through_an_mlp():
    options = dict(
        vocab_size=3, max_length=2, n_layers=2, n_heads=2, d_model=3, d_head=1, activation="relu", norm="none",
        use_bias=False, head_bias=False, final_norm=False, tied_head=False, readout="all",
    )  # fmt: skip
    params = drawn(Transformer(d_ff=2, **options), jnp.zeros((1, 2), jnp.int32))
    for block in ("block_0", "block_1"):
        params[block]["mlp"]["out"]["kernel"] = np.zeros_like(params[block]["mlp"]["out"]["kernel"])
    full, alone = (log_path_norm(Transformer(d_ff=d_ff, **options), params) for d_ff in (2, 0))
    assert alone == full


def test_path_norm_bounds_a_transformer_without_norms_of_frozen_attention():
    # |logits| <= what the proxy counts, as |relu(x)| <= |x| and rows of the pattern sum to one.
    model = Transformer(
        vocab_size=5, max_length=3, n_layers=2, n_heads=1, d_model=4, d_head=4, d_ff=6, activation="relu",
        norm="none", use_bias=True, head_bias=True, final_norm=False, tied_head=False, readout="all",
    )  # fmt: skip
    tokens_BxL = jnp.arange(15, dtype=jnp.int32).reshape(5, 3) % 5
    params = drawn(model, tokens_BxL)
    logits_BxQxV, _ = forward(model, params, tokens_BxL)
    assert np.abs(logits_BxQxV).sum(axis=-1).max() <= np.exp(log_path_norm(model, params))


def test_path_norm_of_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="Dense: defined for TwoLayerMLP, EmbMLP, Transformer"):
        module.log_path_norm(nn.Dense(2), {})


def test_rescaling_neurons_keeps_the_relu_net_and_its_path_norm_but_not_its_spectral_product():
    first, second, x_BxD = normal(0, 3, 4), normal(1, 4, 2), normal(2, 6, 3)
    scale_F = np.array([8, 1, 0.25, 2], np.float32)  # powers of two: no rounding
    before, after = two_layer(first, second), two_layer(first * scale_F, second / scale_F[:, None])
    np.testing.assert_allclose(forward(RELU, after, x_BxD)[0], forward(RELU, before, x_BxD)[0], rtol=32 * EPS)
    assert log_path_norm(RELU, after) == pytest.approx(float(log_path_norm(RELU, before)), abs=PATH_ERROR)
    change = norms(after)["log_spectral_product"] - norms(before)["log_spectral_product"]
    expected = [np.log(spectrum(p["in"]["kernel"])[0] * spectrum(p["out"]["kernel"])[0]) for p in (before, after)]
    assert change == pytest.approx(expected[1] - expected[0], abs=4 * LOG_ERROR)
    assert abs(change) > 0.5


def test_rescaling_layers_keeps_both_products_but_not_the_whole_norm_nor_a_tanh_net():
    first, second, x_BxD = normal(0, 3, 4), normal(1, 4, 2), normal(2, 6, 3)
    before, after = two_layer(first, second), two_layer(8 * first, second / 8)
    for name in ("log_spectral_product", "log_frobenius_product"):
        assert norms(after)[name] == pytest.approx(float(norms(before)[name]), abs=4 * LOG_ERROR)
    assert log_path_norm(RELU, after) == pytest.approx(float(log_path_norm(RELU, before)), abs=PATH_ERROR)
    assert norms(after)["log_frobenius_whole"] - norms(before)["log_frobenius_whole"] > 1
    # The weights' path norm cannot know the activation: this net is another function.
    tanh = TwoLayerMLP(d_in=3, d_ff=4, d_out=2, activation="tanh", use_bias=False)
    moved = np.abs(forward(tanh, after, x_BxD)[0] - forward(tanh, before, x_BxD)[0])
    assert moved.max() > 0.1


def sample_rows(n=14):
    rng = np.random.default_rng(0)
    x_N = np.round(rng.standard_normal(n), 1)  # rounded: there are ties
    return x_N, np.round(x_N + rng.standard_normal(n), 1), rng.integers(3, size=n)


@pytest.mark.parametrize("b", range(4))
def test_coefficients_of_one_stratum_are_scipys_of_the_repeated_rows(b):
    x_N, y_N, _ = sample_rows()
    cluster_N, counts_BxS = np.arange(len(x_N)) % 5, np.random.default_rng(1).integers(3, size=(4, 5))
    rho, tau = rank_correlations(x_N, y_N, np.zeros(len(x_N)), cluster_N, counts_BxS)[:, b]
    x, y = (np.repeat(v_N, counts_BxS[b, cluster_N]) for v_N in (x_N, y_N))
    assert rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)  # float64: sums of 14 integers
    assert tau == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)


def test_coefficients_within_strata_are_those_of_ranks_and_pairs_inside_each():
    x_N, y_N, stratum_N = sample_rows()
    rho, tau = rank_correlations(x_N, y_N, stratum_N, np.arange(len(x_N)), np.ones((1, len(x_N))))[:, 0]
    middle = [
        (rankdata(v_N[stratum_N == s]) - (np.sum(stratum_N == s) + 1) / 2) for v_N in (x_N, y_N) for s in range(3)
    ]
    assert rho == pytest.approx(pearsonr(np.concatenate(middle[:3]), np.concatenate(middle[3:])).statistic, abs=1e-12)
    pairs = [(i, j) for i in range(len(x_N)) for j in range(i) if stratum_N[i] == stratum_N[j]]
    dx, dy = (np.sign([v_N[i] - v_N[j] for i, j in pairs]) for v_N in (x_N, y_N))
    assert tau == pytest.approx(np.sum(dx * dy) / np.sqrt(np.sum(dx != 0) * np.sum(dy != 0)), abs=1e-12)


GRID = {"gamma": [0.3, 0.5, 0.8], "weight_decay": [0.01, 1.0], "seed": np.arange(8)}


def grid(values, coords=GRID):
    return xr.DataArray(values, coords, list(coords))


def healthy(coords=GRID):
    return xr.Dataset({"diverged_at": grid(np.full([len(axis) for axis in coords.values()], -1), coords)})


def test_what_the_knobs_move_predicts_until_they_are_held_and_what_the_seed_moves_only_then():
    rng = np.random.default_rng(0)
    cell = np.arange(6.0).reshape(3, 2, 1)
    luck, other = rng.permuted(np.tile(np.arange(8) / 100, (2, 3, 2, 1)), axis=-1)
    target = grid(cell + luck)
    measures = {"knobs": grid(cell + other), "luck": grid(np.exp(luck - 5 * cell)), "both": grid(2 * (cell + luck))}
    result = predictors(healthy(), measures, target, n_bootstrap=200)
    value = result["value"].sel(coefficient="spearman")
    assert value.sel(measure="both").values.tolist() == pytest.approx([1, 1], abs=1e-12)
    # 6 cells of 8 rows, ordered like the target: ranks differ by at most 7 of 48, 6 d^2 / n^3 < 0.13.
    assert value.sel(measure="knobs", control="none") > 0.87
    # Independent permutations: mean 0, variance 1 / (6 * 7); three standard deviations.
    assert abs(value.sel(measure="knobs", control="knobs")) < 3 / np.sqrt(42)
    # exp is monotone: within a cell the same order as the target, across cells the opposite one.
    assert value.sel(measure="luck", control="knobs") == pytest.approx(1, abs=1e-12)
    assert value.sel(measure="luck", control="none") < -0.8
    low, high = (result[end].sel(measure="knobs", control="knobs", coefficient="kendall") for end in ("low", "high"))
    assert low < 0 < high


def test_diverged_and_missing_rows_are_left_out_and_counted():
    rng = np.random.default_rng(1)
    measure, target = rng.standard_normal((2, 3, 2, 8))
    dataset = healthy()
    dataset["diverged_at"][0, 0, 2] = 17
    measure[0, 0, 2], target[0, 0, 2], measure[1, 1, 5] = 1e9, 1e9, np.nan
    result = predictors(dataset, {"m": grid(measure).transpose("seed", "gamma", "weight_decay")}, grid(target))
    keep = np.ones((3, 2, 8), bool)
    keep[0, 0, 2] = keep[1, 1, 5] = False
    expected = spearmanr(measure[keep], target[keep]).statistic
    assert result["value"].sel(measure="m", coefficient="spearman", control="none") == pytest.approx(
        expected, abs=1e-12
    )
    assert [int(result[name][0]) for name in ("n_rows", "n_diverged", "n_missing")] == [46, 1, 1]


def test_rows_without_axes_give_what_the_grid_gives():
    measure, target = (grid(v) for v in np.random.default_rng(2).standard_normal((2, 3, 2, 8)))
    dataset = healthy()
    flat = dataset.assign(measure=measure, target=target).stack(row=list(GRID)).reset_index("row")
    expected = predictors(dataset, {"m": measure}, target, n_bootstrap=50)
    xr.testing.assert_identical(predictors(flat, {"m": flat["measure"]}, flat["target"], n_bootstrap=50), expected)


def test_constant_measure_and_single_seed_have_no_interval():
    target = grid(np.random.default_rng(3).standard_normal((3, 2, 8)))
    result = predictors(healthy(), {"constant": xr.ones_like(target)}, target, n_bootstrap=20)
    assert np.isnan(result["value"]).all() and np.isnan(result["low"]).all()
    one = predictors(healthy().isel(seed=[0]), {"m": 2 * target.isel(seed=[0])}, target.isel(seed=[0]))
    np.testing.assert_array_equal(one["value"].sel(control="none")[0], [1, 1])
    assert np.isnan(one["low"]).all()


def test_arrays_that_are_not_one_number_a_row_are_refused():
    target = grid(np.zeros((3, 2, 8)))
    with pytest.raises(ValueError, match="one number a row"):
        predictors(healthy(), {"m": target.isel(weight_decay=0)}, target)
    with pytest.raises(ValueError, match="exact"):
        predictors(healthy(), {"m": target.assign_coords(seed=np.arange(8) + 1)}, target)
    with pytest.raises(ValueError, match="no coordinate 'depth'; the rows have gamma"):
        predictors(healthy(), {"m": target}, target, knobs=("depth",))


def test_interval_covers_the_true_correlation_although_rows_of_a_seed_stray_together():
    # x = a u + e, y = b u + f with the seed's u shared by its 6 rows and by x and y, a = b = 2: rows have
    # correlation r = 4 / 5, Spearman's is 6 / pi asin(r / 2) (Pearson 1907).
    expected = 6 / np.pi * np.arcsin(0.4)
    rng, coords = np.random.default_rng(4), GRID | {"seed": np.arange(20)}
    covered = []
    for _ in range(200):
        shared = 2 * rng.standard_normal((1, 1, 20))
        x, y = (grid(shared + rng.standard_normal((3, 2, 20)), coords) for _ in range(2))
        one = predictors(healthy(coords), {"x": x}, y, n_bootstrap=200).sel(coefficient="spearman", control="none")
        covered.append(float(one["low"][0]) <= expected <= float(one["high"][0]))
    # Nominal 0.9, less a few percent for 20 clusters only; an interval that took the 120 rows for independent would be
    # about (1 + 5 * 0.8)^(1/2) times too narrow (6 rows a seed, of correlation 0.8) and cover 0.54 to 0.65.
    assert 0.8 < np.mean(covered) < 0.98
