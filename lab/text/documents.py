"""Text files -> documents, one after the other."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lab.text import rows, sources
from lab.text.decoding import MARK, blocks
from lab.text.words import WHITE_SPACE, strip

SEPARATORS = ("line", "endoftext", "blank_line")
END_OF_TEXT = "<|endoftext|>"
LONGEST = 2**14  # characters of a document; a longer one is cut at a space


def documents(
    paths: Sequence[Path], separator: str, column: str = "text", marks: collections.Counter | None = None
) -> Iterator[str]:
    """The documents of some files, one after the other, none of them blank, none begun by a byte order mark.

    Args:
      separator: what a document is: every `line` that is not blank (WikiText: paragraphs and headings), what stands
        between lines `<|endoftext|>` (TinyStories), or between blank lines (`blank_line`); a file ends a document, and
        so does a row of one. One of more than 16,384 characters comes in parts, cut where a line ends, or a word.
      column: where the text is in files of rows, `.jsonl` and `.parquet`.
      marks: byte order marks are counted in its entries `removed` and `inside` (of lines, where they stay).

    Raises:
      ValueError: as `lab.text.decoding.blocks` and `lab.text.rows.texts`.
    """
    marks = collections.Counter() if marks is None else marks
    for path in paths:
        for text in _texts(path, column, marks):
            for document in _documents(text, separator):
                begun = document.lstrip(WHITE_SPACE + MARK)
                if begun:
                    marks["removed"] += document.count(MARK, 0, len(document) - len(begun))
                    marks["inside"] += begun.count(MARK)
                    yield begun


def _texts(path: Path, column: str, marks: collections.Counter) -> Iterator[Iterable[str]]:
    """The text of a file in pieces, or that of each of its rows."""
    if sources.suffix(path) in sources.ROWS:
        for text in rows.texts(path, column, marks):
            yield [text]
    else:
        yield blocks(path, marks)


def _documents(text: Iterable[str], separator: str) -> Iterator[str]:
    held, size = [], 0
    for line in itertools.chain(_lines(text), [None]):
        ends = line is None or _is_boundary(line, separator)
        if not ends:
            held.append(line)
            size += len(line)
        if ends or separator == "line" or size > LONGEST:
            document = strip("".join(held))
            if document:
                yield document
            held, size = [], 0


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
    return strip(line) == END_OF_TEXT if separator == "endoftext" else not strip(line)
