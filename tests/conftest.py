"""Strict numerics, two host devices, and a float64 fixture; set before any test imports JAX's backend."""

import os

import jax
import pytest

jax.config.update("jax_num_cpu_devices", int(os.environ.get("LAB_TEST_DEVICES", "2")))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


PLAIN = {"analysis", "models", "studies", "tasks", "text"}  # folders whose programs run for microseconds


@pytest.fixture(scope="module", autouse=True)
def compiled_fast(request):
    """Small programs are compiled without optimizations, which is what takes the time.

    They are kept by shape, whatever they were compiled with: none may reach a test that compares bytes.
    """
    plain = not PLAIN.isdisjoint(request.path.parts)
    jax.config.update("jax_disable_most_optimizations", plain)
    yield
    if plain:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()


@pytest.fixture
def float64():
    """Double precision for spectra and finite differences."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """For tests that take optimizer steps: optax itself raises a float to an integer array, which strict forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
