"""The text study from a file to its page, its numbers against plain loops, and its claims on curves drawn by hand."""

import math

import jax
import numpy as np
import pytest
import xarray as xr

from lab import config as configs
from lab import models, rng
from lab.cli import main
from lab.configs import composition
from lab.disk.load import load
from lab.disk.workdir import Workdir
from lab.studies import claims
from lab.studies import focus_dilution_text as study
from lab.tasks import text

STEPS = np.arange(0, 100, 10)
UP_AND_DOWN = np.array([0.15, 0.15, 0.3, 0.9, 0.99, 0.6, 0.3, 0.2, 0.1, 0.1])
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
        changes = [f"--config.task.path={folder / 'words.txt'}", "--config.steps=8", "--config.eval_every=4"]
        changes += ["--config.checkpoint_every=8", f"--workdir={folder / 'w'}", "--variants=one_layer"]
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to whole numbers
            main(["reproduce", "focus_dilution_text", "--preset=smoke", *changes])
        yield folder / "w"


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


def drawn(to_top_TxI, entropy_T):
    """A dataset of three seeds that are alike."""
    axes = ("gamma", "weight_decay", "learning_rate", "seed")
    grid = (1, 1, 1, 3)
    to_top = np.broadcast_to(to_top_TxI[:, None, None, None, None, None], (len(STEPS), *grid, 1, len(LABELS)))
    entropy = np.broadcast_to(entropy_T[:, None, None, None, None, None, None], to_top.shape)
    ds = xr.Dataset(
        {
            "probes.to_top": (("snapshot", *axes, "layer", "probe"), to_top),
            "probes.entropy": (("snapshot", *axes, "layer", "probe"), entropy),
            "diverged_at": (axes, np.full(grid, -1)),
        },
        {"snapshot": STEPS, "probe": list(LABELS), "seed": [0, 1, 2], "gamma": [1.2]},
    )
    return {"one_layer": ds}


def verdicts(datasets):
    return {row["id"]: row["verdict"] for row in claims.evaluate(study.CLAIMS, datasets, "c")}


def test_claims_hold_where_a_middle_probe_goes_and_returns_and_entropy_turns_twice():
    flat = np.full(len(STEPS), 0.15)
    found = verdicts(drawn(np.column_stack([flat, flat, UP_AND_DOWN]), 5 - 4 * UP_AND_DOWN))
    assert found == {"T1": "holds", "T2": "does not hold", "T3": "not measured"}  # entropy falls and rises: one turn
    again = 5 - 4 * np.append(UP_AND_DOWN[:-1], 0.5)
    assert verdicts(drawn(np.column_stack([flat, flat, UP_AND_DOWN]), again))["T2"] == "holds"


@pytest.mark.parametrize("curve", [np.linspace(0.15, 0.99, 10), np.full(10, 0.15), np.where(STEPS == 40, 0.2, 0.15)])
def test_probe_that_only_rises_stays_or_hardly_moves_is_no_cycle(curve):
    assert verdicts(drawn(np.column_stack([UP_AND_DOWN, curve, curve]), curve))["T1"] == "does not hold"


def test_other_tasks_are_refused():
    experiment = configs.experiment(composition.smoke())
    with pytest.raises(ValueError, match="measures training on text, not on Composition"):
        study.measures(experiment)
