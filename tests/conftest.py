"""Strict numerics, two host devices, and a float64 fixture; set before any test imports JAX's backend."""

import os

import jax
import pytest

jax.config.update("jax_num_cpu_devices", int(os.environ.get("LAB_TEST_DEVICES", "2")))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


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
