"""Studies: one paper each, as analyses, claims and figures over the trainings that its config describes."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.claims import Claim
    from lab.experiment import Experiment
    from lab.measuring.declare import Measure
    from lab.report.page import Section
    from lab.runs import Place, Runs

NAMES = (
    "composition", "complexity_control", "complexity_control_language", "concept_graph", "focus_dilution",
    "focus_dilution_text", "ntp_ctp", "ntp_ctp_files",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Study:
    """One paper: what to measure, what is claimed, and what the report shows.

    Attributes:
      title, lead: of the report.
      measures: experiment -> the measurements that claims and report stand on.
      target: the metric of generalization out of distribution, against which complexity measures are held.
      usual: axis of the grid -> the value that is meant where none is said, see `lab.runs`.
      sections: runs -> sections of the report.
    """

    name: str
    title: str
    lead: str
    papers: tuple[str, ...]
    presets: Mapping[str, str]
    measures: "Callable[[Experiment], list[Measure]]"
    claims: "tuple[Claim, ...]"
    target: str
    sections: "Callable[[Runs], list[Section]]"
    usual: "Mapping[str, Place]" = dataclasses.field(default_factory=dict)

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
