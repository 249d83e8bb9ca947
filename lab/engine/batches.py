"""The batch of a row at a step: a pure function of (seed, step), so a resumed training sees the same batches."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits, module, rng, tree
from lab.experiment import Experiment
from lab.tasks import Batch

DRAWN_AHEAD = 2**23  # bytes of one row's batches
EPOCHS_AHEAD = 2**28  # bytes of one row's permutations


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
      ValueError: a token that is none of the task's `vocab_size`.
    """
    if experiment.task.inputs != "tokens":
        return
    train = train_set(experiment)
    drawn = evaluation_set(experiment, train) | ({} if train is None else {"train": train})
    for split, batch in drawn.items():
        for what in ("tokens", "targets"):
            where = f"{type(experiment.task).__name__}, {what} of split {split!r}"
            module.check_ids(where, np.asarray(getattr(batch, f"{what}_BxL")), experiment.task.vocab_size)


def batches(
    experiment: Experiment, hparams: Mapping, train_set: Batch | None, first_step, max_steps: int
) -> Callable[[jax.Array], Batch]:
    """`step -> Batch` for the steps from `first_step` to `first_step + max_steps - 1`.

    What many small draws would give one after the other is drawn at once, here: the batches of an endless stream, where
    they are small, and the permutations of the epochs of a finite set, which are shuffled anew.
    """
    seed = experiment.data_seed if experiment.data_order == "shared" else hparams["seed"]
    n = experiment.batch_size
    objective, task = experiment.objective, experiment.task
    if train_set is None:

        def draw(step):
            drawn = objective.sample(task, rng.key(seed, "data", step), n, hparams)
            return objective.apply(task, drawn, hparams)

        if max_steps * tree.n_bytes(jax.eval_shape(draw, first_step)) > DRAWN_AHEAD:
            return draw
        ahead = jax.vmap(draw)(first_step + jnp.arange(max_steps, dtype=jnp.int32))
        return lambda step: jax.tree.map(lambda leaf: leaf[step - first_step], ahead)

    steps_per_epoch = experiment.train_size // n
    first_epoch = first_step // steps_per_epoch
    epochs = first_epoch + jnp.arange(max_steps // steps_per_epoch + 2, dtype=jnp.int32)

    def shuffled(epoch):
        return jax.random.permutation(rng.key(seed, "epoch", epoch), jnp.arange(experiment.train_size, dtype=jnp.int32))

    few = 4 * epochs.size * experiment.train_size <= EPOCHS_AHEAD
    order_ExN = jax.vmap(shuffled)(epochs) if few else None

    def batch(step):
        epoch, place = step // steps_per_epoch, step % steps_per_epoch
        order_N = order_ExN[epoch - first_epoch] if few else shuffled(epoch)
        index_B = jax.lax.dynamic_slice(order_N, (place * n,), (n,))
        return objective.apply(task, jax.tree.map(lambda leaf: leaf[index_B], train_set), hparams)

    return batch
