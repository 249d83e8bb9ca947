"""These programs run for microseconds: they are compiled without optimizations, which is what takes the time."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def compiled_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
