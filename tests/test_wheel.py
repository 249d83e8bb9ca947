"""An installed wheel works without the checkout: nothing that is needed stays behind."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
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


@pytest.fixture(scope="module")
def run(installed, quick_flags):
    """`(folder, *words) -> ` what the Python of the wheel prints, run there with these words."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["XLA_FLAGS"] = quick_flags

    def run(folder, *words):
        done = subprocess.run(
            [installed, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize(
    "words", [["list"], ["reproduce", "composition", "--preset=smoke", *SMALL]], ids=lambda w: w[0]
)
def test_commands_run_elsewhere(run, tmp_path, words):
    assert "composition" in run(tmp_path, "-m", "lab", *words)
    assert str(ROOT) not in run(tmp_path, "-c", "import lab; print(lab.__file__)")


LOOK = """
import lab
run = lab.Training.open("runs/sums")
print(type(run.row(gamma=0.8, weight_decay=3.0, seed=4).model).__name__, run.dataset.sizes["seed"])
print(run.dataset["sharpness.top"].notnull().all().item(), [c["id"] for c in run.report().claims])
"""


def test_afternoon_of_a_researcher_runs_in_an_empty_folder(run, tmp_path):
    """As the page shows it, but for steps, scales and a plan of blocks; what it trained another process opens."""
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "afternoon.md").read_text(), re.DOTALL)
    assert len(script.splitlines()) <= 60
    for usual, small in (("steps=3000", "steps=20, block_width=1"), ("gamma=(0.2, 0.5, 0.8)", "gamma=(0.2, 0.8)")):
        assert usual in script
        script = script.replace(usual, small)
    has_arrow = importlib.util.find_spec("pyarrow") is not None
    (tmp_path / "afternoon.py").write_text(script if has_arrow else script.replace("parquet", "csv"))

    printed = run(tmp_path, "afternoon.py")
    assert "in_0/kernel" in printed and (tmp_path / "phases.png").stat().st_size
    verdicts = re.findall(r"^(A\d)  .*\n.*\((\d) seeds", printed, re.MULTILINE)
    assert verdicts == [(name, n) for n in ("5", "8") for name in ("A1", "A2")]
    assert "<svg" in (page := (tmp_path / "runs/sums/report/index.html").read_text()) or "data:image" in page
    assert run(tmp_path, "-c", LOOK).splitlines() == ["ResidualMLP 8", "True ['A1', 'A2']"]
    if not has_arrow:
        pytest.skip("the Parquet file: pyarrow is not installed")
    table = pd.read_parquet(tmp_path / "runs/sums/export/table.parquet")
    assert table.groupby(["gamma", "weight_decay", "seed"]).ngroups == 2 * 2 * 8 == table.row.nunique()
    assert {"test.accuracy", "sharpness.top[0]", "directions.effective_directions[in_0/kernel]"} <= {*table.columns}


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
