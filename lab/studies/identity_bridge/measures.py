"""What is measured of a model that answers two-hop questions: its block, its states, its shortcuts, its ranks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import models
from lab.analysis import bridges, rank
from lab.experiment import Experiment
from lab.measuring.declare import Measure
from lab.tasks import TwoHop
from lab.tasks.two_hop import FIRST_RELATION

STATES = ("final", "post", "sum")  # of what the head reads; the first that a model has
LATENT = ("centred", "cosine", "other", "random", "rank")


class Chains(NamedTuple):
    """Tokens of C questions of two hops out of distribution; `group_C` numbers their pairs of relations."""

    head_C: np.ndarray
    first_C: np.ndarray
    second_C: np.ndarray
    bridge_C: np.ndarray
    answer_C: np.ndarray
    group_C: np.ndarray


def chains(task: TwoHop) -> Chains:
    """
    Raises:
      ValueError: a world whose relations are no bijections.
    """
    if task.world != "layers":
        raise ValueError(f"the identity_bridge study measures task.world='layers', not {task.world!r}")
    parts = task.facts.parts(2, task.questions.two_hop_ood)
    first, second = (np.asarray(parts[name]) for name in ("first", "second"))
    entities = [np.asarray(parts[name]) + task.first_entity for name in ("head", "bridge", "answer")]
    _, group = np.unique(first * (1 + second.max()) + second, return_inverse=True)
    head, bridge, answer = entities
    found = head, first + FIRST_RELATION, second + FIRST_RELATION, bridge, answer, group
    return Chains(*(np.asarray(part, np.int32) for part in found))


def measures(experiment: Experiment) -> list[Measure]:
    """The block with its ratio of sharing, latent alignment, shortcuts; of linear models the ranks of the solution.

    Raises:
      ValueError: the task is none of two hops, or as `chains`.
    """
    if not isinstance(experiment.task, TwoHop):
        raise ValueError(f"the identity_bridge study measures task.family='two_hop', not {experiment.task}")
    found = chains(experiment.task)
    task = experiment.task
    made = [block(task, found), alignment(task, found), shortcuts(task, found)]
    return [*made, solution()] if isinstance(experiment.model, models.EmbLinear | models.EmbTable) else made


def block(task: TwoHop, found: Chains) -> Measure:
    """The block [[a, c], [p, s]] of entity entries, R = cp / (as), and its nuclear norm over the least one."""

    def function(row):
        asked_CxV, identity_CxV, second_CxV = (
            _answers(task, row, *question)
            for question in ((found.head_C, found.first_C), (found.bridge_C,), (found.bridge_C, found.second_C))
        )
        said = {
            "a": (asked_CxV, found.bridge_C),
            "c": (asked_CxV, found.answer_C),
            "p": (identity_CxV, found.bridge_C),
            "s": (second_CxV, found.answer_C),
        }
        entries = bridges.Block(**{n: bridges.margin(*of, jnp.asarray(found.group_C)) for n, of in said.items()})
        norms = {name: getattr(entries, name) for name in ("nuclear", "excess", "over_minimum")}
        return entries._asdict() | {"sharing": entries.sharing} | norms

    units = dict.fromkeys(("a", "c", "p", "s"), "logit") | {"nuclear": "logit"}
    units |= {"sharing": "cp / (as)", "excess": "of the least nuclear norm at its a, p, s"}
    units |= {"over_minimum": "of the least nuclear norm at its margin"}
    return Measure("block", function, units, snapshots="last")


def alignment(task: TwoHop, found: Chains) -> Measure:
    """Cosine of the states of (e1, r1) and e2, where the head reads, beside three controls."""
    entity_E = np.asarray(task.answer_alphabet, np.int32)

    def function(row):
        state_CxD, bridge_CxD, entity_ExD = (
            _state(task, row, *question) for question in ((found.head_C, found.first_C), (found.bridge_C,), (entity_E,))
        )
        return bridges.latent(state_CxD, bridge_CxD, entity_ExD, jnp.asarray(found.group_C))

    units = dict.fromkeys(LATENT[:-1], "cosine") | {"rank": "rank among all entities"}
    return Measure("latent", function, units, snapshots="last")


def shortcuts(task: TwoHop, found: Chains) -> Measure:
    """Shares of two-hop questions that are answered as if a part of them were not there."""

    def function(row):
        said_C = _says(task, row, found.head_C, found.first_C, found.second_C)
        parts = {"without_first": found.second_C, "without_second": found.first_C}
        return {
            name: jnp.mean(said_C == _says(task, row, found.head_C, relation_C), dtype=jnp.float32)
            for name, relation_C in parts.items()
        }

    units = dict.fromkeys(("without_first", "without_second"), "share of questions")
    return Measure("shortcut", function, units, snapshots="last")


def solution() -> Measure:
    """Nuclear over Frobenius norm and effective rank of W = E U, all tokens."""

    def function(row):
        embedding_VxD = row.params["embed"]["embedding"]
        if "head" in row.params:
            s_K = rank.product_singular_values(embedding_VxD, row.params["head"]["kernel"])
        else:
            s_K = rank.singular_values(embedding_VxD)
        found = rank.soft_ranks(s_K)
        return {name: found[name] for name in ("effective", "nuclear")}

    units = {"effective": "rank", "nuclear": "nuclear over Frobenius norm"}
    return Measure("solution", function, units, snapshots="last")


def _asked(task: TwoHop, row, *columns_C):
    """Logits and activations after every token of questions, with the mark that the task asks them by."""
    if task.asked == "question" or (task.asked == "relation" and len(columns_C) == 1):
        columns_C = *columns_C, np.full_like(columns_C[0], task.mark)
    tokens_CxL = jnp.stack([jnp.asarray(column) for column in columns_C], axis=1)
    return models.forward(row.model, row.params, tokens_CxL)


def _answers(task: TwoHop, row, *columns_C):
    """Logits of the answers, (C, V)."""
    return _asked(task, row, *columns_C)[0][:, -1]


def _says(task: TwoHop, row, *columns_C):
    return jnp.argmax(_answers(task, row, *columns_C), axis=-1).astype(jnp.int32)


def _state(task: TwoHop, row, *columns_C) -> jax.Array:
    """What the head reads where the answer is asked for, (C, D)."""
    _, acts = _asked(task, row, *columns_C)
    return acts[next(name for name in STATES if name in acts)][:, -1]
