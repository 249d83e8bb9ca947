"""What the study measures: rows as they were trained on samples, and the exact limit that starts where they did.

`snapshot_state` and `population_limit` have the same outputs (`population.portrait`): a training can be laid beside its
limit.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.models import AttentionMLP, OneLayerAttention
from lab.optim import Optim
from lab.studies.focus_dilution import collapse, population
from lab.tasks import Markov

N_TIMES = 400  # states of the limit that are kept: half of them, evenly spaced, in the first tenth of its training
N_SPECTRA = 20  # of these states whose Hessian is taken
FINER = 20  # times smaller than the learning rate are the steps that stand for gradient flow
SEQUENCES = 512

UNITS = {
    "loss": "nats", "gap": "nats", "excess": "nats", "entropy": "nats", "gradient_norm": "nats per weight",
    "attention": "attention mass", "focus": "attention mass", "focusing": "weight", "coordinates": "weight",
    "token_norm": "weight", "gamma": "weight", "redistribution": "weight", "alignment": "cosine",
    "singular_ratios": "s_k / s_1",
} | {f"{kind}_{matrix}": unit for kind, unit in (("rank", "directions"), ("ratio", "s_2 / s_1"), ("norm", "weight"))
     for matrix in ("embedding", "query", "key")}  # fmt: skip
DIMS = {
    "attention": ("query_token", "key_token"), "entropy": ("query_token",), "token_norm": ("query_token",),
    "gamma": ("query_token",), "singular_ratios": ("ratio",), "coordinates": ("query_token", "axis"),
}  # fmt: skip


def measures(experiment: Experiment) -> list[Measure]:
    """
    Raises:
      ValueError: a model or a task that is not the study's.
    """
    if isinstance(experiment.model, AttentionMLP):
        return [theory_signals(experiment)]
    if isinstance(experiment.model, OneLayerAttention) and isinstance(experiment.task, Markov):
        law_V = np.asarray(experiment.task.law({})[0])
        if law_V.argmax() != 0:
            raise ValueError(
                f"focus_dilution follows token 0 as the most frequent: it must come first in {law_V.round(3)}"
            )
        if not _is_descent(experiment.optim):  # the limit is that of plain gradient descent
            return [snapshot_state(experiment)]
        alone = (
            [] if experiment.task.asymmetry else [gradient_flow(experiment), spectra(experiment)]
        )  # of the cycle itself
        return [snapshot_state(experiment), population_limit(experiment), *alone]
    model, task = type(experiment.model).__name__, type(experiment.task).__name__
    raise ValueError(f"focus_dilution measures OneLayerAttention on Markov, and AttentionMLP; not {model} on {task}")


def snapshot_state(experiment: Experiment) -> Measure:
    """Every snapshot as the limit sees it: the only sampling noise in these numbers is that of training."""

    def function(row):
        outputs = population.portrait(row.params, *_chain(experiment, row), jnp.zeros((experiment.model.d_model, 2)))
        del outputs["coordinates"]  # a snapshot does not know the plane of the last one
        return outputs

    units = {name: unit for name, unit in UNITS.items() if name != "coordinates"}
    return Measure("state", function, units, _dims(units), precision="float64")


def population_limit(experiment: Experiment) -> Measure:
    """The row's start trained exactly, at its learning rate and for as many steps (`population.descend`).

    `predicted` is `population.growth_constant` of the state, NaN for a chain given by its matrix. All is NaN for rows
    with weight decay, which the limit does not have.
    """
    step_T = limit_steps(experiment)

    def function(row):
        chain = _chain(experiment, row)
        params_T = _descended(experiment, row, step_T)
        outputs = population.portraits(
            params_T, *chain, population.plane(jax.tree.map(lambda leaf: leaf[-1], params_T))
        )
        law_V, transition_VxV = chain
        stay = (jnp.trace(transition_VxV) - 1) / (law_V.size - 1)
        grow = jax.vmap(lambda gamma_V: population.growth_constant(gamma_V, law_V, stay, experiment.model.d_model))
        known = not experiment.task.transition
        predicted_T = jnp.where(known, grow(outputs["gamma"]), jnp.nan)
        without_decay = row.hparams["weight_decay"] == 0
        return jax.tree.map(
            lambda values: jnp.where(without_decay, values, jnp.nan), outputs | {"predicted": predicted_T}
        )

    units = UNITS | {"predicted": "1 / time"}
    dims = {name: ("time", *axes) for name, axes in _dims(units).items()} | {
        name: ("time",) for name in units if name not in DIMS
    }
    return Measure("limit", function, units, dims, {"time": step_T}, snapshots="last", precision="float64")


def gradient_flow(experiment: Experiment) -> Measure:
    """`population_limit` by steps `FINER` times smaller, at the same times: close to gradient flow.

    Sharpness grows along the flow; where it exceeds 2 / learning rate, steps of that size go another way.
    """
    step_T = limit_steps(experiment)

    def function(row):
        chain = _chain(experiment, row)
        params_T = _descended(experiment, row, step_T, FINER)

        def at(params):
            attention_VxV = population.attention(params, chain[0])
            top = jnp.argmax(chain[0])
            norm_V = jnp.linalg.norm(params["embed"]["token"]["embedding"], axis=1)
            found = {"loss": population.loss(params, *chain), "focus": chain[0] @ attention_VxV[:, top]}
            return found | {"token_norm": norm_V, "to_top": attention_VxV[:, top]}

        return jax.vmap(at)(params_T)

    units = {"loss": "nats", "focus": "attention mass", "token_norm": "weight", "to_top": "attention mass"}
    dims = {"loss": ("time",), "focus": ("time",)} | dict.fromkeys(("token_norm", "to_top"), ("time", "query_token"))
    return Measure("fine", function, units, dims, {"time": step_T}, snapshots="last", precision="float64")


def spectra(experiment: Experiment) -> Measure:
    """Least and largest eigenvalues of the limit's Hessian and of its two diagonal blocks, over its training."""
    step_T = limit_steps(experiment)[:: N_TIMES // N_SPECTRA]

    def function(row):
        chain = _chain(experiment, row)
        found = jax.lax.map(lambda params: population.critical(params, *chain), _descended(experiment, row, step_T))
        ends = {"whole": found.whole_N, "outer": found.outer_N, "inner": found.attention_N}
        least = {f"{name}_least": values_TxN[:, 0] for name, values_TxN in ends.items()}
        return least | {f"{name}_largest": values_TxN[:, -1] for name, values_TxN in ends.items()}

    units = {f"{block}_{end}": "1 / time" for block in ("whole", "outer", "inner") for end in ("least", "largest")}
    dims = dict.fromkeys(units, ("spectrum_time",))
    return Measure("spectra", function, units, dims, {"spectrum_time": step_T}, snapshots="last", precision="float64")


def theory_signals(experiment: Experiment) -> Measure:
    """What the companion's theory says of a row, see `collapse.signals`."""
    scalars = (
        "change_outer", "change_inner", "aligned_query", "aligned_key", "energy", "balance_drift",
        "a1_hidden", "a1_value", "a2_hidden", "a2_value", "leading_value", "leading_ratio",
        "attention_rate", "attention_ratio", "from_uniform",
        *(f"aligned_{name}{end}" for name in collapse.OUTER for end in ("", "_close")),
    )  # fmt: skip
    units = {"cosine": "cosine", "effective_rank": "directions", "direction": "1"} | dict.fromkeys(scalars, "1")
    dims = {"cosine": ("matrix",), "effective_rank": ("matrix",), "direction": ("matrix", "unit")}
    return Measure("signals", collapse.signals, units, dims, {"matrix": collapse.MATRICES}, n=SEQUENCES)


def limit_steps(experiment: Experiment) -> tuple[int, ...]:
    """The steps at which the limit is looked at."""
    early = np.linspace(0, experiment.steps / 10, N_TIMES // 2 + 1)
    late = np.linspace(experiment.steps / 10, experiment.steps, N_TIMES // 2 + 1)
    return tuple(int(step) for step in np.unique(np.concatenate([early, late]).round()))


def _is_descent(optim: Optim) -> bool:
    plain = optim.family == "sgd" and optim.momentum == 0 and math.isinf(optim.clip_norm)
    return plain and optim.schedule == "constant" and optim.warmup_steps == 0 and not optim.frozen


def _descended(experiment: Experiment, row, step_T, finer: int = 1):
    rate_of_row = row.hparams["learning_rate"].astype(float)
    chain, step_T = _chain(experiment, row), finer * jnp.array(step_T, jnp.int32)
    return population.descend(row.start, *chain, rate_of_row / finer, step_T)


def _chain(experiment: Experiment, row):
    """pi (V) and P (VxV) of the row's task."""
    return [values.astype(float) for values in experiment.task.law(row.hparams)]


def _dims(units) -> dict:
    return {name: axes for name, axes in DIMS.items() if name in units}
