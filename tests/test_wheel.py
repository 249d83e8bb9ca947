"""An installed wheel works without the checkout: nothing that is needed stays behind."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("lab", "configs", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
SMALL = (
    "--variants=unseen", "--config.model.n_layers=1", "--config.steps=4", "--config.eval_every=2",
    "--config.checkpoint_every=2", "--config.optim.warmup_steps=1", "--config.grid.gamma=(0.5,)",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves a folder `build` where it builds, and takes what lies there along."""
    folder, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, cwd=folder)
    (path,) = folder.glob("gammalab-*.whl")
    return path


def environment_without_the_package(folder):
    """The Python of an environment with this one's dependencies, which does not see the checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return python


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of an environment with the wheel and this one's dependencies."""
    python = environment_without_the_package(tmp_path_factory.mktemp("venv"))
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    return python


def test_wheel_holds_every_module_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kinds = {".py", ".j2", ".css", ".js"}
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "lab").rglob("*") if path.suffix in kinds}
    tracked |= {f"lab/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert names == tracked


@pytest.mark.parametrize(
    "words", [["list"], ["reproduce", "composition", "--preset=smoke", *SMALL]], ids=lambda w: w[0]
)
def test_commands_run_elsewhere(installed, tmp_path, quick_flags, words):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["XLA_FLAGS"] = quick_flags
    done = subprocess.run(
        [installed, "-m", "lab", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "composition" in done.stdout
    where = [installed, "-c", "import lab; print(lab.__file__)"]
    assert str(ROOT) not in subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout


def test_first_cell_of_the_notebooks_installs_the_wheel_without_a_network_and_prints_the_devices(wheel, tmp_path):
    python = environment_without_the_package(tmp_path / "venv")
    notebook = json.loads(next((ROOT / "notebooks").glob("*.ipynb")).read_text())
    cell = "".join(next(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"))
    there = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"LAB_SOURCE": str(wheel), "PIP_NO_INDEX": "1", "PATH": "/nowhere", "JAX_PLATFORMS": "cpu"}
    for _ in range(2):  # the second time there is nothing to install
        done = subprocess.run(
            [python, "-c", f"{cell}\nimport lab; print(lab.__file__)"],
            cwd=tmp_path, env=there | offline, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        *devices, file = done.stdout.splitlines()
        assert devices and all("cpu" in device.lower() for device in devices)
        assert Path(file).is_relative_to(tmp_path / "venv")
        offline["LAB_SOURCE"] = "/nowhere"
