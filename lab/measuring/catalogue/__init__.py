"""The measurements that any training can be given, by name: how each is built, and what it requires.

A builder gives a `Measure`: a function of one `Row`, its units and axes. A requirement gives the reason why a model or
task cannot be measured, or None. A study adds measurements of its own to these.
"""

import inspect
from collections.abc import Callable, Container, Iterable

from lab import models
from lab.engine import numerics
from lab.experiment import Experiment
from lab.measuring.catalogue import attention, loss, operators, sparsity, state_space, weights
from lab.measuring.declare import Measure
from lab.tasks import Fields

MOST_EDGES = 1000  # that are cut one by one
MAMBAS = (models.Mamba1, models.Mamba2)

Requirement = Callable[[Experiment], str | None]


def cross_entropy(experiment: Experiment) -> str | None:
    task = experiment.task
    return None if task.cross_entropy else f"it is of cross-entropy, and {type(task).__name__} has its own loss"


def weight_matrices(experiment: Experiment) -> str | None:
    return None if weights.layouts(experiment) else f"{type(experiment.model).__name__} has no weight matrix"


def transformer(experiment: Experiment) -> str | None:
    if isinstance(experiment.model, models.Transformer):
        return None
    return f"it is of a transformer's attention, this model is {type(experiment.model).__name__}"


def attention_heads(experiment: Experiment) -> str | None:
    return None if isinstance(experiment.model, models.Decoder) else transformer(experiment)


def mamba(experiment: Experiment) -> str | None:
    if isinstance(experiment.model, MAMBAS):
        return None
    return f"it is of a Mamba's state space, this model is {type(experiment.model).__name__}"


def fields(experiment: Experiment) -> str | None:
    if isinstance(experiment.task, Fields):
        return None
    return f"it is of fields that are continued, this task is {type(experiment.task).__name__}"


def mixture(experiment: Experiment) -> str | None:
    if isinstance(experiment.model, models.M2M):
        return None
    return f"it is of a gate before experts, this model is {type(experiment.model).__name__}"


def residual_stream(experiment: Experiment) -> str | None:
    if isinstance(experiment.model, (models.Transformer, models.Decoder, *MAMBAS)):
        return None
    return f"it is of a residual stream, which {type(experiment.model).__name__} does not have"


def embedding_edited(experiment: Experiment) -> str | None:
    if experiment.task.inputs == "tokens" and "edits" in inspect.signature(type(experiment.model).__call__).parameters:
        return None
    return f"it adds noise to embeddings of tokens, by an edit, which {type(experiment.model).__name__} does not take"


def norm_before_the_sum(experiment: Experiment) -> str | None:
    return f"it is not for model.norm={experiment.model.norm!r}" if experiment.model.norm == "post" else None


def few_edges(experiment: Experiment) -> str | None:
    """Of the last block only the last query's edges lead to the answer."""
    model, length = experiment.model, experiment.task.length
    if model.n_heads * ((model.n_layers - 1) * length * (length + 1) // 2 + length) <= MOST_EDGES:
        return None
    return f"it cuts every attention edge on its own, and this model has more than {MOST_EDGES}"


# name -> its builder, and what it requires, asked in this order
CATALOGUE: dict[str, tuple[Callable[[Experiment], Measure], tuple[Requirement, ...]]] = {
    "rank": (weights.ranks, (weight_matrices,)),
    "spectrum": (weights.spectra, (weight_matrices,)),
    "directions": (weights.directions, (weight_matrices,)),
    "norm": (weights.norms, (weight_matrices,)),
    "laziness": (weights.lazy, ()),
    "ntk": (loss.tangent_kernel, (cross_entropy,)),
    "sharpness": (loss.sharp, (cross_entropy,)),
    "density": (loss.density, (cross_entropy,)),
    "flatness": (loss.flat, (cross_entropy,)),
    "noise": (loss.noise, (cross_entropy, embedding_edited)),
    "learning_coefficient": (loss.singular, (cross_entropy,)),
    "quantization": (loss.quantized, (cross_entropy,)),
    "subspace": (loss.subspace, (cross_entropy,)),
    "focus": (attention.attention, (attention_heads,)),
    "heads": (attention.head_scores, (attention_heads,)),
    "head_cosines": (attention.head_cosines, (attention_heads,)),
    "lens": (attention.logit_lens, (attention_heads,)),
    "tracing": (attention.tracing, (residual_stream,)),
    "attribution": (attention.attribution, (transformer, norm_before_the_sum)),
    "edges": (attention.edges, (transformer, few_edges)),
    "sparsity": (sparsity.sparsity, (attention_heads,)),
    "mixing": (state_space.mixing, (mamba,)),
    "rollout": (operators.rollout, (fields,)),
    "curvature": (operators.curved, (fields,)),
    "routing": (operators.routing, (fields, mixture)),
}


@numerics.fixed()  # some look at sequences that they draw, to say what they are of
def measures(experiment: Experiment, names: Container[str] | None = None) -> list[Measure]:
    """The measurements that the experiment's model and task allow.

    Args:
      names: of those that are wanted: building one may mean to trace the model. None: all.
    """
    wanted = {name: entry for name, entry in CATALOGUE.items() if names is None or name in names}
    return [build(experiment) for build, requires in wanted.values() if not _reason(experiment, requires)]


def absent(experiment: Experiment) -> dict[str, str]:
    """Name -> reason of every measurement of the catalogue that the experiment's model or task does not allow."""
    reasons = {name: _reason(experiment, requires) for name, (_, requires) in CATALOGUE.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(experiment: Experiment, requires: Iterable[Requirement]) -> str | None:
    """That of the first requirement that is not met."""
    return next(filter(None, (requirement(experiment) for requirement in requires)), None)
