"""The measurements that any training can be given, by name, with the settings they are taken at.

Each builder gives a `Measure`: a function of one `Row`, its units and axes. A study adds its own to these.
"""

from lab import models
from lab.experiment import Experiment
from lab.measuring.catalogue import attention, loss, weights
from lab.measuring.declare import Measure
from lab.tasks import Task

MOST_EDGES = 1000  # that are cut one by one


def measures(experiment: Experiment) -> list[Measure]:
    """Every measurement that the experiment's model and task allow."""
    of_weights = [weights.ranks, weights.spectra, weights.directions, weights.norms, weights.lazy]
    of_loss = [loss.tangent_kernel, loss.sharp, loss.density, loss.flat, loss.noise, loss.singular, loss.quantized]
    of_loss = [*of_loss, loss.subspace]
    if type(experiment.task).mean_loss is not Task.mean_loss:
        of_loss = []  # they are of cross-entropy
    builders = [*of_weights, *of_loss, *_of_attention(experiment)]
    return [build(experiment) for build in builders]


def _of_attention(experiment: Experiment) -> list:
    model, length = experiment.model, experiment.task.length
    if not isinstance(model, models.Transformer):
        return []
    builders = [attention.attention, attention.head_scores, attention.logit_lens, attention.tracing]
    if model.norm != "post":
        builders.append(attention.attribution)
    # of the last block only the last query's edges lead to the answer
    if model.n_heads * ((model.n_layers - 1) * length * (length + 1) // 2 + length) <= MOST_EDGES:
        builders.append(attention.edges)
    return builders
