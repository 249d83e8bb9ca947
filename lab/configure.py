"""Configs of objects: a model, a task, an optimizer, a loss and metrics as Python has them."""

from collections.abc import Callable, Mapping

import numpy as np
from ml_collections import ConfigDict

from lab import families, limits, module, studies, tables, user_code
from lab.configs import base
from lab.grid import SIGMA, Grid
from lab.tasks import Task
from lab.tasks.pairs import INPUTS, TARGETS, Examples, Functions, Scored

WARMUP_SHARE = 10  # warm-up is a tenth of a training at most, where nobody says how long it is
EVAL_SIZE = base.OPTIONS["eval_size"]


def task(
    sample: Callable, score: Callable | None = None, *, splits: tuple[str, ...] = ("train", "test"), vocab_size: int = 0
) -> Task:
    """A task of functions, endless: see `lab.tasks.pairs` for its loss.

    Args:
      sample: `(key, n)` or `(key, n, split)` -> `(inputs, targets)`, arrays with leading axis n, by pure JAX.
      score: `(outputs, targets)` -> a number, or numbers by name; None: accuracy, or r2 of floats.
      splits: `train`, and those that evaluation reports.
      vocab_size: where inputs are tokens, whole numbers (n, length): ids are below it.

    Raises:
      ValueError: `sample` gives something else, or tokens without a `vocab_size`.
    """
    return Functions(sample, score, tuple(splits), vocab_size)


def examples(train, test=0.2, *, seed: int = 0, **splits) -> Task:
    """A task of a table of examples, which the training's folder keeps: see `lab.tasks.pairs` for its loss.

    Args:
      train: `(inputs, targets)`, arrays with the examples along the first axis.
      test: another such pair, or the share of `train` that is held out, at random by `seed`.
      splits: more pairs, by name, that evaluation reports.

    Raises:
      ValueError: no pairs of arrays of one length, or fewer than one example in a split.
    """
    pairs = {"train": _pair("train", train)}
    if isinstance(test, float | int):
        if not 0 < test < 1:
            raise ValueError(f"test={test!r}: a pair of arrays, or a share of the examples between 0 and 1")
        order = np.random.default_rng(seed).permutation(len(pairs["train"][0]))
        n_test = max(1, round(test * len(order)))
        held_out = tuple(part[order[:n_test]] for part in pairs["train"])
        pairs = {"train": tuple(part[order[n_test:]] for part in pairs["train"]), "test": held_out}
    else:
        pairs["test"] = _pair("test", test)
    pairs |= {name: _pair(name, pair) for name, pair in splits.items()}
    for name, (inputs, _) in pairs.items():
        if not len(inputs):
            raise ValueError(f"{name}: no example")
    table = {f"{name}.{part}": pair[i] for name, pair in pairs.items() for i, part in enumerate((INPUTS, TARGETS))}
    return Examples(tables.hold(table))


def config(
    model,
    task,
    *,
    grid: Mapping | Grid | None = None,
    optim=None,
    loss: Callable | str | None = None,
    metrics: Mapping[str, Callable | str] | None = None,
    title: str = "",
    **options,
) -> ConfigDict:
    """A config: every option that is not named has its value in `configs/base.py`.

    Args:
      model: a Flax Linen module, `module:Class`, or the config's section as a dict.
      task: a `lab.tasks.Task`, `module:Class`, or the config's section as a dict.
      grid: axis -> values (or one value); axes that are left out have the usual values. Or rows of `lab.grid`.
      optim: `adamw`, `sgd`, a function such as `optax.lion` (see `lab.own_optim`), `module:Name` of one, or options of
        the section as a dict, of which `family` may be any of these.
      loss: `(outputs, targets)` -> a number, or one an example; None: the task's own.
      metrics: name -> as `loss`; they are evaluated beside the task's own.
      title: of the report.
      options: further options of `configs/base.py`, such as `steps`, `batch_size`, `data_order`; `controller`, options
        of that section as a dict (`lab.controller`).

    Raises:
      ValueError: what is no model, task or optimizer; an unknown option; a title that is the name of a study.
    """
    if title in studies.names() or title.endswith(".py"):
        raise ValueError(f"title={title!r}: the name of a study, whose claims it would be taken to be of; use another")
    known = (*base.OPTIONS, "controller")
    unknown = [name for name in options if name not in known]
    if unknown:
        hint = limits.nearest(unknown[0], known) or f"; there are {', '.join(known)}"
        raise ValueError(f"{unknown[0]}={options[unknown[0]]!r}: unknown option{hint}")
    task = _scored(task, loss, metrics)
    sections = {"controller": base.controller(**options.pop("controller"))} if "controller" in options else {}
    made = base.config(model=_section("model", model), task=_section("task", task), **sections)
    made.grid = ConfigDict(axes(grid))
    chosen = _optim(optim)
    made.optim.update(chosen)
    made.update(_sizes(task, options))
    made.update(options)
    if "warmup_steps" not in chosen:
        made.optim.warmup_steps = min(made.optim.warmup_steps, made.steps // WARMUP_SHARE)
    made.study = title or options.get("study") or f"{_title(model)} on {_title(task)}"
    return made


def _pair(name: str, given) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"{name}: expected a pair of arrays (inputs, targets), got {type(given).__name__}")
    inputs, targets = map(np.asarray, given)
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets):
        raise ValueError(f"{name}: inputs {inputs.shape} and targets {targets.shape} have another number of examples")
    for part in (inputs, targets):
        if part.dtype.kind not in "biuf":
            raise ValueError(f"{name}: an array of {part.dtype}, expected numbers")
    return inputs, targets


def _section(kind: str, given) -> dict:
    """The section of a config for a model or a task."""
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str):
        return {"family": given}
    if isinstance(given, type) and issubclass(given, families.KINDS[kind]):
        raise ValueError(f"{kind}={given.__name__}: a class; give one of it, such as {given.__name__}(...)")
    if not isinstance(given, families.KINDS[kind]):
        if kind == "model":
            raise ValueError(module.NOT_A_MODEL.format(given))
        raise ValueError(f"task {given!r:.80}: expected a lab.Task, such as lab.task(sample) or lab.examples(pair)")
    return families.express_dataclass(given, kind)


def _scored(task, loss, metrics):
    """The task with a loss and metrics of the user's."""
    if loss is None and not metrics:
        return task
    if not isinstance(task, Task):
        raise ValueError(f"loss, metrics: of a task that is an object, not {task!r:.60}")
    functions = {"loss": loss, **(metrics or {})}
    functions = {name: user_code.find(f) if isinstance(f, str) else f for name, f in functions.items()}
    for name, function in functions.items():
        if not callable(function) and (name, function) != ("loss", None):
            raise ValueError(f"{name}={function!r:.60}: expected a function of (outputs, targets)")
    return Scored(task, functions.pop("loss"), tuple(functions.items()))


def _optim(given) -> dict:
    if isinstance(given, Mapping):
        family = given.get("family")
        return {**given, **({} if family is None else _optim(family))}
    if given is None or isinstance(given, str):
        return {} if given is None else {"family": given}
    if hasattr(given, "update") and hasattr(given, "init"):
        raise ValueError(
            "optim: an optax transform, whose rate is fixed; give the function that makes one of learning_rate (and "
            "weight_decay), such as optim=optax.lion"
        )
    if not callable(given):
        raise ValueError(f"optim={given!r:.60}: adamw, sgd, or a function of learning_rate such as optax.lion")
    return {"family": user_code.name_of(given)}


def axes(given: Mapping | Grid | None) -> dict[str, tuple]:
    """The axes of a config's grid, those that are left out at their usual values."""
    if isinstance(given, Grid):
        return {name: tuple(dict.fromkeys(column)) for name, column in given.columns.items()}
    named = named_axes(given or {})
    usual = {axis: values for axis, values in base.OPTIONS["grid"].items() if axis != "gamma" or SIGMA not in named}
    return usual | named


def named_axes(given: Mapping) -> dict[str, tuple]:
    """Axis -> its values, of those that are named alone."""
    made = {}
    for name, values in given.items():
        many = hasattr(values, "__iter__") and not isinstance(values, str)
        made[name] = tuple(values) if many else (values,)
    return made


def _sizes(task, options: Mapping) -> dict:
    """Of a table: each epoch visits all of it, and evaluation sees all of the largest split, up to the usual size."""
    table = task.task if isinstance(task, Scored) else task
    if not isinstance(table, Examples):
        return {}
    n_train = table.size("train")
    return {
        "train_size": n_train,
        "batch_size": min(base.OPTIONS["batch_size"], options.get("train_size") or n_train),
        "eval_size": min(EVAL_SIZE, max(map(table.size, table.splits[1:] or table.splits))),
    }


def _title(given) -> str:
    if isinstance(given, Mapping | str):
        return given["family"] if isinstance(given, Mapping) else given
    given = given.task if isinstance(given, Scored) else given
    return given._name if isinstance(given, Functions) else type(given).__name__
