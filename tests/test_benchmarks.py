"""What the benchmarks compare is the same training, and what they report is what they measured."""

import functools
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.extend
import numpy as np
import pytest

from lab import losses, models, optim, rng, tree
from lab.engine import step
from lab.experiment import Experiment
from lab.models import Mamba2, Transformer
from lab.tasks import Composition

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
EPS = 2.0**-23  # float32
TASK = Composition("34_wrong", n_anchors=4, modulus=9, noise_groups=0)
# an eps at which Adam notices that its gradients were clipped
OPTIM = optim.Optim("adamw", "warmup_cosine", 2, 0.5, 0.1, 0.2, "scaled", "all", 0.8, 0.9, 1e-3, 0.0)
HPARAMS = {"gamma": 0.4, "weight_decay": 1.0, "learning_rate": 0.01, "seed": 3}


def transformer(**changes):
    options = dict(
        vocab_size=201, max_length=12, n_layers=2, n_heads=2, d_model=16, d_head=4, d_ff=24, activation="relu",
        norm="pre", use_bias=False, head_bias=False, final_norm=True, tied_head=False, readout="last",
    )  # fmt: skip
    return Transformer(**(options | changes))


MODELS = {
    "pre": transformer(),
    "post": transformer(norm="post", final_norm=False, use_bias=True, head_bias=True, activation="gelu", readout="all"),
    "none": transformer(norm="none", n_heads=1, n_layers=1, tied_head=True, activation="tanh"),
}
MAMBA = Mamba2(
    vocab_size=201, max_length=12, n_layers=2, d_model=16, d_inner=12, d_state=5, n_taps=4, conv="learned",
    past_conv="none", taps_follow_gamma=False, has_positions=True, norm="pre", final_norm=True, readout="last",
    n_heads=2,
)  # fmt: skip
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The modules of benchmarks/ by the names they call each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@functools.partial(jax.jit, static_argnums=1)
def sample(key, n):
    return TASK.sample(key, n, "train", {})


def shapes(model):
    return jax.eval_shape(functools.partial(models.init, model), rng.key(0, "init"), np.zeros((1, TASK.length), int))


def drawn(model, dtype):
    """Every parameter from N(0, 1/16), those of the norms too."""
    numbers = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: numbers.normal(0, 0.25, leaf.shape).astype(dtype), shapes(model))


def products(jaxpr) -> int:
    """Floating-point operations of all matrix products in a jaxpr, 2 m k n each."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        total += sum(products(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize("model", [*MODELS.values(), MAMBA, MAMBA.clone(readout="all")])
def test_flops_are_those_of_the_products_in_a_gradient(model):
    import flops

    batch = jax.eval_shape(lambda: sample(rng.key(0, "x"), 5))

    def loss(params, batch):
        return losses.mean_cross_entropy(models.forward(model, params, batch.tokens_BxL)[0], batch)

    gradient = jax.make_jaxpr(jax.grad(loss))(shapes(model), batch)
    assert flops.train_step(model, 5, TASK.length) == products(gradient.jaxpr)


def test_rounds_time_every_way_once_and_never_in_the_same_order():
    import harness

    called = []
    way = lambda name: SimpleNamespace(settle=lambda seconds: None, rate=lambda: called.append(name) or 7.0)  # noqa: E731
    rates = harness.rounds({name: way(name) for name in "xyz"}, 3, 0.1)
    assert "".join(called) == "xyz" + "yzx" + "zxy"
    assert rates == {name: [7.0] * 3 for name in "xyz"}


def test_ratios_are_taken_within_a_round():
    import throughput

    # the machine halves its speed after the second round: rates vary fourfold, their ratio does not
    slowdown = np.array([1, 1, 0.5, 0.5, 0.25])
    measured = {"a/1": {"rates": 20 * slowdown}, "a/2": {"rates": 30 * slowdown}, "c": {"rates": 10 * slowdown}}
    (entry,) = throughput.compare(measured, {"c": 3.0})
    assert entry == {"ratio": "a/c", "quartiles": (3.0, 3.0, 3.0), "target": 3.0}
    assert throughput.compare({"c": measured["c"]}, {}) == []


def test_smoke_measures_both_jax_ways_without_torch(tmp_path, quick_flags):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    command = [sys.executable, BENCHMARKS / "throughput.py", "--preset=smoke", f"--json={tmp_path / 'out.json'}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "XLA_FLAGS": quick_flags}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "left out: (c), (c'), (c\"), (d), (d'): pip install 'gammalab[bench]'" in done.stdout

    size = json.loads((tmp_path / "out.json").read_text())["sizes"]["demo"]
    grid, lone = size["ways"]["a/2"], size["ways"]["b"]
    assert (grid["n_rows"], lone["n_rows"]) == (2 * grid["n_devices"], 1)
    assert len(grid["rates"]) == len(lone["rates"]) == 5 and min(grid["rates"] + lone["rates"]) > 0
    state = 12 * grid["n_parameters"]  # bytes of a row: float32 parameters and two moments
    assert lone["memory"] >= state and grid["memory"] >= 2 * state
    ratios = sorted(mine / other for mine, other in zip(grid["rates"], lone["rates"], strict=True))
    (entry,) = size["ratios"]
    assert entry["ratio"] == "a/b"
    assert entry["quartiles"] == pytest.approx(ratios[1:4])  # quartiles of five numbers: the 2nd, 3rd and 4th
    assert f"  a/b  {ratios[2]:8.3g}  [{ratios[1]:.3g}, {ratios[3]:.3g}]\n" in done.stdout


@pytest.mark.parametrize(
    ("program", "options", "says"),
    [
        ("throughput", ["--preset=tpu"], "invalid choice: 'tpu'"),
        ("throughput", ["--preset=smoke", "--sizes=second"], "'second' is not among demo"),
        ("throughput", ["--sizes="], "'' is not among small, demo, first, second"),
        ("throughput", ["--json=/no/such/folder/x.json"], "a file in a folder that exists"),
        ("throughput", ["--pres=cpu"], "unrecognized arguments"),
        ("sharpness", ["--preset=tpu"], "invalid choice: 'tpu'"),
        ("sharpness", ["--json=/no/such/folder/x.json"], "a file in a folder that exists"),
        ("measures", ["--preset=tpu"], "invalid choice: 'tpu'"),
        ("measures", ["--json=/no/such/folder/x.json"], "/no/such/folder/x.json"),
        ("scaling", ["--preset=cpu"], "required: --out"),
        ("scaling", ["--out=/dev/null/x"], "--out=/dev/null/x"),
        ("throughput", ["--widths=1,0"], "'1,0'"),
        ("throughput", ["--rounds=0"], "'0'"),
        ("against_commit", [], "required: commit"),
        ("against_commit", ["no-such-commit"], "no-such-commit: no commit of"),
        ("against_commit", ["HEAD", "--sizes=first"], "'first' is not among small, demo"),
        ("against_commit", ["HEAD", "--widths=1,2,3"], "3 numbers, expected one, or two"),
        ("first_step", ["--rounds=0"], "'0'"),
        ("first_step", ["--their-command=list"], "of --against=COMMIT, which is missing"),
        ("questions", ["--workdir=/no/such/folder"], "/no/such/folder: no such folder"),
    ],
)
def test_wrong_option_ends_with_one_line(program, options, says, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(program).main(options)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and says in printed.err


def test_scaling_varies_one_thing_at_a_time_and_draws_every_point():
    import scaling

    preset = scaling.PRESETS["gpu"]
    points = []
    for panel, workloads in scaling.panels(preset).items():
        for (line, value), workload in workloads.items():
            assert panel == "devices" or workload.n_devices == 0
            assert set(workload.changes) <= {"d_model": {"d_model", "d_head", "d_ff"}}.get(panel, {panel})
            assert workload.rows % workload.width == 0
            rate = 100.0 + value
            point = {"panel": panel, "line": line, "value": value, "row_steps": (rate - 2, rate, rate + 1)}
            points.append(point | {"disturbance": 0.5 if line.startswith("all") else 0.01})
    figure = scaling.draw(points, preset)
    drawn = {
        (ax.get_xlabel(), x, y)
        for ax in figure.axes
        for container in ax.containers
        for x, y in zip(*container.lines[0].get_data(), strict=True)
    }
    assert any("up to 50% of the machine" in text.get_text() for text in figure.texts)
    assert drawn == {(scaling.LABELS[point["panel"]], point["value"], point["row_steps"][1]) for point in points}


@pytest.mark.parametrize("model", [*MODELS.values(), MAMBA], ids=[*MODELS, "mamba"])
@pytest.mark.usefixtures("float64", "standard_promotion")  # Flax asks which of float32 and float64 is wider
def test_torch_model_with_our_parameters_gives_our_logits(model):
    torch = pytest.importorskip("torch")
    import torch_mamba
    import torch_model

    tokens_BxL = np.random.default_rng(1).integers(0, model.vocab_size, (5, TASK.length))
    params = drawn(model, np.float64)
    ours_BxQxV, _ = models.forward(model, params, tokens_BxL)

    kind, load = (
        (torch_mamba.Mamba2, torch_mamba.load) if model is MAMBA else (torch_model.Transformer, torch_model.load)
    )
    module = kind(model).double()
    load(module, params)
    theirs_BxQxV = module(torch.from_numpy(tokens_BxL)).detach().numpy()
    assert ours_BxQxV.dtype == theirs_BxQxV.dtype == np.float64
    # float64: at most 20 products one after the other, of at most 24 terms below 10 each, and norms that enlarge an
    # error at most tenfold
    np.testing.assert_allclose(ours_BxQxV, theirs_BxQxV, rtol=0, atol=20 * 24 * 10 * 10 * 2.0**-52)
    assert np.std(theirs_BxQxV) > 0.1


@pytest.mark.parametrize("name", ["pre", "post"])
@pytest.mark.usefixtures("float64", "standard_promotion")
def test_torch_training_has_the_losses_of_a_rows(name):
    torch = pytest.importorskip("torch")
    import torch_ways

    experiment = Experiment(MODELS[name].clone(n_layers=1), TASK, OPTIM, "paper", 6, 16, 0, "row", 0, 1)
    params = drawn(experiment.model, np.float32)
    trainer = torch_ways.Trainer(experiment, HPARAMS, params)
    trainer.model.double()
    params = jax.tree.map(np.float64, params)
    state = step.RowState(params, step.transform(experiment, HPARAMS).init(params), np.int32(-1))
    train = jax.jit(step.train_step, static_argnums=0)
    n_steps, ours, theirs = 4, [], []
    for now in range(n_steps):
        batch = sample(rng.key(0, "data", now), experiment.batch_size)
        state, metrics = train(experiment, HPARAMS, state, batch, now)
        ours.append((float(metrics["train_loss"]), float(metrics["grad_norm"])))
        read = (batch.tokens_BxL, batch.targets_BxL[:, -1])
        theirs.append(trainer.step(*(torch.from_numpy(np.array(array, np.int64)) for array in read)).item())

    # All is float64 but our log-softmax and schedule: gradient entries are sums of terms ten times as large, each off
    # by 8 roundings of float32, and by the 1e-6 that PyTorch adds to the norm it clips by. Adam divides an entry g by
    # its own size at most: an error delta moves the weight by lr delta / |g| and the loss by lr delta. Over entries
    # that adds up to lr * relative error * |g|_1, and |g|_1 <= sqrt(entries) |g|_2.
    losses_T, norms_T = np.array(ours).T
    relative = 10 * 8 * EPS + 1e-6 / norms_T.min()
    l1 = math.sqrt(tree.size(state.params)) * norms_T.max()
    tolerance = 8 * 8 * EPS + n_steps * HPARAMS["learning_rate"] * relative * l1
    np.testing.assert_allclose(losses_T, theirs, rtol=0, atol=tolerance)
    assert np.ptp(losses_T) > 100 * tolerance  # it is the moves that agree
    assert norms_T.min() > 2 * OPTIM.clip_norm  # and clipping is among what they agree on


@pytest.mark.parametrize("kind", optim.SCHEDULES)
def test_torch_schedule_is_ours(kind):
    pytest.importorskip("torch")
    import torch_ways

    chosen = optim.Optim("adamw", kind, 4, 0.2, 0.1, 1.0, "scaled", "all", 0.9, 0.999, 1e-8, 0.0)
    ours = optim.schedule(chosen, 20)
    theirs = torch_ways.schedule(SimpleNamespace(optim=chosen, steps=20))
    # a handful of roundings of numbers up to 1, one of them in a cosine
    np.testing.assert_allclose([theirs(t) for t in range(25)], [ours(t) for t in range(25)], rtol=0, atol=8 * EPS)
