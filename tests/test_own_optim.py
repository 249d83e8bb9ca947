"""An optimizer of a user's own takes the step that its function says, with the row's rate, decay and axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab import limits, optim, user_code
from lab.configs import base
from lab.engine import step

PARAMS = {"in": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0, 4.0])}}
GRADS = jax.tree.map(lambda leaf: 0.5 * leaf + 1, PARAMS)
RATE, DECAY = jnp.float32(0.1), jnp.float32(0.2)

pytestmark = pytest.mark.usefixtures("standard_promotion")


def damped(learning_rate, weight_decay, damping):
    return optax.chain(optax.add_decayed_weights(weight_decay + damping), optax.sgd(learning_rate))


def bare(learning_rate):
    return optax.sgd(learning_rate)


def flag(learning_rate, weight_decay):
    return 3


def declared(family, **changes):
    options = base.OPTIONS["optim"] | dict(schedule="constant", warmup_steps=0, clip_norm=float("inf"))
    return optim.Optim(**options | dict(family=user_code.name_of(family)) | changes)


def moved(own, hparams=limits.NONE):
    """Parameters after a step under jit, rate and decay traced."""

    @jax.jit
    def after(rate, decay, hparams):
        transform = optim.build(own, 10, rate, decay, hparams=hparams)
        updates, _ = transform.update(GRADS, transform.init(PARAMS), PARAMS)
        return optax.apply_updates(PARAMS, updates)

    return after(RATE, DECAY, dict(hparams))


def close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), tree, other)  # a few float32 operations


def test_function_is_given_the_rows_rate_and_decay_and_its_other_axes():
    own = declared(damped)
    assert optim.own_optim.hparams(own.family, required=True) == ("damping",)
    expected = jax.tree.map(lambda p, g: p - 0.1 * (g + (0.2 + 0.05) * p), PARAMS, GRADS)
    close(moved(own, {"damping": jnp.float32(0.05), "gamma": jnp.float32(1)}), expected)


@pytest.mark.parametrize(("decay", "rate"), [("scaled", 0.1), ("independent", 1.0)])
def test_function_without_a_decay_is_given_the_decoupled_one(decay, rate):
    expected = jax.tree.map(lambda p, g: p - 0.1 * g - rate * 0.2 * p, PARAMS, GRADS)
    close(moved(declared(bare, decay=decay)), expected)


def test_decay_of_matrices_alone_and_frozen_groups_hold_for_it():
    after = moved(declared(bare, decay_mask="matrices", frozen=("mlp",)))
    close(after["in"]["kernel"], PARAMS["in"]["kernel"])
    close(after["in"]["bias"], PARAMS["in"]["bias"] - 0.1 * GRADS["in"]["bias"])


@pytest.mark.parametrize("decay_mask", ["all", "matrices"])
def test_optax_adamw_by_name_is_the_package_s_adamw(decay_mask):
    """The same mathematics by two routes; optax multiplies by the rate in another order."""
    close(moved(declared(optax.adamw, decay_mask=decay_mask)), moved(_ours(decay_mask=decay_mask)))


def _ours(**changes):
    options = base.OPTIONS["optim"] | dict(schedule="constant", warmup_steps=0, clip_norm=float("inf"))
    return optim.Optim(**options | changes)


def test_gradient_is_clipped_before_it():
    norm = float(optax.tree.norm(GRADS))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g / norm - 0.1 * 0.2 * p, PARAMS, GRADS)
    close(moved(declared(bare, clip_norm=1.0)), expected)


def test_it_sees_the_tree_as_it_is(echo):
    """Rows are not packed for it: norms of leaves and masks by name are of the leaves."""
    experiment = echo.experiment(optim=declared(optax.lamb))
    assert step.packing(experiment, None) is None


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("tests.nowhere:x", {}, "optim.family='tests.nowhere:x': No module named"),
        ("optax:nothing", {}, "optim.family='optax:nothing': module 'optax' has no attribute 'nothing'"),
        ("math:pi", {}, "a float, expected a function of learning_rate"),
        ("optax:clip", {}, "optim.family='optax:clip' takes max_delta: expected a function of learning_rate"),
        ("optax:adamw", dict(decay="independent"), "optim.decay='independent': .* takes weight_decay and decides"),
        (damped, dict(decay_mask="matrices"), "optim.decay_mask='matrices': .* takes weight_decay and no mask"),
    ],
)
def test_what_cannot_be_is_refused(family, changes, message):
    options = base.OPTIONS["optim"] | dict(family=family if isinstance(family, str) else user_code.name_of(family))
    with pytest.raises(ValueError, match=message):
        optim.Optim(**options | changes)


def test_function_that_returns_no_transform_is_refused():
    with pytest.raises(ValueError, match=r"flag' returns a int: expected an optax transform"):
        moved(declared(flag))


def test_no_edge_of_stability_is_said_of_it(echo):
    from lab.measuring.catalogue import loss

    edges = [{name for name in loss.sharp(echo.experiment(optim=one)).units if "edge" in name}
             for one in (declared(bare), _ours(family="sgd"))]  # fmt: skip
    assert edges == [set(), {"edge", "edge_at_peak"}]
