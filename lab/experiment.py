"""An experiment: the static half of a training, as one hashable value."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax

from lab import init, models, module, optim, rng
from lab.controller import Controller
from lab.limits import SEED_BOUND
from lab.objective import DEFAULT, Objective
from lab.tasks import Task

DATA_ORDERS = ("shared", "row")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The static half of a training: whatever changes shapes or the program. Hashable, a static argument of jit.

    Attributes:
      init_convention: see `lab.init`.
      steps, batch_size: length of the training, sequences a step.
      train_size: number of training sequences, drawn once and visited in shuffled epochs (a last partial batch is
        dropped); 0 for an endless stream of fresh ones.
      data_order: `shared`: all rows see the same batches (paired comparison); `row`: rows with another seed see
        another stream, or another order of the same finite set.
      data_seed: of the training set, the shared order and the evaluation sets.
      eval_size: sequences per split at each evaluation; the same ones every time.
      objective: what rows are trained on in place of the task's clean sequences.
      controller: of the coefficient of a penalty beside the task's loss; None: there is none.
    """

    model: nn.Module
    task: Task
    optim: optim.Optim
    init_convention: str
    steps: int
    batch_size: int
    train_size: int
    data_order: str
    data_seed: int
    eval_size: int
    objective: Objective = DEFAULT
    controller: Controller | None = None

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch_size", 1), ("train_size", 0), ("eval_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if not 0 <= self.data_seed < SEED_BOUND:
            raise ValueError(f"data_seed={self.data_seed}: must be an integer in [0, 2^31)")
        if self.data_order not in DATA_ORDERS:
            raise ValueError(f"data_order={self.data_order!r}: one of {', '.join(DATA_ORDERS)}")
        if 0 < self.train_size < self.batch_size:
            raise ValueError(f"train_size={self.train_size} is smaller than batch_size={self.batch_size}")
        if self.init_convention not in init.CONVENTIONS:
            raise ValueError(f"init={self.init_convention!r}: one of {', '.join(init.CONVENTIONS)}")
        if not isinstance(self.model, nn.Module):
            raise ValueError(module.NOT_A_MODEL.format(self.model))
        optim.schedule(self.optim, self.steps)  # refuses an impossible warm-up before anything is compiled

    @property
    def leaves(self) -> dict[str, init.Leaf]:
        """How the model's weight matrices are initialized, by leaf name; raises ValueError as `init.leaves_of`."""
        return init.leaves_of(self.model, self.task.example(), self.init_convention)

    def init_table(self, columns: Mapping, measure: bool) -> list[str]:
        """The init table at the ends of a grid's columns, in lines for people; the first is a sentence."""
        ends = init.ends(columns)
        rows = init.table(self.model, self.task.example(), ends, self.init_convention, measure)
        return init.lines(rows, ends)

    def check_model(self) -> None:
        """Goes through an initialization and a forward pass without computing.

        Raises:
          ValueError: a model that takes, keeps or returns what `lab.module` does not allow, or leaves that
            `init.leaves_of` refuses; or it does not give what the controller measures.
        """
        _ = self.leaves
        example, outputs, acts = self._traced()
        if self.task.inputs == "tokens":
            module.check_outputs(self.model, outputs, example, self.task.vocab_size, self.task.classifies)
        if self.controller is not None:
            self.controller.check_fit(self.task, acts)

    @property
    def n_classes(self) -> int:
        """Of a classifier of arrays, outputs (B, C) and cross-entropy: C, which labels are below; 0 of all else."""
        if self.task.inputs == "tokens" or not self.task.cross_entropy:
            return 0
        _, outputs, _ = self._traced()
        return outputs.shape[1] if len(getattr(outputs, "shape", ())) == 2 else 0

    def _traced(self) -> tuple:
        """The task's example, and the shapes of what the model says of it and of its activations."""
        example = self.task.example()
        params = jax.eval_shape(lambda: models.init(self.model, rng.key(0, "init"), example))
        outputs, acts = jax.eval_shape(lambda params: models.forward(self.model, params, example), params)
        return example, outputs, acts
