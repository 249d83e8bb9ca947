"""The published PrOntoQA and ProsQA questions, from JSON files.

A PrOntoQA item is its context, its question, and `true` or `false`; a ProsQA item its question, `sally is a`, and one
of two concepts. One word answers; proofs are not read. ("Language Models Are Greedy Reasoners", arXiv 2210.01240, as
files with fields `context`, `question`, `options`, `answer`; "Training Large Language Models to Reason in a Continuous
Latent Space", arXiv 2412.06769, fields `question`, `answer`.)

Nothing is read when the task is made; files are read when the first batch is asked for, and kept for the life of the
process.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab.tasks import documents, tokenizer
from lab.tasks.answers import AnswerTask, pack, padded
from lab.tasks.batch import Batch
from lab.tasks.reasoning import at_end, plausible
from lab.tasks.tokenizer import Tokenizer

PADDING = "<pad>"  # token 0; the words follow in alphabetical order
TRUTH = ("true", "false")


class Question(NamedTuple):
    """What is asked, as words, the word that answers, and the two words that could."""

    asked: tuple[str, ...]
    answer: str
    candidates: tuple[str, str]


class Table(NamedTuple):
    """The N items of a split on the device: sequences as for `answers.pack`, which tokens answer, and which could."""

    sequence_NxM: jax.Array
    is_answer_NxM: jax.Array
    candidates_Nx2: jax.Array


class Prepared(NamedTuple):
    """All that a task has read: the tokenizer of all words of both files, tables by split, and what `files` tells."""

    tokenizer: Tokenizer
    tables: Mapping[str, Table]
    provenance: Mapping


@dataclasses.dataclass(frozen=True)
class QuestionFiles(AnswerTask):
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

    splits = ("train", "test")

    def __post_init__(self):
        super().__post_init__()
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
    def answer_alphabet(self) -> tuple[int, ...]:
        """The words that answer in the files."""
        tables = prepared(self).tables.values()
        return tuple(np.unique(np.concatenate([np.asarray(table.candidates_Nx2) for table in tables])).tolist())

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return tuple(range(1, prepared(self).tokenizer.vocab_size))

    def draw(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` items of a split in random order, each as often as any, but for one: n = their number is the split.

        `info` has `item_B`, the place in the split, and `candidates_BxC`, the two words that could answer.

        Raises:
          ValueError: unknown split, or as `prepared`.
        """
        if split not in self.splits:
            raise ValueError(f"split {split!r}: one of {', '.join(self.splits)}")
        table = prepared(self).tables[split]
        n_items = len(table.sequence_NxM)
        order_N = jax.random.permutation(key, jnp.arange(n_items, dtype=jnp.int32))
        item_B = jnp.tile(order_N, -(-n // n_items))[:n]
        info = {"item_B": item_B, "candidates_BxC": table.candidates_Nx2[item_B]}
        return pack(table.sequence_NxM[item_B], table.is_answer_NxM[item_B], info)

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """As `AnswerTask.score`, and `plausible`: share of answers that are one of the two that could be.

        Raises:
          ValueError: as `AnswerTask.score`.
        """
        predicted_BxL = jnp.argmax(logits_BxQxV, axis=-1).astype(jnp.int32)
        found = plausible(at_end(predicted_BxL, batch), batch.info["candidates_BxC"])
        return super().score(logits_BxQxV, batch) | {"plausible": found}

    def decode(self, tokens) -> str:
        """A sequence as text for people."""
        return prepared(self).tokenizer.decode([token for token in tokens if token])

    def files(self) -> dict[str, bytes]:
        """`tokenizer.json`, and in `questions.json` the hash and the number of the items of each split."""
        ready = prepared(self)
        said = json.dumps(ready.provenance, indent=1).encode()
        return {"tokenizer.json": ready.tokenizer.to_bytes(), "questions.json": said}


def prepared(task: QuestionFiles) -> Prepared:
    """What a task reads; once for all tasks that differ in training only.

    Raises:
      ValueError: a file that is missing, damaged or not of the known form, too few items for two splits, an item in
        both splits, a `length` or `vocab_size` that is too small.
    """
    return _prepared(task.path, task.test_path, task.test_share, task.length, task.vocab_size)


def read(path: str | Path) -> list[Question]:
    """The items of a file, in its order.

    Raises:
      ValueError: as `lab.tasks.documents.blocks`, no JSON list of items, or an item (counted from 0) without the fields
        of either kind or with an answer that its question does not offer.
    """
    file = Path(path).expanduser()
    try:
        items = json.loads("".join(documents.blocks(file)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error.msg} in line {error.lineno}, column {error.colno})") from error
    if not isinstance(items, list) or not items:
        raise ValueError(f"{file}: not a list of questions, but {type(items).__name__} {str(items)[:20]!r}")
    questions = []
    for i, item in enumerate(items):
        try:
            questions.append(_question(item))
        except ValueError as error:
            raise ValueError(f"{file}: item {i}: {error}") from error
    return questions


def split_words(text: str) -> list[str]:
    """Words and marks in lower case, the plural of concepts apart: `Dumpuses are shy.` -> `dumpus es are shy .`"""
    return re.findall(r"\w+pus(?=es\b)|\w+|[^\w\s]", text.lower())


def _question(item) -> Question:
    is_prontoqa = isinstance(item, dict) and isinstance(item.get("options"), list)
    names = ("question", "answer", *(("context",) if is_prontoqa else ()))
    if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in names):
        raise ValueError(
            "neither PrOntoQA, with texts context, question, answer and a list of options, nor ProsQA, with texts "
            "question, answer"
        )
    return _prontoqa(item) if is_prontoqa else _prosqa(item)


def _prontoqa(item: Mapping) -> Question:
    options = [re.fullmatch(r"(\w)\)\s*(\w+)", str(option)) for option in item["options"]]
    words = {match[1]: match[2].lower() for match in options if match}
    if sorted(words.values()) != sorted(TRUTH):
        raise ValueError(f"options are {item['options']!r}, not one true and one false")
    if item["answer"] not in words:
        raise ValueError(f"answer {item['answer']!r} is none of {', '.join(words)}")
    return Question(tuple(split_words(f"{item['context']} {item['question']}")), words[item["answer"]], TRUTH)


def _prosqa(item: Mapping) -> Question:
    asked = split_words(item["question"])
    offer = re.search(r"(?:^|\. )is (\w+) an? (\w+) or (\w+) \?$", " ".join(asked))
    if not offer:
        raise ValueError(f"the question ends in {item['question'][-30:]!r}, not in 'Is X a Y or Z?'")
    root, *candidates = offer.groups()
    answer = re.fullmatch(rf"{re.escape(root)} is an? (\w+) \.", " ".join(split_words(item["answer"])))
    if not answer or answer[1] not in candidates:
        raise ValueError(f"answer {item['answer']!r} is neither of those in '{offer[0].removeprefix('. ')}'")
    return Question((*asked, root, "is", "a"), answer[1], tuple(candidates))


@functools.cache
def _prepared(path: str, test_path: str, test_share: float, length: int, vocab_size: int) -> Prepared:
    questions = _splits(path, test_path, test_share)
    every = [question for of_split in questions.values() for question in of_split]
    words = sorted({word for question in every for word in (*question.asked, *question.candidates)})
    if len(words) >= vocab_size:
        raise ValueError(f"task.vocab_size={vocab_size}: {path} has {len(words)} words, so at least {len(words) + 1}")
    longest = max(len(question.asked) for question in every)
    if longest > length:
        raise ValueError(f"task.length={length}: the longest question of {path} has {longest} tokens")
    encoder = tokenizer.words([PADDING, *words])
    tables = {split: _table(of_split, encoder, length) for split, of_split in questions.items()}
    provenance = {
        split: {"questions": len(of_split), "sha256": hashlib.sha256(json.dumps(of_split).encode()).hexdigest()}
        for split, of_split in questions.items()
    }
    return Prepared(encoder, tables, provenance)


def _splits(path: str, test_path: str, test_share: float) -> dict[str, list[Question]]:
    train = read(path)
    n_test = round(test_share * len(train))
    if test_share and not 0 < n_test < len(train):
        raise ValueError(f"task.test_share={test_share}: {n_test} of the {len(train)} items of {path} are split 'test'")
    test = train[len(train) - n_test :] if test_share else read(test_path)
    train = train[: len(train) - n_test]
    seen = {question.asked: i for i, question in enumerate(train)}
    for i, question in enumerate(test):
        if question.asked in seen:
            raise ValueError(
                f"item {i} of split 'test' is item {seen[question.asked]} of split 'train' of {path}: remove one"
            )
    return {"train": train, "test": test}


def _table(questions: Sequence[Question], encoder: Tokenizer, length: int) -> Table:
    asked = encoder.encode_all([" ".join(question.asked) for question in questions])
    answers = encoder.encode_all([question.answer for question in questions])
    candidates = encoder.encode_all([" ".join(question.candidates) for question in questions])
    with jax.ensure_compile_time_eval():  # kept beyond the trace that asks first
        sequence_NxM, is_answer_NxM = (jnp.asarray(part) for part in padded(asked, answers, length))
        return Table(sequence_NxM, is_answer_NxM, jnp.asarray(np.stack(candidates), jnp.int32))
