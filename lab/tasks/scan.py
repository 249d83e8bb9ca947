"""SCAN: commands in simple English to sequences of actions, "jump left twice" -> "I_TURN_LEFT I_JUMP" twice over.

Lake & Baroni, "Generalization without Systematicity" (arXiv 1711.00350). Split `test` asks for what the variant held
out of training: nothing in particular (`simple`), a primitive seen alone only, inside of compositions
(`addprim_jump`, `addprim_turn_left`), or longer outputs (`length`). In the two `addprim` variants the primitive alone
is one training item in ten, repeated as the authors do.
"""

import dataclasses

from lab import limits
from lab.tasks import answers, seq2seq
from lab.tasks.task import Task
from lab.text import seq2seq_files
from lab.text.seq2seq_files import Pair, download, find_file, provenance, read_lines, sha256

VARIANTS = ("simple", "addprim_jump", "addprim_turn_left", "length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan(Task):
    """The task as a value.

    Attributes:
      path, hf_id, length, vocab_size, train_items: see `lab.tasks.seq2seq`.
      variant: one of `VARIANTS`; its files are `tasks_train_<variant>.txt` and `tasks_test_<variant>.txt`, on Hugging
        Face it is the configuration of a data set with the columns `commands` and `actions` (`scan`).
    """

    path: str
    hf_id: str
    length: int
    vocab_size: int
    train_items: int = 0
    variant: str

    splits = ("train", "test")
    kinds = kinds_of = ()
    has_answer, hparams, end = True, ("train_items",), seq2seq_files.END
    answer_alphabet, context_alphabet, longest_answer = map(
        property, (seq2seq.answer_alphabet, seq2seq.context_alphabet, seq2seq.longest_answer)
    )
    sample, files = seq2seq.sample, seq2seq.files
    score = staticmethod(answers.score)

    def __post_init__(self):
        seq2seq.check(self)
        limits.check("task", self, choices={"variant": VARIANTS})

    def read(self, split: str) -> tuple[list[Pair], dict]:
        """The pairs of a split, in the order of the file, and what to tell of it."""
        if self.hf_id:
            rows = download(self.hf_id, self.variant, split, ("commands", "actions"))
            pairs = [Pair(tuple(command.split()), tuple(actions.split())) for command, actions in rows]
            return pairs, {"data set": self.hf_id, "sha256": sha256(pairs)}
        path = find_file(self.path, [f"tasks_{split}_{self.variant}.txt"])
        return [_pair(f"{path}: line {i}", line) for i, line in enumerate(read_lines(path), 1)], provenance(path)


def _pair(where: str, line: str) -> Pair:
    command, out, actions = line.partition(" OUT: ")
    if not (command.startswith("IN: ") and out and command[4:].split() and actions.split()):
        raise ValueError(f"{where} is {line[:60]!r}, where 'IN: <command> OUT: <actions>' is needed")
    return Pair(tuple(command[4:].split()), tuple(actions.split()))
