"""Tables of examples by their hash: those that this process was given, and those that trainings keep."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

HELD: dict[str, dict[str, np.ndarray]] = {}  # sha256 -> name -> array
FOLDERS: list[Path] = []  # where else a table may be
SUFFIX = ".npy"


def hold(arrays: Mapping[str, np.ndarray]) -> str:
    """Keeps a table in this process; returns its hash."""
    arrays = {name: np.asarray(array) for name, array in sorted(arrays.items())}
    sha256 = hash_of(arrays)
    HELD[sha256] = arrays
    return sha256


def offer(folder: Path) -> None:
    """A folder in which a table may be looked for."""
    if folder not in FOLDERS:
        FOLDERS.append(folder)


def get(sha256: str) -> dict[str, np.ndarray]:
    """A table by its hash.

    Raises:
      ValueError: it is nowhere, whole.
    """
    for folder in reversed(FOLDERS if sha256 not in HELD else ()):
        contents = {path.name: path.read_bytes() for path in sorted(folder.glob(f"*{SUFFIX}"))}
        if contents and _hash(contents) == sha256:
            hold({name.removesuffix(SUFFIX): np.load(io.BytesIO(content)) for name, content in contents.items()})
    if sha256 not in HELD:
        raise ValueError(
            f"task.sha256={sha256[:12]}...: this table of examples is not in this process, and in no training's data/ "
            "that it opened; make the task from the same arrays first"
        )
    return HELD[sha256]


def files(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """A table as files, by name."""
    contents = {}
    for name, array in sorted(arrays.items()):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        contents[f"{name}{SUFFIX}"] = buffer.getvalue()
    return contents


def hash_of(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of a table."""
    return _hash(files(arrays))


def _hash(contents: Mapping[str, bytes]) -> str:
    parts = [(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(contents.items())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
