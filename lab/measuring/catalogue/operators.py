"""Measurements of an operator: where its roll-out is wrong, how sharp its loss is, where its gate sends which patch."""

import jax
import jax.numpy as jnp

from lab import models
from lab.analysis import curvature, loss_fn, operators, sharpness
from lab.analysis.estimate import errors, named
from lab.experiment import Experiment
from lab.measuring.catalogue import loss
from lab.measuring.declare import Measure
from lab.tasks.fields import relative_error

FIELDS = 64  # trajectories of split test
SHOWN = 2  # of them kept to be looked at
CURVED, AT_ONCE = 32, 8  # trajectories of split train that curvature is of, and of a minibatch
QUADRANTS = 2  # along each axis; the patches of a model that has none


def rollout(experiment: Experiment) -> Measure:
    """Where the roll-out is wrong: error by frame, by band of wavenumbers, on borders of patches over inside; spectra.

    Relative L2 errors, of `FIELDS` trajectories. `true`, `said`: the first ones, the last frame that is read and those
    that follow.
    """
    patches = getattr(experiment.model, "patches", QUADRANTS)
    task = experiment.task

    def function(row):
        read, true = row.batch.tokens_BxL, row.batch.targets_BxL
        said = models.forward(row.model, row.params, read)[0].astype(true.dtype)
        shells = operators.shells(task.size)
        shown = {"true": true, "said": said}
        start = read[:SHOWN, -1:].astype(true.dtype)
        return {
            "error": jnp.mean(relative_error(said, true, (1, 2, 3))),
            "by_frame": jnp.mean(relative_error(said, true, (2, 3)), axis=0),
            "by_band": operators.band_errors(said, true),
            "seam": operators.seam(said, true, patches),
            "true_power": operators.power(true[:, -1:], shells) / len(true),
            "said_power": operators.power(said[:, -1:], shells) / len(true),
            "error_power": operators.power((said - true)[:, -1:], shells) / len(true),
            **{name: jnp.concatenate([start, of[:SHOWN]], axis=1) for name, of in shown.items()},
        }

    pixels = ("example", "time_ahead", "down", "right")
    dims = {"by_frame": ("frame",), "by_band": ("band",), "true": pixels, "said": pixels}
    dims |= dict.fromkeys(("true_power", "said_power", "error_power"), ("wavenumber",))
    units = dict.fromkeys(("error", "by_frame", "by_band"), "relative error") | {"seam": "ratio of errors"}
    units |= dict.fromkeys(("true_power", "said_power", "error_power"), "mean square")
    units |= dict.fromkeys(("true", "said"), "field")
    coords = {"band": operators.BANDS, "frame": tuple(range(1, task.horizon + 1))}
    coords |= {"time_ahead": tuple(range(task.horizon + 1)), "wavenumber": tuple(range(task.size // 2 + 1))}
    return Measure("rollout", function, units, dims, coords, snapshots="last", split="test", n=FIELDS)


def routing(experiment: Experiment) -> Measure:
    """Where the gate sends patches: to the expert that they need (`accuracy`), how many of all, how sure it is.

    First choices, of which the roll-out is made, at every step of it; `kl` and `entropy` are of probabilities, in nats.
    `accuracy` is NaN where no quadrant is known to be fine. The quadrant is that of the start: what a flow carries out
    of it later counts as if it were there.
    """
    n_experts = len(experiment.model.widths)

    def function(row):
        acts = models.forward(row.model, row.params, row.batch.tokens_BxL)[1]
        choice_BxTxP, region_B = acts["gate/choice"], row.batch.info["region_B"]
        expert_E = jnp.arange(n_experts, dtype=choice_BxTxP.dtype)
        share_E = jnp.mean(choice_BxTxP[..., None] == expert_E[None, None, None], axis=(0, 1, 2), dtype=jnp.float32)
        return {
            "accuracy": operators.routing_accuracy(choice_BxTxP, region_B),
            "share": share_E,
            "largest_share": jnp.max(share_E),
            "kl": jnp.mean(acts["gate/kl"]),
            "entropy": jnp.mean(acts["gate/entropy"]),
            "choice": choice_BxTxP[:SHOWN],
            "region": region_B[:SHOWN],
        }

    dims = {"share": ("expert",), "choice": ("example", "frame", "patch"), "region": ("example",)}
    units = {"accuracy": "share", "share": "share of patches", "largest_share": "share of patches"}
    units |= {"kl": "nats", "entropy": "nats", "choice": "expert", "region": "quadrant"}
    coords = {"frame": tuple(range(1, experiment.task.horizon + 1))}
    return Measure("routing", function, units, dims, coords, snapshots="last", split="test", n=FIELDS)


def curved(experiment: Experiment) -> Measure:
    """Extreme eigenvalues and trace of the Hessian of the roll-out loss, through all that a model reads of itself.

    Of the loss outside of training steps: behind a gate that makes a first choice, of which no gradient knows, the
    gate's parameters are flat. The Hessian of a relative error ||r|| / ||u|| grows as 1 / ||r||: a better fit looks
    sharper.
    """

    def function(row):
        batches = loss_fn.weighted_minibatches(row.batch, AT_ONCE)
        matvec, like_P = curvature.hessian(loss_fn.own_loss(row.model, experiment.task), row.params, batches)
        ends_key, trace_key = jax.random.split(row.key)
        top, bottom = sharpness.extremes(matvec, like_P, ends_key, loss.EIGENVALUES, loss.MATVECS, loss.TOLERANCE)
        found = loss.ritz("top", top) | loss.ritz("bottom", bottom)
        return found | named("trace", sharpness.trace(matvec, like_P, trace_key, loss.TRACE_PROBES))

    pairs = [f"{name}{end}" for name in ("top", "bottom") for end in ("", "_residual", "_converged")]
    units = dict.fromkeys(pairs, "loss per weight^2") | errors({"trace": "loss per weight^2"})
    units |= dict.fromkeys(("top_converged", "bottom_converged"), "yes or no")
    return Measure("curvature", function, units, dict.fromkeys(pairs, ("eigenvalue",)), snapshots="last", n=CURVED)
