"""A Markov chain whose next token depends on the last one alone ("Focus and Dilution", arXiv 2605.01199).

Frequencies are set apart from predictability: P = stay I + (1 - stay) 1 pi^T keeps the token with probability `stay`,
else draws it anew from pi, and pi is its stationary law whatever `stay` is.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from scipy.sparse import csgraph

from lab import limits
from lab.tasks.task import Batch, Task, check_split

ROUNDING = 1e-6  # by which probabilities written down in a config may miss their sum


@dataclasses.dataclass(frozen=True)
class Markov(Task):
    """The task as a value: x_1 uniform, x_{j+1} ~ P[x_j]; s = `length` tokens are read, x_{s+1} is to be said.

    The chain is given by `stationary`, `asymmetry`, `delta` and `stay`, or by `transition` with those left empty and 0.
    A grid may vary `stay` and `delta` of the former; a value that makes no law is refused where training starts, and
    gives weights of NaN elsewhere.

    Attributes:
      stationary: pi, V probabilities.
      asymmetry: c, V numbers with sum 0, for the law pi + `delta` c; empty for zeros.
      stay: probability to keep the token, in [0, 1).
      transition: P, V rows of V probabilities, irreducible; empty for the form above.
      length: s.
    """

    stationary: tuple
    asymmetry: tuple
    delta: float
    stay: float
    transition: tuple
    length: int

    splits = ("train", "test")
    hparams = ("stay", "delta")

    def __post_init__(self):
        limits.check("task", self, bounds={"length": (1, None)})
        if self.transition:
            for name in ("stationary", "asymmetry", "delta", "stay"):
                if getattr(self, name):
                    raise ValueError(
                        f"task.{name}={getattr(self, name)!r}: task.transition says it all; leave this "
                        f"{'empty' if name in ('stationary', 'asymmetry') else '0'}"
                    )
            _check_transition(self.transition)
            if not all(isinstance(row, tuple) for row in self.transition):
                raise ValueError("task.transition: a tuple of tuples")
        else:
            _check_law(self)

    @property
    def vocab_size(self) -> int:
        return len(self.transition or self.stationary)

    def law(self, hparams: Mapping) -> tuple[jax.Array, jax.Array]:
        """Stationary law (V) and transition matrix (VxV) of a row, float32.

        Raises:
          ValueError: the row varies `stay` or `delta` of a chain that does not depend on it.
        """
        stay, delta = self._knobs(hparams)
        if self.transition:
            transition_VxV = np.array(self.transition, np.float64)
            return jnp.asarray(stationary_of(transition_VxV), jnp.float32), jnp.asarray(transition_VxV, jnp.float32)
        base_V = jnp.asarray(self.stationary, jnp.float32)
        law_V = stationary_law(base_V, jnp.asarray(self.asymmetry or (0.0,) * base_V.size, jnp.float32), delta)
        is_law = jnp.all(law_V >= 0) & (stay >= 0) & (stay < 1)
        law_V = jnp.where(is_law, law_V, jnp.nan)
        return law_V, transition_matrix(law_V, stay)

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences, int32 (n, length); both splits have the same law. `info["law_BxV"]` is P[x_s], float32.

        Raises:
          ValueError: unknown split, or as `law`.
        """
        check_split(self, split)
        law_V, transition_VxV = self.law(hparams)
        chain_BxM = self._walk(key, n, law_V, transition_VxV, hparams)
        tokens_BxL, targets_BxL = chain_BxM[:, :-1], chain_BxM[:, 1:]
        counted = jnp.where(jnp.all(jnp.isfinite(law_V)), jnp.float32(1), jnp.nan)
        weights_BxL = jnp.zeros(tokens_BxL.shape, jnp.float32).at[:, -1].set(counted)
        return Batch(tokens_BxL, targets_BxL, weights_BxL, {"law_BxV": transition_VxV[tokens_BxL[:, -1]]})

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """Of the answers at the last position, nats.

        `law_loss`: cross-entropy with the true conditional law, the mean of the loss over x_{s+1} (Rao-Blackwell).
        `excess`: that minus the law's entropy, its Kullback-Leibler divergence from the answer; 0 for the best model.
        """
        log_answer_BxV = jax.nn.log_softmax(logits_BxQxV[:, -1])
        law_BxV = batch.info["law_BxV"].astype(log_answer_BxV.dtype)
        # of more entries than the task has states the rest is never drawn, in models with a larger vocabulary
        loss_B = -jnp.sum(law_BxV * log_answer_BxV[:, : self.vocab_size], axis=1)
        return {"law_loss": jnp.mean(loss_B), "excess": jnp.mean(loss_B - jnp.sum(entr(law_BxV), axis=1))}

    def _walk(self, key, n: int, law_V, transition_VxV, hparams: Mapping):
        """n chains of s + 1 states."""
        first_key, key = jax.random.split(key)
        first_B = jax.random.randint(first_key, (n,), 0, self.vocab_size, jnp.int32)
        uniform_BxL = jax.random.uniform(key, (n, self.length), jnp.float32)
        if self.transition:
            return _walk(transition_VxV, first_B, uniform_BxL)
        stay, _ = self._knobs(hparams)
        return _walk_of_resamples(law_V, stay, first_B, uniform_BxL)

    def _knobs(self, hparams: Mapping) -> list[jax.Array]:
        """`stay` and `delta` of a row, or of the task where its grid has no such axis."""
        needed = {"stay": ("stationary", self.stationary), "delta": ("asymmetry", self.asymmetry)}
        for name, (field, value) in needed.items():
            if name in hparams and not value:
                raise ValueError(f"grid.{name} changes nothing: task.{field} is empty; give it, or drop the axis")
        return [jnp.asarray(hparams.get(name, getattr(self, name)), jnp.float32) for name in self.hparams]


def stationary_law(base_V, asymmetry_V, delta):
    """pi + delta c: with c of sum 0 again a law, as long as no entry is negative."""
    return base_V + delta * asymmetry_V


def transition_matrix(law_V, stay):
    """P = stay I + (1 - stay) 1 pi^T, (VxV); pi is its stationary law."""
    return stay * jnp.eye(law_V.size, dtype=law_V.dtype) + (1 - stay) * law_V[None]


def unigram_entropy(law_V):
    """H(pi) = -sum_v pi_v log pi_v in nats: the best loss of a model that does not look at its input."""
    return jnp.sum(entr(law_V))


def entropy_rate(law_V, transition_VxV):
    """-sum_i pi_i sum_v P_iv log P_iv in nats: the best loss of all."""
    return jnp.sum(law_V * jnp.sum(entr(transition_VxV), axis=1))


def stationary_of(transition_VxV) -> np.ndarray:
    """The stationary law (V) of a transition matrix, float64, on the host: pi (P - I) = 0 with sum 1.

    Raises:
      ValueError: rows that are no laws, or a chain that is not irreducible and so may have several.
    """
    transition_VxV = np.asarray(transition_VxV, np.float64)
    _check_transition(transition_VxV)
    size = len(transition_VxV)
    equations = np.vstack([transition_VxV.T - np.eye(size), np.ones(size)])
    law_V = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0))[0]
    return law_V / law_V.sum()


def _walk_of_resamples(law_V, stay, first_B, uniform_BxL):
    """Chains of P = stay I + (1 - stay) 1 pi^T without a loop: each state is the one drawn last.

    One uniform number says both: below `stay` the state is kept, above it lies in the interval of the new one.
    """
    edges_V = jnp.append(stay, stay + (1 - stay) * jnp.cumsum(law_V)[:-1])
    # 0: kept; v + 1: state v
    drawn_BxL = jnp.searchsorted(edges_V, uniform_BxL, side="right", method="scan_unrolled").astype(jnp.int32)
    drawn_BxM = jnp.concatenate([first_B[:, None] + 1, drawn_BxL], axis=1)
    place_1xM = jnp.arange(drawn_BxM.shape[1], dtype=jnp.int32)[None]
    # three times as fast as `cummax` on a CPU, where that is a loop over windows
    last_BxM = jax.lax.associative_scan(jnp.maximum, jnp.where(drawn_BxM > 0, place_1xM, 0), axis=1)
    return jnp.take_along_axis(drawn_BxM, last_BxM, axis=1) - 1


def _walk(transition_VxV, first_B, uniform_BxL):
    """Chains of any P, state by state."""
    edges_VxV = jnp.cumsum(transition_VxV, axis=1)[:, :-1]  # below the last: a sum rounded below 1 draws no state V

    def move(state_B, uniform_B):
        state_B = jnp.sum(uniform_B[:, None] >= edges_VxV[state_B], axis=1, dtype=jnp.int32)
        return state_B, state_B

    _, after_LxB = jax.lax.scan(move, first_B, uniform_BxL.T)
    return jnp.concatenate([first_B[:, None], after_LxB.T], axis=1)


def _check_law(task: Markov) -> None:
    for name in ("stationary", "asymmetry"):
        if not all(isinstance(entry, int | float) for entry in getattr(task, name)):
            raise ValueError(f"task.{name}={getattr(task, name)!r}: a tuple of numbers")
    base_V = np.array(task.stationary, np.float64)
    shift_V = np.array(task.asymmetry or (0.0,) * base_V.size, np.float64)
    if base_V.size < 2 or (base_V <= 0).any() or abs(base_V.sum() - 1) > ROUNDING:
        raise ValueError(f"task.stationary={task.stationary!r}: at least two positive probabilities with sum 1")
    if shift_V.size != base_V.size or abs(shift_V.sum()) > ROUNDING:
        raise ValueError(f"task.asymmetry={task.asymmetry!r}: empty, or {base_V.size} numbers with sum 0")
    if (base_V + task.delta * shift_V <= 0).any():
        raise ValueError(f"task.delta={task.delta}: task.stationary + task.delta * task.asymmetry must be positive")
    if not 0 <= task.stay < 1:
        raise ValueError(f"task.stay={task.stay}: a probability below 1")


def _check_transition(transition) -> None:
    try:
        transition_VxV = np.array(transition, np.float64)
    except (TypeError, ValueError):  # rows of unequal length, or no numbers
        transition_VxV = np.zeros(0)
    if transition_VxV.ndim != 2 or len(transition_VxV) < 2 or len(set(transition_VxV.shape)) != 1:
        raise ValueError(f"task.transition={transition!r}: at least two rows, each of as many probabilities")
    off_V = np.abs(transition_VxV.sum(axis=1) - 1)
    if (transition_VxV < 0).any() or not (off_V <= ROUNDING).all():
        raise ValueError(f"task.transition={transition!r}: rows of probabilities with sum 1")
    n_classes, _ = csgraph.connected_components(transition_VxV > 0, connection="strong")
    if n_classes > 1:
        raise ValueError(
            f"task.transition={transition!r}: every state must be reachable from every other, "
            f"these fall into {n_classes} classes"
        )
