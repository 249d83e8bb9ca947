"""Question files: tiny ones made here, and, where environment variables name them, the published ones.

GAMMALAB_PRONTOQA and GAMMALAB_PROSQA: paths of a PrOntoQA and a ProsQA file, each of whose answers is derived again.
"""

import gzip
import json
import lzma
import os
import re
import runpy
import types
from pathlib import Path

import pytest

from lab.text.question_files import read, split_words

made = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("items.py"))))
PRONTOQA, PROSQA, prontoqa, written = made.PRONTOQA, made.PROSQA, made.prontoqa, made.written


def test_words_are_in_lower_case_with_the_plural_of_concepts_apart():
    assert " ".join(split_words("Dumpuses are impuses. Fae is shy?")) == "dumpus es are impus es . fae is shy ?"
    assert split_words("Buses and pushes.") == ["buses", "and", "pushes", "."]


def broken(**changes):
    return [PRONTOQA | changes]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": 1', r"items0\.json: not JSON \(.* in line 1, column \d+\)"),
        ("{}", r"items0\.json: not a list of questions, but dict"),
        ("[]", r"items0\.json: not a list of questions, but list '\[\]'"),
        ([PRONTOQA, 3], r"items0\.json: item 1: neither PrOntoQA, .* nor ProsQA"),
        (broken(context=None), r"item 0: neither PrOntoQA"),
        (broken(answer="C"), r"item 0: answer 'C' is none of A, B"),
        (broken(options=["A) True", "B) Maybe"]), r"item 0: options are \['A\) True', 'B\) Maybe'\]"),
        ([PROSQA | {"question": "Is Sally good?"}], r"item 0: the question ends in 'Is Sally good\?'"),
        (
            [PROSQA | {"answer": "Sally is a yumpus."}],
            r"'Sally is a yumpus\.' is neither of those in 'is sally a rompus",
        ),
        ([PROSQA | {"answer": "Bob is a impus."}], r"answer 'Bob is a impus\.' is neither"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(written(tmp_path, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("begin", "end"), [("", ""), ("\ufeff", "\n"), ("", "\r\n\r\n"), (" \n", " ")])
def test_files_are_read_as_editors_leave_them(tmp_path, begin, end):
    items = prontoqa(3)
    whole = read(written(tmp_path, items))
    assert read(written(tmp_path, begin + json.dumps(items) + end)) == whole and len(whole) == 3


def test_files_that_are_missing_or_truncated_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: cannot be read"):
        read(tmp_path / "none.json")
    path = tmp_path / "cut.json.xz"
    path.write_bytes(lzma.compress(json.dumps(prontoqa(5)).encode())[:-20])
    with pytest.raises(ValueError, match=r"cut\.json\.xz: (truncated|damaged)"):
        read(path)


def published(variable):
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no file")
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(os.path.splitext(path)[1], open)
    with opened(path, "rt", encoding="utf-8") as file:
        return path, json.load(file)


def test_answers_of_the_published_prosqa_are_what_search_finds():
    path, items = published("GAMMALAB_PROSQA")
    questions = read(path)
    assert len(questions) == len(items) > 0
    for item, question in zip(items, questions, strict=True):
        edges = [
            re.fullmatch(r"(?:every )?(\w+) is a (\w+) \.", s + " .")
            for s in " ".join(question.asked).split(" . ")[:-1]
        ]
        edges = [match.groups() for match in edges]
        names = [name.lower() for name in item["idx_to_symbol"]]
        assert sorted(edges) == sorted((names[a], names[b]) for a, b in item["edges"])
        root, first, second = re.search(r"is (\w+) a (\w+) or (\w+) \? \1 is a$", " ".join(question.asked)).groups()
        reached = {root}
        while more := {child for parent, child in edges if parent in reached} - reached:
            reached |= more
        assert question.candidates == (first, second)
        assert [candidate for candidate in (first, second) if candidate in reached] == [question.answer]
        assert names[item["target"]] == question.answer


def test_answers_of_the_published_prontoqa_follow_from_their_sentences():
    path, items = published("GAMMALAB_PRONTOQA")
    questions = read(path)
    assert len(questions) == len(items) > 0
    for question in questions:
        text = " ".join(word for word in question.asked if word not in ("a", "an", "each", "every", "es"))
        told, asked = text.split(
            " is following statement true or false ? ".replace(" is following", " is the following")
        )
        facts = [
            re.fullmatch(r"(\w+) (?:is|are) (not )?(\w+)", s).groups() for s in told.removesuffix(" .").split(" . ")
        ]
        entity, denied, what = re.fullmatch(r"(\w+) is (not )?(\w+) \.", asked).groups()
        true = {(entity, None)}
        while more := {(b, no) for a, no, b in facts if (a, None) in true} - true:
            true |= more
        assert ((what, None) in true) != ((what, "not ") in true)
        assert question.answer == ("true" if (what, denied) in true else "false")
