"""Files of rows, a text in each: JSON lines and Parquet."""

import collections
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lab.text.decoding import blocks, without_marks
from lab.text.sources import compression, suffix


def texts(path: Path, column: str, marks: collections.Counter | None = None) -> Iterator[str]:
    """The texts of one column of a `.jsonl` (also .xz or .gz) or `.parquet` file, as `text_of` gives them, no line
    begun by a byte order mark.

    Raises:
      ValueError: as `lab.text.decoding.blocks` and `text_of`; a line that is no JSON object, no Parquet file, or the
        package that reads it is missing.
    """
    found = _json_lines(path, marks) if suffix(path) == ".jsonl" else _parquet(path, column)
    for where, row in found:
        yield without_marks(text_of(row, column, where), marks)


def text_of(row: Mapping, column: str, where: str) -> str:
    """The text that a row has in a column, with line ends `\\n`.

    Raises:
      ValueError: no such column, no text in it, or one that no file of text could hold.
    """
    if column not in row:
        raise ValueError(f"{where}: no column {column!r} among {', '.join(map(repr, row))}; set task.column")
    text = row[column]
    if not isinstance(text, str):
        raise ValueError(f"{where}: column {column!r} holds {type(text).__name__} {str(text)[:20]!r}, no text")
    if "\0" in text:
        raise ValueError(f"{where}: not text: character {text.index(chr(0))} of column {column!r} is zero")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: not text: character {error.start} of column {column!r} is half a pair") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json_lines(path: Path, marks: collections.Counter | None) -> Iterator[tuple[str, Mapping]]:
    for i, line in enumerate(_lines(blocks(path, marks)), 1):
        if not line.strip():
            continue
        where = f"{path}: line {i}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({getattr(error, 'msg', error)})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {type(row).__name__} {str(row)[:20]!r}, where an object with a text is needed")
        yield where, row


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    held = []
    for piece in pieces:
        *whole, rest = piece.split("\n")
        for line in whole:
            yield "".join([*held, line])
            held = []
        held.append(rest)
    yield "".join(held)


def _parquet(path: Path, column: str) -> Iterator[tuple[str, Mapping]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: .parquet needs the package pyarrow: pip install 'gammalab[text]'") from error
    if compression(path):
        raise ValueError(f"{path}: decompress it first; Parquet files are compressed inside")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                text_of(dict.fromkeys(names), column, str(path))
            first = 0
            for batch in file.iter_batches(columns=[column]):
                for i, text in enumerate(batch.column(0).to_pylist(), first):
                    yield f"{path}: row {i}", {column: text}
                first += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"{path}: damaged, or no .parquet file ({reason})") from error
