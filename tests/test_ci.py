"""What continuous integration stands on: lowest versions, release notes and a version that agree, a workflow of known
commands."""

import configparser
import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".github" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setup():
    return (ROOT / "setup.cfg").read_text()


@pytest.fixture(scope="module")
def workflow():
    return pytest.importorskip("yaml").safe_load(WORKFLOW.read_text())


def test_lowest_versions_are_those_of_setup_cfg(setup):
    expected = script("lowest").constraints(setup)
    assert (ROOT / "constraints-lowest.txt").read_text().splitlines() == expected, (
        "python .github/lowest.py > constraints-lowest.txt"
    )


def test_pinned_versions_lie_in_the_ranges_of_setup_cfg(setup):
    specifiers = pytest.importorskip("packaging.specifiers")
    pinned = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split())
    config = configparser.ConfigParser()
    config.read_string(setup)
    for line in (config["options"]["install_requires"] + config["options.extras_require"]["test"]).splitlines():
        if line.strip() and not line.startswith("#"):
            name, ranges = line.split(maxsplit=1)
            assert specifiers.SpecifierSet(ranges).contains(pinned[name.lower()]), line


def test_requirement_without_a_lowest_version_is_refused():
    with pytest.raises(ValueError, match="'numpy <3' names no lowest version"):
        script("lowest").constraints(
            "[options]\ninstall_requires =\n    numpy <3\n[options.extras_require]\ntest =\n    a >=1\n"
        )


def test_version_follows_the_release_notes(setup):
    notes = script("notes")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest, *others = notes.sections(changelog)
    assert notes.version(setup) == (others[0] if newest == "Unreleased" else newest)
    assert f"version: {notes.version(setup)}" in (ROOT / "CITATION.cff").read_text()


def test_release_is_of_the_version_and_has_notes():
    notes = script("notes").notes
    setup, changelog = "[metadata]\nversion = 1.2.0\n", "# Changelog\n\n## 1.2.0\n\nNew.\n\n## 1.1.0\n\nOld.\n"
    assert notes("v1.2.0", setup, changelog) == "New."
    with pytest.raises(ValueError, match=r"tag 'v1.1.0': setup.cfg names version 1.2.0"):
        notes("v1.1.0", setup, changelog)
    with pytest.raises(ValueError, match=r"begins with 'Unreleased'"):
        notes("v1.2.0", setup, changelog.replace("## 1.2.0", "## Unreleased\n\n## 1.2.0"))


def test_workflow_runs_both_commands_on_every_system_that_is_supported(workflow, setup):
    job = workflow["jobs"]["commands"]
    matrix = job["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
    assert all(f"Python :: {version}\n" in setup for version in matrix["python"]) and len(matrix["python"]) == 3
    assert {one["dependencies"]: one["constraints"] for one in matrix["include"]} == {
        "lowest": "constraints-lowest.txt",
        "newest": "",
    }
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert any(command.startswith("make demo") for command in commands) and "make test" in commands


def test_workflow_names_files_and_targets_that_are_there(workflow):
    commands = [s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s]
    assert any(".github/notes.py" in command for command in commands)
    for command in commands:
        if command.startswith("make"):
            words = command.split()[1:]
            done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert "smoke" in done.stdout or "demo" not in words
