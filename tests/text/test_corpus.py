import gzip
import hashlib
import json
import lzma
import shutil
import sys
import types

import numpy as np
import pytest

from lab.text import corpus, decoding, documents, notes, sources, tokenizer
from lab.text.corpus import prepare
from lab.text.recipe import Recipe

LINES = [f"word{i % 7} of line {i}" for i in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def recipe(path="", **changes):
    plain = dict(
        hf_id="", separator="line", tokenizer="word", vocab_size=100, valid_share=0.1, valid_path="", column="text"
    )
    return Recipe(**{"path": str(path)} | plain | changes)


def written(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_tokens_are_the_words_of_every_document_each_followed_by_the_end(text):
    found = prepare(recipe(text))
    # 10 % of 40 lines: the last four. Decoded by the vocabulary itself, not by the tokenizer.
    held = {"train": LINES[:36], "valid": LINES[36:]}
    known = {word for line in held["train"] for word in line.split()}
    for split, lines in held.items():
        expected = []
        for line in lines:
            expected += [*(word if word in known else "<unk>" for word in line.split()), "<eos>"]
        assert [found.tokenizer.names[token] for token in found.tokens[split]] == expected
        said = found.provenance["splits"][split]
        assert (said["tokens"], said["documents"]) == (5 * len(lines), len(lines))
        assert said["unknown_share"] == expected.count("<unk>") / len(expected)
    assert found.provenance["splits"]["valid"]["unknown_share"] == 4 / 20  # the numbers 36 to 39 are new


@pytest.mark.parametrize(
    ("separator", "content", "expected"),
    [
        ("line", " \n = Title = \n \n A b . \r\n C\n\n", ["= Title =", "A b .", "C"]),
        ("endoftext", "One.\n\nTwo.\n<|endoftext|>\n\nThree <|endoftext|> x\n <|endoftext|> \n<|endoftext|>\nFour",
         ["One.\n\nTwo.", "Three <|endoftext|> x", "Four"]),
        ("blank_line", "One\ntwo\n \nthree\n\n\n\nfour", ["One\ntwo", "three", "four"]),
    ],
)  # fmt: skip
def test_documents_stand_between_separators(tmp_path, separator, content, expected):
    path = written(tmp_path, "a.txt", b"\xef\xbb\xbf" + content.encode())  # with a byte order mark
    assert list(documents.documents([path], separator)) == expected
    # a file ends a document
    assert list(documents.documents([path, path], separator)) == expected * 2


@pytest.mark.parametrize("separator", documents.SEPARATORS)
def test_documents_do_not_depend_on_the_size_of_a_block(tmp_path, monkeypatch, separator):
    monkeypatch.setattr(documents, "LONGEST", 60)
    draw = np.random.default_rng(0)
    pieces = ["é", "日本", "🙂", "a", "bc", " ", "\n", "\r\n", "\n\n", "\n<|endoftext|>\n", "x" * 70, "y" * 150 + " z"]
    path = written(tmp_path, "a.txt", "".join(draw.choice(pieces, 600)).encode())
    monkeypatch.setattr(decoding, "BLOCK", 10**6)
    whole = list(documents.documents([path], separator))
    assert len(whole) > 50
    for size in (1, 2, 3, 17, 61):
        monkeypatch.setattr(decoding, "BLOCK", size)
        assert list(documents.documents([path], separator)) == whole


def test_long_documents_are_cut_between_words_and_nothing_is_lost(tmp_path):
    words = [f"w{i}" for i in range(20_000)]
    path = written(tmp_path, "a.txt", " ".join(words).encode())
    parts = list(documents.documents([path], "line"))
    assert [word for part in parts for word in part.split()] == words
    # greedy: every part but the last would be too long with its next word, of at most 7 characters and a space
    assert all(documents.LONGEST - 8 <= len(part) <= documents.LONGEST for part in parts[:-1])


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_compressed_text_is_the_text(tmp_path, text, suffix):
    compress = {".xz": lzma.compress, ".gz": gzip.compress}[suffix]
    path = written(tmp_path, f"b{suffix}", compress(text.read_bytes()))
    assert "".join(decoding.blocks(path)) == text.read_text()


def test_line_ends_of_every_system_are_one(tmp_path, monkeypatch):
    path = written(tmp_path, "a.txt", b"a\r\nb\rc\nd\r")
    for size in (1, 3, 100):
        monkeypatch.setattr(decoding, "BLOCK", size)
        assert "".join(decoding.blocks(path)) == "a\nb\nc\nd\n"


def test_folder_is_its_text_files_in_order_of_their_names(tmp_path):
    for name, content in (("b.txt", b"2"), ("a.xz", lzma.compress(b"1\n")), (".c.txt", b"9"), ("d.npz", b"9")):
        written(tmp_path, f"folder/{name}", content)
    written(tmp_path, "folder/sub/e.txt", b"9")
    assert list(documents.documents(sources.find(tmp_path / "folder").paths, "line")) == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt: empty"),
        ("blank.txt", b" \n\n \t\n", "blank.txt: empty"),
        ("latin.txt", b"caf\xe9 noir", "latin.txt: not UTF-8 text at byte 3$"),
        ("late.txt", b"a" * (decoding.BLOCK - 1) + "é".encode()[:1] + b"b", f"at byte {decoding.BLOCK - 1}$"),
        ("cut.txt", "abcé".encode()[:-1], "cut.txt: not UTF-8 text at byte 3$"),
        ("binary.txt", b"ab\0c", "binary.txt: not text: byte 2 is zero$"),
        ("inside.xz", lzma.compress(b"abc\xff"), "inside.xz: not UTF-8 text at byte 3$"),
        ("short.xz", lzma.compress(b"abc " * 999)[:-9], "short.xz: truncated$"),
        ("short.gz", gzip.compress(b"abc " * 999, mtime=0)[:-9], "short.gz: truncated$"),
        ("not.xz", b"plain text", r"not.xz: damaged, or no .xz file"),
        ("not.gz", b"plain text", r"not.gz: damaged, or no .gz file"),
        ("one.txt", b"one line", "one.txt: nothing is left to train on, as a line of it is a document and it has 1"),
    ],
)
def test_files_that_are_no_text_are_refused_in_one_line(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as raised:
        prepare(recipe(path))
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_paths_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        prepare(recipe(tmp_path / "nowhere"))
    written(tmp_path, "folder/a.npz", b"x")
    with pytest.raises(ValueError, match=r"folder: a folder without text; files that end in \.txt, "):
        prepare(recipe(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(path=""), "give one of them, --config.task.path=FILE"),
        (dict(hf_id="a/b"), "give one of them, --config.task.path=FILE"),
        (dict(separator="lines"), "task.separator='lines': one of line, endoftext, blank_line"),
        (dict(valid_share=1.0), r"task.valid_share=1.0: .* must lie in \[0, 1\)"),
        (dict(valid_path="b"), "task.valid_path='b': with it, task.valid_share must be 0"),
        (dict(path="nowhere.txt", valid_share=0.0), "task.valid_share=0: what to evaluate on"),
        (dict(path="nowhere.JSONL.gz", valid_share=0.0), "task.valid_share=0: what to evaluate on"),
        (dict(column=""), "task.column='': the name of the column"),
    ],
)
def test_impossible_recipes_are_refused_before_anything_is_read(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**{"path": "nowhere"} | changes)


def test_held_out_text_of_its_own_is_read_and_not_trained_on(tmp_path, text):
    other = written(tmp_path, "valid.txt", b"line of elephants\n")
    found = prepare(recipe(text, valid_share=0.0, valid_path=str(other)))
    assert [found.tokenizer.names[token] for token in found.tokens["valid"]] == ["line", "of", "<unk>", "<eos>"]
    assert found.provenance["splits"]["train"]["documents"] == 40


def named(found, split):
    return [found.tokenizer.names[token] for token in found.tokens[split]]


def test_folder_with_files_of_both_splits_is_read_as_them(tmp_path, capsys):
    for split, content in (("train", "a b"), ("valid", "b c"), ("test", "d")):
        written(tmp_path, f"wiki/wiki.{split}.tokens", f"{content}\n".encode())
    found = prepare(recipe(tmp_path / "wiki", valid_share=0.0))
    assert (named(found, "train"), named(found, "valid")) == (["a", "b", "<eos>"], ["b", "<unk>", "<eos>"])
    assert capsys.readouterr().err == f"lab: {tmp_path / 'wiki'}: not read: wiki.test.tokens (split test)\n"
    for changes in ({}, dict(valid_share=0.0, valid_path=str(tmp_path / "wiki/wiki.valid.tokens"))):
        with pytest.raises(ValueError, match=r"task\.path=.* of several splits, .* --config\.task\.valid_share=0 "):
            prepare(recipe(tmp_path / "wiki", **changes))
    with pytest.raises(ValueError, match=r"task\.valid_path=.* of several splits"):
        prepare(recipe(tmp_path / "wiki/wiki.train.tokens", valid_share=0.0, valid_path=str(tmp_path / "wiki")))
    (tmp_path / "wiki/wiki.valid.tokens").unlink()
    with pytest.raises(ValueError, match=r"no file of split 'valid'; what to evaluate on\?"):
        prepare(recipe(tmp_path / "wiki", valid_share=0.0))


def test_a_path_that_may_be_a_folder_is_judged_when_it_is_read(tmp_path):
    asked = recipe(tmp_path / "elsewhere", valid_share=0.0)  # as of a training on another machine
    with pytest.raises(ValueError, match=r"elsewhere: no such file or folder$"):
        prepare(asked)
    written(tmp_path, "elsewhere", b"a\nb\n")
    with pytest.raises(ValueError, match=r"no file of split 'train'; what to evaluate on\?"):
        prepare(asked)


def test_what_of_a_folder_is_not_read_is_said_once(tmp_path, capsys):
    for name in ("a.txt", "b.TXT", "notes.md"):
        written(tmp_path, f"folder/{name}", f"{name}\n".encode())
    asked = recipe(tmp_path / "folder", valid_share=0.5)
    for _ in range(2):
        assert named(prepare(asked), "train") == ["a.txt", "<eos>"]
    assert capsys.readouterr().err == f"lab: {tmp_path / 'folder'}: not read: notes.md (ends in .md)\n"


def test_byte_order_marks_are_removed_and_it_is_said_by_whoever_reads_the_cache(tmp_path, capsys):
    path = written(tmp_path, "joined.txt", "\ufeffa b\n\ufeffa c\nb\ufeffc\n".encode())
    found = prepare(recipe(path, valid_share=0.3))
    assert named(found, "train") == ["a", "b", "<eos>", "a", "c", "<eos>"]
    assert found.provenance["byte_order_marks"] == {"train": {"removed": 2, "inside": 1}}
    said = f"lab: {path}: 2 byte order marks (U+FEFF) removed where lines begin, 1 kept inside of lines\n"
    assert capsys.readouterr().err == said
    notes.say.cache_clear()  # another process
    prepare(recipe(path, valid_share=0.3))
    assert capsys.readouterr().err == said


def test_rows_are_read_by_their_column_and_other_columns_are_other_text(tmp_path):
    rows = [{"text": f"a {i % 2}", "story": f"b {i % 2}"} for i in range(10)]
    path = written(tmp_path, "a.JSONL.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    for column, first in (("text", "a"), ("story", "b")):
        assert named(prepare(recipe(path, column=column)), "valid") == [first, "1", "<eos>"]
    with pytest.raises(
        ValueError, match=r"a\.JSONL\.gz: line 1: no column 'body' among 'text', 'story'; set task.column"
    ):
        prepare(recipe(path, column="body"))


@pytest.mark.parametrize("odd", ["\x1c", "\x1f", "\x85", "\u2028"])
def test_no_word_of_the_training_text_is_unknown(tmp_path, odd):
    path = written(tmp_path, "a.txt", f"alpha{odd}beta {odd} gamma\n{odd}\ndelta{odd}\nalpha{odd}beta\n".encode())
    found = prepare(recipe(path, valid_share=0.2))
    assert (
        found.provenance["splits"]["train"]["unknown_share"]
        == found.provenance["splits"]["valid"]["unknown_share"]
        == 0
    )


def test_files_that_may_not_be_read_are_refused(text, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpus, "_file_sha256", forbidden)  # of root nothing is hidden
    with pytest.raises(ValueError, match=r"text\.txt: cannot be read \(Permission denied\)$"):
        prepare(recipe(text))


def test_given_tokenizer_is_used_as_it_is(tmp_path, text):
    given = tokenizer.train("bpe", LINES, 270)
    path = written(tmp_path, "tokenizer.json", given.to_bytes())
    found = prepare(recipe(text, tokenizer=str(path), vocab_size=300))
    assert found.tokenizer == given
    assert given.decode(found.tokens["train"]) == "<eos>".join(LINES[:36]) + "<eos>"
    with pytest.raises(ValueError, match=f"task.vocab_size=269: .* has {given.vocab_size} tokens"):
        prepare(recipe(text, tokenizer=str(path), vocab_size=269))
    with pytest.raises(ValueError, match=r"task\.tokenizer='bpe2': one of word, char, bpe, or the path"):
        prepare(recipe(text, tokenizer="bpe2"))
    with pytest.raises(ValueError, match=r"text\.txt: not a tokenizer\.json"):
        prepare(recipe(text, tokenizer=str(text)))


def test_ids_beyond_two_bytes_are_kept_whole(tmp_path):
    # one word a line, 70,000 of them: the last ids do not fit into 16 bits
    path = written(tmp_path, "many.txt", "\n".join(f"{i:05d}" for i in range(70_001)).encode())
    found = prepare(recipe(path, vocab_size=100_000, valid_share=1e-6))
    np.testing.assert_array_equal(found.tokens["train"][::2], np.arange(2, 70_002))


def test_provenance_says_what_was_read_and_the_hashes_of_what_was_written(text, cache):
    found = prepare(recipe(text))
    (folder,) = (cache / "text").iterdir()
    said = json.loads((folder / "provenance.json").read_text())
    content = text.read_bytes()
    assert said["sources"] == {"train": [{"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]}
    assert said["read_from"] == {"train": [str(text)]}
    for split in ("train", "valid"):
        on_disk = (folder / f"{split}.bin").read_bytes()
        assert said["splits"][split]["sha256"] == hashlib.sha256(on_disk).hexdigest()
        assert len(on_disk) == 2 * said["splits"][split]["tokens"] == found.tokens[split].nbytes
    assert said["vocabulary"] == found.tokenizer.vocab_size
    assert (folder / "tokenizer.json").read_bytes() == found.tokenizer.to_bytes()


def test_other_text_or_options_are_prepared_apart_and_the_same_only_once(text, cache, monkeypatch):
    prepare(recipe(text))
    folders = {path.name for path in (cache / "text").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(corpus, "_make", None)  # would raise if it were called
        prepare(recipe(text))
    for changed in (dict(vocab_size=99), dict(tokenizer="char"), dict(separator="blank_line", valid_share=0.2)):
        if "separator" in changed:
            text.write_text("\n\n".join(LINES))
        prepare(recipe(text, **changed))
        now = {path.name for path in (cache / "text").iterdir()}
        assert len(now - folders) == 1
        folders = now


@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "tokenizer.json", "provenance.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_cache_is_made_anew(text, cache, name, damage):
    sound = prepare(recipe(text))
    (folder,) = (cache / "text").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    content = before[name]
    half = len(content) // 2
    damaged = {"flipped": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :], "cut": content[:half]}
    (folder / name).unlink()
    if damage != "gone":
        (folder / name).write_bytes(damaged[damage])
    again = prepare(recipe(text))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for split in ("train", "valid"):
        np.testing.assert_array_equal(again.tokens[split], sound.tokens[split])
    assert [path.name for path in (cache / "text").iterdir()] == [folder.name]  # nothing is left lying about


@pytest.mark.parametrize("held", ["nothing", "damaged"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_processes_that_prepare_at_once_all_find_it_whole(text, cache, monkeypatch, held, moment):
    """Another process begins and ends before, or after, this one has written its files: what is left is whole."""
    expected = prepare(recipe(text)).tokens["train"].tobytes()
    (folder,) = (cache / "text").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if held == "nothing":
        shutil.rmtree(folder)
    else:
        (folder / "train.bin").write_bytes(b"")
    make, others = corpus._make, []

    def interrupted(*args):
        monkeypatch.setattr(corpus, "_make", make)
        if moment == "after":
            make(*args)
        others.append(prepare(recipe(text)).tokens["train"])
        if moment == "before":
            make(*args)

    monkeypatch.setattr(corpus, "_make", interrupted)
    found = prepare(recipe(text)).tokens["train"]
    assert found.tobytes() == others[0].tobytes() == expected
    assert [path.name for path in (cache / "text").iterdir()] == [folder.name]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_unwritable_cache_is_refused(text, tmp_path, monkeypatch):
    written(tmp_path, "file", b"")
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "file"))  # not even root can make a folder in a file
    with pytest.raises(ValueError, match=r"file/text: cannot be written to .*; set GAMMALAB_CACHE"):
        prepare(recipe(text))


def fake_datasets(rows_of):
    """The one function of `datasets` that is used."""
    calls = []

    def load_dataset(name, config, split, streaming):
        calls.append((name, config, split, streaming))
        return ({"text": row} for row in rows_of[split])

    return types.SimpleNamespace(load_dataset=load_dataset), calls


def test_data_set_is_streamed_once_and_read_from_the_cache_after(monkeypatch):
    rows = {"train": ["", " = A = \n", " x y . \n", "z \n"], "validation": [" x z \n"]}
    library, calls = fake_datasets(rows)
    monkeypatch.setitem(sys.modules, "datasets", library)
    asked = recipe(hf_id="owner/name:config", valid_share=0.0)
    found = prepare(asked)
    names = [found.tokenizer.names[token] for token in found.tokens["train"]]
    assert names == ["=", "A", "=", "<eos>", "x", "y", ".", "<eos>", "z", "<eos>"]
    assert [found.tokenizer.names[token] for token in found.tokens["valid"]] == ["x", "z", "<eos>"]
    assert calls == [("owner/name", "config", "train", True), ("owner/name", "config", "validation", True)]
    monkeypatch.setitem(sys.modules, "datasets", None)  # offline, and not even installed
    np.testing.assert_array_equal(prepare(asked).tokens["train"], found.tokens["train"])


def test_rows_of_a_data_set_are_documents(monkeypatch):
    stories = ["Once.\n\nTwice.", "Then.\nEnd.", "Last."]
    library, _ = fake_datasets({"train": stories})
    monkeypatch.setitem(sys.modules, "datasets", library)
    found = prepare(recipe(hf_id="owner/name", separator="endoftext", tokenizer="char", valid_share=0.3))
    assert found.tokenizer.decode(found.tokens["train"]) == "Once.\n\nTwice.<eos>Then.\nEnd.<eos>"


def test_columns_of_a_data_set_are_chosen_by_name(monkeypatch):
    rows = {"train": [{"text": "a", "story": "b c"}, {"text": "d", "story": "b"}]}
    load = types.SimpleNamespace(load_dataset=lambda name, config, split, streaming: rows[split])
    monkeypatch.setitem(sys.modules, "datasets", load)
    for column, expected in (("text", ["a", "<eos>"]), ("story", ["b", "c", "<eos>"])):
        assert named(prepare(recipe(hf_id="owner/name", valid_share=0.5, column=column)), "train") == expected
    with pytest.raises(ValueError, match=r"^task\.hf_id='owner/name': row 0 of split 'train': no column 'body' among"):
        prepare(recipe(hf_id="owner/name", column="body"))


def test_data_sets_that_cannot_be_had_are_refused_in_one_line(monkeypatch, cache):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host\nat all")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(
        ValueError, match=r"task.hf_id='a/b': .*no route to host\); offline, give the text as task.path$"
    ):
        prepare(recipe(hf_id="a/b"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'gammalab\[text\]'"):
        prepare(recipe(hf_id="a/b"))
    assert not list((cache / "hub").iterdir())
