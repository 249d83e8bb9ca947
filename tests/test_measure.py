"""Measurements: a function of one row, taken of every row and snapshot, once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import lab
from lab import grid, models, rng
from lab.analysis.measure import Measure, Scope, chosen_steps, measure, missing
from lab.configs import composition
from lab.engine import config as configs
from lab.engine import store, table
from lab.engine.process import only_writer
from lab.engine.workdir import Workdir, WorkdirError
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
N_ROWS = 7  # on two devices: one of them has a row of padding
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


def norms(row):
    """Squared entries of W_1 by input, and of everything."""
    return {
        "by_input": jnp.sum(jnp.square(row.params["in"]["kernel"]), axis=1),
        "all": sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(row.params)),
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

    def function(row):
        logits_BxQxV, _ = models.forward(row.model, row.params, row.batch.tokens_BxL)
        return {"logit": logits_BxQxV[0, -1], "tokens": row.batch.tokens_BxL, "noise": jax.random.uniform(row.key)}

    dims = {"logit": ("token",), "tokens": ("sequence", "position")}
    one = Measure("seen", function, {"logit": "1", "tokens": "token", "noise": "1"}, dims, split="ood_43", n=5)
    measure(work, [one])
    dataset = lab.load(work.path).squeeze()
    tokens = dataset["seen.tokens"].transpose("snapshot", "seed", "sequence", "position").values
    assert tokens.shape[2] == 5 and (tokens == tokens[0, 0]).all()
    assert (np.count_nonzero(tokens[0, 0] == 4, axis=1) == 1).all()  # anchors 4 and 3, in this order
    assert [row.index(4) + 1 for row in tokens[0, 0].tolist()] == [row.index(3) for row in tokens[0, 0].tolist()]
    assert len(np.unique(dataset["seen.noise"])) == 1
    params = {name: leaf[5].astype(np.float64) for name, leaf in named_leaves(params_at(10)).items()}
    hidden = np.tanh(params["embed/embedding"][tokens[0, 0, 0]].sum(axis=0) @ params["in/kernel"])
    found = dataset["seen.logit"].sel(seed=5, snapshot=10).values
    # sums of 9 and 4 terms, below 40 together, then of 3; tanh passes errors on at most as they are
    np.testing.assert_allclose(found, hidden @ params["head/kernel"], rtol=0, atol=16 * 40 * EPS)


def test_matrix_products_run_in_full_float32(work):
    seen = []

    def function(row):
        seen.append(jax.config.jax_default_matmul_precision)
        return {"x": row.params["in"]["kernel"][0, 0]}

    before = jax.config.jax_default_matmul_precision
    measure(work, [Measure("precision", function, {"x": "1"})])
    assert set(seen) == {"highest"} and jax.config.jax_default_matmul_precision == before
    assert work.read_json("analysis/precision.json")["precision"] == "float32 highest"


def written(work):
    return {path.name: path.stat().st_mtime_ns for path in work.analysis.glob("[!.]*")}


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
    assert {path.name for path in work.analysis.glob("[!.]*")} == {"norms.json", "norms.npz"} and not [
        *work.analysis.glob(".*.tmp")
    ]


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
    assert lab.load(work.path).snapshot.values.tolist() == [0]
    empty = Workdir(work.path / "empty")
    with pytest.raises(WorkdirError, match="no snapshots to analyze; train first"):
        measure(empty, [NORMS])


def test_unknown_choice_of_snapshots_is_refused():
    with pytest.raises(ValueError, match="measure norms: snapshots='first'; one of all, last, log"):
        dataclasses.replace(NORMS, snapshots="first")


def test_stream_of_a_measure_is_its_own(work):
    """Two measures with the same split see different sequences, and neither those of training."""
    tokens = {}

    def function(row):
        return {"tokens": row.batch.tokens_BxL}

    for name in ("one", "two"):
        dims = {"tokens": ("sequence", "position")}
        measure(work, [Measure(name, function, {"tokens": "token"}, dims, snapshots="last", n=4)])
        tokens[name] = lab.load(work.path)[f"{name}.tokens"].isel(seed=0).values.squeeze()
    task, seed = work.experiment.task, work.experiment.data_seed
    tokens["train"] = np.asarray(task.sample(rng.key(seed, "data", 0), 4, "train", {}).tokens_BxL)
    for one, other in (("one", "two"), ("one", "train"), ("two", "train")):
        assert (tokens[one] != tokens[other]).mean() > 0.5  # 36 tokens of 80 kinds agree in one place by chance


def counting(times):
    """A measure that notes how often it is run, and of which snapshot and row."""

    def function(row):
        jax.debug.callback(lambda step, seed: times.append((int(step), int(seed))), row.step, row.hparams["seed"])
        return {"x": row.params["in"]["kernel"][0, 0], "n": row.step}

    return Measure("counted", function, {"x": "1", "n": "step"})


def test_rows_and_snapshots_are_taken_as_asked_and_once(work):
    """What is not held is NaN; asked for more, only the rest is computed."""
    times = []
    one = counting(times)
    expected_SxR = np.stack([params_at(step)["in"]["kernel"][:, 0, 0] for step in STEPS])
    assert measure(work, [one], Scope(snapshots="last", rows=(1, 4))) == ["counted"]
    assert set(times) == {(10, 1), (10, 4)}
    found = lab.load(work.path).squeeze()
    assert found.snapshot.values == 10
    for name, whole in (("counted.x", expected_SxR[1]), ("counted.n", np.full(N_ROWS, 10.0))):
        np.testing.assert_array_equal(found[name], np.where(np.isin(range(N_ROWS), (1, 4)), whole, np.nan))

    times.clear()
    assert measure(work, [one], Scope(snapshots="last", rows=(1,))) == [] == times
    assert missing(work, [one], Scope(snapshots="last")) == [one]
    assert measure(work, [one]) == ["counted"]
    assert {*times} == {(0, seed) for seed in range(N_ROWS)} | {
        (10, seed) for seed in range(N_ROWS) if seed not in (1, 4)
    }
    dataset = lab.load(work.path).squeeze()
    np.testing.assert_array_equal(dataset["counted.x"].transpose("snapshot", "seed"), expected_SxR)
    assert dataset["counted.n"].dtype == np.int32 and (dataset.snapshot == dataset["counted.n"].T).all()


def test_what_was_measured_before_it_was_stopped_is_kept(work):
    (work.snapshots / "10" / store.MANIFEST).write_text("{}")
    times = []
    with pytest.raises(WorkdirError, match=r"snapshots/10/manifest\.json"):
        measure(work, [counting(times)])
    assert lab.load(work.path).snapshot.values.tolist() == [0]
    store.save(work.snapshots, 10, params_at(10))
    times.clear()
    measure(work, [counting(times)])
    assert {step for step, _ in times} == {10} and lab.load(work.path).snapshot.values.tolist() == [0, 10]


def test_measurement_in_float64_is_exact_and_serves_where_float32_is_asked(work):
    def function(row):
        return {"sum": jnp.sum(row.params["head"]["kernel"], axis=None)}

    one = Measure("sum", function, {"sum": "1"}, snapshots="last")
    measure(work, [one])
    assert measure(work, [one], Scope(precision="float64")) == ["sum"]
    found = lab.load(work.path)["sum.sum"].squeeze()
    exact = params_at(10)["head"]["kernel"].astype(np.float64).sum(axis=(1, 2))
    assert found.dtype == np.float64
    # 603 terms whose absolute values add up to less than 700, in float64
    np.testing.assert_allclose(found, exact, rtol=0, atol=603 * 700 * 2.0**-52)
    assert work.read_json("analysis/sum.json")["precision"] == "float64 highest"
    assert measure(work, [one]) == []


def test_two_cannot_measure_one_folder_at_once(work):
    with only_writer(work.analysis), pytest.raises(WorkdirError, match="analysis: another process is at work here"):
        measure(work, [NORMS])


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (dict(snapshots="first"), "snapshots='first'; one of all, last, log"),
        (dict(precision="bfloat16"), "precision='bfloat16'; one of float32, float64"),
        (dict(rows=(N_ROWS,)), f"row {N_ROWS}: .* has rows 0 to {N_ROWS - 1}"),
    ],
)
def test_impossible_scope_is_refused(work, scope, message):
    with pytest.raises(ValueError, match=message):
        measure(work, [NORMS], Scope(**scope))


def test_log_spaced_snapshots_halve_the_last_one():
    assert chosen_steps(list(range(0, 101)), "log") == [0, 1, 3, 6, 12, 25, 50, 100]
    assert chosen_steps([0, 40, 100], "log") == [0, 40, 100]
    assert chosen_steps([0, 40, 100], "last") == [100] and chosen_steps([0, 40, 100], "all") == [0, 40, 100]
