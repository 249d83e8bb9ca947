"""The command line, called as if typed in a shell."""

import os
import sys

import jax
import pytest

from lab.cli import main


@pytest.fixture(scope="module", autouse=True)
def as_conftest_set_jax():
    """Two devices, whatever the machine has; optax cannot run under strict promotion."""
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        yield


@pytest.fixture(scope="session")
def run():
    """Runs one command; `config.json` notes the words typed."""

    def typed(*argv):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["lab", *argv])
            main(list(argv))

    return typed


@pytest.fixture
def refusal(run, capsys):
    """The one line that a mistake earns."""

    def refused(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(*argv)
        said = capsys.readouterr()
        assert stopped.value.code == 2 and said.out == ""
        assert said.err.startswith("lab: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
        assert "\\" not in said.err and "Traceback" not in said.err
        return said.err

    return refused
