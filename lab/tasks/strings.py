"""Strings whose law is known exactly: random autoregressive tables and Markov chains over a small alphabet.

Each symbol is drawn given the `order` before it, by conditional laws that are drawn once from a Dirichlet law. With an
order of `length` - 1 that is a random table of all conditionals, and every law of strings near uniform (large
concentration) to near deterministic (small) is reached; a smaller order is a stationary chain.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr, gammaincinv

from lab import limits, losses
from lab.tasks.task import Batch, Task, check_split

LEAST_CONCENTRATION = 0.02  # below, all Gamma variables of a conditional law may underflow
MOST_TABLE = 2**18  # entries of the table of conditional laws
MOST_STATES = 2**11  # of a chain, whose stationary law is solved for
MOST_STRINGS = 2**18  # that are enumerated
BEGIN = 0  # what is read before the first symbol; its position tells it from the symbol


@dataclasses.dataclass(frozen=True)
class Strings(Task):
    """The task as a value: x_1..x_T are said, `BEGIN`, x_1..x_{T-1} are read; symbols are 0 to `alphabet` - 1.

    Attributes:
      alphabet: V.
      length: T.
      order: how many symbols before it a symbol depends on, at most T - 1.
      concentration: each conditional law is Dirichlet(concentration, ..., concentration).
      law_seed: of the conditional laws.
    """

    alphabet: int
    length: int
    order: int
    concentration: float
    law_seed: int

    splits = ("train", "test")

    def __post_init__(self):
        bounds = {"alphabet": (2, None), "length": (1, None), "order": (0, self.length - 1)}
        bounds |= {"law_seed": (0, limits.SEED_BOUND - 1)}
        limits.check("task", self, bounds=bounds)
        if not LEAST_CONCENTRATION <= self.concentration < np.inf:
            raise ValueError(f"task.concentration={self.concentration}: a number of at least {LEAST_CONCENTRATION}")
        if self.alphabet ** (self.order + 1) > MOST_TABLE:
            raise ValueError(
                f"task.order={self.order}: {self.alphabet}^{self.order + 1} conditional probabilities, at most "
                f"{MOST_TABLE:,} are kept; a smaller order, or alphabet"
            )
        if self.order < self.length - 1 and self.alphabet**self.order > MOST_STATES:
            raise ValueError(
                f"task.order={self.order}: a chain of {self.alphabet}^{self.order} states, at most {MOST_STATES:,} "
                "have their stationary law solved for; a smaller order, or length - 1"
            )

    @property
    def vocab_size(self) -> int:
        return self.alphabet

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` strings, int32 (n, length); both splits have the same law.

        `info["law_BxLxV"]`: the law of each symbol given those before it, float32.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        uniform_BxL = jax.random.uniform(key, (n, self.length), jnp.float32)
        table_RxV = jnp.asarray(_table(self), jnp.float32)
        edges_RxV = jnp.cumsum(table_RxV, axis=1)[:, :-1]  # below the last: a sum rounded below 1 draws no symbol V
        states = jnp.int32(self.alphabet**self.order)

        def draw(state_B, at):
            first_row, uniform_B = at
            row_B = first_row + state_B
            symbol_B = jnp.sum(uniform_B[:, None] >= edges_RxV[row_B], axis=1, dtype=jnp.int32)
            return (state_B * self.alphabet + symbol_B) % states, (row_B, symbol_B)

        steps = (jnp.asarray(self._first_row()), uniform_BxL.T)
        _, (row_LxB, symbol_LxB) = jax.lax.scan(draw, jnp.zeros(n, jnp.int32), steps, unroll=min(self.length, 8))
        targets_BxL = symbol_LxB.T
        begin_Bx1 = jnp.full((n, 1), BEGIN, jnp.int32)
        tokens_BxL = jnp.concatenate([begin_Bx1, targets_BxL[:, :-1]], axis=1)
        weights_BxL = jnp.ones((n, self.length), jnp.float32)
        return Batch(tokens_BxL, targets_BxL, weights_BxL, {"law_BxLxV": table_RxV[row_LxB.T]})

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """Means over the symbols that are answered, nats.

        `law_loss`: cross-entropy with the true conditional law, the mean of the loss over what is drawn.
        `excess`: that less the law's entropy; 0 for the best model.
        `entropy`: of the answers, in the contexts that were drawn; equal to the loss where the model is calibrated.
        """
        log_answer = jax.nn.log_softmax(logits_BxQxV)[..., : self.alphabet]
        law = losses.last(batch.info["law_BxLxV"], logits_BxQxV.shape[1]).astype(log_answer.dtype)
        loss = -jnp.sum(law * log_answer, axis=-1)
        return {
            "law_loss": jnp.mean(loss),
            "excess": jnp.mean(loss - jnp.sum(jax.scipy.special.entr(law), axis=-1)),
            "entropy": jnp.mean(-jnp.sum(jnp.exp(log_answer) * log_answer, axis=-1)),
        }

    def _first_row(self) -> np.ndarray:
        """Where in the table the laws of each depth begin, int32 (L)."""
        depth_L = np.minimum(np.arange(self.length), self.order)
        return ((self.alphabet**depth_L - 1) // (self.alphabet - 1)).astype(np.int32)


def contexts(task: Strings) -> np.ndarray:
    """Every input there is, int32 (V^(T-1), T): `BEGIN` and all strings of T - 1 symbols, in lexicographic order.

    Raises:
      ValueError: too many strings.
    """
    if task.alphabet**task.length > MOST_STRINGS:
        raise ValueError(
            f"task.length={task.length}: {task.alphabet}^{task.length} strings, at most {MOST_STRINGS:,} are enumerated"
        )
    said_NxM = np.indices((task.alphabet,) * (task.length - 1), np.int32).reshape(task.length - 1, -1).T
    return np.concatenate([np.full((len(said_NxM), 1), BEGIN, np.int32), said_NxM], axis=1)


def laws(task: Strings, tokens_NxL) -> np.ndarray:
    """The law of each symbol given those before it, float64 (N, L, V), of inputs that begin with `BEGIN`."""
    symbol_NxM = np.asarray(tokens_NxL, np.int64)[:, 1:]
    state_N, rows = np.zeros(len(symbol_NxM), np.int64), []
    for first_row, symbol_N in zip(task._first_row(), [*symbol_NxM.T, None], strict=True):
        rows.append(first_row + state_N)
        if symbol_N is not None:
            state_N = (state_N * task.alphabet + symbol_N) % task.alphabet**task.order
    return _table(task)[np.stack(rows, axis=1)]


def entropies(task: Strings) -> np.ndarray:
    """H(x_t | x_1..x_{t-1}) in nats, float64 (T), without enumerating strings: their sum is the law's entropy.

    The law of the state, the last `order` symbols, is carried from depth to depth.
    """
    table_RxV, law_S, found = _table(task), np.ones(1), []
    for depth, first_row in enumerate(task._first_row()):
        conditional_SxV = table_RxV[first_row : first_row + law_S.size]
        found.append(np.sum(law_S * entr(conditional_SxV).sum(axis=1)))
        law_S = (law_S[:, None] * conditional_SxV).ravel()  # of states that are one symbol longer
        if depth >= task.order:
            law_S = law_S.reshape(task.alphabet, -1).sum(axis=0)  # the oldest symbol is forgotten
    return np.array(found)


@functools.cache
def _table(task: Strings) -> np.ndarray:
    """All conditional laws, float64 (rows, V), by depth and then by what was said; not to be written to."""
    draw, sizes = np.random.default_rng(task.law_seed), [task.alphabet**depth for depth in range(task.order + 1)]

    def dirichlet(n: int) -> np.ndarray:
        # of Gamma variables by their quantiles: the stream of uniform numbers is that of every version of NumPy
        gamma_NxV = gammaincinv(task.concentration, 1 - draw.random((n, task.alphabet)))
        return gamma_NxV / gamma_NxV.sum(axis=1, keepdims=True)

    if task.order == task.length - 1:
        tables = [dirichlet(size) for size in sizes]
    else:
        last_SxV = dirichlet(sizes[-1])
        tables = [*_beginning(last_SxV, task.order), last_SxV]
    table_RxV = np.concatenate(tables)
    table_RxV.flags.writeable = False
    return table_RxV


def _beginning(last_SxV: np.ndarray, order: int) -> list[np.ndarray]:
    """The laws of the first symbols of a stationary chain, (V^depth, V) for each depth below its order."""
    n_states, alphabet = last_SxV.shape
    from_S = np.repeat(np.arange(n_states), alphabet)
    to_S = (from_S * alphabet + np.tile(np.arange(alphabet), n_states)) % n_states
    equations_SxS = np.zeros((n_states, n_states))
    np.add.at(equations_SxS, (to_S, from_S), last_SxV.ravel())
    equations_SxS -= np.eye(n_states)
    equations_SxS[-1] = 1  # one equation follows from the others; the law sums to one
    law_S = np.maximum(np.linalg.solve(equations_SxS, np.eye(n_states)[-1]), 0)
    longer = [law_S.reshape(alphabet**depth, -1).sum(axis=1) for depth in range(order + 1)]
    return [
        longer[depth + 1].reshape(-1, alphabet) / np.maximum(longer[depth], np.finfo(float).tiny)[:, None]
        for depth in range(order)
    ]
