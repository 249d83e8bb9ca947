"""Rows with a controller: what is descended, recorded, saved, and that nothing changes where there is none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopping import signalled_at

from lab import config as configs
from lab import grid as grids
from lab import models
from lab.configs import base
from lab.controller import Controller
from lab.disk import metrics
from lab.disk.load import load
from lab.engine import batches, train, verify_row
from lab.engine import step as engine
from lab.tasks import Fields

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

EPS = 2.0**-23
HPARAMS = {"gamma": 0.8, "weight_decay": 0.1, "learning_rate": 0.01, "seed": 3}
ENTROPY = Controller(
    family="pi", signal="entropy", least=-2.0, most=2.0, control_target=1.0, control_gain_p=0.5, control_gain_i=0.05
)
STEERED = dict(learning_rate=(0.01, 0.003, 0.01, 0.003), control_target=(1.0, 1.5, 2.0, 0.5))
SECTION = base.controller(
    signal="entropy", least=-2.0, most=2.0, control_target=1.0, control_gain_p=0.5, control_gain_i=0.05
)


@pytest.fixture(scope="module")
def four(bench):
    return bench(4, 2, 1, controller=ENTROPY)


def rows(echo, **changes):
    """The four rows of the toy, steered."""
    columns = {**echo.four_rows().columns, **STEERED, **changes}
    return grids.zipped(columns, Controller.hparams)


@pytest.fixture(scope="module")
def grid(echo):
    return rows(echo)


@pytest.fixture(scope="module")
def trained(four, grid):
    return four.train(grid, (12,))


def entropy_by_hand(echo, params, tokens_BxL):
    logits_BxV = echo.forward_by_hand(params, tokens_BxL)
    log_prob_BxV = jax.nn.log_softmax(logits_BxV)
    return -jnp.mean(jnp.sum(jnp.exp(log_prob_BxV) * log_prob_BxV, axis=-1))


def test_step_descends_the_loss_and_its_penalty_and_measures_for_the_next(echo):
    """Gradient norm, loss, what is measured and the next coefficient, written out."""
    experiment = echo.experiment(controller=ENTROPY)
    state = engine.start(experiment, HPARAMS)
    assert state.control.coefficient == 0 and state.control.integral == 0
    state = state._replace(control=state.control._replace(coefficient=jnp.float32(0.75), integral=jnp.float32(0.25)))
    batch = experiment.task.sample(jax.random.key(0), 4, "train", {})
    inputs = batch.tokens_BxL, batch.targets_BxL[:, -1]

    def total(params):
        return echo.loss_by_hand(params, *inputs) + 0.75 * entropy_by_hand(echo, params, inputs[0])

    moved, found = jax.jit(lambda state: engine.train_step(experiment, HPARAMS, state, batch, 0))(state)
    gradient = jax.jit(jax.grad(total))(state.params)
    norm = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(gradient)))
    measured = float(entropy_by_hand(echo, state.params, inputs[0]))
    assert found["grad_norm"] == pytest.approx(norm, rel=64 * EPS)
    assert found["train_loss"] == pytest.approx(float(echo.loss_by_hand(state.params, *inputs)), rel=32 * EPS)
    assert found["controlled"] == pytest.approx(measured, rel=32 * EPS) and found["coefficient"] == 0.75
    integral = 0.25 + 0.05 * (measured - 1)
    assert moved.control.integral == pytest.approx(integral, rel=64 * EPS)
    assert moved.control.coefficient == pytest.approx(integral + 0.5 * (measured - 1), rel=64 * EPS)


def test_norm_of_the_gradient_may_be_measured_and_weights_be_the_penalty(echo):
    controller = Controller(
        family="p", signal="weight_norm", measured="grad_norm", control_target=0.25, control_gain_p=0.125
    )
    experiment = echo.experiment(controller=controller)
    experiment.check_model()
    state = engine.start(experiment, HPARAMS)
    batch = experiment.task.sample(jax.random.key(0), 4, "train", {})
    moved, found = jax.jit(lambda state: engine.train_step(experiment, HPARAMS, state, batch, 0))(state)
    assert found["controlled"] == found["grad_norm"] > 0.25
    assert moved.control.coefficient == pytest.approx(0.125 * (float(found["grad_norm"]) - 0.25), rel=8 * EPS)


def test_perturbed_gradient_is_that_of_a_loss_that_says_nothing_else(echo, same_bits):
    experiment = echo.experiment()
    hparams = HPARAMS | {"weight_noise": 0.1, "sam_radius": 0.05}
    params = engine.start(experiment, HPARAMS).params
    batch = experiment.task.sample(jax.random.key(0), 4, "train", {})

    def loss(params):
        return echo.loss_by_hand(params, batch.tokens_BxL, batch.targets_BxL[:, -1])

    @jax.jit
    def both(params):
        plain = engine.value_and_grad(loss, experiment, hparams, params, 0)
        (value, said), grads = engine.value_and_grad(lambda p: (loss(p), 2), experiment, hparams, params, 0, True)
        return plain, (value, grads), said

    plain, beside, said = both(params)
    same_bits(beside, plain)
    assert said == 2


def test_row_of_a_controlled_grid_equals_the_row_alone(trained, bench, grid):
    for row in (1, 2):
        alone = bench(1, 1, 1, controller=ENTROPY)
        state, found = alone.train(grid.take([row]), (12,))
        for name, values in found.items():
            # 32 roundings of numbers below 4, and twelve Adam steps, each off by lr times 320 eps, as in test_sweep
            bound = 4 * 12 * 0.01 * 320 * EPS + 128 * EPS
            np.testing.assert_allclose(trained[1][name][row], values[0], rtol=0, atol=bound)
        for mine, other in zip(jax.tree.leaves(trained[0].control), jax.tree.leaves(state.control), strict=True):
            np.testing.assert_allclose(mine[row], other[0], rtol=0, atol=2 * bound)
    assert len(set(trained[0].control.coefficient.tolist())) == 4  # and the targets matter


def test_chunks_and_a_restored_state_change_no_bit(trained, four, grid, same_bits):
    halfway, first = four.train(grid, (3, 4))
    state, second = four.train(grid, (5,), state=halfway, first_step=7)
    same_bits(state, trained[0])
    same_bits({name: np.concatenate([first[name], second[name]], axis=1) for name in first}, trained[1])


def test_coefficients_are_the_recursion_of_what_was_measured(trained, grid):
    found, row = trained[1], 2
    integral, expected = 0.0, [0.0]
    for measured in np.asarray(found["controlled"][row], np.float64):
        error = measured - grid.columns["control_target"][row]
        integral += 0.05 * error
        expected.append(np.clip(0.5 * error + integral, -2, 2))
    np.testing.assert_allclose(found["coefficient"][row], expected[:-1], rtol=0, atol=12 * 8 * EPS)
    assert trained[0].control.coefficient[row] == pytest.approx(expected[-1], abs=12 * 8 * EPS)


def test_controller_of_a_diverged_row_is_frozen_with_it(trained, four, echo, same_bits):
    state, found = four.train(rows(echo, learning_rate=(0.01, 1e30, 0.01, 0.003)), (12,))
    assert state.diverged_at.tolist() == [-1, 0, -1, -1]
    assert state.control.coefficient[1] == 0 and np.isnan(found["coefficient"][1, 1:]).all()
    others = np.array([0, 2, 3])
    take = lambda tree: jax.tree.map(lambda leaf: leaf[others], tree)  # noqa: E731
    same_bits(take(state), take(trained[0]))


def test_constant_of_zero_trains_as_without(bench, echo):
    gains = dict.fromkeys(("control_gain_p", "control_gain_i"), (0.0,) * 4)
    _, found = bench(4, 2, 1, controller=ENTROPY).train(rows(echo, **gains), (12,))
    _, plain = bench(4, 2, 1).train(echo.four_rows(learning_rate=STEERED["learning_rate"]), (12,))
    assert not found["coefficient"].any() and {*plain} == {"train_loss", "grad_norm"}
    np.testing.assert_allclose(found["train_loss"], plain["train_loss"], rtol=0, atol=4 * 12 * 0.01 * 320 * EPS)


def test_gate_is_pulled_to_its_prior_as_hard_as_its_row_says(bench, echo):
    """Operators train in the engine; of two rows alike but for the coefficient the heavier one's gate is nearer."""
    task = Fields(
        equation="advection_diffusion", size=8, horizon=2, low=1, high=2, interval=0.1, step=0.05, n_train=6, n_test=2
    )
    model = models.M2M(
        2, (2, 2), (2, 1), n_layers=1, projection=2, horizon=2, resolution=4, gate_width=2, prior=(0.9, 0.1)
    )
    controller = Controller(family="constant", signal="gate/kl", most=10.0)
    columns = dict(gamma=(0.5, 0.5), weight_decay=(0.0, 0.0), learning_rate=(0.01, 0.01), seed=(0, 0))
    columns |= {"control_constant": (0.0, 10.0)}
    steered = bench(2, 2, 1, model=model, task=task, controller=controller, train_size=6)
    train_set = batches.train_set(steered.experiment)
    state, found = steered.train(grids.zipped(columns, Controller.hparams), (12,), train_set)
    assert state.diverged_at.tolist() == [-1, -1]
    kl_RxT = found["controlled"]
    assert kl_RxT[0, 0] == kl_RxT[1, 0] and kl_RxT[1, -1] < 0.8 * kl_RxT[0, -1]
    assert found["coefficient"].tolist() == [[0.0] * 12, [10.0] * 12]
    assert np.isfinite(steered.evaluate(state, train_set)["test.error"]).all()


# --- on disk ---


def config(echo, **changes):
    """Two rows that go on and one that diverges."""
    axes = dict(gamma=(0.5,), weight_decay=(0.1,), learning_rate=(0.01, 1e30), seed=(4,), control_target=(1.0, 2.0))
    made = echo.config(grid=axes, **changes)
    made.controller = base.ConfigDict(SECTION)
    return made


@pytest.fixture(scope="module")
def uninterrupted(echo, tmp_path_factory):
    return train.train(config(echo), tmp_path_factory.mktemp("controlled") / "w")


def test_table_holds_the_controller_of_every_step(uninterrupted):
    dataset = load(uninterrupted)
    for name in ("controlled", "coefficient"):
        assert dataset[name].dims == dataset.train_loss.dims and dataset[name].dtype == np.float32
    sound = dataset.sel(learning_rate=0.01).squeeze()
    assert np.isfinite(sound.coefficient).all() and sound.coefficient.sel(train_step=0).values.tolist() == [0, 0]
    assert dataset.coefficient.sel(learning_rate=1e30, train_step=1).isnull().all()


@pytest.mark.parametrize("stopped", [4, 16])
def test_controlled_training_continues_to_the_same_bytes(uninterrupted, echo, tmp_path, stopped):
    with signalled_at(stopped), pytest.raises(train.Interrupted, match=f"stopped at step {stopped}"):
        train.train(config(echo), tmp_path / "w")
    assert len(metrics.metric_files(tmp_path / "w" / "metrics")) < len(metrics.metric_files(uninterrupted / "metrics"))
    train.train(config(echo), tmp_path / "w")
    digests = echo.digests(uninterrupted)
    assert any(name.endswith("control/integral") for name in digests)
    assert echo.digests(tmp_path / "w") == digests


def test_row_replayed_alone_is_that_row(uninterrupted):
    found = verify_row.replay(uninterrupted, 2)
    assert found.steps == 24 and found.diverged == (-1, -1)
    assert found.loss < 4 * 24 * 0.01 * 320 * EPS + 128 * EPS  # as in test_sweep


def test_training_without_a_controller_says_nothing_of_one(echo):
    made = echo.config()
    assert "controller" not in configs.to_json(made) and configs.experiment(made).controller is None
    state = engine.start(echo.experiment(), HPARAMS)
    assert type(state) is engine.RowState and len(jax.tree.leaves(state)) == len(jax.tree.leaves(state[:3]))


def test_config_names_controller_and_its_axes(echo):
    made = config(echo)
    assert configs.experiment(made).controller == Controller(**SECTION)
    assert configs.grid(made).axes["control_target"] == (1.0, 2.0)
    assert configs.experiment(configs.from_json(configs.to_json(made))) == configs.experiment(made)
    variants = dict(off={}, on=dict(controller=SECTION, grid=dict(control_target=(1.0,))))
    found = configs.variants(echo.config(variants=variants))
    assert [configs.experiment(found[name]).controller for name in ("off", "on")] == [None, Controller(**SECTION)]
    assert "control_target" in configs.grid(found["on"]).columns
    assert dataclasses.asdict(Controller(family="pi", signal="gate/kl")) == base.CONTROLLER
    half = configs.variants(echo.config(variants=dict(half=dict(controller=dict(signal="entropy")))))["half"]
    with pytest.raises(ValueError, match=r"controller\.family is missing"):
        configs.experiment(half)


@pytest.mark.parametrize(
    ("section", "axes", "said"),
    [
        (None, {"control_target": (1.0,)}, r"grid\.control_target: unknown hyperparameter"),
        ({"famly": "pi"}, {}, r"controller\.famly: unknown option; did you mean 'family'"),
        ({"signal": "prre"}, {}, r"controller\.signal='prre': no activation of the model; did you mean 'pre'"),
        ({"measured": "gate/kl"}, {}, r"controller\.measured='gate/kl': no activation of the model; there are loss"),
        ({"measured": "grad_nrm"}, {}, r"controller\.measured='grad_nrm': .*; did you mean 'grad_norm'"),
        ({"family": "p"}, {"control_gain_i": (0.0, 0.1)}, r"grid\.control_gain_i: controller\.family='p' reads"),
        ({}, {"control_constant": (3.0,)}, r"a row of the grid: controller\.control_constant=3\.0: a number from -2"),
    ],
)
def test_mistakes_earn_one_line_before_anything_is_written(echo, tmp_path, section, axes, said):
    made = echo.config()
    made.grid.update(axes)
    if section is not None:
        made.controller = base.ConfigDict(SECTION | section)
    with pytest.raises(ValueError, match=said):
        train.train(made, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_entropy_of_a_loss_of_its_own_and_a_penalty_without_gradient_are_refused():
    task = type("Task", (), {"cross_entropy": False})()
    acts = {"gate/choice": jax.ShapeDtypeStruct((1, 2, 4), jnp.int32)}
    with pytest.raises(ValueError, match=r"controller\.signal='entropy': of answers of cross-entropy"):
        ENTROPY.check_fit(task, acts)
    with pytest.raises(ValueError, match=r"controller\.signal='gate/choice': int32, of which there is no gradient"):
        Controller(family="pi", signal="gate/choice").check_fit(task, acts)
    Controller(family="p", signal="loss", measured="gate/choice").check_fit(task, acts)
