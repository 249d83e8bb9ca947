"""Families of tasks and models: those of the package by name, those of a user as `module:Class` or as registered.

A training records where each class of a user's own is and a hash of its source, so that other processes find it again.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import flax.linen as nn

from lab import models, tasks, user_code
from lab.tasks import Task

FAMILIES = {"task": tasks.FAMILIES, "model": models.FAMILIES}
KINDS = {"task": Task, "model": nn.Module}
WANTED = {"task": "a frozen dataclass on top of lab.tasks.Task", "model": "a Flax Linen module"}


def find(kind: str, name: str | None, section: str) -> type:
    """The class of a family.

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
    where, _, class_name = name.rpartition(":")
    try:
        module = _load_file(Path(where).absolute()) if where.endswith(".py") else _import(where)
        found = getattr(module, class_name)
    except (ImportError, OSError, AttributeError, SyntaxError, ValueError) as error:
        raise ValueError(f"{section}.family={name!r}: {error}") from error
    return _check(kind, found, f"{section}.family={name!r}")


def own(config) -> list[dict]:
    """Where the classes of a config are that are not the package's: kind, family, class, module, file, sha256.

    `file` is None for a class that no other process can import: of a notebook, of a script that was run, of a function.
    """
    found = []
    for kind, family in _named(config):
        described = describe(find(kind, family, kind))
        if described:
            found.append({"kind": kind, "family": family, **described})
    return found


def describe(family: type) -> dict:
    """Class, module, file and hash of the source of a class; empty for one of the package."""
    module = family.__module__
    if module.partition(".")[0] == "lab":
        return {}
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module == "__main__" or family.__qualname__ != family.__name__:
        return {"class": family.__qualname__, "module": module, "file": None, "sha256": ""}
    file = str(Path(file).resolve())
    return {"class": family.__name__, "module": module, "file": file, "sha256": source_hash(file, family.__name__)}


def bring_back(recorded: Sequence[Mapping]) -> None:
    """Registers recorded classes that are not known here, from where they were.

    Raises:
      ValueError: a file is not there any more, or has no such class.
    """
    for place in recorded:
        families = FAMILIES[place["kind"]]
        if place["family"] in families:
            continue
        what = f"{place['kind']}.family={place['family']!r}: class {place['class']}"
        if place["file"] is None:
            raise ValueError(f"{what} was defined in {place['module']}, which cannot be imported; register it first")
        try:
            families[place["family"]] = getattr(_reload(place["module"], Path(place["file"])), place["class"])
        except (ImportError, OSError, AttributeError, SyntaxError, ValueError) as error:
            raise ValueError(f"{what} was in {place['file']} when it was trained: {error}") from error


def changed(recorded: Sequence[Mapping]) -> list[str]:
    """One line for every recorded class whose source is not what it was."""
    lines = []
    for place in recorded:
        now = describe(find(place["kind"], place["family"], place["kind"]))
        if place["sha256"] != now.get("sha256"):
            lines.append(f"source of {place['kind']}.family {place['family']} ({place['class']} in {now.get('file')})")
    return lines


def source_hash(file: str | Path, name: str) -> str:
    """Of a class and of all that it names in its file, transitively; comments and layout do not count."""
    definitions: dict[str, list[ast.stmt]] = {}
    for node in ast.parse(Path(file).read_text()).body:
        for defined in _defined(node):
            definitions.setdefault(defined, []).append(node)
    counted, waiting = {}, [name]
    while waiting:
        name = waiting.pop()
        if name not in counted and name in definitions:
            counted[name] = [ast.unparse(node) for node in definitions[name]]
            inside = (node for statement in definitions[name] for node in ast.walk(statement))
            waiting += [node.id for node in inside if isinstance(node, ast.Name)]
    return hashlib.sha256(repr(sorted(counted.items())).encode()).hexdigest()


def _check(kind: str, found, what: str) -> type:
    """The class found, where it is what is wanted."""
    if not (isinstance(found, type) and issubclass(found, KINDS[kind]) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{what}: not {WANTED[kind]}")
    if kind == "task":
        if not found.__dataclass_params__.frozen:
            raise ValueError(f"{what}: not {WANTED[kind]}")
        given = {*dir(found), *(field.name for field in dataclasses.fields(found))}
        lacks = [name for name in ("splits", "length", "vocab_size") if name not in given]
        lacks += [name for name in ("sample", "score") if getattr(found, name) is getattr(Task, name)]
        if lacks:
            raise ValueError(f"{what}: {found.__name__} lacks {', '.join(lacks)}, see lab.tasks.Task")
    return found


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _named(config) -> Iterator[tuple[str, str]]:
    """Kind and family of the model, of the task, and of the tasks in it."""
    yield "model", config.model.family
    waiting = [config.task.to_dict()]
    while waiting:
        options = waiting.pop()
        if "family" in options:
            yield "task", options["family"]
        waiting += [value for value in options.values() if isinstance(value, dict)]


def _import(name: str) -> ModuleType:
    """A module by name, also one in the working folder; the installed command does not look there by itself."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        here = str(Path.cwd())
        if here in sys.path:
            raise
        sys.path.append(here)
        importlib.invalidate_caches()
        return importlib.import_module(name)


def _reload(name: str, file: Path) -> ModuleType:
    """A module from the file that it was in: by its name where that leads there, so that its neighbours are found."""
    parts = name.split(".")
    if [*file.parts[-len(parts) : -1], file.stem] == parts and file.is_file():
        root = str(file.parents[len(parts) - 1])
        if root not in sys.path:
            sys.path.append(root)
            importlib.invalidate_caches()
        module = importlib.import_module(name)
        if module.__file__ and Path(module.__file__).resolve() == file:
            return module
    return _load_file(file)


@functools.cache
def _load_file(file: Path) -> ModuleType:
    """A file as a module, once a process: another one would be another class, and another program to compile."""
    for module in [*sys.modules.values()]:
        held = inspect.getattr_static(module, "__file__", None)
        if isinstance(held, str) and module.__name__ != "__main__" and Path(held) == file:
            return module
    return user_code.import_file(file)
