"""Layers that draw every matrix at unit rate (normal, std = d_in^-1/2), for `lab.init.rescale` to bring to its rate."""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab import limits
from lab.models import products

ACTIVATIONS: dict[str, Callable] = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "tanh": nn.tanh,
    "silu": nn.silu,
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),  # GPT-2's "gelu_new"
    "identity": lambda x: x,  # linear controls
}


@dataclasses.dataclass(frozen=True)
class UnitNormal:
    """Normal entries of std d_in^-1/2. Plain normal, not Flax's truncated one: the papers draw from N."""

    d_in: int  # by which `lab.matrices` knows that these are at unit rate

    def __call__(self, key, shape, dtype=jnp.float32):
        return nn.initializers.normal(stddev=1 / math.sqrt(self.d_in))(key, shape, dtype)


def uniform_bias(d_in: int):
    """PyTorch's default bias, U(-1/sqrt(d_in), 1/sqrt(d_in)): what the papers leave biases at."""
    bound = 1 / math.sqrt(d_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Dense):
    """`nn.Dense` with the axes before the last made one: the gradient of a kernel is then a product of two matrices,
    which XLA computes twice as fast on a CPU as a contraction over two axes, and `products.matmul` once more."""

    def __call__(self, inputs):
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], self.features)


def product(compute_dtype: str, contract: Callable) -> Callable:
    """`contract(lhs, rhs)`, in `bfloat16` of rounded operands and with a rounded result, in the dtype of `lhs`.

    The casts have the gradients' products, too, be of rounded operands: all three run where matrix units are fastest.
    """
    if compute_dtype == "float32":
        return contract

    def rounded(lhs, rhs):
        return contract(lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16)).astype(lhs.dtype)

    return rounded


class Model(nn.Module):
    """What the lab's own models are: their sizes are checked when one is made.

    Attributes:
      least: the sizes (fields that are integers) whose least value is another than 1.
    """

    least = limits.NONE

    def __post_init__(self):
        sizes = [field.name for field in dataclasses.fields(self) if field.type is int]
        limits.check_sizes("model", self, dict.fromkeys(sizes, 1) | dict(self.least))
        super().__post_init__()


def dense(
    d_in: int, features: int, use_bias: bool, name: str, compute_dtype: str = "float32", kernel_init=None
) -> Dense:
    matmul = product(compute_dtype, products.matmul)
    return Dense(
        features,
        use_bias=use_bias,
        kernel_init=kernel_init or UnitNormal(d_in),
        bias_init=uniform_bias(d_in),
        dot_general=lambda x_NxI, kernel_IxO, *_, **__: matmul(x_NxI, kernel_IxO),
        name=name,
    )


def embedding(size: int, d_model: int, name: str | None = None) -> nn.Embed:
    return nn.Embed(size, d_model, embedding_init=UnitNormal(d_model), name=name)


class Embedding(nn.Module):
    """Token plus learned position embedding, if there is one; `attend` is the tied head."""

    vocab_size: int
    max_length: int
    d_model: int

    def setup(self):
        self.token = embedding(self.vocab_size, self.d_model)
        if self.max_length:
            self.position = embedding(self.max_length, self.d_model)

    def __call__(self, tokens_BxL):
        if not self.max_length:
            return self.token(tokens_BxL)
        return self.token(tokens_BxL) + self.position(jnp.arange(tokens_BxL.shape[1], dtype=jnp.int32))[None]

    def attend(self, h_BxQxD):
        return self.token.attend(h_BxQxD)


class LayerNorm(nn.Module):
    """As `nn.LayerNorm` and with its parameters; variance in two passes and eps 1e-5, as PyTorch computes it."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, h):
        scale_D = self.param("scale", nn.initializers.ones, h.shape[-1:], jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, h.shape[-1:], jnp.float32)
        scale, bias = (jnp.expand_dims(leaf_D, range(h.ndim - 1)) for leaf_D in (scale_D, bias_D))
        return products.normalize(h, self.epsilon) * scale + bias


class RMSNorm(nn.Module):
    """x / sqrt(mean of x^2 + eps), times a learned gain."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, h):
        scale_D = self.param("scale", nn.initializers.ones, h.shape[-1:], jnp.float32)
        rate = jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.epsilon)
        return h * rate * jnp.expand_dims(scale_D, range(h.ndim - 1))
