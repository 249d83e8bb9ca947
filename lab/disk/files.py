"""Atomic file writes with a content hash that every read verifies.

A JSON file holds a hash of its content, an npz file one of its bytes. An npz file also holds a hash of the training it
belongs to: reading it in the folder of another training is refused.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

PLAN = "plan.json"  # how the rows are computed; not there before training, and not needed after it
PRUNED = "pruned.json"  # snapshots that were dropped on purpose; not there in most folders
IDENTITY = ("config.json", "grid.json")  # the files that say which training a folder holds
SEAL = 64  # bytes at the end of an npz: which training it belongs to, and the sha256 of everything before
REMOVE_TRIES = 5


class WorkdirError(Exception):
    """A training's folder cannot be used as asked; the message is for the user."""


class DamagedError(WorkdirError):
    """A file or folder is missing, or differs from what was written."""


class SaveError(OSError):
    """A file or folder could not be written; the one it would have replaced is still there."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: it takes its name when it is complete and on disk.

    Raises:
      SaveError: it could not be written; nothing is left of it.
    """
    with writing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary place that takes the name `path` when the block ends; nothing is left of it if that raises.

    Raises:
      SaveError: it could not be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise SaveError(f"{path}: could not be written ({reason(error)})") from error
    finally:
        remove(temporary)


def link(place: Path, target: Path) -> None:
    """Makes `place` a symbolic link to the folder `target`, which is made, too; in place of one to somewhere else.

    Raises:
      SaveError: it could not be made.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not (place.is_symlink() and place.readlink() == target):
            place.unlink(missing_ok=True)
            place.symlink_to(target)
    except OSError as error:
        raise SaveError(f"{place}: no link to {target} could be made ({reason(error)})") from error


def write_json(path: Path, value) -> None:
    """Writes JSON atomically; a dict is signed, for `read_json`."""
    write_bytes(path, _signed(value) if isinstance(value, dict) else _text(value))


def read_json(path: Path) -> dict:
    """What `write_json` was given.

    Raises:
      DamagedError: the file is missing, or differs in any byte from what was written.
    """
    try:
        return _parse(read_bytes(path))
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes an npz file atomically, with a seal: a zip comment at its end, which `np.load` ignores.

    Returns:
      Its hash, see `npz_hash`.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    training = bytes.fromhex(training_of(path.parent.parent) or "00" * 32)
    # A zip file ends with the length of its comment, which is 0 so far, and the comment.
    content = buffer.getvalue()[:-2] + SEAL.to_bytes(2, "little") + training
    content += hashlib.sha256(content).digest()
    write_bytes(path, content)
    return content[-32:].hex()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """
    Raises:
      DamagedError: the file is missing, differs in any bit from what was written, or is of another training.
    """
    content = read_bytes(path)
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise DamagedError(f"{path}: damaged (not what was written)")
    refuse_other_training(path, path.parent.parent, content[-SEAL:-32].hex())
    with np.load(io.BytesIO(content)) as file:
        return {name: file[name] for name in file.files}


def npz_hash(path: Path) -> str:
    """The sha256 that a sealed npz ends with; different arrays, or another training, give another."""
    return read_bytes(path)[-32:].hex()


def training_of(workdir: Path) -> str | None:
    """Hash of a folder's config, grid and weights started from; None where one is missing or damaged.

    Two folders whose files are interchangeable have the same hash; others have different ones.
    """
    try:
        return _training(*((workdir / name).read_bytes() for name in IDENTITY))
    except OSError:
        return None


def refuse_other_training(path: Path, workdir: Path, training: str | None) -> None:
    """
    Raises:
      DamagedError: `training` is not the folder's; a folder without a readable identity refuses nothing.
    """
    if training_of(workdir) not in (None, training):
        raise DamagedError(f"{path}: belongs to another training (config.json or grid.json differ)")


def read_bytes(path: Path) -> bytes:
    """
    Raises:
      DamagedError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing") from error
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({reason(error)})") from error


def hashes(contents: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 of each."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def set_aside(path: Path) -> Path:
    """Renames a file or folder to `damaged-<name>`, which nothing reads; an earlier one of that name is deleted."""
    aside = path.with_name(f"damaged-{path.name}")
    remove(aside)
    return path.rename(aside)


def remove(path: Path) -> None:
    """Deletes a file or folder as far as possible; raises nothing."""
    if path.is_dir():
        for _ in range(REMOVE_TRIES):  # threads of a save that failed may still be writing into it
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                return
            time.sleep(0.1)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


def steps(folder: Path) -> list[int]:
    """Steps saved in a folder, oldest first; unfinished saves and foreign names are not among them."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and is_step(path.name))


def is_step(name: str) -> bool:
    """Whether a name is a step number in its only spelling, without leading zeros."""
    return re.fullmatch("0|[1-9][0-9]*", name, re.ASCII) is not None


def reason(error: BaseException) -> str:
    """The system's error message; tensorstore gives an error number inside a long message."""
    if isinstance(error, SaveError) and error.__cause__:
        return reason(error.__cause__)
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if found:
        return os.strerror(int(found[1]))
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return told.splitlines()[0]


def _text(value) -> bytes:
    return json.dumps(value, indent=1).encode()


def _canonical(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _signed(value: dict) -> bytes:
    plain = json.loads(json.dumps(value))
    return _text(plain | {"sha256": hashlib.sha256(_canonical(plain)).hexdigest()})


def _parse(content: bytes) -> dict:
    """The dict that `_signed` gives this text of, to the byte; ValueError if there is none."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ValueError(f"damaged ({error})") from error
    if not isinstance(value, dict) or "sha256" not in value:
        raise ValueError("no sha256: damaged")
    del value["sha256"]
    if _signed(value) != content:
        raise ValueError("damaged (not what was written)")
    return value


@functools.lru_cache(maxsize=16)
def _training(config: bytes, grid: bytes) -> str | None:
    try:
        held = _parse(config)
        identity = {"config": held["config"], "grid": _parse(grid)}
        identity |= {"start": held["start"]} if held["start"] else {}
    except (ValueError, KeyError):
        return None
    return hashlib.sha256(_canonical(identity)).hexdigest()
