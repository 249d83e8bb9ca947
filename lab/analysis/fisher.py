"""The loss of next-token prediction expanded around the start: its quadratic term is the Fisher information there.

The T targets of some sequences are n_A answers and n_C context tokens, and L_NTP = (n_A / T) L_A + (n_C / T) L_C with
the mean losses of either. Where context tokens are uniform noise and initial outputs are uniform, the second term has
no slope, its Hessian is I_0, and with d = theta - theta_0

    L_NTP = (n_A / T) L_A + (n_C / T) log V + d^T I_0 d / 2 + O(|d|^3),
    I_0 = (1 / T) sum_{context t} J_t^T (diag p_t - p_t p_t^T) J_t,

p_t the initial outputs and J_t the Jacobian of their logits. ("Reasoning Bias of Next Token Prediction Training",
arXiv 2502.02007, has theta in place of d, up to the constant: its start is small.) Context that is not uniform has a
slope as well, and what can be predicted of it is learnt: `expansion` says how large each term is.

Models answer at every position (`readout="all"`); batches are as a task with an answer draws them, minibatched
(leaves (M, size, ...)). Everything is exact up to rounding.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab import losses
from lab.analysis import curvature, loss_fn
from lab.analysis.loss_fn import mean_loss
from lab.objective import context


class Expansion(NamedTuple):
    """The terms of L_NTP at theta, in nats; `answer + start + slope + quadratic + remainder` is `ntp`.

    Attributes:
      ntp: L_NTP. answer: (n_A / T) L_A.
      start: (n_C / T) L_C at theta_0; uniform: what it is for uniform outputs, (n_C / T) log V.
      slope: d^T times the gradient of (n_C / T) L_C at theta_0.
      quadratic: d^T I_0 d / 2. quadratic_whole: theta^T I_0 theta / 2, as the paper has it.
      remainder: what is left.
    """

    ntp: jax.Array
    answer: jax.Array
    start: jax.Array
    uniform: jax.Array
    slope: jax.Array
    quadratic: jax.Array
    quadratic_whole: jax.Array
    remainder: jax.Array


def answer_part_of(logits_BxLxV, batch):
    """`(sum, weight)` of (n_A / T) L_A: cross-entropy of the answers over the number T of all targets."""
    return _part(logits_BxLxV, batch, batch.weights_BxL > 0)


def context_part_of(logits_BxLxV, batch):
    """`(sum, weight)` of (n_C / T) L_C: cross-entropy of the context over the number T of all targets."""
    return _part(logits_BxLxV, batch, context(batch))


def information(model, start, batches) -> tuple[Callable, jax.Array]:
    """The operator `(matvec, vector_P)` of I_0 at the parameters `start`, as `lab.analysis.sharpness` takes it.

    The Gauss-Newton matrix of the context's loss, which for cross-entropy is the Fisher information of the model's own
    answers, whatever the targets are: positive semidefinite, in nats per weight^2.
    """
    return curvature.gauss_newton(loss_fn.logits(model), context_part_of, start, batches)


def answer_share(batches):
    """n_A / T, in the dtype of the weights."""
    n_answer, n_context = jnp.sum(batches.weights_BxL > 0), jnp.sum(context(batches))
    return (n_answer / (n_answer + n_context)).astype(batches.weights_BxL.dtype)


def expansion(model, params, start, batches) -> Expansion:
    """L_NTP at `params`, term by term, expanded around `start`."""
    move = jax.tree.map(jnp.subtract, params, start)
    answer, context_now = (
        mean_loss(loss_fn.score(model, part), params, batches) for part in (answer_part_of, context_part_of)
    )

    def context_at(params):
        return mean_loss(loss_fn.score(model, context_part_of), params, batches)

    at_start, slope = jax.jvp(context_at, (start,), (move,))
    matvec, _ = information(model, start, batches)
    quadratic, whole = (_half_form(matvec, loss_fn.flatten(vector)[0]) for vector in (move, params))
    return Expansion(
        ntp=answer + context_now,
        answer=answer,
        start=at_start,
        uniform=(1 - answer_share(batches)) * math.log(_vocab_size(model, params, batches)),
        slope=slope,
        quadratic=quadratic,
        quadratic_whole=whole,
        remainder=context_now - at_start - slope - quadratic,
    )


def _part(logits_BxLxV, batch, chosen_BxL):
    n_positions, length = logits_BxLxV.shape[1], batch.targets_BxL.shape[1]
    if n_positions != length:
        raise ValueError(f"logits at {n_positions} of {length} positions: use model.readout='all'")
    total, _ = losses.cross_entropy(logits_BxLxV, batch.targets_BxL, chosen_BxL.astype(batch.weights_BxL.dtype))
    n_targets = jnp.sum(context(batch) | (batch.weights_BxL > 0)).astype(total.dtype)
    return total, n_targets


def _half_form(matvec: Callable, vector_P):
    return jnp.dot(vector_P, matvec(vector_P)) / 2


def _vocab_size(model, params, batches) -> int:
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    return jax.eval_shape(lambda: loss_fn.logits(model)(params, first)).shape[-1]
