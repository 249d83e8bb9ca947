"""The spectrum of a curvature operator: its extreme eigenvalues, trace and density, from matrix-vector products only.

Everything takes a symmetric `matvec(v_P) -> (P,)`, an example vector `like_P` that gives dimension and dtype (the two
that `lab.analysis.curvature` returns), and a key. Costs are counted in products, one after the other: memory is that
of one product and of the vectors kept. On a GPU under `jax.default_matmul_precision("highest")`: TF32 ruins the
orthogonality that all this stands on.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matfree import decomp, stochtrace

from lab.analysis import estimate
from lab.analysis.estimate import Estimate
from lab.analysis.scale import norm, unit

SPLITTING = 128  # of a multiple eigenvalue, in rounding errors of the operator; see _lanczos


class Ritz(NamedTuple):
    """K approximate eigenpairs. The interval value +- residual holds an eigenvalue, up to some ten
    roundings of |H|.

    Both are read off the recurrence, which costs no product; that takes an orthogonal basis, so it is checked.

    Attributes:
      value_K: Rayleigh quotients x.Hx of the unit vectors x.
      residual_K: |Hx - value x|. Where the value is isolated by a gap g, its error is at most residual^2 / g (Parlett
        1998, section 11.7).
      converged_K: residual <= tolerance * the largest |value| met, and the basis is orthogonal: no eigenvalue is
        counted twice, and value and residual are what they are said to be.
      vector_KxP: x, of norm one, sign arbitrary.
    """

    value_K: jax.Array
    residual_K: jax.Array
    converged_K: jax.Array
    vector_KxP: jax.Array


class Density(NamedTuple):
    """S independent Gauss quadratures of the spectrum: P^-1 tr f(H) is the mean over S of sum_M weight f(node)."""

    node_SxM: jax.Array
    weight_SxM: jax.Array


def extremes(matvec: Callable, like_P, key, k: int, n_matvecs: int, tolerance: float) -> tuple[Ritz, Ritz]:
    """The k largest eigenvalues, decreasing, and the k smallest, increasing: Lanczos from one random vector.

    `n_matvecs` + 1 products, 2 n_matvecs P numbers of memory; what is not read of it, jit prunes. Values
    lie inside the spectrum: an unconverged top is too small. An eigenvalue that its neighbours do not set apart, or
    its copies, needs more products; with n_matvecs = P everything is found.

    Raises:
      ValueError: not 1 <= k <= n_matvecs <= P.
    """
    if not 1 <= k <= n_matvecs <= like_P.size:
        raise ValueError(f"k={k}, n_matvecs={n_matvecs}: want 1 <= k <= n_matvecs <= {like_P.size}, the dimension")
    run = _lanczos(matvec, like_P, key, n_matvecs)
    node_M, coordinates_MxM = jnp.linalg.eigh(run.tridiagonal_MxM)
    inner_MxM = run.basis_MxP @ run.basis_MxP.T
    lost = jnp.max(jnp.abs(inner_MxM - jnp.eye(n_matvecs, dtype=inner_MxM.dtype)))
    orthogonal = lost <= jnp.finfo(lost.dtype).eps ** 0.5
    bound = tolerance * run.scale * jnp.max(jnp.abs(node_M))

    def pairs(chosen) -> Ritz:
        value_K, residual_K, vector_KxP = _read_off(run, node_M[chosen], coordinates_MxM[:, chosen])
        return Ritz(value_K, residual_K, (residual_K <= bound) & orthogonal, vector_KxP)

    return pairs(slice(None, -k - 1, -1)), pairs(slice(k))


def top(matvec: Callable, like_P, key, k: int, n_matvecs: int, tolerance: float) -> Ritz:
    """The k largest eigenvalues, decreasing; k = 1 is the sharpness. `extremes` says the rest."""
    return extremes(matvec, like_P, key, k, n_matvecs, tolerance)[0]


def trace(matvec: Callable, like_P, key, n_probes: int) -> Estimate:
    """tr H as the mean of v.Hv over random signs v (Hutchinson 1990), without bias; `n_probes` products.

    Its variance is 2 (|H|_F^2 - sum_i H_ii^2) / n_probes. Exact for a diagonal H; NaN error for one probe.

    Raises:
      ValueError: n_probes < 1.
    """
    if n_probes < 1:
        raise ValueError(f"n_probes={n_probes}: at least 1")
    one = stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_trace(), stochtrace.sampler_signs(like_P, num=1))
    return estimate.mean(jax.lax.map(lambda probe: one(matvec, probe), jax.random.split(key, n_probes)))


def trace_leave_one_out(matvec: Callable, like_P, key, n_probes: int) -> Estimate:
    """tr H by XTrace with resphering (Epperly, Tropp & Webber 2024, arXiv 2301.07825), without bias; P > 2 n_probes.

    Each of K = `n_probes` normal vectors is the probe of what the other K - 1 do not span, and the value is the mean
    over all, whose standard error the K values give. Where eigenvalues decay it is far closer than `trace` of as many
    products, and exact where H has a rank below K; where they do not, about half of the products are wasted.
    2 K + 1 products, K at once: memory is that of K and of 4 K vectors.

    Raises:
      ValueError: not 2 <= n_probes < P / 2; with more, P products give the trace itself.
    """
    if not 2 <= n_probes < like_P.size / 2:
        raise ValueError(f"n_probes={n_probes}: from 2 to less than {like_P.size / 2:g}, half the dimension")
    scale_key, probes_key = jax.random.split(key)
    # matfree takes products below eps for zero, whatever the size of H
    scale = _or_one(norm(matvec(unit(jax.random.normal(scale_key, like_P.shape, like_P.dtype)))))
    sampler = stochtrace.sampler_normal(like_P, num=n_probes)
    with jax.numpy_rank_promotion("allow"):  # matfree's own divisions want it
        value_K = stochtrace.leave_one_out_xtrace()(lambda v_P: matvec(v_P) / scale, sampler(probes_key))
    found = estimate.mean(value_K)
    return Estimate(scale * found.value, scale * found.standard_error)


def density(matvec: Callable, like_P, key, n_probes: int, n_matvecs: int) -> Density:
    """The eigenvalue density by stochastic Lanczos quadrature (Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159).

    Each of S = `n_probes` random vectors gives M = `n_matvecs` nodes, increasing, and weights that sum to one. Its
    moments are right without bias up to order 2M - 1; nodes are off by up to 128 rounding errors of |Hv|, v of norm
    one. S (n_matvecs + 1) products, M P numbers of memory.

    Raises:
      ValueError: n_probes < 1, or not 1 <= n_matvecs <= P.
    """
    if n_probes < 1 or not 1 <= n_matvecs <= like_P.size:
        raise ValueError(
            f"n_probes={n_probes}, n_matvecs={n_matvecs}: want n_probes >= 1 and n_matvecs from 1 to {like_P.size}, "
            "the dimension"
        )

    def quadrature(probe_key):
        run = _lanczos(matvec, like_P, probe_key, n_matvecs)
        node_M, coordinates_MxM = jnp.linalg.eigh(run.tridiagonal_MxM)
        return Density(run.scale * node_M, jnp.square(coordinates_MxM[0]))

    return jax.lax.map(quadrature, jax.random.split(key, n_probes))


def smooth(density: Density, grid_G, width) -> Estimate:
    """The density on a grid, (G) per unit of eigenvalue, every node a Gaussian of standard deviation `width` > 0.

    Mean over probes, with its standard error over probes (NaN for one). What `width` blurs it does not tell.
    """
    z_SxMxG = (grid_G[None, None, :] - density.node_SxM[:, :, None]) / width
    bump_SxMxG = jnp.exp(-jnp.square(z_SxMxG) / 2) / (width * jnp.sqrt(2 * jnp.pi).astype(z_SxMxG.dtype))
    return estimate.mean(jnp.sum(density.weight_SxM[:, :, None] * bump_SxMxG, axis=1))


def edge_of_stability(learning_rate, top_eigenvalue, momentum=0.0):
    """learning rate * sharpness / (2 + 2 momentum): gradient descent on a quadratic diverges above 1, and trains at
    about 1 (Cohen et al. 2021, arXiv 2103.00065); with heavy-ball momentum, m = momentum m + g, too."""
    return learning_rate * top_eigenvalue / (2 + 2 * momentum)


def adam_edge_of_stability(learning_rate, top_eigenvalue, b1):
    """learning rate * (top eigenvalue of the preconditioned Hessian) * (1 - b1) / (2 + 2 b1): 1 at the edge, which is
    at 38 / learning rate for b1 = 0.9 (Cohen et al. 2022, arXiv 2207.14484, section 2). Decoupled decay left out."""
    return learning_rate * top_eigenvalue * (1 - b1) / (2 + 2 * b1)


class _Run(NamedTuple):
    """A V = V T + r e_M^T with the orthonormal rows of V^T = `basis_MxP`, T = `tridiagonal_MxM` and r = `rest_P`, of
    A = H / `scale` + diag(`splitting_P`)."""

    scale: jax.Array
    splitting_P: jax.Array
    tridiagonal_MxM: jax.Array
    basis_MxP: jax.Array
    rest_P: jax.Array


def _lanczos(matvec: Callable, like_P, key, n_matvecs: int) -> _Run:
    """M = n_matvecs products, from a random vector.

    The Krylov space of a matrix with multiple eigenvalues closes early: the next vector is then zero or rounding,
    and normalizing it gives NaN or a basis that is not orthogonal. A random diagonal, of entries up to SPLITTING
    rounding errors of |A v|, splits them: the recurrence goes on into the complement, where the copies are.
    """
    start_key, splitting_key = jax.random.split(key)
    start_P = unit(jax.random.normal(start_key, like_P.shape, like_P.dtype))
    scale = norm(matvec(start_P))
    largest = SPLITTING * jnp.finfo(like_P.dtype).eps
    splitting_P = jax.random.uniform(splitting_key, like_P.shape, like_P.dtype, -largest, largest)

    def split(v_P):
        return matvec(v_P) / _or_one(scale) + splitting_P * v_P

    result = decomp.tridiag_sym(n_matvecs, reortho="full", custom_vjp=False)(split, start_P)
    return _Run(scale, splitting_P, result.J_small, result.Q_tall, result.residual)


def _read_off(run: _Run, node_K, coordinates_MxK):
    """`(x.Hx, |Hx - (x.Hx) x|, x)` of x = V s, s with T s = node s: A x - node x = s_M r, and A is H but for scale and
    splitting."""
    vector_KxP = jax.vmap(unit)(coordinates_MxK.T @ run.basis_MxP)
    split_KxP = run.splitting_P[None] * vector_KxP
    shift_K = jnp.sum(split_KxP * vector_KxP, axis=1)
    left_KxP = coordinates_MxK[-1][:, None] * run.rest_P[None] - split_KxP + shift_K[:, None] * vector_KxP
    return run.scale * (node_K - shift_K), run.scale * jax.vmap(norm)(left_KxP), vector_KxP


def _or_one(scale):
    return jnp.where(scale == 0, 1, scale)
