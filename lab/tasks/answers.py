"""Tasks whose sequences hold an answer: what answer-only and next-token training are compared on.

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

from lab import rng
from lab.tasks.batch import Batch, Task

PAD = 0
NOISES = ("label_noise", "context_noise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerTask(Task):
    """Base of the tasks with an answer; a subclass gives `draw` and the alphabets, and calls `super().__post_init__()`.

    Batches as drawn, and so every evaluation, are clean and weigh answers alone. What rows are trained on differs by
    three numbers in [0, 1] that a grid may vary; a value outside is refused where training starts, and gives weights of
    NaN elsewhere.
    Noise is a threshold on uniform numbers that belong to a sequence: the same in every epoch of
    a finite training set and in every row, so of two levels the higher one changes all that the lower one does.

    Attributes:
      ntp_weight: weight w of a context target beside the answer's 1: 0 is CTP, 1 is NTP. The loss is divided by all
        weight, so it also moves the answer's share, n_answer / (n_answer + w n_context). Models
        with logits at the last position alone (`readout="last"`) are trained there, whatever w is.
      label_noise: probability that a sequence's answer, all of it, is replaced by tokens uniform on `answer_alphabet`;
        some of these are right.
      context_noise: probability of each context token to be replaced by one uniform on `context_alphabet`, where it is
        read and where it is to be said. The answer stays that of the clean sequence.
      shuffle_context: take context targets from other sequences of the same draw (all of a finite training set, one
        batch of a stream), same position, each position permuted for itself. What is read stays. Every position keeps
        its law and none depends on what came before: the noise of NTP without its structure.
    """

    ntp_weight: float = 0.0
    label_noise: float = 0.0
    context_noise: float = 0.0
    shuffle_context: bool = False

    alterations = ("ntp_weight", *NOISES)

    def __post_init__(self):
        for name in self.alterations:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"task.{name}={getattr(self, name)}: a number from 0 to 1")

    @property
    def answer_alphabet(self) -> Sequence[int]:
        """The tokens that noise puts in answers."""
        raise NotImplementedError

    @property
    def context_alphabet(self) -> Sequence[int]:
        """The tokens that noise puts in contexts."""
        raise NotImplementedError

    def draw(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` clean sequences of a split: targets are the tokens that follow, weights 1 on answers and 0 elsewhere."""
        raise NotImplementedError

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`draw`, and in `info` what `alter` needs: `noise_seed_B` (int32), and `shuffled_BxL` if context is shuffled.

        Raises:
          ValueError: as `draw`.
        """
        batch = self.draw(key, n, split, hparams)
        noise_key = rng.named(key, "noise")
        # Four bytes a sequence, where the noise itself is as large as the batch; rows that share data derive it once.
        info = {"noise_seed_B": (jax.random.bits(noise_key, (n,), jnp.uint32) >> 1).astype(jnp.int32)}
        if self.shuffle_context:
            info["shuffled_BxL"] = shuffled(rng.named(key, "shuffle"), batch.targets_BxL, context(batch))
        return batch._replace(info=batch.info | info)

    def alter(self, batch: Batch, hparams: Mapping) -> Batch:
        """A batch as drawn -> what a row is trained on: weights, answers, contexts by the row's three numbers."""
        if not self._asks(self.alterations, hparams):
            return batch  # nothing in the program either
        is_answer_BxL, is_context_BxL = batch.weights_BxL > 0, context(batch)
        tokens_BxL, targets_BxL = batch.tokens_BxL, batch.targets_BxL
        if self.shuffle_context:
            targets_BxL = jnp.where(is_context_BxL, batch.info["shuffled_BxL"], targets_BxL)
        if self._asks(NOISES, hparams):
            first_Bx1 = jnp.ones_like(is_context_BxL[:, :1])
            is_answer_BxM = jnp.concatenate([~first_Bx1, is_answer_BxL], axis=1)
            is_context_BxM = jnp.concatenate([first_Bx1, is_context_BxL], axis=1)
            hit_BxM, noise_BxM = self._noise(batch.info["noise_seed_B"], is_answer_BxM, is_context_BxM, hparams)
            # Twice the same noise: a token that is replaced is read as it was to be said.
            tokens_BxL = jnp.where(hit_BxM[:, :-1], noise_BxM[:, :-1], tokens_BxL)
            targets_BxL = jnp.where(hit_BxM[:, 1:], noise_BxM[:, 1:], targets_BxL)
        numbers_3 = jnp.stack([self._number(name, hparams) for name in self.alterations])
        answers = jnp.where(jnp.all((numbers_3 >= 0) & (numbers_3 <= 1)), jnp.float32(1), jnp.nan)
        weights_BxL = answers * batch.weights_BxL + numbers_3[0] * is_context_BxL.astype(jnp.float32)
        return Batch(tokens_BxL, targets_BxL, weights_BxL, batch.info)

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy` (`exact` answers) and `token_accuracy` (share of answer tokens), of a batch as drawn.

        Raises:
          ValueError: as `right`.
        """
        right_BxL = right(logits_BxQxV, batch).astype(batch.weights_BxL.dtype)
        return {
            "accuracy": jnp.mean(exact(logits_BxQxV, batch)),
            "token_accuracy": jnp.sum(right_BxL * batch.weights_BxL) / jnp.sum(batch.weights_BxL),
        }

    def _asks(self, names: Sequence[str], hparams: Mapping) -> bool:
        """Whether a row varies one of these, or the task sets it."""
        return any(name in hparams or getattr(self, name) for name in names)

    def _number(self, name: str, hparams: Mapping):
        return jnp.asarray(hparams.get(name, getattr(self, name)), jnp.float32)

    def _noise(self, seed_B, is_answer_BxM, is_context_BxM, hparams: Mapping):
        """Which of the tokens x_0 ... x_L are replaced, and by what."""
        length = is_answer_BxM.shape[1]

        def of_sequence(seed):
            # One draw for all: each costs seconds of compilation. The last number is that of the answer as a whole.
            return jax.random.bits(rng.key(seed, "noise"), (2, length + 1), jnp.uint32)

        bits_Bx2xN = jax.vmap(of_sequence)(seed_B)
        uniform_BxN = (bits_Bx2xN[:, 0] >> 8).astype(jnp.float32) * jnp.float32(2**-24)  # exact, and below 1
        hit_BxM = jnp.where(
            is_answer_BxM,
            uniform_BxN[:, -1:] < self._number("label_noise", hparams),
            is_context_BxM & (uniform_BxN[:, :-1] < self._number("context_noise", hparams)),
        )
        answer_BxM, context_BxM = (
            _pick(alphabet, bits_Bx2xN[:, 1, :-1]) for alphabet in (self.answer_alphabet, self.context_alphabet)
        )
        return hit_BxM, jnp.where(is_answer_BxM, answer_BxM, context_BxM)


def context(batch: Batch):
    """(B, L) bool: targets that are neither answer nor padding, of a batch as drawn."""
    return (batch.weights_BxL == 0) & (batch.targets_BxL != PAD)


def pack(sequence_BxM, is_answer_BxM, info: Mapping[str, jax.Array]) -> Batch:
    """The batch of sequences x_0 ... x_L (int32, M = L + 1, `PAD` after the end of each) and of which tokens answer.

    The first token is no target: an answer cannot begin there.
    """
    weights_BxL = is_answer_BxM[:, 1:].astype(jnp.float32)
    return Batch(sequence_BxM[:, :-1], sequence_BxM[:, 1:], weights_BxL, dict(info))


def padded(questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int):
    """Questions each followed by its answer as arrays for `pack`, on the host.

    Returns:
      sequences (int32) and which of their tokens answer (bool), both (N, length + 1).

    Raises:
      ValueError: one that is longer, an empty question or answer, or a `PAD` among the tokens.
    """
    sequence_NxM = np.full((len(questions), length + 1), PAD, np.int32)
    is_answer_NxM = np.zeros(sequence_NxM.shape, bool)
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        first, end = len(question), len(question) + len(answer)
        if end > length + 1:
            raise ValueError(f"sequence {i} has {end} tokens: at most task.length + 1 = {length + 1}")
        if not first or first == end:
            raise ValueError(f"sequence {i} has {first} tokens of question and {end - first} of answer: at least 1")
        sequence_NxM[i, :end] = [*question, *answer]
        if (sequence_NxM[i, :end] == PAD).any():
            raise ValueError(f"sequence {i} holds token {PAD}, which is padding: use other tokens")
        is_answer_NxM[i, first:end] = True
    return sequence_NxM, is_answer_NxM


def right(logits_BxLxV, batch: Batch):
    """(B, L) bool: where the likeliest token is the target.

    Raises:
      ValueError: logits at fewer positions than the batch has, among which some of an answer might be missing.
    """
    n_positions, length = logits_BxLxV.shape[1], batch.targets_BxL.shape[1]
    if n_positions != length:
        raise ValueError(
            f"logits at {n_positions} of {length} positions: answers may lie at any; use model.readout='all'"
        )
    return jnp.argmax(logits_BxLxV, axis=-1).astype(batch.targets_BxL.dtype) == batch.targets_BxL


def exact(logits_BxLxV, batch: Batch):
    """(B) float32: 1 where every token of the answer is right given the true ones before it, of a batch as drawn.

    Then, and only then, would greedy decoding have given that answer too.

    Raises:
      ValueError: as `right`.
    """
    return jnp.all(right(logits_BxLxV, batch) | (batch.weights_BxL == 0), axis=1).astype(jnp.float32)


def shuffled(key, value_BxL, may_move_BxL):
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
