"""The training objective: which tokens count in the loss, and what noise there is in answers and contexts.

With weights 1 on the targets that answer, 0 elsewhere, the mean loss is that of *critical token prediction* (CTP):
sum over answer targets of -log p(x_{t+1} | x_{<=t}), divided by their number. With 1 on every target it is *next-token
prediction* (NTP), -(1/T) sum_t log p(x_{t+1} | x_{<=t}). ("Reasoning Bias of Next Token Prediction Training",
arXiv 2502.02007; its settings are not published, so the noise and the shuffle below are our reading of it.)

A sequence is x_0 ... x_L: tokens are x_0 ... x_{L-1}, targets x_1 ... x_L. Token 0 is padding, at the end alone, and
never counts; what is neither padding nor answer is *context*.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits, rng

PAD = 0
CTP, NTP = 0.0, 1.0  # values of `ntp_weight`
NOISES = ("label_noise", "context_noise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What rows are trained on in place of a task's clean sequences; evaluation never sees it.

    Three numbers in [0, 1] may vary in a grid; a value outside is refused where training starts, and gives weights of
    NaN elsewhere. Tasks without an answer (`Task.has_answer`) have the default objective alone.
    Noise is a threshold on uniform numbers that belong to a sequence: the same in every epoch of
    a finite training set and in every row, so of two levels the higher one changes all that the lower one does.

    Attributes:
      ntp_weight: weight w of a context target beside the answer's 1: 0 is CTP, 1 is NTP. The loss is divided by all
        weight, so it also moves the answer's share, n_answer / (n_answer + w n_context). Models
        with logits at the last position alone (`readout="last"`) are trained there, whatever w is.
      label_noise: probability that a sequence's answer, all of it, is replaced by tokens uniform on the task's
        `answer_alphabet`; some of these are right.
      context_noise: probability of each context token to be replaced by one uniform on the task's `context_alphabet`,
        where it is read and where it is to be said. The answer stays that of the clean sequence.
      shuffle_context: take context targets from other sequences of the same draw (all of a finite training set, one
        batch of a stream), same position, each position permuted for itself. What is read stays. Every position keeps
        its law and none depends on what came before: the noise of NTP without its structure.

    Raises:
      ValueError: a number outside of [0, 1].
    """

    ntp_weight: float = 0.0
    label_noise: float = 0.0
    context_noise: float = 0.0
    shuffle_context: bool = False

    hparams = ("ntp_weight", *NOISES)  # the fields that a grid may vary

    def __post_init__(self):
        limits.check("objective", self, bounds=dict.fromkeys(self.hparams, (0, 1)))

    def check_fit(self, task, readout: str, axes: Mapping) -> None:
        """
        Args:
          readout: where the model has logits: at the `last` position or at `all`.
          axes: the axes of the grid.

        Raises:
          ValueError: an objective of a task without an answer, or weight on context where the model says nothing.
        """
        if self != DEFAULT and not task.has_answer:
            changed = next(f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
            raise ValueError(
                f"objective.{changed}={getattr(self, changed)}: {type(task).__name__} has no answer apart from its "
                "context; leave it at its default"
            )
        weights = axes.get("ntp_weight", self.ntp_weight)
        if readout == "last" and np.any(weights):
            raise ValueError(
                f"model.readout='last' with ntp_weight={weights}: context is predicted everywhere; use 'all'"
            )

    def sample(self, task, key, n: int, hparams: Mapping):
        """`n` clean training sequences of a task, and in `info` what `apply` needs of them.

        That is `noise_seed_B` (int32), and `shuffled_BxL` (int32) if context is shuffled; nothing without an answer.

        Raises:
          ValueError: as `task.sample`.
        """
        batch = task.sample(key, n, "train", hparams)
        if not task.has_answer:
            return batch
        noise_key = rng.named(key, "noise")
        # Four bytes a sequence, where the noise itself is as large as the batch; rows that share data derive it once.
        info = {"noise_seed_B": (jax.random.bits(noise_key, (n,), jnp.uint32) >> 1).astype(jnp.int32)}
        if self.shuffle_context:
            shuffle_key = rng.named(key, "shuffle")
            info["shuffled_BxL"] = permute_context(shuffle_key, batch.targets_BxL, context(batch))
        return batch._replace(info=batch.info | info)

    def apply(self, task, batch, hparams: Mapping):
        """A batch of `sample` -> what a row is trained on: weights, answers, contexts by the row's three numbers."""
        if not self._asks(self.hparams, hparams):
            return batch  # nothing in the program either
        is_answer_BxL, is_context_BxL = batch.weights_BxL > 0, context(batch)
        tokens_BxL, targets_BxL = batch.tokens_BxL, batch.targets_BxL
        if self.shuffle_context:
            targets_BxL = jnp.where(is_context_BxL, batch.info["shuffled_BxL"], targets_BxL)
        if self._asks(NOISES, hparams):
            first_Bx1 = jnp.ones_like(is_context_BxL[:, :1])
            is_answer_BxM = jnp.concatenate([~first_Bx1, is_answer_BxL], axis=1)
            is_context_BxM = jnp.concatenate([first_Bx1, is_context_BxL], axis=1)
            hit_BxM, noise_BxM = self._noise(task, batch.info["noise_seed_B"], is_answer_BxM, is_context_BxM, hparams)
            # Twice the same noise: a token that is replaced is read as it was to be said.
            tokens_BxL = jnp.where(hit_BxM[:, :-1], noise_BxM[:, :-1], tokens_BxL)
            targets_BxL = jnp.where(hit_BxM[:, 1:], noise_BxM[:, 1:], targets_BxL)
        numbers_3 = jnp.stack([self._number(name, hparams) for name in self.hparams])
        answers = jnp.where(jnp.all((numbers_3 >= 0) & (numbers_3 <= 1)), jnp.float32(1), jnp.nan)
        weights_BxL = answers * batch.weights_BxL + numbers_3[0] * is_context_BxL.astype(jnp.float32)
        return batch._replace(tokens_BxL=tokens_BxL, targets_BxL=targets_BxL, weights_BxL=weights_BxL)

    def _asks(self, names: Sequence[str], hparams: Mapping) -> bool:
        """Whether a row varies one of these, or the objective sets it."""
        return any(name in hparams or getattr(self, name) for name in names)

    def _number(self, name: str, hparams: Mapping):
        return jnp.asarray(hparams.get(name, getattr(self, name)), jnp.float32)

    def _noise(self, task, seed_B, is_answer_BxM, is_context_BxM, hparams: Mapping):
        """Which of the tokens x_0 ... x_L are replaced, and by what."""
        length = is_answer_BxM.shape[1]

        def bits_of_sequence(seed):
            # One draw for all: each costs seconds of compilation. The last number is that of the answer as a whole.
            return jax.random.bits(rng.key(seed, "noise"), (2, length + 1), jnp.uint32)

        bits_Bx2xN = jax.vmap(bits_of_sequence)(seed_B)
        uniform_BxN = (bits_Bx2xN[:, 0] >> 8).astype(jnp.float32) * jnp.float32(2**-24)  # exact, and below 1
        hit_BxM = jnp.where(
            is_answer_BxM,
            uniform_BxN[:, -1:] < self._number("label_noise", hparams),
            is_context_BxM & (uniform_BxN[:, :-1] < self._number("context_noise", hparams)),
        )
        answer_BxM, context_BxM = (
            _pick(alphabet, bits_Bx2xN[:, 1, :-1]) for alphabet in (task.answer_alphabet, task.context_alphabet)
        )
        return hit_BxM, jnp.where(is_answer_BxM, answer_BxM, context_BxM)


DEFAULT = Objective()  # the answer alone, without noise; of a task without an answer, its own weights


def context(batch):
    """(B, L) bool: targets that are neither answer nor padding, of a batch as drawn."""
    return (batch.weights_BxL == 0) & (batch.targets_BxL != PAD)


def permute_context(key, value_BxL, may_move_BxL):
    """Values permuted across sequences, at each position among the entries that may move; the others stay."""
    order_BxL = jnp.where(may_move_BxL, jax.random.uniform(key, value_BxL.shape, jnp.float32), 2)
    # Both list the entries that may move first, at random and in order, and then all others, in order.
    from_BxL = jnp.argsort(order_BxL, axis=0, stable=True)
    to_BxL = jnp.argsort(~may_move_BxL, axis=0, stable=True)
    moved_BxL = jnp.take_along_axis(value_BxL, from_BxL, axis=0)
    return jnp.put_along_axis(value_BxL, to_BxL, moved_BxL, axis=0, inplace=False)


def _pick(alphabet: Sequence[int], bits):
    """An entry by 32 random bits each: uniform up to len(alphabet) / 2^32."""
    return jnp.asarray(alphabet, jnp.int32)[bits % jnp.uint32(len(alphabet))]
