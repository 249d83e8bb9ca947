"""SCAN: commands in simple English to sequences of actions, "jump left twice" -> "I_TURN_LEFT I_JUMP" twice over.

Lake & Baroni, "Generalization without Systematicity" (arXiv 1711.00350). Split `test` asks for what the variant held
out of training: nothing in particular (`simple`), a primitive seen alone only, inside of compositions
(`addprim_jump`, `addprim_turn_left`), or longer outputs (`length`). In the two `addprim` variants the primitive alone
is one training item in ten, repeated as the authors do.
"""

import dataclasses
from collections.abc import Sequence

from lab import limits
from lab.tasks import answers, seq2seq
from lab.tasks.task import Task
from lab.text import seq2seq_files, words
from lab.text.seq2seq_files import Pair, download, find_file, provenance, read_lines, sha256

VARIANTS = ("simple", "addprim_jump", "addprim_turn_left", "length")
TIMES = {"twice": 2, "thrice": 3}
VERBS = {"turn": [], **{verb: [f"I_{verb.upper()}"] for verb in ("walk", "look", "run", "jump")}}


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
            pairs = [Pair(tuple(words.split(command)), tuple(words.split(actions))) for command, actions in rows]
            return pairs, {"data set": self.hf_id, "sha256": sha256(pairs)}
        path = find_file(self.path, [f"tasks_{split}_{self.variant}.txt"])
        lines = read_lines(path, _is_whole)
        return [_pair(f"{path}: line {i}", line) for i, line in enumerate(lines, 1)], provenance(path)


def actions_of(command: Sequence[str]) -> list[str]:
    """What a command asks for, by the grammar of the paper's appendix.

    Raises:
      ValueError: no command of SCAN.
    """
    for joint in ("and", "after"):
        if joint in command:
            i = command.index(joint)
            first, second = actions_of(command[:i]), actions_of(command[i + 1 :])
            return first + second if joint == "and" else second + first
    if command and command[-1] in TIMES:
        return actions_of(command[:-1]) * TIMES[command[-1]]
    verb, *way = command or [""]
    if verb in VERBS and way[-1:] in (["left"], ["right"]) and way[:-1] in ([], ["opposite"], ["around"]):
        turn, act = [f"I_TURN_{way[-1].upper()}"], VERBS[verb]
        return {"left": turn + act, "right": turn + act, "opposite": 2 * turn + act, "around": 4 * (turn + act)}[way[0]]
    if not way and VERBS.get(verb):
        return VERBS[verb]
    raise ValueError(f"{' '.join(command)!r} is no command of SCAN")


def _is_whole(line: str, before: Sequence[str]) -> bool:
    """Its actions are those that its command asks for."""
    try:
        pair = _pair("", line)
        return actions_of(pair.source) == list(pair.target)
    except ValueError:
        return False


def _pair(where: str, line: str) -> Pair:
    command, out, actions = line.partition(" OUT: ")
    if not (command.startswith("IN: ") and out and words.split(command[4:]) and words.split(actions)):
        raise ValueError(f"{where} is {line[:60]!r}, where 'IN: <command> OUT: <actions>' is needed")
    return Pair(tuple(words.split(command[4:])), tuple(words.split(actions)))
