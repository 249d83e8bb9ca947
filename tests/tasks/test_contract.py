"""What every task promises, of each family in the registry at the smallest size: a new task is tested by being there.

What is read, drawn and scored, under jit, vmap and 64-bit mode, and which options are refused. What a task's sequences
mean is in the file of that task.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.objective import Objective, context
from lab.tasks import FAMILIES, Task

N = 8
HOPS = dict(hops_train=(1,), hops_ood=(2,))
SMALL = {  # what a family needs to be told; `FOLDER` stands for the folder of `written`
    "composition": dict(setting="34_unseen", n_anchors=4, modulus=7, noise_groups=0, length=4),
    "addition": dict(high=99, block=(40, 60)),
    "anchor": {},
    "markov": dict(stationary=(0.6, 0.4), asymmetry=(1.0, -1.0), delta=0.1, stay=0.5, transition=(), length=3),
    "text": dict(
        path="FOLDER/text.txt", hf_id="", separator="line", tokenizer="word", vocab_size=40, length=3, loss="all",
        valid_share=0.2, valid_path="",
    ),
    "scan": dict(path="FOLDER", hf_id="", length=9, vocab_size=16, variant="simple"),
    "cogs": dict(path="FOLDER", hf_id="", length=30, vocab_size=60, target_form="original"),
    "ontology": dict(HOPS, n_chains=2, n_concepts=12, form="cloze", chain_of_thought=False),
    "graph_path": dict(HOPS, width=1, n_parents=1, n_concepts=12),
    "rules": dict(HOPS, width=1),
    "kinship": dict(hops_train=(2,), hops_ood=(3,)),
    "question_files": dict(path="FOLDER/questions.json", test_path="", test_share=0.4, length=20, vocab_size=30),
    "sequel": dict(task="addition", first="composition"),
    "two_hop": dict(
        world="graph", n_entities=6, n_relations=4, out_degree=3, ood_share=0.4, test_share=0.2, ratio=0.5,
        three_hop=True,
    ),
    "symmetric_composition": {},
    "inverse_matching": dict(n_fillers=0, high=30),
    "linear_regression": dict(n_features=2, n_demos=3),
    "induction": dict(low=2, high=3, length=4, vocab_size=4),
    "strings": dict(alphabet=3, length=4, order=2, concentration=0.5, law_seed=0),
    "copy_strings": dict(longest=3, n_letters=6),
    "increasing_subsequence": dict(shortest=2, longest=4, n_values=6),
    "shapes": dict(size=8, n_times=20, images_per_class=2),
    "fields": dict(equation="burgers", size=8, horizon=2, low=1, high=2, amplitude=0.1, n_train=9, n_test=9),
}  # fmt: skip
OURS = [name for name, kind in FAMILIES.items() if kind.__module__.startswith("lab.")]  # tests may register others


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A folder with a file for each task that reads some."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "text.txt").write_text("".join(f"word{i % 7} of line {i % 9}\n" for i in range(40)))
    for split, verbs in (("train", ("walk", "run", "look", "jump")), ("test", ("walk", "run"))):
        commands = [f"IN: {verb} OUT: I_{verb.upper()}" for verb in verbs]
        commands += [f"IN: {verb} twice OUT: I_{verb.upper()} I_{verb.upper()}" for verb in verbs]
        (folder / f"tasks_{split}_simple.txt").write_text("\n".join(commands) + "\n")
    rows = [(f"{who} slept .", f"sleep . agent ( x _ 1 , {who} )") for who in ("Emma", "Noah", "Liam")]
    for split, kind in (("train", "in_distribution"), ("test", "in_distribution"), ("gen", "active_to_passive")):
        (folder / f"{split}.tsv").write_text("".join("\t".join((*row, kind)) + "\n" for row in rows))
    questions = [
        {"question": f"Every yumpus is a {a}pus. Is Max a {a}pus or {b}pus?", "answer": f"Max is a {a}pus."}
        for a, b in (("wum", "rom"), ("rom", "wum"), ("lor", "wum"), ("wum", "lor"), ("rom", "lor"))
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


def made(family, folder, **changes) -> Task:
    options = SMALL[family] | changes
    if family == "sequel":
        options = {name: made(of, folder) if isinstance(of, str) else of for name, of in options.items()}
    paths = {name: of.replace("FOLDER", str(folder)) for name, of in options.items() if isinstance(of, str)}
    return FAMILIES[family](**options | paths)


@pytest.fixture(scope="module", params=OURS)
def task(request, written):
    assert request.param in SMALL, "a new family: say here how small it may be"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAMMALAB_CACHE", str(written / "cache"))
        yield made(request.param, written)


def everything(task, key):
    """All that is drawn: the clean sequences of every split, and what noise makes of training sequences."""
    found = {split: task.sample(key, N, split, {}) for split in task.splits}
    objective = Objective(shuffle_context=True) if task.has_answer else Objective()
    noise = {"label_noise": jnp.float32(0.5), "context_noise": jnp.float32(0.5)} if task.has_answer else {}
    return found | {"objective": objective.apply(task, objective.sample(task, key, N, {}), noise)}


@functools.cache
def drawn(task, seed=0):
    """`everything`, by one program."""
    return jax.tree.map(np.asarray, _program(task)(jax.random.key(seed)))


@functools.cache
def _program(task):
    return jax.jit(lambda key: everything(task, key))


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


def outputs_of(task, batch):
    """What a model that is always right would say, for `mean_loss` and `score`."""
    if task.inputs != "tokens":
        return jnp.asarray(batch.targets_BxL)
    return 50 * jax.nn.one_hot(batch.targets_BxL, task.vocab_size, dtype=jnp.float32)


def test_a_family_is_one_frozen_dataclass_on_top_of_task(task):
    """Abstract or final: nothing that is inherited is an implementation of another task."""
    assert type(task).__bases__ == (Task,)
    assert task == dataclasses.replace(task) and hash(task) == hash(dataclasses.replace(task))
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.length = 3


def test_batches_are_of_int32_and_float32_with_one_entry_a_sequence(task):
    assert task.splits[0] == "train" and len(set(task.splits)) == len(task.splits)
    for batch in drawn(task).values():
        assert {leaf.dtype.name for leaf in jax.tree.leaves(batch)} <= {"int32", "float32", "bool"}
        assert {leaf.shape[0] for leaf in jax.tree.leaves(batch)} == {N}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(batch.weights_BxL)} == {"float32"}
        example = jax.tree.map(lambda leaf: (leaf.dtype, leaf.ndim), task.example())
        assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.ndim), batch.tokens_BxL) == example


def test_sequences_are_of_the_vocabulary_and_what_is_read_next_is_to_be_said(task):
    if task.inputs != "tokens":
        return
    for split in task.splits:
        batch = drawn(task)[split]
        assert batch.tokens_BxL.shape == batch.targets_BxL.shape == batch.weights_BxL.shape
        assert batch.tokens_BxL.shape[1] <= task.length
        for tokens_BxL in (batch.tokens_BxL, batch.targets_BxL):
            assert tokens_BxL.dtype == np.int32 and 0 <= tokens_BxL.min() <= tokens_BxL.max() < task.vocab_size
        np.testing.assert_array_equal(batch.tokens_BxL[:, 1:], batch.targets_BxL[:, :-1])
        assert set(np.unique(batch.weights_BxL)) <= {0, 1} and (batch.weights_BxL.sum(axis=1) > 0).all()


def test_an_answer_follows_its_context_and_padding_follows_both(task):
    if not task.has_answer:
        return
    for alphabet in (task.answer_alphabet, task.context_alphabet):
        assert len(set(alphabet)) == len(alphabet) > 1 and 0 < min(alphabet) <= max(alphabet) < task.vocab_size
    for split in task.splits:
        batch = drawn(task)[split]
        # 0 context, 1 answer, 2 padding
        kind_BxL = np.where(np.asarray(context(batch)), 0, np.where(batch.weights_BxL > 0, 1, 2))
        assert (np.diff(kind_BxL, axis=1) >= 0).all() and (kind_BxL == 1).any(axis=1).all()
        assert (batch.targets_BxL[kind_BxL == 2] == 0).all()


def test_a_key_decides_all_bits_alone_or_under_vmap(task):
    keys = jnp.stack([jax.random.key(seed) for seed in range(2)])
    together = jax.jit(jax.vmap(lambda key: everything(task, key)))(keys)
    for seed in range(2):
        assert_same_bits(jax.tree.map(lambda leaf, seed=seed: np.asarray(leaf[seed]), together), drawn(task, seed))
    one, other = (jax.tree.leaves(drawn(task, seed)["train"].tokens_BxL)[0] for seed in range(2))
    assert not np.array_equal(one, other)


def test_double_precision_changes_no_bit(task):
    expected = drawn(task)
    with jax.enable_x64(True):
        key = jax.random.key(0)
        found = jax.tree.map(np.asarray, jax.jit(lambda key: everything(task, key))(key))
        scores = [jax.eval_shape(task.score, outputs_of(task, batch), batch) for batch in expected.values()]
    assert_same_bits(found, expected)
    assert {score.dtype.name for of_split in scores for score in of_split.values()} <= {"float32"}


def test_a_row_samples_with_its_own_values_of_what_a_grid_may_vary(task):
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    assert set(task.hparams) <= set(fields)
    if task.hparams:
        own = {name: jnp.float32(fields[name]) for name in task.hparams}
        found = jax.jit(lambda key, hparams: task.sample(key, N, "train", hparams))(jax.random.key(0), own)
        assert_same_bits(jax.tree.map(np.asarray, found), drawn(task)["train"])


def test_scores_have_the_dimensions_that_are_declared_and_a_right_model_is_right(task):
    scored = set()
    for split in task.splits:
        batch = drawn(task)[split]
        scores = jax.jit(task.score)(outputs_of(task, batch), batch)
        scored |= set(scores)
        for name, score in scores.items():
            sizes = tuple(len(task.coords[dim]) for dim in task.dims.get(name, ()))
            assert (score.shape, score.dtype) == (sizes, np.float32), name
            if "accuracy" in name:
                assert np.isin(np.nan_to_num(score, nan=1.0), 1.0).all(), (split, name)
        loss = task.mean_loss(outputs_of(task, batch), batch)
        # e^-50 a token of the vocabulary, or no error at all
        assert loss.shape == () and loss.dtype == np.float32 and 0 <= loss < 1e-6
    assert set(task.dims) <= scored


def test_some_model_reads_what_the_task_gives(task):
    assert task.inputs in {models.reads(family) for family in models.FAMILIES.values()}


def test_files_are_bytes_that_do_not_change(task):
    kept = task.files()
    assert all(isinstance(name, str) and isinstance(content, bytes) for name, content in kept.items())
    assert task.files() == kept


def test_unknown_splits_are_refused_with_those_there_are(task):
    known = (task.task if hasattr(task, "first") else task).splits
    with pytest.raises(ValueError, match=f"^split 'valdi': one of {', '.join(known)}$"):
        task.sample(jax.random.key(0), 2, "valdi", {})


def test_every_size_below_the_least_is_refused_by_name_and_value(task):
    sizes = [field.name for field in dataclasses.fields(task) if field.type is int]
    for name in sizes:
        with pytest.raises(ValueError, match=rf"task\.{name}=-1") as error:
            dataclasses.replace(task, **{name: -1})
        assert "\n" not in str(error.value)
    for name in (name for name in sizes if not _is_accepted(task, name, 0)):
        with pytest.raises(ValueError, match=r"^task\.\w+=.*: .+$"):  # the end of a range may name the other one
            dataclasses.replace(task, **{name: 0})


def _is_accepted(task, name, value):
    try:
        return bool(dataclasses.replace(task, **{name: value}))
    except ValueError:
        return False
