"""SCAN: commands in simple English to sequences of actions, "jump left twice" -> "I_TURN_LEFT I_JUMP" twice over.

Lake & Baroni, "Generalization without Systematicity" (arXiv 1711.00350). Split `test` asks for what the variant held
out of training: nothing in particular (`simple`), a primitive seen alone only, inside of compositions
(`addprim_jump`, `addprim_turn_left`), or longer outputs (`length`). In the two `addprim` variants the primitive alone
is one training item in ten, repeated as the authors do.
"""

import dataclasses

from lab.tasks.translation import Pair, Translation, downloaded, found, hashed, lines, told

VARIANTS = ("simple", "addprim_jump", "addprim_turn_left", "length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan(Translation):
    """The task as a value.

    Attributes:
      variant: one of `VARIANTS`; its files are `tasks_train_<variant>.txt` and `tasks_test_<variant>.txt`, on Hugging
        Face it is the configuration of a data set with the columns `commands` and `actions` (`scan`).
    """

    variant: str

    splits = ("train", "test")

    def __post_init__(self):
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ValueError(f"task.variant={self.variant!r}: one of {', '.join(VARIANTS)}")

    def read(self, split: str) -> tuple[list[Pair], dict]:
        if self.hf_id:
            rows = downloaded(self.hf_id, self.variant, split, ("commands", "actions"))
            pairs = [Pair(tuple(command.split()), tuple(actions.split())) for command, actions in rows]
            return pairs, {"data set": self.hf_id, "sha256": hashed(pairs)}
        path = found(self.path, [f"tasks_{split}_{self.variant}.txt"])
        return [_pair(f"{path}: line {i}", line) for i, line in enumerate(lines(path), 1)], told(path)


def _pair(where: str, line: str) -> Pair:
    command, out, actions = line.partition(" OUT: ")
    if not (command.startswith("IN: ") and out and command[4:].split() and actions.split()):
        raise ValueError(f"{where} is {line[:60]!r}, where 'IN: <command> OUT: <actions>' is needed")
    return Pair(tuple(command[4:].split()), tuple(actions.split()))
