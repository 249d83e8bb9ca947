"""Measurements: a function of one row, taken of every row and snapshot, once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import lab
from lab import config as configs
from lab import grid, models, rng, tasks
from lab.configs import composition
from lab.disk import files, measurements, metrics, store
from lab.disk.files import WorkdirError
from lab.disk.workdir import Workdir
from lab.engine.multihost import only_writer
from lab.measuring import run as measuring
from lab.measuring.declare import Measure, summary
from lab.measuring.run import Selection, measure, missing, stale
from lab.schedule import chosen as chosen_steps
from lab.tasks import Composition
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
    return trained(tmp_path / "w")


def trained(path, **changes):
    """What training leaves, of weights drawn here."""
    made = Workdir(path)
    made.path.mkdir()
    options = configs.to_json(config()) | changes
    files.write_json(made.path / "config.json", {"config": options, "data": {}, "start": {}})
    files.write_json(made.path / "grid.json", grid.product(config().grid.to_dict()).to_json())
    n = np.zeros((0, N_ROWS), np.float32)
    chunk = {"train_step": np.arange(0), "step": np.array([0]), "train_loss": n, "diverged_at": np.zeros(N_ROWS)}
    files.write_npz(made.metrics / "0.npz", chunk)
    for step in STEPS:
        store.save(made.snapshots, step, params_at(step))
    return made


def norms(row):
    """Squared entries of W_1 by input, and of everything."""
    return {
        "by_input": jnp.sum(jnp.square(row.params["in"]["kernel"]), axis=1),
        "all": sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(row.params)),
    }


def first(row):
    return {"x": row.params["in"]["kernel"][0, 0]}


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


def test_block_too_wide_for_the_memory_gives_way_to_a_narrower_one_and_measures_the_same(work, monkeypatch, capsys):
    """A GPU's width on these devices, which are said to hold two rows at once."""
    program, widths = measuring._program, []

    def limited(work, declared, precision, layout):
        computed = program(work, declared, precision, layout)

        def unless_too_wide(*args):
            widths.append(layout.width)
            if layout.width > 2:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
            return computed(*args)

        return unless_too_wide

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_program", limited)
        patch.setattr(jax, "default_backend", lambda: "gpu")
        measure(work, [NORMS])
    assert widths[0] > 2 == widths[-1]
    assert "norms: out of memory, going on with 2 rows at once" in capsys.readouterr().out
    narrow = lab.load(work.path)
    files.remove(work.analysis)
    measure(work, [NORMS])
    for name in ("norms.all", "norms.by_input"):  # at most 804 positive terms, in another order
        np.testing.assert_allclose(narrow[name].values, lab.load(work.path)[name].values, rtol=804 * EPS)


def test_row_too_large_for_the_memory_is_a_line(work, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    monkeypatch.setattr(measuring, "_program", lambda *_: full)
    with pytest.raises(ValueError, match=r"^norms: one row does not fit in memory$"):
        measure(work, [NORMS])


def test_matrix_products_run_in_full_float32(work):
    seen = []

    def function(row):
        seen.append(jax.config.jax_default_matmul_precision)
        return first(row)

    before = jax.config.jax_default_matmul_precision
    measure(work, [Measure("precision", function, {"x": "1"})])
    assert set(seen) == {"highest"} and jax.config.jax_default_matmul_precision == before
    header = work.read_json("analysis/precision.json")
    assert (header["precision"], header["matmul"]) == ("float32", "highest")


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
        return first(row) | {"n": row.step}

    return Measure("counted", function, {"x": "1", "n": "step"})


def test_rows_and_snapshots_are_taken_as_asked_and_once(work):
    """What is not held is NaN; asked for more, only the rest is computed."""
    times = []
    one = counting(times)
    expected_SxR = np.stack([params_at(step)["in"]["kernel"][:, 0, 0] for step in STEPS])
    assert measure(work, [one], Selection(snapshots="last", rows=(1, 4))) == ["counted"]
    assert set(times) == {(10, 1), (10, 4)}
    found = lab.load(work.path).squeeze()
    assert found.snapshot.values == 10
    for name, whole in (("counted.x", expected_SxR[1]), ("counted.n", np.full(N_ROWS, 10.0))):
        np.testing.assert_array_equal(found[name], np.where(np.isin(range(N_ROWS), (1, 4)), whole, np.nan))

    times.clear()
    assert measure(work, [one], Selection(snapshots="last", rows=(1,))) == [] == times
    assert missing(work, [one], Selection(snapshots="last")) == [one]
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


def seen_in(times):
    """A sum that rounds differently in the two precisions, and notes what it is taken of."""

    def function(row):
        jax.debug.callback(lambda step, seed: times.append((int(step), int(seed))), row.step, row.hparams["seed"])
        return {"sum": jnp.sum(row.params["head"]["kernel"], axis=None), "n": row.step}

    return Measure("sum", function, {"sum": "1", "n": "step"})


def test_rows_taken_in_float64_leave_the_others_as_they_were(work):
    """And what is asked for afterwards is taken of those rows only that are not exact enough."""
    times = []
    one = seen_in(times)
    measure(work, [one])
    rough_SxR = lab.load(work.path)["sum.sum"].squeeze().transpose("snapshot", "seed").values
    exact_SxR = np.stack([params_at(step)["head"]["kernel"].astype(np.float64).sum(axis=(1, 2)) for step in STEPS])
    times.clear()
    assert measure(work, [one], Selection("last", (1, 4), "float64")) == ["sum"]
    assert {*times} == {(10, 1), (10, 4)}
    found = lab.load(work.path).squeeze()
    assert found["sum.sum"].dtype == np.float64 and np.issubdtype(found["sum.n"].dtype, np.integer)
    found_SxR = found["sum.sum"].transpose("snapshot", "seed").values
    exact = np.zeros((2, N_ROWS), bool)
    exact[1, [1, 4]] = True
    np.testing.assert_array_equal(found_SxR[~exact], rough_SxR[~exact].astype(np.float64))
    # 603 terms whose absolute values add up to less than 700, in float64; float32 is 2^29 times as coarse
    np.testing.assert_allclose(found_SxR[exact], exact_SxR[exact], rtol=0, atol=603 * 700 * 2.0**-52)
    assert (rough_SxR[exact] != exact_SxR[exact]).all()

    times.clear()
    assert measure(work, [one]) == [] == times
    assert measure(work, [one], Selection("all", None, "float64")) == ["sum"]
    assert {*times} == {(int(step), seed) for step in STEPS for seed in range(N_ROWS)} - {(10, 1), (10, 4)}
    assert measure(work, [one], Selection("all", None, "float64")) == []
    assert work.read_json("analysis/sum.json")["precision"] == "float64"


def test_rows_held_in_float64_stay_so_where_the_others_are_taken_in_float32(work):
    times = []
    one = seen_in(times)
    measure(work, [one], Selection("all", (3,), "float64"))
    times.clear()
    assert measure(work, [one]) == ["sum"]
    assert {*times} == {(step, seed) for step in STEPS for seed in range(N_ROWS) if seed != 3}
    exact_S = [params_at(step)["head"]["kernel"][3].astype(np.float64).sum() for step in STEPS]
    found = lab.load(work.path)["sum.sum"].sel(seed=3).squeeze()
    np.testing.assert_allclose(found, exact_S, rtol=0, atol=603 * 700 * 2.0**-52)  # as above
    times.clear()
    assert measure(work, [one], Selection("all", (2, 3), "float64")) == ["sum"]
    assert {*times} == {(step, 2) for step in STEPS}


# --- which sequences ---


def tokens_of(name, split, n):
    def function(row):
        return {"tokens": row.batch.tokens_BxL}

    dims = {"tokens": (f"{name}_sequence", "position")}
    return Measure(name, function, {"tokens": "token"}, dims, split=split, n=n)


def configure(work, **changes):
    """Another config, and the same weights."""
    files.write_json(
        work.path / "config.json",
        {"config": configs.to_json(ConfigDict(config().to_dict() | changes)), "data": {}, "start": {}},
    )
    for step in STEPS:
        store.save(work.snapshots, step, params_at(step))
    for chunk in metrics.metric_files(work.metrics):
        with np.load(chunk) as arrays:
            files.write_npz(chunk, dict(arrays))
    return Workdir(work.path)


@pytest.mark.parametrize(("n", "shown"), [(5, 5), (40, 12)])
def test_measures_of_a_finite_training_set_see_what_was_trained_on(work, n, shown):
    """Its first sequences, whatever the measure's name; other splits are drawn as ever."""
    work = configure(work, train_size=12, batch_size=4)
    task, seed = work.experiment.task, work.experiment.data_seed
    trained_on = np.asarray(task.sample(rng.key(seed, "train_set"), 12, "train", {}).tokens_BxL)
    elsewhere = np.asarray(task.sample(rng.key(seed, "analysis/other"), n, "ood_43", {}).tokens_BxL)
    measure(work, [tokens_of("mine", "train", n), tokens_of("other", "ood_43", n)], Selection("last"))
    for name, expected in (("mine.tokens", trained_on[:shown]), ("other.tokens", elsewhere)):
        for seed in (0, 6):
            np.testing.assert_array_equal(lab.load(work.path)[name].sel(seed=seed).squeeze(), expected)


def test_sequences_of_a_finite_training_set_are_drawn_inside_a_program_too(work, same_bits):
    """Where a hyperparameter of the rows varies their data, every row draws its own."""
    experiment, declared = configure(work, train_size=12, batch_size=4).experiment, tokens_of("mine", "train", 5)
    drawn = jax.jit(lambda: measuring._sequences(experiment, declared, {}))()
    same_bits(drawn, measuring._sequences(experiment, declared, {}))


@dataclasses.dataclass(frozen=True)
class Noisy(Composition):
    """Keys are lost with probability `noise`."""

    noise: float = 0.0
    hparams = ("noise",)

    def sample(self, key, n, split, hparams):
        batch = super().sample(key, n, split, hparams)
        lost_BxL = jax.random.uniform(key, batch.tokens_BxL.shape) < hparams.get("noise", self.noise)
        return batch._replace(tokens_BxL=jnp.where(lost_BxL, 200, batch.tokens_BxL))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_rows_with_data_of_their_own_are_shown_them_in_every_precision_alike(work, monkeypatch, precision):
    monkeypatch.setitem(tasks.FAMILIES, "noisy", Noisy)
    noises = (0.0, 0.25, 0.5, 0.75, 1.0, 0.1, 0.9)
    axes = config().grid.to_dict() | {"seed": (0,), "noise": noises}
    files.write_json(work.path / "grid.json", grid.product(axes, ("noise",)).to_json())
    work = configure(work, task=config().task.to_dict() | {"family": "noisy"}, grid=axes)
    measure(work, [tokens_of("seen", "train", 6)], Selection("last", None, precision))
    for noise in noises:
        task = dataclasses.replace(work.experiment.task, noise=noise)
        expected = task.sample(rng.key(work.experiment.data_seed, "analysis/seen"), 6, "train", {}).tokens_BxL
        np.testing.assert_array_equal(lab.load(work.path)["seen.tokens"].sel(noise=noise).squeeze(), expected)


# --- a few rows at a time ---


class Progress:
    """In place of the engine's: what it was told, and a Ctrl-C after so many rows."""

    def __init__(self, most=None):
        self.most, self.totals, self.done, self.named = most, [], [], []

    def begin(self, name, total):
        self.totals.append(total)

    def doing(self, what):
        self.named.append(what)

    def end(self):
        pass

    def advance(self, n):
        self.done.append(n)
        if self.most is not None and sum(self.done) >= self.most:
            raise KeyboardInterrupt


def test_progress_counts_rows_and_one_program_serves_all_groups(work):
    """As many rows at once as there are devices; the last group is padded, not compiled anew."""
    progress, traced = Progress(), []

    def function(row):
        traced.append(0)
        return first(row)

    measure(
        work, [Measure("pair", function, {"x": "1"})], Selection("last", tuple(range(jax.device_count()))), progress
    )
    one_group = len(traced)
    traced.clear()
    progress.done.clear()
    measure(work, [Measure("all", function, {"x": "1"})], progress=progress)
    assert {*progress.named} == {"measuring pair", "measuring all"}
    assert progress.totals == [jax.device_count(), len(STEPS) * N_ROWS]
    assert sum(progress.done) == len(STEPS) * N_ROWS and max(progress.done) <= jax.device_count()
    assert len(traced) == one_group


def test_ctrl_c_within_a_snapshot_loses_no_row_that_was_measured(work):
    times = []
    one = counting(times)
    with pytest.raises(KeyboardInterrupt):
        measure(work, [one], progress=Progress(most=3))
    before = {*times}
    assert {step for step, _ in before} == {0} and 3 <= len(before) < N_ROWS
    found = lab.load(work.path)["counted.x"].sel(snapshot=0).squeeze().values
    expected_R = params_at(0)["in"]["kernel"][:, 0, 0]
    measured = np.isin(range(N_ROWS), [seed for _, seed in before])
    np.testing.assert_array_equal(found, np.where(measured, expected_R, np.nan))
    times.clear()
    measure(work, [one])
    assert {*times} == {(step, seed) for step in STEPS for seed in range(N_ROWS)} - before


# --- what decides the numbers ---


def test_measurements_of_other_code_are_outdated_until_taken_again(work):
    old, other = Measure("one", functools.partial(scaled, 2.0), {"x": "1"}), Measure("other", first, {"x": "1"})
    new = dataclasses.replace(old, function=functools.partial(scaled, 3.0))
    assert stale(work, [old, other]) == []
    measure(work, [old, other])
    assert stale(work, [old, other]) == []
    assert stale(work, [new, other]) == ["one"] and missing(work, [new, other]) == [new]
    assert measure(work, [new, other]) == ["one"]
    assert stale(work, [new, other]) == []
    expected_R = np.float32(3) * params_at(10)["in"]["kernel"][:, 0, 0]
    np.testing.assert_array_equal(lab.load(work.path)["one.x"].sel(snapshot=10).squeeze(), expected_R)


def scaled(factor, row):
    return {"x": factor * first(row)["x"]}


def test_header_of_an_earlier_version_counts_as_nothing(work):
    measure(work, [NORMS])
    header, arrays = measurements.read(work, "norms")
    measurements.write(work, "norms", arrays, {name: header[name] for name in header if name != "float64"})
    assert measure(work, [NORMS]) == ["norms"]
    measurements.write(work, "norms", arrays, {name: header[name] for name in header if name != "rows"})
    assert measure(work, [NORMS]) == ["norms"] and measurements.read(work, "norms")[0] == header


def made(text):
    """Its maker's line.

    And more.
    """

    def said(row):
        """What it says itself."""

    return said if text else lambda row: None


def test_measure_is_about_what_its_function_says_or_else_its_maker_or_its_outputs():
    measures = [Measure("x", function, {"a": "1", "b": "1"}) for function in (made(True), made(False), scaled)]
    assert [summary(one) for one in measures] == ["What it says itself.", "Its maker's line.", "a, b"]


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
def test_impossible_choices_are_refused(work, scope, message):
    with pytest.raises(ValueError, match=message):
        measure(work, [NORMS], Selection(**scope))
    if "rows" not in scope:
        with pytest.raises(ValueError, match=f"measure norms: {message.replace('None, ', '')}"):
            dataclasses.replace(NORMS, **scope)


def test_log_spaced_snapshots_halve_the_last_one():
    assert chosen_steps(list(range(0, 101)), "log") == [0, 1, 3, 6, 12, 25, 50, 100]
    assert chosen_steps([0, 40, 100], "log") == [0, 40, 100]
    assert chosen_steps([0, 40, 100], "last") == [100] and chosen_steps([0, 40, 100], "all") == [0, 40, 100]


# --- of how many sequences ---


def count(row):
    """How many sequences there are, and which."""
    return {"sequences": jnp.float32(len(row.batch.tokens_BxL)), "first": row.batch.tokens_BxL[0, 0].astype(float)}


COUNT = Measure("count", count, units={"sequences": "1", "first": "1"}, n=4)


@pytest.fixture
def finite(tmp_path):
    """With a training set of 577 sequences, a prime number."""
    return trained(tmp_path / "finite", train_size=577)


def counted(work):
    found = lab.load(work.path)["count.sequences"]
    assert len({*found.values.ravel()}) == 1 and found.attrs["n_sequences"] == found.values.ravel()[0]
    return found.attrs["n_sequences"], found.attrs["split"]


@pytest.mark.parametrize(("asked", "n"), [(None, 4), (3, 3), (577, 577), ("all", 577)])
def test_as_many_sequences_as_asked_and_the_number_stands_beside_the_result(finite, asked, n):
    # fewer snapshots would not be another number
    assert measure(finite, [COUNT], Selection(n=asked, snapshots="last", rows=(0,))) == ["count"]
    header, _ = measurements.read(finite, "count")
    assert header["batch"][:2] == ["train", n]
    found = lab.load(finite.path)["count.sequences"]
    assert (found.attrs["n_sequences"], found.attrs["split"]) == (n, "train") and np.nanmax(found) == n


def test_number_once_asked_for_stays_until_another_is(finite):
    measure(finite, [COUNT], Selection(n=7, snapshots="last"))
    assert missing(finite, [COUNT], Selection(snapshots="last")) == [] and stale(finite, [COUNT]) == []
    measure(finite, [COUNT])  # the other snapshots, of as many
    assert counted(finite) == (7, "train")
    assert measure(finite, [COUNT], Selection(n=7)) == []
    assert measure(finite, [COUNT], Selection(n=5)) == ["count"]
    assert counted(finite) == (5, "train")


@pytest.mark.parametrize(
    ("asked", "message"),
    [(578, "n=578: .*finite has 577 training sequences"), ("all", "n=all: .*w draws its train sequences without end")],
)
def test_sequences_that_are_not_there_are_refused(finite, work, asked, message):
    of = work if asked == "all" else finite
    with pytest.raises(ValueError, match=message):
        measure(of, [COUNT], Selection(n=asked))
    assert not (of.analysis / "count.json").exists()


def test_number_of_sequences_is_nothing_to_a_measurement_of_weights(work):
    measure(work, [NORMS], Selection(n="all"))
    assert "n_sequences" not in lab.load(work.path)["norms.all"].attrs and missing(work, [NORMS]) == []
