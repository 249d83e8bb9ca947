"""The first cell of every notebook, which installs the package: `python notebooks/install.py` writes it into all.

The address stands here, once: a wheel's (`https://.../gammalab-0.3.0-py3-none-any.whl`), a repository's
(`git+https://...`) or a folder. Empty: none is said, and the cell asks for one, since anybody may have put something
else on an index under the package's name. Change it, and run this. For one session the environment variable LAB_SOURCE
names another.
"""

import json
from pathlib import Path

ADDRESS = ""
CELL = """\
# Installs the package where it is not there yet, as on Colab and Kaggle; elsewhere this only prints the devices.
import importlib.util
import os
import shutil
import subprocess
import sys

# set this to where the package is: a wheel's address or file, a git+https address, or a folder
SOURCE = os.environ.get("LAB_SOURCE", "{address}")

if importlib.util.find_spec("lab") is None:
    if not SOURCE:
        sys.exit("SOURCE is empty: set it to where the package is, a wheel, a git+https address or a folder")
    extra = ""
    if shutil.which("nvidia-smi"):  # JAX for CUDA 13 wants NVIDIA's driver 580, that for CUDA 12 an older one
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True).stdout.split(".")[0]
        extra = "[cuda]" if driver.isdigit() and int(driver) >= 580 else "[cuda12]"
    package = f"gammalab{{extra}} @ {{SOURCE}}" if "://" in SOURCE else f"{{SOURCE}}{{extra}}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)
    importlib.invalidate_caches()

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # rows train side by side, one core each; a GPU ignores it
print(*jax.devices(), sep="\\n")
"""


def cell() -> str:
    """The text of the cell."""
    return CELL.format(address=ADDRESS).rstrip("\n")


def write(path: Path) -> None:
    """The cell into one notebook, as its first cell of code."""
    notebook = json.loads(path.read_text())
    first = next(one for one in notebook["cells"] if one["cell_type"] == "code")
    first["source"] = cell().splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for path in Path(__file__).parent.glob("*.ipynb"):
        write(path)
