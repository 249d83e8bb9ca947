"""The width is chosen by measurement, and never one that does not fit."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import models, tree
from lab.engine import compiled, estimate, memory, plan, shard, step, widths
from lab.engine.sweep import Options


@pytest.fixture(autouse=True)
def remembers_here(monkeypatch, tmp_path):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nothing_fits(monkeypatch):
    def rate(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    monkeypatch.setattr(widths, "_rate", rate)


@pytest.fixture
def counted(monkeypatch):
    """The widths measured, with rates that fall from 8 on and nothing wider than 20 fitting."""
    asked = []

    def rate(experiment, grid, mesh, options, max_steps, width):
        asked.append(width)
        return (None if width > 20 else 100.0 * width if width <= 8 else 10.0), width * 1000

    monkeypatch.setattr(widths, "rate", rate)
    return asked


def choose(echo, n_rows, width=0, **more):
    columns = dict(gamma=(0.5,) * n_rows, weight_decay=(0.1,) * n_rows, learning_rate=(0.01,) * n_rows)
    grid = echo.grid.zipped(columns | {"seed": tuple(range(n_rows))})
    more = {"always": True} | more
    return plan.choose(echo.experiment(), grid, shard.run_mesh(n_rows), Options(), 12, width, **more)


@given(peak=st.integers(0, 10), widest=st.integers(1, 2000), fits=st.integers(1, 2000))
def test_of_rates_with_one_peak_the_chosen_width_is_the_best_power_of_two_that_fits(peak, widest, fits):
    """Doubling the width doubles the rate up to the peak and halves it after."""

    def measure(width):
        rate = float(2 ** (peak - abs(peak - np.log2(width))))
        return (rate if width <= fits else None), width

    rates, memory = widths.explore(measure, widest)
    assert all(width <= min(widest, fits) for width in rates) and all(width <= widest for width in memory)
    powers = [2**k for k in range(12) if 2**k <= min(widest, fits)]
    assert max(rates.values()) >= max(measure(width)[0] for width in powers)
    assert len(memory) <= 9


def test_widest_is_tried_where_it_is_no_power_of_two():
    rates, _ = widths.explore(lambda width: (float(width), 0), 6)
    assert max(rates, key=rates.get) == 6


def test_fastest_width_is_taken_and_remembered(echo, counted):
    chosen = choose(echo, 64)
    assert chosen.width == 8 and chosen.row_batches == 1
    assert "8 rows at once on each of" in chosen.sentence() and "800 row-steps/s" in chosen.sentence()
    measured = list(counted)
    assert choose(echo, 64) == chosen and counted == measured
    assert choose(echo, 64, fresh=True) == chosen and counted == measured * 2


def test_damaged_memory_is_measured_again(echo, counted, tmp_path):
    chosen = choose(echo, 64)
    (remembered,) = (tmp_path / "cache").rglob("*.json")
    remembered.write_text("{")
    assert choose(echo, 64) == chosen and len(counted) == 2 * len(chosen.memory)


def test_width_of_the_user_is_taken_unmeasured(echo, counted):
    chosen = choose(echo, 64, width=5)
    assert chosen.width == 5 and counted == [] and "as the config says" in chosen.sentence()


def test_what_fits_nowhere_is_refused_with_its_size(echo, monkeypatch):
    monkeypatch.setattr(widths, "rate", lambda *args: (None, 3_000_000_000))
    monkeypatch.setattr(memory, "of_device", lambda: 2e9)
    with pytest.raises(ValueError, match=r"one row needs 3.0 GB on a device that has 2.0 GB.*data_devices"):
        choose(echo, 4)


def test_rows_that_do_not_fit_together_take_turns(echo, monkeypatch, counted):
    state = jax.eval_shape(functools.partial(step.start, echo.experiment()), echo.four_rows().row(0))
    row_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    n_devices = jax.device_count()
    # room for two rows and their copies on each device, beside a block at work
    monkeypatch.setattr(memory, "of_device", lambda: 4 * row_bytes / memory.SHARE)
    assert choose(echo, 6 * n_devices, width=1).row_batches == 3
    assert choose(echo, 2 * n_devices, width=1).row_batches == 1


def test_plan_comes_back_from_a_folder_as_it_was_recorded(echo, counted, tmp_path):
    assert plan.recall(tmp_path) is None
    chosen = dataclasses.replace(choose(echo, 64), determinism=1.25)
    plan.record(tmp_path, chosen)
    assert plan.recall(tmp_path) == chosen
    (tmp_path / "plan.json").write_bytes(b"{}")
    assert plan.recall(tmp_path) is None


def test_real_step_is_measured_and_its_memory_holds_the_state(echo):
    experiment, grid = echo.experiment(), echo.four_rows()
    rate, needed = widths.rate(experiment, grid, shard.run_mesh(4), Options(), 12, 2)
    state = jax.eval_shape(functools.partial(step.start, experiment), grid.row(0))
    assert rate > 0 and needed >= 2 * 4 * tree.size(state)


def test_flops_are_those_of_the_products(echo):
    """Forward, input gradient and weight gradient of two matrices, 3 x 2 x B x (D F + F V), and little beside."""
    experiment = echo.experiment(batch_size=1000)
    products = 3 * 2 * 1000 * (8 * 8 + 8 * 8)
    assert products < estimate.flops(experiment, echo.four_rows()) < 2 * products


def test_operations_of_scanned_layers_are_those_of_layers_in_a_loop(echo):
    """XLA counts one turn of a loop; as many layers one after the other are what it stands for."""
    tokens = echo.experiment().task
    model = models.Decoder(tokens.vocab_size, 0, 5, 2, 8, 4, 16, 1e-5)
    scanned, in_a_loop = (
        dataclasses.replace(echo.experiment(), model=model.clone(scan_layers=scan)) for scan in (True, False)
    )
    assert estimate.flops(scanned, echo.four_rows()) == pytest.approx(
        estimate.flops(in_a_loop, echo.four_rows()), rel=1e-6
    )


def test_parameters_split_over_devices_need_less_memory_on_each(echo):
    experiment = echo.experiment(model=echo.EmbMLP(8, 512, 512, "tanh"))
    mesh = shard.run_mesh(1, 2)
    layout = shard.layout(mesh, 1, 1)

    def held(split):
        options = Options(split_params=split)
        return compiled.programs(experiment, echo.four_rows().take([0]), layout, 1, options).chunk

    whole, split = (held(split).memory_analysis().argument_size_in_bytes for split in (False, True))
    large = 3 * 4 * 512 * 512  # the square matrix and its two moments; everything else is smaller than SMALLEST_SPLIT
    assert whole - split == large // 2


# --- how long and how large ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"), (40, "40 s"), (100, "2 min"), (12 * 60, "12 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min"),
        (47.9 * 3600, "47 h 54 min"), (76 * 3600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations_are_said_as_hours_and_minutes(seconds, text):
    assert estimate.hours_and_minutes(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(350, "0.35 kB"), (1500, "1.5 kB"), (350e3, "350 kB"), (3.44e6, "3.4 MB"), (2.5e11, "250 GB"), (5e12, "5000 GB")],
)
def test_sizes_are_said_in_the_largest_unit(n_bytes, text):
    assert estimate.size(n_bytes) == text


@pytest.mark.parametrize(
    ("n_rows", "steps", "rate", "at_once", "text"),
    [
        (4, 600, 10.0, 1, "about 4 min: 4 rows x 600 steps at 10 row-steps/s; "),
        (3, 600, 10.0, 4, "about 4 min: 3 rows x 600 steps"),  # one block of four is computed
        (5, 600, 10.0, 4, "about 8 min: 5 rows"),
        (5, 600, None, 4, "no duration"),
    ],
)
def test_duration_is_rows_times_steps_by_the_rate(n_rows, steps, rate, at_once, text):
    assert estimate.duration_sentence(n_rows, steps, rate, at_once).startswith(text)


def test_plan_says_how_long_and_what_lies_on_disk(echo, echo_is_a_task, counted):
    """Three rows of three matrices of 64 weights."""
    config = echo.config(block_width=4)
    *_, duration, disk = plan.explain(config)
    assert duration.startswith("about 1 s: 3 rows x 24 steps at 400 row-steps/s")
    assert [part.rsplit(" ", 2)[0] for part in disk.split(": ")[1].split(", ")] == [
        "2 checkpoints", "3 snapshots", "metrics",
    ]  # fmt: skip
    n_bytes = 3 * 3 * (3 * 64 * 4) + 3 * 3 * estimate.DESCRIBED  # three snapshots of three rows; three arrays in each
    assert f"3 snapshots {estimate.size(n_bytes)}" in disk


def test_width_of_the_user_that_does_not_fit_has_no_duration(echo, echo_is_a_task, nothing_fits):
    *_, duration, _ = plan.explain(echo.config(block_width=4))
    assert duration == "no duration: one block does not fit in memory"


def test_cost_of_determinism_is_unknown_where_the_faster_program_does_not_fit(echo, counted, monkeypatch):
    rate = widths.rate
    monkeypatch.setattr(widths, "rate", lambda *program: rate(*program) if program[3].deterministic else (None, 1))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    grid = echo.grid.zipped(dict(gamma=(0.5,), weight_decay=(0.1,), learning_rate=(0.01,), seed=(0,)))
    chosen = plan.choose(echo.experiment(), grid, shard.run_mesh(1), Options(deterministic=True), 12, always=True)
    assert chosen.width == 1 and chosen.determinism is None
