"""Question files as a task: tiny ones made here."""

import json
import re
import runpy
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.tasks import QuestionFiles

pytest.importorskip("tokenizers")

made = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "text" / "items.py")))
prontoqa, prosqa, written = made.prontoqa, made.prosqa, made.written


def task_of(path, test_path="", test_share=0.2, length=50, vocab_size=60):
    return QuestionFiles(path, test_path, 0.0 if test_path else test_share, length, vocab_size)


def shown(task, batch):
    return [
        (task.decode(tokens), task.decode(targets[weights > 0]))
        for tokens, targets, weights in zip(*map(np.asarray, batch[:3]), strict=True)
    ]


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
