"""The published PrOntoQA and ProsQA questions, from JSON files.

A PrOntoQA item is its context, its question, and `true` or `false`; a ProsQA item its question, `sally is a`, and one
of two concepts. One word answers; proofs are not read. ("Language Models Are Greedy Reasoners", arXiv 2210.01240, as
files with fields `context`, `question`, `options`, `answer`; "Training Large Language Models to Reason in a Continuous
Latent Space", arXiv 2412.06769, fields `question`, `answer`.)
"""

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab.text import decoding, notes, tokenizer
from lab.text.sequences import pad
from lab.text.sources import expand
from lab.text.tokenizer import Tokenizer

PADDING = "<pad>"  # token 0; the words follow in alphabetical order
TRUTH = ("true", "false")


class Question(NamedTuple):
    """What is asked, as words, the word that answers, and the two words that could."""

    asked: tuple[str, ...]
    answer: str
    candidates: tuple[str, str]


class Table(NamedTuple):
    """The N items of a split on the device: sequences x_0 ... x_L, which tokens answer, and which could."""

    sequence_NxM: jax.Array
    is_answer_NxM: jax.Array
    candidates_Nx2: jax.Array


class Prepared(NamedTuple):
    """All that a task has read: the tokenizer of all words of both files, tables by split, and what was read."""

    tokenizer: Tokenizer
    tables: Mapping[str, Table]
    provenance: Mapping


@functools.cache
def prepare(path: str, test_path: str, test_share: float, length: int, vocab_size: int) -> Prepared:
    """Reads what `lab.tasks.QuestionFiles` describes by these; once in the life of the process.

    Raises:
      ValueError: a file that is missing, damaged or not of the known form, too few items for two splits, an item in
        both splits, a `length` or `vocab_size` that is too small.
    """
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


def read(path: str | Path) -> list[Question]:
    """The items of a file, in its order.

    Raises:
      ValueError: as `lab.text.decoding.blocks`, no JSON list of items, or an item (counted from 0) without the fields
        of either kind or with an answer that its question does not offer.
    """
    file, marks = expand(path), Counter()
    try:
        items = json.loads("".join(decoding.blocks(file, marks)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error.msg} in line {error.lineno}, column {error.colno})") from error
    for line in decoding.note(file, marks):
        notes.say(line)
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
        sequence_NxM, is_answer_NxM = (jnp.asarray(part) for part in pad(asked, answers, length))
        return Table(sequence_NxM, is_answer_NxM, jnp.asarray(np.stack(candidates), jnp.int32))
