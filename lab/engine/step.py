"""One row: its initial state, one training step, one evaluation. Nothing here knows that there are other rows."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lab import controller, init, models, optim, own_optim, perturb, rng, tree
from lab.disk.metrics import STEP_METRICS, TRAIN_METRICS
from lab.experiment import Experiment
from lab.tasks import Batch

LARGEST_PACKED = 2**22  # parameters


class RowState(NamedTuple):
    """What training changes; `diverged_at` is the step (int32) at which the row went non-finite, -1 while healthy."""

    params: dict
    opt_state: tuple
    diverged_at: jax.Array


class ControlledState(NamedTuple):
    """The `RowState` of an experiment with a controller."""

    params: dict
    opt_state: tuple
    diverged_at: jax.Array
    control: controller.State


def metric_names(experiment: Experiment) -> tuple[str, ...]:
    """What `train_step` records."""
    return STEP_METRICS if experiment.controller else TRAIN_METRICS


def transform(experiment: Experiment, hparams: Mapping, packed: bool = False) -> optax.GradientTransformation:
    rates = hparams["learning_rate"], hparams["weight_decay"]
    return optim.build(experiment.optim, experiment.steps, *rates, experiment.leaves, packed, hparams)


def packing(experiment: Experiment, state: RowState) -> tree.Packing | None:
    """How a row's state is packed for `train_step`; None: not at all.

    An optimizer of a user's own sees the tree as it is; and of a large model an operation a leaf is fast enough, where
    a second copy of its parameters is not.
    """
    if own_optim.is_own(experiment.optim.family) or tree.size(state.params) > LARGEST_PACKED:
        return None
    return optim.packing(experiment.optim, state.params, experiment.leaves)


def start(experiment: Experiment, hparams: Mapping) -> RowState | ControlledState:
    """The row before training. Rows with the same seed start from the same draw, scaled to their own rates."""
    params = models.init(experiment.model, rng.key(hparams["seed"], "init"), experiment.task.example())
    params = init.rescale(params, init.rates(hparams), experiment.init_convention, experiment.leaves)
    state = RowState(params, transform(experiment, hparams).init(params), jnp.int32(-1))
    return state if experiment.controller is None else ControlledState(*state, experiment.controller.start(hparams))


def train_step(
    experiment: Experiment, hparams: Mapping, state: RowState, batch: Batch, step, packed: tree.Packing | None = None
):
    """One step of gradient descent; a row is frozen from then on whose loss, gradient, new weights, or what its
    controller measures, are not finite.

    Args:
      packed: how the state is packed (`packing`), and what is returned is, too; None: it is not.

    Returns:
      `(state, {"train_loss", "grad_norm"})`: `Task.mean_loss` on the batch before the step, and the global
      norm of the gradient before clipping; NaN once the row has diverged. See `value_and_grad` for rows with a
      `sam_radius` or `weight_noise`. With a controller the gradient is of the loss and its penalty, and there are
      `controlled`, what was measured, and `coefficient`, that of this step.
    """
    steered = experiment.controller

    def dropout_key():
        return rng.key(hparams["seed"], "dropout", step)

    def loss(params):
        outputs, acts = models.forward(experiment.model, params, batch.tokens_BxL, dropout_key=dropout_key)
        value = experiment.task.mean_loss(outputs, batch)
        if steered is None:
            return value
        return steered.penalized(state.control, controller.Seen(value, outputs, batch, params), acts)

    params = state.params if packed is None else packed.unpack(state.params)
    value, grads = value_and_grad(loss, experiment, hparams, params, step, steered is not None)
    value, said = (value, {}) if steered is None else value
    grads = grads if packed is None else packed.pack(grads)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to powers that are int32
        update = transform(experiment, hparams, packed is not None).update
        updates, opt_state = update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

    grad_norm = optax.tree.norm(grads)
    metrics = {"train_loss": value, "grad_norm": grad_norm}
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(params))
    control = ()
    if steered is not None:
        measured = said.get("measured", grad_norm)
        control = (steered.update(state.control, measured, hparams),)
        finite &= jnp.isfinite(measured)
        metrics |= {"train_loss": said["loss"], "controlled": measured, "coefficient": state.control.coefficient}
    alive = state.diverged_at < 0
    diverged_at = jnp.where(alive & ~finite, jnp.int32(step), state.diverged_at)
    moved = tree.where(alive & finite, (params, opt_state, *control), (state.params, state.opt_state, *state[3:]))
    state = type(state)(*moved[:2], diverged_at, *moved[2:])
    return state, {name: jnp.where(alive, m, jnp.nan) for name, m in metrics.items()}


def value_and_grad(loss: Callable, experiment: Experiment, hparams: Mapping, params, step, has_aux: bool = False):
    """Loss and the gradient to descend, of a row that may have a `weight_noise` or a `sam_radius`: see `lab.perturb`.

    Noise comes first, drawn anew at every step; SAM ascends from there, at the cost of a second gradient. Frozen
    matrices are not perturbed. A grid without these hyperparameters compiles neither; a value of 0 is the plain step up
    to rounding.

    Args:
      has_aux: whether the loss also says something else, which is returned beside its value.

    Returns:
      `(value, grads)`: the value is that of the plain weights under SAM, and of the noisy ones under noise, where the
      plain one would cost a forward pass.
    """

    def unless_frozen(moved, kept):
        still = optim.is_frozen(experiment.optim, params, experiment.leaves)
        return jax.tree.map(lambda is_still, a, b: b if is_still else a, still, moved, kept)

    around = params
    if "weight_noise" in hparams:
        key = rng.key(hparams["seed"], "weight_noise", step)
        around = unless_frozen(perturb.weight_noise(params, key, hparams["weight_noise"], experiment.leaves), params)
    value, grads = jax.value_and_grad(loss, has_aux=has_aux)(around)
    if "sam_radius" in hparams:
        upward = unless_frozen(grads, jax.tree.map(jnp.zeros_like, grads))
        grads = jax.grad(loss, has_aux=has_aux)(perturb.sam_ascent(around, upward, hparams["sam_radius"]))
        grads = grads[0] if has_aux else grads
    return value, grads


def evaluate(experiment: Experiment, state: RowState, batches: Mapping[str, Batch]) -> dict[str, jax.Array]:
    """Loss and scores on a batch of every split, named `<split>.<score>`; NaN for a row that has diverged."""
    metrics = {}
    for split, batch in batches.items():
        outputs, _ = models.forward(experiment.model, state.params, batch.tokens_BxL)
        scores = {"loss": experiment.task.mean_loss(outputs, batch)} | experiment.task.score(outputs, batch)
        metrics |= {f"{split}.{name}": jnp.where(state.diverged_at < 0, s, jnp.nan) for name, s in scores.items()}
    return metrics
