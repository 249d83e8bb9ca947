"""A grid is a transform of one row: rows do not know their neighbours, their place, their block or their chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import losses, models, rng
from lab.engine import batches
from lab.models import Transformer
from lab.objective import Objective
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
STEPS = 12
MODEL = Transformer(
    vocab_size=8, max_length=3, n_layers=1, n_heads=1, d_model=8, d_head=8, d_ff=8, activation="relu", norm="pre",
    use_bias=False, head_bias=False, final_norm=False, tied_head=False, readout="last",
)  # fmt: skip


@pytest.fixture(scope="module")
def four(bench):
    """Four rows on two devices, in blocks of two: nothing is padded."""
    return bench(4, 2, 2)


@pytest.fixture(scope="module")
def trained(four, echo):
    return four.train(echo.four_rows(), (STEPS,))


def weight_tolerance(learning_rate):
    """Bound on the difference of a weight between two float32 runs of the same twelve steps.

    A gradient entry sums products of four sequences through two layers of width 8: 32 roundings one after the other,
    on terms at most ten times their sum. Adam divides it by its own size, so the weight is off by lr times that.
    """
    return STEPS * learning_rate * 32 * 10 * EPS


def loss_tolerance(learning_rate):
    """Bound on the difference of their losses: 32 roundings of a loss below 4, and errors of weights, whose signs
    have nothing to do with the gradient's, times its norm, below 4."""
    return 32 * 4 * EPS + 4 * weight_tolerance(learning_rate)


def batch_by_hand(echo, step, seed=5):
    batch = echo.Echo().sample(rng.key(seed, "data", step), 4, "train", {})
    return batch.tokens_BxL, batch.targets_BxL[:, -1]


@pytest.mark.parametrize("row", range(4))
def test_row_of_the_sweep_equals_the_same_row_in_a_plain_loop(trained, echo, row):
    state, metrics = trained
    experiment, hparams = echo.experiment(), echo.four_rows().row(row)
    start = echo.start_by_hand(experiment.model, hparams)
    losses_T, norms_T, params, _ = echo.train_by_hand(
        start, hparams, experiment.steps, lambda step: batch_by_hand(echo, step), STEPS
    )
    rate = hparams["learning_rate"]
    np.testing.assert_allclose(metrics["train_loss"][row], losses_T, rtol=0, atol=loss_tolerance(rate))
    # The norm's slope in a weight is a curvature, below 4; squares of 192 weights add pairwise, 8 + 8 roundings.
    np.testing.assert_allclose(metrics["grad_norm"][row], norms_T, rtol=32 * EPS, atol=4 * weight_tolerance(rate))
    for name, leaf in named_leaves(params).items():
        mine, begun = named_leaves(state.params)[name][row], named_leaves(start)[name]
        np.testing.assert_allclose(mine, leaf, rtol=STEPS * EPS, atol=weight_tolerance(rate))
        assert np.abs(leaf - begun).max() > 1000 * weight_tolerance(rate)  # it is the moves that agree


def test_transformer_row_of_the_sweep_equals_the_same_row_in_a_plain_loop(bench, echo):
    grid = echo.four_rows()
    _, metrics = bench(4, 2, 2, model=MODEL).train(grid, (10,))

    def loss(params, tokens_BxL, target_B):
        logits_BxV = models.forward(MODEL, params, tokens_BxL)[0][:, -1]
        return -jnp.mean(jax.nn.log_softmax(logits_BxV)[jnp.arange(4), target_B])

    for row in (0, 2):
        hparams = grid.row(row)
        params = echo.start_by_hand(MODEL, hparams)  # every d_in is 8: H K = F = D
        expected_T, *_ = echo.train_by_hand(
            params, hparams, echo.experiment().steps, lambda step: batch_by_hand(echo, step), 10, loss
        )
        np.testing.assert_allclose(
            metrics["train_loss"][row], expected_T, rtol=0, atol=loss_tolerance(hparams["learning_rate"])
        )


def test_grid_row_equals_lone_row(trained, bench, echo):
    lone = bench(1, 1, 1)
    for row in (1, 3):
        hparams = {name: (value,) for name, value in echo.four_rows().row(row).items()}
        state, metrics = lone.train(echo.grid.zipped(hparams), (STEPS,))
        (rate,) = hparams["learning_rate"]
        np.testing.assert_allclose(
            trained[1]["train_loss"][row], metrics["train_loss"][0], rtol=0, atol=loss_tolerance(rate)
        )
        for mine, alone in zip(jax.tree.leaves(trained[0].params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(mine[row], alone[0], rtol=STEPS * EPS, atol=weight_tolerance(rate))


@pytest.mark.parametrize(("width", "n_devices"), [(4, 1), (1, 2)])
def test_rows_agree_whatever_the_width_of_their_block(trained, bench, echo, width, n_devices):
    _, metrics = bench(4, width, n_devices).train(echo.four_rows(), (STEPS,))
    np.testing.assert_allclose(trained[1]["train_loss"], metrics["train_loss"], rtol=0, atol=loss_tolerance(0.01))


def test_rows_follow_a_permutation_of_the_grid(trained, four, echo, same_bits):
    order = np.array([2, 0, 3, 1])
    grid = echo.four_rows()
    permuted = echo.grid.zipped({name: tuple(column[i] for i in order) for name, column in grid.columns.items()})
    state, metrics = four.train(permuted, (STEPS,))
    same_bits(state, jax.tree.map(lambda leaf: leaf[order], trained[0]))
    same_bits(metrics, {name: values[order] for name, values in trained[1].items()})


def test_chunks_of_seven_and_five_equal_one_of_twelve(trained, four, echo, same_bits):
    state, metrics = four.train(echo.four_rows(), (7, 5))
    same_bits((state, metrics), trained)


def test_row_restored_from_the_host_continues_bitwise(trained, four, echo, same_bits):
    halfway, first = four.train(echo.four_rows(), (7,))
    state, second = four.train(echo.four_rows(), (5,), state=halfway, first_step=7)
    same_bits(state, trained[0])
    same_bits({name: np.concatenate([first[name], second[name]], axis=1) for name in first}, trained[1])


def test_diverged_row_is_frozen_and_its_neighbours_do_not_notice(trained, four, echo, same_bits):
    grid = echo.four_rows(learning_rate=(0.01, 1e30, 0.01, 0.001))
    state, metrics = four.train(grid, (5, 7))
    others = np.array([0, 2, 3])
    take = lambda tree: jax.tree.map(lambda leaf: leaf[others], tree)  # noqa: E731
    same_bits(take(state), take(trained[0]))
    same_bits(take(metrics), take(trained[1]))

    # Adam moves every weight by lr / 4 at the first step: their squares, 6e58, overflow.
    assert state.diverged_at.tolist() == [-1, 0, -1, -1]
    start = jax.device_get(four.start(grid))
    same_bits(jax.tree.map(lambda leaf: leaf[1], state.params), jax.tree.map(lambda leaf: leaf[1], start.params))
    # the step at which it diverged is still reported, nothing after it
    assert metrics["train_loss"][1, 0] == trained[1]["train_loss"][1, 0]
    assert np.isnan(metrics["train_loss"][1, 1:]).all() and np.isnan(metrics["grad_norm"][1, 1:]).all()

    scores = four.evaluate(state)
    assert all(np.isnan(score[1]).all() for score in scores.values())
    healthy = four.evaluate(trained[0])
    assert np.isfinite(healthy["train.loss"]).all()
    same_bits(take(scores), take(healthy))


def test_step_of_divergence_is_that_of_a_plain_loop(four, echo):
    # The decay alone: theta <- theta (1 - lr_t wd), so theta grows 2.5e7, 5e7, 7.5e7, 1e8 times a step.
    grid = echo.four_rows(learning_rate=(0.01, 0.003, 1e8, 0.001))
    state, metrics = four.train(grid, (STEPS,))
    experiment, hparams = echo.experiment(), grid.row(2)
    losses_T, _, params, stopped = echo.train_by_hand(
        echo.start_by_hand(experiment.model, hparams), hparams, experiment.steps,
        lambda step: batch_by_hand(echo, step), STEPS,
    )  # fmt: skip
    assert 0 < stopped < STEPS - 1
    assert state.diverged_at[2] == stopped
    assert np.isfinite(metrics["train_loss"][2, : stopped + 1]).all()
    assert np.isnan(metrics["train_loss"][2, stopped + 1 :]).all()
    assert len(losses_T) == stopped + 1
    for name, leaf in named_leaves(params).items():
        # theta = sum of products of lr_t (u_t + wd theta): u_t is off by 320 eps, as in `weight_tolerance`, and may
        # cancel against wd theta to a tenth of it.
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(named_leaves(state.params)[name][2], leaf, rtol=0, atol=10 * 320 * EPS * scale)


def test_no_traced_value_recompiles(four, echo):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    state, _ = four.train(echo.four_rows(), (4,))
    four.evaluate(state)
    jax.jit(lambda x: x + 1)(1)
    assert len(compiled) >= 1  # the listener hears
    compiled.clear()
    other = echo.four_rows(
        gamma=(0.1, 0.2, 0.35, 0.9), weight_decay=(0.3, 0.0, 0.1, 0.2), learning_rate=(1.0, 0.1, 0.2, 0.3),
        seed=(7, 8, 9, 2**31 - 1),
    )  # fmt: skip
    state, _ = four.train(other, (3, 1, 2), first_step=11)
    state, _ = four.train(other, (12,), state=state, first_step=400)  # restored from the host
    four.evaluate(state)
    assert compiled == []
    sizes = {name: getattr(four.programs, name)._cache_size() for name in ("start", "chunk", "evaluate")}
    assert sizes == {"start": 1, "chunk": 1, "evaluate": 1}


def test_evaluation_equals_a_count_by_hand(trained, four, echo):
    experiment = echo.experiment()
    scores = four.evaluate(trained[0])
    for split in ("train", "odd"):
        batch = experiment.task.sample(rng.key(5, f"eval/{split}"), 16, split, {})
        for row in range(4):
            params = jax.tree.map(lambda leaf, row=row: leaf[row].astype(np.float64), trained[0].params)
            sum_BxD = params["embed"]["embedding"][np.asarray(batch.tokens_BxL)].sum(axis=1)
            logits_BxV = np.tanh(sum_BxD @ params["in"]["kernel"]) @ params["head"]["kernel"]
            first_B = np.asarray(batch.tokens_BxL[:, 0])
            nll = np.log(np.exp(logits_BxV).sum(axis=1)) - logits_BxV[np.arange(16), first_B]
            # float32 forward pass against float64: 64 roundings on logits and losses below 4.
            assert scores[f"{split}.loss"][row] == pytest.approx(nll.mean(), abs=64 * 4 * EPS)
            answers = logits_BxV.argmax(axis=1)
            assert scores[f"{split}.accuracy"][row] == np.mean(answers == first_B)  # sixteenths: exact
            assert scores[f"{split}.share"][row].tolist() == (np.bincount(answers, minlength=8) / 16).tolist()


def test_rows_whose_data_a_hyperparameter_varies_equal_tasks_with_that_field(echo, bench, same_bits):
    """Both the batches they are trained on and those they are evaluated on."""
    noises, seeds = (0.0, 0.25, 1.0, 0.5), (3, 3, 3, 3)
    plain = {name: column for name, column in echo.four_rows().columns.items()} | {"seed": seeds}
    varied = echo.grid.zipped(plain | {"noise": noises}, ("noise",))
    together = bench(4, 2, 1, task=echo.Noisy())
    state, metrics = together.train(varied, (6,))
    scores = together.fetch(
        together.programs.evaluate({"noise": together.hparams(varied)["noise"]}, together.place(state), {}), 4
    )
    for row in (0, 1):  # without noise, and with some
        alone = bench(4, 2, 1, task=echo.Noisy(noise=noises[row]))
        same_state, same_metrics = alone.train(echo.grid.zipped(plain), (6,))
        own = lambda tree, row=row: jax.tree.map(lambda leaf: leaf[row], tree)  # noqa: E731
        same_bits(own((state.params, metrics)), own((same_state.params, same_metrics)))
        for name, score in own(alone.evaluate(same_state)).items():
            # logits below 4 of products in another order, as where all rows share a batch: 64 roundings
            np.testing.assert_allclose(scores[name][row], score, atol=64 * 4 * EPS, err_msg=name)
    assert len(set(metrics["train_loss"][:, -1].tolist())) == 4  # and the noise matters


@pytest.mark.parametrize("train_size", [0, 9])
def test_rows_with_another_objective_equal_trainings_with_that_objective_and_are_evaluated_as_drawn(
    echo, bench, same_bits, train_size
):
    noises = (0.0, 1.0, 0.4, 0.7)
    plain = {name: column for name, column in echo.four_rows().columns.items()} | {"seed": (3, 3, 3, 3)}
    together = bench(4, 2, 1, task=echo.Answering(), train_size=train_size)
    drawn = batches.train_set(together.experiment)
    trained = together.train(echo.grid.zipped(plain | {"label_noise": noises}, ("label_noise",)), (6,), drawn)
    for row in (0, 2):  # without noise, and with some
        objective = Objective(label_noise=noises[row])
        alone = bench(4, 2, 1, task=echo.Answering(), train_size=train_size, objective=objective)
        own = lambda tree, row=row: jax.tree.map(lambda leaf: leaf[row], tree)  # noqa: E731
        same_bits(own(trained), own(alone.train(echo.grid.zipped(plain), (6,), drawn)))
    assert len(set(trained[1]["train_loss"][:, -1].tolist())) == 4  # and it matters
    clean = bench(4, 2, 1, task=echo.Echo(), train_size=train_size)
    same_bits(together.evaluate(trained[0], drawn), clean.evaluate(trained[0], drawn))


def test_loss_of_a_uniform_answer_is_log_v(four, echo):
    state = jax.device_get(four.start(echo.four_rows()))
    silent = jax.tree.map(np.zeros_like, state.params)
    scores = four.evaluate(state._replace(params=silent))
    # logsumexp of eight zeros, a mean of equal numbers: 16 roundings of 2.
    np.testing.assert_allclose(scores["odd.loss"], np.log(8), rtol=16 * EPS)


def test_padding_repeats_the_last_row_and_changes_nothing(trained, four, echo, same_bits):
    three = {name: column[:3] for name, column in echo.four_rows().columns.items()}
    state, metrics = four.train(echo.grid.zipped(three), (STEPS,))
    same_bits((state, metrics), jax.tree.map(lambda leaf: leaf[:3], trained))
    padding = four.fetch(four.hparams(echo.grid.zipped(three)), 4)
    assert all(column[3] == column[2] for column in padding.values())


def test_mean_cross_entropy_of_the_library_is_the_one_written_out_here(echo):
    """So that the plain loops above differentiate what the engine does."""
    experiment = echo.experiment()
    params = echo.start_by_hand(experiment.model, {"seed": 0, "gamma": 0.3})
    batch = experiment.task.sample(rng.key(0, "x"), 4, "train", {})
    logits_BxQxV, _ = models.forward(experiment.model, params, batch.tokens_BxL)
    by_hand = echo.loss_by_hand(params, batch.tokens_BxL, batch.targets_BxL[:, -1])
    assert losses.mean_cross_entropy(logits_BxQxV, batch) == pytest.approx(float(by_hand), abs=128 * EPS)
