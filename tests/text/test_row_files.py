"""JSON lines and Parquet: the text of a column, row by row, or a refusal that says where."""

import collections
import gzip
import json
import lzma
import sys

import pytest

from lab.text import decoding
from lab.text.documents import documents
from lab.text.rows import text_of, texts

ROWS = ["Once.\n\nTwice.\r\n", "", "Zoë\u2028said\x85so", "\ufeff\ufeffa \ufeff b\n\ufeffc", "last\rline"]
READ = ["Once.\n\nTwice.\n", "", "Zoë\u2028said\x85so", "a \ufeff b\nc", "last\nline"]


def written(tmp_path, name, content):
    path = tmp_path / name
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix.lower(), bytes)
    path.write_bytes(pack(content))
    return path


def json_lines(rows, end="\n", **options):
    return end.join(json.dumps(row, **options) for row in rows).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL.gz", "a.jsonl.xz"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n \n"])
@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_texts_of_json_lines_are_those_that_were_written(tmp_path, monkeypatch, name, end, ensure_ascii, size):
    monkeypatch.setattr(decoding, "BLOCK", size)
    rows = [{"id": i, "story": row, "text": None} for i, row in enumerate(ROWS)]
    marks = collections.Counter()
    content = b"\xef\xbb\xbf" + json_lines(rows, end, ensure_ascii=ensure_ascii) + end.encode()
    assert list(texts(written(tmp_path, name, content), "story", marks)) == READ
    assert marks == {"removed": 4}


def test_rows_are_documents_and_their_lines_are_where_lines_are_asked_for(tmp_path):
    path = written(tmp_path, "a.jsonl", json_lines([{"text": row} for row in ROWS]))
    last = ["Zoë\u2028said\x85so", "a \ufeff b\nc", "last\nline"]
    assert list(documents([path], "endoftext")) == ["Once.\n\nTwice.", *last]
    assert list(documents([path], "blank_line")) == ["Once.", "Twice.", *last]
    by_line = [line for row in last for line in row.split("\n")]
    assert list(documents([path, path], "line")) == ["Once.", "Twice.", *by_line] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"line 2: not JSON \(Expecting ',' delimiter\)$"),
        (b"[" * 100_000, r"line 2: not JSON \("),
        (b"plain text", r"line 2: not JSON \(Expecting value\)$"),
        (b'["a"]', r"line 2: list \"\['a'\]\", where an object with a text is needed$"),
        (b'{"story": "a", "id": 3}', r"line 2: no column 'text' among 'story', 'id'; set task\.column$"),
        (b'{"text": 3}', r"line 2: column 'text' holds int '3', no text$"),
        (b'{"text": null}', r"line 2: column 'text' holds NoneType 'None', no text$"),
        (b'{"text": "ab\\u0000"}', r"line 2: not text: character 2 of column 'text' is zero$"),
        (b'{"text": "a\\ud800"}', r"line 2: not text: character 1 of column 'text' is half a pair$"),
        (b'{"text": "\xff"}', r"not UTF-8 text at byte 24$"),
    ],
)
def test_lines_without_a_text_are_refused_with_their_place(tmp_path, line, message):
    path = written(tmp_path, "a.jsonl", b'{"text":"ok"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message) as error:
        list(texts(path, "text"))
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_texts_are_read_only_up_to_what_is_asked_for(tmp_path):
    path = written(tmp_path, "a.jsonl", b'{"text":"ok"}\n{')
    assert next(texts(path, "text")) == "ok"


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a\.parquet: .* package pyarrow: pip install 'gammalab\[text\]'$"):
        list(texts(written(tmp_path, "a.parquet", b"PAR1"), "text"))


def test_parquet_is_the_text_of_a_column(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "A.PARQUET"
    kinds = {
        "story": arrow.string(),
        "large": arrow.large_string(),
        "view": arrow.dictionary(arrow.int32(), arrow.string()),
    }
    table = arrow.table({name: arrow.array(ROWS, kind) for name, kind in kinds.items()} | {"id": range(len(ROWS))})
    parquet.write_table(table, path, row_group_size=2)
    for column in kinds:
        assert list(texts(path, column)) == READ
    with pytest.raises(ValueError, match=r"A\.PARQUET: no column 'text' among 'story', 'large', 'view', 'id'; set"):
        list(texts(path, "text"))
    with pytest.raises(ValueError, match=r"A\.PARQUET: row 0: column 'id' holds int '0', no text$"):
        list(texts(path, "id"))
    for name, content in (("cut", path.read_bytes()[:-9]), ("text", b"plain text"), ("empty", b"")):
        damaged = written(tmp_path, f"{name}.parquet", content)
        with pytest.raises(ValueError, match=rf"{name}\.parquet: damaged, or no \.parquet file \(.*\)$") as error:
            list(texts(damaged, "text"))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="decompress it first"):
        list(texts(written(tmp_path, "b.parquet.gz", path.read_bytes()), "story"))


def test_a_text_of_a_row_is_checked_wherever_the_row_comes_from():
    assert text_of({"a": "x\r\ny"}, "a", "here") == "x\ny"
    with pytest.raises(ValueError, match=r"^here: no column 'b' among 'a'; set task\.column$"):
        text_of({"a": ""}, "b", "here")
