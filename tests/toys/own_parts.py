"""A model, a task's functions, an optimizer, a loss and a metric, as a user has them in a file."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class Net(nn.Module):
    width: int
    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        h = self.activation(nn.Dense(self.width)(x))
        return nn.Dense(2)(h)


def sample(key, n):
    x_BxD = jax.random.normal(key, (n, 3), jnp.float32)
    return x_BxD, (x_BxD[:, 0] > 0).astype(jnp.int32)


def descent(learning_rate, weight_decay, damping=0.0):
    return optax.chain(optax.add_decayed_weights(weight_decay + damping), optax.sgd(learning_rate))


def bare(learning_rate):
    return optax.sgd(learning_rate)


def hinge(outputs_BxC, targets_B):
    sign_B = 2.0 * targets_B.astype(jnp.float32) - 1
    return jax.nn.relu(1 - sign_B * (outputs_BxC[:, 1] - outputs_BxC[:, 0]))


def confident(outputs_BxC, targets_B):
    return jnp.max(jax.nn.softmax(outputs_BxC), axis=-1) > 0.9
