"""Optimizers of a user's own: any function of a learning rate that returns an optax transform, as `module:Name`."""

import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from lab import user_code

GIVEN = ("learning_rate", "weight_decay", "mask")  # what the function is given, where it takes them


def is_own(family: str) -> bool:
    """Whether a family is `module:Name`, a function of a user's own."""
    return ":" in family


def hparams(family: str, required: bool = False) -> tuple[str, ...]:
    """The hyperparameters that an optimizer of a user's own takes beside `GIVEN`: a grid may vary them.

    Args:
      required: those without a default alone, which a grid must have.
    """
    if not is_own(family):
        return ()
    taken = _taken(family)
    return tuple(n for n, p in taken.items() if n not in GIVEN and (p.default is p.empty or not required))


def build(
    optim, factor: Callable, learning_rate, weight_decay, mask: Callable | None, hparams: Mapping
) -> optax.GradientTransformation:
    """The transform that a user's function builds, e.g. `optax.lion`.

    It is called with those of these that it takes: `learning_rate`, a schedule (step -> rate, the row's peak times
    `factor`); `weight_decay`, of the row; `mask`, where only matrices decay; and by name what else the grid varies.
    One that takes no `weight_decay` is given the decoupled decay of `Optim.decay`.

    Raises:
      ValueError: it returns no optax transform.
    """
    taken = _taken(optim.family)

    def rate(step):
        return learning_rate * jnp.asarray(factor(step), jnp.float32)

    given = {"learning_rate": rate} | {name: hparams[name] for name in taken if name in hparams and name not in GIVEN}
    given |= {"weight_decay": weight_decay} if "weight_decay" in taken else {}
    given |= {"mask": mask} if "mask" in taken and mask is not None else {}
    made = user_code.find(optim.family)(**given)
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise ValueError(f"optim.family={optim.family!r} returns a {type(made).__name__}: expected an optax transform")
    if "weight_decay" in taken:
        return made
    return optax.chain(made, _decay_beside(rate if optim.decay == "scaled" else factor, weight_decay, mask))


def check(optim) -> None:
    """
    Raises:
      ValueError: an `Optim` whose function is not there, takes no learning rate, or decides itself what is asked for.
    """
    taken, what = _taken(optim.family), f"optim.family={optim.family!r}"
    if "weight_decay" not in taken:
        return
    if optim.decay != "scaled":
        raise ValueError(f"optim.decay={optim.decay!r}: {what} takes weight_decay and decides that itself; use scaled")
    if optim.decay_mask != "all" and "mask" not in taken:
        raise ValueError(f"optim.decay_mask={optim.decay_mask!r}: {what} takes weight_decay and no mask; use all")


def _decay_beside(rate: Callable, weight_decay, mask: Callable | None) -> optax.GradientTransformation:
    """Adds -rate(step) * weight_decay * theta to updates that are ready."""
    pull = optax.scale_by_schedule(lambda step: -jnp.asarray(rate(step), jnp.float32))
    decay = optax.chain(optax.add_decayed_weights(weight_decay, mask=mask), pull)

    def update(updates, state, params=None):
        pulled, state = decay.update(jax.tree.map(jnp.zeros_like, updates), state, params)
        return jax.tree.map(jnp.add, updates, pulled), state

    return optax.GradientTransformation(decay.init, update)


def _taken(family: str) -> dict[str, inspect.Parameter]:
    """The parameters of a user's function, by name.

    Raises:
      ValueError: there is no such function, or it takes no learning rate.
    """
    what = f"optim.family={family!r}"
    try:
        function = user_code.find(family)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if not callable(function):
        raise ValueError(f"{what}: a {type(function).__name__}, expected a function of learning_rate")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = {name: p for name, p in inspect.signature(function).parameters.items() if p.kind in named}
    if "learning_rate" not in taken:
        raise ValueError(f"{what} takes {', '.join(taken) or 'nothing'}: expected a function of learning_rate")
    return taken
