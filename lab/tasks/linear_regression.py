"""Linear regression in context: N pairs of a vector and its value are shown, and the value of one more is asked for.

Every sequence has weights w of its own, normal of variance 1 / d; x is standard normal in d dimensions, and
y = w . x + noise. Tokens are [x; y], of the query [x; 0] (Garg et al., arXiv 2208.01066). So the mean square of an
answer is 1, without noise, and what is known in closed form:

- no demonstrations used, 0: mean squared error 1 + noise^2;
- one gradient step from w = 0 on half the squared error of all N demonstrations, of the best size
  1 / (N + d + 1 + d noise^2): (d + 1 + d noise^2) / (N + d + 1 + d noise^2) + noise^2;
- ridge with penalty d noise^2, Bayes' estimate: the least there is; 0 without noise where N >= d.

The step's risk: with S = sum x x^T, E S = N and E S^2 = N (N + d + 1), so that E |w - eta S w - eta sum noise x|^2
= 1 - 2 eta N + eta^2 N (N + d + 1) + eta^2 N d noise^2, which is least at the eta above.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits
from lab.tasks.task import Batch, Task, check_split

LEAST_PENALTY = 1e-4  # of ridge without noise, so that float32 can solve for it


@dataclasses.dataclass(frozen=True)
class LinearRegression(Task):
    """The task as a value. The loss is the mean squared error; `explained` is the share of the mean square of answers
    that is not left: 0 for the answer 0, at most that of ridge.

    Attributes:
      n_features: d.
      n_demos: N.
      noise: standard deviation of what is added to every value, to the one that is asked for, too.
    """

    n_features: int = 10
    n_demos: int = 15
    noise: float = 0.0

    inputs = "sequences of vectors"
    vocab_size = 0
    splits = ("train", "valid", "test")

    def __post_init__(self):
        limits.check("task", self, bounds={"n_features": (1, None), "n_demos": (1, None), "noise": (0, None)})

    @property
    def length(self) -> int:
        return self.n_demos + 1

    @property
    def step_size(self) -> float:
        """Of the one gradient step with the least error."""
        return 1 / (self.n_demos + self.n_features * (1 + self.noise**2) + 1)

    @property
    def step_error(self) -> float:
        """Mean squared error of that step."""
        return 1 - self.n_demos * self.step_size + self.noise**2

    def example(self):
        return np.zeros((1, self.length, self.n_features + 1), np.float32)

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences: vectors (n, N + 1, d + 1), the query's value as target (n,), weights 1 (n,); all float32.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        weight_key, feature_key, noise_key = jax.random.split(key, 3)
        w_BxD = jax.random.normal(weight_key, (n, self.n_features), jnp.float32) / np.float32(self.n_features**0.5)
        x_BxLxD = jax.random.normal(feature_key, (n, self.length, self.n_features), jnp.float32)
        y_BxL = jnp.einsum("bld,bd->bl", x_BxLxD, w_BxD, precision="highest")
        if self.noise:
            y_BxL = y_BxL + np.float32(self.noise) * jax.random.normal(noise_key, y_BxL.shape, jnp.float32)
        shown_BxL = y_BxL.at[:, -1].set(0)
        vectors_BxLxI = jnp.concatenate([x_BxLxD, shown_BxL[:, :, None]], axis=2)
        return Batch(vectors_BxLxI, y_BxL[:, -1], jnp.ones((n,), jnp.float32), {})

    def mean_loss(self, answer_B, batch: Batch) -> jax.Array:
        """Mean squared error, by weight."""
        square_B = jnp.square(answer_B - batch.targets_BxL)
        return jnp.sum(square_B * batch.weights_BxL) / jnp.sum(batch.weights_BxL)

    def score(self, answer_B, batch: Batch) -> dict[str, jax.Array]:
        """`explained` (see the class); the mean squared errors of `ridge` and of one gradient `step`."""
        target_B = batch.targets_BxL
        penalty = max(self.n_features * self.noise**2, LEAST_PENALTY)
        answers = {
            "ridge": ridge(batch.tokens_BxL, penalty), "step": gradient_step(batch.tokens_BxL, self.step_size),
        }  # fmt: skip
        left = jnp.mean(jnp.square(answer_B - target_B)) / jnp.mean(jnp.square(target_B))
        errors = {name: jnp.mean(jnp.square(answer_B - target_B)) for name, answer_B in answers.items()}
        return {"explained": 1 - left, **errors}


def gradient_step(vectors_BxLxI, size: float):
    """Answers (B,) of w = `size` x sum of y x over demonstrations: one gradient step from 0."""
    x_BxNxD, y_BxN = vectors_BxLxI[:, :-1, :-1], vectors_BxLxI[:, :-1, -1]
    w_BxD = size * jnp.einsum("bnd,bn->bd", x_BxNxD, y_BxN)
    return jnp.sum(w_BxD * vectors_BxLxI[:, -1, :-1], axis=1)


def ridge(vectors_BxLxI, penalty: float):
    """Answers (B,) of w = (sum x x^T + penalty)^-1 sum y x.

    By elimination, which needs no pivots where a matrix is positive definite: batched LAPACK calls under vmap can wait
    for each other forever on a CPU.
    """
    x_BxNxD, y_BxN = vectors_BxLxI[:, :-1, :-1], vectors_BxLxI[:, :-1, -1]
    d = x_BxNxD.shape[2]
    square_BxDxD = jnp.einsum("bni,bnj->bij", x_BxNxD, x_BxNxD) + penalty * jnp.eye(d, dtype=x_BxNxD.dtype)[None]
    system_BxDxE = jnp.concatenate([square_BxDxD, jnp.einsum("bnd,bn->bd", x_BxNxD, y_BxN)[:, :, None]], axis=2)

    def eliminate(system_BxDxE, i):
        row_BxE = system_BxDxE[:, i] / system_BxDxE[:, i, i][:, None]
        rest_BxDxE = system_BxDxE - system_BxDxE[:, :, i][:, :, None] * row_BxE[:, None]
        return rest_BxDxE.at[:, i].set(row_BxE), None

    system_BxDxE, _ = jax.lax.scan(eliminate, system_BxDxE, jnp.arange(d, dtype=jnp.int32))
    return jnp.sum(system_BxDxE[:, :, -1] * vectors_BxLxI[:, -1, :-1], axis=1)
