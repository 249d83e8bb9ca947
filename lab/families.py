"""Tasks, models and what they are made of, as values of a config: by name, as `module:Name`, or as registered.

A training records where each class and function of a user's own is and a hash of its source, so that other processes
find it again and a changed one is refused.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import flax.linen as nn
import ml_collections
import numpy as np

from lab import code_hash, config_json, models, module, tasks, user_code
from lab.optim import Optim
from lab.tasks import Task

FAMILIES = {"task": tasks.FAMILIES, "model": models.FAMILIES}
KINDS = {"task": Task, "model": nn.Module}
WANTED = {"task": "a frozen dataclass on top of lab.tasks.Task", "model": "a Flax Linen module"}
OBJECT = "object"  # the only key of a dict that stands for what its value names
TUPLE = "tuple"  # the only key of a dict that stands for a tuple of such: a config holds dicts in dicts alone
PLAIN = str | int | float | bool | None


def find(kind: str, name: str | None, section: str):
    """The class of a family; or a task or a model as it is, where the name is that of one.

    Args:
      kind: `task` or `model`.
      section: of the config, for messages.

    Raises:
      ValueError: there is none, or it is of another kind.
    """
    if name in FAMILIES[kind]:
        return _check(kind, FAMILIES[kind][name], f"{section}.family={name!r}")
    if not isinstance(name, str) or ":" not in name:
        known = ", ".join(FAMILIES[kind])
        raise ValueError(f"{section}.family={name!r}: one of {known}, or a class of yours, as 'module:Class'")
    return _check(kind, _found(name, f"{section}.family"), f"{section}.family={name!r}")


def express(value, what: str):
    """A value as a config holds it: plain values as they are, dataclasses by class and fields, all else by name.

    Args:
      what: it is, for messages.

    Raises:
      ValueError: a field that is a dict with other keys than strings.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple | list):
        expressed = tuple(express(entry, what) for entry in value)
        if any(isinstance(entry, dict) for entry in expressed):
            return {TUPLE: {str(i): entry for i, entry in enumerate(expressed)}}
        return expressed
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{what}: {value!r:.80} has keys that are no strings")
        return {key: express(entry, f"{what}.{key}") for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return express_dataclass(value, what)
    return {OBJECT: user_code.name_of(value)}


def express_dataclass(value, what: str) -> dict:
    """`family`, and the fields, but for functions and the like that are as the class has them."""
    kind = type(value)
    short = [name for families in FAMILIES.values() for name, held in families.items() if held is kind]
    said = {"family": short[0] if short else user_code.name_of(kind)}
    for name, field in code_hash.fields(kind).items():
        expressed = express(getattr(value, name), f"{what}.{name}")
        if getattr(value, name) is not field.default or not isinstance(expressed, dict):
            said[name] = expressed
    return said


def build(value, what: str):
    """What `express` made a value of; plain values as they are.

    Raises:
      ValueError: what it names is not there, or its options are not fields of it.
    """
    if not isinstance(value, dict):
        return value
    if {*value} == {OBJECT}:
        return _found(value[OBJECT], f"{what}.{OBJECT}")
    if {*value} == {TUPLE}:
        return tuple(build(entry, f"{what}.{i}") for i, entry in value[TUPLE].items())
    if "family" not in value:
        return {name: build(entry, f"{what}.{name}") for name, entry in value.items()}
    options = {name: build(entry, f"{what}.{name}") for name, entry in value.items() if name != "family"}
    known = next((families[value["family"]] for families in FAMILIES.values() if value["family"] in families), None)
    kind = known or _found(value["family"], f"{what}.family")
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f"{what}: {module.first_line(error)}") from error


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy that says all of its task, model and optimizer: what was written before an option came means its default.

    Raises:
      ValueError: as `find`.
    """
    made = config_json.plain(config)
    kinds = {kind: find(kind, made[kind].family, kind) for kind in FAMILIES} | {"optim": Optim}
    for section, kind in kinds.items():
        for name, field in code_hash.fields(kind).items():
            if name not in made[section] and field.default is not dataclasses.MISSING:
                made[section][name] = express(field.default, f"{section}.{name}")
    return made


def own(config) -> list[dict]:
    """Where the classes and functions of a config are that are not the package's: kind, family, class, module, file,
    sha256; see `lab.user_code.describe`."""
    found = {}
    for kind, name in _named(config):
        thing = find(kind, name, kind) if kind in FAMILIES else user_code.find(name)
        if (kind, name) not in found and (described := user_code.describe(thing)):
            found[kind, name] = {"kind": kind, "family": name, **described}
    return [*found.values()]


def bring_back(recorded: Sequence[Mapping]) -> None:
    """Registers recorded classes and functions that are not known here, from where they were.

    Raises:
      ValueError: a file is not there any more, or has no such class.
    """
    for place in recorded:
        known = FAMILIES.get(place["kind"], user_code.HELD)
        if place["family"] in known:
            continue
        what = f"{place['kind']}.family={place['family']!r}: class {place['class']}"
        if place["file"] is None:
            with contextlib.suppress(ValueError):  # this is the process, or one in which it was defined again, alike
                now = user_code.describe(user_code.find(place["family"]))
                if place["sha256"] in ("", now.get("sha256")):
                    continue
            raise ValueError(
                f"{what} was defined in {place['module']}, which cannot be imported; register it first, or "
                f"{user_code.WHAT_TO_DO}"
            )
        try:
            known[place["family"]] = getattr(user_code.reload(place["module"], Path(place["file"])), place["class"])
        except (ImportError, OSError, AttributeError, SyntaxError, ValueError) as error:
            raise ValueError(f"{what} was in {place['file']} when it was trained: {error}") from error


def changed(recorded: Sequence[Mapping]) -> list[str]:
    """One line for every recorded class or function whose source is not what it was."""
    lines = []
    for place in recorded:
        kind, name = place["kind"], place["family"]
        now = user_code.describe(find(kind, name, kind) if kind in FAMILIES else user_code.find(name))
        if place["sha256"] and place["sha256"] != now.get("sha256"):
            lines.append(f"source of {kind}.family {name} ({place['class']} in {now.get('file') or now.get('module')})")
    return lines


def _found(name: str, what: str):
    try:
        return user_code.find(name)
    except ValueError as error:
        raise ValueError(f"{what}={name!r}: {error}") from error


def _check(kind: str, found, what: str):
    """The class, or the value, found, where it is what is wanted."""
    given_class = found if isinstance(found, type) else type(found)
    if not (issubclass(given_class, KINDS[kind]) and dataclasses.is_dataclass(given_class)):
        raise ValueError(f"{what}: not {WANTED[kind]}")
    if kind == "task":
        if not given_class.__dataclass_params__.frozen:
            raise ValueError(f"{what}: not {WANTED[kind]}")
        given = {*dir(found), *(field.name for field in dataclasses.fields(given_class))}
        lacks = [name for name in ("splits", "length", "vocab_size") if name not in given]
        lacks += [name for name in ("sample", "score") if getattr(given_class, name) is getattr(Task, name)]
        if lacks:
            raise ValueError(f"{what}: {given_class.__name__} lacks {', '.join(lacks)}, see lab.tasks.Task")
    return found


def _named(config) -> Iterator[tuple[str, str]]:
    """Kind and name of the model, the task, those in them, the optimizer, and of every object that is named."""
    if ":" in config.optim.family:
        yield "optim", config.optim.family
    waiting = [("model", config.model.to_dict()), ("task", config.task.to_dict())]
    while waiting:
        kind, options = waiting.pop(0)
        if OBJECT in options:
            yield OBJECT, options[OBJECT]
        if kind in FAMILIES and "family" in options:
            yield kind, options["family"]
        elif "family" in options and not any(options["family"] in known for known in FAMILIES.values()):
            yield OBJECT, options["family"]
        for value in options.values():
            if isinstance(value, dict):
                nested = "task" if kind == "task" and value.get("family") in tasks.FAMILIES else OBJECT
                waiting.append((nested, value))
