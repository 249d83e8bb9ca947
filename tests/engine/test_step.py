"""One row: where it starts, what one step does to it, when it stops, and what its numbers mean."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import losses, models, rng
from lab.engine import batches
from lab.engine import step as engine
from lab.engine.step import RowState
from lab.models import Transformer
from lab.optim import Optim
from lab.tasks import Batch, Task
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
HPARAMS = {"gamma": 0.8, "weight_decay": 0.1, "learning_rate": 0.01, "seed": 3}


@pytest.fixture(scope="module")
def row(echo):
    """Experiment, its first state, and its compiled step."""
    experiment = echo.experiment()
    return experiment, engine.start(experiment, HPARAMS), jax.jit(functools.partial(engine.train_step, experiment))


def batch_at(experiment, step):
    return experiment.task.sample(rng.key(experiment.data_seed, "data", step), experiment.batch_size, "train", {})


def test_row_starts_from_the_unit_draw_brought_to_its_rate(row, echo):
    experiment, state, _ = row
    expected = echo.start_by_hand(experiment.model, HPARAMS)
    for name, leaf in named_leaves(state.params).items():
        # sqrt(8) and 8^-0.8 in float32 and two products: 8 roundings.
        np.testing.assert_allclose(leaf, named_leaves(expected)[name], rtol=8 * EPS)
    assert state.diverged_at == -1
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.params)) and not any(leaf.any() for leaf in moments)


def test_group_rates_count_where_the_row_has_them(echo, same_bits):
    experiment = echo.experiment()
    plain = engine.start(experiment, HPARAMS).params
    changed = engine.start(experiment, HPARAMS | {"gamma_embed": 0.3}).params
    np.testing.assert_allclose(
        changed["embed"]["embedding"],
        8**0.5 * plain["embed"]["embedding"],
        rtol=16 * EPS,  # two rescalings
    )
    same_bits(changed["in"], plain["in"])
    same_bits(changed["head"], plain["head"])


def test_rows_of_a_seed_share_their_draw_and_rows_of_others_do_not(echo):
    experiment = echo.experiment()
    start = lambda **changes: engine.start(experiment, HPARAMS | changes).params["in"]["kernel"]  # noqa: E731
    # a factor 8^(0.8 - 0.5) apart; two rescalings of 8 roundings
    np.testing.assert_allclose(start(gamma=0.5), start() * 8**0.3, rtol=16 * EPS)
    assert abs(np.corrcoef(np.ravel(start(seed=4)), np.ravel(start()))[0, 1]) < 4 / 8  # 4 sigma of 64 pairs


def test_gradient_norm_is_the_one_before_clipping_and_the_move_the_one_after(row, echo):
    experiment, state, step = row
    batch = batch_at(experiment, 0)
    moved, metrics = step(HPARAMS, state, batch, 0)
    gradient = jax.jit(jax.grad(echo.loss_by_hand))(state.params, batch.tokens_BxL, batch.targets_BxL[:, -1])
    norm = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(gradient)))
    assert norm > experiment.optim.clip_norm
    assert metrics["grad_norm"] == pytest.approx(norm, rel=64 * EPS)  # 32 roundings a gradient entry, its square
    (first_moment,) = [part.mu for part in moved.opt_state if hasattr(part, "mu")]
    for name, leaf in named_leaves(first_moment).items():
        clipped = np.asarray(named_leaves(gradient)[name], np.float64) * experiment.optim.clip_norm / norm
        # Adam's first mean is (1 - b1) g. An entry's 32 roundings are of terms at most ten times their sum.
        np.testing.assert_allclose(leaf, 0.1 * clipped, rtol=64 * EPS, atol=32 * 10 * EPS * abs(clipped).max())


def test_loss_weighs_positions_by_their_weight(row):
    """Doubling one sequence's weight is as good as having it twice."""
    experiment, state, step = row
    batch = batch_at(experiment, 0)
    weighted = batch._replace(weights_BxL=batch.weights_BxL.at[0].multiply(2.0))
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]]), batch)
    mean = lambda batch: step(HPARAMS, state, batch, 0)[1]["train_loss"]  # noqa: E731
    assert mean(weighted) == pytest.approx(float(mean(twice)), rel=32 * EPS)  # five terms, summed in another order


@pytest.mark.parametrize("poison", ["weights", "loss"])
def test_row_that_is_not_finite_is_frozen_with_its_step(row, same_bits, poison):
    experiment, state, step = row
    if poison == "weights":
        kernel = state.params["in"]["kernel"].at[0, 0].set(jnp.inf)
        state = state._replace(params={**state.params, "in": {"kernel": kernel}})
        batch = batch_at(experiment, 7)
    else:
        batch = batch_at(experiment, 7)
        batch = batch._replace(weights_BxL=batch.weights_BxL * 0)  # a mean over nothing: 0 / 0
    after, _ = step(HPARAMS, state, batch, 7)
    assert after.diverged_at == 7
    same_bits(after._replace(diverged_at=state.diverged_at), state)

    later, metrics = step(HPARAMS, after, batch_at(experiment, 8), 8)
    same_bits(later, after)  # the first step counts, whatever comes
    assert np.isnan(metrics["train_loss"]) and np.isnan(metrics["grad_norm"])


def test_frozen_row_stays_frozen_when_its_numbers_would_be_finite_again(row, same_bits):
    experiment, state, step = row
    frozen = state._replace(diverged_at=jnp.int32(2))
    after, metrics = step(HPARAMS, frozen, batch_at(experiment, 3), 3)
    same_bits(after, frozen)
    assert all(np.isnan(value) for value in metrics.values())
    scores = jax.jit(functools.partial(engine.evaluate, experiment))(frozen, batches.evaluation_set(experiment, None))
    assert len(scores) == 6 and all(np.isnan(score).all() for score in scores.values())


def test_training_split_of_a_finite_set_is_evaluated_on_its_first_sequences(row, echo):
    experiment = echo.experiment(train_size=20)
    whole = experiment.task.sample(rng.key(5, "train_set"), 20, "train", {})
    drawn = batches.evaluation_set(experiment, whole)
    batch = drawn["train"]
    np.testing.assert_array_equal(batch.tokens_BxL, whole.tokens_BxL[:16])
    scores = jax.jit(functools.partial(engine.evaluate, experiment))(row[1], drawn)
    by_hand = echo.loss_by_hand(row[1].params, whole.tokens_BxL[:16], whole.targets_BxL[:16, -1])
    assert scores["train.loss"] == pytest.approx(float(by_hand), rel=64 * EPS)  # 32 roundings on each side


def test_every_split_is_evaluated_on_sequences_of_its_own(echo):
    experiment = echo.experiment(eval_size=64)
    train, odd = (batches.evaluation_set(experiment, None)[split] for split in ("train", "odd"))
    assert set(np.unique(train.tokens_BxL[:, 0])) == {0, 2, 4, 6}
    assert set(np.unique(odd.tokens_BxL[:, 0])) == {1, 3, 5, 7}
    # other noise too: 128 tokens of 8 kinds agree by chance in an eighth, 16 +- 3.7; 4 sigma
    assert (train.tokens_BxL[:, 1:] == odd.tokens_BxL[:, 1:]).sum() < 16 + 4 * 3.7
    first_batch = batch_at(experiment, 0)
    assert (train.tokens_BxL[:4, 1:] != first_batch.tokens_BxL[:, 1:]).any()  # not the first training batch


def test_our_half_of_a_step_traces_under_strict_promotion(echo):
    experiment = echo.experiment()
    with jax.numpy_dtype_promotion("strict"):
        state = jax.eval_shape(functools.partial(engine.start, experiment), HPARAMS)
        jax.eval_shape(functools.partial(engine.evaluate, experiment), state, batches.evaluation_set(experiment, None))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    assert isinstance(state, RowState)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps=0: must be at least 1"),
        ({"batch_size": 0}, r"batch_size=0: must be at least 1"),
        ({"train_size": -1}, r"train_size=-1: must be at least 0"),
        ({"train_size": 3}, r"train_size=3 is smaller than batch_size=4"),
        ({"eval_size": 0}, r"eval_size=0: must be at least 1"),
        ({"data_order": "rows"}, r"data_order='rows': one of shared, row"),
        ({"init_convention": "papers"}, r"init='papers': one of paper, authors"),
        ({"steps": 3}, r"warmup_steps=3: must lie in \[0, steps=3\)"),
    ],
)
def test_impossible_experiment_is_refused_by_name(echo, changes, message):
    with pytest.raises(ValueError, match=message):
        echo.experiment(**changes)


def test_equal_experiments_compile_once_and_different_ones_anew(echo):
    """Or every training would compile its own program."""

    def experiments():
        transformer = Transformer(8, 3, 1, 1, 8, 8, 8, "relu", "pre", True, True, True, False, "last")
        changed = {"optim": Optim(**(echo.OPTIM | {"b2": 0.99}))}
        return [echo.experiment(), echo.experiment(**changed), echo.experiment(model=transformer)]

    compiled = []
    program = jax.jit(lambda experiment, x: compiled.append(experiment) or x, static_argnums=0)
    for experiment in [*experiments(), *experiments()]:
        program(experiment, 1.0)
    assert compiled == experiments()


def test_forward_written_out_here_is_the_model(row, echo):
    experiment, state, _ = row
    tokens_BxL = batch_at(experiment, 0).tokens_BxL
    logits_BxQxV, _ = models.forward(experiment.model, state.params, tokens_BxL)
    np.testing.assert_allclose(
        logits_BxQxV[:, 0],
        echo.forward_by_hand(state.params, tokens_BxL),
        rtol=0,
        atol=32 * EPS,  # both below 1
    )


@dataclasses.dataclass(frozen=True)
class Line(Task):
    """No language: y = 2 x of pairs of numbers, by the mean absolute error."""

    vocab_size = length = 0
    splits = ("train",)

    def example(self):
        return jnp.zeros((1, 2), jnp.float32)

    def sample(self, key, n, split, hparams):
        x_Bx2 = jax.random.normal(key, (n, 2), jnp.float32)
        return Batch(x_Bx2, 2 * x_Bx2, jnp.ones((n,), jnp.float32), {})

    def mean_loss(self, outputs, batch):
        return jnp.mean(jnp.abs(outputs - batch.targets_BxL))

    def score(self, outputs, batch):
        return {"sign": jnp.mean((outputs > 0) == (batch.targets_BxL > 0), dtype=jnp.float32)}


def test_a_task_says_what_is_descended_evaluated_and_what_a_model_starts_on(echo):
    experiment = echo.experiment(task=Line(), model=models.TwoLayerMLP(2, 16, 2, "tanh", False))
    state = engine.start(experiment, HPARAMS)
    batch = batch_at(experiment, 0)
    first, second = (np.asarray(state.params[name]["kernel"], np.float64) for name in ("in", "out"))
    assert first.shape == (2, 16)
    hidden = np.tanh(np.asarray(batch.tokens_BxL, np.float64) @ first)
    error = hidden @ second - np.asarray(batch.targets_BxL, np.float64)
    moved, metrics = jax.jit(functools.partial(engine.train_step, experiment))(HPARAMS, state, batch, 0)
    assert metrics["train_loss"] == pytest.approx(np.abs(error).mean(), rel=64 * EPS)  # 18 terms each
    slope = hidden.T @ np.sign(error) / error.size
    step = np.asarray(moved.params["out"]["kernel"]) - np.asarray(state.params["out"]["kernel"])
    assert (np.sign(step) == -np.sign(slope)).mean() == 1  # Adam's first step goes against every slope; decay is less
    scores = engine.evaluate(experiment, state, {"train": batch})
    assert set(scores) == {"train.loss", "train.sign"} and scores["train.loss"] == pytest.approx(np.abs(error).mean())


def test_tasks_that_say_nothing_are_of_language(echo, row, same_bits):
    experiment, state, _ = row
    batch = batch_at(experiment, 0)
    logits_BxQxV, _ = models.forward(experiment.model, state.params, batch.tokens_BxL)
    same_bits(experiment.task.mean_loss(logits_BxQxV, batch), losses.mean_cross_entropy(logits_BxQxV, batch))
    example = experiment.task.example()
    assert example.shape == (1, experiment.task.length) and example.dtype == jnp.int32
