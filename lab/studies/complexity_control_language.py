"""SCAN and COGS under complexity control: see `lab.studies.complexity_control.language`."""

from lab.studies.complexity_control.language import STUDY

__all__ = ["STUDY"]
