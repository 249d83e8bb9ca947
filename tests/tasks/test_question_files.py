"""Question files: tiny ones made here, and, where environment variables name them, the published ones.

GAMMALAB_PRONTOQA and GAMMALAB_PROSQA: paths of a PrOntoQA and a ProsQA file, each of whose answers is derived again.
"""

import gzip
import json
import lzma
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.tasks import QuestionFiles
from lab.text.question_files import read, split_words

pytest.importorskip("tokenizers")

PRONTOQA = {
    "id": "ProntoQA_1",
    "context": "Each yumpus is shy. Yumpuses are impuses. Impuses are not sour. Numpuses are sour. Max is a yumpus.",
    "question": "Is the following statement true or false? Max is sour.",
    "options": ["A) True", "B) False"],
    "answer": "B",
    "explanation": ["Max is a yumpus.", "Yumpuses are impuses.", "Max is an impus.", "Impuses are not sour."],
}
PROSQA = {
    "question": "Every yumpus is a impus. Sally is a yumpus. Bob is a rompus. Is Sally a rompus or impus?",
    "answer": "Sally is a impus.",
    "steps": ["Sally is a yumpus.", "Every yumpus is a impus."],
    "idx_to_symbol": ["Bob", "Sally", "yumpus", "impus", "rompus"],
    "edges": [[2, 3], [1, 2], [0, 4]],
    "root": 1,
    "target": 3,
    "neg_target": 4,
}


def prontoqa(n):
    names = ("Max", "Fae", "Rex", "Sam", "Wren", "Polly", "Alex", "Stella", "Tom", "Eva")
    return [json.loads(json.dumps(PRONTOQA).replace("Max", name)) for name in names[:n]]


def prosqa(n):
    names = ("Tom", "Eva", "Jack", "Davis", "Carol", "Oliver")
    return [json.loads(json.dumps(PROSQA).replace("Sally", name)) for name in names[:n]]


def written(folder, items, suffix=""):
    path = folder / f"items{len(list(folder.iterdir()))}.json{suffix}"
    opened = {"": open, ".gz": gzip.open, ".xz": lzma.open}[suffix]
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(items if isinstance(items, str) else json.dumps(items))
    return str(path)


def task_of(path, test_path="", test_share=0.2, length=50, vocab_size=60):
    return QuestionFiles(path, test_path, 0.0 if test_path else test_share, length, vocab_size)


def shown(task, batch):
    return [
        (task.decode(tokens), task.decode(targets[weights > 0]))
        for tokens, targets, weights in zip(*map(np.asarray, batch[:3]), strict=True)
    ]


def test_words_are_in_lower_case_with_the_plural_of_concepts_apart():
    assert " ".join(split_words("Dumpuses are impuses. Fae is shy?")) == "dumpus es are impus es . fae is shy ?"
    assert split_words("Buses and pushes.") == ["buses", "and", "pushes", "."]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_sequences_say_what_the_files_say(tmp_path, suffix):
    task = task_of(written(tmp_path, prontoqa(5), suffix))
    (asked, answer), *_ = shown(task, task.sample(jax.random.key(0), 4, "test", {}))
    told = (
        "each yumpus is shy . yumpus es are impus es . impus es are not sour . numpus es are sour . wren is a yumpus ."
    )
    question = "is the following statement true or false ? wren is sour ."
    assert (asked, answer) == (f"{told} {question} false", "false")  # the answer is read, too, where padding follows

    task = task_of(written(tmp_path, prosqa(3), suffix), written(tmp_path, prosqa(6)[5:], suffix), length=26)
    batch = task.sample(jax.random.key(0), 1, "test", {})
    told = "every yumpus is a impus . oliver is a yumpus . bob is a rompus ."
    assert shown(task, batch) == [(f"{told} is oliver a rompus or impus ? oliver is a", "impus")]
    assert task.decode(batch.info["candidates_BxC"][0]) == "rompus impus"


def test_splits_are_the_first_and_last_items_and_each_is_drawn_as_often(tmp_path):
    items = prontoqa(10)
    path = written(tmp_path, items)
    task = task_of(path, test_share=0.3)
    names = {"train": {"max", "fae", "rex", "sam", "wren", "polly", "alex"}, "test": {"stella", "tom", "eva"}}
    for split, expected in names.items():
        n = len(expected)
        batch = jax.jit(lambda key, split=split, n=n: task.sample(key, 2 * n + 1, split, {}))(jax.random.key(1))
        who = [re.search(r"\? (\w+) is", asked)[1] for asked, _ in shown(task, batch)]
        assert set(who) == expected and sorted(map(who.count, expected))[-2:] == [2, 3]
        assert sorted(who[:n]) == sorted(expected)
        asked = [json.dumps(item).lower() for item in (items[:7] if split == "train" else items[7:])]
        assert all(f" {name} is" in asked[i] for name, i in zip(who, batch.info["item_B"], strict=True))
    with pytest.raises(ValueError, match="split 'ood': one of train, test"):
        task.sample(jax.random.key(0), 2, "ood", {})


def test_scores_of_right_and_other_and_strange_answers(tmp_path):
    task = task_of(written(tmp_path, prosqa(6)), test_share=0.5)
    batch = task.sample(jax.random.key(0), 3, "train", {})
    right = batch.targets_BxL
    candidates = batch.info["candidates_BxC"]
    for predicted, accuracy, plausible in (
        (right, 1, 1),
        (jnp.broadcast_to(candidates[:, :1], right.shape), 0, 1),  # `rompus`
        (jnp.ones_like(right), 0, 0),
    ):
        scores = task.score(jax.nn.one_hot(predicted, 60), batch)
        assert (scores["accuracy"], scores["plausible"]) == (accuracy, plausible)
    assert {task.prepared.tokenizer.names[token] for token in task.answer_alphabet} == {"rompus", "impus"}


def test_what_is_kept_of_the_data_tells_other_data_but_not_another_place(tmp_path):
    one, moved, other = (task_of(written(tmp_path, items)) for items in (prontoqa(5), prontoqa(5), prontoqa(6)))
    assert one.files() == moved.files() != other.files()
    assert json.loads(one.files()["questions.json"])["test"]["questions"] == 1


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


def test_files_that_are_missing_or_truncated_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: cannot be read"):
        read(tmp_path / "none.json")
    path = tmp_path / "cut.json.xz"
    path.write_bytes(lzma.compress(json.dumps(prontoqa(5)).encode())[:-20])
    with pytest.raises(ValueError, match=r"cut\.json\.xz: (truncated|damaged)"):
        read(path)


def test_what_does_not_fit_is_refused_with_what_would(tmp_path):
    path = written(tmp_path, prosqa(5))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"task\.vocab_size=15: .* has 15 words, so at least 16"):
        task_of(path, vocab_size=15).sample(key, 1, "train", {})
    with pytest.raises(ValueError, match=r"task\.length=25: the longest question of .* has 26 tokens"):
        task_of(path, length=25).sample(key, 1, "train", {})
    task_of(path, length=26, vocab_size=16).sample(key, 1, "train", {})
    with pytest.raises(ValueError, match=r"task\.test_share=0\.01: 0 of the 5 items"):
        task_of(path, test_share=0.01).sample(key, 1, "train", {})
    with pytest.raises(ValueError, match=r"item 1 of split 'test' is item 4 of split 'train' of .*: remove one"):
        task_of(path, written(tmp_path, [prosqa(6)[5], prosqa(5)[4]])).sample(key, 1, "train", {})


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
