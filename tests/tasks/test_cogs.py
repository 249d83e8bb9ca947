import functools
import json
import lzma
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.tasks import FAMILIES, Cogs
from lab.tasks.cogs import GEN_TYPES, by_type, variable_free
from lab.tasks.seq2seq import prepared

REAL = Path(__file__).parents[3] / "shared/data/cogs"  # used when it is there
LENGTH = 70

# Sentences of COGS with their original and variable-free forms, as published.
PUBLISHED = [
    ("Emma", "Emma", "Emma"),
    ("sneeze", "LAMBDA a . LAMBDA e . sneeze . agent ( e , a )", "sneeze"),
    ("gumball", "LAMBDA a . gumball ( a )", "gumball"),
    ("like", "LAMBDA a . LAMBDA b . LAMBDA e . like . agent ( e , b ) AND like . theme ( e , a )", "like"),
    (
        "A rose was helped by a dog .",
        "rose ( x _ 1 ) AND help . theme ( x _ 3 , x _ 1 ) AND help . agent ( x _ 3 , x _ 6 ) AND dog ( x _ 6 )",
        "help ( theme = rose , agent = dog )",
    ),
    (
        "Noah liked that the melon floated .",
        "* melon ( x _ 4 ) ; like . agent ( x _ 1 , Noah ) AND like . ccomp ( x _ 1 , x _ 5 ) AND "
        "float . theme ( x _ 5 , x _ 4 )",
        "like ( agent = Noah , ccomp = float ( theme = * melon ) )",
    ),
    (
        "William held a girl in the box .",
        "* box ( x _ 6 ) ; hold . agent ( x _ 1 , William ) AND hold . theme ( x _ 1 , x _ 3 ) AND girl ( x _ 3 ) AND "
        "girl . nmod . in ( x _ 3 , x _ 6 )",
        "hold ( agent = William , theme = girl ( nmod . in = * box ) )",
    ),
]
KINDS = ("in_distribution", "primitive")


def expressed(form):
    """What a variable-free form says, as nested tuples: read by a stack, not by the rules that wrote it."""
    stack = [[]]
    for word in form:
        if word == "(":
            stack.append([])
        elif word == ")":
            within = stack.pop()
            stack[-1].append(tuple(within))
        else:
            stack[-1].append(word)
    assert len(stack) == 1
    return tuple(stack[0])


def facts(form):
    """(head, role, argument) of a variable-free form: its words, with "*" before definite nouns."""

    def node(part):
        """Name of a node, and what it says: name words, then possibly a tuple of arguments."""
        arguments = part[-1] if isinstance(part[-1], tuple) else ()
        name = " ".join(word for word in part if isinstance(word, str))
        said = []
        argument = []
        for word in [*arguments, ","]:
            if word != ",":
                argument.append(word)
            elif argument:
                i = argument.index("=")
                other, more = node(tuple(argument[i + 1 :]))
                said += [(name, " ".join(argument[:i]), other), *more]
                argument = []
        return name, said

    return sorted(node(expressed(form))[1])


def original_facts(form):
    """The same of an original form: every relation, with the nouns' names in the place of their variables."""
    terms = " ".join(form).replace(" ; ", " AND ").split(" AND ")
    nouns, relations = {}, []
    for term in terms:
        predicate, _, inside = term.partition(" ( ")
        values = inside[:-2].split(" , ")
        if len(values) == 1:
            nouns[values[0]] = predicate
        else:
            head, role = predicate.split(" . ", 1)
            relations.append((head, role, values))
    verbs = {values[0]: head for head, _, values in relations}
    names = verbs | nouns
    return sorted((names[values[0]], role, names.get(values[1], values[1])) for _, role, values in relations)


@pytest.mark.parametrize(("sentence", "original", "free"), PUBLISHED)
def test_forms_without_variables_are_those_published(sentence, original, free):
    assert " ".join(variable_free(original.split())) == free


@pytest.mark.parametrize(
    "form",
    ["a b", "cat ( x _ 1", "cat . agent ( x _ 1 )", "a ( x ) AND b ( y )", "a . r ( x , y ) AND b . r ( y , x )"],
)
def test_what_is_no_logical_form_is_refused(form):
    with pytest.raises(ValueError, match="term"):
        variable_free(form.split())


def write(folder, split, form, rows, suffix=""):
    name = f"{split}{'_varfree' if form == 'free' else ''}.tsv"
    content = "".join("\t".join((sentence, free if form == "free" else original, kind)) + "\n"
                      for sentence, original, free, kind in rows).encode()  # fmt: skip
    (folder / f"{name}{suffix}").write_bytes(lzma.compress(content) if suffix else content)


def generation(n_each=3):
    """Items of every type: sentences of training with another subject, so that each is distinct."""
    rows = []
    for i, kind in enumerate(GEN_TYPES):
        for j in range(n_each):
            name = ("Emma", "William", "Noah")[(i + j) % 3]
            original = f"float . theme ( x _ 1 , {name} ) AND float . agent ( x _ 1 , {GEN_TYPES.index(kind)} )"
            free = f"float ( theme = {name} , agent = {GEN_TYPES.index(kind)} )"
            rows.append((f"{name} {j} floated {i} .", original, free, kind))
    return rows


def training():
    rows = [(*published, KINDS[len(published[0].split()) == 1]) for published in PUBLISHED]
    return rows + [
        (f"{i} {i % 3} floated .", *two, "in_distribution") for i, two in ((i, _float(i)) for i in range(21))
    ]


def _float(i):
    return f"float . theme ( x _ 1 , {i} )", f"float ( theme = {i} )"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Original forms of all but `gen`, which is variable-free only, as `train` is too."""
    root = tmp_path_factory.mktemp("cogs")
    for split, rows in (("train", training()), ("dev", training()[:5]), ("test", training()[3:7])):
        write(root, split, "original", rows, ".xz")
    write(root, "train", "free", training())
    write(root, "gen", "free", generation(), ".xz")
    return root


def made(folder, **changes):
    options = dict(path=str(folder), hf_id="", length=LENGTH, vocab_size=80, target_form="variable_free")
    return Cogs(**options | changes)


@functools.cache
def batch_of(task, split, n):
    sample = jax.jit(lambda key: task.sample(key, n, split, {}))
    return jax.tree.map(np.asarray, sample(jax.random.key(0)))


def items(task, batch):
    names = prepared(task).names
    for tokens_L, targets_L, weights_L in zip(*batch[:3], strict=True):
        question = tokens_L[: np.argmax(weights_L) + 1]
        answer = targets_L[weights_L == 1]
        yield tuple(" ".join(names[token] for token in part) for part in (question, answer))


def expected(rows, form):
    return sorted((f"{row[0]} <sep>", f"{row[2 if form == 'variable_free' else 1]} <eos>") for row in rows)


@pytest.mark.parametrize("form", ["original", "variable_free"])
def test_batches_are_sentences_and_their_forms(folder, form):
    evaluated = ("dev", "test", "gen") if form == "variable_free" else ("dev", "test")
    task = made(folder, target_form=form, evaluated=evaluated)
    assert task.splits == ("train", *evaluated)
    rows = {"train": training(), "dev": training()[:5], "test": training()[3:7], "gen": generation()}
    for split in evaluated:  # dev and test are converted, gen is not
        assert sorted(items(task, batch_of(task, split, len(rows[split])))) == expected(rows[split], form)
    assert set(items(task, batch_of(task, "train", 1000))) == set(expected(rows["train"], form))


def test_both_forms_know_the_words_of_all_training_items(folder):
    for form, column in (("original", 1), ("variable_free", 2)):
        task = made(folder, target_form=form, evaluated=("test",), train_items=1)
        words = {word for row in training() for word in f"{row[0]} {row[column]}".split()}
        assert set(prepared(task).names) == words | {"<pad>", "<unk>", "<sep>", "<eos>"}


def test_every_split_is_padded_to_its_own_longest_item(folder):
    targets = {split: batch_of(made(folder), split, 1000).targets_BxL for split in ("train", "test", "gen")}
    for targets_BxL in targets.values():
        assert targets_BxL.shape[1] == (targets_BxL != 0).sum(axis=1).max() <= LENGTH
    assert len({targets_BxL.shape[1] for targets_BxL in targets.values()}) > 1


def test_accuracy_of_each_type_is_that_of_its_items(folder):
    task = made(folder)
    n = len(generation())
    batch = batch_of(task, "gen", n)
    kind_of = {row[0]: row[3] for row in generation()}
    kinds = [kind_of[question.removesuffix(" <sep>")] for question, _ in items(task, batch)]
    assert [GEN_TYPES[i] for i in batch.info["kind_B"]] == kinds
    right_B = np.random.default_rng(0).random(n) < 0.5
    logits = np.eye(80, dtype=np.float32)[batch.targets_BxL]
    logits[~right_B, np.argmax(batch.weights_BxL, axis=1)[~right_B]] = 0
    scores = jax.jit(task.score)(logits, batch)
    for i, kind in enumerate(GEN_TYPES):
        of_kind = [right for right, other in zip(right_B, kinds, strict=True) if other == kind]
        assert scores["type_accuracy"][i] == pytest.approx(np.mean(of_kind), rel=1e-6)
    assert scores["accuracy"] == pytest.approx(right_B.mean(), rel=1e-6)
    np.testing.assert_array_equal(by_type(jnp.asarray(right_B, jnp.float32), batch), scores["type_accuracy"])
    assert task.coords["gen_type"] == GEN_TYPES and task.dims == {"type_accuracy": ("gen_type",)}
    test = batch_of(task, "test", 4)
    assert "type_accuracy" not in jax.eval_shape(task.score, np.eye(80, dtype=np.float32)[test.targets_BxL], test)


def test_types_that_are_not_in_a_batch_have_no_accuracy(folder):
    batch = batch_of(made(folder), "gen", 5)
    accuracy = np.asarray(by_type(np.ones(5, np.float32), batch))
    assert set(np.flatnonzero(accuracy == 1)) == set(batch.info["kind_B"])
    assert np.isnan(accuracy).sum() == 21 - len(set(batch.info["kind_B"].tolist()))


def test_there_are_21_types_in_order():
    assert len(set(GEN_TYPES)) == 21
    assert list(GEN_TYPES) == sorted(GEN_TYPES)


def test_a_form_that_the_files_do_not_have_is_refused(folder):
    with pytest.raises(ValueError, match=r"no gen\.tsv \(plain, \.xz or \.gz\); it holds .*gen_varfree\.tsv\.xz"):
        prepared(made(folder, target_form="original"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Emma\tEmma", r"train\.tsv: line 2 has 2 columns, where sentence, logical form and type are needed"),
        ("Emma\t \tprimitive", r"train\.tsv: line 2 has 3 columns"),
        ("Emma\ta b\tprimitive", r"train\.tsv: line 2: 'a b' is no term of a logical form"),
    ],
)
def test_damaged_lines_are_refused_with_their_place(tmp_path, line, message):
    (tmp_path / "train.tsv").write_text(f"Emma\tEmma\tprimitive\n{line}\n")
    with pytest.raises(ValueError, match=message):
        prepared(made(tmp_path, evaluated=()))


@pytest.mark.parametrize("kind", ["in_distribution", "primitive", "exposure_example_active", "prim_to_inf_arg", "mine"])
def test_a_last_line_that_is_whole_needs_no_end_and_any_cut_one_is_refused(tmp_path, kind):
    before = "Emma\tEmma\tprimitive\nNoah\tNoah\tmine\n"
    whole = f"{before}Emma slept .\tsleep . agent ( x _ 1 , Emma )\t{kind}"
    for end in ("", "\n", "\n\n"):
        (tmp_path / "train.tsv").write_text(whole + end)
        pairs = made(tmp_path, evaluated=(), target_form="original").read("train")[0]
        assert len(pairs) == 3 and pairs[-1].kind == kind
    for n in range(len(before) + 1, len(whole)):
        if kind.startswith("exposure_example_") and whole[:n].split("\t")[-1].startswith("exposure_example_"):
            continue  # there are many: the sentence and its form are whole then
        (tmp_path / "train.tsv").write_text(whole[:n])
        with pytest.raises(ValueError, match="line 3 has no end: the file is truncated"):
            made(tmp_path, evaluated=()).read("train")


def test_unknown_types_of_generalization_are_refused(tmp_path):
    write(tmp_path, "train", "free", training())
    write(tmp_path, "gen", "free", [(*generation()[0][:3], "prim_to_verb")])
    with pytest.raises(ValueError, match="unknown type 'prim_to_verb'; the 21 types"):
        prepared(made(tmp_path, evaluated=("gen",)))


def test_data_sets_of_hugging_face_are_the_same_items(folder, monkeypatch):
    class Rows(dict):
        column_names = ("input", "output", "domain")

    def load_dataset(hf_id, config, split):
        assert (hf_id, config) == ("some/cogs", None)
        rows = {"train": training(), "test": training()[3:7]}[split]
        return Rows(input=[row[0] for row in rows], output=[row[1] for row in rows], domain=[row[3] for row in rows])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for form in ("original", "variable_free"):
        one, other = (
            made(p, hf_id=h, target_form=form, evaluated=("test",)) for p, h in (("", "some/cogs"), (folder, ""))
        )
        told = [json.loads(task.files()["data.json"])["splits"] for task in (one, other)]
        for split in ("train", "test"):
            assert told[0][split]["tokens_sha256"] == told[1][split]["tokens_sha256"]
    assert FAMILIES["cogs"] is Cogs


@functools.cache
def real(name):
    text = lzma.decompress((REAL / f"{name}.tsv.xz").read_bytes()).decode()
    return [line.split("\t") for line in text.split("\n")[:-1]]


@pytest.mark.skipif(not REAL.is_dir(), reason="the data lie elsewhere")
def test_all_real_training_forms_without_variables_are_the_published_ones():
    for (sentence, original, kind), (same, free, _) in zip(real("train"), real("train_varfree"), strict=True):
        assert sentence == same
        assert " ".join(variable_free(original.split())) == free
        if kind != "primitive" and "xcomp" not in original:  # "wanted to eat" says twice who eats
            assert original_facts(original.split()) == facts(free.split())


@pytest.mark.skipif(not REAL.is_dir(), reason="the data lie elsewhere")
def test_real_generalization_has_a_thousand_items_of_each_type_and_shares_no_sentence_with_training():
    task = made(REAL, vocab_size=1000, length=206, evaluated=("gen",))
    kind_N = np.asarray(prepared(task).tables["gen"].kind_N)
    np.testing.assert_array_equal(np.bincount(kind_N, minlength=21), np.full(21, 1000))
    assert [GEN_TYPES[i] for i in kind_N] == [row[2] for row in real("gen_varfree")]
    assert not {row[0] for row in real("gen_varfree")} & {row[0] for row in real("train")}
