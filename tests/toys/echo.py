"""A task and a model so small that nothing but compiling them takes time, and the same training written out by hand."""

import dataclasses
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lab import grid, models, rng
from lab.disk import metrics, store
from lab.disk.workdir import Workdir
from lab.experiment import Experiment
from lab.models import EmbMLP
from lab.optim import Optim
from lab.tasks import Batch, Task
from lab.tree import named_leaves

OPTIM = dict(
    family="adamw", schedule="warmup_cosine", warmup_steps=3, start_factor=0.25, end_factor=0.1, clip_norm=0.5,
    decay="scaled", decay_mask="all", b1=0.9, b2=0.999, eps=1e-8, momentum=0.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Echo(Task):
    """Say the first of three tokens again: an even one in split `train`, an odd one in split `odd`."""

    vocab_size: int = 8
    length: int = 3
    splits = ("train", "odd")
    coords = {"token": tuple(range(8))}
    dims = {"share": ("token",)}

    def sample(self, key, n, split, hparams):
        tokens_BxL = (jax.random.bits(key, (n, 3), jnp.uint32) >> 29).astype(jnp.int32)
        first_B = tokens_BxL[:, 0] // 2 * 2 + (1 if split == "odd" else 0)
        tokens_BxL = tokens_BxL.at[:, 0].set(first_B)
        targets_BxL = jnp.concatenate([tokens_BxL[:, 1:], first_B[:, None]], axis=1)
        weights_BxL = jnp.zeros((n, 3), jnp.float32).at[:, -1].set(1.0)
        return Batch(tokens_BxL, targets_BxL, weights_BxL, {"first_B": first_B})

    def score(self, logits_BxQxV, batch):
        """`accuracy`, and `share`: how often each token is answered."""
        predicted_B = jnp.argmax(logits_BxQxV[:, -1], axis=-1).astype(jnp.int32)
        share_V = jnp.mean(predicted_B[None] == jnp.arange(8, dtype=jnp.int32)[:, None], axis=1, dtype=jnp.float32)
        accuracy = jnp.mean(predicted_B == batch.info["first_B"], dtype=jnp.float32)
        return {"accuracy": accuracy, "share": share_V}


@dataclasses.dataclass(frozen=True)
class Noisy(Echo):
    """Echo, but the first token gives way to 7 with probability `noise`, in every split."""

    noise: float = 0.0
    hparams = ("noise",)

    def sample(self, key, n, split, hparams):
        batch = super().sample(key, n, split, hparams)
        lost_B = jax.random.uniform(key, (n,), jnp.float32) < hparams.get("noise", self.noise)
        return batch._replace(tokens_BxL=batch.tokens_BxL.at[:, 0].set(jnp.where(lost_B, 7, batch.tokens_BxL[:, 0])))


@dataclasses.dataclass(frozen=True)
class Answering(Echo):
    """Echo, whose answer an objective may replace by any token."""

    has_answer = True
    answer_alphabet = context_alphabet = range(8)


def experiment(**changes) -> Experiment:
    fields = dict(
        model=EmbMLP(8, 8, 8, "tanh"), task=Echo(), optim=Optim(**OPTIM), init_convention="paper", steps=20,
        batch_size=4, train_size=0, data_order="shared", data_seed=5, eval_size=16,
    )  # fmt: skip
    return Experiment(**(fields | changes))


def config(**changes) -> ConfigDict:
    """A complete config over `Echo`: three rows, the last of which diverges; epochs of three steps over 13 sequences.

    Chunks end at 0, 4, 6, 8, 12, 16, 18, 20, 24.
    """
    options = dict(
        study="echo", preset="tiny", init="paper", start=dict(variant="", row=dict()), steps=24, batch_size=4,
        train_size=13, data_order="row", data_seed=5, eval_every=4, eval_size=16, snapshots=3, snapshot_every=0,
        checkpoint_every=6, block_width=1, data_devices=1, split_params=False, deterministic=False,
        task=dict(family="echo"),
        objective=dict(ntp_weight=0.0, label_noise=0.0, context_noise=0.0, shuffle_context=False),
        model=dict(family="emb_mlp", vocab_size=8, d_model=8, d_ff=8, activation="tanh"),
        optim=OPTIM,
        grid=dict(gamma=(0.5,), weight_decay=(0.1,), learning_rate=(0.01, 0.003, 1e30), seed=(4,)), variants={},
    )  # fmt: skip
    return ConfigDict(options | changes)


def four_rows(**columns) -> grid.Grid:
    """Rows that differ in everything that is traced."""
    rows = dict(
        gamma=(0.3, 0.5, 0.8, 0.5), weight_decay=(0.0, 0.1, 1.0, 0.01), learning_rate=(0.01, 0.003, 0.01, 0.001),
        seed=(0, 1, 2, 0),
    )  # fmt: skip
    return grid.zipped(rows | columns)


def digests(workdir):
    """A hash of every array that training left, by where it lies."""
    work = Workdir(workdir)
    trees = {f"metrics/{path.name}": metrics.read_npz(path) for path in metrics.metric_files(work.metrics)}
    trees |= {f"snapshots/{step}": store.restore(work.snapshots, step) for step in work.snapshot_steps()}
    trees["checkpoint"] = store.restore(work.checkpoints, work.config.steps)
    return {
        f"{place}/{name}": hashlib.sha256(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes()).hexdigest()
        for place, tree in trees.items()
        for name, leaf in named_leaves(tree).items()
    }


# --- by hand: no vmap, no scan, no chunk, and of the library only the unit draw and the task's sequences ---


def forward_by_hand(params, tokens_BxL):
    """tanh((sum of embeddings) W_1) W_2, shape (B, V)."""
    sum_BxD = params["embed"]["embedding"][tokens_BxL].sum(axis=1)
    return jnp.tanh(sum_BxD @ params["in"]["kernel"]) @ params["head"]["kernel"]


def loss_by_hand(params, tokens_BxL, target_B):
    """Mean over the batch of log sum exp(logits) - logit of the target."""
    logits_BxV = forward_by_hand(params, tokens_BxL)
    shifted_BxV = logits_BxV - logits_BxV.max(axis=1, keepdims=True)
    logit_B = jnp.take_along_axis(shifted_BxV, target_B[:, None], axis=1)[:, 0]
    return jnp.mean(jnp.log(jnp.exp(shifted_BxV).sum(axis=1)) - logit_B)


def start_by_hand(model, hparams):
    """The unit draw, every matrix times d^(1/2 - gamma): for models all of whose matrices have the same d_in."""
    unit = models.init(model, rng.key(hparams["seed"], "init"), jnp.zeros((1, 3), jnp.int32))
    factor = np.float32(model.d_model ** (0.5 - hparams["gamma"]))
    return jax.tree.map(lambda leaf: leaf * factor if leaf.ndim == 2 else leaf, unit)


def rate_by_hand(step, peak, steps, warmup=3, start=0.25, end=0.1):
    """Linear from `start` to 1 over the warm-up, then half a cosine down to `end` at the last step; times the peak."""
    if step < warmup:
        return peak * (start + (1 - start) * step / warmup)
    return peak * (end + (1 - end) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2)


def train_by_hand(params, hparams, steps, batch_at, n_steps, loss=loss_by_hand):
    """A loop over optax.adamw; ends before the first step whose loss, gradient or new weights overflow.

    Returns:
      Losses and gradient norms of each step (before it was taken), the last good parameters, and the step at which
      it ended (-1 if it did not).
    """
    gradient = jax.jit(jax.value_and_grad(loss))
    moments, losses, norms = None, [], []
    for step in range(n_steps):
        value, grads = gradient(params, *batch_at(step))
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(grads)]
        norm = math.sqrt(sum((leaf**2).sum() for leaf in leaves))
        losses.append(float(value))
        norms.append(norm)
        shrink = np.float32(min(1.0, 0.5 / norm))
        clipped = jax.tree.map(lambda g, shrink=shrink: g * shrink, grads)
        adamw = optax.adamw(rate_by_hand(step, hparams["learning_rate"], steps), weight_decay=hparams["weight_decay"])
        moments = adamw.init(params) if moments is None else moments
        updates, moments = adamw.update(clipped, moments, params)
        moved = optax.apply_updates(params, updates)
        with np.errstate(over="ignore"):
            square = np.float32(sum(np.square(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(moved)))
        if not np.isfinite(square):
            return np.array(losses), np.array(norms), params, step
        params = moved
    return np.array(losses), np.array(norms), params, -1
