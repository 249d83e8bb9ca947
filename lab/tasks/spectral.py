"""Fields on the unit torus over time, by a pseudo-spectral method: Fourier in space, an integrating factor and RK4.

Of a field u on the grid i / N, j / N (x along the first axis), with N(u) all but viscosity,

    du/dt = nu Laplace(u) + N(u),    û(t + h) = e^{hL} û + RK4 of e^{-tL} N,    L = -nu (2 pi |k|)^2,

wavenumbers |k_x|, |k_y| < N / 3 alone are kept (the 2/3 rule), so that products of two fields are exact.

| equation              | field     | N                                                                         |
|---|---|---|
| `navier_stokes`       | vorticity | -v . grad w + 0.1 (sin 2 pi (x + y) + cos 2 pi (x + y)), v of -Laplace(psi) = w |
| `advection_diffusion` | scalar    | -v . grad u, v a given flow                                                |
| `burgers`             | scalar    | -(d/dx + d/dy) u^2 / 2                                                     |

Flows: `uniform`, v = speed (2/3, 1/3); `cells`, v of psi = speed / (2 pi) sin 2 pi x sin 2 pi y, four cells whose
streamlines do not cross: but for viscosity, what is in a quadrant of the torus stays there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits

FLOWS = ("uniform", "cells")
EQUATIONS = ("navier_stokes", "advection_diffusion", "burgers")
FORCING = 0.1
ALPHA, TAU = 2.5, 7.0  # of the published start, a Gaussian random field
RK4_REACH = 2.8  # largest imaginary h lambda at which RK4 is stable
QUADRANTS = 4
SHARPNESS = 8.0  # of the border of a quadrant, in widths of the torus / 2 pi


@dataclasses.dataclass(frozen=True)
class Equation:
    """What a field obeys; `viscosity` per time unit, `speed` and kind of a given `flow`, `forcing` of Navier-Stokes."""

    name: str
    viscosity: float
    speed: float = 1.0
    flow: str = "cells"
    forcing: float = FORCING

    def __post_init__(self):
        limits.check("task", self, {"name": EQUATIONS, "flow": FLOWS}, {"viscosity": (0, None)})


def largest_kept(size: int) -> int:
    """The largest wavenumber that a grid of this side keeps."""
    return (size - 1) // 3


def wavenumbers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the entries of `rfft2`, whole numbers as float64: (N, 1) and (1, N / 2 + 1)."""
    return np.fft.fftfreq(size, 1 / size)[:, None], np.arange(size // 2 + 1, dtype=np.float64)[None]


def kept(size: int) -> np.ndarray:
    """(N, N / 2 + 1) bool: the entries of `rfft2` that the 2/3 rule keeps."""
    kx, ky = wavenumbers(size)
    return (np.abs(kx) <= largest_kept(size)) & (ky <= largest_kept(size))


def tendency(equation: Equation, size: int, dtype) -> Callable:
    """`û -> N(û)`, both (N, N / 2 + 1) complex: all that is not viscosity, exact in the kept wavenumbers."""
    kx, ky = wavenumbers(size)
    keep = _complex(kept(size), dtype)
    dx, dy = (_complex(2j * np.pi * k * np.ones_like(kx * ky), dtype) for k in (kx, ky))

    def grid(values_hat):
        return jnp.fft.irfft2(values_hat, (size, size))

    if equation.name == "burgers":
        return lambda u: -keep * (dx + dy) * jnp.fft.rfft2(0.5 * jnp.square(grid(u)))
    if equation.name == "advection_diffusion":
        vx, vy = (jnp.asarray(v, dtype) for v in given_flow(size, equation.flow, equation.speed))
        return lambda u: -keep * jnp.fft.rfft2(vx * grid(dx * u) + vy * grid(dy * u))

    stream = _complex(_inverse_laplacian(size), dtype)
    x, y = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    push = equation.forcing * (np.sin(2 * np.pi * (x + y)) + np.cos(2 * np.pi * (x + y)))
    push_hat = _complex(np.fft.rfft2(push), dtype)

    def of_vorticity(w):
        psi = stream * w
        return keep * (push_hat - jnp.fft.rfft2(grid(dy * psi) * grid(dx * w) - grid(dx * psi) * grid(dy * w)))

    return of_vorticity


def given_flow(size: int, kind: str, speed: float) -> tuple[np.ndarray, np.ndarray]:
    """Velocity on the grid, without divergence; |v_x| + |v_y| is at most `speed`."""
    x, y = np.meshgrid(*(2 * np.pi * np.arange(size) / size,) * 2, indexing="ij")
    if kind == "uniform":
        return speed * 2 / 3 * np.ones_like(x), speed / 3 * np.ones_like(x)
    return speed * np.sin(x) * np.cos(y), -speed * np.cos(x) * np.sin(y)


def velocity(vorticity_NxN) -> tuple:
    """Of a flow without divergence and without mean."""
    size, dtype = vorticity_NxN.shape[-1], vorticity_NxN.dtype
    kx, ky = wavenumbers(size)
    psi = _complex(_inverse_laplacian(size), dtype) * jnp.fft.rfft2(vorticity_NxN)
    dx, dy = (_complex(2j * np.pi * k * np.ones_like(kx * ky), dtype) for k in (kx, ky))
    return jnp.fft.irfft2(dy * psi, (size, size)), -jnp.fft.irfft2(dx * psi, (size, size))


def fastest(equation: Equation, field_NxN):
    """The largest |v_x| + |v_y| with which something is carried."""
    if equation.name == "advection_diffusion":
        return jnp.asarray(equation.speed, field_NxN.dtype)
    vx, vy = velocity(field_NxN) if equation.name == "navier_stokes" else (field_NxN, field_NxN)
    return jnp.max(jnp.abs(vx) + jnp.abs(vy))


def largest_step(size: int, speed: float) -> float:
    """The longest time step at which RK4 is stable where things are carried at this speed."""
    return math.inf if not speed > 0 else RK4_REACH / (2 * math.pi * largest_kept(size) * speed)


@functools.partial(jax.jit, static_argnames=("equation", "step", "per_frame", "n_frames"))
def solve(equation: Equation, start_NxN, step: float, per_frame: int, n_frames: int):
    """`n_frames` fields (K, N, N), the first one the start in its kept wavenumbers, `per_frame` time steps apart.

    In the dtype of the start. Nothing is checked: see `largest_step`.
    """
    size, dtype = start_NxN.shape[-1], start_NxN.dtype
    kx, ky = wavenumbers(size)
    decay = -equation.viscosity * (2 * np.pi) ** 2 * (kx**2 + ky**2)
    half, whole = (_complex(np.exp(share * step * decay), dtype) for share in (0.5, 1.0))
    change = tendency(equation, size, dtype)

    def advance(u, _):
        k1 = change(u)
        k2 = change(half * (u + 0.5 * step * k1))
        k3 = change(half * u + 0.5 * step * k2)
        k4 = change(whole * u + step * half * k3)
        return whole * u + (step / 6) * (whole * k1 + 2 * half * (k2 + k3) + k4), None

    def frame(u, _):
        return jax.lax.scan(advance, u, None, length=per_frame)[0], u

    start_hat = _complex(kept(size), dtype) * jnp.fft.rfft2(start_NxN)
    _, fields = jax.lax.scan(frame, start_hat, None, length=n_frames)
    return jnp.fft.irfft2(fields, (size, size))


def coarsen(fields_KxNxN, size: int):
    """The same fields on a coarser grid, in the wavenumbers that it has below half its side."""
    fine = fields_KxNxN.shape[-1]
    if fine == size:
        return fields_KxNxN
    half = size // 2
    hat = jnp.fft.rfft2(fields_KxNxN)
    low = jnp.concatenate([hat[:, :half], hat[:, -half:]], axis=1)[:, :, : half + 1]
    kx, ky = wavenumbers(size)
    below = np.broadcast_to((np.abs(kx) < half) & (ky < half), low.shape) * (size / fine) ** 2
    return jnp.fft.irfft2(_complex(below, fields_KxNxN.dtype) * low, (size, size))


def gaussian(key, size: int, dtype=jnp.float32):
    """(N, N): the published start, a Gaussian random field of covariance 7^3 (-Laplace + 49)^-2.5 without mean.

    As the published generator draws it, sqrt(2) times the real part of a field with complex normal coefficients, of
    variance 1/2 in each part; its pointwise std is 0.185. Drawn in float32.
    """
    k = np.fft.fftfreq(size, 1 / size)
    root_NxN = TAU ** (ALPHA - 1) * (4 * np.pi**2 * (k[:, None] ** 2 + k[None] ** 2) + TAU**2) ** (-ALPHA / 2)
    root_NxN[0, 0] = 0
    re, im = jax.random.normal(key, (2, size, size), jnp.float32).astype(dtype)
    return jnp.fft.ifft2(_complex(size**2 * root_NxN, dtype) * jax.lax.complex(re, im)).real


def two_scales(key, size: int, low: int, high: int, dtype=jnp.float32):
    """A field (N, N) of wavenumbers up to `low`, but in one quadrant of the torus of those around `high`; and which.

    Both parts have root mean square 1; the border between them is smooth.

    Returns:
      `(field_NxN, region)`: quadrants are numbered along rows, int32.
    """
    region_key, low_key, high_key = jax.random.split(key, 3)
    region = jax.random.randint(region_key, (), 0, QUADRANTS, jnp.int32)
    kx, ky = wavenumbers(size)
    radius = np.hypot(kx, ky)
    coarse_NxN = _band(low_key, (radius > 0) & (radius <= low + 0.5), size, dtype)
    fine_NxN = _band(high_key, np.abs(radius - high) <= 0.5, size, dtype)

    wave_N = jnp.asarray(np.sin(2 * np.pi * np.arange(size) / size), dtype)
    down, right = (1 - 2 * part.astype(dtype) for part in (region // 2, region % 2))
    inside_N1, inside_1N = (jax.nn.sigmoid(SHARPNESS * sign * wave_N) for sign in (down, right))
    inside_NxN = inside_N1[:, None] * inside_1N[None]
    return (1 - inside_NxN) * coarse_NxN + inside_NxN * fine_NxN, region


def _band(key, is_in, size: int, dtype):
    """White noise in some wavenumbers, of root mean square 1."""
    white = jax.random.normal(key, (size, size), jnp.float32).astype(dtype)
    band = jnp.fft.irfft2(_complex(is_in, dtype) * jnp.fft.rfft2(white), (size, size))
    return band / jnp.sqrt(jnp.mean(jnp.square(band)))


def _inverse_laplacian(size: int) -> np.ndarray:
    """Of -Laplace, by wavenumber; 0 for the mean."""
    kx, ky = wavenumbers(size)
    square = (2 * np.pi) ** 2 * (kx**2 + ky**2)
    square[0, 0] = 1
    inverse = 1 / square
    inverse[0, 0] = 0
    return inverse


def _complex(values, dtype):
    """A host array in the complex dtype that goes with a float one."""
    return jnp.asarray(values, jnp.complex128 if dtype == jnp.float64 else jnp.complex64)
