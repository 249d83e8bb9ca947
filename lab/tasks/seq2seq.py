"""What the tasks that answer one sentence by another share: functions that they have as methods.

Nothing is read when a task is made. The pairs are read when the first batch is asked for, traced or not, and kept for
the life of the process.

Such a task has the method `read(split) -> (pairs, what to tell of them)`, `kinds`, names of kinds of items, `kinds_of`,
the splits whose batches say in `info["kind_B"]` which of them each item is, and the fields

  path: folder with the files, plain, .xz or .gz, or with folders that hold them; "" for `hf_id`.
  hf_id: data set on Hugging Face, "" for `path`.
  length: at most so many tokens of a sequence but for its last. Batches of a split are as long as the longest that
    it holds, and padded at the end: where splits differ, training does not pay for the longest of all.
  vocab_size: at least four more than the training items have words.
  train_items: train on the first n items of one random order, so that a smaller set lies in every larger one; 0
    for all. A grid may vary it (with config.train_size=0). A row that asks for more than there are is refused where
    training starts, and gets weights of NaN elsewhere.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from lab import limits
from lab.objective import PAD
from lab.tasks.answers import pack
from lab.tasks.task import Batch, check_split
from lab.text import seq2seq_files
from lab.text.seq2seq_files import END, NAMES, Prepared


def check(task) -> None:
    """
    Raises:
      ValueError: impossible values of the fields above.
    """
    if bool(task.path) == bool(task.hf_id):
        raise ValueError(f"task.path={task.path!r}, task.hf_id={task.hf_id!r}: give one of them, and '' for the other")
    bounds = {"length": (2, None), "vocab_size": (len(NAMES), None), "train_items": (0, None)}
    limits.check("task", task, bounds=bounds)


def prepared(task) -> Prepared:
    """What a task reads; read once for all tasks that differ in training only.

    Raises:
      ValueError: files that are missing or damaged, sequences that are longer than `length`, more words than
        `vocab_size` has room for, a data set that cannot be had.
    """
    return _prepared(dataclasses.replace(task, train_items=0))


def answer_alphabet(task) -> tuple[int, ...]:
    return prepared(task).target


def context_alphabet(task) -> tuple[int, ...]:
    return prepared(task).source


def longest_answer(task) -> int:
    return prepared(task).longest_answer


def sample(task, key, n: int, split: str, hparams: Mapping) -> Batch:
    """`n` sequences of a split, int32 tokens of shape (n, longest of the split).

    Training items are drawn with replacement. Of other splits each item comes as often as any, but for one: n =
    their number is the whole split.

    Raises:
      ValueError: unknown split, more `train_items` than there are, or as `prepared`.
    """
    check_split(task, split)
    sequence_NxM, first_N, kind_N = prepared(task).tables[split]
    n_items = len(first_N)
    sound = jnp.float32(1)
    if split == "train":
        if task.train_items > n_items:
            raise ValueError(f"task.train_items={task.train_items}: there are {n_items} training items")
        wanted = jnp.asarray(hparams.get("train_items", task.train_items)).astype(jnp.int32)
        sound = jnp.where((wanted >= 0) & (wanted <= n_items), sound, jnp.nan)
        most = jnp.where(wanted == 0, n_items, jnp.clip(wanted, 1, n_items))
        index_B = jax.random.randint(key, (n,), 0, most, jnp.int32)
    else:
        order_N = jax.random.permutation(key, jnp.arange(n_items, dtype=jnp.int32))
        index_B = jnp.tile(order_N, -(-n // n_items))[:n]
    sequence_BxM = sequence_NxM[index_B].astype(jnp.int32)
    places_M = jnp.arange(sequence_BxM.shape[1], dtype=jnp.int32)
    answers_BxM = places_M[None] >= first_N[index_B].astype(jnp.int32)[:, None]
    info = {"kind_B": kind_N[index_B].astype(jnp.int32)} if split in task.kinds_of else {}
    batch = pack(sequence_BxM, answers_BxM & (sequence_BxM != PAD), info)
    return batch._replace(weights_BxL=sound * batch.weights_BxL)


def files(task) -> dict[str, bytes]:
    """`data.json`: hashes of what was read and of its tokens, number of items, longest sequence, unknown words."""
    return {"data.json": json.dumps(prepared(task).provenance, indent=1).encode()}


def text(task, token_N: Sequence[int]) -> str:
    """The words of some tokens, up to `<eos>` or what pads."""
    names = prepared(task).names
    ends = [i for i, token in enumerate(token_N) if token in (END, PAD) or token < 0]
    return " ".join(names[int(token)] for token in token_N[: min(ends, default=len(token_N))])


@functools.cache
def _prepared(task) -> Prepared:
    read = {split: task.read(split) for split in task.splits}
    return seq2seq_files.prepare(read, task.length, task.vocab_size, task.kinds)
