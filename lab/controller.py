"""Controllers: the coefficient of a penalty, steered while a row trains so that what is measured stays at a target.

A controlled row descends

    loss + c_t penalty,    c_{t+1} = law(m_t - target),

where penalty and m are means of activations, or other quantities of the step. Laws, with the error e_t = m_t - target,
and everything clipped to [least, most]:

| family     | c_{t+1}                                                                                   |
|---|---|
| `constant` | constant                                                                                  |
| `p`        | constant + K_p e_t: what is left of the error is what the coefficient needs to stand still |
| `pi`       | constant + K_p e_t + I_t with I_t = I_{t-1} + K_i e_t: none is left                          |

The integral stands still while the coefficient is at a bound and the error would drive it further (anti-windup by
conditional integration): else it would have to be undone before the coefficient leaves the bound again. ControlVAE
(arXiv 2004.05988) steers KL in this way, with 1 / (1 + exp(-e)) in place of e in the first term.

The coefficient of a step is of what was measured up to the step before, so the gradient norm can be controlled as well.
A law is a pure function of numbers, all of them the row's own: target, gains and constant may be axes of a grid, where
the law reads them; rows of family `pi` with gains of 0 are those of the other laws.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lab import limits, losses

GRAD_NORM = "grad_norm"


class State(NamedTuple):
    """Of a row, float32 scalars: the coefficient of its next step, and what is integrated."""

    coefficient: jax.Array
    integral: jax.Array


class Seen(NamedTuple):
    """What quantities are of: a step's forward pass."""

    loss: jax.Array
    outputs: jax.Array
    batch: tuple
    params: dict


def entropy(seen: Seen):
    """Mean entropy in nats of the answers, softmax of (B, Q, V), where the batch has weight."""
    logits_BxQxV = losses.at_positions(seen.outputs)
    log_prob_BxQxV = jax.nn.log_softmax(logits_BxQxV)
    entropy_BxQ = -jnp.sum(jnp.exp(log_prob_BxQxV) * log_prob_BxQxV, axis=-1)
    weights_BxQ = losses.last(seen.batch.weights_BxL, entropy_BxQ.shape[1])
    return jnp.sum(entropy_BxQ * weights_BxQ) / jnp.sum(weights_BxQ)


# quantities that are no activations; the norm of the gradient is known after all others, and is no penalty
QUANTITIES: dict[str, Callable[[Seen], jax.Array]] = {
    "loss": lambda seen: seen.loss,
    "entropy": entropy,
    "weight_norm": lambda seen: optax.tree.norm(seen.params),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controller:
    """What is controlled, and by which law.

    Attributes:
      family: `constant`, `p` or `pi`.
      signal: the penalty: an activation of the model, of which the mean is taken, or one of `QUANTITIES`.
      measured: what shall stay at the target: as `signal`, or `grad_norm`, the norm of the gradient before clipping;
        empty: the signal itself.
      least, most: bounds of the coefficient. Penalties are positive coefficients' work; where a signal is to be driven
        up as well, `least` is negative.
      control_target: of what is measured.
      control_gain_p, control_gain_i: K_p, in coefficient per unit of error, and K_i, that per step; negative where the
        coefficient raises what is measured.
      control_constant: the coefficient of the first step, to which the others are added.

    Raises:
      ValueError: an unknown law, bounds that are none, a constant out of them, a number that is not finite.
    """

    family: str
    signal: str
    measured: str = ""
    least: float = 0.0
    most: float = 1.0
    control_target: float = 0.0
    control_gain_p: float = 0.01
    control_gain_i: float = 0.001
    control_constant: float = 0.0

    hparams = ("control_target", "control_gain_p", "control_gain_i", "control_constant")  # those that a grid may vary

    def __post_init__(self):
        limits.check("controller", self, {"family": FAMILIES})
        if not self.signal or self.signal == GRAD_NORM:
            raise ValueError(
                f"controller.signal={self.signal!r}: the penalty, an activation or one of {', '.join(QUANTITIES)}"
            )
        for name in self.hparams:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"controller.{name}={getattr(self, name)}: expected a finite number")
        if not self.least < self.most:
            raise ValueError(f"controller.least={self.least}, controller.most={self.most}: want least < most")
        limits.check("controller", self, bounds={"control_constant": (self.least, self.most)})

    @property
    def target_of(self) -> str:
        """The name of what is measured."""
        return self.measured or self.signal

    def start(self, hparams: Mapping) -> State:
        """Before the first step."""
        return State(self._clip(self._number("control_constant", hparams)), jnp.float32(0))

    def update(self, state: State, measured, hparams: Mapping) -> State:
        """After a step in which so much was measured.

        Args:
          hparams: of the row; what it does not have is as the controller says.
        """
        number = {name: self._number(name, hparams) for name in self.hparams}
        error = jnp.asarray(measured, jnp.float32) - number["control_target"]
        coefficient, integral = FAMILIES[self.family].steer(self, number, state.integral, error)
        return State(self._clip(coefficient), integral)

    def penalized(self, state: State, seen: Seen, acts: Mapping) -> tuple:
        """The loss with its penalty, and beside it the `loss` alone and what is `measured`, where it is known yet."""
        penalty = self.quantity(self.signal, seen, acts)
        said = {"loss": seen.loss}
        if self.target_of != GRAD_NORM:
            said["measured"] = self.quantity(self.target_of, seen, acts)
        return seen.loss + state.coefficient.astype(seen.loss.dtype) * penalty, said

    def quantity(self, name: str, seen: Seen, acts: Mapping):
        """One number in a step's forward pass, in the dtype of its loss."""
        found = QUANTITIES[name](seen) if name in QUANTITIES else jnp.mean(acts[name])
        return found.astype(seen.loss.dtype)

    def check_fit(self, task, acts: Mapping) -> None:
        """
        Args:
          acts: the model's activations, or their shapes and dtypes.

        Raises:
          ValueError: a quantity that the model does not give, a penalty without a gradient.
        """
        for field, name in (("signal", self.signal), ("measured", self.target_of)):
            known = (*QUANTITIES, *((GRAD_NORM,) if field == "measured" else ()), *acts)
            if name not in known:
                hint = limits.nearest(name, known) or f"; there are {', '.join(known)}"
                raise ValueError(f"controller.{field}={name!r}: no activation of the model{hint}")
            if name == "entropy" and not task.cross_entropy:
                own = f"{type(task).__name__} has its own loss"
                raise ValueError(f"controller.{field}={name!r}: of answers of cross-entropy, and {own}")
        if self.signal in acts and not jnp.issubdtype(dtype := acts[self.signal].dtype, jnp.floating):
            raise ValueError(f"controller.signal={self.signal!r}: {dtype}, of which there is no gradient")

    def check_axes(self, axes: Collection[str]) -> None:
        """
        Args:
          axes: the axes of the grid.

        Raises:
          ValueError: one that the law does not read, along which all rows would be alike.
        """
        read = FAMILIES[self.family].hparams
        for name in self.hparams:
            if name in axes and name not in read:
                raise ValueError(f"grid.{name}: controller.family={self.family!r} reads {', '.join(read)} alone")

    def _number(self, name: str, hparams: Mapping):
        return jnp.asarray(hparams.get(name, getattr(self, name)), jnp.float32)

    def _clip(self, coefficient):
        return jnp.clip(coefficient, jnp.float32(self.least), jnp.float32(self.most))


def constant(controller: Controller, number: Mapping, integral, error) -> tuple:
    return number["control_constant"], integral


def proportional(controller: Controller, number: Mapping, integral, error) -> tuple:
    return number["control_constant"] + number["control_gain_p"] * error, integral


def proportional_integral(controller: Controller, number: Mapping, integral, error) -> tuple:
    at_once, more = number["control_constant"] + number["control_gain_p"] * error, number["control_gain_i"] * error
    aimed = at_once + integral + more
    wound = ((aimed > controller.most) & (more > 0)) | ((aimed < controller.least) & (more < 0))
    integral = jnp.where(wound, integral, integral + more)
    return at_once + integral, integral


class Law(NamedTuple):
    """How a coefficient follows from an error.

    Attributes:
      steer: `(controller, numbers, integral, error) -> (coefficient before it is clipped, integral)`.
      hparams: the numbers that it reads.
    """

    steer: Callable
    hparams: tuple[str, ...]


FAMILIES: dict[str, Law] = {
    "constant": Law(constant, ("control_constant",)),
    "p": Law(proportional, ("control_target", "control_gain_p", "control_constant")),
    "pi": Law(proportional_integral, Controller.hparams),
}
