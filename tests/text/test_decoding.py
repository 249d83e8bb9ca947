"""Bytes to text: what of Unicode's marks is removed, and what is no UTF-8."""

import collections
import gzip

import numpy as np
import pytest

from lab.text import decoding
from lab.text.decoding import blocks, note
from lab.text.documents import SEPARATORS, documents

MARK = "\ufeff"


def written(tmp_path, content, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 2**20])
def test_marks_are_removed_where_lines_begin_and_kept_inside(tmp_path, monkeypatch, end, size):
    monkeypatch.setattr(decoding, "BLOCK", size)
    text = end.join([f"{MARK}{MARK}one", f"t{MARK}wo", f"{MARK}three", MARK, "", f" {MARK}", f"{MARK}é"])
    marks = collections.Counter()
    assert "".join(blocks(written(tmp_path, text), marks)) == f"one\nt{MARK}wo\nthree\n\n\n {MARK}\né"
    assert marks == {"removed": 5}


def test_random_text_is_cleaned_whatever_the_size_of_a_block(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    text = "".join(draw.choice([MARK, "\n", "a", "\r\n", "é", " "], 500))
    lines = text.replace("\r\n", "\n").split("\n")
    for size in (1, 2, 3, 4, 7, 10_000):
        monkeypatch.setattr(decoding, "BLOCK", size)
        assert "".join(blocks(written(tmp_path, text))) == "\n".join(line.lstrip(MARK) for line in lines)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_files_with_marks_that_were_joined_are_their_documents(tmp_path, separator):
    parted = {"line": "\n", "endoftext": "\n<|endoftext|>\n", "blank_line": "\n\n"}[separator]
    files = [f"{MARK}one two{parted}three{parted}", f"{MARK}four{parted}{MARK}", f" {MARK}five{parted}", f"si{MARK}x"]
    marks = collections.Counter()
    found = list(documents([written(tmp_path, "".join(files))], separator, marks=marks))
    assert found == ["one two", "three", "four", "five", f"si{MARK}x"]
    assert marks == {"removed": 4, "inside": 1}
    assert note("F", marks) == ["F: 4 byte order marks (U+FEFF) removed where lines begin, 1 kept inside of lines"]
    assert note("F", collections.Counter()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Zoë".encode("utf-16"), "UTF-16 text; save it as UTF-8$"),
        (b"\xfe\xff" + "Zoë".encode("utf-16-be"), "UTF-16 text"),
        ("Zoë".encode("utf-32"), "UTF-32 text"),
        (b"\x00\x00\xfe\xff\x00\x00\x00a", "UTF-32 text"),
        (b"\xff\xfe", "UTF-16 text"),
        ("abc".encode("utf-16-le"), "not text: byte 1 is zero$"),
        (b"abc\n\x00", "not text: byte 4 is zero$"),
        (b"ab\xc3\n", "not UTF-8 text at byte 2$"),
        (b"\xef\xbb\xbfab\xff", "not UTF-8 text at byte 5$"),
        (b"a\xed\xa0\x80", "not UTF-8 text at byte 1$"),  # half of a pair
    ],
)
@pytest.mark.parametrize("size", [1, 2**20])
@pytest.mark.parametrize("name", ["a.txt", "A.TXT.GZ"])
def test_what_is_no_utf8_is_refused_with_its_place(tmp_path, monkeypatch, content, message, size, name):
    monkeypatch.setattr(decoding, "BLOCK", size)
    path = written(tmp_path, gzip.compress(content) if name.endswith("GZ") else content, name)
    with pytest.raises(ValueError, match=message) as error:
        list(blocks(path))
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_files_that_may_not_be_read_are_refused(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decoding, "open", forbidden, raising=False)  # of root nothing is hidden
    with pytest.raises(ValueError, match=r"a\.txt: cannot be read \(Permission denied\)$"):
        list(blocks(written(tmp_path, "a")))
