"""The published PrOntoQA and ProsQA questions, from JSON files (see `lab.text.question_files`).

Nothing is read when the task is made; files are read when the first batch is asked for, and kept for the life of the
process.
"""

import dataclasses
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits
from lab.tasks import answers
from lab.tasks.answers import pack
from lab.tasks.task import Batch, Task, check_split
from lab.text import question_files


@dataclasses.dataclass(frozen=True)
class QuestionFiles(Task):
    """The task as a value. Words are in lower case, and a concept is the same one in the plural: `wumpus es`.

    Attributes:
      path: a JSON list of items, plain, .gz or .xz.
      test_path: another one for split `test`; empty for `test_share`.
      test_share: share of the items of `path`, its last ones, that are split `test` and not trained on; 0 with a
        `test_path`.
      length: tokens of a sequence but for the answer; padded to it, at the end.
      vocab_size: at least one more than the files have words.
    """

    path: str
    test_path: str
    test_share: float
    length: int
    vocab_size: int

    has_answer = True
    splits = ("train", "test")

    def __post_init__(self):
        limits.check("task", self, bounds={"length": (1, None), "vocab_size": (2, None)})
        if not self.path:
            raise ValueError("task.path='': the path of a PrOntoQA or ProsQA file, --config.task.path=FILE")
        if not 0 <= self.test_share < 1:
            raise ValueError(f"task.test_share={self.test_share}: a share of the items, must lie in [0, 1)")
        if bool(self.test_path) == bool(self.test_share):
            raise ValueError(
                f"task.test_path={self.test_path!r}, task.test_share={self.test_share}: give one of them, and leave "
                "the other empty or 0"
            )

    @property
    def prepared(self) -> question_files.Prepared:
        """What the files hold.

        Raises:
          ValueError: as `lab.text.question_files.prepare`.
        """
        return question_files.prepare(self.path, self.test_path, self.test_share, self.length, self.vocab_size)

    @property
    def answer_alphabet(self) -> tuple[int, ...]:
        """The words that answer in the files."""
        tables = self.prepared.tables.values()
        return tuple(np.unique(np.concatenate([np.asarray(table.candidates_Nx2) for table in tables])).tolist())

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return tuple(range(1, self.prepared.tokenizer.vocab_size))

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` items of a split in random order, each as often as any, but for one: n = their number is the split.

        `info` has `item_B`, the place in the split, and `candidates_BxC`, the two words that could answer.

        Raises:
          ValueError: unknown split, or as `lab.text.question_files.prepare`.
        """
        check_split(self, split)
        table = self.prepared.tables[split]
        n_items = len(table.sequence_NxM)
        order_N = jax.random.permutation(key, jnp.arange(n_items, dtype=jnp.int32))
        item_B = jnp.tile(order_N, -(-n // n_items))[:n]
        info = {"item_B": item_B, "candidates_BxC": table.candidates_Nx2[item_B]}
        return pack(table.sequence_NxM[item_B], table.is_answer_NxM[item_B], info)

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """As `answers.score`, and `plausible`: share of answers that are one of the two that could be.

        Raises:
          ValueError: as `answers.score`.
        """
        return answers.score(logits_BxQxV, batch) | {"plausible": answers.plausible(logits_BxQxV, batch)}

    def decode(self, tokens) -> str:
        """A sequence as text for people."""
        return self.prepared.tokenizer.decode([token for token in tokens if token])

    def files(self) -> dict[str, bytes]:
        """`tokenizer.json`, and in `questions.json` the hash and the number of the items of each split."""
        questions = json.dumps(self.prepared.provenance, indent=1).encode()
        return {"tokenizer.json": self.prepared.tokenizer.to_bytes(), "questions.json": questions}
