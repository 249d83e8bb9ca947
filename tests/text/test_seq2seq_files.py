"""Files of pairs: which one is found, what of it is read, and what is refused."""

import lzma
import sys
import types

import pytest

from lab.text.seq2seq_files import END, NAMES, SEPARATOR, UNKNOWN, Pair, download, find_file, prepare, read_lines

PAIRS = [Pair(("walk",), ("WALK",)), Pair(("run", "left"), ("LEFT", "RUN"), "turned"), Pair(("run",), ("RUN",))]
HELD_OUT = [Pair(("jump", "left"), ("LEFT", "JUMP"), "turned")]


def test_tokens_of_a_pair_are_its_words_a_separator_and_an_end():
    ready = prepare({"train": (PAIRS, {"file": "a"}), "test": (HELD_OUT, {"file": "b"})}, 5, 9 + 1, ("turned",))
    assert ready.names == (*NAMES, "LEFT", "RUN", "WALK", "left", "run", "walk") and ready.longest_answer == 3
    assert [ready.names[token] for token in ready.source] == ["left", "run", "walk"]
    assert [ready.names[token] for token in ready.target] == ["LEFT", "RUN", "WALK"]
    id_of = {name: token for token, name in enumerate(ready.names)}
    expected = {
        tuple([*map(id_of.get, pair.source), SEPARATOR, *map(id_of.get, pair.target), END] + [0] * 6)[:6]: pair
        for pair in PAIRS
    }
    table = ready.tables["train"]
    for sequence, first, kind in zip(*(leaf.tolist() for leaf in table), strict=True):
        pair = expected.pop(tuple(sequence))
        assert first == len(pair.source) + 1 and kind == (0 if pair.kind else -1)
    assert not expected
    (sequence,) = ready.tables["test"].sequence_NxM.tolist()
    assert sequence == [UNKNOWN, id_of["left"], SEPARATOR, id_of["LEFT"], UNKNOWN, END]
    told = ready.provenance["splits"]["test"]
    assert (told["file"], told["items"], told["longest"]) == ("b", 1, 6)
    assert (told["unknown_words"], told["items_with_unknown_words"]) == (["JUMP", "jump"], 1)


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ValueError, match=r"task\.length=4: 1 of 3 .* split 'train' .* needs task\.length=5$"):
        prepare({"train": (PAIRS, {})}, 4, 20)
    with pytest.raises(ValueError, match=r"task\.vocab_size=9: the words of the training items need 10$"):
        prepare({"train": (PAIRS, {})}, 5, 9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntwo", "line 2 has no end: the file is truncated"),
        ("a.txt", b"", "empty"),
        ("a.txt", b"0123456789abc \xff\n", "not UTF-8 text at byte 14"),
        ("a.txt.xz", lzma.compress(b"0123456789 0123456789\n")[:-9], "truncated"),
        ("a.txt.xz", b"one\n", "damaged, or no .xz file"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_lines(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \n\t\n", "\r\n\r\n", "\r"])
def test_last_lines_are_read_as_editors_leave_them(tmp_path, end, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(f"\ufeffone\n\ufefftwo words{end}".encode())
    asked = []
    is_whole = lambda line, before: asked.append((line, list(before))) or True  # noqa: E731
    assert read_lines(path, is_whole) == ["one", "two words"]
    assert asked == ([] if end else [("two words", ["one"])])
    assert capsys.readouterr().err == f"lab: {path}: 2 byte order marks (U+FEFF) removed where lines begin\n"


@pytest.mark.parametrize("content", ["\n", " \n\n", "\n \t", "\ufeff"])
def test_blank_lines_are_no_file(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ValueError, match=r"a\.txt: empty$"):
        read_lines(tmp_path / "a.txt")


def test_files_are_found_in_the_folder_or_one_below_plain_or_compressed(tmp_path):
    with pytest.raises(ValueError, match=r"no a\.txt or b\.txt \(plain, \.xz or \.gz\); it holds nothing$"):
        find_file(tmp_path, ["a.txt", "b.txt"])
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.txt.xz").write_bytes(lzma.compress(b"one\n\ntwo\n"))
    found = find_file(tmp_path, ["a.txt", "b.txt"])
    assert found.name == "b.txt.xz" and read_lines(found) == ["one", "", "two"]
    (tmp_path / "a.txt").write_text("three\n")
    assert find_file(tmp_path, ["a.txt", "b.txt"]) == tmp_path / "a.txt"


def test_paths_that_are_no_folder_or_hold_a_file_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        find_file(tmp_path / "absent", ["a.txt"])
    for where in ("", "a/"):
        (tmp_path / where).mkdir(exist_ok=True)
        (tmp_path / where / "a.txt").write_text("one\n")
    with pytest.raises(ValueError, match="a file, where a folder is needed"):
        find_file(tmp_path / "a.txt", ["a.txt"])
    with pytest.raises(ValueError, match=r"a\.txt lies there twice, as .* and a/a\.txt"):
        find_file(tmp_path, ["a.txt"])


class Rows:
    """A data set as `datasets` gives it."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, name):
        return self.columns[name]


def test_data_sets_that_cannot_be_had_are_refused_in_one_line(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    rows = Rows({"text": ["a", "b"], "form": ["c", "d"]})
    for module, message in (
        (None, r"task\.hf_id needs the package datasets: pip install"),
        (
            types.SimpleNamespace(load_dataset=offline),
            r"its split 'train' cannot be had \(ConnectionError: .*Hub\); offline, give a folder as task\.path$",
        ),
        (types.SimpleNamespace(load_dataset=lambda *_, **__: rows), "no column 'commands' among text, form"),
    ):
        monkeypatch.setitem(sys.modules, "datasets", module)
        with pytest.raises(ValueError, match=message) as error:
            download("some/where", None, "train", ("commands", "actions"))
        assert "\n" not in str(error.value)
    assert download("some/where", None, "train", ("text", "form")) == [("a", "c"), ("b", "d")]
