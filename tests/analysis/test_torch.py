"""Curvature of the same weights and data, in float64: hessian-eigenthings shares no code with ours."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.analysis import curvature, loss_fn, sharpness
from lab.models import Transformer
from lab.tasks import Composition

torch = pytest.importorskip("torch", reason="pip install 'gammalab[bench]'")
eigenthings = pytest.importorskip("hessian_eigenthings", reason="pip install 'gammalab[bench]'")

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("float64", "standard_promotion")]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EPS = 2.0**-53
K, N_MATVECS = 5, 60
N_PROBES, N_RUNS, N_NODES = 400, 200, 4
TASK = Composition("34_wrong", n_anchors=4, modulus=9, noise_groups=0)
MODEL = Transformer(
    vocab_size=100, max_length=12, n_layers=2, n_heads=2, d_model=8, d_head=4, d_ff=6, activation="gelu", norm="pre",
    use_bias=True, head_bias=True, final_norm=True, tied_head=False, readout="last",
)  # fmt: skip


@functools.cache
def weights_and_data():
    """Every parameter from N(0, 1/4): predictions far from the answers, so that the Hessian has two signs. As float64
    and integers on the host."""
    draw = np.random.default_rng(0)
    with jax.enable_x64(False):
        batch = jax.device_get(TASK.sample(jax.random.key(0), 24, "train", {}))
        shapes = jax.eval_shape(lambda key: models.init(MODEL, key, batch.tokens_BxL), jax.random.key(0))
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.5, leaf.shape), shapes)
    return params, batch._replace(weights_BxL=batch.weights_BxL.astype(float))


def minibatched():
    params, batch = weights_and_data()
    return params, loss_fn.minibatches(jax.tree.map(jnp.asarray, batch), 8)


def our_hessian():
    return curvature.hessian(loss_fn.answer_loss(MODEL), *minibatched())


def our_gauss_newton():
    return curvature.gauss_newton(loss_fn.logits(MODEL), loss_fn.answer_loss_of, *minibatched())


def loss_of_logits(logits_BxV, data):
    return torch.nn.functional.cross_entropy(logits_BxV, data[1])


@pytest.fixture
def theirs(monkeypatch):
    """`(Hessian, Gauss-Newton)` operators of the model in PyTorch, of the whole batch at once."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import torch_model

    params, batch = weights_and_data()
    module = torch_model.Transformer(MODEL).double()
    torch_model.load(module, params)
    data = [tuple(torch.from_numpy(np.array(a, np.int64)) for a in (batch.tokens_BxL, batch.targets_BxL[:, -1]))]

    def logits(module, data):
        return module(data[0])[:, -1]

    hessian = eigenthings.HessianOperator(module, data, lambda module, data: loss_of_logits(logits(module, data), data))
    return hessian, eigenthings.GGNOperator(module, data, logits, loss_of_logits)


def their_lanczos(operator, which):
    return eigenthings.lanczos(operator, k=K, max_iter=N_MATVECS, which=which, reorthogonalize=True, seed=0)


def assert_same_eigenvalues(ours, theirs):
    """Each value is within its residual of an eigenvalue, and rounding enters once a product: of 1e4 terms at most, in
    the 40 layers of forward, backward and their derivatives, one after the other."""
    residual = float(ours.residual_K.max()) + theirs.residuals.max().item()
    rounding = 40 * 1e4 * EPS * np.abs(ours.value_K).max()
    np.testing.assert_allclose(ours.value_K, theirs.eigenvalues.numpy(), rtol=0, atol=residual + rounding)
    gaps_K = -np.diff(np.abs(ours.value_K))
    assert residual + rounding < 0.01 * gaps_K.min()  # each meets its own partner and no other


def test_extreme_eigenvalues_of_the_hessian_are_theirs(theirs):
    hessian, _ = theirs
    top, bottom = jax.jit(lambda key: sharpness.extremes(*our_hessian(), key, K, N_MATVECS, 1e-6))(jax.random.key(0))
    assert_same_eigenvalues(top, their_lanczos(hessian, "LA"))
    assert_same_eigenvalues(bottom, their_lanczos(hessian, "SA"))
    assert bottom.value_K[0] < -0.01 * top.value_K[0]  # it is not the Gauss-Newton matrix


def test_top_eigenvalues_of_gauss_newton_are_theirs(theirs):
    _, gauss_newton = theirs
    top = jax.jit(lambda key: sharpness.top(*our_gauss_newton(), key, K, N_MATVECS, 1e-6))(jax.random.key(0))
    assert_same_eigenvalues(top, their_lanczos(gauss_newton, "LA"))


def test_trace_is_theirs_within_both_standard_errors(theirs):
    hessian, _ = theirs
    ours = jax.jit(lambda key: sharpness.trace(*our_hessian(), key, N_PROBES))(jax.random.key(0))
    other = eigenthings.hutchinson(hessian, num_samples=N_PROBES, seed=0)
    # Five standard errors of the difference: exceeded by chance once in a million, and the keys are fixed.
    assert abs(ours.value - other.estimate) < 5 * np.hypot(ours.standard_error, other.stderr)
    assert ours.standard_error < 0.15 * abs(ours.value)
    # A standard deviation from n numbers errs by sqrt((kurtosis - 1) / 4n), relative: five times that, for two of them.
    away_S = other.samples.numpy() - other.estimate
    kurtosis = np.mean(away_S**4) / np.mean(away_S**2) ** 2
    assert ours.standard_error == pytest.approx(other.stderr, rel=5 * np.sqrt(2 * (kurtosis - 1) / (4 * N_PROBES)))


def test_moments_of_the_spectral_density_of_gauss_newton_are_theirs_within_both_standard_errors(theirs):
    _, gauss_newton = theirs
    ours = jax.jit(lambda key: sharpness.density(*our_gauss_newton(), key, N_RUNS, N_NODES))(jax.random.key(0))
    other = eigenthings.spectral_density(gauss_newton, num_runs=N_RUNS, lanczos_steps=N_NODES, seed=0)
    both = ((ours.node_SxM, ours.weight_SxM), (other.raw_eigenvalues.numpy(), other.raw_weights.numpy()))
    # Quadratures of 4 nodes have moments up to order 7 without bias, from directions drawn uniformly or as signs.
    for order in range(1, 5):
        moment_2xS = np.array([np.sum(weight * np.asarray(node) ** order, axis=1) for node, weight in both])
        mean, error = moment_2xS.mean(axis=1), moment_2xS.std(axis=1, ddof=1) / np.sqrt(N_RUNS)
        assert abs(mean[0] - mean[1]) < 5 * np.hypot(*error)
        assert (error < 0.2 * mean).all()
