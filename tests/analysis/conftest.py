"""These programs run for microseconds: they are compiled without optimizations, which is what takes the time."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def compiled_fast():
    """Programs are kept by shape, whatever they were compiled with: none may reach a test that compares bytes."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
