"""Numbers with their error bars: what every stochastic measurement returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Estimate(NamedTuple):
    """A mean over independent draws and the standard error of that mean, in the same units."""

    value: jax.Array
    standard_error: jax.Array


def mean(samples, axis: int = 0) -> Estimate:
    """Mean over `axis` and its standard error, s / sqrt(n) with the unbiased s; NaN error for a single draw."""
    n = samples.shape[axis]
    deviation = jnp.std(samples, axis=axis, ddof=1) if n > 1 else jnp.full_like(jnp.mean(samples, axis=axis), jnp.nan)
    return Estimate(jnp.mean(samples, axis=axis), deviation / np.sqrt(n).astype(deviation.dtype))


def named(name: str, estimate: Estimate) -> dict[str, jax.Array]:
    """As the outputs `name` and `name_error` of a measurement."""
    return {name: estimate.value, f"{name}_error": estimate.standard_error}


def errors(units: dict[str, str]) -> dict[str, str]:
    """The units of values and of their errors."""
    return {key: unit for name, unit in units.items() for key in (name, f"{name}_error")}
