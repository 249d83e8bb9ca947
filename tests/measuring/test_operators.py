"""Measurements of operators on a model of one weight, whose answers are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.measuring.catalogue import operators
from lab.measuring.declare import Row
from lab.tasks import Batch, Fields

TASK = Fields("advection_diffusion", size=16, horizon=2, high=5)


class Scale(nn.Module):
    """Each frame is the last one times a weight."""

    reads = "fields"

    @nn.compact
    def __call__(self, fields_BxFxHxW):
        weight = self.param("w", nn.initializers.ones, (1, 1), jnp.float32)
        powers = jnp.concatenate([weight, weight**2])[None, :, :, None]
        return fields_BxFxHxW[:, -1:] * powers


class Given:
    """What a measurement asks of an experiment."""

    task, model = TASK, Scale()


def row(weight, dtype=jnp.float32, n=8):
    draw = np.random.default_rng(0).normal(size=(n, 3, 16, 16))
    fields = jnp.asarray(draw, dtype)
    batch = Batch(fields[:, :1], fields[:, 1:], jnp.ones((n,), dtype), {"region_B": jnp.zeros((n,), jnp.int32)})
    params = {"w": jnp.full((1, 1), weight, dtype)}
    return Row(Scale(), params, params, {}, jnp.int32(0), batch, jax.random.key(0))


def loss(weight, row):
    """Mean over fields of the relative error over both frames."""
    read, true = (np.asarray(of, np.float64) for of in (row.batch.tokens_BxL, row.batch.targets_BxL))
    said = np.concatenate([read * weight, read * weight**2], axis=1)
    error, size = (np.sqrt((of**2).sum(axis=(1, 2, 3))) for of in (said - true, true))
    return (error / size).mean()


def test_roll_out_is_measured_frame_by_frame_and_its_first_fields_are_kept():
    given = row(0.7)
    found = operators.rollout(Given).function(given)
    assert float(found["error"]) == pytest.approx(loss(0.7, given), rel=1e-5)
    read, true = given.batch.tokens_BxL, given.batch.targets_BxL
    frame = np.sqrt(np.sum((0.49 * read[:, 0] - true[:, 1]) ** 2, axis=(1, 2)) / np.sum(true[:, 1] ** 2, axis=(1, 2)))
    assert float(found["by_frame"][1]) == pytest.approx(frame.mean(), rel=1e-5)
    np.testing.assert_allclose(found["said"][:, 2], 0.49 * found["true"][:, 0], rtol=1e-5)
    np.testing.assert_array_equal(found["true"][:, 1:], true[:2])
    assert set(found) == set(operators.rollout(Given).units)


def test_power_stands_at_its_wavenumber():
    wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16)
    given = row(1.0)
    fields = jnp.broadcast_to(jnp.asarray(wave, jnp.float32)[None, None, :, None], given.batch.targets_BxL.shape)
    found = operators.rollout(Given).function(given._replace(batch=given.batch._replace(targets_BxL=fields)))
    wavenumbers = operators.rollout(Given).coords["wavenumber"]
    assert len(wavenumbers) == len(found["true_power"]) and wavenumbers[int(jnp.argmax(found["true_power"]))] == 3
