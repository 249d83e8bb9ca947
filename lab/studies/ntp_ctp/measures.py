"""Measurements of the NTP-CTP study: the minimum that was found, the Fisher information, the circuits of attention.

Everything about the minimum is of the answer's loss on clean training sequences, for both objectives: rows differ in
what they were trained on and in nothing that is measured. It is one measurement, of few numbers, because each costs
more to compile than to take; the catalogue's `sharpness`, `flatness` and `noise` take more of them.
"""

import jax
import jax.numpy as jnp

from lab import models
from lab.analysis import curvature, fisher, flatness, loss_fn, sharpness
from lab.analysis.estimate import errors, named
from lab.experiment import Experiment
from lab.measuring.catalogue import anchors, loss, weights
from lab.measuring.declare import Measure
from lab.tasks import Composition, Finetune

MATVECS, PROBES = 24, 16
RADIUS = 0.05  # of the step up, in units of the weights (Foret et al. 2021)
DIRECTIONS = 10
PATH_MATVECS, PATH_DIRECTIONS, PATH_DRAWS = 10, 4, 2  # of every snapshot: fewer of each
PATH_ALPHAS = (-0.5, 0.5)
PATH_SHARES = ("accuracy", "weight_accuracy", "input_accuracy")
OF_MATRIX = dict.fromkeys(("top", "top_residual", *errors({"trace": ""})), "nats per weight^2")
OF_MATRIX |= {"top_converged": "yes or no"}


def measures(experiment: Experiment) -> list[Measure]:
    """
    Raises:
      ValueError: the model is not a transformer that answers everywhere, or the task does not tell answer from context.
    """
    model, task = experiment.model, experiment.task
    if isinstance(task, Finetune):
        return []  # what becomes of both tasks is in the metrics
    if not isinstance(model, models.Transformer) or model.readout != "all":
        raise ValueError(f"the ntp_ctp study measures transformers with model.readout='all', not {model}")
    if not task.has_answer:
        raise ValueError(f"the ntp_ctp study measures tasks with an answer, not {type(task).__name__}")
    parts = [minimum(experiment), along_training(experiment)]
    parts += [information(experiment), terms(experiment), weights.norms(experiment)]
    # next-token prediction is said to reason, answer-only training to merge the anchors early (arXiv 2405.05409 has the
    # two circuits): they are of the first two blocks, and attention says where a model reads, not what its answer uses
    return [*parts, anchors.circuits(experiment)] if _has_circuits(experiment) else parts


def _has_circuits(experiment: Experiment) -> bool:
    return isinstance(experiment.task, Composition) and experiment.model.n_layers >= 2


def minimum(experiment: Experiment) -> Measure:
    """Sharpness and trace of the Hessian, SAM, random lines, accuracy under noise in weights and embeddings.

    Lines go along directions as long as the weights, tensor by tensor. `weight_accuracy` and `input_accuracy` are of
    answer tokens; `accuracy` is that without noise, on the same sequences.
    """

    def function(row):
        batches = loss_fn.weighted_minibatches(row.batch, loss.MINIBATCH)
        keys = jax.random.split(row.key, 5)
        answer_loss = loss_fn.answer_loss(experiment.model)
        matvec, like_P = curvature.hessian(answer_loss, row.params, batches)
        found = loss.largest("top", matvec, like_P, keys[0], MATVECS)
        found |= named("trace", sharpness.trace(matvec, like_P, keys[1], PROBES))
        found["sam"] = flatness.sam(answer_loss, row.params, batches, RADIUS)
        line = flatness.random_lines(
            answer_loss, row.params, keys[2], flatness.tensor_normalized, DIRECTIONS, jnp.array(loss.ALPHAS), batches
        )
        return found | named("line", line) | _accuracies(experiment.model, row.params, keys[3:], batches)

    nats = dict.fromkeys(("sam", *errors({"line": ""})), "nats")
    shares = {"accuracy": "share"} | errors({"weight_accuracy": "share", "input_accuracy": "share"})
    dims = dict.fromkeys(errors({"line": ""}), ("alpha",))
    dims |= dict.fromkeys(errors({"weight_accuracy": "", "input_accuracy": ""}), ("sigma",))
    coords = {"alpha": loss.ALPHAS, "sigma": loss.SIGMAS}
    return loss.of_loss("minimum", function, nats | OF_MATRIX | shares, dims, coords)


def along_training(experiment: Experiment) -> Measure:
    """Sharpness, lines and robustness of `minimum` at every snapshot, beside the loss: for rows to be compared where
    answers are as well learnt, since a loss near zero is flat whatever led there."""

    def function(row):
        batches = loss_fn.weighted_minibatches(row.batch, loss.MINIBATCH)
        keys = jax.random.split(row.key, 4)
        answer_loss = loss_fn.answer_loss(experiment.model)
        matvec, like_P = curvature.hessian(answer_loss, row.params, batches)
        line = flatness.random_lines(
            answer_loss, row.params, keys[1], flatness.tensor_normalized, PATH_DIRECTIONS, jnp.array(PATH_ALPHAS),
            batches,
        )  # fmt: skip
        found = {"top": loss.largest("top", matvec, like_P, keys[0], PATH_MATVECS)["top"], "line": line.value}
        found["loss"] = loss_fn.mean_loss(answer_loss, row.params, batches)
        accuracies = _accuracies(experiment.model, row.params, keys[2:], batches, PATH_DRAWS)
        return found | {name: accuracies[name] for name in PATH_SHARES}

    units = {"top": "nats per weight^2", "line": "nats", "loss": "nats"} | dict.fromkeys(PATH_SHARES, "share")
    dims = {"line": ("path_alpha",), "weight_accuracy": ("sigma",), "input_accuracy": ("sigma",)}
    coords = {"path_alpha": PATH_ALPHAS, "sigma": loss.SIGMAS}
    return Measure("path", function, units, dims, coords, "all", n=loss.SEQUENCES, stream=loss.STREAM)


def information(experiment: Experiment) -> Measure:
    """Fisher information of the row's start: its largest eigenvalue and its trace."""

    def function(row):
        batches = loss_fn.minibatches(row.batch, loss.MINIBATCH)
        matvec, like_P = fisher.information(row.model, row.start, batches)
        top_key, trace_key = jax.random.split(row.key)
        found = loss.largest("top", matvec, like_P, top_key, MATVECS)
        return found | named("trace", sharpness.trace(matvec, like_P, trace_key, PROBES))

    return loss.of_loss("fisher", function, OF_MATRIX)


def terms(experiment: Experiment) -> Measure:
    """L_NTP over training, expanded around the row's start term by term: see `lab.analysis.fisher`."""

    def function(row):
        batches = loss_fn.minibatches(row.batch, loss.MINIBATCH)
        found = fisher.expansion(row.model, row.params, row.start, batches)
        return found._asdict() | {"answer_share": fisher.answer_share(batches)}

    units = dict.fromkeys(fisher.Expansion._fields, "nats") | {"answer_share": "share of targets"}
    return Measure("expansion", function, units, snapshots="all", n=loss.SEQUENCES, stream=loss.STREAM)


def _accuracies(model, params, keys, batches, n_draws: int = loss.DRAWS) -> dict:
    score_of, sigmas_S = loss_fn.answer_accuracy_of, jnp.array(loss.SIGMAS)
    score, edited = loss_fn.score(model, score_of), flatness.with_embedding_edit(model, score_of)
    in_weights = flatness.weight_noise(score, params, keys[0], sigmas_S, n_draws, batches)
    in_inputs = flatness.embedding_noise(edited, params, keys[1], sigmas_S, n_draws, batches)
    clean = {"accuracy": loss_fn.mean_loss(score, params, batches)}
    return clean | named("weight_accuracy", in_weights) | named("input_accuracy", in_inputs)
