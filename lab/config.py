"""Builds values from an ml_collections config: variants, experiments and grids. A config lists every option.

Raises `ValueError` for anything that is missing, unknown, of the wrong type or impossible, naming it and what would do.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from lab import families, limits, models, own_optim
from lab import grid as grids
from lab.config_json import differences, from_json, plain, to_json
from lab.controller import Controller
from lab.experiment import Experiment
from lab.objective import Objective
from lab.optim import Optim
from lab.tasks import Task

__all__ = ["differences", "experiment", "from_json", "grid", "to_json", "variants"]

SECTIONS = ("task", "objective", "model", "start", "optim", "grid", "variants")
OPTIONAL = ("controller",)  # sections that a config may lack
START = {"variant": str, "row": ml_collections.ConfigDict}
SCALARS = {
    "study": str,
    "preset": str,
    "init": str,
    "steps": int,
    "batch_size": int,
    "train_size": int,
    "data_order": str,
    "data_seed": int,
    "eval_every": int,
    "eval_size": int,
    "snapshots": int,
    "snapshot_every": int,
    "checkpoint_every": int,
    "block_width": int,
    "data_devices": int,
    "split_params": bool,
    "deterministic": bool,
}
LEAST = {
    "eval_every": 1,
    "snapshots": 2,
    "snapshot_every": 0,
    "checkpoint_every": 1,
    "block_width": 0,
    "data_devices": 1,
}


def variants(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """The static variants of a config: `config.variants.<name>` holds what differs from the rest of the config.

    A variant with a task, model or controller of another family says all of it: nothing of the first one's options is
    left; so does one with a section that the config lacks. They come in the order of their names, but behind the
    variant they start from (`start.variant`), where that is here too.
    """
    base = plain(config)
    _check_names(base, (*SCALARS, *SECTIONS))
    overrides = base.variants.to_dict()
    del base["variants"]
    base.lock()
    resolved = {}
    for name, changes in (overrides or {"main": {}}).items():
        if not re.fullmatch("[a-z0-9_-]+", name):
            raise ValueError(f"variants: {name!r} cannot name a folder and pictures; use a-z, 0-9, - and _")
        variant = base.copy_and_resolve_references()
        try:
            for section in ("task", "model", *(name for name in OPTIONAL if name in changes)):
                asked = changes.get(section, {})
                if section not in base or asked.get("family", base[section].family) != base[section].family:
                    with variant.unlocked():
                        variant[section] = ml_collections.ConfigDict(changes[section])
            # a variant may vary what the others do not; `grid` and `init_from.matched` know the names
            with variant.grid.unlocked(), variant.start.row.unlocked():
                variant.update(changes)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"variants.{name}: {_first_line(error)}") from error
        resolved[name] = variant
    return sources_first(resolved)


def experiment(config: ml_collections.ConfigDict) -> Experiment:
    """The static half of one variant."""
    config = plain(config)
    _check_names(config, {*SCALARS, *SECTIONS} - {"variants"})
    controller = _construct(Controller, config.controller.to_dict(), "controller") if "controller" in config else None
    task = _build("task", config.task.to_dict(), "task")
    model = _build("model", config.model.to_dict(), "model")
    objective = _construct(Objective, config.objective.to_dict(), "objective")
    _check_fit(model, task)
    objective.check_fit(task, getattr(model, "readout", "all"), config.grid)
    if config.train_size and task.stream_only:
        raise ValueError(f"train_size={config.train_size}: {task.stream_only}")
    values = {name: config[name] for name in SCALARS if name in {f.name for f in dataclasses.fields(Experiment)}}
    for name, least in LEAST.items():
        if config[name] < least:
            raise ValueError(f"{name}={config[name]}: must be at least {least}")
    optim = _construct(Optim, config.optim.to_dict(), "optim")
    for name in own_optim.hparams(optim.family, required=True):
        if name not in config.grid:
            raise ValueError(f"grid.{name} is missing: optim.family={optim.family!r} wants it")
    static = dict(model=model, task=task, optim=optim, objective=objective, controller=controller)
    return Experiment(**static, init_convention=config.init, **values)


def grid(config: ml_collections.ConfigDict) -> grids.Grid:
    """The product of the axes in `config.grid`; the task says which there may be beside those of every grid.

    Raises:
      ValueError: as `grid.product`, or an axis that varies the data of a finite training set.
    """
    config = plain(config)
    task = families.find("task", config.task.family, "task")
    varied = [name for name in task.hparams if name in config.grid]
    if varied and config.train_size:
        raise ValueError(
            f"grid.{varied[0]}: rows with other data cannot share the train_size={config.train_size} training "
            "sequences; use train_size=0, an endless stream"
        )
    extra = (*task.hparams, *(Objective.hparams if task.has_answer else ()), *own_optim.hparams(config.optim.family))
    extra += Controller.hparams if "controller" in config else ()
    return grids.product(config.grid.to_dict(), extra)


def sources_first(resolved: Mapping) -> dict[str, ml_collections.ConfigDict]:
    """The same variants, each behind the one that it starts from, where that is among them."""
    ordered = {}

    def add(name: str, later: tuple[str, ...]) -> None:
        source = resolved[name].start.variant
        if source in (*later, name):
            raise ValueError(f"variants.{name}.start.variant={source!r}: {source} would start from itself in the end")
        if source in resolved:
            add(source, (*later, name))
        ordered.setdefault(name, resolved[name])

    for name in resolved:
        add(name, ())
    return ordered


def _check_names(config, needed: Collection[str]) -> None:
    known = {*SCALARS, *SECTIONS, *OPTIONAL}
    for name in config:
        if name not in known:
            raise ValueError(f"config.{name}: unknown option{_nearest(name, known)}")
    for name in sorted(needed):
        if name not in config:
            raise ValueError(f"config.{name} is missing")
    for name in (*SECTIONS, *OPTIONAL):
        if name in config and not isinstance(config[name], ml_collections.ConfigDict):
            raise ValueError(f"config.{name}={config[name]!r}: expected dict")
    for name, kind in SCALARS.items():
        if not isinstance(config[name], kind) or isinstance(config[name], bool) is not (kind is bool):
            raise ValueError(f"config.{name}={config[name]!r}: expected {kind.__name__}")
    _check_start(config.start)


def _check_start(start) -> None:
    for name in start:
        if name not in START:
            raise ValueError(f"start.{name}: unknown option{_nearest(name, START)}")
    for name, kind in START.items():
        if not isinstance(start.get(name), kind):
            raise ValueError(f"start.{name}={start.get(name)!r}: expected {'dict' if name == 'row' else 'str'}")
    for name, value in start.row.items():
        if isinstance(value, bool) or not isinstance(value, int if name == "seed" else int | float):
            raise ValueError(f"start.row.{name}={value!r}: expected a number" + " without fraction" * (name == "seed"))
    if start.row and not start.variant:
        raise ValueError("start.row says which row of another variant, and start.variant names none")


def _build(kind: str, options: dict, section: str):
    found = families.find(kind, options.pop("family", None), section)
    if isinstance(found, type):
        return _construct(found, options, section)
    if options:
        raise ValueError(f"{section}.{next(iter(options))}: {section}.family names a {kind} as it is, without options")
    return found


def _construct(kind: type, options: dict, section: str):
    """`kind(**options)` for a dataclass or Linen module, with names and types checked against its fields."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in ("parent", "name")}
    for name, value in options.items():
        if name not in fields:
            raise ValueError(f"{section}.{name}: unknown option{_nearest(name, fields)}")
        wanted = fields[name].type
        if isinstance(wanted, type) and issubclass(wanted, Task) and isinstance(value, dict):
            options[name] = value = _build("task", dict(value), f"{section}.{name}")
        elif isinstance(value, dict):
            options[name] = value = families.build(value, f"{section}.{name}")
        accepted = (int, float) if wanted is float else wanted
        if (
            isinstance(wanted, type)
            and wanted is not Any
            and (not isinstance(value, accepted) or isinstance(value, bool) is not (wanted is bool))
        ):
            raise ValueError(f"{section}.{name}={value!r}: expected {wanted.__name__}")
    for name, field in fields.items():
        if name not in options and field.default is dataclasses.MISSING:
            raise ValueError(f"{section}.{name} is missing")
    return kind(**options)


def _check_fit(model, task) -> None:
    choices = {
        "activation": models.ACTIVATIONS,
        "norm": models.NORMS,
        "readout": models.READOUTS,
        "compute_dtype": models.transformer.COMPUTE_DTYPES,
    }
    if isinstance(model, models.Transformer):
        choices |= {"conv": models.transformer.CONVS, "augment": models.dual_attention.AUGMENTS}
    if type(model).__module__.startswith("lab."):  # fields of these names mean something else in a user's
        limits.check("model", model, {name: accepted for name, accepted in choices.items() if hasattr(model, name)})
    if getattr(model, "tied_head", False) and model.head_bias:
        raise ValueError("model.head_bias=True: a tied head is the embedding and has no bias; set one of them to False")
    if models.reads(type(model)) not in (models.ANYTHING, task.inputs):
        reading = [name for name, kind in models.FAMILIES.items() if models.reads(kind) == task.inputs]
        raise ValueError(
            f"model.family: {type(model).__name__} reads {models.reads(type(model))}, {type(task).__name__} gives "
            f"{task.inputs}; these are read by {', '.join(reading)}"
        )
    for name, least in (("vocab_size", task.vocab_size), ("max_length", task.length)):
        if name == "max_length" and isinstance(model, models.Transformer | models.Decoder) and not model.max_length:
            continue  # no positions, any length
        if hasattr(model, name) and getattr(model, name) < least:
            raise ValueError(f"model.{name}={getattr(model, name)}: the task needs at least {least}")


def _nearest(name: str, known) -> str:
    return limits.nearest(name, known) or f"; known: {', '.join(sorted(known))}"


def _first_line(error: BaseException) -> str:
    return str(error.args[0] if error.args else error).strip().splitlines()[0]
