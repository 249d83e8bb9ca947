"""These programs run for microseconds: they are compiled without optimizations, which is what takes the time."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)  # "package" would last to the end: folders here are no packages
def compiled_fast():
    """Programs are kept by shape, whatever they were compiled with: none may reach a test that compares bytes."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
