"""Three concepts drawn as a small picture, for a model that takes noise out of it; some combinations are held out.

A class is three bits, (shape, colour, size): circle or triangle, red or blue, large or small. Some of the eight are
trained, the others held out. A model reads a picture noised to time t, which is uniform on 1 ... T, and the bits, and
says the noise ("Denoising Diffusion Probabilistic Models", arXiv 2006.11239, equations 4 and 14):

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise,    abar_t = product of (1 - beta_s) over s <= t.

The setting is that of concept graphs ("Compositional Abilities Emerge Multiplicatively", arXiv 2310.09336) as
"Complexity Control" (arXiv 2501.08537) takes it up. Pictures are drawn by us, in three channels; theirs have four.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits, rng
from lab.tasks.task import Batch, Task, check_split

CONCEPTS = {"shape": ("circle", "triangle"), "colour": ("red", "blue"), "size": ("large", "small")}
CLASSES = tuple(f"{i:03b}" for i in range(8))
PUBLISHED_TIMES, FIRST_BETA, LAST_BETA = 500, 1e-4, 0.02
FEWEST_TIMES = 20  # the largest beta is 1/2 then
IMAGES_SEED = 0  # of the finite training set

# In sides of the picture, but for the triangle's inscribed circle, which is in radii of the circle it stands for.
RADII, INSCRIBED, JITTER = (0.28, 0.16), 0.75, 0.06
COLOURS = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0))
BACKGROUND, NOISE = -1.0, 0.1  # black, and the standard deviation around it


class Noised(NamedTuple):
    """What the model reads: pictures float32, mostly in [-1, 1] before noise; t / T in (0, 1], float32; bits int32."""

    image_BxSxSxC: jax.Array
    time_B: jax.Array
    bits_BxK: jax.Array


@dataclasses.dataclass(frozen=True)
class Shapes(Task):
    """The task as a value. The loss is the mean squared error of the noise; scores are of pictures that a model
    generates, which no single pass gives: see `lab.analysis.diffusion`.

    Splits: `train`; `seen` and `unseen`, new pictures of the trained classes and of the others.

    Attributes:
      size: side of the picture in pixels.
      n_times: T. Published are 500; with fewer, betas are larger in proportion, so that x_T is as noisy.
      images_per_class: of the training set, drawn once and then taken at random, each time with new noise and at
        another time (so that the engine's own `train_size`, which would fix these as well, is to be 0); published are
        280. 0: every picture is new.
      trained: the classes that are trained, e.g. `("000", "100")`.
    """

    size: int
    n_times: int
    images_per_class: int
    trained: tuple[str, ...] = ("000", "100", "010", "111")

    inputs = "noised pictures"
    stream_only = "would fix noise and times; use train_size=0 and task.images_per_class"
    vocab_size = length = 0
    splits = ("train", "seen", "unseen")

    def __post_init__(self):
        bounds = {"size": (8, None), "n_times": (FEWEST_TIMES, None), "images_per_class": (0, None)}
        limits.check("task", self, bounds=bounds)
        if not 0 < len(set(self.trained)) == len(self.trained) < len(CLASSES) or not set(self.trained) < set(CLASSES):
            raise ValueError(f"task.trained={self.trained!r}: some of {', '.join(CLASSES)}, each once and not all")

    @property
    def unseen(self) -> tuple[str, ...]:
        return tuple(name for name in CLASSES if name not in self.trained)

    def example(self) -> Noised:
        image_1xSxSx3 = np.zeros((1, self.size, self.size, 3), np.float32)
        return Noised(image_1xSxSx3, np.zeros((1,), np.float32), np.zeros((1, 3), np.int32))

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` noised pictures (`Noised`), their noise (n, S, S, 3) float32, weights 1 (n,), and `class_B` in `info`.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        class_key, image_key, time_key, noise_key = jax.random.split(key, 4)
        names = self.unseen if split == "unseen" else self.trained
        choices = jnp.array([CLASSES.index(name) for name in names], jnp.int32)
        class_B = choices[jax.random.randint(class_key, (n,), 0, choices.size, jnp.int32)]
        keys_B = self._kept(image_key, class_B) if split == "train" else jax.random.split(image_key, n)
        clean_BxSxSx3 = draw(keys_B, class_B, self.size)

        time_B = jax.random.randint(time_key, (n,), 0, self.n_times, jnp.int32)
        noise_BxSxSx3 = jax.random.normal(noise_key, clean_BxSxSx3.shape, jnp.float32)
        kept_Bx1x1x1 = jnp.asarray(signal(self.n_times), jnp.float32)[time_B][:, None, None, None]
        noised_BxSxSx3 = jnp.sqrt(kept_Bx1x1x1) * clean_BxSxSx3 + jnp.sqrt(1 - kept_Bx1x1x1) * noise_BxSxSx3
        inputs = Noised(noised_BxSxSx3, (time_B + 1).astype(jnp.float32) / self.n_times, bits(class_B))
        return Batch(inputs, noise_BxSxSx3, jnp.ones((n,), jnp.float32), {"class_B": class_B})

    def mean_loss(self, noise_BxSxSxC, batch: Batch) -> jax.Array:
        """Mean squared error of the noise, over numbers of a picture and then over pictures by weight."""
        error_B = jnp.mean(jnp.square(noise_BxSxSxC - batch.targets_BxL), axis=(1, 2, 3))
        return jnp.sum(error_B * batch.weights_BxL) / jnp.sum(batch.weights_BxL)

    def score(self, noise_BxSxSxC, batch: Batch) -> dict[str, jax.Array]:
        return {}

    def _kept(self, key, class_B):
        """Keys of pictures of the training set, if that is finite."""
        if not self.images_per_class:
            return jax.random.split(key, class_B.shape[0])
        which_B = jax.random.randint(key, class_B.shape, 0, self.images_per_class, jnp.int32)
        of_set = functools.partial(jax.random.fold_in, rng.key(IMAGES_SEED, "shapes"))
        return jax.vmap(of_set)(class_B * self.images_per_class + which_B)


def bits(class_B):
    """int32 (B, 3): shape, colour, size of classes 0 ... 7."""
    return class_B[:, None] >> jnp.array([[2, 1, 0]], jnp.int32) & 1


def betas(n_times: int) -> np.ndarray:
    """beta_1 ... beta_T: linear from 1e-4 to 0.02 for T = 500, times 500 / T."""
    return np.linspace(FIRST_BETA, LAST_BETA, n_times) * PUBLISHED_TIMES / n_times


def signal(n_times: int) -> np.ndarray:
    """abar_1 ... abar_T: the share of the picture in the variance of x_t."""
    return np.cumprod(1 - betas(n_times))


def draw(keys_B, class_B, size: int):
    """Clean pictures of classes 0 ... 7, float32 (B, size, size, 3). A key each says where the shape lies and what
    noise the background has."""
    return jax.vmap(functools.partial(_draw, size=size))(keys_B, bits(class_B))


def _draw(key, bits_3, size: int):
    place_key, noise_key = jax.random.split(key)
    centre_2 = size * (0.5 + jax.random.uniform(place_key, (2,), jnp.float32, -JITTER, JITTER))
    pixel_S = jnp.arange(size, dtype=jnp.float32) + 0.5
    down_SxS, right_SxS = jnp.meshgrid(pixel_S - centre_2[0], pixel_S - centre_2[1], indexing="ij")
    radius = size * jnp.array(RADII, jnp.float32)[bits_3[2]]

    # distance from the edge in pixels, negative inside; a pixel on the edge is covered in part
    circle_SxS = jnp.hypot(down_SxS, right_SxS) - radius
    sides_SxS = math.sqrt(3) / 2 * jnp.abs(right_SxS) - down_SxS / 2
    triangle_SxS = jnp.maximum(down_SxS, sides_SxS) - INSCRIBED * radius
    cover_SxSx1 = jnp.clip(0.5 - jnp.where(bits_3[0] == 1, triangle_SxS, circle_SxS), 0, 1)[..., None]

    colour_1x1x3 = jnp.array(COLOURS, jnp.float32)[bits_3[1]][None, None]
    background_SxSx3 = BACKGROUND + NOISE * jax.random.normal(noise_key, (size, size, 3), jnp.float32)
    return cover_SxSx1 * colour_1x1x3 + (1 - cover_SxSx1) * background_SxSx3
