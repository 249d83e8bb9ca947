"""The text study from a file to its page, its numbers against plain loops, and its claims on curves drawn by hand."""

import math

import numpy as np
import pytest
from synthetic import Grid, measured, reproduce

from lab import models, rng
from lab.disk.load import load
from lab.disk.workdir import Workdir
from lab.studies import focus_dilution_text as study
from lab.tasks import text

STEPS = np.arange(0, 100, 10)
UP_AND_DOWN = np.array([0.15, 0.15, 0.3, 0.9, 0.99, 0.6, 0.3, 0.2, 0.1, 0.1])
FLAT = np.full(len(STEPS), 0.15)
LABELS = ("the (1)", "it (4)", "continue (5)")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Trained, measured and reported from the command line, on words whose frequencies fall as Zipf's."""
    folder = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    share_V = 1 / np.arange(1, 121)
    words = draw.choice(120, (400, 30), p=share_V / share_V.sum())
    (folder / "words.txt").write_text("\n".join(" ".join(f"w{word}" for word in line) for line in words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAMMALAB_CACHE", str(folder / "cache"))
        tiny = ("--config.steps=8", "--config.eval_every=4", "--config.checkpoint_every=8", "--variants=one_layer")
        path = f"--config.task.path={folder / 'words.txt'}"
        yield reproduce("focus_dilution_text", folder / "w", path, *tiny)


def test_probes_attend_as_a_plain_loop_says(root):
    dataset = load(root / "one_layer")
    experiment = Workdir(root / "one_layer").experiment
    row = dataset.isel(seed=0, gamma=0, weight_decay=0, learning_rate=0, snapshot=-1)
    params = dataset.lab.params(seed=0)
    count_V = text.frequencies(experiment.task)
    names = text.prepared(experiment.task).tokenizer.names
    top = int(np.argmax(count_V))
    probe = str(row.probe.values[1])
    token = names.index(probe.rpartition(" ")[0])
    chosen, labels = study._probes(experiment.task, count_V)
    key = rng.key(experiment.data_seed, "analysis/probes")
    windows = text.windows_ending_in(experiment.task, key, chosen, study.WINDOWS, "train")[labels.index(probe)]
    assert (windows[:, -1] == token).all()
    _, acts = models.forward(experiment.model, params, windows)
    mass_V = np.zeros(experiment.task.vocab_size)
    for window, pattern_L in zip(windows, np.asarray(acts["block_0/attn/pattern"])[:, 0, -1], strict=True):
        for seen, share in zip(window, pattern_L, strict=True):
            mass_V[seen] += share / len(windows)
    found = row.sel(probe=probe).isel(layer=0)
    # 48 windows of 8 float32 shares below 1, added in another order
    tolerance = 48 * 8 * 2.0**-23
    assert found["probes.to_top"] == pytest.approx(mass_V[top], abs=tolerance)
    assert found["probes.to_self"] == pytest.approx(mass_V[token], abs=tolerance)
    entropy = -sum(share * math.log(share) for share in mass_V if share)
    # an error e in a share p moves -p log p by e (1 + |log p|), and shares are above 1e-3 here
    assert found["probes.entropy"] == pytest.approx(entropy, abs=8 * 100 * tolerance)
    assert found["probes.norm"] == pytest.approx(np.linalg.norm(params["embed"]["token"]["embedding"][token]), rel=1e-5)


def test_page_shows_every_picture_and_a_film(root):
    figures = {path.name for path in (root / "report" / "figures").iterdir()}
    assert {"one_layer-probes-0.png", "one_layer-seeds.png", "one_layer-film.gif"} <= figures
    assert (root / "report" / "figures" / "one_layer-film.gif").read_bytes()[:4] == b"GIF8"


# --- claims ---


def drawn(variant, name, *curves_TxI):
    """A variable of the first layer, one (T, I) array a seed; the other layer is not read."""
    made = Grid(steps=STEPS, gamma=(1.2,), seed=range(len(curves_TxI)))
    layered = [np.stack([curve_TxI, curve_TxI[::-1]], axis=1) for curve_TxI in curves_TxI]
    values = np.stack(layered, axis=1)[:, :, None]
    return {variant: made.put(name, values, "snapshot", {"layer": range(2), "probe": LABELS})}


@pytest.mark.parametrize(("name", "variant"), [("T1", "one_layer"), ("T3", "two_layer")])
def test_t1_and_t3_count_the_probes_of_middle_frequency_that_go_and_return(name, variant):
    """None that only rises, stays, hardly moves, keeps more than half of its rise, or is of another frequency."""
    rises, moves = np.linspace(0.15, 0.99, 10), np.where(STEPS == 40, 0.2, 0.15)
    keeps = np.interp(STEPS, (0, 40, 90), (0.1, 0.9, 0.51))
    pairs = [(UP_AND_DOWN, FLAT), (UP_AND_DOWN, UP_AND_DOWN), (rises, FLAT), (moves, FLAT), (keeps, FLAT)]
    runs = drawn(variant, "probes.to_top", *(np.column_stack([UP_AND_DOWN, *pair]) for pair in pairs))
    result = measured(study.STUDY, name, **runs)
    assert result.values_S.tolist() == [1, 2, 0, 0, 0]
    assert [result.claim.threshold.kept(value) for value in result.values_S] == [True, True, False, False, False]
    if name == "T1":
        assert "1 of 2, first peak at step 40; 2 of 2, first peak at step 40; 0 of 2" in result.note
    runs[variant].diverge(60, seed=0)
    assert np.isnan(measured(study.STUDY, name, **runs).values_S).tolist() == [True, False, False, False, False]


def test_t1_needs_probes_of_middle_frequency():
    runs = drawn("one_layer", "probes.to_top", np.column_stack([FLAT] * 3))
    runs["one_layer"].dataset = runs["one_layer"].dataset.sel(probe=["the (1)"])
    assert "lacks probes of middle frequency" in measured(study.STUDY, "T1", **runs).note


def test_t2_counts_the_turns_of_the_entropy_of_all_probes():
    once, twice = 5 - 4 * UP_AND_DOWN, 5 - 4 * np.append(UP_AND_DOWN[:-1], 0.5)
    curves = [np.column_stack([entropy_T] * 3) for entropy_T in (once, twice, FLAT)]
    result = measured(study.STUDY, "T2", **drawn("one_layer", "probes.entropy", *curves))
    assert result.values_S.tolist() == [1, 2, 0]  # once: it falls and rises
    assert [result.claim.threshold.kept(value) for value in result.values_S] == [False, True, False]


# --- probes ---


def deciles_by_hand(count):
    """Walks through tokens by falling count and looks in which tenth the middle of each one's mass lies."""
    below, found = 0, [9] * len(count)
    for token in sorted(range(len(count)), key=lambda token: (-count[token], token)):
        if count[token]:
            found[token] = 10 * (2 * below + count[token]) // (2 * sum(count))
        below += count[token]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_deciles_are_tenths_of_the_mass(seed):
    count = (1000 / np.random.default_rng(seed).permutation(np.arange(1, 301))).astype(int)  # Zipf's law
    count[:3] = 0
    found = study.deciles(count)
    np.testing.assert_array_equal(found, deciles_by_hand(count.tolist()))
    # tokens lie whole in the decile of their middle: each tenth is off by at most half of the largest token it touches
    for decile in range(10):
        mass = count[found == decile].sum() / count.sum()
        assert abs(mass - 0.1) <= count.max() / count.sum()
    assert set(found[:3]) == {9}


def test_probes_are_evenly_spaced_in_every_decile():
    # 100 equal tokens: ten in each decile; of ten, three evenly spaced ones are at 1, 5 and 8 (1.67, 5, 8.33)
    found = study.decile_probes(np.full(100, 7), 3, 1)
    np.testing.assert_array_equal(found.token_I, [10 * d + i for d in range(10) for i in (1, 5, 8)])
    np.testing.assert_array_equal(found.decile_I, np.repeat(np.arange(10), 3))


def test_rare_tokens_and_deciles_inside_one_token_have_no_probe():
    # token 2 has half of the mass, its middle at 0.25; tokens 0 and 1 end at 0.65 and 0.8; 20 rare ones have the rest
    count = np.array([60, 60, 200, *[4] * 20])
    np.testing.assert_array_equal(study.decile_probes(count, 5, 5).token_I, [2, 0, 1])
    np.testing.assert_array_equal(study.decile_probes(count, 5, 5).decile_I, [2, 5, 7])
    with_rare = study.decile_probes(count, 2, 4)
    np.testing.assert_array_equal(with_rare.token_I[:3], [2, 0, 1])
    assert len(with_rare.token_I) == 7 and set(with_rare.decile_I[3:]) == {8, 9}


def test_named_probes_are_the_words_that_are_there_preferably_after_a_space():
    vocabulary = {"a": 0, "Ġa": 1, ",": 2, "full": 3, "Ġbeen": 4}
    count = np.array([50, 40, 30, 2, 20])
    found = study.named_probes(count, vocabulary.get, ("the", ",", "a", "full", "been"), 3)
    np.testing.assert_array_equal(found.token_I, [2, 1, 4])
    np.testing.assert_array_equal(found.decile_I, np.array(deciles_by_hand(count.tolist()))[[2, 1, 4]])


def test_texts_without_tokens_and_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="no token occurs"):
        study.deciles(np.zeros(5, int))
    with pytest.raises(ValueError, match="n_per_decile=0: must be at least 1"):
        study.decile_probes(np.ones(5, int), 0, 1)
    with pytest.raises(ValueError, match="least_count=0: must be at least 1"):
        study.decile_probes(np.ones(5, int), 1, 0)
