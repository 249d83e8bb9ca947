"""Studies: one paper each, as analyses, claims and figures over the trainings that its config describes."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from lab.studies.claims import Claim

NAMES = (
    "composition", "complexity_control", "complexity_control_language", "concept_graph", "focus_dilution",
    "focus_dilution_text", "ntp_ctp", "ntp_ctp_files",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Study:
    """What the command line needs to know of a study.

    Attributes:
      presets: preset -> what it costs.
      measures: experiment -> the measurements that claims and report stand on.
      target: the metric of generalization out of distribution, against which complexity measures are held.
      sections: datasets of the variants -> sections of the report.
    """

    name: str
    title: str
    lead: str
    papers: tuple[str, ...]
    presets: Mapping[str, str]
    measures: Callable
    claims: tuple[Claim, ...]
    target: str
    sections: Callable

    @property
    def config_path(self) -> Path:
        """The study's config file."""
        return Path(importlib.import_module(f"lab.configs.{self.name}").__file__)


def get(name: str) -> Study:
    """
    Raises:
      ValueError: no such study.
    """
    if name not in NAMES:
        raise ValueError(f"unknown study {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f"lab.studies.{name}").STUDY
