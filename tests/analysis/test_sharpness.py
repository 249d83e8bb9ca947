import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis import sharpness

EPS = 2.0**-23  # float32
P = 40
ZERO, IDENTITY = np.zeros(P), np.ones(P)
SIGNED = np.concatenate([[-6.0, -2.0], np.linspace(-0.5, 0.5, P - 5), [2.0, 4.0, 8.0]])
TWINS = np.concatenate([[-4.0, -4.0], np.zeros(P - 6), [2.0, 4.0, 8.0, 8.0]])
LOW_RANK = np.concatenate([np.zeros(P - 3), [1.0, 2.0, 4.0]])
NAMES = {"signed": SIGNED, "twins": TWINS, "low_rank": LOW_RANK, "identity": IDENTITY, "zero": ZERO}
N_KEYS, N_PROBES = 400, 10


def symmetric(seed, spectrum_P, dtype=np.float32):
    """A matrix of this spectrum in random orthogonal coordinates."""
    n = len(spectrum_P)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return ((q * spectrum_P) @ q.T).astype(dtype)


def product(matrix):
    return lambda v_P: matrix @ v_P


@functools.partial(jax.jit, static_argnums=(2, 3))
def extremes(matrix, key, k, n_matvecs, tolerance=1e-4):
    return sharpness.extremes(product(matrix), matrix[0], key, k, n_matvecs, tolerance)


@jax.jit
def traces(matrix):
    """N_KEYS estimates from N_PROBES probes."""
    keys = jax.random.split(jax.random.key(0), N_KEYS)
    return jax.vmap(lambda key: sharpness.trace(product(matrix), matrix[0], key, N_PROBES))(keys)


@functools.partial(jax.jit, static_argnums=(2, 3))
def density(matrix, key, n_probes, n_matvecs):
    return sharpness.density(product(matrix), matrix[0], key, n_probes, n_matvecs)


def rounding(spectrum_P):
    """A Rayleigh quotient of a float32 matrix: stored entries, product and sum, sqrt(P) eps |A| each at most, and the
    square of the vector's error over the gap, below eps |A| for errors below 1e-4 |A| and gaps above 0.1 |A|."""
    return 4 * np.sqrt(P) * EPS * np.abs(spectrum_P).max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spectrum_P", NAMES.values(), ids=NAMES)
def test_extremes_are_the_eigenvalues_even_where_the_krylov_space_closes_early(spectrum_P, seed):
    top, bottom = extremes(symmetric(seed, spectrum_P), jax.random.key(seed), 3, 32)
    increasing_P = np.sort(spectrum_P)
    np.testing.assert_allclose(top.value_K, increasing_P[::-1][:3], rtol=0, atol=rounding(spectrum_P))
    np.testing.assert_allclose(bottom.value_K, increasing_P[:3], rtol=0, atol=rounding(spectrum_P))
    assert top.converged_K.all()
    assert bottom.converged_K.all()


@pytest.mark.parametrize("scale", [2.0**-90, 1.0, 2.0**50])
@pytest.mark.parametrize("diagonal_P", [TWINS, IDENTITY], ids=["twins", "identity"])
def test_exact_invariant_subspaces_give_no_ghosts_and_no_nan_at_any_scale(diagonal_P, scale):
    # A diagonal of powers of two has no rounding: the Krylov space closes to the last bit. n_matvecs = P.
    diagonal_P = diagonal_P * scale
    top, bottom = extremes(np.diag(diagonal_P).astype(np.float32), jax.random.key(1), 4, P)
    np.testing.assert_allclose(top.value_K, np.sort(diagonal_P)[::-1][:4], rtol=0, atol=rounding(diagonal_P))
    np.testing.assert_allclose(bottom.value_K, np.sort(diagonal_P)[:4], rtol=0, atol=rounding(diagonal_P))
    # four directions, not four times one: as orthogonal as one more sum of P terms makes them
    np.testing.assert_allclose(top.vector_KxP @ top.vector_KxP.T, np.eye(4), rtol=0, atol=16 * np.sqrt(P) * EPS)
    assert top.converged_K.all()


def test_value_within_its_residual_of_an_eigenvalue_and_inside_the_spectrum(float64):
    spectrum_P = np.linspace(-1, 1, P)
    matrix = symmetric(0, spectrum_P, np.float64)
    for ritz in extremes(matrix, jax.random.key(0), 3, 6):
        value_K, residual_K, vector_KxP = (np.asarray(a) for a in (ritz.value_K, ritz.residual_K, ritz.vector_KxP))
        nearest_K = np.abs(value_K[:, None] - spectrum_P).min(axis=1)
        assert (nearest_K <= residual_K).all()  # the theorem; residuals here are above 1e-2
        assert np.abs(value_K).max() < 1
        assert not ritz.converged_K.any()
        expected_K = np.linalg.norm(vector_KxP @ matrix - value_K[:, None] * vector_KxP, axis=1)
        np.testing.assert_allclose(residual_K, expected_K, rtol=1e-12)  # 1e-16 |A| over 1e-2, many times


@pytest.mark.parametrize("n_matvecs", [6, 12, 32])
@pytest.mark.parametrize("spectrum_P", NAMES.values(), ids=NAMES)
def test_value_and_residual_in_single_precision_are_those_of_the_vector_to_rounding(spectrum_P, n_matvecs):
    """The recurrence against products of its own; what splits multiple eigenvalues, up to 74 eps |A|, is undone."""
    matrix = symmetric(0, spectrum_P)
    for ritz in extremes(matrix, jax.random.key(0), 3, n_matvecs):
        vector_KxP = np.asarray(ritz.vector_KxP, np.float64)
        vector_KxP /= np.linalg.norm(vector_KxP, axis=1, keepdims=True)
        product_KxP = vector_KxP @ matrix.astype(np.float64)
        value_K = np.sum(vector_KxP * product_KxP, axis=1)
        residual_K = np.linalg.norm(product_KxP - value_K[:, None] * vector_KxP, axis=1)
        # Every column of the recurrence is off by a product and a sum over P, sqrt(P) eps |A| each, as `rounding` has.
        np.testing.assert_allclose(ritz.value_K, value_K, rtol=0, atol=rounding(spectrum_P))
        np.testing.assert_allclose(ritz.residual_K, residual_K, rtol=0, atol=rounding(spectrum_P))


@pytest.mark.parametrize("end", ["top", "extremes"])
def test_eigenvalues_cost_the_products_of_one_lanczos_run(end):
    """One more finds the scale."""
    calls = []

    def counted(v_P):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.arange(1.0, P + 1) * v_P

    find = {"top": sharpness.top, "extremes": sharpness.extremes}[end]
    jax.block_until_ready(jax.jit(lambda key: find(counted, jnp.zeros(P), key, 3, 12, 0.1))(jax.random.key(0)))
    jax.effects_barrier()
    assert len(calls) == 12 + 1


def test_convergence_is_judged_against_the_largest_magnitude():
    # After 12 products the top, 8, is found to 1e-3; the third from the bottom lies in the bulk, far from converged.
    matrix, key = symmetric(0, SIGNED), jax.random.key(0)
    residual = extremes(matrix, key, 3, 12)[1].residual_K[2]
    assert residual > 0.01
    for factor, converged in ((1.05, True), (0.95, False)):
        _, bottom = extremes(matrix, key, 3, 12, factor * residual / 8)
        assert bottom.converged_K[2] == converged


def test_an_eigenvector_met_twice_has_not_converged(monkeypatch):
    # With a splitting below rounding the Krylov space of a matrix of few eigenvalues closes, and its basis repeats.
    monkeypatch.setattr(sharpness, "SPLITTING", 0.5)
    diagonal = np.diag(np.concatenate([np.zeros(P - 4), np.ones(4)])).astype(np.float32)
    unguarded = jax.jit(lambda key: sharpness.top(product(diagonal), diagonal[0], key, 6, 20, 1e-4))
    n_repeated = 0
    for seed in range(8):
        ritz = unguarded(jax.random.key(seed))
        overlap_KxK = np.abs(ritz.vector_KxP @ ritz.vector_KxP.T - np.eye(6))
        repeated_K = overlap_KxK.max(axis=1) > 0.1
        n_repeated += repeated_K.sum()
        assert not ritz.converged_K[repeated_K].any()
    assert n_repeated > 0


def test_top_is_the_upper_half_of_extremes():
    matrix, key = symmetric(0, SIGNED), jax.random.key(0)
    ritz = jax.jit(lambda a: sharpness.top(product(a), a[0], key, 2, 32, 1e-4))(matrix)
    np.testing.assert_allclose(ritz.value_K, [8, 4], rtol=0, atol=rounding(SIGNED))


def test_rows_under_vmap_equal_lone_rows_and_a_diverged_row_spoils_none():
    rows = np.stack([symmetric(0, SIGNED), np.full((P, P), np.nan, np.float32), symmetric(1, SIGNED)])
    key = jax.random.key(0)
    top, _ = jax.jit(jax.vmap(lambda row: extremes(row, key, 3, 32)))(rows)
    for r in (0, 2):
        np.testing.assert_allclose(top.value_K[r], extremes(rows[r], key, 3, 32)[0].value_K, atol=2 * rounding(SIGNED))
    assert np.isnan(top.value_K[1]).all()
    assert not top.converged_K[1].any()


def test_trace_has_hutchinsons_variance_and_an_honest_error_bar():
    matrix = symmetric(0, SIGNED)
    hutchinson = traces(matrix)
    error_N, bar_N = np.asarray(hutchinson.value, np.float64) - SIGNED.sum(), np.asarray(hutchinson.standard_error)
    variance = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / N_PROBES
    assert abs(error_N.mean()) < 4 * np.sqrt(variance / N_KEYS)
    # A variance from 400 nearly normal draws has a relative error of sqrt(2 / 400) = 0.07: four of them.
    assert np.mean(error_N**2) == pytest.approx(variance, rel=0.28)
    assert np.mean(bar_N**2) == pytest.approx(variance, rel=0.28)
    assert np.mean(np.abs(error_N) > 4 * bar_N) < 0.015  # Student's t of 9 degrees: 0.003, one of 400 expected


def test_trace_of_a_diagonal_matrix_is_exact():
    value, error = traces(np.diag(SIGNED).astype(np.float32))
    bound = P * EPS * np.abs(SIGNED).sum()  # a sum of P terms, signs squared
    np.testing.assert_allclose(value, SIGNED.sum(), rtol=0, atol=bound)
    np.testing.assert_allclose(error, 0, atol=bound)


@functools.partial(jax.jit, static_argnums=2)
def left_out_traces(matrix, scale, n_probes=N_PROBES):
    keys = jax.random.split(jax.random.key(1), N_KEYS)
    return jax.vmap(
        lambda key: sharpness.trace_leave_one_out(lambda v_P: scale * (matrix @ v_P), matrix[0], key, n_probes)
    )(keys)


DECAYING = 2.0 ** -np.arange(P) * np.where(np.arange(P) % 3, 1, -1)  # of both signs


def test_leave_one_out_trace_is_unbiased_and_its_error_bar_honest_and_far_shorter_than_hutchinsons():
    matrix = symmetric(0, DECAYING)
    value_N, bar_N = (np.asarray(part, np.float64) for part in left_out_traces(matrix, 1.0))
    error_N = value_N - DECAYING.sum()
    assert abs(error_N.mean()) < 4 * error_N.std() / np.sqrt(N_KEYS) + rounding(DECAYING)
    assert 0.4 < np.sqrt(np.mean(bar_N**2) / np.mean(error_N**2)) < 2.5  # the values are not independent
    # as many products of Hutchinson's: 2 N_PROBES + 1
    hutchinson = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / (2 * N_PROBES + 1)
    assert np.mean(error_N**2) < hutchinson / 1000


@pytest.mark.parametrize("spectrum_P", [LOW_RANK, IDENTITY], ids=["low rank", "identity"])
def test_leave_one_out_trace_is_exact_where_all_is_seen_or_all_directions_are_alike(spectrum_P):
    value, error = left_out_traces(symmetric(1, spectrum_P), 1.0)
    bound = P * 8 * EPS * np.abs(spectrum_P).sum()  # QR and P products of float32, each within a few roundings
    np.testing.assert_allclose(value, spectrum_P.sum(), rtol=0, atol=bound)
    np.testing.assert_allclose(error, 0, atol=bound)


def test_leave_one_out_trace_of_tiny_curvature_is_as_good():
    matrix = symmetric(0, SIGNED)
    value, tiny = (left_out_traces(matrix, scale).value / scale for scale in (1.0, 1e-12))
    np.testing.assert_allclose(tiny, value, rtol=0, atol=1e3 * EPS * np.abs(SIGNED).sum())


def test_density_of_full_depth_has_every_eigenvalue_as_a_node():
    spectrum_P = np.linspace(-2, 3, P)
    node_SxM, weight_SxM = density(symmetric(0, spectrum_P), jax.random.key(0), 3, P)
    # Split by at most 128 eps |A v|, |A v| < 3; the projection's rounding is below that.
    np.testing.assert_allclose(node_SxM, np.tile(spectrum_P, (3, 1)), rtol=0, atol=2 * 128 * EPS * 3)
    np.testing.assert_allclose(np.sum(weight_SxM, axis=1), 1, rtol=P * EPS)


def test_density_has_the_moments_of_a_wishart_matrix():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((3 * P, P))
    wishart = data.T @ data / len(data)
    node_SxM, weight_SxM = density(wishart.astype(np.float32), jax.random.key(1), 200, 5)
    for order, exact in enumerate(np.trace(np.linalg.matrix_power(wishart, m)) / P for m in range(4)):
        moment_S = np.sum(np.asarray(weight_SxM * node_SxM**order, np.float64), axis=1)
        # Four standard errors; what is exact for every probe (order 0) is so up to M roundings.
        bound = 4 * np.std(moment_S, ddof=1) / np.sqrt(200) + 5 * EPS
        assert moment_S.mean() == pytest.approx(exact, abs=bound)


def test_smoothed_density_is_the_broadened_spectrum_within_its_error_bar():
    width, grid_G = 0.5, np.linspace(-9, 11, 41, dtype=np.float32)
    estimate = sharpness.smooth(density(symmetric(0, SIGNED), jax.random.key(2), 400, 30), grid_G, np.float32(width))
    z_GxP = (grid_G[:, None].astype(np.float64) - SIGNED) / width
    exact_G = np.mean(np.exp(-(z_GxP**2) / 2), axis=1) / (width * np.sqrt(2 * np.pi))
    # Four standard errors; where no eigenvalue is near, a value below 1e-6 has an error bar of nothing.
    np.testing.assert_array_less(np.abs(estimate.value - exact_G), 4 * np.asarray(estimate.standard_error) + 1e-6)
    assert np.sum(estimate.value) * 0.5 == pytest.approx(1, abs=1e-4)  # the grid reaches 6 widths past the spectrum


@pytest.mark.parametrize(("factor", "stable"), [(0.99, True), (1.01, False)])
def test_descent_is_stable_below_the_edge_and_diverges_above(factor, stable):
    eigenvalue, b1 = 3.0, 0.9
    rate = factor / sharpness.edge_of_stability(1.0, eigenvalue)
    assert (abs((1 - rate * eigenvalue) ** 2000) < 1) == stable
    for momentum in (0.5, 0.9):  # w -= rate * m, m = momentum m + g
        rate = factor / sharpness.edge_of_stability(1.0, eigenvalue, momentum)
        step = np.array([[1 - rate * eigenvalue, -rate * momentum], [eigenvalue, momentum]])  # of (w, m)
        assert (np.abs(np.linalg.eigvals(step)).max() < 1) == stable
    # Adam with its second moment at rest: w -= rate * m / D, m = b1 m + (1 - b1) g; eigenvalue is that of D^-1 H.
    rate = factor / sharpness.adam_edge_of_stability(1.0, eigenvalue, b1)
    step = np.array([[1 - rate * (1 - b1) * eigenvalue, -rate * b1], [(1 - b1) * eigenvalue, b1]])  # of (w, m)
    assert (np.abs(np.linalg.eigvals(step)).max() < 1) == stable


def test_adams_edge_is_at_38_over_the_rate():
    assert sharpness.adam_edge_of_stability(1e-3, 38_000.0, 0.9) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, v, key: sharpness.top(f, v, key, 0, 3, 0.1),
        lambda f, v, key: sharpness.extremes(f, v, key, 4, 3, 0.1),
        lambda f, v, key: sharpness.extremes(f, v, key, 1, P + 1, 0.1),
        lambda f, v, key: sharpness.trace(f, v, key, 0),
        lambda f, v, key: sharpness.trace_leave_one_out(f, v, key, 1),
        lambda f, v, key: sharpness.trace_leave_one_out(f, v, key, P // 2),
        lambda f, v, key: sharpness.density(f, v, key, 0, 3),
        lambda f, v, key: sharpness.density(f, v, key, 1, P + 1),
    ],
)
def test_numbers_that_cannot_be_are_refused(call):
    with pytest.raises(ValueError, match=r"k=|n_matvecs=|n_probes="):
        call(lambda v_P: v_P, jnp.zeros(P), jax.random.key(0))
