"""A training from Python does what its config does in the command, in ten lines, and is there for other processes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lab
from lab import configure, grid, tables, user_code
from lab.cli import main
from lab.configs import base
from lab.disk.files import WorkdirError

DOCS = Path(__file__).parents[1] / "docs"
TOYS = Path(__file__).parent / "toys"
SMALL = dict(steps=2, block_width=1, batch_size=8, eval_size=8, snapshots=2)
AXES = dict(gamma=(0.3, 0.6), seed=range(2))

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def parts():
    """A user's module, as `import own_parts` gives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOYS))
        yield importlib.import_module("own_parts")
        sys.modules.pop("own_parts")


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    """A training of the user's parts, trained."""
    with jax.numpy_dtype_promotion("standard"):
        return lab.train(
            model=parts.Net(4, nn.tanh), task=lab.task(parts.sample), grid=AXES, loss=parts.hinge,
            metrics={"confident": parts.confident}, optim=parts.descent, **SMALL,
            workdir=tmp_path_factory.mktemp("own") / "w",
        )  # fmt: skip


@pytest.fixture
def quick_environment(quick_flags):
    """Of processes that compile quickly."""
    return os.environ | {"XLA_FLAGS": quick_flags}


def test_options_that_are_not_named_are_those_of_the_base_config(parts):
    made = configure.config(parts.Net(4), lab.task(parts.sample), steps=500)
    usual = base.config()
    for name in ("batch_size", "eval_every", "data_order", "init"):
        assert made[name] == usual[name]
    assert made.optim.warmup_steps == 50 and made.optim.b2 == usual.optim.b2
    assert made.grid.to_dict() == usual.grid.to_dict()


def test_numbers_are_one_dataset_over_the_axes_of_the_grid(run):
    assert run.dataset.sizes["gamma"] == 2 and run.dataset.sizes["seed"] == 2
    assert {"test.accuracy", "test.confident", "test.loss"} <= {*run.dataset.data_vars}
    assert run.metrics() == ["train.accuracy", "test.accuracy"]


def test_a_row_is_its_model_its_parameters_and_what_it_says(run):
    row = run.row(gamma=0.6, seed=1)
    assert row.hparams["gamma"] == 0.6 and row.params["Dense_0"]["kernel"].shape == (3, 4)
    batch = row.batch(n=5)
    by_hand = np.tanh(np.asarray(batch.tokens_BxL) @ row.params["Dense_0"]["kernel"] + row.params["Dense_0"]["bias"])
    by_hand = by_hand @ row.params["Dense_1"]["kernel"] + row.params["Dense_1"]["bias"]
    np.testing.assert_allclose(row.outputs(batch.tokens_BxL), by_hand, rtol=1e-4, atol=1e-5)  # float32, 4 terms
    np.testing.assert_array_equal(row.outputs(n=5), row.outputs(batch.tokens_BxL))
    assert row.acts() == {}


def test_loss_and_metric_are_the_users(run, parts):
    """The evaluated loss is the hinge of the final weights on the same sequences."""
    from lab.engine import batches

    row, experiment = run.row(gamma=0.3, seed=0), run.experiment
    batch = batches.evaluation_set(experiment, None)["test"]
    outputs, targets = row.outputs(batch.tokens_BxL), batch.targets_BxL[:, 0]
    place = dict(gamma=0.3, seed=0)
    here = run.dataset.sel(place).isel(step=-1, weight_decay=0, learning_rate=0)
    np.testing.assert_allclose(here["test.loss"], parts.hinge(outputs, targets).mean(), rtol=1e-4)
    np.testing.assert_allclose(here["test.confident"], parts.confident(outputs, targets).mean(), atol=1e-6)


def test_another_process_loads_and_measures_what_objects_trained(run, tmp_path, quick_environment):
    program = f"""
import lab
dataset = lab.load({str(run.workdir)!r})
print(type(dataset.lab.model).__name__, dataset.lab.params(gamma=0.6, seed=1)["Dense_0"]["kernel"].shape)
print(lab.analyze({str(run.workdir)!r}, "norm"), lab.Training.open({str(run.workdir)!r}).row(gamma=0.3, seed=0))
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=quick_environment)
    assert ran.stdout.startswith("Net (3, 4)\n"), ran.stderr
    assert "['main/norm'] Row 0: " in ran.stdout


def test_trained_again_has_nothing_to_do_and_other_options_are_refused(run, parts, capsys):
    again = dict(model=parts.Net(4, nn.tanh), task=lab.task(parts.sample), loss=parts.hinge, optim=parts.descent)
    metrics = {"confident": parts.confident}
    lab.train(**again, metrics=metrics, grid=AXES, **SMALL, workdir=run.workdir)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(WorkdirError, match=r"another training; use another workdir. Changed: .*activation"):
        lab.train(**again | dict(model=parts.Net(4, nn.gelu)), metrics=metrics, grid=AXES, **SMALL, workdir=run.workdir)


@pytest.mark.parametrize("part", ["hinge", "descent", "confident", "sample"])
def test_changed_code_of_any_part_is_refused(run, parts, part, monkeypatch):
    """A hash of the source is recorded of each; another one is another training."""
    places = {place["class"]: place for place in run.dataset.lab.work.classes}
    assert {"Net", "hinge", "descent", "confident", "sample"} <= {*places} and places[part]["file"]
    hashed = user_code.source_hash
    monkeypatch.setattr(user_code, "source_hash", lambda file, name: hashed(file, name) + "x" * (name == part))
    with pytest.raises(WorkdirError, match=f"source of .*own_parts:{part}"):
        run.train()


def test_more_seeds_and_more_gammas_are_one_training_with_those_before(parts, tmp_path, capsys):
    run = lab.Training(
        model=parts.Net(4), task=lab.task(parts.sample), grid=AXES, **SMALL, workdir=tmp_path / "w"
    ).train()  # fmt: skip
    run.measure("norm")
    before, weights = run.dataset["test.loss"].values, run.row(gamma=0.3, seed=1).params
    assert run.extend(seed=range(2, 4)) is run and "8 rows (gamma 0.3, 0.6" in repr(run)
    main(["extend", str(run.workdir), "--grid.gamma=(0.9,)", "--variants=main"])
    run.extend(seed=range(2, 4))  # as a notebook's cell that is run again
    assert {name: run.dataset.sizes[name] for name in ("gamma", "seed")} == {"gamma": 3, "seed": 4}
    np.testing.assert_array_equal(run.dataset["test.loss"].sel(gamma=[0.3, 0.6], seed=[0, 1]).values, before)
    jax.tree.map(np.testing.assert_array_equal, run.row(gamma=0.3, seed=1).params, weights)
    measured = next(values for name, values in run.dataset.data_vars.items() if name.startswith("norm."))
    assert measured.sel(gamma=[0.3, 0.6], seed=[0, 1]).notnull().all() and measured.sel(gamma=0.9).isnull().all()
    run.measure("norm")
    opened = lab.Training.open(run.workdir)
    assert "12 rows (gamma 0.3, 0.6, 0.9" in repr(opened) and opened.dataset.equals(run.dataset)

    @lab.claim("X1", "All seeds are there", quantity="accuracy", at_least=-1.0)
    def there(runs):
        return runs.only().final("test.accuracy", gamma=max)

    report = run.report([there])
    assert report.claims[0]["verdict"] == "open" and report.claims[0]["n_seeds"] == 4  # of at least five
    shutil.copytree(run.workdir / "main" / "extensions" / "1", run.workdir / "main" / "extensions" / "3")
    shutil.rmtree(run.workdir / "main" / "extensions" / "3" / "checkpoints")
    with pytest.warns(UserWarning, match="3: not trained to its end"):
        page = run.report([there]).page.read_text()
    assert "main+3 (rows that were added and are not trained to their end)" in page
    shutil.rmtree(run.workdir / "main" / "extensions" / "3")
    capsys.readouterr()
    run.train()
    assert capsys.readouterr().out.count("nothing to do") == 3


def test_ten_lines_measure_report_and_write_numbers(run, tmp_path):
    @lab.claim("X1", "It is confident", quantity="share", at_least=0.5)
    def confident(runs):
        return runs.only().final("test.confident", gamma=max)

    written = run.report([confident], title="Mine")
    assert [claim["id"] for claim in written.claims] == ["X1"] and "Mine" in written.page.read_text()
    assert run.to_csv(tmp_path / "n.csv").read_text() == lab.export(run.workdir, "csv").read_text()
    assert "Dense_0/kernel" in run.init_table()
    assert run.phase_diagram("test.accuracy").axes and run.curves().axes
    assert "step 2 of 2" in repr(run) and "Net" in run._repr_html_()
    assert "gamma 0.3" in run.row(gamma=0.3, seed=0)._repr_html_()


def test_table_of_examples_is_kept_by_the_training(tmp_path):
    x_NxD = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    table = lab.examples((x_NxD, x_NxD[:, :1]), test=0.25)
    run = lab.train(model=nn.Dense(1), task=table, grid=dict(seed=0), **SMALL, workdir=tmp_path)
    assert run.config.train_size == 15 and "test.r2" in run.dataset
    tables.HELD.clear()
    assert type(run.dataset.lab.work.experiment.task).__name__ == "Examples"
    batch = run.row(seed=0).batch("train", 15)  # every example once
    held_out = lab.Training.open(tmp_path).row(seed=0).batch("test", 5)
    drawn = np.concatenate([batch.tokens_BxL, held_out.tokens_BxL])
    np.testing.assert_array_equal(drawn[np.lexsort(drawn.T)], x_NxD[np.lexsort(x_NxD.T)])


def test_table_is_extended_in_another_process_that_was_given_none(tmp_path, quick_environment):
    table = lab.examples((np.zeros((20, 3), np.float32), np.zeros((20, 1), np.float32)), test=0.25)
    lab.train(model=nn.Dense(1), task=table, grid=dict(seed=0), **SMALL, workdir=tmp_path / "w")
    command = [sys.executable, "-m", "lab", "extend", str(tmp_path / "w"), "--grid.seed=(1,)"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=quick_environment)
    assert ran.returncode == 0, ran.stderr
    assert lab.load(tmp_path / "w").sizes["seed"] == 2


def test_class_of_a_notebook_works_here_and_says_what_to_do(parts, tmp_path):
    class Local(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    with pytest.warns(UserWarning, match=r"Local of .*another one cannot import it.*\.py file and import it"):
        run = lab.Training(model=Local(), task=lab.task(parts.sample), grid=dict(seed=0), **SMALL, workdir=tmp_path)
    run.train()
    assert lab.Training.open(tmp_path).row(seed=0).outputs().shape == (8, 2)
    ran = subprocess.run(
        [sys.executable, "-c", f"import lab; lab.load({str(tmp_path)!r}).lab.model"], capture_output=True, text=True
    )
    assert re.search(r"ValueError: .*Local was defined in .*, which cannot be imported", ran.stderr)


def test_a_controller_is_given_as_its_options_and_those_left_out_are_the_usual_ones(parts):
    given = dict(signal="weight_norm", control_target=3.0)
    made = configure.config(
        parts.Net(4), lab.task(parts.sample), controller=given, grid=dict(control_gain_i=(0.0, 0.1))
    )
    assert made.controller.to_dict() == base.controller(**given)
    assert made.grid.control_gain_i == (0.0, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model=None), "lab.Training: model is missing, or a config"),
        (dict(model=lambda x: x), "expected a Flax Linen module"),
        (dict(model=nn.Dense), "model=Dense: a class; give one of it"),
        (dict(task=lambda key, n: 0), r"expected a lab.Task, such as lab.task\(sample\)"),
        (dict(stesp=3), "stesp=3: unknown option; did you mean 'steps'"),
        (dict(controller=dict(famly="p")), r"controller\.famly: unknown option; did you mean 'family'"),
        (dict(optim=optax.sgd(0.1)), "an optax transform, whose rate is fixed; give the function"),
        (dict(optim=3), "optim=3: adamw, sgd, or a function of learning_rate"),
        (dict(optim=lambda rate: rate), "takes rate: expected a function of learning_rate"),
        (dict(loss=3), "loss=3: expected a function of"),
        (dict(grid=dict(gama=(0.5,))), "grid.gama: unknown hyperparameter; did you mean 'gamma'"),
        (dict(config="composition:smoke"), "model: an option of the config"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(parts, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        lab.Training(**dict(model=parts.Net(4), task=lab.task(parts.sample)) | changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda: lab.task(lambda key, n: 3), r"expected a pair of arrays \(inputs, targets\)"),
        (lambda: lab.task(lambda key, n: (jnp.zeros((3, 2)), jnp.zeros(n))), "n=1 gives inputs of shape"),
        (lambda: lab.task(lambda key, n: (jnp.zeros((n, 2), int), jnp.zeros(n, int))), "how many tokens are there"),
        (lambda: lab.examples(3), "train: expected a pair of arrays"),
        (lambda: lab.examples((np.zeros(3), np.zeros(4))), "another number of examples"),
        (lambda: lab.examples((np.zeros(3), np.array(["a"] * 3))), "expected numbers"),
        (lambda: lab.examples((np.zeros(3), np.zeros(3)), test=2), "test=2: a pair of arrays, or a share"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(give, message):
    with pytest.raises(ValueError, match=message):
        give()


def test_output_of_another_shape_than_the_targets_is_refused(tmp_path):
    """(B, 1) beside (B,) would be broadcast to (B, B)."""
    table = lab.examples((np.zeros((20, 3), np.float32), np.zeros(20, np.float32)))
    with pytest.raises(ValueError, match=r"Examples: the model returns \(8, 1\); expected \(8,\)"):
        lab.train(model=nn.Dense(1), task=table, **SMALL, workdir=tmp_path)


def test_rows_of_any_grid_are_trained(parts, tmp_path):
    rows = grid.zipped({"gamma": (0.3, 0.5), "weight_decay": (0.0, 1.0), "learning_rate": (0.1, 0.2), "seed": (0, 1)})
    run = lab.train(model=parts.Net(4), task=lab.task(parts.sample), grid=rows, **SMALL, workdir=tmp_path)
    assert run.dataset.sizes["row"] == 2 and run.row(gamma=0.5).hparams["weight_decay"] == 1.0


def test_config_and_its_name_train_as_the_command_does(tmp_path):
    run = lab.Training("composition:smoke", tmp_path)
    assert [*run._configs] and "composition" in run.config.study
    assert lab.Training(base.load("composition", "smoke"), tmp_path).config == run.config


def test_the_package_report_is_a_function_and_its_modules_are_there():
    from lab.report import figures

    assert callable(lab.report) and lab.report.figures is figures and lab.grid is grid


def test_modules_of_the_face_are_there_after_one_import():
    """In a process that has imported none of them."""
    program = "import lab; print(*(m.__name__ for m in (lab.models, lab.tasks, lab.init, lab.grid, lab.analysis.rank)))"
    program += "; print(lab.analysis.rank.stable_rank.__name__, hasattr(lab.analysis, 'rnak'), hasattr(lab, 'model'))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    expected = ["lab.models lab.tasks lab.init lab.grid lab.analysis.rank", "stable_rank False False"]
    assert ran.stdout.splitlines() == expected, ran.stderr
    assert {*lab._MODULES, *lab._FACE} <= {*dir(lab)}


def programs(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


SHOWN = {f"page {i}": program for i, program in enumerate(programs(DOCS / "from_python.md")[:3])}
SHOWN |= {"readme": "\n".join(programs(DOCS.parent / "README.md"))}


@pytest.mark.parametrize("name", SHOWN)
def test_programs_that_are_shown_train_as_they_stand_there(name, tmp_path, monkeypatch):
    program = SHOWN[name]
    assert len([line for line in program.splitlines() if line]) <= (15 if name == "readme" else 20)
    monkeypatch.chdir(tmp_path)
    for usual, small in (("steps=600", "steps=2, block_width=1"), ("steps=300", "steps=2, block_width=1"),
                         ("seed=range(5)", "seed=0"), ("gamma=(0.3, 0.5, 0.7)", "gamma=(0.3, 0.7)"),
                         ('"rank", "sharpness"', '"rank"'), ("digits(2000)", "digits(40)"),
                         ("size=(4000, 8)", "size=(40, 8)"), ("range(5, 8)", "1")):  # fmt: skip
        program = program.replace(usual, small)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        exec(program, {"__name__": "__main__"})
    (trained,) = (tmp_path / "runs").iterdir()
    assert lab.load(trained).sizes["gamma"] == 2


def test_axes_beside_a_config_leave_its_others():
    own = base.load("composition", "smoke").grid.to_dict()
    run = lab.Training("composition:smoke", grid=dict(seed=(7, 8)))
    for rows in run._grids.values():
        assert rows.axes["seed"] == (7, 8) and rows.axes["gamma"] == tuple(own["gamma"])


def test_rows_that_are_no_product_have_a_plan(parts):
    rows = grid.zipped({"gamma": (0.3, 0.5), "weight_decay": (0.0, 1.0), "learning_rate": (0.1, 0.2), "seed": (0, 1)})
    assert "main: 2 rows of" in lab.Training(model=parts.Net(4), task=lab.task(parts.sample), grid=rows, **SMALL).plan()


def test_report_without_claims_keeps_those_of_an_earlier_one(run):
    from lab.disk import claims_file

    run.report([lab.claim("X1", "It is confident", quantity="share", at_least=0.5)(lambda runs: 1.0)])
    for again in (run.report(), lab.report(run.workdir)):
        assert [claim["id"] for claim in again.claims] == ["X1"] == [c["id"] for c in claims_file.read(run.workdir)]
        assert "an earlier report from Python" in again.page.read_text()


def test_what_belongs_to_no_study_is_asked_for_names(run, parts):
    for ask in (run.measure, lambda: lab.analyze(run.workdir)):
        with pytest.raises(ValueError, match=r"name measurements, or all: .* belongs to no study"):
            ask()
    with pytest.raises(ValueError, match="title='composition': the name of a study"):
        configure.config(parts.Net(4), lab.task(parts.sample), title="composition")
