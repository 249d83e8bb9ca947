import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import config as configs
from lab.configs import base, focus_dilution_text
from lab.tasks import Text
from lab.tasks.text import bigram_entropy, frequencies, n_windows, prepared, windows_ending_in

EPS = 2.0**-23  # float32
LENGTH = 5
LINES = [" ".join(f"w{(i * i + 3 * j) % 11}" for j in range(1 + i % 6)) for i in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES))
    return Text(str(path), "", "line", "word", 20, LENGTH, "last", 0.25, "")


def stream(split):
    """The words of a split in order, each line ended: by hand, without a tokenizer."""
    lines = LINES[:45] if split == "train" else LINES[45:]
    return [word for line in lines for word in [*line.split(), "<eos>"]]


def named(task, tokens):
    names = prepared(task).tokenizer.names
    return [names[token] for token in np.asarray(tokens).ravel()]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_batches_are_windows_of_the_text_and_the_next_words(task, split):
    batch = jax.tree.map(np.asarray, task.sample(jax.random.key(0), 200, split, {}))
    words = stream(split)
    windows = {tuple(words[i : i + LENGTH + 1]) for i in range(len(words) - LENGTH)}
    for tokens_L, targets_L in zip(batch.tokens_BxL, batch.targets_BxL, strict=True):
        assert named(task, tokens_L)[1:] == named(task, targets_L)[:-1]
        assert (*named(task, tokens_L), *named(task, targets_L)[-1:]) in windows
    np.testing.assert_array_equal(batch.weights_BxL, np.tile([0, 0, 0, 0, 1], (200, 1)))
    everywhere = dataclasses.replace(task, loss="all").sample(jax.random.key(0), 3, split, {})
    np.testing.assert_array_equal(everywhere.weights_BxL, np.ones((3, LENGTH)))


def test_every_place_is_as_likely(tmp_path):
    # 20 training lines of three characters and an end; windows of four tokens, many of which differ from all others
    path = tmp_path / "distinct.txt"
    path.write_text("\n".join(f"a{i:02d}" for i in range(22)))
    task = Text(str(path), "", "line", "char", 30, 3, "all", 0.1, "")
    n_places = prepared(task).tokens["train"].size - 3
    n = 40_000
    batch = task.sample(jax.random.key(1), n, "train", {})
    token_N = np.asarray(prepared(task).tokens["train"], np.int64)
    text = np.lib.stride_tricks.sliding_window_view(token_N, 4)
    assert n_places == len(text) == 20 * 4 - 3
    distinct, count = np.unique(text, axis=0, return_counts=True)
    drawn_Bx4 = np.concatenate([batch.tokens_BxL, np.asarray(batch.targets_BxL)[:, -1:]], axis=1)
    seen = np.array([np.sum((drawn_Bx4 == window).all(axis=1)) for window in distinct])
    expected = n * count / n_places
    # chi-square with fewer than 77 degrees of freedom exceeds 126 in one seed of 10,000; the seed is fixed
    assert np.sum((seen - expected) ** 2 / expected) < 126
    assert seen.sum() == n


@pytest.mark.parametrize("split", ["train", "valid"])
def test_packed_windows_are_each_of_them_once(task, split):
    packed = dataclasses.replace(task, windows="packed", loss="all")
    words, n = stream(split), n_windows(packed, split)
    assert n * LENGTH < len(words) <= (n + 1) * LENGTH
    batch = packed.sample(jax.random.key(6), n, split, {})
    cut = sorted(words[i * LENGTH : (i + 1) * LENGTH] for i in range(n))
    drawn = [named(packed, tokens_L) for tokens_L in batch.tokens_BxL]
    assert sorted(drawn) == cut and drawn != cut  # all, in a random order
    following = [named(packed, targets_L)[-1] for targets_L in batch.targets_BxL]
    after = {tuple(words[i * LENGTH : (i + 1) * LENGTH + 1]) for i in range(n)}
    assert all((*window, word) in after for window, word in zip(drawn, following, strict=True))
    option = {"train": "train_size", "valid": "eval_size"}[split]
    with pytest.raises(ValueError, match=rf"{option}={n + 1}: .*has {n} windows of 5 tokens.*--config.{option}={n}"):
        packed.sample(jax.random.key(6), n + 1, split, {})


def test_loss_of_packed_windows_comes_with_its_standard_error(task):
    packed = dataclasses.replace(task, windows="packed", loss="all")
    batch = jax.tree.map(np.asarray, packed.sample(jax.random.key(7), 8, "train", {}))
    logits_BxLxV = np.random.default_rng(1).standard_normal((8, LENGTH, 20)).astype(np.float32)
    log_probs = logits_BxLxV - np.log(np.exp(logits_BxLxV.astype(float)).sum(axis=-1, keepdims=True))
    nll_BxL = -np.take_along_axis(log_probs, batch.targets_BxL[..., None], axis=-1)[..., 0]
    found = jax.jit(packed.score)(logits_BxLxV, batch)["loss_error"]
    # means of five numbers below 10 in float32, and their spread, which is about one
    assert found == pytest.approx(nll_BxL.mean(axis=1).std(ddof=1) / np.sqrt(8), abs=100 * EPS)
    assert "loss_error" not in jax.jit(task.score)(logits_BxLxV, batch)


def test_bigram_entropy_is_that_of_the_next_word(task, monkeypatch):
    monkeypatch.setattr("lab.tasks.text.BLOCK", 7)
    words, names = stream("train"), prepared(task).tokenizer.names
    entropy_V = bigram_entropy(task)
    for token, name in enumerate(names):
        after = [words[i + 1] for i in range(len(words) - 1) if words[i] == name]
        if not after:
            assert np.isnan(entropy_V[token])
            continue
        shares = [after.count(word) / len(after) for word in set(after)]
        assert entropy_V[token] == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-12)


def test_traced_batches_are_the_eager_ones_and_the_first_trace_leaves_nothing_behind(task):
    # traced first, so that the array that is kept is made inside of a trace
    jax.eval_shape(lambda: task.sample(jax.random.key(2), 7, "valid", {}))
    traced = jax.jit(jax.vmap(lambda key: task.sample(key, 7, "valid", {})))(jax.random.split(jax.random.key(2), 3))
    for i, key in enumerate(jax.random.split(jax.random.key(2), 3)):
        eager = task.sample(key, 7, "valid", {})
        jax.tree.map(lambda of_all, alone, i=i: np.testing.assert_array_equal(of_all[i], alone), traced, eager)


def test_frequencies_are_the_counts_of_the_training_words(task, monkeypatch):
    monkeypatch.setattr("lab.tasks.text.BLOCK", 7)
    count_V = frequencies(task)
    names = prepared(task).tokenizer.names
    words = stream("train")
    assert count_V.shape == (20,) and count_V.sum() == len(words)
    for token, name in enumerate(names):
        assert count_V[token] == words.count(name)


@pytest.mark.parametrize("loss", ["last", "all"])
def test_scores_are_the_means_over_the_positions_that_count(task, loss):
    task = dataclasses.replace(task, loss=loss)
    batch = jax.tree.map(np.asarray, task.sample(jax.random.key(3), 16, "valid", {}))
    logits_BxLxV = np.random.default_rng(0).standard_normal((16, LENGTH, 20)).astype(np.float32)
    words = stream("train")
    names = [*prepared(task).tokenizer.names, *[""] * 20][:20]
    smoothed = [words.count(name) + 0.5 for name in names]
    correct, gaps = [], []
    for b in range(16):
        for j in [LENGTH - 1] if loss == "last" else range(LENGTH):
            target, logits_V = int(batch.targets_BxL[b, j]), logits_BxLxV[b, j].astype(float)
            correct.append(max(range(20), key=logits_V.__getitem__) == target)
            nll = math.log(sum(map(math.exp, logits_V))) - logits_V[target]
            gaps.append(nll + math.log(smoothed[target] / sum(smoothed)))
    for kept in (1, LENGTH) if loss == "last" else (LENGTH,):  # a model may answer at the last position only
        found = jax.jit(task.score)(logits_BxLxV[:, LENGTH - kept :], batch)
        # at most 80 terms below 10, each with a few roundings, summed: below 80 * 10 * 4 eps over a sum of 80 or 16
        assert found["accuracy"] == pytest.approx(np.mean(correct), abs=4 * EPS)
        assert found["over_unigram"] == pytest.approx(np.mean(gaps), abs=200 * EPS)


def test_answering_with_the_training_frequencies_is_the_unigram_plateau(task):
    batch = task.sample(jax.random.key(4), 64, "train", {})
    count_V = frequencies(task) + 0.5
    logits_Bx1xV = jnp.broadcast_to(jnp.log(jnp.asarray(count_V, jnp.float32))[None, None], (64, 1, 20))
    # log_softmax of numbers below 6, and a sum of 64: each errs by a few eps of 6
    assert jax.jit(task.score)(logits_Bx1xV, batch)["over_unigram"] == pytest.approx(0, abs=50 * EPS)


def test_windows_end_in_their_token_and_are_drawn_from_all_there_are(task):
    names = prepared(task).tokenizer.names
    words = stream("train")
    chosen = [names.index("w0"), names.index("<eos>")]
    found_IxNxL = windows_ending_in(task, jax.random.key(5), chosen, 400, "train")
    for token, windows_NxL in zip(chosen, found_IxNxL, strict=True):
        there_are = {tuple(words[i - LENGTH + 1 : i + 1]) for i in range(LENGTH - 1, len(words))
                     if words[i] == names[token]}  # fmt: skip
        # at most 45 windows, each missed by 400 draws with probability below (1 - 1/45)^400 = 1e-4
        assert {tuple(named(task, window_L)) for window_L in windows_NxL} == there_are
    again = windows_ending_in(task, jax.random.key(5), chosen, 400, "train")
    np.testing.assert_array_equal(again, found_IxNxL)
    with pytest.raises(ValueError, match="token 0: ends no window of 5 tokens in split 'train'"):
        windows_ending_in(task, jax.random.key(5), [0], 1, "train")  # nothing is unknown in training


def test_kept_files_say_the_text_and_its_tokens_but_not_where_it_lies(task, tmp_path):
    kept = task.files()
    assert kept["tokenizer.json"] == prepared(task).tokenizer.to_bytes()
    said = json.loads(kept["corpus.json"])
    assert said["splits"]["train"]["tokens"] == len(stream("train"))
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "other.txt"
    moved.write_text("\n".join(LINES))
    assert dataclasses.replace(task, path=str(moved)).files() == kept
    moved.with_name("b.txt").write_text("\n".join([*LINES[1:], LINES[0]]))
    assert dataclasses.replace(task, path=str(moved.with_name("b.txt"))).files() != kept


def test_nothing_is_read_before_a_batch_is_asked_for(task):
    lost = dataclasses.replace(task, path="nowhere.txt")
    with pytest.raises(ValueError, match=r"nowhere\.txt: no such file or folder"):
        jax.eval_shape(lambda: lost.sample(jax.random.key(0), 1, "train", {}))


def test_text_shorter_than_a_window_is_refused(task):
    n = len(stream("valid"))
    with pytest.raises(ValueError, match=f"task.length={n}: .* has {n} tokens in split 'valid'"):
        dataclasses.replace(task, length=n).sample(jax.random.key(0), 1, "valid", {})
    only = dataclasses.replace(task, length=n - 1).sample(jax.random.key(0), 9, "valid", {})
    assert named(task, only.tokens_BxL[8]) == stream("valid")[:-1]  # one window fits


@pytest.mark.parametrize("preset", base.presets(focus_dilution_text))
def test_every_preset_is_an_experiment_whose_models_fit_its_task(preset):
    config = focus_dilution_text.get_config(preset)
    config.task.path = "nowhere.txt"  # nothing is read
    assert set(configs.variants(config)) == {"one_layer", "two_layer"}
    for variant in configs.variants(config).values():
        experiment = configs.experiment(variant)
        assert experiment.model.vocab_size == experiment.task.vocab_size
        assert getattr(experiment.model, "max_length", experiment.task.length) == experiment.task.length
        assert len(configs.grid(variant)) >= 2
