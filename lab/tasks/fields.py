"""Fields on the unit torus, for a model that continues them: a few frames are read, those that follow are to be said.

Trajectories of three equations (`lab.tasks.spectral`): Navier-Stokes from a Gaussian random field, as the Fourier
neural operator's benchmark ("Fourier Neural Operator", arXiv 2010.08895), and, of *two scales*, advection with
diffusion and Burgers from a smooth field that is fine in one quadrant. Which one is known, so a gate that sends patches
to experts ("M2M", arXiv 2410.11617; its own data set was not to be had) can be asked whether it is right.
"""

import dataclasses
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits
from lab.tasks import field_pools, spectral
from lab.tasks.field_pools import Pools, Recipe
from lab.tasks.task import Batch, Task, check_split

PRECISIONS = ("float32", "float64")
STARTS = ("gaussian", "two_scales")
OF_RECIPE = ("size", "skip", "interval", "step", "refine", "start", "low", "high", "amplitude", "precision")
TINY = 1e-24  # added to squared norms: one is divided by, and the root of the other has a derivative at 0


@dataclasses.dataclass(frozen=True)
class Fields(Task):
    """The task as a value. The loss is ||said - true|| / ||true|| over all frames of a trajectory, then their mean.

    Trajectories are a finite set, computed when the first batch is asked for and then cached: a training takes as many
    of them as `train_size`.

    Attributes:
      equation: `navier_stokes`, `advection_diffusion`, `burgers`.
      size: side of the grid, even.
      frames: how many are read, at least 1; 1 is a Markov operator.
      horizon: how many follow.
      interval: time between frames, a multiple of `step`, the solver's.
      speed, flow: of what is carried by a flow that is given, `uniform` or `cells`; see `lab.tasks.spectral`.
      start: `gaussian` or `two_scales`; of the latter `low` and `high` are the wavenumbers, `amplitude` scales both.
      skip: frames before the first one that is read, the start itself being one; of a file, too.
      refine: the solver's grid is so many times finer.
      n_train, n_test: trajectories of splits `train` and `test`.
      fields_seed: of their starts.
      precision: of the solver; fields are given in float32.
      path: of a published file in place of all this but sizes: an array `u` (trajectories, side, side, times) in .npz,
        .mat, .h5, or .npy.
    """

    equation: str
    size: int
    horizon: int
    frames: int = 1
    interval: float = 0.1
    step: float = 0.01
    viscosity: float = 1e-3
    speed: float = 1.0
    flow: str = "uniform"
    start: str = "two_scales"
    low: int = 2
    high: int = 8
    amplitude: float = 1.0
    skip: int = 0
    refine: int = 1
    n_train: int = 200
    n_test: int = 50
    fields_seed: int = 0
    precision: str = "float32"
    path: str = ""

    inputs = "fields"
    vocab_size = length = 0
    splits = ("train", "test")

    def __post_init__(self):
        choices = {
            "equation": spectral.EQUATIONS,
            "start": STARTS,
            "flow": spectral.FLOWS,
            "precision": PRECISIONS,
        }
        least = {"size": 8, "horizon": 1, "frames": 1, "low": 1, "high": 1, "skip": 0, "refine": 1}
        limits.check_sizes("task", self, least | {"n_train": 1, "n_test": 1, "fields_seed": 0})
        limits.check("task", self, choices, {"viscosity": (0, None), "speed": (0, None), "amplitude": (0, None)})
        if self.size % 2:
            raise ValueError(f"task.size={self.size}: expected an even number of grid points a side")
        if not 0 < self.step <= self.interval or abs(self.interval / self.step % 1 - 0.5) < 0.5 - 1e-6:
            raise ValueError(f"task.step={self.step}: task.interval={self.interval} must be a multiple of it")
        fine = self.size * self.refine
        if self.start == "two_scales" and not self.path:
            largest = min(spectral.largest_kept(fine), self.size // 2 - 1)
            if not self.low < self.high <= largest:
                raise ValueError(
                    f"task.high={self.high}: above task.low={self.low}, and at most {largest}, the largest wavenumber "
                    f"that a grid of {self.size} has and one of {fine} keeps"
                )
        if self.equation == "advection_diffusion" and self.step > spectral.largest_step(fine, self.speed):
            most = spectral.largest_step(fine, self.speed)
            raise ValueError(f"task.step={self.step}: unstable; at most {most:.2g} at task.speed={self.speed}")

    @property
    def pools(self) -> Pools:
        """All trajectories.

        Raises:
          ValueError: as `field_pools.computed` or `field_pools.published`.
        """
        n_frames, n_of = self.frames + self.horizon, (("train", self.n_train), ("test", self.n_test))
        if self.path:
            return field_pools.published(self.path, self.size, n_frames, self.skip, n_of)
        equation = spectral.Equation(self.equation, self.viscosity, self.speed, self.flow)
        own = {name: getattr(self, name) for name in OF_RECIPE}
        return field_pools.computed(
            Recipe(**own | dict(equation=equation, n_frames=n_frames, seed=self.fields_seed, n_of=n_of))
        )

    def example(self) -> np.ndarray:
        return np.zeros((1, self.frames, self.size, self.size), np.float32)

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` trajectories of a split in random order, each as often as any but for one: n = their number is all of it.

        Read are (n, frames, S, S), to be said (n, horizon, S, S), both float32; weights are 1 (n,). `info` has
        `region_B`, the quadrant that is fine, numbered along rows, int32; -1 where there is none.

        Raises:
          ValueError: unknown split, or as `pools`.
        """
        check_split(self, split)
        pools = self.pools
        fields_NxKxSxS = jnp.asarray(pools.fields[split], jnp.float32)
        n_items = len(fields_NxKxSxS)
        order_N = jax.random.permutation(key, jnp.arange(n_items, dtype=jnp.int32))
        index_B = jnp.tile(order_N, -(-n // n_items))[:n]
        fields_BxKxSxS = fields_NxKxSxS[index_B]
        info = {"region_B": jnp.asarray(pools.region[split], jnp.int32)[index_B]}
        read, follow = fields_BxKxSxS[:, : self.frames], fields_BxKxSxS[:, self.frames :]
        return Batch(read, follow, jnp.ones((n,), jnp.float32), info)

    def mean_loss(self, frames_BxTxSxS, batch: Batch) -> jax.Array:
        """Relative L2 error of whole trajectories, mean by weight.

        Raises:
          ValueError: the model says another number of frames.
        """
        if frames_BxTxSxS.shape != batch.targets_BxL.shape:
            said, wanted = frames_BxTxSxS.shape[1:], batch.targets_BxL.shape[1:]
            raise ValueError(f"the model says {said} of a trajectory, expected {wanted}: model.horizon is task.horizon")
        error_B = relative_error(frames_BxTxSxS, batch.targets_BxL, (1, 2, 3))
        return jnp.sum(error_B * batch.weights_BxL) / jnp.sum(batch.weights_BxL)

    def score(self, frames_BxTxSxS, batch: Batch) -> dict[str, jax.Array]:
        """Relative L2 errors: `error` of whole trajectories, `first_error` of the first frame that is said."""
        first = relative_error(frames_BxTxSxS[:, 0], batch.targets_BxL[:, 0], (1, 2))
        scores = {"error": self.mean_loss(frames_BxTxSxS, batch), "first_error": jnp.mean(first)}
        return {name: score.astype(jnp.float32) for name, score in scores.items()}

    def files(self) -> dict[str, bytes]:
        """`fields.json`: the hash of all trajectories."""
        return {"fields.json": json.dumps({"sha256": self.pools.sha256}, indent=1).encode()}


def relative_error(said, true, axes: tuple[int, ...]) -> jax.Array:
    """||said - true|| / ||true|| over some axes."""
    error, size = (jnp.sqrt(jnp.sum(jnp.square(values), axis=axes) + TINY) for values in (said - true, true))
    return error / size
