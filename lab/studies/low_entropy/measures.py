"""What the low-entropy study measures: the law of strings that a model says, beside its target and its sample."""

import jax
import jax.numpy as jnp
import numpy as np

from lab import models
from lab.analysis import entropy
from lab.analysis.estimate import named
from lab.engine import batches
from lab.experiment import Experiment
from lab.measuring.catalogue.sparsity import sparsity
from lab.measuring.declare import Measure
from lab.tasks import Strings, Text, strings

SAID = 1024  # strings that the model says
RESAMPLES = 200  # training sets of the same size
TOP = 10  # likeliest strings


def measures(experiment: Experiment) -> list[Measure]:
    """Sparsity of a transformer; where its target is a known law, what it says, too.

    Raises:
      ValueError: no transformer, or a task of another study.
    """
    model, task = experiment.model, experiment.task
    if not isinstance(model, models.Transformer) or not isinstance(task, Strings | Text):
        given = f"{type(model).__name__} on {type(task).__name__}"
        raise ValueError(f"low_entropy measures transformers on strings or text, not {given}")
    return [sparsity(experiment), *([distribution(experiment)] if isinstance(task, Strings) else [])]


def distribution(experiment: Experiment) -> Measure:
    """The law of strings that the model says, by enumeration and by sampling, beside that of its target and sample."""
    task = experiment.task
    tokens_NxT = strings.contexts(task)
    law_NxTxV = strings.laws(task, tokens_NxT)
    with np.errstate(divide="ignore"):
        log_target_NxTxV = np.log(law_NxTxV)
    sample = of_sample(experiment, law_NxTxV)

    def function(row):
        def log_law(tokens_BxT):
            logits_BxTxV, _ = models.forward(row.model, row.params, tokens_BxT)
            return jax.nn.log_softmax(logits_BxTxV)

        log_q = log_law(jnp.asarray(tokens_NxT))
        log_p = jnp.asarray(log_target_NxTxV, log_q.dtype)
        of_p, of_q = entropy.log_contexts(log_p), entropy.log_contexts(log_q)
        target_T, own_T = entropy.by_depth(of_p, log_p), entropy.by_depth(of_q, log_q)
        forward = entropy.divergence(log_p, log_q)
        said, _ = entropy.sampled(log_law, row.key, SAID, task.length, strings.BEGIN)
        return {
            "entropy": jnp.sum(own_T),
            "target": jnp.sum(target_T),
            "gap": jnp.sum(own_T) - jnp.sum(target_T),
            "gap_at": own_T - target_T,
            "forward": forward,
            "reverse": entropy.divergence(log_q, log_p),
            "cross_entropy": jnp.sum(target_T) + forward,
            "teacher_forced": jnp.sum(entropy.by_depth(of_p, log_q)),
            "temperature": entropy.best_temperature(log_p, log_q),
            "top": entropy.top_mass(log_q, TOP),
            **named("said", said),
            **{name: jnp.asarray(value, log_q.dtype) for name, value in sample.items()},
        }

    nats = ("entropy", "target", "gap", "gap_at", "forward", "reverse", "cross_entropy", "teacher_forced")
    units = dict.fromkeys((*nats, "said", "said_error", *sample), "nats")
    units |= {"temperature": "temperature", "top": "probability"}
    return Measure("distribution", function, units, {"gap_at": ("depth",)}, snapshots="log")


def of_sample(experiment: Experiment, law_NxTxV: np.ndarray) -> dict[str, float]:
    """Of a finite training set: its empirical entropy, and median and middle 95 % over other sets of its size."""
    train = batches.train_set(experiment)
    if train is None:
        return {}
    weight_N = np.exp(np.asarray(entropy.log_contexts(jnp.asarray(_log(law_NxTxV)))))
    probability_K = (weight_N[:, None] * law_NxTxV[:, -1]).ravel()
    median, low, high = entropy.sample_band(probability_K, experiment.train_size, RESAMPLES, experiment.data_seed)
    found = {"sample": entropy.of_sample(train.targets_BxL), "sample_median": median}
    return found | {"sample_low": low, "sample_high": high}


def _log(law_NxTxV: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(law_NxTxV, np.finfo(np.float32).tiny)).astype(np.float32)
