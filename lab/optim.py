"""Optimizers built from traced hyperparameters, inside the step.

optax's own transforms are used with traced scalars; `inject_hyperparams` is not, since it changes Adam's numbers
(measured: 1e-5 in the loss within 500 steps). Learning rate and weight decay belong to the row, the rest is static.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import optax

from lab import init, limits, own_optim, tree

FAMILIES = ("adamw", "sgd")
DECAYS = ("scaled", "independent")
SCHEDULES = ("warmup_cosine", "constant")
MASKS = ("all", "matrices", "kernels")


@dataclasses.dataclass(frozen=True)
class Optim:
    """The static half of an optimizer; peak learning rate and weight decay come from the row.

    Attributes:
      family: `adamw`, or `sgd` (with `momentum`; decay decoupled as in AdamW), or `module:Name` of a function of a
        user's own, see `lab.own_optim`.
      schedule: `warmup_cosine`: linear from `start_factor` * peak to the peak over `warmup_steps`, then cosine to
        `end_factor` * peak when the last step is done (the papers: warm-up from lr to m*lr, so start_factor = 1/m).
        `constant`: linear warm-up, then the peak.
      warmup_steps: steps of linear warm-up, fewer than the training's.
      clip_norm: global gradient norm, of what is trained, is clipped to this; `inf` for none.
      decay: `scaled`: theta -= lr_t * wd * theta (PyTorch's and optax's AdamW).
        `independent`: theta -= (lr_t / peak) * wd * theta, so that wd means the same at every learning rate.
      decay_mask: `all` parameters (the papers' choice), or `matrices` only (no biases, no norm parameters), or of these
        only the `kernels` (no embeddings either).
      frozen: groups of `lab.init` whose matrices stay as they are drawn.
      least_decay: training that is shorter than so many times 1 / (peak wd) steps (`independent`: 1 / wd), in which
        decay acts, is refused for a row that decays; 0: none is. See `check_decay`.
    """

    family: str
    schedule: str
    warmup_steps: int
    start_factor: float
    end_factor: float
    clip_norm: float
    decay: str
    decay_mask: str
    b1: float
    b2: float
    eps: float
    momentum: float
    frozen: tuple[str, ...] = ()
    least_decay: float = 0.0

    def __post_init__(self):
        accepted_values = {"family": FAMILIES, "decay": DECAYS, "schedule": SCHEDULES, "decay_mask": MASKS}
        for name, accepted in accepted_values.items():
            if getattr(self, name) not in accepted and not (name == "family" and own_optim.is_own(self.family)):
                or_yours = ", or a function of yours, as 'module:Name'" * (name == "family")
                raise ValueError(f"optim.{name}={getattr(self, name)!r}: one of {', '.join(accepted)}{or_yours}")
        if own_optim.is_own(self.family):
            own_optim.check(self)
        for name in ("clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name}={getattr(self, name)!r}: must be positive")
        for name in ("start_factor", "end_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name}={getattr(self, name)!r}: a share of the peak, must lie in [0, 1]")
        for name in ("b1", "b2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name}={getattr(self, name)!r}: must lie in [0, 1)")
        if not self.least_decay >= 0:
            raise ValueError(f"optim.least_decay={self.least_decay!r}: must not be negative")
        for group in self.frozen:
            if group not in init.GROUPS:
                raise ValueError(f"optim.frozen={self.frozen!r}: {group!r} is none of {', '.join(init.GROUPS)}")


def schedule(optim: Optim, n_steps: int):
    """`step -> lr_t / peak`, a number in [0, 1]."""
    if not 0 <= optim.warmup_steps < n_steps:
        raise ValueError(f"optim.warmup_steps={optim.warmup_steps}: must lie in [0, steps={n_steps})")
    warmup = optax.linear_schedule(optim.start_factor, 1.0, optim.warmup_steps)
    if optim.schedule == "constant":
        after = optax.constant_schedule(1.0)
    else:
        after = optax.cosine_decay_schedule(1.0, n_steps - optim.warmup_steps, optim.end_factor)
    return optax.join_schedules([warmup, after], [optim.warmup_steps]) if optim.warmup_steps else after


def check_decay(optim: Optim, n_steps: int, columns: Mapping) -> None:
    """
    Raises:
      ValueError: a row of a grid's columns whose decay has fewer steps than `least_decay` wants.
    """
    rows = zip(columns["learning_rate"], columns["weight_decay"], strict=True)
    for rate, decay in dict.fromkeys(rows):
        per_step = decay * (rate if optim.decay == "scaled" else 1)
        if per_step and n_steps * per_step < optim.least_decay * (1 - 1e-6):  # 1e-2 x 0.1 x 1000 rounds
            said = f"learning_rate={rate:g} x weight_decay={decay:g}" if optim.decay == "scaled" else f"{decay:g}"
            raise ValueError(
                f"steps={n_steps}: too few for weight decay to act, which takes 1 / ({said}) = {1 / per_step:,.0f} "
                f"steps; optim.least_decay={optim.least_decay:g} wants {optim.least_decay / per_step:,.0f} or more"
            )


def is_matrix(params, leaves: Mapping[str, init.Leaf] = {}):
    """True for weight matrices and embeddings, False for biases and norm parameters."""
    return tree.map_named(lambda name, _: name.endswith(("kernel", "embedding")) or name in leaves, params)


def is_decayed(optim: Optim, params, leaves: Mapping[str, init.Leaf] = {}):
    """True for what a mask of `Optim.decay_mask` decays."""
    matrices = is_matrix(params, leaves)
    if optim.decay_mask == "matrices":
        return matrices
    known = init.by_name(params) | dict(leaves)
    return tree.map_named(lambda name, matrix: matrix and not _is_embedding(name, known), matrices)


def _is_embedding(name: str, leaves: Mapping[str, init.Leaf]) -> bool:
    return name in leaves and leaves[name].group == "embed"


def is_frozen(optim: Optim, params, leaves: Mapping[str, init.Leaf] | None = None):
    """True for the matrices of frozen groups."""
    leaves = init.by_name(params) if leaves is None else leaves
    return tree.map_named(lambda name, _: name in leaves and leaves[name].group in optim.frozen, params)


class Group(NamedTuple):
    """Leaves that an optimizer treats alike, element by element."""

    dtype: str
    matrix: bool
    frozen: bool


def packing(optim: Optim, params, leaves: Mapping[str, init.Leaf] | None = None) -> tree.Packing:
    """A vector for each group of parameters that `optim` treats alike: one, but for masks and several dtypes."""
    masked = optim.decay_mask != "all"
    matrix, frozen = (
        tree.named_leaves(mask) for mask in (is_decayed(optim, params, leaves or {}), is_frozen(optim, params, leaves))
    )
    groups = {
        name: Group(str(leaf.dtype), masked and matrix[name], frozen[name])
        for name, leaf in tree.named_leaves(params).items()
    }
    return tree.Packing.of(params, groups)


def build(
    optim: Optim,
    n_steps: int,
    learning_rate,
    weight_decay,
    leaves: Mapping[str, init.Leaf] | None = None,
    packed: bool = False,
    hparams: Mapping = limits.NONE,
) -> optax.GradientTransformation:
    """The optax transform of one row.

    Args:
      learning_rate: peak learning rate, traced or not.
      weight_decay: decay coefficient, traced or not; see `Optim.decay` for what it multiplies.
      leaves: the model's matrices, `init.leaves_of`; None: by their names.
      packed: it is of parameters packed by `packing`. Results agree up to rounding: the norm that gradients are clipped
        by is summed in another order, and XLA leaves out other roundings between products and sums.
      hparams: of the row, for optimizers of a user's own that take more of them.
    """
    factor = schedule(optim, n_steps)
    if packed:
        matrices, frozen = (functools.partial(_groups_that_are, name) for name in ("matrix", "frozen"))
    else:
        matrices = functools.partial(is_decayed, optim, leaves=leaves or {})
        frozen = functools.partial(is_frozen, optim, leaves=leaves)
    decayed = matrices if optim.decay_mask != "all" else None
    clip = [] if math.isinf(optim.clip_norm) else [optax.clip_by_global_norm(optim.clip_norm)]
    if own_optim.is_own(optim.family):
        whole = own_optim.build(optim, factor, learning_rate, weight_decay, decayed, hparams)
        return _around(optim, frozen, [*clip, whole])
    if optim.family == "adamw":
        precondition = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    else:
        precondition = optax.trace(decay=optim.momentum)
    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    # decay is added to the preconditioned gradient and multiplied by -lr_t with it; if only the schedule's factor
    # shall multiply it, the peak has to be in the gradient already
    if optim.decay == "scaled":
        peak, rated = learning_rate, [precondition, decay]
    else:
        peak, rated = 1.0, [precondition, optax.scale(learning_rate), decay]
    descend = optax.scale_by_schedule(lambda step: -peak * jnp.asarray(factor(step), jnp.float32))
    return _around(optim, frozen, [*clip, *rated, descend])


def _around(optim: Optim, frozen, chained: list) -> optax.GradientTransformation:
    """The transforms, with frozen matrices kept out of the gradient's norm, and of decay."""
    if not optim.frozen:
        return optax.chain(*chained)
    still = optax.masked(optax.set_to_zero(), frozen)
    return optax.chain(still, *chained, still)


def _groups_that_are(name: str, packed: Mapping[Group, object]) -> dict[Group, bool]:
    return {group: getattr(group, name) for group in packed}
