import dataclasses
import functools
import gzip
import itertools
import json
import lzma
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from lab.objective import DEFAULT, Objective
from lab.tasks import FAMILIES, Scan
from lab.tasks.scan import actions_of
from lab.tasks.seq2seq import prepared, text
from lab.text.seq2seq_files import NAMES

REAL = Path(__file__).parents[3] / "shared/data/scan"  # used when it is there
LENGTH = 24
PRIMITIVES = ("walk", "look", "run", "jump")


def interpret(command):
    """The actions of a command, by the grammar of Lake & Baroni's appendix: what the files should hold."""
    for joint in ("and", "after"):
        if joint in command:
            i = command.index(joint)
            first, second = interpret(command[:i]), interpret(command[i + 1 :])
            return first + second if joint == "and" else second + first
    times = {"twice": 2, "thrice": 3}.get(command[-1])
    if times:
        return interpret(command[:-1]) * times
    verb, *how = command
    act = [] if verb == "turn" else [f"I_{verb.upper()}"]
    if not how:
        return act
    turn = [f"I_TURN_{how[-1].upper()}"]
    return {1: turn + act, 2: turn * 2 + act if how[0] == "opposite" else (turn + act) * 4}[len(how)]


def commands():
    ways = [[], *([way, side] if way else [side] for way in ("", "opposite") for side in ("left", "right"))]
    simple = [[verb, *way] for verb in (*PRIMITIVES, "turn") for way in ways if way or verb != "turn"]
    counted = [[*one, *([count] if count else [])] for one in simple for count in ("", "twice")]
    joined = [
        [*one, joint, *other]
        for one, other in itertools.product(counted[::3], counted[1::4])
        for joint in ("and", "after")
    ]
    return [*counted, *joined]


def line(command):
    return f"IN: {' '.join(command)} OUT: {' '.join(interpret(command))}\n"


def parted():
    """Training and test commands: those with jump inside of something are held out, jump alone comes ten times."""
    held_out = [command for command in commands() if "jump" in command and len(command) > 1]
    kept = [command for command in commands() if command not in held_out]
    return kept + [["jump"]] * 10, held_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scan")
    for split, part in zip(("train", "test"), parted(), strict=True):
        (root / f"tasks_{split}_addprim_jump.txt").write_text("".join(map(line, part)))
    return root


@pytest.fixture
def task(folder):
    return made(folder)


def made(folder, **changes):
    options = dict(path=str(folder), hf_id="", length=LENGTH, vocab_size=30, variant="addprim_jump")
    return Scan(**options | changes)


@functools.cache
def batch_of(task, split, n=2000, seed=0):
    sample = jax.jit(lambda key: task.sample(key, n, split, {}))  # quicker than one operation after the other
    return jax.tree.map(np.asarray, sample(jax.random.key(seed)))


def items(task, batch):
    """(question, answer) as words, from tokens, targets and weights of each sequence."""
    names = prepared(task).names
    for tokens_L, targets_L, weights_L in zip(*batch[:3], strict=True):
        np.testing.assert_array_equal(tokens_L[1:], targets_L[:-1])
        answer = [names[token] for token in targets_L[weights_L == 1]]
        n_question = int(np.argmax(weights_L)) + 1
        assert set(weights_L) == {0, 1} and (np.diff(np.flatnonzero(weights_L)) == 1).all()
        assert (targets_L[n_question - 1 + len(answer) :] == 0).all()  # padding, at the end
        assert 0 not in tokens_L[:n_question]
        yield [names[token] for token in tokens_L[:n_question]], answer


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_sequence_is_a_command_and_its_actions(task, split):
    batch = batch_of(task, split)
    part = {tuple(command) for command in parted()[split == "test"]}
    longest = max(len(command) + len(interpret(command)) for command in part)
    assert batch.tokens_BxL.shape == (2000, longest + 1) and longest < LENGTH  # with <sep> and <eos>, less the last
    seen = set()
    for question, answer in items(task, batch):
        assert question[-1] == "<sep>" and answer[-1] == "<eos>"
        assert answer[:-1] == interpret(question[:-1])
        seen.add(tuple(question[:-1]))
    assert seen <= part and len(seen) > 0.8 * len(part)
    assert [leaf.dtype.name for leaf in batch[:3]] == ["int32", "int32", "float32"]


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_a_last_line_that_is_whole_needs_no_end_and_any_cut_one_is_refused(folder, tmp_path, end):
    name = "tasks_train_addprim_jump.txt"
    whole = (folder / name).read_text() + line(["turn", "opposite", "left", "twice", "and", "walk", "left"])
    pairs = made(folder).read("train")[0]
    (tmp_path / name).write_text(whole[:-1] + end)
    found = made(tmp_path).read("train")[0]
    assert found[:-1] == pairs and found[-1].target == ("I_TURN_LEFT",) * 5 + ("I_WALK",)
    last = whole.rstrip("\n").rfind("\n") + 1
    for n in range(last + 1, len(whole) - 1):
        (tmp_path / name).write_text(whole[:n])
        with pytest.raises(ValueError, match="has no end: the file is truncated"):
            made(tmp_path).read("train")


def test_actions_are_those_of_the_grammar():
    for command in [*commands(), ["look", "opposite", "right", "thrice"]]:
        assert actions_of(command) == interpret(command)
    assert actions_of(["jump", "around", "left"]) == ["I_TURN_LEFT", "I_JUMP"] * 4
    for command in ([], ["turn"], ["walk", "walk"], ["and"], ["walk", "around"], ["left"], ["twice"], ["a", "left"]):
        with pytest.raises(ValueError, match="is no command of SCAN"):
            actions_of(command)


def test_splits_share_no_command(task):
    train, test = ({tuple(question) for question, _ in items(task, batch_of(task, s))} for s in ("train", "test"))
    assert train and test and not train & test
    assert not any("jump" in question[:-1] and len(question) > 2 for question in train)


def test_items_are_as_frequent_as_their_lines(task):
    alone = np.mean([question == ["jump", "<sep>"] for question, _ in items(task, batch_of(task, "train", 20_000))])
    share = 11 / len(parted()[0])
    assert alone == pytest.approx(share, abs=4 * (share / 20_000) ** 0.5)  # standard errors of a frequency


def test_a_batch_as_large_as_a_test_split_is_the_split(task):
    held_out = parted()[1]
    batch = batch_of(task, "test", len(held_out))
    found = sorted(question[:-1] for question, _ in items(task, batch))
    assert found == sorted(held_out)
    again = batch_of(task, "test", len(held_out), seed=1)
    assert (again.tokens_BxL != batch.tokens_BxL).any()
    many = sorted(question[:-1] for question, _ in items(task, batch_of(task, "test", 2 * len(held_out))))
    assert many == sorted(held_out * 2)


def test_smaller_training_sets_lie_in_larger_ones(task):
    sets = {}
    sample = jax.jit(lambda n: task.sample(jax.random.key(0), 2000, "train", {"train_items": n}))
    for n in (5, 20, 60):
        static, traced = batch_of(dataclasses.replace(task, train_items=n), "train"), sample(np.float32(n))
        for one, other in zip(static[:3], traced[:3], strict=True):
            np.testing.assert_array_equal(one, other)
        sets[n] = {tuple(sequence) for sequence in static.tokens_BxL.tolist()}
        assert len(sets[n]) <= n < 2 * len(sets[n])  # jump alone may be there more than once
    assert sets[5] < sets[20] < sets[60]
    few = {
        tuple(question[:-1])
        for question, _ in items(task, batch_of(dataclasses.replace(task, train_items=20), "train"))
    }
    assert len(few & {tuple(command) for command in parted()[0][:20]}) < 10  # not the first ones of the file
    whole = prepared(task).tables["train"].first_N.shape[0]
    assert len(parted()[0]) == whole
    for one, other in zip(sample(np.float32(whole))[:3], batch_of(task, "train")[:3], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_grid_that_asks_for_more_items_than_there_are_gets_weights_of_nan(task):
    sample = jax.jit(lambda n: task.sample(jax.random.key(0), 4, "train", {"train_items": n}))
    for n in (-1.0, 1e6):
        weights_BxL = sample(np.float32(n)).weights_BxL
        assert np.isnan(weights_BxL).any(axis=1).all()
    with pytest.raises(ValueError, match=rf"task\.train_items=1000000: there are {len(parted()[0])} training items"):
        dataclasses.replace(task, train_items=10**6).sample(jax.random.key(0), 4, "train", {})


def test_rows_may_be_trained_on_all_tokens_while_evaluation_stays_on_answers(task):
    batch = jax.tree.map(np.asarray, jax.jit(lambda key: DEFAULT.sample(task, key, 2000, {}))(jax.random.key(0)))
    weights_BxL = Objective(ntp_weight=0.25).apply(task, batch, {}).weights_BxL
    np.testing.assert_array_equal(weights_BxL, np.where(batch.weights_BxL > 0, 1, 0.25 * (batch.targets_BxL > 0)))
    noisy = Objective(label_noise=1.0, context_noise=1.0).apply(task, batch, {})
    names = prepared(task).names
    said = {names[token] for token in np.unique(np.asarray(noisy.targets_BxL)[batch.weights_BxL > 0])}
    read = {names[token] for token in np.unique(np.asarray(noisy.tokens_BxL)[:, 0])}
    assert said == {action for command in parted()[0] for action in interpret(command)}
    assert read == {word for command in parted()[0] for word in command}


def test_scores_ask_for_the_whole_answer(task):
    batch = batch_of(task, "test", 64)
    logits = np.eye(30, dtype=np.float32)[batch.targets_BxL]
    score = jax.jit(task.score)
    assert score(logits, batch)["accuracy"] == 1
    first = np.argmax(batch.weights_BxL, axis=1)
    logits[np.arange(16), first[:16]] = 0  # sixteen answers miss their first token
    scores = score(logits, batch)
    assert scores["accuracy"] == 0.75
    assert scores["token_accuracy"] == pytest.approx(1 - 16 / batch.weights_BxL.sum(), rel=1e-6)


def test_data_are_read_once_whatever_is_trained_on_them(task):
    assert prepared(dataclasses.replace(task, train_items=7)) is prepared(task)


def test_files_tell_what_was_read(task, folder, tmp_path):
    told = json.loads(task.files()["data.json"])
    longest = max(len(command) + len(interpret(command)) for command in parted()[0]) + 2
    assert told["splits"]["train"]["items"] == len(parted()[0])
    assert told["splits"]["train"]["longest"] == longest
    assert told["splits"]["test"]["unknown_words"] == [] and str(folder) not in json.dumps(told)
    train, test = parted()
    (tmp_path / "tasks_train_addprim_jump.txt").write_text("".join(map(line, [*train[:-1], ["walk"]])))
    (tmp_path / "tasks_test_addprim_jump.txt").write_text("".join(map(line, test)))
    changed = json.loads(made(tmp_path).files()["data.json"])["splits"]
    for name in ("sha256", "tokens_sha256"):
        assert changed["train"][name] != told["splits"]["train"][name]
        assert changed["test"][name] == told["splits"]["test"][name]


@pytest.mark.parametrize(("suffix", "packed"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_files_may_be_compressed_and_lie_in_folders(task, folder, tmp_path, suffix, packed):
    (tmp_path / "add_prim_split").mkdir()
    for path in folder.iterdir():
        (tmp_path / "add_prim_split" / f"{path.name}{suffix}").write_bytes(packed(path.read_bytes()))
    for leaf, other in zip(batch_of(made(tmp_path), "train")[:3], batch_of(task, "train")[:3], strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_words_that_training_lacks_are_unknown_and_told(tmp_path, folder):
    (tmp_path / "tasks_train_simple.txt").write_text(line(["walk"]) + line(["run", "left"]))
    (tmp_path / "tasks_test_simple.txt").write_text(line(["walk"]) + line(["jump", "left"]) + line(["jump"]))
    task = made(tmp_path, variant="simple")
    test = json.loads(task.files()["data.json"])["splits"]["test"]
    assert test["unknown_words"] == ["I_JUMP", "jump"] and test["items_with_unknown_words"] == 2
    found = {(" ".join(question), " ".join(answer)) for question, answer in items(task, batch_of(task, "test", 3))}
    assert ("<unk> left <sep>", "I_TURN_LEFT <unk> <eos>") in found


def test_text_is_what_the_tokens_say(task):
    batch = batch_of(task, "test", 5)
    for (_, answer), targets_L, weights_L in zip(items(task, batch), batch.targets_BxL, batch.weights_BxL, strict=True):
        said = targets_L[weights_L > 0]
        assert text(task, said) == " ".join(answer[:-1]) == text(task, [*said, -1, -1]) == text(task, [*said[:-1], -1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"length": 12},
            r"task\.length=12: \d+ of \d+ sequences of split 'train' are longer; the longest has 2\d tokens",
        ),
        ({"vocab_size": 20}, r"task\.vocab_size=20: the words of the training items need 2[0-9]"),
        (
            {"variant": "length"},
            r"no tasks_train_length\.txt \(plain, \.xz or \.gz\); it holds tasks_test_addprim_jump",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_refused_when_read(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        made(folder, **changes).sample(jax.random.key(0), 2, "train", {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "tasks_train_simple.txt",
            b"IN: walk OUT: I_WALK\nIN: run\n",
            r"line 2 is 'IN: run', where 'IN: <command> OUT",
        ),
        ("tasks_train_simple.txt", b"IN: walk OUT: I_WALK\n\nIN: run OUT: I_RUN\n", "line 2 is ''"),
        ("tasks_train_simple.txt", b"IN: walk OUT: I_WALK\nIN: run OUT: I", "line 2 has no end: the file is truncated"),
    ],
)
def test_damaged_files_are_refused_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        made(tmp_path, variant="simple").sample(jax.random.key(0), 2, "train", {})
    assert name in str(error.value) and "\n" not in str(error.value)


class Rows:
    """A data set as `datasets` gives it."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, name):
        return self.columns[name]


def test_data_sets_of_hugging_face_are_the_same_items(task, monkeypatch):
    def load_dataset(hf_id, config, split):
        assert (hf_id, config) == ("scan", "addprim_jump")
        part = parted()[split == "test"]
        return Rows({"commands": [" ".join(c) for c in part], "actions": [" ".join(interpret(c)) for c in part]})

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for leaf, other in zip(batch_of(made("", hf_id="scan"), "train")[:3], batch_of(task, "train")[:3], strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_tokens_are_named_and_the_family_is_known(task):
    names = prepared(task).names
    assert names[:4] == NAMES == ("<pad>", "<unk>", "<sep>", "<eos>") and list(names[4:]) == sorted(names[4:])
    assert FAMILIES["scan"] is Scan and Scan.has_answer
    assert prepared(task).longest_answer == 1 + max(len(interpret(c)) for part in parted() for c in part)


@pytest.mark.skipif(not REAL.is_dir(), reason="the data lie elsewhere")
def test_real_files_hold_what_the_grammar_says():
    task = made(REAL, variant="addprim_turn_left", length=58)
    for split, n in (("train", 21_890), ("test", 1208)):
        assert prepared(task).tables[split].first_N.shape == (n,)
        for question, answer in items(task, batch_of(task, split, 600)):
            assert answer == [*interpret(question[:-1]), "<eos>"]
            turns = "turn left" in " ".join(question)
            assert turns and question[:-1] != ["turn", "left"] if split == "test" else True
            assert not turns or len(question) == 3 or split == "test"
