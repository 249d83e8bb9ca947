"""Whether a command that was run to its end would find everything as it left it; asked before JAX is imported."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

STAMP = "reproduced.json"  # in a workdir: what was asked for, and the state of program and files, when it was done
SWITCHES = ("JAX_", "XLA_", "LAB_")  # what an environment variable begins with that may change what is computed


def is_done(workdir: Path, asked_program: str) -> bool:
    """Whether the same was asked for before, of the same `program`, and no file of the workdir has changed since.

    Names, sizes and times of change are compared: bytes are hashed by `lab verify`.
    """
    if not (workdir / STAMP).is_file():
        return False
    from lab.disk import files

    try:
        held = files.read_json(workdir / STAMP)
    except files.DamagedError:
        return False
    return held.get("program") == asked_program and held.get("files") == _files(workdir)


def remember(workdir: Path, asked_program: str) -> None:
    """To be called when all is done, with what `program` said before it began.

    Raises:
      SaveError: it cannot be written.
    """
    from lab.disk import files

    files.write_json(workdir / STAMP, {"program": asked_program, "files": _files(workdir)})


def program(asked: Sequence[str]) -> str:
    """A hash of the request, the laboratory's own files, the installed packages and the switches of JAX."""
    said = [*asked, sys.version]
    said += sorted(f"{found.metadata['Name']} {found.version}" for found in metadata.distributions())
    said += sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(SWITCHES))
    for package in ("lab", "lab.configs"):
        for folder in importlib.util.find_spec(package).submodule_search_locations:
            said += _states(Path(folder), sorted(Path(folder).rglob("*.py")))
    return _hash(said)


def _files(workdir: Path) -> str:
    """A hash of what lies in a workdir; of one with links to elsewhere, of nothing that comes again."""
    paths = [path for path in sorted(workdir.rglob("*")) if not path.name.startswith(".") and path.name != STAMP]
    if any(path.is_symlink() for path in paths):
        return os.urandom(16).hex()
    return _hash(_states(workdir, [path for path in paths if path.is_file()]))


def _states(folder: Path, paths: Sequence[Path]) -> list[str]:
    stats = ((path.relative_to(folder), path.stat()) for path in paths)
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]


def _hash(said: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(said).encode()).hexdigest()
