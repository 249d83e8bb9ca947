"""Which files a path means, what of a folder is passed over, and what is refused, each in one line."""

import os
from pathlib import Path

import pytest

from lab.text import sources
from lab.text.sources import as_one, as_splits, by_split, find


def folder_of(tmp_path, *names):
    folder = tmp_path / "folder"
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text(name)
    return folder


def names(paths):
    return [path.name for path in paths]


def test_endings_are_read_in_any_case_and_the_rest_is_named(tmp_path):
    folder = folder_of(
        tmp_path, "a.txt", "b.TXT", "c.Txt.GZ", "d.JSONL", "e.parquet", "f.raw.xz", "g.XZ", "h.md", "i", ".j.txt",
        "sub/k.txt", "l.txt/",
    )  # fmt: skip
    (folder / "m.txt").write_bytes(b"")
    (folder / "n.txt").symlink_to("a.txt")
    (folder / ".#lock").symlink_to("nobody@nowhere")
    found = find(folder)
    assert names(found.paths) == [
        "a.txt", "b.TXT", "c.Txt.GZ", "d.JSONL", "e.parquet", "f.raw.xz", "g.XZ", "n.txt",
    ]  # fmt: skip
    assert found.passed_over == [
        ".#lock (hidden)", ".j.txt (hidden)", "h.md (ends in .md)", "i (no ending)", "l.txt (a folder)",
        "sub (a folder)", "m.txt (empty)",
    ]  # fmt: skip
    assert found.note("F") == [f"F: not read: {', '.join(found.passed_over)}"]
    assert find(folder / "h.md") == ([folder / "h.md"], []) and find(folder / "h.md").note("F") == []


def test_what_is_passed_over_is_said_in_one_line_however_much_it_is(tmp_path):
    folder = folder_of(tmp_path, "a.txt", *(f"b{i:02d}.md" for i in range(30)))
    (line,) = find(folder).note("F")
    assert line.endswith("b11.md (ends in .md) and 18 more")


def test_a_folder_of_empty_files_is_left_to_the_reader(tmp_path):
    folder = folder_of(tmp_path, "a.txt")
    (folder / "a.txt").write_text("")
    assert names(find(folder).paths) == ["a.txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "nowhere: no such file or folder$"),
        ("lost.txt", "lost.txt: a link that leads nowhere$"),
        ("loop.txt", "loop.txt: a link that leads nowhere$"),
        ("folder", "folder/c.TXT: a link that leads nowhere$"),
        ("pipe", "pipe: neither a file nor a folder$"),
        ("twice", "twice: a.txt lies there twice, as a.txt and a.txt.gz$"),
        ("none", r"none: a folder without text; files that end in \.txt, .*\.jsonl, \.parquet, \.xz, \.gz are read$"),
        ("x" * 300, "cannot be read \\(File name too long\\)$"),
        ("~nobody-of-this-name/a.txt", "no home folder to replace ~ by"),
    ],
)
def test_paths_that_lead_to_no_text_are_refused(tmp_path, given, message):
    folder_of(tmp_path, "a.txt")
    (tmp_path / "folder/c.TXT").symlink_to("nowhere")
    (tmp_path / "lost.txt").symlink_to("nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(tmp_path / "pipe")
    for name in ("twice/a.txt", "twice/a.txt.gz", "none/a.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    with pytest.raises(ValueError, match=message) as error:
        find(given if given.startswith("~") else tmp_path / given)
    assert "\n" not in str(error.value)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def forbidden(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)  # of root nothing is hidden
    with pytest.raises(ValueError, match=r": cannot be read \(Permission denied\)$"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("wiki.train.tokens", "train"), ("train-00000-of-00002.parquet", "train"), ("Stories-V2-train.txt", "train"),
        ("TRAINING.TXT.GZ", "train"), ("wiki.valid.tokens", "valid"), ("validation.jsonl.xz", "valid"),
        ("val.txt", "valid"), ("x_dev.raw", "valid"), ("wiki.test.tokens", "test"), ("trains.txt", ""),
        ("a train ride.txt", ""), ("a.txt", ""), ("my.train.of.thought.txt", ""),
    ],
)  # fmt: skip
def test_names_say_splits_at_their_beginning_or_end(name, split):
    assert by_split([Path(name)]) == {split: [Path(name)]}


WIKITEXT = ("wiki.test.tokens", "wiki.train.tokens", "wiki.valid.tokens")


def test_a_folder_of_several_splits_is_no_single_text(tmp_path):
    folder = folder_of(tmp_path, *WIKITEXT)
    with pytest.raises(ValueError, match=r"^task\.path='.*': .* of several splits, wiki\.test\.tokens \(test\), "
                       r"wiki\.train\.tokens \(train\), .*--config\.task\.valid_share=0 ") as error:  # fmt: skip
        as_one("task.path", str(folder))
    assert "\n" not in str(error.value)
    (folder / "wiki.train.tokens").rename(tmp_path / "wiki.train.tokens")
    assert names(as_one("task.path", str(folder))[0]) == ["wiki.test.tokens", "wiki.valid.tokens"]
    for name in ("wiki.test.tokens", "wiki.valid.tokens"):
        (folder / name).unlink()
    (tmp_path / "wiki.train.tokens").rename(folder / "wiki.train.tokens")
    (folder / "more.txt").write_text("b")
    assert names(as_one("task.path", str(folder))[0]) == ["more.txt", "wiki.train.tokens"]


def test_splits_are_the_files_named_so(tmp_path):
    folder = folder_of(tmp_path, *WIKITEXT, "wiki.train.2.txt", "train-1.txt", "README.md")
    paths, said = as_splits("task.path", str(folder), "instead")
    assert {split: names(of_split) for split, of_split in paths.items()} == {
        "train": ["train-1.txt", "wiki.train.tokens"], "valid": ["wiki.valid.tokens"],
    }  # fmt: skip
    assert said == [
        f"{folder}: not read: README.md (ends in .md), wiki.test.tokens (split test), wiki.train.2.txt (of no split)"
    ]
    (folder / "wiki.valid.tokens").unlink()
    with pytest.raises(ValueError, match=r"no file of split 'valid'; instead$"):
        as_splits("task.path", str(folder), "instead")


@pytest.mark.parametrize(
    ("name", "suffix", "compression"),
    [("a.JSONL.Gz", ".jsonl", ".gz"), ("A.TXT", ".txt", ""), ("b.xz", "", ".xz"), ("c.parquet", ".parquet", "")],
)
def test_endings(name, suffix, compression):
    assert (sources.suffix(Path(name)), sources.compression(Path(name))) == (suffix, compression)
