"""What the complexity-control study measures in a trained row."""

from lab import models
from lab.analysis import curvature, loss_fn
from lab.experiment import Experiment
from lab.measuring.catalogue import loss, weights
from lab.measuring.declare import Measure
from lab.studies.complexity_control import circuits
from lab.studies.composition.measures import condensed
from lab.tasks import Composition

THRESHOLD = 0.4  # cosine from which two neurons count as one (the released notebook of arXiv 2501.08537)
MATVECS = 24


def measures(experiment: Experiment) -> list[Measure]:
    """Complexity and circuits where both orders of a pair are held out; nothing elsewhere, where metrics say all.

    Raises:
      ValueError: the model is not a transformer.
    """
    if not isinstance(experiment.model, models.Transformer):
        raise ValueError(f"the complexity_control study measures transformers, not {type(experiment.model).__name__}")
    if not isinstance(experiment.task, Composition) or experiment.task.setting != "34_unseen":
        return []
    of_weights = [weights.ranks(experiment), condensed(THRESHOLD), weights.norms(experiment)]
    return [*of_weights, minimum(experiment), loss.quantized(experiment), *circuits.measures(experiment)]


def minimum(experiment: Experiment) -> Measure:
    """Largest eigenvalue of the Hessian of the answer's loss, alone: the catalogue's `sharpness` takes more of it."""

    def function(row):
        batches = loss_fn.minibatches(row.batch, loss.MINIBATCH)
        answer_loss = loss_fn.answer_loss(experiment.model)
        matvec, like_P = curvature.hessian(answer_loss, row.params, batches)
        return loss.largest("top", matvec, like_P, row.key, MATVECS)

    units = dict.fromkeys(("top", "top_residual"), "nats per weight^2") | {"top_converged": "yes or no"}
    return Measure("minimum", function, units, snapshots="last", n=loss.SEQUENCES, stream=loss.STREAM)
