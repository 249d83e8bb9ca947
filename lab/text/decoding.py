"""Text files as strings, read in blocks, so that memory does not grow with the size of a file."""

import codecs
import collections
import gzip
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from lab.text.sources import compression

BLOCK = 2**20  # bytes read at once
MARK = "\ufeff"  # Unicode's byte order mark, which in UTF-8 says nothing
OTHER_MARKS = {  # the first bytes of a file -> in what it is written; longer ones first
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
_MARKS_OF_LINES = re.compile(rf"(?<=\n){MARK}+")
_MARKS_OF_TEXT = re.compile(rf"(?:\A|(?<=\n)){MARK}+")


def blocks(path: Path, marks: collections.Counter | None = None) -> Iterator[str]:
    """The text of a file, plain, .xz or .gz, piece by piece, with line ends `\\n`, no line begun by a byte order mark.

    Args:
      marks: the number of marks that are removed is added to its entry `removed`.

    Raises:
      ValueError: it cannot be read, is truncated, or is not UTF-8; the first byte that is not is named, counted from 0
        (in a compressed file: after decompression).
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    n_read, begins = 0, True
    for content in itertools.chain(content_of(path), [b""]):
        n_pending = len(decoder.getstate()[0])
        if n_read == 0:
            _check_encoding(path, content)
        try:
            if b"\0" in content:
                raise ValueError(f"{path}: not text: byte {n_read + content.index(0)} is zero")
            text = newlines.decode(decoder.decode(content, final=not content), final=not content)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text at byte {n_read - n_pending + error.start}") from error
        n_read += len(content)
        if text:
            text = without_marks(text, marks, begins)
            begins = text.endswith("\n") or (begins and not text)
        yield text


def without_marks(text: str, marks: collections.Counter | None = None, begins: bool = True) -> str:
    """Without byte order marks where lines begin; the first line of the text only if it `begins` there."""
    if MARK not in text:
        return text
    cleaned = (_MARKS_OF_TEXT if begins else _MARKS_OF_LINES).sub("", text)
    if marks is not None:
        marks["removed"] += len(text) - len(cleaned)
    return cleaned


def note(path: Path | str, marks: collections.Counter) -> list[str]:
    """A line about the byte order marks of some text, if it has any."""
    said = [f"{marks['removed']} byte order marks (U+FEFF) removed where lines begin"] if marks["removed"] else []
    said += [f"{marks['inside']} kept inside of lines"] if marks["inside"] else []
    return [f"{path}: {', '.join(said)}"] if said else []


def content_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed; none of the pieces is empty.

    Raises:
      ValueError: it cannot be read, or is truncated or damaged.
    """
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(compression(path), open)
    try:
        with opened(path, "rb") as file:
            size = max(BLOCK, 4)  # of the first piece: as long as the longest mark
            while content := file.read(size):
                yield content
                size = BLOCK
    except EOFError as error:
        raise ValueError(f"{path}: truncated") from error
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged, or no {compression(path)} file ({error})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _check_encoding(path: Path, content: bytes) -> None:
    for mark, name in OTHER_MARKS.items():
        if content.startswith(mark):
            raise ValueError(f"{path}: {name} text; save it as UTF-8")
