"""What tasks that answer one sentence by another share: pairs of sentences as text for a decoder.

A pair becomes `input <sep> output <eos>`, its words parted by spaces; the output and its end are the answer. Nothing is
read when a task is made. The pairs are read when the first batch is asked for, traced or not, and kept for the life of
the process; where they lie, nothing is written.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab.tasks import documents
from lab.tasks.answers import PAD, AnswerTask, pack, padded
from lab.tasks.batch import Batch

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
    """N items on the device: sequences as for `answers.pack`, where the answer begins, index of the kind or -1."""

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
      provenance: what `files` tells.
    """

    names: tuple[str, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]
    longest_answer: int
    tables: Mapping[str, Table]
    provenance: Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(AnswerTask):
    """Base of these tasks; a subclass says what is read, by `read`.

    Attributes:
      path: folder with the files, plain, .xz or .gz, or with folders that hold them; "" for `hf_id`.
      hf_id: data set on Hugging Face, "" for `path`.
      length: at most so many tokens of a sequence but for its last. Batches of a split are as long as the longest that
        it holds, and padded at the end: where splits differ, training does not pay for the longest of all.
      vocab_size: at least four more than the training items have words.
      train_items: train on the first n items of one random order, so that a smaller set lies in every larger one; 0
        for all. A grid may vary it (with config.train_size=0). A row that asks for more than there are is refused where
        training starts, and gets weights of NaN elsewhere.
    """

    path: str
    hf_id: str
    length: int
    vocab_size: int
    train_items: int = 0

    end = END
    hparams = ("train_items",)
    kinds = ()  # names of the kinds of items
    kinds_of = ()  # the splits whose batches say in `info["kind_B"]` which of them each item is

    def __post_init__(self):
        super().__post_init__()
        if bool(self.path) == bool(self.hf_id):
            raise ValueError(
                f"task.path={self.path!r}, task.hf_id={self.hf_id!r}: give one of them, and '' for the other"
            )
        if self.length < 2:
            raise ValueError(f"task.length={self.length}: must be at least 2")
        if self.train_items < 0:
            raise ValueError(f"task.train_items={self.train_items}: a number of items, or 0 for all")

    def read(self, split: str) -> tuple[list[Pair], dict]:
        """The pairs of a split, in the order of the file, and what to tell of it."""
        raise NotImplementedError

    @property
    def answer_alphabet(self) -> tuple[int, ...]:
        return prepared(self).target

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return prepared(self).source

    @property
    def longest_answer(self) -> int:
        return prepared(self).longest_answer

    def draw(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences of a split, int32 tokens of shape (n, longest of the split).

        Training items are drawn with replacement. Of other splits each item comes as often as any, but for one: n =
        their number is the whole split.

        Raises:
          ValueError: unknown split, more `train_items` than there are, or as `prepared`.
        """
        if split not in self.splits:
            raise ValueError(f"split {split!r}: one of {', '.join(self.splits)}")
        sequence_NxM, first_N, kind_N = prepared(self).tables[split]
        n_items = len(first_N)
        sound = jnp.float32(1)
        if split == "train":
            if self.train_items > n_items:
                raise ValueError(f"task.train_items={self.train_items}: there are {n_items} training items")
            wanted = jnp.asarray(hparams.get("train_items", self.train_items)).astype(jnp.int32)
            sound = jnp.where((wanted >= 0) & (wanted <= n_items), sound, jnp.nan)
            most = jnp.where(wanted == 0, n_items, jnp.clip(wanted, 1, n_items))
            index_B = jax.random.randint(key, (n,), 0, most, jnp.int32)
        else:
            index_B = jnp.tile(jax.random.permutation(key, n_items), -(-n // n_items))[:n]
        sequence_BxM = sequence_NxM[index_B].astype(jnp.int32)
        places_M = jnp.arange(sequence_BxM.shape[1], dtype=jnp.int32)
        answers_BxM = places_M[None] >= first_N[index_B].astype(jnp.int32)[:, None]
        info = {"kind_B": kind_N[index_B].astype(jnp.int32)} if split in self.kinds_of else {}
        batch = pack(sequence_BxM, answers_BxM & (sequence_BxM != PAD), info)
        return batch._replace(weights_BxL=sound * batch.weights_BxL)

    def files(self) -> dict[str, bytes]:
        """`data.json`: hashes of what was read and of its tokens, number of items, longest sequence, unknown words."""
        return {"data.json": json.dumps(prepared(self).provenance, indent=1).encode()}


def prepared(task: Translation) -> Prepared:
    """What a task reads; read once for all tasks that differ in training only.

    Raises:
      ValueError: files that are missing or damaged, sequences that are longer than `length`, more words than
        `vocab_size` has room for, a data set that cannot be had.
    """
    altered = {field.name: field.default for field in dataclasses.fields(AnswerTask)}
    return _prepared(dataclasses.replace(task, train_items=0, **altered))


def text(task: Translation, token_N: Sequence[int]) -> str:
    """The words of some tokens, up to `<eos>` or what pads."""
    names = prepared(task).names
    ends = [i for i, token in enumerate(token_N) if token in (END, PAD) or token < 0]
    return " ".join(names[int(token)] for token in token_N[: min(ends, default=len(token_N))])


def found(folder: str, names: Sequence[str]) -> Path:
    """The first of some files that a folder has, itself or in one of its folders, under its name or compressed.

    Raises:
      ValueError: no such folder, none of them, or the same file twice.
    """
    root = Path(folder).expanduser()
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


def lines(path: Path) -> list[str]:
    """The lines of a file, without their ends.

    Raises:
      ValueError: as `documents.blocks`, an empty file, or a last line without an end, as of a file cut off.
    """
    *whole, rest = "".join(documents.blocks(path)).split("\n")
    if rest:
        raise ValueError(f"{path}: line {len(whole) + 1} has no end: the file is truncated")
    if not whole:
        raise ValueError(f"{path}: empty")
    return whole


def told(path: Path) -> dict:
    """Name and hash of a file that was read."""
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def downloaded(hf_id: str, config: str | None, split: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The columns of a split of a data set, by Hugging Face `datasets` (extra `text`), which keeps what it downloads.

    Raises:
      ValueError: the package is missing; no such data set, configuration, split or column; no network.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("task.hf_id needs the package datasets: pip install 'gammalab[text]'") from error
    try:
        data = datasets.load_dataset(hf_id, config, split=split)
    except Exception as error:  # network, HTTP, a wrong name, a file that cannot be parsed: all of them its own kinds
        reason = f"{type(error).__name__}: {(str(error).strip() or 'nothing more is said').splitlines()[0]}"
        raise ValueError(
            f"task.hf_id={hf_id!r}: its split {split!r} cannot be had ({reason}); offline, give a folder as task.path"
        ) from error
    missing = [name for name in columns if name not in data.column_names]
    if missing:
        raise ValueError(f"task.hf_id={hf_id!r}: no column {missing[0]!r} among {', '.join(data.column_names)}")
    return list(zip(*(data[name] for name in columns), strict=True))


def hashed(pairs: Sequence[Pair]) -> str:
    """Of the words and kinds, for data without a file."""
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


@functools.cache
def _prepared(task: Translation) -> Prepared:
    read = {split: task.read(split) for split in task.splits}
    words = [{word for pair in read["train"][0] for word in getattr(pair, side)} for side in ("source", "target")]
    names = (*NAMES, *sorted((words[0] | words[1]) - set(NAMES)))
    if len(names) > task.vocab_size:
        raise ValueError(f"task.vocab_size={task.vocab_size}: the words of the training items need {len(names)}")
    ids = {name: token for token, name in enumerate(names)}
    tables, provenance, longest = {}, {}, 0
    for split, (pairs, source) in read.items():
        if split == "train":
            pairs = [pairs[i] for i in np.random.default_rng(ORDER).permutation(len(pairs))]
        tables[split], facts = _table(task, split, pairs, ids)
        provenance[split] = source | facts
        longest = max(longest, 1 + max(len(pair.target) for pair in pairs))
    source, target = (tuple(sorted(ids[word] for word in side - set(NAMES))) for side in words)
    return Prepared(names, source, target, longest, tables, {"words": len(names) - len(NAMES), "splits": provenance})


def _table(task: Translation, split: str, pairs: Sequence[Pair], ids: Mapping[str, int]) -> tuple[Table, dict]:
    sizes = [len(pair.source) + len(pair.target) + 2 for pair in pairs]
    n_long = sum(size > task.length + 1 for size in sizes)
    if n_long:
        raise ValueError(
            f"task.length={task.length}: {n_long} of {len(pairs)} sequences of split {split!r} are longer; the longest "
            f"has {max(sizes)} tokens and needs task.length={max(sizes) - 1}"
        )
    unknown = [[word for word in (*pair.source, *pair.target) if word not in ids] for pair in pairs]
    questions = [[*(ids.get(word, UNKNOWN) for word in pair.source), SEPARATOR] for pair in pairs]
    answers = [[*(ids.get(word, UNKNOWN) for word in pair.target), END] for pair in pairs]
    dtype = np.int16 if max(task.vocab_size, task.length + 1) < 2**15 else np.int32
    sequence_NxM = padded(questions, answers, max(sizes) - 1)[0].astype(dtype)
    first_N = np.array([len(question) for question in questions], dtype)
    kind_N = np.array([task.kinds.index(pair.kind) if pair.kind in task.kinds else -1 for pair in pairs], np.int16)
    facts = {
        "items": len(pairs),
        "longest": max(sizes),
        "unknown_words": sorted({word for words in unknown for word in words}),
        "items_with_unknown_words": sum(map(bool, unknown)),
        "tokens_sha256": hashlib.sha256(sequence_NxM.astype("<i4").tobytes()).hexdigest(),
    }
    with jax.ensure_compile_time_eval():  # kept beyond the trace that asks first
        return Table(*(jnp.asarray(array) for array in (sequence_NxM, first_N, kind_N))), facts
