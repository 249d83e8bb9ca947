"""Files of inputs and outputs, sentence by sentence: where they lie, and their pairs as sequences of tokens.

A pair becomes `input <sep> output <eos>`, its words parted by spaces; the output and its end are the answer.
Nothing is written where files lie.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab.text import decoding, hub, notes
from lab.text.sequences import pad
from lab.text.sources import expand
from lab.text.words import strip

NAMES = ("<pad>", "<unk>", "<sep>", "<eos>")  # tokens 0, 1, 2, 3; the words follow in alphabetical order
UNKNOWN, SEPARATOR, END = 1, 2, 3
ORDER = 0  # seed of the order of the training items: the first n of it are the subset of n
SUFFIXES = ("", ".xz", ".gz")


class Pair(NamedTuple):
    """An input, the right output, both as words, and what kind of item it is."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    kind: str = ""


class Table(NamedTuple):
    """N items on the device: sequences x_0 ... x_L, where the answer begins, index of the kind or -1."""

    sequence_NxM: jax.Array
    first_N: jax.Array
    kind_N: jax.Array


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that a task has read.

    Attributes:
      names: the word of every token, `NAMES` first; the words of the training items, of all of them whatever
        `train_items`, so that models of every data size have the same.
      source, target: tokens of the words that stand in training inputs, and in training outputs.
      longest_answer: tokens of the longest output of any split, with its `<eos>`.
      tables: by split; the training items in the order that subsets are the beginnings of.
      provenance: what was read, for people and for a comparison.
    """

    names: tuple[str, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]
    longest_answer: int
    tables: Mapping[str, Table]
    provenance: Mapping


def find_file(folder: str, names: Sequence[str]) -> Path:
    """The first of some files that a folder has, itself or in one of its folders, under its name or compressed.

    Raises:
      ValueError: no such folder, none of them, or the same file twice.
    """
    root = expand(folder)
    if not root.is_dir():
        raise ValueError(
            f"task.path={folder!r}: {'a file, where a folder is needed' if root.exists() else 'no such folder'}"
        )
    for name in names:
        paths = [path for where in ("", "*/") for suffix in SUFFIXES for path in root.glob(f"{where}{name}{suffix}")]
        if len(paths) > 1:
            raise ValueError(
                f"{root}: {name} lies there twice, as {paths[0].relative_to(root)} and {paths[1].relative_to(root)}"
            )
        if paths:
            return paths[0]
    held = sorted(path.name for path in root.iterdir())
    holds = ", ".join(held[:12]) + (", ..." if len(held) > 12 else "")
    raise ValueError(f"{root}: no {' or '.join(names)} (plain, .xz or .gz); it holds {holds or 'nothing'}")


def read_lines(path: Path, is_whole: Callable[[str, Sequence[str]], bool] = lambda line, before: False) -> list[str]:
    """The lines of a file, without their ends, and without blank lines after the last.

    Args:
      is_whole: whether a last line without an end, as editors leave it, is whole nevertheless, given the lines before.

    Raises:
      ValueError: as `decoding.blocks`, an empty file, or a last line that is not whole, as of a file cut off.
    """
    marks = Counter()
    *lines, rest = "".join(decoding.blocks(path, marks)).split("\n")
    for line in decoding.note(path, marks):
        notes.say(line)
    if strip(rest):
        if not is_whole(rest, lines):
            raise ValueError(f"{path}: line {len(lines) + 1} has no end: the file is truncated")
        lines.append(rest)
    while lines and not strip(lines[-1]):
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: empty")
    return lines


def provenance(path: Path) -> dict:
    """Name and hash of a file that was read."""
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def download(hf_id: str, config: str | None, split: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The columns of a split of a data set.

    Raises:
      ValueError: as `hub.load`, or no such column.
    """
    data = hub.load(hf_id, config, split, "a folder")
    missing = [name for name in columns if name not in data.column_names]
    if missing:
        raise ValueError(f"task.hf_id={hf_id!r}: no column {missing[0]!r} among {', '.join(data.column_names)}")
    return list(zip(*(data[name] for name in columns), strict=True))


def sha256(pairs: Sequence[Pair]) -> str:
    """Of the words and kinds, for data without a file."""
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def prepare(
    read: Mapping[str, tuple[Sequence[Pair], Mapping]], length: int, vocab_size: int, kinds: Sequence[str] = ()
) -> Prepared:
    """Tokens of the pairs of each split.

    Args:
      read: split -> its pairs in the order of the file, and what to tell of it; there is `train`.
      length: at most so many tokens of a sequence but for its last.
      vocab_size: at most so many words, with `NAMES`.
      kinds: the kinds of items that have an index.

    Raises:
      ValueError: sequences that are longer than `length`, more words than `vocab_size` has room for.
    """
    words = [{word for pair in read["train"][0] for word in getattr(pair, side)} for side in ("source", "target")]
    names = (*NAMES, *sorted((words[0] | words[1]) - set(NAMES)))
    if len(names) > vocab_size:
        raise ValueError(f"task.vocab_size={vocab_size}: the words of the training items need {len(names)}")
    ids = {name: token for token, name in enumerate(names)}
    tables, told, longest = {}, {}, 0
    for split, (pairs, source) in read.items():
        if split == "train":
            pairs = [pairs[i] for i in np.random.default_rng(ORDER).permutation(len(pairs))]
        _check_lengths(split, pairs, length)
        tables[split] = _table(pairs, ids, kinds, np.int16 if max(vocab_size, length + 1) < 2**15 else np.int32)
        told[split] = {**source, **_facts(pairs, ids, tables[split])}
        longest = max(longest, 1 + max(len(pair.target) for pair in pairs))
    source, target = (tuple(sorted(ids[word] for word in side - set(NAMES))) for side in words)
    return Prepared(names, source, target, longest, tables, {"words": len(names) - len(NAMES), "splits": told})


def _size(pair: Pair) -> int:
    return len(pair.source) + len(pair.target) + 2


def _check_lengths(split: str, pairs: Sequence[Pair], length: int) -> None:
    sizes = [_size(pair) for pair in pairs]
    n_long = sum(size > length + 1 for size in sizes)
    if n_long:
        raise ValueError(
            f"task.length={length}: {n_long} of {len(pairs)} sequences of split {split!r} are longer; the longest "
            f"has {max(sizes)} tokens and needs task.length={max(sizes) - 1}"
        )


def _table(pairs: Sequence[Pair], ids: Mapping[str, int], kinds: Sequence[str], dtype) -> Table:
    questions = [[*(ids.get(word, UNKNOWN) for word in pair.source), SEPARATOR] for pair in pairs]
    answers = [[*(ids.get(word, UNKNOWN) for word in pair.target), END] for pair in pairs]
    sequence_NxM = pad(questions, answers, max(map(_size, pairs)) - 1)[0].astype(dtype)
    first_N = np.array([len(question) for question in questions], dtype)
    kind_N = np.array([kinds.index(pair.kind) if pair.kind in kinds else -1 for pair in pairs], np.int16)
    with jax.ensure_compile_time_eval():  # kept beyond the trace that asks first
        return Table(*(jnp.asarray(array) for array in (sequence_NxM, first_N, kind_N)))


def _facts(pairs: Sequence[Pair], ids: Mapping[str, int], table: Table) -> dict:
    unknown = [[word for word in (*pair.source, *pair.target) if word not in ids] for pair in pairs]
    return {
        "items": len(pairs),
        "longest": max(map(_size, pairs)),
        "unknown_words": sorted({word for words in unknown for word in words}),
        "items_with_unknown_words": sum(map(bool, unknown)),
        "tokens_sha256": hashlib.sha256(np.asarray(table.sequence_NxM).astype("<i4").tobytes()).hexdigest(),
    }
