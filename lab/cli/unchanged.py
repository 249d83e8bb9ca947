"""Whether a command that was run to its end would find everything as it left it; asked before JAX is imported."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

STAMP = "reproduced.json"  # in a workdir: what was asked for, and the state of the files, when it was done


def is_done(workdir: Path, asked: Sequence[str]) -> bool:
    """Whether the same was asked for before, and no file of the workdir or of the program has changed since."""
    if not (workdir / STAMP).is_file():
        return False
    from lab.disk import files

    try:
        return files.read_json(workdir / STAMP).get("state") == _state(workdir, asked)
    except files.DamagedError:
        return False


def remember(workdir: Path, asked: Sequence[str]) -> None:
    """To be called when all is done; raises SaveError if it cannot be written."""
    from lab.disk import files

    files.write_json(workdir / STAMP, {"asked": list(asked), "state": _state(workdir, asked)})


def _state(workdir: Path, asked: Sequence[str]) -> str:
    """A hash of names, sizes and times of change: bytes are hashed by `lab verify`."""
    said = [*asked, sys.version, *(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib"))]
    for path in _sources(asked):
        said.append(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}")
    for path in sorted(workdir.rglob("*")):
        within = path.relative_to(workdir)
        if path.is_file() and not within.name.startswith(".") and within.name != STAMP:
            said.append(f"{within} {path.stat().st_size} {path.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _sources(asked: Sequence[str]) -> Iterator[Path]:
    """The laboratory's own files, and those that are asked for."""
    for package in ("lab", "lab.configs"):
        for folder in importlib.util.find_spec(package).submodule_search_locations:
            yield from sorted(Path(folder).rglob("*.py"))
    yield from (Path(word) for word in asked if Path(word).is_file())
