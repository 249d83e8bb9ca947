"""Programs are compiled once: four from the command to the last step, and the plan's are the training's."""

import collections
import dataclasses
import logging
import re

import jax
import numpy as np
import pytest

from lab import optim, rng
from lab.engine import batches, compiled, estimate, memory, plan, shard, step, train, widths
from lab.engine.rows import Rows
from lab.engine.sweep import Options

pytestmark = pytest.mark.usefixtures("echo_is_a_task")


@pytest.fixture(autouse=True)
def remembers_here(monkeypatch, tmp_path):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def programs_compiled():
    """Names of the programs that XLA is given, as they come; an operation outside of any is one of its own."""
    names = []

    class Listener(logging.Handler):
        def emit(self, record):
            if found := re.match(r"Compiling (?:jit\()?([\w<>]+)\)? with global shapes", record.getMessage()):
                names.append(found[1])

    logger, listener = logging.getLogger("jax._src.interpreters.pxla"), Listener()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    compiled.forget()
    jax.clear_caches()
    with jax.log_compiles():
        yield names
    logger.removeHandler(listener)
    logger.propagate = propagate


def test_a_training_lowers_four_programs_and_nothing_outside_of_them(echo, tmp_path, programs_compiled):
    """Its data; and of all rows the start, a chunk of steps of any length, the evaluation.

    Beside them the step, whose operations are counted and which is not compiled, and a copy of one number a row.
    """
    train.train(echo.config(block_width=0), tmp_path / "w")
    assert collections.Counter(programs_compiled) == {"draw": 1, "blocks": 3, "train_step": 1, "copy": 1}


def test_the_program_that_is_measured_is_the_one_that_trains(echo, programs_compiled):
    experiment, grid, mesh = echo.experiment(), echo.four_rows(), shard.run_mesh(4)
    widths.rate(experiment, grid, mesh, Options(), 12, 2)
    so_far = list(programs_compiled)
    rows = Rows(experiment, grid, shard.layout(mesh, 4, 2), 12, Options())
    rows.start()
    rows.advance(0, 12)
    rows.wait()
    assert programs_compiled == so_far and so_far.count("blocks") == 2


def test_programs_of_other_numerics_are_others(echo):
    experiment, grid = echo.experiment(), echo.four_rows()
    layout = shard.layout(shard.run_mesh(4), 4, 1)
    ours = compiled.programs(experiment, grid, layout, 4, Options())
    assert compiled.programs(experiment, grid, layout, 4, Options()) is ours
    with jax.default_matmul_precision("highest"):
        assert compiled.programs(experiment, grid, layout, 4, Options()) is not ours


def test_what_cannot_be_traced_is_refused_whenever_it_is_asked_for(echo):
    @dataclasses.dataclass(frozen=True)
    class Unscored(echo.Echo):
        def score(self, logits_BxQxV, batch):
            return {"accuracy": 1 / 0}

    programs = compiled.Programs(
        echo.experiment(task=Unscored()), shard.layout(shard.run_mesh(1), 1, 1), 4, Options(),
        (("gamma", "float32"), ("weight_decay", "float32"), ("learning_rate", "float32"), ("seed", "int32")),
    )  # fmt: skip
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            programs.evaluate  # noqa: B018
    assert programs.chunk


# --- how wide, and whether to measure it ---


@pytest.fixture
def rates(monkeypatch):
    """What measuring would find, and the widths that were measured."""
    found, asked = {1: 100.0, 2: 150.0, 4: 140.0, 8: 500.0}, []
    monkeypatch.setattr(widths, "rate", lambda *program: asked.append(program[-1]) or (found[program[-1]], 1))
    return asked


def choose(echo, steps, **more):
    grid = echo.grid.product(
        dict(gamma=(0.5,), weight_decay=(0.1,), learning_rate=(0.01,), seed=tuple(range(8 * jax.device_count())))
    )
    mesh = shard.run_mesh(len(grid))
    return plan.choose(echo.experiment(steps=steps), grid, mesh, Options(), 12, **more)


def test_a_short_training_is_not_measured(echo, rates):
    """Eight rows on each device: seconds, by any estimate."""
    chosen = choose(echo, 20)
    assert (chosen.width, chosen.guessed, rates) == (1, True, [])
    assert "too short to gain by it" in chosen.sentence()
    assert choose(echo, 20) == chosen


def test_a_long_training_is_measured_upward_from_one_while_it_pays(echo, rates):
    chosen = choose(echo, 2**30)
    assert (chosen.width, chosen.guessed, rates) == (2, False, [1, 2, 4])


def test_who_asks_for_a_plan_gets_it_measured_even_where_one_was_guessed(echo, rates):
    choose(echo, 20)
    assert choose(echo, 20, always=True).width == 2 and rates == [1, 2, 4]
    assert choose(echo, 20).width == 2 and rates == [1, 2, 4]  # and is remembered


def test_measuring_ends_where_it_would_cost_more_than_its_share(echo, rates, monkeypatch):
    """Every width takes 100 s: of 5 % of 3,600 s, two are too many."""
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(plan.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(estimate, "flops", lambda *_: 1e18)
    n_rows = 8 * jax.device_count()
    assert choose(echo, int(3600 * 100 / n_rows)).width == 1 and rates == [1]


def test_a_gpu_takes_many_small_rows_at_once_where_nothing_is_measured(echo, rates, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory, "of_device", lambda: 1e12)
    assert choose(echo, 20).width == 8
    monkeypatch.setattr(plan, "SMALL_STEP", 0)
    assert choose(echo, 21).width == 1


# --- what all rows share, and what is one vector ---


@pytest.mark.parametrize("train_size", [0, 13])
@pytest.mark.parametrize("noise", [(), ("label_noise",)])
def test_what_is_drawn_once_for_all_rows_is_what_each_would_draw(echo, same_bits, train_size, noise):
    experiment = echo.experiment(task=echo.Answering(), train_size=train_size)
    hparams = {"seed": 3, **dict.fromkeys(noise, np.float32(0.5))}
    assert batches.shared(experiment, hparams)

    def drawn(ahead):
        batch_at = batches.batches(experiment, hparams, batches.data(experiment).train_set, 2, 5, ahead)
        return [batch_at(at) for at in range(2, 7)]

    same_bits(drawn(batches.draw_ahead(experiment, {}, 2, 5)), drawn(None))


def test_rows_with_data_of_their_own_share_nothing(echo):
    assert not batches.shared(echo.experiment(data_order="row"), {"seed": 0})
    assert not batches.shared(echo.experiment(task=echo.Noisy()), {"seed": 0, "noise": 0.1})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decay_mask": "matrices"},
        {"decay_mask": "kernels"},
        {"frozen": ("embed",)},
        {"family": "sgd", "momentum": 0.9},
    ],
)
@pytest.mark.parametrize("clip_norm", [float("inf"), 1e-3])
def test_a_packed_step_is_the_step(echo, changes, clip_norm, standard_promotion):
    """Up to the order in which the norm of 192 numbers is summed, and to which products XLA adds without rounding."""
    settings = optim.Optim(**(echo.OPTIM | dict(clip_norm=clip_norm) | changes))
    experiment = echo.experiment(optim=settings)
    hparams = echo.four_rows().row(1)
    state = jax.jit(lambda: step.start(experiment, hparams))()
    packing = step.packing(experiment, state)
    batch = experiment.task.sample(rng.key(0, "data"), 4, "train", {})

    @jax.jit
    def plain(state):
        for now in range(3):
            state, _ = step.train_step(experiment, hparams, state, batch, now)
        return state

    @jax.jit
    def packed(state):
        state = packing.pack_within(state)
        for now in range(3):
            state, _ = step.train_step(experiment, hparams, state, batch, now, packing)
        return packing.unpack_within(state)

    one, other = jax.device_get((plain(state), packed(state)))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=3 * 192 * 2.0**-23, atol=1e-9)
