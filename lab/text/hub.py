"""Data sets of Hugging Face (extra `text`), and their text, streamed once into a file."""

import contextlib
import hashlib
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.text.documents import END_OF_TEXT
from lab.text.rows import text_of

ENDING = {"line": "\n", "endoftext": f"\n{END_OF_TEXT}\n", "blank_line": "\n\n"}  # of a row of a data set


def download(folder: Path, hf_id: str, separator: str, split: str, column: str) -> Path:
    """The file that holds one split of a data set, a document a row; downloaded if it is not in `folder` yet.

    A new revision of the data set is not noticed: delete the file to have it downloaded again.

    Args:
      hf_id: `name` or `name:config`.
      separator: see `lab.text.documents.documents`.
      column: where the text is.

    Raises:
      ValueError: no such data set or split, no text in that column, no network, or `folder` cannot be written to.
    """
    named = [] if column == "text" else [column]
    key = hashlib.sha256("\n".join((hf_id, split, separator, *named)).encode()).hexdigest()
    path = folder / f"{key}.txt"
    if path.is_file():
        return path
    temporary = path.with_name(f".new-{uuid.uuid4().hex}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for i, row in enumerate(_rows(hf_id, split)):
                text = text_of(row, column, f"task.hf_id={hf_id!r}: row {i} of split {split!r}")
                file.write(text.rstrip("\n") + ENDING[separator])
        temporary.replace(path)
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot be written to ({error.strerror}); set GAMMALAB_CACHE to a folder that can"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def load(hf_id: str, config: str | None, split: str, instead: str, **options):
    """A split of a data set, by Hugging Face `datasets`, which keeps what it downloads unless it streams.

    Args:
      instead: what a path may name where there is no network.

    Raises:
      ValueError: the package is missing; no such data set, configuration or split; no network.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("task.hf_id needs the package datasets: pip install 'gammalab[text]'") from error
    with _one_line(hf_id, split, instead):
        return datasets.load_dataset(hf_id, config, split=split, **options)


def _rows(hf_id: str, split: str) -> Iterable[Mapping]:
    name, _, config = hf_id.partition(":")
    rows = load(name, config or None, split, "the text", streaming=True)
    with _one_line(hf_id, split, "the text"):
        yield from rows


@contextlib.contextmanager
def _one_line(hf_id: str, split: str, instead: str):
    """Errors of the library as a ValueError in one line."""
    try:
        yield
    except Exception as error:  # network, HTTP, a wrong name, a file that cannot be parsed: all of them its own kinds
        reason = f"{type(error).__name__}: {(str(error).strip() or 'nothing more is said').splitlines()[0]}"
        raise ValueError(
            f"task.hf_id={hf_id!r}: its split {split!r} cannot be had ({reason}); offline, give {instead} as task.path"
        ) from error
