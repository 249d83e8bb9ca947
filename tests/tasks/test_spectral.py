"""The solver against closed forms, budgets, another solver, and its own order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from lab.tasks import spectral
from lab.tasks.spectral import EQUATIONS, Equation

EPS = 2.0**-52


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def start(size, seed=0, scale=10.0):
    """A smooth vorticity, fast enough for a time unit to matter."""
    return scale * spectral.gaussian(jax.random.key(seed), size, jnp.float64)


def grid(size):
    return np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")


def test_taylor_green_decays_as_its_closed_form():
    """An eigenfunction of Laplace: nothing is carried, and the integrating factor is exact."""
    x, y = grid(32)
    vorticity = np.sin(2 * np.pi * 2 * x) * np.sin(2 * np.pi * 2 * y)
    unforced = Equation("navier_stokes", 0.01, forcing=0.0)
    found = np.asarray(spectral.solve(unforced, jnp.asarray(vorticity), 0.05, 10, 3))
    for frame, t in zip(found, (0, 0.5, 1.0), strict=True):
        np.testing.assert_allclose(frame, vorticity * np.exp(-0.01 * 8 * 4 * np.pi**2 * t), atol=200 * EPS)


@pytest.mark.parametrize("name", EQUATIONS)
def test_transport_keeps_energy_and_enstrophy_at_every_moment(name):
    """Exactly, not up to the step: a Galerkin method whose products are free of aliases."""
    size, dtype = 24, jnp.float64
    keep = jnp.asarray(spectral.kept(size), jnp.complex128)
    field_hat = keep * jnp.fft.rfft2(start(size))
    change_hat = spectral.tendency(Equation(name, 0.0, forcing=0.0), size, dtype)(field_hat)
    field, change = (np.fft.irfft2(np.asarray(hat), (size, size)) for hat in (field_hat, change_hat))
    largest = np.abs(field * change).sum()
    assert abs(np.sum(field * change)) < 1e3 * EPS * largest  # of a scalar energy, of a vorticity enstrophy
    assert abs(change.sum()) < 1e3 * EPS * np.abs(change).sum()  # and the mean
    if name == "navier_stokes":
        psi = np.fft.irfft2(spectral._inverse_laplacian(size) * np.asarray(field_hat), (size, size))
        assert abs(np.sum(psi * change)) < 1e3 * EPS * np.abs(psi * change).sum()  # energy of the flow


def test_energy_is_lost_to_viscosity_and_given_by_the_forcing():
    """d/dt (mean |v|^2 / 2) = mean(psi f) - nu mean(w^2), by a central difference of second order."""
    equation, size, h = Equation("navier_stokes", 1e-2), 32, 1e-3
    before, now, after = np.asarray(spectral.solve(equation, start(size), h, 1, 3))
    x, y = grid(size)
    push = spectral.FORCING * (np.sin(2 * np.pi * (x + y)) + np.cos(2 * np.pi * (x + y)))

    def stream(w):
        return np.fft.irfft2(spectral._inverse_laplacian(size) * np.fft.rfft2(w), w.shape)

    def energy(w):
        return np.mean(stream(w) * w) / 2

    rate = (energy(after) - energy(before)) / (2 * h)
    expected = np.mean(stream(now) * push) - equation.viscosity * np.mean(now**2)
    assert rate == pytest.approx(expected, rel=1e-4)  # h^2 = 1e-6, times the rates of the field, squared: below 100


def test_a_uniform_flow_moves_what_it_carries():
    equation, size = Equation("advection_diffusion", 0.0, 0.75, "uniform"), 24
    field = np.fft.irfft2(spectral.kept(size) * np.fft.rfft2(np.asarray(start(size))), (size, size))
    found = np.asarray(spectral.solve(equation, jnp.asarray(field), 1 / 3000, 1000, 2))[1]
    # a third of a time unit at speeds 1/2 and 1/4; of h = 1/3000 the fourth power, times (2 pi 7 speed)^5 / 120 and 1/3
    np.testing.assert_allclose(found, np.roll(field, (4, 2), (0, 1)), rtol=0, atol=1e-6 * np.abs(field).max())


@pytest.mark.parametrize("name", EQUATIONS)
def test_error_falls_with_the_fourth_power_of_the_step(name):
    equation = Equation(name, 1e-3, speed=0.5)
    scale = 0.3 if name == "burgers" else 5.0
    by_n = {n: np.asarray(spectral.solve(equation, start(16, scale=scale), 1 / n, n, 2))[1] for n in (40, 80, 640)}
    coarse, fine = (np.abs(by_n[n] - by_n[640]).max() for n in (40, 80))
    assert 3.7 < np.log2(coarse / fine) < 4.5
    assert fine > 1e3 * EPS  # the step, not rounding


def direct(equation, size):
    """du/dt of all modes by sums over pairs of wavenumbers: no transform, no integrating factor, no shared code."""
    reach = (size - 1) // 3
    modes = np.array([(kx, ky) for kx in range(-reach, reach + 1) for ky in range(-reach, reach + 1)])
    place = {tuple(k): i for i, k in enumerate(modes)}
    triples = np.array(
        [(place[tuple(p + q)], i, j) for i, p in enumerate(modes) for j, q in enumerate(modes) if tuple(p + q) in place]
    )
    to, first, second = triples.T
    laplace = -4 * np.pi**2 * np.sum(modes**2, axis=1)
    gradient = 2j * np.pi * modes
    psi_of = np.where(laplace == 0, 0, -1 / np.where(laplace == 0, 1, laplace))

    def product(a, b):
        values = a[first] * b[second]
        real, imaginary = (np.bincount(to, part, len(modes)) for part in (values.real, values.imag))
        return real + 1j * imaginary

    fixed = np.zeros(len(modes), complex)
    if equation.name == "navier_stokes":
        # sin + cos of the wave e^(2 pi i (x + y))
        fixed[place[1, 1]], fixed[place[-1, -1]] = (0.5 - 0.5j) * equation.forcing, (0.5 + 0.5j) * equation.forcing
    cells = np.zeros(len(modes), complex)
    for k, sign in (((1, 1), -1), ((-1, -1), -1), ((1, -1), 1), ((-1, 1), 1)):
        cells[place[k]] = sign * equation.speed / (2 * np.pi) / 4

    def rate(t, u):
        if equation.name == "burgers":
            carried = gradient.sum(axis=1) * product(u, u) / 2
        else:
            psi = psi_of * u if equation.name == "navier_stokes" else cells
            carried = product(gradient[:, 1] * psi, gradient[:, 0] * u) - product(
                gradient[:, 0] * psi, gradient[:, 1] * u
            )
        return equation.viscosity * laplace * u - carried + fixed

    return modes, rate


@pytest.mark.parametrize("name", EQUATIONS)
def test_another_solver_gives_the_same_fields_after_a_time_unit(name):
    size, equation = 16, Equation(name, 1e-3, speed=0.5)
    scale = 0.3 if name == "burgers" else 5.0
    field = np.asarray(start(size, seed=1, scale=scale))
    modes, rate = direct(equation, size)
    hat = np.fft.fft2(field) / size**2
    solved = solve_ivp(rate, (0, 1), hat[modes[:, 0], modes[:, 1]], method="DOP853", rtol=1e-9, atol=1e-11)
    after = np.zeros((size, size), complex)
    after[modes[:, 0], modes[:, 1]] = solved.y[:, -1]
    expected = np.fft.ifft2(after * size**2).real
    found = np.asarray(spectral.solve(equation, jnp.asarray(field), 1 / 200, 200, 2))[1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(found - field).max() > 0.05  # a good deal has happened


def test_the_start_has_the_published_standard_deviation_and_no_mean():
    fields = jax.vmap(functools.partial(spectral.gaussian, size=64))(jax.random.split(jax.random.key(0), 200))
    # 7^3 times the sum of (4 pi^2 k^2 + 49)^-2.5; of 200 fields of a few independent patches the std is known to 2 %
    assert float(jnp.std(fields)) == pytest.approx(0.185, rel=0.04)
    np.testing.assert_allclose(jnp.mean(fields, axis=(1, 2)), 0, atol=1e-6)


def test_one_quadrant_is_fine_and_what_is_in_a_cell_stays_there():
    keys = jax.random.split(jax.random.key(1), 12)
    fields, region = jax.vmap(lambda key: spectral.two_scales(key, 64, 2, 8, jnp.float64))(keys)
    equation = Equation("advection_diffusion", 1e-4)
    later = jax.jit(jax.vmap(lambda field: spectral.solve(equation, field, 0.01, 30, 2)[1]))(fields)
    for shown in (fields, later):
        down, right = np.gradient(np.asarray(shown), axis=(1, 2))
        rough = (down**2 + right**2).reshape(12, 2, 32, 2, 32).mean(axis=(2, 4)).reshape(12, 4)
        np.testing.assert_array_equal(rough.argmax(axis=1), region)
        assert (np.sort(rough)[:, -1] > 2 * np.sort(rough)[:, -2]).all()
    assert set(region.tolist()) == {0, 1, 2, 3}


def test_a_coarser_grid_shows_the_same_waves():
    x, y = grid(48)
    waves = [np.cos(2 * np.pi * (3 * x + 2 * y)) + np.sin(2 * np.pi * 5 * y), np.cos(2 * np.pi * 20 * x)]
    found = np.asarray(spectral.coarsen(jnp.asarray(np.stack(waves)), 16))
    np.testing.assert_allclose(found[0], waves[0][::3, ::3], atol=100 * EPS)
    np.testing.assert_allclose(found[1], 0, atol=100 * EPS)


def test_beyond_the_largest_step_fields_grow_without_bound_and_below_they_do_not():
    equation, field = Equation("advection_diffusion", 0.0), start(32, scale=1.0)
    largest = spectral.largest_step(32, 1.0)
    stable, unstable = (
        float(jnp.max(jnp.abs(spectral.solve(equation, field, share * largest, 200, 2)[1]))) for share in (0.95, 2.2)
    )
    assert stable < 2 * float(jnp.max(jnp.abs(field))) and not unstable < 1e3
