"""The pictures and their noise: what is drawn for which bits, how noisy it is, and which pictures a split holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import rng
from lab.tasks import Shapes, shapes

TASK = Shapes(size=16, n_times=50, images_per_class=3)
N = 512
sample = jax.jit(TASK.sample, static_argnames=("n", "split"))


@functools.cache
def drawn(name, n=64, size=32):
    class_B = jnp.full((n,), shapes.CLASSES.index(name), jnp.int32)
    draw = jax.jit(shapes.draw, static_argnums=2)
    return np.asarray(draw(jax.random.split(rng.key(0, name), n), class_B, size))


def covered(image_BxSxSxC):
    """The pixels of the shape: bright in one of the channels."""
    return image_BxSxSxC.max(axis=-1) > 0


def clean(batch, task):
    """x_0 of equation 4, from x_t, t and the noise."""
    t_B = np.rint(np.asarray(batch.tokens_BxL.time_B) * task.n_times).astype(int)
    kept_B = np.cumprod(1 - shapes.betas(task.n_times))[t_B - 1][:, None, None, None]
    image, noise = np.asarray(batch.tokens_BxL.image_BxSxSxC), np.asarray(batch.targets_BxL)
    return (image - np.sqrt(1 - kept_B) * noise) / np.sqrt(kept_B)


def test_every_bit_says_what_it_is_named_after():
    for name in shapes.CLASSES:
        image, (shape, colour, size) = drawn(name), map(int, name)
        inside = covered(image)
        red_blue = image[inside][:, [0, 2]].mean(axis=0)
        assert red_blue.argmax() == colour and red_blue.min() < 0
        radius = 32 * shapes.RADII[size]
        area = np.pi * radius**2 if shape == 0 else 3 * np.sqrt(3) * (shapes.INSCRIBED * radius) ** 2
        # centres of pixels that lie inside: the area on average, of 64 pictures each less than 2 pixels of 80 away
        assert inside.sum(axis=(1, 2)).mean() == pytest.approx(area, rel=0.02)
        rows_BxS = inside.sum(axis=2)
        half = [(np.cumsum(rows) >= rows.sum() / 2).argmax() - (rows > 0).argmax() for rows in rows_BxS]
        height = (rows_BxS > 0).sum(axis=1)
        # above the line that halves it lie half of a circle's rows and 1 / sqrt(2) of a triangle's; a row is 1 / height
        assert np.mean((np.array(half) + 0.5) / height) == pytest.approx(2**-0.5 if shape else 0.5, abs=0.06)


def test_shape_moves_and_background_is_noisy():
    image = drawn("000", n=256)
    at_B = [np.argwhere(inside).mean(axis=0) for inside in covered(image)]
    # uniform on 32 * [-0.06, 0.06]; of its std the relative error is sqrt(0.8 / 256) / 2
    np.testing.assert_allclose(np.std(at_B, axis=0), 0.06 * 32 / 3**0.5, rtol=4 * 0.028)
    corner = image[:, :3, :3]  # far from any shape: 6912 numbers
    assert corner.mean() == pytest.approx(shapes.BACKGROUND, abs=5 * shapes.NOISE / corner.size**0.5)
    assert corner.std() == pytest.approx(shapes.NOISE, rel=5 / (2 * corner.size) ** 0.5)


def test_published_chain_is_the_linear_one_and_shorter_ones_end_as_noisy():
    np.testing.assert_allclose(shapes.betas(500), 1e-4 + (0.02 - 1e-4) * np.arange(500) / 499, rtol=1e-14)
    left = [np.log(shapes.signal(n)[-1]) for n in (50, 100, 500)]
    # log(1 - beta) = -beta - beta^2 / 2 - ...: the sum of betas is the same, that of squares 0.27 at T = 50
    np.testing.assert_allclose(left, left[-1], atol=0.8)
    assert shapes.betas(shapes.FEWEST_TIMES).max() == pytest.approx(0.5)


def test_noised_picture_is_the_closed_form_of_a_picture_of_its_class():
    batch = sample(rng.key(0, "t"), N, "seen", {})
    clean_BxSxSxC = clean(batch, TASK)
    # abar_T = 0.005 divides the float32 roundings of x_t by 0.07
    assert np.abs(clean_BxSxSxC).max() < 1 + 6 * shapes.NOISE
    inside = covered(clean_BxSxSxC)
    for name in TASK.trained:
        (members,) = np.nonzero(np.asarray(batch.info["class_B"]) == shapes.CLASSES.index(name))
        np.testing.assert_array_equal(batch.tokens_BxL.bits_BxK[members], [[int(bit) for bit in name]] * len(members))
        typical = covered(drawn(name, size=16)).sum(axis=(1, 2))
        areas = inside[members].sum(axis=(1, 2))
        assert typical.min() - 2 <= areas.min() <= areas.max() <= typical.max() + 2
    time_B = np.rint(np.asarray(batch.tokens_BxL.time_B) * TASK.n_times)
    assert time_B.min() == 1 and time_B.max() == TASK.n_times  # 512 draws of 50 miss one with probability 3e-5
    assert np.asarray(batch.targets_BxL).std() == pytest.approx(1, rel=5 / (2 * batch.targets_BxL.size) ** 0.5)


def new(image_BxSxSxC, known):
    """Those that are unlike all known ones and all before them; of two pictures the noise differs by more than 0.01."""
    found = [*known]
    for image in image_BxSxSxC:
        if not any(np.abs(image - other).max() < 0.01 for other in found):
            found.append(image)
    return found[len(known) :]


def test_training_set_is_finite_and_noised_anew_each_time():
    first, second = (sample(rng.key(0, "data", i), 128, "train", {}) for i in range(2))
    # 4 classes x 3 pictures; 128 draws of 12 miss one with probability 2e-4, these do not
    kept = new(clean(first, TASK), [])
    assert len(kept) == 12 and not new(clean(second, TASK), kept)
    assert len(np.unique(np.asarray(first.targets_BxL)[:, 0, 0, 0])) == 128
    fresh = sample(rng.key(0, "data", 0), 128, "seen", {})
    endless = jax.jit(lambda key: dataclasses.replace(TASK, images_per_class=0).sample(key, 128, "train", {}))(
        rng.key(0, "data", 0)
    )
    for batch in (fresh, endless):
        assert len(new(clean(batch, TASK), kept)) == 128


def test_splits_hold_the_classes_they_are_named_after():
    held = {split: set(np.asarray(sample(rng.key(0, "c"), 128, split, {}).info["class_B"])) for split in TASK.splits}
    assert held == {"train": {0, 2, 4, 7}, "seen": {0, 2, 4, 7}, "unseen": {1, 3, 5, 6}}


def test_loss_is_the_mean_squared_error_of_the_noise():
    batch = jax.tree.map(lambda leaf: leaf[:4], sample(rng.key(0, "loss"), 128, "train", {}))
    noise = np.asarray(batch.targets_BxL, np.float64)
    assert TASK.mean_loss(batch.targets_BxL, batch) == 0
    # 768 squares a picture, summed in float32
    assert TASK.mean_loss(jnp.zeros_like(batch.targets_BxL), batch) == pytest.approx(np.mean(noise**2), rel=1e-5)
    alone = batch._replace(weights_BxL=jnp.array([0.0, 2.0, 0.0, 0.0], jnp.float32))
    assert TASK.mean_loss(jnp.zeros_like(batch.targets_BxL), alone) == pytest.approx(np.mean(noise[1] ** 2), rel=1e-5)
