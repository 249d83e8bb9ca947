"""Next-token prediction on real text: windows of one long array of tokens, random ones or each once.

Nothing is read when the task is made. The text is prepared (see `lab.text.corpus`) when the first batch is asked for,
traced or not, and kept for the life of the process.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits, losses
from lab.tasks.task import Batch, Task, check_split
from lab.text import corpus
from lab.text.corpus import SPLITS, Corpus
from lab.text.recipe import Recipe

LOSSES = ("last", "all")
WINDOWS = ("random", "packed")
BLOCK = 2**24  # tokens counted at once
IDENTITY = ("format", "sources", "separator", "tokenizer", "vocab_size", "valid_share", "vocabulary", "splits")


@dataclasses.dataclass(frozen=True)
class Text(Task):
    """The task as a value.

    Attributes:
      path, hf_id, separator, tokenizer, vocab_size, valid_share, valid_path, column: see `lab.text.recipe.Recipe`.
      length: tokens of a window.
      loss: `last`: the token after the window is predicted, `all`: every next token.
      windows: `random`: they start anywhere; `packed`: the text is cut into windows, one behind the other, and those
        drawn at once are distinct. A finite training set of packed windows is one pass over so much text, see
        `n_windows`; and evaluation says how certain its loss is.
    """

    path: str
    hf_id: str
    separator: str
    tokenizer: str
    vocab_size: int
    length: int
    loss: str
    valid_share: float
    valid_path: str
    column: str = "text"
    windows: str = "random"
    splits = SPLITS

    def __post_init__(self):
        limits.check("task", self, choices={"loss": LOSSES, "windows": WINDOWS}, bounds={"length": (1, None)})
        self.recipe  # noqa: B018  refuses what cannot be

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)})

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` windows of the split, each place as likely; documents follow one another in them.

        Raises:
          ValueError: unknown split, a split shorter than a window or of fewer packed ones than `n`, or as
            `lab.text.corpus.prepare`.
        """
        check_split(self, split)
        token_N = _on_device(self, split)
        if self.windows == "random":
            start_B = jax.random.randint(key, (n,), 0, token_N.size - self.length, jnp.int32)
        else:
            start_B = self.length * jax.random.permutation(key, jnp.arange(self._enough(n, split), dtype=jnp.int32))[:n]
        place_BxL = start_B[:, None] + jnp.arange(self.length + 1, dtype=jnp.int32)[None]
        window_BxL = token_N[place_BxL].astype(jnp.int32)
        weights_BxL = jnp.ones((n, self.length), jnp.float32)
        if self.loss == "last":
            weights_BxL = weights_BxL.at[:, :-1].set(0.0)
        return Batch(window_BxL[:, :-1], window_BxL[:, 1:], weights_BxL, {})

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """At the positions that count: `accuracy`, and `over_unigram` in nats.

        The latter is the loss minus that of always answering with the frequencies of the training tokens (plus 1/2
        each), on the same targets: 0 on the plateau at the unigram entropy, negative once the context is used. Of
        packed windows also `loss_error`, the standard error of the loss: they do not overlap, so they are nearly
        independent.
        """
        targets_BxQ, weights_BxQ = (
            losses.last(values_BxL, logits_BxQxV.shape[1]) for values_BxL in (batch.targets_BxL, batch.weights_BxL)
        )
        count_V = frequencies(self) + 0.5
        unigram_V = jnp.asarray(-np.log(count_V / count_V.sum()), weights_BxQ.dtype)
        sum_nll, sum_weights = losses.cross_entropy(logits_BxQxV, batch.targets_BxL, batch.weights_BxL)
        correct_BxQ = jnp.argmax(logits_BxQxV, axis=-1).astype(targets_BxQ.dtype) == targets_BxQ
        sum_unigram = jnp.sum(weights_BxQ * unigram_V[targets_BxQ])
        error = {"loss_error": _standard_error(logits_BxQxV, batch)} if self.windows == "packed" else {}
        return {
            "accuracy": jnp.sum(weights_BxQ * correct_BxQ.astype(weights_BxQ.dtype)) / sum_weights,
            "over_unigram": (sum_nll - sum_unigram.astype(sum_nll.dtype)) / sum_weights,
        } | error

    def files(self) -> dict[str, bytes]:
        """`tokenizer.json`, and in `corpus.json` the hashes of the text and of its tokens; not where the text lies."""
        prepared = _prepared(self.recipe)
        said = {name: prepared.provenance[name] for name in IDENTITY}
        return {"tokenizer.json": prepared.tokenizer.to_bytes(), "corpus.json": json.dumps(said, indent=1).encode()}

    def _enough(self, n: int, split: str) -> int:
        """How many packed windows a split has.

        Raises:
          ValueError: fewer than `n`.
        """
        there = n_windows(self, split)
        if n > there:
            option = "train_size" if split == "train" else "eval_size"
            again = ", which trains on them again and again" if split == "train" else ""
            raise ValueError(
                f"{option}={n}: {self.path or self.hf_id} has {there} windows of {self.length} tokens in split "
                f"{split!r}; give a longer text, or --config.{option}={there}{again}"
            )
        return there


def _standard_error(logits_BxQxV, batch: Batch) -> jax.Array:
    """Of the mean loss over windows, which all weigh the same; NaN of a single one."""

    def loss_of(logits_QxV, targets_L, weights_L):
        sum_nll, sum_weights = losses.cross_entropy(logits_QxV[None], targets_L[None], weights_L[None])
        return sum_nll / sum_weights

    loss_B = jax.vmap(loss_of)(losses.at_positions(logits_BxQxV), batch.targets_BxL, batch.weights_BxL)
    return jnp.std(loss_B, ddof=1) / jnp.sqrt(jnp.asarray(loss_B.size, loss_B.dtype))


def n_windows(task: Text, split: str) -> int:
    """How many windows of `task.length` tokens, and the token behind each, lie in a split without overlap.

    Raises:
      ValueError: as `lab.text.corpus.prepare`.
    """
    return (prepared(task).tokens[split].size - 1) // task.length


def prepared(task: Text) -> Corpus:
    """The text of a task: tokens, tokenizer, provenance.

    Raises:
      ValueError: as `lab.text.corpus.prepare`.
    """
    return _prepared(task.recipe)


@functools.cache
def frequencies(task: Text) -> np.ndarray:
    """How often each token stands in split `train`: int64, (vocab_size,); not to be written to."""
    token_N = prepared(task).tokens["train"]
    count_V = np.zeros(task.vocab_size, np.int64)
    for first in range(0, token_N.size, BLOCK):
        count_V += np.bincount(token_N[first : first + BLOCK], minlength=task.vocab_size)
    count_V.flags.writeable = False
    return count_V


@functools.cache
def bigram_entropy(task: Text) -> np.ndarray:
    """Entropy in nats of the token that follows each token in split `train`: float64, (vocab_size,); not to be written.

    The plug-in estimate: of tokens that are seen a few times it is too small. NaN for those that nothing follows.
    """
    token_N, n = prepared(task).tokens["train"], task.vocab_size
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for first in range(0, token_N.size - 1, BLOCK):
        block_N = np.asarray(token_N[first : first + BLOCK + 1], np.int64)
        found, count = np.unique(block_N[:-1] * n + block_N[1:], return_counts=True)
        pairs, place = np.unique(np.concatenate([pairs, found]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, count])).astype(np.int64)
    total_V = np.bincount(pairs // n, counts, n)
    share = counts / total_V[pairs // n]
    entropy_V = np.where(total_V > 0, np.bincount(pairs // n, -share * np.log(share), n), np.nan)
    entropy_V.flags.writeable = False
    return entropy_V


def by_openness(task: Text, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups of tokens by `bigram_entropy`, of about the same share of split `train` each.

    A token is in one group, so few tokens, such as letters, make uneven ones. One that nothing follows is in the last.

    Returns:
      The group of every token, int32, (vocab_size,), 0 where the next one is most determined; the mean entropy of each
      group in nats, float64, (n_groups,).
    """
    entropy_V, count_V = bigram_entropy(task), frequencies(task)
    order_V = np.argsort(np.where(np.isnan(entropy_V), np.inf, entropy_V), kind="stable")
    below_V = np.cumsum(count_V[order_V]) - 0.5 * count_V[order_V]
    group_V = np.empty(len(order_V), np.int32)
    group_V[order_V] = np.minimum(n_groups * below_V / count_V.sum(), n_groups - 1).astype(np.int32)
    known_V = np.nan_to_num(entropy_V) * count_V
    mass_G, held_G = (np.bincount(group_V, of_V, n_groups) for of_V in (known_V, count_V))
    return group_V, mass_G / np.maximum(held_G, 1)


def windows_ending_in(task: Text, key, token_I, n: int, split: str) -> np.ndarray:
    """For each token, `n` windows whose last token it is, drawn with replacement among all that there are.

    What the paper's A[i, k] is a mean over: attention given that the query token is i (arXiv 2605.01199).

    Returns:
      tokens, int32, (I, n, length).

    Raises:
      ValueError: a token that ends no window of the split.
    """
    token_N = prepared(task).tokens[split]
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # on the host, where the text lies
    windows = []
    for token in np.asarray(token_I):
        last_M = np.flatnonzero(token_N[task.length - 1 :] == token)
        if not last_M.size:
            raise ValueError(f"token {token}: ends no window of {task.length} tokens in split {split!r}")
        windows.append(draw.choice(last_M, n)[:, None] + np.arange(task.length)[None])
    return np.asarray(token_N[np.stack(windows)], np.int32)


_prepared = functools.cache(corpus.prepare)


@functools.cache
def _on_device(task: Text, split: str) -> jax.Array:
    """The tokens of a split, in as few bytes as on disk."""
    token_N = prepared(task).tokens[split]
    if not task.length < token_N.size < 2**31:
        raise ValueError(
            f"task.length={task.length}: {task.path or task.hf_id} has {token_N.size} tokens in split {split!r}; more "
            "than a window and fewer than 2^31 are needed"
        )
    with jax.ensure_compile_time_eval():  # kept beyond the trace that asks first
        return jnp.asarray(token_N)
