"""Finds the packages; all else is in setup.cfg, which cannot say that one of them, `lab.configs`, lies outside `lab/`."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["lab", "lab.*"]), "lab.configs"])
