"""Studies: one paper each, as analyses, claims and figures over the trainings that its config describes."""

import ast
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lab import limits, user_code
from lab.configs import base

if TYPE_CHECKING:
    from lab.claims import Claim
    from lab.experiment import Experiment
    from lab.measuring.declare import Measure
    from lab.report.page import Section
    from lab.runs import Place, Runs


@dataclasses.dataclass(frozen=True)
class Study:
    """One paper: what to measure, what is claimed, and what the report shows.

    Attributes:
      title, lead: of the report.
      papers: what is claimed is of these, e.g. `arXiv 2509.17514`.
      measures: experiment -> the measurements that claims and report stand on.
      claims: made by `lab.claims.claim`; the table has them in this order, headline claims first.
      target: the metric of generalization out of distribution, against which complexity measures are held. Empty: the
        first score of the task's last split.
      usual: axis of the grid -> the value that is meant where none is said, see `lab.runs`.
      sections: runs -> sections of the report.
      published_sizes: whether the paper prints the sizes that preset `paper` has, so that ours stand beside them.
      name: of its module, or its file if it is a user's; `get` fills it in.
    """

    title: str
    lead: str
    papers: tuple[str, ...]
    measures: "Callable[[Experiment], list[Measure]]"
    claims: "tuple[Claim, ...]"
    target: str
    sections: "Callable[[Runs], list[Section]]"
    usual: "Mapping[str, Place]" = dataclasses.field(default_factory=dict)
    published_sizes: bool = True
    name: str = ""


def names() -> tuple[str, ...]:
    """The studies there are: the modules here that have a config of the same name. None of them is imported."""
    configs = base.names()
    return tuple(found.name for found in pkgutil.iter_modules(__path__) if found.name in configs)


def sentence(name: str) -> str:
    """What a study is of: the first line of its module's docstring, read without running it."""
    here = Path(__path__[0]) / name
    path = here / "__init__.py" if here.is_dir() else here.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def get(name: str) -> Study:
    """A study by its name, by the file that it is written in (`my_study.py`), or by its module (`my_module:STUDY`).

    Raises:
      ValueError: no such study.
    """
    if name.endswith(":STUDY"):
        name = _file(name.removesuffix(":STUDY"))
    if name.endswith(".py"):
        module, name = user_code.import_file(name), str(Path(name).absolute())
        if not isinstance(getattr(module, "STUDY", None), Study):
            raise ValueError(f"{name}: no STUDY, which is what a study's file defines")
        return dataclasses.replace(module.STUDY, name=name)
    if name not in names():
        near = limits.nearest(name, names())
        hint = f"{near} There are" if near else "; there are"
        raise ValueError(f"unknown study {name!r}{hint} {', '.join(names())}, or a file of yours such as my_study.py")
    return dataclasses.replace(importlib.import_module(f"{__name__}.{name}").STUDY, name=name)


def _file(module: str) -> str:
    """The file of a module: what a training notes of its study, since every process can read it."""
    try:
        return str(user_code.import_module(module).__file__)
    except ImportError as error:
        raise ValueError(f"{module}:STUDY: {error}") from error
