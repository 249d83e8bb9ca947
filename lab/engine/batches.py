"""The batch of a row at a step: a pure function of (seed, step), so a resumed training sees the same batches."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jax_core

from lab import limits, module, rng, tree
from lab.experiment import Experiment
from lab.tasks import Batch

DRAWN_AHEAD = 2**23  # bytes of one row's batches
EPOCHS_AHEAD = 2**28  # bytes of one row's permutations
UNOPTIMIZED = {"xla_backend_optimization_level": 0}  # for the CPU's compiler


class Data(NamedTuple):
    """What a training keeps: the finite training set, None of an endless stream, and a batch of every split."""

    train_set: Batch | None
    evaluation_set: dict[str, Batch]


class Traced(NamedTuple):
    """How `Data` are drawn.

    Attributes:
      jaxpr: of the draws, with the arrays that the task holds as its constants.
      shapes: `Data` of shapes and dtypes.
    """

    jaxpr: jax_core.ClosedJaxpr
    shapes: Data


@functools.lru_cache(maxsize=4)
def traced(experiment: Experiment) -> Traced:
    """The draws of `data`, traced once."""

    def draw():
        drawn = train_set(experiment)
        return Data(drawn, evaluation_set(experiment, drawn))

    return Traced(*jax.make_jaxpr(draw, return_shape=True)())


@functools.lru_cache(maxsize=1)
def data(experiment: Experiment) -> Data:
    """`train_set` and `evaluation_set` as host arrays, drawn by one compiled program."""
    jaxpr, shapes = traced(experiment)

    # run once, so compiled with little care; and constants are given, since the compiler would copy them many times
    @functools.partial(jax.jit, compiler_options=UNOPTIMIZED if jax.default_backend() == "cpu" else None)
    def draw(constants):
        return jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(jaxpr.jaxpr, constants))()

    return jax.tree.unflatten(jax.tree.structure(shapes), jax.device_get(draw(jaxpr.consts)))


def forget() -> None:
    """Drops what `traced` and `data` remember."""
    traced.cache_clear()
    data.cache_clear()


def train_set(experiment: Experiment) -> Batch | None:
    """The finite training set; None for an endless stream."""
    if not experiment.train_size:
        return None
    key = rng.key(experiment.data_seed, "train_set")
    return experiment.objective.sample(experiment.task, key, experiment.train_size, {})


def varied(experiment: Experiment, hparams: Mapping) -> dict:
    """Those of the hyperparameters that data depend on: rows that have any are not shown the same sequences."""
    return {name: hparams[name] for name in experiment.task.hparams if name in hparams}


def evaluation_set(experiment: Experiment, train_set: Batch | None, hparams: Mapping = limits.NONE) -> dict[str, Batch]:
    """The fixed sequences each split is evaluated on; for `train` the first of a finite training set."""
    n, task = experiment.eval_size, experiment.task
    keys = {split: rng.key(experiment.data_seed, f"eval/{split}") for split in task.splits}
    drawn = {split: task.sample(key, n, split, hparams) for split, key in keys.items()}
    return drawn if train_set is None else drawn | {"train": jax.tree.map(lambda leaf: leaf[:n], train_set)}


def check_ids(experiment: Experiment) -> None:
    """Draws the sequences that a training keeps, on the host.

    Raises:
      ValueError: a token that is none of the task's `vocab_size`, or a label that is none of the model's outputs.
    """
    task, n_classes = experiment.task, experiment.n_classes
    if task.inputs != "tokens" and not n_classes:
        return
    below = {"targets": n_classes} if n_classes else {"tokens": task.vocab_size, "targets": task.vocab_size}
    what_is = ("label", "outputs") if n_classes else ("token id", "vocab_size")
    train, drawn = data(experiment)
    drawn = drawn | ({} if train is None else {"train": train})
    for split, batch in drawn.items():
        for what, bound in below.items():
            ids = np.asarray(getattr(batch, f"{what}_BxL"))
            if n_classes:
                ids = ids[np.asarray(batch.weights_BxL) > 0]  # where nothing is scored, nothing need be right
            module.check_ids(f"{type(task).__name__}, {what} of split {split!r}", ids, bound, *what_is)


def draw_ahead(experiment: Experiment, hparams: Mapping, first_step, max_steps: int):
    """What the batches of `max_steps` steps from `first_step` on have drawn at once: many small draws are slow.

    That is the batches of an endless stream, where they are small, before `Objective.apply`; or the orders of the
    epochs of a finite training set, where they are; or None. Rows that share their data (`shared`) share this.
    """
    task, n = experiment.task, experiment.batch_size
    if not experiment.train_size:

        def draw(step):
            return experiment.objective.sample(task, rng.key(_seed(experiment, hparams), "data", step), n, hparams)

        if max_steps * tree.n_bytes(jax.eval_shape(draw, first_step)) > DRAWN_AHEAD:
            return None
        return jax.vmap(draw)(first_step + jnp.arange(max_steps, dtype=jnp.int32))

    steps_per_epoch = experiment.train_size // n
    epochs = first_step // steps_per_epoch + jnp.arange(max_steps // steps_per_epoch + 2, dtype=jnp.int32)
    if 4 * epochs.size * experiment.train_size > EPOCHS_AHEAD:
        return None
    return jax.vmap(lambda epoch: _order(experiment, hparams, epoch))(epochs)


def shared(experiment: Experiment, hparams: Mapping) -> bool:
    """Whether rows with these hyperparameters are shown the same sequences in the same order, before noise."""
    return experiment.data_order == "shared" and not varied(experiment, hparams)


def batches(
    experiment: Experiment, hparams: Mapping, train_set: Batch | None, first_step, max_steps: int, ahead=None
) -> Callable[[jax.Array], Batch]:
    """`step -> Batch` for the steps from `first_step` to `first_step + max_steps - 1`.

    Args:
      ahead: `draw_ahead` for the same steps; None: it is drawn here.
    """
    objective, task, n = experiment.objective, experiment.task, experiment.batch_size
    ahead = draw_ahead(experiment, hparams, first_step, max_steps) if ahead is None else ahead

    def apply(batch: Batch) -> Batch:
        return objective.apply(task, batch, hparams)

    if train_set is None and ahead is None:
        key = functools.partial(rng.key, _seed(experiment, hparams), "data")
        return lambda step: apply(objective.sample(task, key(step), n, hparams))
    if train_set is None:
        noisy = jax.vmap(apply)(ahead)
        return lambda step: jax.tree.map(lambda leaf: leaf[step - first_step], noisy)

    steps_per_epoch = experiment.train_size // n
    first_epoch = first_step // steps_per_epoch

    def batch(step):
        epoch, place = step // steps_per_epoch, step % steps_per_epoch
        order_N = _order(experiment, hparams, epoch) if ahead is None else ahead[epoch - first_epoch]
        index_B = jax.lax.dynamic_slice(order_N, (place * n,), (n,))
        return apply(jax.tree.map(lambda leaf: leaf[index_B], train_set))

    return batch


def _seed(experiment: Experiment, hparams: Mapping):
    return experiment.data_seed if experiment.data_order == "shared" else hparams["seed"]


def _order(experiment: Experiment, hparams: Mapping, epoch):
    """The order (N,), int32, in which an epoch visits a finite training set."""
    key = rng.key(_seed(experiment, hparams), "epoch", epoch)
    return jax.random.permutation(key, jnp.arange(experiment.train_size, dtype=jnp.int32))
