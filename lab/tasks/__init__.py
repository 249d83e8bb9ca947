"""Tasks: pure samplers `(key, n, split, hparams) -> Batch`, and scores of a model's answers per named solution."""

from lab.tasks.batch import Batch, Task
from lab.tasks.composition import Composition

__all__ = ["FAMILIES", "Batch", "Composition", "Task"]

FAMILIES: dict[str, type] = {"composition": Composition}
