import jax
import pytest


@pytest.fixture
def double(float64):
    """Parameters are declared float32 and given in float64: Flax promotes, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
