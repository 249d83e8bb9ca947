"""Tasks of inputs and targets, of any shape: drawn by a function, or of a table of examples; losses of one's own.

| inputs              | targets            | loss and score                                                     |
|---|---|---|
| whole numbers (B, L) | whole (B,)        | cross-entropy of the last position or of outputs (B, V), `accuracy` |
| whole numbers (B, L) | whole (B, L)      | cross-entropy of every position, `accuracy`                        |
| any other arrays    | whole (B,)         | cross-entropy of outputs (B, classes), `accuracy`                  |
| any other arrays    | floats (B, ...)    | mean squared error of outputs of the same shape, `r2`              |

`r2` is 1 - mean squared error / variance of the targets: 0 for their mean, 1 for no error.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lab import losses, tables
from lab.tasks import answers
from lab.tasks.task import Batch, Task, check_split

INPUTS, TARGETS = "inputs", "targets"
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Pairs(Task):
    """Inputs and targets; `draw_pairs(key, n, split)` gives `n` of them, arrays with leading axis `n`."""

    def draw_pairs(self, key, n: int, split: str):
        raise NotImplementedError

    @functools.cached_property
    def _shapes(self) -> tuple:
        """Of a batch of one."""
        drawn = jax.eval_shape(lambda: self.draw_pairs(jax.random.key(0), 1, "train"))
        if not isinstance(drawn, tuple) or len(drawn) != 2 or not all(hasattr(part, "shape") for part in drawn):
            raise ValueError(f"{self._name}: expected a pair of arrays (inputs, targets)")
        for part, what in zip(drawn, (INPUTS, TARGETS), strict=True):
            if part.shape[:1] != (1,):
                raise ValueError(f"{self._name}: n=1 gives {what} of shape {part.shape}, expected a leading axis of 1")
        return drawn

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def inputs(self) -> str:
        given = self._shapes[0]
        return "tokens" if len(given.shape) == 2 and _is_whole(given.dtype) else "arrays"

    @property
    def length(self) -> int:
        return self._shapes[0].shape[1] if self.inputs == "tokens" else 0

    @property
    def classifies(self) -> bool:
        return self.cross_entropy and len(self._shapes[1].shape) == 1

    @property
    def cross_entropy(self) -> bool:
        return _is_whole(self._shapes[1].dtype)

    def example(self):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _narrow(leaf.dtype)), self._shapes[0])

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` pairs of a split as a batch: of whole-numbered targets one a position, float32 and int32.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        inputs, targets = (part.astype(_narrow(part.dtype)) for part in self.draw_pairs(key, n, split))
        if not self.cross_entropy:
            return Batch(inputs, targets, jnp.ones((n,), jnp.float32), {})
        targets_BxQ = targets[:, None] if targets.ndim == 1 else targets
        if self.inputs == "tokens" and targets.ndim == 1:  # said at the last position; what comes before has no weight
            return answers.at_the_end(inputs, targets, {})
        return Batch(inputs, targets_BxQ, jnp.ones(targets_BxQ.shape, jnp.float32), {})

    def mean_loss(self, outputs, batch: Batch) -> jax.Array:
        self._check(outputs, batch)
        return super().mean_loss(outputs, batch) if self.cross_entropy else _squared_error(outputs, batch.targets_BxL)

    def score(self, outputs, batch: Batch) -> dict[str, jax.Array]:
        self._check(outputs, batch)
        if not self.cross_entropy:
            spread = jnp.mean(jnp.square(batch.targets_BxL - jnp.mean(batch.targets_BxL, axis=0, keepdims=True)))
            return {"r2": 1 - _squared_error(outputs, batch.targets_BxL) / spread}
        logits_BxQxV = losses.at_positions(outputs)
        targets_BxQ, weights_BxQ = (
            losses.last(values, logits_BxQxV.shape[1]) for values in (batch.targets_BxL, batch.weights_BxL)
        )
        right_BxQ = jnp.argmax(logits_BxQxV, axis=-1).astype(jnp.int32) == targets_BxQ
        return {"accuracy": jnp.sum(weights_BxQ, where=right_BxQ) / jnp.sum(weights_BxQ)}

    def _check(self, outputs, batch: Batch) -> None:
        shape, wanted = jnp.shape(outputs), batch.targets_BxL.shape
        if self.inputs == "tokens":
            fits = len(shape) == 3 or (self.classifies and len(shape) == 2)
        else:
            fits = len(shape) == (2 if wanted[1:] == (1,) else 3)
        if not (fits if self.cross_entropy else shape == wanted):
            classes = f"{wanted[:1] if wanted[1:] == (1,) else wanted} and one axis more, of classes"
            raise ValueError(
                f"{self._name}: the model returns {shape}; expected {classes if self.cross_entropy else wanted}"
            )


@dataclasses.dataclass(frozen=True)
class Functions(Pairs):
    """Pairs that a function draws, of endless number.

    Attributes:
      draw: `(key, n, split) -> (inputs, targets)`, pure JAX; one that takes no `split`, nor a third argument without
        a default, draws every split alike.
      scores: `(outputs, targets) -> name -> number`, or one number, `score`; None: as the module's table says.
      splits: `train`, and those that evaluation reports.
      vocab_size: of tokens: ids are below it.
    """

    draw: Callable
    scores: Callable | None = None
    splits: tuple[str, ...] = ("train", "test")
    vocab_size: int = 0

    def __post_init__(self):
        if self.inputs == "tokens" and self.vocab_size < 1:
            raise ValueError(f"task.vocab_size={self.vocab_size}: how many tokens are there? Inputs are whole numbers")

    @property
    def _name(self) -> str:
        return getattr(self.draw, "__name__", "draw")

    def draw_pairs(self, key, n: int, split: str):
        given = inspect.signature(self.draw).parameters
        if "split" in given and "split" not in getattr(self.draw, "keywords", ()):
            return self.draw(key, n, split=split)
        wanted = [p for p in given.values() if p.default is p.empty and p.kind in POSITIONAL]
        return self.draw(key, n, split) if len(wanted) > 2 else self.draw(key, n)

    def score(self, outputs, batch: Batch) -> dict[str, jax.Array]:
        if self.scores is None:
            return super().score(outputs, batch)
        return _numbers("score", self.scores(*_as_given(outputs, batch)))


@dataclasses.dataclass(frozen=True)
class Examples(Pairs):
    """Pairs of a table, by its hash; see `lab.tables`. A split's examples are drawn without replacement, all of them
    before one comes again.

    Attributes:
      sha256: of a table of arrays `<split>.inputs` and `<split>.targets`.
    """

    sha256: str

    @functools.cached_property
    def splits(self) -> tuple[str, ...]:
        names = {name.rpartition(".")[0] for name in tables.get(self.sha256)}
        return ("train", *sorted(names - {"train"}))

    @functools.cached_property
    def vocab_size(self) -> int:
        """Largest whole number of the table, and one more."""
        table = tables.get(self.sha256)
        whole = [array for array in table.values() if _is_whole(array.dtype)]
        return 1 + max(int(array.max()) for array in whole) if whole and self.inputs == "tokens" else 0

    def size(self, split: str) -> int:
        """How many examples a split has."""
        return len(tables.get(self.sha256)[f"{split}.{INPUTS}"])

    def draw_pairs(self, key, n: int, split: str):
        table, size = tables.get(self.sha256), self.size(split)
        order = jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32))
        index_B = order[jnp.arange(n, dtype=jnp.int32) % size]
        return tuple(jnp.asarray(table[f"{split}.{part}"])[index_B] for part in (INPUTS, TARGETS))

    def files(self) -> dict[str, bytes]:
        return tables.files(tables.get(self.sha256))


@dataclasses.dataclass(frozen=True)
class Scored(Task):
    """Another task, with a loss or scores of a user's own.

    Attributes:
      task: what draws the sequences. Its answer is no objective's any more, and no grid varies its fields.
      loss: `(outputs, targets) -> ` a number, or one an example; None: the task's own.
      metrics: name -> `(outputs, targets) -> ` a number, or one an example; beside the task's own scores.
    """

    task: Task
    loss: Callable | None = None
    metrics: tuple[tuple[str, Callable], ...] = ()

    inputs = property(lambda self: self.task.inputs)
    stream_only = property(lambda self: self.task.stream_only)
    vocab_size = property(lambda self: self.task.vocab_size)
    length = property(lambda self: self.task.length)
    classifies = property(lambda self: self.task.classifies)
    splits = property(lambda self: self.task.splits)
    coords = property(lambda self: self.task.coords)
    dims = property(lambda self: self.task.dims)
    cross_entropy = property(lambda self: self.loss is None and self.task.cross_entropy)

    def example(self):
        return self.task.example()

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        return self.task.sample(key, n, split, {})

    def mean_loss(self, outputs, batch: Batch) -> jax.Array:
        if self.loss is None:
            return self.task.mean_loss(outputs, batch)
        return _number("loss", self.loss(*_as_given(outputs, batch)))

    def score(self, outputs, batch: Batch) -> dict[str, jax.Array]:
        own = {name: _number(name, metric(*_as_given(outputs, batch))) for name, metric in self.metrics}
        return self.task.score(outputs, batch) | own

    def files(self) -> dict[str, bytes]:
        return self.task.files()


def _as_given(outputs, batch: Batch) -> tuple:
    """Outputs and targets as a user's function knows them: those of a classifier, also of tokens, (B, C) and (B,).

    Raises:
      ValueError: the same numbers in another shape, (B, 1) beside (B,), which would be broadcast to (B, B).
    """
    inputs, targets = batch.tokens_BxL, batch.targets_BxL
    of_tokens = getattr(inputs, "ndim", 0) == 2 and _is_whole(inputs.dtype)  # those that answer once have no positions
    if outputs.ndim == 2 and targets.ndim == 2 and (of_tokens or targets.shape[1] == 1) and _is_whole(targets.dtype):
        targets = targets[:, -1]
    shapes = outputs.shape, targets.shape
    if shapes[0] == (*shapes[1], 1) or shapes[1] == (*shapes[0], 1):
        raise ValueError(
            f"the model returns {shapes[0]} beside targets {shapes[1]}: they would be broadcast; expected "
            "the same shape"
        )
    return outputs, targets


def _numbers(what: str, given) -> dict[str, jax.Array]:
    return {k: _number(k, v) for k, v in given.items()} if isinstance(given, Mapping) else {what: _number(what, given)}


def _number(what: str, given) -> jax.Array:
    if not hasattr(given, "shape"):
        raise ValueError(f"{what}: returns a {type(given).__name__}, expected an array, a number or one an example")
    return jnp.mean(given.astype(jnp.float32))


def _squared_error(outputs, targets):
    return jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets))


def _narrow(dtype):
    return jnp.int32 if _is_whole(dtype) else jnp.float32


def _is_whole(dtype) -> bool:
    """Whether numbers are whole; yes and no are, 1 and 0."""
    return jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_
