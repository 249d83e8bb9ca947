"""Text files -> documents: read in blocks, so that memory does not grow with the size of a file."""

import codecs
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SEPARATORS = ("line", "endoftext", "blank_line")
END_OF_TEXT = "<|endoftext|>"
SUFFIXES = (".txt", ".text", ".tokens", ".raw", ".xz", ".gz")  # what is read of a folder
BLOCK = 2**20  # bytes read at once
LONGEST = 2**14  # characters of a document; a longer one is cut at a space


def files(path: str | Path) -> list[Path]:
    """The file itself, or the text files of a folder in the order of their names; not those of folders in it.

    Raises:
      ValueError: no such path, or a folder without text.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and one.is_file() and one.name[0] != ".")
        if not found:
            raise ValueError(f"{path}: a folder without text; files that end in {', '.join(SUFFIXES)} are read")
        return found
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return [path]


def documents(paths: Sequence[Path], separator: str) -> Iterator[str]:
    """The documents of some files, one after the other, none of them blank.

    Args:
      separator: what a document is: every `line` that is not blank (WikiText: paragraphs and headings), what stands
        between lines `<|endoftext|>` (TinyStories), or between blank lines (`blank_line`). One of more than 16,384
        characters comes in parts, cut where a line ends, or a word.

    Raises:
      ValueError: as `blocks`.
    """
    for path in paths:
        held, size = [], 0
        for line in itertools.chain(_lines(blocks(path)), [None]):
            ends = line is None or _is_boundary(line, separator)
            if not ends:
                held.append(line)
                size += len(line)
            if ends or separator == "line" or size > LONGEST:
                document = "".join(held).strip()
                if document:
                    yield document
                held, size = [], 0


def blocks(path: Path) -> Iterator[str]:
    """The text of a file, plain, .xz or .gz, piece by piece, with line ends `\\n`.

    Raises:
      ValueError: it cannot be read, is truncated, or is not UTF-8; the first byte that is not is named, counted from 0
        (in a compressed file: after decompression).
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    n_read = 0
    for content in itertools.chain(_content(path), [b""]):
        n_pending = len(decoder.getstate()[0])
        try:
            if b"\0" in content:
                raise ValueError(f"{path}: not text: byte {n_read + content.index(0)} is zero")
            text = newlines.decode(decoder.decode(content, final=not content), final=not content)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text at byte {n_read - n_pending + error.start}") from error
        yield text.removeprefix("\ufeff") if n_read == 0 else text
        n_read += len(content)


def _content(path: Path) -> Iterator[bytes]:
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opened(path, "rb") as file:
            while content := file.read(BLOCK):
                yield content
    except EOFError as error:
        raise ValueError(f"{path}: truncated") from error
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged, or no {path.suffix} file ({error})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; one that is too long to be held comes in parts, the same however the texts are cut."""
    rest = ""
    for text in texts:
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            yield from _cut(line + "\n")
        *parts, rest = _cut(rest)
        yield from parts
    yield rest


def _cut(line: str) -> list[str]:
    parts = []
    while len(line) > LONGEST:
        end = line.rfind(" ", 1, LONGEST) + 1 or LONGEST
        parts.append(line[:end])
        line = line[end:]
    return [*parts, line]


def _is_boundary(line: str, separator: str) -> bool:
    return line.strip() == END_OF_TEXT if separator == "endoftext" else not line.strip()
