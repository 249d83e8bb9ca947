import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import optim
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
T = 20
PEAK, DECAY = 0.05, 0.3
MATRICES = {"block_0/attn/query/kernel", "embed/token/embedding"}
DECAYED = {"matrices": MATRICES, "kernels": {"block_0/attn/query/kernel"}}  # by mask

# Dyadic betas are exact in float32; the papers' are not, and 1 - 0.999^t then costs digits.
EXACT = optim.Optim(
    family="adamw", schedule="warmup_cosine", warmup_steps=6, start_factor=0.25, end_factor=0.125, clip_norm=4.0,
    decay="scaled", decay_mask="all", b1=0.5, b2=0.875, eps=2.0**-10, momentum=0.5,
)  # fmt: skip
CHANGES = {
    "adamw": {},
    "adamw independent": {"decay": "independent"},
    "adamw matrices": {"decay_mask": "matrices", "start_factor": 0.0, "end_factor": 0.0},
    "adamw kernels": {"decay_mask": "kernels"},
    "adamw as published": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0},
    "adamw constant": {"schedule": "constant", "clip_norm": math.inf, "decay_mask": "matrices", "decay": "independent"},
    "adamw no warm-up": {"warmup_steps": 0},
    "sgd": {"family": "sgd"},
    "sgd plain": {"family": "sgd", "momentum": 0.0, "clip_norm": math.inf, "decay": "independent"},
}
KINDS = {name: dataclasses.replace(EXACT, **changes) for name, changes in CHANGES.items()}


@pytest.fixture(autouse=True)
def _optax_promotes():
    """optax itself raises a float to an integer array, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def problem():
    """Parameters, and T gradients of sizes between 0.5 and 1.5, every third of them four times smaller."""
    rng = np.random.default_rng(0)
    shapes = {
        "block_0": {"attn": {"query": {"kernel": (3, 4), "bias": (4,)}}, "attn_norm": {"scale": (3,)}},
        "embed": {"token": {"embedding": (5, 3)}},
    }

    def draw(shape):
        grads = rng.uniform(0.5, 1.5, (T, *shape)) * rng.choice([-1, 1], (T, *shape))
        grads[::3] /= 4
        return grads.astype(np.float32), rng.standard_normal(shape).astype(np.float32)

    pairs = jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
    return (jax.tree.map(lambda pair, i=i: pair[i], pairs, is_leaf=lambda x: isinstance(x, tuple)) for i in (1, 0))


@functools.partial(jax.jit, static_argnums=0)
def train(optimizer, params, grads, learning_rate, weight_decay):
    """Parameters after each of the steps, as the library computes them; the rates are traced."""
    transform = optim.build(optimizer, T, learning_rate, weight_decay)

    def step(carry, grad):
        params, state = carry
        updates, state = transform.update(grad, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), params

    return named_leaves(jax.lax.scan(step, (params, transform.init(params)), grads)[1])


def factor_by_hand(o, step, n_steps):
    if step < o.warmup_steps:
        return o.start_factor + (1 - o.start_factor) * step / o.warmup_steps
    if o.schedule == "constant":
        return 1.0
    angle = math.pi * (step - o.warmup_steps) / (n_steps - o.warmup_steps)
    return o.end_factor + (1 - o.end_factor) * (1 + math.cos(angle)) / 2


def by_hand(o, params, grads, learning_rate, weight_decay):
    """The same in float64: parameters by name after each step, and a bound of what float32 does to them."""
    theta = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(params).items()}
    grads = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(grads).items()}
    m, v = ({name: np.zeros_like(leaf) for name, leaf in theta.items()} for _ in range(2))
    path, bounds, bound, largest = [], [], 0.0, 0.0
    for step in range(T):
        g = {name: leaf[step] for name, leaf in grads.items()}
        norm = math.sqrt(sum(np.sum(leaf**2) for leaf in g.values()))
        g = {name: leaf * min(1.0, o.clip_norm / norm) for name, leaf in g.items()}
        factor, reach = factor_by_hand(o, step, T), 0.0
        largest = max(largest, *(np.abs(leaf).max() for leaf in g.values()))
        for name in theta:
            if o.family == "adamw":
                m[name] = o.b1 * m[name] + (1 - o.b1) * g[name]
                v[name] = o.b2 * v[name] + (1 - o.b2) * g[name] ** 2
                spread = np.sqrt(v[name] / (1 - o.b2 ** (step + 1))) + o.eps
                u = m[name] / (1 - o.b1 ** (step + 1)) / spread
                reach = max(reach, largest / spread.min())
            else:
                m[name] = u = o.momentum * m[name] + g[name]
                reach = max(reach, largest / (1 - o.momentum))
            decayed = weight_decay if o.decay_mask == "all" or name in DECAYED[o.decay_mask] else 0.0
            pull = factor * decayed * (learning_rate if o.decay == "scaled" else 1.0)
            theta[name] = theta[name] - factor * learning_rate * u - pull * theta[name]
        size = max(np.abs(leaf).max() for leaf in theta.values())
        bound += rounding(o, step + 1, size, learning_rate * reach, weight_decay)
        path.append(dict(theta))
        bounds.append(bound)
    return {name: np.stack([point[name] for point in path]) for name in theta}, np.array(bounds)


def rounding(o, t, size, move, weight_decay):
    """What step t adds to the absolute error; decay only shrinks the error already there.

    Storing theta rounds it to eps, and its decay to wd eps (times less than one). `move` bounds rate times update.
    Of that, the clipped gradient is off by 34 (the entries of its norm) + 4 eps, in m once and in sqrt(v) once; m and
    v by two more at each step so far; the schedule and the five products around it by 20. With Adam, 1 - b^t carries
    the error of b^t: t/2 eps from rounding b, 4 from the power.
    """
    relative = 2 * 38 + 2 * t + 20
    if o.family == "adamw":
        relative += sum(share * (t / 2 + 4) * b**t / (1 - b**t) for b, share in ((o.b1, 1), (o.b2, 0.5)))
    return (size * (1 + weight_decay) + move * relative) * EPS


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_that_of_the_optimizer_written_by_hand(kind):
    o = KINDS[kind]
    params, grads = problem()
    ours = train(o, params, grads, PEAK, DECAY)
    expected, bounds = by_hand(o, params, grads, PEAK, DECAY)
    assert bounds[-1] < 1e-3  # while the parameters move by about T * PEAK = 1
    for name, path in expected.items():
        error = np.abs(np.asarray(ours[name], np.float64) - path).reshape(T, -1).max(axis=1)
        assert (error <= bounds).all(), (name, error / bounds)


@pytest.mark.parametrize("kind", ["adamw independent", "sgd"])
def test_rates_traced_under_vmap_equal_a_loop_and_plain_floats(kind):
    params, grads = problem()
    rates, decays = [0.05, 0.01, 0.002], [0.0, 0.3, 1.0]
    together = jax.vmap(lambda lr, wd: train(KINDS[kind], params, grads, lr, wd))(jnp.array(rates), jnp.array(decays))
    plain = jax.jit(lambda: train.__wrapped__(KINDS[kind], params, grads, rates[1], decays[1]))()
    for row, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        alone = train(KINDS[kind], params, grads, rate, decay)
        expected, bounds = by_hand(KINDS[kind], params, grads, rate, decay)
        for name in alone:
            # The same float32 program up to the order of its products: each is within the bound of the truth.
            assert np.abs(together[name][row] - alone[name]).max() <= 2 * bounds[-1]
            assert np.abs(together[name][row] - expected[name]).max() <= bounds[-1]
            if row == 1:
                assert np.abs(plain[name] - expected[name]).max() <= bounds[-1]


@pytest.mark.parametrize("decay", ["scaled", "independent"])
@pytest.mark.parametrize("mask", optim.MASKS)
def test_without_gradient_weights_shrink_by_the_product_of_the_decays(decay, mask):
    o = dataclasses.replace(EXACT, decay=decay, decay_mask=mask)
    params, grads = problem()
    for rate in (0.0, 0.01, 0.1):  # independent decay is the same at each, none included
        path = train(o, params, jax.tree.map(np.zeros_like, grads), rate, DECAY)
        unit = DECAY if decay == "independent" else rate * DECAY
        shrink = math.prod(1 - unit * factor_by_hand(o, step, T) for step in range(T))
        for name, leaf in named_leaves(params).items():
            expected = leaf * (shrink if mask == "all" or name in DECAYED[mask] else 1.0)
            # Per step, ten roundings of the decay (at most 0.3 of the weight), and the subtraction's.
            tolerance = T * (10 * 0.3 + 1) / (1 - 0.3) * EPS
            np.testing.assert_allclose(path[name][-1], expected, rtol=tolerance, err_msg=name)


def test_first_adam_step_is_the_sign_of_the_gradient_whatever_its_size():
    o = dataclasses.replace(EXACT, schedule="constant", warmup_steps=0, eps=1e-30, clip_norm=math.inf)
    params, grads = problem()
    for scale in (2.0**-10, 2.0**10):
        path = train(o, params, jax.tree.map(lambda g, scale=scale: g * np.float32(scale), grads), PEAK, 0.0)
        for name, leaf in named_leaves(params).items():
            expected = leaf - PEAK * np.sign(named_leaves(grads)[name][0])
            # The ratio is 1 to 8 eps, times a rate of 0.05; then the weight, below 4, is rounded.
            np.testing.assert_allclose(path[name][0], expected, rtol=0, atol=(8 * PEAK + 4) * EPS)


def test_clipping_keeps_direction_and_caps_the_norm():
    o = dataclasses.replace(KINDS["sgd plain"], schedule="constant", warmup_steps=0)
    params, grads = problem()
    free = train(o, params, grads, 1.0, 0.0)
    capped = train(dataclasses.replace(o, clip_norm=0.5), params, grads, 1.0, 0.0)
    start = named_leaves(params)
    moves = [np.concatenate([np.ravel(path[name][0] - start[name]) for name in start]) for path in (free, capped)]
    # Weights below 4 are rounded on both sides, and 34 squares are summed: 38 eps of entries below 1/2.
    np.testing.assert_allclose(moves[1], 0.5 * moves[0] / np.linalg.norm(moves[0]), rtol=0, atol=(4 * 4 + 38) * EPS)


@pytest.mark.parametrize("kind", ["adamw", "adamw matrices", "adamw constant", "adamw no warm-up"])
@pytest.mark.parametrize("n_steps", [7, 1000])
def test_schedule_is_warmup_then_cosine_and_stays_in_the_unit_interval(kind, n_steps):
    o = KINDS[kind]
    steps = np.arange(n_steps + 1)
    ours = np.asarray(jax.vmap(optim.schedule(o, n_steps))(jnp.asarray(steps, jnp.int32)))
    expected = [factor_by_hand(o, step, n_steps) for step in steps]
    # Numbers in [0, 1] after some eight operations; the angle, below pi, is rounded three times before its cosine.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=(8 + 3 * math.pi) * EPS)
    assert (ours >= 0).all() and (ours <= 1).all()


def test_schedule_meets_its_endpoints():
    factor = optim.schedule(EXACT, T)
    assert [float(factor(step)) for step in (0, 6)] == [0.25, 1.0]
    assert float(factor(3)) == 0.625  # halfway up: dyadic, hence exact
    assert float(factor(13)) == pytest.approx((1 + 0.125) / 2, abs=8 * EPS)  # halfway down
    assert float(factor(T)) == pytest.approx(0.125, abs=8 * EPS)  # when the last step is done
    assert float(factor(T - 1)) > 0.125  # and not before


@pytest.mark.parametrize("warmup_steps", [-1, T, T + 5])
def test_a_warmup_that_does_not_fit_is_refused(warmup_steps):
    o = dataclasses.replace(EXACT, warmup_steps=warmup_steps)
    with pytest.raises(ValueError, match=rf"optim\.warmup_steps={warmup_steps}: must lie in \[0, steps={T}\)"):
        optim.build(o, T, PEAK, DECAY)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("family", "adam", r"optim\.family='adam': one of adamw, sgd"),
        ("schedule", "cosine", r"optim\.schedule='cosine': one of warmup_cosine, constant"),
        ("decay", "decoupled", r"optim\.decay='decoupled': one of scaled, independent"),
        ("decay_mask", "biases", r"optim\.decay_mask='biases': one of all, matrices, kernels"),
        ("clip_norm", 0.0, r"optim\.clip_norm=0\.0: must be positive"),
        ("clip_norm", math.nan, r"optim\.clip_norm=nan: must be positive"),
        ("eps", -1e-8, r"optim\.eps=-1e-08: must be positive"),
        ("b1", 1.0, r"optim\.b1=1\.0: must lie in \[0, 1\)"),
        ("b2", -0.1, r"optim\.b2=-0\.1: must lie in \[0, 1\)"),
        ("momentum", 1.5, r"optim\.momentum=1\.5: must lie in \[0, 1\)"),
        ("start_factor", 25.0, r"optim\.start_factor=25\.0: a share of the peak, must lie in \[0, 1\]"),
        ("end_factor", -0.1, r"optim\.end_factor=-0\.1: a share of the peak"),
    ],
)
def test_impossible_choices_are_refused_by_name_and_value(name, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(EXACT, **{name: value})


def test_frozen_groups_stay_and_the_others_move_as_if_they_were_alone():
    params, grads = problem()
    frozen = dataclasses.replace(EXACT, frozen=("embed",))
    without = lambda tree: {name: entry for name, entry in tree.items() if name != "embed"}  # noqa: E731

    def descend(settings, params, grads):
        transform = optim.build(settings, T, PEAK, DECAY)
        state = transform.init(params)
        for step in range(T):
            step_grads = jax.tree.map(lambda leaf, step=step: leaf[step], grads)
            updates, state = transform.update(step_grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return params

    moved = descend(frozen, params, grads)
    alone = descend(EXACT, without(params), without(grads))  # no share of the embedding in the clipped norm
    for name, leaf in named_leaves(alone).items():
        np.testing.assert_array_equal(named_leaves(moved)[name], leaf)
    np.testing.assert_array_equal(moved["embed"]["token"]["embedding"], params["embed"]["token"]["embedding"])


def test_unknown_frozen_group_is_refused():
    with pytest.raises(ValueError, match=r"optim.frozen=\('mpl',\): 'mpl' is none of embed, qk, vo, mlp, head"):
        dataclasses.replace(EXACT, frozen=("mpl",))
