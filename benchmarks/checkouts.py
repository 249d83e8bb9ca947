"""The laboratory as it stands here or at a commit, copied to a folder of its own for processes to import.

A copy is not touched by what is edited while a benchmark runs. `configs/` lies in it as `lab/configs`, where it is
imported from whatever is installed: a folder on PYTHONPATH comes before an installed package.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parents[1]
NOT_OURS = ("JAX_COMPILATION_CACHE_DIR", "JAX_LOG_COMPILES")  # of the user's shell: they would change what is timed


class UnknownCommit(ValueError):
    """There is no such commit, or it has no laboratory."""


def copy(commit: str | None, folder: Path) -> Path:
    """`lab` and its configs below `folder`, of a commit or (None) of the working tree.

    Raises:
      UnknownCommit: git has no such commit, or it has other folders.
    """
    if commit is None:
        for name in ("lab", "configs"):
            shutil.copytree(HERE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        command = ["git", "-C", str(HERE), "archive", "--format=tar", commit, "lab", "configs"]
        packed = subprocess.run(command, capture_output=True)
        if packed.returncode:
            said = packed.stderr.decode().strip().splitlines() or ["git says nothing"]
            raise UnknownCommit(f"{commit}: no commit of {HERE} with lab/ and configs/: {said[0]}")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
    (folder / "configs").rename(folder / "lab" / "configs")
    return folder


@contextlib.contextmanager
def copies(commit: str | None) -> Iterator[dict[str, Path]]:
    """`here` -> a copy of the working tree, and the commit, if one is named, -> a copy of it; dropped in the end.

    Both are compiled to bytecode.

    Raises:
      UnknownCommit: see `copy`.
    """
    with tempfile.TemporaryDirectory(prefix="gammalab-") as folder:
        theirs = {commit: copy(commit, Path(folder) / "theirs")} if commit else {}
        sides = {"here": copy(None, Path(folder) / "here")} | theirs
        for side in sides.values():
            subprocess.run([sys.executable, "-m", "compileall", "-q", str(side)], check=True)
        yield sides


def environment(side: Path, cache: Path) -> dict[str, str]:
    """For a process that imports this copy, starts in its folder and keeps its caches in `cache`."""
    path = os.pathsep.join(filter(None, (str(side), os.environ.get("PYTHONPATH"))))
    ours = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    return ours | {"PYTHONPATH": path, "GAMMALAB_CACHE": str(cache)}
