"""Measurements: a function of one row, taken of every row and snapshot, once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import lab
from lab import grid, models, rng
from lab.analysis.measure import BLOCK_ROWS, Measure, measure
from lab.configs import composition
from lab.engine import config as configs
from lab.engine import store, table
from lab.engine.workdir import Workdir, WorkdirError
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
N_ROWS = BLOCK_ROWS + 3  # a full block and a rest
STEPS = (0, 10)


def config():
    """The study's task, and a model without attention: only measuring is tried here."""
    (variant, *_) = configs.variants(composition.smoke()).values()
    options = variant.to_dict()
    options["model"] = dict(family="emb_mlp", vocab_size=201, d_model=4, d_ff=3, activation="tanh")
    options["grid"] = dict(gamma=(0.5,), weight_decay=(0.0,), learning_rate=(1e-3,), seed=tuple(range(N_ROWS)))
    return ConfigDict(options)


def params_at(step):
    """Of all rows, drawn here."""
    draw = np.random.default_rng(step)
    shapes = {"embed/embedding": (201, 4), "in/kernel": (4, 3), "head/kernel": (3, 201)}
    tree = {}
    for name, shape in shapes.items():
        module, leaf = name.split("/")
        tree[module] = {leaf: draw.standard_normal((N_ROWS, *shape)).astype(np.float32)}
    return tree


@pytest.fixture
def work(tmp_path):
    made = Workdir(tmp_path / "w")
    made.path.mkdir()
    store.write_json(made.path / "config.json", {"config": configs.to_json(config())})
    store.write_json(made.path / "grid.json", grid.product(config().grid.to_dict()).to_json())
    n = np.zeros((0, N_ROWS), np.float32)
    chunk = {"train_step": np.arange(0), "step": np.array([0]), "train_loss": n, "diverged_at": np.zeros(N_ROWS)}
    table.write_npz(made.metrics / "0.npz", chunk)
    for step in STEPS:
        store.save(made.snapshots, step, params_at(step))
    return made


def norms(model, params, batch, key):
    """Squared entries of W_1 by input, and of everything."""
    return {
        "by_input": jnp.sum(jnp.square(params["in"]["kernel"]), axis=1),
        "all": sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)),
    }


NORMS = Measure(
    "norms", norms, units={"by_input": "1", "all": "weight^2"}, dims={"by_input": ("unit",)},
    coords={"unit": ("a", "b", "c", "d")},
)  # fmt: skip


def test_every_row_of_every_snapshot_is_measured_and_found_at_its_place(work):
    assert measure(work, [NORMS]) == ["norms"]
    dataset = lab.load(work.path)
    assert dataset["norms.all"].attrs["units"] == "weight^2"
    for step in STEPS:
        for seed in range(N_ROWS):
            here = dataset.sel(snapshot=step, seed=seed).squeeze()
            leaves = {name: leaf[seed].astype(np.float64) for name, leaf in named_leaves(params_at(step)).items()}
            squares = {name: leaf**2 for name, leaf in leaves.items()}
            for i, unit in enumerate("abcd"):
                # three squares and two sums
                assert here["norms.by_input"].sel(unit=unit) == pytest.approx(
                    squares["in/kernel"][i].sum(), rel=4 * EPS
                )
            # at most 804 positive terms one after the other
            assert here["norms.all"] == pytest.approx(sum(s.sum() for s in squares.values()), rel=804 * EPS)


def test_last_means_the_last_snapshot_without_an_axis_for_it(work):
    measure(work, [dataclasses.replace(NORMS, snapshots="last")])
    found = lab.load(work.path)["norms.by_input"]
    assert "snapshot" not in found.dims
    expected_RxD = np.square(params_at(10)["in"]["kernel"], dtype=np.float64).sum(axis=2)
    np.testing.assert_allclose(found.transpose(..., "seed", "unit").values.squeeze(), expected_RxD, rtol=4 * EPS)


def test_function_is_given_the_model_and_the_sequences_it_asked_for(work):
    """All rows see the same ones; the answer is the model's own."""

    def function(model, params, batch, key):
        logits_BxQxV, _ = models.forward(model, params, batch.tokens_BxL)
        return {"logit": logits_BxQxV[0, -1], "tokens": batch.tokens_BxL, "noise": jax.random.uniform(key)}

    dims = {"logit": ("token",), "tokens": ("sequence", "position")}
    one = Measure("seen", function, {"logit": "1", "tokens": "token", "noise": "1"}, dims, split="ood_43", n=5)
    measure(work, [one])
    dataset = lab.load(work.path).squeeze()
    tokens = dataset["seen.tokens"].transpose("snapshot", "seed", "sequence", "position").values
    assert tokens.shape[2] == 5 and (tokens == tokens[0, 0]).all()
    assert (np.count_nonzero(tokens[0, 0] == 4, axis=1) == 1).all()  # anchors 4 and 3, in this order
    assert [row.index(4) + 1 for row in tokens[0, 0].tolist()] == [row.index(3) for row in tokens[0, 0].tolist()]
    assert len(np.unique(dataset["seen.noise"])) == 1
    params = {name: leaf[7].astype(np.float64) for name, leaf in named_leaves(params_at(10)).items()}
    hidden = np.tanh(params["embed/embedding"][tokens[0, 0, 0]].sum(axis=0) @ params["in/kernel"])
    found = dataset["seen.logit"].sel(seed=7, snapshot=10).values
    # sums of 9 and 4 terms, below 40 together, then of 3; tanh passes errors on at most as they are
    np.testing.assert_allclose(found, hidden @ params["head/kernel"], rtol=0, atol=16 * 40 * EPS)


def test_matrix_products_run_in_full_float32(work):
    seen = []

    def function(model, params, batch, key):
        seen.append(jax.config.jax_default_matmul_precision)
        return {"x": params["in"]["kernel"][0, 0]}

    before = jax.config.jax_default_matmul_precision
    measure(work, [Measure("precision", function, {"x": "1"})])
    assert set(seen) == {"highest"} and jax.config.jax_default_matmul_precision == before
    assert work.read_json("analysis/precision.json")["precision"] == "float32 highest"


def written(work):
    return {path.name: path.stat().st_mtime_ns for path in work.analysis.iterdir()}


def test_what_is_held_is_not_measured_again(work):
    measure(work, [NORMS])
    before = written(work)
    other = dataclasses.replace(NORMS, name="other")
    assert measure(work, [NORMS]) == []
    assert measure(work, [NORMS, other]) == ["other"]
    assert {name: time for name, time in written(work).items() if name in before} == before


def test_what_was_cut_short_is_cleared_away(work):
    measure(work, [NORMS])
    (work.analysis / ".norms.npz.tmp").write_bytes(b"half")
    assert measure(work, [NORMS]) == []
    assert {path.name for path in work.analysis.iterdir()} == {"norms.json", "norms.npz"}


@pytest.mark.parametrize(
    "change",
    [
        lambda work: store.save(work.snapshots, 20, params_at(20)),
        lambda work: (work.analysis / "norms.npz").unlink(),
        lambda work: (work.analysis / "norms.json").unlink(),
        lambda work: (work.analysis / "norms.npz").write_bytes(b"PK"),
        lambda work: (work.analysis / "norms.json").write_text("{"),
    ],
    ids=["new snapshot", "no numbers", "no header", "damaged numbers", "damaged header"],
)
def test_what_no_longer_covers_the_folder_is_measured_again(work, change):
    measure(work, [NORMS])
    change(work)
    assert measure(work, [NORMS]) == ["norms"]
    assert lab.load(work.path).snapshot.values.tolist() == work.snapshot_steps()
    assert measure(work, [NORMS]) == []


def test_measure_that_has_changed_or_a_new_version_is_measured_again(work, monkeypatch):
    measure(work, [NORMS])
    changed = dataclasses.replace(NORMS, units=NORMS.units | {"all": "1"})
    assert measure(work, [changed]) == ["norms"]
    assert lab.load(work.path)["norms.all"].attrs["units"] == "1"
    monkeypatch.setattr(lab, "__version__", "99")
    assert measure(work, [changed]) == ["norms"]
    assert measure(work, [changed]) == []


def test_snapshots_that_are_absent_or_damaged_are_the_users_to_know(work):
    (work.snapshots / "10" / store.MANIFEST).unlink()
    with pytest.raises(WorkdirError, match=r"snapshots/10/manifest\.json is missing"):
        measure(work, [NORMS])
    assert table.read_header(work, "norms") is None
    empty = Workdir(work.path / "empty")
    with pytest.raises(WorkdirError, match="no snapshots to analyze; train first"):
        measure(empty, [NORMS])


def test_unknown_choice_of_snapshots_is_refused():
    with pytest.raises(ValueError, match="measure norms: snapshots='first'; one of all, last"):
        dataclasses.replace(NORMS, snapshots="first")


def test_stream_of_a_measure_is_its_own(work):
    """Two measures with the same split see different sequences, and neither those of training."""
    tokens = {}

    def function(model, params, batch, key):
        return {"tokens": batch.tokens_BxL}

    for name in ("one", "two"):
        dims = {"tokens": ("sequence", "position")}
        measure(work, [Measure(name, function, {"tokens": "token"}, dims, snapshots="last", n=4)])
        tokens[name] = lab.load(work.path)[f"{name}.tokens"].isel(seed=0).values.squeeze()
    task, seed = work.experiment.task, work.experiment.data_seed
    tokens["train"] = np.asarray(task.sample(rng.key(seed, "data", 0), 4, "train", {}).tokens_BxL)
    for one, other in (("one", "two"), ("one", "train"), ("two", "train")):
        assert (tokens[one] != tokens[other]).mean() > 0.5  # 36 tokens of 80 kinds agree in one place by chance
