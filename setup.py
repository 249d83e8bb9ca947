"""Finds the packages, of which `lab.configs` lies outside `lab/`: setup.cfg, which says all else, cannot do both."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["lab", "lab.*"]), "lab.configs"])
