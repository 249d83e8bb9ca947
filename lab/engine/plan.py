"""Chooses how many rows a vmap holds, by timing the program that trains.

A wider vmap pays while one row cannot fill the device: hundreds of small rows on a GPU, one on a core of a CPU. Widths
are timed for a moment each (`lab.engine.widths`), as long as that takes at most a twentieth of the training; the
fastest whose predicted memory fits is remembered. A training too short for any timing takes what is usual.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import platform
import time
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh

import lab
from lab import cache, schedule, tree
from lab import config as configs
from lab.disk import files
from lab.disk.files import DamagedError, SaveError
from lab.engine import compiled, estimate, memory, numerics, shard, step, sweep, widths
from lab.engine.sweep import Options
from lab.experiment import Experiment
from lab.grid import Grid

SHARE, MEASURED_SECONDS = 0.05, 15.0  # of the training, at most, to measure with; what measuring one width may take
SMALLER = "set data_devices and split_params to spread it over several devices, or make batch_size smaller"

SMALL_STEP, GUESSED_ROWS = 2e9, 128  # FLOP of a row-step that leave a GPU idle; rows at once that fill it then
STRIDES = {"cpu": {"factor": 2, "slower": 1.0}}  # on others as `widths.explore` does by itself


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice of width, and what it was chosen from.

    Attributes:
      devices: how many of which kind.
      width: rows that a vmap holds at once.
      row_batches: how many batches of rows take turns on the devices; 1 where all rows' states fit there together.
      flops: floating-point operations of one row-step, by XLA's count before it optimizes.
      rates: width -> row-steps/s measured on the devices of one process; empty where the user set the width.
      memory: width -> bytes on one device, as XLA predicts them.
      determinism: how many times longer a step takes because `deterministic` is set; None where it is not, or is free.
      guessed: the training is too short to measure anything.
      reason: why this width, where it was not chosen.
    """

    devices: str
    width: int
    row_batches: int
    flops: float
    rates: dict[int, float]
    memory: dict[int, int]
    determinism: float | None = None
    guessed: bool = False
    reason: str = ""

    def sentence(self) -> str:
        """The choice, for people."""
        turns = f", in {self.row_batches} batches of rows" if self.row_batches > 1 else ""
        if self.reason or self.width not in self.rates:
            why = "fewer than planned, for want of memory" if self.rates else "as the config says"
            why = "not measured: the training is too short to gain by it" if self.guessed else why
            return f"{self.width} rows at once on each of {self.devices}{turns}, {self.reason or why}"
        rate = self.rates[self.width]
        tried = ", ".join(f"{width}: {rate:.0f}" for width, rate in sorted(self.rates.items()))
        cost = "" if self.determinism is None else f"; determinism makes a step {self.determinism:.2f} times as long"
        return (
            f"{self.width} rows at once on each of {self.devices}{turns}: {rate:.0f} row-steps/s, "
            f"{rate * self.flops / 1e9:.0f} GFLOP/s (row-steps/s by width: {tried}){cost}"
        )


def choose(
    experiment: Experiment,
    grid: Grid,
    mesh: Mesh,
    options: Options,
    max_steps: int,
    width: int = 0,
    fresh: bool = False,
    always: bool = False,
) -> Plan:
    """The plan for a grid on a mesh. Of several processes only one shall ask, and tell the others.

    Args:
      max_steps: longest chunk that will be asked for.
      width: the one the user wants; 0: measure, where that takes at most `SHARE` of the training.
      fresh: measure again what is remembered.
      always: measure, however long it takes.
    """
    if width:
        first = Plan(device_names(), width, 1, estimate.flops(experiment, grid), {}, {})
    else:
        first = _measured(experiment, grid, mesh, options, max_steps, fresh, always or fresh)
    row_bytes, rows_each = memory.of_row(experiment, grid, mesh, options), math.ceil(len(grid) / mesh.shape["run"])
    working = first.memory.get(first.width, 0)
    return dataclasses.replace(first, row_batches=memory.row_batches(row_bytes, rows_each, working))


@numerics.settled()
def explain(
    config: ml_collections.ConfigDict, compile_only: bool = False, fresh: bool = False, grid: Grid | None = None
) -> list[str]:
    """What a variant's grid needs on these devices, in lines for people.

    Args:
      compile_only: nothing is run; the width is the config's, or 1.
      fresh: measure again what is remembered.
      grid: the rows; None: those of the config.
    """
    experiment, options = configs.experiment(config), sweep.options(config)
    grid = configs.grid(config) if grid is None else grid
    mesh = shard.run_mesh(len(grid), config.data_devices)
    experiment.check_model()
    state = jax.eval_shape(functools.partial(step.start, experiment), grid.row(0))
    count = tree.size(state.params)
    lines = [
        f"{len(grid)} rows of {count:,} parameters, {tree.n_bytes(state) / 1e6:,.1f} MB each with the moments of the "
        f"optimizer, {estimate.flops(experiment, grid) / 1e9:,.2f} GFLOP a step; "
        f"on {mesh.shape['run']} x {mesh.shape['data']} devices (run x data)",
        *experiment.init_table(grid.columns, measure=not compile_only),
    ]
    longest = schedule.longest_part(config)
    if compile_only:
        layout = shard.layout(mesh, len(grid), config.block_width or 1)
        held = compiled.programs(experiment, grid, layout, longest, options).chunk.memory_analysis()
        lines.append(
            f"each device holds {held.argument_size_in_bytes / 1e6:,.0f} MB of states and data, and "
            f"{held.temp_size_in_bytes / 1e6:,.0f} MB while it computes, {layout.width} rows at once"
        )
        return [*lines, estimate.disk_sentence(config, experiment, grid)]
    chosen = choose(experiment, grid, mesh, options, longest, config.block_width, fresh, always=True)
    rate = chosen.rates.get(chosen.width) or widths.rate(experiment, grid, mesh, options, longest, chosen.width)[0]
    return [
        *lines,
        chosen.sentence(),
        estimate.duration_sentence(len(grid), config.steps, rate, chosen.width * mesh.shape["run"]),
        estimate.disk_sentence(config, experiment, grid),
    ]


def record(workdir: Path, plan: Plan) -> None:
    """`plan.json` of a training: it continues with the same width, which its last bits depend on."""
    values = dataclasses.asdict(plan)
    values["waves"] = values.pop("row_batches")
    files.write_json(workdir / files.PLAN, values)


def recall(workdir: Path) -> Plan | None:
    """The plan that a training was begun with; None if there is none, or it is damaged."""
    try:
        held = files.read_json(workdir / files.PLAN)
        held["row_batches"] = held.pop("waves")
        return Plan(**held | _by_width(held))
    except (DamagedError, KeyError, TypeError):  # the latter two: signed, but by somebody else
        return None


def narrow(workdir: Path, width: int) -> None:
    """Says in `plan.json` that a narrower width was taken in the end."""
    if (held := recall(workdir)) is not None:
        record(workdir, dataclasses.replace(held, width=width, reason=""))


def _by_width(held: dict) -> dict[str, dict[int, float]]:
    """JSON made strings of the widths."""
    return {name: {int(width): value for width, value in held[name].items()} for name in ("rates", "memory")}


def device_names() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _measured(experiment, grid, mesh, options: Options, max_steps, fresh: bool, always: bool) -> Plan:
    """The plan with its width measured, or guessed; as remembered from an earlier training with the same shapes."""
    rows_each = math.ceil(len(grid) / mesh.shape["run"])
    place = _remembered(experiment, grid, mesh, options, max_steps, rows_each)
    if not fresh:
        with contextlib.suppress(DamagedError, KeyError, TypeError):
            known = files.read_json(place)
            found = Plan(device_names(), row_batches=1, **known | _by_width(known))
            if not (found.guessed and always):
                return found

    def remember(plan: Plan) -> Plan:
        kept = {
            name: value for name, value in dataclasses.asdict(plan).items() if name not in ("devices", "row_batches")
        }
        with contextlib.suppress(SaveError):  # a home folder that cannot be written is no reason not to train
            files.write_json(place, kept)
        return plan

    backend, row_steps = jax.default_backend(), len(grid) * experiment.steps
    plan = Plan(device_names(), 1, 1, estimate.flops(experiment, grid), {}, {})
    guessed_seconds = row_steps * plan.flops / (estimate.device_flops() * mesh.shape["run"])
    if not always and SHARE * guessed_seconds < MEASURED_SECONDS:
        width = 1
        if backend != "cpu" and plan.flops < SMALL_STEP and jax.process_count() == 1:
            width = _widest_that_fits(experiment, grid, mesh, options, max_steps, min(rows_each, GUESSED_ROWS))
        return remember(dataclasses.replace(plan, width=width, guessed=True))

    begun, longest = time.monotonic(), 0.0

    def measure(rows_at_once: int) -> tuple[float | None, int]:
        nonlocal longest
        since = time.monotonic()
        found = widths.rate(experiment, grid, mesh, options, max_steps, rows_at_once)
        longest = max(longest, time.monotonic() - since)
        return found

    def affordable(rates: dict[int, float]) -> bool:
        spent = time.monotonic() - begun + longest
        return always or not rates or spent < SHARE * row_steps / max(rates.values())

    rates, needed = widths.explore(measure, rows_each, affordable=affordable, **STRIDES.get(backend, {}))
    if not rates:
        raise ValueError(
            f"one row needs {needed[1] / 1e9:.1f} GB on a device that has {memory.of_device() / 1e9:.1f} GB: {SMALLER}"
        )
    # a last block that is not full computes its padding too
    best = max(rates, key=lambda width: rates[width] / (math.ceil(rows_each / width) * width))
    cost = None
    if options.deterministic and backend == "gpu":
        faster = dataclasses.replace(options, deterministic=False)
        free, _ = widths.rate(experiment, grid, mesh, faster, max_steps, best)
        cost = free and free / rates[best]
    return remember(dataclasses.replace(plan, width=best, rates=rates, memory=needed, determinism=cost))


def _widest_that_fits(experiment, grid: Grid, mesh: Mesh, options: Options, max_steps: int, width: int) -> int:
    """At most `width`; what is compiled to find out is the program that trains."""
    while width > 1:
        layout = shard.layout(mesh, len(grid), width)
        chunk = compiled.programs(experiment, grid, layout, max_steps, options).chunk
        if memory.of_program(chunk) <= memory.SHARE * memory.of_device():
            break
        width //= 2
    return width


def _remembered(experiment: Experiment, grid: Grid, mesh: Mesh, options: Options, max_steps, rows_each: int) -> Path:
    """Where the widths of a program on devices like these are kept; raises ValueError as `cache.folder`."""
    home = platform.node() if jax.default_backend() == "cpu" else ""
    program = (
        experiment,
        tuple(grid.columns),
        mesh.shape,
        options,
        max_steps,
        rows_each,
        os.environ.get("XLA_FLAGS"),
        jax.__version__,
        lab.__version__,
    )
    name = hashlib.sha256(repr((device_names(), home, *program)).encode()).hexdigest()[:16]
    return cache.folder("plans") / f"{name}.json"
