"""Which files a path means: the file itself, or the text files of a folder, of each split where their names say so."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PLAIN = (".txt", ".text", ".tokens", ".raw")
ROWS = (".jsonl", ".parquet")
COMPRESSED = (".xz", ".gz")
SUFFIXES = (*PLAIN, *ROWS, *COMPRESSED)  # what is read of a folder, in any case
SPLIT_OF = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid",
            "dev": "valid", "test": "test"}  # fmt: skip
SHOWN = 12


class Found(NamedTuple):
    """The files that a path means, and what of a folder is passed over, each with the reason."""

    paths: list[Path]
    passed_over: list[str]

    def note(self, where: str) -> list[str]:
        """A line about what is passed over, if anything is."""
        if not self.passed_over:
            return []
        more = f" and {len(self.passed_over) - SHOWN} more" if len(self.passed_over) > SHOWN else ""
        return [f"{where}: not read: {', '.join(self.passed_over[:SHOWN])}{more}"]


def expand(path: str | Path) -> Path:
    """A path with its `~` replaced.

    Raises:
      ValueError: the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: no home folder to replace ~ by ({error}); give the whole path") from error


def find(path: str | Path) -> Found:
    """The file itself, or the text files of a folder in the order of their names; not those of folders in it.

    Raises:
      ValueError: no such path, nothing that can be read, a link that leads nowhere, a folder without text, or one with
        the same text twice, plain and compressed.
    """
    path = expand(path)
    try:
        if path.is_dir():
            return _of_folder(path)
        _check_file(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    return Found([path], [])


def as_one(option: str, path: str) -> tuple[list[Path], list[str]]:
    """The files of a path whose text is one, and what to say of files that are not read.

    Raises:
      ValueError: as `find`, or a folder with files of split train beside files of others.
    """
    found = find(path)
    parts = by_split(found.paths)
    if "train" in parts and parts.keys() & {"valid", "test"}:
        shown = ", ".join(f"{paths[0].name} ({split})" for split, paths in sorted(parts.items()) if split)
        raise ValueError(
            f"{option}={path!r}: a folder with files of several splits, {shown}; give one file, or read those of train "
            "and valid with --config.task.valid_share=0 --config.task.valid_path=''"
        )
    return found.paths, found.note(path)


def as_splits(option: str, path: str, instead: str) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of a folder that are of split train, and those of valid, and what to say of files that are not read.

    Raises:
      ValueError: as `find`, or one of these splits has no file.
    """
    found = find(path)
    parts = by_split(found.paths)
    missing = [split for split in ("train", "valid") if split not in parts]
    if missing:
        raise ValueError(f"{option}={path!r}: no file of split {missing[0]!r}; {instead}")
    wanted = {split: parts.pop(split) for split in ("train", "valid")}
    for split, paths in parts.items():
        reason = f"split {split}" if split else "of no split"
        found.passed_over.extend(f"{one.name} ({reason})" for one in paths)
    return wanted, found.note(path)


def by_split(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The files whose names begin or end with that of a split, `wiki.train.tokens`, by split; the others under ``."""
    parts = {}
    for path in paths:
        words = [word for word in re.split(r"[-._]", _plain_name(path)) if word]
        named = [SPLIT_OF[word] for word in (*words[-1:], *words[:1]) if word in SPLIT_OF]
        parts.setdefault(named[0] if named else "", []).append(path)
    return parts


def suffix(path: Path) -> str:
    """How a name ends, in lower case and without the ending of a compressed file: `.jsonl` of `A.JSONL.gz`."""
    return _plain_path(path).suffix


def compression(path: Path) -> str:
    """`.xz`, `.gz`, or nothing."""
    return path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""


def _of_folder(path: Path) -> Found:
    found = Found([], [])
    for entry in sorted(path.iterdir()):
        reason = _passed_over(entry)
        if reason:
            found.passed_over.append(f"{entry.name} ({reason})")
        else:
            _check_file(entry)
            found.paths.append(entry)
    if not found.paths:
        raise ValueError(f"{path}: a folder without text; files that end in {', '.join(SUFFIXES)} are read")
    _check_distinct(found.paths)
    empty = [one for one in found.paths if not one.stat().st_size]
    if 0 < len(empty) < len(found.paths):
        found.passed_over.extend(f"{one.name} (empty)" for one in empty)
        found = Found([one for one in found.paths if one not in empty], found.passed_over)
    return found


def is_named_as_file(path: str) -> bool:
    """Its name ends as that of a text file, and it is no folder, as far as one can see from here."""
    return Path(path).suffix.lower() in SUFFIXES and not expand(path).is_dir()


def _plain_path(path: Path) -> Path:
    lower = Path(path.name.lower())
    return lower.with_suffix("") if lower.suffix in COMPRESSED else lower


def _plain_name(path: Path) -> str:
    """Without endings."""
    plain = _plain_path(path)
    return plain.stem if plain.suffix in SUFFIXES else plain.name


def _passed_over(entry: Path) -> str:
    """Why an entry of a folder is none of its texts; empty if it is one."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir():
        return "a folder"
    if entry.suffix.lower() not in SUFFIXES:
        return f"ends in {entry.suffix}" if entry.suffix else "no ending"
    return ""


def _check_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: a link that leads nowhere")
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if not path.is_file():
        raise ValueError(f"{path}: neither a file nor a folder")


def _check_distinct(paths: Sequence[Path]) -> None:
    first = {}
    for path in paths:
        plain = path.name[: -len(compression(path))] if compression(path) else path.name
        if plain in first:
            raise ValueError(f"{path.parent}: {plain} lies there twice, as {first[plain].name} and {path.name}")
        first[plain] = path
